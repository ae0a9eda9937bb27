// What compute-sanitizer says of right ways for warps to meet, and to pass words on, in the smallest programs.
//
// Usage: tools_test [PATTERN…]; without patterns all are run. Each passes words between two warps and compares them; for the verdicts run it under
// `compute-sanitizer --tool racecheck` or `synccheck`, a pattern at a time.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../kernels/mbarrier.cuh"
#include "device.hpp"

namespace {

using nucleus::init_barrier;
using nucleus::publish_barriers;
using nucleus::shared_address;
using nucleus::wait_for_copy;

constexpr uint32_t WORDS = 64, ROUNDS = 16;

// How the two first warps of three meet.
enum class Meeting {
  AllStay,    // the third meets them, by __syncthreads
  OneEnded,   // the third has ended
  EndsLate,   // the third ends while the others wait for each other
  LanesEnd,   // its lanes end one after another, while the others wait
  OnePlace,   // by a barrier of 64 threads, at one place of the program
  TwoPlaces,  // by the same barrier, each warp at a place of its own
  Halves,     // by the same barrier, each half of each warp at a place of its own
};

__device__ void meet_by_number() { asm volatile("barrier.sync 1, %0;" ::"n"(WORDS) : "memory"); }

// The other warp's words, added up over rounds.
template <Meeting MEETING>
__global__ void __launch_bounds__(96) exchange(uint32_t *sums) {
  __shared__ uint32_t words[WORDS];
  const uint32_t thread = threadIdx.x, other = (thread + 32) % WORDS;
  const bool third = thread >= WORDS;
  if (third && MEETING != Meeting::AllStay) {
    if constexpr (MEETING == Meeting::EndsLate) __nanosleep(20000);
    if constexpr (MEETING == Meeting::LanesEnd)
      for (uint32_t i = 0; i < thread % 32; ++i) __nanosleep(1000);
    return;
  }
  auto meet = [&] {
    if constexpr (MEETING == Meeting::OnePlace) meet_by_number();
    else __syncthreads();
  };
  uint32_t sum = 0;
  if constexpr (MEETING == Meeting::TwoPlaces || MEETING == Meeting::Halves) {
    if (MEETING == Meeting::TwoPlaces ? thread < 32 : thread % 32 < 16) {
      for (uint32_t round = 0; round < ROUNDS; ++round) {
        words[thread] = round * 100 + thread;
        meet_by_number();
        sum += words[other];
        meet_by_number();
      }
    } else {
      for (uint32_t round = 0; round < ROUNDS; ++round) {
        words[thread] = round * 100 + thread;
        meet_by_number();
        sum += words[other];
        __nanosleep(20);  // keeps the compiler from making one loop of both
        meet_by_number();
      }
    }
  } else {
    for (uint32_t round = 0; round < ROUNDS; ++round) {
      if (!third) words[thread] = round * 100 + thread;
      meet();
      if (!third) sum += words[other];
      meet();
    }
  }
  if (!third) sums[thread] = sum;
}

// The same, where each warp comes to the function that has the barriers by a call of its own. TOGETHER: in the form of __syncthreads, which asks a warp's threads to be together.
template <bool TOGETHER>
__device__ __noinline__ uint32_t exchanged_once(uint32_t *words, uint32_t word) {
  const auto meet = [] {
    if constexpr (TOGETHER) __syncthreads();
    else asm volatile("barrier.sync 0;" ::: "memory");
  };
  words[threadIdx.x] = word;
  meet();
  const uint32_t other = words[(threadIdx.x + 32) % WORDS];
  meet();
  return other;
}
template <bool TOGETHER>
__global__ void __launch_bounds__(WORDS) exchange_by_two_calls(uint32_t *sums) {
  __shared__ uint32_t words[WORDS];
  uint32_t sum = 0;
  if (threadIdx.x < 32) {
#pragma unroll 1
    for (uint32_t round = 0; round < ROUNDS; ++round) sum += exchanged_once<TOGETHER>(words, round * 100 + threadIdx.x);
  } else {
#pragma unroll 1
    for (uint32_t round = 0; round < ROUNDS; ++round) {
      __nanosleep(20);  // keeps the compiler from making one loop of both
      sum += exchanged_once<TOGETHER>(words, round * 100 + threadIdx.x);
    }
  }
  sums[threadIdx.x] = sum;
}

// The other warp's words, each of which a flag follows: stored to release it, loaded to acquire it.
__global__ void __launch_bounds__(WORDS) pass_by_flags(uint32_t *sums) {
  __shared__ uint32_t words[ROUNDS][WORDS], flags[ROUNDS][WORDS];
  const uint32_t thread = threadIdx.x, other = (thread + 32) % WORDS;
  for (uint32_t round = 0; round < ROUNDS; ++round) flags[round][thread] = 0;
  __syncthreads();
  uint32_t sum = 0;
  for (uint32_t round = 0; round < ROUNDS; ++round) {
    words[round][thread] = round * 100 + thread;
    asm volatile("st.release.cta.shared::cta.u32 [%0], 1;" ::"r"(shared_address(&flags[round][thread])) : "memory");
    for (uint32_t there = 0; !there;) asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(there) : "r"(shared_address(&flags[round][other])) : "memory");
    sum += words[round][other];
  }
  sums[thread] = sum;
}

