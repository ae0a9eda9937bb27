// A lower bound of the k-th largest logit: what k of the largest logits of groups of threads reach. All of the first k tokens reach it, and few others do.
#pragma once

#include "plan.cuh"

namespace nucleus {

constexpr u32 UNUSUAL = 0xFFFFFFFFu;  // above every key: NaN, +inf, or an edit that found no room

// A key that at least k (<= THREADS) of the threads' keys reach, the largest such with 16 low bits of 0; to every thread.
__device__ __forceinline__ u32 kth_of_threads(u32 key, u32 k) {
  u32 found = 0;
#pragma unroll 1
  for (u32 bit = 1u << 31; bit >= 1u << 16; bit >>= 1)
    if (static_cast<u32>(__syncthreads_count(key >= (found | bit))) >= k) found |= bit;
  return found;
}

// Tells every block the largest keys of as many groups of threads as a block has threads. A barrier of the cluster must follow.
__device__ __forceinline__ void publish_groups(const DeviceTeam &team, u32 *groups, u32 own) {
  u32 blocks = team.blocks;
  UNROLL_NOT
  for (u32 step = blocks / 2; step; step /= 2) {
    u32 other = __shfl_xor_sync(~0u, own, step);
    own = other > own ? other : own;
  }
  u32 to = threadIdx.x & (blocks - 1), group = team.block * team.share_of(THREADS) + team.share_of(threadIdx.x);
  *team.in_block(&groups[group], to) = own;
}

}  // namespace nucleus
