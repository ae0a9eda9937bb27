// The commonest programs on a short list, without a general machine: top_k, then top_p and min_p in any order, then the draw.
#pragma once

#include "spread.cuh"

namespace nucleus::spread {

constexpr u32 CHAIN_MOST = 64;                        // tokens after top_k: two a lane
constexpr u32 CHAIN_WARPS = 1 + CHAIN_MOST / 32;      // one chooses, the others compute log-probabilities meanwhile
constexpr u32 CHAIN_TOTAL = 1, CHAIN_LOGPROBS = 2;    // named barriers: the total is known; the log-probabilities are
static_assert(ORDERED_MOST == 4 * 32, "four a lane");

__device__ __forceinline__ void chain_sync(u32 barrier) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }
__device__ __forceinline__ void chain_arrive(u32 barrier) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }

// Inclusive sums over a warp.
__device__ __forceinline__ u64 prefix_sum(u64 v) {
#pragma unroll
  for (u32 step = 1; step < 32; step <<= 1) {
    const u64 before = __shfl_up_sync(~0u, v, step);
    v += threadIdx.x % 32 >= step ? before : 0;
  }
  return v;
}

// The choice from a list that is sorted, and ordered by id, by the first CHAIN_WARPS warps; false: too long a list.
__device__ __forceinline__ bool run_chain(RowState *sh, const SamplingBatch &batch, u32 index, u32 count) {
  const SamplingProgram &program = sh->program;
  const SlicePlan &plan = sh->plan;
  ChainRoom &room = sh->chain;
  const u32 lane = threadIdx.x % 32, last = program.len - 1;
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
  const u64 prefix = prefix_sum(q[0] + q[1]), through[2] = {prefix - q[1], prefix};  // the mass up to and with each token
  u64 total = __shfl_sync(~0u, prefix, 31);
  UNROLL_NOT
  for (u32 i = plan.op; i < last; ++i) {
    const SamplingOp op = program.ops[i];
    bool passes[2];
    if (op.code == NUCLEUS_OP_TOP_P) {  // a token passes while what precedes it does not suffice
      passes[0] = !reaches(through[0] - q[0], total, op.threshold) || lane == 0;
      passes[1] = !reaches(through[0], total, op.threshold);
    } else if (op.code == NUCLEUS_OP_MIN_P) {
      const float threshold = fmaf(plan.temperature, op.arg, largest);
      passes[0] = x[0] >= threshold || lane == 0;
      passes[1] = x[1] >= threshold;
    } else {
      continue;
    }
    const u32 first = __popc(__ballot_sync(~0u, passes[0] && at < kept)), second = __popc(__ballot_sync(~0u, passes[1] && at + 1 < kept));
    kept = first + second;
    total = __shfl_sync(~0u, kept % 2 ? through[0] : through[1], (kept - 1) / 2);
  }
  if (lane == 0) {
    room.total = total;
    room.kept = kept;
  }
  chain_sync(CHAIN_TOTAL);  // and the weights are cleared
  if (at < kept) {
    room.weights_by_id[order.x] = q[0];
    room.order_by_id[order.x] = at;
  }
  if (at + 1 < kept) {
    room.weights_by_id[order.y] = q[1];
    room.order_by_id[order.y] = at + 1;
  }
  __syncwarp();
  const u64 target = mulhi64(sh->uniform, total);
  u64 own[4], before;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) own[i] = room.weights_by_id[4 * lane + i];
  before = prefix_sum((own[0] + own[1]) + (own[2] + own[3])) - ((own[0] + own[1]) + (own[2] + own[3]));
  u32 found = 4;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if (before <= target && target - before < own[i]) found = i;
    before += own[i];
  }
  chain_sync(CHAIN_LOGPROBS);
  if (found < 4) {
    const u32 drawn = room.order_by_id[4 * lane + found];
    Outcome outcome;
    outcome.token = id_at(sh->places[drawn]);
    outcome.kept = kept;
    outcome.logprob = room.logprobs[drawn];
    batch.out[index] = result(outcome, RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
  }
  return true;
}

}  // namespace nucleus::spread
