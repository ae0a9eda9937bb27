// Rearranging a file's blocks, and reading single rows of the result.
#pragma once

#include "weights.cuh"
#include "weights_k.cuh"

namespace nucleus::linear {

// A thread packs what a lane holds of one step.
template <class W>
__global__ void __launch_bounds__(256) pack_matrix(const uint8_t *file, uint32_t outputs, uint32_t inputs, uint8_t *held) {
  constexpr uint32_t LANES = W::STEPS * 32;
  const uint64_t index = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x, chunk = index / LANES;
  const uint32_t chunks = chunks_of<W>(inputs), panel = static_cast<uint32_t>(chunk / chunks);
  if (panel >= div_up(outputs, PANEL)) return;
  Packing packing{{}, inputs, static_cast<uint32_t>(chunk % chunks) * W::STEPS * STEP, static_cast<uint32_t>(index % LANES / 32), threadIdx.x % 32};
  const size_t row_bytes = size_t{inputs} / W::BLOCK * W::BLOCK_BYTES;
  for (uint32_t h = 0; h < 2; ++h) {
    uint32_t output = panel * PANEL + packing.g() + 8 * h;
    packing.rows[h] = output < outputs ? file + output * row_bytes : nullptr;
  }
  W::pack(packing, held + chunk * W::CHUNK_BYTES);
}

template <class W>
cudaError_t launch_pack(const void *file, uint32_t outputs, uint32_t inputs, void *held, cudaStream_t stream) {
  constexpr uint64_t THREADS = 256;
  const uint64_t work = uint64_t{div_up(outputs, PANEL)} * chunks_of<W>(inputs) * W::STEPS * 32, blocks = (work + THREADS - 1) / THREADS;
  if (!blocks) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
  cudaGetLastError();  // that of an earlier call, which its caller was told
  pack_matrix<W><<<static_cast<uint32_t>(blocks), THREADS, 0, stream>>>(static_cast<const uint8_t *>(file), outputs, inputs, static_cast<uint8_t *>(held));
  return cudaGetLastError();
}

// A block for each row.
template <class W>
__global__ void __launch_bounds__(256) embed_rows(const uint8_t *held, uint32_t inputs, const uint32_t *tokens, float scale, float *output) {
  constexpr uint32_t CHUNK = W::STEPS * STEP;
  const uint32_t token = tokens[blockIdx.x];
  const uint8_t *panel = held + token / PANEL * panel_bytes<W>(inputs);
  for (uint32_t input = threadIdx.x; input < inputs; input += blockDim.x) {
    float weight = W::weight(panel + size_t{input / CHUNK} * W::CHUNK_BYTES, token % PANEL, input % CHUNK);
    output[size_t{blockIdx.x} * inputs + input] = __fmul_rn(weight, scale);
  }
}

template <class W>
cudaError_t launch_embed(const NucleusMatrix &matrix, const uint32_t *tokens, uint32_t rows, float scale, float *output, cudaStream_t stream) {
  if (!rows) return cudaSuccess;
  cudaGetLastError();  // that of an earlier call, which its caller was told
  embed_rows<W><<<rows, 256, 0, stream>>>(static_cast<const uint8_t *>(matrix.data), matrix.inputs, tokens, scale, output);
  return cudaGetLastError();
}

}  // namespace nucleus::linear
