// The launch for batches of which no row is bounded or weighed whole: rows whose programs' every cut follows from sums. In a kernel of their own little is spilled of what
// their sweeps keep in registers; beside the exact path it goes to an L1 of 28 KiB.
#include <cuda_runtime.h>

#include "by_deviation.cuh"
#include "launch.cuh"

namespace nucleus {

// Masks and edits are out of line, since most rows have none.
template <class Room>
static __device__ __noinline__ void change_held(RowCallIn<Room> call, SlicePlan plan) {
  const DeviceTeam team = call.team();
  const Request r = call.request();
  change_slices<Room>(team, r, plan, PartLoad(team, r.dtype), static_cast<const char *>(r.logits), [] {});
}

// Brings this warp's part of a row again, in whose place the next row's has been asked for. Its barrier is used twice more, so that the uses of later rows keep their parity.
template <class Room>
static __device__ __noinline__ void bring_again(RowCallIn<Room> call, u32 use) {
  const DeviceTeam team = call.team();
  const SamplingBatch &batch = team.sh->batch;
  const PartLoad load(team, batch.dtype);
  const char *const logits = row_of(batch, call.index);
  sync_block();  // all have seen that it has been asked for
  if (threadIdx.x == 0) DeviationState::here()->asked = false;
  load.wait(use + 1);
  if (threadIdx.x % 32 == 0) load.start(logits);
  load.wait(use + 2);
  const u32 vocab = team.sh->config.vocab_size;
  load.settle(logits, vocab < batch.row_len ? vocab : batch.row_len);
}

// Rows that sums do not decide are PENDING afterwards.
template <class Room, bool SOME>
__global__ void __launch_bounds__(THREADS, Room::RESIDENT) sum_rows(const __grid_constant__ RowsOfBatch<SOME> batch, u32 slice_room) {
  Shared *const sh = shared_state();
  typename Room::Team team;
  team.take_slice(batch.row_len, slice_room);
  const PartLoad load(team, batch.dtype);
  share_batch(sh, batch);
  if (threadIdx.x % 32 == 0) load.prepare();
  team.prepare_meetings();
  team.cluster_sync();
  batch.begin_after_launch_before();
  // Where rows wait for a cluster, the clusters of the next launch, which take places as they become free, would be fewer than fit.
  if (Room::RESIDENT > 1 || batch.rows <= gridDim.x) let_next_launch_begin();
  const auto clusters = [&](u32 blocks) { return Room::BLOCKS ? blocks / Room::BLOCKS : team.share_of(blocks); };
  const u32 first = clusters(blockIdx.x), step = clusters(gridDim.x);
  // Most often a row has the request of its own number: then that is read before the row is known.
  const bool each = batch.flags & NUCLEUS_BATCH_REQUEST_EACH;
  DescriptionWord word;
  auto read_description = [&](u32 index) {
    if (index != NO_ROW) word.read(batch, index, each ? index : batch.row[index].request);
  };
  u32 index = batch.row_number(first);
  read_description(index);
  u32 &asked = DeviationState::here()->asked;
  if (threadIdx.x == 0) asked = false;
#pragma unroll 1
  for (u32 taken = first, use = 0, next; index != NO_ROW; taken += step, index = next, ++use) {
    const char *const logits = row_of(batch, index);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // other warps wrote to this part
    sync_block();  // what the row before has left is read by its own block alone
    if (threadIdx.x % 32 == 0 && !asked) load.start(logits);
    if (may_edit(batch)) EditedTokens::of(sh)->clear();
    word.write(sh);
    if (threadIdx.x == 0) sh->unusual = 0;
    sync_block();
    if (threadIdx.x == 0) asked = false;
    if (each && sh->row.request != index && !(sh->row.flags & NUCLEUS_ROW_PADDING)) {
      share_description(sh, batch, index, sh->row.request);
      sync_block();
    }
    describe_slot(sh, batch);
    if (may_edit(batch)) ask_for_window<Room>(0);
    next = taken + step < batch.rows ? batch.row_number(taken + step) : NO_ROW;
    read_description(next);
    const SlicePlan plan = plan_of(*sh);
    const u32 flags = sh->row.flags;
    const bool padding = flags & NUCLEUS_ROW_PADDING, served = flags & NUCLEUS_ROW_PROCESSED && team.whole && plan.sliced && cuts_by_sums(sh->program);
    if (served && !padding) begin_sums();
    const bool by_deviation = served && !padding && cuts_by_deviation(sh->program), changed = plan.edits || sh->row.mask >= 0 || flags & NUCLEUS_ROW_ALLOWED;
    await_window();
    load.wait(use);
    if (padding) continue;
    if (!served && !use) {
      // Where a cluster's first row is none of these, the others are not either, most often: they need not be brought twice.
      for (u32 other = taken + step * team.rank(); other < batch.rows; other += step * team.size())
        if (const u32 number = batch.row_number(other); !(batch.row[number].flags & NUCLEUS_ROW_PADDING)) batch.out[number].status = PENDING;
      break;
    }
    const RowCallIn<Room> call{{index, slice_room, RawSums{}}};
    Fate fate = Fate::MANY;
    if (served) {
      if (changed) {
        sync_block();
        change_held(call, plan);
      } else {
        load.settle(row_of(batch, index), sh->config.vocab_size < batch.row_len ? sh->config.vocab_size : batch.row_len);
      }
      if (by_deviation) {
        if (follow_deviation(call, changed ? NO_ROW : next)) continue;
        if (asked) bring_again(call, use);
      }
      sync_block();
      fate = follow_sums<Room>(team, call);
    }
    if (fate != Fate::DECIDED && team.rank() == 0) call.out()->status = PENDING;
  }
  team.cluster_sync();  // no block leaves while another may still read its shared memory
  batch.end_after_launch_before();
}

template <class Room, bool SOME>
static cudaError_t launch_shape(const PartOfBatch &batch, const Shape &shape, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, batch.beside || batch.rows <= FIRST_EARLY_MOST);
  return cudaLaunchKernelEx(&config, sum_rows<Room, SOME>, RowsOfBatch<SOME>(batch), shape.room);
}

