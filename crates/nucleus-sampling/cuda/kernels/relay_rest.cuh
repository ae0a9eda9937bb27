// The rows of a block that few tokens do not decide, where no launch follows: by both teams together, once all rows are read.
#pragma once

#include "cell_draw.cuh"
#include "relay.cuh"
#include "unsliced.cuh"

namespace nucleus::relay {

// Status of a row, once it is read, that only keeps more tokens than a list holds. Where no launch follows, its largest logit's key stands for the token.
__device__ __forceinline__ u32 what_is_left(const Row *row, bool last) {
  const bool many = row->bounded && !row->strange && row->largest && keeps_many_above(row->plan, row->program);
  return !many ? PENDING : last ? MANY_KEPT : MANY_ABOVE;
}

// Behind what is run for every row: ptxas puts the functions of a kernel in the order of their mangled names.
namespace rest {

// What drawing from a row needs behind Shared.
struct RestRoom {
  CellDraw<THREADS> draw;
  u64 cells[CELLS_MOST];
  float staged[WARPS][CELL_IDS];
};
static_assert(SHARED_BYTES + sizeof(RestRoom) <= RING_BYTES && SHARED_BYTES + SPARE_BYTES <= RING_BYTES, "the barriers of the state keep their memory");

// Draws from the tokens above min_p's threshold in a row without edits; false: it is not decided. `largest`: a key.
template <u32 DTYPE>
static __device__ __noinline__ bool draw_above(u32 index, u32 largest) {
  Shared *const sh = shared_state();
  RestRoom *const room = reinterpret_cast<RestRoom *>(shared_slice());
  const SlicePlan plan = plan_of(*sh);
  const RowCall call{index, 0, RawSums{}};
  const Request r = call.request();
  const CellRow row{static_cast<const char *>(r.logits), r.mask, r.mask_words, r.limit};
  Weighing w;
  if (!begin_weighing(value_of(largest), plan.temperature, w)) return false;
  const float threshold = least_kept(plan, sh->program, value_of(largest));
  Cells<DTYPE>::template sweep<WARPS>(
      row, threshold, w, room->staged[threadIdx.x / 32], [](u32 number) { return number * CELL_IDS; },
      [&](u32 cell, u64 word) {
        if (threadIdx.x % 32 == 0) room->cells[cell] = word;
      });
  sync_block();
  return room->draw.template draw<DTYPE>(
      room->cells, row, threshold, w, uniform_of(r), [&](u32 kept) { return kept >= plan.k; },
      [&](u64 place, u32 kept, float logprob) {
        Outcome outcome;
        outcome.token = id_at(place);
        outcome.kept = kept;
        outcome.logprob = logprob;
        *call.out() = result(outcome, RawSums{}, r);
      });
}

// All of them. The other warps have ended.
template <u32 DTYPE, class B>
static __device__ __noinline__ void sample(const B &batch, const Workspace &workspace) {
  Shared *const sh = shared_state();
  sync_block();  // all know that there are such rows
  DeviceTeam{}.prepare_meetings();
  UNROLL_NOT
  for (u32 taken = blockIdx.x; taken < batch.rows; taken += gridDim.x) {
    const u32 index = batch.row_number(taken);
    sync_block();
    share_row(sh, batch, index, batch.row[index].flags & NUCLEUS_ROW_PADDING ? 0 : batch.row[index].request);
    share_batch(sh, batch);
    if (threadIdx.x == 0) {
      sh->verdict = *static_cast<const volatile u32 *>(&batch.out[index].status);
      sh->told_count = *static_cast<const volatile u32 *>(&batch.out[index].token_id);
    }
    sync_block();
    const u32 status = sh->verdict, largest = sh->told_count;
    if (sh->row.flags & NUCLEUS_ROW_PADDING || status < MANY_KEPT) continue;
    describe_slot(sh, batch);
    if (status == MANY_KEPT && draw_above<DTYPE>(index, largest)) continue;
    sync_block();
    if (threadIdx.x == 0) sh->found = sh->kept = 0;
    sync_block();
    unsliced::sample(RowCall{index, 0, RawSums{}, true}, workspace, false);
  }
}

}  // namespace rest

}  // namespace nucleus::relay
