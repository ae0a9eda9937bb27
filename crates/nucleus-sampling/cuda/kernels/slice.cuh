// A block's slice of the row in shared memory: copied there by the bulk copy engine, widened to f32, to be masked and edited in place.
#pragma once

#include "candidates.cuh"
#include "mbarrier.cuh"

namespace nucleus {

// The logits of a warp's part of the slice on their way to shared memory. 16-bit logits land in the upper half of the part's memory and are widened in place.
struct PartLoad {
  const DeviceTeam &team;
  u32 dtype, warp, from, count;  // from: in the slice; count: logits of the part

  __device__ __forceinline__ PartLoad(const DeviceTeam &t, u32 type, u32 of_warp = threadIdx.x / 32) : team(t), dtype(type), warp(of_warp) {
    const u32 begin = warp * t.span;
    from = begin < t.held ? begin : t.held;
    count = from + t.span < t.held ? t.span : t.held - from;
  }
  __device__ static u32 size_of(u32 dtype) { return dtype == NUCLEUS_F32 ? 4 : 2; }
  __device__ __forceinline__ u64 *barrier() const { return &team.sh->arrived[warp]; }
  __device__ __forceinline__ float *part() const { return team.slice + from; }
  __device__ __forceinline__ char *landing() const { return reinterpret_cast<char *>(part()) + (dtype == NUCLEUS_F32 ? 0 : 2 * team.span); }
  // The first logit of the part of a row.
  __device__ __forceinline__ const char *source(const void *row) const {
    return static_cast<const char *>(row) + static_cast<u64>(team.first + from) * size_of(dtype);
  }
  // Logits that the copy engine brings.
  __device__ __forceinline__ u32 copied(const char *source) const {
    return reinterpret_cast<uintptr_t>(source) % 16 == 0 ? count * size_of(dtype) / 16 * 16 / size_of(dtype) : 0;
  }

  // By one lane, once.
  __device__ __forceinline__ void prepare() const {
    init_barrier(barrier(), 1);
    publish_barriers();
  }
  // By one lane, when no lane reads the part any more, after a fence between the proxies by those that wrote to it.
  __device__ __forceinline__ void start(const void *row) const {
    const char *from_row = source(row);
    const u32 bytes = copied(from_row) * size_of(dtype);
    arrive_expecting(barrier(), bytes);
    start_copy(landing(), from_row, bytes, barrier());
  }
  // By every lane. `use` counts the loads before this one to this part.
  __device__ __forceinline__ void wait(u32 use) const { wait_for_copy(barrier(), use & 1); }
  // By every lane, once the copy has arrived. Ids from `limit` on do not exist.
  __device__ __forceinline__ void settle(const void *row, u32 limit) const {
    const u32 lane = threadIdx.x % 32;
    const char *from_row = source(row);
    const u32 there = copied(from_row);
    if (dtype != NUCLEUS_F32) widen(there);
    UNROLL_NOT
    for (u32 i = there + lane; i < count; i += 32) part()[i] = single(from_row, i);
    __syncwarp();
    if (lane < 3 && count + lane < (count + 3) / 4 * 4) part()[count + lane] = -infinity();
    const u32 first = team.first + from;
    UNROLL_NOT
    for (u32 i = (limit > first ? limit - first : 0) + lane; i < count; i += 32) part()[i] = -infinity();
    __syncwarp();
  }
  __device__ __forceinline__ float single(const char *logits, u32 i) const {
    return dtype == NUCLEUS_F32 ? reinterpret_cast<const float *>(logits)[i] : half(reinterpret_cast<const uint16_t *>(logits)[i]);
  }
  __device__ __forceinline__ float half(u32 h) const { return dtype == NUCLEUS_BF16 ? float_of(h << 16) : widen_f16(static_cast<uint16_t>(h)); }

  // Ascending: what one round writes, earlier rounds or this one have read.
  __device__ __forceinline__ void widen(u32 there) const {
    const uint4 *halves = reinterpret_cast<const uint4 *>(landing());
    UNROLL_NOT
    for (u32 base = 0; base < there; base += 32 * 8) {
      const u32 i = base + threadIdx.x % 32 * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (i < there) v = halves[i / 8];
      __syncwarp();
      if (i < there) {
        float4 *to = reinterpret_cast<float4 *>(part() + i);
        to[0] = make_float4(half(v.x & 0xFFFF), half(v.x >> 16), half(v.y & 0xFFFF), half(v.y >> 16));
        to[1] = make_float4(half(v.z & 0xFFFF), half(v.z >> 16), half(v.w & 0xFFFF), half(v.w >> 16));
      }
      __syncwarp();
    }
  }
};

// Empties a table of edits and fills it. The windows that it looks at are held in shared memory if they fit.
__device__ __forceinline__ void note_slice_edits(const DeviceTeam &team, Request r, const SlicePlan &plan, const EditTable &table) {
  constexpr u32 AHEAD = 2;  // tokens of a thread that are asked for before the table is emptied
  u32 len = r.row->history.len, window = 0;
  if (plan.passages) window = r.config->dry_penalty_last_n;
  if (plan.occurrences && r.config->repeat_last_n > window) window = r.config->repeat_last_n;
  if (plan.ngrams || (r.row->bad_words.len && window) || window > len) window = len;
  const bool holds = window && window <= TOKENS_HELD;
  u32 tokens[AHEAD];
#pragma unroll
  for (u32 k = 0; k < AHEAD; ++k)
    if (holds && threadIdx.x + k * THREADS < window) tokens[k] = r.history[len - window + threadIdx.x + k * THREADS];
  const SamplingBias *biases = reinterpret_cast<const SamplingBias *>(r.words(r.row->bias));
  SamplingBias own;
  if (threadIdx.x < r.row->bias.len) own = biases[threadIdx.x];
  clear_edits(team, table);
  if (holds) {
#pragma unroll
    for (u32 k = 0; k < AHEAD; ++k)
      if (threadIdx.x + k * THREADS < window) team.sh->tokens[threadIdx.x + k * THREADS] = tokens[k];
#pragma unroll 4
    for (u32 i = threadIdx.x + AHEAD * THREADS; i < window; i += THREADS) team.sh->tokens[i] = r.history[len - window + i];
    r.history = team.sh->tokens - (len - window);
  }
  sync_block();
  note_biases(team, r, table, [&](u32 i) { return i == threadIdx.x ? own : biases[i]; });
  each_ban(team, r, [&](u32 id) { if (table.covers(id)) raise_bits(&table.insert(id)->flags, BANNED); });
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

}  // namespace nucleus
