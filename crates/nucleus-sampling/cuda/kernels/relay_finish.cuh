// The finishing team: what rows ask for, their edits, and their tokens.
#pragma once

#include "relay_chain.cuh"
#include "relay_edits.cuh"

namespace nucleus::relay {

// Sorts up to 128 places, descending, by counting, several threads a place, and tells how many have a smaller id; empty places vanish. Barriers precede,
// and one follows.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(u64 *places, u32 count, u32 local) {
  constexpr u32 MOST = TEAM_THREADS / SHARES;
  const u32 index = local / SHARES, share = local % SHARES;
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
  Finishing::sync();
  if (own && share == 0) {
    places[ranks & 0xFFFFu] = own;
    state()->by_id[ranks & 0xFFFFu] = ranks >> 16;
  }
  Finishing::sync();
}

// Sorts more, descending; there is room up to a power of 2.
__device__ __forceinline__ void sort_many(u64 *places, u32 count, u32 local) {
  u32 size = 2 * ORDERED_MOST;
  while (size < count) size *= 2;
  UNROLL_NOT
  for (u32 i = count + local; i < size; i += TEAM_THREADS) places[i] = 0;
  Finishing::sync();
  UNROLL_NOT
  for (u32 run = 2; run <= size; run *= 2)
    for (u32 step = run / 2; step; step /= 2) {
      UNROLL_NOT
      for (u32 i = local; i < size / 2; i += TEAM_THREADS) {
        const u32 a = 2 * i - (i & (step - 1)), b = a + step;
        const u64 x = places[a], y = places[b];
        if ((x < y) == ((a & run) == 0)) {
          places[a] = y;
          places[b] = x;
        }
      }
      Finishing::sync();
    }
}
static_assert((COLLECT_MOST & (COLLECT_MOST - 1)) == 0, "a list may be sorted up to a power of 2");

// The choice from the list, by the team. A barrier precedes. `r`: the request, in registers.
__device__ __forceinline__ void choose_listed(Row *row, const Request &r, SampledToken *out, u32 local) {
  State *const sh = state();
  const u32 count = sh->listed;
  const SlicePlan &plan = row->plan;
  if (plan.greedy) {
    if (local >= 32) return;
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = local; i < count; i += 32) first = sh->places[i] > first ? sh->places[i] : first;
    first = DeviceWarp{}.most(first);
    if (local == 0) *out = result(first_of_order(first), RawSums{}, r);
    return;
  }
  if (count <= ORDERED_MOST / 2) sort_few<2 * TEAM_THREADS / ORDERED_MOST>(sh->places, count, local);
  else if (count <= ORDERED_MOST) sort_few<TEAM_THREADS / ORDERED_MOST>(sh->places, count, local);
  else sort_many(sh->places, count, local);
  if (local >= 32 || (count <= ORDERED_MOST && run_chain(row, r, count, out))) return;
  EditTable none{nullptr, 0};
  const Request in_memory = r;
  const Outcome outcome = run_list(DeviceWarp{}, in_memory, none, ListCall{sh->places, sh->weights, count, plan.op, plan.temperature, 0});
  if (local == 0) *out = result(outcome, RawSums{}, in_memory);
}

// A row's token from what has been collected; false: it is not decided. By the team, after the row is read. `at`: the row's place; `made_up`: it is none of
// the batch, and its result goes to `spare`. Not inlined, so that both calls run the same instructions.
static __device__ __noinline__ bool finish_row(const SamplingBatch &batch, u32 index, u32 at, bool made_up, float riser) {
  State *const sh = state();
  Row *const row = &sh->rows[at];
  const u32 local = threadIdx.x - TEAM_THREADS;
  Request r = request_of(batch, index, row->row, row->config, row->program);
  if (made_up) r.slot = nullptr;
  SampledToken *const out = made_up ? &sh->spare : batch.out + index;
  const u32 bound = row->bound;
  if (row->strange || row->found > COLLECT_MOST) return false;
  bool some = list_collected(row, bound, local);
  if (row->plan.edits) {
    const float threshold = value_or_none(bound);
    some |= add_risers(row, r, threshold, riser, local);
    if (Finishing::count(some) && !edit_changed(row, r, threshold, local)) return false;
  }
  Finishing::sync();
  if (sh->listed > LISTED) return false;
  choose_listed(row, r, out, local);
  return true;
}

// The numbers that only the description tells.
__device__ __forceinline__ void compute_numbers(Row *row, u32 local) {
  if (local == 32) row->scale = scale(row->plan.temperature);
  if (local == 64) row->uniform = uniform_of(row->row, row->config);
}

// By the warps of the team that do not describe the row.
__device__ __forceinline__ void clear_marks(Row *row, u32 local) {
  UNROLL_NOT
  for (u32 i = local - 32; i < MARKS / 128; i += TEAM_THREADS - 32) reinterpret_cast<uint4 *>(row->marks)[i] = make_uint4(0, 0, 0, 0);
}

