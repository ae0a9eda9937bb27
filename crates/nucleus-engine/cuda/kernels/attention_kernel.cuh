// The attention of one tile's rows to one key head.
#pragma once

#include "attention_plan.cuh"
#include "attention_rows.cuh"

namespace nucleus {

// The steps of a block: of the splits first_split + part, first_split + part + parts …, those that some row attends to.
template <class Shape>
struct Steps {
  const TileContext &context;
  uint32_t parts, split, step, end;

  __device__ Steps(const TileContext &context, uint32_t part, uint32_t parts) : context(context), parts(parts), split(context.first_split() + part) { enter(); }

  __device__ bool done() const { return split > context.last_split(); }
  __device__ uint32_t position() const { return step * Shape::POSITIONS; }
  __device__ bool is_last_of_split() const { return step + 1 == end; }

  __device__ void advance() {
    if (++step < end) return;
    split += parts;
    enter();
  }

 private:
  __device__ void enter() {
    step = max(context.first, split_begin(split)) / Shape::POSITIONS;
    end = div_ceil(min(context.last + 1, split_begin(split + 1)), Shape::POSITIONS);
  }
};

// Fills the ring with the keys and values of a block's steps. By one warp.
template <class Shape>
class Producer {
 public:
  __device__ Producer(const NucleusAttention &call, const TileContext &context, uint32_t kv_head, const Steps<Shape> &steps)
      : cache_(call.cache),
        kv_head_(kv_head),
        steps_(steps),
        blocks_{context.first / BLOCK, context.last / BLOCK},
        table_(call.rows.block_tables + uint64_t(context.sequence) * call.rows.blocks_per_table) {}

  __device__ bool done() const { return steps_.done(); }

  // Queues the copies of the next step, once its stage is empty.
  __device__ __forceinline__ void produce(typename Shape::Shared &shared) {
    const uint32_t first_block = steps_.position() / BLOCK;
    read_ids(first_block / WARP);
    steps_.advance();
    if (!done()) look_ahead(steps_.position() / BLOCK / WARP);
    shared.ring.wait_empty(cursor_);
    fill(first_block, cursor_.stage, shared);
    cursor_.advance();
  }

 private:
  static constexpr uint32_t NONE = 0xFFFFFFFFu;

  // Queues the copies of a step's blocks; two lanes a block: one for the keys, one for the values.
  __device__ __forceinline__ void fill(uint32_t first_block, uint32_t stage, typename Shape::Shared &shared) const {
    const uint32_t begin = max(first_block, blocks_.first), end = min(first_block + Shape::BLOCKS - 1, blocks_.last) + 1;
    const uint32_t lane = threadIdx.x % WARP, block = first_block + lane / 2, id = __shfl_sync(~0u, ids_, block % WARP);
    Barrier &full = shared.ring.full[stage];
    if (lane == 0) full.expect((end - begin) * 2 * Shape::HEAD_BLOCK_BYTES);
    __syncwarp();
    if (block < begin || block >= end) return;
    void *to = lane % 2 == 0 ? shared.keys[stage][block - first_block] : shared.values[stage][block - first_block];
    const void *from = lane % 2 == 0 ? cache_.keys : cache_.values;
    full.copy(to, static_cast<const __half *>(from) + head_block(id, cache_.kv_heads, kv_head_, Shape::WIDTH), Shape::HEAD_BLOCK_BYTES);
  }

  // Ids of blocks are held by windows of 32, one a lane, and read a step early.
  __device__ __forceinline__ void read_ids(uint32_t window) {
    if (window == window_) return;
    ids_ = window == next_window_ ? next_ids_ : ids_of(window);
    window_ = window;
  }

  __device__ __forceinline__ void look_ahead(uint32_t window) {
    if (window == window_ || window == next_window_) return;
    next_ids_ = ids_of(window);
    next_window_ = window;
  }

