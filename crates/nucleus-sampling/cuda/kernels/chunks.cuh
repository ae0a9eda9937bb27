// A row in device memory by chunks of 256 ids and steps of 128, four to a lane of a warp; and a sample of it, which tells about where a cut lies.
#pragma once

#include "block_group.cuh"
#include "chain.cuh"
#include "whole.cuh"

namespace nucleus {

constexpr u32 CHUNK = 2 * STEP;
constexpr u32 SAMPLED_FOURS = 4096;  // of four tokens each
constexpr u32 PIECE = 4;             // of these fours lie together: memory is read by 64 bytes
constexpr u32 SAMPLE_STEPS = 512;    // of the sampled logits
constexpr float SAMPLE_STEPS_PER_OCTAVE = 25.0f;

// How a row's logits can be read four at a time: ANY, one by one.
enum Reading : u32 { F32 = NUCLEUS_F32, F16 = NUCLEUS_F16, BF16 = NUCLEUS_BF16, ANY };

__device__ __forceinline__ Reading reading_of(const Request &r) {
  const bool aligned = reinterpret_cast<uintptr_t>(r.logits) % (r.dtype == NUCLEUS_F32 ? 16 : 8) == 0;
  return aligned ? static_cast<Reading>(r.dtype) : ANY;
}

// A row's logits, masked but not edited, and its edits.
struct ChunkedRow {
  const char *logits;
  const u32 *mask;
  u32 mask_words, dtype, limit;
  u32 row_len, edited;
  const u32 *edits;  // by parts, as Whole's
  const Changed *changed;
  Division division;