// Words of the second block of a cluster, which takes a place for each by an atomic addition in the first block's memory, sends it there and ends. The first ends
// when a barrier has counted everything.
__global__ void __cluster_dims__(2) __launch_bounds__(WORDS) send_counted(uint32_t *sums) {
  __shared__ uint32_t places[ROUNDS * WORDS], listed;
  __shared__ uint64_t arrived;
  const uint32_t thread = threadIdx.x;
  if (thread == 0) {
    listed = 0;
    init_barrier(&arrived, WORDS);
    publish_barriers();
  }
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  const auto in_first = [](const void *own) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, 0;" : "=r"(there) : "r"(shared_address(own)));
    return there;
  };
  if (blockIdx.x != 0) {
    uint32_t bytes = 0;
    for (uint32_t round = 0; round < ROUNDS; ++round) {
      uint32_t place;
      asm volatile("atom.relaxed.cluster.shared::cluster.add.u32 %0, [%1], 1;" : "=r"(place) : "r"(in_first(&listed)) : "memory");
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(in_first(&places[place])), "r"(round * 100 + thread), "r"(in_first(&arrived)) : "memory");
      bytes += place < ROUNDS * WORDS ? sizeof(uint32_t) : 0;
    }
    asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(in_first(&arrived)), "r"(bytes) : "memory");
    return;
  }
  wait_for_copy(&arrived, 0);
  uint32_t sum = 0;
  for (uint32_t word : places) sum += word % 100 == (thread + 32) % WORDS ? word : 0;
  sums[thread] = sum;
}

template <Meeting MEETING>
void exchanged(uint32_t *sums) { exchange<MEETING><<<1, 96>>>(sums); }

struct Pattern {
  const char *name;
  void (*launch)(uint32_t *sums);
};
constexpr Pattern PATTERNS[] = {{"all-stay", exchanged<Meeting::AllStay>},
                                {"one-ended", exchanged<Meeting::OneEnded>},
                                {"ends-late", exchanged<Meeting::EndsLate>},
                                {"lanes-end", exchanged<Meeting::LanesEnd>},
                                {"one-place", exchanged<Meeting::OnePlace>},
                                {"two-places", exchanged<Meeting::TwoPlaces>},
                                {"halves", exchanged<Meeting::Halves>},
                                {"two-calls", [](uint32_t *sums) { exchange_by_two_calls<true><<<1, WORDS>>>(sums); }},
                                {"two-calls-apart", [](uint32_t *sums) { exchange_by_two_calls<false><<<1, WORDS>>>(sums); }},
                                {"flags", [](uint32_t *sums) { pass_by_flags<<<1, WORDS>>>(sums); }},
                                {"counted", [](uint32_t *sums) { send_counted<<<2, WORDS>>>(sums); }}};

}  // namespace

int main(int count, char **arguments) {
  uint32_t failed = 0;
  for (const Pattern &pattern : PATTERNS) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) chosen |= !std::strcmp(arguments[i], pattern.name);
    if (!chosen) continue;
    DeviceArray<uint32_t> sums(WORDS);
    pattern.launch(sums.data);
    CHECK(cudaDeviceSynchronize());
    uint32_t wrong = 0;
    const std::vector<uint32_t> got = sums.host();
    for (uint32_t thread = 0; thread < WORDS; ++thread) wrong += got[thread] != ROUNDS * (ROUNDS - 1) / 2 * 100 + ROUNDS * ((thread + 32) % WORDS);
    std::printf("%s: %u of %u sums are wrong\n", pattern.name, wrong, WORDS);
    failed += wrong;
  }
  return failed != 0;
}
