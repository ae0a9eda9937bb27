// Rows by a cluster that holds them in the slices of its blocks: what few tokens decide, what min_p keeps and draws from the whole row, then whatever is left by
// the exact path. Where a row was weighed before and keeps many tokens, it is not held (cut.cuh).
#pragma once

#include "by_sums.cuh"
#include "control.cuh"
#include "cut.cuh"
#include "first_cut.cuh"
#include "held_row.cuh"
#include "unsliced.cuh"

namespace nucleus {

// What log-probabilities of the row as it came need, to Shared, before it is changed. Two meetings.
__device__ __noinline__ void note_raw_sums(DeviceTeam team) {
  const Survey own = team.survey();
  u64 strange = own.nan || own.infinite, best = own.best;
  team.sum_and_max(strange, best);
  Weighing unscaled;
  if (strange || !best || !begin_weighing(logit_at(best), 1.0f, unscaled)) return;
  u64 mass[1] = {team.mass(unscaled)};
  team.sum(mass);
  if (threadIdx.x) return;
  team.sh->raw_largest = logit_at(best);
  team.sh->raw_total = mass[0];
}

// The exact path over slices, by the warp in control; false: they are not of numbers alone, or do not serve the program.
__device__ __noinline__ bool sample_slices(RowCall call, bool unlisted) {
  return sample_exactly(SliceTeam(call.team()), call.request(), EditTable{nullptr, 0}, raw_sums_of_row(shared_state(), nullptr), unlisted, call.out());
}

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step;
  u64 bits;

  __device__ __forceinline__ u32 index(u64 set) const { return first + (__ffsll(static_cast<long long>(set)) - 1) * step; }
};

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

// Draws in a row that keeps many tokens, by a group of blocks; whether it is decided. `word`: of its description.
__device__ __forceinline__ bool draw_by_group(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, const DescriptionWord &word, bool above) {
  Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  word.write(sh);
  if (threadIdx.x == 0 && !above) {
    room->plan = whole.plans[index];
    room->many = whole.many[index];
  }
  sync_block();
  // Nobody writes the status of a row of padding, so it may read as anything.
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return true;
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
    if (bit) word.read(batch, rows.index(bit), batch.row[rows.index(bit)].request);
    if (threadIdx.x == 0) room->group.gather(team.block, blocks);
    team.cluster_sync();  // no block reads the last rows' results any more
    const bool decided = !bit || draw_by_group(batch, whole, division, rows.index(bit), word, above & bit);
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

// The team over slices. Read anew wherever it is needed: what is kept while functions are called lies in local memory, which hardly any L1 is left for. So does the
// address of shared memory, unless it is hidden that it is always the same.
__device__ __forceinline__ DeviceTeam slice_team(u32 row_len, u32 slice_room) {
  DeviceTeam team;
  u32 address = shared_address(shared_memory);
  asm volatile("" : "+r"(address));
  team.sh = static_cast<Shared *>(__cvta_shared_to_generic(address));
  team.slice = reinterpret_cast<float *>(reinterpret_cast<unsigned char *>(team.sh) + SHARED_BYTES);
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(team.blocks));
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(team.block));
#endif
  team.take_slice(row_len, slice_room);
  return team;
}

// Masks and edits a row in slices that has edits or masks, once it is there. `raw`: log-probabilities of the row as it came are asked for.
static __device__ __noinline__ void change_row(u32 index, u32 slice_room, u32 dtype, bool raw) {
  const DeviceTeam team = RowCall{index, slice_room, RawSums{}}.team();
  const Request r = RowCall{index, slice_room, RawSums{}}.request();
  change_slices(team, r, shared_plan(team.sh), PartLoad(team, dtype), static_cast<const char *>(r.logits), [&] {
    if (raw) note_raw_sums(team);
  });
}
// The same of one that has none.
__device__ __forceinline__ void settle_row(const DeviceTeam &team, const SamplingBatch &batch, u32 index, bool raw) {
  const PartLoad load(team, batch.dtype);
  load.settle(row_of(batch, index), team.sh->config.vocab_size);
  if (!raw) return;
  note_raw_sums(team);
  sync_block();
}

