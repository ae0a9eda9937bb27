// The draw from what reaches a logit in a row of device memory without edits, from the weights of cells of consecutive ids.
#pragma once

#include "bounded.cuh"
#include "list_draw.cuh"

namespace nucleus {

// The row, whose vectors are aligned.
struct CellRow {
  const char *logits;
  const u32 *mask;  // null: all is allowed
  u32 mask_words, limit;

  // The bits of the tokens from an id on, as far as they are in its word.
  __device__ __forceinline__ u32 allowed(u32 id) const { return !mask ? ~0u : id / 32 < mask_words ? mask[id / 32] >> id % 32 : 0; }
};

constexpr u32 CELL_IDS = 256;

template <u32 DTYPE>
struct Cells {
  static constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, SIZE = 16 / WIDTH, VECTORS = CELL_IDS / (32 * WIDTH), EACH = VECTORS * WIDTH;  // of a lane: vectors and tokens
  static constexpr u32 COUNT_AT = 54;  // of a cell's word: how many tokens are kept; below it what they weigh
  static_assert(VECTORS * 32 * WIDTH == CELL_IDS);

  __device__ __forceinline__ static u64 weight(u64 word) { return word & ((1ull << COUNT_AT) - 1); }
  __device__ __forceinline__ static u32 count(u64 word) { return static_cast<u32>(word >> COUNT_AT); }

  // The first id of a lane's vector.
  __device__ __forceinline__ static u32 first_of(u32 cell, u32 vector) { return cell + (vector * 32 + threadIdx.x % 32) * WIDTH; }
  // Which of a lane's tokens the mask allows.
  __device__ __forceinline__ static u32 allowed(const CellRow &row, u32 cell) {
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < VECTORS; ++i) bits |= (row.allowed(first_of(cell, i)) & ((1u << WIDTH) - 1)) << i * WIDTH;
    return bits;
  }
  // A cell's word, to every lane of the warp: what lanes keep of their tokens is moved together, so that most lanes have one to weigh. `staged`: a float for each id of a cell.
  __device__ __forceinline__ static u64 weigh(const float (&x)[EACH], u32 keeps, const Weighing &w, float *staged) {
    const u32 lane = threadIdx.x % 32;
    if (!__any_sync(~0u, keeps)) return 0;
    const u32 through = prefix_sum(static_cast<u32>(__popc(keeps))), kept = __shfl_sync(~0u, through, 31);
    u32 to = through - __popc(keeps);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i)
      if (keeps >> i & 1) staged[to++] = x[i];
    __syncwarp();
    u64 sum = 0;
    UNROLL_NOT
    for (u32 i = lane; i < kept; i += 32) sum += w.q(staged[i]);
    __syncwarp();
    return static_cast<u64>(kept) << COUNT_AT | DeviceWarp{}.sum_of_48_bits(sum);
  }
  // The same of the row's last cell, which it does not fill.
  static __device__ __noinline__ u64 weigh_last(const CellRow &row, u32 cell, float threshold, const Weighing &w, float *staged) {
    float x[EACH];
    u32 keeps = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 id = first_of(cell, i / WIDTH) + i % WIDTH;
      x[i] = id < row.limit ? logit_in<DTYPE>(row.logits, id) : -infinity();
      if (x[i] >= threshold) keeps |= 1u << i;
    }
    return weigh(x, keeps & allowed(row, cell), w, staged);
  }
  // Weighs cells, by warps of which this is one of WARPS: number i of them begins at first_id(i), which rises with i. Lanes of the warp get tell(cell, word).
  template <u32 WARPS, class First, class Tell>
  __device__ __forceinline__ static void sweep(const CellRow &row, float threshold, const Weighing &w, float *staged, First first_id, Tell tell) {
    u32 number = threadIdx.x / 32, cell = first_id(number);
    uint4 next[VECTORS];
    const auto load = [&] {
#pragma unroll
      for (u32 i = 0; i < VECTORS; ++i)
        if (cell + CELL_IDS <= row.limit) next[i] = *reinterpret_cast<const uint4 *>(row.logits + static_cast<u64>(first_of(cell, i)) * SIZE);
    };
    load();
    UNROLL_NOT
    while (cell + CELL_IDS <= row.limit) {
      const u32 own = cell;
      float x[EACH];
#pragma unroll
      for (u32 i = 0; i < VECTORS; ++i) {
        const Lane<DTYPE> lane(next[i]);
#pragma unroll
        for (u32 e = 0; e < WIDTH; ++e) x[i * WIDTH + e] = lane.x[e];
      }
      number += WARPS;
      cell = first_id(number);
      load();
      u32 keeps = 0;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i)
        if (x[i] >= threshold) keeps |= 1u << i;
      if (row.mask) keeps &= allowed(row, own);
      tell(own / CELL_IDS, weigh(x, keeps, w, staged));
    }
    if (cell < row.limit) tell(cell / CELL_IDS, weigh_last(row, cell, threshold, w, staged));
  }
};
constexpr u32 CELLS_MOST = NUCLEUS_MAX_VOCAB / CELL_IDS;

