// Rows as vectors of four floats, and sums over them in an order that their width alone decides.
#pragma once

#include "launch.cuh"

namespace nucleus {

__device__ __forceinline__ float4 operator*(float4 a, float4 b) { return {a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w}; }
__device__ __forceinline__ float4 operator*(float4 a, float b) { return {a.x * b, a.y * b, a.z * b, a.w * b}; }
__device__ __forceinline__ float4 operator+(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Σ x² of the four, added to `sum`.
__device__ __forceinline__ float add_squares(float4 x, float sum) {
  return fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum))));
}

// The warp's sum, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

// The block's sum, in every thread. `partials` has room for one float a warp, and is free again after the next barrier.
__device__ __forceinline__ float block_sum(float x, float *partials) {
  const uint32_t warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
  x = warp_sum(x);
  if (warps == 1) return x;
  if (lane == 0) partials[threadIdx.x / WARP] = x;
  __syncthreads();
  return warp_sum(lane < warps ? partials[lane] : 0.0f);
}

// What makes the root-mean-square of a row 1, from the sum of its squares.
__device__ __forceinline__ float inverse_rms(float squares, uint32_t width, float eps) {
  return __frcp_rn(__fsqrt_rn(__fdiv_rn(squares, static_cast<float>(width)) + eps));
}

}  // namespace nucleus
