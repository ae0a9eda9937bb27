// One row by the blocks of a cluster.
#pragma once

#include "call.cuh"

namespace nucleus {

// A draw from the whole row; its weights are published.
__device__ __forceinline__ void draw_row(const DeviceTeam &team, const Request &r, const RowCall &call, Weighing w, u64 total, u32 count) {
  w.sums.total = total;
  Outcome outcome;
  outcome.kept = count;
  u64 uniform = uniform_of(r);
  bool here = team.draw(mulhi64(uniform, total), [&](u32, float x) { return w.q(x); },
                        [&](u32 id, float x) {
                          outcome.token = id;
                          outcome.logprob = processed_logprob(w.q(x), total);
                        });
  if (here) *call.out() = result(outcome, call.raw, r);
}

// What decides without the exact path; false: it did not decide. `unusual`: the row is not of numbers alone, or an edit had no room.
__device__ __forceinline__ bool sample_bounded(const DeviceTeam &team, const Request &r, const SlicePlan &plan, const RowCall &call, bool &unusual) {
  Shared *sh = team.sh;
  Maxima m = maxima(team, sh->unusual);
  unusual = m.largest == UNUSUAL;
  if (unusual) return false;
  Weighing w;
  bool weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  if (weighs && !m.largest) { fail(call, team, r, NUCLEUS_EMPTY); return true; }
  if (weighs && !begin_weighing(value_of(m.largest), plan.temperature, w)) { fail(call, team, r, NUCLEUS_OVERFLOW); return true; }
  if (plan.kind == SlicePlan::ALL) {
    publish_mass(team, w);
    publish_count(team);
    team.cluster_sync();
    u32 count = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < team.blocks * WARPS; i += 32) count += sh->counts[i];
    draw_row(team, r, call, w, published_mass(team), __reduce_add_sync(~0u, count));
    return true;
  }
  const u32 most = team.blocks * GROUPS * 3 / 4, k = plan.kind == SlicePlan::MASS && plan.k < most ? most : plan.k;
  u32 bound = k == 1 ? m.largest : k <= most ? kth_of_groups(team, k) : kth_of_many(team, m.own, k);
  float threshold = bound ? value_of(bound) : -infinity();
  if (plan.kind == SlicePlan::ABOVE && m.largest)
    threshold = fminf(threshold, fmaf(plan.temperature, r.program->ops[plan.op].arg, value_of(m.largest)));
  send_candidates(team, threshold, m.in_warp && value_of(m.in_warp) >= threshold);
  if (plan.kind == SlicePlan::MASS) publish_mass(team, w);
  team.cluster_sync();
  u32 count = sent_candidates(team);
  if (m.largest && !count) return false;
  if (plan.greedy) {
    if (team.leader() && threadIdx.x < 32) {
      u64 place = first_candidate(team);
      if (threadIdx.x == 0) take_first(call, r, place);
    }
    return true;
  }
  if (team.leader()) {
    list_candidates(team, count);
    if (threadIdx.x < 32) {
      u64 total = plan.kind == SlicePlan::MASS ? published_mass(team) : 0;
      bool decided = run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, count, plan.op, plan.temperature, total});
      if (weighs && threadIdx.x < team.blocks) team.in_block(sh, threadIdx.x)->verdict = decided;
    }
  }
  if (!weighs) return true;
  team.cluster_sync();
  return sh->verdict;
}

// ln of the sum of exp over the row as it came. Two barriers of the cluster.
__device__ __forceinline__ RawSums raw_of_slices(const DeviceTeam &team) {
  Maxima m = maxima(team, false);
  RawSums raw;
  raw.wanted = true;
  Weighing w;
  if (m.largest == UNUSUAL || !m.largest || !begin_weighing(value_of(m.largest), 1.0f, w)) {
    team.cluster_sync();  // the maxima are written again
    return raw;
  }
  publish_mass(team, w);
  team.cluster_sync();
  w.sums.total = published_mass(team);
  return raw_sums_of(value_of(m.largest), w);
}

