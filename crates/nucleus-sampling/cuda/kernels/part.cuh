// A warp's part of a row in shared memory, in the row's own type: brought there by the bulk copy engine, swept by all lanes.
#pragma once

#include "double_addends.cuh"
#include "whole.cuh"

namespace nucleus {

constexpr u32 SUMS = 2;  // of a lane, to which its tokens are added in turn
constexpr u32 FEW_LANES = 4;
constexpr u32 UNCOUNTED = ~0u;  // tokens

// Sums of up to 2^54 each, by two sums of 27 bits.
__device__ __forceinline__ u64 sum_of_lanes(u64 v) {
  const u32 low = __reduce_add_sync(~0u, static_cast<u32>(v) & 0x7FFFFFFu), high = __reduce_add_sync(~0u, static_cast<u32>(v >> 27));
  return (static_cast<u64>(high) << 27) + low;
}

// What a warp sees of its part before it weighs it.
struct SeenPart {
  u32 key;       // of the largest logit; 0: there is none; INFINITE; UNUSUAL: a logit is not a number
  u32 of_half;   // the same of this half of the lanes, where it is asked for
  u32 count;     // tokens that are there
  float lowest;  // no logit is below it
  i32 of_lane;   // the largest logit of this lane, as a signed word: below 0 if all are negative, or there is none
  float most_of_lane;  // this lane's largest logit, where it is asked for
};

template <u32 DTYPE>
struct PartOf {
  static constexpr u32 SIZE = DTYPE == NUCLEUS_F32 ? 4 : 2, WIDTH = 16 / SIZE;  // bytes of a logit, logits of 16 bytes
  static constexpr u32 STEP = 32 * WIDTH;                                       // logits that a warp reads at once
  static constexpr u32 UNIT = 256, VECTORS = UNIT / STEP;                       // that it sweeps at once, 8 a lane
  static constexpr u32 OUT = DTYPE == NUCLEUS_F32 ? 0xFF800000u : DTYPE == NUCLEUS_BF16 ? 0xFF80u : 0xFC00u;  // -inf
  static constexpr u32 TOO_LARGE = OUT & ~(1u << (8 * SIZE - 1));                                            // +inf
  using Word = std::conditional_t<DTYPE == NUCLEUS_F32, u32, uint16_t>;

  u32 first, held, count;  // id of the first logit; logits that there are memory for, and that are tokens
  u32 copied;              // logits that the copy engine brings: none if not all rows are aligned

  __device__ __forceinline__ static float widened(u32 word) {
    if constexpr (DTYPE == NUCLEUS_F32) return float_of(word);
    else return DTYPE == NUCLEUS_BF16 ? float_of(word << 16) : widen_f16(static_cast<uint16_t>(word));
  }
  // Whether exponents may be rounded from exact products with the scale, of logits of 16 bits up to `largest`, which is finite: no tie that comes by rounding the
  // product is that of a logit that weighs something. By a warp, of which a lane takes two ties, since next to each there is at most one logit.
  __device__ __forceinline__ static bool fuses(float largest, float s) {
    if constexpr (SIZE == 4) return true;
    static_assert(WEIGHT_BITS + 2 <= 64);
    const float highest = rintf(largest * s) + 0.5f - static_cast<float>(threadIdx.x % 32), inverse = __fdividef(1.0f, s);
    bool alike = true;
#pragma unroll
    for (u32 i = 0; i < 64; i += 32) {
      const float tie = highest - static_cast<float>(i), x = nearest(tie * inverse);
      alike &= x * s != tie || fmaf(x, s, -tie) == 0.0f;
    }
    return __all_sync(~0u, alike);
  }
  // The logit of 16 bits next to a number.
  __device__ __forceinline__ static float nearest(float x) {
    if constexpr (DTYPE == NUCLEUS_BF16) return float_of((bits_of(x) + 0x7FFFu + (bits_of(x) >> 16 & 1)) & 0xFFFF0000u);
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
    return widen_f16(half);
  }
  // Whether all rows begin where the copy engine can read them.
  __device__ __forceinline__ static bool aligned(const SamplingBatch &batch) { return (reinterpret_cast<uintptr_t>(batch.logits) | batch.row_stride * SIZE) % 16 == 0; }
  __device__ __forceinline__ static float one(const Word *part, u32 i) { return widened(part[i]); }
  __device__ __forceinline__ static uint4 vector(const Word *part, u32 i) { return *reinterpret_cast<const uint4 *>(part + i); }
  __device__ __forceinline__ static void widen(uint4 v, float *x) {
    const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if constexpr (DTYPE == NUCLEUS_F32) x[i] = float_of(w[i]);
      else if constexpr (DTYPE == NUCLEUS_BF16) {
        x[2 * i] = float_of(w[i] << 16);
        x[2 * i + 1] = float_of(w[i] & 0xFFFF0000u);
      } else {
        x[2 * i] = widen_f16(static_cast<uint16_t>(w[i] & 0xFFFFu));
        x[2 * i + 1] = widen_f16(static_cast<uint16_t>(w[i] >> 16));
      }
    }
  }

