// Bounded requests: edits by id and temperatures, then top_k, min_p or argmax. Their first tokens decide, and few others are looked at twice.
//
// A row is shared out in segments, and a block reads one segment after another through a ring of tiles in shared memory. Of a segment it leaves in the
// workspace the unedited tokens that may be among the row's first k: those that reach a lower bound of the k-th largest, or of min_p's threshold, of its
// own. The largest of these bounds is one of the row's. A second launch, which begins while the segments are read, gathers what reaches it, edits the
// tokens of the request that may reach it, and runs the program on the sorted list. No block waits for another. What does not fit, rows that are not of
// numbers alone and other requests are PENDING.
#pragma once

#include "tile.cuh"

namespace nucleus {

constexpr u32 TILES_AHEAD = 2;   // in the ring
constexpr u32 TILE_BLOCKS = 2;   // resident on a multiprocessor
constexpr u32 SEGMENTS_MOST = 64;  // of a row
constexpr u32 SEGMENT_ROWS = 132 * TILE_BLOCKS;  // blocks resident at a time on the devices this is tuned for: rows x segments is no more, or one a row
constexpr u32 HEAD_WORDS = 128;
constexpr u32 HEAD_ROOM = HEAD_WORDS - 1;  // tokens that most segments leave at most
constexpr u32 SEGMENT_ROOM = 256;  // tokens that a segment may leave

constexpr u32 UNDECIDED = 0xFFFFFFFFu;  // count of a segment with NaN, +inf or more tokens than there is room for

// What a segment has left: how many tokens, a key that all of the row's first k reach, and the first of the tokens, 0 where there is none.
struct alignas(16) SegmentHead {
  u32 count, bound;
  u64 places[HEAD_ROOM];

  // Where the n-th token is: few tokens are spread over the head, so that warps which share it see some each.
  __device__ __forceinline__ static u32 slot(u32 n) { return n < HEAD_WORDS / 2 - 1 ? 2 * n + 1 : 2 * (n - (HEAD_WORDS / 2 - 1)); }
};

// How rows are shared out, and where their segments leave tokens.
struct Segments {
  SegmentHead *heads;  // [rows][count]
  u64 *rest;           // [rows][count][SEGMENT_ROOM - HEAD_ROOM]
  u32 count;           // of a row
  u32 length;          // logits of a segment, a multiple of 64; the last may have fewer
};

// A row's description, and what it asks for.
struct BoundedRow : Description {
  SlicePlan plan;
  bool bounded;  // it is decided here, as far as the description tells
  u32 window;    // tokens at the end of the history that may be edited
  u32 found;
  u32 strange;  // NaN or +inf was seen
  u32 maxima[TILE_WARPS];
};

// The ids that a request may edit, by position: the window of its history, then its lists. Some come more than once.
struct Editable {
  const u32 *tail, *eos, *bad;
  const SamplingBias *bias;
  u32 window, biases, ends, words;

