// The commonest programs on a short list, without a general machine: top_k, then top_p and min_p in any order, then the draw.
#pragma once

#include "bounded.cuh"

namespace nucleus {

constexpr u32 CHAIN_MOST = 64;  // tokens after top_k: two a lane

// The choice from a sorted list, by one warp; false: this is another program, or too long a list. `weights` has room for the places.
__device__ __forceinline__ bool run_chain(const Request &r, const SlicePlan &plan, const u64 *places, u64 *weights, u32 count, Outcome &outcome) {
  const SamplingProgram &program = *r.program;
  const u32 lane = threadIdx.x, last = program.len - 1;
  // Every lane looks at one operation.
  const u32 code = lane < program.len && lane >= plan.op ? program.ops[lane].code : NUCLEUS_OP_NONE;
  const bool known = code == NUCLEUS_OP_NONE || code == NUCLEUS_OP_TOP_P || code == NUCLEUS_OP_MIN_P || (code == NUCLEUS_OP_TOP_K && lane == plan.op) ||
                     (code == NUCLEUS_OP_DRAW && lane == last);
  if (!__all_sync(~0u, known) || r.config->min_keep > 1 || r.config->flags & NUCLEUS_KEEP_TIES) return false;
  u32 kept = count;
  if (plan.kind == SlicePlan::FIRST && plan.k < kept) kept = plan.k;
  Weighing w;
  if (!kept || kept > CHAIN_MOST || !begin_weighing(logit_at(places[0]), plan.temperature, w)) return false;
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const u64 place[2] = {at < kept ? places[at] : 0, at + 1 < kept ? places[at + 1] : 0};
  const float x[2] = {logit_at(place[0]), logit_at(place[1])};
  const u64 q[2] = {at < kept ? w.q(x[0]) : 0, at + 1 < kept ? w.q(x[1]) : 0};
  weights[at] = q[0];
  weights[at + 1] = q[1];
  u64 prefix = q[0] + q[1];
#pragma unroll
  for (u32 step = 1; step < 32; step <<= 1) {
    const u64 before = __shfl_up_sync(~0u, prefix, step);
    prefix += lane >= step ? before : 0;
  }
  const u64 through[2] = {prefix - q[1], prefix};  // the mass up to and with each token
  u64 total = __shfl_sync(~0u, prefix, 31);
  const float largest = logit_at(places[0]);
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
  __syncwarp();
  const u64 target = mulhi64(uniform_of(r), total);
  u64 before[2] = {0, 0};
#pragma unroll 4
  for (u32 j = 0; j < kept; ++j) {
    const u64 other = weights[j];
    const u32 id = id_at(places[j]);
    before[0] += id < id_at(place[0]) ? other : 0;
    before[1] += id < id_at(place[1]) ? other : 0;
  }
  const bool drawn[2] = {at < kept && before[0] <= target && target - before[0] < q[0], at + 1 < kept && before[1] <= target && target - before[1] < q[1]};
  const u32 owner = __ffs(__ballot_sync(~0u, drawn[0] || drawn[1])) - 1;
  outcome.token = __shfl_sync(~0u, id_at(drawn[1] ? place[1] : place[0]), owner);
  outcome.kept = kept;
  outcome.logprob = processed_logprob(__shfl_sync(~0u, drawn[1] ? q[1] : q[0], owner), total);
  return true;
}

}  // namespace nucleus
