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
__device__ __forceinline__ void plan_above(const SamplingBatch &batch, u32 index) {
  const Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  const SlicePlan plan = plan_of(*sh);
  if (threadIdx.x) return;
  room->plan.edited = 0;
  room->plan.temperature = plan.temperature;
  room->plan.arg = sh->program.ops[plan.op].arg;
  room->many = ManyKept{0, 0, plan.k, reinterpret_cast<const volatile float &>(batch.out[index].logprob), RawSums{}};
}

// The word that this thread copies of what an earlier launch has told of a row, by threads that copy nothing of its description.
struct ToldWord {
  static constexpr u32 PLAN_FROM = 256, MANY_FROM = 288, PLAN = sizeof(RowPlan) / 4, MANY = sizeof(ManyKept) / 4;
  static_assert(PLAN <= MANY_FROM - PLAN_FROM && MANY_FROM + MANY <= THREADS);
  u32 word;

  __device__ __forceinline__ void read(const Whole &whole, u32 index) {
    const u32 t = threadIdx.x;
    if (t - PLAN_FROM < PLAN) word = reinterpret_cast<const u32 *>(whole.plans + index)[t - PLAN_FROM];
    if (t - MANY_FROM < MANY) word = reinterpret_cast<const u32 *>(whole.many + index)[t - MANY_FROM];
  }
  __device__ __forceinline__ void write(CutRoom<THREADS> *room) const {
    const u32 t = threadIdx.x;
    if (t - PLAN_FROM < PLAN) reinterpret_cast<u32 *>(&room->plan)[t - PLAN_FROM] = word;
    if (t - MANY_FROM < MANY) reinterpret_cast<u32 *>(&room->many)[t - MANY_FROM] = word;
  }
};

// Draws in a row that keeps many tokens, by a group of blocks; whether it is decided. `word`: of its description, by the request of its own number where most rows have that.
__device__ __forceinline__ bool draw_by_group(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, DescriptionWord word, const ToldWord &told,
                                              bool above) {
  Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  word.write(sh);
  if (!above) told.write(room);
  sync_block();
  // Nobody writes the status of a row of padding, so it may read as anything.
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return true;
  if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH && sh->row.request != index) {
    word.read(batch, index, sh->row.request);
    sync_block();
    word.write(sh);
    sync_block();
  }
  describe_slot(sh, batch);
  if (above) {
    plan_above(batch, index);
    sync_block();
  }
  return draw_of_many<THREADS>(index, whole, division);
}

// The same in rows, of which each is taken by as many of the cluster's blocks as there are for it; `above`: those of which only the largest logit is known.
// Returns those that are not decided, as bits.
static __device__ __noinline__ u64 draw_by_cluster(const SamplingBatch &batch, const Whole &whole, const Division &division, Rows rows, u64 above) {
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  DeviceTeam team;
  if (threadIdx.x == 0) room->left[0] = room->left[1] = 0;
#pragma unroll 1
  for (u64 bits = rows.bits; bits;) {
    const u32 left = __popcll(bits);
    u32 groups = 1;
    while (groups < left && groups < team.blocks) groups *= 2;
    const u32 blocks = team.blocks / groups, own = team.block / blocks;
    u64 bit = 0;
#pragma unroll 1
    for (u32 group = 0; group < groups; ++group, bits &= bits - 1) bit = group == own ? bits & (0 - bits) : bit;
    DescriptionWord word;
    ToldWord told;
    if (bit) {
      const u32 index = rows.index(bit);
      word.read(batch, index, batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : batch.row[index].request);
      if (!(above & bit)) told.read(whole, index);
    }
    if (threadIdx.x == 0) room->group.gather(team.block, blocks);
    team.cluster_sync();  // no block reads the last rows' results any more
    const bool decided = !bit || draw_by_group(batch, whole, division, rows.index(bit), word, told, above & bit);
    if (!decided && room->group.leader() && threadIdx.x < team.blocks) {
      const u32 upper = bit >> 32 != 0;
      atomicOr(team.in_block(&room->left[upper], threadIdx.x), static_cast<u32>(upper ? bit >> 32 : bit));  // of 32 bits: other blocks' memory has no more
    }
    sync_block();
    if (threadIdx.x == 0) room->group.part();
  }
  team.cluster_sync();
  const u64 undecided = static_cast<u64>(room->left[1]) << 32 | room->left[0];
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
  sample_unsliced(call, workspace, unlisted);
}

// Every row of `rows`. `exact`: by the exact path alone; `unlisted`: and by its stages over whole rows to the end.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, const Rows &rows, u32 slice_room, bool exact, bool unlisted) {
  cut_each_row<FullRoom>(batch, rows, slice_room, unlisted, [&](u32 index, bool sliced) {
    sample_otherwise(index, slice_room, workspace, sliced, exact, unlisted);
    return true;
  });
}

}  // namespace nucleus
