// Attention of a warp's rows, step by step.
#pragma once

#include "attention_queries.cuh"
#include "splits.cuh"

namespace nucleus {

// The positions that a row attends to.
struct Span {
  uint32_t first, last;

  __device__ __forceinline__ bool contains(uint32_t position) const { return first <= position && position <= last; }
};

__device__ __forceinline__ Span span_of(uint32_t position, uint32_t window) {
  return {window != 0 && position >= window ? position - window + 1 : 0, position};
}

// How a product q·k of the scaled queries becomes an exponent of two.
struct Exponent {
  float factor[2];  // of a lane's two rows
  float cap;        // in units of log 2; 0: none
  float inner[2];   // what is multiplied before the cap

  __device__ Exponent(const NucleusAttention &call, const float (&query_scales)[2]) {
    constexpr float LOG2_E = 1.4426950408889634f;
    cap = call.soft_cap * LOG2_E;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      const float scale = call.scale * query_scales[i];
      factor[i] = cap != 0.0f ? 1.0f : scale * LOG2_E;
      inner[i] = cap != 0.0f ? scale / call.soft_cap : 0.0f;
    }
  }

  __device__ __forceinline__ float capped(float product, uint32_t row) const { return cap * tanhf(product * inner[row]); }
};

template <class Shape>
class Rows {
 public:
  // Sums of the weights' products: those of float16 parts are at least 2⁻²⁴ then, where the largest weight of a row is about 2^WEIGHT_EXPONENT.
  static constexpr float WEIGHT_EXPONENT = 14.0f;

  __device__ Rows(const Span (&spans)[2], const Exponent &exponent) : spans_{spans[0], spans[1]}, exponent_(exponent) {}

  // Forgets what was summed, for the next split.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) softmax[i] = Softmax();
#pragma unroll
    for (Sums &sums : outputs) sums = Sums();
  }

  // Takes the step of positions from `first` on, in a stage of the ring. `edge`: some row does not attend to all of them.
  __device__ __forceinline__ void step(const Queries<Shape> &queries, const typename Shape::Shared &shared, uint32_t stage, uint32_t first, bool edge) {
    Sums scores[SCORES];
    multiply_keys(queries, shared, stage, scores);
    if (exponent_.cap != 0.0f) cap_scores(scores);
    if (edge) mask(scores, first);
    raise_bounds(scores);
    weigh(scores);
    if (edge) {
      spread_faults(shared, stage, first, scores);
      add_values<true>(shared, stage, scores);
    } else {
      add_values<false>(shared, stage, scores);
    }
  }

  // Puts the sums of a row's four lanes together, at the end of a split.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      float &sum = softmax[i].sum;
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
    }
  }

  Softmax softmax[2];
  Sums outputs[Shape::COLUMNS];

 private:
  // Columns of scores, eight positions each: two a block.
  static constexpr uint32_t SCORES = 2 * Shape::BLOCKS;

  // The position, within a step, of value v of a lane's sums of a column.
  static __device__ __forceinline__ uint32_t position_in_step(uint32_t column, uint32_t v) { return 8 * column + 2 * (threadIdx.x % 4) + v % 2; }

  // High and low parts are summed apart: twice as many chains of products keep the tensor cores busy.
  static __device__ __forceinline__ void multiply_keys(const Queries<Shape> &queries, const typename Shape::Shared &shared, uint32_t stage,
                                                       Sums (&scores)[SCORES]) {
    Sums low[SCORES];
#pragma unroll
    for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
      const SplitFragment query = queries.fragment(piece, shared);
#pragma unroll
      for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
        const uint4 keys = shared.keys[stage][block][piece][threadIdx.x % WARP];
        multiply_add(scores[2 * block], query.high, keys.x, keys.y);
        multiply_add(scores[2 * block + 1], query.high, keys.z, keys.w);
        multiply_add(low[2 * block], query.low, keys.x, keys.y);
        multiply_add(low[2 * block + 1], query.low, keys.z, keys.w);
      }
    }
