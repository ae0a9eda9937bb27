// Draws from whole rows in one launch.
//
// Resident clusters take one row after another. Most warps of a block weigh: they are one team, or two, which have rows of their own, so that one weighs while
// the other waits. A team's slice of a row comes in stages, of which every warp has a chunk; a warp that does nothing else has the bulk copy engine bring them
// into the slots of a ring, each as soon as the team has weighed what was there before, a stage or more of the next row ahead. The teams of a cluster's blocks
// look at their slices, tell each other the largest logits, and sum the weights of chunks. The sums go to one of the blocks, to each in turn, where a few more
// warps find the chunk that the draw falls in and read it again (draw_finish.cuh), while the teams go on. What is told is stored in the receiver's shared
// memory and counted by an mbarrier: there is no barrier of a block or a cluster in the loop.
#pragma once

#include "draw_edits.cuh"

namespace nucleus::draw {

// Where a team's mask lies in shared memory.
__device__ __forceinline__ unsigned char *mask_memory(const DrawShape &shape, u32 team, u32 place) {
  return reinterpret_cast<unsigned char *>(shared_memory) + shape.masks_at + (team * shape.masks + place) * shape.mask_bytes;
}

// Bytes of a logit in device memory; DTYPE: in the ring.
template <u32 DTYPE, Form FORM>
__device__ __forceinline__ constexpr u32 size_in_memory() {
  return widens(FORM) ? 2 : PartOf<DTYPE>::SIZE;
}
// Whether all rows begin where the copy engine can read them.
template <u32 DTYPE, Form FORM>
__device__ __forceinline__ bool rows_aligned(const SamplingBatch &batch) {
  return (reinterpret_cast<uintptr_t>(batch.logits) | batch.row_stride * size_in_memory<DTYPE, FORM>()) % 16 == 0;
}

// The warp that brings a team's stages, and its masks.
template <u32 DTYPE, Form FORM>
struct Bringer {
  static constexpr u32 SIZE = PartOf<DTYPE>::SIZE;

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  u32 block, team;

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    const u32 lane = threadIdx.x % 32;
    if (lane < shape.slots) {
      init_barrier(&state->arrived[team][lane], 1);
      init_barrier(&state->weighed[team][lane], shape.members + (lists_tokens(FORM) ? shape.listers : 0));
      init_barrier(&state->masked[team][lane], 1);
    }
  }
  // A row's mask, if it has one; else the barrier is told that nothing comes.
  __device__ __forceinline__ void bring_mask(i32 mask, RingSlot at) const {
    const u32 words = batch.mask_words < (batch.row_len + 31) / 32 ? batch.mask_words : (batch.row_len + 31) / 32, end = (words + 3) / 4 * 16;
    const u32 whole = shape.room / 8, from = block * whole, left = from < end ? end - from : 0;
    const u32 bytes = mask < 0 || !shape.copied ? 0 : left < whole ? left : whole;
    u64 *masked = &state->masked[team][at.slot];
    arrive_expecting(masked, bytes);
    start_copy(mask_memory(shape, team, at.slot), reinterpret_cast<const char *>(batch.masks + static_cast<u64>(mask) * batch.mask_stride) + from, bytes, masked);
  }
  // A stage of logits that each warp widens in its own chunk: to the second half of its place.
  __device__ __forceinline__ static void bring_chunks(u32 to, u32 chunk_bytes, const char *from, u32 bytes, const u64 *arrived) {
#pragma unroll 1
    for (u32 at = 0; at < bytes; at += chunk_bytes) start_copy_to(to + 2 * at + chunk_bytes, from + at, bytes - at < chunk_bytes ? bytes - at : chunk_bytes, arrived);
  }
  // By one lane. Of rows that are not aligned nothing is copied.
  __device__ __forceinline__ void take_turns() const {
    const u32 slice = block * shape.room, end = slice + shape.room < batch.row_len ? slice + shape.room : batch.row_len;
    constexpr u32 size = size_in_memory<DTYPE, FORM>();
    const bool aligned = rows_aligned<DTYPE, FORM>(batch);
    const u32 slot_bytes = shape.stage * SIZE, ring = shared_address(shared_memory) + shape.rings_at() + team * shape.ring * SIZE;
    constexpr bool MASKED = takes_masks(FORM);
    // The stage before which a row's mask is asked for: the one behind which others of its mask's place have been looked at.
    const u32 masked_at = MASKED ? shape.slots - shape.masks * shape.stages : ~0u;
    RingSlot at, masks;
    // Of the first row it is learnt before its logits are asked for, behind which it would come.
    u32 first_mask = ~0u, first_flags = 0;
    if (MASKED && team < turns.rows) {
      const SamplingRow *const row = batch.row + turns.index(team);
      asm volatile("ld.global.u32 %0, [%1];" : "=r"(first_mask) : "l"(&row->mask));
      asm volatile("ld.global.u32 %0, [%1];" : "=r"(first_flags) : "l"(&row->flags));
    }
#pragma unroll 1
    for (u32 turn = team; turn < turns.rows; turn += shape.teams) {
      const char *from = static_cast<const char *>(batch.logits) + (turns.index(turn) * batch.row_stride + slice) * size;
      const bool first_turn = turn == team;
      const u32 planned_at = first_turn ? shape.ahead : masked_at;
      auto bring_first_mask = [&] { bring_mask(first_flags & NUCLEUS_ROW_PADDING ? -1 : static_cast<i32>(first_mask), masks); };
      auto bring = [&](u32 stage, u32 first, const char *from) {
        const u32 ids = first < end ? (end - first < shape.stage ? end - first : shape.stage) : 0, bytes = aligned ? ids * size / 16 * 16 : 0;
        u64 *arrived = &state->arrived[team][at.slot];
        wait_for_copy(&state->weighed[team][at.slot], at.parity ^ 1);
        if (stage == planned_at) {
          if (MASKED && first_turn) bring_first_mask();
          receive(&state->planned[turn], 0);
          if (MASKED && !first_turn) bring_mask(state->plans[turn].plan().served() ? state->plans[turn].mask : -1, masks);
        }
        arrive_expecting(arrived, bytes);
        if constexpr (widens(FORM)) bring_chunks(ring + at.slot * slot_bytes, shape.chunk_of(stage) * size, from, bytes, arrived);
        else start_copy_to(ring + at.slot * slot_bytes, from, bytes, arrived);
        at.advance(shape.slots);
      };
      const char *next = from;
#pragma unroll 1
      for (u32 first = slice, stage = 0; stage < shape.stages; ++stage, first += shape.stage, next += shape.stage * size) bring(stage, first, next);
      if (MASKED && planned_at == shape.stages) bring_first_mask();
      masks.advance(shape.masks);
      if constexpr (FORM != Form::AGAIN) continue;
      receive(&state->planned[turn], 0);
#pragma unroll 1
      for (u32 left = shape.again * (state->plans[turn].sweeps() - 1), stage = 0; left; --left, stage = stage + 1 < shape.stages ? stage + 1 : 0)
        bring(shape.stages, slice + stage * shape.stage, from + stage * slot_bytes);
    }
  }
};