// The exact path over slices; false: they are not of numbers alone.
__device__ __noinline__ bool sample_slices(RowCall call, bool exact_only) {
  SliceTeam team{call.team()};
  EditTable none{nullptr, 0};
  return sample_exactly(team, call.request(), none, call.raw, exact_only, call.out());
}

// The row as it lies in device memory, every edit a layer: for programs and rows that slices do not serve.
__device__ __noinline__ void sample_unsliced(RowCall call, Workspace workspace, bool exact_only) {
  PlainTeam team{call.team()};
  Request r = call.request();
  u64 bound = edited_bound(r);
  EditTable table{reinterpret_cast<Edit *>(reinterpret_cast<char *>(team.slice) + LIST_CAPACITY * sizeof(u64)), 16};
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  if (bound > SHARED_EDITS_USED) {
    if (bound > workspace.most) {
      fail(call, team, r, NUCLEUS_WORKSPACE);
      return;
    }
    table = EditTable{workspace.edits + static_cast<u64>(call.index) * (workspace.capacity + 1), workspace.capacity};
    if (team.leader()) build_edits(team, r, table);
    __threadfence();
    team.cluster_sync();
  } else {
    build_edits(team, r, table);
  }
  RawSums raw = call.raw;
  if (!(r.row->flags & NUCLEUS_ROW_PROCESSED) && !raw.wanted) raw = raw_sums(team, r, table);
  sample_exactly(team, r, table, raw, exact_only, call.out());
}

// One row by all blocks of the cluster, which hold it in slices if they can. `use`: how often the blocks have held slices before.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, u32 index, u32 slice_room, u32 use) {
  Shared *sh = shared_state();
  DeviceTeam team;
  const void *logits = static_cast<const char *>(batch.logits) + index * batch.row_stride * SliceLoad::size_of(batch.dtype);
  team.take_slice(batch.row_len, slice_room);
  team.cluster_arrive();
  SliceLoad load(team, logits, batch.dtype, slice_room);
  if (threadIdx.x == THREADS - 1) {
    load.start(use);
    sh->unusual = sh->found = 0;
  }
  describe(sh, batch, index);
  EditTable table{sh->edits, SLICE_EDITS, &sh->unusual, team.first, team.first + team.held};
  clear_edits(team, table);
  __syncthreads();
  describe_slot(sh, batch);
  RowCall call{ index, slice_room, 0, RawSums{}};
  bool exact_only = batch.flags & NUCLEUS_BATCH_EXACT, unusual = false;
  SlicePlan plan = plan_of(*sh);
  if ((sh->row.flags & NUCLEUS_ROW_PADDING) || !team.whole || !plan.sliced) {
    load.wait(use);
    team.cluster_wait();
    if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  } else {
    Request r = request_of(batch, index, sh->row, sh->config, sh->program);
    if (plan.edits) note_slice_edits(team, r, plan, table);
    load.wait(use);
    load.finish();
    team.cluster_wait();  // every block has begun: its shared memory may be written
    __syncthreads();
    if (r.limit < batch.row_len) {
      forget_from(team, r.limit);
      __syncthreads();
    }
    if (!(sh->row.flags & NUCLEUS_ROW_PROCESSED)) call.raw = raw_of_slices(team);
    if (r.mask || (sh->row.flags & NUCLEUS_ROW_ALLOWED)) {
      mask_slice(team, r);
      __syncthreads();
    }
    if (plan.edits) {
      if (edit_slice(team, r, table)) sh->unusual = 1;
      __syncthreads();
    }
    if (!exact_only && plan.kind != SlicePlan::EXACT && sample_bounded(team, r, plan, call, unusual)) return;
    if (!unusual && sample_slices(call, exact_only)) return;
    team.cluster_sync();
  }
  sample_unsliced(call, workspace, exact_only);
}

}  // namespace nucleus
