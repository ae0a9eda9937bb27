// Where a cut falls in a row held in slices: first by equal steps of the logit, then in the order of the tokens of a few steps.
#pragma once

#include "chain.cuh"
#include "sweeps.cuh"

namespace nucleus {

constexpr float STEPS_PER_LOGIT = 45.0f;   // by count
constexpr float STEPS_PER_OCTAVE = 45.0f;  // by weight: the last weight lies 45 octaves below the first

// Bins of equal steps below the largest logit: larger logits are in larger bins, and bin 0 has all that is further below. A step is counted from its middle.
struct Steps {
  float largest, rate;

  __device__ __forceinline__ float distance(float x) const { return (largest - x) * rate; }
  __device__ __forceinline__ static u32 bin_at(float steps) { return (BINS - 1) - (bits_of(fminf(steps, static_cast<float>(BINS - 1)) + 8388608.0f) & (2 * BINS - 1)); }
  __device__ __forceinline__ u32 bin(float x) const { return bin_at(distance(x)); }
  // No token of the bin, or of a larger one, is below.
  __device__ __forceinline__ float lowest_of(u32 bin) const {
    return bin ? __fsub_rd(largest, __fdiv_ru(static_cast<float>(BINS + 1 - bin), rate)) : -infinity();
  }
  // No token of the bin, or of a smaller one, is above.
  __device__ __forceinline__ float highest_of(u32 bin) const {
    return bin + 3 < BINS ? __fsub_ru(largest, __fdiv_rd(static_cast<float>(BINS - 3 - bin), rate)) : infinity();
  }
};
__device__ __forceinline__ Steps steps_of(const Weighing &w, float largest, bool by_mass) { return Steps{largest, by_mass ? STEPS_PER_OCTAVE * w.s : STEPS_PER_LOGIT}; }

// Bins between which a cut lies, both inclusive.
struct StepRange {
  u32 high, low;
  u32 before, through;  // tokens in larger bins than `high`, and from `low` up
};

// What weights by whole steps may be off, by the width of a step, by rounding tokens' weights down, and by what lies in bin 0.
__device__ __forceinline__ u64 at_most(u64 mass) { return mass + (mass >> 7) + NUCLEUS_MAX_VOCAB; }
__device__ __forceinline__ u64 at_least(u64 mass) {
  const u64 off = (mass >> 7) + NUCLEUS_MAX_VOCAB;
  return mass > off ? mass - off : 0;
}

// Descending, between which bins of the tokens that are left the sum of weights, or the count, begins to suffice, from how many tokens are in each bin.
inline __device__ __noinline__ StepRange range_of_cut(DeviceTeam team, u64 top, u64 bottom, Steps steps, u64 largest_weight, Until until, bool by_mass) {
  u32 *counts = reinterpret_cast<u32 *>(team.sh->bins);
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
  sync_block();
  const Bounds bounds(top, bottom);
  team.each_four([&](u32 i, float4 v) {
    const float x[4] = {v.x, v.y, v.z, v.w};
    u32 bin[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) bin[e] = bounds.hold(team.first + i + e, x[e]) ? steps.bin(x[e]) : 0;
    if (bin[0] == bin[1] && bin[1] == bin[2] && bin[2] == bin[3]) {
      if (bin[0]) atomicAdd(&counts[bin[0]], 4);
      return;
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e)
      if (bin[e]) atomicAdd(&counts[bin[e]], 1);
  });
  team.cluster_sync();
  constexpr u32 MOST = BINS / THREADS;
  u32 own[MOST], bins[MOST];
  u64 mass[MOST], sums[2] = {0, 0};
  team.each_bin(BINS, [](const Shared *there, u32 bin) { return reinterpret_cast<const u32 *>(there->bins)[bin]; }, [&](u32 k, u32 bin, u64 count) {
    bins[k] = bin;
    own[k] = static_cast<u32>(count);
    const float each = static_cast<float>(largest_weight) * exp2f((static_cast<float>(bin) - (BINS - 1)) * (1.0f / STEPS_PER_OCTAVE));
    mass[k] = by_mass ? static_cast<u64>(each * static_cast<float>(own[k])) : 0;
    sums[0] += own[k];
    sums[1] += mass[k];
  });
  const u64 in_warp[2] = {prefix_sum(sums[0]), by_mass ? prefix_sum(sums[1]) : 0};
  u64 before[2] = {DeviceWarp{}.last(in_warp[0]), DeviceWarp{}.last(in_warp[1])};
  team.sum_before(before);
  before[0] += in_warp[0] - sums[0];
  before[1] += in_warp[1] - sums[1];
  u64 found[2] = {0, 0};  // the first that suffices is the largest bin; bin 0 suffices always
#pragma unroll
  for (u32 k = 0; k < MOST; ++k) {
    const u64 through[2] = {before[0] + own[k], before[1] + mass[k]}, packed = static_cast<u64>(bins[k] + 1) << 32;
    const bool may = by_mass ? at_most(through[1]) >= until.least : through[0] >= until.least, must = by_mass ? at_least(through[1]) >= until.least : may;
    if (bins[k] < BINS && (may || !bins[k])) found[0] = found[0] > packed ? found[0] : packed | before[0];
    if (bins[k] < BINS && (must || !bins[k])) found[1] = found[1] > packed ? found[1] : packed | (bins[k] ? through[0] : 0xFFFFFFFFu);
    before[0] = through[0];
    before[1] = through[1];
  }
  team.max(found);
  return StepRange{static_cast<u32>(found[0] >> 32) - 1, static_cast<u32>(found[1] >> 32) - 1, static_cast<u32>(found[0]), static_cast<u32>(found[1])};
}

// Lists the tokens that are left in the bin `low` and larger ones; returns how many. `mass` becomes what they weigh.
inline __device__ __noinline__ u32 list_in_slices(DeviceTeam team, u64 top, u64 bottom, Steps steps, u32 low, float s, i32 max_n, u64 &mass) {
  const Bounds bounds(top, bottom);
  const float lowest = steps.lowest_of(low);
  mass = 0;
  team.begin_list();
  team.each_four([&](u32 i, float4 v) {
    if (!(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)) >= lowest)) return;
#pragma unroll 1
    for (u32 e = 0; e < 4; ++e) {
      const u32 id = team.first + i + e;
      if (v.x >= lowest && bounds.hold(id, v.x) && steps.bin(v.x) >= low) {
        team.append(place_of(v.x + 0.0f, id));
        mass += Exponent(v.x, s).weight(max_n);
      }
      v = make_float4(v.y, v.z, v.w, v.x);
    }
  });
  return team.end_list(mass);
}

