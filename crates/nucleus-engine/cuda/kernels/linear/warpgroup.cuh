// Products of many rows on Hopper: groups of four warps multiply in the background while they unpack the next weights and add what is done.
//
// A block has two or four groups, which take turns at the tensor cores, with 64 outputs each, and 16 to 64 rows. Two warps of a last group, which leaves
// its registers to the others, have the copy engine fill two rings: chunks of the weights, which warps unpack into registers, and split activations, which
// the tensor cores read where they lie.
#pragma once

#include "tile_outputs.cuh"
#include "wgmma.cuh"

namespace nucleus::linear {

template <uint32_t GROUPS>
struct GroupPolicy {
  static constexpr uint32_t GROUP_WARPS = 4, WARPS = GROUPS * GROUP_WARPS, MULTIPLYING = WARPS * 32, THREADS = MULTIPLYING + GROUP_WARPS * 32;
  // Of a thread: at the beginning, as many as a multiprocessor has for all; then, of the same, for those that multiply and those that fill.
  static constexpr uint32_t FIRST_REGISTERS = 65536 / THREADS / 8 * 8, FILLING_REGISTERS = 24;
  static constexpr uint32_t REGISTERS = (FIRST_REGISTERS * THREADS - FILLING_REGISTERS * GROUP_WARPS * 32) / MULTIPLYING / 8 * 8;
  static constexpr uint32_t X_STEPS = 2;  // of a stage of activations, which is a turn of the loop
  static constexpr uint32_t MAX_X_STAGES = 8, MAX_WEIGHT_STAGES = 6;
  static constexpr uint32_t RINGS_READ = 15;  // the block's barrier of that name
};

// A block's shared memory: rings of weights (a stage is a chunk of each panel) and of activations, the outputs' totals, barriers. A warp has a panel.
template <class W, uint32_t GROUPS, uint32_t ROWS>
struct GroupLayout {
  using P = GroupPolicy<GROUPS>;
  static constexpr uint32_t PANELS = P::WARPS, OUTPUTS = PANELS * PANEL;
  static constexpr uint32_t STEP_BYTES = ROWS * SplitRows::STEP_ROW_BYTES, WEIGHT_BYTES = PANELS * W::CHUNK_BYTES, X_STAGE_BYTES = P::X_STEPS * STEP_BYTES;
  using Totals = TileTotals<OUTPUTS, ROWS, P::MULTIPLYING>;
  static constexpr uint32_t ROOM = TILE_SHARED_BYTES - 256 - Totals::BYTES;
  static constexpr uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }
  // Half of the room at most, unless the weights leave more.
  static constexpr uint32_t X_STAGES = least(least((ROOM - 2 * WEIGHT_BYTES) / X_STAGE_BYTES, ROOM / 2 / X_STAGE_BYTES), P::MAX_X_STAGES);
  static constexpr uint32_t WEIGHT_STAGES = least((ROOM - X_STAGES * X_STAGE_BYTES) / WEIGHT_BYTES, P::MAX_WEIGHT_STAGES);
  static constexpr uint32_t X_AT = WEIGHT_STAGES * WEIGHT_BYTES, TOTALS_AT = X_AT + X_STAGES * X_STAGE_BYTES, BARRIERS_AT = TOTALS_AT + Totals::BYTES;

  using Barriers = TileBarriers<WEIGHT_STAGES, X_STAGES>;
  static constexpr uint32_t BYTES = BARRIERS_AT + sizeof(Barriers);
  static_assert(X_STAGES >= 2 && WEIGHT_STAGES >= 2 && BYTES <= TILE_SHARED_BYTES && Totals::BYTES <= TOTALS_AT);
  static_assert(2 * BYTES > TILE_SHARED_BYTES, "a block fills a multiprocessor");
};

