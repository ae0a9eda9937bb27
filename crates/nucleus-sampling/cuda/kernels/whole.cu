// The launches for many rows that few tokens do not decide.
#include <cuda_runtime.h>

#include "choose.cuh"
#include "launch.cuh"
#include "prepare.cuh"
#include "weigh.cuh"

namespace nucleus {

__device__ __forceinline__ void share_batch(const SamplingBatch &batch) {
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&shared_state()->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
}

__global__ void __launch_bounds__(THREADS, 2) prepare_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Whole whole,
                                                           const __grid_constant__ Division division, bool pending) {
  let_next_launch_begin();
  wait_for_launch_before();
  prepare_row(batch, whole, division, blockIdx.x, pending);
}

__global__ void __launch_bounds__(THREADS, 1) weigh_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Whole whole,
                                                         const __grid_constant__ Division division) {
  weigh_rows_of(batch, whole, division, blockIdx.x / division.blocks, gridDim.x / division.blocks);
}

__global__ void __launch_bounds__(CHOOSE_THREADS, 4) choose_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Whole whole,
                                                                 const __grid_constant__ Division division, bool leaves_many) {
  let_next_launch_begin();
  share_batch(batch);
  choose_row(batch, whole, division, blockIdx.x, leaves_many);
}

constexpr u32 SHARED_OUT_MOST = 64;  // rows up to which clusters of the next launch are faster than a block each at what keeps many tokens
constexpr u32 LEAST_BLOCKS = 2;  // what is sent within a cluster needs one

size_t whole_bytes(size_t rows) { return rows * Whole::ROW_BYTES; }

template <class K>
static cudaError_t allow_shared_memory(K kernel) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
  return error == cudaSuccess ? cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared) : error;
}

template <class K, class... A>
static cudaError_t launch_a_block_each(u32 rows, u32 threads, size_t bytes, bool follows, cudaStream_t stream, K kernel, A... arguments) {
  const cudaError_t error = allow_shared_memory(kernel);
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

cudaError_t launch_whole(const SamplingBatch &batch, char *space, bool pending, cudaStream_t stream, Division &division) {
  cudaError_t error = allow_shared_memory(weigh_rows);
  Shape shape;
  u32 slices = 2;
  if (error == cudaSuccess) error = shape.fit(batch, reinterpret_cast<const void *>(weigh_rows), slices, LEAST_BLOCKS);
  if (error == cudaSuccess && !shape.room) error = shape.fit(batch, reinterpret_cast<const void *>(weigh_rows), slices = 1, LEAST_BLOCKS);
  division = Division(shape.blocks, shape.room, slices);
  if (error != cudaSuccess || !shape.room) return error;
  // Few clusters where the ways of many rows are tested.
  if (batch.flags & NUCLEUS_BATCH_MANY_ROWS) shape.clusters = (batch.rows + 3) / 4;
  const Whole whole(space, batch.rows);
  error = launch_a_block_each(batch.rows, THREADS, PREPARE_BYTES, pending, stream, prepare_rows, batch, whole, division, pending);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = shape.config(attributes, stream);
  attributes[1] = begins_early();
  config.numAttrs = 2;
  error = cudaLaunchKernelEx(&config, weigh_rows, batch, whole, division);
  if (error != cudaSuccess) return error;
  const size_t run = division.run * sizeof(float), room = cut_room_bytes<CHOOSE_THREADS>(batch.row_len);
  const bool leaves_many = batch.rows <= SHARED_OUT_MOST;
  return launch_a_block_each(batch.rows, CHOOSE_THREADS, SHARED_BYTES + (leaves_many || run > room ? run : room), true, stream, choose_rows, batch, whole, division, leaves_many);
}

}  // namespace nucleus
