// Tensor-core products of float16 with float32 sums, at near-float32 precision of the first operand.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nucleus {

// A lane's part of the first operand [16, 16] of mma.m16n8k16; with g = lane / 4 and t = lane % 4: row g of columns 2t and 2t + 1, row g + 8 of these, then
// both rows of columns 2t + 8 and 2t + 9.
struct Fragment {
  uint32_t parts[4];
};

// A lane's part of the sums [16, 8]: row g of columns 2t and 2t + 1, then row g + 8.
struct Sums {
  float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
};

// sums += a · b, where b0 and b1 are the lane's part of b [16, 8]: column g of rows 2t and 2t + 1, and of rows 2t + 8 and 2t + 9.
__device__ __forceinline__ void multiply_add(Sums &sums, const Fragment &a, uint32_t b0, uint32_t b1) {
  float *c = sums.values;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.parts[0]), "r"(a.parts[1]), "r"(a.parts[2]), "r"(a.parts[3]), "r"(b0), "r"(b1));
}

// Float32 as the sum of two float16: 22 bits of a number between 2⁻² and 2¹⁶, and an error of at most 2⁻²⁵ below.
struct SplitFragment {
  Fragment high, low;

  __device__ __forceinline__ void set(uint32_t part, float x, float y) {
    const __half2 rounded = __floats2half2_rn(x, y);
    const float2 known = __half22float2(rounded);
    const __half2 rest = __floats2half2_rn(x - known.x, y - known.y);
    high.parts[part] = *reinterpret_cast<const uint32_t *>(&rounded);
    low.parts[part] = *reinterpret_cast<const uint32_t *>(&rest);
  }
};

}  // namespace nucleus
