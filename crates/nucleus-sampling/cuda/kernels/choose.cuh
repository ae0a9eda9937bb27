// A row's token from its sums or its list, by one block.
#pragma once

#include "cut.cuh"
#include "double_addends.cuh"
#include "few_chain.cuh"

namespace nucleus {

constexpr u32 CHOOSE_THREADS = 256;
constexpr u32 CHOOSE_WARPS = CHOOSE_THREADS / 32;

constexpr u32 PARTS_EACH = ROW_WARPS / 32;

// What a warp reads of a row before anything is decided: a lane has some parts, one after another. Every warp reads it all, so that none waits for another.
struct Findings {
  RowPlan plan;
  RowMaxima maxima;
  u64 masses[PARTS_EACH];
  u32 there, listed[PARTS_EACH];

  __device__ __forceinline__ Findings(const Whole &whole, const Division &division, u32 index) {
    static_assert(PARTS_EACH == 4);
    const u32 part = threadIdx.x % 32 * PARTS_EACH;
    const u64 at = static_cast<u64>(index) * ROW_WARPS + part;
    const uint4 *words = reinterpret_cast<const uint4 *>(whole.plans + index);
    uint4 *to = reinterpret_cast<uint4 *>(&plan);
    const ulonglong2 first = reinterpret_cast<const ulonglong2 *>(whole.masses + at)[0], second = reinterpret_cast<const ulonglong2 *>(whole.masses + at)[1];
    const uint4 counts = *reinterpret_cast<const uint4 *>(whole.there + at), lists = *reinterpret_cast<const uint4 *>(whole.listed + at);
    to[0] = words[0];
    to[1] = words[1];
    maxima = whole.maxima[index];
    const bool exists = part < division.warps();  // warps are a multiple of 4
    masses[0] = exists ? first.x : 0;
    masses[1] = exists ? first.y : 0;
    masses[2] = exists ? second.x : 0;
    masses[3] = exists ? second.y : 0;
    there = exists ? counts.x + counts.y + counts.z + counts.w : 0;
    listed[0] = exists ? lists.x : 0;
    listed[1] = exists ? lists.y : 0;
    listed[2] = exists ? lists.z : 0;
    listed[3] = exists ? lists.w : 0;
  }
  __device__ __forceinline__ u64 mass() const { return (masses[0] + masses[1]) + (masses[2] + masses[3]); }
};

// Finds the part in which the draw falls, and the token; one thread calls done(id, x, total).
template <class D>
__device__ __forceinline__ void draw_from_parts(const Whole &whole, const Division &division, const Request &r, const Findings &found, u32 index, u32 row_len,
                                                u64 uniform, const Weighing &w, D done) {
  Shared *sh = shared_state();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const u64 of_lane = found.mass(), inclusive = DeviceWarp{}.inclusive(of_lane), total = DeviceWarp{}.last(inclusive);
  const u64 target = mulhi64(uniform, total);
  const u32 from = __ffs(__ballot_sync(~0u, inclusive > target)) - 1;
  u64 at = inclusive - of_lane;
  u32 part_of_row = lane * PARTS_EACH;
  bool passed = true;
#pragma unroll
  for (u32 i = 0; i + 1 < PARTS_EACH; ++i) {
    passed &= target - at >= found.masses[i];
    at += passed ? found.masses[i] : 0;
    part_of_row += passed;
  }
  at = __shfl_sync(~0u, at, from);
  part_of_row = __shfl_sync(~0u, part_of_row, from);
  const Part part(division, row_len, part_of_row);
  float *logits = shared_slice();
  auto allowed = [&](u32 id) { return !r.mask || mask_allows(r, id); };
  UNROLL_8
  for (u32 i = threadIdx.x; i < part.count; i += CHOOSE_THREADS) {
    const u32 id = part.first + i;
    const float x = id < r.limit ? load_logit(r, id) : -infinity();
    logits[i] = allowed(id) ? x : -infinity();
  }
  sync_block();
  if (found.plan.edited) {
    const u32 edits = whole.edits[static_cast<u64>(index) * ROW_WARPS + part_of_row];
    const Changed *changed = whole.changed + static_cast<u64>(index) * ROW_EDITS + (edits >> 16);
    for (u32 i = threadIdx.x; i < (edits & 0xFFFF); i += CHOOSE_THREADS) logits[changed[i].id - part.first] = allowed(changed[i].id) ? changed[i].logit : -infinity();
    sync_block();
  }
  // A thread's tokens: an odd number, for the banks of shared memory.
  const u32 each = (part.count + CHOOSE_THREADS - 1) / CHOOSE_THREADS | 1, begin = threadIdx.x * each, end = begin + each < part.count ? begin + each : part.count;
  const DoubleAddends addends(w);
  DoubleAddends::Sum sum = addends.none();
  u64 mine = 0;
#pragma unroll 2
  for (u32 i = begin; i < end; ++i) {
    if (addends.serve) addends.add(logits[i], sum);
    else mine += w.q(logits[i]);
  }
  mine += addends.taken(sum);
  const u64 through = DeviceWarp{}.inclusive(mine);
  if (lane == 31) sh->masses[warp] = through;
  sync_block();
  at += through - mine;
#pragma unroll
  for (u32 i = 0; i < CHOOSE_WARPS; ++i)
    if (i < warp) at += sh->masses[i];
  const u32 here = __ballot_sync(~0u, target >= at && target - at < mine);
  if (!here) return;
  // One warp: a lane for each of that thread's tokens.
  const u32 chosen = __ffs(here) - 1;
  at = __shfl_sync(~0u, at, chosen);
  const u32 first = __shfl_sync(~0u, begin, chosen), last = __shfl_sync(~0u, end, chosen);
  UNROLL_NOT
  for (u32 base = first; base < last; base += 32) {
    const u32 i = base + lane;
    const float x = i < last ? logits[i] : -infinity();
    const u64 q = w.q(x), before = at + DeviceWarp{}.inclusive(q) - q;
    if (target >= before && target - before < q) done(part.first + i, x + 0.0f, total);
    at = DeviceWarp{}.last(before + q);
    if (target < at) break;
  }
}

// The weight of the listed tokens.
__device__ __forceinline__ u64 mass_of_listed(const Weighing &w, u32 count) {
  Shared *sh = shared_state();
  u64 mass = 0, total = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < count; i += CHOOSE_THREADS) mass += w.q(logit_at(sh->listed_places[i]));
  mass = DeviceWarp{}.sum(mass);
  if (threadIdx.x % 32 == 0) sh->raw_masses[threadIdx.x / 32] = mass;
  sync_block();
#pragma unroll
  for (u32 i = 0; i < CHOOSE_WARPS; ++i) total += sh->raw_masses[i];
  return total;
}

