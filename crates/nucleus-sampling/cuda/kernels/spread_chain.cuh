// The commonest programs on a list that is ordered by id, by three warps.
#pragma once

#include "spread.cuh"

namespace nucleus::spread {

constexpr u32 CHAIN_WARPS = 1 + CHAIN_MOST / 32;      // one chooses, the others compute log-probabilities meanwhile

__device__ __forceinline__ void chain_sync(u32 barrier) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }
__device__ __forceinline__ void chain_arrive(u32 barrier) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }

// The choice from a list that is sorted, and ordered by id, by the first CHAIN_WARPS warps; false: too long a list.
__device__ __forceinline__ bool run_chain(RowState *sh, const SamplingBatch &batch, u32 index, u32 count) {
  const SamplingProgram &program = sh->program;
  const SlicePlan &plan = sh->plan;
  ChainRoom &room = sh->chain;
  const u32 lane = threadIdx.x % 32;
  u32 kept = count;
  if (plan.kind == SlicePlan::FIRST && plan.k < kept) kept = plan.k;
  const float largest = logit_at(sh->places[0]), s = sh->scale;
  if (!kept || kept > CHAIN_MOST || !(fabsf(largest * s) < SCALED_LIMIT)) return false;
  if (threadIdx.x >= 32) {
    chain_sync(CHAIN_TOTAL);
    const u32 at = threadIdx.x - 32;
    if (at < room.kept) room.logprobs[at] = processed_logprob(room.weights[at], room.total);
    chain_arrive(CHAIN_LOGPROBS);
    return true;
  }
  const i32 most = Exponent(largest, s).n;
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sh->places[at]);
  const uint2 order = *reinterpret_cast<const uint2 *>(&room.by_id[at]);
#pragma unroll
  for (u32 i = 0; i < ORDERED_MOST / 64; ++i) *reinterpret_cast<ulonglong2 *>(&room.weights_by_id[64 * i + at]) = make_ulonglong2(0, 0);
  const float x[2] = {logit_at(pair.x), logit_at(pair.y)};
  const u64 q[2] = {at < kept ? Exponent(x[0], s).weight(most) : 0, at + 1 < kept ? Exponent(x[1], s).weight(most) : 0};
  *reinterpret_cast<ulonglong2 *>(&room.weights[at]) = make_ulonglong2(q[0], q[1]);
  const Beginning left = truncate(program, plan, largest, x, q, kept);
  if (lane == 0) {
    room.total = left.total;
    room.kept = left.kept;
  }
  __syncwarp();             // lanes arrive together
  chain_sync(CHAIN_TOTAL);  // and the weights are cleared
  if (at < left.kept) {
    room.weights_by_id[order.x] = q[0];
    room.order_by_id[order.x] = at;
  }
  if (at + 1 < left.kept) {
    room.weights_by_id[order.y] = q[1];
    room.order_by_id[order.y] = at + 1;
  }
  __syncwarp();
  const u32 found = find_drawn(room.weights_by_id, mulhi64(sh->uniform, left.total));
  chain_sync(CHAIN_LOGPROBS);
  if (found < ORDERED_MOST) {
    const u32 drawn = room.order_by_id[found];
    Outcome outcome;
    outcome.token = id_at(sh->places[drawn]);
    outcome.kept = left.kept;
    outcome.logprob = room.logprobs[drawn];
    batch.out[index] = result(outcome, RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
  }
  return true;
}

}  // namespace nucleus::spread
