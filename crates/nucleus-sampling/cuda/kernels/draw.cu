// The launch for batches of which every row draws from the whole of its row.
#include <cuda_runtime.h>

#include "draw_again.cuh"
#include "draw_ahead.cuh"
#include "draw_cut.cuh"
#include "launch.cuh"

namespace nucleus::draw {

// Once the barriers of all blocks are prepared, and the launch before is done.
__device__ __forceinline__ void begin() {
  publish_barriers();
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  wait_for_launch_before();
  let_next_launch_begin();
}

template <u32 DTYPE, Form FORM>
__global__ void __launch_bounds__(threads_of(FORM), 1) draw_rows(const __grid_constant__ PartOfBatch batch, const __grid_constant__ DrawShape shape, const __grid_constant__ Whole whole, bool pending) {
  using D = Drawer<DTYPE, takes_masks(FORM) && !looks_ahead(FORM), looks_ahead(FORM) || FORM == Form::AGAIN ? Form::PLAIN : FORM>;
  u32 block;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  const u32 cluster = blockIdx.x / shape.blocks, clusters = gridDim.x / shape.blocks;
  const Turns turns{batch, cluster, clusters, (batch.rows - cluster + clusters - 1) / clusters};
  DrawState *const state = draw_state();
  const u32 warp = threadIdx.x / 32;
  const u32 slice = block * shape.room < batch.row_len ? block * shape.room : batch.row_len, end = slice + shape.room < batch.row_len ? slice + shape.room : batch.row_len;
  typename D::Word *const rings = reinterpret_cast<typename D::Word *>(shared_memory + shape.rings_at());
  if constexpr (looks_ahead(FORM)) {
    if (warp < LOOKERS) {
      Looker<DTYPE, takes_masks(FORM)> looker{batch, shape, turns, state, block, warp, slice, end, rings, Meeting(state, shape, 0, LOOKERS, warp == 0, block * LOOKERS + warp),
                                              kept(shape.slots), kept(shape.stages), kept(shape.last * WARPS / LOOKERS)};
      if (warp == 0) looker.prepare();
      begin();
      looker.take_turns();
      return;
    }
  }
  constexpr u32 BRING_FROM = bring_from(FORM), BEHIND = behind_bringers(FORM);
  if (threadIdx.x >= BRING_FROM && threadIdx.x < BEHIND) {
    const Bringer<DTYPE, FORM> bringer{batch, shape, turns, state, block, warp - BRING_FROM / 32};
    if (bringer.team < shape.teams) bringer.prepare();
    begin();
    if (bringer.team < shape.teams && threadIdx.x % 32 == 0) bringer.take_turns();
    return;
  }
  if (warp >= WARPS && threadIdx.x < BRING_FROM) {
    const auto finisher = [&] {
      const Finisher<DTYPE, FORM> usual{batch, shape, turns, state, block};
      if constexpr (!lists_tokens(FORM) && !weighs_plainly(FORM)) return SumsFinisher<DTYPE, FORM>{usual, row_sums_of(shape)};
      else if constexpr (cuts_by_weight(FORM)) return CutFinisher<DTYPE, FORM>{ListFinisher<DTYPE, FORM>{usual, whole, lists_of(shape)}, row_sums_of(shape)};
      else if constexpr (lists_tokens(FORM)) return ListFinisher<DTYPE, FORM>{usual, whole, lists_of(shape)};
      else return usual;
    }();
    finisher.prepare();
    begin();
    finisher.plan(pending);
    finisher.leave_others();
    finisher.take_turns();
    return;
  }
  if constexpr (lists_tokens(FORM)) {
    if (threadIdx.x >= BEHIND) {
      const u32 number = warp - BEHIND / 32, team = number & (shape.teams - 1);
      const Lister<DTYPE, FORM> lister{batch, shape, turns, state, lists_of(shape), block, number, team, rings + team * shape.ring};
      lister.prepare();
      begin();
      lister.take_turns();
      return;
    }
  }
  const u32 weigher = warp < WARPS ? warp : warp - BEHIND / 32, team = weigher / shape.members, member = weigher % shape.members;
  const u32 groups = lists_tokens(FORM) ? shape.groups : 1;
  D drawer{batch, shape, turns, state, block, team, member, slice, end, rings + team * shape.ring, Meeting(state, shape, team, shape.members, !looks_ahead(FORM) && member == 0, block * shape.members + member, groups),
           kept(shape.slots), kept(shape.stage), kept(shape.stages), kept(shape.last)};
  if (drawer.meeting.first_warp) drawer.meeting.prepare();
  begin();
  if constexpr (FORM == Form::AGAIN) AgainDrawer<DTYPE>{drawer, kept(shape.again)}.take_turns();
  else if constexpr (looks_ahead(FORM)) AheadDrawer<DTYPE>{drawer}.take_turns();
  else if constexpr (!weighs_plainly(FORM) && lists_tokens(FORM)) SumsDrawer<DTYPE, FORM>{{drawer, lists_of(shape)}, row_sums_of(shape)}.take_turns();
  else if constexpr (!weighs_plainly(FORM)) SumsDrawer<DTYPE, FORM>{drawer, row_sums_of(shape)}.take_turns();
  else if constexpr (lists_tokens(FORM)) ListedDrawer<DTYPE, FORM>{drawer, lists_of(shape)}.take_turns();
  else drawer.take_turns();
}

constexpr size_t BYTES_MAX = 232448;  // of shared memory that a block may have
static_assert(BYTES_MAX / sizeof(float) <= 1u << 16, "places in a slice whose tokens are edited are of 16 bits");
constexpr u32 LEAST_BLOCKS = 2;       // what is sent within a cluster needs one

// How rows may be shared out: by clusters of so many blocks and teams. AGAIN: stages come again, of which a ring holds `slots` at most; AHEAD: some warps look ahead.
struct Way {
  enum Kind { HELD, AGAIN, AHEAD };  // of batches that top_p may cut rows of, HELD alone
  u32 blocks, teams;
  Kind kind = HELD;
  u32 slots = SLOTS_MOST;
};

static bool may_cut(const SamplingBatch &batch) { return !(batch.flags & NUCLEUS_BATCH_ALL_DRAWN); }
// Of a batch that may be cut.
static Form form_of(const SamplingBatch &batch) {
  const bool masks = has_masks(batch);
  if (edits_drawn(batch)) return batch.dtype == NUCLEUS_F32 ? Form::TOP_P_EDITED : Form::TOP_P_WIDENED;
  switch (batch.flags & (NUCLEUS_BATCH_CUT_BY_WEIGHT | NUCLEUS_BATCH_CUT_BY_SURPRISE | NUCLEUS_BATCH_WARMED | NUCLEUS_BATCH_SMOOTHED)) {
    case 0: return masks ? Form::TOP_P_MASKED : Form::TOP_P;
    case NUCLEUS_BATCH_CUT_BY_WEIGHT: return masks ? Form::CUT_MASKED : Form::CUT;
    case NUCLEUS_BATCH_CUT_BY_SURPRISE:
    case NUCLEUS_BATCH_CUT_BY_SURPRISE | NUCLEUS_BATCH_CUT_BY_WEIGHT: return masks ? Form::ANY : Form::SURPRISE;
    case NUCLEUS_BATCH_WARMED: return masks ? Form::ANY : Form::WARMED;
    case NUCLEUS_BATCH_SMOOTHED: return masks ? Form::ANY : Form::SMOOTHED;
    default: return Form::ANY;
  }
}

// False: rows are too long, or nothing need come again. `follow`: rows follow one another in a team.
static bool share(const SamplingBatch &batch, Way way, bool follow, DrawShape &shape, size_t &bytes) {
  const auto [blocks, teams, kind, slots] = way;
  const bool again = kind == Way::AGAIN;
  const Form form = may_cut(batch) ? form_of(batch) : Form::MASKED;
  const u32 size = bytes_in_ring(batch.dtype, form), step = 32 * 16 / size;
  shape.blocks = blocks;
  shape.teams = teams;
  shape.room = slice_of(batch.row_len, blocks);
  const u32 warps = shape.members = WARPS / teams;
  shape.stage = CHUNK * warps;
  shape.stages = (shape.room + shape.stage - 1) / shape.stage;
  for (shape.sums = 1; shape.sums < shape.stages;) shape.sums *= 2;
  const u32 rest = shape.room - (shape.stages - 1) * shape.stage;
  shape.last = ((rest + warps - 1) / warps + step - 1) / step * step;
  const u32 least = (shape.stages - 1) * shape.stage + shape.last * warps;
  // For all ids of the stages: a warp looks, too, where the last one has none for it.
  shape.mask_bytes = has_masks(batch) && !again ? (least / 8 + 127) / 128 * 128 : 0;
  // 16 bytes at a time, of which the last may lie behind a mask's words.
  shape.copied = (reinterpret_cast<uintptr_t>(batch.masks) | batch.mask_stride * 4) % 16 == 0;
  const bool lists = lists_tokens(form);
  if (lists) {
    shape.groups = 2 * shape.warps() <= ROW_WARPS ? 2 : 1;
    shape.listers = LISTERS / teams;
    shape.places = SENT_MOST / shape.senders();
  }
  shape.masks_at = static_cast<u32>(sizeof(DrawState) + shape.message_bytes() + (lists ? sizeof(Lists) : 0) + (weighs_plainly(form) ? 0 : sizeof(RowSums)) + (edits_tokens(form) ? sizeof(DrawEdits) : 0));
  const size_t space = (BYTES_MAX - shape.masks_at) / teams;
  auto ring_of = [&](u32 count) { return count == shape.stages ? least : count * shape.stage; };
  auto masks_of = [&](u32 count) {
    u32 masks = 1;
    while (2 * masks * shape.stages <= count) masks *= 2;
    return masks;
  };
  shape.bits_bytes = shape.mask_bytes && kind == Way::HELD && keeps_bits(batch.dtype, form) ? shape.stages * shape.stage / 8 : 0;
  auto fits = [&](u32 count) { return static_cast<size_t>(ring_of(count)) * size + masks_of(count) * shape.mask_bytes + shape.bits_bytes <= space; };
  shape.slots = again ? 0 : shape.stages;
  while ((again || follow) && shape.slots < slots && fits(shape.slots + 1)) shape.slots += 1;
  shape.masks = masks_of(shape.slots);
  // A mask's place is free when a stage is asked for that takes the place of one of the row that the last mask there was for.
  if ((shape.mask_bytes || form == Form::ANY) && shape.slots >= (shape.masks + 1) * shape.stages) shape.slots = (shape.masks + 1) * shape.stages - 1;
  shape.again = again && shape.slots < shape.stages ? shape.stages - shape.slots : 0;
  shape.ring = ring_of(shape.slots);
  const size_t held = (static_cast<size_t>(shape.ring) * size + shape.masks * shape.mask_bytes + shape.bits_bytes) * teams;
  bytes = shape.masks_at + held;
  constexpr u32 BYTES_AHEAD = 32768, BYTES_FEW = 98304;
  const u32 ahead = BYTES_AHEAD / (shape.stage * size * teams);
  shape.ahead = held <= BYTES_FEW || ahead > shape.stages ? shape.stages : ahead ? ahead : 1;
  return shape.stages <= STAGES_MOST && shape.warps() * shape.sums <= RUNS && (again ? shape.slots && shape.again : fits(shape.stages));
}

// The first that lets every row be resident is the fastest then.
constexpr Way WAYS[] = {{8, 1}, {6, 1}, {5, 1}, {4, 1}, {6, 2}, {3, 1}, {2, 1}, {3, 2}};

using Kernel = void (*)(PartOfBatch, DrawShape, Whole, bool);
struct Kernels {
  Kernel of[3];  // by the kind of way
  u32 threads[3];
};

struct Chosen {
  Way way{};
  DrawShape shape{};
  Shape grid;  // no blocks: rows are too long for every way

