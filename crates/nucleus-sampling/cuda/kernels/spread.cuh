// Bounded requests where rows are few: a cluster of blocks a row, whose threads hold the row in registers.
//
// A row is dealt out to the blocks in pieces. A table of each block tells the edits of its tokens before the logits have come. The largest logits of groups of
// threads are told to every block: what k of them reach bounds the row's k-th largest logit from below. Tokens that reach the bound, after their edits, are
// sent to the leading block, which runs the program on them. What does not fit and rows that are not of numbers alone are decided by the leading block on the
// exact path, if no launch follows that would.
#pragma once

#include "tile.cuh"
#include "unsliced.cuh"

namespace nucleus::spread {

constexpr u32 BLOCKS_MOST = 16;     // a row
constexpr u32 TABLE = 1024;         // slots for the edits of a block's tokens
constexpr u32 EDITED_WORDS = NUCLEUS_MAX_VOCAB / 4 / 32 + 512;  // bits of a block's tokens; a row has four blocks or more
constexpr u32 SENT_MOST = 4096;     // tokens that the leading block has room for, all blocks' together
constexpr u32 GROUPS_MOST = 256;    // of threads, each with its largest logit
constexpr u32 ORDERED_MOST = 128;   // a list of no more tokens is also ordered by id
constexpr u32 RECENT = EDITS_MOST / TILE_THREADS;  // tokens of the history a thread reads

// What the short way to choose works on.
struct ChainRoom {
  u32 by_id[ORDERED_MOST];  // of the sorted list: how many have a smaller id
  u32 order_by_id[ORDERED_MOST];
  alignas(16) u64 weights_by_id[ORDERED_MOST];
  u64 weights[ORDERED_MOST / 2], total;
  float logprobs[ORDERED_MOST / 2];
  u32 kept;
};

// A row's description, what it asks for, and what a block has found. The first member of its shared memory, as of the clusters'.
struct RowState : Description {
  SlicePlan plan;
  float scale;   // of the plan's temperature
  u64 uniform;   // that draws
  bool bounded;  // it is decided here, as far as the description tells
  bool common;   // its program is one of the commonest (spread_chain.cuh)
  u32 window;    // tokens at the end of the history that may be edited
  u32 found;     // tokens of this block that reach the bound
  u32 strange;   // NaN or +inf was seen, or an edit had no room
  alignas(16) u32 sent[BLOCKS_MOST];  // by each block
  u32 maxima[TILE_WARPS];
  alignas(16) float groups[GROUPS_MOST];
  alignas(16) u64 places[LISTED];
  ChainRoom chain;
  u32 ids[EDITS_MOST];      // the window of the history
  alignas(16) Edit edits[TABLE + 1];
  alignas(16) u32 edited[EDITED_WORDS];  // bits of the block's tokens, in the order of its pieces
  alignas(16) u64 arrivals[SENT_MOST];   // at the leading block, from each block; then the weights of a list
};
__device__ __forceinline__ RowState *row_state() { return reinterpret_cast<RowState *>(shared_memory); }
constexpr u32 ALONE_BYTES = SHARED_BYTES + SPARE_BYTES;  // of the exact path
constexpr u32 STATE_BYTES = sizeof(RowState) > ALONE_BYTES ? sizeof(RowState) : ALONE_BYTES;

// How a row is dealt out: vector j of a thread holds the ids from at(j) on, pieces of as many ids as a block loads at once going round.
template <u32 DTYPE, u32 BLOCKS>
struct Deal {
  using Vector = Lane<DTYPE>;
  static constexpr u32 WIDTH = Vector::WIDTH, PIECE = TILE_THREADS * WIDTH;
  static constexpr u32 VECTORS = (80 * 4 / WIDTH + BLOCKS - 1) / BLOCKS;  // of a thread at a time
  static constexpr u32 CHUNK = VECTORS * PIECE * BLOCKS;                  // ids of all threads at a time
  static constexpr u32 ROOM = SENT_MOST / BLOCKS;                         // tokens that a block may send
  static_assert((BLOCKS & (BLOCKS - 1)) == 0 && BLOCKS <= BLOCKS_MOST);

  __device__ __forceinline__ static u32 at(u32 block, u32 j) { return (j * BLOCKS + block) * PIECE + threadIdx.x * WIDTH; }
  // Whether an id is a block's, and which of its ids.
  __device__ __forceinline__ static u32 block_of(u32 id) { return id / PIECE % BLOCKS; }
  __device__ __forceinline__ static u32 local(u32 id) { return id / (PIECE * BLOCKS) * PIECE + id % PIECE; }
};

// The edits of a block's tokens; those that have some are marked.
template <class D>
struct DealtTable : EditTable {
  RowState *sh;
  u32 block, limit;

  __device__ __forceinline__ DealtTable(RowState *state, u32 own, u32 ids) : EditTable{state->edits, TABLE, &state->strange}, sh(state), block(own), limit(ids) {}
  __device__ __forceinline__ bool covers(u32 id) const { return D::block_of(id) == block && id < limit; }
  __device__ __forceinline__ Edit *insert(u32 id) const {
    const u32 local = D::local(id);
    atomicOr(&sh->edited[local / 32], 1u << local % 32);
    return EditTable::insert(id);
  }
};

// A block as a team of one.
struct BlockTeam {
  RowState *sh;

  __device__ __forceinline__ u32 local() const { return threadIdx.x; }
  __device__ __forceinline__ u32 locals() const { return TILE_THREADS; }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh->maxima[threadIdx.x / 32] = v;
    __syncthreads();
    return __reduce_max_sync(~0u, sh->maxima[threadIdx.x % TILE_WARPS]);
  }
};

// The key of a logit, 0 for -inf.
__device__ __forceinline__ u32 key_or_none(float x) { return x > -infinity() ? key_of(x + 0.0f) : 0; }
__device__ __forceinline__ float value_or_none(u32 key) { return key ? value_of(key) : -infinity(); }

}  // namespace nucleus::spread
