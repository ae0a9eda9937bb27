// Activations as the tensor cores take them: two 16-bit numbers each, under one power of two for a row's section.
#pragma once

#include <cmath>

#include "fragment.cuh"

namespace nucleus::linear {

// How a step of some rows' activations lies: the first parts of all rows, then what they left; a row has four units of 16 bytes in each. A unit has eight
// inputs of the step, of the four that a lane of four holds in each product.
struct Units {
  static constexpr uint32_t BYTES = 16, COUNT = 4, PART_BYTES = COUNT * BYTES, ROW_BYTES = 2 * PART_BYTES;
};

// Where a unit's two parts go.
struct UnitPlace {
  uint8_t *high, *low;

  // Before it is split, a unit lies there as it came.
  __device__ __forceinline__ void put(const float (&values)[8]) const {
    *reinterpret_cast<float4 *>(high) = make_float4(values[0], values[1], values[2], values[3]);
    *reinterpret_cast<float4 *>(low) = make_float4(values[4], values[5], values[6], values[7]);
  }
  __device__ __forceinline__ void get(float (&values)[8]) const {
    const float4 a = *reinterpret_cast<const float4 *>(high), b = *reinterpret_cast<const float4 *>(low);
    values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w, values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
  }
};

// Some rows' activations: fragments [steps, 2, rows, 4] units, unit t with the words of lane t, as a lane loads them for mma.sync.
struct Activations {
  uint8_t *fragments;
  float *sums;    // [steps, rows]: of a step's activations
  float *scales;  // [sections, rows]
  uint32_t step_bytes, low_bytes, sums_stride, scales_stride;

  __device__ __forceinline__ UnitPlace place(uint32_t row, uint32_t unit) const {
    uint8_t *high = fragments + size_t{unit / Units::COUNT} * step_bytes + row * Units::PART_BYTES + unit % Units::COUNT * Units::BYTES;
    return {high, high + low_bytes};
  }
  static __device__ __forceinline__ uint4 unit_of(const uint32_t (&words)[4]) { return make_uint4(words[0], words[1], words[2], words[3]); }

  // Both parts of a unit, of which the first is at `at`.
  static __device__ __forceinline__ Operand load(const uint8_t *at, uint32_t low_bytes) {
    return {*reinterpret_cast<const uint4 *>(at), *reinterpret_cast<const uint4 *>(at + low_bytes)};
  }
};

// Some sections of some rows that lie one behind the other, `inputs` values each. Rows from `rows` on are zeros.
struct RowSections {
  const float *x;
  uint32_t rows, inputs, first_step, steps, section_steps;

  // Eight of a row's inputs: those of unit `unit` of the sections. What lies beyond the row is 0.
  __device__ __forceinline__ void load(uint32_t row, uint32_t unit, float (&values)[8]) const {
    const uint32_t first = (first_step + unit / Units::COUNT) * STEP + unit % Units::COUNT * 4;
    const uint32_t end = row < rows && unit < steps * Units::COUNT ? inputs : 0;
    const float *from = x + size_t{row} * inputs + first;
    if (inputs % 4 == 0) {
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        float4 four{};
        if (first + half * 16 < end) four = *reinterpret_cast<const float4 *>(from + half * 16);
        values[half * 4] = four.x, values[half * 4 + 1] = four.y, values[half * 4 + 2] = four.z, values[half * 4 + 3] = four.w;
      }
      return;
    }
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
      const uint32_t at = i / 4 * 16 + i % 4;
      values[i] = first + at < end ? from[at] : 0.0f;
    }
  }
};

// The largest magnitude that is finite.
__device__ __forceinline__ float largest_finite(const float (&values)[8]) {
  float largest = 0;
#pragma unroll
  for (float value : values) largest = fmaxf(largest, fabsf(value));  // NaN is passed over
  if (largest < INFINITY) return largest;
  largest = 0;
#pragma unroll
  for (float value : values) largest = fabsf(value) < INFINITY ? fmaxf(largest, fabsf(value)) : largest;
  return largest;
}