  __device__ __forceinline__ float single(u32 id) const {
    if (dtype == NUCLEUS_F32) return reinterpret_cast<const float *>(logits)[id];
    const uint16_t half = reinterpret_cast<const uint16_t *>(logits)[id];
    return dtype == NUCLEUS_F16 ? widen_f16(half) : float_of(static_cast<u32>(half) << 16);
  }
  // The same where it is known how they can be read.
  template <Reading R>
  __device__ __forceinline__ float single_as(u32 id) const {
    if (R == F32) return reinterpret_cast<const float *>(logits)[id];
    if (R == ANY) return single(id);
    const uint16_t half = reinterpret_cast<const uint16_t *>(logits)[id];
    return R == F16 ? widen_f16(half) : float_of(static_cast<u32>(half) << 16);
  }
  // Four as they lie in memory, from where they are aligned; of 16 bits, in two words.
  template <Reading R>
  __device__ __forceinline__ static uint4 words_at(const char *logits, u32 id) {
    if (R == F32) return __ldg(reinterpret_cast<const uint4 *>(logits + static_cast<size_t>(id) * 4));
    const uint2 v = __ldg(reinterpret_cast<const uint2 *>(logits + static_cast<size_t>(id) * 2));
    return make_uint4(v.x, v.y, 0, 0);
  }
  template <Reading R>
  __device__ __forceinline__ static float4 four_in(const uint4 &words) {
    if (R == F32 || R == ANY) return make_float4(float_of(words.x), float_of(words.y), float_of(words.z), float_of(words.w));
    auto half = [](u32 h) { return R == BF16 ? float_of(h << 16) : widen_f16(static_cast<uint16_t>(h)); };
    if (R == BF16) return make_float4(half(words.x), float_of(words.x & 0xFFFF0000u), half(words.y), float_of(words.y & 0xFFFF0000u));
    return make_float4(half(words.x & 0xFFFF), half(words.x >> 16), half(words.y & 0xFFFF), half(words.y >> 16));
  }
  template <Reading R>
  __device__ __forceinline__ float4 four(u32 id) const {
    if (R == ANY) return make_float4(single(id), single(id + 1), single(id + 2), single(id + 3));
    return four_in<R>(words_at<R>(logits, id));
  }
  // Where the row may end within them; -inf from there on.
  template <Reading R>
  __device__ __forceinline__ float4 four_or_less(u32 id) const {
    const float out = -infinity();
    float4 v = make_float4(out, out, out, out);
    if (id + 4 <= limit) v = four<R>(id);
    else if (id < limit) {
      v.x = single_as<R>(id);
      if (id + 1 < limit) v.y = single_as<R>(id + 1);
      if (id + 2 < limit) v.z = single_as<R>(id + 2);
    }
    return v;
  }
  __device__ __forceinline__ float4 masked(float4 v, u32 id) const {
    if (!mask) return v;
    const u32 allowed = id / 32 < mask_words ? mask[id / 32] >> (id % 32) : 0;
    const float out = -infinity();
    return make_float4(allowed & 1 ? v.x : out, allowed & 2 ? v.y : out, allowed & 4 ? v.z : out, allowed & 8 ? v.w : out);
  }
};

__device__ __forceinline__ ChunkedRow row_of(const Request &r, u32 row_len, u32 index, const RowPlan &plan, const Whole &whole, const Division &division) {
  return ChunkedRow{static_cast<const char *>(r.logits), r.mask, r.mask_words, r.dtype, r.limit, row_len, plan.edited, whole.edits + static_cast<u64>(index) * ROW_WARPS,
                    whole.changed + static_cast<u64>(index) * ROW_EDITS, division};
}

// A lane's four logits of a step of STEP ids with what edits and masks make of them. `edits`: begin and end, of 16 bits each, of those that may be the step's; `staged`: STEP floats of the
// warp's. By every lane.
__device__ __forceinline__ float4 settled(const ChunkedRow &row, float4 v, u32 step, u32 edits, float *staged) {
  const u32 first = step * STEP, lane = threadIdx.x % 32, begin = edits >> 16, end = edits & 0xFFFF;
  if (begin < end) {
    reinterpret_cast<float4 *>(staged)[lane] = v;
    __syncwarp();
#pragma unroll 1
    for (u32 i = begin + lane; i < end; i += 32) {
      const Changed c = row.changed[i];
      if (c.id - first < STEP) staged[c.id - first] = c.logit;
    }
    __syncwarp();
    v = reinterpret_cast<const float4 *>(staged)[lane];
    __syncwarp();
  }
  return row.masked(v, first + lane * 4);
}

// Where the edits of a chunk's ids are among the row's, and others.
__device__ __forceinline__ void edits_of(const ChunkedRow &row, u32 chunk, u32 &begin, u32 &end) {
  begin = end = 0;
  if (!row.edited) return;
  const u32 first = chunk * CHUNK, last = (first + CHUNK < row.limit ? first + CHUNK : row.limit) - 1;
  const u32 from = row.edits[Part::of(row.division, row.row_len, first)], to = row.edits[Part::of(row.division, row.row_len, last)];
  begin = from >> 16;
  end = (to >> 16) + (to & 0xFFFF);
}

// Of what the last lane of each warp has left in Shared's `part`: the sum over the warps before this one. After a barrier of the block.
template <u32 N>
__device__ __forceinline__ u64 before_warp(u32 slot) {
  const u32 lane = threadIdx.x % 32;
  return DeviceWarp{}.sum(lane < threadIdx.x / 32 && lane < N / 32 ? shared_state()->part[lane][slot] : 0);
}

// A sample's tokens by steps of their logits, from the lowest up; each of N threads of a block has as many steps. The blocks of a group take it together,
// and all come to the same numbers.
template <u32 N>
struct Sample {
  static constexpr u32 EACH = SAMPLE_STEPS / N, WORDS = SAMPLE_STEPS / 4;  // four steps a word
  static constexpr u32 MASS_BITS = 48;                                     // counts lie above
  static constexpr u64 MASS = (1ull << MASS_BITS) - 1;
  using Counts = u64[WORDS];  // that a block tells
  Counts *counts;             // of each block
  float largest, rate;        // rate: steps a logit

  // s: the scale of the weights.
  __device__ __forceinline__ Sample(Counts *of_blocks, float first, float s) : counts(of_blocks), largest(first), rate(SAMPLE_STEPS_PER_OCTAVE * s) {}

