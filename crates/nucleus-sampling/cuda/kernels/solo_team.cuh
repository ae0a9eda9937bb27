// A block that works alone.
#pragma once

#include "call.cuh"

namespace nucleus {

// The block of N threads as a team of one. Shared has room for a maximum of each warp.
template <typename Shared, u32 N>
struct SoloTeam {
  Shared *sh;

  __device__ __forceinline__ u32 local() const { return threadIdx.x; }
  __device__ __forceinline__ u32 locals() const { return N; }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh->maxima[threadIdx.x / 32] = v;
    __syncthreads();
    u32 most = 0;
#pragma unroll
    for (u32 warp = 0; warp < N / 32; ++warp) most = sh->maxima[warp] > most ? sh->maxima[warp] : most;
    return most;
  }
};

}  // namespace nucleus
