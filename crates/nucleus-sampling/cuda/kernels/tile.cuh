// What the kernels of bounded requests share: their limits, the part of the history that edits look at, and a thread's share of a tile of logits.
#pragma once

#include "call.cuh"

namespace nucleus {

constexpr u32 TILE_THREADS = 512;
constexpr u32 TILE_WARPS = TILE_THREADS / 32;
constexpr u32 TILE_LOADS = 4;  // of 16 bytes a thread
constexpr u32 TILE_BYTES = TILE_THREADS * TILE_LOADS * 16;
constexpr u32 BOUND_K = 128;      // the largest k
constexpr u32 EDITS_MOST = 1536;  // ids that a request may edit, its history's repetitions counted

// The tokens at the end of the history that operations by id look at.
__device__ __forceinline__ u32 editable_window(const Description &d, const SlicePlan &plan) {
  const u32 len = d.row.history.len;
  u32 window = 0;
  if (plan.passages) window = d.config.dry_penalty_last_n;
  if (plan.occurrences && d.config.repeat_last_n > window) window = d.config.repeat_last_n;
  return plan.ngrams || window > len ? len : window;
}

// The largest logits of some places: one, or two of 16 bits at a time, for widening changes neither order nor NaN.
template <u32 DTYPE>
struct Peak {
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

// A thread's share of a tile that THREADS share: vector j holds the ids from first + offset(j) on.
template <u32 DTYPE, u32 THREADS = TILE_THREADS, u32 LOADS = TILE_LOADS>
struct Tile {
  using Vector = Lane<DTYPE>;
  static constexpr u32 WIDTH = Vector::WIDTH, IDS = THREADS * LOADS * WIDTH;
  static constexpr u32 NONE = DTYPE == NUCLEUS_F32 ? 0xFF800000u : DTYPE == NUCLEUS_BF16 ? 0xFF80FF80u : 0xFC00FC00u;  // -inf in every place
  uint4 v[LOADS];

  __device__ __forceinline__ static u32 offset(u32 j) { return (j * THREADS + threadIdx.x) * WIDTH; }
  __device__ __forceinline__ explicit Tile(const unsigned char *from) {
#pragma unroll
    for (u32 j = 0; j < LOADS; ++j) v[j] = reinterpret_cast<const uint4 *>(from)[j * THREADS + threadIdx.x];
  }

  // Puts a vector's logits at -inf whose bits are not set.
  __device__ __forceinline__ void keep(u32 j, u32 bits) {
    u32 words[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
    if (DTYPE == NUCLEUS_F32) {
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) words[i] = bits >> i & 1 ? words[i] : NONE;
    } else {
#pragma unroll
      for (u32 i = 0; i < WIDTH; i += 4) {
        // Four bits become the signs of four bytes; each sign fills a logit.
        const u32 signs = (bits >> i & 15) * 0x10204080u;
        u32 low, high;
        asm("prmt.b32 %0, %1, 0, 0x9988;" : "=r"(low) : "r"(signs));
        asm("prmt.b32 %0, %1, 0, 0xBBAA;" : "=r"(high) : "r"(signs));
        words[i / 2] = (words[i / 2] & low) | (NONE & ~low);
        words[i / 2 + 1] = (words[i / 2 + 1] & high) | (NONE & ~high);
      }
    }
    v[j] = make_uint4(words[0], words[1], words[2], words[3]);
  }
  // Puts at -inf what masks forbid, and ids from `limit` on, relative to the tile's first.
  __device__ __forceinline__ void restrict(const u32 *mask, u32 mask_words, u32 first, u32 limit) {
#pragma unroll
    for (u32 j = 0; j < LOADS; ++j) {
      const u32 at = offset(j), id = first + at;
      u32 allowed = !mask ? ~0u : id / 32 < mask_words ? mask[id / 32] >> id % 32 : 0;
      if (at + WIDTH > limit) allowed &= at < limit ? ~(~0u << (limit - at)) : 0;
      keep(j, allowed);
    }
  }

  // The largest logit; NaN if one is.
  __device__ __forceinline__ float most() const {
    Peak<DTYPE> m = Peak<DTYPE>::of(v[0]);
#pragma unroll
    for (u32 j = 1; j < LOADS; ++j) m = m | Peak<DTYPE>::of(v[j]);
    return m.value();
  }

  // Which logits reach the threshold, as bits; never those at -inf.
  __device__ __forceinline__ u32 reaching(float threshold) const {
    threshold = fmaxf(threshold, value_of(key_of(-infinity()) + 1));
    static_assert(LOADS * WIDTH <= 32);
    u32 bits = 0;
#pragma unroll
    for (u32 j = 0; j < LOADS; ++j) {
      const Vector x(v[j]);
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) bits |= x.x[i] >= threshold ? 1u << (j * WIDTH + i) : 0;
    }
    return bits;
  }
  // Where the logit of a bit lies in the tile.
  __device__ __forceinline__ static u32 place(u32 bit) { return offset(bit / WIDTH) + bit % WIDTH; }
  __device__ __forceinline__ static float logit(const unsigned char *tile, u32 at) {
    if (DTYPE == NUCLEUS_F32) return reinterpret_cast<const float *>(tile)[at];
    const uint16_t half = reinterpret_cast<const uint16_t *>(tile)[at];
    return DTYPE == NUCLEUS_BF16 ? float_of(static_cast<u32>(half) << 16) : widen_f16(half);
  }
};

}  // namespace nucleus
