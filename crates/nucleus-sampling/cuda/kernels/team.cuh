// The team of one row on the device: the blocks of a cluster, 512 threads each. Barriers are the hardware's: nothing spins.
#pragma once

#include "double_addends.cuh"
#include "sample.cuh"

namespace nucleus {

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / 32;
constexpr u32 GROUPS = WARPS;  // of a block's threads, each with its own maximum
constexpr u32 MAX_BLOCKS = 8;
constexpr u32 SLICE_EDITS = 1024;   // slots for the edits of one slice
constexpr u32 SHARED_EDITS = 2048;  // slots for the edits of a row that is not held in slices
constexpr u32 SHARED_EDITS_USED = 1536;
constexpr u32 STEP = 128;  // logits that a warp takes at once
constexpr u32 MAX_STEPS = 64;

constexpr u32 CANDIDATES = BINS;  // that the leader takes from all blocks
constexpr u32 LISTED = 1024;      // of them as a list
constexpr u32 TOKENS_HELD = 2 * BINS;

// What describes a row.
struct Description {
  SamplingRow row;
  SamplingConfig config;
  SamplingProgram program;
};

// What a block holds beside its slice of the row. The slice's memory, at least SPARE_BYTES, serves as scratch where no slice is held.
struct Shared : Description {
  union {
    struct {
      union {
        Edit edits[SLICE_EDITS + 1];
        struct {
          u64 listed_places[LISTED];
          u64 listed_weights[LISTED];
        };
      };
      union {
        u64 bins[BINS];           // histogram
        u32 tokens[TOKENS_HELD];  // the end of the history
        u64 candidates[CANDIDATES];
      };
    };
    u64 list[LIST_CAPACITY];
  };
  u64 part[WARPS][4];
  u64 slots[2][4];
  u64 masses[MAX_BLOCKS * WARPS];      // of the parts of the row, one a warp
  u64 raw_masses[MAX_BLOCKS * WARPS];  // of the row as it came
  union {
    u64 steps[MAX_STEPS];
    u32 groups[THREADS];
  };
  u32 maxima[MAX_BLOCKS * GROUPS];
  u32 sent[MAX_BLOCKS];
  SamplingBatch batch;
  u64 arrived[WARPS];  // mbarriers: the warp's part of the slice is there
  u64 found_base, told, raw_total;
  u32 found_bin, told_count, listed, found, kept, verdict, unusual;
};
constexpr u32 SHARED_BYTES = (sizeof(Shared) + 127) / 128 * 128;
// Logits a block holds of a row; 16-byte parts for every warp.
constexpr u32 slice_of(u32 row_len, u32 blocks) { return ((row_len + blocks - 1) / blocks + 8 * WARPS - 1) / (8 * WARPS) * (8 * WARPS); }
static_assert(2 * (SHARED_BYTES + 1024 + slice_of(151936, 8) * 4) <= 228 * 1024, "two blocks on a multiprocessor of compute capability 9.0");
constexpr u32 SPARE_BYTES = LIST_CAPACITY * sizeof(u64) + (SHARED_EDITS + 1) * sizeof(Edit);

// The block's shared memory: Shared, then the slice. Named where it is used, so that the compiler knows the address space.
extern __shared__ __align__(128) unsigned char shared_memory[];
__device__ __forceinline__ Shared *shared_state() { return reinterpret_cast<Shared *>(shared_memory); }
__device__ __forceinline__ float *shared_slice() { return reinterpret_cast<float *>(shared_memory + SHARED_BYTES); }

struct DeviceWarp {
  __device__ u32 lane() const { return threadIdx.x & 31; }
  __device__ u32 lanes() const { return 32; }
  // Sums of up to 2^64, by three sums of 22 bits.
  __device__ u64 sum(u64 v) const {
    u32 low = __reduce_add_sync(~0u, static_cast<u32>(v) & 0x3FFFFFu), middle = __reduce_add_sync(~0u, static_cast<u32>(v >> 22) & 0x3FFFFFu);
    return (static_cast<u64>(__reduce_add_sync(~0u, static_cast<u32>(v >> 44))) << 44) + (static_cast<u64>(middle) << 22) + low;
  }
  // Sums of 32 numbers below 2^48, by two sums of 24 bits.
  __device__ u64 sum_of_48_bits(u64 v) const {
    return (static_cast<u64>(__reduce_add_sync(~0u, static_cast<u32>(v >> 24))) << 24) + __reduce_add_sync(~0u, static_cast<u32>(v) & 0xFFFFFFu);
  }
  __device__ u64 most(u64 v) const {
    u32 high = __reduce_max_sync(~0u, static_cast<u32>(v >> 32));
    u32 low = __reduce_max_sync(~0u, static_cast<u32>(v >> 32) == high ? static_cast<u32>(v) : 0);
    return static_cast<u64>(high) << 32 | low;
  }
  __device__ u32 least(u32 v) const { return __reduce_min_sync(~0u, v); }
  __device__ u64 inclusive(u64 v) const {
    UNROLL_NOT
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

__device__ inline float max_nan(float a, float b) {
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}

// Sorts with a block of N threads, descending: by counting where it is short, several threads a place; else bitonically. Has room up to a power of 2.
template <u32 N>
__device__ __forceinline__ void sort_places(u64 *places, u32 count) {
  if (count <= N) {
    if (count < 2) return;
    const u32 sharing = 31 - __clz(N) - (32 - __clz(count - 1)), bits = sharing < 5 ? sharing : 5;
    const u32 shares = 1u << bits, share = threadIdx.x & (shares - 1), index = threadIdx.x >> bits;
    u64 own = index < count ? places[index] : 0;
    u32 rank = 0;
    UNROLL_8
    for (u32 i = share; i < count; i += shares) rank += places[i] > own;
    UNROLL_NOT
    for (u32 step = shares / 2; step; step /= 2) rank += __shfl_xor_sync(~0u, rank, step);
    __syncthreads();
    if (index < count && share == 0) places[rank] = own;
    __syncthreads();
    return;
  }
  u32 size = 2 * N;
  while (size < count) size *= 2;
  UNROLL_NOT
  for (u32 i = count + threadIdx.x; i < size; i += N) places[i] = 0;
  __syncthreads();
  UNROLL_NOT
  for (u32 run = 2; run <= size; run *= 2)
    for (u32 step = run / 2; step; step /= 2) {
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < size / 2; i += N) {
        u32 a = 2 * i - (i & (step - 1)), b = a + step;
        u64 x = places[a], y = places[b];
        if ((x < y) == ((a & run) == 0)) { places[a] = y; places[b] = x; }
      }
      __syncthreads();
    }
}

struct DeviceTeam {
  using Warp = DeviceWarp;
  Shared *sh;
  float *slice;      // this block's logits, as many as `held`; 16-byte aligned, -inf up to a multiple of 4
  u32 blocks, block;
  u32 first = 0;     // id of the slice's first logit
  u32 held = 0;
  u32 span = 0;      // logits a warp, a multiple of 8
  bool whole = false;  // the blocks hold all of the row
  mutable u32 parity = 0;

