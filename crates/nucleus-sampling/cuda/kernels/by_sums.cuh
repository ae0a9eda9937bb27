// Rows held in slices whose every cut follows from sums: all warps of the cluster make the sweeps, the first of each block adds up what all have found, and one thread
// of that goes on in the program. The sweeps are in one function, and what lies between them in shared memory, since registers that functions save go to an L1 of 28 KiB.
#pragma once

#include "part.cuh"
#include "sums_state.cuh"

namespace nucleus {

// Between which logits a weight, or a surprise, reaches a least one: below `low` none does, and from `high` up all do.
struct Crossing {
  float low, high;

  // By weights of 44 bits, or surprises in Q16; to each side more than rounding is off, of small weights an octave.
  __device__ __forceinline__ Crossing(i64 least, bool by_weight, float s, i32 max_n) {
    constexpr i64 SMALL = 1 << 16;
    const float octaves = (by_weight ? __log2f(static_cast<float>(least)) - static_cast<float>(WEIGHT_BITS) : static_cast<float>(least) * (1.0f / 65536.0f)) + static_cast<float>(max_n);
    const float off = (by_weight && least < SMALL ? 1.0f : 1.0f / 1024.0f) + fabsf(octaves) * (1.0f / 262144.0f);
    low = (octaves - off) / s;
    high = (octaves + off) / s;
  }
};
// As largest_below, but weights are looked at only where they may be of either kind.
template <class Team>
__device__ __forceinline__ u64 largest_failing(const Team &team, float highest, float s, i32 max_n, i64 least, bool by_weight) {
  const Crossing crossing(least, by_weight, s, max_n);
  const float high = fminf(highest, crossing.high);
  float most = -infinity();
  team.each_four([&](u32, float4 v) {
    const float largest = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
    if (largest < crossing.low && largest <= highest) {  // most often
      most = fmaxf(most, largest);
      return;
    }
    const float x[4] = {v.x, v.y, v.z, v.w};
    float uncertain = -infinity();
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      most = fmaxf(most, x[e] < crossing.low && x[e] <= high ? x[e] : -infinity());
      uncertain = fmaxf(uncertain, x[e] >= crossing.low && x[e] <= high ? x[e] : -infinity());
    }
    if (!(uncertain > most)) return;
#pragma unroll 1
    for (u32 e = 0; e < 4; ++e) {
      if (v.x > most && v.x <= high) {
        const Exponent own(v.x, s);
        if ((by_weight ? static_cast<i64>(own.weight(max_n)) : own.log2_q16(max_n)) < least) most = v.x;
      }
      v = make_float4(v.y, v.z, v.w, v.x);
    }
  });
  return most > -infinity() ? key_of(most + 0.0f) : 0;
}

// What the tokens that are left weigh, and how many they are.
template <class Team>
__device__ __forceinline__ void mass_and_count(const Team &team, const Bounds &bounds, const Weighing &w, u64 (&own)[2]) {
  const DoubleAddends addends(w);
  if (!addends.serve) {
    each_left(team, bounds, [&](u32, float x) {
      own[0] += w.q(x);
      own[1] += 1;
    });
    return;
  }
  DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
  u32 kept = 0;
  auto add = [&](u32 e, u32, bool left, float x) {
    kept += left;
    addends.add(left ? x : -infinity(), sums[e % 2]);
  };
  if (bounds.top == ~0ull) each_kept(team, bounds, add);
  else each_of_four(team, bounds, add);  // XTC leaves most of a row
  own[0] = addends.taken(sums[0]) + addends.taken(sums[1]);
  own[1] = kept;
}

// The same with the moment of their surprise instead.
template <class Team>
__device__ __forceinline__ void sum_surprise(const Team &team, const Bounds &bounds, const Weighing &w, u64 (&own)[2]) {
  const DoubleMoments moments(w);
  if (!moments.serve) {
    Surprise sums;
    each_left(team, bounds, [&](u32, float x) {
      const Exponent e(x, w.s);
      sums.add(e.weight(w.max_n), e.log2_q16(w.max_n));
    });
    own[0] = sums.total;
    own[1] = static_cast<u64>(sums.moment);
    return;
  }
  DoubleMoments::Sums sums[2] = {moments.none(), moments.none()};
  each_kept(team, bounds, [&](u32 e, u32, bool left, float x) { moments.add(left ? x : -infinity(), sums[e % 2]); });
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    own[0] += moments.mass(sums[i]);
    own[1] += static_cast<u64>(moments.moment(sums[i]));
  }
}

