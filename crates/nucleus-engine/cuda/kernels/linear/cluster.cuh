// Meetings of the blocks of a cluster.
#pragma once

#include <cooperative_groups.h>

#include "layout.cuh"

namespace nucleus::linear {

struct Cluster {
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();

  __device__ __forceinline__ uint32_t rank() const { return group.block_rank(); }
  __device__ __forceinline__ uint32_t blocks() const { return group.num_blocks(); }
  // What a thread wrote to shared memory before it arrives, all others see after they waited. Arriving waits for the thread's writes to device
  // memory too, if there are several blocks.
  __device__ __forceinline__ void arrive() const {
    if (blocks() > 1) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  }
  __device__ __forceinline__ void wait() const {
    if (blocks() > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    else __syncthreads();
  }
  // The same where only so many threads of each block are left, by the block's barrier of that number.
  template <uint32_t BARRIER, uint32_t THREADS>
  __device__ __forceinline__ void meet() const {
    if (blocks() > 1) {
      arrive();
      wait();
    } else {
      asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
    }
  }
  // Nobody leaves while others read from its shared memory.
  __device__ __forceinline__ void leave() const {
    if (blocks() > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  }

  // The sum of `count` sections' shares in order. A block has `block_count` of them, `stride` floats apart, the first block's first at `first`.
  __device__ __forceinline__ float sum_sections(float *first, uint32_t count, uint32_t block_count, int stride) const {
    float shares[MAX_SECTIONS], total = 0;
    uint32_t rank = 0, local = 0;
#pragma unroll
    for (uint32_t s = 0; s < MAX_SECTIONS; ++s) {
      if (s < count) shares[s] = *group.map_shared_rank(first + static_cast<int>(local) * stride, rank);
      if (++local == block_count) local = 0, ++rank;
    }
#pragma unroll
    for (uint32_t s = 0; s < MAX_SECTIONS; ++s)
      if (s < count) total = __fadd_rn(total, shares[s]);
    return total;
  }
};

}  // namespace nucleus::linear