// A warp with its chunks of every row of its team. MASKS: rows may have masks. FORM: of those whose tokens may be listed, and that may be weighed otherwise, too (draw_top_p.cuh, draw_cut.cuh).
template <u32 DTYPE, bool MASKS, Form FORM = Form::PLAIN>
struct Drawer {
  using P = PartOf<DTYPE>;
  using Word = typename P::Word;
  static constexpr u32 WIDTH = P::WIDTH, SIZE = P::SIZE, STEP = P::STEP;
  static constexpr bool LISTS = lists_tokens(FORM), KEEPS_BITS = MASKS && keeps_bits(DTYPE, FORM);
  static_assert(CHUNK / 32 / SUMS <= 128, "what a lane's sum holds");

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  u32 block, team, member;  // member: this warp's place in its team
  u32 slice, end;           // ids of the block's slice
  Word *ring;
  Meeting meeting;
  u32 slots, stage_ids, stages, last;  // of the shape
  RingSlot start{};         // of the row's first stage
  u32 tokens_end = ~0u;     // of this row: where the slice's tokens end
  u32 full = 0, rest = 0;   // chunks of which every token is there, tokens of the next one
  u32 edited_rows = 0;      // before

  __device__ __forceinline__ const char *logits_of(u32 turn) const {
    return static_cast<const char *>(batch.logits) + turns.index(turn) * batch.row_stride * SIZE;
  }
  __device__ __forceinline__ u32 chunk_of(u32 stage) const { return stage + 1 == stages ? last : CHUNK; }
  __device__ __forceinline__ u32 first_of(u32 stage) const { return slice + stage * stage_ids + member * chunk_of(stage); }
  __device__ __forceinline__ Word *memory_of(u32 stage, RingSlot at) const { return ring + at.slot * stage_ids + member * chunk_of(stage); }
  // How many of the chunk's ids lie before that.
  __device__ __forceinline__ u32 count_to(u32 stage, u32 until) const {
    const u32 first = first_of(stage), chunk = chunk_of(stage);
    return first >= until ? 0 : until - first < chunk ? until - first : chunk;
  }
  __device__ __forceinline__ u32 count_of(u32 stage) const { return stage < full ? CHUNK : stage == full ? rest : 0; }
  __device__ __forceinline__ void end_at(u32 until) {
    if (until == tokens_end) return;
    tokens_end = until;
    for (full = 0; full < stages && count_to(full, until) == CHUNK;) full += 1;
    rest = full < stages ? count_to(full, until) : 0;
  }
  template <class F>
  __device__ __forceinline__ void each_stage(F f) const {
    RingSlot at = start;
#pragma unroll 1
    for (u32 stage = 0; stage < stages; ++stage, at.advance(slots)) f(stage, at);
  }
  __device__ __forceinline__ void await(RingSlot at) const { wait_for_copy(&state->arrived[team][at.slot], at.parity); }

