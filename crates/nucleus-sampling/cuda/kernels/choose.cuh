// A row's token from its sums or its list, by one block.
#pragma once

#include "cut.cuh"

namespace nucleus {

constexpr u32 CHOOSE_THREADS = 256;
constexpr u32 CHOOSE_WARPS = CHOOSE_THREADS / 32;

constexpr u32 RUNS_EACH = RUNS_MOST / CHOOSE_THREADS;

// What a thread reads of a row before anything is decided.
struct Findings {
  RowPlan plan;
  RowMaxima maxima;
  PartSums part;
  u64 runs[RUNS_EACH];  // one after another; 0 where a part is shorter than others

  __device__ __forceinline__ Findings(const Whole &whole, const Division &division, u32 index, u32 row_len) {
    plan = whole.plans[index];
    maxima = whole.maxima[index];
    part = PartSums{0, 0, 0};
    if (threadIdx.x < division.blocks * WARPS) part = whole.parts[static_cast<u64>(index) * ROW_WARPS + threadIdx.x];
    const u64 *from = whole.runs + static_cast<u64>(index) * RUNS_MOST;
#pragma unroll
    for (u32 i = 0; i < RUNS_EACH; ++i) {
      const u32 run = threadIdx.x * RUNS_EACH + i;
      runs[i] = 0;
      if (run < division.count() && run % division.runs * division.run < Part(division, row_len, run / division.runs).count) runs[i] = from[run];
    }
    if (plan.kind != SlicePlan::MASS && plan.kind != SlicePlan::ALL) runs[0] = runs[1] = runs[2] = 0;
    static_assert(RUNS_EACH == 3);
  }
  __device__ __forceinline__ u64 mass() const { return runs[0] + runs[1] + runs[2]; }
};

// Draws from the sums of the runs; one thread calls done(id, x, total).
template <class D>
__device__ __forceinline__ void draw_from_runs(const Whole &whole, const Division &division, const Request &r, const Findings &found, u32 index, u32 row_len, u64 uniform,
                                               Weighing w, D done) {
  Shared *sh = shared_state();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowPlan &plan = found.plan;
  const u64 sum = found.mass();
  const u64 prefix = DeviceWarp{}.inclusive(sum);
  if (lane == 31) sh->masses[warp] = prefix;
  __syncthreads();
  u64 before = prefix - sum, total = 0;
#pragma unroll
  for (u32 i = 0; i < CHOOSE_WARPS; ++i) {
    if (i < warp) before += sh->masses[i];
    total += sh->masses[i];
  }
  const u64 target = mulhi64(uniform, total);
  if (target >= before && target - before < sum) {
    u32 run = 0;
#pragma unroll
    for (u32 i = 0; i + 1 < RUNS_EACH; ++i)
      if (run == i && target - before >= found.runs[i]) {
        before += found.runs[i];
        run = i + 1;
      }
    sh->found_bin = threadIdx.x * RUNS_EACH + run;
    sh->found_base = before;
  }
  __syncthreads();
  // The run's logits, with their edits.
  const Part part(division, row_len, sh->found_bin / division.runs);
  const u32 skip = sh->found_bin % division.runs * division.run, first = part.first + skip;
  const u32 count = part.count - skip < division.run ? part.count - skip : division.run;
  float *logits = shared_slice();
  for (u32 i = threadIdx.x; i < (count + 127) / 128 * 128; i += CHOOSE_THREADS)
    logits[i] = i < count && first + i < r.limit ? load_logit(r, first + i) : -infinity();
  __syncthreads();
  if (plan.edited) {
    const u32 edits = whole.edits[static_cast<u64>(index) * ROW_WARPS + sh->found_bin / division.runs];
    const Changed *changed = whole.changed + static_cast<u64>(index) * ROW_EDITS + (edits >> 16);
    for (u32 i = threadIdx.x; i < (edits & 0xFFFF); i += CHOOSE_THREADS)
      if (changed[i].id - first < count) logits[changed[i].id - first] = changed[i].logit;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  w.sums.total = total;
  u64 at = sh->found_base;
  UNROLL_NOT
  for (u32 base = 0; base < count; base += 128) {
    u64 q[4], mine = 0;
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 i = base + lane * 4 + e;
      float x = logits[i];
      if (r.mask && x > -infinity() && !mask_allows(r, first + i)) x = -infinity();
      q[e] = w.q(x);
      mine += q[e];
    }
    const u64 inclusive = DeviceWarp{}.inclusive(mine);
    u64 begin = at + inclusive - mine;
    if (target >= begin && target - begin < mine) {
      u32 e = 0;
#pragma unroll
      for (u32 i = 0; i < 3; ++i)
        if (e == i && target - begin >= q[i]) {
          begin += q[i];
          e = i + 1;
        }
      done(first + base + lane * 4 + e, logits[base + lane * 4 + e] + 0.0f, total);
    }
    at += DeviceWarp{}.last(inclusive);
    if (target < at) break;
  }
}

// The sums over the row's warps.
struct RowSums {
  u64 raw;
  u32 there, listed;
  bool fits;
};
__device__ __forceinline__ RowSums sums_of(const PartSums &own, u32 &before) {
  Shared *sh = shared_state();
  const u32 warp = threadIdx.x / 32;
  const u32 prefix = static_cast<u32>(DeviceWarp{}.inclusive(own.listed)), there = __reduce_add_sync(~0u, own.there);
  const u64 raw = DeviceWarp{}.sum(own.raw);
  const bool fits = __all_sync(~0u, own.listed <= WARP_PLACES);
  if (threadIdx.x % 32 == 31) {
    sh->part[warp][0] = raw;
    sh->part[warp][1] = there;
    sh->part[warp][2] = prefix;
    sh->part[warp][3] = fits;
  }
  __syncthreads();
  RowSums sums{0, 0, 0, true};
  before = prefix - own.listed;
#pragma unroll
  for (u32 i = 0; i < CHOOSE_WARPS; ++i) {
    if (i < warp) before += static_cast<u32>(sh->part[i][2]);
    sums.raw += sh->part[i][0];
    sums.there += static_cast<u32>(sh->part[i][1]);
    sums.listed += static_cast<u32>(sh->part[i][2]);
    sums.fits &= sh->part[i][3] != 0;
  }
  return sums;
}

// The weight of the listed tokens.
__device__ __forceinline__ u64 mass_of_listed(const Weighing &w, u32 count) {
  Shared *sh = shared_state();
  u64 mass = 0, total = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < count; i += CHOOSE_THREADS) mass += w.q(logit_at(sh->listed_places[i]));
  mass = DeviceWarp{}.sum(mass);
  if (threadIdx.x % 32 == 0) sh->raw_masses[threadIdx.x / 32] = mass;
  __syncthreads();
#pragma unroll
  for (u32 i = 0; i < CHOOSE_WARPS; ++i) total += sh->raw_masses[i];
  return total;
}

