// The draw from what min_p keeps of a row without edits, where that is more than a list holds: by all blocks of the row's cluster, which read it again and send the
// leading one what their cells weigh.
#pragma once

#include "spread_finish.cuh"
#include "spread_send.cuh"

namespace nucleus::spread {

template <u32 DTYPE, u32 BLOCKS, bool SOME>
struct ManyAbove : Sender<DTYPE, BLOCKS, SOME> {
  using Base = Sender<DTYPE, BLOCKS, SOME>;
  using typename Base::D;
  using Base::allowed_of, Base::batch, Base::block, Base::index, Base::is_ragged, Base::lane, Base::limit, Base::logits, Base::masked, Base::reads, Base::sh, Base::shift_of, Base::warp;
  using Cell = Cells<DTYPE>;
  static_assert(D::STRIDE % CELL_IDS == 0);

  using Base::Base;

  __device__ __forceinline__ CellRow row() const {
    return CellRow{logits, masked() ? batch.masks + static_cast<u64>(sh->row.mask) * batch.mask_stride : nullptr, batch.mask_words, limit()};
  }

  // The row's largest logit, to all blocks. What groups have told of pairs of pieces of 32-bit logits is rounded down: then the vectors that may
  // have it are read again.
  __device__ __forceinline__ float find_largest() const {
    u32 most = 0;
#pragma unroll
    for (u32 i = 0; i < D::GROUPS; i += 32) most = max(most, sh->groups[i + lane]);
    most = __reduce_max_sync(~0u, most);
    if constexpr (D::ONE_FIRST) return value_of(most);
    if (DTYPE != NUCLEUS_F32) return value_of(most & 0x80000000u ? most : most | D::VECTOR_BITS);
    const bool ragged = is_ragged();
    float own = -infinity();
    if (reads())
      this->each_tops(D::pieces(batch.row_len), [&](const u32 (&tops)[Base::TOPS], u32 from) {
#pragma unroll
        for (u32 i = 0; i < Base::TOPS; ++i) {
          if (!tops[i] || (tops[i] & ~D::VECTOR_BITS) != most) continue;
          const u32 vector = (from + i) * D::PAIR + (tops[i] & D::VECTOR_BITS), local = vector * D::STRIDE + threadIdx.x * D::WIDTH;
          own = fmaxf(own, Base::largest(this->vector_at(D::at(block, vector, threadIdx.x), ragged), masked() ? *allowed_of(sh, local) * shift_of(local) : ~0u));
        }
      });
    const u32 of_warp = __reduce_max_sync(~0u, key_or_none(own));
    if (threadIdx.x == 0) arrive_expecting(&sh->told, 4 * BLOCKS);
    if (lane == 0) sh->maxima[warp] = of_warp;
    sync_block();
    if (warp == 0) {
      const u32 of_block = __reduce_max_sync(~0u, lane < BLOCK_WARPS ? sh->maxima[lane] : 0);
      if (lane < BLOCKS) send_u32(address_in(shared_address(&sh->reach[block]), lane), of_block, address_in(shared_address(&sh->told), lane));
    }
    wait_for_copy(&sh->told, 1);
    return value_of(__reduce_max_sync(~0u, lane < BLOCKS ? sh->reach[lane] : 0));
  }

  // Sends the block's cells.
  __device__ __forceinline__ void send_cells(float threshold, const Weighing &w) const {
    constexpr u32 CELLS = D::STRIDE / CELL_IDS;  // of a vector of each reading thread
    const u32 barrier = address_in(shared_address(&sh->arrived), 0), to = address_in(shared_address(sh->cells), 0);
    u32 sent = 0;
    Cell::template sweep<BLOCK_WARPS>(
        row(), threshold, w, sh->staged[warp], [&](u32 number) { return D::at(block, number / CELLS, 0) + number % CELLS * CELL_IDS; },
        [&](u32 cell, u64 word) {
          if (lane == 0) send_u64(to + cell * 8, word, barrier);
          sent += 1;
        });
    if (lane == 0) announce(barrier, 8 * sent);
  }

  // The draw from all cells, by the leading block; false: too few tokens are kept.
  __device__ __forceinline__ bool draw(const DeviceTeam &team, float threshold, const Weighing &w) const {
    const auto suffices = [&](u32 kept) {
      if (kept < sh->plan.k) keep_others(team, sh, LEFT);
      else release_others();
      return kept >= sh->plan.k;
    };
    const auto write = [&](u64 place, u32 kept, float logprob) { write_choice(sh->out, sh->row.flags, batch, index, place, kept, logprob); };
    wait_for_copy(&sh->arrived, 1);
    return sh->cell_draw.template draw<DTYPE>(sh->cells, row(), threshold, w, sh->uniform, suffices, write);
  }
};

// False: the row is not decided. By all threads of the cluster, after it has met.
template <u32 DTYPE, u32 BLOCKS, bool SOME>
static __device__ __noinline__ bool draw_above(const RowsOfBatch<SOME> &batch) {
  const DeviceTeam team;
  const ManyAbove<DTYPE, BLOCKS, SOME> own(batch, team.block, row_state());
  const SlicePlan plan = own.sh->plan;
  const float largest = own.find_largest(), threshold = least_kept(plan, own.sh->program, largest);
  Weighing w;
  if (!begin_weighing(largest, plan.temperature, w)) return false;
  own.send_cells(threshold, w);
  return team.block ? learn_way(team, own.sh) != LEFT : own.draw(team, threshold, w);
}

}  // namespace nucleus::spread
