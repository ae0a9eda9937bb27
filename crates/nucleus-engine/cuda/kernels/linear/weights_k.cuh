// The types whose blocks are 256 inputs: small whole numbers as scales, under one scale of the block.
#pragma once

#include "weights.cuh"

namespace nucleus::linear {

// Number `step` of the eight bytes of two words.
NUCLEUS_BOTH uint32_t byte_of(uint2 words, uint32_t step) { return (step < 4 ? words.x : words.y) >> step % 4 * 8 & 0xff; }

// d · scale · q - dmin · minimum, q from 0 to 15, scale and minimum from 0 to 63, of 32 inputs each.
struct Q4_K {
  static constexpr uint32_t TYPE = NUCLEUS_Q4_K, BLOCK = 256, BLOCK_BYTES = 144, STEPS = 8;
  // For each g: bytes of scales and minima, of outputs g and g + 8; then d and dmin of both.
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
    for (uint32_t h = 0; h < 2; ++h) {
      uint4 small = *reinterpret_cast<const uint4 *>(chunk + SMALL_AT + lane / 4 * 32 + h * 16);
      fragment.scale[0][h] = d[h] * static_cast<float>(byte_of(make_uint2(small.x, small.y), step));
      fragment.minimum[h] = dmin[h] * static_cast<float>(byte_of(make_uint2(small.z, small.w), step));
    }
    return fragment;
  }
  static NUCLEUS_BOTH uint32_t small_offset(uint32_t step, uint32_t output) { return SMALL_AT + output % 8 * 32 + output / 8 * 16 + step; }
  static NUCLEUS_BOTH uint32_t large_offset(uint32_t output) { return LARGE_AT + output % 8 * 8 + output / 8 * 2; }

  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    const uint8_t *small = chunk + small_offset(input / STEP, output), *large = chunk + large_offset(output);
    float scale = half_value(read<uint16_t>(large)) * static_cast<float>(small[0]);
    float minimum = half_value(read<uint16_t>(large + 4)) * static_cast<float>(small[8]);
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
      small[8] = static_cast<uint8_t>(block ? minimum_bits(block + 4, p.step) : 0);
      write(large, block ? read<uint16_t>(block) : uint16_t{0});
      write(large + 4, block ? read<uint16_t>(block + 2) : uint16_t{0});
    }
    for (uint32_t m = 0; m < 2; ++m) write(chunk + nibble_offset(p.step, m, p.lane), words[m]);
  }
};

// d · scale · (q - 32), q from 0 to 63, scale from -128 to 127, of 16 inputs each.
struct Q6_K {
  static constexpr uint32_t TYPE = NUCLEUS_Q6_K, BLOCK = 256, BLOCK_BYTES = 210, STEPS = 8;
  // Low halves as 4-bit numbers; upper two bits, a word a step; for each g scales of outputs g and g + 8; then d of both.
  static constexpr uint32_t HIGH_AT = STEPS * 256, SMALL_AT = HIGH_AT + STEPS * 128, LARGE_AT = SMALL_AT + 256, CHUNK_BYTES = LARGE_AT + 32;
  using Number = Half;
  using Fragment = linear::Fragment<1, 2, false>;

  static NUCLEUS_BOTH Fragment load(const uint8_t *chunk, uint32_t step, uint32_t lane) {
    Fragment fragment;
    uint2 low = load_nibbles(chunk, step, lane);
    uint4 highs = *reinterpret_cast<const uint4 *>(chunk + HIGH_AT + step / 4 * 512 + lane * 16);
    uint32_t high = step % 4 == 0 ? highs.x : step % 4 == 1 ? highs.y : step % 4 == 2 ? highs.z : highs.w;
    unpack(low.x, high, fragment.a[0][0]);
    unpack(low.y, high >> 8, fragment.a[1][0]);
    float d[2];
    both_values(*reinterpret_cast<const uint32_t *>(chunk + LARGE_AT + lane / 4 * 4), d);
    for (uint32_t h = 0; h < 2; ++h) {
      uint4 small = *reinterpret_cast<const uint4 *>(chunk + SMALL_AT + lane / 4 * 32 + h * 16);
      uint32_t word = step / 2 == 0 ? small.x : step / 2 == 1 ? small.y : step / 2 == 2 ? small.z : small.w;
      for (uint32_t m = 0; m < 2; ++m) fragment.scale[m][h] = d[h] * static_cast<float>(static_cast<int8_t>(word >> (step % 2 * 2 + m) * 8));
    }
    return fragment;
  }
  // Registers j of a product: four bits at their nibbles, two bits at 2j of each half of `high`.
  static NUCLEUS_BOTH void unpack(uint32_t low, uint32_t high, uint32_t (&a)[4]) {
    const uint32_t lows[4] = {low, low >> 4, low >> 8, low >> 12};
    const uint32_t highs[4] = {high << 4, high << 2, high, high >> 2};
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = half2_fma((lows[j] & 0x000f000f) | (highs[j] & 0x00300030) | 0x64006400, 1.0f, -1024 - 32);
  }
  static NUCLEUS_BOTH uint32_t high_offset(uint32_t step, uint32_t lane) { return HIGH_AT + step / 4 * 512 + lane * 16 + step % 4 * 4; }
  static NUCLEUS_BOTH uint32_t high_shift(uint32_t m, uint32_t h, uint32_t i) { return i % 2 * 16 + m * 8 + (i / 2 * 2 + h) * 2; }
  static NUCLEUS_BOTH uint32_t small_offset(uint32_t input, uint32_t output) { return SMALL_AT + output % 8 * 32 + output / 8 * 16 + input / 16; }
  static NUCLEUS_BOTH uint32_t large_offset(uint32_t output) { return LARGE_AT + output % 8 * 4 + output / 8 * 2; }

  static NUCLEUS_BOTH float weight(const uint8_t *chunk, uint32_t output, uint32_t input) {
    Place p = place_of(input);
    uint32_t high = read<uint32_t>(chunk + high_offset(input / STEP, output % 8 * 4 + p.t)) >> high_shift(p.m, output / 8, p.i) & 3;
    int q = static_cast<int>(nibble(chunk, output, input) | high << 4) - 32;
    float scale = half_value(read<uint16_t>(chunk + large_offset(output))) * static_cast<float>(static_cast<int8_t>(chunk[small_offset(input, output)]));
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
        chunk[small_offset(input, output)] = block ? block[192 + input / 16] : uint8_t{0};
      }
      write(chunk + large_offset(output), block ? read<uint16_t>(block + 208) : uint16_t{0});
    }
    for (uint32_t m = 0; m < 2; ++m) write(chunk + nibble_offset(p.step, m, p.lane), low[m]);
    write(chunk + high_offset(p.step, p.lane), high);
  }
};

}  // namespace nucleus::linear
