// The sizes of an attention kernel, and its shared memory.
#pragma once

#include "cache_layout.cuh"
#include "copy_ring.cuh"
#include "splits.cuh"

namespace nucleus {

// Columns of a product on tensor cores: the rows of queries are taken by so many.
constexpr uint32_t TILE = 8;

// Dimensions of a product on tensor cores.
constexpr uint32_t PIECE = 16;

// Positions that the softmax takes at a time: steps, counted from position 0. Part of what decides a result's bits, so it depends on the width alone.
__host__ __device__ constexpr uint32_t step_positions(uint32_t width) { return width <= 128 ? 64 : 32; }

// A kernel for heads of WIDTH dimensions.
//
// Its WARPS computing warps share the copies of keys and values, of which STAGES steps are in flight. Teams of TEAM warps share TILES · TILE rows: where rows are few, what
// counts is how soon a step is done, so each of a team takes some of its positions for the scores and some of the dimensions for the weighted sums; where they
// are many, each warp takes rows of its own and speaks to no other. Either way a number comes out of the same operations in the same order.
// RESIDENT blocks find room in a multiprocessor.
template <uint32_t WIDTH_, uint32_t TILES_, uint32_t TEAM_, uint32_t WARPS_, uint32_t STAGES_, uint32_t RESIDENT_>
struct AttentionShape {
  static constexpr uint32_t WIDTH = WIDTH_, TILES = TILES_, TEAM = TEAM_, WARPS = WARPS_, STAGES = STAGES_, RESIDENT = RESIDENT_;
  static constexpr uint32_t TEAMS = WARPS / TEAM;
  // Those that compute. One warp more fills the ring, unless that would leave the others too few registers: the first then does it, between its steps.
  static constexpr uint32_t COMPUTING = WARPS * WARP;
  static constexpr bool PRODUCER_COMPUTES = WARPS >= 8;
  static constexpr uint32_t THREADS = COMPUTING + (PRODUCER_COMPUTES ? 0 : WARP);
  // Rows: a token's query heads of one key head are rows beside each other, then the next token's.
  static constexpr uint32_t TEAM_ROWS = TILES * TILE;
  static constexpr uint32_t ROWS = TEAMS * TEAM_ROWS;
  static constexpr uint32_t POSITIONS = step_positions(WIDTH);
  static constexpr uint32_t BLOCKS = POSITIONS / BLOCK, OWN_BLOCKS = BLOCKS / TEAM;
  static constexpr uint32_t PIECES = WIDTH / PIECE, OWN_PIECES = div_ceil(PIECES, TEAM);
  static constexpr uint32_t HEAD_BLOCK_BYTES = BLOCK * WIDTH * sizeof(__half);
  // Wide heads leave no registers for the queries.
  static constexpr bool QUERIES_IN_SHARED = PIECES * TILES > 16;
  static_assert(WIDTH % PIECE == 0 && SHORT_SPLIT % POSITIONS == 0 && 2 * BLOCKS <= WARP && BLOCKS % TEAM == 0 && WARPS % TEAM == 0);

  // What the warps of a team tell each other.
  struct Exchange {
    static constexpr uint32_t SHARED_BLOCKS = TEAM > 1 ? BLOCKS : 1;
    float bounds[TEAM][TEAM_ROWS];
    float2 sums[SHARED_BLOCKS][TILES][WARP];
    uint4 weights[SHARED_BLOCKS][TILES][WARP];
  };

  struct Shared {
    // A piece of a block is [2, BLOCK] rows of eight dimensions.
    alignas(128) uint4 keys[STAGES][BLOCKS][PIECES][2 * BLOCK];
    alignas(128) uint4 values[STAGES][BLOCKS][PIECES][2 * BLOCK];
    // Each thread's part of the totals lies beside the other threads', so that a warp's accesses meet no bank twice; queries likewise.
    float4 totals[OWN_PIECES][TILES][COMPUTING];
    uint4 queries[QUERIES_IN_SHARED ? PIECES : 1][TILES][QUERIES_IN_SHARED ? COMPUTING : 1];
    Exchange exchange[TEAM > 1 ? TEAMS : 1];
    RingBarriers<STAGES, WARPS> ring;
  };

  static __device__ __forceinline__ uint32_t team() { return threadIdx.x / WARP / TEAM; }
  static __device__ __forceinline__ uint32_t member() { return TEAM == 1 ? 0 : threadIdx.x / WARP % TEAM; }
  // Waits for the team.
  static __device__ __forceinline__ void team_barrier() {
    if constexpr (TEAM > 1) asm volatile("bar.sync %0, %1;" ::"r"(1 + team()), "n"(TEAM * WARP) : "memory");
  }
};

}  // namespace nucleus
