// More programs on a short sorted list, without a general machine: truncations but tail_free and temperatures, in any order, then the draw. By one warp, of which
// lane i has the tokens 2 i and 2 i + 1 of the order. What is left is a run of the order, and not always its beginning: typical and XTC take first tokens away. list.cuh
// says what each operation does.
#pragma once

#include "chain.cuh"

namespace nucleus {

// Whether a program is one of these; by a warp whose lane i has the code of operation i of `len`. `first`: the operation that cuts.
__device__ __forceinline__ bool is_wide(u32 code, u32 len, u32 first, u32 flags) {
  constexpr u32 KNOWN = 1u << NUCLEUS_OP_NONE | 1u << NUCLEUS_OP_TEMPERATURE | 1u << NUCLEUS_OP_DYNAMIC_TEMPERATURE | 1u << NUCLEUS_OP_TOP_N_SIGMA | 1u << NUCLEUS_OP_TOP_K |
                        1u << NUCLEUS_OP_TYPICAL_P | 1u << NUCLEUS_OP_TOP_P | 1u << NUCLEUS_OP_MIN_P | 1u << NUCLEUS_OP_EPSILON | 1u << NUCLEUS_OP_ETA | 1u << NUCLEUS_OP_TOP_A |
                        1u << NUCLEUS_OP_XTC;
  const u32 lane = threadIdx.x % 32;
  if (lane < first || lane >= len) code = NUCLEUS_OP_NONE;
  const bool known = KNOWN >> code & 1 || (code == NUCLEUS_OP_DRAW && lane == len - 1);
  return __all_sync(~0u, known) && !(flags & NUCLEUS_KEEP_TIES);
}

// moment / total in Q16, rounded down, as mean_q16_of, of tokens whose moment is below 2^54 and whose mean is below 2^23: the quotient in binary32 is off by few, and put right.
__device__ __forceinline__ i32 mean_of_few(i64 moment, u64 total) {
  i32 mean = static_cast<i32>(__fdividef(static_cast<float>(moment) * 65536.0f, static_cast<float>(total)));
  i64 rest = static_cast<i64>((static_cast<u64>(moment) << 16) - total * static_cast<u64>(static_cast<i64>(mean)));
  UNROLL_NOT
  for (; rest < 0; rest += total) mean -= 1;
  UNROLL_NOT
  for (; rest >= static_cast<i64>(total); rest -= total) mean += 1;
  return mean;
}

// As deviation_q16, of at most 64 distances below 2^24: twice the deviation in binary32 is off by few, and put right.
__device__ __forceinline__ u32 deviation_of_few(u32 count, u32 sum, u64 squares) {
  const u64 spread = 4 * (count * squares - static_cast<u64>(sum) * sum);  // of twice the deviation times the count, the square
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(static_cast<float>(spread)));
  u32 twice = static_cast<u32>(__fdividef(root, static_cast<float>(count)));
  const auto square = [count](u32 v) { return static_cast<u64>(v * count) * (v * count); };
  UNROLL_NOT
  while (square(twice) > spread) twice -= 1;
  UNROLL_NOT
  while (square(twice + 1) <= spread) twice += 1;
  return (twice + 1) >> 1;
}

struct WideChain {
  const SamplingConfig &config;
  const u32 at;        // the first of the lane's tokens
  const u32 min_keep;  // at least 1
  const float x[2];
  u64 q[2], through[2];  // weights, and the mass up to and with each token; what lies before the run weighs nothing
  float temperature, s;  // and its scale
  i32 most;              // the exponent of the largest logit that the weights were taken by
  u32 low = 0, high;     // the run that is left
  u64 total = 0;         // what it weighs, as far as `weigh` has seen it
  bool settled = true;   // the weights are those of the temperature and of the run's first token

  // The first `count` tokens of an order, and what they weigh by the scale of the temperature, whose largest logit can be scaled.
  __device__ __forceinline__ WideChain(const SamplingConfig &c, const float (&logits)[2], const u64 (&weights)[2], float t, float scale_of_it, float largest, u32 count)
      : config(c), at(threadIdx.x % 32 * 2), min_keep(max(c.min_keep, 1u)), x{logits[0], logits[1]}, q{weights[0], weights[1]}, temperature(t), s(scale_of_it), most(Exponent(largest, scale_of_it).n), high(count) {
    add_up();
  }

  __device__ __forceinline__ bool inside(u32 i) const { return at + i >= low && at + i < high; }
  // A value of one of the tokens: to every lane of the one it asks for.
  template <class T>
  __device__ __forceinline__ static T of_token(const T (&values)[2], u32 token) {
    const T even = __shfl_sync(~0u, values[0], token / 2), odd = __shfl_sync(~0u, values[1], token / 2);
    return token % 2 ? odd : even;
  }
  __device__ __forceinline__ void add_up() {
    through[1] = prefix_sum_by_shuffles(q[0] + q[1]);
    through[0] = through[1] - q[1];
  }
  // The first token of the run that fails; `high`: none does.
  __device__ __forceinline__ u32 leading(bool even, bool odd) const {
    const u32 fails = __ballot_sync(~0u, inside(0) && !even), fails_odd = __ballot_sync(~0u, inside(1) && !odd);
    return min(min(2 * (__ffs(fails) - 1u), 2 * __ffs(fails_odd) - 1u), high);
  }
  // The run ends there, but keeps so many.
  __device__ __forceinline__ void keep(u32 end, u64 least) {
    const u64 floor = low + least;
    if (end < floor) end = floor < high ? static_cast<u32>(floor) : high;
    high = end;
  }