template <class W, uint32_t GROUPS, uint32_t ROWS>
struct GroupKernel {
  using P = GroupPolicy<GROUPS>;
  using L = GroupLayout<W, GROUPS, ROWS>;
  using Number = typename W::Number;
  using Fragment = typename W::Fragment;
  // A lane's sums of a panel, those of eight rows after the other.
  static constexpr uint32_t SUMS = ROWS / 2, CHUNK_TURNS = W::STEPS / P::X_STEPS;
  // Products of a step that have a scale of their own.
  static constexpr uint32_t ROUNDS = Fragment::SCALES == 2 ? 2 : 1;

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

  // ---- the warps that fill the rings ----

  // The lanes fetch chunks of a panel each.
  __device__ __forceinline__ void fill_weights() const {
    const uint32_t chunks = turns() / CHUNK_TURNS;
    const uint8_t *next = panel_of<W>(call, min(tile.first_panel + lane() % L::PANELS, call.panels() - 1)).weights + size_t{tile.first_step / W::STEPS} * W::CHUNK_BYTES;
    RingPlace place;
    for (uint32_t chunk = 0; chunk < chunks; ++chunk, place.advance(L::WEIGHT_STAGES), next += W::CHUNK_BYTES) {
      Barrier &full = barriers.weights_full[place.stage];
      if (chunk >= L::WEIGHT_STAGES) barriers.weights_empty[place.stage].wait(place.parity ^ 1);
      if (lane() == 0) full.expect(L::WEIGHT_BYTES);
      __syncwarp();
      if (lane() < L::PANELS) full.copy(weights_at(place.stage) + lane() * W::CHUNK_BYTES, next, W::CHUNK_BYTES);
    }
  }
  __device__ __forceinline__ void fill_x() const {
    if (lane() != 0) return;
    wait_for_inputs();
    RingPlace place;
    for (uint32_t turn = 0; turn < turns(); ++turn, place.advance(L::X_STAGES)) {
      Barrier &full = barriers.x_full[place.stage];
      if (turn >= L::X_STAGES) barriers.x_empty[place.stage].wait(place.parity ^ 1);
      full.expect(L::X_STAGE_BYTES);
      full.copy(x_at(place.stage), split.step(tile.row_tile, tile.first_step + turn * P::X_STEPS), L::X_STAGE_BYTES);
    }
  }

  // ---- the warps that multiply ----

  static constexpr uint32_t UNIT_BYTES = ROWS * Units::BYTES;

  // Begins product m of a step, or adds it to the sums: in the order of Operand::add.
  template <bool ADDS>
  __device__ __forceinline__ static void begin_product(float (&c)[SUMS], const Fragment &fragment, uint32_t m, RowsDescriptor x) {
    const uint64_t high = x.after(m * 2 * UNIT_BYTES), low = x.after(m * 2 * UNIT_BYTES + ROWS * Units::PART_BYTES);
    if constexpr (Fragment::PARTS == 2) {
      multiply_rows<Number, ADDS>(c, fragment.a[m][1], low);
      multiply_rows<Number, true>(c, fragment.a[m][1], high);
    }
    multiply_rows<Number, ADDS || Fragment::PARTS == 2>(c, fragment.a[m][0], low);
    multiply_rows<Number, true>(c, fragment.a[m][0], high);
  }
  // Scales and adds the products of a round, as `add_products` does.
  __device__ __forceinline__ static void add_round(float (&sums)[SUMS], float (&c)[SUMS], const Fragment &fragment, uint32_t round, const uint8_t *x) {
    settle(c);
#pragma unroll
    for (uint32_t j = 0; j < SUMS; ++j) {
      if constexpr (Fragment::SCALES > 0) sums[j] = __fmaf_rn(fragment.scale[round][j / 2 % 2], c[j], sums[j]);
      else sums[j] = __fadd_rn(c[j], sums[j]);
    }
    if constexpr (Fragment::MINIMUM) {
#pragma unroll
      for (uint32_t n = 0; n < ROWS / 8; ++n) {
        const float2 row_sums = reinterpret_cast<const float2 *>(x + ROWS * Units::ROW_BYTES)[n * 4 + lane() % 4];
#pragma unroll
        for (uint32_t j = 0; j < 4; ++j) sums[n * 4 + j] = __fmaf_rn(-fragment.minimum[j / 2], j % 2 ? row_sums.y : row_sums.x, sums[n * 4 + j]);
      }
    }
  }

