// A row's token from what its blocks have sent, by the leading one.
#pragma once

#include "spread_chain.cuh"

namespace nucleus::spread {

// The leading block tells the other ones, which wait for this, that the row is decided, and that they may leave.
__device__ __forceinline__ void release_others() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
// What else comes of it.
__device__ __forceinline__ void keep_others(const DeviceTeam &team, RowState *sh, u32 way) {
  if (threadIdx.x < team.blocks) *team.in_block(&sh->way, threadIdx.x) = way;
  team.cluster_sync();
}
// The others learn it.
__device__ __forceinline__ u32 learn_way(const DeviceTeam &team, const RowState *sh) {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  team.cluster_wait();
  return *static_cast<const volatile u32 *>(&sh->way);
}

// Sorts places, descending, by counting, then tells how many have a smaller id, several threads a place; by SORTERS threads beside those that choose. Places behind
// the list are 0. `tell`: the other blocks wait.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(RowState *sh, u32 count, bool tell) {
  constexpr u32 MOST = SORTERS / SHARES < ORDERED_MOST ? SORTERS / SHARES : ORDERED_MOST, READS = (MOST + 2 * SHARES - 1) / (2 * SHARES);
  const u64 *const places = sh->places;
  const u32 sorter = threadIdx.x - CHAIN_WARPS * 32, index = sorter / SHARES, share = sorter % SHARES;
  const bool busy = sorter / 32 * 32 / SHARES < count;
  u64 own = 0;
  u32 rank = 0, before = 0, lower[2 * READS];  // of what a thread compares, the halves with the ids
  const auto add_up = [](u32 of_thread) {
#pragma unroll
    for (u32 step = SHARES / 2; step; step /= 2) of_thread += __shfl_xor_sync(~0u, of_thread, step);
    return of_thread;
  };
  if (busy) {
    own = places[index];
#pragma unroll
    for (u32 i = 0; i < READS; ++i) {
      const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[2 * SHARES * i + 2 * share]);
      lower[2 * i] = static_cast<u32>(pair.x);
      lower[2 * i + 1] = static_cast<u32>(pair.y);
      if (pair.x > own) rank += 1;
      if (pair.y > own) rank += 1;
    }
    rank = add_up(rank);
    if (own && share == 0) {
      sh->chain.sorted[rank] = own;
      sh->chain.sources[rank] = index;
    }
  }
  __syncwarp();
  pass<SORTED, BLOCK_THREADS>();
  if (tell) release_others();
  if (busy) {
#pragma unroll
    for (u32 i = 0; i < 2 * READS; ++i)
      if (lower[i] > static_cast<u32>(own)) before += 1;
    before = add_up(before);
    if (own && share == 0) sh->chain.by_id[index] = before;
  }
  __syncwarp();
  pass<ORDERED, SORTERS + 32>();
}

// Any number of them, without the order of ids.
static __device__ __noinline__ void sort_many(u32 count) { sort_places<READERS>(row_state()->places, count); }
// More of them than most lists have.
static __device__ __noinline__ void sort_more(u32 count, bool tell) { sort_few<4>(row_state(), count, tell); }
static_assert(SORTERS / 4 >= ORDERED_MOST);

// The result of a sorted list by the general machine, by one warp.
static __device__ __noinline__ void choose_by_list(const SamplingBatch &batch, u32 index, u64 *places, u32 count) {
  RowState *const sh = row_state();
  EditTable none{nullptr, 0};
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  u32 tokens = 0;
  UNROLL_NOT
  for (u32 from = 0; from < count; from += 32) tokens += __popc(__ballot_sync(~0u, from + threadIdx.x < count && is_token(places[from + threadIdx.x])));
  const Outcome outcome = run_list(DeviceWarp{}, r, none, ListCall{places, sh->weights, tokens, sh->plan.op, sh->plan.temperature, 0});
  if (threadIdx.x == 0) batch.out[index] = result(outcome, RawSums{}, r);
}

// A list in any order that min_p cuts and that is then drawn from, by all threads.
static __device__ __noinline__ void draw_from_list(const SamplingBatch &batch, u32 index, u32 count) {
  RowState *const sh = row_state();
  const SlicePlan &plan = sh->plan;
  const DrawAbove asked{sh->scale, plan.temperature, sh->program.ops[plan.op].arg, plan.k, sh->uniform};
  const auto write = [&](u64 place, u32 kept, float logprob) { write_choice(sh->out, sh->row.flags, batch, index, place, kept, logprob); };
  if (sh->list_draw.draw(sh->places, count, asked, threadIdx.x, [] { sync_block(); }, write)) return;
  sort_many(count);
  if (threadIdx.x < 32) choose_by_list(batch, index, sh->places, count);
}

// The result of a list in any order by a wider chain, by all threads.
static __device__ __noinline__ void finish_wide(const SamplingBatch &batch, u32 index, u32 count) {
  RowState *const sh = kept_row_state();
  const ChainPlan known(sh);
  u64 *sorted = sh->places;
  if (count > ORDERED_MOST) {
    sort_many(count);
    if (known.plan.kind == SlicePlan::FIRST) {
      count = known.most;
      if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
      sync_block();
    }
  }
  if (count <= ORDERED_MOST) {
    if (threadIdx.x >= CHAIN_WARPS * 32) {
      if (count <= SORTERS / 8) sort_few<8>(sh, count, false);
      else sort_more(count, false);
      return;
    }
    if (run_wide_chain(sh, batch, index, known, count)) return;
    sorted = sh->chain.sorted;
  }
  if (threadIdx.x < 32) choose_by_list(batch, index, sorted, count);
}

// What a row's finish needs of its plan, read while what was sent is waited for.
struct FinishPlan {
  bool greedy, common;
  ChainPlan chain;

  __device__ __forceinline__ explicit FinishPlan(const RowState *sh) : greedy(sh->plan.greedy), common(sh->common), chain(sh) {}
};

// A row's result from what was sent, by the leading block. `tell`: the other blocks wait for it.
__device__ __forceinline__ void finish_row(RowState *sh, const SamplingBatch &batch, u32 index, const FinishPlan &known, u32 count, bool tell) {
  u64 *sorted = sh->places;
  if (known.chain.plan.kind == SlicePlan::ABOVE && count > CHAIN_MOST && then_draws(known.chain.plan, sh->program)) [[unlikely]] {
    if (tell) release_others();
    return draw_from_list(batch, index, count);
  }
  if (known.common && known.chain.plan.kind == SlicePlan::FIRST && count > ORDERED_MOST) {
    sort_many(count);
    count = known.chain.most;
    if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
    sync_block();
  }
  if (known.common && count <= ORDERED_MOST) {
    if (threadIdx.x >= CHAIN_WARPS * 32) {
      if (count <= SORTERS / 8) sort_few<8>(sh, count, tell);
      else sort_more(count, tell);
      return;
    }
    if (tell) release_others();
    if (run_chain(sh, batch, index, known.chain, count)) return;
    sorted = sh->chain.sorted;
  } else {
    if (tell) release_others();
    if (known.greedy) {
      if (threadIdx.x >= 32) return;
      u64 first = 0;
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < count; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
      first = DeviceWarp{}.most(first);
      if (threadIdx.x == 0) write_choice(sh->out, sh->row.flags, batch, index, is_token(first) ? first : 0, 1, 0.0f);
      return;
    }
    if (sh->wide) return finish_wide(batch, index, count);
    sort_many(count);
  }
  if (threadIdx.x < 32) choose_by_list(batch, index, sorted, count);
}

}  // namespace nucleus::spread
