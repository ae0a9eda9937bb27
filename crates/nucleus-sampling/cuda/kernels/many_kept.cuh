// What a first cut tells of rows in slices under top_p that keep more tokens than its list has room for, for a launch that draws from them (cut.cuh).
#pragma once

#include "first_cut.cuh"
#include "whole.cuh"

namespace nucleus {

// Whether that launch may decide a row that its first cut has left; after a barrier of the block. Lists of allowed ids are not known to it.
__device__ __forceinline__ bool keeps_many(const Shared *sh) {
  const SlicePlan &plan = shared_plan(sh);
  return plan.kind == SlicePlan::MASS && sh->known_total && !(sh->row.flags & NUCLEUS_ROW_ALLOWED) && then_draws(plan, sh->program);
}

// Lists the row's edited tokens by parts, as its slices have them; false: there are more than it has room for. `edited`: how many. A meeting; by all threads of the cluster.
template <class Room>
__device__ __forceinline__ bool list_edited(const DeviceTeam &team, const Request &r, const Whole &whole, u32 index, u32 &edited) {
  Shared *const sh = team.sh;
  EditedTokens *const table = EditedTokens::of(sh);
  // The leading block's list lies where its table was: all note their tokens once more.
  sync_block();
  table->clear();
  ask_for_window<Room>(0);
  await_window();
  sync_block();
  note_edited_tokens<Room>(team, r, shared_plan(sh));
  sync_block();
  u32 *const in_part = reinterpret_cast<u32 *>(sh->part);  // in which the breakers of passages were looked for
  if (threadIdx.x < WARPS) in_part[threadIdx.x] = 0;
  sync_block();
  u32 ids[EditedTokens::EACH], at[EditedTokens::EACH];
#pragma unroll
  for (u32 i = 0; i < EditedTokens::EACH; ++i) {
    ids[i] = table->ids[EditedTokens::EACH * threadIdx.x + i];
    if (ids[i] < r.limit) at[i] = atomicAdd(&in_part[(ids[i] - team.first) / team.span], 1);
  }
  sync_block();
  const u64 own[1] = {in_part[threadIdx.x / 32]};
  const u64 *const told = team.meet(own)[0];
  // Where a part's begin: `before` counts the block's other parts, too, which the lanes' sums do not.
  const u32 part = team.block * WARPS, parts = team.blocks * WARPS;
  u32 before = 0;
  edited = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x % 32; i < parts; i += 32) {
    edited += static_cast<u32>(told[i]);
    before += i < part ? static_cast<u32>(told[i]) : 0;
  }
  edited = __reduce_add_sync(~0u, edited);
  before = __reduce_add_sync(~0u, before);
  if (edited > ROW_EDITS) return false;
  const auto begin_of = [&](u32 of) {
    u32 begin = before;
    UNROLL_NOT
    for (u32 i = 0; i < of; ++i) begin += in_part[i];
    return begin;
  };
  Changed *const changed = whole.changed + static_cast<u64>(index) * ROW_EDITS;
#pragma unroll
  for (u32 i = 0; i < EditedTokens::EACH; ++i) {
    if (ids[i] >= r.limit) continue;
    const u32 own_id = ids[i] - team.first;
    changed[begin_of(own_id / team.span) + at[i]] = Changed{ids[i], team.slice[own_id]};
  }
  if (threadIdx.x < WARPS) whole.edits[static_cast<u64>(index) * ROW_WARPS + part + threadIdx.x] = begin_of(threadIdx.x) << 16 | in_part[threadIdx.x];
  return true;
}

// Tells what the row's draw starts from; false: it has too many edits. By all threads of the cluster.
template <class Room>
static __device__ __noinline__ bool tell_many(RowCallIn<Room> call, const Whole &whole) {
  const DeviceTeam team = call.team();
  const Shared *const sh = team.sh;
  const SlicePlan plan = shared_plan(sh);
  u32 edited = 0;
  if (plan.edits && !list_edited<Room>(team, call.request(), whole, call.index, edited)) return false;
  if (team.rank() == 0) {
    RowPlan to{};
    to.kind = plan.kind;
    to.edited = edited;
    to.temperature = plan.temperature;
    whole.plans[call.index] = to;
    whole.many[call.index] = ManyKept{sh->known_total, sh->program.ops[plan.op].threshold, plan.k, logit_at(sh->known_best), raw_sums_of_row(sh, sh->row.flags, nullptr)};
  }
  return true;
}

}  // namespace nucleus
