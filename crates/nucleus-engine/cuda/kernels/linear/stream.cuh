// Products of few rows: the weights stream through once, at the speed of memory.
//
// A cluster's blocks share out the sections of the inputs, and each keeps its sections of the activations in shared memory; so a cluster is as large
// as the activations want. It goes through its panels. A warp takes one section of a panel at a time; its weights come through a ring of its own,
// which the copy engine fills far ahead, across panels. The shares of a group of panels lie in the blocks' shared memory until the cluster has met,
// which is while it multiplies the next group; then the outputs are added up, section by section.
#pragma once

#include "../bulk.cuh"
#include "call.cuh"
#include "cluster.cuh"
#include "launch.cuh"

namespace nucleus::linear {

struct StreamPolicy {
  static constexpr uint32_t WARPS = 8, THREADS = WARPS * 32;
  // A warp multiplies panels of a strip together, so that it reads the activations once for all.
  static constexpr uint32_t STRIP = 2, STRIP_OUTPUTS = STRIP * PANEL;
  static constexpr uint32_t STEPS_AT_ONCE = 8;
  static constexpr uint32_t MAX_ROWS = 16;
  static constexpr uint32_t MAX_STAGES = 8, MIN_STAGES = 2, GOOD_STAGES = 3;
  // A group's shares are written while others still add up the two before it: they have met since the third.
  static constexpr uint32_t BUFFERS = 3;
};

// How the products are shared out, and a block's shared memory used.
struct StreamPlan {
  using P = StreamPolicy;
  uint32_t rows;
  uint32_t sections, section_steps;  // of the inputs; steps of each but the last
  uint32_t blocks;                   // of a cluster
  uint32_t block_sections;           // of each block but the last
  uint32_t group_strips;
  uint32_t panel_bytes;  // chunks of a panel that come together
  uint32_t stages;       // none: there is no room

  // A warp should have two units of a group, two chunks of 2 KiB or less should come together, and three stages should fit, in that order from the last.
  template <class W>
  __host__ static StreamPlan make(uint32_t rows, uint32_t inputs, uint32_t blocks, uint32_t shared_bytes) {
    const uint32_t most_chunks = W::CHUNK_BYTES <= 2304 && rows <= 8 && W::STEPS < 8 ? 2 : 1;
    StreamPlan plan{};
    for (uint32_t units = 2 * P::WARPS; units >= P::WARPS / 2; units /= 2)
      for (uint32_t chunks = most_chunks; chunks; --chunks) {
        plan = StreamPlan(rows, inputs, blocks, units, chunks * W::CHUNK_BYTES, shared_bytes);
        if (plan.stages >= P::GOOD_STAGES) return plan;
      }
    return plan;
  }
  StreamPlan() = default;
  __host__ StreamPlan(uint32_t rows, uint32_t inputs, uint32_t blocks, uint32_t units, uint32_t panel_bytes, uint32_t shared_bytes)
      : rows(rows),
        sections(sections_of(inputs).count),
        section_steps(sections_of(inputs).inputs / STEP),
        blocks(blocks),
        block_sections(div_up(sections, blocks)),
        group_strips(div_up(units, block_sections)),
        panel_bytes(panel_bytes),
        stages(0) {
    const uint32_t fixed = bytes(), fit = fixed < shared_bytes ? (shared_bytes - fixed) / (P::WARPS * (stage_bytes() + sizeof(Barrier))) : 0;
    stages = fit < P::MIN_STAGES ? 0 : fit < P::MAX_STAGES ? fit : P::MAX_STAGES;
  }
  NUCLEUS_BOTH uint32_t stage_bytes() const { return P::STRIP * panel_bytes; }
  NUCLEUS_BOTH uint32_t step_bytes() const { return rows * Units::ROW_BYTES; }
  NUCLEUS_BOTH uint32_t low_bytes() const { return rows * Units::PART_BYTES; }
  NUCLEUS_BOTH uint32_t sums_stride() const { return (rows + 1) / 2 * 2; }  // they are read in pairs
  // Shares of a section of a strip: [rows, outputs].
  NUCLEUS_BOTH uint32_t unit_floats() const { return rows * P::STRIP_OUTPUTS; }
  NUCLEUS_BOTH uint32_t strip_bytes() const { return block_sections * unit_floats() * sizeof(float); }
  NUCLEUS_BOTH uint32_t fragments_at() const { return P::WARPS * stages * stage_bytes(); }
  NUCLEUS_BOTH uint32_t shares_at() const { return fragments_at() + block_sections * section_steps * step_bytes(); }
  NUCLEUS_BOTH uint32_t sums_at() const { return shares_at() + P::BUFFERS * group_strips * strip_bytes(); }
  NUCLEUS_BOTH uint32_t scales_at() const { return sums_at() + block_sections * section_steps * sums_stride() * sizeof(float); }
  NUCLEUS_BOTH uint32_t largest_at() const { return scales_at() + block_sections * rows * sizeof(float); }
  NUCLEUS_BOTH uint32_t meeting_at() const { return (largest_at() + block_sections * rows * sizeof(uint32_t) + 7) / 8 * 8; }
  NUCLEUS_BOTH uint32_t barriers_at() const { return meeting_at() + sizeof(Barrier); }
  NUCLEUS_BOTH uint32_t bytes() const { return barriers_at() + P::WARPS * stages * sizeof(Barrier); }
};

// A block's strips and sections.
template <class W>
struct StreamPart {
  uint32_t begin_strip, end_strip;
  uint32_t first_section, sections, section_chunks, all_chunks;

