// Products of few rows: the weights stream through once, at the speed of memory.
//
// A cluster's blocks share out the sections of the inputs, and each keeps its sections of the activations in shared memory; so a cluster is as large
// as the activations want. It goes through its panels. A warp takes one section of a panel at a time; its weights come through a ring of its own,
// which the copy engine fills far ahead, across panels. The shares of a group of panels lie in the blocks' shared memory until the cluster has met,
// which is while it multiplies the next group; then the outputs are added up, section by section.
#pragma once

#include <atomic>

#include "bulk.cuh"
#include "call.cuh"
#include "cluster.cuh"
#include "launch.cuh"

namespace nucleus::linear {

struct StreamPolicy {
  static constexpr uint32_t WARPS = 16, THREADS = WARPS * 32;
  static constexpr uint32_t MAX_ROWS = 16;
  static constexpr uint32_t MAX_STAGES = 12, MIN_STAGES = 2, GOOD_STAGES = 3;
  // A group's shares are written while the one before it is added up and the one before that may still be read.
  static constexpr uint32_t BUFFERS = 3;
  // Sections of panels in a group.
  static constexpr uint32_t MAX_GROUP = 32, MIN_GROUP = 8;
};

// How the products are shared out, and a block's shared memory used, for up to 4 · COLUMNS rows.
template <class W, uint32_t COLUMNS>
struct StreamPlan {
  using P = StreamPolicy;
  static constexpr uint32_t ROWS = COLUMNS * 4, STEP_BYTES = ROWS * Activations::ROW_BYTES, STAGE_BYTES = P::WARPS * (W::CHUNK_BYTES + sizeof(Barrier));
  uint32_t sections, section_steps;  // of the inputs; steps of each but the last
  uint32_t blocks;                   // of a cluster
  uint32_t block_sections;           // of each block but the last
  uint32_t group, stages;            // no stages: there is no room

  __host__ StreamPlan(uint32_t inputs, uint32_t blocks, uint32_t shared_bytes)
      : sections(sections_of(inputs).count), section_steps(sections_of(inputs).inputs / STEP), blocks(blocks), block_sections(div_up(sections, blocks)) {
    for (group = P::MAX_GROUP;; group /= 2) {
      stages = 0;
      const uint32_t fixed = bytes(), fit = fixed < shared_bytes ? (shared_bytes - fixed) / STAGE_BYTES : 0;
      stages = fit < P::MIN_STAGES ? 0 : fit < P::MAX_STAGES ? fit : P::MAX_STAGES;
      if (stages >= P::GOOD_STAGES || group == P::MIN_GROUP) return;
    }
  }
  NUCLEUS_BOTH uint32_t group_panels() const { return group / block_sections; }
  NUCLEUS_BOTH uint32_t share_floats() const { return group * ROWS * PANEL; }
  NUCLEUS_BOTH uint32_t fragments_at() const { return P::WARPS * stages * W::CHUNK_BYTES; }
  NUCLEUS_BOTH uint32_t shares_at() const { return fragments_at() + block_sections * section_steps * STEP_BYTES; }
  NUCLEUS_BOTH uint32_t sums_at() const { return shares_at() + P::BUFFERS * share_floats() * sizeof(float); }
  NUCLEUS_BOTH uint32_t scales_at() const { return sums_at() + block_sections * section_steps * ROWS * sizeof(float); }
  NUCLEUS_BOTH uint32_t largest_at() const { return scales_at() + block_sections * ROWS * sizeof(float); }
  NUCLEUS_BOTH uint32_t barriers_at() const { return largest_at() + block_sections * ROWS * sizeof(uint32_t); }
  NUCLEUS_BOTH uint32_t bytes() const { return barriers_at() + P::WARPS * stages * sizeof(Barrier); }
};
static_assert(StreamPolicy::MIN_GROUP >= MAX_SECTIONS, "a group has a panel at least");

// A block's panels and sections. A unit is a section of a panel; a warp has every WARPS-th.
template <class W>
struct StreamPart {
  uint32_t begin_panel, end_panel;
  uint32_t first_section, sections, section_chunks, all_chunks;

