// One row by one block, as long as nothing unusual happens.
#pragma once

#include "call.cuh"

namespace nucleus {

// A row by one block; false: it did not decide.
template <u32 DTYPE>
__device__ __noinline__ bool sample_by_block(u32 index) {
  const SamplingBatch &batch = shared_state()->batch;
  using Row = Stream<DTYPE>;
  Shared *sh = shared_state();
  DeviceTeam team;
  team.blocks = 1;
  team.block = 0;
  u64 *places = reinterpret_cast<u64 *>(team.slice), *weights = places + COLLECTED;
  EditTable table{reinterpret_cast<Edit *>(weights + COLLECTED), 16, &sh->unusual};
  if (threadIdx.x == 0) sh->unusual = sh->found = 0;
  describe(sh, batch, index);
  __syncthreads();
  describe_slot(sh, batch);
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return true;
  RowCall call{ index, 0, 0, RawSums{}};
  Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  SlicePlan plan = plan_of(*sh);
  bool streams = plan.sliced && plan.kind != SlicePlan::EXACT && !(sh->row.flags & NUCLEUS_ROW_ALLOWED) && !(batch.flags & NUCLEUS_BATCH_EXACT);
  if (!streams || reinterpret_cast<uintptr_t>(r.logits) % 16 || (r.limit + Row::ROUND) / (32 * Row::WIDTH) > SEGMENTS) return false;
  bool unusual = false;
  if (plan.edits) {
    u64 bound = edited_bound(r);
    while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
    clear_edits(team, table);
    __syncthreads();
    note_slice_edits(team, r, plan, table);
    __syncthreads();
    if (sh->unusual) return false;
  }
  Row rows{sh, r, table, places, r.mask, plan.edits};
  if (plan.edits) {
    rows.edit_table(unusual);
    __syncthreads();
  }
  const bool first = plan.kind == SlicePlan::FIRST, weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  const u32 k = plan.kind == SlicePlan::MASS && plan.k < THREADS / 4 ? THREADS / 4 : plan.k;
  Weighing w;
  u32 count = 0;
  // The row as it came for raw log-probabilities, then the row as it is sampled.
  UNROLL_NOT
  for (bool raw = !(sh->row.flags & NUCLEUS_ROW_PROCESSED);; raw = false) {
    rows.mask = raw ? nullptr : r.mask;
    rows.edits = !raw && plan.edits;
    u32 reach = !raw && first && r.limit > BOUND_LOADS * Row::ROUND ? BOUND_LOADS * Row::ROUND : r.limit;
    bool strange = false;
    u32 own = rows.own_key(reach, first && !raw, strange), largest = own;
    rows.each_edited([&](u32, float x) {
      u32 key = x > -infinity() && x < infinity() ? key_of(x + 0.0f) : 0;
      largest = key > largest ? key : largest;
    });
    largest = team.local_max(largest);
    strange = __syncthreads_or(strange);
    float temperature = raw ? 1.0f : plan.temperature;
    if (raw) {
      call.raw.wanted = true;
      if (strange || !largest || !begin_weighing(value_of(largest), temperature, w)) continue;
    } else {
      unusual |= strange;
      if (__syncthreads_or(unusual)) return false;
      if (weighs && !largest) { fail(call, team, r, NUCLEUS_EMPTY); return true; }
      if (weighs && !begin_weighing(value_of(largest), temperature, w)) { fail(call, team, r, NUCLEUS_OVERFLOW); return true; }
    }
    float threshold = infinity();
    if (!raw && plan.kind != SlicePlan::ALL) {
      u32 bound = k == 1 ? largest : kth_of_threads(own, k);
      threshold = bound ? value_of(bound) : -infinity();
      if (plan.kind == SlicePlan::ABOVE && largest) threshold = fminf(threshold, fmaf(temperature, r.program->ops[plan.op].arg, value_of(largest)));
    }
    if (raw || weighs) count = rows.template take<true>(threshold, w, unusual);
    else rows.template take<false>(threshold, w, unusual);
    unusual = __syncthreads_or(unusual) && !raw;
    if (unusual) return false;
    if (!raw) break;
    w.sums.total = rows.share().total;
    call.raw = raw_sums_of(value_of(largest), w);
    __syncthreads();
  }
  u64 total = 0;
  if (weighs) {
    count += rows.reweigh(w);
    __syncthreads();
    auto share = rows.share();
    total = share.total;
    if (plan.kind == SlicePlan::ALL) {
      count = __reduce_add_sync(~0u, count);
      if (threadIdx.x % 32 == 0) atomicAdd(&sh->found, count);
      Outcome outcome;
      rows.draw(share, w, mulhi64(uniform_of(r), total), [&](u32 id, float x) {
        outcome.token = id;
        outcome.kept = sh->found;
        outcome.logprob = processed_logprob(w.q(x), total);
        *call.out() = result(outcome, call.raw, r);
      });
      return true;
    }
  }
  count = sh->found;
  if (count > COLLECTED) return false;
  if (plan.greedy) {
    u64 most = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) most = threadIdx.x < 32 && places[i] > most ? places[i] : most;
    most = DeviceWarp{}.most(most);
    if (threadIdx.x == 0) take_first(call, r, most);
    return true;
  }
  if (first && count > THREADS / 2) count = rows.shrink(count, plan.k);
  sort_places<THREADS>(places, count);
  if (threadIdx.x < 32) {
    bool decided = run_candidates(call, ListCall{places, weights, count, plan.op, plan.temperature, total});
    if (threadIdx.x == 0) sh->verdict = decided;
  }
  __syncthreads();
  return sh->verdict;
}

__device__ __forceinline__ bool sample_by_block(u32 dtype, u32 index) {
  switch (dtype) {
    case NUCLEUS_F32: return sample_by_block<NUCLEUS_F32>(index);
    case NUCLEUS_F16: return sample_by_block<NUCLEUS_F16>(index);
    default: return sample_by_block<NUCLEUS_BF16>(index);
  }
}

}  // namespace nucleus
