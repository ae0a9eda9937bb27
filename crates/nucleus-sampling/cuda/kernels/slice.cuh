// A block's slice of the row in shared memory: copied there by the bulk copy engine, widened to f32, masked and edited in place.
#pragma once

#include "candidates.cuh"

namespace nucleus {

constexpr u32 COPY_BYTES = 16384;  // of one bulk copy

__device__ __forceinline__ u32 shared_address(const void *p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// Waits until the copies that an mbarrier counts have arrived, in its phase of this parity.
__device__ __forceinline__ void wait_for_copy(const u64 *mbarrier, u32 parity) {
  const u32 barrier = shared_address(mbarrier);
  u32 done = 0;
  while (!done)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
}

// The logits of a slice on their way to shared memory. 16-bit logits land in the upper half of the slice's memory.
struct SliceLoad {
  const DeviceTeam &team;
  const char *from;  // the slice's first logit
  u32 dtype, room;   // room: logits of the slice's memory, a multiple of 8
  u32 copied = 0;    // logits that the copy engine brings

  __device__ SliceLoad(const DeviceTeam &t, const void *row, u32 type, u32 slice_room)
      : team(t), from(static_cast<const char *>(row) + static_cast<u64>(t.first) * size_of(type)), dtype(type), room(slice_room) {
    if (reinterpret_cast<uintptr_t>(from) % 16 == 0) copied = team.held * size_of(dtype) / 16 * 16 / size_of(dtype);
  }
  __device__ static u32 size_of(u32 dtype) { return dtype == NUCLEUS_F32 ? 4 : 2; }
  __device__ char *landing() const { return reinterpret_cast<char *>(team.slice) + (dtype == NUCLEUS_F32 ? 0 : 2 * room); }

  // By one thread, before a barrier of the block. `use` counts the slices held before this one.
  __device__ __forceinline__ void start(u32 use) const {
    u32 bytes = copied * size_of(dtype), barrier = shared_address(&team.sh->arrived), to = shared_address(landing());
    if (use == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // what was written there before comes first
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    UNROLL_NOT
    for (u32 at = 0; at < bytes; at += COPY_BYTES) {
      u32 part = bytes - at < COPY_BYTES ? bytes - at : COPY_BYTES;
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to + at), "l"(from + at), "r"(part),
                   "r"(barrier)
                   : "memory");
    }
  }

  __device__ __forceinline__ void wait(u32 use) const { wait_for_copy(&team.sh->arrived, use & 1); }

  // Every thread of the block, once the copy has arrived; a barrier must follow.
  __device__ __forceinline__ void finish() const {
    if (dtype != NUCLEUS_F32) widen();
    UNROLL_NOT
    for (u32 i = copied + threadIdx.x; i < team.held; i += THREADS) team.slice[i] = single(from, i);
    if (threadIdx.x < 3 && team.held + threadIdx.x < (team.held + 3) / 4 * 4) team.slice[team.held + threadIdx.x] = -infinity();
  }
  __device__ __forceinline__ float single(const void *logits, u32 i) const {
    return dtype == NUCLEUS_F32 ? static_cast<const float *>(logits)[i] : half(static_cast<const uint16_t *>(logits)[i]);
  }
  __device__ __forceinline__ float half(u32 h) const { return dtype == NUCLEUS_BF16 ? float_of(h << 16) : widen_f16(static_cast<uint16_t>(h)); }

  // Ascending: what one round writes, earlier rounds or this one have read.
  __device__ __forceinline__ void widen() const {
    constexpr u32 AHEAD = 5, ROUND = AHEAD * THREADS * 8;
    const uint4 *halves = reinterpret_cast<const uint4 *>(landing());
    UNROLL_NOT
    for (u32 base = 0; base < copied; base += ROUND) {
      uint4 v[AHEAD];
#pragma unroll
      for (u32 k = 0; k < AHEAD; ++k) {
        u32 i = base + (k * THREADS + threadIdx.x) * 8;
        if (i < copied) v[k] = halves[i / 8];
      }
      __syncthreads();
#pragma unroll
      for (u32 k = 0; k < AHEAD; ++k) {
        u32 i = base + (k * THREADS + threadIdx.x) * 8;
        if (i >= copied) continue;
        float4 *to = reinterpret_cast<float4 *>(team.slice + i);
        to[0] = make_float4(half(v[k].x & 0xFFFF), half(v[k].x >> 16), half(v[k].y & 0xFFFF), half(v[k].y >> 16));
        to[1] = make_float4(half(v[k].z & 0xFFFF), half(v[k].z >> 16), half(v[k].w & 0xFFFF), half(v[k].w >> 16));
      }
      __syncthreads();
    }
  }
};

// Ids from `limit` on do not exist.
__device__ __forceinline__ void forget_from(const DeviceTeam &team, u32 limit) {
  UNROLL_NOT
  for (u32 i = (limit > team.first ? limit - team.first : 0) + threadIdx.x; i < team.held; i += THREADS) team.slice[i] = -infinity();
}

// Puts what masks and lists of allowed ids forbid, and ids that do not exist, at -inf.
__device__ __forceinline__ void mask_slice(const DeviceTeam &team, const Request &r) {
  const u32 held = team.held, first = team.first;
  if (r.mask)
    for (u32 i = threadIdx.x; i < held; i += THREADS)
      if (!mask_allows(r, first + i)) team.slice[i] = -infinity();
  if (!(r.row->flags & NUCLEUS_ROW_ALLOWED)) return;
  u32 *bits = team.sh->tokens;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < (held + 31) / 32; i += THREADS) bits[i] = 0;
  __syncthreads();
  const u32 *ids = r.words(r.row->allowed);
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < r.row->allowed.len; i += THREADS)
    if (ids[i] >= first && ids[i] - first < held) atomicOr(&bits[(ids[i] - first) / 32], 1u << ((ids[i] - first) % 32));
  __syncthreads();
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < held; i += THREADS)
    if (!(bits[i / 32] >> (i % 32) & 1)) team.slice[i] = -infinity();
}