// What log-probabilities of the row as it came start from.
struct RawTotal {
  bool wanted, valid;
  u32 largest;  // key

  // After a barrier: what any token's log-probability needs, and what one token's does, which is sooner known.
  __device__ __forceinline__ RawSums sums() const {
    RawSums raw;
    raw.wanted = wanted;
    Weighing w;
    return weighing(w) ? raw_sums_of(value_of(largest), w) : raw;
  }
  __device__ __forceinline__ RawSums sums_for(const Request &r, u32 id) const {
    RawSums raw;
    raw.wanted = wanted;
    Weighing w;
    return weighing(w) ? raw_sums_for(value_of(largest), w, load_logit(r, id) + 0.0f) : raw;
  }

 private:
  __device__ __forceinline__ bool weighing(Weighing &w) const {
    if (!valid || !begin_weighing(value_of(largest), 1.0f, w)) return false;
    w.sums.total = shared_state()->raw_total;
    return true;
  }
};

// What lies before this thread's own, and the sum over the block. A barrier before the slot is used again.
__device__ __forceinline__ u64 prefix_in_block(u64 own, u64 &total, u32 slot) {
  Shared *sh = shared_state();
  const u64 through = prefix_sum(own);
  if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][slot] = through;
  sync_block();
  u64 before = through - own;
  total = 0;
