// Root-mean-square norms (Zhang & Sennrich 2019), alone and with the residual addition before them.
//
// One block takes one row and keeps it in registers: every value is read once and written once. The order of a sum is that of the row's vectors
// over the block's threads, so the width alone decides it.
#include "../include/decoder_kernels.h"
#include "vectors.cuh"

namespace nucleus {
namespace {

constexpr uint32_t MAX_THREADS = 512;
constexpr uint32_t MAX_WARPS = MAX_THREADS / WARP;

// A row over the block's threads, `VECTORS` vectors each: vector i of thread t is the row's vector i · threads + t.
template <uint32_t VECTORS>
struct BlockRow {
  float4 values[VECTORS];

  // Calls `f(value, place)` for the thread's vectors.
  template <class F>
  __device__ __forceinline__ void each(uint32_t width, F f) {
#pragma unroll
    for (uint32_t i = 0; i < VECTORS; ++i) {
      uint32_t place = i * blockDim.x + threadIdx.x;
      if (place < width / 4) f(values[i], place);
    }
  }

  __device__ __forceinline__ void load(const float *row, uint32_t width) {
    each(width, [&](float4 &value, uint32_t place) { value = reinterpret_cast<const float4 *>(row)[place]; });
  }

  __device__ __forceinline__ void store(float *row, uint32_t width) {
    each(width, [&](float4 &value, uint32_t place) { reinterpret_cast<float4 *>(row)[place] = value; });
  }

  __device__ __forceinline__ void add(const BlockRow &other) {
#pragma unroll
    for (uint32_t i = 0; i < VECTORS; ++i) values[i] = values[i] + other.values[i];
  }

  // x / √(mean(x²) + eps) · weight
  __device__ __forceinline__ void normalise(const float *weight, uint32_t width, float eps, float *partials) {
    float squares = 0.0f;
    each(width, [&](float4 &value, uint32_t) { squares = add_squares(value, squares); });
    const float scale = inverse_rms(block_sum(squares, partials), width, eps);
    each(width, [&](float4 &value, uint32_t place) { value = value * scale * reinterpret_cast<const float4 *>(weight)[place]; });
  }
};

template <uint32_t VECTORS>
__global__ void __launch_bounds__(MAX_THREADS) rms_norm(const float *x, const float *weight, float eps, uint32_t width, float *output) {
  __shared__ float partials[MAX_WARPS];
  take_turn();
  const uint64_t start = uint64_t(blockIdx.x) * width;
  BlockRow<VECTORS> row;
  row.load(x + start, width);
  row.normalise(weight, width, eps, partials);
  row.store(output + start, width);
}

template <uint32_t VECTORS>
__global__ void __launch_bounds__(MAX_THREADS) add_norm(NucleusAddNorm call) {
  __shared__ float partials[2][MAX_WARPS];
  take_turn();
  const uint64_t start = uint64_t(blockIdx.x) * call.width;
  BlockRow<VECTORS> hidden, y;
  hidden.load(call.hidden + start, call.width);
  y.load(call.y + start, call.width);
  if (call.post_norm) y.normalise(call.post_norm, call.width, call.eps, partials[0]);
  hidden.add(y);
  hidden.store(call.hidden + start, call.width);
  if (!call.next_norm) return;
  hidden.normalise(call.next_norm, call.width, call.eps, partials[1]);
  hidden.store(call.normed + start, call.width);
}

// Calls `f(vectors)` with the vectors a thread takes of a row, as a constant.
template <class F>
int with_vectors(uint32_t width, F f) {
  if (width == 0 || width % 4 != 0) return cudaErrorInvalidValue;
  if (width <= 2048) return f(std::integral_constant<uint32_t, 1>());
  if (width <= 4096) return f(std::integral_constant<uint32_t, 2>());
  if (width <= 8192) return f(std::integral_constant<uint32_t, 4>());
  if (width <= 16384) return f(std::integral_constant<uint32_t, 8>());
  return cudaErrorInvalidValue;
}

// One block a row, with just the warps that the row's vectors need.
Grid row_blocks(uint32_t rows, uint32_t width, uint32_t vectors) {
  return {dim3(rows), static_cast<uint32_t>(div_ceil(width / 4, vectors * WARP) * WARP), 0, true};
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

int nucleus_rms_norm(const float *x, const float *weight, float eps, uint32_t rows, uint32_t width, float *output, void *stream) {
  return with_vectors(width, [&](auto vectors) {
    return launch(rms_norm<vectors>, row_blocks(rows, width, vectors), stream, x, weight, eps, width, output);
  });
}

int nucleus_add_norm(const NucleusAddNorm *call, void *stream) {
  return with_vectors(call->width, [&](auto vectors) {
    return launch(add_norm<vectors>, row_blocks(call->rows, call->width, vectors), stream, *call);
  });
}
