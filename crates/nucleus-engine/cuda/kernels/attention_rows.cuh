// Attention of a warp's rows, step by step.
//
// Rows of queries are the columns of all products here, and a lane has the columns 2t and 2t + 1 of each tile: `column` is 0 or 1.
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

// How a product q·k of a row's scaled query becomes an exponent of two: factor · x, or factor · tanh(x · inner) where scores are capped.
struct Exponent {
  float factor = 0.0f, inner = 0.0f;

  Exponent() = default;
  __device__ Exponent(const NucleusAttention &call, float query_scale) {
    constexpr float LOG2_E = 1.4426950408889634f;
    const float scale = call.scale * query_scale;
    factor = (call.soft_cap != 0.0f ? call.soft_cap : scale) * LOG2_E;
    inner = call.soft_cap != 0.0f ? scale / call.soft_cap : 0.0f;
  }
};

template <class Shape>
class Rows {
 public:
  __device__ Rows(const Span (&spans)[Shape::TILES][2], const Exponent (&exponents)[Shape::TILES][2], bool capped) : capped_(capped) {
    each_column([&](uint32_t tile, uint32_t column) {
      spans_[tile][column] = spans[tile][column];
      exponents_[tile][column] = exponents[tile][column];
    });
  }

  // Forgets what was summed, for the next split.
  __device__ __forceinline__ void begin() {
    each_column([&](uint32_t tile, uint32_t column) { softmax[tile][column] = Softmax(); });
#pragma unroll
    for (uint32_t i = 0; i < Shape::PIECES * Shape::TILES; ++i) outputs[i / Shape::TILES][i % Shape::TILES] = Sums();
  }

