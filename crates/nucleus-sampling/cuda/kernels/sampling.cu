// The launch: one cluster of blocks a row.
#include <cuda_runtime.h>

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
__device__ __forceinline__ void copy_words(T *to, const T *from, u32 first_thread) {
  static_assert(sizeof(T) % 4 == 0);
  u32 i = threadIdx.x - first_thread;
  if (i < sizeof(T) / 4) reinterpret_cast<u32 *>(to)[i] = reinterpret_cast<const u32 *>(from)[i];
}

// Brings what describes the row to shared memory.
__device__ __forceinline__ void describe(Shared *sh, const SamplingBatch &batch, u32 index) {
  const SamplingRow *row = batch.row + index;
  u32 request = row->request;
  copy_words(&sh->row, row, 0);
  copy_words(&sh->config, batch.configs + request, 64);
  copy_words(&sh->program, batch.programs + request, 128);
}

// What the noinline parts rebuild their objects from.
struct RowCall {
  u32 index, slice_room, parity;
  RawSums raw;

  __device__ DeviceTeam team() const {
    DeviceTeam t;
    t.take_slice(shared_state()->batch.row_len, slice_room);
    t.parity = parity;
    return t;
  }
  __device__ Request request() const {
    const Shared *sh = shared_state();
    return request_of(sh->batch, index, sh->row, sh->config, sh->program);
  }
  __device__ SampledToken *out() const { return shared_state()->batch.out + index; }
};

// A list of the order's beginning, by one warp; false: the request's cut lies beyond it.
__device__ __forceinline__ bool run_candidates(const RowCall &call, const ListCall &list) {
  EditTable none{nullptr, 0};
  Request r = call.request();
  Outcome outcome = run_list(DeviceWarp{}, r, none, list);
  if (outcome.status == NUCLEUS_OK && outcome.token == NUCLEUS_NO_TOKEN) return false;
  if (threadIdx.x == 0) *call.out() = result(outcome, call.raw, r);
  return true;
}

// A draw from the whole row; its weights are published.
__device__ __forceinline__ void draw_row(const DeviceTeam &team, const Request &r, const RowCall &call, Weighing w, u64 total, u32 count) {
  w.sums.total = total;
  Outcome outcome;
  outcome.kept = count;
  u64 uniform = uniform_of(r);
  bool here = team.draw(mulhi64(uniform, total), [&](u32, float x) { return w.q(x); },
                        [&](u32 id, float x) {
                          outcome.token = id;
                          outcome.logprob = processed_logprob(w.q(x), total);
                        });
  if (here) *call.out() = result(outcome, call.raw, r);
}

// The first token of the order, by the thread that writes it.
__device__ __forceinline__ void take_first(const RowCall &call, const Request &r, u64 place) {
  Outcome outcome;
  outcome.status = place ? NUCLEUS_OK : NUCLEUS_EMPTY;
  outcome.token = place ? id_at(place) : NUCLEUS_NO_TOKEN;
  outcome.kept = 1;
  *call.out() = result(outcome, call.raw, r);
}

__device__ __forceinline__ void fail(const RowCall &call, const DeviceTeam &team, const Request &r, u32 status) {
  Outcome failed;
  failed.status = status;
  if (team.rank() == 0) *call.out() = result(failed, call.raw, r);
}

