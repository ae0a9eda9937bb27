// Threads of a block that work alone.
#pragma once

#include "call.cuh"

namespace nucleus {

// All of them, and how they wait for each other.
struct WholeBlock {
  __device__ __forceinline__ static u32 thread() { return threadIdx.x; }
  __device__ __forceinline__ static void sync() { sync_block(); }
};

// N threads, whole warps, as a team of one.
template <u32 N, class Threads = WholeBlock>
struct SoloTeam {
  u32 *maxima;  // shared memory, one a warp

  __device__ __forceinline__ u32 local() const { return Threads::thread(); }
  __device__ __forceinline__ u32 locals() const { return N; }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    const u32 thread = Threads::thread();
    v = __reduce_max_sync(~0u, v);
    Threads::sync();
    if (thread % 32 == 0) maxima[thread / 32] = v;
    Threads::sync();
    return __reduce_max_sync(~0u, maxima[thread % (N / 32)]);
  }
};

}  // namespace nucleus