__device__ __forceinline__ Request request_in(const SamplingBatch &batch, u32 index, const Row *row) {
  return request_of(batch, index, row->row, row->config, row->program);
}

// Forgets what was collected of a row that is not decided. Barriers precede and follow.
__device__ __forceinline__ void forget_collected(Row *row, u32 local) {
  UNROLL_NOT
  for (u32 i = local; i < COLLECT_MOST; i += TEAM_THREADS) row->places[i] = 0;
}

// Finishes a made-up row that asks for the same as the first, so that the instructions are there when they are needed: while rows are read, fetching them takes
// microseconds.
__device__ __forceinline__ void rehearse(const SamplingBatch &batch, u32 index, u32 local) {
  const Row *const row = &state()->rows[0];
  Row *const made_up = &state()->rows[1];
  if (!row->bounded || row->plan.greedy) return;
  constexpr u32 TOKENS = 40;
  UNROLL_NOT
  for (u32 i = local; i < reinterpret_cast<const u32 *>(row->places) - reinterpret_cast<const u32 *>(row); i += TEAM_THREADS)
    reinterpret_cast<u32 *>(made_up)[i] = reinterpret_cast<const u32 *>(row)[i];
  if (local < TOKENS) made_up->places[local] = place_of(static_cast<float>(local), local && row->plan.edits ? local * 97 : row->ids[0]);
  clear_lists(local);
  Finishing::sync();
  if (local == 0) {
    made_up->found = TOKENS;
    made_up->window = made_up->bans = made_up->bound = made_up->strange = made_up->row.bias.len = made_up->row.history.len = 0;
  }
  Finishing::sync();
  finish_row(batch, index, 1, true, 0.0f);
  Finishing::sync();
}

// All rows of the block; those that are not decided are counted.
__device__ __forceinline__ void finish_rows(const SamplingBatch &batch) {
  State *const sh = state();
  const u32 local = threadIdx.x - TEAM_THREADS;
  const bool first_warp = local < 32;
  DescriptionWords words = {};
  EditableIds ids;
  u32 index = blockIdx.x;
  if (first_warp) {
    words.load(batch, index);
    words.load_rest(batch, index);
    describe(&sh->rows[0], batch, index, words);
    if (index + gridDim.x < batch.rows) words.load(batch, index + gridDim.x);
  } else {
    clear_marks(&sh->rows[0], local);
  }
  forget_collected(&sh->rows[0], local);
  forget_collected(&sh->rows[1], local);
  Finishing::sync();
  ids.load(batch, &sh->rows[0], local);
  compute_numbers(&sh->rows[0], local);
  ids.store(&sh->rows[0], local);
  Finishing::sync();
  if (local < TELLING_THREADS) {
    arrive(&sh->ready[0]);
    arrive(&sh->begun);
  }
  if (first_warp && index + gridDim.x < batch.rows) words.load_rest(batch, index + gridDim.x);
  rehearse(batch, index, local);
  UNROLL_NOT
  for (u32 turn = 0; index < batch.rows; index += gridDim.x, ++turn) {
    Row *const row = &sh->rows[turn % 2], *const next = &sh->rows[(turn + 1) % 2];
    const u32 after = index + gridDim.x;
    const bool follows = after < batch.rows;
    if (turn) wait_for_copy(&sh->followed_to_end[(turn + 1) % 2], (turn - 1) / 2 % 2);
    Finishing::sync();  // what belongs to the row before is no longer needed
    const bool edits = row->bounded && row->plan.edits;
    // What is asked for early has come when it is needed.
    float riser = -infinity();
    if (edits) {
      const Request r = request_in(batch, index, row);
      const Risers risers(row);
      const u32 id = risers.from + local < risers.to ? row->ids[risers.from + local] : NO_ID;
      if (id < r.limit) riser = load_logit(r, id);
    }
    clear_lists(local);
    if (follows) {
      if (first_warp) {
        describe(next, batch, after, words);
        if (after + gridDim.x < batch.rows) words.load(batch, after + gridDim.x);
      } else {
        clear_marks(next, local);
      }
      Finishing::sync();
      ids.load(batch, next, local);
      compute_numbers(next, local);
      ids.store(next, local);
      Finishing::sync();
      if (local < TELLING_THREADS) arrive(&sh->ready[(turn + 1) % 2]);
      if (first_warp && after + gridDim.x < batch.rows) words.load_rest(batch, after + gridDim.x);
    }
    if (edits) prepare_edits(row, request_in(batch, index, row), local);
    Finishing::sync();
    wait_for_copy(&sh->read[turn % 2], turn / 2 % 2);
    const bool decided = row->bounded && finish_row(batch, index, turn % 2, false, riser);
    if (decided) continue;
    forget_collected(row, local);
    if (local == 0 && !(row->row.flags & NUCLEUS_ROW_PADDING)) {
      batch.out[index].status = PENDING;
      sh->undecided += 1;
    }
  }
}

}  // namespace nucleus::relay
