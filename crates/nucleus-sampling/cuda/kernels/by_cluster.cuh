// Rows by a cluster that holds them in the slices of its blocks: what few tokens decide, what min_p keeps and draws from the whole row, then whatever is left by
// the exact path. Where a row was weighed before and keeps many tokens, it is not held (cut.cuh).
#pragma once

#include "by_sums.cuh"
#include "control.cuh"
#include "cut.cuh"
#include "held_row.cuh"
#include "unsliced.cuh"

namespace nucleus {

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
  team.draw(team.sh->masses, mulhi64(uniform_of(r), total), weight, [&](u32 id, float x) {
    Outcome outcome;
    outcome.kept = team.sh->kept;
    outcome.token = id;
    outcome.logprob = processed_logprob(weight(id, x), total);
    *call.out() = result(outcome, call.raw, r);
  });
}

// The weight and the count of the tokens from `threshold` up, published by every warp. A barrier of the cluster must follow.
__device__ __forceinline__ void publish_above(const DeviceTeam &team, const Weighing &w, bool weighs, float threshold) {
  const DoubleAddends addends(w);
  DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
  u32 kept = 0;
  u64 own = 0;
  team.each_four([&](u32, float4 v) {
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const bool above = x[e] >= threshold;
      kept += above;
      addends.add(above ? x[e] : -infinity(), sums[e % 2]);
    }
  });
  if (addends.serve)
    own = addends.taken(sums[0]) + addends.taken(sums[1]);
  else if (weighs)
    team.each_four([&](u32, float4 v) {
      const float x[4] = {v.x, v.y, v.z, v.w};
      UNROLL_NOT
      for (u32 e = 0; e < 4; ++e) own += x[e] >= threshold ? w.q(x[e]) : 0;
    });
  publish_mass(team, team.sh->masses, own);
  publish_kept(team, kept);
}

// Decides a row by its first tokens, by all above a bound or by all of it, in two or three barriers of the cluster.
__device__ __noinline__ Fate sample_row(RowCall call, SlicePlan plan) {
  DeviceTeam team = call.team();
  Shared *sh = team.sh;
  const Seen seen = look(team);
  const Maxima m = maxima(team, sh->unusual ? UNUSUAL : seen.key);
  const bool all = plan.kind == SlicePlan::ALL, above = plan.kind == SlicePlan::ABOVE;
  Weighing w, unscaled;
  const bool strange = m.largest == UNUSUAL, weighs = m.largest && !strange && begin_weighing(value_of(m.largest), plan.temperature, w);
  if (strange || (all && !weighs)) {
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
  float threshold = -infinity();
  if (above && m.largest) {
    threshold = fmaxf(fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(m.largest)), float_of(0xFF7FFFFFu));  // no lower than the least float
    publish_above(team, w, weighs, threshold);
    team.cluster_sync();
    if (raw_here) {
      unscaled.sums.total = published_mass(team, sh->raw_masses);
      call.raw = raw_sums_of(value_of(m.largest), unscaled);
      raw_here = false;
    }
    if (sh->kept > LISTED) {
      if (plan.op + 2 != sh->program.len || sh->program.ops[plan.op + 1].code != NUCLEUS_OP_DRAW) return Fate::MANY;
      if (!weighs) fail(call, team, call.request(), NUCLEUS_OVERFLOW);
      else draw_token(team, call, published_mass(team, sh->masses), [&](u32, float x) { return x >= threshold ? w.q(x) : 0; });
      return Fate::DECIDED;
    }
  }
  if (all) {
    publish_mass(team, sh->masses, team.mass(w));
    publish_kept(team, seen.count);
  } else {
    const u32 most = team.blocks * GROUPS * 3 / 4;
    const u32 bound = plan.k == 1 ? m.largest : plan.k <= most ? kth_of_groups(team, plan.k) : kth_of_many(team, m.own, plan.k);
    const float reached = bound ? value_of(bound) : -infinity();
    threshold = above && m.largest ? fminf(threshold, reached) : reached;
    send_candidates(team, threshold, m.in_warp && value_of(m.in_warp) >= threshold);
  }
  team.cluster_sync();
  if (raw_here) {
    unscaled.sums.total = published_mass(team, sh->raw_masses);
    call.raw = raw_sums_of(value_of(m.largest), unscaled);
  }
  if (all) {
    draw_token(team, call, published_mass(team, sh->masses), [&](u32, float x) { return w.q(x); });
    return Fate::DECIDED;
  }
  const u32 count = sent_candidates(team);
  if (!count && m.largest) return Fate::MANY;
  if (!team.leader()) return Fate::DECIDED;
  if (!plan.greedy) {
    list_candidates(team, count);
    if (threadIdx.x < 32) run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, count, plan.op, plan.temperature, 0});
  } else if (threadIdx.x < 32) {
    const u64 place = first_candidate(team);
    if (threadIdx.x == 0) take_first(call, call.request(), place);
  }
  return Fate::DECIDED;
}

// The exact path over slices, by the warp in control; false: they are not of numbers alone, or do not serve the program.
__device__ __noinline__ bool sample_slices(RowCall call, bool unlisted) {
  return sample_exactly(SliceTeam(call.team()), call.request(), EditTable{nullptr, 0}, call.raw, unlisted, call.out());
}

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step;
  u64 bits;

  __device__ __forceinline__ u32 index(u64 set) const { return first + (__ffsll(static_cast<long long>(set)) - 1) * step; }
};