  __device__ __forceinline__ StreamPart(const Call &call, const StreamPlan &plan, uint32_t index, uint32_t clusters, uint32_t rank)
      : first_section(min(rank * plan.block_sections, plan.sections)),
        sections(min(plan.block_sections, plan.sections - first_section)),
        section_chunks(plan.section_steps / W::STEPS),
        all_chunks(chunks_of<W>(call.inputs)) {
    const uint64_t strips = div_up(call.panels(), StreamPolicy::STRIP);
    begin_strip = static_cast<uint32_t>(strips * index / clusters);
    end_strip = static_cast<uint32_t>(strips * (index + 1) / clusters);
  }
  __device__ __forceinline__ uint32_t first_chunk(uint32_t section) const { return (first_section + section) * section_chunks; }
  __device__ __forceinline__ uint32_t chunks(uint32_t section) const { return min(section_chunks, all_chunks - first_chunk(section)); }
  __device__ __forceinline__ uint32_t steps() const { return sections ? (first_chunk(sections - 1) + chunks(sections - 1) - first_chunk(0)) * W::STEPS : 0; }
};

// A section of a strip. A warp has every WARPS-th of its block's.
struct StreamUnit {
  uint32_t strip, section;

  template <class W>
  __device__ __forceinline__ StreamUnit(const StreamPart<W> &part, uint32_t warp)
      : strip(part.sections ? part.begin_strip + warp / part.sections : part.end_strip), section(part.sections ? warp % part.sections : 0) {}
  template <class W>
  __device__ __forceinline__ void advance(const StreamPart<W> &part) {
    for (section += StreamPolicy::WARPS; section >= part.sections; section -= part.sections) ++strip;
  }
};

// A warp's ring: the chunks of its units come in order, far ahead of those that are multiplied. A stage has some of a unit's.
template <class W>
struct WeightRing {
  using P = StreamPolicy;

  const Call &call;
  const StreamPart<W> &part;
  const StreamPlan &plan;
  uint8_t *const stages;
  Barrier *const barriers;
  const uint32_t lane;
  StreamUnit unit;  // of the next chunk to fetch
  uint32_t left = 0;  // bytes of its panels
  const uint8_t *next = nullptr;  // lane p's: of panel p of the strip

  __device__ __forceinline__ uint8_t *stage_at(uint32_t stage) const { return stages + stage * plan.stage_bytes(); }

  __device__ __forceinline__ void start() {
    if (lane == 0) {
#pragma unroll 1
      for (uint32_t stage = 0; stage < plan.stages; ++stage) barriers[stage].init(1);
      Barrier::publish_init();
    }
    __syncwarp();
#pragma unroll 1
    for (uint32_t stage = 0; stage < plan.stages; ++stage) fetch(stage);
  }
  __device__ __forceinline__ void fetch(uint32_t stage) {
    if (left == 0) {
      if (unit.strip >= part.end_strip) return;
      const uint32_t panel = min(unit.strip * P::STRIP + lane % P::STRIP, call.panels() - 1);
      next = panel_of<W>(call, panel).weights + size_t{part.first_chunk(unit.section)} * W::CHUNK_BYTES;
      left = part.chunks(unit.section) * W::CHUNK_BYTES;
      unit.advance(part);
    }
    const uint32_t bytes = min(plan.panel_bytes, left);
    if (lane == 0) barriers[stage].expect(P::STRIP * bytes);
    if (lane < P::STRIP) barriers[stage].copy(stage_at(stage) + lane * plan.panel_bytes, next, bytes);
    next += bytes;
    left -= bytes;
  }
};

template <class W, uint32_t COLUMNS>
struct StreamKernel {
  using P = StreamPolicy;
  using Sums = LaneSums[P::STRIP][COLUMNS];

