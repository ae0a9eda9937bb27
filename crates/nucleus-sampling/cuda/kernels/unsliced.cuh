// A row by the exact path, without slices.
#pragma once

#include "call.cuh"

namespace nucleus {

// The row as it lies in device memory, every edit a layer: for programs and rows that slices do not serve.
static __device__ __noinline__ void sample_unsliced(RowCall call, Workspace workspace, bool exact_only) {
  PlainTeam team{call.team()};
  Request r = call.request();
  u64 bound = edited_bound(r);
  EditTable table{reinterpret_cast<Edit *>(reinterpret_cast<char *>(team.slice) + LIST_CAPACITY * sizeof(u64)), 16};
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  if (bound > SHARED_EDITS_USED) {
    if (bound > workspace.most) {
      fail(call, team, r, NUCLEUS_WORKSPACE);
      return;
    }
    table = EditTable{workspace.edits + static_cast<u64>(call.index) * (workspace.capacity + 1), workspace.capacity};
    if (team.leader()) build_edits(team, r, table);
    __threadfence();
    team.cluster_sync();
  } else {
    build_edits(team, r, table);
  }
  RawSums raw = call.raw;
  if (!(r.row->flags & NUCLEUS_ROW_PROCESSED) && !raw.wanted) raw = raw_sums(team, r, table);
  sample_exactly(team, r, table, raw, exact_only, call.out());
}

}  // namespace nucleus
