// The commonest programs on a list that is ordered by id, by three warps of the finishing team.
#pragma once

#include "relay.cuh"

namespace nucleus::relay {

constexpr u32 CHAIN_WARPS = 1 + CHAIN_MOST / 32;         // one chooses, the others compute log-probabilities meanwhile
constexpr u32 CHAIN_TOTAL = 5, CHAIN_LOGPROBS = 6;       // their barriers

template <u32 BARRIER>
__device__ __forceinline__ void chain_sync() { meet_for_tools(); asm volatile("barrier.sync %0, %1;" ::"n"(BARRIER), "n"(CHAIN_WARPS * 32) : "memory"); }
template <u32 BARRIER>
__device__ __forceinline__ void chain_arrive() { meet_for_tools(); asm volatile("barrier.arrive %0, %1;" ::"n"(BARRIER), "n"(CHAIN_WARPS * 32) : "memory"); }

// By the warp that chooses: what log-probabilities are computed from is there. racecheck follows who has met only where all wait.
__device__ __forceinline__ void tell_total() {
#ifdef NUCLEUS_RACECHECK
  chain_sync<CHAIN_TOTAL>();
#else
  chain_arrive<CHAIN_TOTAL>();
#endif
}

// How many of a list's first tokens a chain begins with; 0: there are none, or too many.
__device__ __forceinline__ u32 tokens_of_chain(const Row *row, u32 count) {
  u32 kept = count;
  if (row->plan.kind == SlicePlan::FIRST && row->plan.k < kept) kept = row->plan.k;
  return kept > CHAIN_MOST || count > ORDERED_MOST ? 0 : kept;
}
// By the warps that do not choose: the log-probability of the token at this place of the order, once its weight and the sum are known.
__device__ __forceinline__ void tell_logprob(State *sh, u32 at) {
  chain_sync<CHAIN_TOTAL>();
  if (at < sh->chain_kept) sh->chain_logprobs[at] = processed_logprob(sh->chain_weights[at], sh->chain_total);
  chain_arrive<CHAIN_LOGPROBS>();
}
// Writes a token, by one thread.
__device__ __forceinline__ void write_token(const Row *row, u64 place, u32 kept, float logprob, SampledToken *out) {
  Outcome outcome;
  outcome.token = id_at(place);
  outcome.kept = kept;
  outcome.logprob = logprob;
  *out = result(outcome, RawSums{}, row->request);
}
// That of a row whose slot goes on.
static __device__ __noinline__ void write_and_commit(const Row *row, u64 place, u32 kept, float logprob, SampledToken *out) { write_token(row, place, kept, logprob, out); }
// The result, by the lane that has found where in the order of ids the draw falls.
__device__ __forceinline__ void write_drawn(const State *sh, const Row *row, u32 found, u32 kept, SampledToken *out) {
  const u32 drawn = sh->order_by_id[found];
  const u64 place = sh->places[drawn];
  const float logprob = sh->chain_logprobs[drawn];
  if (row->request.slot) return write_and_commit(row, place, kept, logprob, out);
  *out = SampledToken{id_at(place), logprob, kept, NUCLEUS_OK, 0};
}

// The choice from a list that is sorted, and ordered by id, by the first CHAIN_WARPS warps of the team; false: this is another program, or too long a list.
__device__ __forceinline__ bool run_chain(const Row *row, u32 count, SampledToken *out, u32 local) {
  State *const sh = state();
  const SamplingProgram &program = row->program;
  const SlicePlan &plan = row->plan;
  const u32 lane = threadIdx.x % 32;
  const u32 kept = tokens_of_chain(row, count);
  if (!row->common || !kept) return false;
  const float largest = logit_at(sh->places[0]), s = row->scale;
  if (!(fabsf(largest * s) < SCALED_LIMIT)) return false;
  if (local >= 32) {
    tell_logprob(sh, local - 32);
    return true;
  }
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sh->places[at]), weights = *reinterpret_cast<const ulonglong2 *>(&sh->chain_weights[at]);
  const uint2 order = *reinterpret_cast<const uint2 *>(&sh->by_id[at]);
  const float x[2] = {logit_at(pair.x), logit_at(pair.y)};
  const u64 q[2] = {at < kept ? weights.x : 0, at + 1 < kept ? weights.y : 0};
  SlicePlan rest = plan;
  rest.op += plan.kind == SlicePlan::FIRST ? 1 : 0;
  const Beginning left = truncate<true>(program, rest, largest, x, q, kept);
  if (lane == 0) {
    sh->chain_total = left.total;
    sh->chain_kept = left.kept;
  }
  __syncwarp();  // lanes arrive together
  tell_total();
  if (at < left.kept) {
    sh->weights_by_id[order.x] = q[0];
    sh->order_by_id[order.x] = at;
  }
  if (at + 1 < left.kept) {
    sh->weights_by_id[order.y] = q[1];
    sh->order_by_id[order.y] = at + 1;
  }
  __syncwarp();
  const u32 found = find_drawn(sh->weights_by_id, mulhi64(row->uniform, left.total));
  chain_sync<CHAIN_LOGPROBS>();
  if (found < ORDERED_MOST) write_drawn(sh, row, found, left.kept, out);
  return true;
}