// A row that its first cut has not decided. `sliced`: the slices hold it, as it is after its edits.
static __device__ __noinline__ void sample_otherwise(u32 index, u32 slice_room, Workspace workspace, bool sliced, bool exact, bool unlisted) {
  const RowCall call{index, slice_room, RawSums{}};
  const DeviceTeam team = call.team();
  if (sliced) {
    Fate fate = Fate::MANY;
    if (!exact && cuts_by_sums(shared_state()->program)) fate = sample_by_sums(RowCall{index, slice_room, raw_sums_of_row(shared_state(), nullptr)});
    if (fate == Fate::MANY && in_control(team, [&] { return sample_slices(call, unlisted); })) fate = Fate::DECIDED;
    if (fate == Fate::DECIDED) return;
  }
  team.cluster_sync();
  sample_unsliced(call, workspace, unlisted);
}

// Every row of `rows`. `exact`: by the exact path alone; `unlisted`: and by its stages over whole rows to the end.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, const Rows &rows, u32 slice_room, bool exact, bool unlisted) {
  const auto team_now = [&] { return slice_team(batch.row_len, slice_room); };
  DescriptionWord word;
  {
    const DeviceTeam team = team_now();
    const PartLoad load(team, batch.dtype);
    if (threadIdx.x % 32 == 0) load.prepare();
    team.prepare_meetings();
    team.cluster_arrive_alone();  // the fences tell the others of the barriers
    wait_for_launch_before();
    let_next_launch_begin();
    word = ask_for_row(load, batch, rows.index(rows.bits));
  }
  u64 bits = rows.bits;
  bool asked = true;
#pragma unroll 1
  for (u32 use = 0; bits; ++use, bits &= bits - 1) {
    const u32 index = rows.index(bits);
    if (!asked) word = ask_for_row(PartLoad(team_now(), batch.dtype), batch, index);
    asked = false;
    Fate fate = Fate::STRANGE;
    {
      const DeviceTeam team = team_now();
      describe_row(team.sh, batch, index, word);
      if (threadIdx.x < 32) share_plan(team.sh);
      else if (may_edit(batch)) ask_for_window(32);
      await_window();
      wait_for_copy(&team.sh->arrived[threadIdx.x / 32], use & 1);
      if (!use) team.cluster_wait();
    }
    sync_block();
    const DeviceTeam team = team_now();
    const u32 flags = team.sh->row.flags;
    if (flags & NUCLEUS_ROW_PADDING) continue;
    const bool raw = !(flags & NUCLEUS_ROW_PROCESSED);
    if (slice_room && shared_plan(team.sh).sliced) {
      if (shared_plan(team.sh).edits || team.sh->row.mask >= 0 || flags & NUCLEUS_ROW_ALLOWED)
        change_row(index, slice_room, batch.dtype, raw);
      else
        settle_row(team, batch, index, raw);
      fate = Fate::MANY;
      const DeviceTeam then = team_now();
      if (!unlisted && shared_plan(then.sh).kind != SlicePlan::EXACT)
        fate = sample_at_first_cut(then, index, shared_plan(then.sh), [&] {
          const u64 rest = bits & (bits - 1);
          asked = true;
          if (rest) word = ask_for_row(PartLoad(team_now(), batch.dtype), batch, rows.index(rest));
        });
    }
    if (fate != Fate::DECIDED) sample_otherwise(index, slice_room, workspace, fate == Fate::MANY, exact, unlisted);
  }
  // No block leaves while another may still read its shared memory.
  team_now().cluster_arrive_alone();
  team_now().cluster_wait();
}

}  // namespace nucleus
