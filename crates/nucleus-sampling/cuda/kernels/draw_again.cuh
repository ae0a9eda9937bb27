// Draws from rows of which a cluster's blocks do not hold their slices: a ring keeps the stages that were looked at last, and the others come again to be weighed.
//
// A sweep begins with the stages that the ring still holds from the one before; those that lie before them come again behind, each into the place of one that the
// team has weighed. So a sweep's order begins so many stages later than that of the one before as come again.
#pragma once

#include "draw.cuh"

namespace nucleus::draw {

template <u32 DTYPE>
struct AgainDrawer : Drawer<DTYPE, false> {
  using D = Drawer<DTYPE, false>;
  using typename D::P;
  using typename D::Word;
  using typename D::Told;
  using D::batch, D::state, D::team, D::slots, D::stages, D::start, D::full, D::rest, D::end, D::slice, D::meeting;
  static constexpr u32 WIDTH = P::WIDTH;

  u32 again;             // stages that each sweep leaves, and which come again
  u32 first_stage = 0;   // of a sweep
  u32 fresh_from = 0;    // of a sweep's stages, in its order: those that have just come

  // What is done to a stage that has come before it is used.
  struct Change {
    u32 turn, limit;
    const u32 *mask;  // null: nothing is forbidden
    bool settles;     // the copy engine has not brought all
    bool all;         // stages that the ring still holds are masked, too
    __device__ __forceinline__ bool any() const { return mask || settles; }
  };
  __device__ __forceinline__ u32 stage_at(u32 position) const {
    const u32 stage = first_stage + position;
    return stage < stages ? stage : stage - stages;
  }
  __device__ __forceinline__ u32 word_of(const Change &c, u32 position) const {
    if (!c.mask || position >= stages) return 0;
    const u32 stage = stage_at(position);
    return P(batch, D::first_of(stage), D::count_of(stage)).mask_word(c.mask, batch.mask_words, 0);
  }
  __device__ __forceinline__ void change(const Change &c, u32 stage, RingSlot at, bool fresh, u32 word) const {
    if (fresh && c.settles) {
      P part(batch, D::first_of(stage), D::count_to(stage, end));
      part.settle(D::logits_of(c.turn), D::memory_of(stage, at), c.limit);
    }
    if (c.mask && (fresh || c.all)) {
      const u32 own = threadIdx.x % 32 * WIDTH, count = D::count_of(stage);
      Word *const memory = D::memory_of(stage, at) + own;
#pragma unroll 1
      for (u32 i = 0; i < count; i += P::STEP) {
        const u32 bits = P::lane_bits(word, i);
        if (i + own < count) *reinterpret_cast<uint4 *>(memory + i) = P::template keep<0>(P::vector(memory, i), bits, P::OUT_WORD);
      }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before what comes into this place after it
    __syncwarp();
  }

  // A sweep: begin(stage before), then f(vector) for this lane's tokens, then after() for each stage, once it has come. Returns the last one. `last`: of the row.
  template <class B, class F, class E>
  __device__ __forceinline__ u32 sweep(bool last, const Change &c, B begin, F f, E after) const {
    const Word *own = D::ring + D::member * CHUNK + threadIdx.x % 32 * WIDTH;
    const u32 leaving = threadIdx.x % 32 ? 0 : last ? stages : again;
    RingSlot at = start;
    u32 before = ~0u, position = 0;
    auto close = [&](u32 stage) {
      __syncwarp();
      if (position < leaving) arrive(&state->weighed[team][at.slot]);
      after();
      before = stage;
      position += 1;
      at.advance(slots);
    };
    if (c.any()) {
#pragma unroll 1
      for (u32 word = word_of(c, 0), next = word_of(c, 1); position < stages; word = next, next = word_of(c, position + 1)) {
        const u32 stage = stage_at(position);
        D::await(at);
        change(c, stage, at, position >= fresh_from, word);
        begin(before);
        D::each_of_rest(stage, at, f);
        close(stage);
      }
      return before;
    }
#pragma unroll 1
    for (u32 part = 0; part < 2; ++part) {
      const u32 stop = part ? first_stage : stages, full_stop = stop < full ? stop : full;
      u32 stage = part ? 0 : first_stage;
#pragma unroll 1
      for (; stage < full_stop; ++stage) {
        D::await(at);
        begin(before);
        D::each_of_all(own + at.slot * D::stage_ids, f);
        close(stage);
      }
#pragma unroll 1
      for (; stage < stop; ++stage) {
        D::await(at);
        begin(before);
        D::each_of_rest(stage, at, f);
        close(stage);
      }
    }
    return before;
  }
  // A sweep that leaves the stages as they are changed.
  __device__ __forceinline__ void pass(bool last, const Change &c) const {
    RingSlot at = start;
    const u32 leaving = last ? stages : again;
#pragma unroll 1
    for (u32 position = 0; position < stages; ++position, at.advance(slots)) {
      D::await(at);
      if (!last && c.any()) change(c, stage_at(position), at, position >= fresh_from, word_of(c, position));
      __syncwarp();
      if (position < leaving && threadIdx.x % 32 == 0) arrive(&state->weighed[team][at.slot]);
    }
  }
  // After a sweep that is not the row's last.
  __device__ __forceinline__ void turn_over() {
    start.advance(slots, again);
    first_stage += again;
    while (first_stage >= stages) first_stage -= stages;
    fresh_from = stages - again;
  }

  // What PartOf::look_in tells, by one sweep.
  __device__ __forceinline__ SeenPart look(const Change &c, u32 all) const {
    u32 high = P::SIZE == 4 ? 0x80000000u : 0x80008000u, low = 0, least = ~0u, out = 0;
    sweep(false, c, [](u32) {}, [&](uint4 v) {
      high = P::most_signed(P::most_signed(high, v.x, v.y), v.z, v.w);
      least = P::least_unsigned(P::least_unsigned(least, v.x, v.y), v.z, v.w);
      const u32 most = P::most_unsigned(P::most_unsigned(0, v.x, v.y), v.z, v.w);
      low = P::most_unsigned(low, most, 0);
      if (larger_of(most) < P::OUT) return;
      float x[WIDTH];
      P::widen(v, x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) out += x[e] > -infinity() ? 0 : 1;
    }, [] {});
    low = __reduce_max_sync(~0u, larger_of(low));
    const i32 most = __reduce_max_sync(~0u, P::signed_of(high));
    SeenPart seen{0, 0, all, low & 1u << (8 * P::SIZE - 1) ? P::widened(low) : 0.0f, most};
    if (low > P::OUT || most > static_cast<i32>(P::TOO_LARGE)) {
      seen.key = UNUSUAL;
      return seen;
    }
    if (low == P::OUT || all == 0) {
      const u32 padded = rest % WIDTH ? WIDTH - rest % WIDTH : 0;  // of the last vector, which are out
      seen.lowest = -infinity();
      seen.count = all + padded - __reduce_add_sync(~0u, out);
    }
    if (most >= 0) seen.key = key_of(P::widened(static_cast<u32>(most)) + 0.0f);
    else if ((least = __reduce_min_sync(~0u, lesser_of(least))) < P::OUT) seen.key = key_of(P::widened(least) + 0.0f);
    return seen;
  }
  // Of two words of 16 bits.
  __device__ __forceinline__ static u32 larger_of(u32 words) { return P::SIZE == 4 ? words : words >> 16 > (words & 0xFFFFu) ? words >> 16 : words & 0xFFFFu; }
  __device__ __forceinline__ static u32 lesser_of(u32 words) { return P::SIZE == 4 ? words : words >> 16 < (words & 0xFFFFu) ? words >> 16 : words & 0xFFFFu; }
  __device__ __forceinline__ u64 weigh(const Weighing &w, const Change &c, float lowest, bool last) const {
    return D::weigh_by(w, lowest, [&](auto begin, auto add, auto after) { return sweep(last, c, begin, add, after); });
  }

  __device__ __forceinline__ Told weigh_row(u32 turn) {
    receive(&state->planned[turn], 0);
    const RowPlan plan = state->plans[turn].plan();
    Told told;
    Change c{turn, plan.limit, nullptr, false, false};
    if (!plan.served()) {
      pass(true, c);
      return told;
    }
    const u32 *mask = plan.flags & RowPlan::MASKED ? batch.masks + static_cast<u64>(plan.mask) * batch.mask_stride : nullptr;
    const bool raw = plan.flags & RowPlan::RAW, same = plan.s == scale(1.0f) && !mask, twice = raw && !same;
    c.settles = D::needs_settling(plan.limit);
    D::end_at(end < plan.limit ? end : plan.limit);
    const u32 all = full * CHUNK + rest;
    SeenPart seen;
    Weighing w;
#pragma unroll 1
    for (u32 weighed = twice ? 0 : 1; weighed < 2; ++weighed) {
      const bool last = weighed == 1;
      if (last) c.mask = mask;
      const float s = last ? plan.s : scale(1.0f);
      bool fuses = true;
      auto compare = [&] { fuses = P::fuses(value_of(seen.key), s); };
      if (!last || !twice || mask) {
        c.all = twice;
        seen = look(c, all);
        told.largest = meeting.meet(seen.key, false, compare);
        turn_over();
        c.all = false;
      } else compare();
      if (!last) told.raw_largest = told.largest;
      __syncwarp();
      u64 runs = 0;
      if (told.largest && told.largest < INFINITE && begin_weighing_by(s, value_of(told.largest), w)) runs = weigh(w, c, fuses ? seen.lowest : -infinity(), last);
      else pass(last, c);
      if (!last) turn_over();
      else told.runs = runs;
      if (!last || (raw && same)) {
        told.raw = sum_of_lanes(runs);
        told.raw_largest = told.largest;
      }
    }
    told.there = seen.count;
    first_stage = fresh_from = 0;
    return told;
  }
  __device__ __forceinline__ void take_turns() {
    D::take_turns([&](u32 turn, u32, u32) { return weigh_row(turn); });
  }
};

}  // namespace nucleus::draw