  __device__ __forceinline__ DeviceTeam() : sh(shared_state()), slice(shared_slice()) {
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  }
  // This block's part of a row of `row_len` logits; none if `room` is 0: then the row is too long to be held.
  __device__ __forceinline__ void take_slice(u32 row_len, u32 room) {
    whole = room > 0;
    first = block * room < row_len ? block * room : row_len;
    held = first + room < row_len ? room : row_len - first;
    held = whole ? held : 0;
    span = ((held + WARPS - 1) / WARPS + 7) & ~7u;
  }
  // n / blocks where blocks are a power of two; else more, so that the first ones have all of n.
  __device__ __forceinline__ u32 share_of(u32 n) const { return n >> (__ffs(blocks) - 1); }
  __device__ __forceinline__ u32 local() const { return threadIdx.x; }
  __device__ __forceinline__ u32 locals() const { return THREADS; }
  __device__ __forceinline__ u32 rank() const { return block * THREADS + threadIdx.x; }
  __device__ __forceinline__ u32 size() const { return blocks * THREADS; }
  __device__ __forceinline__ bool leader() const { return block == 0; }
  __device__ __forceinline__ bool unusual() const { return sh->unusual; }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  // Not the form that asks whole warps to come together: the compiler may have one lane take another way to it.
  __device__ __forceinline__ void cluster_arrive() const { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
  __device__ __forceinline__ void cluster_wait() const { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
  __device__ __forceinline__ void cluster_sync() const {
    cluster_arrive();
    cluster_wait();
  }
  // The same object in another block's shared memory.
  template <class T>
  __device__ __forceinline__ T *in_block(T *object, u32 other) const {
    T *there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(object), "r"(other));
    return there;
  }

  // Tells every block a value of this warp.
  template <class T>
  __device__ __forceinline__ void publish(T *array, T value) const {
    u32 lane = threadIdx.x % 32;
    if (lane < blocks) *in_block(&array[block * WARPS + threadIdx.x / 32], lane) = value;
  }

  // Calls f(index, four logits) for this thread's part of the slice: a contiguous range a warp.
  template <class F>
  __device__ __forceinline__ void each_four(F f) const {
    u32 from = threadIdx.x / 32 * span, end = from + span < held ? from + span : held;
#pragma unroll 2
    for (u32 i = from + threadIdx.x % 32 * 4; i < end; i += STEP) f(i, *reinterpret_cast<const float4 *>(slice + i));
  }
  // Calls f(id, logit) for this thread's part of the slice, -0 read as +0. The loop is short, since many functions are called in it.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    u32 from = threadIdx.x / 32 * span, end = from + span < held ? from + span : held;
#pragma unroll 1
    for (u32 i = from + threadIdx.x % 32; i < end; i += 32) f(first + i, slice[i] + 0.0f);
  }
  template <class F>
  __device__ __forceinline__ void rewrite(F f) const {
    each([&](u32 id, float x) { slice[id - first] = f(id, x); });
    __syncwarp();  // other lanes of the warp read it next
  }
  __device__ __forceinline__ Survey survey() const {
    Survey s;
    float most = -infinity(), least = infinity();
    u32 at = 0;
    each_four([&](u32 i, float4 v) {
      float m = max_nan(max_nan(v.x, v.y), max_nan(v.z, v.w));
      least = fminf(least, fminf(fminf(v.x, v.y), fminf(v.z, v.w)));
      s.count += 4;
      if (!(m <= most)) {
        if (m == m) { most = m; at = i; } else s.nan = true;
      }
    });
    s.infinite = most == infinity();
    if (least == -infinity()) {
      s.count = 0;
      each_four([&](u32, float4 v) { s.count += (v.x > -infinity()) + (v.y > -infinity()) + (v.z > -infinity()) + (v.w > -infinity()); });
    }
    if (most > -infinity()) {
      u32 offset = slice[at] == most ? 0 : slice[at + 1] == most ? 1 : slice[at + 2] == most ? 2 : 3;
      s.best = place_of(most + 0.0f, first + at + offset);
    }
    return s;
  }
  __device__ __forceinline__ u64 mass(const Weighing &w) const {
    const DoubleAddends addends(w);
    if (!addends.serve) {
      u64 own = 0;
      each_four([&](u32, float4 v) { own += (w.q(v.x) + w.q(v.y)) + (w.q(v.z) + w.q(v.w)); });
      return own;
    }
    DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
    each_four([&](u32, float4 v) {
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (u32 e = 0; e < 4; ++e) addends.add(x[e], sums[e % 2]);
    });
    return addends.taken(sums[0]) + addends.taken(sums[1]);
  }
  // Publishes what a `sum` found for every warp as the first element.
  __device__ __forceinline__ void publish_sum() const {
    publish(sh->masses, sh->part[threadIdx.x / 32][0]);
    cluster_sync();
  }
  // Finds the smallest id at which the inclusive sum of weight(id, x) exceeds the target, after every warp's sum was published. One thread of one
  // block finds it, calls done(id, x) and gets true.
  template <class F, class D>
  __device__ __forceinline__ bool draw(u64 target, F weight, D done) const {
    const u32 parts = blocks * WARPS, each = (parts + 31) / 32, lane = threadIdx.x % 32;
    u64 lane_mass = 0;
    UNROLL_NOT
    for (u32 i = lane * each; i < (lane + 1) * each && i < parts; ++i) lane_mass += sh->masses[i];
    u64 prefix = DeviceWarp{}.inclusive(lane_mass);
    u32 segment = __ffs(__ballot_sync(~0u, prefix > target)) - 1;
    u64 at = __shfl_sync(~0u, prefix - lane_mass, segment);
    UNROLL_NOT
    for (segment *= each; target - at >= sh->masses[segment]; ++segment) at += sh->masses[segment];
    if (segment / WARPS != block) return false;
    segment %= WARPS;
    const u32 warp = threadIdx.x / 32, from = segment * span, end = from + span < held ? from + span : held;
    auto lane_weights = [&](u32 step, u64 (&q)[4]) {
      u32 i = from + step * STEP + threadIdx.x % 32 * 4;
#pragma unroll
      for (u32 e = 0; e < 4; ++e) q[e] = i + e < end ? weight(first + i + e, slice[i + e] + 0.0f) : 0;
      return q[0] + q[1] + q[2] + q[3];
    };
    u64 q[4];
    UNROLL_NOT
    for (u32 step = warp; from + step * STEP < end; step += WARPS) {
      u64 sum = DeviceWarp{}.sum(lane_weights(step, q));
      if (threadIdx.x % 32 == 0) sh->steps[step] = sum;
    }
    __syncthreads();
    u32 step = 0;
    UNROLL_NOT
    for (; target - at >= sh->steps[step]; ++step) at += sh->steps[step];
    if (step % WARPS != warp) return false;
    u64 own = lane_weights(step, q);
    at += DeviceWarp{}.inclusive(own) - own;
    if (target < at || target - at >= own) return false;
    u32 i = from + step * STEP + threadIdx.x % 32 * 4, e = 0;
    if (target - at >= q[0]) { at += q[0]; e = 1; }
    if (e == 1 && target - at >= q[1]) { at += q[1]; e = 2; }
    if (e == 2 && target - at >= q[2]) e = 3;
    done(first + i + e, slice[i + e] + 0.0f);
    return true;
  }

