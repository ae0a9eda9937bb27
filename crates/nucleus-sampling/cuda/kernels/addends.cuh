// Sums of weights over many tokens, in the fewest instructions: the integers of Exponent::weight, in two 32-bit sums.
//
// A weight is the 24-bit float y = 2^44 2^(n - max) P(f), rounded down. In rounding towards zero, y 2^-23 + 2^23 has floor(y 2^-23) in its low bits; what is
// left of y is found exactly, and rounded down in the same way. The bits of 2^23 are taken off the sums at the end. Tokens that weigh nothing are raised to
// a logit that weighs nothing.
#pragma once

#include "row.cuh"

namespace nucleus {

struct Addends {
  // A 32-bit sum holds 512 of them: more than any thread has of a slice.
  float s, least, shift, down, up, part;
  bool serve;  // false: the scale or the largest exponent is out of the range in which this is exact

  __device__ __forceinline__ explicit Addends(const Weighing &w) {
    constexpr i32 NOTHING = 62, FAR = 1 << 21;
    // Shifted by an even number, ties round as without it.
    const i32 odd = (WEIGHT_BITS - w.max_n) & 1;
    s = w.s;
    shift = ROUNDING + static_cast<float>(WEIGHT_BITS - w.max_n + odd);
    least = static_cast<float>(w.max_n - NOTHING) / s;
    down = odd ? 1.0f / 16777216.0f : 1.0f / 8388608.0f;
    up = odd ? -16777216.0f : -8388608.0f;
    part = odd ? 0.5f : 1.0f;
    serve = w.max_n < FAR && w.max_n > -FAR && fabsf(least) < 1e37f;
  }
  __device__ __forceinline__ void add(float x, u32 &high, u32 &low) const {
    x = fmaxf(x, least);
    const float shifted = x * s + shift, f = fmaf(x, s, -(shifted - shift));
    const float y = float_of(bits_of(exp2_fraction(f)) + (bits_of(shifted) << 23));
    const float upper = __fmaf_rz(y, down, 8388608.0f), rest = fmaf(upper - 8388608.0f, up, y);
    high += bits_of(upper);
    low += bits_of(__fmaf_rz(rest, part, 8388608.0f));
  }
  __device__ __forceinline__ static u64 sum(u32 high, u32 low, u32 count) {
    constexpr u32 NONE = 0x4B000000u;  // 2^23
    return (static_cast<u64>(high - count * NONE) << 23) + (low - count * NONE);
  }
};

}  // namespace nucleus
