// What the ways to sample a row share: its descriptor in shared memory, lists, outcomes.
#pragma once

#include "lane.cuh"
#include "slice.cuh"

namespace nucleus {

// A later launch may begin as soon as every block has come here or ended. The first launch of a call, if it begins early itself, comes here only when the launch
// before is done: what follows it reads rows, slots and logits, which that may write, without waiting for more than its own launch before.
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// From here on, the launch before is done.
__device__ __forceinline__ void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

constexpr u32 NO_ROW = ~0u;

// The rows of a batch that a launch takes: all, or `rows` of them.
struct PartOfBatch : SamplingBatch {
  const u32 *order;  // their numbers; null: as they are
  bool beside;       // the launch before takes other rows: it need not be done when this one begins

  __device__ __forceinline__ u32 row_number(u32 i) const { return order ? order[i] : i; }
  __device__ __forceinline__ void begin_after_launch_before() const {
    if (!beside) wait_for_launch_before();
  }
  // At the end, by the last threads of a block: the next launch waits for this one alone.
  __device__ __forceinline__ void end_after_launch_before() const {
    if (beside && blockIdx.x == 0) wait_for_launch_before();
  }
};

// The same, of kernels that are compiled for all rows and, SOME, for some: a test would cost them registers or time.
template <bool SOME>
struct RowsOfBatch : PartOfBatch {
  __host__ explicit RowsOfBatch(const PartOfBatch &batch) : PartOfBatch(batch) {}
  __device__ __forceinline__ u32 row_number(u32 i) const { return SOME ? order[i] : i; }
  __device__ __forceinline__ void begin_after_launch_before() const {
    if (!SOME || !beside) wait_for_launch_before();
  }
  __device__ __forceinline__ void end_after_launch_before() const {
    if constexpr (SOME) PartOfBatch::end_after_launch_before();
  }
};

// Room in a list for the tokens that lanes of a warp have: the index of this lane's. `total` counts them all.
__device__ __forceinline__ u32 reserve(u32 *total, bool has) {
  const u32 lanes = __ballot_sync(~0u, has), lane = threadIdx.x % 32;
  u32 base = 0;
  if (lane == 0 && lanes) base = atomicAdd(total, __popc(lanes));
  return __shfl_sync(~0u, base, 0) + __popc(lanes & ((1u << lane) - 1));
}

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

// What a row has come to.
enum class Fate : u32 { DECIDED, STRANGE, MANY };  // STRANGE: not of numbers alone, or an edit had no room; MANY: more tokens count than a list holds

// Status of a row that is not decided yet; a later launch decides it.
constexpr u32 PENDING = 0xFFFFFFFFu;
// The same, and what it keeps is more than a list holds (cut.cuh): by what an earlier launch has found of the row, or by min_p, with the row's largest logit where the
// log-probability will be.
constexpr u32 MANY_KEPT = 0xFFFFFFFEu, MANY_ABOVE = 0xFFFFFFFDu;

// The request that a row has most often, that of its own number if the caller says so: then it is read before the row is known.
__device__ __forceinline__ u32 likely_request(const SamplingBatch &batch, u32 index) { return batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : batch.row[index].request; }

// The word that this thread copies of what describes a row, and where it goes; the other threads copy none.
struct DescriptionWord {
  static constexpr u32 ROW = sizeof(SamplingRow) / 4, CONFIG = sizeof(SamplingConfig) / 4, PROGRAM = sizeof(SamplingProgram) / 4;
  static_assert(sizeof(Description) == 4 * (ROW + CONFIG + PROGRAM) && ROW <= 64 && CONFIG <= 64 && PROGRAM <= 128);
  u32 word;