  // The warp has read a stage.
  __device__ __forceinline__ static void leave(Barrier &empty) {
    __syncwarp();
    if (lane() < LEAVING_LANES) empty.arrive();
  }

  // Where a warp is in the rings.
  struct Reader {
    const GroupKernel &kernel;
    const RowsDescriptor first_x{shared_address(kernel.x_at(0)), UNIT_BYTES};
    RingPlace weights{}, x{};
    uint32_t chunk_step = 0;  // of the next weights

    // Loads the next step's weights.
    __device__ __forceinline__ void load(Fragment &fragment) {
      if (chunk_step == 0) kernel.barriers.weights_full[weights.stage].wait(weights.parity);
      fragment = W::load(kernel.weights_at(weights.stage) + warp() * W::CHUNK_BYTES, chunk_step, lane());
      if (++chunk_step == W::STEPS) {
        leave(kernel.barriers.weights_empty[weights.stage]);
        weights.advance(L::WEIGHT_STAGES);
        chunk_step = 0;
      }
    }
    __device__ __forceinline__ void wait_for_x() const { kernel.barriers.x_full[x.stage].wait(x.parity); }
    __device__ __forceinline__ RowsDescriptor x_rows() const { return first_x.moved(x.stage * L::X_STAGE_BYTES); }
    __device__ __forceinline__ const uint8_t *x_bytes() const { return kernel.x_at(x.stage); }
    __device__ __forceinline__ void leave_x() {
      leave(kernel.barriers.x_empty[x.stage]);
      x.advance(L::X_STAGES);
    }
  };

  // What a warp has in registers.
  struct State {
    Reader reader;
    Fragment fragments[P::X_STEPS];  // of the steps of a turn; while one is multiplied, the next is loaded
    float c[SUMS], sums[SUMS];

    __device__ __forceinline__ void begin(uint32_t step, uint32_t round) {
      const RowsDescriptor x = reader.x_rows().moved(step * L::STEP_BYTES);
      begin_products();
      begin_product<false>(c, fragments[step], round, x);
      if constexpr (ROUNDS == 1) begin_product<true>(c, fragments[step], 1, x);
      commit_products();
    }
    __device__ __forceinline__ void end(uint32_t step, uint32_t round) {
      wait_for_products();
      add_round(sums, c, fragments[step], round, reader.x_bytes() + step * L::STEP_BYTES);
    }
    // Multiplies the steps of a stage of activations; their first weights are there, and those of the next turn are loaded unless it is the last.
    __device__ __forceinline__ void turn(bool is_last) {
      reader.wait_for_x();
#pragma unroll
      for (uint32_t step = 0; step < P::X_STEPS; ++step) {
        begin(step, 0);
        if constexpr (ROUNDS == 2) end(step, 0), begin(step, 1);
        if (step + 1 < P::X_STEPS || !is_last) reader.load(fragments[(step + 1) % P::X_STEPS]);
        end(step, ROUNDS - 1);
      }
      reader.leave_x();
    }
  };

  __device__ __forceinline__ void multiply() const {
    static_assert(P::X_STEPS == 2 && !(ROUNDS > 1 && Fragment::MINIMUM));
    const uint32_t section_turns = sections_of(call.inputs).inputs / STEP / P::X_STEPS;
    uint32_t left = turns();
    State state{{*this}};
    if (left) state.reader.load(state.fragments[0]);
    for (uint32_t section = tile.first_section; section < tile.end_section; ++section) {
#pragma unroll
      for (float &sum : state.sums) sum = 0;
#pragma unroll 1
      for (const uint32_t end = left - min(section_turns, left); left > end; --left) state.turn(left == 1);
      add_section(state.sums, section);
    }
  }
  __device__ __forceinline__ void add_section(const float (&sums)[SUMS], uint32_t section) const {
    const bool is_first = section == tile.first_section, is_second = tile.in_cluster && !is_first;
    if (is_second) asm volatile("barrier.sync %0, %1;" ::"n"(P::RINGS_READ), "n"(P::MULTIPLYING) : "memory");
    totals().template add<1, ROWS / 8>(is_second, is_first || is_second, warp(), 0, split.scales(tile.row_tile, section),
                                                           [&](uint32_t, uint32_t n, uint32_t i) { return sums[n * 4 + i]; });
  }
};

