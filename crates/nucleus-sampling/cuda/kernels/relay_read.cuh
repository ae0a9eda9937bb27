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

// A row's mask, for the thread that fills the ring; asked for long before it is needed.
struct MaskAhead {
  u32 mask = ~0u, flags = NUCLEUS_ROW_PADDING;

  __device__ __forceinline__ void load(const SamplingBatch &batch, u32 index) {
    if (index >= batch.rows) return;
    const SamplingRow *const row = batch.row + index;
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(mask) : "l"(&row->mask));
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(flags) : "l"(&row->flags));
  }
  // Null: there is none, or it is not copied.
  __device__ __forceinline__ const u32 *from(const Masks &masks) const {
    return flags & NUCLEUS_ROW_PADDING || !masks.aligned() ? nullptr : masks.of(static_cast<int32_t>(mask));
  }
};

__device__ __forceinline__ void start_copy(const void *to, const void *from, u32 bytes, u32 arrived) {
  if (bytes)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                 "r"(arrived)
                 : "memory");
}

// Fills the ring with the rows of the block and their masks, one stage after another, by one thread. The engine copies 16 bytes at a time; what is left of a
// row is read when it is needed.
template <u32 DTYPE>
__device__ __forceinline__ void fill_ring(const SamplingBatch &batch) {
  using S = Stages<DTYPE>;
  State *const sh = state();
  const u32 stages = S::count(batch);
  const Masks masks(batch);
  // A stage has arrived when its part of the mask has, too.
  auto bring_mask = [&](u32 at, const u32 *mask, u32 stage) {
    const u32 first = stage * (S::IDS / 32), left = mask && first < masks.words ? (masks.words - first + 3) / 4 * 4 : 0;
    const u32 bytes = (left < S::IDS / 32 ? left : S::IDS / 32) * 4, arrived = shared_address(&sh->arrived[at]);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(bytes) : "memory");
    start_copy(ring_of_masks() + at * STAGE_MASK_BYTES, mask + first, bytes, arrived);
  };
  MaskAhead next;
  next.load(batch, blockIdx.x);
  RingPlace place;
  u32 filled = 0;
  UNROLL_NOT
  for (u32 index = blockIdx.x; index < batch.rows; index += gridDim.x) {
    const MaskAhead own = next;
    next.load(batch, index + gridDim.x);
    const char *from = S::row(batch, index);
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
    UNROLL_NOT
    for (u32 left = batch.row_len, stage = 0; stage < stages; ++stage, ++filled, left -= S::IDS, from += TILE_BYTES) {
      if (filled == 2) wait_for_copy(&sh->begun, 0);  // what is asked for after many tiles arrives after them
      if (filled >= STAGES) wait_for_copy(&sh->empty[place.at], place.parity ^ 1);
      if (filled >= ON_THEIR_WAY) {
        const RingPlace before = place.earlier(ON_THEIR_WAY);
        wait_for_copy(&sh->arrived[before.at], before.parity);
      }
      const u32 bytes = aligned ? (left < S::IDS ? left : S::IDS) * S::SIZE / 16 * 16 : 0, arrived = shared_address(&sh->arrived[place.at]);
      asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(arrived), "r"(bytes) : "memory");
      start_copy(ring() + place.at * TILE_BYTES, from, bytes, arrived);
      // The first row's mask is not known before its second stage is asked for.
      const bool waits = filled == 0 && stages > 1;
      if (filled == 1 && stages > 1) bring_mask(0, own.from(masks), 0);
      if (!waits) bring_mask(place.at, own.from(masks), stage);
      place.advance();
    }
  }
}

// A stage in the ring.
template <u32 DTYPE>
struct StageView {
  static constexpr u32 WIDTH = Stages<DTYPE>::WIDTH, IDS = Stages<DTYPE>::IDS;
  using Share = Tile<DTYPE, TEAM_THREADS, TILE_BYTES / 16 / TEAM_THREADS>;
  using Vector = Lane<DTYPE>;
  const unsigned char *data;
  const u32 *mask;   // of its ids; null: none
  u32 begin, limit;  // its first id; how many of its logits count at most

