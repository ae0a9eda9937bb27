// Rows' largest logits, first tokens and sums of weights, by the warps of clusters.
#pragma once

#include "whole.cuh"

namespace nucleus {

// The maxima of the warps of a cluster, sent from shared memory to shared memory. A warp sends its second next maximum only after all warps have sent their
// next one, and these have read the maxima before: two buffers are enough.
struct Exchange {
  const DeviceTeam &team;
  u32 turn = 0;

  __device__ __forceinline__ explicit Exchange(const DeviceTeam &t) : team(t) {}
  // By one thread, before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    for (u32 buffer = 0; buffer < 2; ++buffer) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&team.sh->exchanged.told[buffer])) : "memory");
      expect(buffer);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ __forceinline__ void expect(u32 buffer) const {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&team.sh->exchanged.told[buffer])),
                 "r"(team.blocks * GROUPS * static_cast<u32>(sizeof(u32)))
                 : "memory");
  }
  // All warps' maxima are in maxima(), whose largest is returned.
  __device__ __forceinline__ u32 operator()(u32 own) {
    const u32 buffer = turn & 1, lane = threadIdx.x % 32, in_warp = __reduce_max_sync(~0u, own), warps = team.blocks * GROUPS;
    Shared *sh = team.sh;
    if (lane < team.blocks) {
      u32 to, barrier;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(&sh->exchanged.maxima[buffer][team.block * GROUPS + threadIdx.x / 32])), "r"(lane));
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(&sh->exchanged.told[buffer])), "r"(lane));
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to), "r"(in_warp), "r"(barrier) : "memory");
    }
    const u32 barrier = shared_address(&sh->exchanged.told[buffer]), parity = turn >> 1 & 1;
    u32 done = 0;
    while (!done)
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier), "r"(parity)
          : "memory");
    if (threadIdx.x == 0) expect(buffer);
    turn += 1;
    u32 largest = 0;
#pragma unroll
    for (u32 i = 0; i < ROW_WARPS / 32; ++i) {
      const u32 at = i * 32 + lane;
      if (at < warps) largest = sh->exchanged.maxima[buffer][at] > largest ? sh->exchanged.maxima[buffer][at] : largest;
    }
    return __reduce_max_sync(~0u, largest);
  }
  // A key that at least k of the maxima reach, and not many more; 0: there are not so many maxima.
  __device__ __forceinline__ u32 reached_by(u32 k) const {
    constexpr u32 EACH = ROW_WARPS / 32, ROUNDS = 8;
    const u32 *maxima = team.sh->exchanged.maxima[(turn - 1) & 1];
    u32 keys[EACH], least = ~0u, most = 0, there = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = i * 32 + threadIdx.x % 32;
      keys[i] = at < team.blocks * GROUPS ? maxima[at] : 0;
      there += __popc(__ballot_sync(~0u, keys[i] != 0));
      least = keys[i] && keys[i] < least ? keys[i] : least;
      most = keys[i] > most ? keys[i] : most;
    }
    if (there < k) return 0;
    u32 low = __reduce_min_sync(~0u, least), high = __reduce_max_sync(~0u, most);
#pragma unroll 1
    for (u32 round = 0; round < ROUNDS; ++round) {
      const u32 middle = key_of(0.5f * value_of(low) + 0.5f * value_of(high) + 0.0f);
      u32 reach = 0;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) reach += __popc(__ballot_sync(~0u, keys[i] >= middle));
      if (reach >= k) low = middle;
      else high = middle;
      if (reach >= k && reach <= k + k / 8) break;
    }
    return low;
  }
};

