// Logits of a row of known type.
#pragma once

#include "row.cuh"

namespace nucleus {

// 16 bytes of logits, widened.
template <u32 DTYPE>
struct Lane {
  static constexpr u32 WIDTH = DTYPE == NUCLEUS_F32 ? 4 : 8;
  float x[WIDTH];

  __device__ __forceinline__ explicit Lane(uint4 v) {
    const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (DTYPE == NUCLEUS_F32) x[i] = float_of(w[i]);
      else {
        u32 half = i % 2 ? w[i / 2] >> 16 : w[i / 2] & 0xFFFFu;
        x[i] = DTYPE == NUCLEUS_BF16 ? float_of(half << 16) : widen_f16(static_cast<uint16_t>(half));
      }
    }
  }
};

// One logit of many.
template <u32 DTYPE>
__device__ __forceinline__ float logit_in(const void *logits, u32 at) {
  if (DTYPE == NUCLEUS_F32) return static_cast<const float *>(logits)[at];
  const uint16_t half = static_cast<const uint16_t *>(logits)[at];
  return DTYPE == NUCLEUS_BF16 ? float_of(static_cast<u32>(half) << 16) : widen_f16(half);
}

}  // namespace nucleus
