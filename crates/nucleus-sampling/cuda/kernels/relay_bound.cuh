// Lower bounds of a row's k-th largest logit: the first by the reading team, later ones by a warp that follows what is collected.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

// A logit that the first tokens reach, from a bound of the k-th and the largest unedited one.
__device__ __forceinline__ float threshold_of(const Row *row, float bound, float most) {
  if (row->plan.kind != SlicePlan::ABOVE || most == -infinity()) return bound;
  return fminf(bound, fmaf(row->plan.temperature, row->program.ops[row->plan.op].arg, most));
}

// Tells a threshold, by one thread.
__device__ __forceinline__ void raise_to(Row *row, float threshold) { atomicMax(&row->bound, key_or_none(threshold)); }
__device__ __forceinline__ float threshold_now(const Row *row) { return value_or_none(shared_now(&row->bound)); }

// The keys of the unedited tokens that a row has collected so far, by one warp: those that reach the bound, and new ones.
struct Follower {
  static constexpr u32 LEFT_MOST = FOLLOWED - 96, STEP = 12;
  Row *row;
  u32 seen = 0, kept = 0;  // tokens looked at; keys of them in `followed`

  // A key that at least k of a warp's keys reach, and few more, if `count` of them, all from `low` to `high`, are more than k.
  template <u32 EACH>
  __device__ __forceinline__ static u32 bound_of(const u32 (&keys)[EACH], u32 count, u32 low, u32 high, u32 k) {
    UNROLL_NOT
    for (u32 round = 0; round < 6 && count - k > k / 16; ++round) {
      const u32 step = (high - low) / 4;
      if (!step) break;
      // How many reach each of three, side by side.
      u32 reach = 0;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) reach += (keys[i] >= low + step ? 1 : 0) + (keys[i] >= low + 2 * step ? 1 << 10 : 0) + (keys[i] >= low + 3 * step ? 1 << 20 : 0);
      static_assert(EACH * 32 < 1 << 10);
      reach = __reduce_add_sync(~0u, reach);
      const u32 first = reach & 1023, second = reach >> 10 & 1023, third = reach >> 20;
      const u32 steps = third >= k ? 3 : second >= k ? 2 : first >= k ? 1 : 0;
      if (steps) count = steps == 3 ? third : steps == 2 ? second : first;
      if (steps < 3) high = low + (steps + 1) * step;
      low += steps * step;
    }
    return low;
  }

  // Raises the bound by tokens up to the `found`-th, 32 * EACH at most.
  template <u32 EACH>
  __device__ __forceinline__ void follow(u32 found) {
    State *const sh = state();
    const u32 lane = threadIdx.x % 32, k = row->plan.k, room = 32 * EACH - kept, taken = found - seen < room ? found - seen : room;
    u32 keys[EACH], most = 0, least = ~0u, count = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = i * 32 + lane;
      keys[i] = 0;
      if (at < kept) {
        keys[i] = sh->followed[at];
      } else if (at < kept + taken) {
        // 0: it is not written yet, and has no say.
        const u64 place = shared_now(&row->places[seen + (at - kept)]);
        if (!(row->plan.edits && row->marked(id_at(place)))) keys[i] = static_cast<u32>(place >> 32);
      }
      most = keys[i] > most ? keys[i] : most;
      least = keys[i] && keys[i] < least ? keys[i] : least;
      count += keys[i] != 0;
    }
    seen += taken;
    count = __reduce_add_sync(~0u, count);
    most = __reduce_max_sync(~0u, most);
    u32 bound = 0;
    if (count >= k) {
      const float threshold = threshold_of(row, value_of(bound_of(keys, count, __reduce_min_sync(~0u, least), most, k)), value_of(most));
      bound = key_or_none(threshold);
      if (lane == 0) raise_to(row, threshold);
    }
    kept = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const bool stays = keys[i] && keys[i] >= bound;
      const u32 lanes = __ballot_sync(~0u, stays), to = kept + __popc(lanes & ((1u << lane) - 1));
      __syncwarp();
      if (stays) sh->followed[to] = keys[i];
      kept += __popc(lanes);
    }
    kept = kept < LEFT_MOST ? kept : LEFT_MOST;
    __syncwarp();
  }
  // The same where one token tells a bound: up to the first that is not written yet.
  __device__ __forceinline__ void follow_largest(u32 found) {
    const u32 lane = threadIdx.x % 32, left = found - seen < 32 ? found - seen : 32;
    const u64 place = lane < left ? shared_now(&row->places[seen + lane]) : 0;
    const u32 missing = __ballot_sync(~0u, lane < left && !place);
    seen += missing ? __ffs(missing) - 1 : left;
    const u32 key = __reduce_max_sync(~0u, row->plan.edits && row->marked(id_at(place)) ? 0 : static_cast<u32>(place >> 32));
    if (key && lane == 0) raise_to(row, threshold_of(row, value_of(key), value_of(key)));
  }
  __device__ __forceinline__ void follow(u32 found) {
    constexpr u32 EACH = FOLLOWED / 32;
    if (kept + (found - seen) <= FOLLOWED / 2) follow<EACH / 2>(found);
    else follow<EACH>(found);
  }
};

// The bounds of all rows of the block, by one warp.
__device__ __forceinline__ void follow_rows(const SamplingBatch &batch) {
  State *const sh = state();
  u32 turn = 0;
  UNROLL_NOT
  for (u32 taken = blockIdx.x; taken < batch.rows; taken += gridDim.x, ++turn) {
    const u32 at = turn % 2, parity = turn / 2 % 2;
    wait_for_copy(&sh->ready[at], parity);
    Follower follower{&sh->rows[at]};
    UNROLL_NOT
    while (!__any_sync(~0u, is_over(&sh->read[at], parity))) {
      u32 found = shared_now(&follower.row->found);
      found = __shfl_sync(~0u, found < COLLECT_MOST ? found : COLLECT_MOST, 0);
      const u32 k = follower.row->plan.k;
      if (k == 1 && found > follower.seen) follower.follow_largest(found);
      else if (k > 1 && found >= follower.seen + Follower::STEP && found >= k) follower.follow(found);
      else __nanosleep(100);
    }
    arrive_as_warp(&sh->followed_to_end[at]);
  }
}

}  // namespace nucleus::relay
