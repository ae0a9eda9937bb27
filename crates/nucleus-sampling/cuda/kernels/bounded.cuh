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
