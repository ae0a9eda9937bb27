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

// Bytes `first` and `first + 1` as numbers 1024 + byte of float16.
template <uint32_t FIRST>
NUCLEUS_BOTH uint32_t bytes_above_1024(uint32_t word) {
#ifdef __CUDA_ARCH__
  return __byte_perm(word, 0x64646464, FIRST == 0 ? 0x4140 : 0x4342);
#else
  return (word >> 8 * FIRST & 0xff) | (word >> 8 * (FIRST + 1) & 0xff) << 16 | 0x64006400;
#endif
}

}  // namespace nucleus::linear
