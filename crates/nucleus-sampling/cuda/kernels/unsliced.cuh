// A row by the exact path, without slices.
#pragma once

#include "call.cuh"

// The namespace keeps it behind what is run for every row: ptxas puts the functions of a kernel in the order of their mangled names.
namespace nucleus::unsliced {

// The row as it lies in device memory, every edit a layer: for programs and rows that slices do not serve.
static __device__ __noinline__ void sample(RowCall call, Workspace workspace, bool unlisted) {
  PlainTeam team{call.team()};
  Request r = call.request();
  EditTable table{nullptr, 0};
  if (!unsliced_edits(team, r, call.index, workspace, behind_scratch(team), table)) {
    fail(call, team, r, NUCLEUS_WORKSPACE);
    return;
  }
  RawSums raw = call.raw;
  if (!(r.row->flags & NUCLEUS_ROW_PROCESSED) && !raw.wanted) raw = raw_sums(team, r, table);
  sample_exactly(team, r, table, raw, unlisted, call.out());
}

}  // namespace nucleus::unsliced
