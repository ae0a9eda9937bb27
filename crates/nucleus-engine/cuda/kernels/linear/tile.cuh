// Products of many rows: the tensor cores are what is short.
//
// A block has 128 outputs and 32 or 64 rows. One warp has the copy engine fetch weights and split activations into two rings; the others take two
// panels and 32 rows each. Where there are too few such tiles for the device, the blocks of a cluster take a section each, and meet to add up.
#pragma once

#include <cooperative_groups.h>

#include "bulk.cuh"
#include "call.cuh"
#include "device.cuh"
#include "split_rows.cuh"

namespace nucleus::linear {

struct TilePolicy {
  static constexpr uint32_t WARP_PANELS = 2, WARPS_ACROSS = 4, PANELS = WARP_PANELS * WARPS_ACROSS, OUTPUTS = PANELS * PANEL;
  static constexpr uint32_t COLUMNS = ROW_TILE / 4;  // of four rows, of a warp
  static constexpr uint32_t X_STEPS = 2;             // of a stage of activations
  static constexpr uint32_t SHARED_BYTES = 112 * 1024;  // at most, so that a multiprocessor holds two blocks
  static constexpr uint32_t BLOCKS = 2;
};

// A block's shared memory: rings of weights (a stage is a chunk of each panel) and of activations, and their barriers. When a cluster meets, the
// shares of the outputs lie where the rings were.
template <class W, uint32_t ROW_TILES>
struct TileLayout {
  using P = TilePolicy;
  static constexpr uint32_t CONSUMERS = P::WARPS_ACROSS * ROW_TILES, THREADS = (CONSUMERS + 1) * 32, ROWS = ROW_TILES * ROW_TILE;
  static constexpr uint32_t WEIGHT_BYTES = P::PANELS * W::CHUNK_BYTES, X_BYTES = P::X_STEPS * SplitRows::STEP_BYTES;
  static constexpr uint32_t WEIGHT_STAGES = W::STEPS == 2 && WEIGHT_BYTES < 20000 ? 3 : 2;
  static constexpr uint32_t FIT = (P::SHARED_BYTES - 512 - WEIGHT_STAGES * WEIGHT_BYTES) / (X_BYTES * ROW_TILES), X_STAGES = FIT < 6 ? FIT : 6;
  static constexpr uint32_t X_AT = WEIGHT_STAGES * WEIGHT_BYTES, BARRIERS_AT = X_AT + X_STAGES * ROW_TILES * X_BYTES;
  static constexpr uint32_t BYTES = BARRIERS_AT + 2 * (WEIGHT_STAGES + X_STAGES) * sizeof(Barrier);
  // Eight more, so that the lanes of a warp write to different banks.
  static constexpr uint32_t SHARES_STRIDE = P::OUTPUTS + 8;
  static_assert(X_STAGES >= 2 && BYTES <= P::SHARED_BYTES && ROWS * SHARES_STRIDE * sizeof(float) <= BARRIERS_AT);

  struct Rings {
    Barrier weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];
  };
};

// What a block computes.
struct Tile {
  uint32_t first_panel, row_tile, first_section, end_section, first_step, end_step;
};

template <class W, uint32_t ROW_TILES>
struct TileKernel {
  using P = TilePolicy;
  using L = TileLayout<W, ROW_TILES>;
  using Rings = typename L::Rings;

  const Call &call;
  const SplitRows &split;
  const Tile tile;
  uint8_t *const shared;
  Rings &rings;

  __device__ __forceinline__ uint8_t *weights_at(uint32_t stage) const { return shared + stage * L::WEIGHT_BYTES; }
  __device__ __forceinline__ uint8_t *x_at(uint32_t stage) const { return shared + L::X_AT + stage * ROW_TILES * L::X_BYTES; }

  // The warp that has the rings filled. The first lanes copy a panel's chunk, or a row tile's steps, each.
  __device__ __forceinline__ void produce() const {
    const uint32_t lane = threadIdx.x % 32;
    const uint8_t *weights = panel_of<W>(call, min(tile.first_panel + lane % P::PANELS, call.panels() - 1)).weights;
    const uint8_t *x = split.tile(tile.row_tile + lane % ROW_TILES).fragments;
    RingPlace w_place, x_place;
    for (uint32_t step = tile.first_step; step < tile.end_step; step += P::X_STEPS) {
      if (step % W::STEPS == 0) {
        rings.weights_empty[w_place.stage].wait(w_place.parity ^ 1);
        Barrier &full = rings.weights_full[w_place.stage];
        if (lane == 0) full.expect(L::WEIGHT_BYTES);
        __syncwarp();
        if (lane < P::PANELS)
          full.copy(weights_at(w_place.stage) + lane * W::CHUNK_BYTES, weights + size_t{step / W::STEPS} * W::CHUNK_BYTES, W::CHUNK_BYTES);
        w_place.advance(L::WEIGHT_STAGES);
      }
      rings.x_empty[x_place.stage].wait(x_place.parity ^ 1);
      Barrier &full = rings.x_full[x_place.stage];
      if (lane == 0) full.expect(ROW_TILES * L::X_BYTES);
      __syncwarp();
      if (lane < ROW_TILES) full.copy(x_at(x_place.stage) + lane * L::X_BYTES, x + size_t{step} * SplitRows::STEP_BYTES, L::X_BYTES);
      x_place.advance(L::X_STAGES);
    }
  }

