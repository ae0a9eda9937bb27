// The team of one row on the device: the blocks of a cluster, 512 threads each. Barriers are the hardware's: nothing spins.
#pragma once

#include <cooperative_groups.h>

#include "sample.cuh"

namespace nucleus {

namespace cg = cooperative_groups;

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 SHARED_EDITS = 2048;
constexpr u32 SHARED_EDITS_USED = 1536;

struct Shared {
  u64 bins[LIST_CAPACITY];  // histogram (the first BINS), candidates of this block's slice, or scratch of the list
  u64 list[LIST_CAPACITY];
  Edit edits[SHARED_EDITS];
  u64 part[WARPS][4];
  u64 slots[2][4];
  SamplingRow row;
  SamplingConfig config;
  SamplingProgram program;
  u64 found_base, told;
  u32 found_bin, listed, candidates, verdict;
};

struct DeviceWarp {
  __device__ u32 lane() const { return threadIdx.x & 31; }
  __device__ u32 lanes() const { return 32; }
  __device__ u64 sum(u64 v) const {
    for (int step = 16; step; step >>= 1) v += __shfl_xor_sync(~0u, v, step);
    return v;
  }
  __device__ u64 most(u64 v) const {
    for (int step = 16; step; step >>= 1) {
      u64 other = __shfl_xor_sync(~0u, v, step);
      v = other > v ? other : v;
    }
    return v;
  }
  __device__ u32 least(u32 v) const { return __reduce_min_sync(~0u, v); }
  __device__ u64 inclusive(u64 v) const {
    for (int step = 1; step < 32; step <<= 1) {
      u64 other = __shfl_up_sync(~0u, v, step);
      v += lane() >= step ? other : 0;
    }
    return v;
  }
  __device__ u64 last(u64 v) const { return __shfl_sync(~0u, v, 31); }
  __device__ u32 first(bool found) const {
    u32 lanes_found = __ballot_sync(~0u, found);
    return lanes_found ? __ffs(lanes_found) - 1 : 32;
  }
  __device__ void sync() const { __syncwarp(); }
};

template <u32 BLOCKS>
struct DeviceTeam {
  using Warp = DeviceWarp;
  Shared *sh;
  u32 block;
  mutable u32 parity = 0;

  __device__ DeviceTeam(Shared *shared) : sh(shared), block(BLOCKS > 1 ? cg::this_cluster().block_rank() : 0) {}
  __device__ u32 local() const { return threadIdx.x; }
  __device__ u32 locals() const { return THREADS; }
  __device__ u32 rank() const { return block * THREADS + threadIdx.x; }
  __device__ u32 size() const { return BLOCKS * THREADS; }
  __device__ bool leader() const { return block == 0; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void cluster_sync() const {
    if constexpr (BLOCKS > 1) cg::this_cluster().sync();
    else __syncthreads();
  }
  // The same object in another block's shared memory.
  template <class T>
  __device__ T *in_block(T *object, u32 other) const {
    if constexpr (BLOCKS > 1) return cg::this_cluster().map_shared_rank(object, other);
    else return object;
  }

  template <u32 N, class F>
  __device__ void reduce(u64 (&v)[N], F join) const {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 k = 0; k < N; ++k)
      for (int step = 16; step; step >>= 1) v[k] = join(v[k], __shfl_xor_sync(~0u, v[k], step));
    if (lane == 0)
      for (u32 k = 0; k < N; ++k) sh->part[warp][k] = v[k];
    __syncthreads();
    if (warp == 0)
      for (u32 k = 0; k < N; ++k) {
        u64 own = sh->part[lane % WARPS][k];
        for (int step = WARPS / 2; step; step >>= 1) own = join(own, __shfl_xor_sync(~0u, own, step));
        if (lane == 0) sh->slots[parity][k] = own;
      }
    cluster_sync();
    for (u32 k = 0; k < N; ++k) {
      v[k] = in_block(sh, 0)->slots[parity][k];
      for (u32 other = 1; other < BLOCKS; ++other) v[k] = join(v[k], in_block(sh, other)->slots[parity][k]);
    }
    parity ^= 1;
  }
  template <u32 N>
  __device__ void sum(u64 (&v)[N]) const { reduce(v, [](u64 a, u64 b) { return a + b; }); }
  template <u32 N>
  __device__ void max(u64 (&v)[N]) const { reduce(v, [](u64 a, u64 b) { return a > b ? a : b; }); }
  __device__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh->part[threadIdx.x / 32][0] = v;
    __syncthreads();
    u64 most = 0;
    for (u32 warp = 0; warp < WARPS; ++warp) most = sh->part[warp][0] > most ? sh->part[warp][0] : most;
    __syncthreads();
    return static_cast<u32>(most);
  }

