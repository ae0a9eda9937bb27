// Bounded requests where rows are many: one block a multiprocessor, of three teams of warps, in one kernel.
//
// The reading team streams one row after another through a ring of tiles in shared memory, without a pause between rows, and collects the tokens that
// may be among the row's first k: those that reach a lower bound of the k-th largest unedited logit, or of min_p's threshold. The describing team
// learns meanwhile what the next row asks for. The finishing team notes the edits of the row that is being read, and turns what the reading team has
// collected into a token while that reads the next row. What does not fit, rows that are not of numbers alone and other requests are PENDING.
#pragma once

#include <type_traits>

#include "bounded.cuh"
#include "chain.cuh"
#include "list_draw.cuh"
#include "wide_chain.cuh"

namespace nucleus::relay {

constexpr u32 TEAM_THREADS = 256;  // of the reading and of the finishing team
constexpr u32 TEAM_WARPS = TEAM_THREADS / 32;
constexpr u32 DESCRIBING_THREADS = 64;  // of the third team: five warps a scheduler leave a thread 96 registers
constexpr u32 DESCRIBING_FIRST = 2 * TEAM_THREADS + 64;  // behind a warp that fills the ring, and one that raises bounds
constexpr u32 BLOCK_THREADS = DESCRIBING_FIRST + DESCRIBING_THREADS;
constexpr u32 STAGES = 5;  // of the ring
constexpr u32 TILE_BYTES = 32768;  // of a stage
constexpr u32 ON_THEIR_WAY = 2;  // stages asked for at a time: they keep the memory busy, and what is asked for beside them does not wait for more
constexpr u32 HALVES = 2;  // of the reading team: each reads every other stage; a row's first bound is taken from one stage of each
constexpr u32 HALF_THREADS = TEAM_THREADS / HALVES;
constexpr u32 COLLECT_MOST = LISTED;  // tokens that a row's list has room for
constexpr u32 NOTE_HEADS = 1024;      // chains of notes on ids that may be edited
constexpr u32 FOLLOWED = 256;         // keys that the bound is raised by at a time
constexpr u32 RISES = 256;            // biases whose values are in shared memory
constexpr u32 SPEAKERS = 64;  // slots of a warp in which lanes with equal ids meet
constexpr u32 MARKS = 16384;  // bits that ids which may be edited share
static_assert((MARKS & (MARKS - 1)) == 0);

// Threads of a team that say it has written something: one, after they have met; for racecheck everyone, as lanes of a warp do (ARRIVING_LANES).
#ifdef NUCLEUS_RACECHECK
constexpr u32 TELLING_THREADS = DESCRIBING_THREADS;
#else
constexpr u32 TELLING_THREADS = 1;
#endif

// A word that other warps may write or read at the same time, in one piece. racecheck takes nothing but atomic operations for that.
template <class T>
using AtomicWord = std::conditional_t<sizeof(T) == 8, unsigned long long, u32>;
template <class T>
__device__ __forceinline__ T shared_now(const T *from) {
#ifdef NUCLEUS_RACECHECK
  return atomicOr(reinterpret_cast<AtomicWord<T> *>(const_cast<T *>(from)), AtomicWord<T>{0});
#else
  return *static_cast<const volatile T *>(from);
#endif
}
template <class T>
__device__ __forceinline__ void share_now(T *to, T value) {
#ifdef NUCLEUS_RACECHECK
  atomicExch(reinterpret_cast<AtomicWord<T> *>(to), static_cast<AtomicWord<T>>(value));
#else
  *static_cast<volatile T *>(to) = value;
#endif
}

// One of the teams: its threads begin at FIRST, and it has a barrier of its own.
template <u32 BARRIER, u32 FIRST, u32 THREADS_OF_IT = TEAM_THREADS>
struct Team {
  static constexpr u32 NUMBER = BARRIER;

  __device__ __forceinline__ static u32 thread() { return threadIdx.x - FIRST; }
  // Not the forms that ask whole warps to come together: the compiler may have one lane take another way to them.
  __device__ __forceinline__ static void sync();
  __device__ __forceinline__ static u32 count(bool is) {
    u32 many;
    meet_for_tools();
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %1, 0;\nbarrier.red.popc.u32 %0, %2, %3, p;\n}"
                 : "=r"(many)
                 : "r"(static_cast<u32>(is)), "n"(BARRIER), "n"(THREADS_OF_IT)
                 : "memory");
    return many;
  }
};
using Reading = Team<1, 0>;
using Finishing = Team<2, TEAM_THREADS>;
using Describing = Team<7, DESCRIBING_FIRST, DESCRIBING_THREADS>;

// The finishing and the describing team together, which mark the ids of the block's first row.
struct Marking {
  static constexpr u32 NUMBER = 8, THREADS_OF_IT = TEAM_THREADS + DESCRIBING_THREADS;

  __device__ __forceinline__ static void sync();
};

