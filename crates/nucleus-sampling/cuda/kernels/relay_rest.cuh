// The rows of a block that few tokens do not decide, where no launch follows: by both teams together, once all rows are read.
#pragma once

#include "cut.cuh"
#include "relay.cuh"
#include "unsliced.cuh"

namespace nucleus::relay {

// Status of a row, once it is read, that only keeps more tokens than a list holds. Where no launch follows, its largest logit's key stands for the token.
__device__ __forceinline__ u32 what_is_left(const Row *row, bool last) {
  const bool many = row->bounded && !row->strange && row->largest && keeps_many_above(row->plan, row->program);
  return !many ? PENDING : last ? MANY_KEPT : MANY_ABOVE;
}

static_assert(SHARED_BYTES + cut_room_bytes<THREADS>(NUCLEUS_MAX_VOCAB) <= RING_BYTES && SHARED_BYTES + SPARE_BYTES <= RING_BYTES, "the barriers of the state keep their memory");

// Draws from the tokens above min_p's threshold in a row without edits; false: it is not decided.
static __device__ __noinline__ bool draw_above(u32 index, u32 largest) {
  Shared *const sh = shared_state();
  CutRoom<THREADS> *const room = CutRoom<THREADS>::here();
  const SlicePlan plan = plan_of(*sh);
  const Request r = RowCall{index, 0, RawSums{}}.request();
  if (threadIdx.x == 0) {
    room->plan = RowPlan{};
    room->plan.temperature = plan.temperature;
    room->plan.arg = sh->program.ops[plan.op].arg;
    room->many = ManyKept{0, 0, plan.k, value_of(largest), RawSums{}};
    room->group.gather(0, 1);
    room->uniform = uniform_of(sh->row, sh->config);
    room->row = ChunkedRow{static_cast<const char *>(r.logits), r.mask, r.mask_words, r.dtype, r.limit, sh->batch.row_len, 0, nullptr, nullptr, Division{}};
    room->verdict = begin_weighing(room->many.largest, plan.temperature, room->w) && DoubleAddends(room->w).serve;
  }
  __syncthreads();
  if (!room->verdict || find_cut<THREADS>(reading_of(r)) != FOUND) return false;
  draw_from_chunks<THREADS>(index);
  return true;
}

// All of them. The other warps have ended.
static __device__ __noinline__ void sample_rest(const SamplingBatch &batch, const Workspace &workspace) {
  Shared *const sh = shared_state();
  __syncthreads();  // all know that there are such rows
  DeviceTeam{}.prepare_meetings();
  UNROLL_NOT
  for (u32 index = blockIdx.x; index < batch.rows; index += gridDim.x) {
    __syncthreads();
    share_row(sh, batch, index, batch.row[index].flags & NUCLEUS_ROW_PADDING ? 0 : batch.row[index].request);
    share_batch(sh, batch);
    if (threadIdx.x == 0) {
      sh->verdict = *static_cast<const volatile u32 *>(&batch.out[index].status);
      sh->told_count = *static_cast<const volatile u32 *>(&batch.out[index].token_id);
    }
    __syncthreads();
    const u32 status = sh->verdict, largest = sh->told_count;
    if (sh->row.flags & NUCLEUS_ROW_PADDING || status < MANY_KEPT) continue;
    describe_slot(sh, batch);
    if (status == MANY_KEPT && draw_above(index, largest)) continue;
    __syncthreads();
    if (threadIdx.x == 0) sh->found = sh->kept = 0;
    __syncthreads();
    sample_unsliced(RowCall{index, 0, RawSums{}, true}, workspace, false);
  }
}

}  // namespace nucleus::relay