#pragma unroll 8
  for (u32 i = 0; i < CHOOSE_THREADS / 32; ++i) {
    before += i < threadIdx.x / 32 ? sh->part[i][slot] : 0;
    total += sh->part[i][slot];
  }
  return before;
}

// The sorted list by the usual chain, or its first token, by one warp; false: it is not decided. `of_row`: the row's weight if top_p cuts first.
__device__ __noinline__ bool choose_by_chain(u32 index, u32 count, u64 of_row, RawTotal raw, SlicePlan plan) {
  Shared *sh = shared_state();
  const Request r = RowCall{index, 0, RawSums{}}.request();
  Outcome outcome = first_of_order(count ? sh->listed_places[0] : 0);
  if (!plan.greedy && !run_chain(r, plan, sh->listed_places, sh->listed_weights, count, outcome, of_row)) return false;
  if (threadIdx.x == 0) sh->batch.out[index] = result(outcome, outcome.status == NUCLEUS_OK ? raw.sums_for(r, outcome.token) : RawSums{}, r);
  return true;
}

// The same of rows that top_p cuts and that are then drawn from, by all threads, each with a place of the list. `least`: tokens to keep.
__device__ __noinline__ bool choose_by_block(u32 index, u32 count, u64 of_row, u64 threshold, u32 least, RawTotal raw, Weighing w) {
  Shared *sh = shared_state();
  if (count > CHOOSE_THREADS) return false;
  const Request r = RowCall{index, 0, RawSums{}}.request();
  const Until until = Until::reaches(of_row, threshold);
  const u32 t = threadIdx.x;
  const u64 place = t < count ? sh->listed_places[t] : 0, q = t < count ? w.q(logit_at(place)) : 0;
  u64 listed;
  const u64 before = prefix_in_block(q, listed, 0);
  sh->listed_weights[t] = q;
  const u32 kept = __syncthreads_count(t < count && (t == 0 || !until(before)));
  if (!until(listed) || kept < least) return false;
  if (t == kept - 1) sh->told = before + q;
  sync_block();
  const u64 total = sh->told, target = mulhi64(sh->row.uniform, total);
  if (t >= kept) return true;
  const u32 id = id_at(place);
  u64 earlier = 0;
#pragma unroll 4
  for (u32 i = 0; i < kept; ++i) earlier += id_at(sh->listed_places[i]) < id ? sh->listed_weights[i] : 0;
  if (!(target >= earlier && target - earlier < q)) return true;
  Outcome outcome;
  outcome.token = id;
  outcome.kept = kept;
  outcome.logprob = processed_logprob(q, total);
  sh->batch.out[index] = result(outcome, raw.sums_for(r, id), r);
  return true;
}

