// Where top_p's cut falls among some thousands of tokens that the blocks of a group have listed, each its own, of which it is known what all others above them weigh.
//
// A block tells all what its list weighs by steps of the logit, and what it has above; so all find the same step in which the cut falls. Then it tells them of
// its tokens of that step, and all find the same last token. So each knows what each block keeps, and the one that the draw falls in draws.
#pragma once

#include "chunks.cuh"
#include "parted_sum.cuh"

namespace nucleus {

constexpr u32 LIST_STEPS = 128;   // of the listed logits
constexpr u32 STEP_TOKENS = 512;  // of one of these steps
constexpr u32 EDIT_CHUNKS = 1024;  // of a row that has edits

// What a block tells of its list.
struct alignas(16) ListSums {
  u64 steps[LIST_STEPS];
  u64 above, listed;  // what tokens weigh that are above the list, and in it
  u64 counts;         // tokens in the list, and above it (below 32 bits)

  static constexpr u32 HEAD = 3, WORDS = LIST_STEPS + HEAD;
};

// A warp's places of tokens of one step that a group's blocks are told of, and how many it had.
constexpr u32 TOLD_TOKENS = 2048;

// How what is kept of many tokens follows, where a program tells.
struct KeptBy {
  enum Cut : u32 { MASS, TYPICAL, WEIGHT } cut;  // typical: as by mass, if the first token joins before the last
  float temperature;                             // by which it is drawn from; 0: by which it is cut
  i64 mean;                                      // typical: of the surprise, in Q16
  u64 least;                                     // by weight
};

// What a block of N threads holds beside Shared.
template <u32 N>
struct CutRoom {
  static constexpr u32 BLOCKS = N == THREADS ? MAX_BLOCKS : 1;  // of a group
  static constexpr u32 RUN_MOST = N == THREADS ? 5 : 4;         // chunks

  union {
    u32 edits[EDIT_CHUNKS];  // of chunks: begin and end, of 16 bits each
    u64 step_places[STEP_TOKENS];
  };
  union {
    float staged[N / 32][CHUNK];  // STEP of a warp; all together a run
    u64 step_weights[STEP_TOKENS];
  };
  PartedSum masses[LIST_STEPS];
  ListSums sums_of[BLOCKS];
  union {
    typename Sample<N>::Counts counts_of[BLOCKS];
    struct {
      u64 tokens[BLOCKS > 1 ? TOLD_TOKENS : 1];
      u64 told[BLOCKS > 1 ? BLOCKS * N / 32 : 1];  // by each warp: tokens of the step, and tokens of steps before it (below 32 bits)
    };
  };
  u64 block_mass[MAX_BLOCKS];  // what is kept of each block's ids
  // What the functions that are not inlined need, so that nothing is handed over in local memory.
  BlockGroup group;
  ChunkedRow row;
  u32 index;
  RowPlan plan;
  ManyKept many;
  KeptBy by;
  u64 uniform;
  Weighing w;
  Reading reading;
  float rank, half;       // that of the cut in the sample, and how many tokens to each side of it are listed
  float low, high, first;  // `first`: what no listed logit is above
  u32 each, of_block;      // chunks of a run; runs of a block
  u32 first_run, runs_here;  // this block's
  u32 chunks;                // of the row
  float one_each, one_block;  // 1 / each and 1 / of_block
  u32 verdict, kept, least_key, sweeps;
  u32 cut_step;
  u64 cut_base;        // what tokens weigh that are above that step
  u64 above, listed_mass;  // what this block's tokens weigh that are above its list, and in it
  u32 left[2];  // of the rows of a cluster, those that are not decided, as bits
  u64 pending, rest, bit, above_largest;  // of these: those not looked at here, those that groups have not begun with, this block's group's, and those of which only the largest logit is known
  u32 first_row, row_step, cluster_blocks;
  Whole whole;        // where an earlier launch has told of rows, and how it shared them out
  Division division;
  u64 runs[1];  // of this block, as many as it has: what they weigh, as far as they are kept

  __device__ __forceinline__ static CutRoom *here() { return reinterpret_cast<CutRoom *>(shared_slice()); }

