// A lane's weights of a step, as the tensor cores take them, and the sum of their products.
#pragma once

#include "bits.cuh"
#include "mma.cuh"

namespace nucleus::linear {

// Registers of product m: outputs g and g + 8 of its first two inputs, then of the other two. A weight is the sum of its PARTS; a scale belongs to
// the whole step, to each product, or (none) to nothing.
template <int PARTS_, int SCALES_, bool MINIMUM_>
struct Fragment {
  static constexpr int PARTS = PARTS_, SCALES = SCALES_;
  static constexpr bool MINIMUM = MINIMUM_;
  uint32_t a[2][PARTS][4];
  float scale[SCALES ? SCALES : 1][2];
  float minimum[MINIMUM ? 2 : 1];  // what scale · quant is above the weight
};

// A lane's part of a step's activations: of row g of eight, the first parts and what they left. Words 0 and 1 belong to product 0.
struct Operand {
  uint4 high, low;

  template <class Number, class F>
  __device__ __forceinline__ void add(float (&c)[4], const F &weights, uint32_t m) const {
#pragma unroll
    for (int part = F::PARTS; part-- > 0;) {
      Number::mma(c, weights.a[m][part], m ? low.z : low.x, m ? low.w : low.y);
      Number::mma(c, weights.a[m][part], m ? high.z : high.x, m ? high.w : high.y);
    }
  }
};

// A lane's sums: of outputs g and g + 8, each for rows 2t and 2t + 1.
using LaneSums = float[4];

// Adds a step's products to the sums; the rows' activations add up to `row_sums`. This is the only order in which a section is summed: every kernel
// calls it, step by step from zero.
template <class Number, class F>
__device__ __forceinline__ void add_products(LaneSums &sums, const F &weights, const Operand &x, const float2 &row_sums) {
  if constexpr (F::SCALES == 2) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float c[4] = {0, 0, 0, 0};
      x.add<Number>(c, weights, m);
      for (int i = 0; i < 4; ++i) sums[i] = __fmaf_rn(weights.scale[m][i / 2], c[i], sums[i]);
    }
  } else {
    float c[4] = {0, 0, 0, 0};
    x.add<Number>(c, weights, 0);
    x.add<Number>(c, weights, 1);
    for (int i = 0; i < 4; ++i) sums[i] = F::SCALES ? __fmaf_rn(weights.scale[0][i / 2], c[i], sums[i]) : __fadd_rn(c[i], sums[i]);
  }
  if constexpr (F::MINIMUM)
    for (int i = 0; i < 4; ++i) sums[i] = __fmaf_rn(-weights.minimum[i / 2], i % 2 ? row_sums.y : row_sums.x, sums[i]);
}

// A section's share of an output, with the activations' scale.
__device__ __forceinline__ float section_share(float sum, float scale) { return __fmul_rn(sum, scale); }

}  // namespace nucleus::linear
