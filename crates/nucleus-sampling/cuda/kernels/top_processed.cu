// The likeliest tokens of what rows are drawn from, by a cluster a row that reads it where it lies: a launch for the few rows that ask for them.
#include <cuda_runtime.h>

#include "launch.cuh"

namespace nucleus {

__global__ void __launch_bounds__(THREADS, 1) top_processed_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace,
                                                                 const __grid_constant__ TopCall call) {
  Shared *sh = shared_state();
  DeviceTeam cluster;
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
#pragma unroll 1
  for (u32 index = cluster.share_of(blockIdx.x); index < batch.rows; index += cluster.share_of(gridDim.x)) {
    if ((batch.row[index].flags & (NUCLEUS_ROW_TOP | NUCLEUS_ROW_PADDING)) != NUCLEUS_ROW_TOP) continue;
    cluster.cluster_sync();  // no block reads what the row before has left
    DescriptionWord word;
    word.read(batch, index, batch.row[index].request);
    word.write(sh);
    __syncthreads();
    describe_slot(sh, batch);
    const RowCall row{index, 0, 0, RawSums{}};
    const PlainTeam team{row.team()};
    const Request r = row.request();
    const TopCall own{call.top + static_cast<u64>(index) * call.count, call.count};
    EditTable table{nullptr, 0};
    if (unsliced_edits(team, r, index, workspace, table)) tell_top(team, r, table, own);
    else own.tell_nothing(team);
  }
  cluster.cluster_sync();  // no block leaves while another may still read its shared memory
}

cudaError_t launch_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(top_processed_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
  if (error != cudaSuccess) return error;
  Shape shape;
  shape.share_unsliced(batch.cluster ? batch.cluster : MAX_BLOCKS);
  error = shape.fill(batch.rows, reinterpret_cast<const void *>(top_processed_rows));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = shape.config(&attribute, stream);
  return cudaLaunchKernelEx(&config, top_processed_rows, batch, workspace, call);
}

}  // namespace nucleus
