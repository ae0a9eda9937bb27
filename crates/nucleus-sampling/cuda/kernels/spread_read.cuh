// How a block reads its part of a row, and what the blocks of a row tell each other of it: a bound of the first tokens.
#pragma once

#include "spread.cuh"

namespace nucleus::spread {

// A load that stays where it is written, so that all are on their way before one is waited for.
__device__ __forceinline__ u32 load_now(const u32 *from) {
  u32 word;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}
template <u32 DTYPE, u32 BLOCKS>
struct Reader {
  using D = Deal<DTYPE, BLOCKS>;
  using Vector = typename D::Vector;
  static constexpr u32 WIDTH = D::WIDTH, VECTORS = D::VECTORS, SIZE = 16 / WIDTH;
  static constexpr u32 NONE = Peak<DTYPE>::NONE;
  struct Half {
    uint4 v[VECTORS];
    u32 allowed[VECTORS];  // the words of the mask for them
  };

  const SamplingBatch &batch;
  RowState *const sh;
  const u32 index, block, warp, lane;
  const char *const logits;

  __device__ __forceinline__ Reader(const SamplingBatch &b, u32 own, RowState *state)
      : batch(b), sh(state), index(blockIdx.x / BLOCKS), block(own), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        logits(static_cast<const char *>(b.logits) + static_cast<u64>(blockIdx.x / BLOCKS) * b.row_stride * SIZE) {}

  __device__ __forceinline__ bool reads() const { return threadIdx.x < READERS; }
  __device__ __forceinline__ bool aligned() const { return reinterpret_cast<uintptr_t>(logits) % 16 == 0; }
  __device__ __forceinline__ u32 limit() const { return sh->config.vocab_size < batch.row_len ? sh->config.vocab_size : batch.row_len; }
  __device__ __forceinline__ const u32 *mask() const { return sh->row.mask < 0 ? nullptr : batch.masks + static_cast<u64>(sh->row.mask) * batch.mask_stride; }

  // A piece on its way to registers; without the row's last vector, if it is not whole.
  __device__ __forceinline__ void load(Half &half, u32 piece) const {
    const u32 from = D::at(block, piece * VECTORS, threadIdx.x);
    const char *const first = logits + static_cast<u64>(from) * SIZE;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      half.v[j] = make_uint4(NONE, NONE, NONE, NONE);
      load_if(half.v[j], first + j * (D::STRIDE * BLOCKS * SIZE), from + j * (D::STRIDE * BLOCKS) + WIDTH <= batch.row_len);
    }
  }
  __device__ __forceinline__ static void load_if(uint4 &v, const char *from, bool there) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
                 : "l"(from), "r"(static_cast<u32>(there)));
  }
  // The word of the mask for an id, on its way; missing ones forbid.
  __device__ __forceinline__ u32 mask_word(const u32 *allowing, u32 id) const {
    if (!allowing) return ~0u;
    return id / 32 < batch.mask_words ? load_now(allowing + id / 32) : 0;
  }
  __device__ __forceinline__ void load_mask(Half &half, u32 piece) const {
    const u32 *const allowing = mask();
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) half.allowed[j] = mask_word(allowing, D::at(block, piece * VECTORS + j, threadIdx.x));
  }
  // Fetches the row's last vector where it is not whole, and takes out what does not exist and what the mask's word forbids. `first`: the vector's first id.
  __device__ __forceinline__ bool is_restricted() const { return limit() != batch.row_len || sh->row.mask >= 0 || batch.row_len % WIDTH; }
  __device__ __forceinline__ void restrict(uint4 &v, u32 first, u32 word) const {
    const u32 end = limit();
    u32 w[4] = {v.x, v.y, v.z, v.w};
    if (first < batch.row_len && first + WIDTH > batch.row_len) {
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) {
        if (first + i >= batch.row_len) continue;
        if (DTYPE == NUCLEUS_F32) w[i] = reinterpret_cast<const u32 *>(logits)[first + i];
        else w[i / 2] = reinterpret_cast<const uint16_t *>(logits)[first + i] << (i % 2 * 16) | (w[i / 2] & (i % 2 ? 0xFFFFu : 0xFFFF0000u));
      }
    }
    u32 allowed = word >> first % 32;
    if (first + WIDTH > end) allowed &= first < end ? ~(~0u << (end - first)) : 0;
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (allowed >> i & 1) continue;
      if (DTYPE == NUCLEUS_F32) w[i] = NONE;
      else w[i / 2] = i % 2 ? (w[i / 2] & 0xFFFFu) | (NONE & 0xFFFF0000u) : (w[i / 2] & 0xFFFF0000u) | (NONE & 0xFFFFu);
    }
    v = make_uint4(w[0], w[1], w[2], w[3]);
  }

  // A logit as it came, on its way.
  __device__ __forceinline__ float logit(u32 id) const {
    if (DTYPE == NUCLEUS_F32) return float_of(load_now(reinterpret_cast<const u32 *>(logits) + id));
    uint16_t half;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(half) : "l"(reinterpret_cast<const uint16_t *>(logits) + id));
    return DTYPE == NUCLEUS_F16 ? widen_f16(half) : float_of(static_cast<u32>(half) << 16);
  }

  // The largest logit of a piece and its vector; NaN if one is.
  __device__ __forceinline__ static float look(const Half &half, u32 &vector) {
    float m[VECTORS], most;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const Vector x(half.v[j]);
      m[j] = x.x[0];
#pragma unroll
      for (u32 i = 1; i < WIDTH; ++i) m[j] = max_nan(m[j], x.x[i]);
      most = j ? max_nan(most, m[j]) : m[0];
    }
    vector = 0;