// Sums weights by runs, and lists the tokens that reach the threshold, a finite float. Every lane of the warp takes part in every step; returns how many
// tokens were listed, those that found no room too.
template <bool WEIGH, bool LIST>
__device__ __forceinline__ u32 sweep_part(const DeviceTeam &team, const PartLoad &load, const Division &division, const Weighing &w, u64 *runs, float threshold,
                                          u64 *places) {
  const Addends addends(w);
  const u32 lane = threadIdx.x % 32, count = load.count;
  const float *part = load.part();
  u32 listed = 0;
  u64 sum = 0;
#pragma unroll 1
  for (u32 at = 0, run_end = division.run; at < count; at += RUN_STEP) {
    float4 v[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 i = at + half * STEP + lane * 4;
      v[half] = make_float4(-infinity(), -infinity(), -infinity(), -infinity());
      if (i < count) v[half] = *reinterpret_cast<const float4 *>(part + i);
    }
    const float x[8] = {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
    if (LIST && __any_sync(~0u, fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7]))) >= threshold)) {
      u32 reach = 0;
#pragma unroll
      for (u32 e = 0; e < 8; ++e) reach |= x[e] >= threshold ? 1u << e : 0;
#pragma unroll 1
      for (u32 lanes; (lanes = __ballot_sync(~0u, reach != 0)) != 0; listed += __popc(lanes), reach &= reach - 1) {
        if (!reach) continue;
        const u32 e = __ffs(reach) - 1, i = at + e / 4 * STEP + lane * 4 + e % 4, to = listed + __popc(lanes & ((1u << lane) - 1));
        if (to < WARP_PLACES) places[to] = place_of(part[i] + 0.0f, team.first + load.from + i);
      }
    }
    if (!WEIGH) continue;
    if (!addends.serve) {
      u64 own = 0;
#pragma unroll
      for (u32 e = 0; e < 8; ++e) own += w.q(x[e]);
      sum += DeviceWarp{}.sum(own);
    } else {
      u32 high = 0, low = 0;
#pragma unroll
      for (u32 e = 0; e < 8; ++e) addends.add(x[e], high, low);
      sum += Addends::sum(__reduce_add_sync(~0u, high), __reduce_add_sync(~0u, low), RUN_STEP);
    }
    if (at + RUN_STEP >= run_end || at + RUN_STEP >= count) {
      if (lane == 0) *runs = sum;
      ++runs;
      run_end += division.run;
      sum = 0;
    }
  }
  return listed;
}

// The weight of the part.
__device__ __forceinline__ u64 mass_of_part(const DeviceTeam &team, const Weighing &w) { return DeviceWarp{}.sum(team.mass(w)); }

