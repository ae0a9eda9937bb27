// Bounded requests where rows are neither few nor many: a block or a pair of blocks a row, in one kernel.
//
// Each block streams a segment of the row through a ring of tiles in shared memory and collects the tokens that may be among the row's first k: those
// that reach a lower bound of the k-th largest logit, or of min_p's threshold. The leading block takes in what the other has collected, applies the edits
// of the tokens that have some, and runs the program on the sorted list. What does not fit, rows that are not of numbers alone and other requests are
// PENDING.
#pragma once

#include "tile.cuh"

namespace nucleus::pairs {

constexpr u32 STAGES_MOST = 6;     // tiles in the ring
constexpr u32 SHARERS_MOST = 2;    // blocks a row
constexpr u32 COLLECT_MOST = LISTED;  // tokens that a block has room for
constexpr u32 CHANGED = 256;       // tokens with edits that may be among the first
constexpr u32 CHANGED_SLOTS = 2 * CHANGED;
constexpr u32 GROUPS_OF_ROW = 128;  // of threads, each with its largest logit

constexpr u32 ORDERED_MOST = 128;     // a list of no more tokens is also ordered by id

// How rows are shared out.
struct Sharing {
  u32 blocks;  // a row, a power of two
  u32 length;  // logits of a segment, a multiple of 64; the last may have fewer
  u32 stages;  // tiles in the ring
  u32 ahead;   // tiles of a segment that its first bound is taken from, no more than stages
  u32 ring_bytes;
};

// A row's description, what it asks for, and what a block has found.
struct BoundedRow : Description {
  SlicePlan plan;
  float scale;   // of the plan's temperature
  u64 uniform;   // that draws
  bool bounded;  // it is decided here, as far as the description tells
  bool common;   // its program is one of the commonest (chain.cuh)
  bool lowers;   // edits by id never raise a logit, biases apart
  u32 window;    // tokens at the end of the history that may be edited
  u32 found;     // tokens collected
  u32 strange;   // NaN or +inf was seen
  u32 bound;     // the largest known key that all of the row's first k reach; 0: none
  u32 changed_count, holes;  // holes: places of the list that are empty
  u32 maxima[TILE_WARPS], minima[TILE_WARPS];
  alignas(16) float groups[GROUPS_OF_ROW];
  u32 by_id[ORDERED_MOST];                        // of the sorted list: how many have a smaller id
  alignas(16) u64 weights_by_id[ORDERED_MOST];
  u32 ids_by_id[ORDERED_MOST];
  alignas(16) u64 places[COLLECT_MOST];
  u32 ids[EDITS_MOST];  // that may be edited: the window of the history, then the lists
  Edit changed[CHANGED_SLOTS + 1];
  float changed_logits[CHANGED_SLOTS];  // as they came
  u64 arrived[STAGES_MOST];             // mbarriers of the ring
};

// Shared memory: the ring, then BoundedRow, then a bit for each id of a segment; once that is over, the weights of a list.
__device__ __forceinline__ unsigned char *ring() { return shared_memory; }
__device__ __forceinline__ BoundedRow *bounded_row(u32 ring_bytes) { return reinterpret_cast<BoundedRow *>(shared_memory + ring_bytes); }
constexpr u32 BOUNDED_ROW_BYTES = (sizeof(BoundedRow) + 15) / 16 * 16;
__device__ __forceinline__ u32 *bits_after(BoundedRow *sh) { return reinterpret_cast<u32 *>(reinterpret_cast<unsigned char *>(sh) + BOUNDED_ROW_BYTES); }
__device__ __forceinline__ u64 *weights_after(BoundedRow *sh) { return reinterpret_cast<u64 *>(bits_after(sh)); }
inline u32 bounded_bytes(u32 ring_bytes, u32 length) {
  const u32 bits = (length + 31) / 32 * 4, weights = LISTED * sizeof(u64);
  return ring_bytes + BOUNDED_ROW_BYTES + (bits > weights ? bits : weights);
}
static_assert(BOUNDED_ROW_BYTES + LISTED * sizeof(u64) >= TILE_BYTES, "a tile's end may lie beyond the ring");

// A token that may be edited, in a list of places: a bit that the complement of an id always has is clear.
constexpr u64 EDITABLE = 1ull << 31;
__device__ __forceinline__ u64 editable_place(u64 place) { return place & ~EDITABLE; }
__device__ __forceinline__ bool is_editable(u64 place) { return place && !(place & EDITABLE); }
__device__ __forceinline__ u32 editable_id(u64 place) { return id_at(place | EDITABLE); }

// The ids that a request may edit, by position: the window of its history, then its lists. Some come more than once.
struct Editable {
  const u32 *tail, *eos, *bad;
  const SamplingBias *bias;
  u32 window, biases, ends, words;

