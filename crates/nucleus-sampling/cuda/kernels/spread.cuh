// Bounded requests where rows are few: a cluster of blocks a row, of which two thirds of the warps read the row into registers.
//
// A row is dealt out to the blocks in pieces. While these read, the others learn what is asked, mark the tokens that the request may edit, and
// note what each place of the history's window does to its token. The largest unedited logits of groups of threads are told to every block: what k of them
// reach bounds the row's k-th largest logit from below. What reaches the bound is looked at again. Unedited tokens go to the leading block, which runs the program on
// them; of each other token a warp finds the edits in the window, and sends it if it still reaches the bound. What does not fit and rows that are not of numbers
// alone are PENDING.
#pragma once

#include "bounded.cuh"
#include "cell_draw.cuh"
#include "chain.cuh"
#include "list_draw.cuh"
#include "wide_chain.cuh"

namespace nucleus::spread {

constexpr u32 READERS = 512, HELPERS = 256, BLOCK_THREADS = READERS + HELPERS;  // of a block
constexpr u32 READER_WARPS = READERS / 32, BLOCK_WARPS = BLOCK_THREADS / 32;
constexpr u32 BLOCKS_MOST = 8;       // a row
constexpr u32 PAIRS_MOST = 13;       // of pieces, of each reading thread
constexpr u32 LOCAL_MOST = 270336;   // ids of a block
constexpr u32 PAIR_MOST = 10;        // vectors of a pair of pieces
constexpr u32 HELD_MOST = 128;       // hits of which the vectors are kept, where they are still in registers
constexpr u32 HITS_MOST = LISTED;    // pairs of pieces of a block's threads that reach the bound; more of them have more tokens than a list
constexpr u32 GROUPS_MOST = 256;     // of threads, each with its largest logit
constexpr u32 STRANGE = 1u << 20;    // tokens for a warp that has seen what is no number
static_assert(STRANGE > LISTED);
// What comes of a row when everything that was sent is there: the leading block decides it; all blocks draw from what reaches the bound; the exact path does.
constexpr u32 DECIDED = 0, SHARED_OUT = 1, LEFT = 2;
// Named barriers: spread_chain.cuh's; the helping threads together; the row is described; tokens are marked; the plan is known; the samples are counted; the row is
// described, for the warp that plans; the bound is known; the list is sorted; its order by id is known; and those that read know which of them have several hits.
constexpr u32 CHAIN_TOTAL = 1, CHAIN_LOGPROBS = 2, TOGETHER = 3, DESCRIBED = 4, MARKED = 5, PLANNED = 6, COUNTED = 7, PLANNABLE = 8,
              BOUND_KNOWN = 9, SORTED = 10, ORDERED = 11, LOOKED_AT = 12;

constexpr u32 NOWHERE = ~0u;  // no place
// In a place that was taken for a token, and turned out to be for none: behind all tokens, and like no other.
__device__ __forceinline__ u64 no_token(u32 to) { return to + 1; }
__device__ __forceinline__ bool is_token(u64 place) { return place >> 32; }

// What the short way to choose works on.
struct ChainRoom {
  alignas(16) u64 sorted[ORDERED_MOST];         // the list, descending; 0 behind it
  alignas(8) u32 sources[ORDERED_MOST];         // where each of these is in the list as it came
  u64 weights[ORDERED_MOST];                    // of the list as it came, where the largest logit can be scaled
  u32 by_id[ORDERED_MOST];                      // the same: how many have a smaller id
  u32 order_by_id[ORDERED_MOST];                // places in `sorted`
  alignas(16) u64 weights_by_id[ORDERED_MOST];  // of those that are kept; 0 at first
  u64 total;
  float logprobs[ORDERED_MOST / 2];
  u32 kept;
};

// A token that reaches the bound, or may do so after its edits. `riser`: where among the ids of a request it was found, if only its edits raise it.
struct Changed {
  static constexpr u32 REACHES = ~0u;
  u32 id;
  float logit;  // as it came
  u32 riser;
  u32 to;  // the place that was taken for it; NOWHERE: none
};

// What of its edits the block has found: flags of an Edit and how often it occurs, DRY's longest passage, and the first of its places among the ids that may be edited.
struct FoundEdits {
  u32 flags, longest, position, unused;
};
constexpr u32 CHANGED_AT_A_TIME = 128;

// A row's description, what it asks for, and what a block has found.
struct RowState : Description {
  SlicePlan plan;
  float scale;        // of the plan's temperature
  SampledToken *out;  // where the result goes
  u64 uniform;        // that draws
  bool bounded;  // it is decided here, as far as the description tells
  bool common;   // its program is one of the commonest (chain.cuh)
  bool wide;     // one of more, and not of these (wide_chain.cuh)
  bool excludes;  // XTC acts, where there is such a program
  u32 window;    // tokens at the end of the history that may be edited
  u32 bans;      // ids that may not be drawn now
  u32 hit, changed;  // how many there are
  u32 way;           // what comes of the row when everything that was sent is there
  u32 threshold;     // a key that all of the row's first tokens reach; 0: any
  u64 told, arrived;  // mbarriers: the groups' largest logits are there; at the leading block, everything that was sent is
  u64 masked;         // mbarrier: the block's part of the mask is there
#ifdef NUCLEUS_RACECHECK
  u64 met[13][2];  // in place of barriers that have a number: by the number, and whether not all helping threads meet there
#endif
  u32 maxima[BLOCK_WARPS];
  alignas(16) u32 reach[SAMPLES];
  alignas(16) u32 groups[GROUPS_MOST];   // keys
  u32 listed;                       // at the leading block: places of its list that all blocks have taken
  alignas(16) u64 places[LISTED];   // the tokens that reach the bound; in places that were taken for none, what no token has (is_token)
  ChainRoom chain;
  alignas(16) u32 recent[EDITS_MOST];  // the window of the history, to the right
  u32 notes[EDITS_MOST];               // what its places do to their tokens
  alignas(16) FoundEdits found[CHANGED_AT_A_TIME];  // of `changes`, some at a time
  u32 ids[EDITS_MOST];                 // with biases, then those that may not be drawn now
  float rises[EDITS_MOST];             // the biases
  union {
    alignas(16) uint4 held[HELD_MOST][PAIR_MOST];
    float staged[BLOCK_WARPS][CELL_IDS];  // of cells
    uint4 vectors[BLOCK_THREADS];         // of each thread, the one that it looks at
  };
  union {
    alignas(16) u32 marks[LOCAL_MOST / 32];  // bits of the block's tokens that may be edited, in the order of its pieces
    u64 cells[CELLS_MOST];                   // at the leading block, of a row that all blocks draw from (spread_draw.cuh)
  };
  alignas(16) u32 allowed[LOCAL_MOST / 32];  // and those that the row's mask allows, if it has one
  union {
    u32 tops[PAIRS_MOST][READERS];  // the largest logit of each thread's part of two pieces: a key, with its vector in the last bits
    u32 several[READERS];           // threads of which more than one vector reaches the bound; above 16 bits, the one that they look at themselves
    ListDraw<BLOCK_THREADS> list_draw;
    CellDraw<BLOCK_THREADS> cell_draw;
  };
  uint16_t hits[HITS_MOST];                // those that reach the bound
  union {
    Changed changes[EDITS_MOST];
    alignas(16) u64 weights[LISTED];  // of a list, once the edits are done
  };
};
__device__ __forceinline__ RowState *row_state() { return reinterpret_cast<RowState *>(shared_memory); }
// The same, whose address stays in a register: else it is made anew, from a special register that takes long to read, wherever it is used.
__device__ __forceinline__ RowState *kept_row_state() {
  u32 address = shared_address(shared_memory);
  asm volatile("" : "+r"(address));
  return static_cast<RowState *>(__cvta_shared_to_generic(address));
}

// How a row is dealt out: vector j of a reading thread holds the ids from at(j) on; as many ids as a block's threads load at once go to each block in turn.
template <u32 DTYPE, u32 BLOCKS>
struct Deal {
  using Vector = Lane<DTYPE>;
  static constexpr u32 WIDTH = Vector::WIDTH, STRIDE = READERS * WIDTH;
  static constexpr u32 VECTORS = DTYPE == NUCLEUS_F32 ? 5 : 3;  // of a thread in a piece, of which two are in registers
  static constexpr u32 PAIR = 2 * VECTORS;
  static constexpr u32 PIECE = VECTORS * STRIDE * BLOCKS;  // ids of all blocks
  static constexpr u32 IN_WARP = BLOCKS > 4 ? 2 : BLOCKS > 2 ? 4 : 8, LANES = 32 / IN_WARP;  // groups, and their lanes
  static constexpr u32 GROUPS = BLOCKS * READER_WARPS * IN_WARP;
  static_assert(GROUPS >= BOUND_K && GROUPS <= GROUPS_MOST && GROUPS % 64 == 0 && GROUPS % SAMPLES == 0);
  static constexpr u32 FROM_LEN = BOUND_K * LANES * WIDTH;  // of a row whose logits are in as many groups as k may be
  static constexpr u32 VECTOR_BITS = 15;                    // of a top
  static constexpr bool ONE_FIRST = BLOCKS < 8;             // of rows that registers do not hold: a thread keeps which of its vectors has its largest logit, not each pair's
  static_assert(BLOCKS <= BLOCKS_MOST && LANES >= BLOCKS, "each lane tells one block at most");
  static_assert(PAIRS_MOST * READERS < 1 << 16 && STRIDE % 128 == 0 && PAIR <= VECTOR_BITS && PAIR <= PAIR_MOST);

