// What a row asks for, learnt by the finishing team while rows before it are read.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

// The ids that a request may edit, by position: the window of its history, then its lists. Some come more than once.
struct Editable {
  const u32 *tail, *eos, *bad;
  const SamplingBias *bias;
  u32 window, biases, ends, words;

  __device__ __forceinline__ Editable(const SamplingBatch &b, const Row *in)
      : tail((in->row.flags & NUCLEUS_ROW_SLOT ? b.slot_tokens : b.arena) + in->row.history.offset + (in->row.history.len - in->window)),
        eos(b.arena + in->row.eos.offset), bad(b.arena + in->row.bad_words.offset),
        bias(reinterpret_cast<const SamplingBias *>(b.arena + in->row.bias.offset)), window(in->window), biases(in->row.bias.len), ends(in->row.eos.len),
        words(in->row.bad_words.len) {}
  // Where the id of a position is; a bias's value follows its id.
  __device__ __forceinline__ const u32 *at(u32 position) const {
    const u32 biased = window + biases;
    return position < window ? tail + position : position < biased ? &bias[position - window].token_id : eos + (position - biased);
  }
  __device__ __forceinline__ u32 without_words() const { return window + biases + ends; }
  // The last id of bad word i. Sequences: the start indices of all, then their ids.
  __device__ __forceinline__ u32 last_of_word(u32 i) const { return bad[words + 1 + bad[i + 1] - 1]; }
};

// Starts to copy a word to shared memory; what this thread has started is there when it has waited. Not to registers: they would be spilled until the word is
// needed, and spilling waits for it.
__device__ __forceinline__ void start_word(void *to, const void *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_words() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// A description on its way to shared memory, by one warp, asked for long before it is needed: under load a read takes microseconds.
struct ComingDescription {
  template <typename T>
  __device__ __forceinline__ static void start(T *to, const T *from) {
#pragma unroll
    for (u32 i = 0; i < sizeof(T) / 4; i += 32)
      if (i + threadIdx.x % 32 < sizeof(T) / 4) start_word(reinterpret_cast<u32 *>(to) + i + threadIdx.x % 32, reinterpret_cast<const u32 *>(from) + i + threadIdx.x % 32);
  }
  __device__ __forceinline__ static void start_request(const SamplingBatch &batch, u32 request) {
    start(&state()->coming.config, batch.configs + request);
    start(&state()->coming.program, batch.programs + request);
  }
  // Most often a row has the request of its own number: then it is read before the row is known.
  __device__ __forceinline__ static void start_row(const SamplingBatch &batch, u32 index) {
    start(&state()->coming.row, batch.row + index);
    if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH) start_request(batch, index);
  }
  // What is known to be needed once the row is there.
  __device__ __forceinline__ static void start_rest(const SamplingBatch &batch, u32 index) {
    wait_for_words();
    __syncwarp();
    const SamplingRow &row = state()->coming.row;
    if (row.flags & NUCLEUS_ROW_PADDING) return;
    if (!(batch.flags & NUCLEUS_BATCH_REQUEST_EACH) || row.request != index) start_request(batch, row.request);
    if (row.flags & NUCLEUS_ROW_SLOT) start(&state()->slot, batch.slots + row.slot);
  }
};

// Fills the description from what has come, by one warp. `aligned`: the row's logits are.
__device__ __forceinline__ void describe(Row *to, bool aligned) {
  State *const sh = state();
  const u32 lane = threadIdx.x % 32;
  wait_for_words();
  __syncwarp();
#pragma unroll
  for (u32 i = 0; i < sizeof(Description) / 4; i += 32)
    if (i + lane < sizeof(Description) / 4) reinterpret_cast<u32 *>(static_cast<Description *>(to))[i + lane] = reinterpret_cast<const u32 *>(&sh->coming)[i + lane];
  __syncwarp();
  const u32 flags = to->row.flags;
  if ((flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT) {
    if (lane == 0) read_slot(sh->slot, to->config, to->row);
    __syncwarp();
  }
  const SlicePlan plan = plan_of(*to);
  const u32 ops = to->program.len, code = lane < ops && lane < NUCLEUS_MAX_OPS ? to->program.ops[lane].code : NUCLEUS_OP_NONE;
  const bool common = is_common(code, ops, plan.op, to->config.min_keep, to->config.flags);
  if (lane) return;
  const u32 window = editable_window(plan, to->config.dry_penalty_last_n, to->config.repeat_last_n, to->row.history.len);
  const u64 ids = static_cast<u64>(window) + to->row.bias.len + to->row.eos.len + to->row.bad_words.len;
  to->plan = plan;
  to->common = common;
  to->window = window;
  to->lowers = edits_lower(to->config);
  const u32 len = to->row.history.len, prompt = to->row.prompt_len, last_n = to->config.repeat_last_n, before = len - window, seen = window_start(len, last_n);
  to->seen_from = plan.occurrences ? seen - before : window;
  to->counted_from = plan.occurrences ? (to->config.flags & NUCLEUS_COUNT_PROMPT ? seen : prompt + window_start(len - prompt, last_n)) - before : window;
  to->bounded = aligned && is_bounded(plan, ids, flags);
  to->found = to->strange = to->bound = to->bans = 0;
}

// Whether a row's ids that may be edited are wanted.
__device__ __forceinline__ bool wants_ids(const Row *row) { return row->bounded && row->plan.edits; }

// Starts to copy the ids that a row may edit, and how much biases change them, by every thread of the finishing team, as `local`.
__device__ __forceinline__ void start_ids(const SamplingBatch &batch, Row *row, u32 local) {
  if (!wants_ids(row)) return;
  const Editable editable(batch, row);
  const u32 count = editable.without_words();
#pragma unroll
  for (u32 at = local; at < EDITS_MOST; at += TEAM_THREADS) {
    if (at >= count) break;
    const u32 *const from = editable.at(at), biased = at - editable.window;
    start_word(&row->ids[at], from);
    if (at >= editable.window && biased < editable.biases && biased < RISES) start_word(&row->rises[biased], from + 1);
  }
  UNROLL_NOT
  for (u32 i = local; i < editable.words; i += TEAM_THREADS) row->ids[count + i] = editable.last_of_word(i);
}

// Marks them for the reading team, after the marks were cleared.
__device__ __forceinline__ void mark_ids(Row *row, u32 local) {
  if (!wants_ids(row)) return;
  wait_for_words();
  const u32 count = row->window + row->row.bias.len + row->row.eos.len, words = row->row.bad_words.len;
#pragma unroll
  for (u32 at = local; at < EDITS_MOST; at += TEAM_THREADS) {
    if (at >= count) break;
    row->mark(row->ids[at]);
  }
  UNROLL_NOT
  for (u32 i = local; i < words; i += TEAM_THREADS) row->mark(row->ids[count + i]);
}

}  // namespace nucleus::relay