  // The least logit that min_p keeps; tokens at -inf are out.
  __device__ __forceinline__ float min_p_bound() const { return fmaxf(fmaf(plan.temperature, plan.arg, many.largest), least_finite()); }
  // Shares out the row's chunks in runs of as many turns of all warps of the group; by one thread.
  __device__ __forceinline__ void share_out(u32 of_row) {
    chunks = of_row;
    const u32 warps = group.blocks * (N / 32), turns = (chunks + warps * RUN_MOST - 1) / (warps * RUN_MOST), all = warps * turns;
    each = (chunks + all - 1) / all;
    const u32 count = (chunks + each - 1) / each;
    of_block = group.share_of(count + group.blocks - 1);
    first_run = group.block * of_block < count ? group.block * of_block : count;
    runs_here = first_run + of_block < count ? of_block : count - first_run;
    one_each = 1.0f / static_cast<float>(each);
    one_block = 1.0f / static_cast<float>(of_block);
  }
  // Whose part an id lies in: the run, and its block. The nearest integer that a quotient may round to is 1 / 1024 away at least.
  __device__ __forceinline__ u32 run_of(u32 id) const { return static_cast<u32>((static_cast<float>(id / CHUNK) + 0.5f) * one_each); }
  __device__ __forceinline__ u32 block_of(u32 run) const { return static_cast<u32>((static_cast<float>(run) + 0.5f) * one_block); }
};
__host__ __device__ constexpr u32 chunks_of(u32 row_len) { return (row_len + CHUNK - 1) / CHUNK; }
// A run has one chunk only where no warp has two.
template <u32 N>
__host__ constexpr size_t cut_room_bytes(u32 row_len) { return sizeof(CutRoom<N>) + (chunks_of(row_len) / 2 + N / 32) * sizeof(u64); }
static_assert(cut_room_bytes<THREADS>(NUCLEUS_MAX_VOCAB) <= SPARE_BYTES);

// The weight of one token; `addends` serve.
__device__ __forceinline__ u64 weight_of(const DoubleAddends &addends, float x) {
  DoubleAddends::Sum sum = addends.none();
  addends.add(x, sum);
  return addends.taken(sum);
}

// Which step of the list a logit lies in, from the largest down.
struct StepsOfList {
  float first, rate;

  template <u32 N>
  __device__ __forceinline__ explicit StepsOfList(const CutRoom<N> *room) : first(room->first) {
    const float range = first - room->low;
    rate = range > 0 ? static_cast<float>(LIST_STEPS - 1) / range : 0.0f;
  }
  __device__ __forceinline__ u32 operator()(float x) const { return static_cast<u32>(fminf((first - x) * rate, static_cast<float>(LIST_STEPS - 1))); }
};

enum Verdict : u32 { FOUND, HIGHER, LOWER, CROWDED, GIVEN_UP };

// Tokens that a block has listed and kept: more may have been counted.
__device__ __forceinline__ u32 listed_here() {
  const u32 listed = shared_state()->listed;
  return listed < LIST_CAPACITY ? listed : LIST_CAPACITY;
}

// Weighs the block's list by steps, and tells all blocks. After a barrier of the block; when it returns, the sums of all are there, for every thread. `turn`: sweeps before.
template <u32 N>
__device__ __forceinline__ void tell_sums(u32 turn) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const BlockGroup &group = room->group;
  const DoubleAddends addends(room->w);
  const StepsOfList step_of(room);
  const u32 t = threadIdx.x, warp = t / 32, lane = t % 32, listed = listed_here();
  u64 own = 0;
  UNROLL_NOT
  for (u32 i = t; i < listed; i += N) {
    const float x = logit_at(sh->list[i]);
    const u64 q = weight_of(addends, x);
    room->masses[step_of(x)].add(q);
    own += q;
  }
  own = DeviceWarp{}.sum(own);
  if (lane == 0 && own) add_by_halves(&room->listed_mass, own);
  ListSums *const sums = &room->sums_of[CutRoom<N>::BLOCKS > 1 ? group.block : 0];
  if (warp == N / 32 - 1) {
    u64 above = 0;
    UNROLL_NOT
    for (u32 i = lane; i < room->runs_here; i += 32) above += room->runs[i];
    above = DeviceWarp{}.sum(above);
    if (lane == 0) room->above = above;
  }
  sync_block();
  auto head = [&](u32 word) { return word == 0 ? room->above : word == 1 ? room->listed_mass : static_cast<u64>(sh->listed) << 32 | sh->kept; };
  if (CutRoom<N>::BLOCKS == 1 || group.blocks == 1) {
    if (t < LIST_STEPS) sums->steps[t] = room->masses[t].sum();
    else if (t < ListSums::WORDS) (&sums->above)[t - LIST_STEPS] = head(t - LIST_STEPS);
    sync_block();
  } else if constexpr (CutRoom<N>::BLOCKS > 1) {
    UNROLL_NOT
    for (u32 i = t; i < LIST_STEPS * group.blocks; i += N) group.send(LIST_SUMS, i / LIST_STEPS, &sums->steps[i % LIST_STEPS], room->masses[i % LIST_STEPS].sum());
    if (t < 4 * group.blocks && t % 4 < ListSums::HEAD) group.send(LIST_SUMS, t / 4, &sums->above + t % 4, head(t % 4));
    if (t < group.blocks) group.announce(LIST_SUMS, t, ListSums::WORDS);
    group.receive(LIST_SUMS, turn);
  }
}

