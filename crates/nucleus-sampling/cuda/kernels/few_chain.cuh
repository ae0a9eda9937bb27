// The commonest programs on a list that is not ordered by id.
#pragma once

#include "call.cuh"
#include "chain.cuh"

namespace nucleus {

// The choice from a sorted list, by one warp; false: this is another program, too long a list, or one that ends before the cut. `weights` has room for the
// places. `of_row`: see truncate.
__device__ __forceinline__ bool run_chain(const Request &r, const SlicePlan &plan, const u64 *places, u64 *weights, u32 count, Outcome &outcome, u64 of_row = 0) {
  const SamplingProgram &program = *r.program;
  const u32 lane = threadIdx.x;
  const u32 code = lane < program.len && lane < NUCLEUS_MAX_OPS ? program.ops[lane].code : NUCLEUS_OP_NONE;
  if (!is_common(code, program.len, plan.op, r.config->min_keep, r.config->flags)) return false;
  u32 kept = count;
  if (plan.kind == SlicePlan::FIRST && plan.k < kept) kept = plan.k;
  if (of_row && kept > CHAIN_MOST) kept = CHAIN_MOST;
  Weighing w;
  if (!kept || kept > CHAIN_MOST || !begin_weighing(logit_at(places[0]), plan.temperature, w)) return false;
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const u64 place[2] = {at < kept ? places[at] : 0, at + 1 < kept ? places[at + 1] : 0};
  const float x[2] = {logit_at(place[0]), logit_at(place[1])};
  const u64 q[2] = {at < kept ? w.q(x[0]) : 0, at + 1 < kept ? w.q(x[1]) : 0};
  weights[at] = q[0];
  weights[at + 1] = q[1];
  const Beginning left = truncate(program, plan, logit_at(places[0]), x, q, kept, of_row);
  if (of_row && !left.kept) return false;
  __syncwarp();
  const u64 target = mulhi64(uniform_of(r), left.total);
  u64 before[2] = {0, 0};
#pragma unroll 4
  for (u32 j = 0; j < left.kept; ++j) {
    const u64 other = weights[j];
    const u32 id = id_at(places[j]);
    before[0] += id < id_at(place[0]) ? other : 0;
    before[1] += id < id_at(place[1]) ? other : 0;
  }
  const bool drawn[2] = {at < left.kept && before[0] <= target && target - before[0] < q[0], at + 1 < left.kept && before[1] <= target && target - before[1] < q[1]};
  const u32 owner = __ffs(__ballot_sync(~0u, drawn[0] || drawn[1])) - 1;
  outcome.token = __shfl_sync(~0u, id_at(drawn[1] ? place[1] : place[0]), owner);
  outcome.kept = left.kept;
  outcome.logprob = processed_logprob(__shfl_sync(~0u, drawn[1] ? q[1] : q[0], owner), left.total);
  return true;
}

}  // namespace nucleus
