// What the kernels of bounded requests share: their limits, the part of the history that edits look at, keys and largest logits.
#pragma once

#include "call.cuh"

namespace nucleus {

constexpr u32 BOUND_K = 128;      // the largest k
constexpr u32 EDITS_MOST = 1536;  // ids that a request may edit, its history's repetitions counted

// The tokens at the end of a history of `len` that operations by id look at. dry, repeat: the windows of DRY and of penalties.
__device__ __forceinline__ u32 editable_window(const SlicePlan &plan, u32 dry, u32 repeat, u32 len) {
  u32 window = plan.passages ? dry : 0;
  if (plan.occurrences && repeat > window) window = repeat;
  return plan.ngrams || window > len ? len : window;
}

// Whether few tokens decide an aligned row, as far as its description tells. `ids`: how many it may edit.
__device__ __forceinline__ bool is_bounded(const SlicePlan &plan, u64 ids, u32 flags) {
  return plan.sliced && (plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE) && plan.k <= BOUND_K && ids <= EDITS_MOST &&
         (flags & (NUCLEUS_ROW_ALLOWED | NUCLEUS_ROW_FEW | NUCLEUS_ROW_PROCESSED | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_PROCESSED;
}

// The key of a logit, 0 for -inf.
__device__ __forceinline__ u32 key_or_none(float x) { return x > -infinity() ? key_of(x + 0.0f) : 0; }
__device__ __forceinline__ float value_or_none(u32 key) { return key ? value_of(key) : -infinity(); }

// Whether a bounded row whose first tokens are too many for a list is left with its largest logit (MANY_ABOVE): min_p alone keeps them.
__device__ __forceinline__ bool keeps_many_above(const SlicePlan &plan, const SamplingProgram &program) {
  return plan.kind == SlicePlan::ABOVE && !plan.edits && then_draws(plan, program);
}
// Leaves it so, by one thread. `largest`: a key.
__device__ __forceinline__ void leave_many_above(SampledToken *out, u32 largest) {
  out->logprob = value_of(largest);
  out->status = MANY_ABOVE;
}

constexpr u32 SAMPLES = 32;  // of the keys that a bound is taken from

// Two instructions, where the compiler would select.
__device__ __forceinline__ void count_if_reached(u32 &count, u32 key, u32 least) {
  asm("{\n.reg .pred p;\nsetp.ge.u32 p, %1, %2;\n@p add.u32 %0, %0, 1;\n}" : "+r"(count) : "r"(key), "r"(least));
}

// What bounds the first k of some keys from below, and the largest key, where it is wanted or tells the bound; 0: none.
struct BoundOfKeys {
  u32 bound, most;
};
// The largest of 32 of the keys that k reach; where all of these are among the first k, the least key. 0: there are fewer than k. `keys`: COUNT, 0 where there is none;
// `reach`: what the warps tell each other, a word a sample. By a team of WARPS, of which this is `warp`, that meets within.
template <u32 COUNT, u32 WARPS, class Meet>
__device__ __forceinline__ BoundOfKeys bound_of_keys(const u32 *keys, u32 *reach, u32 k, bool wants_most, u32 warp, Meet meet) {
  constexpr u32 APART = COUNT / SAMPLES, OWN = SAMPLES / WARPS, EACH = COUNT / 32;
  static_assert(COUNT % 64 == 0 && COUNT % SAMPLES == 0 && OWN % 2 == 0 && COUNT < 1 << 16);
  const u32 lane = threadIdx.x % 32;
  u32 own[EACH];
#pragma unroll
  for (u32 i = 0; i < EACH / 2; ++i) {
    const uint2 pair = *reinterpret_cast<const uint2 *>(&keys[64 * i + 2 * lane]);
    own[2 * i] = pair.x;
    own[2 * i + 1] = pair.y;
  }
  u32 most = 0;
  if (k == 1 || wants_most) {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) most = own[i] > most ? own[i] : most;
    most = __reduce_max_sync(~0u, most);
  }
  if (k == 1) return {most, most};
  const u32 sample = keys[lane * APART];
#pragma unroll
  for (u32 pair = 0; pair < OWN; pair += 2) {
    // How many keys reach each of some of them: the largest that enough reach is the bound.
    const u32 first = warp * OWN + pair, one = keys[first * APART], other = keys[(first + 1) * APART];
    u32 reach_one[2] = {0, 0}, reach_other[2] = {0, 0};
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      count_if_reached(reach_one[i % 2], own[i], one);
      count_if_reached(reach_other[i % 2], own[i], other);
    }
    const u32 both = __reduce_add_sync(~0u, (reach_one[0] + reach_one[1]) | (reach_other[0] + reach_other[1]) << 16);
    if (lane == 0) *reinterpret_cast<uint2 *>(&reach[first]) = make_uint2(both & 0xFFFFu, both >> 16);
  }
  meet();
  const u32 found = __reduce_max_sync(~0u, reach[lane] >= k ? sample : 0);
  if (found) return {found, most};
  // All of the samples are among the first k: then all keys that there are.
  u32 filled = 0, lowest = ~0u;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    filled += own[i] != 0;
    lowest = own[i] && own[i] < lowest ? own[i] : lowest;
  }
  filled = __reduce_add_sync(~0u, filled);
  lowest = __reduce_min_sync(~0u, lowest);
  return {filled < k ? 0 : lowest, most};
}

