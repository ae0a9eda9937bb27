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
// Brings a word from device memory to shared memory, behind the thread's back; zero if it is not there.
__device__ __forceinline__ void copy_word(u32 *to, const u32 *from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}
// Arrives when what the thread brings is there.
__device__ __forceinline__ void arrive_after_copies(u64 *mbarrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory");
}

template <u32 DTYPE, u32 BLOCKS, bool SOME>
struct Reader {
  using D = Deal<DTYPE, BLOCKS>;
  using Vector = typename D::Vector;
  static constexpr u32 WIDTH = D::WIDTH, VECTORS = D::VECTORS, SIZE = 16 / WIDTH;
  static constexpr u32 NONE = Peak<DTYPE>::NONE;
  struct Half {
    uint4 v[VECTORS];
  };

  const RowsOfBatch<SOME> &batch;
  RowState *const sh;
  const u32 index, block, warp, lane;
  const char *const logits;

  __device__ __forceinline__ Reader(const RowsOfBatch<SOME> &b, u32 own, RowState *state)
      : batch(b), sh(state), index(number_of(b)), block(own), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        logits(static_cast<const char *>(b.logits) + static_cast<u64>(number_of(b)) * b.row_stride * SIZE) {}
  // The number of the cluster's row.
  __device__ __forceinline__ static u32 number_of(const RowsOfBatch<SOME> &b) { return b.row_number(blockIdx.x / BLOCKS); }

  __device__ __forceinline__ bool reads() const { return threadIdx.x < READERS; }
  __device__ __forceinline__ bool aligned() const { return reinterpret_cast<uintptr_t>(logits) % 16 == 0; }
  __device__ __forceinline__ u32 limit() const { return sh->config.vocab_size < batch.row_len ? sh->config.vocab_size : batch.row_len; }
  __device__ __forceinline__ bool masked() const { return sh->row.mask >= 0; }

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
  // Whether vectors of the row are not whole, or do not exist for the request.
  __device__ __forceinline__ bool is_ragged() const { return limit() != batch.row_len || batch.row_len % WIDTH; }
  // What there is of a vector of which not all exists.
  __device__ __forceinline__ uint4 end_of(u32 first) const {
    const u32 end = limit();
    u32 w[4] = {NONE, NONE, NONE, NONE};
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (first + i >= end) continue;
      if (DTYPE == NUCLEUS_F32) w[i] = reinterpret_cast<const u32 *>(logits)[first + i];
      else w[i / 2] = reinterpret_cast<const uint16_t *>(logits)[first + i] << (i % 2 * 16) | (w[i / 2] & (i % 2 ? 0xFFFFu : 0xFFFF0000u));
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }

  // What the mask allows of a vector is a byte, for 32-bit logits half of one; that of the thread's next vector follows at this distance.
  static constexpr u32 ALLOWED_STRIDE = D::STRIDE / 8;
  __device__ __forceinline__ static const unsigned char *allowed_of(const RowState *sh, u32 local) { return reinterpret_cast<const unsigned char *>(sh->allowed) + local / 8; }
  // By what the byte is multiplied, so that the vector's bits begin at FIRST_BIT. `local`: the vector's first, of the block's ids.
  static constexpr u32 FIRST_BIT = DTYPE == NUCLEUS_F32 ? 8 : 0;
  __device__ __forceinline__ static u32 shift_of(u32 local) { return DTYPE == NUCLEUS_F32 ? (local % 8 ? 16 : 256) : 1; }

  // Brings the block's part of a mask to shared memory, in the order of its pieces, by a warp.
  __device__ __forceinline__ void bring_mask(u32 mask, u32 pieces) const {
    constexpr u32 WORDS = D::STRIDE / 32;  // for a vector of each reading thread
    const u32 *const from = batch.masks + static_cast<u64>(mask) * batch.mask_stride;
    const u32 vectors = pieces * VECTORS, words = batch.mask_words, row_words = (batch.row_len + 31) / 32;
    if ((reinterpret_cast<uintptr_t>(from) | batch.mask_stride * 4) % 16 == 0 && words >= row_words) {
      // The engine copies 16 bytes at a time, of which the last may lie behind the mask's words. What is for no logit of the row is not brought.
      const u32 end = (row_words + 3) / 4 * 4;
      u32 bytes = 0;
      UNROLL_NOT
      for (u32 j = lane; j < vectors; j += 32) {
        const u32 first = (j * BLOCKS + block) * WORDS, left = first < end ? end - first : 0;
        bytes += (left < WORDS ? left : WORDS) * 4;
      }
      arrive_expecting(&sh->masked, bytes);
      UNROLL_NOT
      for (u32 j = lane; j < vectors; j += 32) {
        const u32 first = (j * BLOCKS + block) * WORDS, left = first < end ? end - first : 0;
        start_copy(&sh->allowed[j * WORDS], from + first, (left < WORDS ? left : WORDS) * 4, &sh->masked);
      }
    } else {
      UNROLL_NOT
      for (u32 i = lane; i < vectors * WORDS; i += 32) {
        const u32 word = (i / WORDS * BLOCKS + block) * WORDS + i % WORDS;
        copy_word(&sh->allowed[i], from + (word < words ? word : 0), word < words);
      }
      arrive_after_copies(&sh->masked);
    }
  }