  __device__ __forceinline__ uint32_t ids_of(uint32_t window) const {
    const uint32_t block = window * WARP + threadIdx.x % WARP;
    return blocks_.contains(block) ? table_[block] : 0;
  }

  const NucleusCache &cache_;
  uint32_t kv_head_;
  Steps<Shape> steps_;
  Cursor<Shape::STAGES> cursor_;
  Span blocks_;
  const uint32_t *table_;
  uint32_t window_ = NONE, ids_ = 0, next_window_ = NONE, next_ids_ = 0;
};

// A row of the tile: a token's query heads side by side.
struct RowPlace {
  bool exists;
  Span span;
  uint64_t place;  // in [rows, heads, head_dim]

  __device__ RowPlace(const NucleusAttention &call, const TileContext &context, uint32_t kv_head, uint32_t index)
      : exists(index < context.rows()), span(span_of(min(context.first_position + index / context.group, context.last), call.window)) {
    const uint64_t row = context.tile.first_row + index / context.group, head = kv_head * context.group + index % context.group;
    place = (row * call.heads + head) * call.cache.head_dim;
  }
};

// What of the positions a team's rows attend to; a team that has no rows attends to nothing.
struct TeamSpans {
  bool any;
  Span of_first, of_last;  // of the team's first and last token

  __device__ TeamSpans(const NucleusAttention &call, const TileContext &context, uint32_t first_row, uint32_t rows) : any(first_row < context.rows()) {
    const uint32_t first = context.first_position + first_row / context.group;
    const uint32_t last = context.first_position + (min(first_row + rows, context.rows()) - 1) / context.group;
    of_first = span_of(first, call.window);
    of_last = span_of(last, call.window);
  }

  __device__ __forceinline__ bool meets(uint32_t begin, uint32_t end) const { return any && begin <= of_last.last && end > of_first.first; }
  // Whether every row attends to all of them.
  __device__ __forceinline__ bool cover(uint32_t begin, uint32_t end) const { return of_last.first <= begin && end <= of_first.last + 1; }
};

// Where a warp's results go: to the output, once all its splits are added, or, split by split, to where the combining kernel finds them.
template <class Shape>
class Results {
 public:
  __device__ Results(const NucleusAttention &call, const TileContext &context, uint32_t tile_and_head, uint32_t first_row)
      : call_(call), context_(context), tile_and_head_(tile_and_head), first_row_(first_row) {}

  // Adds a split's results to the totals. The total of the last split is the output.
  __device__ __forceinline__ void add(Rows<Shape> &rows, bool is_last, typename Shape::Shared &shared) {
#pragma unroll
    for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
      Weights weights[2];
#pragma unroll
      for (uint32_t column = 0; column < 2; ++column) weights[column] = add_split(totals_[tile][column], rows.softmax[tile][column]);
#pragma unroll
      for (uint32_t piece = 0; piece < Shape::OWN_PIECES; ++piece) {
        float *sums = rows.outputs[piece][tile].values;
        float4 total = any_ ? shared.totals[piece][tile][threadIdx.x] : float4{0.0f, 0.0f, 0.0f, 0.0f};
        total = {weights[0].add(total.x, sums[0]), weights[1].add(total.y, sums[1]), weights[0].add(total.z, sums[2]), weights[1].add(total.w, sums[3])};
        if (is_last) {
          sums[0] = total.x, sums[1] = total.y, sums[2] = total.z, sums[3] = total.w;
        } else {
          shared.totals[piece][tile][threadIdx.x] = total;
        }
      }
    }
    any_ = true;
    if (is_last) write(rows);
  }

  // Leaves a split's results.
  __device__ __forceinline__ void leave(const Rows<Shape> &rows, const Partials &partials, uint32_t split) const {
    each_row(rows, [&](uint32_t index, uint32_t tile, uint32_t column) {
      const uint64_t place = partials.place(tile_and_head_, split, index);
      if (threadIdx.x % WARP < 4 && Shape::member() == 0) partials.softmax[place] = rows.softmax[tile][column];
      store(rows, tile, column, partials.outputs + place * Shape::WIDTH, Shape::WIDTH, [](float sum) { return sum; });
    });
  }

