// The launches, one after another; clusters for the rows that are left.
#include <cuda_runtime.h>

#include <atomic>

#include "by_cluster.cuh"
#include "launch.cuh"

namespace nucleus {

// The rows of this block's cluster.
__device__ __forceinline__ Rows rows_of_cluster(u64 bits) {
  u32 block, grid, blocks;
  asm volatile("mov.u32 %0, %%ctaid.x;\nmov.u32 %1, %%nctaid.x;\nmov.u32 %2, %%cluster_nctaid.x;" : "=r"(block), "=r"(grid), "=r"(blocks));
  const u32 shift = __ffs(blocks) - 1;
  return Rows{block >> shift, grid >> shift, bits};
}

// `pending`: of the rows that an earlier launch left. `whole`, `division`: what was found of rows that keep many tokens.
__global__ void __launch_bounds__(THREADS, 2) sample_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace,
                                                          const __grid_constant__ Whole whole, const __grid_constant__ Division division, u32 slice_room, bool pending) {
  DeviceTeam team;
  Rows rows{team.share_of(blockIdx.x), team.share_of(gridDim.x), 0};
  if (pending) {
    let_next_launch_begin();
    // Where a cluster has one row, that is asked for before it is known whether it is left.
    const bool alone = rows.first + rows.step >= batch.rows;
    RowWords words;
    if (alone) words.read_description(batch, rows.first);
    wait_for_launch_before();
    const LeftRows left(batch, rows.first, rows.step);
    if (left.none()) return;  // most often, and at once: what has passed through the cache since the launch before has left no instructions there
    if (alone) words.read_told(whole, rows.first);
    share_batch(team.sh, batch);
    rows.bits = left.with(PENDING);
    const u64 above = left.with(MANY_ABOVE), many = left.with(MANY_KEPT) | above;
    if (many) {
      share_whole(whole, division);
      rows.bits = draw_by_cluster(Rows{rows.first, rows.step, many}, above, rows.bits, alone ? rows.first : NO_ROW, words);
      rows = rows_of_cluster(rows.bits);  // read anew, so that draws have the registers
    }
  } else {
    share_batch(team.sh, batch);
    rows = Rows::all(batch.rows, rows.first, rows.step);
  }
  if (rows.bits) sample_by_cluster(batch, workspace, rows, slice_room, batch.flags & NUCLEUS_BATCH_EXACT, batch.flags & NUCLEUS_BATCH_UNLISTED);
}

// The fewest clusters of which none takes more rows than with so many.
constexpr u32 share_evenly(u32 rows, u32 clusters) {
  const u32 turns = (rows + clusters - 1) / clusters;
  return (rows + turns - 1) / turns;
}
static_assert(share_evenly(32, 30) == 16 && share_evenly(8, 8) == 8 && share_evenly(64, 30) == 22);

// The workspace, one part after another.
struct Layout {
  size_t whole, bytes;
  u32 capacity;

  Layout(u32 rows, u32 max_edited) {
    capacity = table_capacity(max_edited);
    const size_t edits = capacity ? static_cast<size_t>(rows) * (capacity + 1) * sizeof(Edit) : 0;
    whole = (edits + alignof(RowPlan) - 1) / alignof(RowPlan) * alignof(RowPlan);
    bytes = whole + whole_bytes(rows);
  }
};

struct Launcher {
  const SamplingBatch &batch;
  const SamplingOrder order;
  const Layout layout;
  char *workspace;
  cudaStream_t stream;
  Division division{1, 0, 1};  // of whole rows; no room: they were not looked at

  // `follows`: it takes what the launch before left, and may begin while that ends.
  cudaError_t clusters(bool follows) const {
    Shape shape;
    cudaError_t error = shape.fit(batch, reinterpret_cast<const void *>(sample_rows));
    // These take places before those of a first cut have ended: two of their blocks would be on one multiprocessor.
    if (error == cudaSuccess && follows && division.room) error = shape.set_apart(batch.rows, reinterpret_cast<const void *>(sample_rows));
    if (error != cudaSuccess) return error;
    const u32 least = (batch.rows + CLUSTER_ROWS - 1) / CLUSTER_ROWS;
    // Few, too, where there should be nothing left to do.
    const bool few = batch.flags & NUCLEUS_BATCH_MANY_ROWS || (follows && (all_counted() || batch.flags & NUCLEUS_BATCH_ALL_FEW));
    if (few || shape.clusters < least) shape.clusters = least;
    // No more than share out the rows as evenly: they would share multiprocessors.
    if (follows) shape.clusters = share_evenly(batch.rows, shape.clusters);
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = shape.config(attributes, stream, follows || batch.rows <= FIRST_EARLY_MOST);
    return cudaLaunchKernelEx(&config, sample_rows, batch, edit_tables(), whole_rows(), division, shape.room, follows);
  }

