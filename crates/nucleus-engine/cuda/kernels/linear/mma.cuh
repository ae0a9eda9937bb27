// The tensor cores' product of two 16-bit matrices, and the numbers that it takes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "layout.cuh"

namespace nucleus::linear {

// float16: 11 bits of significand.
struct Half {
  // Two numbers that are float16 already, `first` in the lower half.
  static NUCLEUS_BOTH uint32_t pack(float first, float second) {
    __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<uint32_t &>(pair);
  }
  static NUCLEUS_BOTH float2 unpack(uint32_t pair) { return __half22float2(reinterpret_cast<__half2 &>(pair)); }
  // c += a · b: a is 16 × 16, b is 16 × 8.
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// bfloat16: 8 bits of significand, the exponents of float32.
struct Bfloat {
  static NUCLEUS_BOTH uint32_t pack(float first, float second) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<uint32_t &>(pair);
  }
  static NUCLEUS_BOTH float2 unpack(uint32_t pair) { return __bfloat1622float2(reinterpret_cast<__nv_bfloat162 &>(pair)); }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

}  // namespace nucleus::linear