  // Takes what the run weighs; false: its largest logit cannot be scaled.
  __device__ __forceinline__ bool weigh() {
    if (!settled) {
      const float largest = of_token(x, low);
      if (!(fabsf(largest * s) < SCALED_LIMIT)) return false;
      most = Exponent(largest, s).n;
#pragma unroll
      for (u32 i = 0; i < 2; ++i) q[i] = inside(i) ? Exponent(x[i], s).weight(most) : 0;
      add_up();
      settled = true;
    }
    total = of_token(through, high - 1);
    return true;
  }
  // The logarithm of a token's share in Q16. Whatever weighs nothing is below all that weighs something, further than that is from any mean.
  __device__ __forceinline__ i32 log2_q16(u32 i) const {
    constexpr i32 LEAST = -200;
    const Exponent e(x[i], s);
    const i32 n = e.n - most;
    return e.weighs && n >= LEAST ? n * static_cast<i32>(ONE_Q16) + static_cast<i32>(rintf(e.f * 65536.0f)) : (LEAST - 1) * static_cast<i32>(ONE_Q16);
  }
  __device__ __forceinline__ Surprise surprise(const i32 (&y)[2]) const {
    constexpr u64 LESS = 1ull << 46;  // than a lane's: q |y| is below 2^45 for a token, since the weight halves where y falls by one
    u64 moment = 0;
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
      if (inside(i)) moment += static_cast<u64>((static_cast<i64>(q[i]) * y[i]) >> 16);
    Surprise sums;
    sums.total = total;
    sums.moment = static_cast<i64>(DeviceWarp{}.sum_of_48_bits(moment + LESS) - 32 * LESS);
    return sums;
  }
  __device__ __forceinline__ Surprise surprise() const {
    const i32 y[2] = {log2_q16(0), log2_q16(1)};
    return surprise(y);
  }

  // The logit that top_n_sigma keeps from.
  __device__ __forceinline__ float sigma_threshold(float sigmas, float largest) const {
    u32 d[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) d[i] = inside(i) ? static_cast<u32>(distance_q16(x[i], largest)) : 0;
    const u32 count = high - low;
    const DeviceWarp warp;
    if (!__any_sync(~0u, (d[0] | d[1]) >> 24)) [[likely]] {
      const u64 squares = warp.sum_of_48_bits(static_cast<u64>(d[0]) * d[0] + static_cast<u64>(d[1]) * d[1]);
      return largest - sigmas * from_q16(deviation_of_few(count, __reduce_add_sync(~0u, d[0] + d[1]), squares));
    }
    Distances own;
#pragma unroll
    for (u32 i = 0; i < 2; ++i)
      if (inside(i)) own.add(x[i], largest);
    own.sum[0] = warp.sum_of_48_bits(own.sum[0]);
    own.halves[0] = warp.sum_of_48_bits(own.halves[0]);
    own.halves[1] = warp.sum_of_48_bits(own.halves[1]);
    return largest - sigmas * from_q16(deviation_q16(count, own.sum[0], own.squares()));
  }

