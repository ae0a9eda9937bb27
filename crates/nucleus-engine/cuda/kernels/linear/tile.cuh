// Products of many rows: the tensor cores are what is short.
//
// A block has 128 or 256 outputs and 32 or 64 rows. The copy engine fetches weights and split activations into two rings; a warp takes some panels and
// 32 rows. Sections' shares are added up in shared memory. Where there are too few such tiles for the device, the blocks of a cluster take one or two
// sections each, and meet to add up.
#pragma once

#include "bulk.cuh"
#include "call.cuh"
#include "cluster.cuh"
#include "launch.cuh"
#include "split_rows.cuh"

namespace nucleus::linear {

struct TilePolicy {
  static constexpr uint32_t WARPS = 8, THREADS = WARPS * 32;
  static constexpr uint32_t COLUMNS = ROW_TILE / 8;     // of eight rows, of a warp
  static constexpr uint32_t X_STEPS = 2;                // of a stage of activations
  static constexpr uint32_t SHARED_BYTES = 227 * 1024;  // of a multiprocessor, for one block
  static constexpr uint32_t MAX_STAGES = 6;
};

// A block's shared memory: rings of weights (a stage is a chunk of each panel) and of activations, the outputs' totals, barriers. In a cluster the
// totals are the shares of the block's first section; those of a second one lie where the rings were.
template <class W, uint32_t PANELS, uint32_t ROW_TILES>
struct TileLayout {
  using P = TilePolicy;
  static constexpr uint32_t OUTPUTS = PANELS * PANEL;
  static constexpr uint32_t ROWS = ROW_TILES * ROW_TILE, WARPS_ACROSS = P::WARPS / ROW_TILES, WARP_PANELS = PANELS / WARPS_ACROSS;
  static constexpr uint32_t WEIGHT_BYTES = PANELS * W::CHUNK_BYTES, X_BYTES = P::X_STEPS * SplitRows::STEP_BYTES, X_STAGE_BYTES = ROW_TILES * X_BYTES;
  static constexpr uint32_t TOTALS_BYTES = ROWS * OUTPUTS * sizeof(float);
  static constexpr uint32_t ROOM = P::SHARED_BYTES - 256 - TOTALS_BYTES;
  static constexpr uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
  static constexpr uint32_t X_STAGES = least((ROOM - 2 * WEIGHT_BYTES) / X_STAGE_BYTES, 4);
  static constexpr uint32_t WEIGHT_STAGES = least((ROOM - X_STAGES * X_STAGE_BYTES) / WEIGHT_BYTES, P::MAX_STAGES);
  static constexpr uint32_t X_AT = WEIGHT_STAGES * WEIGHT_BYTES, TOTALS_AT = X_AT + X_STAGES * X_STAGE_BYTES, BARRIERS_AT = TOTALS_AT + TOTALS_BYTES;

  struct Barriers {
    Barrier weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];
  };
  static constexpr uint32_t BYTES = BARRIERS_AT + sizeof(Barriers);
  static_assert(X_STAGES >= 2 && WEIGHT_STAGES >= 2 && BYTES <= P::SHARED_BYTES && TOTALS_BYTES <= TOTALS_AT);
  static_assert(WARP_PANELS * WARPS_ACROSS == PANELS && P::THREADS % OUTPUTS == 0);
  static_assert(2 * BYTES > P::SHARED_BYTES, "a block fills a multiprocessor");
};

// What a block computes.
struct Tile {
  uint32_t first_panel, row_tile, first_section, end_section, first_step, end_step;
  bool in_cluster;
};

template <class W, uint32_t PANELS, uint32_t ROW_TILES>
struct TileKernel {
  using P = TilePolicy;
  using L = TileLayout<W, PANELS, ROW_TILES>;
  using Sums = LaneSums[L::WARP_PANELS][P::COLUMNS];
  // A turn is a stage of activations; a chunk of weights is some turns.
  static constexpr uint32_t CHUNK_TURNS = W::STEPS / P::X_STEPS;

