// What the ways to sample a row share: its descriptor in shared memory, lists, outcomes.
#pragma once

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

// Status of a row that is not decided yet; a later launch decides it.
constexpr u32 PENDING = 0xFFFFFFFFu;

template <class T>
__device__ __forceinline__ void copy_words(T *to, const T *from, u32 first_thread) {
  static_assert(sizeof(T) % 4 == 0);
  u32 i = threadIdx.x - first_thread;
  if (i < sizeof(T) / 4) reinterpret_cast<u32 *>(to)[i] = reinterpret_cast<const u32 *>(from)[i];
}

// Brings what describes the row to shared memory.
__device__ __forceinline__ void describe(Description *d, const SamplingBatch &batch, u32 index) {
  const SamplingRow *row = batch.row + index;
  u32 request = row->request;
  copy_words(&d->row, row, 0);
  copy_words(&d->config, batch.configs + request, 64);
  copy_words(&d->program, batch.programs + request, 128);
}

// Completes the description of a row whose history is a slot's, after a barrier.
__device__ __forceinline__ void describe_slot(Shared *sh, const SamplingBatch &batch) {
  if ((sh->row.flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) != NUCLEUS_ROW_SLOT) return;
  if (threadIdx.x == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
  __syncthreads();
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

// The choice of the first token of the order; `place` is 0 if there is none.
__device__ __forceinline__ Outcome first_of_order(u64 place) {
  Outcome outcome;
  outcome.status = place ? NUCLEUS_OK : NUCLEUS_EMPTY;
  outcome.token = place ? id_at(place) : NUCLEUS_NO_TOKEN;
  outcome.kept = 1;
  return outcome;
}

// The first token of the order, by the thread that writes it.
__device__ __forceinline__ void take_first(const RowCall &call, const Request &r, u64 place) {
  *call.out() = result(first_of_order(place), call.raw, r);
}

__device__ __forceinline__ void fail(const RowCall &call, const DeviceTeam &team, const Request &r, u32 status) {
  Outcome failed;
  failed.status = status;
  if (team.rank() == 0) *call.out() = result(failed, call.raw, r);
}

}  // namespace nucleus