// Clusters of 3 blocks, of which a multiprocessor has one, take rows in fewer turns than those of 8, of which it has two, and more time for each: worth it if they take no more
// than 7 turns for 9.
static bool is_worth(const Shape &wide, const Shape &shape, const SamplingBatch &batch) {
  return wide.room && (batch.flags & NUCLEUS_BATCH_MANY_ROWS || 9 * wide.turns(batch.rows) <= 7 * shape.turns(batch.rows));
}

template <bool SOME>
static cudaError_t launch(const PartOfBatch &batch, cudaStream_t stream) {
  const void *const kernel = reinterpret_cast<const void *>(sum_rows<FullRoom, SOME>), *const wide_kernel = reinterpret_cast<const void *>(sum_rows<ShortRoom, SOME>);
  cudaError_t error = allow_slices(kernel);
  if (error == cudaSuccess) error = allow_slices(wide_kernel);
  Shape shape, wide;
  if (error == cudaSuccess) error = shape.fit(batch, kernel);
  if (error == cudaSuccess) error = wide.fit_wide(batch, shape, wide_kernel);
  if (error != cudaSuccess) return error;
  if (is_worth(wide, shape, batch)) return launch_shape<ShortRoom, SOME>(batch, wide, stream);
  const u32 least = (batch.rows + CLUSTER_ROWS - 1) / CLUSTER_ROWS;
  if (batch.flags & NUCLEUS_BATCH_MANY_ROWS || shape.clusters < least) shape.clusters = least;
  return launch_shape<FullRoom, SOME>(batch, shape, stream);
}

cudaError_t launch_sums(const PartOfBatch &batch, cudaStream_t stream) { return (batch.order ? launch<true> : launch<false>)(batch, stream); }

}  // namespace nucleus