  template <uint32_t COLUMNS>
  __device__ __forceinline__ StreamPart(const Call &call, const StreamPlan<W, COLUMNS> &plan, uint32_t index, uint32_t clusters, uint32_t rank)
      : begin_panel(static_cast<uint32_t>(uint64_t{call.panels()} * index / clusters)),
        end_panel(static_cast<uint32_t>(uint64_t{call.panels()} * (index + 1) / clusters)),
        first_section(min(rank * plan.block_sections, plan.sections)),
        sections(min(plan.block_sections, plan.sections - first_section)),
        section_chunks(plan.section_steps / W::STEPS),
        all_chunks(chunks_of<W>(call.inputs)) {}

  __device__ __forceinline__ uint32_t units(uint32_t end) const { return (end - begin_panel) * sections; }
  __device__ __forceinline__ uint32_t panel(uint32_t unit) const { return begin_panel + unit / sections; }
  __device__ __forceinline__ uint32_t section(uint32_t unit) const { return unit % sections; }
  __device__ __forceinline__ uint32_t first_chunk(uint32_t section) const { return (first_section + section) * section_chunks; }
  __device__ __forceinline__ uint32_t chunks(uint32_t section) const { return min(section_chunks, all_chunks - first_chunk(section)); }
  __device__ __forceinline__ uint32_t steps() const { return sections ? (first_chunk(sections - 1) + chunks(sections - 1) - first_chunk(0)) * W::STEPS : 0; }
};

// A warp's ring: the chunks of its units come in order, far ahead of the one that is multiplied.
template <class W>
struct WeightRing {
  const Call &call;
  const StreamPart<W> &part;
  uint8_t *const stages;
  Barrier *const barriers;
  const uint32_t count, lane;
  uint32_t unit;  // of the next chunk to fetch
  uint32_t left = 0;
  const uint8_t *next = nullptr;

  __device__ __forceinline__ void start() {
    if (lane == 0) {
      for (uint32_t stage = 0; stage < count; ++stage) barriers[stage].init(1);
      Barrier::publish_init();
    }
    __syncwarp();
    for (uint32_t stage = 0; stage < count; ++stage) fetch(stage);
  }
  __device__ __forceinline__ void fetch(uint32_t stage) {
    if (left == 0) {
      if (unit >= part.units(part.end_panel)) return;
      const uint32_t section = part.section(unit);
      next = panel_of<W>(call, part.panel(unit)).weights + size_t{part.first_chunk(section)} * W::CHUNK_BYTES;
      left = part.chunks(section);
      unit += StreamPolicy::WARPS;
    }
    if (lane == 0) {
      barriers[stage].expect(W::CHUNK_BYTES);
      barriers[stage].copy(stages + stage * W::CHUNK_BYTES, next, W::CHUNK_BYTES);
    }
    next += W::CHUNK_BYTES;
    left -= 1;
  }
};

template <class W, uint32_t COLUMNS>
struct StreamKernel {
  using P = StreamPolicy;
  using Plan = StreamPlan<W, COLUMNS>;

  const Call &call;
  const Plan &plan;
  const Cluster cluster;
  const StreamPart<W> part;
  uint8_t *const shared;

  __device__ __forceinline__ StreamKernel(const Call &call, const Plan &plan, uint8_t *shared)
      : call(call), plan(plan), part(call, plan, blockIdx.x / plan.blocks, gridDim.x / plan.blocks, cluster.rank()), shared(shared) {}

  __device__ __forceinline__ static uint32_t warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static uint32_t lane() { return threadIdx.x % 32; }
  template <class T>
  __device__ __forceinline__ T *at(uint32_t offset) const {
    return reinterpret_cast<T *>(shared + offset);
  }
  __device__ __forceinline__ Activations activations() const {
    return {at<uint8_t>(plan.fragments_at()), at<float>(plan.sums_at()), at<float>(plan.scales_at()), Plan::STEP_BYTES, Plan::ROWS, Plan::ROWS};
  }
  // Of a panel of a group: [sections of the block, rows, outputs].
  __device__ __forceinline__ float *shares(uint32_t group, uint32_t panel) const {
    return at<float>(plan.shares_at()) + group % P::BUFFERS * plan.share_floats() + panel * plan.block_sections * Plan::ROWS * PANEL;
  }