// Sorts the list, descending, by counting larger keys of 32 bits: logits, or logits of 16 bits with a part of the id; tokens of one key, which take one place
// then, by counting places. `shorts`: every logit has 16 bits. Barriers precede and follow.
__device__ __forceinline__ void sort_listed(u32 count, bool shorts) {
  Shared *sh = shared_state();
  constexpr u32 AT_ONCE = 2;
  const u32 t = threadIdx.x, padded = (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
  u32 *keys = reinterpret_cast<u32 *>(sh->listed_weights);
  const u64 own = t < count ? sh->listed_places[t] : 0;
  const u32 key = sort_key(own, shorts && own);
  keys[t] = key;
  sync_block();
  u32 rank = 0;
#pragma unroll 8
  for (u32 i = 0; i < padded; i += AT_ONCE) {
    const uint2 other = *reinterpret_cast<const uint2 *>(keys + i);
    rank += (other.x > key) + (other.y > key);
  }
  if (t < count) sh->listed_places[rank] = own;
  sync_block();
  if (!__syncthreads_or(t < count && sh->listed_places[rank] != own)) return;
  if (t < count) sh->listed_places[t] = own;
  sync_block();
  sort_places<CHOOSE_THREADS>(sh->listed_places, count);
}

// What the row has come to: NUCLEUS_OK if it is decided, else PENDING or MANY_KEPT.
__device__ __forceinline__ u32 choose_token(const SamplingBatch &batch, const Whole &whole, const Division &division, const SlicePlan &own_plan, const Findings &found,
                                            u64 uniform, u32 index) {
  Shared *sh = shared_state();
  const RowPlan &plan = found.plan;
  const RowMaxima &maxima = found.maxima;
  RowCall call{index, 0, RawSums{}};
  const Request r = call.request();
  auto fail_here = [&](u32 status) {
    Outcome failed;
    failed.status = status;
    if (threadIdx.x == 0) *call.out() = result(failed, call.raw, r);
    return NUCLEUS_OK;
  };
  if (maxima.largest >= INFINITE) return fail_here(maxima.largest == INFINITE ? NUCLEUS_OVERFLOW : NUCLEUS_NAN);
  Weighing w;
  if (plan.weighs() && !maxima.largest) return fail_here(NUCLEUS_EMPTY);
  if (plan.weighs() && !begin_weighing_by(plan.s, value_of(maxima.largest), w)) return fail_here(NUCLEUS_OVERFLOW);
  const RawTotal raw{(plan.flags & RowPlan::RAW) != 0, plan.flags & RowPlan::RAW && maxima.raw && maxima.raw < INFINITE, maxima.raw};
  if (raw.wanted) {
    call.raw.wanted = true;
    if (threadIdx.x / 32 == CHOOSE_WARPS - 1) {  // while others go on
      u64 sum = 0;
      for (u32 part = threadIdx.x % 32; part < division.warps(); part += 32) sum += whole.raw[static_cast<u64>(index) * ROW_WARPS + part];
      sum = DeviceWarp{}.sum(sum);
      if (threadIdx.x % 32 == 0) sh->raw_total = sum;
    }
  }
  if (plan.kind == SlicePlan::ALL) {
    const u32 there = __reduce_add_sync(~0u, found.there);
    draw_from_parts(whole, division, r, found, index, batch.row_len, uniform, w, [&](u32 id, float x, u64 total) {
      Outcome outcome;
      outcome.token = id;
      outcome.kept = there;
      outcome.logprob = processed_logprob(w.q(x), total);
      *call.out() = result(outcome, raw.sums_for(r, id), r);
    });
    return NUCLEUS_OK;
  }
  const u64 threshold = sh->program.ops[own_plan.op].threshold;
  const u64 total = plan.kind == SlicePlan::MASS ? DeviceWarp{}.sum(found.mass()) : 0;
  // Where more tokens are kept than are listed.
  auto many = [&] {
    if (!maxima.largest || !then_draws(own_plan, sh->program)) return PENDING;
    if (threadIdx.x == 0) whole.many[index] = ManyKept{total, threshold, own_plan.k, value_of(maxima.largest), raw.sums()};
    return MANY_KEPT;
  };
  const u32 room = division.places(), own = (found.listed[0] + found.listed[1]) + (found.listed[2] + found.listed[3]);
  const u32 through = static_cast<u32>(DeviceWarp{}.inclusive(own)), listed = __shfl_sync(~0u, through, 31);
  bool fits = true;
#pragma unroll
  for (u32 i = 0; i < PARTS_EACH; ++i) fits &= found.listed[i] <= room;
  if (threadIdx.x < 32) {
    u32 before = through - own;
#pragma unroll
    for (u32 i = 0; i < PARTS_EACH; ++i) {
      sh->groups[threadIdx.x * PARTS_EACH + i] = before << 16 | found.listed[i];
      before += found.listed[i];
    }
  }
  sync_block();
  if (threadIdx.x == 0) {  // all have it
    sh->row.uniform = uniform;
    sh->row.flags |= NUCLEUS_ROW_UNIFORM;
  }
  if (!__all_sync(~0u, fits) || listed > LISTED || (maxima.largest && !listed)) return many();
  // Flat rows: as many of the heaviest tokens would not do.
  if (plan.kind == SlicePlan::MASS && !reaches(listed * w.q(value_of(maxima.largest)), total, threshold)) return many();
  // Several threads a warp's list.
  constexpr u32 AHEAD = 4;
  const u32 sharing = CHOOSE_THREADS / division.warps(), from = threadIdx.x / sharing;
  const u64 *places = whole.places + static_cast<u64>(index) * ROW_PLACES + from * room;
  const u32 count = sh->groups[from] & 0xFFFF, to = sh->groups[from] >> 16;
  UNROLL_NOT
  for (u32 base = threadIdx.x % sharing; base < count; base += AHEAD * sharing) {
    u64 place[AHEAD];
#pragma unroll
    for (u32 i = 0; i < AHEAD; ++i)
      if (base + i * sharing < count) place[i] = places[base + i * sharing];
#pragma unroll
    for (u32 i = 0; i < AHEAD; ++i)
      if (base + i * sharing < count) sh->listed_places[to + base + i * sharing] = place[i];
  }
  sync_block();
  const bool shorts = batch.dtype != NUCLEUS_F32;
  if (listed > CHOOSE_THREADS || (shorts && plan.edited)) sort_places<CHOOSE_THREADS>(sh->listed_places, listed);
  else sort_listed(listed, shorts);
  if (threadIdx.x < 32) {
    const bool decided = choose_by_chain(index, listed, total, raw, own_plan);
    if (threadIdx.x == 0) sh->verdict = decided;
  }
  sync_block();
  if (sh->verdict) return NUCLEUS_OK;
  if (plan.kind == SlicePlan::MASS && then_draws(own_plan, sh->program) && choose_by_block(index, listed, total, threshold, own_plan.k, raw, w)) return NUCLEUS_OK;
  if (plan.kind == SlicePlan::MASS && !reaches(mass_of_listed(w, listed), total, threshold)) return many();
  if (threadIdx.x < 32) {
    call.raw = raw.sums();
    const bool decided = run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, listed, own_plan.op, plan.temperature, total});
    if (threadIdx.x == 0) sh->verdict = decided;
  }
  sync_block();
  return sh->verdict ? NUCLEUS_OK : PENDING;
}

