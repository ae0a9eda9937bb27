// The launch for rows that their first cut decides, by clusters that do nothing else, so that a thread has registers enough, a block a multiprocessor: of 8 blocks if all rows'
// are resident at once, else of 3, which take more rows at a time. What it leaves goes to the launch behind it, which has the whole exact path.
#include <cuda_runtime.h>

#include "by_first_cut.cuh"
#include "launch.cuh"
#include "many_kept.cuh"

namespace nucleus {

// The rows of a cluster: all, or those that an earlier launch has left PENDING. What their first cut does not decide is PENDING afterwards, or, if `tells`, MANY_KEPT where more
// tokens are kept than its list has room for.
template <class Room>
__global__ void __launch_bounds__(THREADS, 1) cut_rows(const __grid_constant__ PartOfBatch batch, const __grid_constant__ Whole whole, u32 slice_room, bool pending, bool tells) {
  const typename Room::Team team;
  const auto clusters = [&](u32 blocks) { return Room::BLOCKS ? blocks / Room::BLOCKS : team.share_of(blocks); };
  Rows rows = Rows::all(batch.rows, clusters(blockIdx.x), clusters(gridDim.x));
  if (pending) {
    let_next_launch_begin();
    wait_for_launch_before();
    rows.bits = LeftRows(batch, rows.first, rows.step).with(PENDING);
    if (!rows.bits) return;
  }
  share_batch(shared_state(), batch);
  cut_each_row<Room>(batch, OrderedRows{rows, batch}, slice_room, false, [&](u32 index, bool sliced) {
    const typename Room::Team of;
    const RowCallIn<Room> call{{index, slice_room, RawSums{}}};
    sync_block();
    const bool many = tells && sliced && keeps_many(shared_state()) && tell_many<Room>(call, whole);
    // Where a cluster's first row is of a program that such a cut cannot begin, the others are, too, most often.
    const bool none = index == batch.row_number(rows.first) && !pending && !tells && shared_plan(shared_state()).kind == SlicePlan::EXACT;
    const auto leave = [&](u32 number) {
      if (!(batch.row[number].flags & NUCLEUS_ROW_PADDING)) batch.out[number].status = many ? MANY_KEPT : PENDING;
    };
    if (of.rank() == 0) leave(index);
    for (u32 other = rows.first + rows.step * of.rank(); none && other < batch.rows; other += rows.step * of.size()) leave(batch.row_number(other));
    return !none;
  });
  batch.end_after_launch_before();
}

template <class Room>
static cudaError_t launch_room(const PartOfBatch &batch, const Whole &whole, const Shape &shape, bool pending, bool tells, cudaStream_t stream) {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, pending || batch.beside || batch.rows <= FIRST_EARLY_MOST);
  return cudaLaunchKernelEx(&config, cut_rows<Room>, batch, whole, shape.room, pending, tells);
}

// Turns of whole rows up to which this takes less time than launch_whole.
constexpr u32 WHOLE_TURNS_MOST = 2;

cudaError_t launch_cuts(const PartOfBatch &batch, const Whole &whole, bool pending, bool tells, cudaStream_t stream, Division &division) {
  const void *const kernel = reinterpret_cast<const void *>(cut_rows<FullRoom>), *const wide_kernel = reinterpret_cast<const void *>(cut_rows<ShortRoom>);
  const bool many = batch.flags & NUCLEUS_BATCH_MANY_ROWS;
  cudaError_t error = allow_slices(kernel);
  if (error == cudaSuccess) error = allow_slices(wide_kernel);
  Shape shape, wide;
  if (error == cudaSuccess) error = shape.fit(batch, kernel);
  if (error == cudaSuccess && (many || shape.turns(batch.rows) > 1)) error = wide.fit_wide(batch, shape, wide_kernel);
  if (error != cudaSuccess) return error;
  const u32 least = (batch.rows + CLUSTER_ROWS - 1) / CLUSTER_ROWS;
  if (many || shape.clusters < least) shape.clusters = least;
  const bool by_wide = wide.room;
  const Shape &chosen = by_wide ? wide : shape;
  // Where there is nothing to tell, the last launch has such clusters of 8, too, and two a multiprocessor.
  const bool resident = batch.flags & NUCLEUS_BATCH_EXACT && chosen.turns(batch.rows) == 1;
  const bool pays = many || (tells ? chosen.turns(batch.rows) <= WHOLE_TURNS_MOST : by_wide || resident);
  if (!chosen.room || !pays) return cudaSuccess;
  division = Division{chosen.blocks, chosen.room, 1};
  return (by_wide ? launch_room<ShortRoom> : launch_room<FullRoom>)(batch, whole, chosen, pending, tells, stream);
}

}  // namespace nucleus