  __device__ __forceinline__ bool whole() const { return limit >= IDS; }
  // Which of WIDTH logits count, as bits.
  __device__ __forceinline__ u32 counted(u32 at) const {
    if (at >= limit) return 0;
    const u32 bits = mask ? mask[at / 32] >> at % 32 : ~0u;
    return at + WIDTH <= limit ? bits : bits & ~(~0u << (limit - at));
  }
  __device__ __forceinline__ Share share() const {
    Share s(data);
    if (whole() && !mask) return s;
#pragma unroll
    for (u32 j = 0; j < Share::VECTORS; ++j) s.keep(j, whole() ? mask[Share::offset(j) / 32] >> Share::offset(j) % 32 : counted(Share::offset(j)));
    return s;
  }
  __device__ __forceinline__ Vector vector(u32 j) const { return Vector(reinterpret_cast<const uint4 *>(data)[j * TEAM_THREADS + threadIdx.x]); }
  __device__ __forceinline__ float logit(u32 at) const { return Share::logit(data, at); }
};

// The row that is read.
template <u32 DTYPE>
struct Reader {
  using View = StageView<DTYPE>;
  using Share = typename View::Share;
  static constexpr u32 IDS = View::IDS, WIDTH = View::WIDTH, VECTORS = Share::VECTORS;
  Row *row;
  const void *logits;
  const u32 *mask;  // null: none
  u32 held;         // logits that count at most
  bool brought;     // the mask is in the ring

  __device__ __forceinline__ static const unsigned char *wait(RingPlace place) {
    wait_for_copy(&state()->arrived[place.at], place.parity);
    return ring() + place.at * TILE_BYTES;
  }

  // A stage that has logits, once it has arrived. A barrier within, if the copy engine has left out something, unless that is there.
  __device__ __forceinline__ View view(RingPlace place, u32 stage, bool complete) const {
    const u32 begin = stage * IDS;
    const u32 *const own = !mask ? nullptr : brought ? reinterpret_cast<const u32 *>(ring_of_masks() + place.at * STAGE_MASK_BYTES) : mask + begin / 32;
    const View v{wait(place), own, begin, held - begin};
    if (!complete) fetch_rest(v);
    return v;
  }
  __device__ __forceinline__ void fetch_rest(const View &v) const {
    const u32 rest = v.limit / WIDTH * WIDTH;
    if (v.whole() || v.limit == rest) return;
    if (threadIdx.x < v.limit - rest) {
      const u32 at = rest + threadIdx.x;
      if (DTYPE == NUCLEUS_F32) reinterpret_cast<u32 *>(const_cast<unsigned char *>(v.data))[at] = static_cast<const u32 *>(logits)[v.begin + at];
      else reinterpret_cast<uint16_t *>(const_cast<unsigned char *>(v.data))[at] = static_cast<const uint16_t *>(logits)[v.begin + at];
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before a later copy to this place
    }
    Reading::sync();
  }

  // The largest logits of each vector of this thread's share of a stage.
  struct Peaks {
    Peak<DTYPE> of[VECTORS];
    float most;  // of all; NaN if one is

    __device__ __forceinline__ explicit Peaks(const View &stage) {
      const Share share = stage.share();
#pragma unroll
      for (u32 j = 0; j < VECTORS; ++j) of[j] = Peak<DTYPE>::of(share.v[j]);
      Peak<DTYPE> all = of[0];
#pragma unroll
      for (u32 j = 1; j < VECTORS; ++j) all = all | of[j];
      most = all.value();
    }
    // The vectors that reach a threshold, as bits.
    __device__ __forceinline__ u32 reaching(float threshold) const {
      u32 bits = 0;
#pragma unroll
      for (u32 j = 0; j < VECTORS; ++j) bits |= of[j].value() >= threshold ? 1u << j : 0;
      return bits;
    }
  };

  // Whether the token with this thread's largest logit of a stage may be edited.
  __device__ __forceinline__ bool largest_marked(const View &stage, const Peaks &peaks) const {
    const u32 at = Share::offset(__ffs(peaks.reaching(peaks.most)) - 1), counted = stage.counted(at);
    UNROLL_NOT
    for (u32 i = 0; i < WIDTH; ++i)
      if (stage.logit(at + i) == peaks.most && counted >> i & 1) return row->marked(stage.begin + at + i);  // of equal ones, one that counts
    return true;
  }

