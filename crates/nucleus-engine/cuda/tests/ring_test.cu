// What the race checker says of the ways in which a stage of a ring, which the bulk copy engine fills, can be given back.
//
// Usage: ring_test [PATTERN…]; without patterns all are run. Each sums what came through a ring and compares it; for the verdicts run it under
// `compute-sanitizer --tool racecheck`, a pattern at a time.
#include <cstring>
#include <string>

#include "../kernels/bulk.cuh"
#include "device.cuh"

namespace {

using nucleus::Barrier;
using nucleus::RingPlace;

constexpr uint32_t STAGES = 2, TURNS = 64, STAGE_WORDS = 128, STAGE_BYTES = STAGE_WORDS * 4;

// How it is known that a warp has read a stage.
enum class Leaving {
  OwnWarp,    // the warp itself refills it after __syncwarp, as products of few rows do
  OneLane,    // another warp refills it; one lane arrives after __syncwarp, as in products of many rows and in attention
  AllLanes,   // another warp refills it; every lane arrives
  Unordered,  // nothing: a real race
};

struct Pattern {
  const char *name;
  Leaving leaving;
};

constexpr Pattern PATTERNS[] = {
    {"own-warp", Leaving::OwnWarp},
    {"one-lane", Leaving::OneLane},
    {"all-lanes", Leaving::AllLanes},
    {"unordered", Leaving::Unordered},
};

struct Ring {
  uint4 stages[STAGES][STAGE_BYTES / 16];
  Barrier full[STAGES], empty[STAGES];
};

__device__ void fetch(Ring &ring, const uint32_t *words, uint32_t turn) {
  Barrier &full = ring.full[turn % STAGES];
  full.expect(STAGE_BYTES);
  full.copy(ring.stages[turn % STAGES], words + turn * STAGE_WORDS, STAGE_BYTES);
}

// Warp 0 sums up what comes; it or warp 1 fetches.
template <Leaving LEAVING>
__global__ void __launch_bounds__(64) sum_through_ring(const uint32_t *words, uint32_t *sums) {
  constexpr bool OWN = LEAVING == Leaving::OwnWarp || LEAVING == Leaving::Unordered;
  __shared__ __align__(128) Ring ring;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (Barrier &barrier : ring.full) barrier.init(1);
    for (Barrier &barrier : ring.empty) barrier.init(LEAVING == Leaving::AllLanes ? 32 : 1);
    Barrier::publish_init();
  }
  __syncthreads();
  if (warp == (OWN ? 0 : 1) && lane == 0)
    for (uint32_t turn = 0; turn < STAGES; ++turn) fetch(ring, words, turn);
  if (warp == 1) {
    if (OWN || lane != 0) return;
    RingPlace place;
    for (uint32_t turn = STAGES; turn < TURNS; ++turn) {
      ring.empty[place.stage].wait(place.parity);
      fetch(ring, words, turn);
      place.advance(STAGES);
    }
    return;
  }
  RingPlace place;
  uint32_t sum = 0;
  for (uint32_t turn = 0; turn < TURNS; ++turn) {
    ring.full[place.stage].wait(place.parity);
    const uint4 four = ring.stages[place.stage][lane];
    sum += four.x + four.y + four.z + four.w;
    if constexpr (LEAVING == Leaving::OwnWarp || LEAVING == Leaving::OneLane) __syncwarp();
    if constexpr (OWN) {
      if (lane == 0 && turn + STAGES < TURNS) fetch(ring, words, turn + STAGES);
    } else if (LEAVING == Leaving::AllLanes || lane == 0) {
      ring.empty[place.stage].arrive();
    }
    place.advance(STAGES);
  }
  sums[lane] = sum;
}

template <Leaving LEAVING>
void launch(const uint32_t *words, uint32_t *sums) {
  sum_through_ring<LEAVING><<<1, 64>>>(words, sums);
}

void launch(Leaving leaving, const uint32_t *words, uint32_t *sums) {
  switch (leaving) {
    case Leaving::OwnWarp: return launch<Leaving::OwnWarp>(words, sums);
    case Leaving::OneLane: return launch<Leaving::OneLane>(words, sums);
    case Leaving::AllLanes: return launch<Leaving::AllLanes>(words, sums);
    case Leaving::Unordered: return launch<Leaving::Unordered>(words, sums);
  }
}

// Lanes whose sum is wrong.
uint32_t wrong_lanes(Leaving leaving) {
  std::vector<uint32_t> words(TURNS * STAGE_WORDS), expected(32);
  for (uint32_t i = 0; i < words.size(); ++i) words[i] = i * 2654435761u, expected[i % STAGE_WORDS / 4] += words[i];
  test::Buffer<uint32_t> device_words(words), sums(32);
  sums.poison();
  launch(leaving, device_words.get(), sums.get());
  CHECK(cudaGetLastError());
  const std::vector<uint32_t> actual = sums.host();
  uint32_t wrong = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) wrong += actual[lane] != expected[lane];
  return wrong;
}

}  // namespace

int main(int count, char **arguments) {
  uint32_t failed = 0;
  for (const Pattern &pattern : PATTERNS) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) chosen |= !std::strcmp(arguments[i], pattern.name);
    if (!chosen) continue;
    const uint32_t wrong = wrong_lanes(pattern.leaving);
    std::printf("%s: %u of 32 sums are wrong\n", pattern.name, wrong);
    if (pattern.leaving != Leaving::Unordered) failed += wrong;
  }
  return failed != 0;
}
