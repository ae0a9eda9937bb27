// The launch for batches of which every row draws from the whole of its row.
#include <cuda_runtime.h>

#include "draw_finish.cuh"
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

template <u32 DTYPE>
__global__ void __launch_bounds__(DRAW_THREADS, 1) draw_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ DrawShape shape, bool pending) {
  using D = Drawer<DTYPE>;
  u32 block;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  const u32 cluster = blockIdx.x / shape.blocks, clusters = gridDim.x / shape.blocks;
  const Turns turns{cluster, clusters, (batch.rows - cluster + clusters - 1) / clusters};
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  DrawState *const state = draw_state();
  if (warp >= WARPS) {
    const Finisher<DTYPE> finisher{batch, shape, turns, state, block};
    finisher.prepare();
    begin();
    finisher.plan(pending);
    finisher.take_turns();
    return;
  }
  const u32 team = warp / shape.warps_of_team(), member = warp % shape.warps_of_team(), own = block * shape.warps_of_team() + member;
  // The warp's part, as far as the block's slice and the row go.
  const u32 slice = block * shape.room, end = slice + shape.room < batch.row_len ? slice + shape.room : batch.row_len;
  const u32 from = slice + member * shape.span, first = from < end ? from : end, held = first + shape.span < end ? shape.span : end - first;
  typename D::Word *const parts = reinterpret_cast<typename D::Word *>(shared_memory + sizeof(DrawState) + shape.message_bytes());
  D drawer{batch, shape, turns, state, own, typename D::P(batch, first, held), parts + warp * shape.span, (held + shape.copy - 1) / shape.copy, Meeting(state, shape, team, own)};
  if (drawer.meeting.first_warp) drawer.meeting.prepare();
  if (lane < drawer.copies) init_barrier(drawer.arrival(lane), 1);
  begin();
  drawer.start_all(team);
  drawer.take_turns(team);
}

constexpr size_t BYTES_MAX = 232448;  // of shared memory that a block may have
constexpr u32 LEAST_BLOCKS = 2;       // what is sent within a cluster needs one

// Rows by clusters of so many blocks and teams; false: they are too long.
static bool share(const SamplingBatch &batch, u32 blocks, u32 teams, DrawShape &shape, size_t &bytes) {
  shape.blocks = blocks;
  shape.teams = teams;
  shape.room = slice_of(batch.row_len, blocks);
  shape.span = ((shape.room + shape.warps_of_team() - 1) / shape.warps_of_team() + 7) & ~7u;
  shape.copy = STAGE;
  const u32 stages = (shape.span + STAGE - 1) / STAGE, least = (stages + shape.sums() - 1) / shape.sums();
  shape.run = (least > STAGES_OF_RUN ? least : STAGES_OF_RUN) * STAGE;
  bytes = sizeof(DrawState) + shape.message_bytes() + static_cast<size_t>(WARPS) * shape.span * (batch.dtype == NUCLEUS_F32 ? 4 : 2);
  return stages <= STAGES_MOST && bytes <= BYTES_MAX;
}

template <u32 DTYPE>
static cudaError_t launch(const SamplingBatch &batch, bool pending, cudaStream_t stream, Division &division) {
  const auto kernel = draw_rows<DTYPE>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES_MAX);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  Shape grid;
  grid.threads = DRAW_THREADS;
  DrawShape shape;
  auto resident = [&](u32 blocks, u32 teams, bool &fits) {
    DrawShape other;
    size_t bytes;
    fits = share(batch, blocks, teams, other, bytes);
    if (!fits) return cudaSuccess;
    shape = other;
    grid.blocks = blocks;
    grid.bytes = bytes;
    return grid.fill(batch.rows, reinterpret_cast<const void *>(kernel));
  };
  // As few blocks as let every row be resident. Where that is not possible, the fewest that hold a row, in two teams if those are more than two blocks.
  const bool many = batch.flags & NUCLEUS_BATCH_MANY_ROWS;
  bool fits = true;
  if (batch.cluster) {
    error = resident(batch.cluster > LEAST_BLOCKS ? batch.cluster : LEAST_BLOCKS, many ? TEAMS_MOST : 1, fits);
  } else {
    for (u32 blocks = MAX_BLOCKS; fits && blocks >= LEAST_BLOCKS && error == cudaSuccess && grid.clusters < batch.rows && !many; blocks /= 2) error = resident(blocks, 1, fits);
    if (!fits || many) {
      fits = grid.clusters >= batch.rows && !many;
      for (u32 blocks = LEAST_BLOCKS; !fits && blocks <= MAX_BLOCKS && error == cudaSuccess; blocks *= 2) error = resident(blocks, TEAMS_MOST, fits);
    }
  }
  if (error != cudaSuccess || !grid.blocks) return error;
  // Few clusters where the ways of many rows are tested.
  if (many) grid.clusters = (batch.rows + 3) / 4;
  const u32 turns = (batch.rows + grid.clusters - 1) / grid.clusters;
  if (turns > TURNS_MOST) return cudaSuccess;
  if (turns <= shape.teams) shape.copy = shape.span + STAGE - 1;  // no row follows another
  division = Division{shape.blocks, shape.room, 1};
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = grid.config(attributes, stream);
  attributes[1] = begins_early();
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, batch, shape, pending);
}

}  // namespace nucleus::draw

namespace nucleus {

cudaError_t launch_draw(const SamplingBatch &batch, bool pending, cudaStream_t stream, Division &division) {
  return batch.dtype == NUCLEUS_F32   ? draw::launch<NUCLEUS_F32>(batch, pending, stream, division)
         : batch.dtype == NUCLEUS_F16 ? draw::launch<NUCLEUS_F16>(batch, pending, stream, division)
                                      : draw::launch<NUCLEUS_BF16>(batch, pending, stream, division);
}

}  // namespace nucleus