  const Call &call;
  const SplitRows &split;
  const Tile tile;
  uint8_t *const shared;
  typename L::Barriers &barriers;

  __device__ __forceinline__ static uint32_t warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static uint32_t lane() { return threadIdx.x % 32; }
  __device__ __forceinline__ uint32_t turns() const { return (tile.end_step - tile.first_step) / P::X_STEPS; }
  __device__ __forceinline__ uint8_t *weights_at(uint32_t stage) const { return shared + stage * L::WEIGHT_BYTES; }
  __device__ __forceinline__ uint8_t *x_at(uint32_t stage) const { return shared + L::X_AT + stage * L::X_STAGE_BYTES; }
  __device__ __forceinline__ float *totals() const { return reinterpret_cast<float *>(shared + L::TOTALS_AT); }
  // Pairs of rows are shifted against each other, so that the lanes of a warp write to different banks.
  static __device__ __forceinline__ uint32_t total_index(uint32_t row, uint32_t output) { return row * L::OUTPUTS + (output ^ row / 2 % 4 * 8); }

  __device__ __forceinline__ void init() const {
    if (threadIdx.x == 0) {
      for (Barrier &barrier : barriers.weights_full) barrier.init(1);
      for (Barrier &barrier : barriers.weights_empty) barrier.init(P::WARPS);
      for (Barrier &barrier : barriers.x_full) barrier.init(1);
      for (Barrier &barrier : barriers.x_empty) barrier.init(P::WARPS);
      Barrier::publish_init();
    }
    __syncthreads();
  }

  // A warp's lanes fetch chunk `chunk` of a panel each.
  __device__ __forceinline__ void fetch_weights(uint32_t chunk) const {
    if (chunk * CHUNK_TURNS >= turns()) return;
    Barrier &full = barriers.weights_full[chunk % L::WEIGHT_STAGES];
    if (lane() == 0) full.expect(L::WEIGHT_BYTES);
    __syncwarp();
    if (lane() >= PANELS) return;
    const uint8_t *weights = panel_of<W>(call, min(tile.first_panel + lane(), call.panels() - 1)).weights;
    full.copy(weights_at(chunk % L::WEIGHT_STAGES) + lane() * W::CHUNK_BYTES, weights + size_t{tile.first_step / W::STEPS + chunk} * W::CHUNK_BYTES, W::CHUNK_BYTES);
  }
  // A warp's lanes fetch the activations of a row tile each.
  __device__ __forceinline__ void fetch_x(uint32_t turn) const {
    if (turn >= turns()) return;
    Barrier &full = barriers.x_full[turn % L::X_STAGES];
    if (lane() == 0) full.expect(L::X_STAGE_BYTES);
    __syncwarp();
    if (lane() < ROW_TILES)
      full.copy(x_at(turn % L::X_STAGES) + lane() * L::X_BYTES, split.step(tile.row_tile + lane(), tile.first_step + turn * P::X_STEPS), L::X_BYTES);
  }
  // The warps take turns at fetching into the stages that the turn before this one emptied: the others are likely to have left them.
  __device__ __forceinline__ void refill(uint32_t turn) const {
    if (turn == 0 || turn % P::WARPS != warp()) return;
    const uint32_t before = turn - 1;
    if (before + L::X_STAGES < turns()) {
      barriers.x_empty[before % L::X_STAGES].wait(before / L::X_STAGES & 1);
      fetch_x(before + L::X_STAGES);
    }
    if (turn % CHUNK_TURNS == 0) {
      const uint32_t chunk = before / CHUNK_TURNS;
      if ((chunk + L::WEIGHT_STAGES) * CHUNK_TURNS < turns()) {
        barriers.weights_empty[chunk % L::WEIGHT_STAGES].wait(chunk / L::WEIGHT_STAGES & 1);
        fetch_weights(chunk + L::WEIGHT_STAGES);
      }
    }
  }