 private:
  __device__ __forceinline__ void write(const Rows<Shape> &rows) const {
    each_row(rows, [&](uint32_t index, uint32_t tile, uint32_t column) {
      const float inverse = __frcp_rn(totals_[tile][column].sum);
      const RowPlace row(call_, context_, tile_and_head_ % call_.cache.kv_heads, index);
      store(rows, tile, column, call_.output + row.place, call_.cache.head_dim, [&](float sum) { return attended(sum, inverse); });
    });
  }

  // Calls `f(index, tile, column)` for the lane's rows that exist.
  template <class F>
  __device__ __forceinline__ void each_row(const Rows<Shape> &rows, F f) const {
#pragma unroll
    for (uint32_t i = 0; i < 2 * Shape::TILES; ++i) {
      const uint32_t index = first_row_ + i / 2 * TILE + threadIdx.x % 4 * 2 + i % 2;
      if (index < context_.rows()) f(index, i / 2, i % 2);
    }
  }

  // Stores the lane's dimensions of a row below `width`.
  template <class F>
  static __device__ __forceinline__ void store(const Rows<Shape> &rows, uint32_t tile, uint32_t column, float *row, uint32_t width, F f) {
    const uint32_t g = threadIdx.x % WARP / 4;
#pragma unroll
    for (uint32_t i = 0; i < 2 * Shape::OWN_PIECES; ++i) {
      const uint32_t d = Rows<Shape>::own_piece(i / 2) * PIECE + i % 2 * 8 + g;
      if (d < width) row[d] = f(rows.outputs[i / 2][tile].values[i % 2 * 2 + column]);
    }
  }

  const NucleusAttention &call_;
  const TileContext &context_;
  uint32_t tile_and_head_, first_row_;
  Softmax totals_[Shape::TILES][2];
  bool any_ = false;
};

// A team's rows of a tile. `between_steps` is called before each step.
template <class Shape, class F>
__device__ __forceinline__ void attend_rows(const NucleusAttention &call, const AttentionPlan &plan, const TileContext &context, uint32_t tile_and_head,
                                            Steps<Shape> steps, typename Shape::Shared &shared, F between_steps) {
  const uint32_t kv_head = tile_and_head % call.cache.kv_heads, first_row = Shape::team() * Shape::TEAM_ROWS;
  Queries<Shape> queries;
  Span spans[Shape::TILES][2];
  Exponent exponents[Shape::TILES][2];
#pragma unroll
  for (uint32_t tile = 0; tile < Shape::TILES; ++tile) {
    const uint32_t tile_row = first_row + tile * TILE;
    const RowPlace query(call, context, kv_head, tile_row + threadIdx.x % WARP / 4);
    const float scale = queries.load(tile, query.exists ? call.query + query.place : nullptr, call.cache.head_dim, shared);
#pragma unroll
    for (uint32_t column = 0; column < 2; ++column) {
      const uint32_t row = threadIdx.x % 4 * 2 + column;
      spans[tile][column] = RowPlace(call, context, kv_head, tile_row + row).span;
      exponents[tile][column] = Exponent(call, __shfl_sync(~0u, scale, row * 4));
    }
  }
  Rows<Shape> rows(spans, exponents, call.soft_cap != 0.0f);
  Results<Shape> results(call, context, tile_and_head, first_row);
  const TeamSpans team_spans(call, context, first_row, Shape::TEAM_ROWS);
  for (Cursor<Shape::STAGES> cursor; !steps.done(); cursor.advance()) {
    const uint32_t begin = steps.position(), end = begin + Shape::POSITIONS, split = steps.split;
    between_steps();
    shared.ring.wait_full(cursor);
    if (team_spans.meets(begin, end)) rows.step(queries, shared, cursor.stage, begin, !team_spans.cover(begin, end));
    shared.ring.leave(cursor);
    const bool ends_split = steps.is_last_of_split();
    steps.advance();
    if (!ends_split) continue;
    rows.finish();
    if (context.is_shared(plan)) {
      results.leave(rows, plan.partials, split - context.first_split());
    } else {
      results.add(rows, steps.done(), shared);
    }
    rows.begin();
  }
}