  // Takes the step of positions from `first` on, in a stage of the ring. `edge`: some row does not attend to all of them.
  __device__ __forceinline__ void step(const Queries<Shape> &queries, const typename Shape::Shared &shared, uint32_t stage, uint32_t first, bool edge) {
    Scores scores;
    multiply_keys(queries, shared, stage, scores);
    if (capped_) cap(scores);
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

  // Puts the sums of a row's eight lanes together, at the end of a split.
  __device__ __forceinline__ void finish() {
    each_column([&](uint32_t tile, uint32_t column) {
      float &sum = softmax[tile][column].sum;
#pragma unroll
      for (uint32_t distance = 4; distance < WARP; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    });
  }

  Softmax softmax[Shape::TILES][2];
  Sums outputs[Shape::PIECES][Shape::TILES];  // weighted sums of values: dimensions g and g + 8 of a piece

 private:
  // Where the largest weight of a row is about 2^WEIGHT_EXPONENT, what float16 cannot hold of weights is below 2⁻³⁹ of it.
  static constexpr float WEIGHT_EXPONENT = 14.0f;

  // [BLOCK positions, TILE rows] each.
  using Scores = Sums[Shape::BLOCKS][Shape::TILES];

  // Calls `f(tile, column)` for the lane's rows.
  template <class F>
  static __device__ __forceinline__ void each_column(F f) {
#pragma unroll
    for (uint32_t i = 0; i < 2 * Shape::TILES; ++i) f(i / 2, i % 2);
  }

  // Calls `f(score, tile, column, place in the step)`, in ascending order of places.
  template <class F>
  static __device__ __forceinline__ void each(Scores &scores, F f) {
    const uint32_t g = threadIdx.x % WARP / 4;
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
#pragma unroll
      for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) f(scores[block][tile].values[v], tile, v % 2, block * BLOCK + v / 2 * 8 + g);
      }
    }
  }

  // A piece of values as a first operand, whose rows are dimensions: its second quarter, eight dimensions further, is the third that lies there.
  static __device__ __forceinline__ uint4 load_values(const typename Shape::Shared &shared, uint32_t stage, uint32_t block, uint32_t piece) {
    const uint32_t lane = threadIdx.x % WARP, row = lane % 8 + lane / 16 * 8 + lane / 8 % 2 * BLOCK;
    return load_transposed(&shared.values[stage][block][piece][row]);
  }

  // High and low parts are summed apart: twice as many chains of products keep the tensor cores busy.
  static __device__ __forceinline__ void multiply_keys(const Queries<Shape> &queries, const typename Shape::Shared &shared, uint32_t stage, Scores &scores) {
    Scores low;
#pragma unroll
    for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
#pragma unroll
      for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
        const uint4 keys = load_matrices(&shared.keys[stage][block][piece][threadIdx.x % WARP]);
#pragma unroll
        for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
          const SplitColumns query = queries.columns(piece, tile, shared);
          multiply_add(scores[block][tile], keys, query.high);
          multiply_add(low[block][tile], keys, query.low);
        }
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < Shape::BLOCKS * Shape::TILES; ++i) {
#pragma unroll
      for (uint32_t v = 0; v < 4; ++v) scores[i / Shape::TILES][i % Shape::TILES].values[v] += low[i / Shape::TILES][i % Shape::TILES].values[v];
    }
  }

  __device__ __forceinline__ void cap(Scores &scores) const {
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t) { score = tanhf(score * exponents_[tile][column].inner); });
  }

  __device__ __forceinline__ void mask(Scores &scores, uint32_t first) const {
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t place) {
      if (!spans_[tile][column].contains(first + place)) score = -INFINITY;
    });
  }

  // Raises the bounds to the step's largest exponents. Where none changes, nothing is multiplied, which changes no bit: the weights would be 1.
  __device__ __forceinline__ void raise_bounds(Scores &scores) {
    float bounds[Shape::TILES][2];
    each_column([&](uint32_t tile, uint32_t column) { bounds[tile][column] = -INFINITY; });
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t) { bounds[tile][column] = fmaxf(bounds[tile][column], score); });
    bool raises = false;
    each_column([&](uint32_t tile, uint32_t column) {
      float &bound = bounds[tile][column];
#pragma unroll
      for (uint32_t distance = 4; distance < WARP; distance *= 2) bound = fmaxf(bound, __shfl_xor_sync(~0u, bound, distance));
      bound = fmaxf(softmax[tile][column].bound, ceilf(bound * exponents_[tile][column].factor));
      raises |= bound != softmax[tile][column].bound;
    });
    if (!__any_sync(~0u, raises)) return;
    each_column([&](uint32_t tile, uint32_t column) {
      const float weight = weight_under(bounds[tile][column], softmax[tile][column].bound);
      softmax[tile][column] = {bounds[tile][column], softmax[tile][column].sum * weight};
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        outputs[piece][tile].values[column] *= weight;
        outputs[piece][tile].values[column + 2] *= weight;
      }
    });
  }

  // Scores become weights. A lane's sum is that of the positions that are its g modulo 8.
  __device__ __forceinline__ void weigh(Scores &scores) {
    float shifts[Shape::TILES][2];
    each_column([&](uint32_t tile, uint32_t column) {
      const float bound = softmax[tile][column].bound;
      shifts[tile][column] = bound == -INFINITY ? 0.0f : WEIGHT_EXPONENT - bound;
    });
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t) {
      score = exp2_approximate(__fmaf_rn(score, exponents_[tile][column].factor, shifts[tile][column]));
      softmax[tile][column].sum += score;
    });
  }

  // A weight of 0 does not keep a row from a value that is not finite. So in steps that not every row attends to wholly, such values are taken for 0, and rows
  // that do attend to one become NaN here.
  __device__ __forceinline__ void spread_faults(const typename Shape::Shared &shared, uint32_t stage, uint32_t first, Scores &weights) const {
    const uint32_t t = threadIdx.x % 4, g = threadIdx.x % WARP / 4;
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
      uint32_t near = 0, far = 0;  // of slots 2t and 2t + 1, and eight further
#pragma unroll 2
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        const uint4 values = load_values(shared, stage, block, piece);
        near |= faults_of(values.x) | faults_of(values.y);
        far |= faults_of(values.z) | faults_of(values.w);
      }
      const uint32_t faults = __reduce_or_sync(~0u, near << 2 * t | far << (2 * t + 8));
      if (faults == 0) continue;
#pragma unroll
      for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) {
          const uint32_t slot = v / 2 * 8 + g;
          const bool attends = spans_[tile][v % 2].contains(first + block * BLOCK + slot);
          if (attends && faults >> slot & 1) weights[block][tile].values[v] = NAN;
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
  __device__ __forceinline__ void add_values(const typename Shape::Shared &shared, uint32_t stage, const Scores &weights) {
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
      SplitColumns columns[Shape::TILES];
#pragma unroll
      for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
        const float *w = weights[block][tile].values;
        const SplitPair near(w[0], w[1]), far(w[2], w[3]);
        columns[tile] = {{transposed(near.high), transposed(far.high)}, {transposed(near.low), transposed(far.low)}};
      }
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        uint4 values = load_values(shared, stage, block, piece);
        if constexpr (CLEAN) values = {without_faults(values.x), without_faults(values.y), without_faults(values.z), without_faults(values.w)};
#pragma unroll
        for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
          multiply_add(outputs[piece][tile], values, columns[tile].high);
          multiply_add(outputs[piece][tile], values, columns[tile].low);
        }
      }
    }
  }

  Span spans_[Shape::TILES][2];
  Exponent exponents_[Shape::TILES][2];
  bool capped_;
};

}  // namespace nucleus