// Distances are whole numbers in the last bits of floats, unless one is so large that the squares may not be added up in one word either.
template <class Team>
__device__ __forceinline__ void sum_distances(const Team &team, const Bounds &bounds, float largest, u64 (&own)[2]) {
  static_assert(SumsState::FAR == 1u << 22, "what ROUNDING serves for");
  u32 sum = 0;
  float most = 0.0f;
  each_kept(team, bounds, [&](u32, u32, bool left, float x) {
    const float distance = left ? largest - x : 0.0f;
    const u32 d = bits_of(fmaf(distance, 65536.0f, ROUNDING)) - ROUNDING_BITS;  // distance_q16
    most = fmaxf(most, distance);
    sum += d;
    own[1] += static_cast<u64>(d) * d;
  });
  own[0] = most < static_cast<float>(SumsState::FAR >> 16) ? sum : 1ull << SumsState::FAR_AT;
}

// Divides the logits that are left and smooths them; what is out becomes -inf. Whether some are not finite.
template <class Team>
__device__ __forceinline__ bool smooth_divided(const Team &team, const Bounds &bounds, float by, const Smoothing &smoothing) {
  bool strange = false;
  team.each_four([&](u32 i, float4 v) {
    const u32 left = left_of_four(bounds, team.first + i, v);
#pragma unroll 1
    for (u32 e = 0; e < 4; ++e) {
      const float divided = (by == 1.0f ? v.x : v.x / by) + 0.0f;
      const bool own = left >> e & 1;
      strange |= own && !(fabsf(divided) < infinity());
      v = make_float4(v.y, v.z, v.w, own ? smoothing(divided) + 0.0f : -infinity());
    }
    *reinterpret_cast<float4 *>(team.slice + i) = v;
  });
  sync_block();  // the draw reads other warps' parts
  return strange;
}

// Tokens, what is strange, and the first logit.
template <class Team>
__device__ __forceinline__ void survey_all(const Team &team, bool strange, u64 (&own)[2]) {
  using P = PartOf<NUCLEUS_F32>;
  const u32 from = threadIdx.x / 32 * team.span, count = from >= team.held ? 0 : team.held - from < team.span ? team.held - from : team.span;
  const SeenPart seen = P::look_in([&](auto f) { team.each_four([&](u32, float4 v) { f(make_uint4(bits_of(v.x), bits_of(v.y), bits_of(v.z), bits_of(v.w))); }); }, count, false);
  strange = __any_sync(~0u, strange || seen.key == UNUSUAL);
  if (threadIdx.x % 32) return;
  own[0] = seen.count | static_cast<u64>(strange) << SumsState::STRANGE_AT;
  own[1] = static_cast<u64>(seen.key) << 32;
}

template <class Team>
__device__ __forceinline__ void last_and_count(const Team &team, const Bounds &bounds, u64 (&own)[2]) {
  each_left(team, bounds, [&](u32 id, float x) {
    const u64 place = ~place_of(x, id);
    own[0] += 1;
    own[1] = place > own[1] ? place : own[1];
  });
}

// The warp's part of the row in which the draw falls, by what all warps told last: their sums of weights. By the first warp.
__device__ __forceinline__ void find_drawn_part(const DeviceTeam &team, SumsState &state) {
  const DeviceTeam::DrawnPart drawn = team.find_part(team.last_told(), [&](u64) { return mulhi64(state.uniform, state.total); });
  if (threadIdx.x != drawn.owner) return;
  state.before = drawn.before;
  state.part = drawn.part;
}

// Finds the token there: one thread of the block that has the part calls done(id, logit).
template <class D>
__device__ __forceinline__ void draw_left(const DeviceTeam &team, const Bounds &bounds, const Weighing &w, const SumsState &state, D done) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u64 target = mulhi64(state.uniform, state.total);
  u64 before = state.before;
  u32 i = state.part % WARPS * team.span;
  const u32 end = i + team.span < team.held ? i + team.span : team.held;
  const DoubleAddends addends(w);
#pragma unroll 1
  for (i += threadIdx.x * 4;; i += THREADS * 4) {
    u64 q[4] = {0, 0, 0, 0};
    float x[4] = {};
    if (i < end) {
      const float4 v = *reinterpret_cast<const float4 *>(team.slice + i);
      x[0] = v.x; x[1] = v.y; x[2] = v.z; x[3] = v.w;
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        if (!bounds.hold(team.first + i + e, x[e])) continue;
        DoubleAddends::Sum sum = addends.none();
        if (addends.serve) addends.add(x[e], sum);
        q[e] = addends.serve ? addends.taken(sum) : w.q(x[e]);
      }
    }
    const u64 mine = (q[0] + q[1]) + (q[2] + q[3]), through = prefix_sum(mine);
    if (lane == 31) team.sh->part[warp][0] = through;
    sync_block();
    u64 upto = before + through - mine, all = before;