  __device__ __forceinline__ Editable(const SamplingBatch &b, const SamplingRow &row, u32 in_window)
      : tail((row.flags & NUCLEUS_ROW_SLOT ? b.slot_tokens : b.arena) + row.history.offset + (row.history.len - in_window)), eos(b.arena + row.eos.offset),
        bad(b.arena + row.bad_words.offset), bias(reinterpret_cast<const SamplingBias *>(b.arena + row.bias.offset)), window(in_window), biases(row.bias.len),
        ends(row.eos.len), words(row.bad_words.len) {}
  __device__ __forceinline__ u32 count() const { return window + biases + ends + words; }
  __device__ __forceinline__ u32 at(u32 position) const {
    if (position < window) return tail[position];
    position -= window;
    if (position < biases) return bias[position].token_id;
    position -= biases;
    if (position < ends) return eos[position];
    // Sequences: the start indices of all, then their ids.
    return bad[words + 1 + bad[position - ends + 1] - 1];
  }
};

// Whether edits by id never raise a logit, biases apart.
__device__ __forceinline__ bool edits_lower(const SamplingConfig &c) {
  return c.repetition_penalty >= 1.0f && c.frequency_penalty >= 0.0f && c.presence_penalty >= 0.0f && c.dry_multiplier >= 0.0f && c.dry_base >= 0.0f;
}

// Whether the program is top_k, then top_p and min_p in any order, then the draw; by a warp.
__device__ __forceinline__ bool is_common(const Description &d, const SlicePlan &plan) {
  const u32 lane = threadIdx.x % 32, last = d.program.len - 1;
  const u32 code = lane < d.program.len && lane < NUCLEUS_MAX_OPS && lane >= plan.op ? d.program.ops[lane].code : NUCLEUS_OP_NONE;
  const bool known = code == NUCLEUS_OP_NONE || code == NUCLEUS_OP_TOP_P || code == NUCLEUS_OP_MIN_P || (code == NUCLEUS_OP_TOP_K && lane == plan.op) ||
                     (code == NUCLEUS_OP_DRAW && lane == last);
  return __all_sync(~0u, known) && d.config.min_keep <= 1 && !(d.config.flags & NUCLEUS_KEEP_TIES);
}

// The words of a description on their way to a warp's registers.
struct DescriptionWords {
  u32 row[2], config[2], program[3];

