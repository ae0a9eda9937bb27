// What the exact path asks of a whole row held in slices: one sweep over shared memory, then a meeting of all warps. Functions of their own, so that what a row's
// program holds does not take the registers that a sweep needs.
#pragma once

#include "team.cuh"

namespace nucleus {

// Which of four logits are left, as bits.
__device__ __forceinline__ u32 left_of_four(const Bounds &bounds, u32 id, const float4 &v) {
  if (!bounds.meet(v.x, v.y, v.z, v.w)) return 0;
  const float x[4] = {v.x, v.y, v.z, v.w};
  u32 left = 0, edge = 0;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    left |= x[e] > bounds.low && x[e] < bounds.high ? 1u << e : 0;
    edge |= x[e] == bounds.low || x[e] == bounds.high ? 1u << e : 0;
  }
  if (edge) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) left |= bounds.hold(id + e, x[e]) ? 1u << e : 0;
  }
  return left;
}
// Calls f(id, logit) for the tokens of this thread's part that are left, -0 read as +0. A short loop, for what takes many instructions a token.
template <class Team, class F>
__device__ __forceinline__ void each_left(const Team &team, const Bounds &bounds, F f) {
  team.each_four([&](u32 i, float4 v) {
#pragma unroll 1
    for (u32 left = left_of_four(bounds, team.first + i, v); left; left &= left - 1) {
      const u32 e = __ffs(left) - 1;
      f(team.first + i + e, (e < 2 ? (e == 0 ? v.x : v.y) : (e == 2 ? v.z : v.w)) + 0.0f);
    }
  });
}
// The same in line: f(element, id, whether it is left, logit) for all four of each vector that has some.
template <class Team, class F>
__device__ __forceinline__ void each_of_four(const Team &team, const Bounds &bounds, F f) {
  team.each_four([&](u32 i, float4 v) {
    const u32 left = left_of_four(bounds, team.first + i, v);
    if (!left) return;
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 e = 0; e < 4; ++e) f(e, team.first + i + e, left >> e & 1, x[e]);
  });
}

// The same, with fewer instructions where whole logits are cut off below, and nothing above.
template <class Team, class F>
__device__ __forceinline__ void each_kept(const Team &team, const Bounds &bounds, F f) {
  if (bounds.top != ~0ull) {
    each_left(team, bounds, [&](u32 id, float x) { f(0, id, true, x); });
    return;
  }
  const float low = bounds.low;
  team.each_four([&](u32 i, float4 v) {
    if (!(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)) >= low)) return;
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 e = 0; e < 4; ++e) f(e, team.first + i + e, x[e] >= low, x[e]);
  });
}

// Counts the tokens of a row and finds its first place; returns a status. `strange`: of this block it is known that its part is not of numbers alone.
inline __device__ __noinline__ u32 survey_slices(DeviceTeam team, bool strange, u64 &count, u64 &best) {
  const Survey own = team.survey();
  // The count is below 2^20: above it, who has seen NaN, and +inf.
  constexpr u32 NAN_AT = 24, INFINITE_AT = 44;
  u64 sum = own.count | static_cast<u64>(own.nan || strange) << NAN_AT | static_cast<u64>(own.infinite) << INFINITE_AT;
  best = own.best;
  team.sum_and_max(sum, best);
  count = sum & ((1u << NAN_AT) - 1);
  return sum >> NAN_AT & ((1u << (INFINITE_AT - NAN_AT)) - 1) ? NUCLEUS_NAN : sum >> INFINITE_AT ? NUCLEUS_OVERFLOW : NUCLEUS_OK;
}

// The weight of the tokens that are left; every warp's is told first at its meeting.
inline __device__ __noinline__ u64 mass_in_slices(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n) {
  Weighing w;
  w.s = s;
  w.max_n = max_n;
  u64 own[1] = {0};
  const DoubleAddends addends(w);
  const Bounds bounds(top, bottom);
  if (top == ~0ull && !bottom) {
    own[0] = team.mass(w);
  } else if (addends.serve) {
    DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
    each_of_four(team, bounds, [&](u32 e, u32, bool left, float x) { addends.add(left ? x : -infinity(), sums[e % 2]); });
    own[0] = addends.taken(sums[0]) + addends.taken(sums[1]);
  } else {
    each_left(team, bounds, [&](u32, float x) { own[0] += w.q(x); });
  }
  team.sum(own);
  return own[0];
}

// The same with the moment of their surprise.
inline __device__ __noinline__ Surprise surprise_in_slices(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n) {
  const Bounds bounds(top, bottom);
  Surprise own;
  each_of_four(team, bounds, [&](u32, u32, bool left, float x) {
    const Exponent e(left ? x : -infinity(), s);
    own.add(e.weight(max_n), e.log2_q16(max_n));
  });
  u64 sums[2] = {own.total, static_cast<u64>(own.moment)};
  team.sum(sums);
  own.total = sums[0];
  own.moment = static_cast<i64>(sums[1]);
  return own;
}

