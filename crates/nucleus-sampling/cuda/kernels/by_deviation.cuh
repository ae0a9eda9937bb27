// Rows held in slices that top_n_sigma cuts, and that are then drawn from: by one sweep that finds the largest logit, the sum of all and that of their squares as
// floats. These bound the deviation, and so the logit at which the row is cut, to some 2^-14; where no token lies between the bounds, what reaches them is what is kept.
// That is few tokens most often: each warp has its own in registers, and asks for its part of the next row before it weighs them.
#pragma once

#include "by_sums.cuh"
#include "held_row.cuh"

namespace nucleus {

// Whether, edits by id and temperatures aside, a program of at least one operation consists of top_n_sigma and the draw; by a warp.
__device__ __forceinline__ bool cuts_by_deviation(const SamplingProgram &program) {
  constexpr u32 ASIDE = 1u << NUCLEUS_OP_NONE | 1u << NUCLEUS_OP_DRY | 1u << NUCLEUS_OP_PENALTIES | 1u << NUCLEUS_OP_NO_REPEAT_NGRAM | 1u << NUCLEUS_OP_TEMPERATURE;
  const u32 lane = threadIdx.x % 32, last = program.len - 1, code = lane < last && lane < NUCLEUS_MAX_OPS ? program.ops[lane].code : NUCLEUS_OP_NONE;
  const bool cuts = code == NUCLEUS_OP_TOP_N_SIGMA;
  const u32 own = __ballot_sync(~0u, cuts), others = __ballot_sync(~0u, !cuts && !(ASIDE >> code & 1));
  return __popc(own) == 1 && !others && program.ops[last].code == NUCLEUS_OP_DRAW && program.ops[__ffs(own) - 1].arg >= 0.0f;
}

// Of a lane's part of the row, or of all of it.
template <class T>
struct LogitSums {
  T sum, squares;
};
// What a lane sees of its part. `missing`: tokens that are out, counted only where sums are not finite otherwise.
struct SeenLogits {
  LogitSums<float> sums;
  float largest;
  u32 missing;

  __device__ __forceinline__ void add(const float4 &v) {
    sums.sum += (v.x + v.y) + (v.z + v.w);
    sums.squares += fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, v.x * v.x)));
  }
};

