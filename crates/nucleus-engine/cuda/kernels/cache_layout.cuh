// Where the numbers of a block of the cache lie.
//
// Attention multiplies on tensor cores with mma.m16n8k16, whose second operand B is [16, 8]. A block's keys and values of one head are kept as pieces of
// 16 positions × 16 dimensions, each in the order in which a warp's lanes hold two such operands: lane l reads its 16 bytes at 16·l, and a warp reads
// a piece without a bank conflict and without a transposition. For scores, B's rows are dimensions and its columns positions; for the weighted
// sum of values its rows are positions and its columns dimensions.
#pragma once

#include <cuda_fp16.h>

#include "../include/decoder_kernels.h"
#include "launch.cuh"

namespace nucleus {

constexpr uint32_t BLOCK = NUCLEUS_BLOCK_SIZE;
// Dimensions of a piece.
constexpr uint32_t PIECE = 16;
// Numbers of a piece.
constexpr uint32_t PIECE_SIZE = BLOCK * PIECE;
static_assert(BLOCK == 16, "a piece has the positions of a block");

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

// Where, in a head's part of a block, dimension `d` of the key at a slot lies; dimensions 4i … 4i + 3 are neighbours.
//
// B's column is slot % 8 and its rows are dimensions: a lane holds four of them, which are taken as neighbours, since a sum over dimensions does not
// depend on their names as long as the queries are read alike.
__host__ __device__ constexpr uint32_t key_place(uint32_t slot, uint32_t d) {
  const uint32_t lane = slot % 8 * 4 + d % PIECE / 4;
  return d / PIECE * PIECE_SIZE + lane * 8 + slot / 8 * 4 + d % 4;
}

// Where dimension `d` of the value at a slot lies. B's column is d % 8; its rows are slots: a lane holds 2t, 2t + 1, 2t + 8 and 2t + 9.
__host__ __device__ constexpr uint32_t value_place(uint32_t slot, uint32_t d) {
  const uint32_t lane = d % 8 * 4 + slot % 8 / 2;
  return d / PIECE * PIECE_SIZE + lane * 8 + d % PIECE / 8 * 4 + slot / 8 * 2 + slot % 2;
}

// A number of the cache: rounded to float16, to the largest finite one where it is finite and beyond it.
__device__ __forceinline__ __half stored_half(float x) {
  constexpr float LARGEST = 65504.0f;
  const bool finite = fabsf(x) < __int_as_float(0x7F800000);
  return __float2half_rn(finite ? fminf(fmaxf(x, -LARGEST), LARGEST) : x);
}

}  // namespace nucleus
