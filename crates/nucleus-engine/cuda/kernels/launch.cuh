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
  // Blocks may begin before the kernel before has ended, once all of its blocks have called let_next_kernel_begin or have ended. They call
  // wait_for_kernels_before before they touch what kernels before them read or write.
  bool begins_early = false;
};

__device__ __forceinline__ void let_next_kernel_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_kernels_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Both, for a small kernel that has nothing to do before: what it gains is that its blocks are already there.
__device__ __forceinline__ void take_turn() {
  let_next_kernel_begin();
  wait_for_kernels_before();
}

// Queues `kernel`; 0, or the cudaError_t that kept it from being queued. A grid without blocks is no work.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), const Grid &grid, void *stream, Arguments... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = grid.begins_early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace nucleus
