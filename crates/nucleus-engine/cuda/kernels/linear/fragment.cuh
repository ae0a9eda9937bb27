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

// A lane's part of a step's activations: the columns are a row's two parts, and the next row's.
using Operand = uint4;

// Adds a step's products to the sums of outputs g and g + 8 for one row, whose activations add up to `row_sum`. The parts of an activation are
// columns 2t and 2t + 1, hence in one lane. This is the only order in which a section is summed: every kernel calls it, step by step from zero.
template <class Number, class F>
__device__ __forceinline__ void add_products(float (&sums)[2], const F &weights, const Operand &x, float row_sum) {
  auto add = [&](const float (&c)[4], const float *scale) {
    for (int h = 0; h < 2; ++h) {
      float both = __fadd_rn(c[2 * h], c[2 * h + 1]);
      sums[h] = scale ? __fmaf_rn(scale[h], both, sums[h]) : __fadd_rn(both, sums[h]);
    }
  };
  float c[4] = {0, 0, 0, 0};
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int part = 0; part < F::PARTS; ++part) Number::mma(c, weights.a[m][part], m ? x.z : x.x, m ? x.w : x.y);
    if constexpr (F::SCALES == 2) {
      add(c, weights.scale[m]);
      for (float &value : c) value = 0;
    }
  }
  if constexpr (F::SCALES < 2) add(c, F::SCALES ? weights.scale[0] : nullptr);
  if constexpr (F::MINIMUM)
    for (int h = 0; h < 2; ++h) sums[h] = __fmaf_rn(-weights.minimum[h], row_sum, sums[h]);
}

// A section's share of an output, with the activations' scale.
__device__ __forceinline__ float section_share(float sum, float scale) { return __fmul_rn(sum, scale); }

}  // namespace nucleus::linear
