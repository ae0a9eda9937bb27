// The launches for devices without clusters, or with less shared memory than the other kernels take: a block a row, or several where rows are few. Of the sampler's
// sources this, top.cu and those without kernels are what such a device needs code of.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "portable_split.cuh"

namespace nucleus {

// The blocks of a row lie one behind the other.
__device__ __forceinline__ portable::Part own_part(portable::SplitRow *rows, u32 parts) { return {rows + blockIdx.x / parts, parts, blockIdx.x % parts}; }

__global__ void __launch_bounds__(THREADS, 2) look_at_parts(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, portable::SplitRow *rows, u32 parts) {
  portable::look_at_part(batch, workspace, blockIdx.x / parts, own_part(rows, parts));
}

// One kernel with and without parts: either has all of the exact path, whose machine code takes longest to make where a device compiles PTX as it loads it.
__global__ void __launch_bounds__(THREADS, 2) sample_rows_by_block(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, portable::SplitRow *rows, u32 parts) {
  if (parts > 1) portable::sample_part(batch, workspace, blockIdx.x / parts, own_part(rows, parts));
  else portable::sample_row(batch, workspace, blockIdx.x, batch.flags & NUCLEUS_BATCH_EXACT);
}

__global__ void __launch_bounds__(THREADS, 2) tell_top_by_block(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace, const __grid_constant__ TopCall call) {
  portable::tell_top_of(batch, workspace, call, blockIdx.x);
}

__global__ void describe_row(SamplingRow *to, SamplingRow row) { *to = row; }

template <class K, class... A>
static cudaError_t launch_by_block(const SamplingBatch &batch, u32 blocks, cudaStream_t stream, K kernel, A... arguments) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, PORTABLE_BYTES_MAX);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaGetLastError();  // that of an earlier call, which its caller was told
  const u32 longest = batch.row_len < NUCLEUS_MAX_VOCAB ? batch.row_len : NUCLEUS_MAX_VOCAB;
  kernel<<<blocks, THREADS, PORTABLE_SHARED_BYTES + mark_words(longest) * sizeof(u32), stream>>>(batch, arguments...);
  return cudaGetLastError();
}

// Blocks of a row, as many as leave the batch one a multiprocessor, or fewer where they would have little to read; what a block alone decides gets one, and so does
// what two would decide no faster.
static cudaError_t parts_of(const SamplingBatch &batch, u32 &parts) {
  constexpr u32 LEAST_IDS = 1024;  // of a part
  constexpr u32 UNDECIDED = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE;
  parts = 1;
  if (batch.flags & NUCLEUS_BATCH_EXACT || (batch.flags & UNDECIDED) == UNDECIDED) return cudaSuccess;
  if (batch.cluster) {
    parts = batch.cluster;
    return cudaSuccess;
  }
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  while (error == cudaSuccess && parts < portable::PARTS_MOST && 2 * parts * batch.rows <= static_cast<u32>(multiprocessors) && batch.row_len / (2 * parts) >= LEAST_IDS) parts *= 2;
  if (parts == 2 && batch.flags & NUCLEUS_BATCH_ALL_BOUNDED) parts = 1;
  return error;
}

// Where the workspace has room for the kernels for whole rows: behind the tables of edits.
static portable::SplitRow *split_rows(const SamplingBatch &batch, const Workspace &workspace) {
  static_assert(sizeof(Edit) % alignof(RowPlan) == 0);
  const size_t tables = workspace.capacity ? static_cast<size_t>(batch.rows) * (workspace.capacity + 1) : 0;
  return reinterpret_cast<portable::SplitRow *>(workspace.edits + tables);
}

cudaError_t launch_portable(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream) {
  u32 parts;
  cudaError_t error = parts_of(batch, parts);
  if (error != cudaSuccess) return error;
  portable::SplitRow *const rows = split_rows(batch, workspace);
  if (parts > 1) error = launch_by_block(batch, batch.rows * parts, stream, look_at_parts, workspace, rows, parts);
  return error == cudaSuccess ? launch_by_block(batch, batch.rows * parts, stream, sample_rows_by_block, workspace, rows, parts) : error;
}
cudaError_t launch_portable_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream) {
  return launch_by_block(batch, batch.rows, stream, tell_top_by_block, workspace, call);
}
cudaError_t launch_description(SamplingRow *to, const SamplingRow &row, cudaStream_t stream) {
  cudaGetLastError();
  describe_row<<<1, 1, 0, stream>>>(to, row);
  return cudaGetLastError();
}

}  // namespace nucleus
