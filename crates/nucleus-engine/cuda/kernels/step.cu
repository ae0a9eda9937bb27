// What a step needs beside its layers.
#include "../include/decoder_kernels.h"
#include "launch.cuh"

namespace nucleus {
namespace {

constexpr uint32_t THREADS = 128;

__global__ void take_tokens(NucleusTakeTokens call) {
  const uint32_t row = blockIdx.x * THREADS + threadIdx.x;
  if (row >= call.rows || call.drawn_rows[row] == UINT32_MAX) return;
  const uint32_t *drawn = call.drawn + uint64_t(call.drawn_rows[row]) * call.drawn_stride;
  const uint32_t token = drawn[0];
  const bool ended = drawn[call.status_offset] == call.stopped;
  call.tokens[row] = !ended && token < call.vocab_size ? token : 0;
  if (!ended) return;
  call.positions[row] = 0;
  call.block_tables[uint64_t(call.sequences[row]) * call.blocks_per_table] = call.spare_block;
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

int nucleus_take_tokens(const NucleusTakeTokens *call, void *stream) {
  return launch(take_tokens, Grid{dim3(div_ceil(call->rows, THREADS)), THREADS}, stream, *call);
}