  // Collects this thread's tokens of a stage that reach the threshold, which is not -inf.
  __device__ __forceinline__ void collect(const View &stage, const Peaks &peaks, float threshold) const {
    UNROLL_NOT
    for (u32 vectors = peaks.reaching(threshold); vectors; vectors &= vectors - 1) {
      const u32 j = __ffs(vectors) - 1, at = Share::offset(j);
      const typename View::Vector v = stage.vector(j);
      u32 bits = 0;
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) bits |= v.x[i] >= threshold ? 1u << i : 0;
      bits &= stage.counted(at);
      UNROLL_NOT
      for (u32 to = atomicAdd(&row->found, __popc(bits)); bits && to < COLLECT_MOST; bits &= bits - 1, ++to) {
        const u32 i = __ffs(bits) - 1;
        row->places[to] = place_of(stage.logit(at + i) + 0.0f, stage.begin + at + i);
      }
    }
  }

  // A first bound, from the stages that come first. `top`: the largest logit of this thread there.
  __device__ __forceinline__ float first_bound(RingPlace place, u32 ahead, float &top) const {
    float unedited = -infinity();
    UNROLL_NOT
    for (u32 stage = 0; stage < ahead && stage * IDS < held; ++stage) {
      const View v = view(place.later(stage), stage, false);
      const Peaks peaks(v);
      if (!(peaks.most < infinity())) row->strange = 1;
      top = max_nan(top, peaks.most);
      if (peaks.most > unedited && peaks.most < infinity() && !(row->plan.edits && largest_marked(v, peaks))) unedited = peaks.most;
    }
    float most;
    const float bound = bound_of_threads(unedited, row->plan.k, most);
    return threshold_of(row, bound, most);
  }

  // Reads the row to its end. Warps wait for each other only before the first bound.
  __device__ __forceinline__ void read(RingPlace &place, u32 stages) const {
    const u32 ahead = stages < AHEAD ? stages : AHEAD;
    float top = -infinity();
    const float bound = first_bound(place, ahead, top);
    if (threadIdx.x == 0) raise_to(row, bound);
    UNROLL_NOT
    for (u32 stage = 0; stage < stages; ++stage) {
      if (stage * IDS < held) {
        const View v = view(place, stage, stage < ahead);
        const float threshold = fmaxf(fmaxf(bound, threshold_now(row)), value_of(key_of(-infinity()) + 1));
        if (stage >= ahead || top >= threshold) {
          const Peaks peaks(v);
          if (!(peaks.most < infinity())) row->strange = 1;
          if (peaks.most >= threshold) collect(v, peaks, threshold);
        }
      } else {
        wait(place);
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) arrive(&state()->empty[place.at]);
      place.advance();
    }
  }
};

// All rows of the block.
template <u32 DTYPE>
__device__ __forceinline__ void read_rows(const SamplingBatch &batch) {
  State *const sh = state();
  const u32 stages = Stages<DTYPE>::count(batch);
  RingPlace place;
  u32 turn = 0;
  UNROLL_NOT
  for (u32 index = blockIdx.x; index < batch.rows; index += gridDim.x, ++turn) {
    Row *const row = &sh->rows[turn % 2];
    wait_for_copy(&sh->ready[turn % 2], turn / 2 % 2);
    const Masks masks(batch);
    const u32 *const mask = masks.of(row->row.mask);
    const u32 vocab = row->config.vocab_size, exist = vocab < batch.row_len ? vocab : batch.row_len;
    const u32 held = mask && masks.words < (exist + 31) / 32 ? masks.words * 32 : exist;
    const Reader<DTYPE> reader{row, Stages<DTYPE>::row(batch, index), mask, held, masks.aligned()};
    if (row->bounded) {
      reader.read(place, stages);
    } else {
      UNROLL_NOT
      for (u32 stage = 0; stage < stages; ++stage) {
        reader.wait(place);
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(&sh->empty[place.at]);
        place.advance();
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(&sh->read[turn % 2]);
  }
}

}  // namespace nucleus::relay