  // A logit as it came, on its way.
  __device__ __forceinline__ float logit(u32 id) const {
    if (DTYPE == NUCLEUS_F32) return float_of(load_now(reinterpret_cast<const u32 *>(logits) + id));
    uint16_t half;
    asm volatile("ld.global.u16 %0, [%1];" : "=h"(half) : "l"(reinterpret_cast<const uint16_t *>(logits) + id));
    return DTYPE == NUCLEUS_F16 ? widen_f16(half) : float_of(static_cast<u32>(half) << 16);
  }

  // The largest of a vector's logits of which bits are set, from FIRST_BIT on; NaN if one is.
  __device__ __forceinline__ static float largest(const uint4 &v, u32 bits) {
    if (DTYPE == NUCLEUS_F32) {
      // By branches, so that each becomes the condition of one instruction, and none selects.
      const u32 w[4] = {v.x, v.y, v.z, v.w};
      float most = -infinity();
#pragma unroll
      for (u32 i = 0; i < 4; ++i)
        if (bits & 1u << (FIRST_BIT + i)) asm volatile("max.NaN.f32 %0, %0, %1;" : "+f"(most) : "f"(float_of(w[i])));
      return most;
    }
    // No more than infinity with the bit as its sign: a logit stays, but NaN, which is +inf then, or is -inf.
    auto kept = [&](u32 w, u32 i) {
      const u32 signs = bits * ((1u << (15 - 2 * i)) + (1u << (30 - 2 * i)));
      u32 most;
      asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(most) : "r"(signs), "r"(0x80008000u), "r"(NONE));  // (signs & 0x80008000) ^ NONE
      Peak<DTYPE> p;
      if (DTYPE == NUCLEUS_BF16) asm("min.bf16x2 %0, %1, %2;" : "=r"(p.bits) : "r"(w), "r"(most));
      else asm("min.f16x2 %0, %1, %2;" : "=r"(p.bits) : "r"(w), "r"(most));
      return p;
    };
    return (((kept(v.x, 0) | kept(v.y, 1)) | kept(v.z, 2)) | kept(v.w, 3)).value();
  }
  // The largest logit of vectors of which `m` are the largest ones, and its vector; NaN if one is.
  __device__ __forceinline__ static float look(const float (&m)[VECTORS], u32 &vector) {
    float most = m[0];
#pragma unroll
    for (u32 j = 1; j < VECTORS; ++j) most = max_nan(most, m[j]);
    vector = 0;
#pragma unroll
    for (u32 j = 1; j < VECTORS; ++j) vector = m[j] == most ? j : vector;
    return most;
  }

  // Which of a thread's vectors has its largest logit, NaN if it has one, and the largest logit of all other vectors.
  struct First {
    float most = -infinity(), other = -infinity();
    u32 vector = 0;

    __device__ __forceinline__ void add(float of_vector, u32 number) {
      if (of_vector > most) vector = number;
      other = fmaxf(other, fminf(most, of_vector));
      most = max_nan(most, of_vector);
    }
  };

  // Reads the row, from the two pieces that are on their way, and keeps the pairs' largest logits, or the thread's. Whether NaN or +inf was seen.
  __device__ __forceinline__ bool read(Half &even, Half &odd, u32 pieces, First &first) const {
    const u32 shift = masked() ? shift_of(threadIdx.x * WIDTH) : 0;  // 0: all is allowed
    const u32 whole = is_ragged() ? limit() / D::PIECE : pieces;    // pieces that are
    bool strange = false;
    if (shift) wait_for_copy(&sh->masked, 0);
    auto take = [&](Half &half, u32 piece, u32 &vector) {
      float m[VECTORS];
      if (piece >= whole) {
        const u32 end = limit(), partial = end / WIDTH * WIDTH;
        const uint4 last = end_of(partial);
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) {
          const u32 first = D::at(block, piece * VECTORS + j, threadIdx.x);
          if (first >= partial) half.v[j] = first == partial ? last : make_uint4(NONE, NONE, NONE, NONE);
        }
      }
      if (shift) {
        const unsigned char *const own = allowed_of(sh, threadIdx.x * WIDTH) + piece * VECTORS * ALLOWED_STRIDE;
        u32 bits[VECTORS];
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) bits[j] = own[j * ALLOWED_STRIDE];
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) m[j] = largest(half.v[j], bits[j] * shift);
      } else {
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) m[j] = Peak<DTYPE>::of(half.v[j]).value();
      }
      if constexpr (D::ONE_FIRST) {
        if (piece + 2 < pieces) load(half, piece + 2);
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) first.add(m[j], piece * VECTORS + j);
        return first.most;
      }
      const float most = look(m, vector);
      if (piece + 2 < pieces) load(half, piece + 2);
      return most;
    };
    UNROLL_NOT
    for (u32 piece = 0; piece < pieces; piece += 2) {
      u32 vector, other_vector;
      if constexpr (D::ONE_FIRST) {
        take(even, piece, vector);
        if (piece + 1 < pieces) take(odd, piece + 1, vector);
        continue;
      }
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
    return D::ONE_FIRST ? !(first.most < infinity()) : strange;
  }

  // What a thread keeps of its pairs of pieces, so many at a time, which are read together; 0 behind the last pair. `look(tops, from)`, `from`: the first one's number.
  static constexpr u32 TOPS = BLOCKS > 4 ? 1 : BLOCKS > 3 ? 2 : 4;
  template <class Look>
  __device__ __forceinline__ void each_tops(u32 pieces, Look look) const {
    UNROLL_NOT
    for (u32 from = 0; 2 * from < pieces; from += TOPS) {
      u32 tops[TOPS];
#pragma unroll
      for (u32 i = 0; i < TOPS; ++i) tops[i] = 2 * (from + i) < pieces ? sh->tops[from + i][threadIdx.x] : 0;
      look(tops, from);
    }
  }

  // The largest of this thread's logits: a key, not quite reached by those of 32 bits, with the number of its vector among the thread's in the last bits.
  struct Top {
    u32 key = 0, vector = 0;
  };
  __device__ __forceinline__ Top top_of(u32 pieces) const {
    Top most;
    each_tops(pieces, [&](const u32 (&tops)[TOPS], u32 from) {
#pragma unroll
      for (u32 i = 0; i < TOPS; ++i) {
        const u32 key = tops[i] & ~D::VECTOR_BITS;
        if (key > most.key) most = Top{key, (from + i) * D::PAIR + (tops[i] & D::VECTOR_BITS)};
      }
    });
    return most;
  }
  // Whether tokens of its vector may be edited.
  __device__ __forceinline__ bool is_marked(u32 vector) const {
    const u32 first = vector * D::STRIDE + threadIdx.x * WIDTH;
    return sh->marks[first / 32] >> first % 32 & ((1u << WIDTH) - 1);
  }
  // The largest of those pairs of pieces whose largest logit is in a vector that may not be edited.
  __device__ __forceinline__ u32 unedited(u32 pieces) const {
    u32 most = 0;
    each_tops(pieces, [&](const u32 (&tops)[TOPS], u32 from) {
#pragma unroll
      for (u32 i = 0; i < TOPS; ++i) {
        const u32 key = tops[i] & ~D::VECTOR_BITS;
        // No token of the vector, for simplicity.
        const bool marked = is_marked(key ? (from + i) * D::PAIR + (tops[i] & D::VECTOR_BITS) : 0);
        if (key > most && !marked) most = key;
      }
    });
    return most;
  }

  // The key of a thread's largest logit, if its vector has no token that may be edited; else 0.
  __device__ __forceinline__ u32 unedited(const First &first) const { return is_marked(first.vector) ? 0 : key_or_none(first.most); }
  // Brings its vector to shared memory, behind the thread's back.
  __device__ __forceinline__ void bring(const First &first) const {
    const u32 id = D::at(block, first.vector, threadIdx.x);
    uint4 *const to = &sh->vectors[threadIdx.x];
    if (id + WIDTH <= limit()) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(logits + static_cast<u64>(id) * SIZE) : "memory");
    else *to = end_of(id);
  }

  // The largest key of this thread's group.
  __device__ __forceinline__ static u32 group_largest(u32 key) {
#pragma unroll
    for (u32 step = D::LANES / 2; step; step /= 2) {
      const u32 other = __shfl_xor_sync(~0u, key, step);
      key = other > key ? other : key;
    }
    return key;
  }
  // Tells every block the largest logits of this block's groups of threads.
  __device__ __forceinline__ void tell_groups(u32 key) const {
    const u32 place = (block * READER_WARPS + warp) * D::IN_WARP + lane / D::LANES, to = lane % D::LANES;
    if (to < BLOCKS) send_u32(address_in(shared_address(&sh->groups[place]), to), key, address_in(shared_address(&sh->told), to));
  }

  // A key that the row's first tokens reach; 0: any. By the reading threads, once all groups are known. A barrier within.
  __device__ __forceinline__ u32 bound() const {
    const SlicePlan &plan = sh->plan;
    const SlicePlan::Kind kind = plan.kind;
    const BoundOfKeys of = bound_of_keys<D::GROUPS, READER_WARPS>(sh->groups, sh->reach, plan.k, kind == SlicePlan::ABOVE, warp, [] { meet<COUNTED, READERS>(); });
    if (kind != SlicePlan::ABOVE || !of.bound || !of.most) return of.bound;
    return key_or_none(fminf(value_of(of.bound), fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(of.most))));
  }
};

}  // namespace nucleus::spread
