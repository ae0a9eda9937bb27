// The team of one row on the device: the blocks of a cluster, 512 threads each. Barriers are the hardware's: nothing spins.
#pragma once

#include "double_addends.cuh"
#include "mbarrier.cuh"
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
constexpr u32 MEETING_WORDS = 2;  // that each warp tells when the warps of a team meet

constexpr u32 LISTED = 1024;  // tokens of a list that few decide
constexpr u32 TOKENS_HELD = 2 * BINS;

// What describes a row.
struct Description {
  SamplingRow row;
  SamplingConfig config;
  SamplingProgram program;
};

// What a block holds beside its slice of the row. The slice's memory, at least SPARE_BYTES, serves as scratch where no slice is held.
struct Shared : Description {
  u64 delivered;  // mbarrier: other blocks' part of the list is there
  u64 part[WARPS][4];
  union {
    struct {
      u64 masses[MAX_BLOCKS * WARPS];      // of the parts of the row, one a warp
      u64 raw_masses[MAX_BLOCKS * WARPS];  // of the row as it came
      u32 groups[THREADS];
    };
    u64 mail[2][MEETING_WORDS][MAX_BLOCKS * WARPS];  // what the warps told, of two meetings in turn
  };
  u64 steps[MAX_STEPS];
  union {
    u32 maxima[MAX_BLOCKS * GROUPS];
    u64 task[MAX_BLOCKS * GROUPS / 2];  // that the block's warps have in common (control.cuh)
  };
  union {
    u32 sent[MAX_BLOCKS];
    u32 plan[8];  // a SlicePlan
  };
  SamplingBatch batch;
  u64 arrived[WARPS];  // mbarriers: the warp's part of the slice is there
  u64 told_all[2];     // mbarriers: all have told
  u32 met[WARPS];      // how often each warp has met the others
  u32 deliveries;
  union {
    u64 found_base;
    u64 uniform;  // that a planned row draws by, until its first cut has failed
  };
  u64 told, raw_total;
  union {
    u32 found_bin;
    float scale;  // at its temperature, as long
  };
  u32 told_count, listed, found, kept, verdict, unusual;
  float raw_largest;  // of the row as it came, whose weight at temperature 1 is raw_total
  u64 known_best, known_count, known_total;  // what the exact path begins with: first place, tokens, weight; 0: it is not known
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
      };
    };
    alignas(16) u64 list[LIST_CAPACITY];  // read by pairs
  };
};
constexpr u32 SHARED_BYTES = (sizeof(Shared) + 127) / 128 * 128;
constexpr u32 SLICE_BYTES_MAX = 232448 - SHARED_BYTES;  // of shared memory that a block may have
// Logits a block holds of a row; 16-byte parts for every warp.
constexpr u32 slice_of(u32 row_len, u32 blocks) { return ((row_len + blocks - 1) / blocks + 8 * WARPS - 1) / (8 * WARPS) * (8 * WARPS); }
static_assert(2 * (SHARED_BYTES + 1024 + slice_of(151936, 8) * 4) <= 228 * 1024, "two blocks on a multiprocessor of compute capability 9.0");
constexpr u32 SPARE_BYTES = LIST_CAPACITY * sizeof(u64) + (SHARED_EDITS + 1) * sizeof(Edit);

// The block's shared memory: Shared, then the slice. Named where it is used, so that the compiler knows the address space.
extern __shared__ __align__(128) unsigned char shared_memory[];
__device__ __forceinline__ Shared *shared_state() { return reinterpret_cast<Shared *>(shared_memory); }
__device__ __forceinline__ float *shared_slice(u32 beside = SHARED_BYTES) { return reinterpret_cast<float *>(shared_memory + beside); }

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