  // Calls f(vector) for this lane's tokens of a chunk.
  template <class F>
  __device__ __forceinline__ void each_of_all(const Word *memory, F f) const {
#pragma unroll
    for (u32 v = 0; v < CHUNK / STEP; ++v) f(P::vector(memory, v * STEP));
  }
  template <class F>
  __device__ __forceinline__ void each_of_rest(u32 stage, RingSlot at, F f) const {
    const Word *memory = memory_of(stage, at);
    const u32 count = count_of(stage);
    u32 i = threadIdx.x % 32 * WIDTH;
    if constexpr (WIDTH == 4) {
#pragma unroll 1
      for (; i + STEP < count; i += 2 * STEP) {
        f(P::vector(memory, i));
        f(P::vector(memory, i + STEP));
      }
    }
#pragma unroll 1
    for (; i < count; i += STEP) f(P::vector(memory, i));
  }
  // The same for each stage, between before(stage, slot) and after(stage, slot).
  template <class B, class F, class A>
  __device__ __forceinline__ void sweep(B before, F f, A after) const {
    const Word *own = ring + member * CHUNK + threadIdx.x % 32 * WIDTH;
    RingSlot at = start;
    u32 stage = 0;
#pragma unroll 1
    for (; stage < full; ++stage, at.advance(slots)) {
      before(stage, at);
      each_of_all(own + at.slot * stage_ids, f);
      after(stage, at);
    }
#pragma unroll 1
    for (; stage < stages; ++stage, at.advance(slots)) {
      before(stage, at);
      each_of_rest(stage, at, f);
      after(stage, at);
    }
  }
  // The same, once the stages have come.
  template <class F>
  __device__ __forceinline__ void sweep_coming(F f) const {
    const Word *own = ring + member * CHUNK + threadIdx.x % 32 * WIDTH;
    RingSlot at = start;
    u32 stage = 0;
#pragma unroll 1
    for (; stage + 2 <= full; stage += 2) {
      RingSlot next = at;
      next.advance(slots);
      await(at);
      await(next);
      const Word *first = own + at.slot * stage_ids, *second = own + next.slot * stage_ids;
      each_of_all(first, f);
      each_of_all(second, f);
      at = next;
      at.advance(slots);
    }
#pragma unroll 1
    for (; stage < stages; ++stage, at.advance(slots)) {
      await(at);
      each_of_rest(stage, at, f);
    }
  }
  __device__ __forceinline__ SeenPart look(u32 all) const {
    return P::template look_in<LISTS>([&](auto f) { sweep_coming(f); }, all, tells_halves());
  }
  // Whether halves of the lanes tell a largest logit each.
  __device__ __forceinline__ bool tells_halves() const { return LISTS && shape.groups == 2; }

  // Where this lane keeps what a row's mask allows of its tokens of a stage until they are weighed: a bit each, in their order.
  __device__ __forceinline__ uint16_t *own_bits(u32 stage) const {
    unsigned char *const of_team = reinterpret_cast<unsigned char *>(shared_memory) + shape.bits_at() + team * shape.bits_bytes;
    return reinterpret_cast<uint16_t *>(of_team) + (stage * (stage_ids / CHUNK) + member) * 32 + threadIdx.x % 32;
  }
  // One instruction makes conditions of a vector's four bits where these begin at bit 8 or 16; behind the compiler's back, which would test one after another.
  template <u32 BY>
  __device__ __forceinline__ static u32 raised(u32 bits) {
    u32 shifted;
    asm("shl.b32 %0, %1, %2;" : "=r"(shifted) : "r"(bits), "n"(BY));
    return shifted;
  }
  // Like sweep, with f(vector, its bits).
  template <class B, class F, class A>
  __device__ __forceinline__ void sweep_allowed(B before, F f, A after) const {
    static_assert(WIDTH == 4 || !KEEPS_BITS);
    const Word *own = ring + member * CHUNK + threadIdx.x % 32 * WIDTH;
    const uint16_t *bits = own_bits(0);
    const u32 apart = stage_ids / CHUNK * 32;
    RingSlot at = start;
    u32 stage = 0;
#pragma unroll 1
    for (; stage < full; ++stage, at.advance(slots), bits += apart) {
      before(stage, at);
      const u32 all = *bits, even = raised<8>(all), odd = raised<4>(all);
      const Word *const memory = own + at.slot * stage_ids;
#pragma unroll
      for (u32 v = 0; v < CHUNK / STEP; ++v) f(P::vector(memory, v * STEP), (v % 2 ? odd : even) >> (8 + v / 2 * 8));
      after(stage, at);
    }
#pragma unroll 1
    for (; stage < stages; ++stage, at.advance(slots), bits += apart) {
      before(stage, at);
      const Word *const memory = memory_of(stage, at);
      const u32 count = count_of(stage);
      u32 i = threadIdx.x % 32 * WIDTH, left = *bits;
#pragma unroll 1
      for (; i + STEP < count; i += 2 * STEP, left >>= 8) {
        f(P::vector(memory, i), raised<8>(left) >> 8);
        f(P::vector(memory, i + STEP), raised<4>(left) >> 8);
      }
#pragma unroll 1
      for (; i < count; i += STEP, left >>= WIDTH) f(P::vector(memory, i), raised<8>(left) >> 8);
      after(stage, at);
    }
  }

