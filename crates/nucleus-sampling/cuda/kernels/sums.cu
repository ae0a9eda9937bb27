// The launch for batches of which no row is bounded or weighed whole: rows whose programs' every cut follows from sums. In a kernel of their own little is spilled of what
// their sweeps keep in registers; beside the exact path it goes to an L1 of 28 KiB.
#include <cuda_runtime.h>

#include "by_sums.cuh"
#include "held_row.cuh"
#include "launch.cuh"

namespace nucleus {

// Masks and edits are out of line, since most rows have none.
static __device__ __noinline__ void change_held(RowCall call, SlicePlan plan) {
  const DeviceTeam team = call.team();
  const Request r = call.request();
  change_slices(team, r, plan, PartLoad(team, r.dtype), static_cast<const char *>(r.logits), [] {});
}

// Rows that sums do not decide are PENDING afterwards.
__global__ void __launch_bounds__(THREADS, 2) sum_rows(const __grid_constant__ SamplingBatch batch, u32 slice_room) {
  Shared *const sh = shared_state();
  DeviceTeam team;
  team.take_slice(batch.row_len, slice_room);
  const PartLoad load(team, batch.dtype);
  share_batch(sh, batch);
  if (threadIdx.x % 32 == 0) load.prepare();
  team.prepare_meetings();
  team.cluster_sync();
  wait_for_launch_before();
  let_next_launch_begin();
  const u32 first = team.share_of(blockIdx.x), step = team.share_of(gridDim.x);
  // Most often a row has the request of its own number: then that is read before the row is known.
  const bool each = batch.flags & NUCLEUS_BATCH_REQUEST_EACH;
  DescriptionWord word;
  auto read_description = [&](u32 index) {
    if (index < batch.rows) word.read(batch, index, each ? index : batch.row[index].request);
  };
  read_description(first);
#pragma unroll 1
  for (u32 index = first, use = 0; index < batch.rows; index += step, ++use) {
    const char *const logits = row_of(batch, index);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // other warps wrote to this part
    sync_block();  // what the row before has left is read by its own block alone
    if (threadIdx.x % 32 == 0) load.start(logits);
    if (may_edit(batch)) EditedTokens::of(sh)->clear();
    word.write(sh);
    if (threadIdx.x == 0) sh->unusual = 0;
    sync_block();
    if (each && sh->row.request != index && !(sh->row.flags & NUCLEUS_ROW_PADDING)) {
      share_description(sh, batch, index, sh->row.request);
      sync_block();
    }
    describe_slot(sh, batch);
    if (may_edit(batch)) ask_for_window(0);
    read_description(index + step);
    const SlicePlan plan = plan_of(*sh);
    const u32 flags = sh->row.flags;
    const bool padding = flags & NUCLEUS_ROW_PADDING, served = flags & NUCLEUS_ROW_PROCESSED && team.whole && plan.sliced && cuts_by_sums(sh->program);
    if (served && !padding) begin_sums();
    await_window();
    load.wait(use);
    if (padding) continue;
    if (!served && !use) {
      // Where a cluster's first row is none of these, the others are not either, most often: they need not be brought twice.
      for (u32 other = index + step * team.rank(); other < batch.rows; other += step * team.size())
        if (!(batch.row[other].flags & NUCLEUS_ROW_PADDING)) batch.out[other].status = PENDING;
      break;
    }
    const RowCall call{index, slice_room, RawSums{}};
    Fate fate = Fate::MANY;
    if (served) {
      if (plan.edits || sh->row.mask >= 0 || flags & NUCLEUS_ROW_ALLOWED) {
        sync_block();
        change_held(call, plan);
      } else {
        load.settle(logits, sh->config.vocab_size < batch.row_len ? sh->config.vocab_size : batch.row_len);
      }
      sync_block();
      fate = follow_sums(team, call);
    }
    if (fate != Fate::DECIDED && team.rank() == 0) call.out()->status = PENDING;
  }
  team.cluster_sync();  // no block leaves while another may still read its shared memory
}

cudaError_t launch_sums(const SamplingBatch &batch, cudaStream_t stream) {
  const auto kernel = reinterpret_cast<const void *>(sum_rows);
  cudaError_t error = cudaFuncSetAttribute(sum_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(sum_rows, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  Shape shape;
  if (error == cudaSuccess) error = shape.fit(batch, kernel);
  if (error != cudaSuccess) return error;
  // Few clusters where the ways of many rows are tested.
  const u32 least = (batch.rows + CLUSTER_ROWS - 1) / CLUSTER_ROWS;
  if (batch.flags & NUCLEUS_BATCH_MANY_ROWS || shape.clusters < least) shape.clusters = least;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, batch.rows <= FIRST_EARLY_MOST);
  return cudaLaunchKernelEx(&config, sum_rows, batch, shape.room);
}

}  // namespace nucleus
