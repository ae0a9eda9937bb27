// The reading team: rows through the ring, and their tokens that may be among the first.
#pragma once

#include "relay_bound.cuh"

namespace nucleus::relay {

// The stages of a row.
template <u32 DTYPE>
struct Stages {
  static constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, SIZE = 16 / WIDTH, IDS = TILE_BYTES / SIZE;

  __device__ __forceinline__ static u32 count(const SamplingBatch &batch) { return (batch.row_len + IDS - 1) / IDS; }
  __device__ __forceinline__ static const char *row(const SamplingBatch &batch, u32 index) {
    return static_cast<const char *>(batch.logits) + index * batch.row_stride * SIZE;
  }
};

// A place in the ring, and the parity of its use.
struct RingPlace {
  u32 at = 0, parity = 0;

  __device__ __forceinline__ void advance() {
    if (++at < STAGES) return;
    at = 0;
    parity ^= 1;
  }
  __device__ __forceinline__ RingPlace earlier(u32 stages) const {
    return at >= stages ? RingPlace{at - stages, parity} : RingPlace{at + STAGES - stages, parity ^ 1};
  }
  __device__ __forceinline__ RingPlace later(u32 stages) const {
    RingPlace place{at + stages, parity};
    if (place.at >= STAGES) place = RingPlace{place.at - STAGES, parity ^ 1};
    return place;
  }
};

// Where the masks of a batch are, and whether the copy engine can bring them: 16 bytes at a time, of which the last may lie behind a mask's words.
struct Masks {
  const u32 *first;
  u64 stride;
  u32 words;

  __device__ __forceinline__ explicit Masks(const SamplingBatch &batch) : first(batch.masks), stride(batch.mask_stride), words(batch.mask_words) {}
  __device__ __forceinline__ const u32 *of(int32_t mask) const { return mask < 0 ? nullptr : first + mask * stride; }
  __device__ __forceinline__ bool aligned() const { return (reinterpret_cast<uintptr_t>(first) | stride * 4) % 16 == 0; }
};

// A row's number and mask, for the thread that fills the ring; asked for long before they are needed.
struct RowAhead {
  u32 index = 0, mask = ~0u, flags = NUCLEUS_ROW_PADDING;

  // `turn`: of the rows that the launch takes.
  template <class B>
  __device__ __forceinline__ void load(const B &batch, u32 turn) {
    if (turn >= batch.rows) return;
    index = batch.row_number(turn);
    const SamplingRow *const row = batch.row + index;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(mask) : "l"(&row->mask));
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(flags) : "l"(&row->flags));
  }
  // Null: there is none, or it is not copied.
  __device__ __forceinline__ const u32 *from(const Masks &masks) const {
    return flags & NUCLEUS_ROW_PADDING || !masks.aligned() ? nullptr : masks.of(static_cast<int32_t>(mask));
  }
};

// A barrier of a half of the reading team. Its number is part of the instruction: synccheck of compute-sanitizer takes one in a register for the barrier of the
// whole block.
__device__ __forceinline__ void sync_half() {
  meet_for_tools();
  if (threadIdx.x < HALF_THREADS) asm volatile("barrier.sync 3, %0;" ::"n"(HALF_THREADS) : "memory");
  else asm volatile("barrier.sync 4, %0;" ::"n"(HALF_THREADS) : "memory");
}

