// The launches: tiles for bounded requests; a cluster a row for the others, or a block a row; then clusters for the rows that are left.
#include <cuda_runtime.h>

#include "by_block.cuh"
#include "by_cluster.cuh"
#include "launch.cuh"

namespace nucleus {

// Brings the beginning of a row to the L2 cache while the block learns what to do with it.
__device__ __forceinline__ void prefetch_row(const SamplingBatch &batch, u32 index) {
  constexpr u64 AHEAD = 131072;
  u64 size = SliceLoad::size_of(batch.dtype), bytes = batch.row_len * size / 16 * 16;
  const char *row = static_cast<const char *>(batch.logits) + index * batch.row_stride * size;
  if (reinterpret_cast<uintptr_t>(row) % 16 == 0 && bytes)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(static_cast<u32>(bytes < AHEAD ? bytes : AHEAD)) : "memory");
}

// How a launch shares out the rows: all of them, or those that an earlier launch left pending.
enum Share : u32 { A_CLUSTER_EACH, A_BLOCK_EACH, A_BLOCK_PENDING, CLUSTERS_PENDING };
constexpr u32 PENDING_CLUSTERS = 32;  // so that each has at most a warp's width of rows: 32 * 32 = NUCLEUS_MAX_ROWS

__device__ __forceinline__ bool is_pending(const SamplingBatch &batch, u32 index) {
  return reinterpret_cast<const volatile u32 &>(batch.out[index].status) == PENDING;
}

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step, bits;
};
__device__ __forceinline__ Rows rows_of(const SamplingBatch &batch, u32 cluster, u32 clusters, Share share) {
  if (share == A_CLUSTER_EACH) return Rows{cluster, 0, 1};
  u32 index = cluster + threadIdx.x % 32 * clusters;
  return Rows{cluster, clusters, __ballot_sync(~0u, index < batch.rows && is_pending(batch, index))};
}

__global__ void __launch_bounds__(THREADS, 2) sample_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace,
                                                          u32 slice_room, Share share) {
  Shared *sh = shared_state();
  DeviceTeam team;
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
  wait_for_launch_before();
  if (share == A_BLOCK_EACH || share == A_BLOCK_PENDING) {
    if (share == A_BLOCK_PENDING && !is_pending(batch, blockIdx.x)) return;
    if (threadIdx.x == 0) prefetch_row(batch, blockIdx.x);
    __syncthreads();
    bool decided = sample_by_block(batch.dtype, blockIdx.x);
    if (!decided && threadIdx.x == 0) batch.out[blockIdx.x].status = PENDING;
    return;
  }
  Rows rows = rows_of(batch, team.share_of(blockIdx.x), team.share_of(gridDim.x), share);
#pragma unroll 1
  for (u32 use = 0; rows.bits; rows.bits &= rows.bits - 1, ++use) {
    sample_by_cluster(batch, workspace, rows.first + (__ffs(rows.bits) - 1) * rows.step, slice_room, use);
    if (share == CLUSTERS_PENDING) team.cluster_sync();
  }
}

constexpr u32 SLICE_BYTES_MAX = 232448 - SHARED_BYTES;  // of shared memory that a block may have

// Logits a block holds of a row, a multiple of 8.
inline u32 slice_of(u32 row_len, u32 blocks) { return ((row_len + blocks - 1) / blocks + 7) & ~7u; }

// From this many rows on a block each suffices to read them at full speed.
constexpr u32 ROWS_A_BLOCK_EACH = 96;

// Blocks a row.
inline u32 blocks_for(u32 rows) { return rows <= 32 || rows >= ROWS_A_BLOCK_EACH ? 8 : 4; }

// The workspace, one part after another.
struct Layout {
  size_t rest, edits, bytes;
  u32 capacity;

  Layout(u32 rows, u32 max_edited) {
    // A smaller batch has more segments a row, but never more in all than this.
    const size_t segments = rows < SEGMENT_ROWS ? static_cast<size_t>(SEGMENT_ROWS) : rows;
    capacity = table_capacity(max_edited);
    rest = segments * sizeof(SegmentHead);
    edits = rest + segments * (SEGMENT_ROOM - HEAD_ROOM) * sizeof(u64);
    bytes = edits + (capacity ? static_cast<size_t>(rows) * (capacity + 1) * sizeof(Edit) : 0);
  }
};

