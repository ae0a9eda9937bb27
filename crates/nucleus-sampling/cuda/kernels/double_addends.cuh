// Sums of weights over many tokens where the device adds doubles fast: the integers of Exponent::weight.
//
// A weight is the 24-bit float y = 2^44 2^(n - max) P(f), rounded down. y is added to 2^52 in rounding towards zero: the sum's last digit is 1, so that what
// the rounding drops is what rounding y down drops. On other devices it is the two 32-bit sums of addends.cuh.
#pragma once

#include "addends.cuh"

namespace nucleus {

#if __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000
#define NUCLEUS_FAST_DOUBLES 1
#else
#define NUCLEUS_FAST_DOUBLES 0
#endif

#if NUCLEUS_FAST_DOUBLES
struct DoubleAddends {
  using Sum = double;  // of 128 tokens at most
  static constexpr i32 NOTHING = 62;  // below the largest exponent: tokens that weigh nothing are raised to a logit that does
  static constexpr i32 LOWEST = 160;  // exponents need not be raised unless they are further below: a float holds 2^(44 - 160)
  float s, least, shift;
  double zero;  // of the sums: 2^52; 2^53 where y is doubled
  bool serve;   // false: the scale or the largest exponent is out of the range in which this is exact

  __device__ __forceinline__ explicit DoubleAddends(const Weighing &w) {
    constexpr i32 FAR = 1 << 21;
    // Shifted by an even number, ties round as without it.
    const i32 odd = (WEIGHT_BITS - w.max_n) & 1;
    s = w.s;
    shift = ROUNDING + static_cast<float>(WEIGHT_BITS - w.max_n + odd);
    least = __fdividef(static_cast<float>(w.max_n - NOTHING), s);  // an exponent more or less does not matter
    serve = w.max_n < FAR && w.max_n > -FAR && s > 1e-30f;
    zero = odd ? 9007199254740992.0 : 4503599627370496.0;
  }
  // A logit that weighs nothing where the largest is at least this; most often it need not be raised either. -inf if there is none such.
  __device__ __forceinline__ static float nothing_beside(float x, float s) {
    const float far = x - __fdividef(static_cast<float>(NOTHING + 2), s);
    return far > -infinity() ? far : -infinity();
  }
  // Whether tokens from this logit on need not be raised.
  __device__ __forceinline__ bool reach(float lowest) const { return lowest * s >= (shift - ROUNDING) * -1.0f + static_cast<float>(WEIGHT_BITS - LOWEST); }
  __device__ __forceinline__ Sum none() const { return zero; }
  __device__ __forceinline__ u64 taken(Sum sum) const { return static_cast<u64>(__double_as_longlong(sum) - __double_as_longlong(zero)); }
  // RAISE: the token may be far below the largest, or out.
  template <bool RAISE = true>
  __device__ __forceinline__ void add(float x, Sum &sum) const {
    if (RAISE) x = fmaxf(x, least);
    const float shifted = x * s + shift, f = fmaf(x, s, -(shifted - shift));
    sum = __dadd_rz(sum, static_cast<double>(float_of(bits_of(exp2_fraction(f)) + (bits_of(shifted) << 23))));
  }
};
#else
struct DoubleAddends {
  struct Sum {
    u32 high, low, count;
  };
  Addends words;
  bool serve;

  __device__ __forceinline__ explicit DoubleAddends(const Weighing &w) : words(w), serve(words.serve) {}
  __device__ __forceinline__ static float nothing_beside(float, float) { return -infinity(); }
  __device__ __forceinline__ bool reach(float) const { return false; }
  __device__ __forceinline__ Sum none() const { return Sum{0, 0, 0}; }
  __device__ __forceinline__ u64 taken(Sum sum) const { return Addends::sum(sum.high, sum.low, sum.count); }
  template <bool RAISE = true>
  __device__ __forceinline__ void add(float x, Sum &sum) const {
    words.add(x, sum.high, sum.low);
    sum.count += 1;
  }
};
#endif

}  // namespace nucleus
