// Blocks of a model file for tests: random ones, and what they mean, written from ggml's definitions and not from the kernels.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../include/decoder_kernels.h"

namespace test {

struct Type {
  uint32_t number;
  const char *name;
  uint32_t block, bytes;
};

constexpr Type TYPES[] = {
    {NUCLEUS_F32, "F32", 1, 4},      {NUCLEUS_F16, "F16", 1, 2},      {NUCLEUS_BF16, "BF16", 1, 2},    {NUCLEUS_Q8_0, "Q8_0", 32, 34},
    {NUCLEUS_Q4_0, "Q4_0", 32, 18}, {NUCLEUS_Q4_K, "Q4_K", 256, 144}, {NUCLEUS_Q6_K, "Q6_K", 256, 210},
};

__host__ __device__ inline uint32_t hash(uint64_t index, uint32_t seed) {
  uint64_t z = (index + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>(z >> 32);
}

// From -1 to 1.
__host__ __device__ inline float uniform(uint64_t index, uint32_t seed) { return static_cast<float>(hash(index, seed) >> 8) / 8388608.0f - 1.0f; }

// Writes block `index` of a random matrix, whose weights are of the size of a model's.
__host__ __device__ inline void fill_block(uint32_t type, uint64_t index, uint32_t seed, uint8_t *block) {
  auto half_at = [&](uint32_t at, float value) {
    __half_raw raw = __float2half_rn(value);
    block[at] = static_cast<uint8_t>(raw.x);
    block[at + 1] = static_cast<uint8_t>(raw.x >> 8);
  };
  auto bytes = [&](uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; ++i) block[i] = static_cast<uint8_t>(hash(index * 256 + i, seed));
  };
  float value = uniform(index, seed) * 0.05f, positive = 0.75f + 0.25f * uniform(index, seed);
  union {
    float value;
    uint32_t bits;
  } cast{value};
  switch (type) {
    case NUCLEUS_F32:
      for (uint32_t i = 0; i < 4; ++i) block[i] = static_cast<uint8_t>(cast.bits >> 8 * i);
      break;
    case NUCLEUS_BF16:
      for (uint32_t i = 0; i < 2; ++i) block[i] = static_cast<uint8_t>(cast.bits >> 8 * (i + 2));
      break;
    case NUCLEUS_F16: half_at(0, value); break;
    case NUCLEUS_Q8_0: half_at(0, positive * 0.0005f), bytes(2, 34); break;
    case NUCLEUS_Q4_0: half_at(0, value * 0.15f), bytes(2, 18); break;
    case NUCLEUS_Q4_K: half_at(0, positive * 0.0002f), half_at(2, positive * 0.001f), bytes(4, 144); break;
    case NUCLEUS_Q6_K: bytes(0, 208), half_at(208, value * 0.0005f); break;
  }
}

inline double half_at(const uint8_t *at) {
  __half_raw raw;
  raw.x = static_cast<uint16_t>(at[0] | at[1] << 8);
  return __half2float(__half(raw));
}

inline float float_at(const uint8_t *at) {
  float value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Weight `k` of a block, and its value in the order of float32 operations that candle and llama.cpp use.
inline float weight(uint32_t type, const uint8_t *block, uint32_t k) {
  switch (type) {
    case NUCLEUS_F32: return float_at(block);
    case NUCLEUS_F16: return static_cast<float>(half_at(block));
    case NUCLEUS_BF16: {
      uint8_t wide[4] = {0, 0, block[0], block[1]};
      return float_at(wide);
    }
    case NUCLEUS_Q8_0: return static_cast<float>(half_at(block)) * static_cast<float>(static_cast<int8_t>(block[2 + k]));
    case NUCLEUS_Q4_0: {
      int q = k < 16 ? block[2 + k] & 15 : block[2 + k - 16] >> 4;
      return static_cast<float>(half_at(block)) * static_cast<float>(q - 8);
    }
    case NUCLEUS_Q4_K: {
      uint32_t j = k / 32;
      const uint8_t *s = block + 4, *qs = block + 16 + k / 64 * 32;
      int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
      int minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
      int q = j % 2 ? qs[k % 32] >> 4 : qs[k % 32] & 15;
      volatile float product = static_cast<float>(half_at(block)) * static_cast<float>(scale) * static_cast<float>(q);
      volatile float below = static_cast<float>(half_at(block + 2)) * static_cast<float>(minimum);
      return product - below;
    }
    case NUCLEUS_Q6_K: {
      uint32_t n = k / 128, l = k % 32, quarter = k % 128 / 32;
      const uint8_t *ql = block + 64 * n, *qh = block + 128 + 32 * n;
      const int8_t *scales = reinterpret_cast<const int8_t *>(block + 192 + 8 * n);
      int low = quarter == 0 ? ql[l] & 15 : quarter == 1 ? ql[l + 32] & 15 : quarter == 2 ? ql[l] >> 4 : ql[l + 32] >> 4;
      int q = (low | (qh[l] >> 2 * quarter & 3) << 4) - 32;
      return static_cast<float>(half_at(block + 208)) * static_cast<float>(scales[l / 16 + 2 * quarter]) * static_cast<float>(q);
    }
  }
  return NAN;
}

// A matrix as a file holds it, and its weights.
struct Matrix {
  Type type;
  uint32_t outputs, inputs;
  std::vector<uint8_t> bytes;
  std::vector<float> weights;

  Matrix(const Type &type, uint32_t outputs, uint32_t inputs, uint32_t seed) : type(type), outputs(outputs), inputs(inputs) {
    size_t blocks = size_t{outputs} * inputs / type.block;
    bytes.resize(blocks * type.bytes);
    for (size_t i = 0; i < blocks; ++i) fill_block(type.number, i, seed, &bytes[i * type.bytes]);
    weights.resize(size_t{outputs} * inputs);
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = weight(type.number, &bytes[i / type.block * type.bytes], i % type.block);
  }
};

}  // namespace test