  HD static constexpr u32 pieces(u32 row_len) { return (row_len + PIECE - 1) / PIECE; }
  static_assert((NUCLEUS_MAX_VOCAB + PIECE - 1) / PIECE <= 2 * PAIRS_MOST && (NUCLEUS_MAX_VOCAB + PIECE - 1) / PIECE * (PIECE / BLOCKS) <= LOCAL_MOST);

  __device__ __forceinline__ static u32 at(u32 block, u32 j, u32 thread) { return (j * BLOCKS + block) * STRIDE + thread * WIDTH; }
  // Whether an id is a block's, and which of its ids.
  __device__ __forceinline__ static u32 block_of(u32 id) { return id / STRIDE % BLOCKS; }
  __device__ __forceinline__ static u32 local(u32 id) { return id / (STRIDE * BLOCKS) * STRIDE + id % STRIDE; }
};

// One of its arrivals, and how many bytes it stands for; it orders nothing, since the messages are counted themselves.
__device__ __forceinline__ void announce(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Adds to a word of another block by a warp's first lane, and tells this what it was, once it asks. The other lanes' addresses are others, so that the compiler does
// not add up over lanes first.
__device__ __forceinline__ u32 add_in(u32 to, u32 value) {
  const u32 lane = threadIdx.x % 32;
  u32 old = 0;
  asm volatile("{\n.reg .pred first;\nsetp.eq.u32 first, %3, 0;\n@first atom.relaxed.cluster.shared::cluster.add.u32 %0, [%1], %2;\n}"
               : "+r"(old)
               : "r"(to + 4 * lane), "r"(value), "r"(lane)
               : "memory");
  return old;
}
// Named barriers of so many threads.
#ifdef NUCLEUS_RACECHECK
__device__ __forceinline__ u64 *meeting(u32 barrier, u32 threads) { return &row_state()->met[barrier][threads < HELPERS]; }
template <u32 BARRIER, u32 THREADS>
__device__ __forceinline__ void meet() { meet_at(meeting(BARRIER, THREADS)); }
template <u32 BARRIER, u32 THREADS>
__device__ __forceinline__ void pass() { arrive(meeting(BARRIER, THREADS)); }
#else
template <u32 BARRIER, u32 THREADS>
__device__ __forceinline__ void meet() { asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory"); }
template <u32 BARRIER, u32 THREADS>
__device__ __forceinline__ void pass() { asm volatile("barrier.arrive %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory"); }
#endif

}  // namespace nucleus::spread
