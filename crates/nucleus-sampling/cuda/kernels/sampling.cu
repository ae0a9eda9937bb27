// The launch: one cluster of blocks a row.
#include <cuda_runtime.h>

#include <type_traits>

#include "stream.cuh"

namespace nucleus {

// The table that a row needs more than shared memory for: one a row, in the workspace.
struct Workspace {
  Edit *edits;
  u32 capacity;  // slots a row; 0: none
  u32 most;      // ids a row may edit
};

__host__ __device__ inline u32 table_capacity(u32 max_edited) {
  if (max_edited <= SHARED_EDITS_USED) return 0;
  u32 capacity = 2 * SHARED_EDITS;
  while (capacity < max_edited + max_edited / 2) capacity *= 2;
  return capacity;
}

template <class T>
__device__ void copy_words(T *to, const T *from) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) / 4 <= THREADS);
  if (threadIdx.x < sizeof(T) / 4) reinterpret_cast<u32 *>(to)[threadIdx.x] = reinterpret_cast<const u32 *>(from)[threadIdx.x];
}

template <u32 BLOCKS>
__device__ __noinline__ void exact_row(const DeviceTeam<BLOCKS> &team, const Request &r, const EditTable &table, const RawSums &raw, bool exact_only,
                                       SampledToken *out) {
  sample_exactly(team, r, table, raw, exact_only, out);
}

template <u32 BLOCKS>
__device__ __noinline__ RawSums raw_row(const DeviceTeam<BLOCKS> &team, const Request &r, const EditTable &table) {
  return raw_sums(team, r, table);
}

__device__ __noinline__ Outcome list_row(const Request &r, const EditTable &table, Shared *sh, u32 count, float temperature, u32 first) {
  DeviceWarp warp;
  ListMachine<DeviceWarp> list(warp, r, table, sh->list, sh->bins, count, temperature);
  return run_list(list, first);
}

template <u32 BLOCKS, u32 DTYPE>
__global__ void __launch_bounds__(THREADS, 2) sample_rows(SamplingBatch batch, Workspace workspace) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared *sh = reinterpret_cast<Shared *>(memory);
  DeviceTeam<BLOCKS> team(sh);
  u32 index = blockIdx.x / BLOCKS;
  u64 size = DTYPE == NUCLEUS_F32 ? 4 : 2;
  Stream<BLOCKS, DTYPE> stream(team, static_cast<const char *>(batch.logits) + index * batch.row_stride * size, batch.row_len);
  copy_words(&sh->row, batch.row + index);
  __syncthreads();
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  copy_words(&sh->config, batch.configs + sh->row.request);
  copy_words(&sh->program, batch.programs + sh->row.request);
  __syncthreads();
  Request r = request_of(batch, index);
  r.row = &sh->row;
  r.config = &sh->config;
  r.program = &sh->program;
  r.dtype = DTYPE;
  SampledToken *out = batch.out + index;
  RawSums raw;
  u64 bound = edited_bound(r);
  EditTable table{sh->edits, 16};
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  bool own_table = bound <= SHARED_EDITS_USED;
  if (!own_table && bound > workspace.most) {
    Outcome failed;
    failed.status = NUCLEUS_WORKSPACE;
    if (team.rank() == 0) *out = result(failed, raw, r);
    return;
  }
  if (!own_table) table = EditTable{workspace.edits + static_cast<u64>(index) * workspace.capacity, workspace.capacity};
  if (team.leader()) build_edits(team, r, table);
  if (!own_table) {
    __threadfence();
    team.cluster_sync();
  }
  StreamPlan plan = stream_plan(r);
  bool exact_only = batch.flags & NUCLEUS_BATCH_EXACT;
  if (!(sh->row.flags & NUCLEUS_ROW_PROCESSED)) raw = raw_row(team, r, table);
  if (plan.k && !exact_only) {
    float temperature = 1.0f;
    u32 count = stream.run(r, plan, table, temperature);
    if (count) {
      if (team.leader() && threadIdx.x < 32) {
        Outcome outcome = list_row(r, table, sh, count, temperature, plan.op);
        if (threadIdx.x == 0) *out = result(outcome, raw, r);
      }
      return;
    }
  }
  if (own_table && !team.leader()) build_edits(team, r, table);
  exact_row(team, r, table, raw, exact_only, out);
}

template <u32 BLOCKS, u32 DTYPE>
cudaError_t launch(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream) {
  auto kernel = sample_rows<BLOCKS, DTYPE>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
  if (error != cudaSuccess) return error;
  // Room for two blocks on a multiprocessor.
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows * BLOCKS);
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = BLOCKS;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = BLOCKS > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, batch, workspace);
}

template <u32 BLOCKS>
cudaError_t launch_dtype(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream) {
  switch (batch.dtype) {
    case NUCLEUS_F32: return launch<BLOCKS, NUCLEUS_F32>(batch, workspace, stream);
    case NUCLEUS_F16: return launch<BLOCKS, NUCLEUS_F16>(batch, workspace, stream);
    default: return launch<BLOCKS, NUCLEUS_BF16>(batch, workspace, stream);
  }
}

// Blocks a row: as many as fill the device twice over (2 blocks fit on a multiprocessor, 132 multiprocessors on an H200).
inline u32 blocks_for(u32 rows) { return rows <= 33 ? 8 : rows <= 66 ? 4 : rows <= 132 ? 2 : 1; }

inline bool valid(const SamplingBatch *b) {
  if (!b || b->struct_size != sizeof(SamplingBatch) || b->dtype > NUCLEUS_BF16 || b->rows > NUCLEUS_MAX_ROWS) return false;
  bool cluster = b->cluster <= 8 && (b->cluster & (b->cluster - 1)) == 0;
  bool pointers = b->logits && b->row && b->configs && b->programs && b->out;
  return cluster && pointers && b->row_len >= 1;
}

__global__ void describe_row(SamplingRow *to, SamplingRow row) { *to = row; }

}  // namespace nucleus

using namespace nucleus;

extern "C" size_t sampling_workspace_size(uint32_t rows, uint32_t max_edited) {
  return static_cast<size_t>(rows) * table_capacity(max_edited) * sizeof(Edit);
}

extern "C" int launch_advanced_sample_batch(const SamplingBatch *batch, void *workspace, size_t workspace_bytes, void *stream) {
  if (!valid(batch)) return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0) return NUCLEUS_LAUNCH_OK;
  if (workspace_bytes < sampling_workspace_size(batch->rows, batch->max_edited)) return NUCLEUS_LAUNCH_WORKSPACE;
  Workspace space{static_cast<Edit *>(workspace), table_capacity(batch->max_edited), batch->max_edited};
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  cudaError_t error;
  switch (batch->cluster ? batch->cluster : blocks_for(batch->rows)) {
    case 8: error = launch_dtype<8>(*batch, space, on); break;
    case 4: error = launch_dtype<4>(*batch, space, on); break;
    case 2: error = launch_dtype<2>(*batch, space, on); break;
    default: error = launch_dtype<1>(*batch, space, on);
  }
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