  __device__ __forceinline__ Editable(const Request &r, u32 in_window)
      : tail(r.history + (r.row->history.len - in_window)), eos(r.words(r.row->eos)), bad(r.words(r.row->bad_words)),
        bias(reinterpret_cast<const SamplingBias *>(r.words(r.row->bias))), window(in_window), biases(r.row->bias.len), ends(r.row->eos.len),
        words(r.row->bad_words.len) {}
  __device__ __forceinline__ u32 count() const { return window + biases + ends + words; }
  // The id, and how much its bias may raise the logit.
  __device__ __forceinline__ u32 at(u32 position, float &rise) const {
    rise = 0.0f;
    if (position < window) return tail[position];
    position -= window;
    if (position < biases) {
      rise = fmaxf(bias[position].value, 0.0f);
      return bias[position].token_id;
    }
    position -= biases;
    if (position < ends) return eos[position];
    // Sequences: the start indices of all, then their ids.
    return bad[words + 1 + bad[position - ends + 1] - 1];
  }
};

// Fills the description, by one warp.
__device__ __forceinline__ void describe_bounded(BoundedRow *sh, const SamplingBatch &batch, u32 index) {
  const u32 lane = threadIdx.x;
  const SamplingRow *row = batch.row + index;
  const u32 request = row->request;
  auto words = [&](void *to, const void *from, u32 count) {
#pragma unroll
    for (u32 i = 0; i < 3; ++i)
      if (i * 32 + lane < count) static_cast<u32 *>(to)[i * 32 + lane] = static_cast<const u32 *>(from)[i * 32 + lane];
  };
  words(&sh->row, row, sizeof(SamplingRow) / 4);
  words(&sh->config, batch.configs + request, sizeof(SamplingConfig) / 4);
  words(&sh->program, batch.programs + request, sizeof(SamplingProgram) / 4);
  __syncwarp();
  const u32 flags = sh->row.flags;
  if ((flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT) {
    if (lane == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
    __syncwarp();
  }
  const SlicePlan plan = plan_of(*sh);
  if (lane) return;
  const u32 window = editable_window(*sh, plan);
  const u64 ids = static_cast<u64>(window) + sh->row.bias.len + sh->row.eos.len + sh->row.bad_words.len;
  sh->plan = plan;
  sh->window = window;
  sh->bounded = plan.sliced && (plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE) && plan.k <= BOUND_K && ids <= EDITS_MOST &&
                (flags & (NUCLEUS_ROW_ALLOWED | NUCLEUS_ROW_FEW | NUCLEUS_ROW_PROCESSED | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_PROCESSED;
  sh->found = sh->strange = 0;
}

// A key that at least k of the threads' keys reach, and few more; 0 marks threads without one, and is the result if some warp has too few. By every
// of N threads, with its own key.
template <u32 N>
__device__ __forceinline__ u32 bound_of_keys(BoundedRow *sh, u32 key, u32 k) {
  constexpr u32 ROUNDS = 3, WARPS_OF_N = N / 32;
  // As many of every warp as make k together: the least of these is reached by k, the largest by few.
  u32 left = key, found = 0;
  UNROLL_NOT
  for (u32 i = 0; i < k; i += WARPS_OF_N) {
    found = __reduce_max_sync(~0u, left);
    left = left == found ? 0 : left;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh->maxima[threadIdx.x / 32] = found;
  __syncthreads();
  const u32 one = sh->maxima[threadIdx.x % WARPS_OF_N];
  u32 low = __reduce_min_sync(~0u, one), high = __reduce_max_sync(~0u, one);
  if (k == 1) return high;
  if (!low) return 0;
  UNROLL_NOT
  for (u32 round = 0; round < ROUNDS; ++round) {
    const u32 middle = key_of(0.5f * value_of(low) + 0.5f * value_of(high) + 0.0f);
    const u32 reach = __syncthreads_count(key >= middle);
    if (reach < k) high = middle;
    else low = middle;
    if (reach >= k && reach <= k + k / 4) break;
  }
  return low;
}

// A logit that the first tokens reach, from every thread's largest key; to every thread.
template <u32 N>
__device__ __forceinline__ float threshold_of(BoundedRow *sh, u32 key) {
  const SlicePlan &plan = sh->plan;
  const bool above = plan.kind == SlicePlan::ABOVE;
  const u32 bound = bound_of_keys<N>(sh, key, plan.k);
  float threshold = bound ? value_of(bound) : -infinity();
  if (above) {
    const u32 most = plan.k == 1 ? bound : bound_of_keys<N>(sh, key, 1);
    if (most) threshold = fminf(threshold, fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(most)));
  }
  return threshold;
}

// Room in a list for the tokens that lanes of a warp have: the index of this lane's. `total` counts them all.
__device__ __forceinline__ u32 reserve(u32 *total, bool has) {
  const u32 lanes = __ballot_sync(~0u, has), lane = threadIdx.x % 32;
  u32 base = 0;
  if (lane == 0 && lanes) base = atomicAdd(total, __popc(lanes));
  return __shfl_sync(~0u, base, 0) + __popc(lanes & ((1u << lane) - 1));
}

}  // namespace nucleus
