// What the kernels of many rows share: barriers of rings, tiles of outputs and rows, the totals of their sections, and how tiles are shared out.
//
// A block computes a tile, all sections one after the other; its totals lie in shared memory. Where there are too few tiles for the device, the blocks
// of a cluster take one or two sections of a tile each, and meet to add up.
#pragma once

#include "../bulk.cuh"
#include "call.cuh"
#include "cluster.cuh"
#include "launch.cuh"
#include "split_rows.cuh"

namespace nucleus::linear {

constexpr uint32_t TOTALS_ADDED = 14;  // the block's barrier of that name

// Of a multiprocessor, for one block.
constexpr uint32_t TILE_SHARED_BYTES = 227 * 1024;

// Of a block's rings of weights and of split activations.
template <uint32_t WEIGHT_STAGES, uint32_t X_STAGES>
struct TileBarriers {
  Barrier weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];

  // By all threads, before anything else. `readers`: warps that leave every stage.
  __device__ __forceinline__ void init(uint32_t readers) {
    if (threadIdx.x == 0) {
      for (Barrier &barrier : weights_full) barrier.init(1);
      for (Barrier &barrier : weights_empty) barrier.init(readers * LEAVING_LANES);
      for (Barrier &barrier : x_full) barrier.init(1);
      for (Barrier &barrier : x_empty) barrier.init(readers * LEAVING_LANES);
      Barrier::publish_init();
    }
    __syncthreads();
  }
};

// What a block computes.
struct Tile {
  uint32_t first_panel, row_tile, first_section, end_section, first_step, end_step;
  bool in_cluster;

  // The steps are whole chunks.
  template <class W>
  static __device__ __forceinline__ Tile of_block(const Call &call, const Cluster &cluster, uint32_t panels, uint32_t rows) {
    const uint32_t blocks = cluster.blocks(), index = blockIdx.x / blocks, row_tiles = div_up(call.rows, rows);
    const Sections sections = sections_of(call.inputs);
    const uint32_t steps = chunks_of<W>(call.inputs) * W::STEPS, section_steps = sections.inputs / STEP, block_sections = div_up(sections.count, blocks);
    Tile tile{index / row_tiles * panels, index % row_tiles, min(cluster.rank() * block_sections, sections.count)};
    tile.end_section = min(tile.first_section + block_sections, sections.count);
    tile.first_step = min(tile.first_section * section_steps, steps), tile.end_step = min(tile.end_section * section_steps, steps);
    tile.in_cluster = blocks > 1;
    return tile;
  }
};

// A tile's totals [rows, outputs]. In a cluster they are the shares of the block's first section; those of a second one lie at the beginning of the
// shared memory, where the rings were.
template <uint32_t OUTPUTS, uint32_t ROWS, uint32_t THREADS>
struct TileTotals {
  static constexpr uint32_t BYTES = ROWS * OUTPUTS * sizeof(float), ROWS_AT_ONCE = THREADS / OUTPUTS;
  static_assert(THREADS % OUTPUTS == 0, "a thread stores an output");

  float *totals, *second;

  // Pairs of rows are shifted against each other, so that the lanes of a warp write to different banks.
  static __device__ __forceinline__ uint32_t index(uint32_t row, uint32_t output) { return row * OUTPUTS + (output ^ row / 2 % 4 * 8); }