// What the row has come to: NUCLEUS_OK if it is decided, else PENDING or MANY_KEPT.
__device__ __forceinline__ u32 choose_token(const SamplingBatch &batch, const Whole &whole, const Division &division, const SlicePlan &own_plan, const Findings &found,
                                            u64 uniform, u32 index) {
  Shared *sh = shared_state();
  const RowMaxima &maxima = found.maxima;
  const RowPlan &plan = found.plan;
  RowCall call{index, 0, 0, RawSums{}};
  const Request r = call.request();
  if (maxima.largest == UNUSUAL) return PENDING;
  auto fail_here = [&](u32 status) {
    Outcome failed;
    failed.status = status;
    if (threadIdx.x == 0) *call.out() = result(failed, call.raw, r);
    return NUCLEUS_OK;
  };
  const bool weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  Weighing w, unscaled;
  if (weighs && !maxima.largest) return fail_here(NUCLEUS_EMPTY);
  if (weighs && !begin_weighing(value_of(maxima.largest), plan.temperature, w)) return fail_here(NUCLEUS_OVERFLOW);
  u32 before = 0;
  const RowSums sums = sums_of(found.part, before);
  bool raw_valid = false;
  if (plan.flags & RowPlan::RAW) {
    call.raw.wanted = true;
    raw_valid = maxima.raw && maxima.raw != UNUSUAL && begin_weighing(value_of(maxima.raw), 1.0f, unscaled);
    unscaled.sums.total = sums.raw;
    if (threadIdx.x == 32) sh->raw = raw_valid ? raw_sums_of(value_of(maxima.raw), unscaled) : call.raw;  // while others go on
  }
  auto raw = [&] { return call.raw.wanted ? sh->raw : call.raw; };  // after a barrier
  if (plan.kind == SlicePlan::ALL) {
    draw_from_runs(whole, division, r, found, index, batch.row_len, uniform, w, [&](u32 id, float x, u64 total) {
      Outcome outcome;
      outcome.token = id;
      outcome.kept = sums.there;
      outcome.logprob = processed_logprob(w.q(x), total);
      *call.out() = result(outcome, raw(), r);
    });
    return NUCLEUS_OK;
  }
  const u64 threshold = sh->program.ops[own_plan.op].threshold;
  u64 total = 0;
  // Where more tokens are kept than are listed.
  auto many = [&] {
    if (!maxima.largest || !then_draws(own_plan, sh->program)) return PENDING;
    if (threadIdx.x == 0) whole.many[index] = ManyKept{total, threshold, own_plan.k, value_of(maxima.largest), raw()};
    return MANY_KEPT;
  };
  if (plan.kind == SlicePlan::MASS) {
    const u64 own = DeviceWarp{}.sum(found.mass());
    if (threadIdx.x % 32 == 0) sh->masses[threadIdx.x / 32] = own;
  }
  if (threadIdx.x < division.blocks * WARPS) sh->groups[threadIdx.x] = before;
  __syncthreads();
  if (plan.kind == SlicePlan::MASS)
    for (u32 i = 0; i < CHOOSE_WARPS; ++i) total += sh->masses[i];
  if (!sums.fits || sums.listed > LISTED || (maxima.largest && !sums.listed)) return many();
  // Several threads a warp's list.
  constexpr u32 SHARING = CHOOSE_THREADS / ROW_WARPS, AHEAD = 4;
  const u32 from = threadIdx.x / SHARING;
  if (from < division.blocks * WARPS) {
    const u64 *places = whole.places + (static_cast<u64>(index) * ROW_WARPS + from) * WARP_PLACES;
    const u32 count = whole.parts[static_cast<u64>(index) * ROW_WARPS + from].listed, to = sh->groups[from];
    UNROLL_NOT
    for (u32 base = threadIdx.x % SHARING; base < count; base += AHEAD * SHARING) {
      u64 place[AHEAD];
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i)
        if (base + i * SHARING < count) place[i] = places[base + i * SHARING];
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i)
        if (base + i * SHARING < count) sh->listed_places[to + base + i * SHARING] = place[i];
    }
  }
  __syncthreads();
  if (plan.kind == SlicePlan::MASS && !reaches(mass_of_listed(w, sums.listed), total, threshold)) return many();
  sort_places<CHOOSE_THREADS>(sh->listed_places, sums.listed);
  if (threadIdx.x < 32) {
    call.raw = raw();
    bool decided = true;
    if (!own_plan.greedy) decided = run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, sums.listed, own_plan.op, plan.temperature, total});
    else if (threadIdx.x == 0) take_first(call, r, sums.listed ? sh->listed_places[0] : 0);
    if (threadIdx.x == 0) sh->verdict = decided;
  }
  __syncthreads();
  return sh->verdict ? NUCLEUS_OK : PENDING;
}

