// The likeliest tokens of what rows are drawn from, by a cluster a row: a launch for the rows that ask for them.
#include <cuda_runtime.h>

#include "control.cuh"
#include "held_row.cuh"
#include "launch.cuh"

namespace nucleus {

// From the slices that hold the row, by the warp in control; false: they are not of numbers alone, or do not serve the program.
__device__ __noinline__ bool tell_from_slices(RowCall call, TopCall top) {
  return tell_top(SliceTeam(call.team()), call.request(), EditTable{nullptr, 0}, top);
}

// From the row as it lies in device memory.
__device__ __noinline__ void tell_from_row(RowCall call, Workspace workspace, TopCall top) {
  const PlainTeam team{call.team()};
  const Request r = call.request();
  EditTable table{nullptr, 0};
  if (unsliced_edits(team, r, call.index, workspace, behind_scratch(team), table)) tell_top(team, r, table, top);
  else top.tell_nothing(team);
}

__global__ void __launch_bounds__(THREADS, 1) top_processed_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace,
                                                                 const __grid_constant__ TopCall call, u32 slice_room) {
  Shared *sh = shared_state();
  DeviceTeam team;
  share_batch(sh, batch);
  team.take_slice(batch.row_len, slice_room);
  const PartLoad load(team, batch.dtype);
  if (threadIdx.x % 32 == 0) load.prepare();
  team.prepare_meetings();
  u32 use = 0;
#pragma unroll 1
  for (u32 index = team.share_of(blockIdx.x); index < batch.rows; index += team.share_of(gridDim.x)) {
    if ((batch.row[index].flags & (NUCLEUS_ROW_TOP | NUCLEUS_ROW_PADDING)) != NUCLEUS_ROW_TOP) continue;
    const DescriptionWord word = ask_for_row(load, batch, index);
    team.cluster_sync();  // no block reads what the row before has left any more
    describe_row(sh, batch, index, word);
    await_window();
    load.wait(use++);
    sync_block();
    const char *logits = row_of(batch, index);
    const RowCall row{index, slice_room, RawSums{}};
    const TopCall own{call.top + static_cast<u64>(index) * call.count, call.count};
    const SlicePlan plan = shared_plan(sh);
    bool told = team.whole && plan.sliced;
    if (told) {
      change_slices(team, row.request(), plan, load, logits, [] {});
      told = in_control(team, [&] { return tell_from_slices(row, own); });
    }
    if (!told) {
      team.cluster_sync();
      tell_from_row(row, workspace, own);
    }
  }
  team.cluster_sync();  // no block leaves while another may still read its shared memory
}

cudaError_t launch_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream) {
  cudaError_t error = allow_slices(reinterpret_cast<const void *>(top_processed_rows));
  Shape shape;
  if (error == cudaSuccess) error = shape.fit(batch, reinterpret_cast<const void *>(top_processed_rows));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, false);
  return cudaLaunchKernelEx(&config, top_processed_rows, batch, workspace, call, shape.room);
}

}  // namespace nucleus