  Whole whole_rows() const { return Whole(workspace + layout.whole, batch.rows); }
  PartOfBatch all_rows() const { return PartOfBatch{batch, nullptr, false}; }
  // So many rows of the order.
  PartOfBatch rows_from(u32 first, u32 count, bool beside) const {
    PartOfBatch part{batch, order.order + first, beside};
    part.rows = count;
    return part;
  }

  Workspace edit_tables() const { return Workspace{reinterpret_cast<Edit *>(workspace), layout.capacity, batch.max_edited}; }

  cudaError_t all() {
    bool without = false;
    cudaError_t error = without_clusters(batch, without);
    if (error != cudaSuccess) return error;
    return without ? launch_portable(batch, edit_tables(), stream) : by_clusters();
  }
  // Of a batch whose rows have an order the flag tells of those that are bounded alone.
  bool all_counted() const { return batch.flags & NUCLEUS_BATCH_ALL_COUNTED && !order.order; }
  // Whether rows of several kinds leave nothing to a last launch: those that a count bounds, if they are not short, and draws.
  bool kinds_leave_none() const { return batch.flags & NUCLEUS_BATCH_ALL_COUNTED && order.bounded + order.drawn == batch.rows && batch.row_len >= SPREAD_FROM_LEN; }
  // Clusters for few rows, if they are not short.
  static auto launch_for(const PartOfBatch &part) { return part.row_len >= SPREAD_FROM_LEN && part.rows <= SPREAD_TO ? launch_spread : launch_relay; }

  // Whether launches for each kind pay: not where none is bounded, and one launch for first cuts has a cluster for every row.
  bool sorting_pays() const {
    constexpr u32 CUT_AT_ONCE = 39;
    const u32 drawn = order.drawn + order.cut;
    const bool cuts = order.others && !(batch.flags & NUCLEUS_BATCH_NONE_WHOLE), several = (order.bounded != 0) + (drawn != 0) + (order.others != 0) > 1;
    return order.order && (several || (drawn && drawn < batch.rows)) && (order.bounded || !cuts || batch.rows > CUT_AT_ONCE);
  }
  // Rows of the kinds that the order tells, by launches for each. Afterwards every row has a status, unless `sorted` is false: rows are too long, and nothing was launched but what is
  // for few allowed ids.
  cudaError_t by_kind(bool few, bool &sorted) {
    const u32 drawn = order.drawn + order.cut, known = order.bounded + drawn;
    const bool whole = !(batch.flags & NUCLEUS_BATCH_NONE_WHOLE), sums = !whole && !(batch.flags & NUCLEUS_BATCH_NONE_SUMMED);
    const bool others = order.others && (whole || sums || !(batch.flags & NUCLEUS_BATCH_NONE_CUT));
    const u32 launched = known + (others ? order.others : 0), left = few ? 0 : batch.rows - launched;
    cudaError_t error = few ? launch_few(all_rows(), false, stream) : cudaSuccess;
    if (error == cudaSuccess && drawn) {
      PartOfBatch part = rows_from(order.bounded, drawn, false);
      part.flags = (part.flags & ~NUCLEUS_BATCH_ALL_DRAWN) | (order.cut ? 0 : NUCLEUS_BATCH_ALL_DRAWN);
      error = launch_draw(part, whole_rows(), few, LeftRange{launched - order.bounded, left}, stream, division);
    }
    const Division of_draws = division;
    sorted = !drawn || division.room;
    if (error != cudaSuccess || !sorted) return error;
    if (order.bounded) {
      const PartOfBatch part = rows_from(0, order.bounded, drawn);
      error = launch_for(part)(part, edit_tables(), kinds_leave_none(), stream);
    }
    division.room = 0;
    if (error == cudaSuccess && others) {
      const PartOfBatch part = rows_from(known, order.others, known);
      error = sums ? launch_sums(part, stream) : rest(part, false, whole);
      // Too long for these launches, which have left no status.
      if (error == cudaSuccess && !sums && !division.room) error = launch_few(part, false, stream);
    }
    if (error == cudaSuccess && left && !drawn) error = launch_few(rows_from(launched, left, false), false, stream);
    if (!division.room) division = of_draws;
    return error;
  }

