// A row's token from what its blocks have sent, by the leading one.
#pragma once

#include "spread_chain.cuh"

namespace nucleus::spread {

// Sorts up to 128 places, descending, by counting, several threads a place, and tells how many have a smaller id. Barriers precede and follow.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(RowState *sh, u32 count) {
  u64 *const places = sh->places;
  const u32 index = threadIdx.x / SHARES, share = threadIdx.x % SHARES;
  const u64 own = index < count ? places[index] : 0;
  u32 ranks = 0;  // by id above 16 bits
  if (index < count) {
    UNROLL_8
    for (u32 at = share; at < count; at += SHARES) {
      const u64 other = places[at];
      ranks += other > own ? 1 : 0;
      ranks += static_cast<u32>(other) > static_cast<u32>(own) ? 1u << 16 : 0;
    }
  }
#pragma unroll
  for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
  __syncthreads();
  if (index < count && share == 0) {
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
  constexpr u32 ROOM = SENT_MOST / BLOCKS, SHARE = TILE_THREADS / BLOCKS;
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
  for (u32 i = threadIdx.x % SHARE; i < sh->sent[own]; i += SHARE) sh->places[before + i] = sh->arrivals[own * ROOM + i];
  __syncthreads();
  const SlicePlan &plan = sh->plan;
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  SampledToken *const out = batch.out + index;
  if (plan.greedy) {
    if (threadIdx.x >= 32) return true;
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
    first = DeviceWarp{}.most(first);
    if (threadIdx.x == 0) *out = result(first_of_order(first), RawSums{}, r);
    return true;
  }
  const bool common = sh->common;
  if (count > ORDERED_MOST) {
    sort_places<TILE_THREADS>(sh->places, count);
    if (common && plan.kind == SlicePlan::FIRST) count = plan.k;
  }
  if (common && count <= ORDERED_MOST) {
    if (count <= ORDERED_MOST / 2) sort_few<2 * TILE_THREADS / ORDERED_MOST>(sh, count);
    else sort_few<TILE_THREADS / ORDERED_MOST>(sh, count);
    if (threadIdx.x >= CHAIN_WARPS * 32 || run_chain(sh, r, count, out)) return true;
  } else if (count <= ORDERED_MOST) {
    sort_places<TILE_THREADS>(sh->places, count);
  }
  if (threadIdx.x >= 32) return true;
  const Outcome outcome = choose_by_list(batch, index, count);
  if (threadIdx.x == 0) *out = result(outcome, RawSums{}, r);
  return true;
}

// The row on the exact path, by the leading block when no other is left.
static __device__ __noinline__ void sample_alone(const SamplingBatch &batch, const Workspace &workspace, u32 index) {
  Shared *const sh = shared_state();  // its description is there
  __syncthreads();
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
  if (threadIdx.x == 0) sh->unusual = sh->found = sh->kept = 0;
  __syncthreads();
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  sample_unsliced(RowCall{index, 0, 0, RawSums{}, true}, workspace, false);
}

}  // namespace nucleus::spread
