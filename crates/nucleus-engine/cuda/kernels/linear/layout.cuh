// Where the values of a product lie: weights in panels of chunks, sums in sections.
//
// A *panel* is 16 outputs. Its weights lie in *chunks*: all that belongs to some consecutive inputs, quants and scales, in one run of bytes (64,
// 128 or 256 inputs, as the type says). A chunk is made of *steps* of 32 inputs, which are two products of the tensor cores: within a step, product m
// takes inputs 16m … 16m + 15, and lane (g, t) = (lane / 4, lane % 4) holds inputs 16m + 4t … + 3 of outputs g and g + 8. So a scale of 16 or of
// 32 inputs belongs to whole products, and a lane's weights of a step are one run of bytes.
//
// The inputs are cut into at most eight *sections*. An output is the sum of its sections, in ascending order; a section is the sum of its steps, in
// ascending order. That order depends on the number of inputs alone, so it does not matter who computes a section, or beside what.
#pragma once

#include <cstddef>
#include <cstdint>

#define NUCLEUS_BOTH __host__ __device__ __forceinline__

namespace nucleus::linear {

constexpr uint32_t PANEL = 16;   // outputs
constexpr uint32_t STEP = 32;    // inputs
constexpr uint32_t SLICE = 256;  // inputs: sections are whole slices, since the largest blocks are
constexpr uint32_t MAX_SECTIONS = 8;
constexpr uint32_t MAX_SECTION_SLICES = 8;  // unless there are more than 64 slices

NUCLEUS_BOTH uint32_t div_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// How the inputs are cut.
struct Sections {
  uint32_t count;
  uint32_t inputs;  // of each but the last, which may have fewer
};

// As many sections as leave the last one full; the more the better, since each is summed by itself.
NUCLEUS_BOTH Sections sections_of(uint32_t inputs) {
  uint32_t slices = div_up(inputs, SLICE), best = MAX_SECTIONS;
  for (uint32_t count = MAX_SECTIONS / 2; count; count /= 2) {
    uint32_t length = div_up(slices, count);
    if (length <= MAX_SECTION_SLICES && length * count < div_up(slices, best) * best) best = count;
  }
  uint32_t length = div_up(slices, best) * SLICE;
  return {div_up(inputs, length), length};
}

// The place of an input within a step: product, lane of four, and which of its four.
struct Place {
  uint32_t m, t, i;
};
NUCLEUS_BOTH Place place_of(uint32_t input) { return {input / 16 % 2, input / 4 % 4, input % 4}; }

template <class W>
NUCLEUS_BOTH uint32_t chunks_of(uint32_t inputs) {
  return div_up(inputs, W::STEPS * STEP);
}

template <class W>
NUCLEUS_BOTH size_t panel_bytes(uint32_t inputs) {
  return static_cast<size_t>(chunks_of<W>(inputs)) * W::CHUNK_BYTES;
}

}  // namespace nucleus::linear
