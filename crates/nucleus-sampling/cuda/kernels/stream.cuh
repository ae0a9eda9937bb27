// A row streamed by one block, for batches in which every block has a row of its own: nothing is held, and two sweeps are read at most.
//
// The largest logits of the threads over the row's beginning bound the k-th from below; what reaches the bound is collected in one sweep. A draw
// from the whole row, and a top_p over it, need the row's largest logit before any weight: they sweep twice. Tokens with edits are left out of
// the bound and of the collection, and enter with their edited logits from the table; in sums, their edited weights replace the others.
#pragma once

#include "slice.cuh"

namespace nucleus {

constexpr u32 LOADS = 4;              // 16-byte loads in flight a thread
constexpr u32 BOUND_LOADS = 8;        // loads a thread that the bound is taken from
constexpr u32 SEGMENTS = CANDIDATES;  // places for sums of parts of a row
constexpr u32 COLLECTED = LISTED;     // tokens that reach the bound

// 16 bytes of logits, widened.
template <u32 DTYPE>
struct Lane {
  static constexpr u32 WIDTH = DTYPE == NUCLEUS_F32 ? 4 : 8;
  float x[WIDTH];

  __device__ __forceinline__ explicit Lane(uint4 v) {
    const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (DTYPE == NUCLEUS_F32) x[i] = float_of(w[i]);
      else {
        u32 half = i % 2 ? w[i / 2] >> 16 : w[i / 2] & 0xFFFFu;
        x[i] = DTYPE == NUCLEUS_BF16 ? float_of(half << 16) : widen_f16(static_cast<uint16_t>(half));
      }
    }
  }
};

template <u32 DTYPE>
struct Stream {
  using Vector = Lane<DTYPE>;
  static constexpr u32 WIDTH = Vector::WIDTH, ROUND = THREADS * WIDTH;
  Shared *sh;
  const Request &r;
  const EditTable &table;
  u64 *places;      // of the tokens collected
  const u32 *mask;  // null: none
  bool edits;       // the table holds edits

  // Logits are read once or twice: they leave the L2 cache first, so that code and histories stay.
  __device__ __forceinline__ static uint4 read(const uint4 *from) { return __ldcs(from); }