// A row on its way through the block.
struct Row : Description {
  SlicePlan plan;
  Request request;
  float scale;   // of the plan's temperature
  u64 uniform;   // that draws
  bool bounded;  // it is decided here, as far as the description tells
  bool common;   // its program is one of the commonest (chain.cuh)
  bool lowers;   // edits by id never raise a logit, biases apart
  u32 window;    // tokens at the end of the history that may be edited
  u32 seen_from, counted_from;  // of the window, what repetition's penalty looks at, and what frequency and presence count
  u32 bans;      // ids that may not be drawn now
  u32 shift;     // where the ids begin in `id_words`, as far behind 16 bytes as in device memory
  alignas(16) u32 marks[MARKS / 32];  // of ids that may be edited, and of some others
  // What the reading team finds.
  alignas(8) u32 found;  // tokens collected; there may be no room for some
  u32 strange;           // NaN or +inf was seen
  u32 bound;             // the largest known key that all of the row's first k reach; 0: none
  u32 largest;           // the key of the largest logit, where a threshold below it is all that bounds the row
  u64 places[COLLECT_MOST];  // of the tokens collected; 0: none yet
  alignas(16) u32 id_words[EDITS_MOST + 4];
  float rises[RISES];      // of the biases that come first

  // That may be edited: the window of the history, the biases', then those that may not be drawn now.
  __device__ __forceinline__ u32 *ids() { return id_words + shift; }
  __device__ __forceinline__ const u32 *ids() const { return id_words + shift; }
  __device__ __forceinline__ static u32 mark_of(u32 id) { return id & (MARKS - 1); }
  __device__ __forceinline__ void mark(u32 id) { atomicOr(&marks[mark_of(id) / 32], 1u << id % 32); }
  __device__ __forceinline__ bool marked(u32 id) const { return marks[mark_of(id) / 32] >> id % 32 & 1; }
  // The value of a bias.
  __device__ __forceinline__ float rise(u32 i) const {
    return i < RISES ? rises[i] : reinterpret_cast<const SamplingBias *>(request.words(row.bias))[i].value;
  }
};

// What a block holds behind the ring.
struct State {
  Row rows[2];  // the one that is read, and the one before or after it
  alignas(16) u32 keys[TEAM_THREADS];  // of the reading team: of each thread's largest logit
  alignas(16) u32 reach[SAMPLES];
  u32 followed[FOLLOWED];  // of the warp that raises bounds
  // Of the finishing team.
  union {
    alignas(16) u64 places[LISTED];
    struct {
      u64 cleared[ORDERED_MOST];  // before edits are noted
      u32 speakers[TEAM_WARPS][SPEAKERS];  // lanes of a warp by what they note
    };
  };
  u32 listed;
  u32 team_maxima[TEAM_WARPS];
  Description coming;   // of a row that is not described yet
  SamplingSlot slot;    // of that
  u32 bound;            // of the row that is finished, as all threads take it
  u32 strange;          // an edit has made NaN or +inf
  u32 undecided;        // rows
  SampledToken spare;   // of a rehearsal
  union {
    struct {
      alignas(16) u32 note_heads[NOTE_HEADS];  // 1 + the position of the first note of a chain; 0: there is none
      u32 notes[EDITS_MOST];                   // by position (relay_edits.cuh)
    };
    struct {  // of a list, once the edits are applied
      alignas(16) u64 weights_by_id[ORDERED_MOST];
      u32 by_id[ORDERED_MOST];  // when it is sorted: how many have a smaller id
      alignas(16) u64 chain_weights[CHAIN_MOST];  // in order, of the usual chain
      u64 chain_total;
      u32 chain_kept;
      u32 order_by_id[ORDERED_MOST];
      float chain_logprobs[CHAIN_MOST];
    };
    ListDraw<TEAM_THREADS> list_draw;
    alignas(16) u64 weights[LISTED];  // of a list of another program
  };
  u64 arrived[STAGES], empty[STAGES];  // mbarriers: a stage of the ring is there; all warps have read it
  u64 told[2], ready[2], known[2];     // a row's description is there; the row can be read; all is known that its description tells
  u64 read[2], finished[2];            // it is read; its place is free again
  u64 brought;                         // the window's ids are there
  u64 followed_to_end[2];              // its bound is not raised any more
#ifdef NUCLEUS_RACECHECK
  u64 met[9];  // where teams meet, by the number of their barrier
#endif
  u64 begun;                           // the ids of the first row are asked for
};
constexpr u32 STAGE_MASK_BYTES = TILE_BYTES / 2 / 8;  // of the mask of a stage of 16-bit logits; of 32 bits it is half
constexpr u32 RING_BYTES = STAGES * (TILE_BYTES + STAGE_MASK_BYTES);
constexpr u32 SHARED_MOST = 232448;  // bytes of shared memory a block may have
constexpr u32 RELAY_BYTES = RING_BYTES + sizeof(State);
static_assert(RELAY_BYTES <= SHARED_MOST);

__device__ __forceinline__ unsigned char *ring() { return shared_memory; }
__device__ __forceinline__ unsigned char *ring_of_masks() { return shared_memory + STAGES * TILE_BYTES; }
__device__ __forceinline__ State *state() { return reinterpret_cast<State *>(shared_memory + RING_BYTES); }

template <u32 BARRIER, u32 FIRST, u32 THREADS_OF_IT>
__device__ __forceinline__ void Team<BARRIER, FIRST, THREADS_OF_IT>::sync() {
#ifdef NUCLEUS_RACECHECK
  meet_at(&state()->met[BARRIER]);
#else
  asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS_OF_IT) : "memory");
#endif
}
__device__ __forceinline__ void Marking::sync() {
#ifdef NUCLEUS_RACECHECK
  meet_at(&state()->met[NUMBER]);
#else
  asm volatile("barrier.sync %0, %1;" ::"n"(NUMBER), "n"(THREADS_OF_IT) : "memory");
#endif
}

}  // namespace nucleus::relay