  __device__ __forceinline__ void multiply() const {
    const uint32_t panel = warp() % L::WARPS_ACROSS * L::WARP_PANELS, row_tile = warp() / L::WARPS_ACROSS;
    const uint32_t section_turns = sections_of(call.inputs).inputs / STEP / P::X_STEPS, all = turns();
    uint32_t turn = 0;
    for (uint32_t section = tile.first_section; section < tile.end_section; ++section) {
      Sums sums = {};
      for (const uint32_t end = min(turn + section_turns, all); turn < end; ++turn) {
        const uint32_t x_stage = turn % L::X_STAGES, chunk = turn / CHUNK_TURNS, w_stage = chunk % L::WEIGHT_STAGES, chunk_turn = turn % CHUNK_TURNS;
        if (chunk_turn == 0) barriers.weights_full[w_stage].wait(chunk / L::WEIGHT_STAGES & 1);
        barriers.x_full[x_stage].wait(turn / L::X_STAGES & 1);
        const uint8_t *weights = weights_at(w_stage) + panel * W::CHUNK_BYTES, *x = x_at(x_stage) + row_tile * L::X_BYTES;
#pragma unroll
        for (uint32_t step = 0; step < P::X_STEPS; ++step) add_step(sums, weights, chunk_turn * P::X_STEPS + step, x + step * SplitRows::STEP_BYTES);
        __syncwarp();
        if (lane() == 0) {
          barriers.x_empty[x_stage].arrive();
          if (chunk_turn == CHUNK_TURNS - 1) barriers.weights_empty[w_stage].arrive();
        }
        refill(turn);
      }
      add_section(sums, section, panel, row_tile);
    }
  }
  __device__ __forceinline__ static void add_step(Sums &sums, const uint8_t *weights, uint32_t step, const uint8_t *x) {
    typename W::Fragment fragments[L::WARP_PANELS];
#pragma unroll
    for (uint32_t p = 0; p < L::WARP_PANELS; ++p) fragments[p] = W::load(weights + p * W::CHUNK_BYTES, step, lane());
#pragma unroll
    for (uint32_t n = 0; n < P::COLUMNS; ++n) {
      const Operand operand = Activations::load(x + n * 8 * Activations::PART_BYTES + lane() * Activations::UNIT_BYTES, SplitRows::LOW_BYTES);
      float2 row_sums{};
      if constexpr (W::Fragment::MINIMUM) row_sums = reinterpret_cast<const float2 *>(x + SplitRows::SUMS_AT)[n * 4 + lane() % 4];
#pragma unroll
      for (uint32_t p = 0; p < L::WARP_PANELS; ++p) add_products<typename W::Number>(sums[p][n], fragments[p], operand, row_sums);
    }
  }
  // Each lane has totals of its own.
  __device__ __forceinline__ void add_section(const Sums &sums, uint32_t section, uint32_t panel, uint32_t row_tile) const {
    const float *scales = split.scales(tile.row_tile + row_tile, section);
    const bool is_first = section == tile.first_section, is_second = tile.in_cluster && !is_first;
    if (is_second) __syncthreads();  // the rings have been read
    float *const to = is_second ? reinterpret_cast<float *>(shared) : totals();
    const bool begins = is_first || is_second;
#pragma unroll
    for (uint32_t n = 0; n < P::COLUMNS; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = n * 8 + lane() % 4 * 2 + i % 2;
        const float scale = scales[row];
#pragma unroll
        for (uint32_t p = 0; p < L::WARP_PANELS; ++p) {
          float *total = to + total_index(row_tile * ROW_TILE + row, (panel + p) * PANEL + lane() / 4 + i / 2 * 8);
          *total = __fadd_rn(begins ? 0.0f : *total, section_share(sums[p][n][i], scale));
        }
      }
    }
  }

  // Writes outputs: all of the block's, or, in a cluster, the block's rows of all blocks' sections. A thread has an output.
  __device__ __forceinline__ void store(const Cluster &cluster, uint32_t block_sections) const {
    constexpr uint32_t ROWS_AT_ONCE = P::THREADS / L::OUTPUTS;
    const uint32_t output = threadIdx.x % L::OUTPUTS, sections = tile.in_cluster ? sections_of(call.inputs).count : 1;
    cluster.arrive();
    cluster.wait();
    if (tile.first_panel + output / PANEL < call.panels()) {
      const Panel panel = panel_of<W>(call, tile.first_panel + output / PANEL);
      const uint32_t first_row = tile.row_tile * ROW_TILE, rows = min(L::ROWS, call.rows - first_row);
#pragma unroll 4
      for (uint32_t row = cluster.rank() * ROWS_AT_ONCE + threadIdx.x / L::OUTPUTS; row < rows; row += cluster.blocks() * ROWS_AT_ONCE) {
        float *first = totals() + total_index(row, output);
        const int to_second = -static_cast<int>(L::TOTALS_AT / sizeof(float));
        panel.store(first_row + row, output % PANEL, tile.in_cluster ? cluster.sum_sections(first, sections, block_sections, to_second) : *first);
      }
    }
    cluster.leave();
  }
};

