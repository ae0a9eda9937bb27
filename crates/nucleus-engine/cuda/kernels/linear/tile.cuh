// Products of many rows on devices without wgmma: the tensor cores are what is short.
//
// A block has 128 or 256 outputs and 32 or 64 rows. The copy engine fetches weights and split activations into two rings; a warp takes some panels and
// 32 rows.
#pragma once

#include "../mma.cuh"
#include "tile_outputs.cuh"

namespace nucleus::linear {

struct TilePolicy {
  static constexpr uint32_t WARPS = 8, THREADS = WARPS * 32;
  static constexpr uint32_t WARP_ROWS = 32, COLUMNS = WARP_ROWS / 8;
  static constexpr uint32_t X_STEPS = 2;  // of a stage of activations
  static constexpr uint32_t MAX_STAGES = 6;
};

// A block's shared memory: rings of weights (a stage is a chunk of each panel) and of activations, the outputs' totals, barriers.
template <class W, uint32_t PANELS, uint32_t ROWS>
struct TileLayout {
  using P = TilePolicy;
  static constexpr uint32_t OUTPUTS = PANELS * PANEL;
  static constexpr uint32_t WARPS_ACROSS = P::WARPS * P::WARP_ROWS / ROWS, WARP_PANELS = PANELS / WARPS_ACROSS;
  static constexpr uint32_t STEP_BYTES = ROWS * SplitRows::STEP_ROW_BYTES, WEIGHT_BYTES = PANELS * W::CHUNK_BYTES, X_STAGE_BYTES = P::X_STEPS * STEP_BYTES;
  using Totals = TileTotals<OUTPUTS, ROWS, P::THREADS>;
  static constexpr uint32_t ROOM = TILE_SHARED_BYTES - 256 - Totals::BYTES;
  static constexpr uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
  static constexpr uint32_t X_STAGES = least((ROOM - 2 * WEIGHT_BYTES) / X_STAGE_BYTES, 4);
  static constexpr uint32_t WEIGHT_STAGES = least((ROOM - X_STAGES * X_STAGE_BYTES) / WEIGHT_BYTES, P::MAX_STAGES);
  static constexpr uint32_t X_AT = WEIGHT_STAGES * WEIGHT_BYTES, TOTALS_AT = X_AT + X_STAGES * X_STAGE_BYTES, BARRIERS_AT = TOTALS_AT + Totals::BYTES;

