// Splitting the activations of many rows into a workspace.
#pragma once

#include "activations.cuh"
#include "launch.cuh"

namespace nucleus::linear {

constexpr uint32_t ROW_TILE = 32;

// Rows in tiles of 32, one behind the other: a tile's steps, each with its sums behind it, then the scales of its sections.
struct SplitRows {
  static constexpr uint32_t LOW_BYTES = ROW_TILE * Activations::PART_BYTES, SUMS_AT = 2 * LOW_BYTES, STEP_BYTES = SUMS_AT + ROW_TILE * sizeof(float);

  uint8_t *base;
  uint32_t inputs, steps;

  NUCLEUS_BOTH explicit SplitRows(uint32_t inputs, void *base = nullptr)
      : base(static_cast<uint8_t *>(base)), inputs(inputs), steps(div_up(inputs, SLICE) * (SLICE / STEP)) {}
  NUCLEUS_BOTH size_t tile_bytes() const { return size_t{steps} * STEP_BYTES + MAX_SECTIONS * ROW_TILE * sizeof(float); }
  NUCLEUS_BOTH uint8_t *step(uint32_t tile, uint32_t step) const { return base + tile * tile_bytes() + size_t{step} * STEP_BYTES; }
  NUCLEUS_BOTH float *scales(uint32_t tile, uint32_t section) const {
    return reinterpret_cast<float *>(step(tile, steps)) + section * ROW_TILE;
  }
};

// A block for each section and row of the tiles. Rows that are not there become zeros.
template <class Number>
__global__ void __launch_bounds__(256) split_rows(const float *x, uint32_t rows, SplitRows split) {
  __shared__ uint32_t largest;
  const uint32_t row = blockIdx.y, section = blockIdx.x, local = row % ROW_TILE;
  const Sections sections = sections_of(split.inputs);
  const uint32_t first_step = section * sections.inputs / STEP, steps = min(sections.inputs / STEP, split.steps - first_step);
  uint8_t *to = split.step(row / ROW_TILE, first_step) + local * Activations::PART_BYTES;
  float *sums = reinterpret_cast<float *>(split.step(row / ROW_TILE, first_step) + SplitRows::SUMS_AT) + local;
  let_next_begin();
  if (threadIdx.x == 0) largest = 0;
  wait_for_inputs();
  __syncthreads();
  split_sections<Number>({x + size_t{row} * split.inputs, row < rows, split.inputs, first_step, steps, steps}, 1,
                         {to, sums, split.scales(row / ROW_TILE, section) + local, SplitRows::STEP_BYTES, SplitRows::LOW_BYTES,
                          SplitRows::STEP_BYTES / sizeof(float), 0}, &largest);
}

}  // namespace nucleus::linear