// A block takes a tile, a key head and a part of the splits.
template <class Shape>
__global__ void __launch_bounds__(Shape::THREADS, Shape::RESIDENT) attend(const __grid_constant__ NucleusAttention call, const __grid_constant__ AttentionPlan plan) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto &shared = *reinterpret_cast<typename Shape::Shared *>(shared_bytes);
  const uint32_t part = blockIdx.x % plan.parts, tile_and_head = blockIdx.x / plan.parts;
  const NucleusTile tile = tile_of(call, tile_and_head / call.cache.kv_heads);
  if (!plan.takes(call, tile)) return;
  const TileContext context(call, tile);
  const Steps<Shape> steps(context, part, plan.parts);
  if (steps.done()) return;
  shared.ring.init();
  Producer<Shape> producer(call, context, tile_and_head % call.cache.kv_heads, steps);
  const auto produce = [&] {
    if (!producer.done()) producer.produce(shared);
  };
  if constexpr (Shape::PRODUCER_COMPUTES) {
    // The stage of the step before is refilled at the start of each step, so one stage less is filled in advance.
    const bool produces = threadIdx.x < WARP;
    for (uint32_t i = 0; produces && i + 1 < Shape::STAGES; ++i) produce();
    attend_rows<Shape>(call, plan, context, tile_and_head, steps, shared, [&] { if (produces) produce(); });
  } else if (threadIdx.x >= Shape::COMPUTING) {
    while (!producer.done()) producer.produce(shared);
  } else {
    attend_rows<Shape>(call, plan, context, tile_and_head, steps, shared, [] {});
  }
}

// Adds the results of splits: a block takes one row of one query head, a thread one dimension.
template <uint32_t WIDTH>
__global__ void __launch_bounds__(WIDTH) combine(const __grid_constant__ NucleusAttention call, const __grid_constant__ AttentionPlan plan) {
  constexpr uint32_t AT_ONCE = 16;
  const Partials &partials = plan.partials;
  const uint32_t row = blockIdx.x % partials.rows, tile_and_head = blockIdx.x / partials.rows, d = threadIdx.x;
  Softmax softmax[AT_ONCE];
  float outputs[AT_ONCE];
  const auto read = [&](uint32_t first) {
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; ++i) {
      const uint64_t place = partials.place(tile_and_head, min(first + i, partials.splits - 1), row);
      softmax[i] = partials.softmax[place];
      outputs[i] = partials.outputs[place * WIDTH + d];
    }
  };
  // The first reads need not wait for those that say how many of them count.
  read(0);
  const NucleusTile tile = tile_of(call, tile_and_head / call.cache.kv_heads);
  if (!plan.takes(call, tile)) return;
  const TileContext context(call, tile);
  if (row >= context.rows() || !context.is_shared(plan)) return;
  const uint32_t splits = context.last_split() - context.first_split() + 1;
  Softmax total;
  float output = 0.0f;
  for (uint32_t first = 0;;) {
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; ++i) {
      if (first + i < splits) output = add_split(total, softmax[i]).add(output, outputs[i]);
    }
    if ((first += AT_ONCE) >= splits) break;
    read(first);
  }
  if (d >= call.cache.head_dim) return;
  call.output[RowPlace(call, context, tile_and_head % call.cache.kv_heads, row).place + d] = attended(output, __frcp_rn(total.sum));
}

}  // namespace nucleus
