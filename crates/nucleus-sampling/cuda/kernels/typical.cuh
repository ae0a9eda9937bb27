// Where the run of typical tokens ends in a row held in slices: by the distance of their surprise from the mean, in Q16, as steps.cuh does by the logit. Each part is
// a sweep; what its words come to over all warps is for the one that runs the row's program.
#pragma once

#include "steps.cuh"

namespace nucleus {

constexpr u32 DISTANCE_BITS = 10;  // of distances that are counted together
constexpr u32 TYPICAL_STEPS = 4;   // of these, as many at most are listed
constexpr u32 ID_BITS = 19;
static_assert(NUCLEUS_MAX_VOCAB <= 1u << ID_BITS);

// A row's surprises about their mean. The order in which tokens join: by distance, the likelier side first.
struct Typical {
  float s;
  i32 max_n, mean;

  __device__ __forceinline__ Weighing weighing() const {
    Weighing w;
    w.s = s;
    w.max_n = max_n;
    return w;
  }
  // Twice the distance, and one more on the less likely side; of tokens so far below the largest that they weigh nothing, more than of any that does.
  __device__ __forceinline__ u32 order_of(i32 surprise) const {
    const i32 off = surprise - mean;
    return static_cast<u32>(off > 0 ? off : -off) << 1 | (off > 0 ? 0 : 1);
  }
  __device__ __forceinline__ u32 order(const Exponent &e) const {
    constexpr i32 LOWEST = -(1 << 14);
    const i32 octaves = e.weighs && e.n - max_n > LOWEST ? e.n - max_n : LOWEST;
    return order_of(octaves * 65536 + (e.weighs ? __float2int_rn(e.f * 65536.0f) : 0));
  }
  // Calls f(id, whether it is left, logit, weight, order) for tokens of this thread's part, those that are left among them.
  template <class Team, class F>
  __device__ __forceinline__ void each(const Team &team, const Bounds &bounds, F f) const {
    const DoubleMoments moments(weighing());
    if (!moments.serve) {
      each_left(team, bounds, [&](u32 id, float x) {
        const Exponent e(x, s);
        f(id, true, x, e.weight(max_n), order(e));
      });
      return;
    }
    each_kept(team, bounds, [&](u32, u32 id, bool left, float x) {
      float above;
      const u64 q = moments.taken(moments.weigh(left ? x : -infinity(), above));
      f(id, left, x, q, order_of(moments.surprise_of(above)));
    });
  }
};
// Which way the run grows among tokens of one order: upwards on the likelier side.
__device__ __forceinline__ bool grows_upwards(u32 order) { return !(order & 1); }

// Orders among which the run may end; `far` 0: beyond what is counted.
struct OrderRange {
  u32 near, far;  // near inclusive, far not

  __device__ __forceinline__ static OrderRange of_steps(u32 first, u32 count) { return OrderRange{first << (DISTANCE_BITS + 1), (first + count) << (DISTANCE_BITS + 1)}; }
  // From the largest bins, plus one, from which on the sum of weights may begin to suffice, and up to which it has. Between two that are far apart little weighs: then it is
  // the further one most often, else the nearer, which becomes `other`.
  __device__ __forceinline__ static OrderRange of(u64 may, u64 must, OrderRange &other) {
    const u32 first = BINS - static_cast<u32>(may), last = BINS - static_cast<u32>(must);  // steps, from the nearest
    other = OrderRange{0, 0};
    if (last + 1 >= BINS) return other;
    if (last - first < TYPICAL_STEPS) return of_steps(first, last + 1 - first);
    other = of_steps(first, TYPICAL_STEPS);
    return of_steps(last, 1);
  }
};
// Counts weights in units of 2^shift, rounded down.
template <class Team>
__device__ __forceinline__ void range_of_typical(const Team &team, const Bounds &bounds, const Typical &typical, u32 shift, const Until &until, u64 (&found)[2]) {
  static_assert(BINS * sizeof(u32) <= sizeof(Shared::listed_places));
  u32 *masses = reinterpret_cast<u32 *>(team.sh->listed_places);
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < BINS; i += THREADS) masses[i] = 0;
  sync_block();
  typical.each(team, bounds, [&](u32, bool, float, u64 q, u32 order) {
    const u32 units = static_cast<u32>(q >> shift), step = order >> (DISTANCE_BITS + 1);
    if (units) atomicAdd(&masses[BINS - 1 - (step < BINS ? step : BINS - 1)], units);
  });
  team.cluster_sync();
  constexpr u32 MOST = BINS / THREADS;
  u32 bins[MOST];
  u64 own[MOST], sum = 0;
  team.each_bin(BINS, [](const Shared *there, u32 bin) { return reinterpret_cast<const u32 *>(there->listed_places)[bin]; }, [&](u32 k, u32 bin, u64 units) {
    bins[k] = bin;
    own[k] = units << shift;
    sum += own[k];
  });
  const u64 in_warp = prefix_sum(sum);
  u64 before[1] = {DeviceWarp{}.last(in_warp)};
  team.sum_before(before);
  u64 through = before[0] + in_warp - sum;
  const u64 off = static_cast<u64>(team.sh->batch.row_len) << shift;
  found[0] = found[1] = 0;
#pragma unroll
  for (u32 k = 0; k < MOST; ++k) {
    through += own[k];
    if (bins[k] < BINS && (through + off >= until.least || !bins[k]) && bins[k] + 1 > found[0]) found[0] = bins[k] + 1;
    if (bins[k] < BINS && (through >= until.least || !bins[k]) && bins[k] + 1 > found[1]) found[1] = bins[k] + 1;
  }
}

