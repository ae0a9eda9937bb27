// The commonest programs on a list that is ordered by id, by three warps.
#pragma once

#include "spread.cuh"

namespace nucleus::spread {

constexpr u32 CHAIN_WARPS = 1 + CHAIN_MOST / 32;      // one chooses, the others compute log-probabilities meanwhile

#ifdef NUCLEUS_RACECHECK
__device__ __forceinline__ void chain_sync(u32 barrier) { meet_at(meeting(barrier, CHAIN_WARPS * 32)); }
__device__ __forceinline__ void chain_arrive(u32 barrier) { arrive(meeting(barrier, CHAIN_WARPS * 32)); }
#else
__device__ __forceinline__ void chain_sync(u32 barrier) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }
__device__ __forceinline__ void chain_arrive(u32 barrier) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(CHAIN_WARPS * 32) : "memory"); }
#endif

// Writes the choice of a row whose slot goes on.
static __device__ __noinline__ void write_and_commit(const SamplingBatch &batch, u32 index, u32 token, u32 kept, float logprob) {
  RowState *const sh = row_state();
  Outcome outcome;
  outcome.token = token;
  outcome.kept = kept;
  outcome.logprob = logprob;
  batch.out[index] = result(outcome, RawSums{}, request_of(batch, index, sh->row, sh->config, sh->program));
}
// Writes the choice of a place, 0: there is none, by one thread.
__device__ __forceinline__ void write_choice(const RowState *sh, const SamplingBatch &batch, u32 index, u64 place, u32 kept, float logprob) {
  constexpr u32 COMMITS = NUCLEUS_ROW_SLOT | NUCLEUS_ROW_COMMIT;
  if (place && (sh->row.flags & COMMITS) == COMMITS) return write_and_commit(batch, index, id_at(place), kept, logprob);
  batch.out[index] = place ? SampledToken{id_at(place), logprob, kept, NUCLEUS_OK, 0} : SampledToken{NUCLEUS_NO_TOKEN, float_of(0x7FC00000u), 0, NUCLEUS_EMPTY, 0};
}

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
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sh->places[at]), weights = *reinterpret_cast<const ulonglong2 *>(&room.weights[at]);
  const uint2 order = *reinterpret_cast<const uint2 *>(&room.by_id[at]);
  const float x[2] = {logit_at(pair.x), logit_at(pair.y)};
  const u64 q[2] = {at < kept ? weights.x : 0, at + 1 < kept ? weights.y : 0};
  SlicePlan rest = plan;
  if (plan.kind == SlicePlan::FIRST) rest.op += 1;
  const Beginning left = truncate<true>(program, rest, largest, x, q, kept);
  if (lane == 0) {
    room.total = left.total;
    room.kept = left.kept;
  }
  __syncwarp();  // lanes arrive together
  chain_arrive(CHAIN_TOTAL);
  if (at < left.kept) {
    room.weights_by_id[order.x] = q[0];
    room.order_by_id[order.x] = at;
  }
  if (at + 1 < left.kept) {
    room.weights_by_id[order.y] = q[1];
    room.order_by_id[order.y] = at + 1;
  }
  __syncwarp();
  const u32 found = find_drawn<true>(room.weights_by_id, mulhi64(sh->uniform, left.total)), drawn = found < ORDERED_MOST ? room.order_by_id[found] : 0;
  const u64 place = sh->places[drawn];
  chain_sync(CHAIN_LOGPROBS);
  if (found < ORDERED_MOST) write_choice(sh, batch, index, place, left.kept, room.logprobs[drawn]);
  return true;
}

}  // namespace nucleus::spread