  // Rows that few tokens do not decide, `whole` or not: those whose first cut can be made, then, if `whole`, all. `seen`: every row has a status.
  cudaError_t rest(const PartOfBatch &part, bool seen, bool whole) {
    const bool many = part.flags & NUCLEUS_BATCH_MANY_ROWS, held = whole && !many && !(part.flags & NUCLEUS_BATCH_ALL_DRAWN);
    const bool unseen = !seen && !whole && !(part.flags & (NUCLEUS_BATCH_UNLISTED | NUCLEUS_BATCH_NONE_CUT));
    cudaError_t error = held || unseen ? launch_cuts(part, whole_rows(), seen, held || many, stream, division) : cudaSuccess;
    if (error == cudaSuccess && whole && !division.room) error = launch_whole(part, whole_rows(), seen, stream, division);
    return error;
  }

  cudaError_t by_clusters() {
    cudaError_t error = allow_slices(reinterpret_cast<const void *>(sample_rows));
    if (error != cudaSuccess) return error;
    const bool exact = batch.flags & NUCLEUS_BATCH_EXACT, many = batch.flags & NUCLEUS_BATCH_MANY_ROWS, chosen = batch.cluster == 0 && !many;
    const bool few = !exact && chosen && batch.flags & (NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_ALL_FEW);
    bool sorted = false, seen = false;  // seen: every row has a status
    if (!exact && (chosen || many) && sorting_pays()) {
      error = by_kind(few, sorted);
      seen = sorted || few;
      if (error != cudaSuccess || (sorted && kinds_leave_none())) return error;
      if (sorted) return clusters(true);
    }
    const bool bounded = !exact && chosen && !(batch.flags & (NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_ALL_FEW));
    const bool whole = !exact && (many || (chosen && !(batch.flags & (NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_ALL_FEW | NUCLEUS_BATCH_NONE_WHOLE))));
    const bool sums = !exact && !bounded && !few && (batch.flags & (NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_NONE_SUMMED)) == NUCLEUS_BATCH_NONE_WHOLE;
    if (!seen) {
      if (sums) error = launch_sums(all_rows(), stream);
      if (bounded) {
        // Where every row is bounded by a count there is next to nothing left for a launch of clusters, nor where rows are bounded, without edits, and draw from what
        // min_p keeps; of short rows more may be, of which most have edits.
        constexpr u32 DRAWN_HERE = NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_DRAW_AFTER_MIN_P;
        const bool all_here = all_counted() || (batch.flags & DRAWN_HERE) == DRAWN_HERE, last = all_here && !few && batch.row_len >= SPREAD_FROM_LEN;
        error = launch_for(all_rows())(all_rows(), edit_tables(), last, stream);
        if (error == cudaSuccess && last) return error;
      }
      if (error == cudaSuccess && few) error = launch_few(all_rows(), bounded, stream);
      seen = sums || bounded || few;
    }
    // Rows that are drawn from alone; other whole rows, and rows that no launch has seen.
    const bool drawn = batch.flags & NUCLEUS_BATCH_ALL_DRAWN;
    const bool cut_by_top_p = batch.flags & NUCLEUS_BATCH_DRAWN_AFTER_TOP_P && (batch.flags & NUCLEUS_BATCH_NO_EDITS || edits_drawn(batch));
    if (error == cudaSuccess && whole && (drawn || cut_by_top_p)) error = launch_draw(all_rows(), whole_rows(), seen, {}, stream, division);
    if (error == cudaSuccess && !division.room) error = rest(all_rows(), seen, whole);
    const bool done = division.room && !seen && whole && drawn;
    return error == cudaSuccess && !done ? clusters(seen || division.room) : error;
  }
};

// What the current device has: asked once, since its answers do not change.
cudaError_t without_clusters(const SamplingBatch &batch, bool &without) {
  enum Answer : unsigned char { UNKNOWN, CLUSTERS, NONE };
  constexpr int DEVICES = 64;
  constexpr int SHARED_BYTES_OF_BLOCK = 232448;
  static std::atomic<unsigned char> answers[DEVICES];
  without = batch.flags & NUCLEUS_BATCH_PORTABLE;
  if (without) return cudaSuccess;
  int device = 0, major = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  unsigned char answer = device < DEVICES ? answers[device].load(std::memory_order_relaxed) : static_cast<unsigned char>(UNKNOWN);
  if (answer == UNKNOWN) {
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    answer = NONE;
    if (major >= 9 && shared >= SHARED_BYTES_OF_BLOCK) {
      cudaFuncAttributes code;
      error = cudaFuncGetAttributes(&code, sample_rows);
      if (error == cudaSuccess) answer = CLUSTERS;
      else if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction) return error;
      cudaGetLastError();
    }
    if (device < DEVICES) answers[device].store(answer, std::memory_order_relaxed);
  }
  without = answer == NONE;
  return cudaSuccess;
}