// The last token of the run: its order and its place, packed so that descending keys are tokens in the order in which they join.
struct TypicalEnd {
  u32 order;
  u64 place;

  static constexpr u32 PLACE_BITS = 32 + ID_BITS, ORDERS = TYPICAL_STEPS << (DISTANCE_BITS + 1);
  static constexpr u64 PLACES = (1ull << PLACE_BITS) - 1;
  static_assert(PLACE_BITS + DISTANCE_BITS + 1 + 2 <= 64 && TYPICAL_STEPS <= 4);

  __device__ __forceinline__ static u64 key_of_token(u32 order, u32 near, float x, u32 id) {
    const u64 place = static_cast<u64>(key_of(x + 0.0f)) << ID_BITS | ((1u << ID_BITS) - 1 - id);
    return static_cast<u64>(ORDERS - 1 - (order - near)) << PLACE_BITS | (grows_upwards(order) ? PLACES - place : place);
  }
  __device__ __forceinline__ TypicalEnd(u64 key, u32 near) : order(near + (ORDERS - 1 - static_cast<u32>(key >> PLACE_BITS))) {
    const u64 own = grows_upwards(order) ? PLACES - (key & PLACES) : key & PLACES;
    place = own >> ID_BITS << 32 | static_cast<u32>(~((1u << ID_BITS) - 1 - (static_cast<u32>(own) & ((1u << ID_BITS) - 1))));
  }
};
// Its key; 0: a list of so many does not hold the tokens among which it is.
template <u32 MOST, class Team>
__device__ __forceinline__ u64 end_of_typical(const Team &team, const Bounds &bounds, const Typical &typical, const OrderRange &range, const Until &until) {
  const Weighing w = typical.weighing();
  u64 nearer = 0;
  team.begin_list();
  typical.each(team, bounds, [&](u32 id, bool, float x, u64 q, u32 order) {
    nearer += order < range.near ? q : 0;
    if (q && order >= range.near && order < range.far) team.template append<MOST>(TypicalEnd::key_of_token(order, range.near, x, id));
  });
  const u32 listed = team.template end_list<MOST>(nearer);
  if (listed > MOST || !listed || until(nearer)) return 0;
  return first_in_list(team, listed, nearer, until, false, [&](u64 key) { return w.q(logit_at(TypicalEnd(key, range.near).place)); });
}

// The first place of the run that ends with this token, and the complement of its last.
template <class Team>
__device__ __forceinline__ void run_of_typical(const Team &team, const Bounds &bounds, const Typical &typical, const TypicalEnd &end, u64 (&most)[2]) {
  float largest = -infinity(), least = infinity();
  u32 largest_id = 0, least_id = 0;
  typical.each(team, bounds, [&](u32 id, bool left, float x, u64, u32 order) {
    bool joins = left && order < end.order;
    if (left && order == end.order) {
      const u64 place = place_of(x + 0.0f, id);
      joins = grows_upwards(order) ? place <= end.place : place >= end.place;
    }
    if (joins && x > largest) {
      largest = x;
      largest_id = id;
    }
    if (joins && x <= least) {
      least = x;
      least_id = id;
    }
  });
  const bool some = largest > -infinity();
  most[0] = some ? place_of(largest + 0.0f, largest_id) : 0;
  most[1] = some ? ~place_of(least + 0.0f, least_id) : 0;
}

}  // namespace nucleus
