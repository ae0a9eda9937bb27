// Products of any number of rows: a warp for each panel and four rows.
#pragma once

#include "call.cuh"

namespace nucleus::linear {

constexpr uint32_t ROW_TILE = 32;

// Row tiles of a workspace, one behind the other.
struct SplitRows {
  uint8_t *base;
  uint32_t inputs, steps, sections;

  NUCLEUS_BOTH explicit SplitRows(uint32_t inputs, void *base = nullptr)
      : base(static_cast<uint8_t *>(base)), inputs(inputs), steps(div_up(inputs, SLICE) * (SLICE / STEP)), sections(sections_of(inputs).count) {}
  NUCLEUS_BOTH size_t tile_bytes() const { return ROW_TILE * (size_t{steps} * (Activations::ROW_BYTES + sizeof(float)) + MAX_SECTIONS * sizeof(float)); }
  NUCLEUS_BOTH Activations tile(uint32_t index) const {
    uint8_t *at = base + index * tile_bytes();
    float *scales = reinterpret_cast<float *>(at + size_t{steps} * ROW_TILE * Activations::ROW_BYTES);
    return {at, scales, scales + ROW_TILE * MAX_SECTIONS, ROW_TILE};
  }
};

// A warp for each row and section.
template <class Number>
__global__ void __launch_bounds__(256) split_rows(const float *x, uint32_t rows, SplitRows split) {
  const uint32_t row = blockIdx.x, lane = threadIdx.x % 32, section = threadIdx.x / 32;
  const Sections sections = sections_of(split.inputs);
  if (section >= sections.count) return;
  const uint32_t first_step = section * sections.inputs / STEP, steps = min(sections.inputs / STEP, split.steps - first_step);
  split_section<Number>(row < rows ? x + size_t{row} * split.inputs : nullptr, split.inputs, first_step, steps, split.tile(row / ROW_TILE), row % ROW_TILE,
                        section, first_step, lane);
}

template <class W>
__global__ void __launch_bounds__(128) multiply_simply(Call call, SplitRows split) {
  const uint32_t index = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * 4 + lane % 4;
  if (index >= call.panels()) return;
  const Panel panel = panel_of<W>(call, index);
  const Activations x = split.tile(blockIdx.y * 4 / ROW_TILE);
  const Sections sections = sections_of(call.inputs);
  const uint32_t steps = chunks_of<W>(call.inputs) * W::STEPS, section_steps = sections.inputs / STEP;
  float totals[2] = {0, 0};
  for (uint32_t section = 0; section < sections.count; ++section) {
    float sums[2] = {0, 0};
    for (uint32_t step = section * section_steps; step < min(steps, (section + 1) * section_steps); ++step) {
      auto weights = W::load(panel.weights + size_t{step / W::STEPS} * W::CHUNK_BYTES, step % W::STEPS, lane);
      Operand operand = x.load(step, blockIdx.y % (ROW_TILE / 4), lane);
      add_products<typename W::Number>(sums, weights, operand, x.sums[step * ROW_TILE + row % ROW_TILE]);
    }
    for (int h = 0; h < 2; ++h) totals[h] = __fadd_rn(totals[h], section_share(sums[h], x.scales[section * ROW_TILE + row % ROW_TILE]));
  }
  for (int h = 0; h < 2; ++h)
    if (row < call.rows) panel.store(row, lane / 4 + 8 * h, totals[h]);
}

template <class W>
cudaError_t launch_simple(const Call &call, const float *x, void *workspace, cudaStream_t stream) {
  SplitRows split(call.inputs, workspace);
  split_rows<typename W::Number><<<div_up(call.rows, ROW_TILE) * ROW_TILE, 256, 0, stream>>>(x, call.rows, split);
  dim3 grid(div_up(call.panels(), 4), div_up(call.rows, 4));
  multiply_simply<W><<<grid, 128, 0, stream>>>(call, split);
  return cudaGetLastError();
}

}  // namespace nucleus::linear