// What decides without the exact path; false: it did not decide. `unusual`: the row is not of numbers alone, or an edit had no room.
__device__ __forceinline__ bool sample_bounded(const DeviceTeam &team, const Request &r, const SlicePlan &plan, const RowCall &call, bool &unusual) {
  Shared *sh = team.sh;
  Maxima m = maxima(team, sh->unusual);
  unusual = m.largest == UNUSUAL;
  if (unusual) return false;
  Weighing w;
  bool weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  if (weighs && !m.largest) { fail(call, team, r, NUCLEUS_EMPTY); return true; }
  if (weighs && !begin_weighing(value_of(m.largest), plan.temperature, w)) { fail(call, team, r, NUCLEUS_OVERFLOW); return true; }
  if (plan.kind == SlicePlan::ALL) {
    publish_mass(team, w);
    publish_count(team);
    team.cluster_sync();
    u32 count = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < team.blocks * WARPS; i += 32) count += sh->counts[i];
    draw_row(team, r, call, w, published_mass(team), __reduce_add_sync(~0u, count));
    return true;
  }
  const u32 most = team.blocks * GROUPS * 3 / 4, k = plan.kind == SlicePlan::MASS && plan.k < most ? most : plan.k;
  u32 bound = k == 1 ? m.largest : k <= most ? kth_of_groups(team, k) : kth_of_many(team, m.own, k);
  float threshold = bound ? value_of(bound) : -infinity();
  if (plan.kind == SlicePlan::ABOVE && m.largest)
    threshold = fminf(threshold, fmaf(plan.temperature, r.program->ops[plan.op].arg, value_of(m.largest)));
  send_candidates(team, threshold, m.in_warp && value_of(m.in_warp) >= threshold);
  if (plan.kind == SlicePlan::MASS) publish_mass(team, w);
  team.cluster_sync();
  u32 count = sent_candidates(team);
  if (m.largest && !count) return false;
  if (plan.greedy) {
    if (team.leader() && threadIdx.x < 32) {
      u64 place = first_candidate(team);
      if (threadIdx.x == 0) take_first(call, r, place);
    }
    return true;
  }
  if (team.leader()) {
    list_candidates(team, count);
    if (threadIdx.x < 32) {
      u64 total = plan.kind == SlicePlan::MASS ? published_mass(team) : 0;
      bool decided = run_candidates(call, ListCall{sh->listed_places, sh->listed_weights, count, plan.op, plan.temperature, total});
      if (weighs && threadIdx.x < team.blocks) team.in_block(sh, threadIdx.x)->verdict = decided;
    }
  }
  if (!weighs) return true;
  team.cluster_sync();
  return sh->verdict;
}

// ln of the sum of exp over the row as it came. Two barriers of the cluster.
__device__ __forceinline__ RawSums raw_of_slices(const DeviceTeam &team) {
  Maxima m = maxima(team, false);
  RawSums raw;
  raw.wanted = true;
  Weighing w;
  if (m.largest == UNUSUAL || !m.largest || !begin_weighing(value_of(m.largest), 1.0f, w)) {
    team.cluster_sync();  // the maxima are written again
    return raw;
  }
  publish_mass(team, w);
  team.cluster_sync();
  w.sums.total = published_mass(team);
  return raw_sums_of(value_of(m.largest), w);
}

// The exact path over slices; false: they are not of numbers alone.
__device__ __noinline__ bool sample_slices(RowCall call, bool exact_only) {
  SliceTeam team{call.team()};
  EditTable none{nullptr, 0};
  return sample_exactly(team, call.request(), none, call.raw, exact_only, call.out());
}

// The row as it lies in device memory, every edit a layer: for programs and rows that slices do not serve.
__device__ __noinline__ void sample_unsliced(RowCall call, Workspace workspace, bool exact_only) {
  PlainTeam team{call.team()};
  Request r = call.request();
  u64 bound = edited_bound(r);
  EditTable table{reinterpret_cast<Edit *>(reinterpret_cast<char *>(team.slice) + LIST_CAPACITY * sizeof(u64)), 16};
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  if (bound > SHARED_EDITS_USED) {
    if (bound > workspace.most) {
      fail(call, team, r, NUCLEUS_WORKSPACE);
      return;
    }
    table = EditTable{workspace.edits + static_cast<u64>(call.index) * (workspace.capacity + 1), workspace.capacity};
    if (team.leader()) build_edits(team, r, table);
    __threadfence();
    team.cluster_sync();
  } else {
    build_edits(team, r, table);
  }
  RawSums raw = call.raw;
  if (!(r.row->flags & NUCLEUS_ROW_PROCESSED) && !raw.wanted) raw = raw_sums(team, r, table);
  sample_exactly(team, r, table, raw, exact_only, call.out());
}

