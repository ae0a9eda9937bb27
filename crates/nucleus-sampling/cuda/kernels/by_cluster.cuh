// Rows by a cluster that holds them in the slices of its blocks: what few tokens decide, what min_p keeps and draws from the whole row, then whatever is left by
// the exact path. Where a row was weighed before and keeps many tokens, it is not held (cut.cuh).
#pragma once

#include "by_first_cut.cuh"
#include "control.cuh"
#include "cut.cuh"
#include "unsliced.cuh"

namespace nucleus {

// The exact path over slices, by the warp in control; false: they are not of numbers alone, or do not serve the program.
__device__ __noinline__ bool sample_slices(RowCall call, bool unlisted) {
  return sample_exactly(SliceTeam(call.team()), call.request(), EditTable{nullptr, 0}, raw_sums_of_row(shared_state(), shared_state()->row.flags, nullptr), unlisted, call.out());
}

// What is known of a row that min_p cuts first, after Shared's description of it; a barrier must follow.
__device__ __forceinline__ void plan_above(u32 index) {
  const Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  const SlicePlan plan = plan_of(*sh);
  if (threadIdx.x) return;
  room->plan.edited = 0;
  room->plan.temperature = plan.temperature;
  room->plan.arg = sh->program.ops[plan.op].arg;
  room->many = ManyKept{0, 0, plan.k, reinterpret_cast<const volatile float &>(sh->batch.out[index].logprob), RawSums{}};
}

// The words that this thread copies of what describes a row and, by other threads, of what an earlier launch has told of it.
struct RowWords {
  static constexpr u32 PLAN_FROM = 256, MANY_FROM = 288, PLAN = sizeof(RowPlan) / 4, MANY = sizeof(ManyKept) / 4;
  static_assert(PLAN <= MANY_FROM - PLAN_FROM && MANY_FROM + MANY <= THREADS);
  DescriptionWord described;
  u32 told;

  __device__ __forceinline__ void read_description(const SamplingBatch &batch, u32 index) { described.read(batch, index, likely_request(batch, index)); }
  __device__ __forceinline__ void read_told(const Whole &whole, u32 index) {
    const u32 t = threadIdx.x;
    if (t - PLAN_FROM < PLAN) told = reinterpret_cast<const u32 *>(whole.plans + index)[t - PLAN_FROM];
    if (t - MANY_FROM < MANY) told = reinterpret_cast<const u32 *>(whole.many + index)[t - MANY_FROM];
  }
  __device__ __forceinline__ void write() const {
    CutRoom<THREADS> *room = CutRoom<THREADS>::here();
    const u32 t = threadIdx.x;
    described.write(shared_state());
    if (t - PLAN_FROM < PLAN) reinterpret_cast<u32 *>(&room->plan)[t - PLAN_FROM] = told;
    if (t - MANY_FROM < MANY) reinterpret_cast<u32 *>(&room->many)[t - MANY_FROM] = told;
  }
};

// Where rows' words lie, in shared memory, for draw_by_cluster; a barrier must follow.
__device__ __forceinline__ void share_whole(const Whole &whole, const Division &division) {
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  constexpr u32 FROM = 64, WORDS = sizeof(Whole) / 4, OF_DIVISION = sizeof(Division) / 4;
  const u32 t = threadIdx.x - FROM;
  if (t < WORDS) reinterpret_cast<u32 *>(&room->whole)[t] = reinterpret_cast<const u32 *>(&whole)[t];
  else if (t - WORDS < OF_DIVISION) reinterpret_cast<u32 *>(&room->division)[t - WORDS] = reinterpret_cast<const u32 *>(&division)[t - WORDS];
}

// What a row that keeps many tokens has come to before it is read: PADDING has nothing to decide.
enum class Begun : u32 { NOT, PADDING, SERVED };

// Describes it, and prepares for it; `above`: min_p cuts it first.
__device__ __forceinline__ Begun begin_by_group(u32 index, const RowWords &words, bool above, uint4 &first) {
  Shared *sh = shared_state();
  const SamplingBatch &batch = sh->batch;
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  words.write();
  sync_block();
  // Nobody writes the status of a row of padding, so it may read as anything.
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return Begun::PADDING;
  if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH && sh->row.request != index) {
    DescriptionWord word;
    word.read(batch, index, sh->row.request);
    sync_block();
    word.write(sh);
    sync_block();
  }
  describe_slot(sh, batch);
  if (above) {
    plan_above(index);
    sync_block();
  }
  return begin_draw_of_many<THREADS>(index, room->whole, room->division, first) ? Begun::SERVED : Begun::NOT;
}