  // A warp that multiplies; `finish` takes a section's sums.
  template <class Finish>
  __device__ __forceinline__ void consume(Finish finish) const {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t panel = warp % P::WARPS_ACROSS * P::WARP_PANELS, row_tile = warp / P::WARPS_ACROSS;
    const uint32_t section_steps = sections_of(call.inputs).inputs / STEP;
    RingPlace w_place, x_place;
    for (uint32_t section = tile.first_section; section < tile.end_section; ++section) {
      float sums[P::WARP_PANELS][P::COLUMNS][2] = {};
      const uint32_t end = min((section + 1) * section_steps, tile.end_step);
      for (uint32_t chunk_step = section * section_steps; chunk_step < end; chunk_step += W::STEPS) {
        rings.weights_full[w_place.stage].wait(w_place.parity);
        const uint8_t *weights = weights_at(w_place.stage) + panel * W::CHUNK_BYTES;
#pragma unroll
        for (uint32_t step = 0; step < W::STEPS; ++step) {
          if (step % P::X_STEPS == 0) rings.x_full[x_place.stage].wait(x_place.parity);
          uint8_t *at = x_at(x_place.stage) + row_tile * L::X_BYTES + step % P::X_STEPS * SplitRows::STEP_BYTES;
          const Activations x{at, reinterpret_cast<float *>(at + ROW_TILE * Activations::ROW_BYTES), nullptr, ROW_TILE, 0, 0};
          typename W::Fragment fragments[P::WARP_PANELS];
#pragma unroll
          for (uint32_t p = 0; p < P::WARP_PANELS; ++p) fragments[p] = W::load(weights + p * W::CHUNK_BYTES, step, lane);
#pragma unroll
          for (uint32_t n = 0; n < P::COLUMNS; ++n) {
            const Operand operand = x.load(0, n, lane);
            const float row_sum = W::Fragment::MINIMUM ? x.sums[n * 4 + lane % 4] : 0.0f;
#pragma unroll
            for (uint32_t p = 0; p < P::WARP_PANELS; ++p) add_products<typename W::Number>(sums[p][n], fragments[p], operand, row_sum);
          }
          if (step % P::X_STEPS == P::X_STEPS - 1) {
            __syncwarp();
            if (lane == 0) rings.x_empty[x_place.stage].arrive();
            x_place.advance(L::X_STAGES);
          }
        }
        __syncwarp();
        if (lane == 0) rings.weights_empty[w_place.stage].arrive();
        w_place.advance(L::WEIGHT_STAGES);
      }
      const float *scales = split.tile(tile.row_tile + row_tile).scales + section * ROW_TILE;
#pragma unroll
      for (uint32_t n = 0; n < P::COLUMNS; ++n) {
        const uint32_t row = n * 4 + lane % 4;
        const float scale = scales[row];
#pragma unroll
        for (uint32_t p = 0; p < P::WARP_PANELS; ++p)
          for (uint32_t h = 0; h < 2; ++h) finish(section, panel + p, lane / 4 + 8 * h, row_tile * ROW_TILE + row, section_share(sums[p][n][h], scale));
      }
    }
  }

  __device__ __forceinline__ bool has(uint32_t panel, uint32_t row) const {
    return tile.first_panel + panel < call.panels() && tile.row_tile * ROW_TILE + row < call.rows;
  }

  // One block has all sections: it adds them up where the outputs are.
  __device__ __forceinline__ void add_sections() const {
    const Panel panels[P::WARP_PANELS] = {own_panel(0), own_panel(1)};
    consume([&](uint32_t section, uint32_t panel, uint32_t output, uint32_t row, float share) {
      if (has(panel, row))
        panels[panel % P::WARP_PANELS].add(tile.row_tile * ROW_TILE + row, output, share, section == tile.first_section, section + 1 == tile.end_section);
    });
  }
  __device__ __forceinline__ Panel own_panel(uint32_t p) const {
    return panel_of<W>(call, min(tile.first_panel + threadIdx.x / 32 % P::WARPS_ACROSS * P::WARP_PANELS + p, call.panels() - 1));
  }

  // The blocks of a cluster have a section each.
  __device__ __forceinline__ void meet(const cooperative_groups::cluster_group &cluster) const {
    float *shares = reinterpret_cast<float *>(shared);
    cluster.sync();
    const uint32_t sections = sections_of(call.inputs).count;
    for (uint32_t i = threadIdx.x; i < L::ROWS * P::OUTPUTS / cluster.num_blocks(); i += L::THREADS) {
      const uint32_t output = i % P::OUTPUTS, row = i / P::OUTPUTS * cluster.num_blocks() + cluster.block_rank();
      if (!has(output / PANEL, row)) continue;
      float total = 0;
      for (uint32_t s = 0; s < sections; ++s) total = __fadd_rn(total, *cluster.map_shared_rank(shares + row * L::SHARES_STRIDE + output, s));
      panel_of<W>(call, tile.first_panel + output / PANEL).store(tile.row_tile * ROW_TILE + row, output % PANEL, total);
    }
    cluster.sync();  // nobody leaves while its shares are read
  }
};