  // Pieces of a row that are taken.
  __device__ __forceinline__ static u32 pieces_of(u32 limit) { return limit / (4 * PIECE) < SAMPLED_FOURS / PIECE ? limit / (4 * PIECE) : SAMPLED_FOURS / PIECE; }
  // Tokens of a row for one of the sample.
  __device__ __forceinline__ static float share_of(u32 limit) {
    const u32 taken = pieces_of(limit) * 4 * PIECE;
    return taken ? static_cast<float>(limit) / static_cast<float>(taken) : 1.0f;
  }
  // The cells in which a block counts, in the room of Shared's list.
  __device__ __forceinline__ static u32 *cells() {
    static_assert(SAMPLE_STEPS * sizeof(u32) <= LIST_CAPACITY * sizeof(u64));
    return reinterpret_cast<u32 *>(shared_state()->list);
  }
  // Before it is taken; a barrier of the block must follow.
  __device__ __forceinline__ static void clear() {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) cells()[i * N + threadIdx.x] = 0;
  }

  // Where the sample's fours lie.
  struct Fours {
    static constexpr u32 FRACTION = 14;
    u32 taken, stride;

    __device__ __forceinline__ explicit Fours(u32 limit) : taken(pieces_of(limit) * PIECE) {
      stride = taken == SAMPLED_FOURS ? (limit / (4 * PIECE) << FRACTION) / (SAMPLED_FOURS / PIECE) : 1u << FRACTION;
    }
    __device__ __forceinline__ u32 id(u32 i) const { return (i / PIECE * stride >> FRACTION) * (4 * PIECE) + i % PIECE * 4; }
  };
  // A thread's first four as it lies in memory, asked for before anything else is known.
  __device__ __forceinline__ static uint4 first_words(const Request &r, const BlockGroup &group) {
    const Fours fours(r.limit);
    const u32 i = group.share_of(fours.taken * group.block) + threadIdx.x, id = fours.id(i);
    uint4 words = make_uint4(0, 0, 0, 0);
    if (i >= group.share_of(fours.taken * (group.block + 1))) return words;
    switch (reading_of(r)) {
      case F32: return ChunkedRow::words_at<F32>(static_cast<const char *>(r.logits), id);
      case F16:
      case BF16: return ChunkedRow::words_at<F16>(static_cast<const char *>(r.logits), id);
      default: return make_uint4(bits_of(load_logit(r, id)), bits_of(load_logit(r, id + 1)), bits_of(load_logit(r, id + 2)), bits_of(load_logit(r, id + 3)));
    }
  }
  __device__ __forceinline__ void count(const ChunkedRow &row, float4 v, u32 id) const {
    if (row.mask) v = row.masked(v, id);
    const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      const u32 at = static_cast<u32>(fminf(fmaxf((largest - x[e]) * rate, 0.0f), static_cast<float>(SAMPLE_STEPS - 1)));
      if (x[e] > -infinity()) atomicAdd(&cells()[at], 1);
    }
  }
  // When it returns, all blocks' counts are there, for every thread.
  template <Reading R>
  __device__ __forceinline__ void take(const ChunkedRow &row, const BlockGroup &group, const uint4 &first) const {
    constexpr u32 AHEAD = 2;
    const Fours fours(row.limit);
    const u32 end = group.share_of(fours.taken * (group.block + 1));
    u32 base = group.share_of(fours.taken * group.block) + threadIdx.x;
    if (base < end) count(row, ChunkedRow::four_in<R>(first), fours.id(base));
    UNROLL_NOT
    for (base += N; base < end; base += AHEAD * N) {
      const u32 other = base + N < end ? base + N : base;
      const float4 v = row.four<R>(fours.id(base)), w = row.four<R>(fours.id(other));
      count(row, v, fours.id(base));
      if (other != base) count(row, w, fours.id(other));
    }
    sync_block();
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < WORDS * group.blocks; i += N) {
      const uint4 four = reinterpret_cast<const uint4 *>(cells())[i % WORDS];
      const u64 word = static_cast<u64>(four.z | four.w << 16) << 32 | (four.x | four.y << 16);
      if (group.blocks == 1) counts[0][i] = word;
      else group.send(COUNTS, i / WORDS, &counts[group.block][i % WORDS], word);
    }
    if (group.blocks == 1) {
      sync_block();
      return;
    }
    if (threadIdx.x < group.blocks) group.announce(COUNTS, threadIdx.x, WORDS);
    group.receive(COUNTS, 0);
  }
};

