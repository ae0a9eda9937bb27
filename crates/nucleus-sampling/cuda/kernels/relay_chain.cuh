// The commonest programs on a list that is ordered by id.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

// The choice from a list that is sorted, and ordered by id, by one warp; false: this is another program, or too long a list.
__device__ __forceinline__ bool run_chain(const Row *row, const Request &r, u32 count, SampledToken *out) {
  State *const sh = state();
  const SamplingProgram &program = row->program;
  const SlicePlan &plan = row->plan;
  const u32 lane = threadIdx.x % 32;
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
  const Beginning left = truncate(program, plan, largest, x, q, kept);
  __syncwarp();  // the weights are cleared
  if (at < left.kept) {
    sh->weights_by_id[order.x] = q[0];
    sh->ids_by_id[order.x] = id_at(pair.x);
  }
  if (at + 1 < left.kept) {
    sh->weights_by_id[order.y] = q[1];
    sh->ids_by_id[order.y] = id_at(pair.y);
  }
  __syncwarp();
  const u32 found = find_drawn(sh->weights_by_id, mulhi64(row->uniform, left.total));
  if (found < ORDERED_MOST) {
    Outcome outcome;
    outcome.token = sh->ids_by_id[found];
    outcome.kept = left.kept;
    outcome.logprob = processed_logprob(sh->weights_by_id[found], left.total);
    *out = result(outcome, RawSums{}, r);
  }
  return true;
}

}  // namespace nucleus::relay