  const Call &call;
  const StreamPlan &plan;
  const Cluster cluster;
  const StreamPart<W> part;
  uint8_t *const shared;

  __device__ __forceinline__ StreamKernel(const Call &call, const StreamPlan &plan, uint8_t *shared)
      : call(call), plan(plan), part(call, plan, blockIdx.x / plan.blocks, gridDim.x / plan.blocks, cluster.rank()), shared(shared) {}

  __device__ __forceinline__ static uint32_t warp() { return threadIdx.x / 32; }
  __device__ __forceinline__ static uint32_t lane() { return threadIdx.x % 32; }
  template <class T>
  __device__ __forceinline__ T *at(uint32_t offset) const {
    return reinterpret_cast<T *>(shared + offset);
  }
  __device__ __forceinline__ Activations activations() const {
    return {at<uint8_t>(plan.fragments_at()), at<float>(plan.sums_at()), at<float>(plan.scales_at()), plan.step_bytes(), plan.low_bytes(), plan.sums_stride(),
            plan.rows};
  }
  // Of a strip of a group: [sections of the block, rows, outputs].
  __device__ __forceinline__ float *shares(uint32_t group, uint32_t strip) const {
    return at<float>(plan.shares_at() + (group % P::BUFFERS * plan.group_strips + strip) * plan.strip_bytes());
  }

  __device__ __forceinline__ void split(const float *x) const {
    uint32_t *largest = at<uint32_t>(plan.largest_at());
    for (uint32_t i = threadIdx.x; i < plan.block_sections * plan.rows; i += P::THREADS) largest[i] = 0;
    if (threadIdx.x == 0) at<Barrier>(plan.meeting_at())->init(P::THREADS);
    __syncthreads();
    wait_for_inputs();
    split_sections<typename W::Number>({x, call.rows, call.inputs, part.first_chunk(0) * W::STEPS, part.steps(), plan.section_steps}, call.rows, activations(),
                                       largest);
    __syncthreads();
  }

  __device__ __forceinline__ void multiply(WeightRing<W> &ring) const {
    const Activations x = activations();
    // Columns of rows that are not there repeat the last row's: nobody reads their sums.
    LanePlaces places;
#pragma unroll
    for (uint32_t n = 0; n < COLUMNS; ++n) {
      places.x[n] = min(n * 8 + lane() / 4, call.rows - 1) * Units::PART_BYTES + lane() % 4 * Units::BYTES;
      places.row_sums[n] = min(n * 4 + lane() % 4, (call.rows - 1) / 2) * 2;
    }
    RingPlace place;
    StreamUnit unit(part, warp());
#pragma unroll 1
    for (uint32_t group = 0, begin = part.begin_strip;; ++group, begin += plan.group_strips) {
      const uint32_t end = min(begin + plan.group_strips, part.end_strip);
#pragma unroll 1
      for (; unit.strip < end; unit.advance(part)) {
        const uint32_t first_step = unit.section * plan.section_steps;
        const uint8_t *fragments = x.fragments + first_step * x.step_bytes;
        const float *row_sums = x.sums + first_step * x.sums_stride;
        Sums sums = {};
#pragma unroll 1
        for (uint32_t left = part.chunks(unit.section) * W::CHUNK_BYTES; left;) {
          ring.barriers[place.stage].wait(place.parity);
          const uint8_t *weights = ring.stage_at(place.stage);
          const uint8_t *const end = weights + min(plan.panel_bytes, left);
          left -= static_cast<uint32_t>(end - weights);
#pragma unroll 1
          for (; weights < end; weights += W::CHUNK_BYTES, fragments += W::STEPS * x.step_bytes, row_sums += W::STEPS * x.sums_stride)
            add_chunk(sums, weights, fragments, row_sums, places);
          __syncwarp();
          ring.fetch(place.stage);
          place.advance(plan.stages);
        }
        write_shares(sums, shares(group, unit.strip - begin) + unit.section * plan.unit_floats(), x.scales + unit.section * x.scales_stride);
      }
      if (group > 0) {
        meet(group - 1);
        add_up(group - 1, begin - plan.group_strips, min(begin, part.end_strip));
      }
      if (begin >= part.end_strip) break;
      arrive();
    }
    cluster.leave();
  }

