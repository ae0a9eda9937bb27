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

// Fills the ring with the rows of the block, one stage after another, by one thread. The engine copies 16 bytes at a time; what is left of a row is read
// when it is needed.
template <u32 DTYPE>
__device__ __forceinline__ void fill_ring(const SamplingBatch &batch) {
  using S = Stages<DTYPE>;
  State *const sh = state();
  const u32 stages = S::count(batch);
  RingPlace place;
  u32 filled = 0;
  UNROLL_NOT
  for (u32 index = blockIdx.x; index < batch.rows; index += gridDim.x) {
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
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrived), "r"(bytes) : "memory");
      if (bytes)
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(ring() + place.at * TILE_BYTES)),
                     "l"(from), "r"(bytes), "r"(arrived)
                     : "memory");
      place.advance();
    }
  }
}

// The row that is read.
template <u32 DTYPE>
struct Reader {
  static constexpr u32 IDS = Stages<DTYPE>::IDS, VECTORS = TILE_BYTES / 16 / TEAM_THREADS;
  using Vector = Lane<DTYPE>;
  using Share = Tile<DTYPE, TEAM_THREADS, VECTORS>;
  Row *row;
  const void *logits;
  const u32 *mask;  // null: none
  u32 mask_words;
  u32 held;  // logits that count

  __device__ __forceinline__ static const unsigned char *wait(RingPlace place) {
    wait_for_copy(&state()->arrived[place.at], place.parity);
    return ring() + place.at * TILE_BYTES;
  }

  // Fetches what the copy engine has left out of the row's last stage. A barrier within, if there is something.
  __device__ __forceinline__ void complete(const unsigned char *data, u32 begin) const {
    const u32 limit = held - begin, rest = limit / Vector::WIDTH * Vector::WIDTH;
    if (limit >= IDS || limit == rest) return;
    if (threadIdx.x < limit - rest) {
      const u32 at = rest + threadIdx.x;
      if (DTYPE == NUCLEUS_F32) reinterpret_cast<u32 *>(const_cast<unsigned char *>(data))[at] = static_cast<const u32 *>(logits)[begin + at];
      else reinterpret_cast<uint16_t *>(const_cast<unsigned char *>(data))[at] = static_cast<const uint16_t *>(logits)[begin + at];
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before a later copy to this place
    }
    Reading::sync();
  }

  // Whether every logit of a stage counts.
  __device__ __forceinline__ bool plain(u32 begin) const { return !mask && held - begin >= IDS; }
  __device__ __forceinline__ bool counts(u32 id) const { return id < held && (!mask || (id / 32 < mask_words && mask[id / 32] >> id % 32 & 1)); }

  // The largest logits of each vector of this thread's share of a stage.
  struct Peaks {
    Peak<DTYPE> of[VECTORS];
    float most;  // of all; NaN if one is

    __device__ __forceinline__ Peaks(const Reader &reader, const unsigned char *data, u32 begin) {
      Share share(data);
      if (!reader.plain(begin)) share.template restrict<true>(reader.mask, reader.mask_words, begin, reader.held - begin);
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

  __device__ __forceinline__ static Vector vector_of(const unsigned char *data, u32 j) {
    return Vector(reinterpret_cast<const uint4 *>(data)[j * TEAM_THREADS + threadIdx.x]);
  }

  // Whether the token with this thread's largest logit of a stage may be edited.
  __device__ __forceinline__ bool largest_marked(const unsigned char *data, u32 begin, const Peaks &peaks) const {
    const u32 j = __ffs(peaks.reaching(peaks.most)) - 1;
    const Vector x = vector_of(data, j);
    u32 id = begin + Share::offset(j);
    UNROLL_NOT
    for (u32 i = 0; i < Vector::WIDTH; ++i) {
      // Of equal ones, one that counts.
      if (Share::logit(data, Share::offset(j) + i) == peaks.most && (plain(begin) || counts(id + i))) return row->marked(id + i);
    }
    return true;
  }

  // Collects this thread's tokens of a stage that reach the threshold, which is not -inf.
  __device__ __forceinline__ void collect(const unsigned char *data, u32 begin, const Peaks &peaks, float threshold) const {
    UNROLL_NOT
    for (u32 vectors = peaks.reaching(threshold); vectors; vectors &= vectors - 1) {
      const u32 j = __ffs(vectors) - 1, id = begin + Share::offset(j);
      const Vector v = vector_of(data, j);
      u32 bits = 0;
#pragma unroll
      for (u32 i = 0; i < Vector::WIDTH; ++i) bits |= v.x[i] >= threshold ? 1u << i : 0;
      if (!plain(begin))
        for (u32 i = 0; i < Vector::WIDTH; ++i) bits &= counts(id + i) ? ~0u : ~(1u << i);
      UNROLL_NOT
      for (u32 to = atomicAdd(&row->found, __popc(bits)); bits && to < COLLECT_MOST; bits &= bits - 1, ++to) {
        const u32 at = __ffs(bits) - 1;
        row->places[to] = place_of(Share::logit(data, Share::offset(j) + at) + 0.0f, id + at);
      }
    }
  }

  // A first bound, from the stages that come first. `top`: the largest logit of this thread there.
  __device__ __forceinline__ float first_bound(RingPlace place, u32 ahead, float &top) const {
    float unedited = -infinity();
    UNROLL_NOT
    for (u32 stage = 0; stage < ahead; ++stage) {
      const unsigned char *data = wait(place.later(stage));
      const u32 begin = stage * IDS;
      if (begin >= held) break;
      complete(data, begin);
      const Peaks peaks(*this, data, begin);
      if (!(peaks.most < infinity())) row->strange = 1;
      top = max_nan(top, peaks.most);
      if (peaks.most > unedited && peaks.most < infinity() && !(row->plan.edits && largest_marked(data, begin, peaks))) unedited = peaks.most;
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
      const unsigned char *data = wait(place);
      const u32 begin = stage * IDS;
      if (begin < held) {
        const float threshold = fmaxf(fmaxf(bound, threshold_now(row)), value_of(key_of(-infinity()) + 1));
        if (stage >= ahead) {
          complete(data, begin);
          const Peaks peaks(*this, data, begin);
          if (!(peaks.most < infinity())) row->strange = 1;
          if (peaks.most >= threshold) collect(data, begin, peaks, threshold);
        } else if (top >= threshold) {
          const Peaks peaks(*this, data, begin);
          collect(data, begin, peaks, threshold);
        }
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
    const u32 vocab = row->config.vocab_size, held = vocab < batch.row_len ? vocab : batch.row_len;
    const Reader<DTYPE> reader{row, Stages<DTYPE>::row(batch, index),
                               row->row.mask < 0 ? nullptr : batch.masks + static_cast<u64>(row->row.mask) * batch.mask_stride, batch.mask_words, held};
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
