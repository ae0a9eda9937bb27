// The types whose blocks are 256 inputs: small whole numbers as scales, under one scale of the block.
#pragma once

#include "weights.cuh"

namespace nucleus::linear {

// d · scale · q - dmin · minimum, q from 0 to 15, scale and minimum from 0 to 63, of 32 inputs each.
struct Q4_K {
  static constexpr uint32_t TYPE = NUCLEUS_Q4_K, BLOCK = 256, BLOCK_BYTES = 144, STEPS = 8;
  // For each step and g a word: the scales of outputs g and g + 8, then the minima; for each g d and dmin of both.
  static constexpr uint32_t SMALL_AT = STEPS * 256, LARGE_AT = SMALL_AT + 256, CHUNK_BYTES = LARGE_AT + 64;
  using Number = Half;
  using Fragment = linear::Fragment<1, 1, true>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    uint2 words = load_nibbles(chunk, step, lane);
    unpack_nibbles(words.x, 0, fragment.a[0][0]);
    unpack_nibbles(words.y, 0, fragment.a[1][0]);
    uint2 large = *reinterpret_cast<const uint2 *>(chunk + LARGE_AT + lane / 4 * 8);
    float d[2], dmin[2];
    both_values(large.x, d);
    both_values(large.y, dmin);
    uint32_t small = read<uint32_t>(chunk + SMALL_AT + step * 32 + lane / 4 * 4);
    fragment.scale[0][0] = scaled_byte<0>(small, d[0], 0), fragment.scale[0][1] = scaled_byte<1>(small, d[1], 0);
    fragment.minimum[0] = scaled_byte<2>(small, dmin[0], 0), fragment.minimum[1] = scaled_byte<3>(small, dmin[1], 0);
    return fragment;
  }
  static NUCLEUS_BOTH uint32_t small_offset(uint32_t step, uint32_t output) { return SMALL_AT + step * 32 + output % 8 * 4 + output / 8; }
  static NUCLEUS_BOTH uint32_t large_offset(uint32_t output) { return LARGE_AT + output % 8 * 8 + output / 8 * 2; }

  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    const uint8_t *small = chunk + small_offset(input / STEP, output), *large = chunk + large_offset(output);
    float scale = half_value(read<uint16_t>(large)) * static_cast<float>(small[0]);
    float minimum = half_value(read<uint16_t>(large + 4)) * static_cast<float>(small[2]);
    // the product is exact: fused or not, there is one rounding
    return scale * static_cast<float>(nibble(chunk, output, input)) - minimum;
  }
  static NUCLEUS_BOTH uint32_t scale_bits(const uint8_t *packed, uint32_t j) {
    return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
  }
  static NUCLEUS_BOTH uint32_t minimum_bits(const uint8_t *packed, uint32_t j) {
    return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
  }
  // In the file: d, dmin, 12 bytes of scales and minima, then 32 bytes for each two steps, the first in the low halves.
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    uint32_t words[2] = {0, 0};
    for (uint32_t h = 0; h < 2; ++h) {
      const uint8_t *block = p.has(h, p.first_input) ? p.rows[h] + size_t{p.first_input / BLOCK} * BLOCK_BYTES : nullptr;
      for (uint32_t j = 0; block && j < 8; ++j) {
        uint32_t byte = block[16 + p.step / 2 * 32 + p.input(j / 4, j % 4) % STEP];
        words[j / 4] |= (byte >> p.step % 2 * 4 & 15) << nibble_shift(h, j % 4);
      }
      uint8_t *small = chunk + small_offset(p.step, p.g() + 8 * h), *large = chunk + large_offset(p.g() + 8 * h);
      small[0] = static_cast<uint8_t>(block ? scale_bits(block + 4, p.step) : 0);
      small[2] = static_cast<uint8_t>(block ? minimum_bits(block + 4, p.step) : 0);
      write(large, block ? read<uint16_t>(block) : uint16_t{0});
      write(large + 4, block ? read<uint16_t>(block + 2) : uint16_t{0});
    }
    for (uint32_t m = 0; m < 2; ++m) write(chunk + nibble_offset(p.step, m, p.lane), words[m]);
  }
};

