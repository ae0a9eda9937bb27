// A row's token from what its blocks have sent, by the leading one.
#pragma once

#include "spread_chain.cuh"

namespace nucleus::spread {

// Sorts places, descending, by counting, several threads a place, and tells what they weigh and how many have a smaller id; empty ones, which are 0, come last.
// Barriers precede and follow.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(RowState *sh, u32 count) {
  u64 *const places = sh->places;
  const u32 index = threadIdx.x / SHARES, share = threadIdx.x % SHARES;
  const u64 own = index < count ? places[index] : 0;
  u32 ranks = 0, most = 0;  // by id above 16 bits; the largest key
  u64 weight = 0;
  if (threadIdx.x / 32 * 32 / SHARES < count) {
#pragma unroll 4
    for (u32 i = 0; i < count; i += 2 * SHARES) {
      const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[i + 2 * share]);
      const bool one_id = static_cast<u32>(pair.x) > static_cast<u32>(own), other_id = static_cast<u32>(pair.y) > static_cast<u32>(own);
      if (pair.x > own) ranks += 1;
      if (pair.y > own) ranks += 1;
      if (one_id) ranks += 1u << 16;
      if (other_id) ranks += 1u << 16;
      most = max(most, max(static_cast<u32>(pair.x >> 32), static_cast<u32>(pair.y >> 32)));
    }
    const float s = sh->scale;
    most = __reduce_max_sync(~0u, most);  // the lanes of a place have seen all
    weight = Exponent(logit_at(own), s).weight(Exponent(value_of(most), s).n);
#pragma unroll
    for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
  }
  __syncthreads();
  if (own && share == 0) {
    places[ranks & 0xFFFFu] = own;
    sh->chain.by_id[ranks & 0xFFFFu] = ranks >> 16;
    sh->chain.weights[ranks & 0xFFFFu] = weight;
  }
  __syncthreads();
}

// Any number of them, without the order of ids.
static __device__ __noinline__ void sort_many(u32 count) { sort_places<READERS>(row_state()->places, count); }
// More of them than three quarters of those that a list with the order of ids may have.
static __device__ __noinline__ void sort_more(u32 count) { sort_few<READERS / ORDERED_MOST>(row_state(), count); }

// The result of a sorted list by the general machine, by one warp.
static __device__ __noinline__ void choose_by_list(const SamplingBatch &batch, u32 index, u32 count) {
  RowState *const sh = row_state();
  EditTable none{nullptr, 0};
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  const Outcome outcome = run_list(DeviceWarp{}, r, none, ListCall{sh->places, sh->weights, count, sh->plan.op, sh->plan.temperature, 0});
  if (threadIdx.x == 0) batch.out[index] = result(outcome, RawSums{}, r);
}

// Whether what was sent decides the row; by the leading block, once everything has been sent.
__device__ __forceinline__ bool was_all_sent(const RowState *sh) { return *static_cast<const volatile u32 *>(&sh->listed) <= LISTED; }

// Tells the other blocks, which wait for this, whether the row is decided; those of a decided row may leave.
__device__ __forceinline__ void tell_others(const DeviceTeam &team, RowState *sh, bool decided) {
  if (decided) {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    return;
  }
  if (threadIdx.x < team.blocks) *team.in_block(&sh->undecided, threadIdx.x) = 1;
  team.cluster_sync();
}
// By the others.
__device__ __forceinline__ bool is_decided(const DeviceTeam &team, const RowState *sh) {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
  team.cluster_wait();
  return !*static_cast<const volatile u32 *>(&sh->undecided);
}

// A row's result from what was sent, by the leading block.
__device__ __forceinline__ void finish_row(RowState *sh, const SamplingBatch &batch, u32 index) {
  u32 count = *static_cast<const volatile u32 *>(&sh->listed);
  const SlicePlan &plan = sh->plan;
  if (plan.greedy) {
    if (threadIdx.x >= 32) return;
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
    first = DeviceWarp{}.most(first);
    if (threadIdx.x == 0) write_choice(sh, batch, index, first, 1, 0.0f);
    return;
  }
  const bool common = sh->common;
  if (count > ORDERED_MOST) {
    sort_many(count);
    if (common && plan.kind == SlicePlan::FIRST) {
      count = plan.k;
      if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
      __syncthreads();
    }
  }
  if (common && count <= ORDERED_MOST) {
    if (count <= BLOCK_THREADS / 8) sort_few<8>(sh, count);
    else sort_more(count);
    if (threadIdx.x >= CHAIN_WARPS * 32 || run_chain(sh, batch, index, count)) return;
  } else if (count <= ORDERED_MOST) {
    sort_many(count);
  }
  if (threadIdx.x < 32) choose_by_list(batch, index, count);
}

}  // namespace nucleus::spread