// The exponent e for which 2^e times that number is from 2^14 to 2^15: within float16, and far above its smallest. Below 2^-100 the exponent stays,
// so that both powers are numbers.
__device__ __forceinline__ int scale_exponent(uint32_t largest_bits) { return 14 - max(static_cast<int>(largest_bits >> 23) - 127, -100); }

__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23); }

// A warp splits 32 neighbouring units of a row. What is infinite leaves NaN: its row has no numbers.
template <class Number, class To>
__device__ __forceinline__ void split_units(const float (&values)[8], float factor, const To &to, uint32_t row, uint32_t unit, bool inside) {
  uint32_t parts[2][4];
  float sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const float a = __fmul_rn(values[2 * i], factor), b = __fmul_rn(values[2 * i + 1], factor);
    parts[0][i] = Number::pack(a, b);
    const float2 rounded = Number::unpack(parts[0][i]);
    parts[1][i] = Number::pack(a - rounded.x, b - rounded.y);
    sum = __fadd_rn(sum, __fadd_rn(a, b));
  }
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
  sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
  const uint4 high = To::unit_of(parts[0]), low = To::unit_of(parts[1]);
  if (!inside) return;
  const UnitPlace place = to.place(row, unit);
  *reinterpret_cast<uint4 *>(place.high) = high;
  *reinterpret_cast<uint4 *>(place.low) = low;
  if (unit % Units::COUNT == 0) to.sums[size_t{unit / Units::COUNT} * to.sums_stride + row] = sum;
}

// A slice of a row, and the section that it belongs to: what a warp splits at a time.
struct SplitTask {
  uint32_t row, slice;

  __device__ __forceinline__ SplitTask(uint32_t index, uint32_t slices) : row(0), slice(index) { wrap(slices); }
  __device__ __forceinline__ void advance(uint32_t count, uint32_t slices) { slice += count, wrap(slices); }
  __device__ __forceinline__ void wrap(uint32_t slices) {
    while (slice >= slices) slice -= slices, ++row;
  }
};

// A block splits sections of `count` rows. `largest` is shared memory, [sections, count] zeros, which all threads see.
template <class Number, class To>
__device__ __forceinline__ void split_sections(const RowSections &from, uint32_t count, const To &to, uint32_t *largest) {
  constexpr uint32_t SLICE_STEPS = SLICE / STEP, AT_ONCE = 4;  // loads under way: their time is what counts here
  const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32, units = from.steps * Units::COUNT;
  const uint32_t slices = div_up(from.steps, SLICE_STEPS), section_slices = from.section_steps / SLICE_STEPS;
  const bool stays = slices * count <= warps;  // in registers, since a warp has one task
  float values[AT_ONCE][8];
  if (slices) {
#pragma unroll 1
    for (SplitTask task(warp, slices); task.row < count;) {
      const SplitTask first = task;
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE; ++i, task.advance(warps, slices)) from.load(task.row < count ? task.row : from.rows, task.slice * 32 + lane, values[i]);
      task = first;
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE; ++i, task.advance(warps, slices)) {
        if (task.row >= count) break;
        const uint32_t most = __reduce_max_sync(~0u, __float_as_uint(largest_finite(values[i]))), unit = task.slice * 32 + lane;
        if (lane == 0) atomicMax(&largest[task.slice / section_slices * count + task.row], most);
        if (!stays && unit < units) to.place(task.row, unit).put(values[i]);
      }
    }
  }
  __syncthreads();
  if (!slices) return;
#pragma unroll 1
  for (SplitTask task(warp, slices); task.row < count; task.advance(warps, slices)) {
    const uint32_t section = task.slice / section_slices, unit = task.slice * 32 + lane;
    if (!stays && unit < units) to.place(task.row, unit).get(values[0]);
    const int exponent = scale_exponent(largest[section * count + task.row]);
    split_units<Number>(values[0], power_of_two(exponent), to, task.row, unit, unit < units);
    if (lane == 0) to.scales[section * to.scales_stride + task.row] = power_of_two(-exponent);
  }
}

}  // namespace nucleus::linear