// How many tokens lie between two places, both inclusive, and the first of them; 0: there is none.
inline __device__ __noinline__ u64 count_in_slices(DeviceTeam team, u64 top, u64 bottom, u64 &first) {
  const Bounds bounds(top, bottom);
  u32 of_lane = 0;
  float largest = -infinity();
  u32 id = 0;
  each_of_four(team, bounds, [&](u32, u32 own, bool left, float x) {
    of_lane += left;
    if (left && x > largest) {
      largest = x;
      id = own;
    }
  });
  u64 count = of_lane;
  first = count ? place_of(largest + 0.0f, id) : 0;
  team.sum_and_max(count, first);
  return count;
}

// The last place that is left of those between two; all bits set: there is none.
inline __device__ __noinline__ u64 last_in_slices(DeviceTeam team, u64 top, u64 bottom) {
  u64 most[1] = {0};
  each_left(team, Bounds(top, bottom), [&](u32 id, float x) {
    const u64 place = ~place_of(x, id);
    most[0] = place > most[0] ? place : most[0];
  });
  team.max(most);
  return ~most[0];
}

// Lists the tokens between two places; returns how many.
inline __device__ __noinline__ u32 list_between(DeviceTeam team, u64 top, u64 bottom) {
  team.begin_list();
  each_left(team, Bounds(top, bottom), [&](u32 id, float x) { team.append(place_of(x, id)); });
  return team.end_list();
}

// Divides the logits that are left; what is out becomes -inf.
inline __device__ __noinline__ void divide_slices(DeviceTeam team, u64 top, u64 bottom, float by) {
  const Bounds bounds(top, bottom);
  team.rewrite([&](u32 id, float x) { return bounds.hold(id, x) ? x / by + 0.0f : -infinity(); });
  sync_block();
}
// Smooths them by their distance from the largest.
inline __device__ __noinline__ void smooth_slices(DeviceTeam team, u64 top, u64 bottom, Smoothing smoothing) {
  const Bounds bounds(top, bottom);
  team.rewrite([&](u32 id, float x) { return bounds.hold(id, x) ? smoothing(x) + 0.0f : -infinity(); });
  sync_block();
}

// Draws from the tokens that are left by the masses told last: the block that has the token puts its place where Shared's `told` was 0.
inline __device__ __noinline__ void draw_in_slices(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n, u64 target) {
  const Bounds bounds(top, bottom);
  team.draw(
      team.last_told(), target, [&](u32 id, float x) { return bounds.hold(id, x) ? Exponent(x, s).weight(max_n) : 0; },
      [&](u32 id, float x) { team.sh->told = place_of(x, id); });
  sync_block();
}

// The key of the largest logit whose weight, or surprise, is below `least`; 0: there is none.
inline __device__ __noinline__ u32 largest_below(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n, i64 least, bool by_weight) {
  float most = -infinity();
  each_left(team, Bounds(top, bottom), [&](u32, float x) {
    if (!(x > most)) return;
    const Exponent e(x, s);
    const i64 own = by_weight ? static_cast<i64>(e.weight(max_n)) : e.log2_q16(max_n);
    if (own < least) most = x;
  });
  u64 key[1] = {most > -infinity() ? key_of(most) : 0};
  team.max(key);
  return static_cast<u32>(key[0]);
}

// Returns the sum of the squares of the distances from the largest logit; `sum` becomes that of the distances.
inline __device__ __noinline__ u128 distances_in_slices(DeviceTeam team, u64 top, u64 bottom, float largest, u64 &sum) {
  Distances own;
  each_of_four(team, Bounds(top, bottom), [&](u32, u32, bool left, float x) { own.add(left ? x : largest, largest); });
  team.sum(own.sum);
  team.sum(own.halves);
  sum = own.sum[0];
  return own.squares();
}

// How far typical tokens, from the nearest to the mean on, reach: of those of a rank above `rank`, and of that rank on one side of `end`, the last and the first
// place, but for those between `low` and `high`.
inline __device__ __noinline__ void reach_of_typical(DeviceTeam team, u64 top, u64 bottom, float s, i32 max_n, i64 mean, u64 rank, u64 end, bool above, u64 &low, u64 &high) {
  u64 most[2] = {0, 0};
  each_left(team, Bounds(top, bottom), [&](u32 id, float x) {
    const u64 own = typical_rank(Exponent(x, s).log2_q16(max_n), mean);
    if (own < rank) return;
    const u64 place = place_of(x, id);
    if ((place >= low && place <= high) || (own == rank && (above ? place > end : place < end))) return;
    most[0] = place > most[0] ? place : most[0];
    most[1] = ~place > most[1] ? ~place : most[1];
  });
  team.max(most);
  high = most[0] > high ? most[0] : high;
  low = ~most[1] < low ? ~most[1] : low;
}

}  // namespace nucleus
