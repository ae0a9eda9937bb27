// The types of weights: how a chunk is laid out, written from a file's blocks, and read.
//
// For each type: TYPE (ggml's number), BLOCK and BLOCK_BYTES (the file's), STEPS and CHUNK_BYTES (a chunk's), `Number` (of the tensor cores),
// `load` (a lane's fragment of a step), `weight` (one value, for embeddings), `pack` (a lane's share of a step). A file's row that is beyond the
// matrix is null, and its weights are zeros.
#pragma once

#include "../../include/decoder_kernels.h"
#include "fragment.cuh"

namespace nucleus::linear {

// What a lane packs: its step of a chunk that begins at `first_input`, from the rows of outputs g and g + 8.
struct Packing {
  const uint8_t *rows[2];
  uint32_t inputs, first_input, step, lane;

  NUCLEUS_BOTH uint32_t g() const { return lane / 4; }
  // The input that is number i of product m.
  NUCLEUS_BOTH uint32_t input(uint32_t m, uint32_t i) const { return first_input + step * STEP + m * 16 + lane % 4 * 4 + i; }
  NUCLEUS_BOTH bool has(uint32_t h, uint32_t input) const { return rows[h] && input < inputs; }
};

// Two numbers of 16 bits, of outputs g and g + 8.
NUCLEUS_BOTH void both_values(uint32_t pair, float (&values)[2]) {
  values[0] = half_value(pair & 0xffff);
  values[1] = half_value(pair >> 16);
}

// ---- numbers of the file as they are ----

template <uint32_t TYPE_, class Number_>
struct Float16Bits {
  static constexpr uint32_t TYPE = TYPE_, BLOCK = 1, BLOCK_BYTES = 2, STEPS = 2, CHUNK_BYTES = STEPS * 1024;
  using Number = Number_;
  using Fragment = linear::Fragment<1, 0, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    for (uint32_t m = 0; m < 2; ++m) {
      uint4 words = *reinterpret_cast<const uint4 *>(chunk + (step * 2 + m) * 512 + lane * 16);
      fragment.a[m][0][0] = words.x, fragment.a[m][0][1] = words.y, fragment.a[m][0][2] = words.z, fragment.a[m][0][3] = words.w;
    }
    return fragment;
  }
  static NUCLEUS_BOTH uint32_t offset(uint32_t step, uint32_t m, uint32_t lane, uint32_t h, uint32_t i) {
    return (step * 2 + m) * 512 + lane * 16 + (i / 2 * 2 + h) * 4 + i % 2 * 2;
  }
  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    Place p = place_of(input);
    uint16_t bits = read<uint16_t>(chunk + offset(input / STEP, p.m, output % 8 * 4 + p.t, output / 8, p.i));
    return TYPE == NUCLEUS_F16 ? half_value(bits) : bits_value(static_cast<uint32_t>(bits) << 16);
  }
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    for (uint32_t j = 0; j < 16; ++j) {
      uint32_t m = j / 8, h = j / 4 % 2, i = j % 4, input = p.input(m, i);
      uint16_t bits = p.has(h, input) ? read<uint16_t>(p.rows[h] + size_t{input} * 2) : uint16_t{0};
      write(chunk + offset(p.step, m, p.lane, h, i), bits);
    }
  }
};

using F16 = Float16Bits<NUCLEUS_F16, Half>;
using BF16 = Float16Bits<NUCLEUS_BF16, Bfloat>;

