// The launch for rows that few ids are allowed of.
#include <cuda_runtime.h>

#include "few.cuh"
#include "launch.cuh"

namespace nucleus {

template <bool SOME>
__global__ void __launch_bounds__(FEW_THREADS, 2) sample_few_rows(const __grid_constant__ RowsOfBatch<SOME> batch, bool follows) {
  sample_few(batch, batch.row_number(blockIdx.x), follows);
}

template <bool SOME>
static cudaError_t launch(const PartOfBatch &batch, bool follows, cudaStream_t stream) {
  const auto kernel = sample_few_rows<SOME>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(FewShared));
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap = begins_early();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows);
  config.blockDim = dim3(FEW_THREADS);
  config.dynamicSmemBytes = sizeof(FewShared);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = follows ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, RowsOfBatch<SOME>(batch), follows);
}

cudaError_t launch_few(const PartOfBatch &batch, bool follows, cudaStream_t stream) { return (batch.order ? launch<true> : launch<false>)(batch, follows, stream); }

}  // namespace nucleus
