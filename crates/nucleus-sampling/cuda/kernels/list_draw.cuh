// The draw from what min_p keeps of a list in any order, by all threads of a team, where the list is long for one warp.
//
// Weights are added up by runs of 512 ids, in one of which the draw falls; then those of this run's tokens by their ids. Nothing is sorted.
#pragma once

#include "parted_sum.cuh"
#include "team.cuh"

namespace nucleus {

// The sum over the warps before this one, and over all WARPS, from the sums of each.
template <u32 WARPS>
__device__ __forceinline__ u64 sum_before(const u64 *of_warps, u32 warp, u64 &total) {
  const u32 lane = threadIdx.x % 32;
  const u64 through = prefix_sum(lane < WARPS ? of_warps[lane] : 0), before = __shfl_sync(~0u, through, warp ? warp - 1 : 0);
  total = __shfl_sync(~0u, through, 31);
  return warp ? before : 0;
}

// What min_p and the draw ask for.
struct DrawAbove {
  float scale, temperature, arg;  // scale: of the temperature; arg: min_p's
  u32 least;                      // tokens to keep
  u64 uniform;
};

template <u32 N>
struct ListDraw {
  static constexpr u32 RUN_BITS = 9, RUN = 1u << RUN_BITS, RUNS = NUCLEUS_MAX_VOCAB >> RUN_BITS, TEAM = N / 32;
  static constexpr u32 PLACES_EACH = (LISTED + N - 1) / N, RUNS_EACH = (RUNS + N - 1) / N, IDS_EACH = (RUN + N - 1) / N;  // of a thread
  static_assert(TEAM <= 32 && LISTED < 1u << 16);

  PartedSum runs[RUNS];
  uint16_t of_ids[RUN];  // of the run in which the draw falls: 1 + which of the list, if it is kept
  u64 masses[2][TEAM];   // of warps
  u32 largest[TEAM], kept[TEAM];
  u64 base;              // what lies before that run
  u32 run;

  // By all threads, `t` of N, that meet by sync(); one of them calls done(place, kept, logprob). False, to all: it is not decided. Places whose upper half is 0 are
  // for no token. A barrier precedes.
  template <class Sync, class Done>
  __device__ __forceinline__ bool draw(const u64 *places, u32 count, const DrawAbove &asked, u32 t, Sync sync, Done done) {
    const u32 warp = t / 32, lane = t % 32;
    u64 own[PLACES_EACH];
    u32 most = 0;
#pragma unroll
    for (u32 i = 0; i < PLACES_EACH; ++i) {
      own[i] = i * N + t < count ? places[i * N + t] : 0;
      most = max(most, static_cast<u32>(own[i] >> 32));
    }
#pragma unroll
    for (u32 i = 0; i < RUNS_EACH; ++i)
      if (i * N + t < RUNS) runs[i * N + t].put(0);
#pragma unroll
    for (u32 i = 0; i < IDS_EACH; ++i)
      if (i * N + t < RUN) of_ids[i * N + t] = 0;
    most = __reduce_max_sync(~0u, most);
    if (lane == 0) largest[warp] = most;
    sync();
    most = __reduce_max_sync(~0u, lane < TEAM ? largest[lane] : 0);
    Weighing w;
    if (!most || !begin_weighing_by(asked.scale, value_of(most), w)) return false;
    const float threshold = fmaf(asked.temperature, asked.arg, value_of(most));
    u32 passing = 0;
#pragma unroll
    for (u32 i = 0; i < PLACES_EACH; ++i) {
      const float x = logit_at(own[i]);
      if (!(own[i] >> 32 && x >= threshold)) own[i] = 0;
      if (!own[i]) continue;
      passing += 1;
      runs[id_at(own[i]) >> RUN_BITS].add(w.q(x));
    }
    passing = __reduce_add_sync(~0u, passing);
    if (lane == 0) kept[warp] = passing;
    sync();
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < RUNS_EACH; ++i)
      if (t * RUNS_EACH + i < RUNS) sum += runs[t * RUNS_EACH + i].sum();
    u64 through = prefix_sum(sum), total, of_run;
    if (lane == 31) masses[0][warp] = through;
    sync();
    u64 at = through - sum + sum_before<TEAM>(masses[0], warp, total);
    passing = __reduce_add_sync(~0u, lane < TEAM ? kept[lane] : 0);
    if (passing < asked.least) return false;
    const u64 target = mulhi64(asked.uniform, total);
    if (target >= at && target - at < sum) {
      u32 found = t * RUNS_EACH;
      UNROLL_NOT
      for (; target - at >= runs[found].sum(); ++found) at += runs[found].sum();
      run = found;
      base = at;
    }
    sync();
    const u32 chosen = run;
#pragma unroll
    for (u32 i = 0; i < PLACES_EACH; ++i)
      if (own[i] && id_at(own[i]) >> RUN_BITS == chosen) of_ids[id_at(own[i]) % RUN] = static_cast<uint16_t>(i * N + t + 1);
    sync();
    u64 q[IDS_EACH];
    sum = 0;
#pragma unroll
    for (u32 i = 0; i < IDS_EACH; ++i) {
      const u32 from = t * IDS_EACH + i < RUN ? of_ids[t * IDS_EACH + i] : 0;
      q[i] = from ? w.q(logit_at(places[from - 1])) : 0;
      sum += q[i];
    }
    through = prefix_sum(sum);
    if (lane == 31) masses[1][warp] = through;
    sync();
    at = base + through - sum + sum_before<TEAM>(masses[1], warp, of_run);
    if (!(target >= at && target - at < sum)) return true;
    u32 drawn = t * IDS_EACH;
    UNROLL_NOT
    for (; target - at >= q[0]; ++drawn) {
      at += q[0];
#pragma unroll
      for (u32 i = 0; i + 1 < IDS_EACH; ++i) q[i] = q[i + 1];
    }
    done(places[of_ids[drawn] - 1], passing, processed_logprob(q[0], total));
    return true;
  }
};

}  // namespace nucleus
