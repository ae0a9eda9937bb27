// Many rows that few tokens do not decide, in three launches.
//
// The first (prepare.cuh) learns what a row asks for and edits its tokens, a block a row. The second (weigh.cuh) reads the rows: a cluster holds one in the
// slices of its blocks, finds its largest logit and sums its weights by short runs of ids; its warps wait for nothing but their part of the row and the
// other warps' maxima. The third (choose.cuh) draws, or runs the program on the list of first tokens, a block a row. Whatever none of them decides is
// left PENDING.
#pragma once

#include "call.cuh"

namespace nucleus {

constexpr u32 ROW_WARPS = MAX_BLOCKS * WARPS;  // of a cluster
constexpr u32 RUNS_MOST = 768;                 // runs of ids that a row's weight is summed by
constexpr u32 RUN_STEP = 2 * STEP;             // ids that a warp weighs at a time
constexpr u32 WARP_PLACES = 24;                // tokens that a warp may list
constexpr u32 ROW_EDITS = SHARED_EDITS_USED;   // ids that a row may edit

// What the second and third launch need to know of a row.
struct alignas(16) RowPlan {
  enum Flag : u32 { RAW = 1, MASKED = 2, SKIPPED = 4 };  // SKIPPED: the row is not of this launch
  u32 kind;  // SlicePlan::Kind; EXACT: not decided here
  u32 k, limit, edited;
  float temperature, arg;
  u32 flags;
  i32 mask;
};

// A token whose logit is another than the row's.
struct Changed {
  u32 id;
  float logit;  // -inf: out
};

// What a warp found in its part of a row.
struct alignas(16) PartSums {
  u64 raw;  // weight at T = 1 before any edit
  u32 there, listed;
};

// The row's largest logits as keys; UNUSUAL, or 0.
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
};

// Where rows' data lie in the workspace.
struct Whole {
  RowPlan *plans;     // [rows]
  RowMaxima *maxima;  // [rows]
  PartSums *parts;    // [rows][ROW_WARPS]
  u64 *runs;          // [rows][RUNS_MOST]
  u64 *places;        // [rows][ROW_WARPS][WARP_PLACES]
  Changed *changed;   // [rows][ROW_EDITS], by parts
  ManyKept *many;     // [rows]
  u32 *edits;         // [rows][ROW_WARPS]: where a part's are, and below 16 bits how many

  static constexpr size_t ROW_BYTES = sizeof(RowPlan) + sizeof(RowMaxima) + ROW_WARPS * (sizeof(PartSums) + WARP_PLACES * sizeof(u64)) +
                                      RUNS_MOST * sizeof(u64) + ROW_EDITS * sizeof(Changed) + ROW_WARPS * sizeof(u32) + sizeof(ManyKept);
  __host__ Whole(char *at, size_t rows) {
    auto take = [&](auto *&part, size_t a_row) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(at);
      at += rows * a_row * sizeof(*part);
    };
    take(plans, 1);
    take(parts, ROW_WARPS);
    take(runs, RUNS_MOST);
    take(places, ROW_WARPS * WARP_PLACES);
    take(changed, ROW_EDITS);
    take(many, 1);
    take(maxima, 1);
    take(edits, ROW_WARPS);
  }
};

// How rows of a length are shared out in a cluster.
struct Division {
  u32 blocks, room;  // of a slice
  u32 slices;        // of a block: 2, or 1 where rows are long
  u32 run;           // ids of a run, a multiple of RUN_STEP
  u32 runs;          // of a warp's part

  __host__ __device__ Division(u32 of, u32 slice_room, u32 of_a_block) : blocks(of), room(slice_room), slices(of_a_block), run(RUN_STEP) {
    const u32 part = room / WARPS;
    while (blocks * WARPS * ((part + run - 1) / run) > RUNS_MOST) run += RUN_STEP;
    runs = (part + run - 1) / run;
  }
  __host__ __device__ u32 count() const { return blocks * WARPS * runs; }
};

// Ids that a warp has of a row, as DeviceTeam and PartLoad share them out.
struct Part {
  u32 first, count;

  // Whose part an id lies in.
  __device__ __forceinline__ static u32 of(const Division &division, u32 row_len, u32 id) {
    const u32 block = id / division.room, begin = block * division.room, held = begin + division.room < row_len ? division.room : row_len - begin;
    return block * WARPS + (id - begin) / (((held + WARPS - 1) / WARPS + 7) & ~7u);
  }
  __device__ __forceinline__ Part(const Division &division, u32 row_len, u32 warp_of_row) {
    const u32 block = warp_of_row / WARPS, warp = warp_of_row % WARPS;
    const u32 begin = block * division.room < row_len ? block * division.room : row_len;
    const u32 held = begin + division.room < row_len ? division.room : row_len - begin, span = ((held + WARPS - 1) / WARPS + 7) & ~7u;
    const u32 from = warp * span < held ? warp * span : held;
    first = begin + from;
    count = from + span < held ? span : held - from;
  }
};

__device__ __forceinline__ bool is_pending(const SamplingBatch &batch, u32 index) {
  return reinterpret_cast<const volatile u32 &>(batch.out[index].status) == PENDING;
}

}  // namespace nucleus
