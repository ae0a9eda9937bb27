// Many rows that few tokens do not decide, in two or three launches.
//
// The first (prepare.cuh) learns what a row asks for and edits its tokens, a block a row; where the caller knows that no row edits any, the second does
// without it. The second (weigh.cuh) reads the rows: a cluster holds one in the slices of its blocks, finds its largest logit and sums its weights by the parts
// of its warps (part.cuh), which wait for nothing but their part of the row and the other warps' maxima. The third (choose.cuh) draws, or runs the program on
// the list of first tokens, a block a row. Whatever none of them decides is left PENDING.
#pragma once

#include "call.cuh"

namespace nucleus {

constexpr u32 ROW_WARPS = MAX_BLOCKS * WARPS;  // of a cluster, at most
constexpr u32 ROW_PLACES = 3072;               // tokens that a row's warps may list
constexpr u32 ROW_EDITS = SHARED_EDITS_USED;   // ids that a row may edit
constexpr u32 INFINITE = 0xFF800000u;          // the key of +inf

// What the second and third launch need to know of a row.
struct alignas(16) RowPlan {
  enum Flag : u32 { RAW = 1, MASKED = 2, SKIPPED = 4, DRAWS = 8 };  // SKIPPED: the row is not of this launch; DRAWS: the draw follows the cut
  uint16_t kind;  // SlicePlan::Kind; EXACT: not decided here
  uint16_t flags;
  u32 k, limit, edited;
  float temperature, s, arg;  // s: the temperature's scale
  i32 mask;

  __device__ __forceinline__ bool served() const { return kind != SlicePlan::EXACT; }
  __device__ __forceinline__ bool changes() const { return edited || (flags & MASKED); }
  __device__ __forceinline__ bool weighs() const { return kind == SlicePlan::MASS || kind == SlicePlan::ALL; }
  // Whether few tokens are drawn from; whether the temperature follows from the row.
  __device__ __forceinline__ bool lists() const { return kind == SlicePlan::MASS || kind == SlicePlan::SURPRISE || kind == SlicePlan::WARMED_MASS; }
  __device__ __forceinline__ bool warmed() const { return kind == SlicePlan::WARMED || kind == SlicePlan::WARMED_MASS; }
};
static_assert(sizeof(RowPlan) == 32);

// A token whose logit is another than the row's.
struct Changed {
  u32 id;
  float logit;  // -inf: out
};

// The row's largest logits as keys, and before any edit; UNUSUAL, INFINITE, or 0.
struct RowMaxima {
  u32 largest, raw;
};

// What a draw from many tokens starts from.
struct ManyKept {
  u64 total;      // top_p: the weight of the row; 0: min_p
  u64 threshold;  // of top_p
  u32 least;      // tokens to keep at least
  float largest;  // logit
  RawSums raw;
  bool by_program = false;  // of what total and moment tell; else what is above is all
  u32 room = 0;             // of the slices by whose parts the edits are listed, where that is not the launch's Division
  i64 moment = 0;           // of the surprise
};

// Where rows' data lie in the workspace.
struct Whole {
  RowPlan *plans;     // [rows]
  u64 *masses;        // [rows][ROW_WARPS]: a part's weight
  u64 *raw;           // [rows][ROW_WARPS]: the same at T = 1 before any edit
  u32 *there;         // [rows][ROW_WARPS]: its tokens
  u32 *listed;        // [rows][ROW_WARPS]: how many of them were listed, or would have been
  u64 *places;        // [rows][ROW_PLACES], as many for each warp
  Changed *changed;   // [rows][ROW_EDITS], by parts
  ManyKept *many;     // [rows]
  u32 *edits;         // [rows][ROW_WARPS]: where a part's are, and below 16 bits how many
  RowMaxima *maxima;  // [rows]
  u32 *left;          // rows that keep many tokens and may be left to the next launch

  static constexpr size_t ROW_BYTES = sizeof(RowPlan) + ROW_WARPS * (2 * sizeof(u64) + 2 * sizeof(u32)) + ROW_PLACES * sizeof(u64) + ROW_EDITS * sizeof(Changed) +
                                      ROW_WARPS * sizeof(u32) + sizeof(RowMaxima) + sizeof(ManyKept);
  static constexpr size_t BYTES = 16;  // beside the rows
  __host__ Whole(char *at, size_t rows) {
    auto take = [&](auto *&part, size_t a_row) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(at);
      at += rows * a_row * sizeof(*part);
    };
    take(plans, 1);
    take(masses, ROW_WARPS);
    take(raw, ROW_WARPS);
    take(there, ROW_WARPS);
    take(listed, ROW_WARPS);
    take(places, ROW_PLACES);
    take(changed, ROW_EDITS);
    take(many, 1);
    take(edits, ROW_WARPS);
    take(maxima, 1);
    left = reinterpret_cast<u32 *>(at);
  }
};

// How rows of a length are shared out in a cluster.
struct Division {
  u32 blocks, room;  // of a slice
  u32 slices;        // that a block has memory for

  // Whether a row is looked at while the one before it is weighed: then a third is on its way.
  __host__ __device__ bool looks_ahead() const { return slices >= 3; }
  __host__ __device__ u32 warps() const { return blocks * WARPS; }
  // Tokens that a warp may list.
  __host__ __device__ u32 places() const { return ROW_PLACES / warps(); }
  // Maxima that a warp tells: one of each half of its lanes where warps are few.
  __host__ __device__ u32 groups() const { return 2 * warps() <= ROW_WARPS ? 2 : 1; }
};

// Ids that a warp has of a row.
struct Part {
  u32 first, count;

  // Ids of a warp in a block that holds so many.
  __host__ __device__ __forceinline__ static u32 span_of(u32 held) { return ((held + WARPS - 1) / WARPS + 7) & ~7u; }
  // Whose part an id lies in.
  __device__ __forceinline__ static u32 of(const Division &division, u32 row_len, u32 id) {
    const u32 block = id / division.room, begin = block * division.room, held = begin + division.room < row_len ? division.room : row_len - begin;
    return block * WARPS + (id - begin) / span_of(held);
  }
  __device__ __forceinline__ Part(const Division &division, u32 row_len, u32 warp_of_row) {
    const u32 block = warp_of_row / WARPS, warp = warp_of_row % WARPS;
    const u32 begin = block * division.room < row_len ? block * division.room : row_len;
    const u32 held = begin + division.room < row_len ? division.room : row_len - begin, span = span_of(held);
    const u32 from = warp * span < held ? warp * span : held;
    first = begin + from;
    count = from + span < held ? span : held - from;
  }
};

__device__ __forceinline__ bool is_pending(const SamplingBatch &batch, u32 index) {
  return reinterpret_cast<const volatile u32 &>(batch.out[index].status) == PENDING;
}

}  // namespace nucleus
