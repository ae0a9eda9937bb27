// The launches for bounded requests.
#include <cuda_runtime.h>

#include "finish.cuh"
#include "launch.cuh"
#include "segment.cuh"

namespace nucleus {

template <u32 DTYPE>
__global__ void __launch_bounds__(TILE_THREADS, TILE_BLOCKS) read_segments(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Segments segments) {
  sample_segments<DTYPE>(batch, segments);
}

template <u32 N>
__global__ void __launch_bounds__(N, 1024 / N) finish_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Segments segments) {
  finish_row<N>(batch, segments);
}


u32 segments_of(u32 rows, u32 row_len, u32 dtype) {
  const u32 tile = TILE_BYTES / (dtype == NUCLEUS_F32 ? 4 : 2), tiles = (row_len + tile - 1) / tile, most = tiles < SEGMENTS_MOST ? tiles : SEGMENTS_MOST;
  const u32 wanted = SEGMENT_ROWS / (rows ? rows : 1);
  return wanted < 1 ? 1 : wanted < most ? wanted : most;
}

template <u32 DTYPE>
static cudaError_t launch_segments(const SamplingBatch &batch, const Segments &segments, cudaStream_t stream) {
  const u32 bytes = static_cast<u32>(segment_bytes(segments.length)), items = batch.rows * segments.count;
  cudaError_t error = cudaFuncSetAttribute(read_segments<DTYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(segment_bytes(NUCLEUS_MAX_VOCAB)));
  if (error == cudaSuccess) error = cudaFuncSetAttribute(read_segments<DTYPE>, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  read_segments<DTYPE><<<items < SEGMENT_ROWS ? items : SEGMENT_ROWS, TILE_THREADS, bytes, stream>>>(batch, segments);
  return cudaGetLastError();
}

// N: threads a row.
template <u32 N>
static cudaError_t launch_finish(const SamplingBatch &batch, const Segments &segments, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(finish_rows<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(finish_bytes(SEGMENTS_MOST)));
  if (error == cudaSuccess) error = cudaFuncSetAttribute(finish_rows<N>, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows);
  config.blockDim = dim3(N);
  config.dynamicSmemBytes = finish_bytes(segments.count);
  config.stream = stream;
  cudaLaunchAttribute overlap = begins_early();
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, finish_rows<N>, batch, segments);
}

cudaError_t launch_bounded(const SamplingBatch &batch, SegmentHead *heads, u64 *rest, cudaStream_t stream) {
  const u32 count = segments_of(batch.rows, batch.row_len, batch.dtype), length = ((batch.row_len + count - 1) / count + 63) & ~63u;
  const Segments segments{heads, rest, count, length};
  const cudaError_t error = batch.dtype == NUCLEUS_F32   ? launch_segments<NUCLEUS_F32>(batch, segments, stream)
                            : batch.dtype == NUCLEUS_F16 ? launch_segments<NUCLEUS_F16>(batch, segments, stream)
                                                         : launch_segments<NUCLEUS_BF16>(batch, segments, stream);
  if (error != cudaSuccess) return error;
  return launch_finish<TILE_THREADS>(batch, segments, stream);
}

}  // namespace nucleus