template <class W, uint32_t ROW_TILES>
__global__ void __launch_bounds__(TileLayout<W, ROW_TILES>::THREADS, TilePolicy::BLOCKS)
    multiply_tiles(const __grid_constant__ Call call, const __grid_constant__ SplitRows split) {
  using L = TileLayout<W, ROW_TILES>;
  extern __shared__ __align__(128) uint8_t shared[];
  auto &rings = *reinterpret_cast<typename L::Rings *>(shared + L::BARRIERS_AT);
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t blocks = cluster.num_blocks(), index = blockIdx.x / blocks, row_blocks = div_up(call.rows, L::ROWS);
  const Sections sections = sections_of(call.inputs);
  const uint32_t steps = chunks_of<W>(call.inputs) * W::STEPS, section_steps = sections.inputs / STEP;
  Tile tile{index / row_blocks * TilePolicy::PANELS, index % row_blocks * ROW_TILES, 0, sections.count, 0, steps};
  if (blocks > 1) {
    tile.first_section = min(cluster.block_rank(), sections.count), tile.end_section = min(tile.first_section + 1, sections.count);
    tile.first_step = min(tile.first_section * section_steps, steps), tile.end_step = min(tile.end_section * section_steps, steps);
  }
  if (threadIdx.x == 0) {
    for (Barrier &barrier : rings.weights_full) barrier.init(1);
    for (Barrier &barrier : rings.weights_empty) barrier.init(L::CONSUMERS);
    for (Barrier &barrier : rings.x_full) barrier.init(1);
    for (Barrier &barrier : rings.x_empty) barrier.init(L::CONSUMERS);
    Barrier::publish_init();
  }
  __syncthreads();
  const TileKernel<W, ROW_TILES> kernel{call, split, tile, shared, rings};
  const bool producer = threadIdx.x / 32 == L::CONSUMERS;
  if (blocks == 1) {
    if (producer) kernel.produce();
    else kernel.add_sections();
    return;
  }
  // The shares lie where the rings are, so they wait in registers until all warps have read what is in the rings.
  float *shares = reinterpret_cast<float *>(shared);
  if (producer) {
    kernel.produce();
    asm volatile("bar.sync 1, %0;" ::"n"(L::THREADS) : "memory");
  } else {
    bool waited = false;
    kernel.consume([&](uint32_t, uint32_t panel, uint32_t output, uint32_t row, float share) {
      if (!waited) asm volatile("bar.sync 1, %0;" ::"n"(L::THREADS) : "memory");
      waited = true;
      shares[row * L::SHARES_STRIDE + panel * PANEL + output] = share;
    });
    if (!waited) asm volatile("bar.sync 1, %0;" ::"n"(L::THREADS) : "memory");
  }
  kernel.meet(cluster);
}

// Time of a launch, in sections of a block on a full multiprocessor: a block alone on one takes 1.6 times as long as its share of two.
inline float tile_cost(uint32_t blocks, uint32_t sections, int processors) {
  uint32_t most = div_up(blocks, static_cast<uint32_t>(processors));
  return static_cast<float>(sections) * (most == 1 ? 1.6f : static_cast<float>(most));
}

template <class W, uint32_t ROW_TILES>
cudaError_t launch_tiles(const Call &call, const SplitRows &split, const Device &device, cudaStream_t stream) {
  using L = TileLayout<W, ROW_TILES>;
  auto kernel = multiply_tiles<W, ROW_TILES>;
  if (cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::BYTES)) return status;
  const uint32_t tiles = div_up(call.panels(), TilePolicy::PANELS) * div_up(call.rows, L::ROWS), sections = sections_of(call.inputs).count;
  uint32_t blocks = 1;
  while (blocks < sections) blocks *= 2;
  // a meeting costs about what a section does
  if (tile_cost(tiles, sections, device.processors) <= tile_cost(tiles * blocks, 1, device.processors) + 1) blocks = 1;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(tiles * blocks);
  config.blockDim = dim3(L::THREADS);
  config.dynamicSmemBytes = L::BYTES;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, call, split);
}

// Rows of a workspace: a whole number of the largest tiles.
inline uint32_t split_row_count(uint32_t rows) { return rows <= ROW_TILE ? ROW_TILE : div_up(rows, 2 * ROW_TILE) * 2 * ROW_TILE; }

template <class W>
cudaError_t launch_tiles(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  const SplitRows split(call.inputs, workspace);
  split_rows<typename W::Number><<<split_row_count(call.rows), MAX_SECTIONS * 32, 0, stream>>>(x, call.rows, split);
  if (cudaError_t status = cudaGetLastError()) return status;
  return call.rows <= ROW_TILE ? launch_tiles<W, 1>(call, split, device, stream) : launch_tiles<W, 2>(call, split, device, stream);
}

}  // namespace nucleus::linear
