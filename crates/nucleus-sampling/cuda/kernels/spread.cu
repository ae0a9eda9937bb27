// The launch for bounded requests where rows are few.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "spread_finish.cuh"
#include "spread_row.cuh"

namespace nucleus::spread {

template <u32 DTYPE, u32 BLOCKS>
__global__ void __launch_bounds__(BLOCK_THREADS, 1) sample_spread(const __grid_constant__ SamplingBatch batch) {
  const DeviceTeam team;
  RowState *const sh = row_state();
  const u32 index = blockIdx.x / BLOCKS;
  bool decided = Block<DTYPE, BLOCKS>(batch, team, sh).collect();
  if (team.block != 0) return;
  if (decided) {
    wait_for_copy(&sh->arrived, 0);
    decided = finish_row(sh, batch, index);
  }
  if (!decided && threadIdx.x == 0 && !(sh->row.flags & NUCLEUS_ROW_PADDING)) batch.out[index].status = PENDING;
}

template <u32 DTYPE, u32 BLOCKS>
static cudaError_t launch(const SamplingBatch &batch, cudaStream_t stream) {
  const auto kernel = sample_spread<DTYPE, BLOCKS>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(RowState));
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows * BLOCKS);
  config.blockDim = dim3(BLOCK_THREADS);
  config.dynamicSmemBytes = sizeof(RowState);
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0] = begins_early();
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = BLOCKS;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, batch);
}

// Clusters of so many blocks that are resident at a time on the devices this is tuned for, a block on a multiprocessor. racecheck of compute-sanitizer has
// trouble with clusters of many.
#ifdef NUCLEUS_RACECHECK
constexpr u32 EIGHTS = 0, FOURS = 0;
#else
constexpr u32 EIGHTS = 15, FOURS = 30;
#endif

template <u32 DTYPE>
static cudaError_t launch(const SamplingBatch &batch, cudaStream_t stream) {
  static_assert(Deal<DTYPE, 4>::FROM_LEN <= SPREAD_FROM_LEN && Deal<DTYPE, 2>::FROM_LEN <= SPREAD_FROM_LEN);
  if (batch.rows <= EIGHTS && batch.row_len >= Deal<DTYPE, 8>::FROM_LEN) return launch<DTYPE, 8>(batch, stream);
  if (batch.rows <= FOURS) return launch<DTYPE, 4>(batch, stream);
  return launch<DTYPE, 2>(batch, stream);
}

}  // namespace nucleus::spread

namespace nucleus {

cudaError_t launch_spread(const SamplingBatch &batch, cudaStream_t stream) {
  return batch.dtype == NUCLEUS_F32   ? spread::launch<NUCLEUS_F32>(batch, stream)
         : batch.dtype == NUCLEUS_F16 ? spread::launch<NUCLEUS_F16>(batch, stream)
                                      : spread::launch<NUCLEUS_BF16>(batch, stream);
}

}  // namespace nucleus