  // Rows of a team, one after another.
  u32 rounds(u32 rows) const { return ((rows + grid.clusters - 1) / grid.clusters + shape.teams - 1) / shape.teams; }
};

// False, and nothing is chosen: a block does not hold its slice of a row.
static bool choose_way(const SamplingBatch &batch, const Kernels &kernels, Way way, Chosen &chosen, cudaError_t &error) {
  Chosen other;
  if (error != cudaSuccess || !kernels.of[way.kind] || !share(batch, way, true, other.shape, other.grid.bytes)) return false;
  other.way = way;
  other.grid.threads = kernels.threads[way.kind];
  other.grid.blocks = way.blocks;
  error = other.grid.fill(batch.rows, reinterpret_cast<const void *>(kernels.of[way.kind]));
  chosen = other;
  return error == cudaSuccess;
}

// Where not all rows can be resident: two blocks, some of whose warps look ahead, if those hold a row and some of the next one; the fewest blocks that hold a row, in
// two teams if those are more than two; two blocks for each row, whose stages come again, where these would take three rounds; a half more or less of them in two
// teams if these take three quarters of the rounds, of which each takes up to a quarter longer.
static cudaError_t choose(const SamplingBatch &batch, const Kernels &kernel, Chosen &chosen) {
  const bool many = batch.flags & NUCLEUS_BATCH_MANY_ROWS;
  cudaError_t error = cudaSuccess;
  if (batch.cluster) {
    const Way way{batch.cluster > LEAST_BLOCKS ? batch.cluster : LEAST_BLOCKS, many ? TEAMS_MOST : 1};
    // For tests rings of one slot.
    if (batch.cluster < LEAST_BLOCKS && choose_way(batch, kernel, Way{way.blocks, 1, Way::AGAIN, 1}, chosen, error)) return error;
    if (!choose_way(batch, kernel, way, chosen, error)) choose_way(batch, kernel, Way{way.blocks, 1, Way::AGAIN}, chosen, error);
    return error;
  }
  for (Way way : WAYS)
    if (!many && choose_way(batch, kernel, way, chosen, error) && chosen.rounds(batch.rows) == 1) return error;
  // What is looked at ahead is a sixth of a row at least; without masks it pays from three rounds on.
  const u32 rounds_ahead = many ? 1 : has_masks(batch) ? 2 : 3;
  bool holds = choose_way(batch, kernel, Way{LEAST_BLOCKS, 1, Way::AHEAD}, chosen, error) && 6 * chosen.shape.slots >= 7 * chosen.shape.stages && chosen.rounds(batch.rows) >= rounds_ahead;
  if (!holds) holds = !many && choose_way(batch, kernel, Way{LEAST_BLOCKS, 1}, chosen, error);
  for (u32 blocks = LEAST_BLOCKS; !holds && blocks <= MAX_BLOCKS; blocks *= 2) holds = choose_way(batch, kernel, Way{blocks, TEAMS_MOST}, chosen, error);
  Chosen other;
  // Masks are put on stages again, each time that they come.
  constexpr u32 ROUNDS_OF_AGAIN = 3;
  if (holds && !many && !has_masks(batch) && chosen.rounds(batch.rows) >= ROUNDS_OF_AGAIN && choose_way(batch, kernel, Way{LEAST_BLOCKS, 1, Way::AGAIN}, other, error) && other.rounds(batch.rows) == 1) {
    chosen = other;
    return error;
  }
  const Way way{chosen.shape.blocks == LEAST_BLOCKS ? 3u : 6u, TEAMS_MOST};
  if (holds && !many && choose_way(batch, kernel, way, other, error) && 4 * other.rounds(batch.rows) <= 3 * chosen.rounds(batch.rows)) chosen = other;
  return error;
}

template <u32 DTYPE>
static Kernel cutting_kernel(Form form) {
  switch (form) {
    case Form::TOP_P_EDITED: return draw_rows<NUCLEUS_F32, Form::TOP_P_EDITED>;
    case Form::TOP_P_WIDENED: return draw_rows<NUCLEUS_F32, Form::TOP_P_WIDENED>;
    case Form::TOP_P_MASKED: return draw_rows<DTYPE, Form::TOP_P_MASKED>;
    case Form::CUT: return draw_rows<DTYPE, Form::CUT>;
    case Form::CUT_MASKED: return draw_rows<DTYPE, Form::CUT_MASKED>;
    case Form::SURPRISE: return draw_rows<DTYPE, Form::SURPRISE>;
    case Form::WARMED: return draw_rows<DTYPE, Form::WARMED>;
    case Form::SMOOTHED: return draw_rows<DTYPE, Form::SMOOTHED>;
    case Form::ANY: return draw_rows<DTYPE, Form::ANY>;
    default: return draw_rows<DTYPE, Form::TOP_P>;
  }
}

template <u32 DTYPE>
static cudaError_t launch(const PartOfBatch &batch, const Whole &whole, bool pending, LeftRange left, cudaStream_t stream, Division &division) {
  const Kernels kernels = may_cut(batch)     ? Kernels{{cutting_kernel<DTYPE>(form_of(batch))}, {threads_of(form_of(batch))}}
                          : has_masks(batch) ? Kernels{{draw_rows<DTYPE, Form::MASKED>, draw_rows<DTYPE, Form::AGAIN>, draw_rows<DTYPE, Form::AHEAD_MASKED>}, {DRAW_THREADS, DRAW_THREADS, AHEAD_THREADS}}
                                             : Kernels{{draw_rows<DTYPE, Form::PLAIN>, draw_rows<DTYPE, Form::AGAIN>, draw_rows<DTYPE, Form::AHEAD>}, {DRAW_THREADS, DRAW_THREADS, AHEAD_THREADS}};
  cudaError_t error = cudaSuccess;
  for (Kernel kernel : kernels.of) {
    if (!kernel) continue;
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES_MAX);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  Chosen chosen;
  if (error == cudaSuccess) error = choose(batch, kernels, chosen);
  DrawShape &shape = chosen.shape;
  Shape &grid = chosen.grid;
  if (error != cudaSuccess || !grid.blocks) return error;
  // Few clusters where the ways of many rows are tested.
  if (batch.flags & NUCLEUS_BATCH_MANY_ROWS) grid.clusters = (batch.rows + 3) / 4;
  const u32 turns = (batch.rows + grid.clusters - 1) / grid.clusters;
  if (turns > TURNS_MOST) return cudaSuccess;
  if (turns <= shape.teams && chosen.way.kind != Way::AGAIN) share(batch, chosen.way, false, shape, grid.bytes);
  shape.left_at = left.first;
  shape.left = left.count;
  division = Division{shape.blocks, shape.room, 1};
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = grid.config(attributes, stream, true);
  return cudaLaunchKernelEx(&config, kernels.of[chosen.way.kind], batch, shape, whole, pending);
}

}  // namespace nucleus::draw

namespace nucleus {

cudaError_t launch_draw(const PartOfBatch &batch, const Whole &whole, bool pending, LeftRange left, cudaStream_t stream, Division &division) {
  return batch.dtype == NUCLEUS_F32   ? draw::launch<NUCLEUS_F32>(batch, whole, pending, left, stream, division)
         : batch.dtype == NUCLEUS_F16 ? draw::launch<NUCLEUS_F16>(batch, whole, pending, left, stream, division)
                                      : draw::launch<NUCLEUS_BF16>(batch, whole, pending, left, stream, division);
}

}  // namespace nucleus
