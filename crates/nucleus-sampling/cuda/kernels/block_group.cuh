// Some blocks of a cluster that share a row.
#pragma once

#include "mbarrier.cuh"
#include "team.cuh"

namespace nucleus {

// A power of two of blocks, one after another in the cluster. They meet at two mbarriers of each in turn: who is ahead arrives at the other one, so that it does
// not stand for one who is late.
struct BlockGroup {
  u32 first, blocks, block;  // the first one's rank in the cluster; how many; which of them this one is
  u32 meetings;
  u64 met[2];

  // By one thread of every block; before the blocks meet, all threads of the cluster must. `rank`: the block's in the cluster.
  __device__ __forceinline__ void gather(u32 rank, u32 of) {
    first = rank & ~(of - 1);
    blocks = of;
    block = rank - first;
    meetings = 0;
    if (of == 1) return;
    init_barrier(&met[0], MAX_BLOCKS);
    init_barrier(&met[1], MAX_BLOCKS);
    publish_barriers();
  }
  // By one thread, when the block does not meet the others any more.
  __device__ __forceinline__ void part() {
    if (blocks == 1) return;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) end_barrier(&met[i]);
  }

  __device__ __forceinline__ bool leader() const { return block == 0; }
  // n / blocks.
  __device__ __forceinline__ u32 share_of(u32 n) const { return n >> (__ffs(blocks) - 1); }
  // The same object in another block's shared memory.
  template <class T>
  __device__ __forceinline__ T *in_block(T *object, u32 other) const {
    T *there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(object), "r"(first + other));
    return there;
  }
  // A barrier of all threads of the group.
  __device__ __forceinline__ void sync() {
    sync_block();
    if (blocks == 1) return;
    const u32 before = meetings, barrier = shared_address(&met[before & 1]);
    if (threadIdx.x < blocks) {
      u32 there;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(barrier), "r"(first + threadIdx.x));
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(there), "r"(MAX_BLOCKS / blocks) : "memory");
    }
    u32 done = 0;
    while (!done)
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(barrier), "r"(before >> 1 & 1)
                   : "memory");
    sync_block();
    if (threadIdx.x == 0) meetings = before + 1;
  }
};

}  // namespace nucleus
