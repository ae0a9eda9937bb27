// Rows by a cluster that holds them in the slices of its blocks: what few tokens decide, draws from the whole row and top_p over it, then whatever is left by
// the exact path.
#pragma once

#include "steps.cuh"
#include "unsliced.cuh"

namespace nucleus {

// What a row has come to.
enum class Fate { DECIDED, STRANGE, MANY };  // STRANGE: not of numbers alone, or an edit had no room; MANY: more tokens count than a list holds

// ln of the sum of exp over the row as it came, before it is changed. Two barriers of the cluster.
__device__ __forceinline__ RawSums raw_before_changes(const DeviceTeam &team) {
  const Maxima m = maxima(team, look(team).key);
  RawSums raw;
  raw.wanted = true;
  Weighing unscaled;
  const bool valid = m.largest != UNUSUAL && m.largest && begin_weighing(value_of(m.largest), 1.0f, unscaled);
  if (valid) publish_mass(team, team.sh->raw_masses, team.mass(unscaled));
  team.cluster_sync();
  if (!valid) return raw;
  unscaled.sums.total = published_mass(team, team.sh->raw_masses);
  return raw_sums_of(value_of(m.largest), unscaled);
}

// Draws a token of the slices after the masses were published; one thread writes it. weight(id, x) agrees with them.
template <class F>
__device__ __forceinline__ void draw_token(const DeviceTeam &team, const RowCall &call, u64 total, F weight) {
  const Request r = call.request();
  team.draw(mulhi64(uniform_of(r), total), weight, [&](u32 id, float x) {
    Outcome outcome;
    outcome.kept = team.sh->kept;
    outcome.token = id;
    outcome.logprob = processed_logprob(weight(id, x), total);
    *call.out() = result(outcome, call.raw, r);
  });
}

// The first k tokens and all above a bound, as a list in the leader: after a barrier of the cluster `count` of them, 0 if they do not fit.
// False: the request's cut lies beyond the list.
__device__ __forceinline__ bool run_sent(const DeviceTeam &team, const SlicePlan &plan, const RowCall &call, u32 count, u64 total) {
  Shared *sh = team.sh;
  list_candidates(team, count);
  if (threadIdx.x >= 32) return true;
  return run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, count, plan.op, plan.temperature, total});
}

// top_p or min_p that keep more tokens than were sent. The slices are as they were; every block calls it after a barrier of the cluster. False: not decided.
__device__ __noinline__ bool keep_many(RowCall call, SlicePlan plan, Weighing w, u32 most) {
  DeviceTeam team = call.team();
  Shared *sh = team.sh;
  const Request r = call.request();
  const SamplingOp &op = r.program->ops[plan.op];
  const float largest = value_of(most);
  u64 lowest;
  if (plan.kind == SlicePlan::MASS) {
    w.sums.total = published_mass(team, sh->masses);
    const Until until{Until::REACHES, w.sums.total, op.threshold};
    const StepCut cut = find_in_steps(team, Layer{NUCLEUS_OP_NONE, 1.0f, 0, 0, 0, 0, ~0ull, 0}, w, largest, until, true);
    if (!cut.found) return false;
    lowest = cut.place;
    if (threadIdx.x == 0) {
      sh->kept = cut.kept;
      sh->found = 0;
    }
    __syncthreads();
  } else {
    const float threshold = fmaxf(fmaf(plan.temperature, op.arg, largest), float_of(0xFF7FFFFFu));  // no lower than the least float
    lowest = static_cast<u64>(key_of(threshold + 0.0f)) << 32;
    team.cluster_sync();  // the counts of what was sent have been read
    if (threadIdx.x == 0) sh->kept = sh->found = 0;
    team.cluster_sync();
    u32 own = 0;
    team.each_four([&](u32, float4 v) { own += (v.x >= threshold) + (v.y >= threshold) + (v.z >= threshold) + (v.w >= threshold); });
    publish_kept(team, own);
    team.cluster_sync();
  }
  if (sh->kept < plan.k) return false;
  if (sh->kept <= LISTED) {
    send_candidates(team, logit_at(lowest), true);
    team.cluster_sync();
    const u32 count = sent_candidates(team);
    if (count) {
      if (team.leader()) {
        const bool decided = run_sent(team, plan, call, count, plan.kind == SlicePlan::MASS ? w.sums.total : 0);
        if (threadIdx.x < team.blocks) team.in_block(sh, threadIdx.x)->verdict = decided;
      }
      team.cluster_sync();
      return sh->verdict;
    }
  }
  if (plan.op + 2 != r.program->len || r.program->ops[plan.op + 1].code != NUCLEUS_OP_DRAW) return false;
  if (plan.kind != SlicePlan::MASS && !begin_weighing(largest, plan.temperature, w)) {
    fail(call, team, r, NUCLEUS_OVERFLOW);
    return true;
  }
  const float last = logit_at(lowest);
  auto weight = [&](u32 id, float x) { return x > last || (x == last && place_of(x, id) >= lowest) ? w.q(x) : 0; };
  u64 own = 0;
  team.each_four([&](u32 i, float4 v) {
    const float x[4] = {v.x + 0.0f, v.y + 0.0f, v.z + 0.0f, v.w + 0.0f};
#pragma unroll
    for (u32 e = 0; e < 4; ++e) own += weight(team.first + i + e, x[e]);
  });
  publish_mass(team, sh->masses, own);
  team.cluster_sync();
  const u64 total = published_mass(team, sh->masses);
  draw_token(team, call, total, weight);
  return true;
}

