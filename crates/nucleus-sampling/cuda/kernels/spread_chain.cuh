// The commonest programs on a list that is ordered by id, by three warps.
#pragma once

#include "spread.cuh"

namespace nucleus::spread {

constexpr u32 CHAIN_WARPS = 1 + CHAIN_MOST / 32;           // one chooses, the others weigh, and compute log-probabilities meanwhile
constexpr u32 SORTERS = BLOCK_THREADS - CHAIN_WARPS * 32;  // threads that sort

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
// Writes the choice of a place, 0: there is none, by one thread. `flags`: of the row.
__device__ __forceinline__ void write_choice(SampledToken *out, u32 flags, const SamplingBatch &batch, u32 index, u64 place, u32 kept, float logprob) {
  constexpr u32 COMMITS = NUCLEUS_ROW_SLOT | NUCLEUS_ROW_COMMIT;
  if (place && (flags & COMMITS) == COMMITS) return write_and_commit(batch, index, id_at(place), kept, logprob);
  *out = place ? SampledToken{id_at(place), logprob, kept, NUCLEUS_OK, 0} : SampledToken{NUCLEUS_NO_TOKEN, float_of(0x7FC00000u), 0, NUCLEUS_EMPTY, 0};
}

// What the chain needs of the plan, read before the list is sorted.
struct ChainPlan {
  SlicePlan plan;  // behind an operation that takes the first `most` tokens
  u32 most;
  float scale;

  __device__ __forceinline__ explicit ChainPlan(const RowState *sh) : plan(sh->plan), most(~0u), scale(sh->scale) {
    if (plan.kind != SlicePlan::FIRST) return;
    most = plan.k;
    plan.op += 1;
  }
};

// What a wider chain needs that the description tells, by one thread.
static __device__ __noinline__ void prepare_wide() {
  RowState *const sh = row_state();
  sh->excludes = xtc_acts(sh->row, sh->config);
}

// The weights of a list, by the warps that compute log-probabilities, two places a thread.
__device__ __forceinline__ void weigh_list(RowState *sh, float s) {
  static_assert(ORDERED_MOST == 2 * CHAIN_MOST);
  const u32 own = threadIdx.x - 32;
  u32 most = 0;  // the largest key; those behind the list are 0
#pragma unroll
  for (u32 i = 0; i < ORDERED_MOST; i += 32) most = max(most, static_cast<u32>(sh->places[i + threadIdx.x % 32] >> 32));
  const i32 n = Exponent(value_of(__reduce_max_sync(~0u, most)), s).n;
#pragma unroll
  for (u32 i = 0; i < ORDERED_MOST; i += CHAIN_MOST) sh->chain.weights[i + own] = Exponent(logit_at(sh->places[i + own]), s).weight(n);
}

// A sorted list as a chain's warps find it.
struct SortedList {
  ulonglong2 pair;  // of the lane: the tokens 2 i and 2 i + 1 of the order
  uint2 source;     // and where they were
  float largest;
  u32 kept;     // its first tokens, which the chain begins with
  bool serves;  // they are not too many, and can be scaled

