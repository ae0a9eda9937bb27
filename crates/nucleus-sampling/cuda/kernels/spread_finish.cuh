// A row's token from what its blocks have sent, by the leading one.
#pragma once

#include "spread_chain.cuh"

namespace nucleus::spread {

// Sorts places, descending, by counting, several threads a place, and tells how many have a smaller id; empty ones, which are 0, come last. Barriers
// precede and follow.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(RowState *sh, u32 count) {
  u64 *const places = sh->places;
  const u32 index = threadIdx.x / SHARES, share = threadIdx.x % SHARES;
  const u64 own = index < count ? places[index] : 0;
  u32 ranks = 0;  // by id above 16 bits
  if (threadIdx.x / 32 * 32 / SHARES < count) {
#pragma unroll 4
    for (u32 i = 0; i < count; i += 2 * SHARES) {
      const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[i + 2 * share]);
      const bool one_id = static_cast<u32>(pair.x) > static_cast<u32>(own), other_id = static_cast<u32>(pair.y) > static_cast<u32>(own);
      if (pair.x > own) ranks += 1;
      if (pair.y > own) ranks += 1;
      if (one_id) ranks += 1u << 16;
      if (other_id) ranks += 1u << 16;
    }
#pragma unroll
    for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
  }
  __syncthreads();
  if (own && share == 0) {
    places[ranks & 0xFFFFu] = own;
    sh->chain.by_id[ranks & 0xFFFFu] = ranks >> 16;
  }
  __syncthreads();
}

// A list by the general machine.
__device__ __noinline__ Outcome choose_by_list(const SamplingBatch &batch, u32 index, u32 count) {
  RowState *const sh = row_state();
  EditTable none{nullptr, 0};
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  return run_list(DeviceWarp{}, r, none, ListCall{sh->places, sh->weights, count, sh->plan.op, sh->plan.temperature, 0});
}

// A row's result from what was sent; false: it is not decided. By the leading block, once everything has been sent.
__device__ __forceinline__ bool finish_row(RowState *sh, const SamplingBatch &batch, u32 index) {
  u32 count = *static_cast<const volatile u32 *>(&sh->listed);
  if (count > LISTED) return false;
  const SlicePlan &plan = sh->plan;
  SampledToken *const out = batch.out + index;
  if (plan.greedy) {
    if (threadIdx.x >= 32) return true;
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
    first = DeviceWarp{}.most(first);
    if (threadIdx.x == 0) *out = result(first_of_order(first), RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
    return true;
  }
  const bool common = sh->common;
  if (count > ORDERED_MOST) {
    sort_places<READERS>(sh->places, count);
    if (common && plan.kind == SlicePlan::FIRST) {
      count = plan.k;
      if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
      __syncthreads();
    }
  }
  if (common && count <= ORDERED_MOST) {
    if (count <= BLOCK_THREADS / 8) sort_few<8>(sh, count);
    else sort_few<READERS / ORDERED_MOST>(sh, count);
    if (threadIdx.x >= CHAIN_WARPS * 32 || run_chain(sh, batch, index, count)) return true;
  } else if (count <= ORDERED_MOST) {
    sort_places<READERS>(sh->places, count);
  }
  if (threadIdx.x >= 32) return true;
  const Outcome outcome = choose_by_list(batch, index, count);
  if (threadIdx.x == 0) *out = result(outcome, RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
  return true;
}

}  // namespace nucleus::spread
