// The launches for devices without clusters, or with less shared memory than the other kernels take: a block a row. Of the sampler's sources this, top.cu and
// those without kernels are what such a device needs code of.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "portable_row.cuh"

namespace nucleus {

__global__ void __launch_bounds__(THREADS, 2) sample_rows_by_block(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace) {
  portable::sample_row(batch, workspace, blockIdx.x);
}

__global__ void __launch_bounds__(THREADS, 2) tell_top_by_block(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, const __grid_constant__ TopCall call) {
  portable::tell_top_of(batch, workspace, call, blockIdx.x);
}

__global__ void describe_row(SamplingRow *to, SamplingRow row) { *to = row; }

template <class K, class... A>
static cudaError_t launch_by_block(const SamplingBatch &batch, cudaStream_t stream, K kernel, A... arguments) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, PORTABLE_BYTES_MAX);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaGetLastError();  // that of an earlier call, which its caller was told
  const u32 longest = batch.row_len < NUCLEUS_MAX_VOCAB ? batch.row_len : NUCLEUS_MAX_VOCAB;
  kernel<<<batch.rows, THREADS, PORTABLE_SHARED_BYTES + mark_words(longest) * sizeof(u32), stream>>>(batch, arguments...);
  return cudaGetLastError();
}

cudaError_t launch_portable(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream) {
  return launch_by_block(batch, stream, sample_rows_by_block, workspace);
}
cudaError_t launch_portable_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream) {
  return launch_by_block(batch, stream, tell_top_by_block, workspace, call);
}
cudaError_t launch_description(SamplingRow *to, const SamplingRow &row, cudaStream_t stream) {
  cudaGetLastError();
  describe_row<<<1, 1, 0, stream>>>(to, row);
  return cudaGetLastError();
}

}  // namespace nucleus
