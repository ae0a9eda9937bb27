// The launch for bounded requests where rows are few.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "spread_finish.cuh"
#include "spread_row.cuh"

namespace nucleus::spread {

// `last`: no launch follows that would take what is not decided.
template <u32 DTYPE, u32 BLOCKS>
__global__ void __launch_bounds__(TILE_THREADS, 1) sample_spread(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, bool last) {
  const DeviceTeam team;
  team.cluster_arrive();
  let_next_launch_begin();
  wait_for_launch_before();
  Block<DTYPE, BLOCKS> own(batch, team, row_state());
  bool decided = own.collect();
  if (own.block != 0) return;
  team.cluster_wait();
  if (decided) decided = finish_row<BLOCKS>(own.sh, batch, own.index);
  if (decided) return;
  if (last) sample_alone(batch, workspace, own.index);
  else if (threadIdx.x == 0 && !(own.sh->row.flags & NUCLEUS_ROW_PADDING)) batch.out[own.index].status = PENDING;
}

template <u32 DTYPE, u32 BLOCKS>
static cudaError_t launch(const SamplingBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  const auto kernel = sample_spread<DTYPE, BLOCKS>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, STATE_BYTES);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess && BLOCKS > 8) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows * BLOCKS);
  config.blockDim = dim3(TILE_THREADS);
  config.dynamicSmemBytes = STATE_BYTES;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0] = begins_early();
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = BLOCKS;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, batch, workspace, last);
}

template <u32 BLOCKS>
static cudaError_t launch(const SamplingBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return batch.dtype == NUCLEUS_F32   ? launch<NUCLEUS_F32, BLOCKS>(batch, workspace, last, stream)
         : batch.dtype == NUCLEUS_F16 ? launch<NUCLEUS_F16, BLOCKS>(batch, workspace, last, stream)
                                      : launch<NUCLEUS_BF16, BLOCKS>(batch, workspace, last, stream);
}

}  // namespace nucleus::spread

namespace nucleus {

cudaError_t launch_spread(const SamplingBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return spread::launch<8>(batch, workspace, last, stream);
}

}  // namespace nucleus