struct Launcher {
  const SamplingBatch &batch;
  const Layout layout;
  char *workspace;
  cudaStream_t stream;

  // `follows`: it may begin while the launch before it ends.
  cudaError_t rows(u32 blocks, Share share, bool follows) const {
    const bool alone = share == A_BLOCK_EACH || share == A_BLOCK_PENDING;
    u32 slice = alone ? 0 : slice_of(batch.row_len, blocks), bytes = slice * 4;
    if (bytes > SLICE_BYTES_MAX) slice = bytes = 0;
    u32 clusters = share == CLUSTERS_PENDING && batch.rows > PENDING_CLUSTERS ? PENDING_CLUSTERS : batch.rows;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(alone ? batch.rows : clusters * blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = SHARED_BYTES + (bytes > SPARE_BYTES ? bytes : SPARE_BYTES);
    config.stream = stream;
    cudaLaunchAttribute attributes[2];
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = alone ? 1 : blocks;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1] = begins_early();
    config.attrs = attributes;
    config.numAttrs = follows ? 2 : 1;
    Workspace edits{reinterpret_cast<Edit *>(workspace + layout.edits), layout.capacity, batch.max_edited};
    return cudaLaunchKernelEx(&config, sample_rows, batch, edits, slice, share);
  }

  cudaError_t bounded() const {
    return launch_bounded(batch, reinterpret_cast<SegmentHead *>(workspace), reinterpret_cast<u64 *>(workspace + layout.rest), stream);
  }

  cudaError_t all() const {
    cudaError_t error = cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
    if (error == cudaSuccess) error = cudaFuncSetAttribute(sample_rows, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (error != cudaSuccess) return error;
    const u32 blocks = batch.cluster ? batch.cluster : blocks_for(batch.rows);
    const bool chosen = batch.cluster == 0 && !(batch.flags & (NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_BLOCK_EACH));
    const bool tiled = chosen && !(batch.flags & NUCLEUS_BATCH_NONE_BOUNDED);
    const bool alone = batch.flags & NUCLEUS_BATCH_BLOCK_EACH || (chosen && batch.rows >= ROWS_A_BLOCK_EACH && !(batch.flags & NUCLEUS_BATCH_ALL_BOUNDED));
    if (tiled) error = bounded();
    if (error == cudaSuccess && alone) error = rows(blocks, tiled ? A_BLOCK_PENDING : A_BLOCK_EACH, tiled);
    if (error != cudaSuccess) return error;
    return rows(blocks, tiled || alone ? CLUSTERS_PENDING : A_CLUSTER_EACH, tiled || alone);
  }
};

inline bool valid(const SamplingBatch *b) {
  if (!b || b->struct_size != sizeof(SamplingBatch) || b->dtype > NUCLEUS_BF16 || b->rows > NUCLEUS_MAX_ROWS) return false;
  bool cluster = b->cluster <= MAX_BLOCKS && (b->cluster & (b->cluster - 1)) == 0;
  bool pointers = b->logits && b->row && b->configs && b->programs && b->out;
  return cluster && pointers && b->row_len >= 1;
}

__global__ void describe_row(SamplingRow *to, SamplingRow row) { *to = row; }

}  // namespace nucleus

using namespace nucleus;

extern "C" size_t sampling_workspace_size(uint32_t rows, uint32_t max_edited) {
  return Layout(rows, max_edited).bytes;
}

extern "C" int launch_advanced_sample_batch(const SamplingBatch *batch, void *workspace, size_t workspace_bytes, void *stream) {
  if (!valid(batch)) return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0) return NUCLEUS_LAUNCH_OK;
  const Layout layout(batch->rows, batch->max_edited);
  if (!workspace || workspace_bytes < layout.bytes) return NUCLEUS_LAUNCH_WORKSPACE;
  cudaError_t error = Launcher{*batch, layout, static_cast<char *>(workspace), static_cast<cudaStream_t>(stream)}.all();
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
  describe_row<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(sample->row, row);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return NUCLEUS_LAUNCH_CUDA + static_cast<int>(error);
  return launch_advanced_sample_batch(&batch, workspace, workspace_bytes, stream);
}