#pragma unroll
    for (uint32_t column = 0; column < SCORES; ++column) {
#pragma unroll
      for (uint32_t v = 0; v < 4; ++v) scores[column].values[v] += low[column].values[v];
    }
  }

  // Calls `f(score, row of the lane, place in the step)`.
  template <class F>
  static __device__ __forceinline__ void each(Sums (&scores)[SCORES], F f) {
#pragma unroll
    for (uint32_t column = 0; column < SCORES; ++column) {
#pragma unroll
      for (uint32_t v = 0; v < 4; ++v) f(scores[column].values[v], v / 2, position_in_step(column, v));
    }
  }

  __device__ __forceinline__ void cap_scores(Sums (&scores)[SCORES]) const {
    each(scores, [&](float &score, uint32_t row, uint32_t) { score = exponent_.capped(score, row); });
  }

  __device__ __forceinline__ void mask(Sums (&scores)[SCORES], uint32_t first) const {
    each(scores, [&](float &score, uint32_t row, uint32_t place) {
      if (!spans_[row].contains(first + place)) score = -INFINITY;
    });
  }

  // Raises the bounds to the step's largest exponents. Where none changes, nothing is multiplied, which changes no bit: the weights would be 1.
  __device__ __forceinline__ void raise_bounds(Sums (&scores)[SCORES]) {
    float largest[2] = {-INFINITY, -INFINITY};
    each(scores, [&](float &score, uint32_t row, uint32_t) { largest[row] = fmaxf(largest[row], score); });
    float bounds[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(~0u, largest[i], 1));
      largest[i] = fmaxf(largest[i], __shfl_xor_sync(~0u, largest[i], 2));
      bounds[i] = fmaxf(softmax[i].bound, ceilf(largest[i] * exponent_.factor[i]));
    }
    if (!__any_sync(~0u, bounds[0] != softmax[0].bound || bounds[1] != softmax[1].bound)) return;
    float weights[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      weights[i] = weight_under(bounds[i], softmax[i].bound);
      softmax[i].sum *= weights[i];
      softmax[i].bound = bounds[i];
    }
#pragma unroll
    for (Sums &sums : outputs) {
#pragma unroll
      for (uint32_t v = 0; v < 4; ++v) sums.values[v] *= weights[v / 2];
    }
  }

  // Scores become weights.
  __device__ __forceinline__ void weigh(Sums (&scores)[SCORES]) {
    float shift[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) shift[i] = softmax[i].bound == -INFINITY ? 0.0f : WEIGHT_EXPONENT - softmax[i].bound;
    each(scores, [&](float &score, uint32_t row, uint32_t) {
      score = exp2_approximate(__fmaf_rn(score, exponent_.factor[row], shift[row]));
      softmax[row].sum += score;
    });
  }

  // Weights of 0 do not keep a row from values that are not finite, so such values are taken for 0 in steps that not every row attends to wholly, and rows that
  // do attend to one become NaN here. A lane's weights are those of the positions of its values: those that its bits of `faults` stand for.
  __device__ __forceinline__ void spread_faults(const typename Shape::Shared &shared, uint32_t stage, uint32_t first, Sums (&weights)[SCORES]) const {
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
      uint32_t faults = 0;
#pragma unroll 1
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        const uint4 values = shared.values[stage][block][piece][threadIdx.x % WARP];
        faults |= faults_of(values.x) | faults_of(values.z) | faults_of(values.y) << 2 | faults_of(values.w) << 2;
      }
      faults |= __shfl_xor_sync(~0u, faults, 4);
      faults |= __shfl_xor_sync(~0u, faults, 8);
      faults |= __shfl_xor_sync(~0u, faults, 16);
      if (faults == 0) continue;
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t column = 2 * block + half;
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) {
          const bool attends = spans_[v / 2].contains(first + position_in_step(column, v));
          if (attends && faults >> (2 * half + v % 2) & 1) weights[column].values[v] = NAN;
        }
      }
    }
  }

  // Bit i: the i-th of two float16 numbers is infinite or NaN.
  static __device__ __forceinline__ uint32_t faults_of(uint32_t halves) {
    return ((halves & 0x7C00u) == 0x7C00u ? 1u : 0u) | ((halves & 0x7C000000u) == 0x7C000000u ? 2u : 0u);
  }

  static __device__ __forceinline__ uint32_t without_faults(uint32_t halves) {
    const uint32_t faults = faults_of(halves);
    return halves & ~((faults & 1 ? 0xFFFFu : 0u) | (faults & 2 ? 0xFFFF0000u : 0u));
  }

  template <bool CLEAN>
  __device__ __forceinline__ void add_values(const typename Shape::Shared &shared, uint32_t stage, const Sums (&weights)[SCORES]) {
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
      SplitFragment weight;
#pragma unroll
      for (uint32_t half = 0; half < 2; ++half) {
        const float *w = weights[2 * block + half].values;
        weight.set(2 * half, w[0], w[1]);
        weight.set(2 * half + 1, w[2], w[3]);
      }
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        uint4 values = shared.values[stage][block][piece][threadIdx.x % WARP];
        if constexpr (CLEAN) values = {without_faults(values.x), without_faults(values.y), without_faults(values.z), without_faults(values.w)};
        multiply_add(outputs[2 * piece], weight.high, values.x, values.y);
        multiply_add(outputs[2 * piece + 1], weight.high, values.z, values.w);
        multiply_add(outputs[2 * piece], weight.low, values.x, values.y);
        multiply_add(outputs[2 * piece + 1], weight.low, values.z, values.w);
      }
    }
  }

  Span spans_[2];
  Exponent exponent_;
};

}  // namespace nucleus