  __device__ __forceinline__ void split(const float *x) const {
    uint32_t *largest = at<uint32_t>(plan.largest_at());
    for (uint32_t i = threadIdx.x; i < plan.block_sections * Plan::ROWS; i += P::THREADS) largest[i] = 0;
    __syncthreads();
    wait_for_inputs();
    split_sections<typename W::Number>({x, call.rows, call.inputs, part.first_chunk(0) * W::STEPS, part.steps(), plan.section_steps}, call.rows, activations(),
                                       largest);
    __syncthreads();
  }

  __device__ __forceinline__ void multiply(WeightRing<W> &ring) const {
    const Activations x = activations();
    // Columns of rows that are not there repeat the last row's: they have results, which nobody reads.
    const uint8_t *x_lane[COLUMNS];
    const float *sum_lane[COLUMNS];
#pragma unroll
    for (uint32_t n = 0; n < COLUMNS; ++n) {
      x_lane[n] = x.fragments + min(n * 4 + lane() / 8, call.rows - 1) * Activations::ROW_BYTES + lane() % 8 * Activations::UNIT_BYTES;
      sum_lane[n] = x.sums + min(n * 4 + lane() % 4, call.rows - 1);
    }
    RingPlace place;
    uint32_t unit = warp();
    for (uint32_t group = 0, begin = part.begin_panel;; ++group, begin += plan.group_panels()) {
      const uint32_t end = min(begin + plan.group_panels(), part.end_panel);
      for (; begin < end && unit < part.units(end); unit += P::WARPS) {
        const uint32_t section = part.section(unit), chunks = part.chunks(section);
        uint32_t step = section * plan.section_steps;
        float sums[COLUMNS][2] = {};
        for (uint32_t chunk = 0; chunk < chunks; ++chunk, step += W::STEPS) {
          ring.barriers[place.stage].wait(place.parity);
          add_chunk(sums, ring.stages + place.stage * W::CHUNK_BYTES, x_lane, sum_lane, step);
          __syncwarp();
          ring.fetch(place.stage);
          place.advance(plan.stages);
        }
        float *to = shares(group, part.panel(unit) - begin) + section * Plan::ROWS * PANEL;
#pragma unroll
        for (uint32_t n = 0; n < COLUMNS; ++n) {
          const uint32_t row = n * 4 + lane() % 4;
          if (row < call.rows)
            for (uint32_t h = 0; h < 2; ++h) to[row * PANEL + lane() / 4 + 8 * h] = section_share(sums[n][h], x.scales[section * Plan::ROWS + row]);
        }
      }
      if (group > 0) {
        cluster.wait();
        add_up(group - 1, begin - plan.group_panels(), min(begin, part.end_panel));
      }
      if (begin >= part.end_panel) break;
      cluster.arrive();
    }
    cluster.meet();  // nobody leaves while its shares are read
  }

  __device__ __forceinline__ static void add_chunk(float (&sums)[COLUMNS][2], const uint8_t *weights, const uint8_t *const (&x_lane)[COLUMNS],
                                                   const float *const (&sum_lane)[COLUMNS], uint32_t first_step) {
#pragma unroll
    for (uint32_t step = 0; step < W::STEPS; ++step) {
      const auto fragment = W::load(weights, step, lane());
#pragma unroll
      for (uint32_t n = 0; n < COLUMNS; ++n) {
        const Operand operand = *reinterpret_cast<const Operand *>(x_lane[n] + (first_step + step) * Plan::STEP_BYTES);
        const float row_sum = W::Fragment::MINIMUM ? sum_lane[n][(first_step + step) * Plan::ROWS] : 0.0f;
        add_products<typename W::Number>(sums[n], fragment, operand, row_sum);
      }
    }
  }

