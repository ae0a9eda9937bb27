// Draws from rows of which more follow one another in a cluster: a few more warps look at the next row while the others weigh this one.
//
// A block's lookers share every stage out among them as it comes, and meet those of the other blocks. What is left for the weighing warps is an order for each row, of which there
// may be one beside that which they carry out; they read no stage of a row before. There is one team.
#pragma once

#include "draw.cuh"

namespace nucleus::draw {

// A warp that looks at its part of every stage.
template <u32 DTYPE, bool MASKS>
struct Looker {
  using P = PartOf<DTYPE>;
  using Word = typename P::Word;
  static constexpr u32 WIDTH = P::WIDTH, SIZE = P::SIZE, STEP = P::STEP;
  static constexpr u32 STAGE = WARPS * CHUNK, PART = STAGE / LOOKERS, VECTORS = PART / STEP;  // ids of a stage, and those of it that are this warp's
  static constexpr u32 AT_ONCE = VECTORS < 8 ? VECTORS : 8;                                   // vectors

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  u32 block, own;                // own: this warp's place among the lookers
  u32 slice, end;                // ids of the block's slice
  Word *ring;
  Meeting meeting;
  u32 slots, stages, last_part;  // of the shape; this warp's part of a slice's last stage
  RingSlot start{};              // of the row's first stage
  u32 until = ~0u;               // where the slice's tokens end
  u32 full = 0, rest = 0;        // stages of which all of this warp's tokens are there, and tokens of the next one
  u32 orders = 0;                // given

