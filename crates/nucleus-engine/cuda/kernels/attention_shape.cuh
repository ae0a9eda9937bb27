// The sizes of an attention kernel, and its shared memory.
#pragma once

#include "cache_layout.cuh"
#include "copy_ring.cuh"

namespace nucleus {

// Columns of a product on tensor cores: the rows of queries are taken by so many.
constexpr uint32_t TILE = 8;

// Dimensions of a product on tensor cores.
constexpr uint32_t PIECE = 16;

// Positions that the softmax takes at a time: steps, counted from position 0. Part of what decides a result's bits, so it depends on the width alone.
__host__ __device__ constexpr uint32_t step_positions(uint32_t width) { return width <= 64 ? 64 : width <= 128 ? 32 : 16; }

// A kernel for heads of WIDTH dimensions, with WARPS computing warps of TILES · TILE rows each that share the copies of keys and values, of which STAGES steps are
// in flight.
template <uint32_t WIDTH_, uint32_t TILES_, uint32_t WARPS_, uint32_t STAGES_>
struct AttentionShape {
  static constexpr uint32_t WIDTH = WIDTH_, TILES = TILES_, WARPS = WARPS_, STAGES = STAGES_;
  // Those that compute. One warp more fills the ring, unless that would leave the others too few registers: the first then does it, between its steps.
  static constexpr uint32_t COMPUTING = WARPS * WARP;
  static constexpr bool PRODUCER_COMPUTES = WARPS >= 8;
  static constexpr uint32_t THREADS = COMPUTING + (PRODUCER_COMPUTES ? 0 : WARP);
  // Rows: a token's query heads of one key head are rows beside each other, then the next token's.
  static constexpr uint32_t WARP_ROWS = TILES * TILE;
  static constexpr uint32_t ROWS = WARPS * WARP_ROWS;
  static constexpr uint32_t POSITIONS = step_positions(WIDTH);
  static constexpr uint32_t BLOCKS = POSITIONS / BLOCK;
  static constexpr uint32_t PIECES = WIDTH / PIECE;
  static constexpr uint32_t HEAD_BLOCK_BYTES = BLOCK * WIDTH * sizeof(__half);
  // Wide heads leave no registers for the queries.
  static constexpr bool QUERIES_IN_SHARED = WIDTH * TILES > 256;
  static_assert(WIDTH % PIECE == 0 && SHORT_SPLIT % POSITIONS == 0 && 2 * BLOCKS <= WARP);

  struct Shared {
    // A piece of a block is [2, BLOCK] rows of eight dimensions.
    alignas(128) uint4 keys[STAGES][BLOCKS][PIECES][2 * BLOCK];
    alignas(128) uint4 values[STAGES][BLOCKS][PIECES][2 * BLOCK];
    // Each thread's part of the totals lies beside the other threads', so that a warp's accesses meet no bank twice; queries likewise.
    float4 totals[PIECES][TILES][COMPUTING];
    uint4 queries[QUERIES_IN_SHARED ? PIECES : 1][TILES][QUERIES_IN_SHARED ? COMPUTING : 1];
    RingBarriers<STAGES, WARPS> ring;
  };
};

}  // namespace nucleus