// The first key of the leader's list, descending, at which `base` and the weights so far suffice; where they never do, 0, or the last key if `ends`: the list is all
// there is. The leader's first warp gets it, all others 0.
template <class F>
__device__ __forceinline__ u64 first_in_list(const DeviceTeam &team, u32 listed, u64 base, const Until &until, bool ends, F weight_of) {
  if (!team.leader()) return 0;
  Shared *sh = team.sh;
  team.sort_list(listed);
  // Each thread has the same number of tokens, one after another.
  const u32 each_has = (listed + THREADS - 1) / THREADS, first = threadIdx.x * each_has;
  u64 own = 0;
  UNROLL_NOT
  for (u32 i = first; i < first + each_has && i < listed; ++i) own += weight_of(sh->list[i]);
  const u64 prefix = DeviceWarp{}.inclusive(own);
  if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][0] = prefix;
  if (threadIdx.x == 0) sh->told = ends ? sh->list[listed - 1] : 0;
  sync_block();
  u64 before = base + prefix - own;
  UNROLL_NOT
  for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) before += sh->part[warp][0];
  if (first < listed && !until(before) && until(before + own)) {
    u32 i = first;
    UNROLL_NOT
    for (before += weight_of(sh->list[i]); !until(before); before += weight_of(sh->list[i])) ++i;
    sh->told = sh->list[i];
  }
  sync_block();
  return threadIdx.x < 32 ? sh->told : 0;
}

struct StepCut {
  u64 place = 0;  // the last place that is kept
  bool found = false;
};

