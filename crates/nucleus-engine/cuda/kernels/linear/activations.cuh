// Activations as the tensor cores take them: two 16-bit numbers each, under one power of two for a row's section.
#pragma once

#include "fragment.cuh"

namespace nucleus::linear {

// Some rows' activations. Of each step and row there are 128 bytes: its first parts, then what they left, each as four units of 16 bytes, one for
// each lane of four: the two parts are neighbouring columns of the product.
struct Activations {
  static constexpr uint32_t ROW_BYTES = 128;

  uint8_t *fragments;  // [steps, rows, 2, 4] units; a step begins `step_bytes` behind the one before
  float *sums;         // [steps, rows]: of a step's activations; a step's begin `sums_stride` floats behind those of the one before
  float *scales;       // [sections, rows]
  uint32_t rows, step_bytes, sums_stride;

  // The columns of rows 4n … 4n + 3.
  __device__ __forceinline__ Operand load(uint32_t step, uint32_t n, uint32_t lane) const {
    if (n * 4 + lane / 8 >= rows) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4 *>(fragments + size_t{step} * step_bytes + n * 512 + lane * 16);
  }
};

// Eight of a row's inputs: those of one lane of four in a step. What lies beyond the row is 0.
__device__ __forceinline__ void load_unit(const float *row, uint32_t inputs, uint32_t first, float (&x)[8]) {
  if (row && inputs % 4 == 0 && first + 20 <= inputs) {
    float4 a = *reinterpret_cast<const float4 *>(row + first), b = *reinterpret_cast<const float4 *>(row + first + 16);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    return;
  }
  for (uint32_t i = 0; i < 8; ++i) {
    uint32_t input = first + i / 4 * 16 + i % 4;
    x[i] = row && input < inputs ? row[input] : 0.0f;
  }
}

// The exponent e for which 2^e times the largest finite number of these bits is from 2^14 to 2^15, within float16 and far above its smallest.
// Below 2^-100 the exponent stays, so that both powers are numbers.
__device__ __forceinline__ int scale_exponent(uint32_t largest_bits) { return 14 - max(static_cast<int>(largest_bits >> 23) - 127, -100); }

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23); }

// A warp splits one row's inputs of one section: `steps` steps from `first_step`, which become steps from `to_step` on and section `to_section`.
// A null row is one of zeros.
template <class Number>
__device__ __forceinline__ void split_section(const float *row, uint32_t inputs, uint32_t first_step, uint32_t steps, const Activations &to,
                                              uint32_t to_row, uint32_t to_section, uint32_t to_step, uint32_t lane) {
  const uint32_t units = steps * 4;
  float x[8];
  uint32_t largest = 0;
  for (uint32_t unit = lane; unit < units; unit += 32) {
    load_unit(row, inputs, (first_step + unit / 4) * STEP + unit % 4 * 4, x);
    for (float value : x) {
      uint32_t bits = __float_as_uint(value) & 0x7fffffff;
      if (bits < 0x7f800000) largest = max(largest, bits);
    }
  }
  const int exponent = scale_exponent(__reduce_max_sync(~0u, largest));
  if (lane == 0) to.scales[to_section * to.rows + to_row] = power_of_two(-exponent);
  const float factor = power_of_two(exponent);
  for (uint32_t base = 0; base < units; base += 32) {
    const uint32_t unit = base + lane, step = to_step + unit / 4;
    load_unit(unit < units ? row : nullptr, inputs, (first_step + unit / 4) * STEP + unit % 4 * 4, x);
    uint32_t parts[2][4];
    float sum = 0;
    for (uint32_t i = 0; i < 4; ++i) {
      float a = __fmul_rn(x[2 * i], factor), b = __fmul_rn(x[2 * i + 1], factor);
      float a_rounded = Number::round(a), b_rounded = Number::round(b);
      parts[0][i] = Number::pack(a_rounded, b_rounded);
      parts[1][i] = Number::pack(remainder(a, a_rounded), remainder(b, b_rounded));
      sum = __fadd_rn(sum, __fadd_rn(a, b));
    }
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
    sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
    if (unit >= units) continue;
    uint8_t *at = to.fragments + size_t{step} * to.step_bytes + to_row * Activations::ROW_BYTES + unit % 4 * 16;
    for (uint32_t part = 0; part < 2; ++part)
      *reinterpret_cast<uint4 *>(at + part * 64) = make_uint4(parts[part][0], parts[part][1], parts[part][2], parts[part][3]);
    if (unit % 4 == 0) to.sums[size_t{step} * to.sums_stride + to_row] = sum;
  }
}

}  // namespace nucleus::linear
