// The arithmetic of decisions (docs/sampling.md, Numbers), on the host and on the device alike. Built without contraction of a * b + c.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#define HD_SLOW inline __host__ __device__ __noinline__
#define UNROLL_NOT _Pragma("unroll 1")
#define UNROLL_8 _Pragma("unroll 8")
#else
#define HD inline
#define HD_SLOW inline
#define UNROLL_NOT
#define UNROLL_8
#endif

namespace nucleus {

using u32 = uint32_t;
using u64 = uint64_t;
using i32 = int32_t;
using i64 = int64_t;
using u128 = unsigned __int128;
using i128 = __int128;

constexpr i32 WEIGHT_BITS = 44;
constexpr float SCALED_LIMIT = 4194304.0f;
constexpr i64 ONE_Q16 = 1 << 16;
constexpr u64 ONE_Q32 = 1ull << 32;
constexpr i64 Y_NONE = -(1ll << 40);

HD u32 bits_of(float x) { u32 b; memcpy(&b, &x, 4); return b; }
HD float float_of(u32 b) { float x; memcpy(&x, &b, 4); return x; }
HD float infinity() { return float_of(0x7F800000u); }
HD float least_finite() { return float_of(0xFF7FFFFFu); }

HD int leading_zeros(u64 v) {  // of v > 0
#ifdef __CUDA_ARCH__
  return __clzll(static_cast<long long>(v));
#else
  return __builtin_clzll(v);
#endif
}

HD u64 mulhi64(u64 a, u64 b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<u64>((static_cast<u128>(a) * b) >> 64);
#endif
}

// s = f32(log2 e / T).
HD float scale(float temperature) { return static_cast<float>(1.4426950408889634074 / static_cast<double>(temperature)); }

// P(f) ~ 2^f by Horner's rule.
HD float exp2_fraction(float f) {
  float p = 0.00015594678f;
  p = fmaf(p, f, 0.0013406643f);
  p = fmaf(p, f, 0.009617693f);
  p = fmaf(p, f, 0.055503014f);
  p = fmaf(p, f, 0.24022654f);
  p = fmaf(p, f, 0.69314724f);
  return fmaf(p, f, 1.0f);
}

// Adding this to |v| < 2^22 rounds v to an integer, ties to even, and leaves it in the low bits.
constexpr float ROUNDING = 12582912.0f;
constexpr u32 ROUNDING_BITS = 0x4B400000u;

// A scaled logit as n + f; `weighs` is false at or below -2^22.
struct Exponent {
  i32 n;
  float f;
  bool weighs;