template <class W, uint32_t PANELS, uint32_t ROW_TILES>
__global__ void __launch_bounds__(TilePolicy::THREADS, 1) multiply_tiles(const __grid_constant__ Call call, const __grid_constant__ SplitRows split) {
  using L = TileLayout<W, PANELS, ROW_TILES>;
  extern __shared__ __align__(128) uint8_t shared[];
  const Cluster cluster;
  const uint32_t blocks = cluster.blocks(), index = blockIdx.x / blocks, row_blocks = div_up(call.rows, L::ROWS);
  const Sections sections = sections_of(call.inputs);
  const uint32_t steps = chunks_of<W>(call.inputs) * W::STEPS, section_steps = sections.inputs / STEP;
  const uint32_t block_sections = div_up(sections.count, blocks);
  Tile tile{index / row_blocks * PANELS, index % row_blocks * ROW_TILES, min(cluster.rank() * block_sections, sections.count)};
  tile.end_section = min(tile.first_section + block_sections, sections.count);
  tile.first_step = min(tile.first_section * section_steps, steps), tile.end_step = min(tile.end_section * section_steps, steps);
  tile.in_cluster = blocks > 1;
  const TileKernel<W, PANELS, ROW_TILES> kernel{call, split, tile, shared, *reinterpret_cast<typename L::Barriers *>(shared + L::BARRIERS_AT)};
  kernel.init();
  if (threadIdx.x < 32)
    for (uint32_t chunk = 0; chunk < L::WEIGHT_STAGES; ++chunk) kernel.fetch_weights(chunk);
  let_next_begin();
  wait_for_inputs();
  if (threadIdx.x < 32)
    for (uint32_t turn = 0; turn < L::X_STAGES; ++turn) kernel.fetch_x(turn);
  kernel.multiply();
  kernel.store(cluster, block_sections);
}

// A way of multiplying tiles: the blocks of a cluster, and about how long it takes.
struct TileChoice {
  uint32_t blocks = 1;
  uint64_t cycles = ~0ull;
};

// Cycles of a block: of a step of a panel for 32 rows, where a warp has as many panels; of its beginning and end; of a meeting, and of each row of an
// output that a thread adds up then. (Measured on an H200; they decide which way is taken, never a result.)
struct TileCosts {
  static constexpr uint64_t BLOCK = 4000, MEETING = 2000, ADDED_ROW = 900;
  static constexpr uint64_t panel_step(uint32_t warp_panels) { return warp_panels == 1 ? 79 : warp_panels == 2 ? 58 : 45; }
};

