// Rows held in slices whose every cut follows from sums: all warps of the cluster make the sweeps, one thread of each block the program. The sweeps are in one function,
// and what lies between them in shared memory, since registers that functions save go to an L1 of 28 KiB.
#pragma once

#include "sums_state.cuh"

namespace nucleus {

// Between which logits a weight, or a surprise, reaches a least one: below `low` none does, and from `high` up all do.
struct Crossing {
  float low, high;

  // By weights of 44 bits, or surprises in Q16; an octave to each side is more than rounding is off.
  __device__ __forceinline__ Crossing(i64 least, bool by_weight, float s, i32 max_n) {
    const float octaves = (by_weight ? __log2f(static_cast<float>(least)) - static_cast<float>(WEIGHT_BITS) : static_cast<float>(least) * (1.0f / 65536.0f)) + static_cast<float>(max_n);
    const float off = 1.0f + fabsf(octaves) * (1.0f / 262144.0f);
    low = (octaves - off) / s;
    high = (octaves + off) / s;
  }
};
// As largest_below, but weights are looked at only where they may be of either kind.
__device__ __forceinline__ u64 largest_failing(const DeviceTeam &team, float highest, float s, i32 max_n, i64 least, bool by_weight) {
  const Crossing crossing(least, by_weight, s, max_n);
  const float high = fminf(highest, crossing.high);
  float most = -infinity();
  team.each_four([&](u32, float4 v) {
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
__device__ __forceinline__ void mass_and_count(const DeviceTeam &team, const Bounds &bounds, const Weighing &w, u64 (&own)[2]) {
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

// As Surprise::add, in words of 32 bits where these hold what a token that weighs something has.
__device__ __forceinline__ void sum_surprise(const DeviceTeam &team, const Bounds &bounds, float s, i32 max_n, u64 (&own)[2]) {
  each_kept(team, bounds, [&](u32, u32, bool left, float x) {
    const Exponent e(left ? x : -infinity(), s);
    const u64 q = e.weight(max_n);
    const i32 y = static_cast<i32>(static_cast<u32>(e.n - max_n) * 65536u + static_cast<u32>(__float2int_rn(e.f * 65536.0f)));
    own[0] += q;
    own[1] += static_cast<u64>((static_cast<i64>(q) * y) >> 16);
  });
}

__device__ __forceinline__ void sum_distances(const DeviceTeam &team, const Bounds &bounds, float largest, u64 (&own)[2]) {
  u32 sum = 0, most = 0;
  each_kept(team, bounds, [&](u32, u32, bool left, float x) {
    const u32 d = left ? __float2uint_rn(fminf(largest - x, 32768.0f) * 65536.0f) : 0;  // distance_q16
    most = d > most ? d : most;
    sum += d;
    own[1] += static_cast<u64>(d) * d;
  });
  own[0] = most < SumsState::FAR ? sum : 1ull << SumsState::FAR_AT;
}

// Divides the logits that are left and smooths them; what is out becomes -inf. Whether some are not finite.
__device__ __forceinline__ bool smooth_divided(const DeviceTeam &team, const Bounds &bounds, float by, const Smoothing &smoothing) {
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
  __syncthreads();  // the draw reads other warps' parts
  return strange;
}

// Tokens, what is strange, and the first place.
__device__ __forceinline__ void survey_all(const DeviceTeam &team, bool strange, u64 (&own)[2]) {
  const Survey found = team.survey();
  own[0] = found.count | static_cast<u64>(found.nan || found.infinite || strange) << SumsState::STRANGE_AT;
  own[1] = found.best;
}

__device__ __forceinline__ void last_and_count(const DeviceTeam &team, const Bounds &bounds, u64 (&own)[2]) {
  each_left(team, bounds, [&](u32 id, float x) {
    const u64 place = ~place_of(x, id);
    own[0] += 1;
    own[1] = place > own[1] ? place : own[1];
  });
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
  if (program.ops[program.len - 1].code == NUCLEUS_OP_MIROSTAT_2) {
    const i64 surprise = w.sums.offset_q16() - w.y(x);
    outcome.feedback = static_cast<i32>(surprise < 0 ? 0 : surprise > 0x7FFFFFFF ? 0x7FFFFFFF : surprise);
  }
  *call.out() = result(outcome, call.raw, call.request());
}

static __device__ __noinline__ void advance_sums(u64 a, u64 b) { SumsState::here()->advance(a, b); }

// By every warp of the cluster, of a row that is masked and edited. MANY: the exact path decides it; STRANGE: from device memory.
static __device__ __noinline__ Fate sample_by_sums(RowCall call) {
  const DeviceTeam team = call.team();
  SumsState &state = *SumsState::here();
  if (threadIdx.x == 0) state.begin();
  __syncthreads();
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
      case SumsState::MOMENT: sum_surprise(team, bounds, w.s, w.max_n, own); break;
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
        own[0] = end_of_typical(team, bounds, state.typical(), state.range, state.until);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::RUN:
        run_of_typical(team, bounds, state.typical(), TypicalEnd(state.end, state.range.near), own);
        largest = LARGEST_OF_BOTH;
        break;
      case SumsState::DRAW: {
        const u64 target = mulhi64(uniform_of(shared_state()->row, shared_state()->config), state.total);
        team.draw(team.last_told(), target, [&](u32 id, float x) { return bounds.hold(id, x) ? w.q(x) : 0; }, [&](u32 id, float x) { tell_drawn(call, id, x); });
        return Fate::DECIDED;
      }
      default: {
        const Fate fate = state.fate;
        __syncthreads();  // what follows writes where the state was
        return fate;
      }
    }
    team.reduce_by(largest, own);
#ifdef NUCLEUS_RACECHECK
    __syncthreads();  // the tool does not see that what a warp has told depends on what it had read
#endif
    if (threadIdx.x == 0) advance_sums(own[0], own[1]);
    __syncthreads();
  }
}

}  // namespace nucleus
