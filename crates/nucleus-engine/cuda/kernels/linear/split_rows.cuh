// Splitting the activations of many rows into a workspace.
#pragma once

#include "activations.cuh"

namespace nucleus::linear {

constexpr uint32_t ROW_TILE = 32;

// Rows in tiles of 32, one behind the other: a tile's steps, each with its sums behind it, then its scales.
struct SplitRows {
  static constexpr uint32_t STEP_BYTES = ROW_TILE * (Activations::ROW_BYTES + sizeof(float));

  uint8_t *base;
  uint32_t inputs, steps;

  NUCLEUS_BOTH explicit SplitRows(uint32_t inputs, void *base = nullptr)
      : base(static_cast<uint8_t *>(base)), inputs(inputs), steps(div_up(inputs, SLICE) * (SLICE / STEP)) {}
  NUCLEUS_BOTH size_t tile_bytes() const { return size_t{steps} * STEP_BYTES + MAX_SECTIONS * ROW_TILE * sizeof(float); }
  NUCLEUS_BOTH Activations tile(uint32_t index) const {
    uint8_t *at = base + index * tile_bytes();
    return {at,       reinterpret_cast<float *>(at + ROW_TILE * Activations::ROW_BYTES), reinterpret_cast<float *>(at + size_t{steps} * STEP_BYTES),
            ROW_TILE, STEP_BYTES, STEP_BYTES / sizeof(float)};
  }
};

// A block for each row of the tiles, a warp for each section. Rows that are not there become zeros.
template <class Number>
__global__ void __launch_bounds__(MAX_SECTIONS * 32) split_rows(const float *x, uint32_t rows, SplitRows split) {
  const uint32_t row = blockIdx.x, section = threadIdx.x / 32;
  const Sections sections = sections_of(split.inputs);
  if (section >= sections.count) return;
  const uint32_t first_step = section * sections.inputs / STEP, steps = min(sections.inputs / STEP, split.steps - first_step);
  split_section<Number>(row < rows ? x + size_t{row} * split.inputs : nullptr, split.inputs, first_step, steps, split.tile(row / ROW_TILE), row % ROW_TILE,
                        section, first_step, threadIdx.x % 32);
}

}  // namespace nucleus::linear
