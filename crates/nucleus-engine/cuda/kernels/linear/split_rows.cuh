// Splitting the activations of many rows into a workspace.
#pragma once

#include "activations.cuh"
#include "launch.cuh"

namespace nucleus::linear {

// Rows' activations in the blocks of 8 rows by 16 bytes that the tensor cores read from shared memory: fragments [steps, 2, 4 units, rows]. The units of a
// step are its two products' halves, so they have the words of four lanes each.
struct CoreActivations {
  uint8_t *fragments;
  float *sums;
  float *scales;
  uint32_t step_bytes, low_bytes, sums_stride, scales_stride, unit_bytes;

  __device__ __forceinline__ UnitPlace place(uint32_t row, uint32_t unit) const {
    uint8_t *high = fragments + size_t{unit / Units::COUNT} * step_bytes + unit % Units::COUNT * unit_bytes + row * Units::BYTES;
    return {high, high + low_bytes};
  }
  // Transposes the words of four neighbouring lanes.
  static __device__ __forceinline__ uint4 unit_of(const uint32_t (&words)[4]) {
    const bool odd = threadIdx.x & 1, upper = threadIdx.x & 2;
    const uint32_t first = __shfl_xor_sync(~0u, odd ? words[0] : words[1], 1), second = __shfl_xor_sync(~0u, odd ? words[2] : words[3], 1);
    const uint2 low = odd ? make_uint2(first, words[1]) : make_uint2(words[0], first);
    const uint2 high = odd ? make_uint2(second, words[3]) : make_uint2(words[2], second);
    const uint32_t third = __shfl_xor_sync(~0u, upper ? low.x : high.x, 2), fourth = __shfl_xor_sync(~0u, upper ? low.y : high.y, 2);
    return upper ? make_uint4(third, fourth, high.x, high.y) : make_uint4(low.x, low.y, third, fourth);
  }
};

// Rows in tiles, one behind the other: a tile's steps, each with its sums behind it, then the scales of its sections.
struct SplitRows {
  static constexpr uint32_t STEP_ROW_BYTES = Units::ROW_BYTES + sizeof(float);  // of a step, for each row

  uint8_t *base;
  uint32_t inputs, steps, tile_rows;

  NUCLEUS_BOTH SplitRows(uint32_t inputs, uint32_t tile_rows, void *base = nullptr)
      : base(static_cast<uint8_t *>(base)), inputs(inputs), steps(div_up(inputs, SLICE) * (SLICE / STEP)), tile_rows(tile_rows) {}
  NUCLEUS_BOTH uint32_t low_bytes() const { return tile_rows * Units::PART_BYTES; }
  NUCLEUS_BOTH uint32_t step_bytes() const { return tile_rows * STEP_ROW_BYTES; }
  NUCLEUS_BOTH size_t tile_bytes() const { return size_t{steps} * step_bytes() + MAX_SECTIONS * tile_rows * sizeof(float); }
  NUCLEUS_BOTH uint8_t *step(uint32_t tile, uint32_t step) const { return base + tile * tile_bytes() + size_t{step} * step_bytes(); }
  NUCLEUS_BOTH float *scales(uint32_t tile, uint32_t section) const { return reinterpret_cast<float *>(step(tile, steps)) + section * tile_rows; }

  // Of a row from a step on.
  __device__ __forceinline__ CoreActivations from(uint32_t row, uint32_t section, uint32_t first_step) const {
    const uint32_t tile = row / tile_rows, local = row % tile_rows;
    uint8_t *first = step(tile, first_step);
    return {first + local * Units::BYTES, reinterpret_cast<float *>(first + 2 * low_bytes()) + local, scales(tile, section) + local, step_bytes(), low_bytes(),
            step_bytes() / static_cast<uint32_t>(sizeof(float)), 0, tile_rows * Units::BYTES};
  }
};

// A block for each section and row of the tiles. Rows that are not there become zeros.
template <class Number>
__global__ void __launch_bounds__(256) split_rows(const float *x, uint32_t rows, SplitRows split) {
  __shared__ uint32_t largest;
  const uint32_t row = blockIdx.y, section = blockIdx.x;
  const Sections sections = sections_of(split.inputs);
  const uint32_t first_step = section * sections.inputs / STEP, steps = min(sections.inputs / STEP, split.steps - first_step);
  let_next_begin();
  if (threadIdx.x == 0) largest = 0;
  wait_for_inputs();
  __syncthreads();
  split_sections<Number>({x + size_t{row} * split.inputs, row < rows, split.inputs, first_step, steps, steps}, 1, split.from(row, section, first_step), &largest);
}

// Rows of a workspace: whole blocks of the kernels that take them.
constexpr uint32_t LARGE_TILE = 64, SMALL_TILE = 32;
inline uint32_t split_row_count(uint32_t rows) { return rows <= SMALL_TILE ? SMALL_TILE : div_up(rows, LARGE_TILE) * LARGE_TILE; }

// The rows of `x` in tiles of so many rows.
template <class Number>
cudaError_t launch_split(const float *x, uint32_t rows, const SplitRows &split, cudaStream_t stream) {
  Launch launch(dim3(sections_of(split.inputs).count, div_up(rows, split.tile_rows) * split.tile_rows), 256, 1, stream);
  return launch(split_rows<Number>, x, rows, split);
}

}  // namespace nucleus::linear
