// The launch for bounded requests where rows are many.
#include <cuda_runtime.h>

#include "overlap.cuh"
#include "relay_finish.cuh"
#include "relay_read.cuh"

namespace nucleus::relay {

// One block on a multiprocessor, so that nothing of its state is spilled. COMMON: without the wider chain, which costs all rows time where it is compiled in; the list machine runs what would need it.
template <u32 DTYPE, bool SOME, bool COMMON>
__global__ void __launch_bounds__(BLOCK_THREADS, 1) sample_by_relay(const __grid_constant__ RowsOfBatch<SOME> batch, const __grid_constant__ Workspace workspace, bool last) {
  State *const sh = state();
  const u32 lane = threadIdx.x - 2 * TEAM_THREADS;
  if (lane < 32) {
    static_assert(STAGES <= 32);
    if (lane < STAGES) {
      init_barrier(&sh->arrived[lane], 1);
      init_barrier(&sh->empty[lane], TEAM_WARPS / HALVES * ARRIVING_LANES);
    }
    if (lane < 2) {
      init_barrier(&sh->told[lane], ARRIVING_LANES);
      init_barrier(&sh->ready[lane], TELLING_THREADS);
      init_barrier(&sh->known[lane], DESCRIBING_THREADS / 32 * ARRIVING_LANES);
      init_barrier(&sh->read[lane], TEAM_WARPS * ARRIVING_LANES);
      init_barrier(&sh->finished[lane], TEAM_WARPS * ARRIVING_LANES);
      init_barrier(&sh->followed_to_end[lane], ARRIVING_LANES);
    }
    if (lane == 0) {
      init_barrier(&sh->begun, (DESCRIBING_THREADS / 32 - 1) * ARRIVING_LANES);
      init_barrier(&sh->brought, 1);
#ifdef NUCLEUS_RACECHECK
      init_barrier(&sh->met[Reading::NUMBER], TEAM_THREADS);
      init_barrier(&sh->met[Finishing::NUMBER], TEAM_THREADS);
      init_barrier(&sh->met[Describing::NUMBER], DESCRIBING_THREADS);
      init_barrier(&sh->met[Marking::NUMBER], Marking::THREADS_OF_IT);
#endif
      sh->undecided = 0;
      sh->rows[0].shift = sh->rows[1].shift = 0;
    }
    publish_barriers();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  forget_collected(&sh->rows[0], threadIdx.x, BLOCK_THREADS);
  forget_collected(&sh->rows[1], threadIdx.x, BLOCK_THREADS);
  sync_block();
  batch.begin_after_launch_before();
  let_next_launch_begin();
  if (threadIdx.x < TEAM_THREADS) {
    read_rows<DTYPE>(batch);
  } else if (threadIdx.x < 2 * TEAM_THREADS) {
    finish_rows<COMMON>(batch, last);
  } else {
    if (threadIdx.x == 2 * TEAM_THREADS) fill_ring<DTYPE>(batch);
    if (threadIdx.x >= DESCRIBING_FIRST) describe_rows(batch);
    else if (threadIdx.x >= DESCRIBING_FIRST - 32) follow_rows(batch);
    batch.end_after_launch_before();
    return;
  }
  if (!last) return;
  sync_block();
  if (sh->undecided) rest::sample<DTYPE>(batch, workspace);
}

constexpr u32 MULTIPROCESSORS = 132;  // of the devices this is tuned for

template <u32 DTYPE, bool SOME, bool COMMON>
static cudaError_t launch(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  const auto kernel = sample_by_relay<DTYPE, SOME, COMMON>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MOST);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows < MULTIPROCESSORS ? batch.rows : MULTIPROCESSORS);
  config.blockDim = dim3(BLOCK_THREADS);
  config.dynamicSmemBytes = RELAY_BYTES;
  config.stream = stream;
  cudaLaunchAttribute overlap = begins_early();
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, RowsOfBatch<SOME>(batch), workspace, last);
}

template <u32 DTYPE>
static cudaError_t launch(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  const bool common = batch.flags & NUCLEUS_BATCH_COMMON_CHAINS;
  const auto all = common ? launch<DTYPE, false, true> : launch<DTYPE, false, false>, some = common ? launch<DTYPE, true, true> : launch<DTYPE, true, false>;
  return (batch.order ? some : all)(batch, workspace, last, stream);
}

}  // namespace nucleus::relay

namespace nucleus {

cudaError_t launch_relay(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return batch.dtype == NUCLEUS_F32   ? relay::launch<NUCLEUS_F32>(batch, workspace, last, stream)
         : batch.dtype == NUCLEUS_F16 ? relay::launch<NUCLEUS_F16>(batch, workspace, last, stream)
                                      : relay::launch<NUCLEUS_BF16>(batch, workspace, last, stream);
}

}  // namespace nucleus