  // The weights of the chunks, of stage i by lane i. `sweep_all` calls begin(stage before), then add(vector) for this lane's tokens, then end() for each stage,
  // and returns the last one.
  enum Pace { AS_THEY_ARE, RAISED, ONE_BY_ONE };
  static constexpr bool FUSES = SIZE == 2;  // what is weighed as it is; nothing is below its lowest logit then
  // Sums of the lanes' weights, of stage i kept by lane i, by two sums of 27 bits each.
  struct Runs {
    u32 low = 0, high = 0;

    __device__ __forceinline__ void tell(u32 stage, u64 sum) {
      const u32 low_sum = __reduce_add_sync(~0u, static_cast<u32>(sum) & 0x7FFFFFFu), high_sum = __reduce_add_sync(~0u, static_cast<u32>(sum >> 27));
      low = threadIdx.x % 32 == stage ? low_sum : low;
      high = threadIdx.x % 32 == stage ? high_sum : high;
    }
    __device__ __forceinline__ u64 weights() const { return (static_cast<u64>(high) << 27) + low; }
  };
  // `logit`: of a token, from the one that there is, where all are raised.
  struct AsItIs {
    __device__ __forceinline__ float operator()(float x) const { return x; }
  };
  template <Pace PACE, class A, class S, class L = AsItIs>
  __device__ __forceinline__ u64 weigh_by(const Weighing &w, const A &addends, S sweep_all, L logit = {}) const {
    Runs runs;
    typename A::Sum sums[SUMS];
    u64 sum = 0;
    auto begin = [&](u32 before) {
      runs.tell(before, sum);  // while the next one is weighed
#pragma unroll
      for (u32 i = 0; i < SUMS; ++i) sums[i] = addends.none();
      sum = 0;
    };
    // `bits`: none, or those of the vector's tokens that count.
    constexpr bool BY_BITS = std::is_same_v<A, AllowedAddends>;
    auto add = [&](uint4 v, auto... bits) {
      float x[WIDTH];
      P::widen(v, x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) {
        if constexpr (!BY_BITS) {
          if constexpr (PACE == ONE_BY_ONE) sum += w.q(x[e]);
          else addends.template add<PACE == RAISED, FUSES && PACE == AS_THEY_ARE>(logit(x[e]), sums[e % SUMS]);
        } else {
          const u32 counts = (bits, ...) & 1u << e;
          if constexpr (PACE == ONE_BY_ONE) sum += counts ? w.q(x[e]) : 0;
          else addends.template add_if<PACE == RAISED>(counts, x[e], sums[e % SUMS]);
        }
      }
    };
    const u32 last_stage = sweep_all(begin, add, [&] {
#pragma unroll
      for (u32 i = 0; i < SUMS; ++i) sum += addends.taken(sums[i]);
    });
    runs.tell(last_stage, sum);
    return runs.weights();
  }
  template <class A = DoubleAddends, class S>
  __device__ __forceinline__ u64 weigh_by(const Weighing &w, float lowest, S sweep_all) const {
    const A addends(w);
    return !addends.serve            ? weigh_by<ONE_BY_ONE>(w, addends, sweep_all)
           : addends.reach(lowest) ? weigh_by<AS_THEY_ARE>(w, addends, sweep_all)
                                   : weigh_by<RAISED>(w, addends, sweep_all);
  }
  // `leaves`: nobody reads them after this. BY_BITS: of what a mask allows.
  template <bool BY_BITS = false>
  __device__ __forceinline__ u64 weigh(const Weighing &w, float lowest, bool leaves) const {
    const bool leaver = leaves && threadIdx.x % 32 == 0;
    return weigh_by<std::conditional_t<BY_BITS, AllowedAddends, DoubleAddends>>(w, lowest, [&](auto begin, auto add, auto end) { return sweep_row<BY_BITS>(leaver, begin, add, end); });
  }
  // What weigh_by sweeps by, of the stages in the ring. `leaver`: this lane leaves them.
  template <bool BY_BITS = false, class B, class F, class E>
  __device__ __forceinline__ u32 sweep_row(bool leaver, B begin, F add, E end) const {
    auto before = [&](u32 stage, RingSlot) { begin(stage - 1); };
    auto after = [&](u32, RingSlot at) {
      __syncwarp();
      if (leaver) arrive(&state->weighed[team][at.slot]);
      end();
    };
    if constexpr (BY_BITS) sweep_allowed(before, add, after);
    else sweep(before, add, after);
    return stages - 1;
  }
  // Where nothing is weighed. A stage that is left has arrived.
  __device__ __forceinline__ void leave_all() const {
    each_stage([&](u32, RingSlot at) {
      await(at);
      __syncwarp();
      if (threadIdx.x % 32 == 0) arrive(&state->weighed[team][at.slot]);
    });
  }