// Descending, the first token at which the sum of weights, or the count, suffices, in a range of bins. Not found: it lies elsewhere, or among too many tokens of
// nearly one logit. The range is cut into as many bins again if a list does not hold it.
inline __device__ __noinline__ StepCut cut_in_range(DeviceTeam team, u64 top, u64 bottom, Steps steps, StepRange range, float s, i32 max_n, Until until, bool by_mass) {
  const Bounds bounds(top, bottom);
  Weighing w;
  w.s = s;
  w.max_n = max_n;
  const float begin = static_cast<float>(BINS - 1 - range.high) - 0.5f, finer = static_cast<float>(BINS - 1) / static_cast<float>(range.high - range.low + 1);
  auto bin_in_range = [&](float x) { return Steps::bin_at(fmaxf(steps.distance(x) - begin, 0.0f) * finer); };
  const bool fits = range.through - range.before <= LIST_CAPACITY;
  u64 base = by_mass ? 0 : range.before;
  u32 bin = 0;
  if (by_mass) {
    u64 above[1] = {0};
    const DoubleAddends addends(w);
    if (addends.serve) {
      DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
      each_of_four(team, bounds, [&](u32 e, u32, bool left, float x) { addends.add(left && steps.bin(x) > range.high ? x : -infinity(), sums[e % 2]); });
      above[0] = addends.taken(sums[0]) + addends.taken(sums[1]);
    } else {
      each_left(team, bounds, [&](u32, float x) { above[0] += steps.bin(x) > range.high ? w.q(x) : 0; });
    }
    team.sum(above);
    base = above[0];
  }
  // What the sweeps for the range look at: all of it, and little else.
  const float highest = steps.highest_of(range.high), lowest = steps.lowest_of(range.low);
  const u64 from = lowest > -infinity() ? place_of(lowest + 0.0f, ~0u) : 0, to = highest < infinity() ? place_of(highest + 0.0f, 0) : ~0ull;
  const Bounds near(to < top ? to : top, from > bottom ? from : bottom);
  if (until(base)) return StepCut{};
  if (!fits) {
    team.clear_bins();
    each_left(team, near, [&](u32, float x) {
      const u32 step = steps.bin(x);
      if (step <= range.high && step >= range.low) team.add_bin(bin_in_range(x), by_mass ? w.q(x) : 1);
    });
    bin = team.find_bin(BINS, base, until);
  }
  team.begin_list();
  each_left(team, near, [&](u32 id, float x) {
    const u32 step = steps.bin(x);
    if (step <= range.high && step >= range.low && (fits || bin_in_range(x) == bin)) team.append(place_of(x, id));
  });
  const u32 listed = team.end_list();
  if (listed > LIST_CAPACITY || !listed) return StepCut{};
  u64 told[1] = {first_in_list(team, listed, base, until, !range.low, [&](u64 own) { return by_mass ? w.q(logit_at(own)) : 1; })};
  team.max(told);
  return StepCut{told[0], told[0] != 0};
}

// As RowMachine::select, over slices. The first bits of the key are `prefix`; keys with others take no part.
inline __device__ __noinline__ Selected select_in_slices(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n, Keys keys, u32 bits, u64 prefix, u64 base, Until until) {
  const Bounds bounds(top, bottom);
  Weighing w;
  w.s = s;
  w.max_n = max_n;
  UNROLL_NOT
  for (u32 left = bits; left > 0;) {
    const u32 width = left < DIGIT_BITS ? left : DIGIT_BITS, shift = left - width;
    team.clear_bins();
    each_left(team, bounds, [&](u32 id, float x) {
      u64 key, weight;
      if (!keys.of(id, x, w, key, weight) || (left < 64 && (key >> left) != prefix)) return;
      team.add_bin(static_cast<u32>(key >> shift) & ((1u << width) - 1), weight);
    });
    const u32 bin = team.find_bin(1u << width, base, until);
    prefix = prefix << width | bin;
    left = shift;
  }
  return Selected{prefix, base};
}

// Of the tokens of a rank, in the order in which the run grows, the first at which the sum suffices; returns the end of the run. Not found: a list does not hold them.
inline __device__ __noinline__ StepCut end_of_rank(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n, Keys keys, u64 base, Until until) {
  Weighing w;
  w.s = s;
  w.max_n = max_n;
  keys.kind = Keys::WITHIN_RANK;
  team.begin_list();
  each_left(team, Bounds(top, bottom), [&](u32 id, float x) {
    u64 key, weight;
    if (keys.of(id, x, w, key, weight)) team.append(key);
  });
  const u32 listed = team.end_list();
  if (listed > LIST_CAPACITY || !listed) return StepCut{};
  u64 told[1] = {0};
  if (team.leader()) {
    team.sort_list(listed);
    if (threadIdx.x == 0) {
      u32 i = 0;
      UNROLL_NOT
      for (; i < listed; ++i) {
        const u64 key = team.sh->list[i];
        base += keys.by_mass ? w.q(logit_at(keys.above ? ~key : key)) : 1;
        if (until(base)) break;
      }
      const u64 key = team.sh->list[i < listed ? i : listed - 1];
      team.sh->told = keys.above ? ~key : key;
    }
    sync_block();
    told[0] = threadIdx.x < 32 ? team.sh->told : 0;
  }
  team.max(told);
  return StepCut{told[0], true};
}

}  // namespace nucleus