  __device__ void clear_bins() const {
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) sh->bins[i] = 0;
    __syncthreads();
  }
  __device__ void add_bin(u32 bin, u64 weight) const {
    if (!weight) return;
    // Neighbouring ids often share a bin: then one lane adds for all. Weights are below 2^46, so both halves' sums fit 32 bits.
    u32 lanes = __activemask();
    int same;
    __match_all_sync(lanes, bin, &same);
    if (same) {
      u64 sum = static_cast<u64>(__reduce_add_sync(lanes, static_cast<u32>(weight >> 24))) << 24;
      weight = sum + __reduce_add_sync(lanes, static_cast<u32>(weight) & 0xFFFFFFu);
      if ((threadIdx.x & 31) != __ffs(lanes) - 1) return;
    }
    atomicAdd(reinterpret_cast<unsigned long long *>(&sh->bins[bin]), static_cast<unsigned long long>(weight));
  }
  // Descending, the first bin at which `base` plus the sum suffices; `base` becomes the sum before it.
  __device__ u32 find_bin(u32 count, u64 &base, const Until &until) const {
    constexpr u32 OWN = BINS / THREADS;
    if (threadIdx.x == 0) { sh->found_bin = 0; sh->found_base = base; }
    cluster_sync();
    u64 v[OWN], total = 0;
    for (u32 k = 0; k < OWN; ++k) {
      u32 at = threadIdx.x * OWN + k;
      v[k] = 0;
      if (at < count)
        for (u32 other = 0; other < BLOCKS; ++other) v[k] += in_block(sh, other)->bins[count - 1 - at];
      total += v[k];
    }
    u64 prefix = DeviceWarp{}.inclusive(total);
    if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][0] = prefix;
    __syncthreads();
    u64 before = base + prefix - total;
    for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) before += sh->part[warp][0];
    for (u32 k = 0; k < OWN; ++k) {
      if (v[k] && !until(before) && until(before + v[k])) {
        sh->found_bin = count - 1 - (threadIdx.x * OWN + k);
        sh->found_base = before;
      }
      before += v[k];
    }
    __syncthreads();
    base = sh->found_base;
    u32 bin = sh->found_bin;
    cluster_sync();
    return bin;
  }

  __device__ void begin_list() const {
    if (threadIdx.x == 0) sh->listed = 0;
    cluster_sync();
  }
  __device__ void append(u64 place) const {
    Shared *to = in_block(sh, 0);
    u32 at = atomicAdd(&to->listed, 1);
    if (at < LIST_CAPACITY) to->list[at] = place;
  }
  __device__ void end_list() const { cluster_sync(); }
  __device__ u32 listed() const { return leader() ? sh->listed : 0; }
  __device__ u64 *list() const { return sh->list; }
  __device__ u64 *scratch() const { return sh->bins; }

  // Sorts the list of this block, descending: by counting where it is short, else bitonically.
  __device__ void sort_list(u32 count) const {
    if (count <= THREADS) {
      u64 own = threadIdx.x < count ? sh->list[threadIdx.x] : 0;
      u32 place = 0;
      if (threadIdx.x < count)
        for (u32 i = 0; i < count; ++i) place += sh->list[i] > own;
      __syncthreads();
      if (threadIdx.x < count) sh->list[place] = own;
      __syncthreads();
      return;
    }
    u32 size = 2 * THREADS;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += THREADS) sh->list[i] = 0;
    __syncthreads();
    for (u32 run = 2; run <= size; run *= 2)
      for (u32 step = run / 2; step; step /= 2) {
        for (u32 i = threadIdx.x; i < size / 2; i += THREADS) {
          u32 a = 2 * i - (i & (step - 1)), b = a + step;
          u64 x = sh->list[a], y = sh->list[b];
          if ((x < y) == ((a & run) == 0)) { sh->list[a] = y; sh->list[b] = x; }
        }
        __syncthreads();
      }
  }

  template <class F>
  __device__ void by_warp(F f) const {
    if (threadIdx.x < 32) f(DeviceWarp{});
  }
  __device__ void tell(u64 value) const {
    if (leader()) sh->told = value;
  }
  __device__ u64 told() const {
    cluster_sync();
    u64 value = in_block(sh, 0)->told;
    cluster_sync();
    return value;
  }
};

}  // namespace nucleus
