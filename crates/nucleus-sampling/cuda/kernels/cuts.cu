// The launch for rows that their first cut decides, by clusters of 3 blocks: where there are more rows than multiprocessors for 8 blocks each, they take less time than those that have all that the
// exact path needs.
#include <cuda_runtime.h>

#include "by_first_cut.cuh"
#include "launch.cuh"

namespace nucleus {

// Rows that their first cut does not decide are PENDING afterwards.
__global__ void __launch_bounds__(THREADS, ShortRoom::RESIDENT) cut_rows(const __grid_constant__ SamplingBatch batch, u32 slice_room) {
  const Rows rows = Rows::all(batch.rows, blockIdx.x / ShortRoom::BLOCKS, gridDim.x / ShortRoom::BLOCKS);
  share_batch(shared_state(), batch);
  cut_each_row<ShortRoom>(batch, rows, slice_room, false, [&](u32 index, bool) {
    const ShortRoom::Team team;
    // Where it does not decide a cluster's first row, it does not the others either, most often.
    const bool first = index == rows.first;
    const u32 end = first ? batch.rows : index + 1;
    for (u32 other = index + rows.step * team.rank(); other < end; other += rows.step * team.size())
      if (!(batch.row[other].flags & NUCLEUS_ROW_PADDING)) batch.out[other].status = PENDING;
    return !first;
  });
}

// Rows up to which clusters of 8 blocks have multiprocessors for themselves.
constexpr u32 APART_MOST = 16;

cudaError_t launch_cuts(const SamplingBatch &batch, const Shape &beside, cudaStream_t stream, bool &launched) {
  launched = false;
  if (batch.rows <= APART_MOST && !(batch.flags & NUCLEUS_BATCH_MANY_ROWS)) return cudaSuccess;
  const void *const kernel = reinterpret_cast<const void *>(cut_rows);
  cudaError_t error = allow_slices(kernel);
  Shape shape;
  if (error == cudaSuccess) error = shape.fit_wide(batch, beside, kernel);
  launched = error == cudaSuccess && shape.room;
  if (!launched) return error;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, batch.rows <= FIRST_EARLY_MOST);
  return cudaLaunchKernelEx(&config, cut_rows, batch, shape.room);
}

}  // namespace nucleus