  // By one of them, before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    meeting.prepare();
    if (threadIdx.x % 32) return;
    init_barrier(&state->ordered, LOOKERS * ARRIVING_LANES);
    init_barrier(&state->taken, WARPS * ARRIVING_LANES);
  }
  __device__ __forceinline__ u32 part_of(u32 stage) const { return stage + 1 == stages ? last_part : PART; }
  __device__ __forceinline__ u32 place_of(u32 stage) const { return stage * STAGE + own * part_of(stage); }  // in the slice
  __device__ __forceinline__ Word *memory_of(u32 stage, RingSlot at) const { return ring + at.slot * STAGE + own * part_of(stage); }
  __device__ __forceinline__ u32 count_to(u32 stage, u32 upto) const {
    const u32 first = slice + place_of(stage), part = part_of(stage);
    return first >= upto ? 0 : upto - first < part ? upto - first : part;
  }
  __device__ __forceinline__ void end_at(u32 upto) {
    if (upto == until) return;
    until = upto;
    for (full = 0; full < stages && count_to(full, until) == PART;) full += 1;
    rest = full < stages ? count_to(full, until) : 0;
  }
  __device__ __forceinline__ void await(RingSlot at) const { wait_for_copy(&state->arrived[0][at.slot], at.parity); }
  // Calls f(stage, slot) once each stage has come.
  template <class F>
  __device__ __forceinline__ void each_stage(F f) const {
    RingSlot at = start;
#pragma unroll 1
    for (u32 stage = 0; stage < stages; ++stage, at.advance(slots)) {
      await(at);
      f(stage, at);
    }
  }
  // Calls all(stage, memory) for stages of which this lane's tokens are all there, then some(stage, memory, how many of the warp's) for the next one, once each has come.
  template <class A, class S>
  __device__ __forceinline__ void each_part(A all, S some) const {
    Word *const memory = ring + threadIdx.x % 32 * WIDTH;
    RingSlot at = start;
    u32 stage = 0;
#pragma unroll 1
    for (; stage < full; ++stage, at.advance(slots)) {
      await(at);
      all(stage, memory + at.slot * STAGE + own * PART);
    }
#pragma unroll 1
    for (; stage < stages; ++stage, at.advance(slots)) {
      await(at);
      if (stage == full) some(stage, memory + at.slot * STAGE + own * part_of(stage), rest);
    }
  }
  // Calls f(vector) for this lane's tokens.
  template <class F>
  __device__ __forceinline__ void sweep(F f) const {
    each_part(
        [&](u32, const Word *memory) {
#pragma unroll
          for (u32 i = 0; i < PART; i += AT_ONCE * STEP) {
            uint4 v[AT_ONCE];
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j) v[j] = P::vector(memory, i + j * STEP);
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j) f(v[j]);
          }
        },
        [&](u32, const Word *memory, u32 count) {
          const u32 own_from = threadIdx.x % 32 * WIDTH;
#pragma unroll 1
          for (u32 i = 0; i < count; i += AT_ONCE * STEP) {
            uint4 v[AT_ONCE];
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j) v[j] = P::vector(memory, i + own_from + j * STEP < count ? i + j * STEP : 0);
#pragma unroll
            for (u32 j = 0; j < AT_ONCE; ++j)
              if (i + own_from + j * STEP < count) f(v[j]);
          }
        });
  }
  __device__ __forceinline__ SeenPart look(u32 all) const {
    return P::look_in([&](auto f) { sweep(f); }, all, false);
  }
  // Brings what the copy engine could not; true: it wrote.
  __device__ __forceinline__ bool settle(u32 turn, u32 limit) const {
    const char *const row = static_cast<const char *>(batch.logits) + turns.index(turn) * batch.row_stride * SIZE;
    bool wrote = false;
    each_stage([&](u32 stage, RingSlot at) {
      P part(batch, slice + place_of(stage), count_to(stage, end));
      wrote |= part.settle(row, memory_of(stage, at), limit);
    });
    return wrote;
  }

  __device__ __forceinline__ unsigned char *await_mask(u32 turn) const {
    const u32 place = turn & (shape.masks - 1);
    wait_for_copy(&state->masked[0][place], (turn & shape.masks) != 0);
    return mask_memory(shape, 0, place);
  }
  // The slice's part of a row's mask, of which at least this warp's is there.
  __device__ __forceinline__ const unsigned char *mask_of(u32 turn, const RowPlan &plan) const {
    unsigned char *const mask = await_mask(turn);
    if (!shape.copied) {
      const u32 *const from = batch.masks + static_cast<u64>(plan.mask) * batch.mask_stride;
#pragma unroll 1
      for (u32 stage = 0; stage < stages; ++stage) {
        const u32 first = slice + place_of(stage), last = first + part_of(stage);
#pragma unroll 1
        for (u32 word = first / 32 + threadIdx.x % 32; word < batch.mask_words && word * 32 < last && word * 32 < end; word += 32)
          reinterpret_cast<u32 *>(mask)[word - slice / 32] = from[word];
      }
      __syncwarp();
    }
    return mask;
  }
  // Puts out what a mask forbids, while it looks at the rest.
  __device__ __forceinline__ SeenPart look_allowed(const unsigned char *mask, u32 all, float s) const {
    const u32 lane = threadIdx.x % 32, shift = P::mask_shift();
    u32 out = P::OUT_WORD;
    if (full) {
      await(start);
      float x[WIDTH], most = -infinity();
      P::widen(P::template keep<P::FIRST_BIT>(P::vector(memory_of(0, start), lane * WIDTH), mask[(place_of(0) + lane * WIDTH) / 8] * shift, out), x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) most = fmaxf(most, x[e]);
      const u32 key = __reduce_max_sync(~0u, key_of(most));
      if (key < INFINITE) out = P::word_below(DoubleAddends::nothing_beside(value_of(key), s));
    }
    auto unmasked = [&](auto f) { sweep(f); };
#pragma unroll 1
    while (true) {
      typename P::Peaks peaks;
      u32 allowed = 0;
      auto take = [&](uint4 v, u32 byte, Word *at) {
        peaks.see_low(v);
        v = P::template keep<P::FIRST_BIT>(v, byte * shift, out);
        peaks.see_high(v);
        *reinterpret_cast<uint4 *>(at) = v;
      };
      auto count_allowed = [&](const unsigned char *bits) {  // of AT_ONCE vectors a lane
        if constexpr (AT_ONCE * WIDTH == 32) allowed += __popc(reinterpret_cast<const u32 *>(bits)[lane]);
        else {
          const uint2 words = reinterpret_cast<const uint2 *>(bits)[lane];
          allowed += __popc(words.x) + __popc(words.y);
        }
      };
      each_part(
          [&](u32 stage, Word *memory) {
            const unsigned char *const bits = mask + (stage * STAGE + own * PART) / 8;
#pragma unroll 1
            for (u32 i = 0; i < PART; i += AT_ONCE * STEP) {
              uint4 v[AT_ONCE];
              u32 bytes[AT_ONCE];
#pragma unroll
              for (u32 j = 0; j < AT_ONCE; ++j) {
                v[j] = P::vector(memory, i + j * STEP);
                bytes[j] = bits[(i + j * STEP + lane * WIDTH) / 8];
              }
              count_allowed(bits + i / 8);
#pragma unroll
              for (u32 j = 0; j < AT_ONCE; ++j) take(v[j], bytes[j], memory + i + j * STEP);
            }
          },
          [&](u32 stage, Word *memory, u32 count) {
            const unsigned char *const bits = mask + place_of(stage) / 8;
#pragma unroll 1
            for (u32 i = 0; i + lane * WIDTH < count; i += STEP) {
              const u32 byte = bits[(i + lane * WIDTH) / 8], own_bits = (byte >> lane * WIDTH % 8) & ((1u << WIDTH) - 1), left = count - i - lane * WIDTH;
              allowed += __popc(left < WIDTH ? own_bits & ~(~0u << left) : own_bits);
              take(P::vector(memory, i), byte, memory + i);
            }
          });
      __syncwarp();
      const u32 least = SIZE == 4 ? out : out & 0xFFFFu;
      const SeenPart seen = P::seen_allowed(peaks, allowed, least);
      if (seen.key) return seen;
      const u32 low = __reduce_max_sync(~0u, peaks.lowest());
      if (low < P::OUT) return P::seen_by(peaks.high, low > least ? low : least, unmasked, all, false, seen.count);
      // Logits at -inf, or a forbidden one that is not a number: what is left is looked at as any other row.
      if (out == P::OUT_WORD) return P::look_in(unmasked, all, false);
      out = P::OUT_WORD;
    }
  }

  // Until the weighing warps have taken the last order, and weighed by it if what is forbidden is put out behind that.
  __device__ __forceinline__ void await_taken() const {
    if (orders) wait_for_copy(&state->taken, (orders - 1) & 1);
  }
  // Tells the weighing warps what to do.
  __device__ __forceinline__ void give(u32 flags, u32 largest, float s, const SeenPart &seen, bool fuses) {
    Weighing w;
    const bool weighs = largest && largest < INFINITE && begin_weighing_by(s, value_of(largest), w);
    await_taken();
    const u32 at = orders & 1;
    if (threadIdx.x % 32 == 0) {
      if (own == 0) state->orders[at] = Order{flags | (weighs ? Order::WEIGH : 0u), largest, until, 0, w.s, w.max_n};
      state->lowest[at][own] = fuses ? seen.lowest : -infinity();
      state->there[at][own] = seen.count;
    }
    arrive_as_warp(&state->ordered);
    orders += 1;
  }
  // From the row's logits to the orders for it.
  __device__ __forceinline__ void look_at(u32 turn) {
    receive(&state->planned[turn], 0);
    const RowPlan plan = state->plans[turn].plan();
    if (!plan.served()) {
      each_stage([](u32, RingSlot) {});
      if constexpr (MASKS) await_mask(turn);  // before its place is free for another row's, and before the block ends
      give(Order::LAST, 0, 0.0f, SeenPart{}, true);
      return;
    }
    const bool mask = plan.flags & RowPlan::MASKED;
#ifdef NUCLEUS_RACECHECK
    if (MASKS && !mask) await_mask(turn);  // synccheck wants somebody to
#endif
    const bool raw = plan.flags & RowPlan::RAW, same = plan.s == scale(1.0f) && !mask, twice = raw && !same;
    const u32 there = end < plan.limit ? end : plan.limit, masked = mask && batch.mask_words * 32 < there ? batch.mask_words * 32 : there;
    const bool wrote = (!P::aligned(batch) || (end - slice) % WIDTH || end > plan.limit) && settle(turn, plan.limit);
    SeenPart seen{};
    u32 largest = 0;
#pragma unroll 1
    for (u32 pass = twice ? 0 : 1; pass < 2; ++pass) {
      const bool last = pass == 1;
      const float s = last ? plan.s : scale(1.0f);
      bool fuses = true;
      auto compare = [&] { fuses = P::fuses(value_of(seen.key), s); };
      if (!last || mask || !twice) {
        if (last && twice) await_taken();
        end_at(last ? masked : there);
        const u32 all = full * PART + rest;
        seen = MASKS && last && mask ? look_allowed(mask_of(turn, plan), all, plan.s) : look(all);
        largest = meeting.meet(seen.key, wrote || (last && mask), compare);
      } else compare();
      give((last ? Order::LAST : mask ? Order::THEN_LOOKED_AT : 0u) | (!last || (raw && same) ? Order::RAW : 0u), largest, s, seen, fuses);
    }
  }
  __device__ __forceinline__ void take_turns() {
#pragma unroll 1
    for (u32 turn = 0; turn < turns.rows; ++turn) {
      look_at(turn);
      start.advance(slots, stages);
    }
  }
};