// Fills the ring with the rows of the block and their masks, one stage after another, by one thread. The engine copies 16 bytes at a time; what is left of a
// row is read when it is needed.
template <u32 DTYPE, class B>
__device__ __forceinline__ void fill_ring(const B &batch) {
  using S = Stages<DTYPE>;
  State *const sh = state();
  const u32 stages = S::count(batch);
  const Masks masks(batch);
  // A stage has arrived when its part of the mask has, too.
  auto bring_mask = [&](u32 at, const u32 *mask, u32 stage) {
    const u32 first = stage * (S::IDS / 32), left = mask && first < masks.words ? (masks.words - first + 3) / 4 * 4 : 0;
    const u32 bytes = (left < S::IDS / 32 ? left : S::IDS / 32) * 4;
    arrive_expecting(&sh->arrived[at], bytes);
    start_copy(ring_of_masks() + at * STAGE_MASK_BYTES, mask + first, bytes, &sh->arrived[at]);
  };
  RowAhead next;
  next.load(batch, blockIdx.x);
  RingPlace place;
  u32 filled = 0;
  UNROLL_NOT
  for (u32 taken = blockIdx.x; taken < batch.rows; taken += gridDim.x) {
    const RowAhead own = next;
    next.load(batch, taken + gridDim.x);
    const char *from = S::row(batch, own.index);
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
    UNROLL_NOT
    for (u32 left = batch.row_len, stage = 0; stage < stages; ++stage, ++filled, left -= S::IDS, from += TILE_BYTES) {
      if (filled == 2) wait_for_copy(&sh->begun, 0);  // what is asked for after many tiles arrives after them
      if (filled >= STAGES) wait_for_copy(&sh->empty[place.at], place.parity ^ 1);
      if (filled >= ON_THEIR_WAY) {
        const RingPlace before = place.earlier(ON_THEIR_WAY);
        wait_for_copy(&sh->arrived[before.at], before.parity);
      }
      const u32 bytes = aligned ? (left < S::IDS ? left : S::IDS) * S::SIZE / 16 * 16 : 0;
      expect(&sh->arrived[place.at], bytes);
      start_copy_of_once_read(ring() + place.at * TILE_BYTES, from, bytes, &sh->arrived[place.at]);
      // The first row's mask is not known before its second stage is asked for.
      const bool waits = filled == 0 && stages > 1;
      if (filled == 1 && stages > 1) bring_mask(0, own.from(masks), 0);
      if (!waits) bring_mask(place.at, own.from(masks), stage);
      place.advance();
    }
  }
}

// What a thread has of a stage, which half of the team reads: 256 bytes, and the words of a mask for them. Of each 8 vectors of 16 bytes, the lanes of a warp
// read different ones at a time, so that they do not meet in a bank.
template <u32 DTYPE>
struct Share {
  static constexpr u32 WIDTH = Stages<DTYPE>::WIDTH, VECTORS = TILE_BYTES / 16 / HALF_THREADS, OWN = VECTORS * WIDTH, MASK_WORDS = OWN / 32;
  static constexpr u32 NONE = Peak<DTYPE>::NONE;

  __device__ __forceinline__ static u32 thread() { return threadIdx.x % HALF_THREADS; }
  __device__ __forceinline__ static u32 vector(u32 j) { return thread() * VECTORS + (j ^ thread() % 8); }
  // Its first logit's place in the stage.
  __device__ __forceinline__ static u32 offset(u32 j) { return vector(j) * WIDTH; }

  // Brings the bits of 8 vectors, which are in the order of ids, to the order in which the thread reads them.
  __device__ __forceinline__ static void reorder(u32 (&words)[MASK_WORDS]) {
    const u32 by = thread() % 8;
    if (DTYPE == NUCLEUS_F32) {
#pragma unroll
      for (u32 i = 0; i < MASK_WORDS; ++i) {
        const u32 w = __byte_perm(words[i], 0, 0x3210u ^ by / 2 * 0x1111u), swapped = (w << 4 & 0xF0F0F0F0u) | (w >> 4 & 0x0F0F0F0Fu);
        words[i] = by % 2 ? swapped : w;
      }
    } else {
#pragma unroll
      for (u32 i = 0; i < MASK_WORDS; i += 2) {
        const u32 first = by & 4 ? words[i + 1] : words[i], second = by & 4 ? words[i] : words[i + 1];
        words[i] = __byte_perm(first, 0, 0x3210u ^ by % 4 * 0x1111u);
        words[i + 1] = __byte_perm(second, 0, 0x3210u ^ by % 4 * 0x1111u);
      }
    }
  }
  // Puts a vector's logits at -inf whose bits are not set.
  __device__ __forceinline__ static void keep(uint4 &v, const u32 (&words)[MASK_WORDS], u32 j) {
    if (DTYPE == NUCLEUS_F32) {
      const u32 bits = words[j / 8] >> j % 8 * 4;
      v = make_uint4(bits & 1 ? v.x : NONE, bits & 2 ? v.y : NONE, bits & 4 ? v.z : NONE, bits & 8 ? v.w : NONE);
    } else {
      // Bits become the signs of bytes; each sign fills a logit.
      const u32 bits = words[j / 4], of = j % 4;
      auto word = [&](u32 w, u32 i) {
        u32 kept;
        asm("prmt.b32 %0, %1, %2, %3;" : "=r"(kept) : "r"(bits << (7 - 2 * i)), "r"(bits << (6 - 2 * i)), "r"(0xCC88u + of * 0x1111u));
        return (w & kept) | (NONE & ~kept);
      };
      v = make_uint4(word(v.x, 0), word(v.y, 1), word(v.z, 2), word(v.w, 3));
    }
  }
};