// In which step the cut falls, by the first warp; a barrier of the block must follow.
template <u32 N>
__device__ __forceinline__ void find_step() {
  CutRoom<N> *room = CutRoom<N>::here();
  constexpr u32 EACH = LIST_STEPS / 32;
  const u32 lane = threadIdx.x % 32, blocks = CutRoom<N>::BLOCKS > 1 ? room->group.blocks : 1;
  const bool by_mass = room->many.total != 0;
  const Until until = Until::reaches(room->many.total, room->many.threshold);
  u64 own[EACH] = {}, above = 0, listed = 0, counts = 0;
#pragma unroll
  for (u32 block = 0; block < CutRoom<N>::BLOCKS; ++block)
    if (block < blocks) {
#pragma unroll
      for (u32 i = 0; i < EACH; i += 2) {
        const ulonglong2 two = *reinterpret_cast<const ulonglong2 *>(&room->sums_of[block].steps[EACH * lane + i]);
        own[i] += two.x;
        own[i + 1] += two.y;
      }
    }
  if (lane < blocks) {
    above = room->sums_of[lane].above;
    listed = room->sums_of[lane].listed;
    counts = room->sums_of[lane].counts;
  }
  const u32 kept = __reduce_add_sync(~0u, static_cast<u32>(counts)), most = __reduce_max_sync(~0u, static_cast<u32>(counts >> 32));
  above = DeviceWarp{}.sum(above);
  listed = DeviceWarp{}.sum(listed);
  const u64 of_lane = (own[0] + own[1]) + (own[2] + own[3]), inclusive = prefix_sum(of_lane), all = DeviceWarp{}.last(inclusive);
  Verdict verdict = FOUND;
  if (by_mass) {
    if (most > LIST_CAPACITY - 8) verdict = CROWDED;
    else if (until(above)) verdict = HIGHER;
    else if (!until(above + listed)) verdict = LOWER;
    else if (all != listed) verdict = GIVEN_UP;  // a step has too many tokens
  }
  if (lane == 0) {
    room->verdict = verdict;
    room->kept = kept;
    if (!by_mass) room->cut_step = 0;
  }
  u64 before = above + inclusive - of_lane;
  if (!by_mass || verdict != FOUND || until(before) || !until(before + of_lane)) return;
  u32 step = 0;
#pragma unroll
  for (u32 i = 0; i + 1 < EACH; ++i) {
    const bool passed = step == i && !until(before + own[i]);
    before += passed ? own[i] : 0;
    step += passed;
  }
  room->cut_step = EACH * lane + step;
  room->cut_base = before;
}

// What each block keeps, but for what it has in the cut's step, by as many warps; a barrier of the block must follow.
template <u32 N>
__device__ __forceinline__ void add_up_blocks() {
  CutRoom<N> *room = CutRoom<N>::here();
  constexpr u32 EACH = LIST_STEPS / 32;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, cut = room->cut_step;
  if (warp >= (CutRoom<N>::BLOCKS > 1 ? room->group.blocks : 1)) return;
  u64 own = lane == 0 ? room->sums_of[warp].above : 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) own += EACH * lane + i < cut ? room->sums_of[warp].steps[EACH * lane + i] : 0;
  own = DeviceWarp{}.sum(own);
  if (lane == 0) room->block_mass[warp] = own;
}

// A token of the cut's step, and what it weighs; above that a 1 for each, so that a sum counts them.
constexpr u32 TOKENS_AT = 54;
template <u32 N>
__device__ __forceinline__ void note_step_token(const DoubleAddends &addends, u32 at, u64 place) {
  CutRoom<N> *room = CutRoom<N>::here();
  if (at >= STEP_TOKENS) return;
  room->step_places[at] = place;
  room->step_weights[at] = 1ull << TOKENS_AT | weight_of(addends, logit_at(place));
}

