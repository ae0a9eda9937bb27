// Elementwise kernels: gated activations, the soft cap of logits, and picking rows.
#include <algorithm>

#include "../include/decoder_kernels.h"
#include "vectors.cuh"

namespace nucleus {
namespace {

constexpr uint32_t THREADS = 256;

// x / (1 + e^-x)
struct Silu {
  __device__ __forceinline__ float operator()(float x) const { return x / (1.0f + expf(-x)); }
};

// x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³))) (Hendrycks & Gimpel 2016)
struct GeluTanh {
  __device__ __forceinline__ float operator()(float x) const {
    constexpr float ROOT = 0.7978845608028654f;
    return 0.5f * x * (1.0f + tanhf(ROOT * (x + 0.044715f * x * x * x)));
  }
};

template <class Activation>
__global__ void __launch_bounds__(THREADS) gated(float *gate, const float *up, uint64_t count) {
  take_turn();
  const Activation activation;
  const uint64_t first = 4 * (uint64_t(blockIdx.x) * THREADS + threadIdx.x);
  if (first + 4 <= count) {
    float4 *place = reinterpret_cast<float4 *>(gate + first);
    const float4 g = *place, u = *reinterpret_cast<const float4 *>(up + first);
    *place = float4{activation(g.x), activation(g.y), activation(g.z), activation(g.w)} * u;
    return;
  }
  for (uint64_t i = first; i < count; ++i) gate[i] = activation(gate[i]) * up[i];
}

__global__ void __launch_bounds__(THREADS) soft_cap(float *x, float cap, uint32_t width, uint64_t stride) {
  take_turn();
  const uint32_t column = blockIdx.x * THREADS + threadIdx.x;
  if (column >= width) return;
  float *place = x + blockIdx.y * stride + column;
  *place = cap * tanhf(*place / cap);
}

__global__ void __launch_bounds__(THREADS) gather_rows(const float *x, const uint32_t *rows, uint32_t width, float *output) {
  take_turn();
  const float *from = x + uint64_t(rows[blockIdx.x]) * width;
  float *to = output + uint64_t(blockIdx.x) * width;
  for (uint32_t i = threadIdx.x; i < width / 4; i += THREADS) reinterpret_cast<float4 *>(to)[i] = reinterpret_cast<const float4 *>(from)[i];
}

// Rows of a grid's second dimension.
constexpr uint32_t MAX_GRID_ROWS = 65535;

}  // namespace
}  // namespace nucleus

using namespace nucleus;

int nucleus_gated(float *gate, const float *up, uint64_t count, uint32_t activation, void *stream) {
  const Grid grid{dim3(static_cast<uint32_t>(div_ceil(count, 4 * THREADS))), THREADS, 0, true};
  switch (activation) {
    case NUCLEUS_SILU: return launch(gated<Silu>, grid, stream, gate, up, count);
    case NUCLEUS_GELU_TANH: return launch(gated<GeluTanh>, grid, stream, gate, up, count);
    default: return cudaErrorInvalidValue;
  }
}

int nucleus_gather_rows(const float *x, const uint32_t *rows, uint32_t count, uint32_t width, float *output, void *stream) {
  if (width % 4 != 0) return cudaErrorInvalidValue;
  return launch(gather_rows, Grid{dim3(count), THREADS, 0, true}, stream, x, rows, width, output);
}

int nucleus_soft_cap(float *x, float cap, uint32_t rows, uint32_t width, uint64_t stride, void *stream) {
  for (uint32_t first = 0; first < rows; first += MAX_GRID_ROWS) {
    const Grid grid{dim3(static_cast<uint32_t>(div_ceil(width, THREADS)), std::min(rows - first, MAX_GRID_ROWS)), THREADS, 0, true};
    if (int error = launch(soft_cap, grid, stream, x + first * stride, cap, width, stride)) return error;
  }
  return cudaSuccess;
}
