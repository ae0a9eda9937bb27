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
  // Blocks may be there before the kernel before has ended, and wait for it in take_turn. Only a few: many are then spread unevenly.
  bool begins_early = false;
};

// So many blocks have a multiprocessor each.
constexpr uint32_t MOST_EARLY_BLOCKS = 128;

// At the start of a kernel that begins early: lets the next one do so, and waits for those before.
__device__ __forceinline__ void take_turn() { asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory"); }

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
  config.numAttrs = grid.begins_early && uint64_t(grid.blocks.x) * grid.blocks.y <= MOST_EARLY_BLOCKS ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace nucleus
