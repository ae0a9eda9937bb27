// A ring of stages in shared memory: one warp has the bulk copy engine fill those that are empty, and others compute on those that are full.
#pragma once

#include "bulk.cuh"
#include "launch.cuh"

namespace nucleus {

// A place in the ring, and how often the ring was gone round.
template <uint32_t STAGES>
struct Cursor {
  uint32_t stage = 0, round = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, ++round;
  }
};

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
