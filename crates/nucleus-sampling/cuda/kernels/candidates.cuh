// The few tokens that a bounded request needs, and sums over a row held in slices.
//
// The largest logits of groups of threads are told to every block. What k of these maxima reach is a lower bound of the k-th largest logit: all of the first
// k tokens reach it, and few others do. Those that do are sorted by the leading block: the beginning of the order. A request whose cut lies beyond
// it, or a list that overflows, is decided by the exact path.
#pragma once

#include "plan.cuh"

namespace nucleus {

constexpr u32 UNUSUAL = 0xFFFFFFFFu;  // above every key: NaN, +inf, or an edit that found no room

// What a thread sees of its part of the slice.
struct Seen {
  u32 key;    // of the largest logit; 0: there is none
  u32 count;  // tokens that are there
};

__device__ __forceinline__ Seen look(const DeviceTeam &team) {
  float most = -infinity(), sum = 0;
  Seen seen{0, 0};
  team.each_four([&](u32, float4 v) {
    most = fmaxf(fmaxf(most, v.x), fmaxf(v.y, fmaxf(v.z, v.w)));
    sum += (v.x + v.y) + (v.z + v.w);
    seen.count += 4;
  });
  if (!(fabsf(sum) < infinity())) {  // a token that is out, NaN or +inf; or the sum is beyond all floats
    bool strange = false;
    seen.count = 0;
    team.each_four([&](u32, float4 v) {
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        seen.count += x[e] > -infinity();
        strange |= !(x[e] < infinity());
      }
    });
    if (strange) {
      seen.key = UNUSUAL;
      return seen;
    }
  }
  if (most > -infinity()) seen.key = key_of(most + 0.0f);
  return seen;
}

// Largest logits as keys; 0: there is none.
struct Maxima {
  u32 own;      // this thread's
  u32 in_warp;
  u32 largest;  // of the row
};

// One barrier of the cluster.
__device__ __forceinline__ Maxima maxima(const DeviceTeam &team, u32 own) {
  Maxima m;
  m.own = own;
  m.in_warp = __reduce_max_sync(~0u, own);
  team.publish(team.sh->maxima, m.in_warp);
  team.cluster_sync();
  u32 largest = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x % 32; i < team.blocks * GROUPS; i += 32) largest = team.sh->maxima[i] > largest ? team.sh->maxima[i] : largest;
  m.largest = __reduce_max_sync(~0u, largest);
  return m;
}

// A key that at least k of the groups' maxima reach, k at most their number; the largest such with 16 low bits of 0. Every warp finds it.
__device__ __forceinline__ u32 kth_of_groups(const DeviceTeam &team, u32 k) {
  constexpr u32 EACH = MAX_BLOCKS * GROUPS / 32;
  u32 keys[EACH], found = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    u32 at = i * 32 + threadIdx.x % 32;
    keys[i] = at < team.blocks * GROUPS ? team.sh->maxima[at] : 0;
  }
#pragma unroll 1
  for (u32 bit = 1u << 31; bit >= 1u << 16; bit >>= 1) {
    u32 reached = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) reached += __popc(__ballot_sync(~0u, keys[i] >= (found | bit)));
    if (reached >= k) found |= bit;
  }
  return found;
}

// A key that at least k (<= THREADS) of the threads' keys reach, the largest such with 16 low bits of 0; to every thread.
__device__ __forceinline__ u32 kth_of_threads(u32 key, u32 k) {
  u32 found = 0;
#pragma unroll 1
  for (u32 bit = 1u << 31; bit >= 1u << 16; bit >>= 1)
    if (static_cast<u32>(__syncthreads_count(key >= (found | bit))) >= k) found |= bit;
  return found;
}

// Tells every block the largest keys of as many groups of threads as a block has threads. A barrier of the cluster must follow.
__device__ __forceinline__ void publish_groups(const DeviceTeam &team, u32 *groups, u32 own) {
  u32 blocks = team.blocks;
  UNROLL_NOT
  for (u32 step = blocks / 2; step; step /= 2) {
    u32 other = __shfl_xor_sync(~0u, own, step);
    own = other > own ? other : own;
  }
  u32 to = threadIdx.x & (blocks - 1), group = team.block * team.share_of(THREADS) + team.share_of(threadIdx.x);
  *team.in_block(&groups[group], to) = own;
}