  HD Exponent(float x, float s) {
    float product = x * s;
    weighs = !(product <= -SCALED_LIMIT);
    float shifted = (weighs ? product : 0.0f) + ROUNDING;
    n = static_cast<i32>(bits_of(shifted) - ROUNDING_BITS);
    f = fmaf(x, s, -(shifted - ROUNDING));
  }
  // q = floor(2^44 2^(n - max) P(f)); n is at most max.
  HD u64 weight(i32 max) const {
    u32 bits = bits_of(exp2_fraction(f));
    u32 significand = (bits & 0x007FFFFFu) | 0x00800000u;
    i32 shift = static_cast<i32>(bits >> 23) - 127 - 23 + WEIGHT_BITS + n - max;
    u32 down = shift < -31 ? 31 : shift < 0 ? -shift : 0, up = shift > 0 ? shift : 0;
    u64 q = static_cast<u64>(significand >> down) * static_cast<u64>(1u << (up & 31));
    return weighs ? q : 0;
  }
  // y = (n - max) + f in Q16.
  HD i64 log2_q16(i32 max) const {
    if (!weighs) return Y_NONE;
    return static_cast<i64>(n - max) * ONE_Q16 + static_cast<i64>(rintf(f * 65536.0f));
  }
};

// log2(v) in Q48, rounded down, by repeated squaring in Q63.
HD_SLOW i64 log2_q48(u64 v) {
  v = v ? v : 1;
  int zeros = leading_zeros(v);
  u64 significand = v << zeros;
  i64 result = static_cast<i64>(63 - zeros) << 48;
  UNROLL_NOT
  for (int bit = 47; bit >= 0; --bit) {
    u64 high = mulhi64(significand, significand), low = significand * significand;
    u64 carry = high >> 63;  // the square in Q63 has bit 64 set exactly when its high word has bit 63
    significand = carry ? high : (high << 1 | low >> 63);
    result |= static_cast<i64>(carry) << bit;
  }
  return result;
}

// log2(a / b) of positive numbers as whole + fraction, by the series of the inverse hyperbolic tangent; the fraction's error is below 2^-50.
HD double log2_ratio(u64 a, u64 b, double &whole) {
  int zeros = leading_zeros(a), zeros_of_b = leading_zeros(b);
  double x = static_cast<double>(a << zeros), y = static_cast<double>(b << zeros_of_b);  // of one binade, 2^64 included
  int exponent = zeros_of_b - zeros;
  if (x > y * 1.4142135623730951) { y = y * 2.0; exponent += 1; }
  if (y > x * 1.4142135623730951) { x = x * 2.0; exponent -= 1; }
  whole = static_cast<double>(exponent);
  // Terms up to z^23, |z| < 0.172, in three interleaved sums.
  double z = (x - y) / (x + y), v = z * z, v3 = v * v * v;
  double first = fma(fma(fma(1.0 / 21.0, v3, 1.0 / 15.0), v3, 1.0 / 9.0), v3, 1.0 / 3.0);
  double second = fma(fma(fma(1.0 / 23.0, v3, 1.0 / 17.0), v3, 1.0 / 11.0), v3, 1.0 / 5.0);
  double third = fma(fma(1.0 / 19.0, v3, 1.0 / 13.0), v3, 1.0 / 7.0);
  double sum = fma(fma(third, v, second), v, first);
  return fma(z * v, sum, z) * 2.8853900817779268147;
}

// (log2_q48(v) + added) >> bits. The digits are computed one by one only where those that are left may depend on the last of them.
HD_SLOW i64 log2_to(u64 v, u32 bits, i64 added) {
  constexpr i64 OFF = 8;  // more than the logarithm in binary64 is
  double whole;
  const double fraction = log2_ratio(v ? v : 1, 1, whole);
  const i64 near = static_cast<i64>(floor((whole + fraction) * 281474976710656.0)) + added, least = (near - OFF) >> bits, most = (near + OFF) >> bits;
  return least == most ? least : (log2_q48(v) + added) >> bits;
}
HD i64 log2_q16(u64 v) { return log2_to(v, 32, 1ll << 31); }

// Integer square root. Below 2^104 the root in binary64 is off by little, and put right.
HD_SLOW u128 isqrt(u128 v) {
  if (!(v >> 104)) {
    u64 near = static_cast<u64>(sqrt(static_cast<double>(static_cast<u64>(v >> 64)) * 18446744073709551616.0 + static_cast<double>(static_cast<u64>(v))));
    while (static_cast<u128>(near) * near > v) near -= 1;
    while (static_cast<u128>(near + 1) * (near + 1) <= v) near += 1;
    return near;
  }
  u128 root = 0, bit = static_cast<u128>(1) << 126;
  while (bit > v) bit >>= 2;
  UNROLL_NOT
  for (; bit; bit >>= 2) {
    bool fits = v >= root + bit;
    v -= fits ? root + bit : 0;
    root = (root >> 1) + (fits ? bit : 0);
  }
  return root;
}

// 2^(2^-k) in Q63 for k from 1, each the root of the one before, rounded down.
HD u64 binary_root(u32 k) {
  static constexpr u64 ROOTS[32] = {
    0xB504F333F9DE6484ull, 0x9837F0518DB8A96Full, 0x8B95C1E3EA8BD6E6ull, 0x85AAC367CC487B14ull,
    0x82CD8698AC2BA1D6ull, 0x8164D1F3BC030772ull, 0x80B1ED4FD999AB6Bull, 0x8058D7D2D5E5F6B0ull,
    0x802C6436D0E04F50ull, 0x8016302F17467627ull, 0x800B179C82028FCFull, 0x80058BAF7FEE3B5Cull,
    0x8002C5D00FDCFCB6ull, 0x800162E61BED4A48ull, 0x8000B17292F702A3ull, 0x800058B92ABBAE01ull,
    0x80002C5C8DADE4D6ull, 0x8000162E44EAF635ull, 0x80000B1721FA7C17ull, 0x8000058B90DE7E4Cull,
    0x800002C5C8678F36ull, 0x80000162E431DB9Full, 0x800000B1721872D0ull, 0x80000058B90C1AA8ull,
    0x8000002C5C8605A4ull, 0x800000162E4300E6ull, 0x8000000B17217FF8ull, 0x800000058B90BFDDull,
    0x80000002C5C85FE6ull, 0x8000000162E42FF1ull, 0x80000000B17217F8ull, 0x8000000058B90BFBull,
  };
  return ROOTS[k - 1];
}

// A number in binary64 rounded down; false: its error, below 2^-50 of it, may change the result.
HD bool rounded_down(double near, u64 &whole) {
  constexpr double OFF = 1.0 / 1024.0;  // of numbers below 2^40
  const double below = floor(near), rest = near - below;
  whole = static_cast<u64>(near < 1099511627776.0 ? below : 0.0);
  return near < 1099511627776.0 && rest > OFF && rest < 1.0 - OFF;
}

// 2^y in Q32, rounded down, for y in Q32; saturates above y = 31. The digits' factors are multiplied only where the result may depend on their rounding.
HD_SLOW u64 exp2_q32(i64 y) {
  i64 whole = y >> 32;
  u32 fraction = static_cast<u32>(y);
  u64 near;
  if (whole > -48 && whole < 8 && rounded_down(exp2(static_cast<double>(y) * (1.0 / 4294967296.0) + 32.0), near)) return near;
  u64 significand = 1ull << 63;
  UNROLL_NOT
  for (u32 k = 1; k <= 32; ++k) {
    if (fraction >> (32 - k) & 1) {
      u64 f = binary_root(k);
      significand = mulhi64(significand, f) << 1 | (significand * f) >> 63;
    }
  }
  i64 shift = 31 - whole;
  if (shift < 0) return ~0ull;
  return shift > 63 ? 0 : significand >> shift;
}

HD double ln_of_log2_q48(i64 log2) { return static_cast<double>(log2) * (0.693147180559945309417 / 281474976710656.0); }

HD i64 q16(float v) { return static_cast<i64>(rint(static_cast<double>(v) * 65536.0)); }
HD float from_q16(i64 v) { return static_cast<float>(v) * (1.0f / 65536.0f); }
HD u64 chance_q32(float p) { return static_cast<u64>(static_cast<double>(p) * 4294967296.0); }

// Whether part / total >= threshold or > threshold, the threshold in Q32 (at most 1), in 128-bit integers.
HD bool reaches(u64 part, u64 total, u64 threshold) {
  return (static_cast<u128>(part) << 32) >= static_cast<u128>(threshold) * total;
}
// The least part that reaches it.
HD u64 least_reaching(u64 total, u64 threshold) {
  const u64 low = threshold * static_cast<u32>(total), high = threshold * (total >> 32);
  return high + ((low + 0xFFFFFFFFu) >> 32);
}
HD bool exceeds(u64 part, u64 total, u64 threshold) {
  return (static_cast<u128>(part) << 32) > static_cast<u128>(threshold) * total;
}

// moment / total in Q16, rounded down. The quotient in binary64 is off by less than one, and put right, unless it is far larger than any mean of surprises.
HD_SLOW i64 mean_q16_of(i64 moment, u64 total) {
  const i128 part = static_cast<i128>(moment) << 16, whole = total ? total : 1;
  const double near = floor(static_cast<double>(moment) * 65536.0 / static_cast<double>(total ? total : 1));
  if (fabs(near) < 1099511627776.0) {
    const i64 mean = static_cast<i64>(near);
    const i128 rest = part - whole * mean;
    return rest < 0 ? mean - 1 : rest >= whole ? mean + 1 : mean;
  }
  i128 mean = part / whole;
  return static_cast<i64>(part % whole < 0 ? mean - 1 : mean);
}

// Sums from which mass, mean surprise and entropy follow.
struct Surprise {
  u64 total = 0;
  i64 moment = 0;