inline bool valid(const SamplingBatch *b) {
  if (!b || b->struct_size != sizeof(SamplingBatch) || b->dtype > NUCLEUS_BF16 || b->rows > NUCLEUS_MAX_ROWS) return false;
  bool cluster = b->cluster <= MAX_BLOCKS && (b->cluster & (b->cluster - 1)) == 0;
  bool pointers = b->logits && b->row && b->configs && b->programs && b->out;
  return cluster && pointers && b->row_len >= 1;
}

}  // namespace nucleus

using namespace nucleus;

extern "C" size_t sampling_workspace_size(uint32_t rows, uint32_t max_edited) {
  return Layout(rows, max_edited).bytes;
}

extern "C" int launch_advanced_sample_batch(const SamplingBatch *batch, void *workspace, size_t workspace_bytes, void *stream) {
  const SamplingOrder none = {};
  return launch_sorted_sample_batch(batch, &none, workspace, workspace_bytes, stream);
}

extern "C" int launch_sorted_sample_batch(const SamplingBatch *batch, const SamplingOrder *order, void *workspace, size_t workspace_bytes, void *stream) {
  if (!valid(batch) || !order) return NUCLEUS_LAUNCH_INVALID;
  const u64 known = static_cast<u64>(order->bounded) + order->drawn + order->cut + order->others;
  if (order->order && known > batch->rows) return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0) return NUCLEUS_LAUNCH_OK;
  const Layout layout(batch->rows, batch->max_edited);
  if (!workspace || workspace_bytes < layout.bytes) return NUCLEUS_LAUNCH_WORKSPACE;
  cudaError_t error = Launcher{*batch, *order, layout, static_cast<char *>(workspace), static_cast<cudaStream_t>(stream)}.all();
  return error == cudaSuccess ? NUCLEUS_LAUNCH_OK : NUCLEUS_LAUNCH_CUDA + static_cast<int>(error);
}

extern "C" int launch_top_processed(const SamplingBatch *batch, uint32_t count, SamplingLogprob *top, void *workspace, size_t workspace_bytes, void *stream) {
  if (!valid(batch) || count > NUCLEUS_MAX_TOP) return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0 || count == 0) return NUCLEUS_LAUNCH_OK;
  if (!top) return NUCLEUS_LAUNCH_INVALID;
  const Layout layout(batch->rows, batch->max_edited);
  if (!workspace || workspace_bytes < layout.bytes) return NUCLEUS_LAUNCH_WORKSPACE;
  const Launcher launcher{*batch, SamplingOrder{}, layout, static_cast<char *>(workspace), static_cast<cudaStream_t>(stream)};
  bool without = false;
  cudaError_t error = without_clusters(*batch, without);
  if (error == cudaSuccess) error = (without ? launch_portable_tops : launch_tops)(*batch, launcher.edit_tables(), TopCall{top, count}, launcher.stream);
  return error == cudaSuccess ? NUCLEUS_LAUNCH_OK : NUCLEUS_LAUNCH_CUDA + static_cast<int>(error);
}

extern "C" int launch_advanced_sample(const void *logits, uint32_t vocab_size, const SingleSample *sample, uint64_t random_value, void *workspace,
                                      size_t workspace_bytes, void *stream) {
  if (!sample || !sample->row || sample->prompt_length > sample->history_length) return NUCLEUS_LAUNCH_INVALID;
  SamplingRow row = {};
  row.uniform = random_value;
  row.history.len = sample->history_length;
  row.prompt_len = sample->prompt_length;
  row.position = sample->history_length - sample->prompt_length;
  row.mask = -1;
  row.flags = NUCLEUS_ROW_UNIFORM;
  SamplingBatch batch = {};
  batch.struct_size = sizeof(SamplingBatch);
  batch.dtype = sample->dtype;
  batch.rows = 1;
  batch.row_len = vocab_size;
  batch.row_stride = vocab_size;
  batch.logits = logits;
  batch.row = sample->row;
  batch.configs = sample->config;
  batch.programs = sample->program;
  batch.arena = sample->history;
  batch.out = sample->out;
  batch.max_edited = sample->history_length > SHARED_EDITS_USED ? sample->history_length : 0;
  if (!valid(&batch)) return NUCLEUS_LAUNCH_INVALID;
  cudaError_t error = launch_description(sample->row, row, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return NUCLEUS_LAUNCH_CUDA + static_cast<int>(error);
  return launch_advanced_sample_batch(&batch, workspace, workspace_bytes, stream);
}
