// What rows ask for, learnt by a team of two warps while rows before them are read.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

// The ids that a request may edit, by position: the window of its history, then its lists. Some come more than once.
struct Editable {
  const u32 *tail, *eos, *bad;
  const SamplingBias *bias;
  u32 window, biases, ends, words;

  __device__ __forceinline__ Editable(const SamplingBatch &b, const SamplingRow &row, u32 last)
      : tail((row.flags & NUCLEUS_ROW_SLOT ? b.slot_tokens : b.arena) + row.history.offset + (row.history.len - last)), eos(b.arena + row.eos.offset),
        bad(b.arena + row.bad_words.offset), bias(reinterpret_cast<const SamplingBias *>(b.arena + row.bias.offset)), window(last), biases(row.bias.len),
        ends(row.eos.len), words(row.bad_words.len) {}
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

// Fills the description from what has come, as far as the reading team and the copy of its ids need it, by one warp. `aligned`: the row's logits are. `told`: the
// reading team's, which looks at the row's first stages meanwhile.
__device__ __forceinline__ void describe(Row *to, bool aligned, u64 *told) {
  State *const sh = state();
  const u32 lane = threadIdx.x % 32;
  wait_for_words();
  __syncwarp();
  constexpr u32 WORDS = sizeof(Description) / 4, EACH = (WORDS + 31) / 32;
  u32 words[EACH];
#pragma unroll
  for (u32 i = 0; i < EACH; ++i)
    if (i * 32 + lane < WORDS) words[i] = reinterpret_cast<const u32 *>(&sh->coming)[i * 32 + lane];
#pragma unroll
  for (u32 i = 0; i < EACH; ++i)
    if (i * 32 + lane < WORDS) reinterpret_cast<u32 *>(static_cast<Description *>(to))[i * 32 + lane] = words[i];
  arrive_as_warp(told);
  const u32 flags = to->row.flags;
  if ((flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT) {
    if (lane == 0) read_slot(sh->slot, to->config, to->row);
    __syncwarp();
  }
  const SlicePlan plan = plan_of(*to);
  if (lane) return;
  const u32 window = editable_window(plan, to->config.dry_penalty_last_n, to->config.repeat_last_n, to->row.history.len);
  const u64 ids = static_cast<u64>(window) + to->row.bias.len + to->row.eos.len + to->row.bad_words.len;
  to->plan = plan;
  to->window = window;
  to->bounded = aligned && is_bounded(plan, ids, flags);
  to->found = to->strange = to->bound = to->bans = to->largest = 0;
}

// The rest of it, by the same warp.
__device__ __forceinline__ void describe_rest(Row *to) {
  const u32 lane = threadIdx.x % 32, ops = to->program.len, code = lane < ops && lane < NUCLEUS_MAX_OPS ? to->program.ops[lane].code : NUCLEUS_OP_NONE;
  const SlicePlan &plan = to->plan;
  const bool common = is_common(code, ops, plan.op, to->config.min_keep, to->config.flags);
  if (lane) return;
  to->common = common;
  to->lowers = edits_lower(to->config);
  const u32 window = to->window, len = to->row.history.len, prompt = to->row.prompt_len, last_n = to->config.repeat_last_n, before = len - window, seen = window_start(len, last_n);
  to->seen_from = plan.occurrences ? seen - before : window;
  to->counted_from = plan.occurrences ? (to->config.flags & NUCLEUS_COUNT_PROMPT ? seen : prompt + window_start(len - prompt, last_n)) - before : window;
}

// Whether a row's ids that may be edited are wanted.
__device__ __forceinline__ bool wants_ids(const Row *row) { return row->bounded && row->plan.edits; }

// Starts to bring ids that a row may edit, and how much biases change them, by a warp; bad words apart. What lies in whole 16 bytes is brought by the copy engine.
__device__ __forceinline__ void start_ids(const Editable &editable, Row *row) {
  const u32 lane = threadIdx.x % 32, window = editable.window, shift = static_cast<u32>(reinterpret_cast<uintptr_t>(editable.tail) / 4 % 4);
  const u32 ragged = (4 - shift) % 4, head = ragged < window ? ragged : window, whole = (window - head) / 4 * 4, rest = window - head - whole;
  u32 *const ids = row->id_words + shift;
  u64 *const brought = &state()->brought;
  if (lane == 0) {
    row->shift = shift;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // others have written here
    arrive_expecting(brought, whole * 4);
    start_copy(ids + head, editable.tail + head, whole * 4, brought);
  }
  if (lane < head) start_word(ids + lane, editable.tail + lane);
  if (lane < rest) start_word(ids + (head + whole + lane), editable.tail + (head + whole + lane));
  const u32 count = editable.without_words();
  UNROLL_NOT
  for (u32 at = window + lane; at < count; at += 32) {
    const u32 *const from = editable.at(at), biased = at - window;
    start_word(ids + at, from);
    if (biased < editable.biases && biased < RISES) start_word(&row->rises[biased], from + 1);
  }
}

// Marks ids for the reading team, by as many threads, once they have come.
static __device__ __noinline__ void mark_editable(Row *row, u32 local, u32 threads) {
  const u32 first = row->shift, end = first + row->window + row->row.bias.len + row->row.eos.len + row->row.bad_words.len;
  UNROLL_NOT
  for (u32 at = 4 * local; at < end; at += 4 * threads) {
    const uint4 four = *reinterpret_cast<const uint4 *>(&row->id_words[at]);
    if (at >= first && at + 4 <= end) {
      row->mark(four.x);
      row->mark(four.y);
      row->mark(four.z);
      row->mark(four.w);
      continue;
    }
    if (at >= first) row->mark(four.x);
    if (at + 1 >= first && at + 1 < end) row->mark(four.y);
    if (at + 2 >= first && at + 2 < end) row->mark(four.z);
    if (at + 3 >= first && at + 3 < end) row->mark(four.w);
  }
}

// What only the description tells.
__device__ __forceinline__ void complete_description(const SamplingBatch &batch, u32 index, Row *row, u32 local) {
  if (local == 0) row->request = request_of(batch, index, row->row, row->config, row->program);
  if (local == 1) row->scale = scale(row->plan.temperature);
  if (local == 32) row->uniform = uniform_of(row->row, row->config);
}

// Forgets what was collected of a row that is not decided, or before any is read, by as many threads. Barriers precede and follow.
__device__ __forceinline__ void forget_collected(Row *row, u32 local, u32 threads) {
  UNROLL_NOT
  for (u32 i = local; i < COLLECT_MOST; i += threads) row->places[i] = 0;
}

// Whether the copy engine can bring a row.
__device__ __forceinline__ bool is_aligned(const SamplingBatch &batch, u32 index) {
  return (reinterpret_cast<uintptr_t>(batch.logits) + index * batch.row_stride * (batch.dtype == NUCLEUS_F32 ? 4 : 2)) % 16 == 0;
}

// Describes all rows of the block, each as soon as the place of the one before the last is free.
template <class B>
__device__ __forceinline__ void describe_rows(const B &batch) {
  State *const sh = state();
  const u32 local = Describing::thread();
  const bool leads = local < 32;  // the warp that the words come to
  u32 taken = blockIdx.x, index = batch.row_number(taken);
  if (leads) {
    ComingDescription::start_row(batch, index);
    ComingDescription::start_rest(batch, index);
  }
  UNROLL_NOT
  for (u32 turn = 0;; taken += gridDim.x, ++turn) {
    const u32 at = turn % 2;
    Row *const row = &sh->rows[at];
    if (turn) wait_for_copy(&sh->finished[at], (turn - 1) / 2 % 2);
    if (turn > 1) wait_for_copy(&sh->followed_to_end[at], (turn - 2) / 2 % 2);
    if (leads) {
      describe(row, is_aligned(batch, index), &sh->told[at]);
    } else {
      UNROLL_NOT
      for (u32 i = local - 32; i < MARKS / 128; i += DESCRIBING_THREADS - 32) reinterpret_cast<uint4 *>(row->marks)[i] = make_uint4(0, 0, 0, 0);
    }
    Describing::sync();
    const bool wanted = wants_ids(row);
    if (!wanted && local < TELLING_THREADS) arrive(&sh->ready[at]);
    if (!leads) {
      if (wanted) start_ids(Editable(batch, row->row, row->window), row);
      else if (local == 32) arrive(&sh->brought);
#ifdef NUCLEUS_RACECHECK
      if (!wanted && local == 32) wait_for_copy(&sh->brought, turn % 2);  // synccheck wants somebody to
#endif
      if (turn == 0) arrive_as_warp(&sh->begun);
    }
    if (leads) describe_rest(row);
    complete_description(batch, index, row, local);
    if (wanted) {
      wait_for_copy(&sh->brought, turn % 2);
      wait_for_words();
      if (row->row.bad_words.len) {
        const Editable editable(batch, row->row, row->window);
        Describing::sync();
        UNROLL_NOT
        for (u32 i = local; i < editable.words; i += DESCRIBING_THREADS) row->ids()[editable.without_words() + i] = editable.last_of_word(i);
      }
      if (turn) {
        Describing::sync();
        mark_editable(row, local, DESCRIBING_THREADS);
        Describing::sync();
      } else {
        Marking::sync();
        mark_editable(row, local, Marking::THREADS_OF_IT);
        Marking::sync();
      }
      if (local < TELLING_THREADS) arrive(&sh->ready[at]);
    }
    if (!wanted && turn == 0) Marking::sync();
    arrive_as_warp(&sh->known[at]);
    if (taken + gridDim.x >= batch.rows) return;
    index = batch.row_number(taken + gridDim.x);
    if (!leads) continue;
    ComingDescription::start_row(batch, index);
    ComingDescription::start_rest(batch, index);
  }
}

}  // namespace nucleus::relay
