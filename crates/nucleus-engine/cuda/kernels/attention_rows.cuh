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
    for (uint32_t i = 0; i < Shape::OWN_PIECES * Shape::TILES; ++i) outputs[i / Shape::TILES][i % Shape::TILES] = Sums();
  }

  // Takes the step of positions from `first` on, in a stage of the ring. `edge`: some row does not attend to all of them.
  __device__ __forceinline__ void step(const Queries<Shape> &queries, typename Shape::Shared &shared, uint32_t stage, uint32_t first, bool edge) {
    Scores scores;
    multiply_keys(queries, shared, stage, scores);
    if (capped_) cap(scores);
    if (edge) mask(scores, first);
    raise_bounds(scores, shared);
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

  // The i-th piece whose sums are this warp's; there may be none.
  static __device__ __forceinline__ uint32_t own_piece(uint32_t i) { return i * Shape::TEAM + Shape::member(); }

  Softmax softmax[Shape::TILES][2];
  Sums outputs[Shape::OWN_PIECES][Shape::TILES];  // weighted sums of values: dimensions g and g + 8 of a piece

 private:
  // Where the largest weight of a row is about 2^WEIGHT_EXPONENT, what float16 cannot hold of weights is below 2⁻³⁹ of it.
  static constexpr float WEIGHT_EXPONENT = 14.0f;

  // Of the warp's own positions: [BLOCK positions, TILE rows] each.
  using Scores = Sums[Shape::OWN_BLOCKS][Shape::TILES];

  static __device__ __forceinline__ uint32_t own_block(uint32_t i) { return Shape::member() * Shape::OWN_BLOCKS + i; }

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
    for (uint32_t block = 0; block < Shape::OWN_BLOCKS; ++block) {
#pragma unroll
      for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) f(scores[block][tile].values[v], tile, v % 2, own_block(block) * BLOCK + v / 2 * 8 + g);
      }
    }
  }

  // A piece of values as a first operand, whose rows are dimensions: its second quarter, eight dimensions further, is the third that lies there.
  static __device__ __forceinline__ uint4 load_values(const typename Shape::Shared &shared, uint32_t stage, uint32_t block, uint32_t piece) {
    const uint32_t lane = threadIdx.x % WARP, row = lane % 8 + lane / 16 * 8 + lane / 8 % 2 * BLOCK;
    return load_transposed(&shared.values[stage][block][piece][row]);
  }

  // High and low parts are summed apart: twice as many chains of products keep the tensor cores busy. Blocks are taken by twos, for there are not registers for more.
  static __device__ __forceinline__ void multiply_keys(const Queries<Shape> &queries, const typename Shape::Shared &shared, uint32_t stage, Scores &scores) {
    constexpr uint32_t AT_ONCE = Shape::OWN_BLOCKS < 2 ? Shape::OWN_BLOCKS : 2;
#pragma unroll
    for (uint32_t first = 0; first < Shape::OWN_BLOCKS; first += AT_ONCE) {
      Sums low[AT_ONCE][Shape::TILES];
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; ++i) {
          const uint4 keys = load_matrices(&shared.keys[stage][own_block(first + i)][piece][threadIdx.x % WARP]);
#pragma unroll
          for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
            const SplitColumns query = queries.columns(piece, tile, shared);
            multiply_add(scores[first + i][tile], keys, query.high);
            multiply_add(low[i][tile], keys, query.low);
          }
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE * Shape::TILES; ++i) {
#pragma unroll
        for (uint32_t v = 0; v < 4; ++v) scores[first + i / Shape::TILES][i % Shape::TILES].values[v] += low[i / Shape::TILES][i % Shape::TILES].values[v];
      }
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
  __device__ __forceinline__ void raise_bounds(Scores &scores, typename Shape::Shared &shared) {
    float bounds[Shape::TILES][2];
    each_column([&](uint32_t tile, uint32_t column) { bounds[tile][column] = -INFINITY; });
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t) { bounds[tile][column] = fmaxf(bounds[tile][column], score); });
    each_column([&](uint32_t tile, uint32_t column) {
#pragma unroll
      for (uint32_t distance = 4; distance < WARP; distance *= 2) bounds[tile][column] = fmaxf(bounds[tile][column], __shfl_xor_sync(~0u, bounds[tile][column], distance));
    });
    if constexpr (Shape::TEAM > 1) share_bounds(bounds, shared.exchange[Shape::team()]);
    bool raises = false;
    each_column([&](uint32_t tile, uint32_t column) {
      float &bound = bounds[tile][column];
      bound = fmaxf(softmax[tile][column].bound, ceilf(bound * exponents_[tile][column].factor));
      raises |= bound != softmax[tile][column].bound;
    });
    if (!__any_sync(~0u, raises)) return;
    each_column([&](uint32_t tile, uint32_t column) {
      const float weight = weight_under(bounds[tile][column], softmax[tile][column].bound);
      softmax[tile][column] = {bounds[tile][column], softmax[tile][column].sum * weight};
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::OWN_PIECES; ++piece) {
        outputs[piece][tile].values[column] *= weight;
        outputs[piece][tile].values[column + 2] *= weight;
      }
    });
  }

  // The largest scores of a team's warps become those of the team.
  static __device__ __forceinline__ void share_bounds(float (&bounds)[Shape::TILES][2], typename Shape::Exchange &exchange) {
    const uint32_t row = threadIdx.x % 4 * 2;
    if (threadIdx.x % WARP < 4) {
      each_column([&](uint32_t tile, uint32_t column) { exchange.bounds[Shape::member()][tile * TILE + row + column] = bounds[tile][column]; });
    }
    Shape::team_barrier();
#pragma unroll
    for (uint32_t member = 0; member < Shape::TEAM; ++member) {
      each_column([&](uint32_t tile, uint32_t column) { bounds[tile][column] = fmaxf(bounds[tile][column], exchange.bounds[member][tile * TILE + row + column]); });
    }
  }

  // Scores become weights.
  __device__ __forceinline__ void weigh(Scores &scores) const {
    float shifts[Shape::TILES][2];
    each_column([&](uint32_t tile, uint32_t column) {
      const float bound = softmax[tile][column].bound;
      shifts[tile][column] = bound == -INFINITY ? 0.0f : WEIGHT_EXPONENT - bound;
    });
    each(scores, [&](float &score, uint32_t tile, uint32_t column, uint32_t) {
      score = exp2_approximate(__fmaf_rn(score, exponents_[tile][column].factor, shifts[tile][column]));
    });
  }

  // A weight of 0 does not keep a row from a value that is not finite. So in steps that not every row attends to wholly, such values are taken for 0, and rows
  // that do attend to one become NaN here.
  __device__ __forceinline__ void spread_faults(const typename Shape::Shared &shared, uint32_t stage, uint32_t first, Scores &weights) const {
    const uint32_t t = threadIdx.x % 4, g = threadIdx.x % WARP / 4;
#pragma unroll
    for (uint32_t block = 0; block < Shape::OWN_BLOCKS; ++block) {
      uint32_t near = 0, far = 0;  // of slots 2t and 2t + 1, and eight further
#pragma unroll 2
      for (uint32_t piece = 0; piece < Shape::PIECES; ++piece) {
        const uint4 values = load_values(shared, stage, own_block(block), piece);
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
          const bool attends = spans_[tile][v % 2].contains(first + own_block(block) * BLOCK + slot);
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

  // A block's weights as a second operand, and the lane's sums of them: those of the positions that are its g modulo 8.
  struct BlockWeights {
    SplitColumns columns;
    float2 sums;

    BlockWeights() = default;
    __device__ __forceinline__ explicit BlockWeights(const Sums &weights) {
      const float *w = weights.values;
      const SplitPair near(w[0], w[1]), far(w[2], w[3]);
      columns = {{transposed(near.high), transposed(far.high)}, {transposed(near.low), transposed(far.low)}};
      sums = {w[0] + w[2], w[1] + w[3]};
    }
  };

  // Adds the values of all positions by their weights, in ascending order of blocks.
  template <bool CLEAN>
  __device__ __forceinline__ void add_values(typename Shape::Shared &shared, uint32_t stage, const Scores &weights) {
    if constexpr (Shape::TEAM > 1) share_weights(weights, shared.exchange[Shape::team()]);
    float2 step_sums[Shape::TILES];
#pragma unroll
    for (uint32_t block = 0; block < Shape::BLOCKS; ++block) {
      BlockWeights of_tiles[Shape::TILES];
#pragma unroll
      for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
        if constexpr (Shape::TEAM > 1) {
          of_tiles[tile] = shared_weights(shared.exchange[Shape::team()], block, tile);
        } else {
          of_tiles[tile] = BlockWeights(weights[block][tile]);
        }
        const float2 sums = of_tiles[tile].sums;
        step_sums[tile] = block == 0 ? sums : float2{step_sums[tile].x + sums.x, step_sums[tile].y + sums.y};
      }
#pragma unroll
      for (uint32_t i = 0; i < Shape::OWN_PIECES; ++i) {
        if (Shape::PIECES % Shape::TEAM != 0 && own_piece(i) >= Shape::PIECES) break;
        uint4 values = load_values(shared, stage, block, own_piece(i));
        if constexpr (CLEAN) values = {without_faults(values.x), without_faults(values.y), without_faults(values.z), without_faults(values.w)};
#pragma unroll
        for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
          multiply_add(outputs[i][tile], values, of_tiles[tile].columns.high);
          multiply_add(outputs[i][tile], values, of_tiles[tile].columns.low);
        }
      }
    }
#pragma unroll
    for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
      softmax[tile][0].sum += step_sums[tile].x;
      softmax[tile][1].sum += step_sums[tile].y;
    }
  }

  // Gives the weights of the warp's positions to its team.
  static __device__ __forceinline__ void share_weights(const Scores &weights, typename Shape::Exchange &exchange) {
    const uint32_t lane = threadIdx.x % WARP;
#pragma unroll
    for (uint32_t i = 0; i < Shape::OWN_BLOCKS * Shape::TILES; ++i) {
      const uint32_t block = own_block(i / Shape::TILES), tile = i % Shape::TILES;
      const BlockWeights own(weights[i / Shape::TILES][tile]);
      const SplitColumns &columns = own.columns;
      exchange.weights[block][tile][lane] = {columns.high.parts[0], columns.high.parts[1], columns.low.parts[0], columns.low.parts[1]};
      exchange.sums[block][tile][lane] = own.sums;
    }
    Shape::team_barrier();
  }

  static __device__ __forceinline__ BlockWeights shared_weights(const typename Shape::Exchange &exchange, uint32_t block, uint32_t tile) {
    const uint4 parts = exchange.weights[block][tile][threadIdx.x % WARP];
    BlockWeights weights;
    weights.columns = {{parts.x, parts.y}, {parts.z, parts.w}};
    weights.sums = exchange.sums[block][tile][threadIdx.x % WARP];
    return weights;
  }

  Span spans_[Shape::TILES][2];
  Exponent exponents_[Shape::TILES][2];
  bool capped_;
};

}  // namespace nucleus