// As kth_of_groups for larger k. One barrier of the cluster.
__device__ __forceinline__ u32 kth_of_many(const DeviceTeam &team, u32 own, u32 k) {
  publish_groups(team, team.sh->groups, own);
  team.cluster_sync();
  return kth_of_threads(team.sh->groups[threadIdx.x], k);
}

// Tells every block this warp's part of a weight. A barrier of the cluster must follow.
__device__ __forceinline__ void publish_mass(const DeviceTeam &team, u64 *masses, u64 own) { team.publish(masses, DeviceWarp{}.sum(own)); }

__device__ __forceinline__ u64 published_mass(const DeviceTeam &team, const u64 *masses) {
  u64 own = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x % 32; i < team.blocks * WARPS; i += 32) own += masses[i];
  return DeviceWarp{}.sum(own);
}

// Adds to the count of tokens that are kept, in every block. A barrier of the cluster must follow.
__device__ __forceinline__ void publish_kept(const DeviceTeam &team, u32 own) {
  const u32 in_warp = __reduce_add_sync(~0u, own);
  if (threadIdx.x % 32 < team.blocks) atomicAdd(team.in_block(&team.sh->kept, threadIdx.x % 32), in_warp);
}

// The places of the tokens that reach the threshold go to the leader, each block's to its own part of the candidates; every block learns how
// many each has. A barrier of the cluster must follow.
__device__ __forceinline__ void send_candidates(const DeviceTeam &team, float threshold, bool warp_has_some) {
  Shared *sh = team.sh, *leader = team.in_block(sh, 0);
  const u32 part = team.share_of(CANDIDATES);
  if (warp_has_some)
    team.each_four([&](u32 i, float4 v) {
      if (!(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)) >= threshold)) return;
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        if (!(x[e] >= threshold) || !(x[e] > -infinity())) continue;
        u32 at = atomicAdd(&sh->found, 1);
        if (at < part) leader->candidates[team.block * part + at] = place_of(x[e] + 0.0f, team.first + i + e);
      }
    });
  __syncthreads();
  if (threadIdx.x < team.blocks) team.in_block(sh, threadIdx.x)->sent[team.block] = sh->found;
}

// The first of the candidates that the leader was sent, by one warp; 0 if there is none.
__device__ __forceinline__ u64 first_candidate(const DeviceTeam &team) {
  u64 first = 0;
  UNROLL_NOT
  for (u32 b = 0; b < team.blocks; ++b) {
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < team.sh->sent[b]; i += 32) {
      u64 place = team.sh->candidates[b * team.share_of(CANDIDATES) + i];
      first = place > first ? place : first;
    }
  }
  return DeviceWarp{}.most(first);
}

// How many candidates there are, once all have been sent; 0: more than fit.
__device__ __forceinline__ u32 sent_candidates(const DeviceTeam &team) {
  u32 count = 0;
  bool fits = true;
  UNROLL_NOT
  for (u32 b = 0; b < team.blocks; ++b) {
    count += team.sh->sent[b];
    fits &= team.sh->sent[b] <= team.share_of(CANDIDATES);
  }
  return fits && count <= LISTED ? count : 0;
}

// The leader's candidates as one list, sorted.
__device__ __forceinline__ void list_candidates(const DeviceTeam &team, u32 count) {
  Shared *sh = team.sh;
  u32 from = threadIdx.x / 32, before = 0;
  if (from < team.blocks) {
    UNROLL_NOT
    for (u32 b = 0; b < from; ++b) before += sh->sent[b];
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < sh->sent[from]; i += 32) sh->listed_places[before + i] = sh->candidates[from * team.share_of(CANDIDATES) + i];
  }
  __syncthreads();
  sort_places<THREADS>(sh->listed_places, count);
}

}  // namespace nucleus
