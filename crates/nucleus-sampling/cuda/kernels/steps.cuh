// Where a cut falls in a row held in slices: first by equal steps of the logit, then in the order of the tokens of one step.
#pragma once

#include "team.cuh"

namespace nucleus {

struct StepCut {
  u64 place = 0;  // the last place that is kept
  u32 kept = 0;   // tokens from there up
  bool found = false;
};

// Descending from `largest`, the first token within the layer's bounds at which the sum of weights, or the count, suffices; the last token if it never
// does. Not found: one step has more tokens than a list. Every thread of the cluster calls it and gets the same; it makes one sum over the team.
inline __device__ __noinline__ StepCut find_in_steps(DeviceTeam team, Layer layer, Weighing w, float largest, Until until, bool by_mass) {
  Shared *sh = team.sh;
  const Bounds bounds(layer);
  const float rate = by_mass ? STEPS_PER_OCTAVE * w.s : STEPS_PER_LOGIT;
  auto step_of = [=](float x) { return (BINS - 1) - static_cast<u32>(fminf((largest - x) * rate, static_cast<float>(BINS - 1))); };
  auto weight_of = [=](float x) { return by_mass ? w.q(x) : 1; };
  // Calls f(id, logit, whether it takes part) with all lanes of the warp. A short loop: it is fetched once and runs twice.
  auto each = [&](auto f) {
    const u32 from = threadIdx.x / 32 * team.span, end = from + team.span < team.held ? from + team.span : team.held;
#pragma unroll 1
    for (u32 base = from; base < end; base += 32) {
      const u32 i = base + threadIdx.x % 32;
      const float x = i < end ? team.slice[i] + 0.0f : -infinity();
      f(team.first + i, x, bounds.hold(team.first + i, x));
    }
  };
  team.clear_bins();
  each([&](u32, float x, bool holds) {
    const u32 bin = holds ? step_of(x) : 0;
    u64 weight = holds ? weight_of(x) : 0;
    if (__all_sync(~0u, bin == __shfl_sync(~0u, bin, 0))) {
      weight = DeviceWarp{}.sum(weight);
      if (threadIdx.x % 32) weight = 0;
    }
    team.add_bin(bin, weight);
  });
  u64 base = 0;
  const u32 step = team.find_bin(BINS, base, until);
  team.begin_list();
  u32 above = 0;
  each([&](u32 id, float x, bool holds) {
    const u32 own = step_of(x);
    above += holds && own > step;
    if (holds && own == step) team.append(place_of(x, id));
  });
  team.end_list();
  u64 sums[1] = {above};
  team.sum(sums);
  StepCut cut;
  const u32 listed = team.listed_anywhere();
  if (listed > LIST_CAPACITY || !listed) return cut;
  if (team.leader()) {
    team.sort_list(listed);
    // Each thread has the same number of tokens, one after another.
    const u32 each_has = (listed + THREADS - 1) / THREADS, first = threadIdx.x * each_has;
    u64 own = 0;
    UNROLL_NOT
    for (u32 i = first; i < first + each_has && i < listed; ++i) own += weight_of(logit_at(sh->list[i]));
    const u64 prefix = DeviceWarp{}.inclusive(own);
    if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][0] = prefix;
    if (threadIdx.x == 0) {
      sh->told = sh->list[listed - 1];
      sh->told_count = listed;
    }
    __syncthreads();
    u64 before = base + prefix - own;
    UNROLL_NOT
    for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) before += sh->part[warp][0];
    if (first < listed && !until(before) && until(before + own)) {
      u32 i = first;
      UNROLL_NOT
      for (;; ++i) {
        before += weight_of(logit_at(sh->list[i]));
        if (until(before)) break;
      }
      sh->told = sh->list[i];
      sh->told_count = i + 1;
    }
  }
  team.cluster_sync();
  const Shared *leader = team.in_block(sh, 0);
  cut.place = leader->told;
  cut.kept = static_cast<u32>(sums[0]) + leader->told_count;
  cut.found = true;
  team.cluster_sync();
  return cut;
}

// As RowMachine::select, over slices.
inline __device__ __noinline__ Selected select_in_slices(DeviceTeam team, Layer layer, Weighing w, Keys keys, u32 bits, u64 base, Until until) {
  const Bounds bounds(layer);
  u64 prefix = 0;
  UNROLL_NOT
  for (u32 left = bits; left > 0;) {
    const u32 width = left < DIGIT_BITS ? left : DIGIT_BITS, shift = left - width;
    team.clear_bins();
    team.each([&](u32 id, float x) {
      u64 key, weight;
      if (!bounds.hold(id, x) || !keys.of(id, x, w, key, weight) || (left < 64 && (key >> left) != prefix)) return;
      team.add_bin(static_cast<u32>(key >> shift) & ((1u << width) - 1), weight);
    });
    const u32 bin = team.find_bin(1u << width, base, until);
    prefix = prefix << width | bin;
    left = shift;
  }
  return Selected{prefix, base};
}

// The place, descending from `largest`, at which the sum of weights or the count suffices; the lowest place if it never does.
__device__ __forceinline__ u64 place_in_slices(const DeviceTeam &team, const Layer &layer, const Weighing &w, float largest, const Until &until, bool by_mass) {
  const StepCut cut = find_in_steps(team, layer, w, largest, until, by_mass);
  team.parity ^= 1;
  if (cut.found) return cut.place;
  return select_in_slices(team, layer, w, Keys{Keys::PLACE, by_mass, false, 1, 0, 0, 0}, 64, 0, until).key;
}

}  // namespace nucleus