__device__ __forceinline__ SeenLogits see_logits(const DeviceTeam &team) {
  SeenLogits seen{{0.0f, 0.0f}, -infinity(), 0};
  constexpr u32 AT_ONCE = 3;
  auto see = [&](const float4 &v) {
    seen.largest = fmaxf(seen.largest, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    seen.add(v);
  };
  const u32 from = threadIdx.x / 32 * team.span, end = from + team.span < team.held ? from + team.span : team.held;
  u32 i = from + threadIdx.x % 32 * 4;
#pragma unroll 1
  for (; i + (AT_ONCE - 1) * STEP < end; i += AT_ONCE * STEP) {
    float4 v[AT_ONCE];
#pragma unroll
    for (u32 k = 0; k < AT_ONCE; ++k) v[k] = *reinterpret_cast<const float4 *>(team.slice + i + k * STEP);
#pragma unroll
    for (u32 k = 0; k < AT_ONCE; ++k) see(v[k]);
  }
#pragma unroll 1
  for (; i < end; i += STEP) see(*reinterpret_cast<const float4 *>(team.slice + i));
  return seen;
}
// The sums again where some are out, which count as 0.
__device__ __forceinline__ void see_what_is_there(const DeviceTeam &team, SeenLogits &seen) {
  seen.sums = {0.0f, 0.0f};
  team.each_four([&](u32 i, float4 v) {
#pragma unroll 1
    for (u32 e = 0; e < 4; ++e) {
      const bool out = v.x == -infinity();
      seen.missing += out && i + e < team.held;
      v = make_float4(v.y, v.z, v.w, out ? 0.0f : v.x);
    }
    seen.add(v);
  });
}

// How many roundings a term of a warp's sums goes through at most: in its vector 4, one a vector of its lane, and one for each step over the lanes.
__device__ __forceinline__ u32 roundings(const DeviceTeam &team) { return 4 + (team.span / STEP + 1) + 5; }

// Between which logits top_n_sigma cuts: what reaches `high` is kept, what does not reach `low` is not. `high` infinite: nothing is known.
//
// u = 2^-24. k roundings leave a sum of floats off by k u of the sum of its terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, 3.1 and 4.2), the mean square M by k u M, the
// square of the mean, of which |mean| <= sqrt(M), by 2 k u M, hence the variance by 3 k u M. The reference's deviation is that of distances in Q16, each off by half a unit and by the rounding of the
// difference of two logits, D / 256 units; a deviation changes by no more than the root mean square of what its numbers change by, and that of D is at most the deviation and the distance of the
// mean from the largest. The deviation itself is rounded to a unit, half a unit off. The distance is rounded to a float, multiplied and subtracted in the same order as the reference does: all three preserve order.
struct CutBounds {
  float low, high;

  __device__ __forceinline__ CutBounds(const LogitSums<double> &sums, u32 count, u32 roundings, float largest, float factor) : low(infinity()), high(infinity()) {
    constexpr double FAR = 1.0e8;  // of the sum of squares: no distance reaches 32,768, from where on the reference tells none apart
    constexpr double LEAST = 1.0e-20;  // of variances, which are floats
    const double share = 1.0 / static_cast<double>(count), mean = sums.sum * share, square = sums.squares * share, variance = square - mean * mean;
    const double off_variance = square * (static_cast<double>(roundings) * (3.1 / 16777216.0));
    if (!(sums.squares < FAR && off_variance < 0.25 * variance && variance > LEAST)) return;
    const float deviation = __fsqrt_rn(static_cast<float>(variance)), reach = deviation + fabsf(largest - static_cast<float>(mean));
    // In units of Q16. Roots of numbers v and at least .75 v differ by .536 of the numbers' difference, by sqrt(v), at most.
    const float off = 1.02f + reach * (1.01f / 256.0f) + 65536.0f * (__fdividef(static_cast<float>(off_variance), deviation) * 0.56f + deviation * (4.0f / 16777216.0f));
    const double units = 65536.0 * static_cast<double>(deviation);
    const double least = floor(units - off), most = ceil(units + off);
    low = largest - factor * from_q16(static_cast<i64>(most));
    high = largest - factor * from_q16(static_cast<i64>(least > 0.0 ? least : 0.0));
  }
};

// The tokens of a warp that reach a logit: one a lane, in any order, as many as there are.
struct WarpHits {
  static constexpr u32 MOST = 32;
  u32 count;
  u32 id;
  float x;
};
static_assert(WARPS * WarpHits::MOST <= LISTED);

// `largest`: the lane's.
__device__ __forceinline__ WarpHits hits_of(const DeviceTeam &team, float largest, float low) {
  const u32 lane = threadIdx.x % 32;
  WarpHits hits{0, 0, -infinity()};
  u32 lanes = __ballot_sync(~0u, largest >= low);
  if (!lanes) return hits;
  u64 *const listed = team.sh->listed_places + threadIdx.x / 32 * WarpHits::MOST;
  const u32 from = threadIdx.x / 32 * team.span, end = from + team.span < team.held ? from + team.span : team.held;
  // All lanes look at one lane's.
#pragma unroll 1
  for (; lanes && hits.count <= WarpHits::MOST; lanes &= lanes - 1) {
    const u32 of = from + (__ffs(lanes) - 1) * 4 + lane % 4;
#pragma unroll 1
    for (u32 at = of + lane / 4 * STEP; __any_sync(~0u, at < end); at += 8 * STEP) {
      const float x = at < end ? team.slice[at] : -infinity();
      const u32 there = __ballot_sync(~0u, x >= low), to = hits.count + __popc(there & ((1u << lane) - 1));
      if (x >= low && to < WarpHits::MOST) listed[to] = static_cast<u64>(bits_of(x + 0.0f)) << 32 | (team.first + at);
      hits.count += __popc(there);
    }
  }
  __syncwarp();
  if (lane < hits.count) {
    const u64 own = listed[lane];
    hits.id = static_cast<u32>(own);
    hits.x = float_of(static_cast<u32>(own >> 32));
  }
  return hits;
}

// In shared memory: what is known to all warps of a block; beside a row's SumsState.
struct DeviationState {
  float low, high;
  u32 asked;    // the next row has been asked for
  u32 decided;  // the first of two meetings has bounds; the second is of all that is kept
  __device__ __forceinline__ static DeviationState *here() { return reinterpret_cast<DeviationState *>(SumsState::here() + 1); }
};
static_assert(sizeof(SumsState) + sizeof(DeviationState) <= sizeof(Shared::task) && sizeof(SumsState) % alignof(DeviationState) == 0);

// What all warps have seen: the bounds of the cut, and how to weigh. By the first warp of a block.
__device__ __forceinline__ void bound_cut(const DeviceTeam &team, u32 meeting) {
  const auto told = team.await_all(meeting);
  u32 key = 0, missing = 0;
  LogitSums<double> sums{0.0, 0.0};
#pragma unroll
  for (u32 j = 0; j < MAX_BLOCKS * WARPS / 32; ++j) {
    const u32 i = j * 32 + threadIdx.x % 32;
    if (i >= team.blocks * WARPS) continue;
    const u64 seen = told[0][i], of_warp = told[1][i];
    key = static_cast<u32>(seen >> 32) > key ? static_cast<u32>(seen >> 32) : key;
    missing += static_cast<u32>(seen);
    sums.sum += static_cast<double>(float_of(static_cast<u32>(of_warp >> 32)));
    sums.squares += static_cast<double>(float_of(static_cast<u32>(of_warp)));
  }
  key = __reduce_max_sync(~0u, key);
  missing = __reduce_add_sync(~0u, missing);
#pragma unroll
  for (u32 step = 16; step; step /= 2) {
    sums.sum += __shfl_xor_sync(~0u, sums.sum, step);
    sums.squares += __shfl_xor_sync(~0u, sums.squares, step);
  }
  const SamplingProgram &program = team.sh->program;
  const u32 lane = threadIdx.x % 32;
  const bool there = lane + 1 < program.len && lane < NUCLEUS_MAX_OPS;
  const u32 code = there ? program.ops[lane].code : NUCLEUS_OP_NONE;
  const float arg = there ? program.ops[lane].arg : 1.0f;
  const u32 temperatures = __ballot_sync(~0u, code == NUCLEUS_OP_TEMPERATURE), at = __ffs(__ballot_sync(~0u, code == NUCLEUS_OP_TOP_N_SIGMA)) - 1;
  const float factor = __shfl_sync(~0u, arg, at), of_last = __shfl_sync(~0u, arg, temperatures ? 31 - __clz(temperatures) : 0);
  const u32 count = team.sh->batch.row_len - missing;
  const float largest = value_of(key);
  DeviationState &own = *DeviationState::here();
  Weighing w;
  const bool weighs = key && key != UNUSUAL && begin_weighing(largest, temperatures ? of_last : 1.0f, w);
  const CutBounds bounds(sums, count, roundings(team), largest, factor);
  if (lane) return;
  own.decided = weighs && bounds.high < infinity();
  own.low = bounds.low;
  own.high = bounds.high;
  SumsState &state = *SumsState::here();
  state.s = w.s;
  state.max_n = w.max_n;
  state.least = program.ops[at].threshold;
}

// Of a row that is masked and edited. True: its token is told. Else nothing has happened, but that the next row, `next`, if there is one, may have been asked for (`asked`). Not inlined, since it would take
// registers from the sweeps of all other programs.
template <class Room>
static __device__ __noinline__ bool follow_deviation(RowCallIn<Room> call, u32 next) {
  const DeviceTeam team = call.team();
  constexpr u32 UNCERTAIN_AT = 24;
  SumsState &state = *SumsState::here();
  DeviationState &own = *DeviationState::here();
  const u32 lane = threadIdx.x % 32;
  SeenLogits seen = see_logits(team);
  if (__any_sync(~0u, !(fabsf(seen.sums.sum) < infinity()))) see_what_is_there(team, seen);
  const u32 key = seen.largest > -infinity() ? key_of(seen.largest + 0.0f) : 0;
  const bool strange = !(seen.sums.squares < infinity()) || team.unusual();
  LogitSums<float> sums = seen.sums;
#pragma unroll
  for (u32 step = 16; step; step /= 2) {
    sums.sum += __shfl_xor_sync(~0u, sums.sum, step);
    sums.squares += __shfl_xor_sync(~0u, sums.squares, step);
  }
  u64 words[2];
  words[0] = static_cast<u64>(__reduce_max_sync(~0u, strange ? UNUSUAL : key)) << 32 | __reduce_add_sync(~0u, seen.missing);
  words[1] = static_cast<u64>(bits_of(sums.sum)) << 32 | bits_of(sums.squares);
  const u32 first = team.tell_all(words);
  end_reads_for_racecheck();
  if (threadIdx.x < 32) bound_cut(team, first);
  sync_block();
  if (!own.decided) return false;
  const WarpHits hits = hits_of(team, seen.largest, own.low);
  __syncwarp();
  if (const SamplingBatch &batch = team.sh->batch; next != NO_ROW && lane == 0) {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    PartLoad(team, batch.dtype).start(row_of(batch, next));
    if (threadIdx.x == 0) own.asked = true;
  }
  Weighing w;
  w.s = state.s;
  w.max_n = state.max_n;
  const bool uncertain = hits.count > WarpHits::MOST || __any_sync(~0u, lane < hits.count && hits.x < own.high);
  u64 q = 0;
  if (hits.count) {
    q = lane < hits.count ? w.q(hits.x) : 0;
    words[0] = DeviceWarp{}.sum(q);
  } else {
    words[0] = 0;
  }
  words[1] = hits.count | static_cast<u64>(uncertain) << UNCERTAIN_AT;
  const u32 second = team.tell_all(words);
  end_reads_for_racecheck();
  if (threadIdx.x < 32) {
    team.gather_reduced(SUMS_OF_BOTH, second, words);
    const bool decided = words[1] && words[1] < 1u << UNCERTAIN_AT && words[1] >= state.least;
    if (lane == 0) {
      own.decided = decided;
      state.total = words[0];
      state.count = words[1];
    }
    __syncwarp();
    if (decided) find_drawn_part(team, state);
  }
  sync_block();
  if (!own.decided) return false;
  if (state.part != team.block * WARPS + threadIdx.x / 32) return true;
  // This warp has the token: the first id that, with those before it, weighs more than what is left of the target.
  const u64 target = mulhi64(state.uniform, state.total) - state.before;
  u64 upto = 0;
#pragma unroll 1
  for (u32 k = 0; k < hits.count; ++k) {
    const u32 id = __shfl_sync(~0u, hits.id, k);
    const u64 other = __shfl_sync(~0u, q, k);
    upto += id < hits.id ? other : 0;
  }
  if (lane < hits.count && target >= upto && target - upto < q) tell_drawn(call, hits.id, hits.x);
  return true;
}

}  // namespace nucleus
