// Tensor-core products of float16 with float32 sums, at near-float32 precision of the second operand.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace nucleus {

// A lane's part of the sums [16, 8] of mma.m16n8k16; with g = lane / 4 and t = lane % 4: row g of columns 2t and 2t + 1, then row g + 8.
struct Sums {
  float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};
};

// A lane's part of the second operand [16, 8]: column g of rows 2t and 2t + 1, then of rows 2t + 8 and 2t + 9.
struct Columns {
  uint32_t parts[2];
};

// sums += a · b, where `a` is the lane's part of [16, 16]: columns 2t and 2t + 1 of row g, of row g + 8, then columns 2t + 8 and 2t + 9 of both.
__device__ __forceinline__ void multiply_add(Sums &sums, const uint4 &a, const Columns &b) {
  float *c = sums.values;
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.parts[0]), "r"(b.parts[1]));
}

// Reads the lane's part of a first operand from four 8 × 8 matrices in shared memory; lane l names row l % 8 of matrix l / 8. The matrices are its quarters in the
// order above.
__device__ __forceinline__ uint4 load_matrices(const uint4 *row) {
  uint4 a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
  return a;
}

// As load_matrices, of quarters that lie there transposed.
__device__ __forceinline__ uint4 load_transposed(const uint4 *row) {
  uint4 a;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row))));
  return a;
}

// Two float32 numbers, each as the sum of two float16 numbers: exact to 22 bits, and to 2⁻²⁵ at least.
struct SplitPair {
  uint32_t high, low;

  __device__ __forceinline__ SplitPair(float x, float y) {
    const __half2 rounded = __floats2half2_rn(x, y);
    const float2 known = __half22float2(rounded);
    const __half2 rest = __floats2half2_rn(x - known.x, y - known.y);
    high = *reinterpret_cast<const uint32_t *>(&rounded);
    low = *reinterpret_cast<const uint32_t *>(&rest);
  }
};

// The second operand as two: its numbers are sums of theirs.
struct SplitColumns {
  Columns high, low;
};

// Transposes an [8, 8] matrix of float16: from columns 2t and 2t + 1 of row g to rows 2t and 2t + 1 of column g.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
  uint32_t other;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
  return other;
}

}  // namespace nucleus