  // The cluster's threads have written a group's shares; a warp need not wait for the others before it goes on with the next group.
  __device__ __forceinline__ void arrive() const {
    if (plan.blocks > 1) return cluster.arrive();
    at<Barrier>(plan.meeting_at())->arrive();
  }
  __device__ __forceinline__ void meet(uint32_t group) const {
    if (plan.blocks > 1) return cluster.wait();
    at<Barrier>(plan.meeting_at())->wait(group % 2);
  }

  // Where a lane's activations lie within a step.
  struct LanePlaces {
    uint32_t x[COLUMNS], row_sums[COLUMNS];
  };

  __device__ __forceinline__ void add_chunk(Sums &sums, const uint8_t *weights, const uint8_t *fragments, const float *row_sums, const LanePlaces &places) const {
#pragma unroll(P::STEPS_AT_ONCE)
    for (uint32_t step = 0; step < W::STEPS; ++step) {
      typename W::Fragment panels[P::STRIP];
#pragma unroll
      for (uint32_t p = 0; p < P::STRIP; ++p) panels[p] = W::load(weights + p * plan.panel_bytes, step, lane());
#pragma unroll
      for (uint32_t n = 0; n < COLUMNS; ++n) {
        const Operand operand = Activations::load(fragments + step * plan.step_bytes() + places.x[n], plan.low_bytes());
        float2 pair{};
        if constexpr (W::Fragment::MINIMUM) pair = *reinterpret_cast<const float2 *>(row_sums + step * plan.sums_stride() + places.row_sums[n]);
#pragma unroll
        for (uint32_t p = 0; p < P::STRIP; ++p) add_products<typename W::Number>(sums[p][n], panels[p], operand, pair);
      }
    }
  }
  // Where an output of a row lies in a unit's shares: pairs of rows are shifted against each other, so that the lanes of a warp write to different banks.
  static __device__ __forceinline__ uint32_t share_index(uint32_t row, uint32_t output) { return row * P::STRIP_OUTPUTS + (output ^ row / 2 % 4 * 8); }

  __device__ __forceinline__ void write_shares(const Sums &sums, float *to, const float *scales) const {
#pragma unroll
    for (uint32_t n = 0; n < COLUMNS; ++n) {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const uint32_t row = n * 8 + lane() % 4 * 2 + i % 2;
        if (row >= call.rows) continue;
#pragma unroll
        for (uint32_t p = 0; p < P::STRIP; ++p) to[share_index(row, p * PANEL + lane() / 4 + i / 2 * 8)] = section_share(sums[p][n][i], scales[row]);
      }
    }
  }

  // Adds up a group's outputs. The cluster's warps take turns, two rows of a strip each, so that the others go on.
  __device__ __forceinline__ void add_up(uint32_t group, uint32_t begin, uint32_t end) const {
    static_assert(P::STRIP_OUTPUTS == 32, "a lane has an output of the strip");
    const uint32_t pairs = div_up(call.rows, 2), warps = plan.blocks * P::WARPS, own = warp() * plan.blocks + cluster.rank();
#pragma unroll 1
    for (uint32_t task = begin * pairs + (own - begin * pairs) % warps; task < end * pairs; task += warps) {
      const uint32_t strip = task / pairs, panel_index = strip * P::STRIP + lane() / PANEL;
      if (panel_index >= call.panels()) continue;
      const Panel panel = panel_of<W>(call, panel_index);
      float *first = shares(group, strip - begin);
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t row = task % pairs * 2 + i;
        float *share = first + share_index(row, lane());
        if (row < call.rows)
          panel.store(row, lane() % PANEL, plan.blocks == 1 ? sum_own(share, plan.sections, plan.unit_floats())
                                                            : cluster.sum_sections(share, plan.sections, plan.block_sections, static_cast<int>(plan.unit_floats())));
      }
    }
  }
  // The sum of sections' shares that are all this block's, in order.
  static __device__ __forceinline__ float sum_own(const float *share, uint32_t count, uint32_t stride) {
    float total = 0;
#pragma unroll
    for (uint32_t s = 0; s < MAX_SECTIONS; ++s)
      if (s < count) total = __fadd_rn(total, share[s * stride]);
    return total;
  }
};