// Fills the table of a slice. The windows that it looks at are held in shared memory if they fit.
__device__ __forceinline__ void note_slice_edits(const DeviceTeam &team, Request r, const SlicePlan &plan, const EditTable &table) {
  u32 len = r.row->history.len, window = 0;
  if (plan.passages) window = r.config->dry_penalty_last_n;
  if (plan.occurrences && r.config->repeat_last_n > window) window = r.config->repeat_last_n;
  if (plan.ngrams || (r.row->bad_words.len && window) || window > len) window = len;
  if (window && window <= TOKENS_HELD) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < window; i += THREADS) team.sh->tokens[i] = r.history[len - window + i];
    r.history = team.sh->tokens - (len - window);
    __syncthreads();
  }
  note_bias_and_bans(team, r, table);
  if (plan.occurrences) note_occurrences(team, r, table);
  if (plan.passages) note_passages(team, r, table);
  if (plan.ngrams) note_ngrams(team, r, table);
}

// The edits by id of a program in which they come first. `unusual`: one made NaN or +inf.
__device__ __forceinline__ float edited(const Request &r, float x, const Edit &edit, bool &unusual) {
  if (edit.flags & BANNED) return -infinity();
  if (edit.flags & BIASED) x = x + edit.bias;
  x = x + 0.0f;
  UNROLL_NOT
  for (u32 i = 0; i < r.program->len && x > -infinity(); ++i) {
    u32 code = r.program->ops[i].code;
    unusual |= !(x < infinity());
    if (code != NUCLEUS_OP_DRY && code != NUCLEUS_OP_PENALTIES && code != NUCLEUS_OP_NO_REPEAT_NGRAM) break;
    x = apply_edit(code, x, edit, *r.config) + 0.0f;
  }
  unusual |= !(x < infinity());
  return x;
}

// Applies the block's table to its slice.
__device__ __forceinline__ bool edit_slice(const DeviceTeam &team, const Request &r, const EditTable &table) {
  bool unusual = false;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < table.capacity; i += THREADS) {
    const Edit &edit = table.slots[i];
    if (edit.id == NO_ID || edit.id >= r.limit) continue;
    float &x = team.slice[edit.id - team.first];
    if (x == -infinity()) continue;
    x = edited(r, x, edit, unusual);
  }
  return unusual;
}

}  // namespace nucleus