  // Calls f(first id, Vector) for ids below `end`, ascending by rounds of the block; what does not exist or is masked is -inf.
  template <class F>
  __device__ __forceinline__ void sweep(u32 end, F f) const {
    const uint4 *from = static_cast<const uint4 *>(r.logits);
    const u32 whole = end / WIDTH * WIDTH;
    uint4 v[LOADS];
#pragma unroll
    for (u32 j = 0; j < LOADS; ++j) {
      u32 id = j * ROUND + threadIdx.x * WIDTH;
      if (id < whole) v[j] = read(from + id / WIDTH);
    }
    for (u32 base = 0; base < end; base += LOADS * ROUND) {
#pragma unroll
      for (u32 j = 0; j < LOADS; ++j) {
        u32 id = base + j * ROUND + threadIdx.x * WIDTH, next = id + LOADS * ROUND;
        uint4 now = v[j];
        if (next < whole) v[j] = read(from + next / WIDTH);
        if (base + j * ROUND >= end) continue;  // of the whole block
        Vector x(now);
        if (id >= whole || mask) restrict(id, end, x);
        f(id, x);
      }
    }
  }
  __device__ __noinline__ static float logit_or_none(const void *logits, u32 id, u32 end) {
    if (id >= end) return -infinity();
    return DTYPE == NUCLEUS_F32 ? static_cast<const float *>(logits)[id] : widen(static_cast<const uint16_t *>(logits)[id]);
  }
  __device__ __forceinline__ static float widen(uint16_t h) { return DTYPE == NUCLEUS_BF16 ? float_of(static_cast<u32>(h) << 16) : widen_f16(h); }
  __device__ __forceinline__ void restrict(u32 id, u32 end, Vector &x) const {
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      if (id + WIDTH > end) x.x[i] = logit_or_none(r.logits, id + i, end);
      if (mask && !mask_allows(r, id + i)) x.x[i] = -infinity();
    }
  }
  __device__ __forceinline__ static float most_of(const Vector &v) {
    float m = v.x[0];
#pragma unroll
    for (u32 i = 1; i < WIDTH; ++i) m = max_nan(m, v.x[i]);
    return m;
  }

  // The key of this thread's largest unedited logit below `end`; 0 if it has none. With `roughly`, 0 also if its largest logit is edited.
  __device__ __forceinline__ u32 own_key(u32 end, bool roughly, bool &unusual) const {
    float most = -infinity();
    u32 at = 0;
    const bool exactly = edits && !roughly;
    sweep(end, [&](u32 id, const Vector &v) {
      float m = most_of(v);
      if (m <= most) return;
      if (!(m < infinity())) unusual = true;
      if (exactly) {
#pragma unroll 1
        for (u32 i = 0; i < WIDTH; ++i) {
          float x = logit_or_none(r.logits, id + i, end);
          if (x > most && !table.find(id + i) && !(mask && !mask_allows(r, id + i))) most = x;
        }
        return;
      }
      most = m;
      at = id;
    });
    if (edits && roughly && most > -infinity())
#pragma unroll 1
      for (u32 i = 0; i < WIDTH; ++i)
        if (logit_or_none(r.logits, at + i, end) == most && table.find(at + i)) return 0;
    return most > -infinity() && most < infinity() ? key_of(most + 0.0f) : 0;
  }

  // Replaces the table's biases by the edited logits; -inf: out.
  __device__ __forceinline__ void edit_table(bool &unusual) const {
    constexpr u32 AHEAD = SHARED_EDITS / THREADS;
    float ahead[AHEAD];
#pragma unroll
    for (u32 i = 0; i < AHEAD; ++i) {
      u32 at = i * THREADS + threadIdx.x, id = at < table.capacity ? table.slots[at].id : NO_ID;
      ahead[i] = id < r.limit ? load_logit(r, id) : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < AHEAD; ++i) {
      u32 at = i * THREADS + threadIdx.x;
      if (at >= table.capacity || table.slots[at].id >= r.limit) continue;
      Edit &edit = table.slots[at];
      edit.bias = r.mask && !mask_allows(r, edit.id) ? -infinity() : edited(r, ahead[i], edit, unusual);
    }
  }
  template <class F>
  __device__ __forceinline__ void each_edited(F f) const {
    if (!edits) return;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < table.capacity; i += THREADS)
      if (table.slots[i].id < r.limit) f(table.slots[i].id, table.slots[i].bias);
  }

  __device__ __forceinline__ void append_unedited(u32 id, float x) const {
    if (!edits || !table.find(id)) append(id, x);
  }
  __device__ __forceinline__ void append(u32 id, float x) const {
    u32 at = atomicAdd(&sh->found, 1);
    if (at < COLLECTED) places[at] = place_of(x + 0.0f, id);
  }

  // One sweep over the row: collects what reaches the threshold, and sums weights by parts of a warp's round; returns how many tokens it saw.
  template <bool WEIGH>
  __device__ __forceinline__ u32 take(float threshold, const Weighing &w, bool &unusual) const {
    u32 count = 0;
    sweep(r.limit, [&](u32 id, const Vector &v) {
      float m = most_of(v);
      if (!(m < threshold) && m > -infinity()) {
        if (!(m < infinity())) unusual = true;
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i)
          if (v.x[i] >= threshold && v.x[i] > -infinity()) append_unedited(id + i, v.x[i]);
      } else if (m != m) {
        unusual = true;
      }
      if (WEIGH) {
        u64 own = 0;
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i) {
          own += w.q(v.x[i]);
          count += v.x[i] > -infinity();
        }
        own = DeviceWarp{}.sum(own);
        if (threadIdx.x % 32 == 0) sh->candidates[id / (32 * WIDTH)] = own;
      }
    });
    each_edited([&](u32 id, float x) {
      if (x >= threshold && x > -infinity()) append(id, x);
    });
    return count;
  }

  // Replaces the weights of edited tokens in the sums, after a barrier; returns the change of the count.
  __device__ __forceinline__ u32 reweigh(const Weighing &w) const {
    u32 change = 0;
    each_edited([&](u32 id, float x) {
      float before = r.mask && !mask_allows(r, id) ? -infinity() : load_logit(r, id);
      change += (x > -infinity()) - (before > -infinity());
      u64 difference = w.q(x) - w.q(before);
      if (difference) atomicAdd(reinterpret_cast<unsigned long long *>(&sh->candidates[id / (32 * WIDTH)]), static_cast<unsigned long long>(difference));
    });
    return change;
  }

  // The sum over this thread's part of the segments, what lies before it, and the whole.
  struct Share {
    u64 own, before, total;
    u32 first, end;
  };
  __device__ __forceinline__ Share share() const {
    Share s{0, 0, 0, 0, 0};
    const u32 segments = (r.limit + 32 * WIDTH - 1) / (32 * WIDTH), each = (segments + THREADS - 1) / THREADS;
    s.first = threadIdx.x * each;
    s.end = s.first + each < segments ? s.first + each : segments;
    for (u32 i = s.first; i < s.end; ++i) s.own += sh->candidates[i];
    u64 prefix = DeviceWarp{}.inclusive(s.own);
    if (threadIdx.x % 32 == 31) sh->masses[threadIdx.x / 32] = prefix;
    __syncthreads();
    s.before = prefix - s.own;
    for (u32 warp = 0; warp < WARPS; ++warp) {
      if (warp < threadIdx.x / 32) s.before += sh->masses[warp];
      s.total += sh->masses[warp];
    }
    return s;
  }

  // Draws from the sums; one thread calls done(id, x).
  template <class D>
  __device__ __forceinline__ void draw(const Share &s, const Weighing &w, u64 target, D done) const {
    if (target >= s.before && target - s.before < s.own) {
      u64 at = s.before;
      u32 segment = s.first;
      for (; target - at >= sh->candidates[segment]; ++segment) at += sh->candidates[segment];
      sh->found_bin = segment;
      sh->found_base = at;
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    u64 at = sh->found_base, own = 0;
    const u32 id = (sh->found_bin * 32 + threadIdx.x) * WIDTH;
    float x[WIDTH];
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      x[i] = -infinity();
      if (id + i < r.limit && !(r.mask && !mask_allows(r, id + i))) {
        const Edit *edit = edits ? table.find(id + i) : nullptr;
        x[i] = edit ? edit->bias : load_logit(r, id + i);
      }
      own += w.q(x[i]);
    }
    at += DeviceWarp{}.inclusive(own) - own;
    if (target < at || target - at >= own) return;
#pragma unroll
    for (u32 i = 0; i < WIDTH; ++i) {
      u64 q = w.q(x[i]);
      if (target >= at && target - at < q) done(id + i, x[i] + 0.0f);
      at += q;
    }
  }

  // Leaves of the places those that reach the k-th largest of the threads' maxima; returns how many.
  __device__ __forceinline__ u32 shrink(u32 count, u32 k) const {
    constexpr u32 EACH = COLLECTED / THREADS;
    u64 own[EACH], most = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      u32 at = i * THREADS + threadIdx.x;
      own[i] = at < count ? places[at] : 0;
      most = own[i] > most ? own[i] : most;
    }
    u32 key = kth_of_threads(static_cast<u32>(most >> 32), k);
    if (threadIdx.x == 0) sh->found = 0;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < EACH; ++i)
      if (own[i] && static_cast<u32>(own[i] >> 32) >= key) places[atomicAdd(&sh->found, 1)] = own[i];
    __syncthreads();
    return sh->found;
  }
};

}  // namespace nucleus