// What a thread knows of a sample that is taken.
template <u32 N>
struct SampledSteps {
  using Of = Sample<N>;
  static constexpr u32 EACH = Of::EACH;
  const Of &sample;
  u32 before, own[EACH] = {};  // tokens of the sample below this thread's steps, and in each
  u64 below, sum = 0;          // and what they weigh

  // `exponent`: of the largest logit's weight, 44 taken off. Takes Shared's `part`; every thread.
  __device__ __forceinline__ SampledSteps(const Of &of, u32 blocks, float exponent) : sample(of) {
    Shared *sh = shared_state();
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
      for (u32 block = 0; block < (N == THREADS ? MAX_BLOCKS : 1); ++block)
        if (block < blocks) own[i] += reinterpret_cast<const uint16_t *>(sample.counts[block])[step(i)];
    }
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) sum += static_cast<u64>(own[i]) << Of::MASS_BITS | weight(i, exponent);
    const u64 of_warp = prefix_sum(sum);
    if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][0] = of_warp;
    sync_block();
    below = before_warp<N>(0) + (of_warp - sum);
    before = static_cast<u32>(below >> Of::MASS_BITS);
    below &= Of::MASS;
    sum &= Of::MASS;
  }
  __device__ __forceinline__ u32 step(u32 i) const { return SAMPLE_STEPS - 1 - (threadIdx.x * EACH + i); }
  // The weight of a step's token in units of 2^-32 of the weight 2^44; nothing in the lowest step, which has all that is below.
  __device__ __forceinline__ static float weight_of_one(u32 at, float exponent) {
    return at == SAMPLE_STEPS - 1 ? 0 : exp2f(exponent + 32.0f - (static_cast<float>(at) + 0.5f) * (1.0f / SAMPLE_STEPS_PER_OCTAVE));
  }
  __device__ __forceinline__ u64 weight(u32 i, float exponent) const { return static_cast<u64>(static_cast<float>(own[i]) * weight_of_one(step(i), exponent)); }

  // About how many of the sample's lowest tokens weigh `mass` together, in the units of `weight`, and what one of the next weighs: told(rank, weight), by one thread.
  template <class T>
  __device__ __forceinline__ void find_rank(u64 mass, float exponent, T told) const {
    if (threadIdx.x == N - 1 && mass >= below + sum) {
      u32 all = before;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) all += own[i];
      told(static_cast<float>(all), weight_of_one(0, exponent));
    }
    if (!(mass >= below && mass - below < sum)) return;
    static_assert(EACH <= 2);
    const bool second = EACH == 2 && mass - below >= weight(0, exponent);
    const u64 rest = mass - below - (second ? weight(0, exponent) : 0);
    const float one = weight_of_one(step(second), exponent);
    told(static_cast<float>(before + (second ? own[0] : 0)) + __fdividef(static_cast<float>(rest), one), one);
  }
  // The logit below which about so many of the sample lie, by the thread whose steps have it.
  __device__ __forceinline__ void logit_at_rank(float rank, float &logit) const {
    u32 at = before;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      if (rank >= static_cast<float>(at) && rank < static_cast<float>(at + own[i])) {
        const float part = __fdividef(rank - static_cast<float>(at), static_cast<float>(own[i]));
        logit = sample.largest - __fdividef(static_cast<float>(step(i)) + 1.0f - part, sample.rate);
      }
      at += own[i];
    }
  }
};

}  // namespace nucleus