// Adds what the block has listed above the cut's step to its runs, adds up the blocks, and gathers all blocks' tokens of that step: Shared's `found` of them. A barrier of the block must follow.
template <u32 N>
__device__ __forceinline__ void gather_step() {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const BlockGroup &group = room->group;
  const DoubleAddends addends(room->w);
  const StepsOfList step_of(room);
  const u32 t = threadIdx.x, warp = t / 32, lane = t % 32, listed = listed_here(), cut = room->cut_step;
  const u32 blocks = CutRoom<N>::BLOCKS > 1 ? group.blocks : 1, warps = blocks * (N / 32), most = TOLD_TOKENS / (N / 32) / blocks;
  const u32 own_warp = CutRoom<N>::BLOCKS > 1 ? group.block * (N / 32) + warp : 0;
  u32 earlier = 0, tokens = 0;
  UNROLL_NOT
  for (u32 base = warp * 32; base < listed; base += N) {
    const u32 i = base + lane;
    const u64 place = i < listed ? sh->list[i] : 0;
    const float x = logit_at(place);
    const u32 step = i < listed ? step_of(x) : LIST_STEPS;
    if (step < cut) {
      earlier += 1;
      add_by_halves(&room->runs[room->run_of(id_at(place)) - room->first_run], weight_of(addends, x));
    }
    const u32 here = __ballot_sync(~0u, step == cut);
    if (step == cut) {
      if (blocks == 1) note_step_token<N>(addends, atomicAdd(&sh->found, 1), place);
      else {
        const u32 at = tokens + __popc(here & ((1u << lane) - 1));
        UNROLL_NOT
        for (u32 to = 0; to < blocks && at < most; ++to) group.send(CUT_TOKENS, to, &room->tokens[own_warp * most + at], place);
      }
    }
    tokens += __popc(here);
  }
  earlier = __reduce_add_sync(~0u, earlier);
  if (blocks == 1) {
    if (lane == 0) atomicAdd(&room->kept, earlier);
    add_up_blocks<N>();
    return;
  }
  if constexpr (CutRoom<N>::BLOCKS > 1) {
    if (lane < blocks) {
      group.send(CUT_TOKENS, lane, &room->told[own_warp], static_cast<u64>(tokens) << 32 | earlier);
      group.announce(CUT_TOKENS, lane, 1 + (tokens < most ? tokens : most));
    }
    add_up_blocks<N>();  // meanwhile
    group.receive(CUT_TOKENS, 0);
    if (warp * 32 >= warps) return;
    const u64 told = t < warps ? room->told[t] : 0;
    earlier = __reduce_add_sync(~0u, static_cast<u32>(told));
    if (lane == 0) atomicAdd(&room->kept, earlier);
    const u32 count = static_cast<u32>(told >> 32);
    if (!count) return;
    const u32 at = atomicAdd(&sh->found, count <= most ? count : STEP_TOKENS + 1);
    UNROLL_NOT
    for (u32 i = 0; i < count && i < most; ++i) note_step_token<N>(addends, at + i, room->tokens[t * most + i]);
  }
}

// The last token that is kept, among those of the cut's step, and what is kept of these. Several threads a token. A barrier of the block must follow.
template <u32 N>
__device__ __forceinline__ void end_cut() {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  constexpr u64 MASS = (1ull << TOKENS_AT) - 1;
  const Until until = Until::reaches(room->many.total, room->many.threshold);
  const u64 base = room->cut_base;
  const u32 t = threadIdx.x, count = sh->found;
  // As many threads a token as there are, up to a warp.
  const u32 log2 = 31 - __clz(N) - (count > 1 ? 32 - __clz(count - 1) : 0), bits = count > N ? 0 : log2 < 5 ? log2 : 5, sharing = 1u << bits, share = t & (sharing - 1);
  UNROLL_NOT
  for (u32 first = 0; first < count; first += N >> bits) {
    const u32 i = first + (t >> bits);
    if (first + (t / 32 * 32 >> bits) >= count) break;  // the warp has no token
    const u64 place = i < count ? room->step_places[i] : ~0ull, weight = i < count ? room->step_weights[i] & MASS : 0;
    u64 larger = 0;
#pragma unroll 2
    for (u32 j = share; j < count; j += sharing) larger += room->step_places[j] > place ? room->step_weights[j] : 0;
    UNROLL_NOT
    for (u32 step = sharing / 2; step; step /= 2) larger += __shfl_xor_sync(~0u, larger, step);
    const u64 before = base + (larger & MASS);
    if (i >= count || share || until(before)) continue;
    const u32 run = room->run_of(id_at(place)), owner = CutRoom<N>::BLOCKS > 1 ? room->block_of(run) : 0;
    add_by_halves(&room->block_mass[owner], weight);
    if (CutRoom<N>::BLOCKS == 1 || owner == room->group.block) add_by_halves(&room->runs[run - room->first_run], weight);
    if (!until(before + weight)) continue;
    sh->told = place;
    atomicAdd(&room->kept, static_cast<u32>(larger >> TOKENS_AT) + 1);
  }
}

}  // namespace nucleus