#pragma unroll
    for (u32 other = 0; other < WARPS; ++other) {
      const u64 of_warp = team.sh->part[other][0];
      upto += other < warp ? of_warp : 0;
      all += of_warp;
    }
    if (target >= upto && target - upto < mine) {
      u32 e = 0;
#pragma unroll
      for (u32 k = 0; k < 3; ++k)
        if (e == k && target - upto >= q[k]) {
          upto += q[k];
          e = k + 1;
        }
      done(team.first + i + e, (e < 2 ? (e == 0 ? x[0] : x[1]) : (e == 2 ? x[2] : x[3])) + 0.0f);
    }
    if (target < all) return;
    before = all;
    sync_block();
  }
}

// By the thread that has the token.
static __device__ __noinline__ void tell_drawn(RowCall call, u32 id, float x) {
  const SumsState &state = *SumsState::here();
  Weighing w;
  w.s = state.s;
  w.max_n = state.max_n;
  w.sums.total = state.total;
  Outcome outcome;
  outcome.kept = static_cast<u32>(state.count);
  outcome.token = id;
  outcome.logprob = processed_logprob(w.q(x), state.total);
  const SamplingProgram &program = shared_state()->program;
  if (program.ops[program.len - 1].code == NUCLEUS_OP_MIROSTAT_2) outcome.feedback = feedback_of(w.sums.offset_q16() - w.y(x));
  *call.out() = result(outcome, call.raw, call.request());
}

static __device__ __noinline__ void advance_sums(u64 a, u64 b) { SumsState::here()->advance(a, b); }

// Before the first sweep of a row that is described; a barrier of the block must follow.
__device__ __forceinline__ void begin_sums() {
  SumsState &state = *SumsState::here();
  if (threadIdx.x == 0) state.begin();
  if (threadIdx.x == 32) state.uniform = uniform_of(shared_state()->row, shared_state()->config);
}

// By every warp of the cluster, of a row that is masked and edited. MANY: the exact path decides it; STRANGE: from device memory.
template <class Room>
__device__ __forceinline__ Fate follow_sums(const typename Room::Team &team, const RowCall &call) {
  SumsState &state = *SumsState::here();
#pragma unroll 1
  for (;;) {
    u64 own[2] = {0, 0};
    u32 largest = SUMS_OF_BOTH;
    const Bounds bounds(state.top, state.step == SumsState::LAST ? state.lowest : state.bottom);
    Weighing w;
    w.s = state.s;
    w.max_n = state.max_n;
    switch (state.step) {
      case SumsState::SURVEY:
        survey_all(team, team.unusual(), own);
        largest = SUM_AND_LARGEST;
        break;
      case SumsState::SMOOTH:
        survey_all(team, smooth_divided(team, bounds, state.temperature, state.smoothing()), own);
        largest = SUM_AND_LARGEST;
        break;
      case SumsState::MASS: mass_and_count(team, bounds, w, own); break;
      case SumsState::MOMENT: sum_surprise(team, bounds, w, own); break;
      case SumsState::DISTANCES: sum_distances(team, bounds, state.largest(), own); break;
      case SumsState::FAILING:
        own[0] = largest_failing(team, state.largest(), w.s, w.max_n, state.number, state.by_weight);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::LAST:
        last_and_count(team, bounds, own);
        largest = SUM_AND_LARGEST;
        break;
      case SumsState::RANGE:
        range_of_typical(team, bounds, state.typical(), state.shift, state.until, own);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::END:
        own[0] = end_of_typical<Room::LIST>(team, bounds, state.typical(), state.range, state.until);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::RUN:
        run_of_typical(team, bounds, state.typical(), TypicalEnd(state.end, state.range.near), own);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::DRAW:
        if (state.part / WARPS == team.block) draw_left(team, bounds, w, state, [&](u32 id, float x) { tell_drawn(call, id, x); });
        return Fate::DECIDED;
      default: {
        const Fate fate = state.fate;
        sync_block();  // what follows writes where the state was
        return fate;
      }
    }
    const u32 meeting = team.tell_reduced(largest, own);
    end_reads_for_racecheck();
    if (threadIdx.x < 32) {
      team.gather_reduced(largest, meeting, own);
      if (threadIdx.x == 0) advance_sums(own[0], own[1]);
      __syncwarp();
      if (state.step == SumsState::DRAW) find_drawn_part(team, state);
    }
    sync_block();
  }
}

// The same of a row of which nothing has begun.
static __device__ __noinline__ Fate sample_by_sums(RowCall call) {
  begin_sums();
  sync_block();
  return follow_sums<FullRoom>(call.team(), call);
}

}  // namespace nucleus
