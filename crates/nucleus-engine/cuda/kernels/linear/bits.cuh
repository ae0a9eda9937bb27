// Conversions of bits to numbers, on the device and, for tests of layouts, on the host.
#pragma once

#include <cuda_fp16.h>

#include <cstring>

#include "layout.cuh"

namespace nucleus::linear {

template <class T>
NUCLEUS_BOTH T read(const uint8_t *bytes) {
  T value;
#ifdef __CUDA_ARCH__
  value = *reinterpret_cast<const T *>(bytes);
#else
  std::memcpy(&value, bytes, sizeof value);
#endif
  return value;
}

template <class T>
NUCLEUS_BOTH void write(uint8_t *bytes, T value) {
#ifdef __CUDA_ARCH__
  *reinterpret_cast<T *>(bytes) = value;
#else
  std::memcpy(bytes, &value, sizeof value);
#endif
}

NUCLEUS_BOTH float half_value(uint32_t bits) {
  __half_raw raw;
  raw.x = static_cast<uint16_t>(bits);
  return __half2float(__half(raw));
}

NUCLEUS_BOTH float bits_value(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// The two numbers of 16 bits, each times `factor` plus `term`; all of it exact where this is used.
NUCLEUS_BOTH uint32_t half2_fma(uint32_t pair, float factor, float term) {
#ifdef __CUDA_ARCH__
  __half2 value = __hfma2(reinterpret_cast<__half2 &>(pair), __float2half2_rn(factor), __float2half2_rn(term));
  return reinterpret_cast<uint32_t &>(value);
#else
  auto one = [=](uint32_t bits) {
    __half value = __float2half_rn(half_value(bits & 0xffff) * factor + term);
    return static_cast<uint32_t>(__half_raw(value).x);
  };
  return one(pair) | one(pair >> 16) << 16;
#endif
}

// (word & mask) | rest, in one instruction: the compiler makes two of it when both are constants.
NUCLEUS_BOTH uint32_t masked_or(uint32_t word, uint32_t mask, uint32_t rest) {
#ifdef __CUDA_ARCH__
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(rest));
  return result;
#else
  return (word & mask) | rest;
#endif
}

// 1024 in both halves, in whose last bits a whole number below 1024 can be put.
constexpr uint32_t HALVES_1024 = 0x64006400;

// Bytes FIRST and FIRST + 1 as numbers 1024 + byte of float16. With 1024 in a register the selector is part of the instruction; the compiler would have it the
// other way round, which costs a move.
template <uint32_t FIRST>
NUCLEUS_BOTH uint32_t bytes_above_1024(uint32_t word) {
#ifdef __CUDA_ARCH__
  uint32_t halves;
  asm("mov.b32 %0, %1;" : "=r"(halves) : "n"(HALVES_1024));
  return __byte_perm(word, halves, FIRST == 0 ? 0x5150 : 0x5352);
#else
  return (word >> 8 * FIRST & 0xff) | (word >> 8 * (FIRST + 1) & 0xff) << 16 | HALVES_1024;
#endif
}

// factor · (byte `index` - zero), exactly, where the factor has 11 bits: 32768 + byte is a float32 with the byte in the middle.
template <uint32_t INDEX>
NUCLEUS_BOTH float scaled_byte(uint32_t word, float factor, float zero) {
#ifdef __CUDA_ARCH__
  float above = __uint_as_float(__byte_perm(word, 0x47000000, 0x7404 | INDEX << 4));
  return __fmaf_rn(factor, above, -factor * (32768 + zero));
#else
  return factor * (static_cast<float>(word >> 8 * INDEX & 0xff) - zero);
#endif
}

}  // namespace nucleus::linear
