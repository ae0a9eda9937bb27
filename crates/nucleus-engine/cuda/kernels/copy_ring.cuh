// A ring of stages in shared memory: one warp has the bulk copy engine fill those that are empty, and others compute on those that are full.
#pragma once

#include "launch.cuh"

namespace nucleus {

__device__ __forceinline__ uint32_t shared_address(const void *place) { return static_cast<uint32_t>(__cvta_generic_to_shared(place)); }

// An mbarrier in shared memory: a phase ends when all its arrivals have come, and all bytes that it was told to expect.
class Barrier {
 public:
  __device__ void init(uint32_t arrivals) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory"); }

  __device__ void arrive() { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address()) : "memory"); }

  __device__ void arrive_expecting(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
  }

  // Waits for the end of the phase of that parity.
  __device__ void wait(uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(address()), "r"(parity) : "memory");
  }

  // Copies `bytes` from global to shared memory, both aligned to 16, and tells the barrier.
  __device__ void copy(void *to, const void *from, uint32_t bytes) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                 "r"(address())
                 : "memory");
  }

 private:
  __device__ uint32_t address() const { return shared_address(&state_); }

  uint64_t state_;
};

// A place in the ring, and how often the ring was gone round.
template <uint32_t STAGES>
struct Cursor {
  uint32_t stage = 0, round = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, ++round;
  }
};

// Lanes of a warp that say it has left a stage: one, after the warp's others have told it. racecheck of compute-sanitizer follows barriers, but not what lanes of a
// warp tell each other, so for it every lane says so.
#ifdef NUCLEUS_RACECHECK
constexpr uint32_t LEAVING_LANES = WARP;
#else
constexpr uint32_t LEAVING_LANES = 1;
#endif

template <uint32_t STAGES, uint32_t WARPS>
struct RingBarriers {
  Barrier full[STAGES], empty[STAGES];

  // By all threads, before anything else.
  __device__ void init() {
    if (threadIdx.x == 0) {
      for (uint32_t i = 0; i < STAGES; ++i) full[i].init(1), empty[i].init(WARPS * LEAVING_LANES);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
  }

  // Waits until every warp has left the stage. By the warp that fills it.
  __device__ __forceinline__ void wait_empty(const Cursor<STAGES> &at) {
    if (at.round > 0) empty[at.stage].wait((at.round - 1) % 2);
  }

  // Waits for the stage's bytes.
  __device__ __forceinline__ void wait_full(const Cursor<STAGES> &at) { full[at.stage].wait(at.round % 2); }

  // The warp has read what it needs of the stage.
  __device__ __forceinline__ void leave(const Cursor<STAGES> &at) {
    __syncwarp();
    if (threadIdx.x % WARP < LEAVING_LANES) empty[at.stage].arrive();
  }
};

}  // namespace nucleus