// Draws in rows that keep many tokens, each by as many of the cluster's blocks as there are for it; `above`: those of which only the largest logit is known. `words`: of row `asked`, if
// that is one; what Shared and the room are told of the batch is read after a barrier. Returns those that are not decided and `pending`, as bits. What is needed from row to row lies in shared
// memory: in registers it would leave less to what is called.
static __device__ __noinline__ u64 draw_by_cluster(Rows rows, u64 above, u64 pending, u32 asked, RowWords words) {
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  if (threadIdx.x == 0) {
    room->left[0] = room->left[1] = 0;
    room->rest = rows.bits;
    room->above_largest = above;
    room->pending = pending;
    room->cluster_blocks = DeviceTeam().blocks;
    room->first_row = rows.first;
    room->row_step = rows.step;
  }
#pragma unroll 1
  for (;; asked = NO_ROW) {
    sync_block();
    u64 bits = room->rest;
    if (!bits) break;
    const DeviceTeam team;
    const u32 left = __popcll(bits);
    u32 groups = 1;
    while (groups < left && groups < team.blocks) groups *= 2;
    const u32 blocks = team.blocks / groups, own = team.block / blocks;
    u64 bit = 0;
#pragma unroll 1
    for (u32 group = 0; group < groups; ++group, bits &= bits - 1) bit = group == own ? bits & (0 - bits) : bit;
    const u32 index = Rows{room->first_row, room->row_step, 0}.index(bit);
    if (bit && index != asked) {
      words.read_description(shared_state()->batch, index);
      words.read_told(room->whole, index);
    }
    if (threadIdx.x == 0) room->group.gather(team.block, blocks);
    team.cluster_arrive();
    uint4 first;
    const Begun begun = bit ? begin_by_group(index, words, room->above_largest & bit, first) : Begun::PADDING;
    team.cluster_wait();  // the barriers of all blocks have begun, and what is here was read
    if (threadIdx.x == 0) {
      room->rest = bits;
      room->bit = bit;
    }
    const bool decided = begun == Begun::PADDING || (begun == Begun::SERVED && draw_of_many<THREADS>(first));
    sync_block();
    if (!decided && room->group.leader() && threadIdx.x < room->cluster_blocks) {
      const u64 own_bit = room->bit;
      const u32 upper = own_bit >> 32 != 0;
      atomicOr(team.in_block(&room->left[upper], threadIdx.x), static_cast<u32>(upper ? own_bit >> 32 : own_bit));  // of 32 bits: other blocks' memory has no more
    }
    if (threadIdx.x == 0) room->group.part();
  }
  DeviceTeam().cluster_sync();
  const u64 undecided = room->pending | static_cast<u64>(room->left[1]) << 32 | room->left[0];
  sync_block();
  return undecided;
}

// A row that its first cut has not decided. `sliced`: the slices hold it, as it is after its edits.
static __device__ __noinline__ void sample_otherwise(u32 index, u32 slice_room, Workspace workspace, bool sliced, bool exact, bool unlisted) {
  const RowCall call{index, slice_room, RawSums{}};
  const DeviceTeam team = call.team();
  if (sliced) {
    Fate fate = Fate::MANY;
    if (!exact && cuts_by_sums(shared_state()->program)) fate = sample_by_sums(RowCall{index, slice_room, raw_sums_of_row(shared_state(), shared_state()->row.flags, nullptr)});
    if (fate == Fate::MANY && in_control(team, [&] { return sample_slices(call, unlisted); })) fate = Fate::DECIDED;
    if (fate == Fate::DECIDED) return;
  }
  team.cluster_sync();
  unsliced::sample(call, workspace, unlisted);
}

// Every row of `rows`. `exact`: by the exact path alone; `unlisted`: and by its stages over whole rows to the end.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, const Rows &rows, u32 slice_room, bool exact, bool unlisted) {
  cut_each_row<FullRoom>(batch, rows, slice_room, unlisted, [&](u32 index, bool sliced) {
    sample_otherwise(index, slice_room, workspace, sliced, exact, unlisted);
    return true;
  });
}

}  // namespace nucleus