  // Where the word of thread t is; null: it has none.
  __device__ __forceinline__ static const u32 *source(const SamplingBatch &batch, u32 index, u32 request, u32 t) {
    if (t < ROW) return reinterpret_cast<const u32 *>(batch.row + index) + t;
    if (t >= 64 && t < 64 + CONFIG) return reinterpret_cast<const u32 *>(batch.configs + request) + (t - 64);
    if (t >= 128 && t < 128 + PROGRAM) return reinterpret_cast<const u32 *>(batch.programs + request) + (t - 128);
    return nullptr;
  }
  __device__ __forceinline__ void read(const SamplingBatch &batch, u32 index, u32 request, u32 t = threadIdx.x) {
    const u32 *from = source(batch, index, request, t);
    if (from) word = *from;
  }
  __device__ __forceinline__ void write(Description *d, u32 t = threadIdx.x) const {
    u32 *words = reinterpret_cast<u32 *>(d);
    if (t < ROW) words[t] = word;
    else if (t >= 64 && t < 64 + CONFIG) words[ROW + t - 64] = word;
    else if (t >= 128 && t < 128 + PROGRAM) words[ROW + CONFIG + t - 128] = word;
  }
};
// A row's description in shared memory, by the first threads of a block, before a barrier.
__device__ __forceinline__ void share_description(Description *d, const SamplingBatch &batch, u32 index, u32 request) {
  DescriptionWord word;
  word.read(batch, index, request);
  word.write(d);
}

// The batch in shared memory, where the noinline parts find it; by the first threads of a block, before a barrier.
__device__ __forceinline__ void share_batch(Shared *sh, const SamplingBatch &batch) {
  if (threadIdx.x < sizeof(SamplingBatch) / 4) reinterpret_cast<u32 *>(&sh->batch)[threadIdx.x] = reinterpret_cast<const u32 *>(&batch)[threadIdx.x];
}
// The same of a row's description, of which nothing is known yet.
__device__ __forceinline__ void share_row(Shared *sh, const SamplingBatch &batch, u32 index, u32 request) {
  share_description(sh, batch, index, request);
  if (threadIdx.x == 0) sh->unusual = sh->found = sh->kept = 0;
}
// Completes the description of a row whose history is a slot's, after a barrier.
__device__ __forceinline__ void describe_slot(Description *d, const SamplingBatch &batch) {
  if ((d->row.flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) != NUCLEUS_ROW_SLOT) return;
  if (threadIdx.x == 0) read_slot(batch.slots[d->row.slot], d->config, d->row);
  sync_block();
}

// What the noinline parts rebuild their objects from.
struct RowCall {
  u32 index, slice_room;
  RawSums raw;
  bool alone = false;  // by one block, whatever its cluster

  __device__ DeviceTeam team() const {
    DeviceTeam t;
    if (alone) t.blocks = 1;
    t.take_slice(shared_state()->batch.row_len, slice_room);
    return t;
  }
  __device__ Request request() const {
    const Shared *sh = shared_state();
    return request_of(sh->batch, index, sh->row, sh->config, sh->program);
  }
  __device__ SampledToken *out() const { return shared_state()->batch.out + index; }
};
// Of a row in blocks with so much room.
template <class Room>
struct RowCallIn : RowCall {
  __device__ typename Room::Team team() const { return typename Room::Team(RowCall::team()); }
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

// The choice of the first token of the order; `place` is 0 if there is none.
__device__ __forceinline__ Outcome first_of_order(u64 place) {
  Outcome outcome;
  outcome.status = place ? NUCLEUS_OK : NUCLEUS_EMPTY;
  outcome.token = place ? id_at(place) : NUCLEUS_NO_TOKEN;
  outcome.kept = 1;
  return outcome;
}

__device__ __forceinline__ void fail(const RowCall &call, const DeviceTeam &team, const Request &r, u32 status) {
  Outcome failed;
  failed.status = status;
  if (team.rank() == 0) *call.out() = result(failed, call.raw, r);
}

// The edits of a row that is not held in slices, in `room` for SHARED_EDITS and one; those that it has no room for, in the workspace. False: nor has that.
template <class Team>
__device__ __forceinline__ bool unsliced_edits(const Team &team, const Request &r, u32 index, const Workspace &workspace, Edit *room, EditTable &table) {
  const u64 bound = edited_bound(r);
  table = EditTable{room, 16};
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  if (bound > SHARED_EDITS_USED) {
    if (bound > workspace.most) return false;
    table = EditTable{workspace.edits + static_cast<u64>(index) * (workspace.capacity + 1), workspace.capacity};
    if (team.leader()) build_edits(team, r, table);
    __threadfence();
    team.cluster_sync();
  } else {
    build_edits(team, r, table);
  }
  return true;
}

// Where a team over a row in device memory has that room: behind the list's scratch.
__device__ __forceinline__ Edit *behind_scratch(const DeviceTeam &team) { return reinterpret_cast<Edit *>(reinterpret_cast<char *>(team.slice) + LIST_CAPACITY * sizeof(u64)); }

}  // namespace nucleus