#pragma unroll
    for (u32 j = 1; j < VECTORS; ++j) vector = m[j] == most ? j : vector;
    return most;
  }

  // Reads the row, from the two pieces that are on their way, and keeps the pairs' largest logits. Whether NaN or +inf was seen.
  __device__ __forceinline__ bool read(Half &even, Half &odd, u32 pieces) const {
    const bool restricted = is_restricted();
    bool strange = false;
    if (restricted) {
      load_mask(even, 0);
      load_mask(odd, 1);
    }
    auto take = [&](Half &half, u32 piece, u32 &vector) {
      if (restricted) {
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) restrict(half.v[j], D::at(block, piece * VECTORS + j, threadIdx.x), half.allowed[j]);
      }
      const float most = look(half, vector);
      if (piece + 2 < pieces) {
        load(half, piece + 2);
        if (restricted) load_mask(half, piece + 2);
      }
      return most;
    };
    UNROLL_NOT
    for (u32 piece = 0; piece < pieces; piece += 2) {
      u32 vector, other_vector;
      float most = take(even, piece, vector);
      if (piece + 1 < pieces) {
        const float other = take(odd, piece + 1, other_vector);
        if (other > most) vector = VECTORS + other_vector;
        most = max_nan(most, other);
      }
      if (!(most < infinity())) strange = true;
      const u32 key = key_or_none(most);
      sh->tops[piece / 2][threadIdx.x] = key ? (key & ~D::VECTOR_BITS) | vector : 0;
    }
    return strange;
  }

  // The largest of this thread's logits, as far as its vector may not be edited: a key, not quite reached by those of 32 bits.
  __device__ __forceinline__ u32 unedited(u32 pieces) const {
    u32 most = 0;
    UNROLL_NOT
    for (u32 pair = 0; 2 * pair < pieces; ++pair) {
      const u32 top = sh->tops[pair][threadIdx.x], key = top & ~D::VECTOR_BITS;
      const u32 first = (pair * D::PAIR + (top & D::VECTOR_BITS)) * D::STRIDE + threadIdx.x * WIDTH;
      // No token of the vector, for simplicity.
      if (key > most && !(sh->marks[first / 32] >> first % 32 & ((1u << WIDTH) - 1))) most = key;
    }
    return most;
  }

  // Tells every block the largest logits of this block's groups of threads.
  __device__ __forceinline__ void tell_groups(u32 key) const {
#pragma unroll
    for (u32 step = D::LANES / 2; step; step /= 2) {
      const u32 other = __shfl_xor_sync(~0u, key, step);
      key = other > key ? other : key;
    }
    const u32 place = (block * READER_WARPS + warp) * D::IN_WARP + lane / D::LANES, to = lane % D::LANES;
    if (to < BLOCKS) send_word(address_in(shared_address(&sh->groups[place]), to), key, address_in(shared_address(&sh->told), to));
  }

  // A key that the row's first tokens reach; 0: any. By the reading threads, once all groups are known. A barrier within.
  __device__ __forceinline__ u32 bound() const {
    constexpr u32 APART = D::GROUPS / SAMPLES, OWN = SAMPLES / READER_WARPS, KEYS = D::GROUPS / 32;
    static_assert(OWN == 2);
    const SlicePlan &plan = sh->plan;
    const u32 k = plan.k;
    u32 keys[KEYS];
#pragma unroll
    for (u32 i = 0; i < KEYS / 2; ++i) {
      const uint2 pair = *reinterpret_cast<const uint2 *>(&sh->groups[64 * i + 2 * lane]);
      keys[2 * i] = pair.x;
      keys[2 * i + 1] = pair.y;
    }
    u32 most = 0;
    if (k == 1 || plan.kind == SlicePlan::ABOVE) {
#pragma unroll
      for (u32 i = 0; i < KEYS; ++i) most = keys[i] > most ? keys[i] : most;
      most = __reduce_max_sync(~0u, most);
    }
    u32 found = most;
    if (k > 1) {
      // How many groups reach each of some of them: the largest that enough reach is the bound.
      const u32 one = sh->groups[warp * OWN * APART], other = sh->groups[(warp * OWN + 1) * APART];
      u32 reach = 0;
#pragma unroll
      for (u32 i = 0; i < KEYS; ++i) {
        if (keys[i] >= one) reach += 1;
        if (keys[i] >= other) reach += 1u << 16;
      }
      reach = __reduce_add_sync(~0u, reach);
      if (lane == 0) *reinterpret_cast<uint2 *>(&sh->reach[warp * OWN]) = make_uint2(reach & 0xFFFFu, reach >> 16);
      meet<COUNTED, READERS>();
      const u32 sample = sh->groups[lane * APART];
      found = __reduce_max_sync(~0u, sh->reach[lane] >= k ? sample : 0);
      if (!found) {
        // All of the samples are among the first k: then all groups that there are.
        u32 filled = 0, lowest = ~0u;
#pragma unroll
        for (u32 i = 0; i < KEYS; ++i) {
          filled += keys[i] != 0;
          lowest = keys[i] && keys[i] < lowest ? keys[i] : lowest;
        }
        filled = __reduce_add_sync(~0u, filled);
        lowest = __reduce_min_sync(~0u, lowest);
        found = filled < k ? 0 : lowest;
      }
    }
    if (plan.kind != SlicePlan::ABOVE || !found || !most) return found;
    return key_or_none(fminf(value_of(found), fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(most))));
  }
};

}  // namespace nucleus::spread