  // The cluster's threads add up a group's outputs.
  __device__ __forceinline__ void add_up(uint32_t group, uint32_t begin, uint32_t end) const {
    const uint32_t width = (end - begin) * PANEL, turn = (cluster.rank() + group) % plan.blocks;
    for (uint32_t i = turn * P::THREADS + threadIdx.x; i < width * call.rows; i += plan.blocks * P::THREADS) {
      const uint32_t row = i / width, panel = i % width / PANEL, output = i % PANEL;
      float *first = shares(group, panel) + row * PANEL + output;
      const float total = cluster.sum_sections(plan.sections, [&](uint32_t s) {
        return SharePlace{first + s % plan.block_sections * Plan::ROWS * PANEL, s / plan.block_sections};
      });
      panel_of<W>(call, begin + panel).store(row, output, total);
    }
  }
};

template <class W, uint32_t COLUMNS>
__global__ void __launch_bounds__(StreamPolicy::THREADS, 1)
    multiply_streaming(const __grid_constant__ Call call, const float *x, const __grid_constant__ StreamPlan<W, COLUMNS> plan) {
  extern __shared__ __align__(128) uint8_t shared[];
  const StreamKernel<W, COLUMNS> kernel(call, plan, shared);
  const uint32_t first_stage = kernel.warp() * plan.stages;
  WeightRing<W> ring{call, kernel.part, shared + first_stage * W::CHUNK_BYTES, kernel.template at<Barrier>(plan.barriers_at()) + first_stage,
                     plan.stages, kernel.lane(), kernel.warp()};
  ring.start();  // the weights are on their way before the activations are there
  let_next_begin();
  kernel.split(x);
  kernel.multiply(ring);
}

// Clusters of that many blocks that run at once, each block on a multiprocessor of its own. Asking takes microseconds, so the answer is kept.
template <class Kernel>
cudaError_t cluster_count(Kernel kernel, const Launch &launch, const Device &device, uint32_t blocks, uint32_t &count) {
  constexpr int DEVICES = 64;
  static std::atomic<int> known[DEVICES][MAX_SECTIONS + 1];
  std::atomic<int> &clusters = known[device.index % DEVICES][blocks];
  if (!clusters) {
    int most = 0;
    if (cudaError_t status = launch.clusters(kernel, most)) return status;
    clusters = most < 1 ? 1 : most;
  }
  count = static_cast<uint32_t>(clusters);
  return cudaSuccess;
}

// The size of a cluster that leaves the least to the block with the most; the smallest such.
template <class W, uint32_t COLUMNS>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  using Plan = StreamPlan<W, COLUMNS>;
  auto kernel = multiply_streaming<W, COLUMNS>;
  const uint32_t sections = sections_of(call.inputs).count, shared_bytes = static_cast<uint32_t>(device.shared_bytes);
  uint32_t best_blocks = 0, best_clusters = 0, best_units = ~0u;
  for (uint32_t blocks = 1; blocks < 2 * sections && blocks <= MAX_SECTIONS; blocks *= 2) {
    const Plan plan(call.inputs, blocks, shared_bytes);
    if (plan.stages < (blocks == MAX_SECTIONS || blocks >= sections ? StreamPolicy::MIN_STAGES : StreamPolicy::GOOD_STAGES)) continue;
    Launch launch(dim3(blocks), StreamPolicy::THREADS, blocks, stream);
    uint32_t clusters = 0;
    if (cudaError_t status = launch.shared_bytes(kernel, plan.bytes())) return status;
    if (cudaError_t status = cluster_count(kernel, launch, device, blocks, clusters)) return status;
    const uint32_t units = div_up(call.panels(), clusters) * plan.block_sections;
    if (units < best_units) best_blocks = blocks, best_clusters = clusters, best_units = units;
  }
  const Plan plan(call.inputs, best_blocks, shared_bytes);
  Launch launch(dim3(best_blocks * (best_clusters < call.panels() ? best_clusters : call.panels())), StreamPolicy::THREADS, best_blocks, stream);
  if (cudaError_t status = launch.shared_bytes(kernel, plan.bytes())) return status;
  return launch(kernel, call, x, plan);
}

// Whether a block of the largest cluster has room for the rows' activations.
template <class W>
bool streams(uint32_t rows, uint32_t inputs, const Device &device) {
  if (rows > StreamPolicy::MAX_ROWS) return false;
  const uint32_t bytes = static_cast<uint32_t>(device.shared_bytes);
  uint32_t blocks = 1;
  while (blocks < sections_of(inputs).count) blocks *= 2;
  return rows <= 4   ? StreamPlan<W, 1>(inputs, blocks, bytes).stages
         : rows <= 8 ? StreamPlan<W, 2>(inputs, blocks, bytes).stages
                     : StreamPlan<W, 4>(inputs, blocks, bytes).stages;
}

template <class W>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  if (call.rows <= 4) return launch_streaming<W, 1>(call, x, device, stream);
  if (call.rows <= 8) return launch_streaming<W, 2>(call, x, device, stream);
  return launch_streaming<W, 4>(call, x, device, stream);
}

}  // namespace nucleus::linear
