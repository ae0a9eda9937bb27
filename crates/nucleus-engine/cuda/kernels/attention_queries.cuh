// A warp's queries as operands of the tensor cores.
#pragma once

#include "attention_shape.cuh"
#include "mma.cuh"

namespace nucleus {

// 2^exponent, for exponents of normal numbers.
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// A warp's rows of queries, each brought to a largest value in [1, 2) by a power of two, so that float16 neither overflows nor loses what matters.
template <class Shape>
class Queries {
 public:
  // Reads a tile's row g of lanes 4g … 4g + 3; `row` is null for a row that is none, which becomes zeros. Returns the power of two that undoes the division.
  __device__ float load(uint32_t tile, const float *row, uint32_t head_dim, typename Shape::Shared &shared) {
    float largest = 0.0f;
#pragma unroll 4
    for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
      const float4 x = vector(row, piece, head_dim);
      largest = fmaxf(fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y))), fmaxf(fabsf(x.z), fabsf(x.w)));
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const int exponent = min(max(static_cast<int>(__float_as_uint(largest) >> 23) - 127, SMALLEST_EXPONENT), LARGEST_EXPONENT);
    const float inverse = power_of_two(-exponent);
    // The row is read again, out of the first-level cache: there are not registers for all of it.
#pragma unroll
    for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
      const float4 x = vector(row, piece, head_dim);
      const SplitPair front(x.x * inverse, x.y * inverse), back(x.z * inverse, x.w * inverse);
      if constexpr (Shape::QUERIES_IN_SHARED) {
        shared.queries[piece][tile][threadIdx.x] = {front.high, back.high, front.low, back.low};
      } else {
        held_[piece][tile] = {{front.high, back.high}, {front.low, back.low}};
      }
    }
    return power_of_two(exponent);
  }

  __device__ __forceinline__ SplitColumns columns(uint32_t piece, uint32_t tile, const typename Shape::Shared &shared) const {
    if constexpr (Shape::QUERIES_IN_SHARED) {
      const uint4 parts = shared.queries[piece][tile][threadIdx.x];
      return {{parts.x, parts.y}, {parts.z, parts.w}};
    } else {
      return held_[piece][tile];
    }
  }

 private:
  // The lane's dimensions of a piece: 2t, 2t + 1, 2t + 8 and 2t + 9.
  static __device__ __forceinline__ float4 vector(const float *row, uint32_t piece, uint32_t head_dim) {
    const uint32_t d = piece * PIECE + threadIdx.x % 4 * 2;
    const float2 zeros = {0.0f, 0.0f};
    const float2 front = row && d < head_dim ? *reinterpret_cast<const float2 *>(row + d) : zeros;
    const float2 back = row && d + 8 < head_dim ? *reinterpret_cast<const float2 *>(row + d + 8) : zeros;
    return {front.x, front.y, back.x, back.y};
  }

  // A power of two and its inverse are normal numbers, and so is a smallest one times the scale of a model.
  static constexpr int SMALLEST_EXPONENT = -100, LARGEST_EXPONENT = 126;

  SplitColumns held_[Shape::QUERIES_IN_SHARED ? 1 : Shape::PIECES][Shape::TILES];
};

}  // namespace nucleus