  // Over all threads of the team. `in_warp` and `join` agree; 0 changes neither.
  template <u32 N, class W, class F>
  __device__ __forceinline__ void reduce(u64 (&v)[N], W in_warp, F join) const {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (u32 k = 0; k < N; ++k) {
      v[k] = in_warp(v[k]);
      if (lane == 0) sh->part[warp][k] = v[k];
    }
    __syncthreads();
    if (warp == 0)
      for (u32 k = 0; k < N; ++k) {
        u64 own = in_warp(lane < WARPS ? sh->part[lane][k] : 0);
        if (lane == 0) sh->slots[parity][k] = own;
      }
    cluster_sync();
    for (u32 k = 0; k < N; ++k) {
      v[k] = in_block(sh, 0)->slots[parity][k];
      UNROLL_NOT
      for (u32 other = 1; other < blocks; ++other) v[k] = join(v[k], in_block(sh, other)->slots[parity][k]);
    }
    parity ^= 1;
  }
  template <u32 N>
  __device__ __forceinline__ void sum(u64 (&v)[N]) const {
    reduce(v, [](u64 x) { return DeviceWarp{}.sum(x); }, [](u64 a, u64 b) { return a + b; });
  }
  template <u32 N>
  __device__ __forceinline__ void max(u64 (&v)[N]) const {
    reduce(v, [](u64 x) { return DeviceWarp{}.most(x); }, [](u64 a, u64 b) { return a > b ? a : b; });
  }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh->part[threadIdx.x / 32][0] = v;
    __syncthreads();
    u64 most = 0;
    UNROLL_NOT
    for (u32 warp = 0; warp < WARPS; ++warp) most = sh->part[warp][0] > most ? sh->part[warp][0] : most;
    __syncthreads();
    return static_cast<u32>(most);
  }

