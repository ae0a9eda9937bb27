// Some blocks of a cluster that share a row.
#pragma once

#include "mbarrier.cuh"
#include "team.cuh"

namespace nucleus {

// What the blocks tell each other of a row: their sample's counts, their lists' steps, their tokens of one step.
enum Mail : u32 { COUNTS, LIST_SUMS, CUT_TOKENS, MAILS };

// A power of two of blocks, one after another in the cluster. They meet at two mbarriers of each in turn: who is ahead arrives at the other one, so that it does
// not stand for one who is late. What they tell each other is counted by an mbarrier of each mail.
struct BlockGroup {
  u32 first, blocks, block;  // the first one's rank in the cluster; how many; which of them this one is
  u32 meetings;
  u64 met[2];
  u64 mail[MAILS];

  // By one thread of every block; before the blocks meet, all threads of the cluster must. `rank`: the block's in the cluster.
  __device__ __forceinline__ void gather(u32 rank, u32 of) {
    first = rank & ~(of - 1);
    blocks = of;
    block = rank - first;
    meetings = 0;
    if (of == 1) return;
    init_barrier(&met[0], MAX_BLOCKS);
    init_barrier(&met[1], MAX_BLOCKS);
    init_barrier(&mail[COUNTS], of);
    init_barrier(&mail[LIST_SUMS], of);
    init_barrier(&mail[CUT_TOKENS], of * WARPS);
    publish_barriers();
  }
  // By one thread, when the block does not meet the others any more.
  __device__ __forceinline__ void part() {
    if (blocks == 1) return;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) end_barrier(&met[i]);
#pragma unroll
    for (u32 i = 0; i < MAILS; ++i) end_barrier(&mail[i]);
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
  // The same word in the shared memory of a block of the group, which may be this one, and messages to it.
  __device__ __forceinline__ u32 address(const void *own, u32 to) const { return address_in(shared_address(own), first + to); }
  __device__ __forceinline__ void send(Mail of, u32 to, const u64 *place, u64 word) const { send_u64(address(place, to), word, address(&mail[of], to)); }
  // One of a mail's arrivals at a block, and how many words it stands for.
  __device__ __forceinline__ void announce(Mail of, u32 to, u32 words) const {
    asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(address(&mail[of], to)), "r"(words * static_cast<u32>(sizeof(u64))) : "memory");
  }
  // Waits until all blocks' words are there. `turn`: how often the mail has come before.
  __device__ __forceinline__ void receive(Mail of, u32 turn) const { wait_for_copy(&mail[of], turn & 1); }
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
