// Products of few rows: the weights stream through once, at the speed of memory.
//
// A cluster has a block for each section of the inputs. It goes through its panels; each block keeps its section of the activations in shared
// memory and multiplies its section of every panel. A warp takes a panel's section at a time; its weights come through a ring of its own, which the
// copy engine fills far ahead, across panels. A section's shares lie in its block's shared memory until the cluster meets; then the outputs are
// added up, section by section.
#pragma once

#include <cooperative_groups.h>

#include "bulk.cuh"
#include "call.cuh"
#include "device.cuh"

namespace nucleus::linear {

struct StreamPolicy {
  static constexpr uint32_t WARPS = 16, THREADS = WARPS * 32;
  static constexpr uint32_t MAX_ROWS = 16;
  static constexpr uint32_t MAX_STAGES = 12, MIN_STAGES = 2;
  // Panels between two meetings of the cluster, times their columns of four rows.
  static constexpr uint32_t GROUP = 64;
};

// How a block's shared memory is used.
template <class W>
struct StreamLayout {
  using P = StreamPolicy;
  uint32_t rows, section_steps, group, stages;

  // As many stages as fit; none if too few do.
  __host__ StreamLayout(uint32_t rows, uint32_t inputs, uint32_t shared_bytes)
      : rows(rows), section_steps(sections_of(inputs).inputs / STEP), group(P::GROUP / div_up(rows, 4)), stages(0) {
    uint32_t fixed = bytes(), stage = P::WARPS * (W::CHUNK_BYTES + sizeof(Barrier));
    uint32_t fit = fixed < shared_bytes ? (shared_bytes - fixed) / stage : 0;
    stages = fit < P::MIN_STAGES ? 0 : fit < P::MAX_STAGES ? fit : P::MAX_STAGES;
  }
  NUCLEUS_BOTH uint32_t ring_at() const { return 0; }
  NUCLEUS_BOTH uint32_t fragments_at() const { return ring_at() + P::WARPS * stages * W::CHUNK_BYTES; }
  NUCLEUS_BOTH uint32_t shares_at() const { return fragments_at() + section_steps * rows * Activations::ROW_BYTES; }
  NUCLEUS_BOTH uint32_t share_floats() const { return group * rows * PANEL; }
  NUCLEUS_BOTH uint32_t sums_at() const { return shares_at() + 2 * share_floats() * sizeof(float); }
  NUCLEUS_BOTH uint32_t scales_at() const { return sums_at() + section_steps * rows * sizeof(float); }
  NUCLEUS_BOTH uint32_t barriers_at() const { return scales_at() + (rows + 3) / 4 * 4 * sizeof(float); }
  NUCLEUS_BOTH uint32_t bytes() const { return barriers_at() + P::WARPS * stages * sizeof(Barrier); }
};

// The chunks that a warp multiplies, in order: its section of every panel of its own.
template <class W>
struct ChunkStream {
  const Call &call;
  uint32_t panel, end_panel;  // of the warp, every WARPS-th
  uint32_t first_chunk, chunks;
  uint32_t chunk = 0;
  const uint8_t *from = nullptr;

