// Bounded requests where rows are few: a cluster of blocks a row, whose threads read the row into registers.
//
// A row is dealt out to the blocks in pieces. A table of each block tells the edits of its tokens before the logits have come. The largest logits of groups of
// threads are told to every block: what k of them reach bounds the row's k-th largest logit from below. Tokens that reach the bound, after their edits, are
// sent to the leading block, which runs the program on them. What does not fit and rows that are not of numbers alone are PENDING.
#pragma once

#include "bounded.cuh"
#include "chain.cuh"

namespace nucleus::spread {

constexpr u32 TILE_THREADS = 512;  // of a block
constexpr u32 TILE_WARPS = TILE_THREADS / 32;
constexpr u32 BLOCKS_MOST = 16;    // a row
constexpr u32 HALF_BYTES = 80;      // of a row in half of a thread's registers for it
constexpr u32 PIECES_MOST = 16;     // that fill such a half, of all threads
constexpr u32 TABLE = 2048;         // slots for the edits of a block's tokens
constexpr u32 EDITED_WORDS = PIECES_MOST * TILE_THREADS * 24 / 32;  // bits of a block's tokens
constexpr u32 SENT_MOST = 4096;     // tokens that the leading block has room for, all blocks' together
constexpr u32 GROUPS_MOST = 256;    // of threads, each with its largest logit
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

// A row's description, what it asks for, and what a block has found.
struct RowState : Description {
  SlicePlan plan;
  float scale;   // of the plan's temperature
  u64 uniform;   // that draws
  bool bounded;  // it is decided here, as far as the description tells
  bool common;   // its program is one of the commonest (chain.cuh)
  u32 window;    // tokens at the end of the history that may be edited
  u32 found;     // tokens of this block that reach the bound
  u32 strange;   // NaN or +inf was seen, or an edit had no room
  u64 told, arrived;         // mbarriers: the groups' largest logits are there; at the leading block, everything that was sent is
  alignas(16) u32 sent[BLOCKS_MOST];  // by each block
  u32 maxima[TILE_WARPS], reach[2 * TILE_WARPS];
  alignas(16) float groups[GROUPS_MOST];
  alignas(16) u64 places[LISTED];
  ChainRoom chain;
  u32 recent[EDITS_MOST];   // the end of the history
  alignas(16) Edit edits[TABLE + 1];
  uint16_t filled[TABLE];  // slots of it
  u32 fills;
  alignas(16) u32 edited[EDITED_WORDS];  // bits of the block's tokens, in the order of its pieces
  float tops[PIECES_MOST][TILE_THREADS];  // the largest logit of each thread's part of a piece
  alignas(16) u64 arrivals[SENT_MOST];   // at the leading block, from each block; then the weights of a list
};
__device__ __forceinline__ RowState *row_state() { return reinterpret_cast<RowState *>(shared_memory); }

// How a row is dealt out: vector j of a thread holds the ids from at(j) on; as many ids as a block's threads load at once go to each block in turn.
template <u32 DTYPE, u32 BLOCKS>
struct Deal {
  using Vector = Lane<DTYPE>;
  static constexpr u32 WIDTH = Vector::WIDTH, STRIDE = TILE_THREADS * WIDTH;
  static constexpr u32 VECTORS = HALF_BYTES / 4 / WIDTH + (HALF_BYTES / 4 % WIDTH > 0);  // of a thread in a piece
  static constexpr u32 PIECE = VECTORS * STRIDE * BLOCKS;                                // ids of all blocks
  static constexpr u32 ROOM = SENT_MOST / BLOCKS / 2 * 2;                                // tokens that a block may send
  static constexpr u32 IN_WARP = GROUPS_MOST / TILE_WARPS / BLOCKS >= 8 ? 8 : GROUPS_MOST / TILE_WARPS / BLOCKS >= 4 ? 4 : GROUPS_MOST / TILE_WARPS / BLOCKS;
  static constexpr u32 GROUPS = IN_WARP * TILE_WARPS * BLOCKS;
  static constexpr u32 FROM_LEN = BOUND_K * (32 / IN_WARP) * WIDTH;  // of a row whose logits are in as many groups as k may be
  static_assert(BLOCKS <= BLOCKS_MOST && IN_WARP && GROUPS >= BOUND_K && GROUPS % 64 == 0);
  static_assert(PIECES_MOST * VECTORS * STRIDE <= EDITED_WORDS * 32);

  HD static u32 pieces(u32 row_len) { return (row_len + PIECE - 1) / PIECE; }
  __device__ __forceinline__ static u32 at(u32 block, u32 j) { return (j * BLOCKS + block) * STRIDE + threadIdx.x * WIDTH; }
  // Whether an id is a block's, and which of its ids.
  __device__ __forceinline__ static u32 block_of(u32 id) { return id / STRIDE % BLOCKS; }
  __device__ __forceinline__ static u32 local(u32 id) { return id / (STRIDE * BLOCKS) * STRIDE + id % STRIDE; }
};

// The edits of a block's tokens; those that have some are marked.
template <class D>
struct DealtTable : EditTable {
  RowState *sh;
  u32 block, limit;

  __device__ __forceinline__ DealtTable(RowState *state, u32 own, u32 ids) : EditTable{state->edits, TABLE}, sh(state), block(own), limit(ids) {}
  __device__ __forceinline__ bool covers(u32 id) const { return D::block_of(id) == block && id < limit; }
  // What follows once a token has come into the table.
  __device__ __forceinline__ void note_filled(u32 slot, u32 id) const {
    const u32 local = D::local(id);
    atomicOr(&sh->edited[local / 32], 1u << local % 32);
    sh->filled[atomicAdd(&sh->fills, 1)] = static_cast<uint16_t>(slot);
  }
  __device__ __forceinline__ Edit *insert(u32 id) const {
    u32 slot = start(id);
    UNROLL_NOT
    for (u32 probes = 0; probes < TABLE / 2; ++probes, slot = (slot + 1) % TABLE) {
      const u32 old = claim(&sh->edits[slot].id, NO_ID, id);
      if (old == NO_ID) note_filled(slot, id);
      if (old == NO_ID || old == id) return &sh->edits[slot];
    }
    sh->strange = 1;
    return &sh->edits[TABLE];
  }
};

// Messages to another block of the cluster: stores that one of its mbarriers counts, so that nothing need be fenced.
__device__ __forceinline__ u32 address_in(u32 own, u32 block) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(block));
  return there;
}
__device__ __forceinline__ void send_word(u32 to, u32 word, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(word), "r"(barrier) : "memory");
}
__device__ __forceinline__ void send_place(u32 to, u64 place, u32 barrier) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(to), "l"(place), "r"(barrier) : "memory");
}
// One of its arrivals, and how many bytes it stands for; it orders nothing, since the messages are counted themselves.
__device__ __forceinline__ void announce(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits for all messages.
__device__ __forceinline__ void receive(const u64 *mbarrier) {
  const u32 barrier = shared_address(mbarrier);
  u32 done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier)
                 : "memory");
}

}  // namespace nucleus::spread