// Decides a row in two barriers of the cluster, and by keep_many.
__device__ __noinline__ Fate sample_row(RowCall call, SlicePlan plan) {
  DeviceTeam team = call.team();
  Shared *sh = team.sh;
  const Seen seen = look(team);
  const Maxima m = maxima(team, sh->unusual ? UNUSUAL : seen.key);
  const bool weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  Weighing w, unscaled;
  const bool strange = m.largest == UNUSUAL;
  if (strange || (weighs && (!m.largest || !begin_weighing(value_of(m.largest), plan.temperature, w)))) {
    team.cluster_sync();  // every block has read the maxima
    if (!strange) fail(call, team, call.request(), m.largest ? NUCLEUS_OVERFLOW : NUCLEUS_EMPTY);
    return strange ? Fate::STRANGE : Fate::DECIDED;
  }
  // The row's raw sums are this row's, unless it was changed.
  bool raw_here = false;
  if (!(sh->row.flags & NUCLEUS_ROW_PROCESSED) && !call.raw.wanted) {
    call.raw.wanted = true;
    raw_here = m.largest && begin_weighing(value_of(m.largest), 1.0f, unscaled);
  }
  if (raw_here) publish_mass(team, sh->raw_masses, team.mass(unscaled));
  if (weighs) publish_mass(team, sh->masses, team.mass(w));
  if (plan.kind == SlicePlan::ALL) {
    publish_kept(team, seen.count);
  } else {
    const u32 most = team.blocks * GROUPS * 3 / 4, k = plan.kind == SlicePlan::MASS && plan.k < most ? most : plan.k;
    const u32 bound = k == 1 ? m.largest : k <= most ? kth_of_groups(team, k) : kth_of_many(team, m.own, k);
    float threshold = bound ? value_of(bound) : -infinity();
    if (plan.kind == SlicePlan::ABOVE && m.largest)
      threshold = fminf(threshold, fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(m.largest)));
    send_candidates(team, threshold, m.in_warp && value_of(m.in_warp) >= threshold);
  }
  team.cluster_sync();
  if (raw_here) {
    unscaled.sums.total = published_mass(team, sh->raw_masses);
    call.raw = raw_sums_of(value_of(m.largest), unscaled);
  }
  const u64 total = weighs ? published_mass(team, sh->masses) : 0;
  if (plan.kind == SlicePlan::ALL) {
    draw_token(team, call, total, [&](u32, float x) { return w.q(x); });
    return Fate::DECIDED;
  }
  const u32 count = sent_candidates(team);
  bool decided = count || !m.largest;
  if (decided && plan.greedy) {
    if (team.leader() && threadIdx.x < 32) {
      const u64 place = first_candidate(team);
      if (threadIdx.x == 0) take_first(call, call.request(), place);
    }
    return Fate::DECIDED;
  }
  if (decided && team.leader()) {
    decided = run_sent(team, plan, call, count, total);
    if (weighs && threadIdx.x < team.blocks) team.in_block(sh, threadIdx.x)->verdict = decided;
  }
  if (weighs && (count || !m.largest)) {
    team.cluster_sync();
    decided = sh->verdict;
  } else {
    decided = count || !m.largest;
  }
  if (decided) return Fate::DECIDED;
  return plan.kind != SlicePlan::FIRST && keep_many(call, plan, w, m.largest) ? Fate::DECIDED : Fate::MANY;
}