  using Barriers = TileBarriers<WEIGHT_STAGES, X_STAGES>;
  static constexpr uint32_t BYTES = BARRIERS_AT + sizeof(Barriers);
  static_assert(X_STAGES >= 2 && WEIGHT_STAGES >= 2 && BYTES <= TILE_SHARED_BYTES && Totals::BYTES <= TOTALS_AT);
  static_assert(WARP_PANELS * WARPS_ACROSS == PANELS);
  static_assert(2 * BYTES > TILE_SHARED_BYTES, "a block fills a multiprocessor");
};

template <class W, uint32_t PANELS, uint32_t ROWS>
struct TileKernel {
  using P = TilePolicy;
  using L = TileLayout<W, PANELS, ROWS>;
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
  __device__ __forceinline__ typename L::Totals totals() const { return {reinterpret_cast<float *>(shared + L::TOTALS_AT), reinterpret_cast<float *>(shared)}; }

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
  __device__ __forceinline__ void fetch_x(uint32_t turn) const {
    if (turn >= turns() || lane() != 0) return;
    Barrier &full = barriers.x_full[turn % L::X_STAGES];
    full.expect(L::X_STAGE_BYTES);
    full.copy(x_at(turn % L::X_STAGES), split.step(tile.row_tile, tile.first_step + turn * P::X_STEPS), L::X_STAGE_BYTES);
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
    const uint32_t panel = warp() % L::WARPS_ACROSS * L::WARP_PANELS, row = warp() / L::WARPS_ACROSS * P::WARP_ROWS;
    const uint32_t section_turns = sections_of(call.inputs).inputs / STEP / P::X_STEPS, all = turns();
    uint32_t turn = 0;
    for (uint32_t section = tile.first_section; section < tile.end_section; ++section) {
      Sums sums = {};
      for (const uint32_t end = min(turn + section_turns, all); turn < end; ++turn) {
        const uint32_t x_stage = turn % L::X_STAGES, chunk = turn / CHUNK_TURNS, w_stage = chunk % L::WEIGHT_STAGES, chunk_turn = turn % CHUNK_TURNS;
        if (chunk_turn == 0) barriers.weights_full[w_stage].wait(chunk / L::WEIGHT_STAGES & 1);
        barriers.x_full[x_stage].wait(turn / L::X_STAGES & 1);
        const uint8_t *weights = weights_at(w_stage) + panel * W::CHUNK_BYTES, *x = x_at(x_stage);
#pragma unroll
        for (uint32_t step = 0; step < P::X_STEPS; ++step) add_step(sums, weights, chunk_turn * P::X_STEPS + step, x + step * L::STEP_BYTES, row);
        __syncwarp();
        if (lane() < LEAVING_LANES) {
          barriers.x_empty[x_stage].arrive();
          if (chunk_turn == CHUNK_TURNS - 1) barriers.weights_empty[w_stage].arrive();
        }
        refill(turn);
      }
      add_section(sums, section, panel, row);
    }
  }
  __device__ __forceinline__ static void add_step(Sums &sums, const uint8_t *weights, uint32_t step, const uint8_t *x, uint32_t row) {
    typename W::Fragment fragments[L::WARP_PANELS];
#pragma unroll
    for (uint32_t p = 0; p < L::WARP_PANELS; ++p) fragments[p] = W::load(weights + p * W::CHUNK_BYTES, step, lane());
#pragma unroll
    for (uint32_t n = 0; n < P::COLUMNS; ++n) {
      const Operand operand = load_operand(x, row + n * 8);
      float2 row_sums{};
      if constexpr (W::Fragment::MINIMUM) row_sums = reinterpret_cast<const float2 *>(x + ROWS * Units::ROW_BYTES)[(row + n * 8) / 2 + lane() % 4];
#pragma unroll
      for (uint32_t p = 0; p < L::WARP_PANELS; ++p) add_products<typename W::Number>(sums[p][n], fragments[p], operand, row_sums);
    }
  }
  // Of the eight rows from `row` on: a lane names a row of one of the four units, and gets its words of row g.
  __device__ __forceinline__ static Operand load_operand(const uint8_t *x, uint32_t row) {
    const auto *unit = reinterpret_cast<const uint4 *>(x) + lane() / 8 * ROWS + row + lane() % 8;
    return {load_matrices(unit), load_matrices(unit + Units::COUNT * ROWS)};
  }
  __device__ __forceinline__ void add_section(const Sums &sums, uint32_t section, uint32_t panel, uint32_t row) const {
    const bool is_first = section == tile.first_section, is_second = tile.in_cluster && !is_first;
    if (is_second) __syncthreads();  // the rings have been read
    totals().template add<L::WARP_PANELS, P::COLUMNS>(is_second, is_first || is_second, panel, row, split.scales(tile.row_tile, section),
                                                         [&](uint32_t p, uint32_t n, uint32_t i) { return sums[p][n][i]; });
  }
};

template <class W, uint32_t PANELS, uint32_t ROWS>
__global__ void __launch_bounds__(TilePolicy::THREADS, 1) multiply_tiles(const __grid_constant__ Call call, const __grid_constant__ SplitRows split) {
  using L = TileLayout<W, PANELS, ROWS>;
  extern __shared__ __align__(128) uint8_t shared[];
  const Cluster cluster;
  const Tile tile = Tile::of_block<W>(call, cluster, PANELS, ROWS);
  const TileKernel<W, PANELS, ROWS> kernel{call, split, tile, shared, *reinterpret_cast<typename L::Barriers *>(shared + L::BARRIERS_AT)};
  kernel.barriers.init(TilePolicy::WARPS);
  if (threadIdx.x < 32)
    for (uint32_t chunk = 0; chunk < L::WEIGHT_STAGES; ++chunk) kernel.fetch_weights(chunk);
  let_next_begin();
  wait_for_inputs();
  if (threadIdx.x < 32)
    for (uint32_t turn = 0; turn < L::X_STAGES; ++turn) kernel.fetch_x(turn);
  kernel.multiply();
  kernel.totals().template store<W>(call, tile, cluster);
}

// What the choice between tiles needs to know.
template <class W, uint32_t PANELS_, uint32_t ROWS_>
struct TileWay {
  using L = TileLayout<W, PANELS_, ROWS_>;
  static constexpr uint32_t PANELS = PANELS_, ROWS = ROWS_, THREADS = TilePolicy::THREADS, BYTES = L::BYTES;
  static auto function() { return multiply_tiles<W, PANELS, ROWS>; }
  // Of a panel for 32 rows, where a warp has as many panels.
  static constexpr uint64_t step_cycles() {
    return PANELS * ROWS / TilePolicy::WARP_ROWS * (L::WARP_PANELS == 1 ? 79 : L::WARP_PANELS == 2 ? 58 : 45);
  }
};

template <class W, uint32_t ROWS>
cudaError_t launch_tiles(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  TileChoice choice;
  if (cudaError_t status = choice.consider<TileWay<W, 8, ROWS>>(call, device)) return status;
  if (cudaError_t status = choice.consider<TileWay<W, 16, ROWS>>(call, device)) return status;
  const SplitRows split(call.inputs, ROWS, workspace);
  if (cudaError_t status = launch_split<typename W::Number>(x, call.rows, split, stream)) return status;
  return choice.launch(call, split, stream);
}

template <class W>
cudaError_t launch_tiles(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  return call.rows <= SMALL_TILE ? launch_tiles<W, SMALL_TILE>(call, x, workspace, device, stream) : launch_tiles<W, LARGE_TILE>(call, x, workspace, device, stream);
}

}  // namespace nucleus::linear
