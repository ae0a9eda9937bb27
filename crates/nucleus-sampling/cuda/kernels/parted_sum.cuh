// Sums of weights that many threads add to in shared memory.
#pragma once

#include "fixed.cuh"

namespace nucleus {

// A sum of weights of up to 2^9 tokens, in two parts: 32-bit additions in shared memory that return nothing are the fastest.
struct PartedSum {
  static constexpr u32 LOW_BITS = 22;
  u32 low, high;

  __device__ __forceinline__ void put(u64 sum) { low = static_cast<u32>(sum) & ((1u << LOW_BITS) - 1), high = static_cast<u32>(sum >> LOW_BITS); }
  __device__ __forceinline__ void add(u64 weight) {
    atomicAdd(&low, static_cast<u32>(weight) & ((1u << LOW_BITS) - 1));
    atomicAdd(&high, static_cast<u32>(weight >> LOW_BITS));
  }
  __device__ __forceinline__ u64 sum() const { return (static_cast<u64>(high) << LOW_BITS) + low; }
};

}  // namespace nucleus
