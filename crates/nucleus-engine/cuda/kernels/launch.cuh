// Launching a kernel with typed arguments.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nucleus {

constexpr uint32_t WARP = 32;

__host__ __device__ constexpr uint64_t div_ceil(uint64_t a, uint64_t b) { return (a + b - 1) / b; }

struct Grid {
  dim3 blocks;
  uint32_t threads;
  size_t shared_bytes = 0;  // dynamic
};

// Queues `kernel`; 0, or the cudaError_t that kept it from being queued. A grid without blocks is no work.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Grid &grid, void *stream, Arguments... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace nucleus