  __device__ __forceinline__ bool done() const { return panel >= end_panel; }
  __device__ __forceinline__ const uint8_t *next() {
    if (chunk == 0) from = panel_of<W>(call, panel).weights + size_t{first_chunk} * W::CHUNK_BYTES;
    const uint8_t *result = from + size_t{chunk} * W::CHUNK_BYTES;
    if (++chunk == chunks) chunk = 0, panel += StreamPolicy::WARPS;
    return result;
  }
};

template <class W, uint32_t COLUMNS>
__global__ void __launch_bounds__(StreamPolicy::THREADS, 1) multiply_streaming(const __grid_constant__ Call call, const float *x, StreamLayout<W> layout) {
  using P = StreamPolicy;
  extern __shared__ __align__(128) uint8_t shared[];
  const auto cluster = cooperative_groups::this_cluster();
  const uint32_t section = cluster.block_rank(), clusters = gridDim.x / cluster.num_blocks(), index = blockIdx.x / cluster.num_blocks();
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = layout.rows;
  const uint32_t begin_panel = static_cast<uint32_t>(uint64_t{call.panels()} * index / clusters);
  const uint32_t end_panel = static_cast<uint32_t>(uint64_t{call.panels()} * (index + 1) / clusters);
  const uint32_t sections = sections_of(call.inputs).count;

  const uint32_t section_chunks = layout.section_steps / W::STEPS, first_chunk = section * section_chunks;
  const uint32_t all_chunks = chunks_of<W>(call.inputs), chunks = first_chunk < all_chunks ? min(section_chunks, all_chunks - first_chunk) : 0;

  uint8_t *ring = shared + layout.ring_at() + warp * layout.stages * W::CHUNK_BYTES;
  Barrier *barriers = reinterpret_cast<Barrier *>(shared + layout.barriers_at()) + warp * layout.stages;
  const Activations activations{shared + layout.fragments_at(),
                                reinterpret_cast<float *>(shared + layout.sums_at()),
                                reinterpret_cast<float *>(shared + layout.scales_at()),
                                rows,
                                rows * Activations::ROW_BYTES,
                                rows};
  float *const shares = reinterpret_cast<float *>(shared + layout.shares_at());

  // The weights are on their way before the activations are looked at.
  ChunkStream<W> ahead{call, chunks ? begin_panel + warp : end_panel, end_panel, first_chunk, chunks};
  auto fetch = [&](uint32_t stage) {
    if (ahead.done()) return;
    const uint8_t *from = ahead.next();
    if (lane == 0) {
      barriers[stage].expect(W::CHUNK_BYTES);
      barriers[stage].copy(ring + stage * W::CHUNK_BYTES, from, W::CHUNK_BYTES);
    }
  };
  if (lane == 0) {
    for (uint32_t stage = 0; stage < layout.stages; ++stage) barriers[stage].init(1);
    Barrier::publish_init();
  }
  __syncwarp();
  for (uint32_t stage = 0; stage < layout.stages; ++stage) fetch(stage);

  for (uint32_t row = warp; row < rows && chunks; row += P::WARPS)
    split_section<typename W::Number>(x + size_t{row} * call.inputs, call.inputs, first_chunk * W::STEPS, chunks * W::STEPS, activations, row, 0, 0, lane);
  __syncthreads();

  RingPlace place;
  uint32_t panel = chunks ? begin_panel + warp : end_panel, buffer = 0;
  for (uint32_t group = begin_panel; group < end_panel; group += layout.group, buffer ^= 1) {
    const uint32_t group_end = min(group + layout.group, end_panel);
    float *const group_shares = shares + buffer * layout.share_floats();
    for (; panel < group_end; panel += P::WARPS) {
      float sums[COLUMNS][2] = {};
      for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
        const uint8_t *weights = ring + place.stage * W::CHUNK_BYTES;
        barriers[place.stage].wait(place.parity);
#pragma unroll
        for (uint32_t step = 0; step < W::STEPS; ++step) {
          const auto fragment = W::load(weights, step, lane);
          const uint32_t x_step = chunk * W::STEPS + step;
#pragma unroll
          for (uint32_t n = 0; n < COLUMNS; ++n) {
            float row_sum = 0;
            if constexpr (W::Fragment::MINIMUM) row_sum = activations.sums[x_step * rows + min(n * 4 + lane % 4, rows - 1)];
            add_products<typename W::Number>(sums[n], fragment, activations.load(x_step, n, lane), row_sum);
          }
        }
        __syncwarp();
        fetch(place.stage);
        place.advance(layout.stages);
      }
#pragma unroll
      for (uint32_t n = 0; n < COLUMNS; ++n) {
        const uint32_t row = n * 4 + lane % 4;
        if (row >= rows) continue;
        float *to = group_shares + ((panel - group) * rows + row) * PANEL + lane / 4;
        for (int h = 0; h < 2; ++h) to[8 * h] = section_share(sums[n][h], activations.scales[row]);
      }
    }
    // Every block has written its shares; and since it has, it has read those of the group before the last, whose place this group takes.
    cluster.sync();
    const uint32_t values = (group_end - group) * rows * PANEL, width = (group_end - group) * PANEL;
    const uint32_t rank = (section + (group - begin_panel) / layout.group) % cluster.num_blocks();
    for (uint32_t i = rank * P::THREADS + threadIdx.x; i < values; i += cluster.num_blocks() * P::THREADS) {
      const uint32_t row = i / width, local = i % width / PANEL, output = i % PANEL;
      float *share = group_shares + (local * rows + row) * PANEL + output, total = 0;
      for (uint32_t s = 0; s < sections; ++s) total = __fadd_rn(total, *cluster.map_shared_rank(share, s));
      panel_of<W>(call, group + local).store(row, output, total);
    }
  }
  cluster.sync();  // nobody leaves while its shares are read
}

// Whether a block has room for the rows' activations.
template <class W>
bool streams(uint32_t rows, uint32_t inputs, const Device &device) {
  return rows <= StreamPolicy::MAX_ROWS && StreamLayout<W>(rows, inputs, device.shared_bytes).stages;
}

template <class W, uint32_t COLUMNS>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  const StreamLayout<W> layout(call.rows, call.inputs, device.shared_bytes);
  auto kernel = multiply_streaming<W, COLUMNS>;
  if (cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(layout.bytes()))) return status;
  uint32_t blocks = 1;
  while (blocks < sections_of(call.inputs).count) blocks *= 2;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.blockDim = dim3(StreamPolicy::THREADS);
  config.dynamicSmemBytes = layout.bytes();
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  config.gridDim = dim3(blocks);
  int most = 0;
  if (cudaError_t status = cudaOccupancyMaxActiveClusters(&most, kernel, &config)) return status;
  const uint32_t clusters = most < 1 ? 1 : static_cast<uint32_t>(most);
  config.gridDim = dim3(blocks * (clusters < call.panels() ? clusters : call.panels()));
  return cudaLaunchKernelEx(&config, kernel, call, x, layout);
}

template <class W>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  if (call.rows <= 4) return launch_streaming<W, 1>(call, x, device, stream);
  if (call.rows <= 8) return launch_streaming<W, 2>(call, x, device, stream);
  return launch_streaming<W, 4>(call, x, device, stream);
}

}  // namespace nucleus::linear
