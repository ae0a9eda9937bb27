// The launches for many rows that few tokens do not decide.
#include <cuda_runtime.h>

#include "choose.cuh"
#include "launch.cuh"
#include "prepare.cuh"
#include "weigh.cuh"

namespace nucleus {

__global__ void __launch_bounds__(THREADS, 2) prepare_rows(const __grid_constant__ PartOfBatch batch, const __grid_constant__ Whole whole,
                                                           const __grid_constant__ Division division, bool pending) {
  let_next_launch_begin();
  wait_for_launch_before();
  prepare_row(batch, whole, division, batch.row_number(blockIdx.x), pending);
}

template <u32 DTYPE, bool MASKS, bool SOME>
__global__ void __launch_bounds__(THREADS, 1) weigh_rows(const __grid_constant__ RowsOfBatch<SOME> batch, const __grid_constant__ Whole whole,
                                                         const __grid_constant__ Division division, bool plans, bool pending) {
  weigh_rows_of<DTYPE, MASKS, SOME>(batch, whole, division, plans, pending);
}

// Rows up to which the launch of clusters begins while these blocks end. Where many do, a cluster takes what places are free first, so that fewer fit beside each
// other than could, and the last begin when others have ended.
constexpr u32 BEGUN_EARLY_MOST = 16;

__global__ void __launch_bounds__(CHOOSE_THREADS, 4) choose_rows(const __grid_constant__ PartOfBatch batch, const __grid_constant__ Whole whole,
                                                                 const __grid_constant__ Division division, bool leaves_many) {
  if (gridDim.x <= BEGUN_EARLY_MOST) let_next_launch_begin();
  share_batch(shared_state(), batch);
  choose_row(batch, whole, division, batch.row_number(blockIdx.x), leaves_many);
}

constexpr u32 SHARED_OUT_MOST = 128;  // rows up to which clusters of the next launch are faster than a block each at what keeps many tokens
constexpr u32 FEWER_BLOCKS = 6, TURNS_SPARED = 3;  // of so many turns one less is worth blocks that have more to do
constexpr u32 LEAST_BLOCKS = 2;  // what is sent within a cluster needs one
constexpr size_t WHOLE_BYTES_MAX = 232448;  // of shared memory that a block may have

size_t whole_bytes(size_t rows) { return rows * Whole::ROW_BYTES + Whole::BYTES; }

template <class K, class... A>
static cudaError_t launch_a_block_each(u32 rows, u32 threads, size_t bytes, bool follows, cudaStream_t stream, K kernel, A... arguments) {
  const cudaError_t error = allow_slices(reinterpret_cast<const void *>(kernel));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute overlap = begins_early();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(rows);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = follows ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <bool SOME>
using WeighKernel = void (*)(RowsOfBatch<SOME>, Whole, Division, bool, bool);
template <bool MASKS, bool SOME>
static WeighKernel<SOME> weigh_kernel(u32 dtype) {
  return dtype == NUCLEUS_F32    ? weigh_rows<NUCLEUS_F32, MASKS, SOME>
         : dtype == NUCLEUS_BF16 ? weigh_rows<NUCLEUS_BF16, MASKS, SOME>
                                 : weigh_rows<NUCLEUS_F16, MASKS, SOME>;
}

// The blocks of a cluster, their slices, and as many clusters as are resident at a time; `room` 0: rows are too long.
static cudaError_t share_out(const SamplingBatch &batch, const void *kernel, Shape &shape, u32 &slices) {
  const size_t size = batch.dtype == NUCLEUS_F32 ? 4 : 2;
  auto share = [&](u32 blocks) {
    const size_t slice = slice_of(batch.row_len, blocks) * size, fit = (WHOLE_BYTES_MAX - sizeof(WeighState)) / slice;
    slices = static_cast<u32>(fit < SLICES_MOST ? fit : SLICES_MOST);
    shape.blocks = blocks;
    shape.room = slices ? slice_of(batch.row_len, blocks) : 0;
    shape.bytes = sizeof(WeighState) + slices * slice;
    return shape.room ? shape.fill(batch.rows, kernel) : cudaSuccess;
  };
  const u32 blocks = batch.cluster ? batch.cluster : MAX_BLOCKS;
  cudaError_t error = share(blocks > LEAST_BLOCKS ? blocks : LEAST_BLOCKS);
  while (error == cudaSuccess && !batch.cluster && shape.blocks > LEAST_BLOCKS && shape.clusters < batch.rows && batch.row_len / (shape.blocks / 2) <= SLICE_ENOUGH)
    error = share(shape.blocks / 2);
  // Some fewer blocks, of which more clusters are resident, where that spares a turn.
  auto turns = [&] { return (batch.rows + shape.clusters - 1) / shape.clusters; };
  if (error != cudaSuccess || batch.cluster || shape.blocks != MAX_BLOCKS || !shape.room || turns() == 1 || turns() > TURNS_SPARED) return error;
  const u32 of_most = turns();
  error = share(FEWER_BLOCKS);
  if (error == cudaSuccess && shape.room && slices >= turns() && turns() * MAX_BLOCKS < of_most * FEWER_BLOCKS) return error;
  return error == cudaSuccess ? share(MAX_BLOCKS) : error;
}

template <bool SOME>
static cudaError_t launch(const PartOfBatch &batch, const Whole &whole, bool pending, cudaStream_t stream, Division &division) {
  const bool plans = batch.flags & (NUCLEUS_BATCH_ALL_DRAWN | NUCLEUS_BATCH_NO_EDITS);
  const auto kernel = (batch.masks && batch.mask_words ? weigh_kernel<true, SOME> : weigh_kernel<false, SOME>)(batch.dtype);
  cudaError_t error = allow_slices(reinterpret_cast<const void *>(kernel));
  Shape shape;
  u32 slices = 0;
  if (error == cudaSuccess) error = share_out(batch, reinterpret_cast<const void *>(kernel), shape, slices);
  division = Division{shape.blocks, shape.room, slices};
  if (error != cudaSuccess || !shape.room) return error;
  // Few clusters where the ways of many rows are tested.
  if (batch.flags & NUCLEUS_BATCH_MANY_ROWS) shape.clusters = (batch.rows + 3) / 4;
  if (!plans) error = launch_a_block_each(batch.rows, THREADS, PREPARE_BYTES, pending, stream, prepare_rows, batch, whole, division, pending);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = shape.config(attributes, stream, !plans || pending);
  error = cudaLaunchKernelEx(&config, kernel, RowsOfBatch<SOME>(batch), whole, division, plans, pending);
  if (error != cudaSuccess) return error;
  const size_t part = Part::span_of(division.room) * sizeof(float), room = cut_room_bytes<CHOOSE_THREADS>(batch.row_len);
  const bool leaves_many = batch.rows <= SHARED_OUT_MOST;
  return launch_a_block_each(batch.rows, CHOOSE_THREADS, SHARED_BYTES + (leaves_many || part > room ? part : room), true, stream, choose_rows, batch, whole, division, leaves_many);
}

cudaError_t launch_whole(const PartOfBatch &batch, const Whole &whole, bool pending, cudaStream_t stream, Division &division) {
  return (batch.order ? launch<true> : launch<false>)(batch, whole, pending, stream, division);
}

}  // namespace nucleus