// A stage in the ring.
template <u32 DTYPE>
struct StageView {
  static constexpr u32 WIDTH = Stages<DTYPE>::WIDTH, IDS = Stages<DTYPE>::IDS;
  const unsigned char *data;
  const u32 *mask;   // of its ids; null: none
  u32 begin, limit;  // its first id; how many of its logits count at most

  __device__ __forceinline__ bool whole() const { return limit >= IDS; }
  // Which of the 32 logits from `at` on, a multiple of 32, count.
  __device__ __forceinline__ u32 counted_word(u32 at) const {
    if (at >= limit) return 0;
    const u32 bits = mask ? mask[at / 32] : ~0u;
    return at + 32 <= limit ? bits : bits & ~(~0u << (limit - at));
  }
  // Which of a vector's logits count, as bits.
  __device__ __forceinline__ u32 counted(u32 at) const { return counted_word(at / 32 * 32) >> at % 32; }
  __device__ __forceinline__ uint4 vector(u32 index) const { return reinterpret_cast<const uint4 *>(data)[index]; }
  __device__ __forceinline__ float logit(u32 at) const { return logit_in<DTYPE>(data, at); }
};

// The row that is read.
template <u32 DTYPE>
struct Reader {
  using View = StageView<DTYPE>;
  using Own = Share<DTYPE>;
  using AsTyped = Limit<DTYPE>;
  static constexpr u32 IDS = View::IDS, WIDTH = View::WIDTH, VECTORS = Own::VECTORS;
  Row *row;
  const void *logits;
  const u32 *mask;  // null: none
  u32 held;         // logits that count at most
  bool brought;     // the mask is in the ring

  __device__ __forceinline__ static const unsigned char *wait(RingPlace place) {
    wait_for_copy(&state()->arrived[place.at], place.parity);
    return ring() + place.at * TILE_BYTES;
  }

  // A stage that has logits, once it is there. A barrier of this half of the team within, if the copy engine has left out something.
  __device__ __forceinline__ View view(RingPlace place, u32 stage) const {
    const u32 begin = stage * IDS;
    const u32 *const own = !mask ? nullptr : brought ? reinterpret_cast<const u32 *>(ring_of_masks() + place.at * STAGE_MASK_BYTES) : mask + begin / 32;
    const View v{wait(place), own, begin, held - begin};
    const u32 rest = v.limit / WIDTH * WIDTH;
    if (!v.whole() && v.limit != rest) {
      if (Own::thread() < v.limit - rest) fetch(v, rest + Own::thread());
      sync_half();
    }
    return v;
  }
  __device__ __forceinline__ void fetch(const View &v, u32 at) const {
    if (DTYPE == NUCLEUS_F32) reinterpret_cast<u32 *>(const_cast<unsigned char *>(v.data))[at] = static_cast<const u32 *>(logits)[v.begin + at];
    else reinterpret_cast<uint16_t *>(const_cast<unsigned char *>(v.data))[at] = static_cast<const uint16_t *>(logits)[v.begin + at];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before a later copy to this place
  }

  // The largest logits of this thread's share of a stage.
  struct Peaks {
    Peak<DTYPE> of[VECTORS], all;

