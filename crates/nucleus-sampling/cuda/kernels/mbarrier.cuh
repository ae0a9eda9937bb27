// Barriers in shared memory that count arrivals and the bytes of copies and messages, and the bulk copy engine, whose copies they count.
#pragma once

#include "fixed.cuh"

namespace nucleus {

__device__ __forceinline__ u32 shared_address(const void *p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void init_barrier(u64 *mbarrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(arrivals) : "memory");
}
// Makes its memory plain memory again, by one thread, when nobody uses the barrier any more and before anything else is stored there. Where that is left out, the device
// puts the barrier's words back when a process has had to wait for another in the middle of a kernel.
__device__ __forceinline__ void end_barrier(u64 *mbarrier) { asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory"); }
// After this the copy engine, and other blocks after a barrier of the cluster, see the barriers that the thread initialised.
__device__ __forceinline__ void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void arrive(u64 *mbarrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(mbarrier)) : "memory"); }
// Arrives, and tells of bytes that are to be waited for.
__device__ __forceinline__ void arrive_expecting(u64 *mbarrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(bytes) : "memory");
}
// Only tells of bytes.
__device__ __forceinline__ void expect(u64 *mbarrier, u32 bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(mbarrier)), "r"(bytes) : "memory");
}

// A copy of whole 16 bytes from device memory, which the barrier was told to expect; of none, nothing.
__device__ __forceinline__ void start_copy_to(u32 to, const void *from, u32 bytes, const u64 *mbarrier) {
  if (bytes)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes),
                 "r"(shared_address(mbarrier))
                 : "memory");
}
__device__ __forceinline__ void start_copy(const void *to, const void *from, u32 bytes, const u64 *mbarrier) { start_copy_to(shared_address(to), from, bytes, mbarrier); }

// The same of what is read once: it leaves L2 before all else.
__device__ __forceinline__ void start_copy_of_once_read(const void *to, const void *from, u32 bytes, const u64 *mbarrier) {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  if (bytes)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)), "l"(from),
                 "r"(bytes), "r"(shared_address(mbarrier)), "l"(policy)
                 : "memory");
}

// The same shared memory of another block of the cluster, and messages to it: stores that one of its barriers counts, so that nothing need be fenced; waited for like copies.
__device__ __forceinline__ u32 address_in(u32 own, u32 block) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(block));
  return there;
}
__device__ __forceinline__ void send_u32(u32 to, u32 word, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(word), "r"(barrier) : "memory");
}
__device__ __forceinline__ void send_u64(u32 to, u64 word, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(to), "l"(word), "r"(barrier) : "memory");
}

// Waits for the end of a barrier's phase of this parity.
__device__ __forceinline__ void wait_for_copy(const u64 *mbarrier, u32 parity) {
  const u32 barrier = shared_address(mbarrier);
  u32 done = 0;
  while (!done)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
}
// Whether it has ended.
__device__ __forceinline__ bool is_over(const u64 *mbarrier, u32 parity) {
  u32 over;
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over)
               : "r"(shared_address(mbarrier)), "r"(parity)
               : "memory");
  return over;
}
// Where all threads of a block meet. synccheck of compute-sanitizer allows __syncthreads to no warps that have come to it by different calls (control.cuh), or after branches of
// some of their threads: built for it they meet at the same barrier in the form that does not ask a warp's threads to be together.
__device__ __forceinline__ void sync_block() {
#ifdef NUCLEUS_RACECHECK
  __syncwarp();
  asm volatile("barrier.sync 0;" ::: "memory");
#else
  __syncthreads();
#endif
}
// For racecheck and synccheck lanes come together before a barrier that their warp need not come to together.
__device__ __forceinline__ void meet_for_tools() {
#ifdef NUCLEUS_RACECHECK
  __syncwarp();
#endif
}
// A warp arrives by one lane, once its lanes have met. racecheck does not carry on what the others have done by then: built for it they arrive, too.
#ifdef NUCLEUS_RACECHECK
constexpr u32 ARRIVING_LANES = 32;
#else
constexpr u32 ARRIVING_LANES = 1;
#endif
__device__ __forceinline__ void arrive_as_warp(u64 *mbarrier) {
  __syncwarp();
  if (threadIdx.x % 32 < ARRIVING_LANES) arrive(mbarrier);
}
// Behind words that warps have told each other by stores that a barrier counts: racecheck does not see that what a warp tells depends on what it has read before, so that others
// may write there. Built for it they meet.
__device__ __forceinline__ void end_reads_for_racecheck() {
#ifdef NUCLEUS_RACECHECK
  sync_block();
#endif
}
// Arrives, and waits until all have. racecheck and synccheck lose sight of who has met at a barrier that has a number, and do not allow
// __syncthreads at two places of the program: built for them such warps meet here.
__device__ __forceinline__ void meet_at(u64 *mbarrier) {
  u64 phase;
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(phase) : "r"(shared_address(mbarrier)) : "memory");
  u32 done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"(shared_address(mbarrier)), "l"(phase) : "memory");
}

}  // namespace nucleus