template <class W, uint32_t COLUMNS>
__global__ void __launch_bounds__(StreamPolicy::THREADS, 1)
    multiply_streaming(const __grid_constant__ Call call, const float *x, const __grid_constant__ StreamPlan plan) {
  extern __shared__ __align__(128) uint8_t shared[];
  const StreamKernel<W, COLUMNS> kernel(call, plan, shared);
  const uint32_t first_stage = kernel.warp() * plan.stages;
  WeightRing<W> ring{call, kernel.part, plan, shared + first_stage * plan.stage_bytes(), kernel.template at<Barrier>(plan.barriers_at()) + first_stage,
                     kernel.lane(), StreamUnit(kernel.part, kernel.warp())};
  ring.start();  // the weights are on their way before the activations are there
  let_next_begin();
  kernel.split(x);
  kernel.multiply(ring);
}

// Cycles that a block takes: its share of the weights comes at its share of the memory's speed; then what splitting a slice of a row takes a warp, and
// what a meeting takes; a fifth more where there are few stages or small groups. (Measured on an H200; they decide which way is taken, never a result.)
struct StreamCosts {
  static constexpr uint32_t BYTES_A_CYCLE = 19, SPLIT = 800, MEETING = 3000, TIGHT = 5;
};

// The size of a cluster that takes the least time.
template <class W, uint32_t COLUMNS>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  using P = StreamPolicy;
  auto kernel = multiply_streaming<W, COLUMNS>;
  if (cudaError_t status = allow_shared_bytes(kernel, device)) return status;
  const uint32_t sections = sections_of(call.inputs).count, strips = div_up(call.panels(), P::STRIP), shared_bytes = static_cast<uint32_t>(device.shared_bytes);
  uint32_t best_blocks = 0, best_clusters = 0;
  uint64_t best_cycles = ~0ull;
  for (uint32_t blocks = 1; blocks < 2 * sections && blocks <= MAX_SECTIONS; blocks *= 2) {
    const StreamPlan plan = StreamPlan::make<W>(call.rows, call.inputs, blocks, shared_bytes);
    if (!plan.stages) continue;
    Launch launch(dim3(blocks), P::THREADS, blocks, stream);
    launch.shared_bytes(plan.bytes());
    uint32_t clusters = 0;
    if (cudaError_t status = cluster_count(kernel, launch, device, blocks, clusters)) return status;
    const uint64_t bytes = uint64_t{div_up(strips, clusters)} * plan.block_sections * plan.section_steps / W::STEPS * P::STRIP * W::CHUNK_BYTES;
    const uint32_t slices = call.rows * plan.block_sections * plan.section_steps * STEP / SLICE;
    uint64_t cycles = bytes / StreamCosts::BYTES_A_CYCLE + div_up(slices, P::WARPS) * StreamCosts::SPLIT + (blocks > 1 ? StreamCosts::MEETING : 0);
    if (plan.stages < P::GOOD_STAGES || plan.group_strips * plan.block_sections < 2 * P::WARPS) cycles += cycles / StreamCosts::TIGHT;
    if (cycles < best_cycles) best_blocks = blocks, best_clusters = clusters, best_cycles = cycles;
  }
  const StreamPlan plan = StreamPlan::make<W>(call.rows, call.inputs, best_blocks, shared_bytes);
  Launch launch(dim3(best_blocks * (best_clusters < strips ? best_clusters : strips)), P::THREADS, best_blocks, stream);
  launch.shared_bytes(plan.bytes());
  return launch(kernel, call, x, plan);
}

// Whether a block of the largest cluster has room for the rows' activations.
template <class W>
bool can_stream(uint32_t rows, uint32_t inputs, const Device &device) {
  if (rows > StreamPolicy::MAX_ROWS) return false;
  const uint32_t bytes = static_cast<uint32_t>(device.shared_bytes);
  uint32_t blocks = 1;
  while (blocks < sections_of(inputs).count) blocks *= 2;
  return StreamPlan::make<W>(rows, inputs, blocks, bytes).stages;
}

template <class W>
cudaError_t launch_streaming(const Call &call, const float *x, const Device &device, cudaStream_t stream) {
  return call.rows <= 8 ? launch_streaming<W, 1>(call, x, device, stream) : launch_streaming<W, 2>(call, x, device, stream);
}

}  // namespace nucleus::linear