  __device__ __forceinline__ SortedList(const ChainRoom &room, const ChainPlan &known, u32 count) {
    const u32 at = threadIdx.x % 32 * 2;
    pair = *reinterpret_cast<const ulonglong2 *>(&room.sorted[at]);
    source = *reinterpret_cast<const uint2 *>(&room.sources[at]);
    const u32 tokens = __popc(__ballot_sync(~0u, is_token(pair.x))) + __popc(__ballot_sync(~0u, is_token(pair.y)));
    const u32 most = known.most < count ? known.most : count;
    kept = most < tokens || most > CHAIN_MOST ? most : tokens;
    largest = logit_at(room.sorted[0]);
    serves = kept && kept <= CHAIN_MOST && fabsf(largest * known.scale) < SCALED_LIMIT;
  }
};

// The choice from a list that others sort, by the first CHAIN_WARPS warps; false: too long a list.
__device__ __forceinline__ bool run_chain(RowState *sh, const SamplingBatch &batch, u32 index, const ChainPlan &known, u32 count) {
  const SamplingProgram &program = sh->program;
  ChainRoom &room = sh->chain;
  if (threadIdx.x >= 32) weigh_list(sh, known.scale);
  SampledToken *const out = sh->out;
  const u32 flags = sh->row.flags;
  const u64 uniform = sh->uniform;
  meet<SORTED, BLOCK_THREADS>();
  const u32 lane = threadIdx.x % 32, at = 2 * lane;
  const SortedList list(room, known, count);
  if (threadIdx.x >= 32) {
    if (!list.serves) return false;
    chain_sync(CHAIN_TOTAL);
    const u32 own = threadIdx.x - 32;
    if (own < room.kept) room.logprobs[own] = processed_logprob(room.weights[room.sources[own]], room.total);
    chain_arrive(CHAIN_LOGPROBS);
    return true;
  }
  if (!list.serves) {
    meet<ORDERED, SORTERS + 32>();
    return false;
  }
  u64 q[2] = {0, 0};
  if (at < list.kept) q[0] = room.weights[list.source.x];
  if (at + 1 < list.kept) q[1] = room.weights[list.source.y];
  const float x[2] = {logit_at(list.pair.x), logit_at(list.pair.y)};
  const Beginning left = truncate<true>(program, known.plan, list.largest, x, q, list.kept);
  if (lane == 0) {
    room.total = left.total;
    room.kept = left.kept;
  }
  __syncwarp();  // lanes arrive together
  chain_arrive(CHAIN_TOTAL);
  meet<ORDERED, SORTERS + 32>();
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (at + i >= left.kept) continue;
    const u32 order = room.by_id[i ? list.source.y : list.source.x];
    room.weights_by_id[order] = q[i];
    room.order_by_id[order] = at + i;
  }
  __syncwarp();
  const u32 found = find_drawn(room.weights_by_id, mulhi64(uniform, left.total)), drawn = found < ORDERED_MOST ? room.order_by_id[found] : 0;
  const u64 place = room.sorted[drawn];
  chain_sync(CHAIN_LOGPROBS);
  if (found < ORDERED_MOST) write_choice(out, flags, batch, index, place, left.kept, room.logprobs[drawn]);
  return true;
}

// The same by a wider chain.
__device__ __forceinline__ bool run_wide_chain(RowState *sh, const SamplingBatch &batch, u32 index, const ChainPlan &known, u32 count) {
  ChainRoom &room = sh->chain;
  if (threadIdx.x >= 32) weigh_list(sh, known.scale);
  meet<SORTED, BLOCK_THREADS>();
  const u32 lane = threadIdx.x % 32, at = 2 * lane;
  const SortedList list(room, known, count);
  if (threadIdx.x >= 32) {
    if (!list.serves) return false;
    chain_sync(CHAIN_TOTAL);
    const u32 own = threadIdx.x - 32;
    if (own < room.kept) room.logprobs[own] = processed_logprob(room.weights[own], room.total);
    chain_arrive(CHAIN_LOGPROBS);
    return true;
  }
  if (!list.serves) {
    meet<ORDERED, SORTERS + 32>();
    return false;
  }
  u64 q[2] = {0, 0};
  if (at < list.kept) q[0] = room.weights[list.source.x];
  if (at + 1 < list.kept) q[1] = room.weights[list.source.y];
  const float x[2] = {logit_at(list.pair.x), logit_at(list.pair.y)};
  WideChain chain(sh->config, x, q, known.plan.temperature, known.scale, list.largest, list.kept);
  const bool decided = chain.run(sh->program, known.plan.op, sh->excludes);
#pragma unroll
  for (u32 i = 0; i < 2; ++i) room.weights[at + i] = chain.inside(i) ? chain.q[i] : 0;  // in order
  if (lane == 0) {
    room.total = chain.total;
    room.kept = decided ? chain.high : 0;
  }
  __syncwarp();  // lanes arrive together
  chain_arrive(CHAIN_TOTAL);
  meet<ORDERED, SORTERS + 32>();
  u32 found = ORDERED_MOST;
  if (decided) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      if (!chain.inside(i)) continue;
      const u32 order = room.by_id[i ? list.source.y : list.source.x];
      room.weights_by_id[order] = chain.q[i];
      room.order_by_id[order] = at + i;
    }
    __syncwarp();
    found = find_drawn(room.weights_by_id, mulhi64(sh->uniform, chain.total));
  }
  chain_sync(CHAIN_LOGPROBS);
  if (found < ORDERED_MOST) {
    const u32 drawn = room.order_by_id[found];
    write_choice(sh->out, sh->row.flags, batch, index, room.sorted[drawn], chain.high - chain.low, room.logprobs[drawn]);
  }
  return decided;
}

}  // namespace nucleus::spread
