// The commonest programs on a short list, without a general machine: top_k, then top_p and min_p in any order, then the draw.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

constexpr u32 CHAIN_MOST = 64;  // tokens after top_k: two a lane
static_assert(ORDERED_MOST == 4 * 32, "four a lane");

// Inclusive sums over a warp.
__device__ __forceinline__ u64 prefix_sum(u64 v) {
#pragma unroll
  for (u32 step = 1; step < 32; step <<= 1) {
    const u64 before = __shfl_up_sync(~0u, v, step);
    v += threadIdx.x % 32 >= step ? before : 0;
  }
  return v;
}

// The choice from a list that is sorted, and ordered by id, by one warp; false: this is another program, or too long a list.
__device__ __forceinline__ bool run_chain(const Row *row, const Request &r, u32 count, SampledToken *out) {
  State *const sh = state();
  const SamplingProgram &program = row->program;
  const SlicePlan &plan = row->plan;
  const u32 lane = threadIdx.x % 32, last = program.len - 1;
  u32 kept = count;
  if (plan.kind == SlicePlan::FIRST && plan.k < kept) kept = plan.k;
  if (!row->common || !kept || kept > CHAIN_MOST || count > ORDERED_MOST) return false;
  const float largest = logit_at(sh->places[0]), s = row->scale;
  if (!(fabsf(largest * s) < SCALED_LIMIT)) return false;
  const i32 most = Exponent(largest, s).n;
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sh->places[at]);
  const uint2 order = *reinterpret_cast<const uint2 *>(&sh->by_id[at]);
#pragma unroll
  for (u32 i = 0; i < ORDERED_MOST / 64; ++i) *reinterpret_cast<ulonglong2 *>(&sh->weights_by_id[64 * i + at]) = make_ulonglong2(0, 0);
  const float x[2] = {logit_at(pair.x), logit_at(pair.y)};
  const u64 q[2] = {at < kept ? Exponent(x[0], s).weight(most) : 0, at + 1 < kept ? Exponent(x[1], s).weight(most) : 0};
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
  __syncwarp();  // the weights are cleared
  if (at < kept) {
    sh->weights_by_id[order.x] = q[0];
    sh->ids_by_id[order.x] = id_at(pair.x);
  }
  if (at + 1 < kept) {
    sh->weights_by_id[order.y] = q[1];
    sh->ids_by_id[order.y] = id_at(pair.y);
  }
  __syncwarp();
  const u64 target = mulhi64(row->uniform, total);
  u64 own[4], before;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) own[i] = sh->weights_by_id[4 * lane + i];
  before = prefix_sum((own[0] + own[1]) + (own[2] + own[3])) - ((own[0] + own[1]) + (own[2] + own[3]));
  u32 found = 4;
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    if (before <= target && target - before < own[i]) found = i;
    before += own[i];
  }
  if (found < 4) {
    Outcome outcome;
    outcome.token = sh->ids_by_id[4 * lane + found];
    outcome.kept = kept;
    outcome.logprob = processed_logprob(sh->weights_by_id[4 * lane + found], total);
    *out = result(outcome, RawSums{}, r);
  }
  return true;
}

}  // namespace nucleus::relay
