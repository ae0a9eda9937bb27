// Meetings of the blocks of a cluster.
#pragma once

#include <cooperative_groups.h>

#include "layout.cuh"

namespace nucleus::linear {

struct Cluster {
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();

  __device__ __forceinline__ uint32_t rank() const { return group.block_rank(); }
  __device__ __forceinline__ uint32_t blocks() const { return group.num_blocks(); }
  // What a thread wrote to shared memory before it arrives, all others see after they waited.
  __device__ __forceinline__ void arrive() const { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
  __device__ __forceinline__ void wait() const { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
  __device__ __forceinline__ void meet() const { arrive(), wait(); }

  // The sum of `count` sections' shares in order; `at` gives a section's place in its block and that block's rank.
  template <class Place>
  __device__ __forceinline__ float sum_sections(uint32_t count, Place at) const {
    float shares[MAX_SECTIONS], total = 0;
#pragma unroll
    for (uint32_t s = 0; s < MAX_SECTIONS; ++s) {
      if (s < count) {
        auto [share, rank] = at(s);
        shares[s] = *group.map_shared_rank(share, rank);
      }
    }
#pragma unroll
    for (uint32_t s = 0; s < MAX_SECTIONS; ++s)
      if (s < count) total = __fadd_rn(total, shares[s]);
    return total;
  }
};

struct SharePlace {
  float *share;
  uint32_t rank;
};

}  // namespace nucleus::linear
