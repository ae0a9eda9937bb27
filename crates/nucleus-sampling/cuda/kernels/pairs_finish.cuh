// A row's token from what has been collected, by one block.
#pragma once

#include "pairs_chain.cuh"

namespace nucleus::pairs {

// The block as a team of one.
struct FinishTeam {
  BoundedRow *sh;

  __device__ __forceinline__ u32 local() const { return threadIdx.x; }
  __device__ __forceinline__ u32 locals() const { return TILE_THREADS; }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    v = __reduce_max_sync(~0u, v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sh->maxima[threadIdx.x / 32] = v;
    __syncthreads();
    return __reduce_max_sync(~0u, sh->maxima[threadIdx.x % TILE_WARPS]);
  }
};

// The tokens whose edits matter: a table that takes no others.
struct ChangedTable : EditTable {
  __device__ __forceinline__ explicit ChangedTable(BoundedRow *sh) : EditTable{sh->changed, CHANGED_SLOTS} {}
  __device__ __forceinline__ Edit *insert(u32 id) const { return const_cast<Edit *>(find(id)); }
  __device__ __forceinline__ bool covers(u32 id) const { return find(id) != nullptr; }
};

// Puts a token into the table of changed ones, once.
__device__ __forceinline__ void add_changed(BoundedRow *sh, u32 id, float x) {
  const EditTable table{sh->changed, CHANGED_SLOTS};
  u32 at = table.start(id);
  UNROLL_NOT
  for (u32 probes = 0; probes < CHANGED; ++probes, at = (at + 1) & (CHANGED_SLOTS - 1)) {
    const u32 old = atomicCAS(&sh->changed[at].id, NO_ID, id);
    if (old == id) return;
    if (old != NO_ID) continue;
    sh->changed_logits[at] = x;
    atomicAdd(&sh->changed_count, 1);
    return;
  }
  atomicAdd(&sh->changed_count, CHANGED);
}

// Takes the tokens that may be edited out of the list, and lists those that reach the threshold with their edits. Barriers precede and follow.
__device__ __forceinline__ void edit_collected(BoundedRow *sh, const Request &r, float threshold) {
  const u32 count = sh->found;
  bool some = false;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < count; i += TILE_THREADS) {
    const u64 own = sh->places[i];
    if (!is_editable(own)) continue;
    some = true;
    sh->places[i] = 0;
    atomicAdd(&sh->holes, 1);
    add_changed(sh, editable_id(own), logit_at(own));
  }
  if (!__syncthreads_or(some)) return;
  if (sh->changed_count >= CHANGED) {  // too many: the row is not decided here
    if (threadIdx.x == 0) sh->strange = 1;
    return;
  }
  const FinishTeam team{sh};
  const ChangedTable table(sh);
  const SlicePlan &plan = sh->plan;
  note_bias_and_bans(team, r, table);
  Request of_window = r;
  of_window.history = sh->ids - (sh->row.history.len - sh->window);
  if (plan.occurrences) note_occurrences(team, of_window, table);
  if (plan.passages) note_passages(team, of_window, table);
  if (plan.ngrams) note_ngrams(team, of_window, table);
  __syncthreads();
  bool strange = false;
  UNROLL_NOT
  for (u32 at = threadIdx.x; at < CHANGED_SLOTS; at += TILE_THREADS) {
    const u32 id = sh->changed[at].id;
    if (id == NO_ID) continue;
    const float x = edited(r, sh->changed_logits[at], sh->changed[at], strange);
    if (x > -infinity() && x >= threshold) append(sh, place_of(x, id));
  }
  if (strange) sh->strange = 1;
}

// Sorts up to 128 places, descending, by counting, several threads a place, and tells how many have a smaller id; empty places vanish. Barriers precede,
// and one follows.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(BoundedRow *sh, u32 count) {
  constexpr u32 MOST = TILE_THREADS / SHARES;
  u64 *const places = sh->places;
  const u32 index = threadIdx.x / SHARES, share = threadIdx.x % SHARES;
  const u64 own = index < count ? places[index] : 0;
  u32 ranks = 0;  // by id above 16 bits
