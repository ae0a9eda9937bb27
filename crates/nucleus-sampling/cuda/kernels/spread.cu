// The launch for bounded requests where rows are few.
#include <cuda_runtime.h>

#include "launch.cuh"
#include "spread_draw.cuh"
#include "spread_row.cuh"
#include "unsliced.cuh"

namespace nucleus::spread {

// A row that few tokens do not decide, on the exact path, by all blocks of its cluster. The row's state is lost.
static __device__ __noinline__ void sample_undecided(const SamplingBatch &batch, const Workspace &workspace, u32 index) {
  sync_block();
  if (threadIdx.x == 0) end_barriers(row_state());
  if (threadIdx.x >= THREADS) return;
  Shared *const sh = shared_state();
  share_row(sh, batch, index, batch.row[index].request);
  share_batch(sh, batch);
  sync_block();
  describe_slot(sh, batch);
  DeviceTeam{}.prepare_meetings();
  DeviceTeam{}.cluster_sync();
  unsliced::sample(RowCall{index, 0, RawSums{}}, workspace, false);
  DeviceTeam{}.cluster_sync();  // no block leaves while another may still read its shared memory
}

// `last`: no launch follows. SOME: the launch takes some of the batch's rows.
template <u32 DTYPE, u32 BLOCKS, bool SOME>
__device__ __forceinline__ void sample_row(const RowsOfBatch<SOME> &batch, const Workspace &workspace, bool last) {
  const DeviceTeam team;
  asm volatile("" ::"r"(static_cast<u32>(last)));  // the line that it is in comes now
  RowState *const sh = kept_row_state();
  const u32 index = Block<DTYPE, BLOCKS, SOME>::number_of(batch);
  const bool decided = Block<DTYPE, BLOCKS, SOME>(batch, team, sh).collect();
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  if (decided) {
    u32 way = LEFT;
    if (team.block == 0) {
      sync_block();  // the helping threads have written what is needed now
      const FinishPlan known(sh);
      const bool tell = last || keeps_many_above(known.chain.plan, sh->program);
      wait_for_copy(&sh->arrived, 0);
      const u32 count = *static_cast<const volatile u32 *>(&sh->listed);
      if (count <= LISTED) [[likely]] return finish_row(sh, batch, index, known, count, tell);
      if (count < STRANGE && keeps_many_above(sh->plan, sh->program)) way = SHARED_OUT;
      if (tell) keep_others(team, sh, way);
    } else {
      if (!last && !keeps_many_above(sh->plan, sh->program)) return;
      way = learn_way(team, sh);
      if (way == DECIDED) [[likely]] return;
    }
    if (way == SHARED_OUT && draw_above<DTYPE, BLOCKS, SOME>(batch)) return;
  }
  if (last) sample_undecided(batch, workspace, index);
  else if (team.block == 0 && threadIdx.x == 0) batch.out[index].status = PENDING;
}

template <u32 DTYPE, u32 BLOCKS, bool SOME>
__global__ void __launch_bounds__(BLOCK_THREADS, 1) sample_spread(const __grid_constant__ RowsOfBatch<SOME> batch, const __grid_constant__ Workspace workspace, bool last) {
  sample_row<DTYPE, BLOCKS, SOME>(batch, workspace, last);
  batch.end_after_launch_before();
}

// Of shared memory: what either way to a token needs.
constexpr u32 EXACT_BYTES = SHARED_BYTES + SPARE_BYTES, SPREAD_BYTES = sizeof(RowState) > EXACT_BYTES ? sizeof(RowState) : EXACT_BYTES;

template <u32 DTYPE, u32 BLOCKS, bool SOME>
static cudaError_t launch(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  const auto kernel = sample_spread<DTYPE, BLOCKS, SOME>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SPREAD_BYTES);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows * BLOCKS);
  config.blockDim = dim3(BLOCK_THREADS);
  config.dynamicSmemBytes = SPREAD_BYTES;
  config.stream = stream;
  cudaLaunchAttribute attributes[2];
  attributes[0] = begins_early();
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = BLOCKS;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, RowsOfBatch<SOME>(batch), workspace, last);
}

// Clusters of so many blocks that are resident at a time on the devices this is tuned for, a block on a multiprocessor. racecheck of compute-sanitizer has
// trouble with clusters of many.
#ifdef NUCLEUS_RACECHECK
constexpr u32 EIGHTS = 0, FOURS = 0, THREES = 0;
#else
constexpr u32 EIGHTS = 15, FOURS = 30, THREES = 39;
#endif

template <u32 DTYPE, bool SOME>
static cudaError_t launch(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  static_assert(Deal<DTYPE, 4>::FROM_LEN <= SPREAD_FROM_LEN && Deal<DTYPE, 3>::FROM_LEN <= SPREAD_FROM_LEN && Deal<DTYPE, 2>::FROM_LEN <= SPREAD_FROM_LEN);
  if (batch.rows <= EIGHTS && batch.row_len >= Deal<DTYPE, 8>::FROM_LEN) return launch<DTYPE, 8, SOME>(batch, workspace, last, stream);
  if (batch.rows <= FOURS) return launch<DTYPE, 4, SOME>(batch, workspace, last, stream);
  if (batch.rows <= THREES) return launch<DTYPE, 3, SOME>(batch, workspace, last, stream);
  return launch<DTYPE, 2, SOME>(batch, workspace, last, stream);
}

template <u32 DTYPE>
static cudaError_t launch(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return (batch.order ? launch<DTYPE, true> : launch<DTYPE, false>)(batch, workspace, last, stream);
}

}  // namespace nucleus::spread

namespace nucleus {

cudaError_t launch_spread(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream) {
  return batch.dtype == NUCLEUS_F32   ? spread::launch<NUCLEUS_F32>(batch, workspace, last, stream)
         : batch.dtype == NUCLEUS_F16 ? spread::launch<NUCLEUS_F16>(batch, workspace, last, stream)
                                      : spread::launch<NUCLEUS_BF16>(batch, workspace, last, stream);
}

}  // namespace nucleus
