// How the work of a call is shared out.
#pragma once

#include "../include/decoder_kernels.h"
#include "splits.cuh"

namespace nucleus {

// Results of splits that blocks leave for the kernel that adds them: for every tile, key head, split and row.
struct Partials {
  float *outputs;    // [tiles, kv_heads, splits, rows, width]
  Softmax *softmax;  // [tiles, kv_heads, splits, rows]
  uint32_t splits;   // room for so many, counted from the tile's first
  uint32_t rows;

  __device__ __forceinline__ uint64_t place(uint32_t tile_and_head, uint32_t split, uint32_t row) const {
    return (uint64_t(tile_and_head) * splits + split) * rows + row;
  }
};

// One launch: blocks take the tiles that have so many rows of query heads, each of them every `parts`-th split.
struct AttentionPlan {
  uint32_t parts;
  uint32_t fewest_rows, most_rows;
  Partials partials;  // used where parts > 1

  __device__ bool takes(const NucleusAttention &call, const NucleusTile &tile) const {
    const uint32_t rows = tile.rows * (call.heads / call.cache.kv_heads);
    return fewest_rows <= rows && rows <= most_rows;
  }
};

// Where every tile is a row, it is the row of its number: one read less before anything can begin.
__device__ __forceinline__ NucleusTile tile_of(const NucleusAttention &call, uint32_t index) {
  return call.tile_count == call.rows.rows ? NucleusTile{index, 1} : call.tiles[index];
}

// What a tile attends to.
struct TileContext {
  NucleusTile tile;
  uint32_t group;  // query heads a key head
  uint32_t sequence;
  uint32_t first_position;  // of the tile's first row
  uint32_t first, last;     // positions that some row attends to

  __device__ TileContext(const NucleusAttention &call, const NucleusTile &tile)
      : tile(tile), group(call.heads / call.cache.kv_heads), sequence(call.rows.sequences[tile.first_row]), first_position(call.rows.positions[tile.first_row]) {
    first = call.window != 0 && first_position >= call.window ? first_position - call.window + 1 : 0;
    last = first_position + tile.rows - 1;
  }

  __device__ uint32_t rows() const { return tile.rows * group; }
  __device__ uint32_t first_split() const { return split_of(first); }
  __device__ uint32_t last_split() const { return split_of(last); }
  // Whether other blocks take splits of it, too.
  __device__ bool is_shared(const AttentionPlan &plan) const { return plan.parts > 1 && first_split() != last_split(); }
};

}  // namespace nucleus