template <class W, uint32_t GROUPS, uint32_t ROWS>
__global__ void __launch_bounds__(GroupPolicy<GROUPS>::THREADS, 1) multiply_in_groups(const __grid_constant__ Call call, const __grid_constant__ SplitRows split) {
  using P = GroupPolicy<GROUPS>;
  using L = GroupLayout<W, GROUPS, ROWS>;
  if constexpr (!HAS_WGMMA) {
    __trap();  // such a device takes tiles
  } else {
    extern __shared__ __align__(128) uint8_t shared[];
    const Cluster cluster;
    const Tile tile = Tile::of_block<W>(call, cluster, L::PANELS, ROWS);
    const GroupKernel<W, GROUPS, ROWS> kernel{call, split, tile, shared, *reinterpret_cast<typename L::Barriers *>(shared + L::BARRIERS_AT)};
    kernel.barriers.init(P::WARPS);
    let_next_begin();
    if (kernel.warp() >= P::WARPS) {
      give_registers<P::FILLING_REGISTERS>();
      if (kernel.warp() == P::WARPS) kernel.fill_weights();
      if (kernel.warp() == P::WARPS + 1) kernel.fill_x();
    } else {
      take_registers<P::REGISTERS>();
      wait_for_inputs();
      kernel.multiply();
      kernel.totals().template store<W>(call, tile, cluster);
    }
  }
}

// What the choice between tiles needs to know.
template <class W, uint32_t GROUPS, uint32_t ROWS_>
struct GroupWay {
  using L = GroupLayout<W, GROUPS, ROWS_>;
  static constexpr uint32_t PANELS = L::PANELS, ROWS = ROWS_, THREADS = GroupPolicy<GROUPS>::THREADS, BYTES = L::BYTES;
  static auto function() { return multiply_in_groups<W, GROUPS, ROWS>; }
  // As the tensor cores take them, or as the weights come.
  static constexpr uint64_t step_cycles() {
    constexpr uint64_t PRODUCT = 5 * (ROWS < 32 ? 32 : ROWS), FROM_MEMORY = PANELS * W::CHUNK_BYTES / W::STEPS / 24;
    return PRODUCT > FROM_MEMORY ? PRODUCT : FROM_MEMORY;
  }
};

template <class W, uint32_t ROWS>
cudaError_t launch_groups(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  TileChoice choice;
  if (cudaError_t status = choice.consider<GroupWay<W, 2, ROWS>>(call, device)) return status;
  if constexpr (W::Fragment::PARTS == 1 || ROWS < LARGE_TILE)  // of weights of two parts there are too few registers
    if (cudaError_t status = choice.consider<GroupWay<W, 4, ROWS>>(call, device)) return status;
  const SplitRows split(call.inputs, ROWS, workspace);
  if (cudaError_t status = launch_split<typename W::Number>(x, call.rows, split, stream)) return status;
  return choice.launch(call, split, stream);
}

template <class W>
cudaError_t launch_groups(const Call &call, const float *x, void *workspace, const Device &device, cudaStream_t stream) {
  if (call.rows <= 16) return launch_groups<W, 16>(call, x, workspace, device, stream);
  if (call.rows <= SMALL_TILE) return launch_groups<W, SMALL_TILE>(call, x, workspace, device, stream);
  return launch_groups<W, LARGE_TILE>(call, x, workspace, device, stream);
}

}  // namespace nucleus::linear