// What a block of N threads needs beside the cells to draw from them.
template <u32 N>
struct CellDraw {
  static constexpr u32 BLOCK = N / 32;  // warps
  u64 masses[2][BLOCK];                 // of warps
  u32 kept[BLOCK];
  u64 base;  // what lies before the cell in which the draw falls
  u32 cell;

  // By all threads, after a barrier. suffices(kept) tells whether so many tokens are enough; false if not. Else one thread calls done(place, kept, logprob).
  template <u32 DTYPE, class Suffices, class Done>
  __device__ __forceinline__ bool draw(const u64 *cells, const CellRow &row, float threshold, const Weighing &w, u64 uniform, Suffices suffices, Done done) {
    using Cell = Cells<DTYPE>;
    static_assert(CELL_IDS <= N);
    const u32 t = threadIdx.x, warp = t / 32, lane = t % 32, there = (row.limit + CELL_IDS - 1) / CELL_IDS, each = (there + N - 1) / N, begin = t * each, end = begin + each < there ? begin + each : there;
    u64 sum = 0, total, of_cell;
    u32 many = 0;
    UNROLL_NOT
    for (u32 i = begin; i < end; ++i) {
      sum += Cell::weight(cells[i]);
      many += Cell::count(cells[i]);
    }
    u64 through = prefix_sum(sum);
    many = __reduce_add_sync(~0u, many);
    if (lane == 31) {
      masses[0][warp] = through;
      kept[warp] = many;
    }
    sync_block();
    u64 at = through - sum + sum_before<BLOCK>(masses[0], warp, total);
    many = __reduce_add_sync(~0u, lane < BLOCK ? kept[lane] : 0);
    if (!suffices(many)) return false;
    const u64 target = mulhi64(uniform, total);
    if (target >= at && target - at < sum) {
      u32 found = begin;
      UNROLL_NOT
      for (; target - at >= Cell::weight(cells[found]); ++found) at += Cell::weight(cells[found]);
      cell = found;
      base = at;
    }
    sync_block();
    const u32 id = cell * CELL_IDS + t;
    const float x = t < CELL_IDS && id < row.limit && row.allowed(id) & 1 ? logit_in<DTYPE>(row.logits, id) : -infinity();
    const u64 q = x >= threshold ? w.q(x) : 0;
    through = prefix_sum(q);
    if (lane == 31) masses[1][warp] = through;
    sync_block();
    at = base + through - q + sum_before<BLOCK>(masses[1], warp, of_cell);
    if (target >= at && target - at < q) done(place_of(x + 0.0f, id), many, processed_logprob(q, total));
    return true;
  }
};

// The least logit that is kept: min_p's threshold, or any that a token may have.
__device__ __forceinline__ float least_kept(const SlicePlan &plan, const SamplingProgram &program, float largest) {
  return fmaxf(fmaf(plan.temperature, program.ops[plan.op].arg, largest), least_finite());
}

}  // namespace nucleus