// d · scale · (q - 32), q from 0 to 63, scale from -128 to 127, of 16 inputs each.
struct Q6_K {
  static constexpr uint32_t TYPE = NUCLEUS_Q6_K, BLOCK = 256, BLOCK_BYTES = 210, STEPS = 8;
  // Lower four bits; upper two, a word a step; for each step and g a word of scales + 128 (of product 0 for outputs g and g + 8, then of product 1); for
  // each g d of both.
  static constexpr uint32_t HIGH_AT = STEPS * 256, SMALL_AT = HIGH_AT + STEPS * 128, LARGE_AT = SMALL_AT + 256, CHUNK_BYTES = LARGE_AT + 32;
  using Number = Half;
  using Fragment = linear::Fragment<1, 2, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    uint2 low = load_nibbles(chunk, step, lane);
    uint32_t high = read<uint32_t>(chunk + high_offset(step, lane));
    unpack_nibbles(low.x, {upper(high, 0), upper(high, 1), upper(high >> 2, 0), upper(high >> 2, 1)}, 32, fragment.a[0][0]);
    unpack_nibbles(low.y, {upper(high << 4, 0), upper(high >> 4, 1), upper(high << 2, 0), upper(high >> 6, 1)}, 32, fragment.a[1][0]);
    float d[2];
    both_values(*reinterpret_cast<const uint32_t *>(chunk + LARGE_AT + lane / 4 * 4), d);
    uint32_t small = read<uint32_t>(chunk + SMALL_AT + step * 32 + lane / 4 * 4);
    fragment.scale[0][0] = scaled_byte<0>(small, d[0], 128), fragment.scale[0][1] = scaled_byte<1>(small, d[1], 128);
    fragment.scale[1][0] = scaled_byte<2>(small, d[0], 128), fragment.scale[1][1] = scaled_byte<3>(small, d[1], 128);
    return fragment;
  }
  // The upper bits of a register, above 1024: where `unpack_nibbles` has them.
  static NUCLEUS_BOTH uint32_t upper(uint32_t high, uint32_t odd) { return masked_or(high, odd ? 0x03000300 : 0x00300030, HALVES_1024); }
  static NUCLEUS_BOTH uint32_t high_offset(uint32_t step, uint32_t lane) { return HIGH_AT + step * 128 + lane * 4; }
  // Product 0's bits lie so that they take one shift, product 1's where there is room.
  static NUCLEUS_BOTH uint32_t high_shift(uint32_t m, uint32_t h, uint32_t i) {
    uint32_t in_half = m ? h * 12 + i / 2 * 2 : 4 + h * 4 + i / 2 * 2;
    return i % 2 * 16 + in_half;
  }
  static NUCLEUS_BOTH uint32_t small_offset(uint32_t input, uint32_t output) { return SMALL_AT + input / STEP * 32 + output % 8 * 4 + input / 16 % 2 * 2 + output / 8; }
  static NUCLEUS_BOTH uint32_t large_offset(uint32_t output) { return LARGE_AT + output % 8 * 4 + output / 8 * 2; }

  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    Place p = place_of(input);
    uint32_t high = read<uint32_t>(chunk + high_offset(input / STEP, output % 8 * 4 + p.t)) >> high_shift(p.m, output / 8, p.i) & 3;
    int q = static_cast<int>(nibble(chunk, output, input) | high << 4) - 32;
    float scale = half_value(read<uint16_t>(chunk + large_offset(output))) * static_cast<float>(chunk[small_offset(input, output)] - 128);
    return scale * static_cast<float>(q);
  }
  // In the file: for each 128 inputs 64 bytes of low halves (inputs 0 … 63 in the lower four bits, 64 … 127 in the upper), and for each 128 inputs
  // 32 bytes of upper bits (two for each 32 inputs); then 16 scales and d.
  static NUCLEUS_BOTH uint32_t quant(const uint8_t *block, uint32_t input) {
    uint32_t in_half = input % 128;
    uint32_t low = block[input / 128 * 64 + in_half % 64] >> in_half / 64 * 4 & 15;
    uint32_t high = block[128 + input / 128 * 32 + in_half % 32] >> in_half / 32 * 2 & 3;
    return low | high << 4;
  }
  static NUCLEUS_BOTH void pack(const Packing &p, uint8_t *chunk) {
    uint32_t low[2] = {0, 0}, high = 0;
    for (uint32_t h = 0; h < 2; ++h) {
      const uint8_t *block = p.has(h, p.first_input) ? p.rows[h] + size_t{p.first_input / BLOCK} * BLOCK_BYTES : nullptr;
      for (uint32_t j = 0; block && j < 8; ++j) {
        uint32_t q = quant(block, p.input(j / 4, j % 4) % BLOCK);
        low[j / 4] |= (q & 15) << nibble_shift(h, j % 4);
        high |= (q >> 4) << high_shift(j / 4, h, j % 4);
      }
      uint32_t output = p.g() + 8 * h;
      for (uint32_t m = 0; m < 2; ++m) {
        uint32_t input = p.step * STEP + m * 16;
        chunk[small_offset(input, output)] = (block ? block[192 + input / 16] : uint8_t{0}) ^ 0x80;
      }
      write(chunk + large_offset(output), block ? read<uint16_t>(block + 208) : uint16_t{0});
    }
    for (uint32_t m = 0; m < 2; ++m) write(chunk + nibble_offset(p.step, m, p.lane), low[m]);
    write(chunk + high_offset(p.step, p.lane), high);
  }
};

}  // namespace nucleus::linear
