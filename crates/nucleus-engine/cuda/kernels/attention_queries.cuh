// A warp's queries as operands of the tensor cores.
#pragma once

#include "attention_shape.cuh"
#include "mma.cuh"

namespace nucleus {

// 2^exponent, for exponents of normal numbers.
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// Sixteen rows of queries, each brought to a largest value in [1, 2) by a power of two, so that float16 neither overflows nor loses what matters.
template <class Shape>
class Queries {
 public:
  // Reads a lane's rows g and g + 8; `rows[i]` is null for a row that is none, which becomes zeros. `scales[i]` receives the power of two that undoes
  // the division.
  __device__ void load(const float *const (&rows)[2], uint32_t head_dim, typename Shape::Shared &shared, float (&scales)[2]) {
    float inverses[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      float largest = 0.0f;
#pragma unroll 4
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        const float4 x = vector(rows[i], piece, head_dim);
        largest = fmaxf(fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y))), fmaxf(fabsf(x.z), fabsf(x.w)));
      }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const int exponent = min(max(static_cast<int>(__float_as_uint(largest) >> 23) - 127, SMALLEST_EXPONENT), LARGEST_EXPONENT);
      scales[i] = power_of_two(exponent);
      inverses[i] = power_of_two(-exponent);
    }
    // The rows are read again, out of the first-level cache: there are not registers for all of them.
#pragma unroll
    for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
      SplitFragment fragment;
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const float4 x = vector(rows[i], piece, head_dim);
        fragment.set(i, x.x * inverses[i], x.y * inverses[i]);
        fragment.set(i + 2, x.z * inverses[i], x.w * inverses[i]);
      }
      if constexpr (Shape::QUERIES_IN_SHARED) {
        shared.queries[piece][0][threadIdx.x] = *reinterpret_cast<const uint4 *>(&fragment.high);
        shared.queries[piece][1][threadIdx.x] = *reinterpret_cast<const uint4 *>(&fragment.low);
      } else {
        held_[piece] = fragment;
      }
    }
  }

  __device__ __forceinline__ SplitFragment fragment(uint32_t piece, const typename Shape::Shared &shared) const {
    if constexpr (Shape::QUERIES_IN_SHARED) {
      SplitFragment fragment;
      *reinterpret_cast<uint4 *>(&fragment.high) = shared.queries[piece][0][threadIdx.x];
      *reinterpret_cast<uint4 *>(&fragment.low) = shared.queries[piece][1][threadIdx.x];
      return fragment;
    } else {
      return held_[piece];
    }
  }

 private:
  // The lane's four dimensions of a piece.
  static __device__ __forceinline__ float4 vector(const float *row, uint32_t piece, uint32_t head_dim) {
    const uint32_t d = piece * PIECE + threadIdx.x % 4 * 4;
    return row && d < head_dim ? *reinterpret_cast<const float4 *>(row + d) : float4{0.0f, 0.0f, 0.0f, 0.0f};
  }

  // A power of two and its inverse are normal numbers, and so is a smallest one times the scale of a model.
  static constexpr int SMALLEST_EXPONENT = -100, LARGEST_EXPONENT = 126;

  SplitFragment held_[Shape::QUERIES_IN_SHARED ? 1 : Shape::PIECES];
};

}  // namespace nucleus
