// The launch for bounded requests where rows are many.
#include <cuda_runtime.h>

#include "overlap.cuh"
#include "relay_finish.cuh"
#include "relay_read.cuh"
#include "unsliced.cuh"

namespace nucleus::relay {

// The block's rows that are not decided, on the exact path, by both teams; the other warps have ended.
static __device__ __noinline__ void sample_undecided(const SamplingBatch &batch, const Workspace &workspace) {
  Shared *const sh = shared_state();
  UNROLL_NOT
  for (u32 index = blockIdx.x; index < batch.rows; index += gridDim.x) {
    __syncthreads();
    DescriptionWord word;
    word.read(batch, index, batch.row[index].flags & NUCLEUS_ROW_PADDING ? 0 : batch.row[index].request);
    word.write(sh);
    if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
    if (threadIdx.x == 0) sh->unusual = sh->found = sh->kept = 0;
    __syncthreads();
    if (sh->row.flags & NUCLEUS_ROW_PADDING || __syncthreads_or(*static_cast<volatile u32 *>(&batch.out[index].status) != PENDING)) continue;
    describe_slot(sh, batch);
    sample_unsliced(RowCall{index, 0, 0, RawSums{}, true}, workspace, false);
  }
}

// One block on a multiprocessor, so that nothing of its state is spilled.
template <u32 DTYPE>
__global__ void __launch_bounds__(BLOCK_THREADS, 1) sample_by_relay(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, bool last) {
  State *const sh = state();
  if (threadIdx.x == 0) {
    UNROLL_NOT
    for (u32 i = 0; i < STAGES; ++i) {
      init_barrier(&sh->arrived[i], 1);
      init_barrier(&sh->empty[i], TEAM_WARPS / HALVES * LEAVING_LANES);
    }
    UNROLL_NOT
    for (u32 i = 0; i < 2; ++i) {
      init_barrier(&sh->ready[i], TELLING_THREADS);
      init_barrier(&sh->read[i], TEAM_WARPS * LEAVING_LANES);
      init_barrier(&sh->followed_to_end[i], LEAVING_LANES);
    }
    init_barrier(&sh->begun, TELLING_THREADS);
    sh->undecided = 0;
    publish_barriers();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __syncthreads();
  wait_for_launch_before();
  let_next_launch_begin();
  if (threadIdx.x < TEAM_THREADS) {
    read_rows<DTYPE>(batch);
  } else if (threadIdx.x < 2 * TEAM_THREADS) {
    finish_rows(batch);
  } else {
    if (threadIdx.x == 2 * TEAM_THREADS) fill_ring<DTYPE>(batch);
    if (threadIdx.x >= 2 * TEAM_THREADS + 32) follow_rows(batch);
    return;
  }
  if (!last) return;
  __syncthreads();
  if (sh->undecided) sample_undecided(batch, workspace);
}

constexpr u32 MULTIPROCESSORS = 132;  // of the devices this is tuned for

template <u32 DTYPE>
static cudaError_t launch(const SamplingBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  const auto kernel = sample_by_relay<DTYPE>;
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
  return cudaLaunchKernelEx(&config, kernel, batch, workspace, last);
}

}  // namespace nucleus::relay

namespace nucleus {

cudaError_t launch_relay(const SamplingBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return batch.dtype == NUCLEUS_F32   ? relay::launch<NUCLEUS_F32>(batch, workspace, last, stream)
         : batch.dtype == NUCLEUS_F16 ? relay::launch<NUCLEUS_F16>(batch, workspace, last, stream)
                                      : relay::launch<NUCLEUS_BF16>(batch, workspace, last, stream);
}

}  // namespace nucleus