  template <u32 N>
  __device__ __forceinline__ static void load(u32 (&to)[N], const void *from, u32 count) {
#pragma unroll
    for (u32 i = 0; i < N; ++i)
      if (i * 32 + threadIdx.x % 32 < count) to[i] = static_cast<const u32 *>(from)[i * 32 + threadIdx.x % 32];
  }
  template <u32 N>
  __device__ __forceinline__ static void store(void *to, const u32 (&from)[N], u32 count) {
#pragma unroll
    for (u32 i = 0; i < N; ++i)
      if (i * 32 + threadIdx.x % 32 < count) static_cast<u32 *>(to)[i * 32 + threadIdx.x % 32] = from[i];
  }
  __device__ __forceinline__ void load_request(const SamplingBatch &batch, u32 request) {
    load(config, batch.configs + request, sizeof(SamplingConfig) / 4);
    load(program, batch.programs + request, sizeof(SamplingProgram) / 4);
  }
  // Most often a row has the request of its own number: then it is read before the row is known.
  __device__ __forceinline__ void load(const SamplingBatch &batch, u32 index) {
    load(row, batch.row + index, sizeof(SamplingRow) / 4);
    load_request(batch, batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : batch.row[index].request);
  }
};

// Fills the description, by one warp that has loaded the words.
__device__ __forceinline__ void describe_bounded(BoundedRow *sh, const SamplingBatch &batch, u32 index, DescriptionWords &words) {
  const u32 lane = threadIdx.x % 32;
  DescriptionWords::store(&sh->row, words.row, sizeof(SamplingRow) / 4);
  __syncwarp();
  const u32 request = sh->row.request;
  if (request != index && batch.flags & NUCLEUS_BATCH_REQUEST_EACH && !(sh->row.flags & NUCLEUS_ROW_PADDING)) words.load_request(batch, request);
  DescriptionWords::store(&sh->config, words.config, sizeof(SamplingConfig) / 4);
  DescriptionWords::store(&sh->program, words.program, sizeof(SamplingProgram) / 4);
  __syncwarp();
  const u32 flags = sh->row.flags;
  if ((flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT) {
    if (lane == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
    __syncwarp();
  }
  const SlicePlan plan = plan_of(*sh);
  const bool common = is_common(*sh, plan);
  if (lane) return;
  const u32 window = editable_window(*sh, plan);
  const u64 ids = static_cast<u64>(window) + sh->row.bias.len + sh->row.eos.len + sh->row.bad_words.len;
  sh->plan = plan;
  sh->common = common;
  sh->window = window;
  sh->lowers = edits_lower(sh->config);
  sh->bounded = plan.sliced && (plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE) && plan.k <= BOUND_K && ids <= EDITS_MOST &&
                (flags & (NUCLEUS_ROW_ALLOWED | NUCLEUS_ROW_FEW | NUCLEUS_ROW_PROCESSED | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_PROCESSED;
  sh->found = sh->strange = sh->changed_count = sh->holes = sh->bound = 0;
}

// Narrows [low, high) down to a number that at least k of the threads' numbers reach, and few more. Every thread of the block calls it.
__device__ __forceinline__ float narrow(float own, float low, float high, u32 k, u32 rounds) {
  UNROLL_NOT
  for (u32 round = 0; round < rounds; ++round) {
    const float middle = 0.5f * low + 0.5f * high;
    const u32 reach = __syncthreads_count(own >= middle);
    if (reach < k) high = middle;
    else low = middle;
    if (reach - k <= k / 4) break;
  }
  return low;
}

// The key of a logit, 0 for -inf.
__device__ __forceinline__ u32 key_or_none(float x) { return x > -infinity() ? key_of(x + 0.0f) : 0; }
__device__ __forceinline__ float value_or_none(u32 key) { return key ? value_of(key) : -infinity(); }

// A number that at least k of the threads' numbers reach, and few more; -inf marks threads without one, and is the result if some warp has too few.
// `most`: the largest.
__device__ __forceinline__ float bound_of_threads(BoundedRow *sh, float own, u32 k, float &most) {
  // As many of every warp as make k together: the least of these is reached by k, the largest by few.
  const u32 key = key_or_none(own), largest = __reduce_max_sync(~0u, key);
  u32 left = key == largest ? 0 : key, found = largest;
  UNROLL_NOT
  for (u32 i = TILE_WARPS; i < k; i += TILE_WARPS) {
    found = __reduce_max_sync(~0u, left);
    left = left == found ? 0 : left;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    sh->maxima[threadIdx.x / 32] = largest;
    sh->minima[threadIdx.x / 32] = found;
  }
  __syncthreads();
  const u32 one = sh->minima[threadIdx.x % TILE_WARPS];
  most = value_or_none(__reduce_max_sync(~0u, sh->maxima[threadIdx.x % TILE_WARPS]));
  if (k == 1) return most;
  const u32 low = __reduce_min_sync(~0u, one), high = __reduce_max_sync(~0u, one);
  return low ? narrow(own, value_of(low), value_of(high), k, 3) : -infinity();
}

// A logit that the first tokens reach, from a bound of the k-th and the largest.
__device__ __forceinline__ float threshold_of(const BoundedRow *sh, float bound, float most) {
  if (sh->plan.kind != SlicePlan::ABOVE || most == -infinity()) return bound;
  return fminf(bound, fmaf(sh->plan.temperature, sh->program.ops[sh->plan.op].arg, most));
}
__device__ __forceinline__ float threshold_of_threads(BoundedRow *sh, float own) {
  float most;
  const float bound = bound_of_threads(sh, own, sh->plan.k, most);
  return threshold_of(sh, bound, most);
}

// Room in a list for the tokens that lanes of a warp have: the index of this lane's. `total` counts them all.
__device__ __forceinline__ u32 reserve(u32 *total, bool has) {
  const u32 lanes = __ballot_sync(~0u, has), lane = threadIdx.x % 32;
  u32 base = 0;
  if (lane == 0 && lanes) base = atomicAdd(total, __popc(lanes));
  return __shfl_sync(~0u, base, 0) + __popc(lanes & ((1u << lane) - 1));
}

// Appends a token to the list; the place it has come to.
__device__ __forceinline__ u32 append(BoundedRow *sh, u64 place) {
  const u32 to = atomicAdd(&sh->found, 1);
  if (to < COLLECT_MOST) sh->places[to] = place;
  return to;
}

// Appends tokens to the list, `place` 0 for none; lanes of a warp together.
__device__ __forceinline__ void list_place(BoundedRow *sh, u64 place) {
  if (!__any_sync(~0u, place != 0)) return;
  const u32 to = reserve(&sh->found, place != 0);
  if (place && to < COLLECT_MOST) sh->places[to] = place;
}

// Raises the bound by what has been collected, and drops what does not reach it: what may be edited too, unless `edits_follow`, for an edit may raise it.
// Called by every thread, after a barrier; a barrier follows.
static __device__ __noinline__ float raise_bound(BoundedRow *sh, float threshold, bool edits_follow) {
  constexpr u32 EACH = COLLECT_MOST / TILE_THREADS;
  const u32 count = sh->found;
  // Spread over the warps, so that each has as many.
  const u32 spread = threadIdx.x % 32 * TILE_WARPS + threadIdx.x / 32;
  u64 own[EACH];
  u32 most = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 at = i * TILE_THREADS + spread;
    own[i] = at < count ? sh->places[at] : 0;
    const u32 key = is_editable(own[i]) ? 0 : static_cast<u32>(own[i] >> 32);
    most = key > most ? key : most;
  }
  threshold = fmaxf(threshold, threshold_of_threads(sh, value_or_none(most)));
  if (threadIdx.x == 0) sh->found = 0;
  __syncthreads();
  const u32 bound = key_or_none(threshold);
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    if (i * TILE_THREADS >= count) break;  // of the whole block
    list_place(sh, static_cast<u32>(own[i] >> 32) >= bound || (edits_follow && is_editable(own[i])) ? own[i] : 0);
  }
  __syncthreads();
  return threshold;
}

}  // namespace nucleus::pairs
