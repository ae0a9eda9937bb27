// How a context is cut into splits, and how their results are put together.
//
// The borders of splits are fixed positions, and the results of splits are added in ascending order by one function, wherever they were computed: in turn
// by one block, or side by side by many. So a row's result has the same bits either way.
#pragma once

#include "launch.cuh"

namespace nucleus {

// Short splits spread the contexts that are common over the machine; far ones are longer, so that there are not too many to add.
constexpr uint32_t SHORT_SPLIT = 256, LONG_SPLIT = 1024, LONG_FROM = 16384, FIRST_LONG = LONG_FROM / SHORT_SPLIT;

__host__ __device__ constexpr uint32_t split_begin(uint32_t split) {
  return split < FIRST_LONG ? split * SHORT_SPLIT : LONG_FROM + (split - FIRST_LONG) * LONG_SPLIT;
}

__host__ __device__ constexpr uint32_t split_of(uint32_t position) {
  return position < LONG_FROM ? position / SHORT_SPLIT : FIRST_LONG + (position - LONG_FROM) / LONG_SPLIT;
}

// Splits of a context of so many positions.
__host__ __device__ constexpr uint32_t splits_of(uint32_t positions) { return positions == 0 ? 0 : split_of(positions - 1) + 1; }

static_assert(splits_of(256) == 1 && splits_of(257) == 2 && splits_of(8192) == 32);
static_assert(split_begin(split_of(16383)) == 16128 && split_begin(split_of(16384)) == 16384 && split_begin(split_of(20000)) == 19456);

// 2^x, with 2^-∞ = 0 and 2^0 = 1; the same bits wherever it stands.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What a bound of the scores' exponents changes to: the weight of what was summed under the old one. Bounds are whole numbers, so weights are powers of two,
// and no sum is rounded when its bound changes.
__device__ __forceinline__ float weight_under(float bound, float old_bound) {
  return old_bound == -INFINITY ? 0.0f : exp2_approximate(old_bound - bound);
}

// A row's softmax so far: Σ 2^(s - bound) over its scores s, in units of log 2.
struct Softmax {
  float bound = -INFINITY;
  float sum = 0.0f;
};

// What a total and a split's sums are to be multiplied by when the split is added.
struct Weights {
  float total, split;

  __device__ __forceinline__ float add(float so_far, float of_split) const { return __fmaf_rn(split, of_split, __fmul_rn(so_far, total)); }
};

// Adds a split's softmax to the total.
__device__ __forceinline__ Weights add_split(Softmax &total, const Softmax &split) {
  const float bound = fmaxf(total.bound, split.bound);
  const Weights weights{weight_under(bound, total.bound), weight_under(bound, split.bound)};
  total.bound = bound;
  total.sum = weights.add(total.sum, split.sum);
  return weights;
}

// A weighted sum of values over the sum of the weights; a zero has no sign, for a split without weight would take it away.
__device__ __forceinline__ float attended(float weighted, float inverse_sum) { return __fmaf_rn(weighted, inverse_sum, 0.0f); }

}  // namespace nucleus
