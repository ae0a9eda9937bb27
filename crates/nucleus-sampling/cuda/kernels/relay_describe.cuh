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
  __device__ __forceinline__ u32 count() const { return window + biases + ends + words; }
  // The id, and its bias if it has one.
  __device__ __forceinline__ u32 at(u32 position, float &rise) const {
    if (position < window) return tail[position];
    position -= window;
    if (position < biases) {
      rise = bias[position].value;
      return bias[position].token_id;
    }
    position -= biases;
    if (position < ends) return eos[position];
    // Sequences: the start indices of all, then their ids.
    return bad[words + 1 + bad[position - ends + 1] - 1];
  }
};

// The words of a description on their way to a warp's registers, asked for long before they are needed: under load a read takes microseconds.
struct DescriptionWords {
  static constexpr u32 ROW = sizeof(SamplingRow) / 4, REQUEST_WORD = offsetof(SamplingRow, request) / 4, FLAGS_WORD = offsetof(SamplingRow, flags) / 4,
                       SLOT_WORD = offsetof(SamplingRow, slot) / 4;
  u32 row[2], config[2], program[3], slot[1];

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
  template <u32 WORD>
  __device__ __forceinline__ u32 word_of_row() const { return __shfl_sync(~0u, row[WORD / 32], WORD % 32); }
  // Most often a row has the request of its own number: then it is read before the row is known.
  __device__ __forceinline__ void load(const SamplingBatch &batch, u32 index) {
    load(row, batch.row + index, ROW);
    if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH) load_request(batch, index);
  }
  // What is known to be needed once the row is there.
  __device__ __forceinline__ void load_rest(const SamplingBatch &batch, u32 index) {
    const u32 request = word_of_row<REQUEST_WORD>(), flags = word_of_row<FLAGS_WORD>(), at = word_of_row<SLOT_WORD>();
    if (flags & NUCLEUS_ROW_PADDING) return;
    if (!(batch.flags & NUCLEUS_BATCH_REQUEST_EACH) || request != index) load_request(batch, request);
    if (flags & NUCLEUS_ROW_SLOT) load(slot, batch.slots + at, sizeof(SamplingSlot) / 4);
  }
};

// Fills the description, by one warp that has loaded the words.
__device__ __forceinline__ void describe(Row *to, const SamplingBatch &batch, u32 index, const DescriptionWords &words) {
  State *const sh = state();
  const u32 lane = threadIdx.x % 32;
  DescriptionWords::store(&to->row, words.row, sizeof(SamplingRow) / 4);
  DescriptionWords::store(&to->config, words.config, sizeof(SamplingConfig) / 4);
  DescriptionWords::store(&to->program, words.program, sizeof(SamplingProgram) / 4);
  DescriptionWords::store(&sh->slot, words.slot, sizeof(SamplingSlot) / 4);
  __syncwarp();
  const u32 flags = to->row.flags;
  if ((flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT) {
    if (lane == 0) read_slot(sh->slot, to->config, to->row);
    __syncwarp();
  }
  const SlicePlan plan = plan_of(*to);
  const u32 len = to->program.len, code = lane < len && lane < NUCLEUS_MAX_OPS ? to->program.ops[lane].code : NUCLEUS_OP_NONE;
  const bool common = is_common(code, len, plan.op, to->config.min_keep, to->config.flags);
  if (lane) return;
  const u32 window = editable_window(plan, to->config.dry_penalty_last_n, to->config.repeat_last_n, to->row.history.len);
  const u64 ids = static_cast<u64>(window) + to->row.bias.len + to->row.eos.len + to->row.bad_words.len;
  const bool aligned = (reinterpret_cast<uintptr_t>(batch.logits) + index * batch.row_stride * (batch.dtype == NUCLEUS_F32 ? 4 : 2)) % 16 == 0;
  to->plan = plan;
  to->common = common;
  to->window = window;
  to->lowers = edits_lower(to->config);
  to->bounded = aligned && is_bounded(plan, ids, flags);
  to->found = to->strange = to->bound = to->bans = 0;
}

// The ids that a row may edit, and how much biases change them, on their way to a thread of the finishing team.
struct EditableIds {
  static constexpr u32 EACH = EDITS_MOST / TEAM_THREADS;
  u32 ids[EACH];
  float rises[EACH];

  // By every thread of the team, as `local`.
  __device__ __forceinline__ void load(const SamplingBatch &batch, const Row *row, u32 local) {
    if (!row->bounded || !row->plan.edits) return;
    const Editable editable(batch, row);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i)
      if (i * TEAM_THREADS + local < editable.count()) ids[i] = editable.at(i * TEAM_THREADS + local, rises[i]);
  }
  // Keeps them and marks them for the reading team, after the marks were cleared.
  __device__ __forceinline__ void store(Row *row, u32 local) const {
    if (!row->bounded || !row->plan.edits) return;
    const u32 window = row->window, biased = window + row->row.bias.len, count = biased + row->row.eos.len + row->row.bad_words.len;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = i * TEAM_THREADS + local;
      if (at >= count) break;
      row->mark(ids[i]);
      row->ids[at] = ids[i];
      if (at >= window && at < biased && at - window < RISES) row->rises[at - window] = rises[i];
    }
  }
};

}  // namespace nucleus::relay