// A weight is two numbers of bfloat16, which hold 16 of its 24 bits.
struct F32 {
  static constexpr uint32_t TYPE = NUCLEUS_F32, BLOCK = 1, BLOCK_BYTES = 4, STEPS = 2, CHUNK_BYTES = STEPS * 2048;
  using Number = Bfloat;
  using Fragment = linear::Fragment<2, 0, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    for (uint32_t m = 0; m < 2; ++m) {
      for (uint32_t half = 0; half < 2; ++half) {
        float4 w = *reinterpret_cast<const float4 *>(chunk + ((step * 2 + m) * 2 + half) * 512 + lane * 16);
        split(w.x, w.y, fragment.a[m], 2 * half);
        split(w.z, w.w, fragment.a[m], 2 * half + 1);
      }
    }
    return fragment;
  }
  static NUCLEUS_BOTH void split(float first, float second, uint32_t (&a)[2][4], uint32_t j) {
    a[0][j] = Number::pack(first, second);
    const float2 rounded = Number::unpack(a[0][j]);
    a[1][j] = Number::pack(first - rounded.x, second - rounded.y);
  }
  static NUCLEUS_BOTH uint32_t offset(uint32_t step, uint32_t m, uint32_t lane, uint32_t h, uint32_t i) {
    return ((step * 2 + m) * 2 + i / 2) * 512 + lane * 16 + h * 8 + i % 2 * 4;
  }
  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    Place p = place_of(input);
    return read<float>(chunk + offset(input / STEP, p.m, output % 8 * 4 + p.t, output / 8, p.i));
  }
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    for (uint32_t j = 0; j < 16; ++j) {
      uint32_t m = j / 8, h = j / 4 % 2, i = j % 4, input = p.input(m, i);
      write(chunk + offset(p.step, m, p.lane, h, i), p.has(h, input) ? read<uint32_t>(p.rows[h] + size_t{input} * 4) : 0u);
    }
  }
};

// ---- whole numbers of 4 bits, eight to a word ----

// The place of number i of output g + 8h in a word, so that a mask and a shift by 8 give two registers.
NUCLEUS_BOTH uint32_t nibble_shift(uint32_t h, uint32_t i) { return i / 2 * 8 + h * 4 + i % 2 * 16; }

// A word's numbers, of which `high` gives the bits above the fourth (0 where there are none), less `zero`. Registers 1 and 3 have their numbers four
// bits further up, which saves shifts.
NUCLEUS_BOTH void unpack_nibbles(uint32_t word, const uint32_t (&high)[4], float zero, uint32_t (&a)[4]) {
  for (uint32_t j = 0; j < 4; ++j) {
    uint32_t numbers = masked_or(j < 2 ? word : word >> 8, j % 2 ? 0x00f000f0 : 0x000f000f, high[j]);
    a[j] = j % 2 ? half2_fma(numbers, 1.0f / 16, -64 - zero) : half2_fma(numbers, 1.0f, -1024 - zero);
  }
}
NUCLEUS_BOTH void unpack_nibbles(uint32_t word, float zero, uint32_t (&a)[4]) {
  unpack_nibbles(word, {HALVES_1024, HALVES_1024, HALVES_1024, HALVES_1024}, zero, a);
}

// Where the word of product m of a step lies: two steps share 16 bytes a lane.
NUCLEUS_BOTH uint32_t nibble_offset(uint32_t step, uint32_t m, uint32_t lane) { return step / 2 * 512 + lane * 16 + step % 2 * 8 + m * 4; }

NUCLEUS_BOTH uint2 load_nibbles(const uint8_t *chunk, uint32_t step, uint32_t lane) {
  uint4 words = *reinterpret_cast<const uint4 *>(chunk + step / 2 * 512 + lane * 16);
  return step % 2 ? make_uint2(words.z, words.w) : make_uint2(words.x, words.y);
}

NUCLEUS_BOTH uint32_t nibble(const uint8_t *chunk, uint32_t output, uint32_t input) {
  Place p = place_of(input);
  return read<uint32_t>(chunk + nibble_offset(input / STEP, p.m, output % 8 * 4 + p.t)) >> nibble_shift(output / 8, p.i) & 15;
}

// ---- blocks of 32 under one scale ----

// Scales of float16: for each step and g, those of outputs g and g + 8.
template <uint32_t STEPS>
struct StepScales {
  static constexpr uint32_t BYTES = PANEL * STEPS * 2;

  static NUCLEUS_BOTH void load(const uint8_t *scales, uint32_t step, uint32_t lane, float (&values)[2]) {
    both_values(read<uint32_t>(scales + step * 32 + lane / 4 * 4), values);
  }
  static NUCLEUS_BOTH uint32_t offset(uint32_t step, uint32_t output) { return step * 32 + output % 8 * 4 + output / 8 * 2; }
};