// The same of a program that is not one of the commonest, by a wider chain.
__device__ __forceinline__ bool run_wide_chain(const Row *row, u32 count, SampledToken *out, u32 local) {
  State *const sh = state();
  const SlicePlan &plan = row->plan;
  const u32 lane = threadIdx.x % 32, at = 2 * lane;
  if (!is_wide(lane < NUCLEUS_MAX_OPS ? row->program.ops[lane].code : NUCLEUS_OP_NONE, row->program.len, plan.op, row->config.flags)) return false;
  const bool first = plan.kind == SlicePlan::FIRST;  // then the chain goes on behind the operation
  const u32 kept = tokens_of_chain(row, count);
  if (!kept) return false;
  const float largest = logit_at(sh->places[0]), s = row->scale;
  if (!(fabsf(largest * s) < SCALED_LIMIT)) return false;
  if (local >= 32) {
    tell_logprob(sh, local - 32);
    return true;
  }
  const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sh->places[at]), weights = *reinterpret_cast<const ulonglong2 *>(&sh->chain_weights[at]);
  const uint2 order = *reinterpret_cast<const uint2 *>(&sh->by_id[at]);
  const float x[2] = {logit_at(pair.x), logit_at(pair.y)};
  const u64 q[2] = {at < kept ? weights.x : 0, at + 1 < kept ? weights.y : 0};
  WideChain chain(row->config, x, q, plan.temperature, s, largest, kept);
  const bool decided = chain.run(row->program, first ? plan.op + 1 : plan.op, xtc_acts(row->row, row->config));
  const u64 left[2] = {chain.inside(0) ? chain.q[0] : 0, chain.inside(1) ? chain.q[1] : 0};
  *reinterpret_cast<ulonglong2 *>(&sh->chain_weights[at]) = make_ulonglong2(left[0], left[1]);
  if (lane == 0) {
    sh->chain_total = chain.total;
    sh->chain_kept = decided ? chain.high : 0;
  }
  __syncwarp();  // lanes arrive together
  tell_total();
  u32 found = ORDERED_MOST;
  if (decided) {
    if (chain.inside(0)) {
      sh->weights_by_id[order.x] = left[0];
      sh->order_by_id[order.x] = at;
    }
    if (chain.inside(1)) {
      sh->weights_by_id[order.y] = left[1];
      sh->order_by_id[order.y] = at + 1;
    }
    __syncwarp();
    found = find_drawn(sh->weights_by_id, mulhi64(row->uniform, chain.total));
  }
  chain_sync<CHAIN_LOGPROBS>();
  if (found < ORDERED_MOST) write_drawn(sh, row, found, chain.high - chain.low, out);
  return decided;
}

}  // namespace nucleus::relay