// What `many` wrote of a row is read again, so that nothing of this is in the way of other rows.
__device__ __noinline__ bool draw_here(const Whole &whole, const Division &division, u32 index) {
  CutRoom<CHOOSE_THREADS> *room = CutRoom<CHOOSE_THREADS>::here();
  if (threadIdx.x == 0) {
    room->plan = whole.plans[index];
    room->many = whole.many[index];
  }
  __syncthreads();
  return draw_of_many<CHOOSE_THREADS>(index, whole, division);
}

// `leaves_many`: rows that keep many tokens are left to the next launch, whose clusters share them out.
__device__ __forceinline__ void choose_row(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, bool leaves_many) {
  Shared *sh = shared_state();
  DescriptionWord word;
  word.read(batch, index, batch.row[index].request);
  word.write(sh);
  __syncthreads();
  describe_slot(sh, batch);
  const SlicePlan own_plan = plan_of(*sh);
  const u64 uniform = uniform_of(request_of(batch, index, sh->row, sh->config, sh->program));
  wait_for_launch_before();
  const Findings found(whole, division, index, batch.row_len);
  if (found.plan.flags & RowPlan::SKIPPED) return;
  u32 status = PENDING;
  if (found.plan.kind != SlicePlan::EXACT) status = choose_token(batch, whole, division, own_plan, found, uniform, index);
  if (status == MANY_KEPT && !leaves_many) {
    __syncthreads();
    if (draw_here(whole, division, index)) return;
    status = PENDING;
  }
  if (status != NUCLEUS_OK && threadIdx.x == 0) batch.out[index].status = status;
}

}  // namespace nucleus
