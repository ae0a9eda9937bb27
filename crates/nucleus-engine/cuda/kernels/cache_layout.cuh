// Where the numbers of a block of the cache lie.
//
// A block's keys of one head, and its values, are [width / 8, BLOCK, 8]: eight dimensions of a position are 16 bytes, and those of eight positions are 128 bytes in a
// row. Attention reads them from shared memory as 8 × 8 matrices (ldmatrix), keys as they are and values transposed, without a bank conflict; and a
// position is written by 16 bytes at a time.
#pragma once

#include <cuda_fp16.h>

#include "../include/decoder_kernels.h"
#include "launch.cuh"

namespace nucleus {

constexpr uint32_t BLOCK = NUCLEUS_BLOCK_SIZE;

// Dimensions that a head takes in the cache: the next of the widths that attention is compiled for, with zeros behind the head's own; 0: it is too wide.
__host__ __device__ constexpr uint32_t stored_width(uint32_t head_dim) {
  if (head_dim <= 16) return 16;
  if (head_dim <= 32) return 32;
  if (head_dim <= 64) return 64;
  if (head_dim <= 80) return 80;
  if (head_dim <= 96) return 96;
  if (head_dim <= 128) return 128;
  return head_dim <= 256 ? 256 : 0;
}

// Where one head's part of a block starts.
__host__ __device__ inline uint64_t head_block(uint32_t block, uint32_t kv_heads, uint32_t kv_head, uint32_t width) {
  return (uint64_t(block) * kv_heads + kv_head) * (BLOCK * width);
}

// Where, in a head's part of a block, dimension `d` at a slot lies.
__host__ __device__ constexpr uint32_t place_in_block(uint32_t slot, uint32_t d) { return (d / 8 * BLOCK + slot) * 8 + d % 8; }

// A number of the cache: rounded to float16, to the largest finite one where it is finite and beyond it.
__device__ __forceinline__ __half stored_half(float x) {
  constexpr float LARGEST = 65504.0f;
  const bool finite = fabsf(x) < __int_as_float(0x7F800000);
  return __float2half_rn(finite ? fminf(fmaxf(x, -LARGEST), LARGEST) : x);
}

}  // namespace nucleus
