// What a step needs beside its layers.
#include "../include/decoder_kernels.h"
#include "launch.cuh"

namespace nucleus {
namespace {

constexpr uint32_t THREADS = 128;

__global__ void take_tokens(uint32_t *tokens, const uint32_t *drawn_rows, uint32_t rows, const uint32_t *drawn, uint32_t stride, uint32_t vocab_size) {
  const uint32_t row = blockIdx.x * THREADS + threadIdx.x;
  if (row >= rows || drawn_rows[row] == UINT32_MAX) return;
  const uint32_t token = drawn[uint64_t(drawn_rows[row]) * stride];
  tokens[row] = token < vocab_size ? token : 0;
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

int nucleus_take_tokens(uint32_t *tokens, const uint32_t *drawn_rows, uint32_t rows, const uint32_t *drawn, uint32_t drawn_stride, uint32_t vocab_size,
                        void *stream) {
  const Grid grid{dim3(div_ceil(rows, THREADS)), THREADS};
  return launch(take_tokens, grid, stream, tokens, drawn_rows, rows, drawn, drawn_stride, vocab_size);
}