  HD void add(u64 q, i64 y) {
    total += q;
    if (q) moment += (static_cast<i64>(q) * y) >> 16;
  }
  HD i64 mean_q16() const { return mean_q16_of(moment, total); }
  HD i64 offset_q16() const { return log2_q16(total) - (static_cast<i64>(WEIGHT_BITS) << 16); }
  HD i64 entropy_q16() const {
    i64 entropy = offset_q16() - mean_q16();
    return entropy > 0 ? entropy : 0;
  }
};

// d = max - x in Q16, at most 2^31.
HD u64 distance_q16(float x, float max) { return static_cast<u64>(rintf(fminf(max - x, 32768.0f) * 65536.0f)); }

// Sums of the distances from the largest logit, and of their squares by halves, of which there may be 2^20. Arrays, as teams add them up.
struct Distances {
  u64 sum[1] = {0}, halves[2] = {0, 0};

  HD void add(float x, float largest) {
    const u64 d = static_cast<u32>(distance_q16(x, largest)), square = d * d;
    sum[0] += d;
    halves[0] += square & 0xFFFFFFFFu;
    halves[1] += square >> 32;
  }
  HD u128 squares() const { return (static_cast<u128>(halves[1]) << 32) + halves[0]; }
};

HD_SLOW i64 deviation_q16(u64 count, u64 sum, u128 squares) {
  u128 n = count ? count : 1;
  u128 variance = n * squares - static_cast<u128>(sum) * sum;
  u64 near;
  const double spread = static_cast<double>(static_cast<u64>(variance >> 64)) * 18446744073709551616.0 + static_cast<double>(static_cast<u64>(variance));
  if (rounded_down(2.0 * sqrt(spread) / static_cast<double>(static_cast<u64>(n)), near)) return static_cast<i64>((near + 1) >> 1);
  const u128 root = isqrt(variance << 2);
  return static_cast<i64>(((root >> 64 ? root / n : static_cast<u64>(root) / static_cast<u64>(n)) + 1) >> 1);
}

// Philox4x32-10 (Salmon et al., 2011); returns word 1 over word 0.
HD u64 philox(u64 seed, u32 position, u32 purpose, u32 choice, u32 attempt) {
  u32 a = position, b = purpose, c = choice, d = attempt;
  u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
  UNROLL_NOT
  for (int round = 0; round < 10; ++round) {
    u64 p0 = static_cast<u64>(0xD2511F53u) * a, p1 = static_cast<u64>(0xCD9E8D57u) * c;
    a = static_cast<u32>(p1 >> 32) ^ b ^ k0;
    b = static_cast<u32>(p1);
    c = static_cast<u32>(p0 >> 32) ^ d ^ k1;
    d = static_cast<u32>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<u64>(b) << 32 | a;
}

// Order of tokens as one number: larger is earlier (logit descending, id ascending). No NaN, no -0.
HD u32 key_of(float x) {
  u32 b = bits_of(x);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}
HD float value_of(u32 key) { return float_of(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }
HD u64 place_of(float x, u32 id) { return static_cast<u64>(key_of(x)) << 32 | static_cast<u32>(~id); }
HD float logit_at(u64 place) { return value_of(static_cast<u32>(place >> 32)); }
HD u32 id_at(u64 place) { return ~static_cast<u32>(place); }

// ln(q / Z); -inf for q = 0. The digits of the logarithms are computed one by one only where the float may depend on the last of them.
HD float processed_logprob(u64 q, u64 total) {
  if (!q) return -infinity();
  if (q == total) return 0.0f;  // the digits of both would be computed, since 0 is at the edge of floats
  double whole;
  double fraction = log2_ratio(q, total, whole);
  double distance = floor((whole + fraction) * 281474976710656.0);
  float least = static_cast<float>(ln_of_log2_q48(static_cast<i64>(distance) - 2));
  float most = static_cast<float>(ln_of_log2_q48(static_cast<i64>(distance) + 3));
  if (least == most) return least;
  return static_cast<float>(ln_of_log2_q48(log2_q48(q) - log2_q48(total)));
}

// The second difference of three weights.
HD u64 bend(u64 a, u64 b, u64 c) {
  const i64 first = static_cast<i64>(a) - static_cast<i64>(b), second = static_cast<i64>(b) - static_cast<i64>(c);
  return static_cast<u64>(first > second ? first - second : second - first);
}

// min(eta, sqrt(eta) 2^-H) in Q32.
HD_SLOW u64 eta_threshold(u64 eta, const Surprise &surprise) {
  u64 root = static_cast<u64>(isqrt(static_cast<u128>(eta) << 32));
  u64 decay = exp2_q32(-(surprise.entropy_q16() << 16));
  u64 bound = static_cast<u64>((static_cast<u128>(root) * decay) >> 32);
  return eta < bound ? eta : bound;
}

// a p_max^2 in Q32.
HD_SLOW u64 top_a_threshold(u64 a, u64 largest, u64 total) {
  u128 p = (static_cast<u128>(largest) << 32) / (total ? total : 1);
  return static_cast<u64>((static_cast<u128>(a) * p * p) >> 64);
}

// (part / whole)^exponent in Q32.
HD u64 power_q32(i64 part, i64 whole, float exponent) {
  i64 e = q16(exponent);
  if (e == 0 || part >= whole) return ONE_Q32;
  u64 ratio = (static_cast<u64>(part) << 32) / static_cast<u64>(whole);
  if (!ratio) return 0;
  i64 log2 = log2_to(ratio, 16, -(32ll << 48));
  return exp2_q32(static_cast<i64>((static_cast<i128>(log2) * e) / ONE_Q16));
}

// Dynamic temperature of `count` tokens, of this entropy and log2 count.
HD float dynamic_temperature_of(u64 count, i64 entropy, i64 log2_count, float temperature, float range, float exponent) {
  if (count < 2) return fmaxf(temperature, 0.01f);
  i64 low = q16(fmaxf(temperature - range, 0.0f)), high = q16(temperature + range);
  u128 power = power_q32(entropy, log2_count, exponent);
  u128 rise = (static_cast<u128>(high - low) * power + (1ull << 31)) >> 32;
  return fmaxf(from_q16(low + static_cast<i64>(rise)), 0.01f);
}

HD_SLOW float dynamic_temperature(u64 count, const Surprise &surprise, float temperature, float range, float exponent) {
  return dynamic_temperature_of(count, surprise.entropy_q16(), log2_q16(count), temperature, range, exponent);
}

// Mirostat 1: k from Zipf's exponent s and mu, both Q16.
HD_SLOW u64 mirostat_k(i64 s, i64 mu, u32 vocab_size) {
  i64 e = s - ONE_Q16, log2_n = log2_q16(vocab_size);
  u64 shrink = exp2_q32(-(e * log2_n));
  u64 rest = shrink > ONE_Q32 ? shrink - ONE_Q32 : ONE_Q32 - shrink;
  i64 log2_ratio;
  if (e == 0 || rest == 0) {
    u64 ln_n = (static_cast<u64>(log2_n) * 45426) >> 16;
    log2_ratio = (16ll << 16) - log2_q16(ln_n ? ln_n : 1);
  } else {
    log2_ratio = (log2_q16(e < 0 ? -e : e) - (16ll << 16)) - (log2_q16(rest) - (32ll << 16));
  }
  i64 log2_k = ((log2_ratio + mu) << 16) / s;
  i64 low = -(1ll << 20), high = 24ll << 16;
  log2_k = log2_k < low ? low : log2_k > high ? high : log2_k;
  return exp2_q32(log2_k << 16) >> 32;
}

// base^exponent by repeated products, the last finite one if it overflows.
HD float power(float base, u64 exponent) {
  float result = 1.0f;
  UNROLL_NOT
  for (u64 i = 0; i < exponent; ++i) {
    float next = result * base;
    if (next == result || !(fabsf(next) < infinity())) break;
    result = next;
  }
  return result;
}

// A product in which 0 times infinity is 0.
HD float term(float coefficient, float power) { return coefficient == 0.0f ? 0.0f : coefficient * power; }

// adaptive-p's logit of a probability q / Z, the target in Q16.
HD float adapted(u64 q, u64 total, i32 target) {
  u64 share = static_cast<u64>((static_cast<u128>(q) << 32) / (total ? total : 1));
  float p = static_cast<float>(share) * (1.0f / 4294967296.0f);
  float distance = fabsf(p - from_q16(target)) * (1.0f / 0.3f);
  return 5.0f - (10.0f * distance) * distance / (1.0f + distance);
}

}  // namespace nucleus