// One row by all blocks of the cluster, which hold it in slices if they can. `use`: how often the blocks have held slices before.
__device__ __forceinline__ void sample_by_cluster(const SamplingBatch &batch, const Workspace &workspace, u32 index, u32 slice_room, u32 use) {
  Shared *sh = shared_state();
  DeviceTeam team;
  const void *logits = static_cast<const char *>(batch.logits) + index * batch.row_stride * SliceLoad::size_of(batch.dtype);
  team.take_slice(batch.row_len, slice_room);
  team.cluster_arrive();
  SliceLoad load(team, logits, batch.dtype, slice_room);
  if (threadIdx.x == THREADS - 1) {
    load.start(use);
    sh->unusual = sh->found = 0;
  }
  describe(sh, batch, index);
  EditTable table{sh->edits, SLICE_EDITS, &sh->unusual, team.first, team.first + team.held};
  clear_edits(team, table);
  __syncthreads();
  RowCall call{ index, slice_room, 0, RawSums{}};
  bool exact_only = batch.flags & NUCLEUS_BATCH_EXACT, unusual = false;
  SlicePlan plan = plan_of(sh);
  if ((sh->row.flags & NUCLEUS_ROW_PADDING) || !team.whole || !plan.sliced) {
    load.wait(use);
    team.cluster_wait();
    if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  } else {
    Request r = request_of(batch, index, sh->row, sh->config, sh->program);
    if (plan.edits) note_slice_edits(team, r, plan, table);
    load.wait(use);
    load.finish();
    team.cluster_wait();  // every block has begun: its shared memory may be written
    __syncthreads();
    if (r.limit < batch.row_len) {
      forget_from(team, r.limit);
      __syncthreads();
    }
    if (!(sh->row.flags & NUCLEUS_ROW_PROCESSED)) call.raw = raw_of_slices(team);
    if (r.mask || (sh->row.flags & NUCLEUS_ROW_ALLOWED)) {
      mask_slice(team, r);
      __syncthreads();
    }
    if (plan.edits) {
      if (edit_slice(team, r, table)) sh->unusual = 1;
      __syncthreads();
    }
    if (!exact_only && plan.kind != SlicePlan::EXACT && sample_bounded(team, r, plan, call, unusual)) return;
    if (!unusual && sample_slices(call, exact_only)) return;
    team.cluster_sync();
  }
  sample_unsliced(call, workspace, exact_only);
}