// One row after another, by every warp of a cluster for itself.
__device__ __forceinline__ void weigh_rows_of(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 cluster, u32 clusters) {
  DeviceTeam team;
  team.take_slice(batch.row_len, division.room);
  const PartLoad load(team, batch.dtype);
  const u32 lane = threadIdx.x % 32, own = team.block * WARPS + threadIdx.x / 32;
  auto logits_of = [&](u32 index) { return static_cast<const char *>(batch.logits) + index * batch.row_stride * PartLoad::size_of(batch.dtype); };
  Exchange exchange(team);
  float *const slices = team.slice;
  // The next of a block's slices.
  auto turn_to = [&](u32 buffer) {
    team.buffer = buffer;
    team.slice = slices + buffer * division.room;
  };
  if (threadIdx.x == 0) exchange.prepare();
#pragma unroll 1
  for (u32 buffer = 0; buffer < division.slices; ++buffer) {
    turn_to(buffer);
    if (lane == 0) load.prepare();
    __syncwarp();
    if (lane == 0 && cluster + buffer * clusters < batch.rows) load.start(logits_of(cluster + buffer * clusters));
  }
  team.cluster_sync();
  wait_for_launch_before();
  let_next_launch_begin();
  RowPlan next = whole.plans[cluster];
  u32 next_edits = whole.edits[static_cast<u64>(cluster) * ROW_WARPS + own];
  u32 use = 0;
#pragma unroll 1
  for (u32 index = cluster; index < batch.rows; index += clusters, ++use) {
    const RowPlan plan = next;
    const u32 edits = plan.edited ? next_edits : 0;
    const Changed *changed = whole.changed + static_cast<u64>(index) * ROW_EDITS;
    Changed change{0, 0};
    if (lane < (edits & 0xFFFF)) change = changed[(edits >> 16) + lane];
    const u32 after = index + division.slices * clusters;
    if (index + clusters < batch.rows) {
      next = whole.plans[index + clusters];
      next_edits = whole.edits[static_cast<u64>(index + clusters) * ROW_WARPS + own];
    }
    turn_to(use & (division.slices - 1));
    load.wait(use >> (division.slices - 1));
    if (plan.kind != SlicePlan::EXACT) {
      load.settle(logits_of(index), plan.limit);
      const bool changes = plan.edited || (plan.flags & RowPlan::MASKED), weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
      Weighing w;
      u32 raw_largest = 0;
      u64 raw = 0;
      bool raw_after = plan.flags & RowPlan::RAW;
      if (raw_after && changes) {
        raw_after = false;
        raw_largest = exchange(look(team).key);
        if (raw_largest && raw_largest != UNUSUAL && begin_weighing(value_of(raw_largest), 1.0f, w)) raw = mass_of_part(team, w);
        __syncwarp();
      }
      if (plan.edited) {
        if (lane < (edits & 0xFFFF)) load.part()[change.id - (team.first + load.from)] = change.logit;
        UNROLL_NOT
        for (u32 i = 32 + lane; i < (edits & 0xFFFF); i += 32) {
          const Changed c = changed[(edits >> 16) + i];
          load.part()[c.id - (team.first + load.from)] = c.logit;
        }
        __syncwarp();
      }
      if (plan.flags & RowPlan::MASKED) {
        const u32 *mask = batch.masks + static_cast<u64>(plan.mask) * batch.mask_stride;
        UNROLL_NOT
        for (u32 i = lane; i < load.count; i += 32) {
          const u32 id = team.first + load.from + i;
          if (!(id / 32 < batch.mask_words && (mask[id / 32] >> (id % 32) & 1))) load.part()[i] = -infinity();
        }
        __syncwarp();
      }
      const Seen seen = look(team);
      const u32 largest = exchange(seen.key);
      if (raw_after) {
        raw_largest = largest;
        if (largest && largest != UNUSUAL && begin_weighing(value_of(largest), 1.0f, w)) raw = mass_of_part(team, w);
      }
      u64 *places = whole.places + (static_cast<u64>(index) * ROW_WARPS + own) * WARP_PLACES;
      u64 *runs = whole.runs + static_cast<u64>(index) * RUNS_MOST + own * division.runs;
      u32 listed = 0;
      if (largest && largest != UNUSUAL && (!weighs || begin_weighing(value_of(largest), plan.temperature, w))) {
        if (plan.kind == SlicePlan::ALL) {
          sweep_part<true, false>(team, load, division, w, runs, 0, places);
        } else {
          const u32 bound = plan.k == 1 ? largest : exchange.reached_by(plan.k);
          float threshold = bound ? value_of(bound) : -infinity();
          if (plan.kind == SlicePlan::ABOVE) threshold = fminf(threshold, fmaf(plan.temperature, plan.arg, value_of(largest)));
          threshold = fmaxf(threshold, float_of(0xFF7FFFFFu));  // tokens at -inf are out
          listed = weighs ? sweep_part<true, true>(team, load, division, w, runs, threshold, places)
                          : sweep_part<false, true>(team, load, division, w, runs, threshold, places);
        }
      }
      const u32 there = __reduce_add_sync(~0u, seen.count);
      if (lane == 0) whole.parts[static_cast<u64>(index) * ROW_WARPS + own] = PartSums{raw, there, listed};
      if (lane == 0 && own == 0) whole.maxima[index] = RowMaxima{largest, raw_largest};
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (after < batch.rows && lane == 0) load.start(logits_of(after));
  }
  team.cluster_sync();  // no block leaves while another may still send to it
}

}  // namespace nucleus