    __device__ __forceinline__ void look(const View &stage) {
      u32 words[Own::MASK_WORDS];
      const bool restricted = stage.mask || !stage.whole();
      if (restricted) {
#pragma unroll
        for (u32 i = 0; i < Own::MASK_WORDS; ++i) {
          const u32 at = Own::thread() * Own::OWN + i * 32;
          words[i] = stage.whole() ? stage.mask[at / 32] : stage.counted_word(at);
        }
        Own::reorder(words);
      }
#pragma unroll
      for (u32 first = 0; first < VECTORS; first += 8) {
        uint4 v[8];
#pragma unroll
        for (u32 j = 0; j < 8; ++j) v[j] = stage.vector(Own::vector(first + j));
        if (restricted) {
#pragma unroll
          for (u32 j = 0; j < 8; ++j) Own::keep(v[j], words, first + j);
        }
#pragma unroll
        for (u32 j = 0; j < 8; ++j) of[first + j] = Peak<DTYPE>::of(v[j]);
      }
      all = of[0];
#pragma unroll
      for (u32 j = 1; j < VECTORS; ++j) all = all | of[j];
    }
    __device__ __forceinline__ bool reach(AsTyped limit) const { return limit.reached_by(all.bits); }
    // The vectors that do, as bits.
    __device__ __forceinline__ u32 reaching(AsTyped limit) const {
      u32 bits = 0;
#pragma unroll
      for (u32 j = 0; j < VECTORS; ++j) bits |= limit.reached_by(of[j].bits) ? 1u << j : 0;
      return bits;
    }
  };

  // The token with this thread's largest logit of a stage, which is a number.
  __device__ __forceinline__ static u32 largest_of(const View &stage, const Peaks &peaks) {
    const AsTyped limit = AsTyped::above(peaks.all.value());
    const u32 j = __ffs(peaks.reaching(limit)) - 1, at = Own::offset(j), largest = limit.reached_by(stage.vector(Own::vector(j))) & stage.counted(at);
    return stage.begin + at + __ffs(largest) - 1;
  }

  // Collects this thread's tokens of a stage that reach a limit, which is not -inf.
  __device__ __forceinline__ void collect(const View &stage, const Peaks &peaks, AsTyped limit) const {
    UNROLL_NOT
    for (u32 vectors = peaks.reaching(limit); vectors; vectors &= vectors - 1) {
      const u32 j = __ffs(vectors) - 1, at = Own::offset(j);
      u32 bits = limit.reached_by(stage.vector(Own::vector(j))) & stage.counted(at);
      UNROLL_NOT
      for (u32 to = atomicAdd(&row->found, __popc(bits)); bits && to < COLLECT_MOST; bits &= bits - 1, ++to) {
        const u32 i = __ffs(bits) - 1;
        // In one piece: the warp that raises the bound may read it now.
        share_now(&row->places[to], place_of(stage.logit(at + i) + 0.0f, stage.begin + at + i));
      }
    }
  }

  // Whether it is one.
  __device__ __forceinline__ static bool some(const Peaks &peaks) { return fabsf(peaks.all.value()) < infinity(); }

  // A first bound, from the row's first two stages. `first`: this thread's one, if there is one. `early`: its token with the largest logit; NO_ID: nobody looked yet.
  __device__ __forceinline__ float first_bound(const View &first, bool there, const Peaks &peaks, u32 early) const {
    State *const sh = state();
    u32 unedited = 0;
    if (there) {
      const float most = peaks.all.value();
      if (!(most < infinity())) share_now(&row->strange, 1u);
      else if (most > -infinity() && !(row->plan.edits && row->marked(early != NO_ID ? early : largest_of(first, peaks)))) unedited = key_or_none(most);
    }
    sh->keys[threadIdx.x] = unedited;
    Reading::sync();
    const BoundOfKeys of = bound_of_keys<TEAM_THREADS, TEAM_WARPS>(sh->keys, sh->reach, row->plan.k, row->plan.kind == SlicePlan::ABOVE, threadIdx.x / 32, [] { Reading::sync(); });
    if (row->plan.k == 1) Reading::sync();  // as otherwise within: no key of the next row is written while these are read
    return threshold_of(row, value_or_none(of.bound), value_or_none(of.most));
  }