// A row by one block; false: it did not decide.
template <u32 DTYPE>
__device__ __noinline__ bool sample_by_block(u32 index) {
  const SamplingBatch &batch = shared_state()->batch;
  using Row = Stream<DTYPE>;
  Shared *sh = shared_state();
  DeviceTeam team;
  team.blocks = 1;
  team.block = 0;
  u64 *places = reinterpret_cast<u64 *>(team.slice), *weights = places + COLLECTED;
  EditTable table{reinterpret_cast<Edit *>(weights + COLLECTED), 16, &sh->unusual};
  if (threadIdx.x == 0) sh->unusual = sh->found = 0;
  describe(sh, batch, index);
  __syncthreads();
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return true;
  RowCall call{ index, 0, 0, RawSums{}};
  Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  SlicePlan plan = plan_of(sh);
  bool streams = plan.sliced && plan.kind != SlicePlan::EXACT && !(sh->row.flags & NUCLEUS_ROW_ALLOWED) && !(batch.flags & NUCLEUS_BATCH_EXACT);
  if (!streams || reinterpret_cast<uintptr_t>(r.logits) % 16 || (r.limit + Row::ROUND) / (32 * Row::WIDTH) > SEGMENTS) return false;
  bool unusual = false;
  if (plan.edits) {
    u64 bound = edited_bound(r);
    while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
    clear_edits(team, table);
    __syncthreads();
    note_slice_edits(team, r, plan, table);
    __syncthreads();
    if (sh->unusual) return false;
  }
  Row rows{sh, r, table, places, r.mask, plan.edits};
  if (plan.edits) {
    rows.edit_table(unusual);
    __syncthreads();
  }
  const bool first = plan.kind == SlicePlan::FIRST, weighs = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ALL;
  const u32 k = plan.kind == SlicePlan::MASS && plan.k < THREADS / 4 ? THREADS / 4 : plan.k;
  Weighing w;
  u32 count = 0;
  // The row as it came for raw log-probabilities, then the row as it is sampled.
  UNROLL_NOT
  for (bool raw = !(sh->row.flags & NUCLEUS_ROW_PROCESSED);; raw = false) {
    rows.mask = raw ? nullptr : r.mask;
    rows.edits = !raw && plan.edits;
    u32 reach = !raw && first && r.limit > BOUND_LOADS * Row::ROUND ? BOUND_LOADS * Row::ROUND : r.limit;
    bool strange = false;
    u32 own = rows.own_key(reach, first && !raw, strange), largest = own;
    rows.each_edited([&](u32, float x) {
      u32 key = x > -infinity() && x < infinity() ? key_of(x + 0.0f) : 0;
      largest = key > largest ? key : largest;
    });
    largest = team.local_max(largest);
    strange = __syncthreads_or(strange);
    float temperature = raw ? 1.0f : plan.temperature;
    if (raw) {
      call.raw.wanted = true;
      if (strange || !largest || !begin_weighing(value_of(largest), temperature, w)) continue;
    } else {
      unusual |= strange;
      if (__syncthreads_or(unusual)) return false;
      if (weighs && !largest) { fail(call, team, r, NUCLEUS_EMPTY); return true; }
      if (weighs && !begin_weighing(value_of(largest), temperature, w)) { fail(call, team, r, NUCLEUS_OVERFLOW); return true; }
    }
    float threshold = infinity();
    if (!raw && plan.kind != SlicePlan::ALL) {
      u32 bound = k == 1 ? largest : kth_of_threads(own, k);
      threshold = bound ? value_of(bound) : -infinity();
      if (plan.kind == SlicePlan::ABOVE && largest) threshold = fminf(threshold, fmaf(temperature, r.program->ops[plan.op].arg, value_of(largest)));
    }
    if (raw || weighs) count = rows.template take<true>(threshold, w, unusual);
    else rows.template take<false>(threshold, w, unusual);
    unusual = __syncthreads_or(unusual) && !raw;
    if (unusual) return false;
    if (!raw) break;
    w.sums.total = rows.share().total;
    call.raw = raw_sums_of(value_of(largest), w);
    __syncthreads();
  }
  u64 total = 0;
  if (weighs) {
    count += rows.reweigh(w);
    __syncthreads();
    auto share = rows.share();
    total = share.total;
    if (plan.kind == SlicePlan::ALL) {
      count = __reduce_add_sync(~0u, count);
      if (threadIdx.x % 32 == 0) atomicAdd(&sh->found, count);
      Outcome outcome;
      rows.draw(share, w, mulhi64(uniform_of(r), total), [&](u32 id, float x) {
        outcome.token = id;
        outcome.kept = sh->found;
        outcome.logprob = processed_logprob(w.q(x), total);
        *call.out() = result(outcome, call.raw, r);
      });
      return true;
    }
  }
  count = sh->found;
  if (count > COLLECTED) return false;
  if (plan.greedy) {
    u64 most = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) most = threadIdx.x < 32 && places[i] > most ? places[i] : most;
    most = DeviceWarp{}.most(most);
    if (threadIdx.x == 0) take_first(call, r, most);
    return true;
  }
  if (first && count > THREADS / 2) count = rows.shrink(count, plan.k);
  team.sort(places, count);
  if (threadIdx.x < 32) {
    bool decided = run_candidates(call, ListCall{places, weights, count, plan.op, plan.temperature, total});
    if (threadIdx.x == 0) sh->verdict = decided;
  }
  __syncthreads();
  return sh->verdict;
}

__device__ __forceinline__ bool sample_by_block(u32 dtype, u32 index) {
  switch (dtype) {
    case NUCLEUS_F32: return sample_by_block<NUCLEUS_F32>(index);
    case NUCLEUS_F16: return sample_by_block<NUCLEUS_F16>(index);
    default: return sample_by_block<NUCLEUS_BF16>(index);
  }
}

// Brings the beginning of a row to the L2 cache while the block learns what to do with it.
__device__ __forceinline__ void prefetch_row(const SamplingBatch &batch, u32 index) {
  constexpr u64 AHEAD = 131072;
  u64 size = SliceLoad::size_of(batch.dtype), bytes = batch.row_len * size / 16 * 16;
  const char *row = static_cast<const char *>(batch.logits) + index * batch.row_stride * size;
  if (reinterpret_cast<uintptr_t>(row) % 16 == 0 && bytes)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(row), "r"(static_cast<u32>(bytes < AHEAD ? bytes : AHEAD)) : "memory");
}

