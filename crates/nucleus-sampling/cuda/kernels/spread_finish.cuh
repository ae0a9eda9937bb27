// A row's token from what its blocks have sent, by the leading one.
#pragma once

#include "spread_chain.cuh"

namespace nucleus::spread {

// Sorts MOST places, descending, by counting, several threads a place, and tells how many have a smaller id; empty ones, which are 0, come last. Barriers
// precede and follow.
template <u32 MOST>
__device__ __forceinline__ void sort_few(RowState *sh) {
  constexpr u32 SHARES = TILE_THREADS / MOST;
  u64 *const places = sh->places;
  const u32 share = threadIdx.x % SHARES;
  const u64 own = places[threadIdx.x / SHARES];
  u32 ranks = 0;  // by id above 16 bits
#pragma unroll
  for (u32 i = 0; i < MOST; i += 2 * SHARES) {
    const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[i + 2 * share]);
    ranks += (pair.x > own ? 1 : 0) + (pair.y > own ? 1 : 0);
    ranks += (static_cast<u32>(pair.x) > static_cast<u32>(own) ? 1u << 16 : 0) + (static_cast<u32>(pair.y) > static_cast<u32>(own) ? 1u << 16 : 0);
  }
#pragma unroll
  for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
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
  return run_list(DeviceWarp{}, r, none, ListCall{sh->places, sh->arrivals, count, sh->plan.op, sh->plan.temperature, 0});
}

// A row's result from what was sent; false: it is not decided. By the leading block, once everything has been sent.
template <u32 BLOCKS>
__device__ __forceinline__ bool finish_row(RowState *sh, const SamplingBatch &batch, u32 index) {
  constexpr u32 ROOM = SENT_MOST / BLOCKS / 2 * 2, SHARE = TILE_THREADS / BLOCKS;
  const u32 own = threadIdx.x / SHARE;
  u32 count = 0, before = 0, most = 0;
#pragma unroll
  for (u32 i = 0; i < BLOCKS; ++i) {
    const u32 sent = sh->sent[i];
    before += i < own ? sent : 0;
    count += sent;
    most = sent > most ? sent : most;
  }
  if (most > ROOM || count > LISTED) return false;
  UNROLL_NOT
  for (u32 i = threadIdx.x % SHARE; own < BLOCKS && i < sh->sent[own]; i += SHARE) sh->places[before + i] = sh->arrivals[own * ROOM + i];
  if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
  __syncthreads();
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
    sort_places<TILE_THREADS>(sh->places, count);
    if (common && plan.kind == SlicePlan::FIRST) {
      count = plan.k;
      if (threadIdx.x >= count && threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = 0;
      __syncthreads();
    }
  }
  if (common && count <= ORDERED_MOST) {
    if (count <= ORDERED_MOST / 2) sort_few<ORDERED_MOST / 2>(sh);
    else sort_few<ORDERED_MOST>(sh);
    if (threadIdx.x >= CHAIN_WARPS * 32 || run_chain(sh, batch, index, count)) return true;
  } else if (count <= ORDERED_MOST) {
    sort_places<TILE_THREADS>(sh->places, count);
  }
  if (threadIdx.x >= 32) return true;
  const Outcome outcome = choose_by_list(batch, index, count);
  if (threadIdx.x == 0) *out = result(outcome, RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
  return true;
}

}  // namespace nucleus::spread