  // What is told of a row: lane i the weight of stage i's chunk, all the rest.
  struct Told {
    u64 runs = 0, raw = 0;
    u32 there = 0, largest = 0, raw_largest = 0;
    i64 moment = 0;  // of the surprise, where it is asked for
  };
  // Whether the copy engine cannot bring all of a slice as tokens.
  __device__ __forceinline__ bool needs_settling(u32 limit) const {
    return !P::aligned(batch) || (end - slice) % WIDTH || end > limit;
  }
  // Brings what the copy engine could not; true: it wrote.
  __device__ __forceinline__ bool settle(u32 turn, u32 limit) const {
    bool wrote = false;
    each_stage([&](u32 stage, RingSlot at) {
      await(at);
      P part(batch, first_of(stage), count_to(stage, end));
      wrote |= part.settle(logits_of(turn), memory_of(stage, at), limit);
    });
    return wrote;
  }
  // Widens a slice's logits of 16 bits, which lie in the second half of each chunk's place, brings what the copy engine could not, and lets the last vector end with tokens that are out. Ids from `limit` on do not exist.
  __device__ __forceinline__ void widen(u32 turn, u32 limit) const {
    static_assert(!widens(FORM) || SIZE == 4);
    constexpr u32 AT_ONCE = CHUNK / 256;  // vectors of a lane, of 8 logits
    const u32 lane = threadIdx.x % 32;
    const uint16_t *const row = static_cast<const uint16_t *>(batch.logits) + turns.index(turn) * batch.row_stride;
    const bool bf16 = batch.dtype == NUCLEUS_BF16, aligned = rows_aligned<NUCLEUS_F32, FORM>(batch);
    auto widened = [&](u32 half) { return bf16 ? half << 16 : bits_of(widen_f16(static_cast<uint16_t>(half))); };
    each_stage([&](u32 stage, RingSlot at) {
      Word *const memory = memory_of(stage, at);
      const u32 held = count_to(stage, end), count = count_to(stage, end < limit ? end : limit), copied = aligned ? held / 8 * 8 : 0;
      const uint4 *const from = reinterpret_cast<const uint4 *>(memory + chunk_of(stage) / 2);
      await(at);
      uint4 v[AT_ONCE];
#pragma unroll
      for (u32 i = 0; i < AT_ONCE; ++i)
        if ((i * 32 + lane) * 8 < copied) v[i] = from[i * 32 + lane];
      __syncwarp();
#pragma unroll
      for (u32 i = 0; i < AT_ONCE; ++i) {
        if ((i * 32 + lane) * 8 >= copied) continue;
        uint4 *const to = reinterpret_cast<uint4 *>(memory) + (i * 32 + lane) * 2;
        to[0] = make_uint4(widened(v[i].x & 0xFFFFu), widened(v[i].x >> 16), widened(v[i].y & 0xFFFFu), widened(v[i].y >> 16));
        to[1] = make_uint4(widened(v[i].z & 0xFFFFu), widened(v[i].z >> 16), widened(v[i].w & 0xFFFFu), widened(v[i].w >> 16));
      }
      __syncwarp();
#pragma unroll 1
      for (u32 i = copied + lane; i < count; i += 32) memory[i] = static_cast<Word>(widened(row[first_of(stage) + i]));
      __syncwarp();
      if (count % WIDTH && lane < WIDTH - count % WIDTH) memory[count + lane] = static_cast<Word>(P::OUT);
      __syncwarp();
    });
  }
  // Edits tokens in the ring, once all have come.
  __device__ __forceinline__ void edit(u32 turn, bool settled) {
    DrawEdits *const edits = edits_of(shape);
    wait_for_copy(&edits->ready[team], edited_rows & 1);
    each_stage([&](u32, RingSlot at) { await(at); });
    TeamEdits{edits, edits->plans[turn], ring, team, member, shape.members, slots, start.slot, stage_ids}.apply(edited_rows & 1, settled);
    edited_rows += 1;
  }
  // The place of a row's mask, once everything is there that was asked for.
  __device__ __forceinline__ u32 await_mask(u32 turn) const {
    static_assert(TEAMS_MOST == 2);
    const u32 row = turn >> (shape.teams - 1), place = row & (shape.masks - 1);
    wait_for_copy(&state->masked[team][place], (row & shape.masks) != 0);
    return place;
  }
  // The slice's part of a row's mask, of which at least this warp's is there.
  __device__ __forceinline__ const unsigned char *mask_of(u32 turn, const RowPlan &plan) const {
    unsigned char *const mask = mask_memory(shape, team, await_mask(turn));
    if (!shape.copied) {
      const u32 *const from = batch.masks + static_cast<u64>(plan.mask) * batch.mask_stride;
#pragma unroll 1
      for (u32 stage = 0; stage < stages; ++stage) {
        const u32 first = first_of(stage), word = first / 32 + threadIdx.x % 32;
        if (word < batch.mask_words && word * 32 < first + chunk_of(stage) && word * 32 < end) reinterpret_cast<u32 *>(mask)[word - slice / 32] = from[word];
      }
      __syncwarp();
    }
    return mask;
  }
  // Looks at what a mask allows, and keeps its bits. By few instructions, a stage at a time, since a team's first row waits until these are fetched.
  __device__ __forceinline__ SeenPart look_by_bits(const unsigned char *mask) const {
    constexpr u32 VECTORS = CHUNK / STEP;
    const u32 lane = threadIdx.x % 32, shift = P::mask_shift();
    const unsigned char *const bytes = mask + lane * WIDTH / 8;
    const Word *const memory = ring + lane * WIDTH;
    uint16_t *bits = own_bits(0);
    const u32 apart = stage_ids / CHUNK * 32;
    typename P::AllowedPeaks peaks;
    u32 allowed = 0, stage = 0;
    RingSlot at = start;
#pragma unroll 1
    for (; stage < full; ++stage, at.advance(slots), bits += apart) {
      await(at);
      const unsigned char *const from = bytes + (stage * stage_ids + member * CHUNK) / 8;
      const Word *const of = memory + at.slot * stage_ids + member * CHUNK;
      uint4 v[VECTORS];
      u32 own[VECTORS];
#pragma unroll
      for (u32 j = 0; j < VECTORS; ++j) {
        v[j] = P::vector(of, j * STEP);
        own[j] = from[j * (STEP / 8)] * shift;
      }
      const u32 packed = P::packed_bits(own);
      *bits = static_cast<uint16_t>(packed);
      allowed += __popc(packed & 0xFFFFu);
#pragma unroll
      for (u32 j = 0; j < VECTORS; ++j) peaks.see(v[j], own[j]);
    }
#pragma unroll 1
    for (; stage < stages; ++stage, at.advance(slots), bits += apart) {
      const u32 count = count_of(stage), chunk = member * chunk_of(stage);
      const unsigned char *const from = bytes + (stage * stage_ids + chunk) / 8;
      const Word *const of = memory + at.slot * stage_ids + chunk;
      await(at);
      u32 own = 0;
#pragma unroll 1
      for (u32 i = 0, place = 0; i + lane * WIDTH < count; i += 2 * STEP, place += 2 * WIDTH) {
        const bool both = i + STEP + lane * WIDTH < count;
        const u32 other_i = both ? i + STEP : i;
        const uint4 one = P::vector(of, i), other = P::vector(of, other_i);
        const u32 one_bits = from[i / 8] * shift, other_bits = from[other_i / 8] * (both ? shift : 0);
        peaks.see(one, one_bits);
        peaks.see(other, other_bits);
        own |= ((one_bits >> 8 & 15) | (other_bits >> 4 & 0xF0)) << place;
      }
      // Of the last vector.
      if (count % WIDTH && count % STEP / WIDTH == lane) own &= ~(~0u << (count / STEP * WIDTH + count % WIDTH));
      *bits = static_cast<uint16_t>(own);
      allowed += __popc(own);
    }
    SeenPart seen = P::template seen_by_bits<LISTS>(peaks, allowed, tells_halves());
    if (seen.lowest > -infinity()) return seen;
    // Those at -inf.
    u32 out = 0;
    each_stage([&](u32 stage, RingSlot at) {
      const Word *const of = memory_of(stage, at) + lane * WIDTH;
      u32 left = *own_bits(stage);
#pragma unroll 1
      for (u32 i = 0; left; i += STEP, left >>= WIDTH) {
        float x[WIDTH];
        P::widen(P::vector(of, i), x);
#pragma unroll
        for (u32 e = 0; e < WIDTH; ++e) out += left >> e & 1 && x[e] == -infinity();
      }
    });
    seen.count -= __reduce_add_sync(~0u, out);
    return seen;
  }
  // Puts out what a mask forbids, while it looks at the rest.
  __device__ __forceinline__ SeenPart look_allowed(const unsigned char *mask, u32 all, float s) const {
    constexpr u32 VECTORS = CHUNK / STEP, SHARE = CHUNK / 32;  // SHARE: ids whose bits a lane counts
    const u32 lane = threadIdx.x % 32, shift = P::mask_shift();
    const unsigned char *const bits = mask + lane * WIDTH / 8;
    Word *const memory = ring + lane * WIDTH;
    u32 out = P::OUT_WORD;
    if (full) {
      const u32 own = member * CHUNK;
      await(start);
      float x[WIDTH], most = -infinity();
      P::widen(P::template keep<P::FIRST_BIT>(P::vector(memory, start.slot * stage_ids + own), bits[own / 8] * shift, out), x);
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) most = fmaxf(most, x[e]);
      const u32 key = __reduce_max_sync(~0u, key_of(most));
      if (key < INFINITE) out = P::word_below(DoubleAddends::nothing_beside(value_of(key), s));
    }
    static_assert(SHARE == 16);
    auto sweep = [&](auto f) { sweep_coming(f); };
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
      RingSlot at = start;
      u32 stage = 0;
#pragma unroll 1
      for (; stage + 2 <= full; stage += 2, at.advance(slots)) {
        const RingSlot first = at;
        at.advance(slots);
        await(first);
        await(at);
        const u32 own = stage * stage_ids + member * CHUNK;
        Word *const to[2] = {memory + first.slot * stage_ids + member * CHUNK, memory + at.slot * stage_ids + member * CHUNK};
        uint4 v[2 * VECTORS];
        u32 bytes[2 * VECTORS];
#pragma unroll
        for (u32 j = 0; j < 2 * VECTORS; ++j) {
          v[j] = P::vector(to[j / VECTORS], j % VECTORS * STEP);
          bytes[j] = bits[(own + j / VECTORS * stage_ids) / 8 + j % VECTORS * (STEP / 8)];
        }
        const u32 one = reinterpret_cast<const uint16_t *>(mask + own / 8)[lane], other = reinterpret_cast<const uint16_t *>(mask + (own + stage_ids) / 8)[lane];
        allowed += __popc(one << 16 | other);
#pragma unroll
        for (u32 j = 0; j < 2 * VECTORS; ++j) take(v[j], bytes[j], to[j / VECTORS] + j % VECTORS * STEP);
      }
#pragma unroll 1
      for (; stage < stages; ++stage, at.advance(slots)) {
        const u32 count = count_of(stage), own = member * chunk_of(stage), counted = lane * SHARE;
        const unsigned char *const from = bits + (stage * stage_ids + own) / 8;
        Word *const to = memory + at.slot * stage_ids + own;
        await(at);
        if (counted < count) {
          const u32 half = reinterpret_cast<const uint16_t *>(mask + (stage * stage_ids + own) / 8)[lane];
          allowed += __popc(count - counted < SHARE ? half & ~(~0u << (count - counted)) : half);
        }
        uint4 v[VECTORS];
        u32 bytes[VECTORS];
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j) {
          const u32 i = j * STEP + lane * WIDTH < count ? j * STEP : 0;
          v[j] = P::vector(to, i);
          bytes[j] = from[i / 8];
        }
#pragma unroll
        for (u32 j = 0; j < VECTORS; ++j)
          if (j * STEP + lane * WIDTH < count) take(v[j], bytes[j], to + j * STEP);
      }
      __syncwarp();
      const u32 least = SIZE == 4 ? out : out & 0xFFFFu;
      const SeenPart seen = P::template seen_allowed<LISTS>(peaks, allowed, least, tells_halves());
      if (seen.key) return seen;
      const u32 low = __reduce_max_sync(~0u, peaks.lowest());
      if (low < P::OUT) return P::template seen_by<LISTS>(peaks.high, low > least ? low : least, sweep, all, tells_halves(), seen.count);
      // Logits at -inf, or a forbidden one that is not a number: what is left is looked at as any other row.
      if (out == P::OUT_WORD) return P::template look_in<LISTS>(sweep, all, tells_halves());
      out = P::OUT_WORD;
    }
  }
  // Weights as they are told; `fuses`: as of PartOf. `last`: by the request's temperature and mask, if it has one, and nobody reads the row after this.
  __device__ __forceinline__ u64 weigh_plainly(const Weighing &w, const SeenPart &seen, bool fuses, bool last, bool mask) const {
    const float lowest = fuses ? seen.lowest : -infinity();
    return KEEPS_BITS && last && mask ? weigh<KEEPS_BITS>(w, lowest, last) : weigh(w, lowest, last);
  }
  // From the row's logits to what is told of it. `looked`: called with what the row's last look has seen, before the warps meet over it. `weigh_one`: called in the
  // place of weigh_plainly, also where the row cannot be weighed, if rows may be weighed otherwise.
  template <class L, class W>
  __device__ __forceinline__ Told weigh_row(u32 turn, L looked, W weigh_one) {
    receive(&state->planned[turn], 0);
    const RowPlan plan = state->plans[turn].plan();
    Told told;
    if (!plan.served()) {
      if constexpr (MASKS) await_mask(turn);  // before its place is free for another row's, and before the block ends
      leave_all();
      return told;
    }
    const bool mask = plan.flags & RowPlan::MASKED, edited = edits_tokens(FORM) && plan.edited, changes = mask || edited;
#ifdef NUCLEUS_RACECHECK
    if (MASKS && !mask) await_mask(turn);  // synccheck wants somebody to
#endif
    const bool smoothed = smooths(FORM) && plan.kind == SlicePlan::SMOOTHED, again = smoothed || (warms(FORM) && plan.warmed());
    const bool raw = plan.flags & RowPlan::RAW, same = plan.s == scale(1.0f) && !changes && !smoothed;
    bool wrote = (mask && !KEEPS_BITS) || edited;
    const u32 there = end < plan.limit ? end : plan.limit, masked = mask && batch.mask_words * 32 < there ? batch.mask_words * 32 : there;
    if constexpr (widens(FORM)) {
      widen(turn, plan.limit);
      wrote = true;
    } else if (needs_settling(plan.limit)) wrote |= settle(turn, plan.limit);
    SeenPart seen;
    Weighing w;
    // Twice where logits are weighed as they came, too: first so, then with the temperature and edits, and without what a mask forbids.
#pragma unroll 1
    for (u32 pass = raw && !same ? 0 : 1; pass < 2; ++pass) {
      const bool last = pass == 1;
      end_at(last ? masked : there);
      const u32 all = full * CHUNK + rest;
      const float s = last ? plan.s : scale(1.0f);
      bool fuses = true;
      auto compare = [&] { fuses = P::fuses(value_of(seen.key), s); };
      if (!last || changes || !raw || same) {
        if constexpr (edits_tokens(FORM)) {
          if (last && edited) edit(turn, widens(FORM) || needs_settling(plan.limit));
        }
        if constexpr (KEEPS_BITS) seen = last && mask ? look_by_bits(mask_of(turn, plan)) : look(all);
        else seen = MASKS && last && mask ? look_allowed(mask_of(turn, plan), all, again ? 0.0f : plan.s) : look(all);
        if (last || !changes) looked(plan, seen);
        told.largest = meeting.meet(LISTS ? seen.of_half : seen.key, wrote, compare);
      } else compare();
      if (!last) told.raw_largest = told.largest;
      __syncwarp();
      u64 runs = 0;
      if constexpr (weighs_plainly(FORM)) {
        if (told.largest && told.largest < INFINITE && begin_weighing_by(s, value_of(told.largest), w)) runs = weigh_plainly(w, seen, fuses, last, mask);
        else if (last) leave_all();
      } else {
        const bool weighs = told.largest && told.largest < INFINITE && begin_weighing_by(s, value_of(told.largest), w);
        told.there = seen.count;
        runs = weigh_one(plan, weighs, w, seen, fuses, last, told);
      }
      if (last) told.runs = runs;
      if (!last || (raw && same)) {
        if (!last || !warms(FORM) || !plan.warmed()) told.raw = sum_of_lanes(runs);
        told.raw_largest = told.largest;
      }
    }
    if (weighs_plainly(FORM)) told.there = seen.count;
    return told;
  }

  // Where this lane tells what it tells of a row, in this block's shared memory; 0: it tells nothing.
  __device__ __forceinline__ u32 told_at() const {
    const u32 lane = threadIdx.x % 32, own = block * shape.members + member;
    if (takes_moments(FORM) && lane == shape.stages + 3) return shared_address(&row_sums_of(shape)->moments[own]);
    if (lane > shape.stages + 2 || (lane == shape.stages + 2 && own)) return 0;
    const u32 at = lane < shape.stages        ? DrawShape::run_at((block * shape.sums + lane) * shape.members + member)
                   : lane == shape.stages     ? shape.raw_at() + own
                   : lane == shape.stages + 1 ? shape.there_at() + own
                                              : shape.largest_at();
    return shared_address(draw_messages() + at);
  }
  // Sends it to the block that finishes the row, once that has read what lies there. `use`: rows that it has finished before.
  __device__ __forceinline__ void tell(u32 to, u32 use, u32 at, const Told &told) const {
    const u32 lane = threadIdx.x % 32;
    if (use) receive(&state->freed[to], (use - 1) & 1);
    u64 word = lane < stages ? told.runs : lane == stages ? told.raw : lane == stages + 1 ? told.there : static_cast<u64>(told.raw_largest) << 32 | told.largest;
    if (takes_moments(FORM) && lane == stages + 3) word = static_cast<u64>(told.moment);
    if (at) send_u64(address_in(at, to), word, address_in(shared_address(&state->summed), to));
  }
  // `weigh_one`: called with a row, the block that finishes it, and how many that has finished before.
  template <class W>
  __device__ __forceinline__ void take_turns(W weigh_one) {
    const u32 at = told_at();
    u32 to = team, use = 0;
#pragma unroll 1
    for (u32 turn = team; turn < turns.rows; turn += shape.teams, to += shape.teams) {
      for (; to >= shape.blocks; to -= shape.blocks) use += 1;
      tell(to, use, at, weigh_one(turn, to, use));
      start.advance(slots, stages);
    }
  }
  __device__ __forceinline__ void take_turns() {
    take_turns([&](u32 turn, u32, u32) { return weigh_row(turn, [](const RowPlan &, const SeenPart &) {}, nullptr); });
  }
};

}  // namespace nucleus::draw