// The largest logits of some places: one, or two of 16 bits at a time, for widening changes neither order nor NaN.
template <u32 DTYPE>
struct Peak {
  static constexpr u32 NONE = DTYPE == NUCLEUS_F32 ? 0xFF800000u : DTYPE == NUCLEUS_BF16 ? 0xFF80FF80u : 0xFC00FC00u;  // -inf in every place
  u32 bits;

  __device__ __forceinline__ Peak operator|(Peak other) const {
    Peak m;
    if (DTYPE == NUCLEUS_F32) m.bits = bits_of(max_nan(float_of(bits), float_of(other.bits)));
    else if (DTYPE == NUCLEUS_BF16) asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(m.bits) : "r"(bits), "r"(other.bits));
    else asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(m.bits) : "r"(bits), "r"(other.bits));
    return m;
  }
  __device__ __forceinline__ static Peak of(uint4 v) { return (Peak{v.x} | Peak{v.y}) | (Peak{v.z} | Peak{v.w}); }
  // NaN if one is.
  __device__ __forceinline__ float value() const {
    const Lane<DTYPE> x(make_uint4(bits, bits, bits, bits));
    return DTYPE == NUCLEUS_F32 ? x.x[0] : max_nan(x.x[0], x.x[1]);
  }
};

// A number in a row's own type, twice where that has 16 bits, so that words of logits are compared as they are.
template <u32 DTYPE>
struct Limit {
  u32 bits;

  // The least one that is not below x.
  __device__ __forceinline__ static Limit above(float x) {
    if (DTYPE == NUCLEUS_F32) return Limit{bits_of(x)};
    u32 half;
    if (DTYPE == NUCLEUS_BF16) half = (bits_of(x) + (x < 0 ? 0 : 0xFFFFu)) >> 16;
    else asm("{\n.reg .b16 h;\ncvt.rp.f16.f32 h, %1;\ncvt.u32.u16 %0, h;\n}" : "=r"(half) : "f"(x));
    return Limit{half * 0x10001u};
  }
  // All bits of each logit of a word that reaches it.
  __device__ __forceinline__ u32 reached_by(u32 word) const {
    u32 mask;
    if (DTYPE == NUCLEUS_F32) mask = float_of(word) >= float_of(bits) ? ~0u : 0;
    else if (DTYPE == NUCLEUS_BF16) asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(mask) : "r"(word), "r"(bits));
    else asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(word), "r"(bits));
    return mask;
  }
  // The logits of 16 bytes that reach it, as bits.
  __device__ __forceinline__ u32 reached_by(uint4 v) const {
    if (DTYPE == NUCLEUS_F32) return (reached_by(v.x) & 1) | (reached_by(v.y) & 2) | (reached_by(v.z) & 4) | (reached_by(v.w) & 8);
    const u32 halves = (reached_by(v.x) & 0x10001u) | (reached_by(v.y) & 0x40004u) | (reached_by(v.z) & 0x100010u) | (reached_by(v.w) & 0x400040u);
    return (halves & 0x55u) | (halves >> 15 & 0xAAu);
  }
};

}  // namespace nucleus