#pragma unroll 8
  for (u32 i = 0; i < MOST; i += 2 * SHARES) {
    const u32 at = i + 2 * share;
    if (at >= count) break;
    const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[at]);
    ranks += pair.x > own;
    ranks += static_cast<u32>(pair.x) > static_cast<u32>(own) ? 1u << 16 : 0;
    if (at + 1 < count) {
      ranks += pair.y > own;
      ranks += static_cast<u32>(pair.y) > static_cast<u32>(own) ? 1u << 16 : 0;
    }
  }
#pragma unroll
  for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
  __syncthreads();
  if (own && share == 0) {
    places[ranks & 0xFFFFu] = own;
    sh->by_id[ranks & 0xFFFFu] = ranks >> 16;
  }
  __syncthreads();
}

// The choice from the list, by the block. A barrier precedes.
__device__ __forceinline__ void choose_listed(BoundedRow *sh, const SamplingBatch &batch, u32 index) {
  const u32 room = sh->found, count = room - sh->holes;
  const SlicePlan &plan = sh->plan;
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  SampledToken *const out = batch.out + index;
  if (plan.greedy) {
    if (threadIdx.x >= 32) return;
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < room; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
    first = DeviceWarp{}.most(first);
    if (threadIdx.x == 0) *out = result(first_of_order(first), RawSums{}, r);
    return;
  }
  if (room <= ORDERED_MOST / 2) sort_few<2 * TILE_THREADS / ORDERED_MOST>(sh, room);
  else if (room <= ORDERED_MOST) sort_few<TILE_THREADS / ORDERED_MOST>(sh, room);
  else sort_places<TILE_THREADS>(sh->places, room);
  if (threadIdx.x >= 32 || (room <= ORDERED_MOST && run_chain(sh, r, count, out))) return;
  EditTable none{nullptr, 0};
  // Apart from the one above, which stays in registers.
  const Request in_memory = request_of(batch, index, sh->row, sh->config, sh->program);
  const Outcome outcome = run_list(DeviceWarp{}, in_memory, none, ListCall{sh->places, weights_after(sh), count, plan.op, plan.temperature, 0});
  if (threadIdx.x == 0) *out = result(outcome, RawSums{}, r);
}

// Takes in what the other blocks of the cluster have collected, by the leading one. Barriers precede and follow.
__device__ __forceinline__ void take_in(const DeviceTeam &team, BoundedRow *sh) {
  const u32 share = TILE_THREADS / team.blocks, block = threadIdx.x / share, first = threadIdx.x % share;
  if (!block) return;
  const BoundedRow *there = team.in_block(sh, block);
  // All at once: the way there and back is long.
  const u32 found = there->found, strange = there->strange, bound = there->bound;
  u64 place = there->places[first];
  if (first == 0) {
    if (strange || found > COLLECT_MOST) sh->strange = 1;
    atomicMax(&sh->bound, bound);
  }
  UNROLL_NOT
  for (u32 i = first; i < found && i < COLLECT_MOST; i += share) {
    if (i != first) place = there->places[i];
    append(sh, place);
  }
}

// A row's result from what its blocks have collected; false: it is not decided. By the block that holds it, after a barrier.
__device__ __forceinline__ bool finish_row(BoundedRow *sh, const SamplingBatch &batch, u32 index, float threshold) {
  if (sh->plan.edits && !sh->strange && sh->found <= COLLECT_MOST) {
    edit_collected(sh, request_of(batch, index, sh->row, sh->config, sh->program), threshold);
    __syncthreads();
  }
  if (sh->strange || sh->found > COLLECT_MOST) return false;
  choose_listed(sh, batch, index);
  return true;
}

}  // namespace nucleus::pairs
