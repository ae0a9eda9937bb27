// A launch: products of one type of weights with one input.
#pragma once

#include "activations.cuh"
#include "weights.cuh"
#include "weights_k.cuh"

namespace nucleus::linear {

constexpr uint32_t MAX_PRODUCTS = 4;

// The products' panels are numbered in a row.
struct Call {
  NucleusProduct products[MAX_PRODUCTS];
  uint32_t first_panels[MAX_PRODUCTS + 1];  // ascending; those of no product are the number of panels
  uint32_t inputs;
  uint32_t rows;

  NUCLEUS_BOTH uint32_t panels() const { return first_panels[MAX_PRODUCTS]; }
};

// A panel of one of the products.
struct Panel {
  const uint8_t *weights;
  const float *bias;  // of output 0, or null
  float *output;      // of output 0
  uint64_t stride;
  uint32_t first, outputs;

  __device__ __forceinline__ void store(uint32_t row, uint32_t index, float total) const {
    if (first + index < outputs) output[row * stride + first + index] = bias ? __fadd_rn(total, bias[first + index]) : total;
  }
};

template <class W>
__device__ __forceinline__ Panel panel_of(const Call &call, uint32_t panel) {
  uint32_t index = 0;
#pragma unroll
  for (uint32_t i = 1; i < MAX_PRODUCTS; ++i) index += panel >= call.first_panels[i];
  const NucleusProduct &product = call.products[index];
  const uint32_t local = panel - call.first_panels[index];
  const uint8_t *weights = static_cast<const uint8_t *>(product.matrix.data) + local * panel_bytes<W>(call.inputs);
  return {weights, product.bias, product.output, product.output_stride, local * PANEL, product.matrix.outputs};
}

}  // namespace nucleus::linear
