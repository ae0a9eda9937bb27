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
  // RAISE: the token may be far below the largest, or out. FUSE: of its product with the scale no tie comes by rounding (PartOf::fuses).
  template <bool RAISE = true, bool FUSE = false>
  __device__ __forceinline__ void add(float x, Sum &sum) const {
    if (RAISE) x = fmaxf(x, least);
    const float shifted = FUSE ? fmaf(x, s, shift) : x * s + shift, f = fmaf(x, s, -(shifted - shift));
    sum = __dadd_rz(sum, static_cast<double>(float_of(bits_of(exp2_fraction(f)) + (bits_of(shifted) << 23))));
  }
  // A logit that weighs nothing, as those below it do; from there on none need be raised.
  __device__ __forceinline__ float nothing() const { return least; }
  // Four that need not be raised, step by step at once, as the compiler would not have it: where few warps share a scheduler, one after another would wait for itself.
  __device__ __forceinline__ void add_four(const float (&x)[4], Sum (&sums)[2]) const {
    asm("{\n"
        ".reg .b32 t<4>, f<4>, p<4>;\n"
        ".reg .f64 y<4>;\n"
        "mul.rn.f32 t0, %2, %6; mul.rn.f32 t1, %3, %6; mul.rn.f32 t2, %4, %6; mul.rn.f32 t3, %5, %6;\n"
        "add.rn.f32 t0, t0, %7; add.rn.f32 t1, t1, %7; add.rn.f32 t2, t2, %7; add.rn.f32 t3, t3, %7;\n"
        "sub.rn.f32 f0, %7, t0; sub.rn.f32 f1, %7, t1; sub.rn.f32 f2, %7, t2; sub.rn.f32 f3, %7, t3;\n"
        "fma.rn.f32 f0, %2, %6, f0; fma.rn.f32 f1, %3, %6, f1; fma.rn.f32 f2, %4, %6, f2; fma.rn.f32 f3, %5, %6, f3;\n"
        "fma.rn.f32 p0, f0, 0f392385A5, 0f3AAFB93B; fma.rn.f32 p1, f1, 0f392385A5, 0f3AAFB93B; fma.rn.f32 p2, f2, 0f392385A5, 0f3AAFB93B; fma.rn.f32 p3, f3, 0f392385A5, 0f3AAFB93B;\n"
        "fma.rn.f32 p0, p0, f0, 0f3C1D9387; fma.rn.f32 p1, p1, f1, 0f3C1D9387; fma.rn.f32 p2, p2, f2, 0f3C1D9387; fma.rn.f32 p3, p3, f3, 0f3C1D9387;\n"
        "fma.rn.f32 p0, p0, f0, 0f3D635721; fma.rn.f32 p1, p1, f1, 0f3D635721; fma.rn.f32 p2, p2, f2, 0f3D635721; fma.rn.f32 p3, p3, f3, 0f3D635721;\n"
        "fma.rn.f32 p0, p0, f0, 0f3E75FDF2; fma.rn.f32 p1, p1, f1, 0f3E75FDF2; fma.rn.f32 p2, p2, f2, 0f3E75FDF2; fma.rn.f32 p3, p3, f3, 0f3E75FDF2;\n"
        "fma.rn.f32 p0, p0, f0, 0f3F317219; fma.rn.f32 p1, p1, f1, 0f3F317219; fma.rn.f32 p2, p2, f2, 0f3F317219; fma.rn.f32 p3, p3, f3, 0f3F317219;\n"
        "fma.rn.f32 p0, p0, f0, 0f3F800000; fma.rn.f32 p1, p1, f1, 0f3F800000; fma.rn.f32 p2, p2, f2, 0f3F800000; fma.rn.f32 p3, p3, f3, 0f3F800000;\n"
        "mad.lo.s32 p0, t0, 8388608, p0; mad.lo.s32 p1, t1, 8388608, p1; mad.lo.s32 p2, t2, 8388608, p2; mad.lo.s32 p3, t3, 8388608, p3;\n"
        "cvt.f64.f32 y0, p0; cvt.f64.f32 y1, p1; cvt.f64.f32 y2, p2; cvt.f64.f32 y3, p3;\n"
        "add.rz.f64 %0, %0, y0; add.rz.f64 %1, %1, y1; add.rz.f64 %0, %0, y2; add.rz.f64 %1, %1, y3;\n"
        "}\n"
        : "+d"(sums[0]), "+d"(sums[1])
        : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "f"(s), "f"(shift));
  }
};

// The same for tokens of which some do not count, whatever their logits are.
//
// A power of two is computed a quarter as large and held between 0 and 1, also where the logit is not a number, and weighs nothing so: sums are of four times the weights,
// whose unit is 4. For tokens that count the exponent is added under a condition.
struct AllowedAddends : DoubleAddends {
  static constexpr float QUARTER = 0.25f;
  float above;  // the shift with 2 for the power's quarter, and 2 for the sums' unit