// What `many` wrote of a row is read again, so that nothing of this is in the way of other rows.
__device__ __noinline__ bool draw_here(const Whole &whole, const Division &division, u32 index) {
  CutRoom<CHOOSE_THREADS> *room = CutRoom<CHOOSE_THREADS>::here();
  if (threadIdx.x == 0) {
    room->plan = whole.plans[index];
    room->many = whole.many[index];
    room->group.gather(0, 1);
  }
  sync_block();
  uint4 first;
  return begin_draw_of_many<CHOOSE_THREADS>(index, whole, division, first) && draw_of_many<CHOOSE_THREADS>(first);
}

// Whether a row that keeps many tokens is left to the next launch, whose clusters are faster where such rows are few. By one thread: those that have found a row at
// about the same time are waited for.
__device__ __forceinline__ bool leave(u32 *left) {
  constexpr u32 FEW = 24, NANOSECONDS = 1000;
  if (atomicAdd(left, 1) >= FEW) return false;
  __nanosleep(NANOSECONDS);
  return *reinterpret_cast<volatile u32 *>(left) <= FEW;
}

// `leaves_many`: all rows that keep many tokens are left to the next launch, whose clusters share them out.
__device__ __forceinline__ void choose_row(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, bool leaves_many) {
  Shared *sh = shared_state();
  share_description(sh, batch, index, batch.row[index].request);
  sync_block();
  describe_slot(sh, batch);
  const SlicePlan own_plan = plan_of(*sh);
  const u64 uniform = uniform_of(request_of(batch, index, sh->row, sh->config, sh->program));
  wait_for_launch_before();
  const Findings found(whole, division, index);
  if (found.plan.flags & RowPlan::SKIPPED) return;
  u32 status = PENDING;
  if (found.plan.served()) status = choose_token(batch, whole, division, own_plan, found, uniform, index);
  if (status == MANY_KEPT && !leaves_many) {
    sync_block();
    if (threadIdx.x == 0) sh->verdict = leave(whole.left);
    sync_block();
    if (!sh->verdict) {
      sync_block();
      if (draw_here(whole, division, index)) return;
      status = PENDING;
    }
  }
  if (status != NUCLEUS_OK && threadIdx.x == 0) batch.out[index].status = status;
}

}  // namespace nucleus