// Inclusive sums over a warp, or its first LANES, as DeviceWarp's, in more instructions and less time.
template <u32 LANES = 32, class T>
__device__ __forceinline__ T prefix_sum(T v) {
#pragma unroll
  for (u32 step = 1; step < LANES; step <<= 1) {
    const T before = __shfl_up_sync(~0u, v, step);
    v += threadIdx.x % 32 >= step ? before : 0;
  }
  return v;
}

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
    if (threadIdx.x / 32 * 32 >> bits < count) {  // the warp has a place
      UNROLL_8
      for (u32 i = share; i < count; i += shares) rank += places[i] > own;
    }
    UNROLL_NOT
    for (u32 step = shares / 2; step; step /= 2) rank += __shfl_xor_sync(~0u, rank, step);
    sync_block();
    if (index < count && share == 0) places[rank] = own;
    sync_block();
    return;
  }
  u32 size = 2 * N;
  while (size < count) size *= 2;
  UNROLL_NOT
  for (u32 i = count + threadIdx.x; i < size; i += N) places[i] = 0;
  sync_block();
  UNROLL_NOT
  for (u32 run = 2; run <= size; run *= 2)
    for (u32 step = run / 2; step; step /= 2) {
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < size / 2; i += N) {
        u32 a = 2 * i - (i & (step - 1)), b = a + step;
        u64 x = places[a], y = places[b];
        if ((x < y) == ((a & run) == 0)) { places[a] = y; places[b] = x; }
      }
      sync_block();
    }
}

// Adds in shared memory: two additions of 32 bits are the hardware's own; one of 64 bits would be a loop.
__device__ __forceinline__ void add_by_halves(u64 *to, u64 value) {
  u32 *halves = reinterpret_cast<u32 *>(to), low = static_cast<u32>(value);
  u32 carry = low ? atomicAdd(halves, low) > ~low : 0, high = static_cast<u32>(value >> 32) + carry;
  if (high) atomicAdd(halves + 1, high);
}

// What a thread's part of a slice has.
struct LaneSurvey : Survey {
  u32 at = 0;                  // of its largest logit, the vector in the slice
  float second = -infinity();  // the largest logit of its other vectors
};

struct DeviceTeam {
  using Warp = DeviceWarp;
  static constexpr bool READS = false;
  static constexpr u32 LISTED_MOST = LIST_CAPACITY;
  Shared *sh;
  float *slice;      // this block's logits, as many as `held`; 16-byte aligned, -inf up to a multiple of 4
  u32 blocks, block;
  u32 first = 0;     // id of the slice's first logit
  u32 held = 0;
  u32 span = 0;      // logits a warp, a multiple of 8
  bool whole = false;  // the blocks hold all of the row

