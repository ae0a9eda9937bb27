// The bulk copy engine: runs of bytes from device memory to shared memory, whose arrival a barrier in shared memory tells.
#pragma once

#include <cstdint>

namespace nucleus {

__device__ __forceinline__ uint32_t shared_address(const void *pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// A barrier's phase ends when all arrivals and all announced bytes have come.
struct Barrier {
  uint64_t state;

  __device__ __forceinline__ void init(uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals) : "memory");
  }
  // After this the copy engine sees the barriers that the thread initialised.
  static __device__ __forceinline__ void publish_init() { asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory"); }

  __device__ __forceinline__ void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory"); }

  // Arrives, and announces bytes.
  __device__ __forceinline__ void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes) : "memory");
  }

  // Waits for the end of the phase of this parity.
  __device__ __forceinline__ void wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(&state)),
        "r"(parity)
        : "memory");
  }

  // Begins a copy of whole 16 bytes whose arrival counts here.
  __device__ __forceinline__ void copy(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(&state))
                 : "memory");
  }
};

// A place in a ring of stages, and the parity of its current phase.
struct RingPlace {
  uint32_t stage = 0, parity = 0;

  __device__ __forceinline__ void advance(uint32_t stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Lanes of a warp that say it has read a stage: one, after the warp has met. racecheck of compute-sanitizer does not follow that for a warp that another
// refills for, so for it every lane says so (tests/ring_test.cu).
#ifdef NUCLEUS_RACECHECK
constexpr uint32_t LEAVING_LANES = 32;
#else
constexpr uint32_t LEAVING_LANES = 1;
#endif

}  // namespace nucleus