// A warp that weighs its chunks of every row.
template <u32 DTYPE>
struct AheadDrawer : Drawer<DTYPE, false> {
  using D = Drawer<DTYPE, false>;
  using typename D::Told;
  using D::state, D::member;
  u32 orders = 0;  // taken

  // Lets the lookers give the next order but one.
  __device__ __forceinline__ void take() {
    arrive_as_warp(&state->taken);
    orders += 1;
  }
  // By the orders for a row.
  __device__ __forceinline__ Told weigh_row() {
    Told told;
#pragma unroll 1
    while (true) {
      const u32 at = orders & 1;
      wait_for_copy(&state->ordered, at);
      const Order order = state->orders[at];
      float lowest = state->lowest[at][0];
#pragma unroll
      for (u32 i = 1; i < LOOKERS; ++i) lowest = fminf(lowest, state->lowest[at][i]);
      told.there = member < LOOKERS ? state->there[at][member] : 0;
      told.largest = order.largest;
      const bool last = order.flags & Order::LAST, changes = order.flags & Order::THEN_LOOKED_AT;
      if (!changes) take();
      D::end_at(order.until);
      if (order.flags & Order::WEIGH) {
        Weighing w;
        w.s = order.s;
        w.max_n = order.max_n;
        told.runs = D::weigh(w, lowest, last);
      } else {
        told.runs = 0;
        if (last) D::leave_all();
      }
      if (changes) take();
      if (order.flags & Order::RAW) {
        told.raw = sum_of_lanes(told.runs);
        told.raw_largest = told.largest;
      }
      if (last) return told;
    }
  }
  __device__ __forceinline__ void take_turns() {
    D::take_turns([&](u32, u32, u32) { return weigh_row(); });
  }
};

}  // namespace nucleus::draw