  __device__ __forceinline__ DeviceTeam() : sh(shared_state()), slice(shared_slice()) {
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
#else
    blocks = 1;
    block = 0;
#endif
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
  __device__ __forceinline__ void sync() const { sync_block(); }
  // Not the form that asks whole warps to come together: the compiler may have one lane take another way to it.
  // Orders nothing: for barriers behind which nobody reads what others have stored.
  __device__ __forceinline__ void cluster_arrive_alone() const { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
  __device__ __forceinline__ void cluster_arrive() const {
    meet_for_tools();
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  }
  __device__ __forceinline__ void cluster_wait() const {
    meet_for_tools();
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }
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

  // Calls f(index, four logits) for this thread's part of the slice: a contiguous range a warp.
  template <class F>
  __device__ __forceinline__ void each_four(F f) const {
    u32 from = threadIdx.x / 32 * span, end = from + span < held ? from + span : held;
#pragma unroll 2
    for (u32 i = from + threadIdx.x % 32 * 4; i < end; i += STEP) f(i, *reinterpret_cast<const float4 *>(slice + i));
  }
  // Puts f(id, logit) where the logits of this thread's part are, -0 read as +0.
  template <class F>
  __device__ __forceinline__ void rewrite(F f) const {
    each_four([&](u32 i, float4 v) {
#pragma unroll 1
      for (u32 e = 0; e < 4; ++e) v = make_float4(v.y, v.z, v.w, f(first + i + e, v.x + 0.0f));
      *reinterpret_cast<float4 *>(slice + i) = v;
    });
  }
  // The same by CHUNK vectors at once, all of which are there before the first is looked at: f(base, vectors). Behind the end of the part stands the first vector again.
  static constexpr u32 CHUNK = 5;
  template <class F>
  __device__ __forceinline__ void each_chunk(F f) const {
    const u32 from = threadIdx.x / 32 * span, end = from + span < held ? from + span : held;
#pragma unroll 1
    for (u32 base = from + threadIdx.x % 32 * 4; base < end; base += CHUNK * STEP) {
      float4 v[CHUNK];
#pragma unroll
      for (u32 k = 0; k < CHUNK; ++k) v[k] = *reinterpret_cast<const float4 *>(slice + (base + k * STEP < end ? base + k * STEP : base));
      f(base, v);
    }
  }
  __device__ __forceinline__ LaneSurvey survey() const {
    const u32 begin = threadIdx.x / 32 * span + threadIdx.x % 32 * 4, end = threadIdx.x / 32 * span + span < held ? threadIdx.x / 32 * span + span : held;
    LaneSurvey s;
    float most = -infinity(), sum = 0;
    each_chunk([&](u32 base, const float4 (&v)[CHUNK]) {
#pragma unroll
      for (u32 k = 0; k < CHUNK; ++k) {
        const float m = fmaxf(fmaxf(v[k].x, v[k].y), fmaxf(v[k].z, v[k].w));
        sum += (v[k].x + v[k].y) + (v[k].z + v[k].w);
        s.at = m > most ? base + k * STEP : s.at;
        if (k == 0 || base + k * STEP < end) s.second = fmaxf(s.second, fminf(m, most));
        most = fmaxf(most, m);
      }
    });
    s.count = begin < end ? (end - begin + STEP - 1) / STEP * 4 : 0;
    if (!(fabsf(sum) < infinity())) {  // a token that is out, NaN or +inf; or the sum is beyond all floats
      s.count = 0;
      each_four([&](u32, float4 v) {
        const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          s.count += x[e] > -infinity();
          s.nan |= x[e] != x[e];
        }
      });
      s.infinite = most == infinity();
    }
    if (most > -infinity()) {
      const float4 v = *reinterpret_cast<const float4 *>(slice + s.at);  // of the repeated vector the first stands
      s.best = place_of(most + 0.0f, first + s.at + (v.x == most ? 0 : v.y == most ? 1 : v.z == most ? 2 : 3));
    }
    return s;
  }
  // What the logits of this thread's part weigh, by a team's each_four.
  template <class Team>
  __device__ __forceinline__ static u64 mass_of(const Team &team, const Weighing &w) {
    const DoubleAddends addends(w);
    if (!addends.serve) {
      u64 own = 0;
      team.each_four([&](u32, float4 v) { own += (w.q(v.x) + w.q(v.y)) + (w.q(v.z) + w.q(v.w)); });
      return own;
    }
    DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
    team.each_four([&](u32, float4 v) {
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (u32 e = 0; e < 4; ++e) addends.add(x[e], sums[e % 2]);
    });
    return addends.taken(sums[0]) + addends.taken(sums[1]);
  }
  __device__ __forceinline__ u64 mass(const Weighing &w) const { return mass_of(*this, w); }
  // The warp's part of the row in which a draw falls.
  struct DrawnPart {
    u64 target;
    u32 owner;   // the lane that has the others
    u32 part;
    u64 before;  // the sum of those before it
  };
  // masses: every warp's sum, in the order of the row; target_of(total): from the sum of all.
  template <class T>
  __device__ __forceinline__ DrawnPart find_part(const u64 *masses, T target_of) const {
    constexpr u32 EACH = MAX_BLOCKS * WARPS / 32;
    const u32 first_part = threadIdx.x % 32 * EACH, parts = blocks * WARPS;
    u64 own[EACH], mass = 0;
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      own[e] = first_part + e < parts ? masses[first_part + e] : 0;
      mass += own[e];
    }
    const u64 through = prefix_sum(mass), target = target_of(DeviceWarp{}.last(through));
    DrawnPart drawn{target, static_cast<u32>(__ffs(__ballot_sync(~0u, through > target)) - 1), first_part, through - mass};
#pragma unroll
    for (u32 e = 0; e + 1 < EACH; ++e)
      if (drawn.part == first_part + e && target - drawn.before >= own[e]) {
        drawn.before += own[e];
        drawn.part += 1;
      }
    return drawn;
  }
  // Finds the smallest id at which the inclusive sum of weight(id, x) exceeds the target. masses: every warp's sum. One thread of one block finds it, calls
  // done(id, x) and gets true.
  template <class F, class D>
  __device__ __forceinline__ bool draw(const u64 *masses, u64 target, F weight, D done) const {
    return draw_by(masses, [=](u64) { return target; }, weight, done);
  }
  // The same; target_of(total): from the sum of all.
  template <class T, class F, class D>
  __device__ __forceinline__ bool draw_by(const u64 *masses, T target_of, F weight, D done) const {
    return draw_in<false>(find_part(masses, target_of), weight, done);
  }
  // The same in the part that it falls in, by its block; others have nothing to do. BY_FIRST: behind the last barrier of the block the first warp alone goes on.
  template <bool BY_FIRST, class F, class D>
  __device__ __forceinline__ bool draw_in(const DrawnPart &drawn, F weight, D done) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 target = drawn.target;
    u32 segment = __shfl_sync(~0u, drawn.part, drawn.owner);
    u64 at = __shfl_sync(~0u, drawn.before, drawn.owner);
    if (segment / WARPS != block) return false;
    segment %= WARPS;
    const u32 from = segment * span, end = from + span < held ? from + span : held;
    u64 q[4];
    auto weigh_step = [&](u32 step) {
      const u32 i = from + step * STEP + lane * 4;
#pragma unroll
      for (u32 e = 0; e < 4; ++e) q[e] = i + e < end ? weight(first + i + e, slice[i + e] + 0.0f) : 0;
      return prefix_sum((q[0] + q[1]) + (q[2] + q[3]));
    };
    u64 through = 0;
    UNROLL_NOT
    for (u32 step = warp; from + step * STEP < end; step += WARPS) {
      through = weigh_step(step);
      if (lane == 31) sh->steps[step] = through;
    }
    sync_block();
    static_assert(MAX_STEPS == 64);
    const u32 steps = (end - from + STEP - 1) / STEP;
    u64 two[2];
#pragma unroll
    for (u32 e = 0; e < 2; ++e) two[e] = 2 * lane + e < steps ? sh->steps[2 * lane + e] : 0;
    const u64 up_to = prefix_sum(two[0] + two[1]), wanted = target - at;
    const u32 pair = __ffs(__ballot_sync(~0u, up_to > wanted)) - 1;
    const u64 before = __shfl_sync(~0u, up_to - two[0] - two[1], pair), of_first = __shfl_sync(~0u, two[0], pair);
    const bool second = wanted - before >= of_first;
    const u32 step = 2 * pair + second;
    at += before + (second ? of_first : 0);
    if (warp != (BY_FIRST ? 0 : step % WARPS)) return false;
    if (BY_FIRST || steps > WARPS) through = weigh_step(step);
    const u64 of_lane = (q[0] + q[1]) + (q[2] + q[3]);
    at += through - of_lane;
    if (target < at || target - at >= of_lane) return false;
    u32 i = from + step * STEP + lane * 4, e = 0;
    if (target - at >= q[0]) { at += q[0]; e = 1; }
    if (e == 1 && target - at >= q[1]) { at += q[1]; e = 2; }
    if (e == 2 && target - at >= q[2]) e = 3;
    done(first + i + e, slice[i + e] + 0.0f);
    return true;
  }

  // Before the first meeting, by every thread; a barrier of the cluster must follow.
  __device__ __forceinline__ void prepare_meetings() const {
    if (threadIdx.x < WARPS) sh->met[threadIdx.x] = 0;
    if (threadIdx.x) return;
    sh->deliveries = 0;
    init_barrier(&sh->told_all[0], 1);
    init_barrier(&sh->told_all[1], 1);
    init_barrier(&sh->delivered, 1);
    publish_barriers();
  }
  // The same word of another block's shared memory, as an address.
  __device__ __forceinline__ static u32 address_in(const void *word, u32 other) { return nucleus::address_in(shared_address(word), other); }
  // Every warp tells all warps of the team its words; returns where those of all will be, a row a word, once they have been waited for. What was told at one meeting may be
  // read until the next but one, to which nobody comes before all have been at the next. No fence: it orders nothing but these words.
  template <u32 N>
  __device__ __forceinline__ u32 tell_all(const u64 (&words)[N]) const {
    static_assert(N <= MEETING_WORDS);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, met = sh->met[warp], turn = met % 2;
    if (blocks == 1) {  // such a kernel may have been launched without clusters, where there is no store of this kind
      if (lane < N) sh->mail[turn][lane][warp] = lane ? words[N - 1] : words[0];
      __syncwarp();
      if (lane == 0) sh->met[warp] = met + 1;
      sync_block();
      return met;
    }
    if (lane < blocks) {
      const u32 barrier = address_in(&sh->told_all[turn], lane), to = address_in(&sh->mail[turn][0][block * WARPS + warp], lane);
#pragma unroll
      for (u32 k = 0; k < N; ++k) send_u64(to + k * static_cast<u32>(sizeof sh->mail[0][0]), words[k], barrier);
    }
    if (threadIdx.x == 0) arrive_expecting(&sh->told_all[turn], blocks * WARPS * N * static_cast<u32>(sizeof(u64)));
    __syncwarp();
    if (lane == 0) sh->met[warp] = met + 1;
    __syncwarp();
    return met;
  }
  // Waits until all have come to this meeting; returns what they told.
  __device__ __forceinline__ u64 (*await_all(u32 met) const)[MAX_BLOCKS * WARPS] {
    if (blocks > 1) wait_for_copy(&sh->told_all[met % 2], met / 2 % 2);
    return sh->mail[met % 2];
  }
  template <u32 N>
  __device__ __forceinline__ u64 (*meet(const u64 (&words)[N]) const)[MAX_BLOCKS * WARPS] {
    return await_all(tell_all(words));
  }
  // What the warps told at the last meeting as their first word.
  __device__ __forceinline__ const u64 *last_told() const { return sh->mail[(sh->met[threadIdx.x / 32] + 1) % 2][0]; }

  // Over all threads of the team: word k of all is added up, or their largest taken if bit k of `largest` is set. In two steps: what a warp has found is told by every warp, and
  // gathered by those that need what all have. tell_reduced() returns the meeting.
  template <u32 N>
  __device__ __forceinline__ u32 tell_reduced(u32 largest, u64 (&v)[N]) const {
    const DeviceWarp warp;
#pragma unroll
    for (u32 k = 0; k < N; ++k) v[k] = largest >> k & 1 ? warp.most(v[k]) : warp.sum(v[k]);
    return tell_all(v);
  }
  template <u32 N>
  __device__ __forceinline__ void gather_reduced(u32 largest, u32 meeting, u64 (&v)[N]) const {
    const DeviceWarp warp;
    const auto told = await_all(meeting);
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
      u64 all = 0;
#pragma unroll
      for (u32 j = 0; j < MAX_BLOCKS * WARPS / 32; ++j) {
        const u32 i = j * 32 + threadIdx.x % 32;
        const u64 other = i < blocks * WARPS ? told[k][i] : 0;
        all = largest >> k & 1 ? (other > all ? other : all) : all + other;
      }
      v[k] = largest >> k & 1 ? warp.most(all) : warp.sum(all);
    }
  }
  template <u32 LARGEST, u32 N>
  __device__ __forceinline__ void reduce(u64 (&v)[N]) const {
    gather_reduced(LARGEST, tell_reduced(LARGEST, v), v);
  }
  template <u32 N>
  __device__ __forceinline__ void sum(u64 (&v)[N]) const {
    reduce<0>(v);
  }
  template <u32 N>
  __device__ __forceinline__ void max(u64 (&v)[N]) const {
    reduce<~0u>(v);
  }
  __device__ __forceinline__ void sum_and_max(u64 &sum, u64 &most) const {
    u64 v[2] = {sum, most};
    reduce<2>(v);
    sum = v[0];
    most = v[1];
  }
  // The sum over the warps before this one, in the order of the row; `own` is the same in all lanes.
  template <u32 N>
  __device__ __forceinline__ void sum_before(u64 (&own)[N]) const {
    const auto told = meet(own);
    const u32 before = block * WARPS + threadIdx.x / 32;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
      own[k] = 0;
#pragma unroll
      for (u32 j = 0; j < MAX_BLOCKS * WARPS / 32; ++j) own[k] += j * 32 + threadIdx.x % 32 < before ? told[k][j * 32 + threadIdx.x % 32] : 0;
      own[k] = DeviceWarp{}.sum(own[k]);
    }
  }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    sync_block();
    if (threadIdx.x % 32 == 0) sh->part[threadIdx.x / 32][0] = v;
    sync_block();
    u64 most = 0;
    UNROLL_NOT
    for (u32 warp = 0; warp < WARPS; ++warp) most = sh->part[warp][0] > most ? sh->part[warp][0] : most;
    sync_block();
    return static_cast<u32>(most);
  }

  __device__ __forceinline__ void clear_bins() const {
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) sh->bins[i] = 0;
    sync_block();
  }
  __device__ __forceinline__ void add_bin(u32 bin, u64 weight) const {
    if (weight) add_by_halves(&sh->bins[bin], weight);
  }
  // What all blocks have in the bins of this thread, once a barrier of the cluster has passed. Each block adds up its share of them; places in descending order: this
  // block's begin at block * share. get(block's state, bin); use(k, bin, sum over blocks).
  template <class Get, class Use>
  __device__ __forceinline__ void each_bin(u32 count, Get get, Use use) const {
    constexpr u32 MOST = BINS / THREADS;
    const u32 share = share_of(BINS), each = share > THREADS ? share / THREADS : 1;
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      const u32 own = threadIdx.x * each + k, at = block * share + own;
      const bool there = k < each && own < share && at < count;
      u64 parts[MAX_BLOCKS], all = 0;
#pragma unroll
      for (u32 other = 0; other < MAX_BLOCKS; ++other) parts[other] = there && other < blocks ? get(in_block(sh, other), count - 1 - at) : 0;
#pragma unroll
      for (u32 other = 0; other < MAX_BLOCKS; ++other) all += parts[other];
      use(k, there ? count - 1 - at : BINS, all);
    }
  }
  // Descending, the first bin at which `base` plus the sum suffices; `base` becomes the sum before it. 0, and `base` as it was: there is none.
  __device__ __forceinline__ u32 find_bin(u32 count, u64 &base, const Until &until) const {
    constexpr u32 MOST = BINS / THREADS;
    cluster_sync();
    u64 v[MOST], total = 0;
    u32 bins[MOST];
    each_bin(count, [](const Shared *there, u32 bin) { return there->bins[bin]; }, [&](u32 k, u32 bin, u64 all) {
      v[k] = all;
      bins[k] = bin;
      total += all;
    });
    const u64 prefix = DeviceWarp{}.inclusive(total);
    u64 earlier[1] = {DeviceWarp{}.last(prefix)};
    sum_before(earlier);
    u64 before = base + earlier[0] + prefix - total, found[2] = {0, 0};  // the first that suffices is the largest bin, and has least before it
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      if (v[k] && until(before + v[k]) && bins[k] + 1 > found[0]) {
        found[0] = bins[k] + 1;
        found[1] = ~before;
      }
      before += v[k];
    }
    max(found);
    if (!found[0]) return 0;
    base = ~found[1];
    return static_cast<u32>(found[0]) - 1;
  }

  // A list of up to MOST places is collected in every block, and then in the leader. What a list lies over, no other block reads any more.
  __device__ __forceinline__ void begin_list() const {
    if (threadIdx.x == 0) sh->listed = 0;
    sync_block();
  }
  template <u32 MOST = LIST_CAPACITY>
  __device__ __forceinline__ void append(u64 place) const {
    u32 at = atomicAdd(&sh->listed, 1);
    if (at < MOST) sh->list[at] = place;
  }
  // Returns how many tokens all blocks have listed; more than MOST: they are not in the leader. `own`: a thread's number; becomes their sum.
  template <u32 MOST = LIST_CAPACITY>
  __device__ __forceinline__ u32 end_list(u64 &own) const {
    sync_block();
    const u64 words[2] = {threadIdx.x < 32 ? sh->listed : 0, DeviceWarp{}.sum(own)};  // the first warp tells for its block
    const auto told = meet(words);
    u32 before = 0, all = 0, here = 0;
    UNROLL_NOT
    for (u32 other = 0; other < blocks; ++other) {
      const u32 listed = static_cast<u32>(told[0][other * WARPS]);
      before += other < block ? listed : 0;
      here = other == block ? listed : here;
      all += listed;
    }
    own = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < blocks * WARPS; i += 32) own += told[1][i];
    own = DeviceWarp{}.sum(own);
    const u32 elsewhere = all - static_cast<u32>(told[0][0]);
    if (all > MOST || !elsewhere) return all;
    if (block) {
      const u32 to = address_in(sh->list + before, 0), barrier = address_in(&sh->delivered, 0);
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < here; i += THREADS) send_u64(to + i * static_cast<u32>(sizeof(u64)), sh->list[i], barrier);
    } else {
      const u32 delivery = sh->deliveries;
      if (threadIdx.x == 0) arrive_expecting(&sh->delivered, elsewhere * static_cast<u32>(sizeof(u64)));
      wait_for_copy(&sh->delivered, delivery % 2);
      sync_block();
      if (threadIdx.x == 0) sh->deliveries = delivery + 1;
    }
    return all;
  }
  __device__ __forceinline__ u32 end_list() const {
    u64 nothing = 0;
    return end_list(nothing);
  }
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

