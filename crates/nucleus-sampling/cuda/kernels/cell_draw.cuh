// The draw from what reaches a logit in a row of device memory without edits, from the weights of cells of consecutive ids: as many as a warp has in a vector each.
#pragma once

#include "bounded.cuh"

namespace nucleus {

// The row, whose vectors are aligned.
struct CellRow {
  const char *logits;
  const u32 *mask;  // null: all is allowed
  u32 mask_words, limit;

  // The bits of the tokens from an id on, as far as they are in its word.
  __device__ __forceinline__ u32 allowed(u32 id) const { return !mask ? ~0u : id / 32 < mask_words ? mask[id / 32] >> id % 32 : 0; }
};

template <u32 DTYPE>
struct Cells {
  static constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, SIZE = 16 / WIDTH, IDS = 32 * WIDTH, MOST = NUCLEUS_MAX_VOCAB / IDS;
  static constexpr u32 COUNT_AT = 54;  // of a cell's word: how many tokens; below it what they weigh
  static constexpr u32 NONE = Peak<DTYPE>::NONE;

  __device__ __forceinline__ static u64 weight(u64 cell) { return cell & ((1ull << COUNT_AT) - 1); }
  __device__ __forceinline__ static u32 count(u64 cell) { return static_cast<u32>(cell >> COUNT_AT); }
  __host__ __device__ __forceinline__ static constexpr u32 of(u32 limit) { return (limit + IDS - 1) / IDS; }

  // What there is of the row's last vector.
  static __device__ __noinline__ uint4 end_of(const char *logits, u32 first, u32 limit) {
    u32 w[4] = {NONE, NONE, NONE, NONE};
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (first + i >= limit) continue;
      if (DTYPE == NUCLEUS_F32) w[i] = reinterpret_cast<const u32 *>(logits)[first + i];
      else w[i / 2] = static_cast<u32>(reinterpret_cast<const uint16_t *>(logits)[first + i]) << (i % 2 * 16) | (w[i / 2] & (i % 2 ? 0xFFFFu : 0xFFFF0000u));
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
  }
  // A warp's cell from its vectors, to every lane. `allowed`: bits of the lane's tokens.
  __device__ __forceinline__ static u64 weigh(const uint4 &v, u32 allowed, float threshold, const DoubleAddends &addends) {
    const Lane<DTYPE> own(v);
    DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
    u32 kept = 0;
#pragma unroll
    for (u32 e = 0; e < WIDTH; ++e) {
      const bool passes = own.x[e] >= threshold && allowed >> e & 1;
      kept += passes;
      addends.add(passes ? own.x[e] : -infinity(), sums[e % 2]);
    }
    const u64 sum = DeviceWarp{}.sum_of_48_bits(addends.taken(sums[0]) + addends.taken(sums[1]));
    return static_cast<u64>(__reduce_add_sync(~0u, kept)) << COUNT_AT | sum;
  }
  // Weighs cells, by warps of which this is one of WARPS: number i of them begins at first_of(i), which rises with i. Lanes of the warp get tell(cell, word).
  template <u32 WARPS, class First, class Tell>
  __device__ __forceinline__ static void sweep(const CellRow &row, float threshold, const DoubleAddends &addends, First first_of, Tell tell) {
    constexpr u32 AHEAD = 4;
    const u32 own = threadIdx.x % 32 * WIDTH;
    UNROLL_NOT
    for (u32 from = threadIdx.x / 32; first_of(from) < row.limit; from += AHEAD * WARPS) {
      uint4 v[AHEAD];
      u32 allowed[AHEAD];
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i) {
        const u32 first = first_of(from + i * WARPS) + own;
        v[i] = make_uint4(NONE, NONE, NONE, NONE);
        if (first + WIDTH <= row.limit) v[i] = *reinterpret_cast<const uint4 *>(row.logits + static_cast<u64>(first) * SIZE);
        allowed[i] = row.allowed(first);
      }
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i) {
        const u32 cell = first_of(from + i * WARPS), first = cell + own;
        if (cell >= row.limit) break;
        if (first < row.limit && first + WIDTH > row.limit) v[i] = end_of(row.logits, first, row.limit);
        __syncwarp();
        tell(cell / IDS, weigh(v[i], allowed[i], threshold, addends));
      }
    }
  }
};

// What a block of N threads needs beside the cells to draw from them.
template <u32 N>
struct CellDraw {
  static constexpr u32 BLOCK = N / 32;  // warps
  u64 masses[2][BLOCK];                 // of warps
  u32 kept[BLOCK];
  u64 base;  // what lies before the cell in which the draw falls
  u32 cell;

  // What lies before the warp, and the sum over all.
  __device__ __forceinline__ static u64 before(const u64 *of_warps, u64 &total) {
    u64 sum = 0;
    total = 0;
#pragma unroll 8
    for (u32 i = 0; i < BLOCK; ++i) {
      sum += i < threadIdx.x / 32 ? of_warps[i] : 0;
      total += of_warps[i];
    }
    return sum;
  }
  // By all threads, after a barrier. suffices(kept) tells whether so many tokens are enough; false if not. Else one thread calls done(place, kept, logprob).
  template <u32 DTYPE, class Suffices, class Done>
  __device__ __forceinline__ bool draw(const u64 *cells, const CellRow &row, float threshold, const Weighing &w, u64 uniform, Suffices suffices, Done done) {
    using Cell = Cells<DTYPE>;
    static_assert(Cell::IDS <= N);
    const u32 t = threadIdx.x, warp = t / 32, lane = t % 32, there = Cell::of(row.limit), each = (there + N - 1) / N, begin = t * each, end = begin + each < there ? begin + each : there;
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
    __syncthreads();
    u64 at = through - sum + before(masses[0], total);
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
    __syncthreads();
    const u32 id = cell * Cell::IDS + t;
    const float x = t < Cell::IDS && id < row.limit && row.allowed(id) & 1 ? logit_in<DTYPE>(row.logits, id) : -infinity();
    const u64 q = x >= threshold ? w.q(x) : 0;
    through = prefix_sum(q);
    if (lane == 31) masses[1][warp] = through;
    __syncthreads();
    at = base + through - q + before(masses[1], of_cell);
    if (target >= at && target - at < q) done(place_of(x + 0.0f, id), many, processed_logprob(q, total));
    return true;
  }
};

// The least logit that is kept: min_p's threshold, or any that a token may have.
__device__ __forceinline__ float least_kept(const SlicePlan &plan, const SamplingProgram &program, float largest) {
  return fmaxf(fmaf(plan.temperature, program.ops[plan.op].arg, largest), float_of(0xFF7FFFFFu));
}

}  // namespace nucleus