  // How many tokens of the order have more than that.
  __device__ __forceinline__ static u32 count_above(const i32 (&y)[2], i32 than) {
    u32 lanes = 0;  // whose first token has
#pragma unroll
    for (u32 step = 16; step; step /= 2) lanes += __shfl_sync(~0u, y[0], lanes + step - 1) > than ? step : 0;
    lanes += __shfl_sync(~0u, y[0], lanes) > than ? 1 : 0;
    const bool second = __shfl_sync(~0u, y[1], lanes - 1 & 31) > than;
    return lanes ? 2 * lanes - 1 + second : 0;
  }
  // The run grows from the mean on, by the nearer of its neighbours, while it does not suffice: a token is in it if those that are nearer are too few, or do not. False: rounding has put
  // logarithms out of order.
  __device__ __forceinline__ bool typical(u64 share) {
    constexpr i32 BEFORE = 1 << 30, BEHIND = -BEFORE;
    i32 y[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) y[i] = log2_q16(i);
    const i32 mean = mean_of_few(surprise(y).moment, total);
#pragma unroll
    for (u32 i = 0; i < 2; ++i) y[i] = at + i < low ? BEFORE : at + i >= high ? BEHIND : y[i];
    const i32 next = __shfl_down_sync(~0u, y[0], 1);
    if (!__all_sync(~0u, y[0] >= y[1] && (y[1] >= next || threadIdx.x % 32 == 31))) return false;
    const u32 middle = leading(y[0] > mean, y[1] > mean);
    // The mass from which on a run suffices.
    const u64 least = config.flags & NUCLEUS_TYPICAL_STRICT ? (share * static_cast<u32>(total) >> 32) + share * (total >> 32) + 1 : least_reaching(total, share);
    bool passes[2];
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 token = at + i, end = count_above(y, inside(i) ? 2 * mean - y[i] : 0);  // where what is nearer ends, on the other side of the mean
      const u64 until = of_token(through, end - 1 & 2 * 32 - 1), beyond = end ? until : 0;
      const bool above = token < middle;
      const u32 nearer = above ? end - token - 1 : token - end;
      const u64 mass = above ? beyond - through[i] : through[i] - q[i] - beyond;
      passes[i] = inside(i) && (nearer < min_keep || mass < least);
    }
    const u32 even = __ballot_sync(~0u, passes[0]), odd = __ballot_sync(~0u, passes[1]);
    const u32 first = min(2 * (__ffs(even) - 1u), 2 * __ffs(odd) - 1u);
    high = first + __popc(even) + __popc(odd);
    if (first != low) settled = false;
    low = first;
    return true;
  }
  // The operations that cut by the logit have one piece of code, and so have those that cut by a token's probability: what one has fetched the next one finds.
  __device__ __forceinline__ void cut_by_logit(const SamplingOp &op) {
    const bool by_sigma = op.code == NUCLEUS_OP_TOP_N_SIGMA;
    const float largest = of_token(x, low), threshold = by_sigma ? sigma_threshold(op.arg, largest) : fmaf(temperature, op.arg, largest);
    keep(leading(x[0] >= threshold, x[1] >= threshold), by_sigma ? op.threshold : min_keep);
  }
  // `excludes`: XTC takes tokens away: of those that reach the threshold the last one is left, unless too few would be.
  __device__ __forceinline__ void cut_by_probability(const SamplingOp &op, bool excludes) {
    u64 least = op.threshold;
    if (op.code == NUCLEUS_OP_ETA) least = eta_threshold(least, surprise());
    if (op.code == NUCLEUS_OP_TOP_A) least = top_a_threshold(least, of_token(q, low), total);
    if (op.code == NUCLEUS_OP_XTC && !excludes) return;
    least = least_reaching(total, least);
    const u32 end = leading(q[0] >= least, q[1] >= least);
    if (op.code != NUCLEUS_OP_XTC) return keep(end, min_keep);
    if (end <= low + 1 || high - end + 1 < min_keep) return;
    low = end - 1;
    settled = false;
  }
  __device__ __forceinline__ void cut_by_mass(u64 share) {  // a token passes while what precedes it does not suffice
    const u64 least = least_reaching(total, share);
    keep(leading(through[0] - q[0] < least, through[0] < least), min_keep);
  }
  __device__ __forceinline__ void change_temperature(const SamplingOp &op) {
    temperature = op.code == NUCLEUS_OP_TEMPERATURE ? op.arg : dynamic_temperature(high - low, surprise(), config.temperature, config.dynatemp_range, config.dynatemp_exponent);
    s = scale(temperature);
    settled = false;
  }

  // Runs the operations from `first` to the draw; false: a list machine has to. `excludes`: XTC takes tokens away.
  __device__ __forceinline__ bool run(const SamplingProgram &program, u32 first, bool excludes) {
    constexpr u32 WEIGHING = 1u << NUCLEUS_OP_DYNAMIC_TEMPERATURE | 1u << NUCLEUS_OP_TYPICAL_P | 1u << NUCLEUS_OP_TOP_P | 1u << NUCLEUS_OP_EPSILON | 1u << NUCLEUS_OP_ETA |
                             1u << NUCLEUS_OP_TOP_A | 1u << NUCLEUS_OP_XTC;
    const u32 last = program.len - 1;
    UNROLL_NOT
    for (u32 i = first; low < high; ++i) {
      const SamplingOp op = program.ops[i];
      if ((WEIGHING >> op.code & 1 || i == last) && !weigh()) return false;
      if (i == last) return true;
      switch (op.code) {
        case NUCLEUS_OP_TOP_N_SIGMA: case NUCLEUS_OP_MIN_P: cut_by_logit(op); break;
        case NUCLEUS_OP_EPSILON: case NUCLEUS_OP_ETA: case NUCLEUS_OP_TOP_A: case NUCLEUS_OP_XTC: cut_by_probability(op, excludes); break;
        case NUCLEUS_OP_TOP_P: cut_by_mass(op.threshold); break;
        case NUCLEUS_OP_TYPICAL_P:
          if (!typical(op.threshold)) return false;
          break;
        case NUCLEUS_OP_TOP_K:
          if (op.threshold < high - low) high = low + static_cast<u32>(op.threshold);
          break;
        case NUCLEUS_OP_TEMPERATURE: case NUCLEUS_OP_DYNAMIC_TEMPERATURE: change_temperature(op); break;
        default: break;
      }
    }
    return false;
  }
};

}  // namespace nucleus