// What a block has beside its slice: two blocks are on a multiprocessor, or one whose slice is so large that the end of the lists belongs to it.
struct FullRoom {
  using Team = DeviceTeam;
  static constexpr u32 LIST = LIST_CAPACITY, TOKENS = TOKENS_HELD, BYTES = SHARED_BYTES, RESIDENT = 2, BLOCKS = 0;  // a cluster has a power of two
  static constexpr u32 CLUSTER_WARPS = MAX_BLOCKS * WARPS, MAXIMA = 1, HITS = 24;  // of a cluster, at most; largest logits that a warp tells of its look, and its tokens in the first list
};
struct ShortRoom {
  struct Team : DeviceTeam {
    __device__ __forceinline__ explicit Team(const DeviceTeam &team = DeviceTeam()) : DeviceTeam(team) { slice = shared_slice(BYTES); }
    // By two vectors, of which both are read before the first is looked at: a multiprocessor has but half as many warps.
    template <class F>
    __device__ __forceinline__ void each_four(F f) const {
      const u32 from = threadIdx.x / 32 * span, end = from + span < held ? from + span : held;
      u32 i = from + threadIdx.x % 32 * 4;
#pragma unroll 1
      for (; i + STEP < end; i += 2 * STEP) {
        const float4 v = *reinterpret_cast<const float4 *>(slice + i), next = *reinterpret_cast<const float4 *>(slice + i + STEP);
        f(i, v);
        f(i + STEP, next);
      }
      if (i < end) f(i, *reinterpret_cast<const float4 *>(slice + i));
    }
  };
  static constexpr u32 LIST = LIST_CAPACITY / 2, TOKENS = 1600, RESIDENT = 1, BLOCKS = 3;
  static constexpr u32 CLUSTER_WARPS = BLOCKS * WARPS, MAXIMA = 2, HITS = 21;
  static constexpr u32 BYTES = (sizeof(Shared) - (TOKENS_HELD - TOKENS) * sizeof(u32) + 127) / 128 * 128;  // the tokens are last
};
static_assert(ShortRoom::LIST * sizeof(u64) <= (SLICE_EDITS + 1) * sizeof(Edit));
static_assert(ShortRoom::BYTES + slice_of(151936, ShortRoom::BLOCKS) * 4 <= SHARED_BYTES + SLICE_BYTES_MAX, "3 blocks hold a row");

// The threads over a row in device memory.
struct PlainTeam : DeviceTeam {
  static constexpr bool SLICES = false;
};

}  // namespace nucleus