// The exact path over slices; false: they are not of numbers alone.
__device__ __noinline__ bool sample_slices(RowCall call, bool exact_only) {
  SliceTeam team{call.team()};
  EditTable none{nullptr, 0};
  return sample_exactly(team, call.request(), none, call.raw, exact_only, call.out());
}

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step;
  u64 bits;

  __device__ __forceinline__ u32 index(u64 set) const { return first + (__ffsll(static_cast<long long>(set)) - 1) * step; }
};

// Every row of `rows`. With `exact_only`, by the exact path alone.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, const Rows &rows, u32 slice_room, bool exact_only) {
  Shared *sh = shared_state();
  DeviceTeam team;
  team.take_slice(batch.row_len, slice_room);
  const PartLoad load(team, batch.dtype);
  if (threadIdx.x % 32 == 0) load.prepare();
  u64 bits = rows.bits;
#pragma unroll 1
  for (u32 use = 0; bits; ++use, bits &= bits - 1) {
    const u32 index = rows.index(bits);
    const char *logits = static_cast<const char *>(batch.logits) + index * batch.row_stride * PartLoad::size_of(batch.dtype);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // other warps wrote to this part
    team.cluster_sync();                                          // and no block reads the last row's results any more
    if (threadIdx.x % 32 == 0) load.start(logits);
    DescriptionWord word;
    word.read(batch, index, batch.row[index].request);
    word.write(sh);
    if (threadIdx.x == 0) sh->unusual = sh->found = sh->kept = 0;
    __syncthreads();
    describe_slot(sh, batch);
    load.wait(use);
    if (sh->row.flags & NUCLEUS_ROW_PADDING) continue;
    const SlicePlan plan = plan_of(*sh);
    RowCall call{index, slice_room, 0, RawSums{}};
    Fate fate = Fate::STRANGE;
    if (team.whole && plan.sliced) {
      const Request r = call.request();
      EditTable table{sh->edits, SLICE_EDITS, &sh->unusual, team.first, team.first + team.held};
      const bool masked = r.mask || sh->row.flags & NUCLEUS_ROW_ALLOWED, raw = !(sh->row.flags & NUCLEUS_ROW_PROCESSED);
      if (plan.edits) {
        clear_edits(team, table);
        __syncthreads();
        note_slice_edits(team, r, plan, table);
      }
      load.settle(logits, r.limit);
      if (plan.edits || masked) {
        __syncthreads();
        if (raw) call.raw = raw_before_changes(team);
        if (masked) mask_slice(team, r);
        __syncthreads();
        if (plan.edits && edit_slice(team, r, table)) sh->unusual = 1;
        __syncthreads();
      }
      fate = Fate::MANY;
      if (!exact_only && plan.kind != SlicePlan::EXACT) fate = sample_row(call, plan);
      if (fate == Fate::MANY) {
        if (raw && !call.raw.wanted) call.raw = raw_before_changes(team);
        if (sample_slices(call, exact_only)) fate = Fate::DECIDED;
      }
    }
    if (fate != Fate::DECIDED) {
      team.cluster_sync();
      sample_unsliced(call, workspace, exact_only);
    }
  }
  team.cluster_sync();  // no block leaves while another may still read its shared memory
}

}  // namespace nucleus
