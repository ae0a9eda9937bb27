// What compute-sanitizer says of right ways for warps to meet, in the smallest programs.
//
// Usage: tools_test [PATTERN…]; without patterns all are run. Each passes words between two warps and compares them; for the verdicts run it under
// `compute-sanitizer --tool racecheck` or `synccheck`, a pattern at a time.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "device.hpp"

namespace {

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

struct Pattern {
  const char *name;
  Meeting meeting;
};
constexpr Pattern PATTERNS[] = {
    {"all-stay", Meeting::AllStay}, {"one-ended", Meeting::OneEnded}, {"ends-late", Meeting::EndsLate}, {"lanes-end", Meeting::LanesEnd}, {"one-place", Meeting::OnePlace}, {"two-places", Meeting::TwoPlaces}, {"halves", Meeting::Halves}};

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

void launch(Meeting meeting, uint32_t *sums) {
  switch (meeting) {
    case Meeting::AllStay: exchange<Meeting::AllStay><<<1, 96>>>(sums); break;
    case Meeting::OneEnded: exchange<Meeting::OneEnded><<<1, 96>>>(sums); break;
    case Meeting::EndsLate: exchange<Meeting::EndsLate><<<1, 96>>>(sums); break;
    case Meeting::LanesEnd: exchange<Meeting::LanesEnd><<<1, 96>>>(sums); break;
    case Meeting::OnePlace: exchange<Meeting::OnePlace><<<1, 96>>>(sums); break;
    case Meeting::TwoPlaces: exchange<Meeting::TwoPlaces><<<1, 96>>>(sums); break;
    case Meeting::Halves: exchange<Meeting::Halves><<<1, 96>>>(sums); break;
  }
}

}  // namespace

int main(int count, char **arguments) {
  uint32_t failed = 0;
  for (const Pattern &pattern : PATTERNS) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) chosen |= !std::strcmp(arguments[i], pattern.name);
    if (!chosen) continue;
    DeviceArray<uint32_t> sums(WORDS);
    launch(pattern.meeting, sums.data);
    CHECK(cudaDeviceSynchronize());
    uint32_t wrong = 0;
    const std::vector<uint32_t> got = sums.host();
    for (uint32_t thread = 0; thread < WORDS; ++thread) wrong += got[thread] != ROUNDS * (ROUNDS - 1) / 2 * 100 + ROUNDS * ((thread + 32) % WORDS);
    std::printf("%s: %u of %u sums are wrong\n", pattern.name, wrong, WORDS);
    failed += wrong;
  }
  return failed != 0;
}