  __device__ __forceinline__ PartOf(const SamplingBatch &batch, u32 first_id, u32 ids) : first(first_id), held(ids), count(ids) {
    const u64 from = reinterpret_cast<uintptr_t>(batch.logits) | batch.row_stride * SIZE | static_cast<u64>(first) * SIZE;
    copied = from % 16 == 0 ? held * SIZE / 16 * 16 / SIZE : 0;
  }
  __device__ __forceinline__ const char *source(const void *row) const { return static_cast<const char *>(row) + static_cast<u64>(first) * SIZE; }
  // By one lane, when no lane reads the part any more, after a fence between the proxies by those that did.
  __device__ __forceinline__ void start(const void *row, Word *part, u64 *arrived) const {
    const u32 bytes = copied * SIZE;
    arrive_expecting(arrived, bytes);
    start_copy(part, source(row), bytes, arrived);
  }
  // Once the copy has arrived: brings what it could not, and lets the last vector end with tokens that are out; true: it wrote. Ids from `limit` on do not exist.
  __device__ __forceinline__ bool settle(const void *row, Word *part, u32 limit) {
    const u32 lane = threadIdx.x % 32, there = copied;
    count = first + held <= limit ? held : first < limit ? limit - first : 0;
    if (there == held && count % WIDTH == 0) return false;
    const Word *from = reinterpret_cast<const Word *>(source(row));
    UNROLL_NOT
    for (u32 i = there + lane; i < count; i += 32) part[i] = from[i];
    __syncwarp();
    if (lane < WIDTH - 1 && count + lane < (count + WIDTH - 1) / WIDTH * WIDTH) part[count + lane] = static_cast<Word>(OUT);
    __syncwarp();
    return true;
  }

  // Calls f(vector) for this lane's part.
  template <class F>
  __device__ __forceinline__ void each(const Word *part, F f) const {
    const u32 lane = threadIdx.x % 32;
    u32 at = 0;
#pragma unroll 1
    for (; at + UNIT <= count; at += UNIT) {
#pragma unroll
      for (u32 v = 0; v < VECTORS; ++v) f(vector(part, at + v * STEP + lane * WIDTH));
    }
#pragma unroll 1
    for (u32 i = at + lane * WIDTH; i < count; i += STEP) f(vector(part, i));
  }

  // Maxima of three words, as signed and as unsigned numbers. Logits that are not negative are ordered as signed words; of negative logits the least is the
  // largest unsigned word, with not-a-number above all.
  __device__ __forceinline__ static u32 most_signed(u32 a, u32 b, u32 c) { return SIZE == 4 ? __vimax3_s32(a, b, c) : __vimax3_s16x2(a, b, c); }
  __device__ __forceinline__ static u32 most_unsigned(u32 a, u32 b, u32 c) { return SIZE == 4 ? __vimax3_u32(a, b, c) : __vimax3_u16x2(a, b, c); }
  __device__ __forceinline__ static u32 least_unsigned(u32 a, u32 b, u32 c) { return SIZE == 4 ? __vimin3_u32(a, b, c) : __vimin3_u16x2(a, b, c); }

  // Larger of two, or four, words of 16 bits.
  __device__ __forceinline__ static i32 signed_of(u32 words) {
    const i32 upper = static_cast<i32>(words) >> 16, lower = static_cast<int16_t>(words & 0xFFFFu);
    return SIZE == 4 ? static_cast<i32>(words) : upper > lower ? upper : lower;
  }
  // Largest words of this lane, as signed and as unsigned numbers.
  struct Peaks {
    u32 high = SIZE == 4 ? 0x80000000u : 0x80008000u, low = 0;

