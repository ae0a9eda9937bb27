// Activations as the tensor cores take them: two 16-bit numbers each, under one power of two for a row's section.
#pragma once

#include "fragment.cuh"

namespace nucleus::linear {

// Some rows' activations. A step has the first parts of all rows, then what they left; a row has four units of 16 bytes in each, one for each lane of
// four.
struct Activations {
  static constexpr uint32_t UNIT_BYTES = 16, UNITS = 4, PART_BYTES = UNITS * UNIT_BYTES, ROW_BYTES = 2 * PART_BYTES;

  uint8_t *fragments;  // [steps, 2, rows, 4] units
  float *sums;         // [steps, rows]: of a step's activations
  float *scales;       // [sections, rows]
  uint32_t step_bytes, low_bytes, sums_stride, scales_stride;

  // Of rows 8n … 8n + 7; `step` is where a step's fragments begin.
  static __device__ __forceinline__ Operand load(const uint8_t *step, uint32_t low_bytes, uint32_t n, uint32_t lane) {
    const uint8_t *at = step + n * 8 * PART_BYTES + lane * UNIT_BYTES;
    return {*reinterpret_cast<const uint4 *>(at), *reinterpret_cast<const uint4 *>(at + low_bytes)};
  }
};

// Some sections of some rows that lie one behind the other, `inputs` values each. Rows from `rows` on are zeros.
struct RowSections {
  const float *x;
  uint32_t rows, inputs, first_step, steps, section_steps;

  // Eight of a row's inputs: those of unit `unit` of the sections. What lies beyond the row is 0.
  __device__ __forceinline__ void load(uint32_t row, uint32_t unit, float (&values)[8]) const {
    const uint32_t first = (first_step + unit / Activations::UNITS) * STEP + unit % Activations::UNITS * 4;
    const float *from = x + size_t{row} * inputs;
    const bool inside = row < rows && unit < steps * Activations::UNITS;
    if (inside && inputs % 4 == 0 && first + 20 <= inputs) {
      float4 a = *reinterpret_cast<const float4 *>(from + first), b = *reinterpret_cast<const float4 *>(from + first + 16);
      values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w, values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
      return;
    }
    for (uint32_t i = 0; i < 8; ++i) {
      uint32_t input = first + i / 4 * 16 + i % 4;
      values[i] = inside && input < inputs ? from[input] : 0.0f;
    }
  }
};

// The bits of the largest magnitude that is finite.
__device__ __forceinline__ uint32_t largest_finite(const float (&values)[8]) {
  uint32_t largest = 0;
  for (float value : values) {
    uint32_t bits = __float_as_uint(value) & 0x7fffffff;
    if (bits < 0x7f800000) largest = max(largest, bits);
  }
  return largest;
}

// The exponent e for which 2^e times that number is from 2^14 to 2^15: within float16, and far above its smallest. Below 2^-100 the exponent stays,
// so that both powers are numbers.
__device__ __forceinline__ int scale_exponent(uint32_t largest_bits) { return 14 - max(static_cast<int>(largest_bits >> 23) - 127, -100); }

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23); }

// A warp splits 32 neighbouring units of a row.
template <class Number>
__device__ __forceinline__ void split_units(const float (&values)[8], float factor, const Activations &to, uint32_t row, uint32_t unit, bool inside) {
  uint32_t parts[2][4];
  float sum = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    float a = __fmul_rn(values[2 * i], factor), b = __fmul_rn(values[2 * i + 1], factor);
    float a_rounded = Number::round(a), b_rounded = Number::round(b);
    parts[0][i] = Number::pack(a_rounded, b_rounded);
    parts[1][i] = Number::pack(remainder(a, a_rounded), remainder(b, b_rounded));
    sum = __fadd_rn(sum, __fadd_rn(a, b));
  }
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
  if (!inside) return;
  const uint32_t step = unit / Activations::UNITS, t = unit % Activations::UNITS;
  uint8_t *at = to.fragments + size_t{step} * to.step_bytes + row * Activations::PART_BYTES + t * Activations::UNIT_BYTES;
  for (uint32_t part = 0; part < 2; ++part)
    *reinterpret_cast<uint4 *>(at + part * to.low_bytes) = make_uint4(parts[part][0], parts[part][1], parts[part][2], parts[part][3]);
  if (t == 0) to.sums[size_t{step} * to.sums_stride + row] = sum;
}

// A block splits sections of `count` rows. `largest` is shared memory, [sections, count] zeros, which all threads see. A warp's task is a slice of a
// row; it keeps what it loaded for the first ones, so that all their loads are under way at once and happen once.
template <class Number>
__device__ __forceinline__ void split_sections(const RowSections &from, uint32_t count, const Activations &to, uint32_t *largest) {
  constexpr uint32_t SLICE_STEPS = SLICE / STEP, KEPT = 4;
  const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  const uint32_t slices = div_up(from.steps, SLICE_STEPS), tasks = slices * count;
  auto load = [&](uint32_t task, float(&values)[8]) { from.load(task / slices, task % slices * 32 + lane, values); };
  auto largest_of = [&](uint32_t task) { return largest + task % slices * SLICE_STEPS / from.section_steps * count + task / slices; };
  auto find_largest = [&](uint32_t task, const float(&values)[8]) {
    const uint32_t most = __reduce_max_sync(~0u, largest_finite(values));
    if (lane == 0) atomicMax(largest_of(task), most);
  };
  auto split = [&](uint32_t task, const float(&values)[8]) {
    const uint32_t row = task / slices, slice = task % slices, unit = slice * 32 + lane;
    const int exponent = scale_exponent(*largest_of(task));
    split_units<Number>(values, power_of_two(exponent), to, row, unit, unit < from.steps * Activations::UNITS);
    if (lane == 0) to.scales[slice * SLICE_STEPS / from.section_steps * to.scales_stride + row] = power_of_two(-exponent);
  };
  float kept[KEPT][8], values[8];
#pragma unroll
  for (uint32_t i = 0; i < KEPT; ++i)
    if (warp + i * warps < tasks) load(warp + i * warps, kept[i]);
#pragma unroll
  for (uint32_t i = 0; i < KEPT; ++i)
    if (warp + i * warps < tasks) find_largest(warp + i * warps, kept[i]);
  for (uint32_t task = warp + KEPT * warps; task < tasks; task += warps) load(task, values), find_largest(task, values);
  __syncthreads();
#pragma unroll
  for (uint32_t i = 0; i < KEPT; ++i)
    if (warp + i * warps < tasks) split(warp + i * warps, kept[i]);
  for (uint32_t task = warp + KEPT * warps; task < tasks; task += warps) load(task, values), split(task, values);
}

}  // namespace nucleus::linear
