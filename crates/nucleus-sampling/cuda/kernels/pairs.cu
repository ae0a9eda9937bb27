// The launch for bounded requests where rows are neither few nor many.
#include <cuda_runtime.h>

#include "overlap.cuh"
#include "pairs_rows.cuh"

namespace nucleus::pairs {

// One block on a multiprocessor, so that nothing of its state is spilled.
template <u32 DTYPE>
__global__ void __launch_bounds__(TILE_THREADS, 1) sample_pairs(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Sharing sharing) {
  sample_by_segments<DTYPE>(batch, sharing);
}

// Of the devices this is tuned for.
constexpr u32 MULTIPROCESSORS = 132;
constexpr u32 PAIRS = MULTIPROCESSORS / 2;  // resident at a time
constexpr u32 SHARED_MOST = 232448;         // bytes of shared memory a block may have
constexpr u32 RING_STAGES = 5;

static Sharing share_out(u32 rows, u32 row_len, u32 dtype) {
  const u32 size = dtype == NUCLEUS_F32 ? 4 : 2, tile = TILE_BYTES / size;
  Sharing sharing;
  sharing.blocks = rows <= PAIRS && row_len > tile ? 2 : 1;
  sharing.length = ((row_len + sharing.blocks - 1) / sharing.blocks + 63) & ~63u;
  const u32 tiles = (sharing.length + tile - 1) / tile;
  sharing.stages = RING_STAGES;
  while (sharing.stages > 2 && bounded_bytes(sharing.stages * TILE_BYTES, sharing.length) > SHARED_MOST) --sharing.stages;
  if (sharing.blocks > 1 && sharing.stages > tiles) sharing.stages = tiles;
  sharing.ring_bytes = sharing.stages * TILE_BYTES;
  sharing.ahead = sharing.stages < tiles ? sharing.stages : tiles;
  return sharing;
}

template <u32 DTYPE>
static cudaError_t launch(const SamplingBatch &batch, const Sharing &sharing, cudaStream_t stream) {
  const auto kernel = sample_pairs<DTYPE>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_MOST);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(sharing.blocks > 1 || batch.rows < MULTIPROCESSORS ? batch.rows * sharing.blocks : MULTIPROCESSORS);
  config.blockDim = dim3(TILE_THREADS);
  config.dynamicSmemBytes = bounded_bytes(sharing.ring_bytes, sharing.length);
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0] = begins_early();
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = sharing.blocks;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, batch, sharing);
}

}  // namespace nucleus::pairs

namespace nucleus {

cudaError_t launch_pairs(const SamplingBatch &batch, cudaStream_t stream) {
  const pairs::Sharing sharing = pairs::share_out(batch.rows, batch.row_len, batch.dtype);
  return batch.dtype == NUCLEUS_F32   ? pairs::launch<NUCLEUS_F32>(batch, sharing, stream)
         : batch.dtype == NUCLEUS_F16 ? pairs::launch<NUCLEUS_F16>(batch, sharing, stream)
                                      : pairs::launch<NUCLEUS_BF16>(batch, sharing, stream);
}

}  // namespace nucleus
