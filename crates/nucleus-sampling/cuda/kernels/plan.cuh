// What a program asks of a row held in slices, read by every warp for itself.
#pragma once

#include "team.cuh"

namespace nucleus {

struct SlicePlan {
  // What decides, after edits by id and temperatures: a beginning of the order (the first k tokens; enough of the whole row's mass; all above a
  // bound) that then runs as a list, a draw from the whole row, or the exact path.
  // Where the weight of all decides (plan_row_by_warp), also: what the moment of the surprise tells beside it; a draw, or enough of the mass, by the temperature that follows from
  // both; a draw from smoothed logits.
  enum Kind { EXACT, FIRST, MASS, ABOVE, ALL, SURPRISE, WARMED, WARMED_MASS, SMOOTHED } kind;
  bool sliced;        // slices serve the program: its edits by id come first, under no temperature
  bool edits;         // there may be edits by id
  bool passages, occurrences, ngrams;
  u32 op;             // the operation that cuts, or chooses
  u32 k;              // tokens of the beginning at least
  bool greedy;        // the operation takes the first token
  float temperature;  // in force at that operation
};

// By a warp whose lane i has operation i of `len`. `lists`: the row has lists of ids to edit.
__device__ __forceinline__ SlicePlan plan_of(const SamplingOp &op, u32 len, bool lists, u32 least) {
  const u32 lane = threadIdx.x % 32;
  bool there = lane < len;
  u32 passages = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_DRY), occurrences = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_PENALTIES);
  u32 ngrams = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_NO_REPEAT_NGRAM), by_id = passages | occurrences | ngrams;
  u32 temperatures = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_TEMPERATURE), none = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_NONE);
  u32 adaptive = __ballot_sync(~0u, there && op.code == NUCLEUS_OP_ADAPTIVE_P);
  SlicePlan plan;
  plan.sliced = !adaptive && (by_id & (by_id + 1)) == 0;
  plan.passages = passages;
  plan.occurrences = occurrences;
  plan.ngrams = ngrams;
  plan.edits = by_id || lists;
  plan.op = __ffs(~(by_id | temperatures | none)) - 1;
  temperatures &= (1u << plan.op) - 1;
  plan.temperature = temperatures ? __shfl_sync(~0u, op.arg, 31 - __clz(temperatures)) : 1.0f;
  u32 code = __shfl_sync(~0u, op.code, plan.op), min_keep = least ? least : 1;
  u64 k = __shfl_sync(~0u, op.threshold, plan.op);
  plan.kind = SlicePlan::EXACT;
  plan.greedy = code == NUCLEUS_OP_ARGMAX;
  switch (code) {
    case NUCLEUS_OP_TOP_K: plan.kind = SlicePlan::FIRST; break;
    case NUCLEUS_OP_ARGMAX: plan.kind = SlicePlan::FIRST; k = 1; break;
    case NUCLEUS_OP_TOP_P: plan.kind = SlicePlan::MASS; k = min_keep; break;
    case NUCLEUS_OP_MIN_P: plan.kind = SlicePlan::ABOVE; k = min_keep; break;
    case NUCLEUS_OP_DRAW: plan.kind = SlicePlan::ALL; k = 0; break;
  }
  if (k > THREADS * 3 / 4) plan.kind = SlicePlan::EXACT;
  plan.k = static_cast<u32>(k);
  return plan;
}

__device__ __forceinline__ SlicePlan plan_of(const Description &d) {
  const u32 lane = threadIdx.x % 32, len = d.program.len;
  SamplingOp op{NUCLEUS_OP_NONE, 0, 0};
  if (lane < len && lane < NUCLEUS_MAX_OPS) op = d.program.ops[lane];
  return plan_of(op, len, d.row.bias.len || d.row.bad_words.len || d.row.eos.len, d.config.min_keep);
}

static_assert(sizeof(SlicePlan) <= sizeof(Shared::plan));
// That of a block's row, in shared memory, with the scale.
__device__ __forceinline__ const SlicePlan &shared_plan(const Shared *sh) { return *reinterpret_cast<const SlicePlan *>(sh->plan); }
// By one warp; a barrier must follow.
__device__ __forceinline__ void share_plan(Shared *sh) {
  const SlicePlan plan = plan_of(*sh);
  if (threadIdx.x % 32) return;
  *reinterpret_cast<SlicePlan *>(sh->plan) = plan;
  sh->scale = scale(plan.temperature);
}

// Whether top_p or min_p, at the plan's operation, is followed by the draw.
__device__ __forceinline__ bool then_draws(const SlicePlan &plan, const SamplingProgram &program) {
  const bool cuts = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ABOVE;
  return cuts && plan.op + 2 == program.len && program.ops[plan.op + 1].code == NUCLEUS_OP_DRAW;
}

}  // namespace nucleus