// q · d, q from -128 to 127: held as q + 128.
struct Q8_0 {
  static constexpr uint32_t TYPE = NUCLEUS_Q8_0, BLOCK = 32, BLOCK_BYTES = 34, STEPS = 4, SCALES_AT = STEPS * 512;
  using Scales = StepScales<STEPS>;
  static constexpr uint32_t CHUNK_BYTES = SCALES_AT + Scales::BYTES;
  using Number = Half;
  using Fragment = linear::Fragment<1, 1, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    uint4 words = *reinterpret_cast<const uint4 *>(chunk + step * 512 + lane * 16);
    unpack(words.x, words.y, fragment.a[0][0]);
    unpack(words.z, words.w, fragment.a[1][0]);
    Scales::load(chunk + SCALES_AT, step, lane, fragment.scale[0]);
    return fragment;
  }
  static NUCLEUS_BOTH void unpack(uint32_t first, uint32_t second, uint32_t (&a)[4]) {
    a[0] = half2_fma(bytes_above_1024<0>(first), 1.0f, -1152);
    a[1] = half2_fma(bytes_above_1024<0>(second), 1.0f, -1152);
    a[2] = half2_fma(bytes_above_1024<2>(first), 1.0f, -1152);
    a[3] = half2_fma(bytes_above_1024<2>(second), 1.0f, -1152);
  }
  static NUCLEUS_BOTH uint32_t offset(uint32_t step, uint32_t m, uint32_t lane, uint32_t h, uint32_t i) {
    return step * 512 + lane * 16 + (m * 2 + h) * 4 + i;
  }
  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    Place p = place_of(input);
    int q = chunk[offset(input / STEP, p.m, output % 8 * 4 + p.t, output / 8, p.i)] - 128;
    return half_value(read<uint16_t>(chunk + SCALES_AT + Scales::offset(input / STEP, output))) * static_cast<float>(q);
  }
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    uint32_t first = p.input(0, 0);
    for (uint32_t h = 0; h < 2; ++h) {
      const uint8_t *block = p.has(h, first) ? p.rows[h] + size_t{first / BLOCK} * BLOCK_BYTES : nullptr;
      for (uint32_t j = 0; j < 8; ++j)
        chunk[offset(p.step, j / 4, p.lane, h, j % 4)] = (block ? block[2 + p.input(j / 4, j % 4) % BLOCK] : 0) ^ 0x80;
      write(chunk + SCALES_AT + Scales::offset(p.step, p.g() + 8 * h), block ? read<uint16_t>(block) : uint16_t{0});
    }
  }
};

// (q - 8) · d, q from 0 to 15.
struct Q4_0 {
  static constexpr uint32_t TYPE = NUCLEUS_Q4_0, BLOCK = 32, BLOCK_BYTES = 18, STEPS = 8, SCALES_AT = STEPS * 256;
  using Scales = StepScales<STEPS>;
  static constexpr uint32_t CHUNK_BYTES = SCALES_AT + Scales::BYTES;
  using Number = Half;
  using Fragment = linear::Fragment<1, 1, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    uint2 words = load_nibbles(chunk, step, lane);
    unpack_nibbles(words.x, 8, fragment.a[0][0]);
    unpack_nibbles(words.y, 8, fragment.a[1][0]);
    Scales::load(chunk + SCALES_AT, step, lane, fragment.scale[0]);
    return fragment;
  }
  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    int q = static_cast<int>(nibble(chunk, output, input)) - 8;
    return half_value(read<uint16_t>(chunk + SCALES_AT + Scales::offset(input / STEP, output))) * static_cast<float>(q);
  }
  // In the file, byte j of a block has weights j and j + 16.
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    uint32_t first = p.input(0, 0), words[2] = {0, 0};
    for (uint32_t h = 0; h < 2; ++h) {
      const uint8_t *block = p.has(h, first) ? p.rows[h] + size_t{first / BLOCK} * BLOCK_BYTES : nullptr;
      for (uint32_t i = 0; block && i < 4; ++i) {
        uint32_t byte = block[2 + p.input(0, i) % 16];
        words[0] |= (byte & 15) << nibble_shift(h, i);
        words[1] |= (byte >> 4) << nibble_shift(h, i);
      }
      write(chunk + SCALES_AT + Scales::offset(p.step, p.g() + 8 * h), block ? read<uint16_t>(block) : uint16_t{0});
    }
    for (uint32_t m = 0; m < 2; ++m) write(chunk + nibble_offset(p.step, m, p.lane), words[m]);
  }
};

}  // namespace nucleus::linear
