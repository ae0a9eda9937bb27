// Included before a kernel's source (nvcc -include) for tests: warps wait for random times where they meet others or pass something on, so that warps, blocks and
// launches come and go in any order. Most waits are short; one in some thousands lasts longer than a small kernel, and for a while one warp in 16 waits everywhere.
#pragma once

#include <cuda_runtime.h>

__device__ __noinline__ static void wait_at_random() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  const unsigned warp = (blockIdx.x * 1031 + threadIdx.x / 32) * 0x9E3779B1u;
  auto mixed = [](unsigned h) {
    h *= 0x85EBCA6Bu;
    h = (h ^ h >> 13) * 0xC2B2AE35u;
    return h ^ h >> 16;
  };
  const bool slow = mixed(static_cast<unsigned>(now >> 18) ^ warp) % 16 == 0;  // of these quarters of a millisecond
  const unsigned h = mixed(static_cast<unsigned>(clock64()) ^ static_cast<unsigned>(now) ^ warp);
  const unsigned cycles = h % 4096 == 0 ? 60000 : slow || h % 8 == 0 ? h >> 21 : 0;
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

#define __syncthreads() (wait_at_random(), __syncthreads())
#define __syncthreads_or(...) (wait_at_random(), __syncthreads_or(__VA_ARGS__))
#define __syncthreads_count(...) (wait_at_random(), __syncthreads_count(__VA_ARGS__))
#define __syncwarp(...) (wait_at_random(), __syncwarp(__VA_ARGS__))
#define __ballot_sync(...) (wait_at_random(), __ballot_sync(__VA_ARGS__))
#define __any_sync(...) (wait_at_random(), __any_sync(__VA_ARGS__))
#define __all_sync(...) (wait_at_random(), __all_sync(__VA_ARGS__))
#define __shfl_sync(...) (wait_at_random(), __shfl_sync(__VA_ARGS__))
#define __shfl_up_sync(...) (wait_at_random(), __shfl_up_sync(__VA_ARGS__))
#define __shfl_xor_sync(...) (wait_at_random(), __shfl_xor_sync(__VA_ARGS__))
#define __reduce_add_sync(...) (wait_at_random(), __reduce_add_sync(__VA_ARGS__))
#define __reduce_max_sync(...) (wait_at_random(), __reduce_max_sync(__VA_ARGS__))
#define __reduce_min_sync(...) (wait_at_random(), __reduce_min_sync(__VA_ARGS__))
#define __reduce_or_sync(...) (wait_at_random(), __reduce_or_sync(__VA_ARGS__))
#define atomicAdd(...) (wait_at_random(), atomicAdd(__VA_ARGS__))
#define atomicMax(...) (wait_at_random(), atomicMax(__VA_ARGS__))
#define atomicCAS(...) (wait_at_random(), atomicCAS(__VA_ARGS__))
#define atomicOr(...) (wait_at_random(), atomicOr(__VA_ARGS__))
#define atomicExch(...) (wait_at_random(), atomicExch(__VA_ARGS__))

// Barriers that have a number, barriers that count, messages to other blocks, copies, and launches that wait for each other are written in assembly: some of its
// statements, whatever they are, wait first.
#ifdef __CUDA_ARCH__
__device__ __forceinline__ static bool wait_before_some() {
  unsigned now;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(now));
  if (now * 0x9E3779B1u >> 29 == 0) wait_at_random();
  return false;
}
#define asm \
  if (wait_before_some()) { \
  } else \
    asm
#endif