    __device__ __forceinline__ void see(uint4 v) {
      see_high(v);
      see_low(v);
    }
    __device__ __forceinline__ void see_high(uint4 v) { high = most_signed(most_signed(high, v.x, v.y), v.z, v.w); }
    __device__ __forceinline__ void see_low(uint4 v) { low = most_unsigned(most_unsigned(low, v.x, v.y), v.z, v.w); }
    __device__ __forceinline__ u32 lowest() const { return SIZE == 4 ? low : low >> 16 > (low & 0xFFFFu) ? low >> 16 : low & 0xFFFFu; }
  };
  // `sweep` calls what it is given for every vector of this lane, of `all` tokens. `halves`: the largest logits of halves of the lanes are asked for.
  template <bool LANES = false, class S>
  __device__ __forceinline__ static SeenPart look_in(S sweep, u32 all, bool halves) {
    Peaks peaks;
    sweep([&](uint4 v) { peaks.see(v); });
    return seen_by<LANES>(peaks.high, __reduce_max_sync(~0u, peaks.lowest()), sweep, all, halves, UNCOUNTED);
  }
  // The same where the largest words are known: this lane's signed one or two, the warp's unsigned one. `known`: how many tokens are there, or UNCOUNTED. LANES: each lane's largest logit is
  // asked for, too.
  template <bool LANES = false, class S>
  __device__ __forceinline__ static SeenPart seen_by(u32 high, u32 low, S sweep, u32 all, bool halves, u32 known) {
    i32 most = signed_of(high);
    const i32 of_lane = most;
    if (halves) {
#pragma unroll
      for (u32 step = 8; step; step /= 2) {
        const i32 other = __shfl_xor_sync(~0u, most, step);
        most = other > most ? other : most;
      }
    } else most = __reduce_max_sync(~0u, most);
    SeenPart seen{0, 0, known == UNCOUNTED ? all : known, low & 1u << (8 * SIZE - 1) ? widened(low) : 0.0f, of_lane};
    if (low > OUT || __any_sync(~0u, most > static_cast<i32>(TOO_LARGE))) {
      seen.key = seen.of_half = UNUSUAL;
      return seen;
    }
    if (low == OUT || all == 0) {
      seen.lowest = -infinity();
      if (known == UNCOUNTED) seen.count = __reduce_add_sync(~0u, there(sweep));
    }
    seen.of_half = most >= 0 ? key_of(widened(static_cast<u32>(most)) + 0.0f) : 0;
    if (LANES) seen.most_of_lane = of_lane >= 0 ? widened(static_cast<u32>(of_lane)) : -infinity();
    if (__any_sync(~0u, (LANES ? of_lane : most) < 0) && seen.count) {  // all are negative
      u32 least = ~0u;
      sweep([&](uint4 v) { least = least_unsigned(least_unsigned(least, v.x, v.y), v.z, v.w); });
      if (SIZE == 2) least = least >> 16 < (least & 0xFFFFu) ? least >> 16 : least & 0xFFFFu;
      if (LANES && of_lane < 0 && least < OUT) seen.most_of_lane = widened(least);
      // Of lanes without tokens nothing is known, nor of those whose logits are not all negative.
#pragma unroll
      for (u32 step = halves ? 8 : 16; step; step /= 2) {
        const u32 other = __shfl_xor_sync(~0u, least, step);
        least = other < least ? other : least;
      }
      if (most < 0 && least < OUT) seen.of_half = key_of(widened(least) + 0.0f);
    }
    seen.key = seen.of_half;
    if (halves) {
      const u32 other = __shfl_xor_sync(~0u, seen.of_half, 16);
      seen.key = other > seen.key ? other : seen.key;
    }
    return seen;
  }
  __device__ __forceinline__ SeenPart look(const Word *part, bool halves) const {
    return look_in([&](auto f) { each(part, f); }, count, halves);
  }
  // Tokens that are there, of this lane.
  template <class S>
  __device__ __forceinline__ static u32 there(S sweep) {
    u32 sum = 0;
    sweep([&](uint4 v) {
      float x[WIDTH];
      widen(v, x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) sum += x[e] > -infinity();
    });
    return sum;
  }