  __device__ __forceinline__ explicit AllowedAddends(const Weighing &w) : DoubleAddends(w), above(shift + 4.0f) { zero *= 4.0; }
  // `counts`: 0 if the token does not.
  template <bool RAISE>
  __device__ __forceinline__ void add_if(u32 counts, float x, Sum &sum) const {
    if (RAISE) x = fmaxf(x, least);
    const float shifted = x * s + above, f = fmaf(x, s, -(shifted - above));
    u32 y = bits_of(quarter_of_exp2_fraction(f));
    asm("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p mad.lo.u32 %0, %1, 8388608, %0;\n}" : "+r"(y) : "r"(bits_of(shifted)), "r"(counts));
    sum = __dadd_rz(sum, static_cast<double>(float_of(y)));
  }
  // exp2_fraction with its coefficients divided by 4.
  __device__ __forceinline__ static float quarter_of_exp2_fraction(float f) {
    float p = 0.00015594678f * QUARTER;
    p = fmaf(p, f, 0.0013406643f * QUARTER);
    p = fmaf(p, f, 0.009617693f * QUARTER);
    p = fmaf(p, f, 0.055503014f * QUARTER);
    p = fmaf(p, f, 0.24022654f * QUARTER);
    p = fmaf(p, f, 0.69314724f * QUARTER);
    asm("fma.rn.sat.f32 %0, %0, %1, %2;" : "+f"(p) : "f"(f), "f"(QUARTER));
    return p;
  }
};

// The same with the moment of the surprise, of 128 tokens at most: weight and surprise are exact as doubles, and their product is added in rounding downwards to a sum
// whose last digit is 1, as Surprise::add rounds.
struct DoubleMoments : DoubleAddends {
  struct Sums {
    double mass, moment;
  };
  static constexpr float Q16 = 192.0f;  // added to a number between -64 and 64, it leaves 16 binary places
  float surprise;                       // added to an exponent: Q16 more than its distance from the largest

  __device__ __forceinline__ explicit DoubleMoments(const Weighing &w) : DoubleAddends(w), surprise(Q16 - static_cast<float>(w.max_n)) {}
  __device__ __forceinline__ Sums none() const { return Sums{zero, 1.5 * zero}; }
  __device__ __forceinline__ u64 mass(const Sums &sums) const { return taken(sums.mass); }
  __device__ __forceinline__ i64 moment(const Sums &sums) const { return __double_as_longlong(sums.moment) - __double_as_longlong(1.5 * zero); }
  // A sum of this token beside others, and Q16 more than its surprise. RAISE: as of DoubleAddends; where nothing is raised, what is said of a token that weighs nothing may be anything.
  template <bool RAISE = true>
  __device__ __forceinline__ Sum weigh(float x, float &above, Sum others) const {
    if (RAISE) x = fmaxf(x, least);
    const float shifted = x * s + shift, n = shifted - shift, f = fmaf(x, s, -n);
    above = f + (n + surprise);
    return __dadd_rz(others, static_cast<double>(float_of(bits_of(exp2_fraction(f)) + (bits_of(shifted) << 23))));
  }
  __device__ __forceinline__ Sum weigh(float x, float &above) const { return weigh(x, above, zero); }
  template <bool RAISE = true>
  __device__ __forceinline__ void add(float x, Sums &sums) const {
    float above;
    const double with = weigh<RAISE>(x, above, sums.mass);
    sums.moment = __fma_rd(with - sums.mass, static_cast<double>(above - Q16), sums.moment);
    sums.mass = with;
  }
  // The surprise in Q16.
  __device__ __forceinline__ static i32 surprise_of(float above) { return static_cast<i32>(bits_of(above) - bits_of(Q16)); }
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
  template <bool RAISE = true, bool FUSE = false>
  __device__ __forceinline__ void add(float x, Sum &sum) const {
    words.add(x, sum.high, sum.low);
    sum.count += 1;
  }
  __device__ __forceinline__ float nothing() const { return -infinity(); }
  __device__ __forceinline__ void add_four(const float (&x)[4], Sum (&sums)[2]) const {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) add(x[i], sums[i % 2]);
  }
};

struct AllowedAddends : DoubleAddends {
  __device__ __forceinline__ explicit AllowedAddends(const Weighing &w) : DoubleAddends(w) {}
  template <bool RAISE>
  __device__ __forceinline__ void add_if(u32 counts, float x, Sum &sum) const {
    if (counts) add(x, sum);
  }
};

struct DoubleMoments : DoubleAddends {
  struct Sums {};

  __device__ __forceinline__ explicit DoubleMoments(const Weighing &w) : DoubleAddends(w) { serve = false; }
  __device__ __forceinline__ Sums none() const { return Sums{}; }
  __device__ __forceinline__ u64 mass(const Sums &) const { return 0; }
  __device__ __forceinline__ i64 moment(const Sums &) const { return 0; }
  __device__ __forceinline__ Sum weigh(float, float &) const { return Sum{0, 0, 0}; }
  template <bool RAISE = true>
  __device__ __forceinline__ void add(float, Sums &) const {}
  __device__ __forceinline__ static i32 surprise_of(float) { return 0; }
};
#endif

}  // namespace nucleus