  // Adds a warp's shares of a section: sum(p, n, i) is number i of a lane's sums of panel `panel` + p and of the rows from `row` + 8n on.
  // Each lane has totals of its own.
  template <uint32_t WARP_PANELS, uint32_t COLUMNS, class Sum>
  __device__ __forceinline__ void add(bool to_second, bool begins, uint32_t panel, uint32_t row, const float *scales, Sum sum) const {
    const uint32_t lane = threadIdx.x % 32;
    float *const to = to_second ? second : totals;
#pragma unroll
    for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t at = row + n * 8 + lane % 4 * 2 + i % 2;
        const float scale = scales[at];
#pragma unroll
        for (uint32_t p = 0; p < WARP_PANELS; ++p) {
          float *total = to + index(at, (panel + p) * PANEL + lane / 4 + i / 2 * 8);
          *total = __fadd_rn(begins ? 0.0f : *total, section_share(sum(p, n, i), scale));
        }
      }
    }
  }

  // Writes outputs: all of the block's, or, in a cluster, the block's rows of all blocks' sections.
  template <class W>
  __device__ __forceinline__ void store(const Call &call, const Tile &tile, const Cluster &cluster) const {
    const uint32_t output = threadIdx.x % OUTPUTS, sections = tile.in_cluster ? sections_of(call.inputs).count : 1;
    const uint32_t block_sections = div_up(sections, cluster.blocks());
    cluster.template meet<TOTALS_ADDED, THREADS>();
    if (threadIdx.x < THREADS && tile.first_panel + output / PANEL < call.panels()) {
      const Panel panel = panel_of<W>(call, tile.first_panel + output / PANEL);
      const uint32_t first_row = tile.row_tile * ROWS, rows = min(ROWS, call.rows - first_row);
#pragma unroll 4
      for (uint32_t row = cluster.rank() * ROWS_AT_ONCE + threadIdx.x / OUTPUTS; row < rows; row += cluster.blocks() * ROWS_AT_ONCE) {
        float *first = totals + index(row, output);
        panel.store(first_row + row, output % PANEL,
                    tile.in_cluster ? cluster.sum_sections(first, sections, block_sections, static_cast<int>(second - totals)) : *first);
      }
    }
    cluster.leave();
  }
};

// Cycles of a block's beginning and end; of a meeting, and of each row of an output that a thread adds up then. (Measured on an H200, as are the kernels'
// cycles of a step; they decide which way is taken, never a result.)
struct TileCosts {
  static constexpr uint64_t BLOCK = 4000, MEETING = 2000, ADDED_ROW = 900;
};

// A way of multiplying tiles: the kernel, the blocks of a cluster, and about how long it takes.
struct TileChoice {
  using Kernel = void (*)(Call, SplitRows);

  Kernel kernel = nullptr;
  uint32_t threads = 0, shared_bytes = 0, tiles = 0, blocks = 1;
  uint64_t cycles = ~0ull;

  // Takes the kernel if it is faster, with the best size of a cluster: one block, or so many that each has one section or two. K has its PANELS, ROWS,
  // THREADS and BYTES of shared memory, `function()`, and the `cycles` of a step.
  template <class K>
  cudaError_t consider(const Call &call, const Device &device) {
    auto kernel = K::function();
    if (cudaError_t status = allow_shared_bytes(kernel, device)) return status;
    const Sections sections = sections_of(call.inputs);
    const uint32_t kernel_tiles = div_up(call.panels(), K::PANELS) * div_up(call.rows, K::ROWS);
    for (uint32_t cluster = 1; cluster < 2 * sections.count && cluster <= MAX_SECTIONS; cluster *= 2) {
      const uint32_t block_sections = div_up(sections.count, cluster);
      if (cluster > 1 && block_sections > 2) continue;
      Launch launch(dim3(cluster), K::THREADS, cluster, nullptr);
      launch.shared_bytes(K::BYTES);
      uint32_t clusters = 0;
      if (cudaError_t status = cluster_count(kernel, launch, device, cluster, clusters)) return status;
      const uint64_t added_rows = K::ROWS * K::PANELS * PANEL / K::THREADS / cluster;
      const uint64_t meeting = cluster > 1 ? TileCosts::MEETING + TileCosts::ADDED_ROW * added_rows : 0;
      const uint64_t block = K::step_cycles() * block_sections * (sections.inputs / STEP) + TileCosts::BLOCK + meeting;
      const uint64_t all = div_up(kernel_tiles, clusters) * block;
      if (all < cycles) *this = {kernel, K::THREADS, K::BYTES, kernel_tiles, cluster, all};
    }
    return cudaSuccess;
  }

  cudaError_t launch(const Call &call, const SplitRows &split, cudaStream_t stream) const {
    Launch launch(dim3(tiles * blocks), threads, blocks, stream);
    launch.shared_bytes(shared_bytes);
    return launch(kernel, call, split);
  }
};

}  // namespace nucleus::linear