  // The weight of this lane's tokens.
  template <bool RAISE>
  __device__ __forceinline__ u64 mass(const Word *part, const DoubleAddends &addends) const {
    DoubleAddends::Sum sums[SUMS];
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) sums[i] = addends.none();
    each(part, [&](uint4 v) {
      float x[WIDTH];
      widen(v, x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) addends.template add<RAISE>(x[e], sums[e % SUMS]);
    });
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) sum += addends.taken(sums[i]);
    return sum;
  }
  __device__ __forceinline__ u64 mass(const Word *part, const Weighing &w, float lowest) const {
    const DoubleAddends addends(w);
    if (!addends.serve) {
      u64 sum = 0;
      UNROLL_NOT
      for (u32 i = threadIdx.x % 32; i < count; i += 32) sum += w.q(one(part, i));
      return sum;
    }
    return addends.reach(lowest) ? mass<false>(part, addends) : mass<true>(part, addends);
  }

  // Lists the tokens that reach the threshold, which is finite; returns how many, those beyond the `most` that there is room for too. `of_lane`: SeenPart's.
  __device__ __forceinline__ u32 list(const Word *part, float threshold, i32 of_lane, u64 *places, u32 most) const {
    const u32 lane = threadIdx.x % 32;
    u32 listed = 0;
    // Most often few lanes have such tokens: then all lanes look at one lane's.
    u32 lanes = __ballot_sync(~0u, of_lane >= 0 ? widened(static_cast<u32>(of_lane)) >= threshold : threshold <= 0.0f);  // it may be -0
    if (__popc(lanes) <= FEW_LANES) {
#pragma unroll 1
      for (; lanes; lanes &= lanes - 1) {
        const u32 of = (__ffs(lanes) - 1) * WIDTH + lane % WIDTH;
#pragma unroll 1
        for (u32 at = 0; at < count; at += 32 / WIDTH * STEP) {
          const u32 i = at + lane / WIDTH * STEP + of;
          const float x = i < count ? one(part, i) : -infinity();
          const bool reaches = x >= threshold;
          const u32 there = __ballot_sync(~0u, reaches), to = listed + __popc(there & ((1u << lane) - 1));
          if (reaches && to < most) places[to] = place_of(x + 0.0f, first + i);
          listed += __popc(there);
        }
      }
      return listed;
    }
#pragma unroll 1
    for (u32 at = 0; at < count; at += UNIT) {
      u32 reach = 0;
#pragma unroll
      for (u32 v = 0; v < VECTORS; ++v) {
        const u32 i = at + v * STEP + lane * WIDTH;
        if (i >= count) continue;
        float x[WIDTH];
        widen(vector(part, i), x);
#pragma unroll
        for (u32 e = 0; e < WIDTH; ++e) reach |= x[e] >= threshold ? 1u << (v * WIDTH + e) : 0;
      }
#pragma unroll 1
      for (u32 lanes; (lanes = __ballot_sync(~0u, reach != 0)) != 0; listed += __popc(lanes), reach &= reach - 1) {
        if (!reach) continue;
        const u32 e = __ffs(reach) - 1, i = at + e / WIDTH * STEP + lane * WIDTH + e % WIDTH, to = listed + __popc(lanes & ((1u << lane) - 1));
        if (to < most) places[to] = place_of(one(part, i) + 0.0f, first + i);
      }
    }
    return listed;
  }

  static constexpr u32 OUT_WORD = SIZE == 4 ? OUT : OUT * 0x10001u;
  // A word of logits that are not above x.
  __device__ __forceinline__ static u32 word_below(float x) {
    if (DTYPE == NUCLEUS_F32) return bits_of(x);
    u32 half;
    if (DTYPE == NUCLEUS_BF16) half = (bits_of(x) + (x < 0 ? 0xFFFFu : 0)) >> 16;
    else asm("{\n.reg .b16 h;\ncvt.rm.f16.f32 h, %1;\ncvt.u32.u16 %0, h;\n}" : "=r"(half) : "f"(x));
    return half * 0x10001u;
  }
  // By what a byte of a mask is multiplied, so that bits of a lane's vector begin at FIRST_BIT: it has all of them, or for every other lane the upper four.
  static constexpr u32 FIRST_BIT = SIZE == 4 ? 8 : 0;
  __device__ __forceinline__ static u32 mask_shift() { return SIZE == 2 ? 1 : threadIdx.x % 2 ? 16 : 256; }
  // A vector in which logits whose bits are not set are those of `out`; the first is bit FIRST, for 16-bit logits 0 of a word with nothing else.
  template <u32 FIRST>
  __device__ __forceinline__ static uint4 keep(uint4 v, u32 bits, u32 out) {
    u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if (SIZE == 4) {
        // By branches, so that each becomes the condition of a move, which another pipe than the one of maxima and selections makes.
        if (!(bits & 1u << (FIRST + i))) asm volatile("mov.b32 %0, %1;" : "+r"(w[i]) : "r"(out));
      } else {
        // Two bits to the signs of bytes, each of which fills a logit.
        u32 kept;
        asm("prmt.b32 %0, %1, 0, 0xBB99;" : "=r"(kept) : "r"(bits * ((1u << (15 - 2 * i)) + (1u << (30 - 2 * i)))));
        w[i] = (w[i] & kept) | (out & ~kept);
      }
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
  // Bits of a lane's four vectors of 32-bit logits, each first at FIRST_BIT, in the lower half of a word, of which the upper is anything.
  __device__ __forceinline__ static u32 packed_bits(const u32 *bits) {
    const u32 even = __byte_perm(bits[0], bits[2], 0x0051), odd = __byte_perm(bits[1], bits[3], 0x0051) << 4;
    return (even & 0x0F0Fu) | (odd & ~0x0F0Fu);
  }
  // The largest of 32-bit logits that a mask allows, NaN if one is, and the largest unsigned word of all.
  struct AllowedPeaks {
    float most[2] = {-infinity(), -infinity()};
    Peaks words;

    __device__ __forceinline__ void see(uint4 v, u32 bits) {
      const u32 w[4] = {v.x, v.y, v.z, v.w};
      words.see_low(v);
      // By branches, so that each becomes the condition of one instruction.
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        if (bits & 1u << (FIRST_BIT + i)) asm volatile("max.NaN.f32 %0, %0, %1;" : "+f"(most[i % 2]) : "f"(float_of(w[i])));
    }
  };
  // What is seen of so many allowed ones. Its lowest is -inf where a logit may be. LANES, `halves`: as of seen_by.
  template <bool LANES>
  __device__ __forceinline__ static SeenPart seen_by_bits(const AllowedPeaks &peaks, u32 allowed, bool halves) {
    const float most = max_nan(peaks.most[0], peaks.most[1]);
    const u32 own = most == most ? most > -infinity() ? key_of(most + 0.0f) : 0 : UNUSUAL;
    const u32 key = __reduce_max_sync(~0u, own), low = __reduce_max_sync(~0u, peaks.words.lowest());
    return SeenPart{key, LANES ? largest_of_half(own, key, halves) : 0, __reduce_add_sync(~0u, allowed), low >= OUT ? -infinity() : low & 1u << (8 * SIZE - 1) ? widened(low) : 0.0f, 0, most};
  }
  // The largest of this half's lanes, or all lanes'.
  __device__ __forceinline__ static u32 largest_of_half(u32 own, u32 of_all, bool halves) {
    if (!halves) return of_all;
#pragma unroll
    for (u32 step = 8; step; step /= 2) {
      const u32 other = __shfl_xor_sync(~0u, own, step);
      own = other > own ? other : own;
    }
    return own;
  }
  static constexpr u32 MASK_GROUP = 32 * 32;  // tokens for which each lane has a word of a mask
  // This lane's word of a group, on its way; missing ones forbid. `at`: the group's first token, counted from the word that has the part's first one.
  __device__ __forceinline__ u32 mask_word(const u32 *mask, u32 words, u32 at) const {
    const u32 own = first / 32 + at / 32 + threadIdx.x % 32;
    u32 word = 0;
    if (own < words && own * 32 < first + held) asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(mask + own));
    return word;
  }
  // Bits of this lane's vector, the first one lowest, where each lane has a word of a mask. `i`: the lanes' first token, counted from the first word's.
  __device__ __forceinline__ static u32 lane_bits(u32 word, u32 i) {
    const u32 of = i + threadIdx.x % 32 * WIDTH, own = __shfl_sync(~0u, word, of / 32);
    return SIZE == 4 ? own >> of % 32 : __byte_perm(own, 0, 0x4440u + of / 8 % 4);
  }
  // What is seen where some logits are not negative and all are numbers, of which the mask allows so many, and others became `out`; else its key is 0. `halves`: so it is where all of a
  // half's are negative. LANES: a lane of negative ones tells a largest logit of -0, which is not too small.
  template <bool LANES = false>
  __device__ __forceinline__ static SeenPart seen_allowed(const Peaks &peaks, u32 allowed, u32 out, bool halves = false) {
    const i32 of_lane = signed_of(peaks.high), most = __reduce_max_sync(~0u, of_lane);
    const u32 lowest = __reduce_max_sync(~0u, peaks.lowest()), low = lowest > out ? lowest : out;
    SeenPart seen{0, 0, __reduce_add_sync(~0u, allowed), low & 1u << (8 * SIZE - 1) ? widened(low) : 0.0f, of_lane};
    if (LANES) seen.most_of_lane = of_lane >= 0 ? widened(static_cast<u32>(of_lane)) : -0.0f;
    const u32 own = of_lane >= 0 ? key_of(widened(static_cast<u32>(of_lane)) + 0.0f) : 0;
    if (LANES && halves && __any_sync(~0u, !(seen.of_half = largest_of_half(own, 0, true)))) return seen;
    if (most >= 0 && most <= static_cast<i32>(TOO_LARGE) && lowest < OUT) seen.key = key_of(widened(static_cast<u32>(most)) + 0.0f);
    if (!halves) seen.of_half = seen.key;
    return seen;
  }
  // Puts out what a mask of so many words forbids, while it looks at the rest. `next`, `second`: this lane's words of the first two groups.
  __device__ __forceinline__ SeenPart look_allowed(Word *part, const u32 *mask, u32 words, u32 next, u32 second, bool halves) const {
    constexpr u32 AT_ONCE = MASK_GROUP / 2 / STEP;  // vectors
    const u32 lane = threadIdx.x % 32, skipped = first % 32;
    Peaks peaks;
    u32 allowed = 0;
    UNROLL_NOT
    for (u32 at = 0; at < count; at += MASK_GROUP) {
      const u32 own = next, end = count - at < MASK_GROUP ? count - at : MASK_GROUP;
      next = second;
      if (at + 2 * MASK_GROUP < skipped + count) second = mask_word(mask, words, at + 2 * MASK_GROUP);
      // From the group's first token on.
      u32 word = __funnelshift_r(own, __shfl_sync(~0u, lane ? own : next, lane + 1), skipped);
      Word *const memory = part + at + lane * WIDTH;
      auto take = [&](uint4 v, u32 bits, u32 i, bool there) {
        peaks.see_low(v);
        v = keep<0>(v, bits, OUT_WORD);
        peaks.see_high(v);
        if (there) *reinterpret_cast<uint4 *>(memory + i) = v;
      };
      if (end == MASK_GROUP) {
        allowed += __popc(word);
#pragma unroll
        for (u32 first = 0; first < MASK_GROUP; first += AT_ONCE * STEP) {
          uint4 v[AT_ONCE];
          u32 bits[AT_ONCE];
#pragma unroll
          for (u32 j = 0; j < AT_ONCE; ++j) {
            v[j] = vector(memory, first + j * STEP);
            bits[j] = lane_bits(word, first + j * STEP);
          }
#pragma unroll
          for (u32 j = 0; j < AT_ONCE; ++j) take(v[j], bits[j], first + j * STEP, true);
        }
        continue;
      }
      const u32 before = lane * 32;
      word &= end >= before + 32 ? ~0u : end > before ? ~(~0u << (end - before)) : 0;
      allowed += __popc(word);
      constexpr u32 PAIR = SIZE == 4 ? 2 : 1;
      UNROLL_NOT
      for (u32 i = 0; i < end; i += PAIR * STEP) {
        uint4 v[PAIR];
        u32 bits[PAIR];
#pragma unroll
        for (u32 j = 0; j < PAIR; ++j) {
          bits[j] = lane_bits(word, i + j * STEP);
          v[j] = make_uint4(0, 0, 0, 0);
          if (i + j * STEP + lane * WIDTH < end) v[j] = vector(memory, i + j * STEP);
        }
#pragma unroll
        for (u32 j = 0; j < PAIR; ++j) take(v[j], bits[j], i + j * STEP, i + j * STEP + lane * WIDTH < end);
      }
    }
    __syncwarp();
    auto sweep = [&](auto f) { each(part, f); };
    if (!halves) {
      const SeenPart seen = seen_allowed(peaks, allowed, OUT);
      if (seen.key) return seen;
    }
    // Logits at -inf, or a forbidden one that is not a number: what is left is looked at as any other part.
    if (__any_sync(~0u, peaks.lowest() >= OUT)) return look_in(sweep, count, halves);
    return seen_by(peaks.high, OUT, sweep, count, halves, __reduce_add_sync(~0u, allowed));
  }
};

}  // namespace nucleus
