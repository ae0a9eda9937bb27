// Included before a kernel's source (nvcc -include) for tests: warps wait for random times where they meet others, so that warps, blocks and launches come
// and go in any order. Most waits are short; one in some thousands lasts longer than a small kernel.
#pragma once

#include <cuda_runtime.h>

__device__ __noinline__ static void wait_at_random() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  const unsigned warp = (blockIdx.x * 1031 + threadIdx.x / 32) * 0x9E3779B1u;
  unsigned h = (static_cast<unsigned>(clock64()) ^ static_cast<unsigned>(now) ^ warp) * 0x85EBCA6Bu;
  h = (h ^ h >> 13) * 0xC2B2AE35u;
  h ^= h >> 16;
  const unsigned cycles = h % 4096 == 0 ? 60000 : h % 8 == 0 ? h >> 21 : 0;
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
#define __shfl_sync(...) (wait_at_random(), __shfl_sync(__VA_ARGS__))
#define __reduce_max_sync(...) (wait_at_random(), __reduce_max_sync(__VA_ARGS__))
#define atomicAdd(...) (wait_at_random(), atomicAdd(__VA_ARGS__))
#define atomicMax(...) (wait_at_random(), atomicMax(__VA_ARGS__))
#define atomicCAS(...) (wait_at_random(), atomicCAS(__VA_ARGS__))