// Status of a row that a block alone did not decide, until a cluster has.
constexpr u32 PENDING = 0xFFFFFFFFu;

// How a launch shares out the rows.
enum Share : u32 { A_CLUSTER_EACH, A_BLOCK_EACH, PENDING_ROWS };
constexpr u32 PENDING_CLUSTERS = 32;  // so that each has at most a warp's width of rows: 32 * 32 = NUCLEUS_MAX_ROWS

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step, bits;
};
__device__ __forceinline__ Rows rows_of(const SamplingBatch &batch, u32 cluster, u32 clusters, Share share) {
  if (share == A_CLUSTER_EACH) return Rows{cluster, 0, 1};
  u32 index = cluster + threadIdx.x % 32 * clusters;
  bool pending = index < batch.rows && reinterpret_cast<const volatile u32 &>(batch.out[index].status) == PENDING;
  return Rows{cluster, clusters, __ballot_sync(~0u, pending)};
}

__global__ void __launch_bounds__(THREADS, 2) sample_rows(const __grid_constant__ SamplingBatch batch, const __grid_constant__ Workspace workspace,
                                                          u32 slice_room, Share share) {
  Shared *sh = shared_state();
  DeviceTeam team;
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
  if (share == A_BLOCK_EACH) {
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
    if (share == PENDING_ROWS) team.cluster_sync();
  }
}

constexpr u32 SLICE_BYTES_MAX = 232448 - SHARED_BYTES;  // of shared memory that a block may have

// Logits a block holds of a row, a multiple of 8.
inline u32 slice_of(u32 row_len, u32 blocks) { return ((row_len + blocks - 1) / blocks + 7) & ~7u; }

// From this many rows on a block each suffices to read them at full speed.
constexpr u32 ROWS_A_BLOCK_EACH = 96;

// Blocks a row.
inline u32 blocks_for(u32 rows) { return rows <= 32 || rows >= ROWS_A_BLOCK_EACH ? 8 : 4; }

cudaError_t launch(const SamplingBatch &batch, const Workspace &workspace, u32 blocks, Share share, cudaStream_t stream) {
  u32 slice = share == A_BLOCK_EACH ? 0 : slice_of(batch.row_len, blocks), bytes = slice * 4;
  if (bytes > SLICE_BYTES_MAX) slice = bytes = 0;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(share == A_BLOCK_EACH ? batch.rows : (share == PENDING_ROWS ? PENDING_CLUSTERS : batch.rows) * blocks);
  config.blockDim = dim3(THREADS);
  config.dynamicSmemBytes = SHARED_BYTES + (bytes > SPARE_BYTES ? bytes : SPARE_BYTES);
  config.stream = stream;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = share == A_BLOCK_EACH ? 1 : blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, sample_rows, batch, workspace, slice, share);
}

cudaError_t launch_all(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(sample_rows, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  u32 blocks = batch.cluster ? batch.cluster : blocks_for(batch.rows);
  bool many = batch.cluster == 0 && batch.rows >= ROWS_A_BLOCK_EACH && !(batch.flags & NUCLEUS_BATCH_EXACT);
  if (!many && !(batch.flags & NUCLEUS_BATCH_BLOCK_EACH)) return launch(batch, workspace, blocks, A_CLUSTER_EACH, stream);
  error = launch(batch, workspace, blocks, A_BLOCK_EACH, stream);
  return error == cudaSuccess ? launch(batch, workspace, blocks, PENDING_ROWS, stream) : error;
}

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
  u32 capacity = table_capacity(max_edited);
  return capacity ? static_cast<size_t>(rows) * (capacity + 1) * sizeof(Edit) : 0;
}

extern "C" int launch_advanced_sample_batch(const SamplingBatch *batch, void *workspace, size_t workspace_bytes, void *stream) {
  if (!valid(batch)) return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0) return NUCLEUS_LAUNCH_OK;
  if (workspace_bytes < sampling_workspace_size(batch->rows, batch->max_edited)) return NUCLEUS_LAUNCH_WORKSPACE;
  Workspace space{static_cast<Edit *>(workspace), table_capacity(batch->max_edited), batch->max_edited};
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  cudaError_t error = launch_all(*batch, space, on);
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