// What is known of a row that min_p cuts first, after Shared's description of it; a barrier must follow.
__device__ __forceinline__ void plan_above(const SamplingBatch &batch, u32 index) {
  const Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  const SlicePlan plan = plan_of(*sh);
  if (threadIdx.x) return;
  room->plan.edited = 0;
  room->plan.temperature = plan.temperature;
  room->plan.arg = sh->program.ops[plan.op].arg;
  room->many = ManyKept{0, 0, plan.k, reinterpret_cast<const volatile float &>(batch.out[index].logprob), RawSums{}};
}

// Draws in a row that keeps many tokens, by a group of blocks; whether it is decided. `word`: of its description.
__device__ __forceinline__ bool draw_by_group(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, const DescriptionWord &word, bool above) {
  Shared *sh = shared_state();
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  word.write(sh);
  if (threadIdx.x == 0 && !above) {
    room->plan = whole.plans[index];
    room->many = whole.many[index];
  }
  __syncthreads();
  // Nobody writes the status of a row of padding, so it may read as anything.
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return true;
  describe_slot(sh, batch);
  if (above) {
    plan_above(batch, index);
    __syncthreads();
  }
  return draw_of_many<THREADS>(index, whole, division);
}

// The same in rows, of which each is taken by as many of the cluster's blocks as there are for it; `above`: those of which only the largest logit is known.
// Returns those that are not decided, as bits.
static __device__ __noinline__ u64 draw_by_cluster(const SamplingBatch &batch, const Whole &whole, const Division &division, Rows rows, u64 above) {
  CutRoom<THREADS> *room = CutRoom<THREADS>::here();
  DeviceTeam team;
  if (threadIdx.x == 0) room->left[0] = room->left[1] = 0;
#pragma unroll 1
  for (u64 bits = rows.bits; bits;) {
    const u32 left = __popcll(bits);
    u32 groups = 1;
    while (groups < left && groups < team.blocks) groups *= 2;
    const u32 blocks = team.blocks / groups, own = team.block / blocks;
    u64 bit = 0;
#pragma unroll 1
    for (u32 group = 0; group < groups; ++group, bits &= bits - 1) bit = group == own ? bits & (0 - bits) : bit;
    DescriptionWord word;
    if (bit) word.read(batch, rows.index(bit), batch.row[rows.index(bit)].request);
    if (threadIdx.x == 0) room->group.gather(team.block, blocks);
    team.cluster_sync();  // no block reads the last rows' results any more
    const bool decided = !bit || draw_by_group(batch, whole, division, rows.index(bit), word, above & bit);
    if (!decided && room->group.leader() && threadIdx.x < team.blocks) {
      const u32 upper = bit >> 32 != 0;
      atomicOr(team.in_block(&room->left[upper], threadIdx.x), static_cast<u32>(upper ? bit >> 32 : bit));  // of 32 bits: other blocks' memory has no more
    }
    __syncthreads();
    if (threadIdx.x == 0) room->group.part();
  }
  team.cluster_sync();
  const u64 undecided = static_cast<u64>(room->left[1]) << 32 | room->left[0];
  __syncthreads();
  return undecided;
}

// Every row of `rows`. `exact`: by the exact path alone; `unlisted`: and by its stages over whole rows to the end.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, const Rows &rows, u32 slice_room, bool exact, bool unlisted) {
  Shared *sh = shared_state();
  DeviceTeam team;
  team.take_slice(batch.row_len, slice_room);
  const PartLoad load(team, batch.dtype);
  if (threadIdx.x % 32 == 0) load.prepare();
  team.prepare_meetings();
  u64 bits = rows.bits;
  bool by_sums = false;  // the row before: then the block that has its token reads nothing that this row's sums change, and nobody need wait for it
#pragma unroll 1
  for (u32 use = 0; bits; ++use, bits &= bits - 1) {
    const u32 index = rows.index(bits);
    const char *logits = static_cast<const char *>(batch.logits) + index * batch.row_stride * PartLoad::size_of(batch.dtype);
    bring_row(team, load, batch, index, logits, !by_sums);
    const SlicePlan plan = plan_of(*sh);
    const bool raw = !(sh->row.flags & NUCLEUS_ROW_PROCESSED), by_few = !exact && plan.kind != SlicePlan::EXACT && plan.kind != SlicePlan::MASS;
    const bool sums = !exact && cuts_by_sums(sh->program);
    if (by_sums && (raw || by_few || !sums)) team.cluster_sync();
    by_sums = false;
    load.wait(use);
    if (sh->row.flags & NUCLEUS_ROW_PADDING) continue;
    RowCall call{index, slice_room, RawSums{}};
    Fate fate = Fate::STRANGE;
    if (team.whole && plan.sliced) {
      change_slices(team, call.request(), plan, load, logits, [&] {
        if (raw) call.raw = raw_before_changes(team);
      });
      fate = Fate::MANY;
      if (by_few) fate = sample_row(call, plan);
      if (fate == Fate::MANY) {
        if (raw && !call.raw.wanted) call.raw = raw_before_changes(team);
        if (by_few || raw) team.cluster_sync();  // what was published is read, where meetings tell theirs
        if (sums) {
          fate = sample_by_sums(call);
          by_sums = fate == Fate::DECIDED;
        }
        if (fate == Fate::MANY && in_control(team, [&] { return sample_slices(call, unlisted); })) fate = Fate::DECIDED;
      }
    }
    if (fate != Fate::DECIDED) {
      team.cluster_sync();
      sample_unsliced(call, workspace, unlisted);
    }
  }
  team.cluster_sync();  // no block leaves while another may still read its shared memory
}

}  // namespace nucleus