// The best size of a cluster: one block, or so many that each has one section or two.
template <class W, uint32_t PANELS, uint32_t ROW_TILES>
cudaError_t choose_tiles(const Call &call, const Device &device, TileChoice &best) {
  using L = TileLayout<W, PANELS, ROW_TILES>;
  auto kernel = multiply_tiles<W, PANELS, ROW_TILES>;
  if (cudaError_t status = allow_shared_bytes(kernel, device)) return status;
  const Sections sections = sections_of(call.inputs);
  const uint32_t tiles = div_up(call.panels(), PANELS) * div_up(call.rows, L::ROWS);
  for (uint32_t blocks = 1; blocks < 2 * sections.count && blocks <= MAX_SECTIONS; blocks *= 2) {
    const uint32_t block_sections = div_up(sections.count, blocks);
    if (blocks > 1 && block_sections > 2) continue;
    Launch launch(dim3(blocks), TilePolicy::THREADS, blocks, nullptr);
    launch.shared_bytes(L::BYTES);
    uint32_t clusters = 0;
    if (cudaError_t status = cluster_count(kernel, launch, device, blocks, clusters)) return status;
    const uint64_t steps = PANELS * ROW_TILES * block_sections * (sections.inputs / STEP);
    const uint64_t added_rows = L::ROWS * L::OUTPUTS / TilePolicy::THREADS / blocks;
    const uint64_t meeting = blocks > 1 ? TileCosts::MEETING + TileCosts::ADDED_ROW * added_rows : 0;
    const uint64_t block = TileCosts::panel_step(L::WARP_PANELS) * steps + TileCosts::BLOCK + meeting;
    const uint64_t cycles = div_up(tiles, clusters) * block;
    if (cycles < best.cycles) best = {blocks, cycles};
  }
  return cudaSuccess;
}

template <class W, uint32_t PANELS, uint32_t ROW_TILES>
cudaError_t launch_tiles(const Call &call, const SplitRows &split, uint32_t blocks, cudaStream_t stream) {
  using L = TileLayout<W, PANELS, ROW_TILES>;
  const uint32_t tiles = div_up(call.panels(), PANELS) * div_up(call.rows, L::ROWS);
  Launch launch(dim3(tiles * blocks), TilePolicy::THREADS, blocks, stream);
  launch.shared_bytes(L::BYTES);
  return launch(multiply_tiles<W, PANELS, ROW_TILES>, call, split);
}

template <class W, uint32_t ROW_TILES>
cudaError_t launch_best_tiles(const Call &call, const SplitRows &split, const Device &device, cudaStream_t stream) {
  TileChoice narrow, wide;
  if (cudaError_t status = choose_tiles<W, 8, ROW_TILES>(call, device, narrow)) return status;
  if (cudaError_t status = choose_tiles<W, 16, ROW_TILES>(call, device, wide)) return status;
  return narrow.cycles < wide.cycles ? launch_tiles<W, 8, ROW_TILES>(call, split, narrow.blocks, stream)
                                     : launch_tiles<W, 16, ROW_TILES>(call, split, wide.blocks, stream);
}

// Rows of a workspace: whole blocks of the kernel that takes them.
inline uint32_t split_row_count(uint32_t rows) { return rows <= ROW_TILE ? ROW_TILE : div_up(rows, 2 * ROW_TILE) * 2 * ROW_TILE; }

template <class W>
cudaError_t launch_tiles(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  const SplitRows split(call.inputs, workspace);
  Launch launch(dim3(sections_of(call.inputs).count, split_row_count(call.rows)), 256, 1, stream);
  if (cudaError_t status = launch(split_rows<typename W::Number>, x, call.rows, split)) return status;
  return call.rows <= ROW_TILE ? launch_best_tiles<W, 1>(call, split, device, stream) : launch_best_tiles<W, 2>(call, split, device, stream);
}

}  // namespace nucleus::linear