  // Reads the row to its end; each half of the team every other stage. Warps wait for each other only before the first bound. `own`: the first stage of this half,
  // which is looked at before it is known what the row asks for. `ready`: when that is known. `waits`: that is probably later.
  __device__ __forceinline__ void read(RingPlace &place, u32 own, u32 stages, const u64 *ready, u32 parity, bool waits) const {
    View stage{nullptr, nullptr, 0, 0};
    Peaks peaks;
    Peak<DTYPE> largest{Peak<DTYPE>::NONE};
    const bool there = own < stages && own * IDS < held;
    u32 early = NO_ID;
    if (there) {
      stage = view(place, own);
      peaks.look(stage);
      if (waits && some(peaks)) early = largest_of(stage, peaks);
    }
    wait_for_copy(ready, parity);
    if (!row->bounded) return leave_unread(place, own, stages);
    const float bound = first_bound(stage, there, peaks, early);
    if (threadIdx.x == 0) raise_to(row, bound);
    const float least = fmaxf(bound, value_of(key_of(-infinity()) + 1));
    UNROLL_NOT
    for (u32 at = own; at < stages; at += HALVES) {
      if (at * IDS >= held) {
        wait(place);
      } else {
        if (at != own) stage = view(place, at);
        const AsTyped limit = AsTyped::above(fmaxf(least, threshold_now(row)));
        if (at != own) peaks.look(stage);
        if (!(peaks.all.value() < infinity())) share_now(&row->strange, 1u);
        largest = largest | peaks.all;
        if (peaks.reach(limit)) collect(stage, peaks, limit);
      }
      leave(place);
    }
    if (row->plan.kind == SlicePlan::ABOVE) tell_largest(largest);
  }
  // A row that is not read.
  __device__ __forceinline__ static void leave_unread(RingPlace &place, u32 own, u32 stages) {
    UNROLL_NOT
    for (u32 stage = own; stage < stages; stage += HALVES) {
      wait(place);
      leave(place);
    }
  }
  // For rows that keep too many.
  __device__ __forceinline__ void tell_largest(const Peak<DTYPE> &largest) const {
    const u32 key = __reduce_max_sync(~0u, key_or_none(largest.value()));
    if (threadIdx.x % 32 == 0) atomicMax(&row->largest, key);
  }
  // By a warp that no longer needs a stage.
  __device__ __forceinline__ static void leave(RingPlace &place) {
    arrive_as_warp(&state()->empty[place.at]);
    place = place.later(HALVES);
  }
};

// All rows of the block.
template <u32 DTYPE, class B>
__device__ __forceinline__ void read_rows(const B &batch) {
  State *const sh = state();
  const u32 stages = Stages<DTYPE>::count(batch);
  const u32 half = threadIdx.x / HALF_THREADS;
  RingPlace place = RingPlace{}.later(half);
  u32 turn = 0;
  UNROLL_NOT
  for (u32 taken = blockIdx.x; taken < batch.rows; taken += gridDim.x, ++turn) {
    const u32 own = (half + turn * stages) % HALVES;
    Row *const row = &sh->rows[turn % 2];
    const u32 parity = turn / 2 % 2;
    wait_for_copy(&sh->told[turn % 2], parity);
    const Masks masks(batch);
    const u32 *const mask = row->row.flags & NUCLEUS_ROW_PADDING ? nullptr : masks.of(row->row.mask);
    const u32 vocab = row->config.vocab_size, exist = vocab < batch.row_len ? vocab : batch.row_len;
    const u32 held = mask && masks.words < (exist + 31) / 32 ? masks.words * 32 : exist;
    const Reader<DTYPE> reader{row, Stages<DTYPE>::row(batch, batch.row_number(taken)), mask, held, masks.aligned()};
    reader.read(place, own, stages, &sh->ready[turn % 2], parity, turn == 0);
    arrive_as_warp(&sh->read[turn % 2]);
  }
}

}  // namespace nucleus::relay