  __device__ __forceinline__ void clear_bins() const {
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) sh->bins[i] = 0;
    __syncthreads();
  }
  __device__ __forceinline__ void add_bin(u32 bin, u64 weight) const {
    if (!weight) return;
    // Two 32-bit additions are the hardware's own; one of 64 bits would be a loop.
    u32 *halves = reinterpret_cast<u32 *>(&sh->bins[bin]), low = static_cast<u32>(weight);
    u32 carry = low ? atomicAdd(halves, low) > ~low : 0, high = static_cast<u32>(weight >> 32) + carry;
    if (high) atomicAdd(halves + 1, high);
  }
  // Descending, the first bin at which `base` plus the sum suffices; `base` becomes the sum before it. Each block adds up its share of all blocks' bins.
  __device__ __forceinline__ u32 find_bin(u32 count, u64 &base, const Until &until) const {
    constexpr u32 MOST = BINS / THREADS;
    const u32 share = share_of(BINS), each = share > THREADS ? share / THREADS : 1;
    if (threadIdx.x == 0) { sh->found_bin = 0; sh->found_base = base; }
    cluster_sync();
    // Places in descending order: this block's begin at block * share.
    u64 v[MOST], total = 0;
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      const u32 own = threadIdx.x * each + k, at = block * share + own;
      const bool there = k < each && own < share && at < count;
      u64 parts[MAX_BLOCKS];
#pragma unroll
      for (u32 other = 0; other < MAX_BLOCKS; ++other) parts[other] = there && other < blocks ? in_block(sh, other)->bins[count - 1 - at] : 0;
      v[k] = 0;
#pragma unroll
      for (u32 other = 0; other < MAX_BLOCKS; ++other) v[k] += parts[other];
      total += v[k];
    }
    const u64 prefix = DeviceWarp{}.inclusive(total);
    if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][0] = prefix;
    __syncthreads();
    u64 before = prefix - total, of_block = 0;
    UNROLL_NOT
    for (u32 warp = 0; warp < WARPS; ++warp) {
      if (warp < threadIdx.x / 32) before += sh->part[warp][0];
      of_block += sh->part[warp][0];
    }
    if (threadIdx.x < blocks) in_block(sh, threadIdx.x)->masses[block] = of_block;
    cluster_sync();
    before += base;
    UNROLL_NOT
    for (u32 other = 0; other < block; ++other) before += sh->masses[other];
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      if (v[k] && !until(before) && until(before + v[k])) {
        UNROLL_NOT
        for (u32 other = 0; other < blocks; ++other) {
          Shared *to = in_block(sh, other);
          to->found_bin = count - 1 - (block * share + threadIdx.x * each + k);
          to->found_base = before;
        }
      }
      before += v[k];
    }
    cluster_sync();
    base = sh->found_base;
    const u32 bin = sh->found_bin;
    __syncthreads();
    return bin;
  }

  // A list is collected in every block, and then in the leader.
  __device__ __forceinline__ void begin_list() const {
    if (threadIdx.x == 0) sh->listed = 0;
    cluster_sync();
  }
  __device__ __forceinline__ void append(u64 place) const {
    u32 at = atomicAdd(&sh->listed, 1);
    if (at < LIST_CAPACITY) sh->list[at] = place;
  }
  __device__ __forceinline__ void end_list() const {
    __syncthreads();
    if (threadIdx.x < blocks) in_block(sh, threadIdx.x)->sent[block] = sh->listed;
    cluster_sync();
    if (listed_anywhere() <= LIST_CAPACITY && block) {
      u32 before = 0;
      UNROLL_NOT
      for (u32 other = 0; other < block; ++other) before += sh->sent[other];
      u64 *to = in_block(sh, 0)->list + before;
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < sh->sent[block]; i += THREADS) to[i] = sh->list[i];
    }
    cluster_sync();
  }
  // How many tokens all blocks have listed; more than LIST_CAPACITY: they are not in the leader.
  __device__ __forceinline__ u32 listed_anywhere() const {
    u32 count = 0;
    UNROLL_NOT
    for (u32 other = 0; other < blocks; ++other) count += sh->sent[other];
    return count;
  }
  __device__ __forceinline__ u32 listed() const { return leader() ? listed_anywhere() : 0; }
  __device__ __forceinline__ u64 *list() const { return sh->list; }
  __device__ __forceinline__ u64 *scratch() const { return reinterpret_cast<u64 *>(slice); }
  __device__ __forceinline__ void sort_list(u32 count) const { sort_places<THREADS>(sh->list, count); }

  template <class F>
  __device__ __forceinline__ void by_warp(F f) const {
    if (threadIdx.x < 32) f(DeviceWarp{});
  }
  __device__ __forceinline__ void tell(u64 value) const {
    if (leader()) sh->told = value;
  }
  __device__ __forceinline__ u64 told() const {
    cluster_sync();
    u64 value = in_block(sh, 0)->told;
    cluster_sync();
    return value;
  }
};

// The same threads over a row in slices, and over a row in device memory.
struct SliceTeam : DeviceTeam {
  static constexpr bool SLICES = true;
};
struct PlainTeam : DeviceTeam {
  static constexpr bool SLICES = false;
};

}  // namespace nucleus
