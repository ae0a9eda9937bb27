// The finishing team: what rows ask for, their edits, and their tokens.
#pragma once

#include "relay_chain.cuh"
#include "relay_edits.cuh"
#include "relay_rest.cuh"

namespace nucleus::relay {

// Sorts up to 128 places, descending, by counting, several threads a place, tells how many have a smaller id, and weighs the first ones, by the scale `s`. What follows the
// places is 0 up to there. Barriers precede, and one follows.
template <u32 SHARES>
__device__ __forceinline__ void sort_few(u64 *places, u32 count, float s, u32 local) {
  State *const sh = state();
  const u32 share = local % SHARES;
  const u64 own = places[local / SHARES];
  u32 most = 0;  // the largest key
#pragma unroll
  for (u32 i = 0; i < ORDERED_MOST; i += 32) most = max(most, static_cast<u32>(places[i + local % 32] >> 32));
  if (local < ORDERED_MOST) sh->weights_by_id[local] = 0;
  u32 ranks = 0;  // by id above 16 bits
  UNROLL_NOT
  for (u32 first = 0; first < count; first += 8 * SHARES) {
#pragma unroll
    for (u32 i = 0; i < 8 * SHARES; i += 2 * SHARES) {
      const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&places[first + i + 2 * share]);
      ranks += (pair.x > own ? 1 : 0) + (pair.y > own ? 1 : 0);
      ranks += (static_cast<u32>(pair.x) > static_cast<u32>(own) ? 1u << 16 : 0) + (static_cast<u32>(pair.y) > static_cast<u32>(own) ? 1u << 16 : 0);
    }
  }
  const u64 weight = Exponent(logit_at(own), s).weight(Exponent(value_of(__reduce_max_sync(~0u, most)), s).n);
#pragma unroll
  for (u32 step = SHARES / 2; step; step /= 2) ranks += __shfl_xor_sync(~0u, ranks, step);
  Finishing::sync();
  if (own && share == 0) {
    const u32 rank = ranks & 0xFFFFu;
    places[rank] = own;
    sh->by_id[rank] = ranks >> 16;
    if (rank < CHAIN_MOST) sh->chain_weights[rank] = weight;
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

// Leaves the first k tokens of a list that is too long to be ordered by id, and few more, by the team; what follows them is 0 as far as is ordered. The number
// that is left. Barriers precede and follow.
static __device__ __noinline__ u32 shorten_list(const Row *row, u32 count, u32 local) {
  State *const sh = state();
  constexpr u32 EACH = LISTED / TEAM_THREADS;
  u64 own[EACH];
  u32 largest = 0, found = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 at = i * TEAM_THREADS + local, key = static_cast<u32>((own[i] = at < count ? sh->places[at] : 0) >> 32);
    largest = key > largest ? key : largest;
  }
  if (local == 0) sh->bound = row->bound;  // all threads need the same one
  float high = value_of(edit_team().local_max(largest)), low = value_or_none(sh->bound);
  UNROLL_NOT
  for (u32 round = 0; round < 16; ++round) {
    const float middle = 0.5f * low + 0.5f * high;
    const u32 key = key_of(middle + 0.0f);
    u32 reach = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i)
      if (i * TEAM_THREADS < count) reach += Finishing::count(own[i] >> 32 >= key);
    if (reach < row->plan.k) {
      high = middle;
      continue;
    }
    low = middle;
    found = key;
    if (reach <= ORDERED_MOST) break;
  }
  Finishing::sync();
  if (!found) return count;
  clear_list(local);
  Finishing::sync();
#pragma unroll
  for (u32 i = 0; i < EACH; i += 2) list_places(own[i] >> 32 >= found ? own[i] : 0, own[i + 1] >> 32 >= found ? own[i + 1] : 0);
  Finishing::sync();
  return sh->listed;
}

// A list in any order that min_p cuts and that is then drawn from, by the team; false: it is not decided.
static __device__ __noinline__ bool draw_from_list(const Row *row, SampledToken *out, u32 count, u32 local) {
  State *const sh = state();
  const SlicePlan &plan = row->plan;
  const DrawAbove asked{row->scale, plan.temperature, row->program.ops[plan.op].arg, plan.k, row->uniform};
  return sh->list_draw.draw(sh->places, count, asked, local, [] { Finishing::sync(); }, [&](u64 place, u32 kept, float logprob) { write_token(row, place, kept, logprob, out); });
}

// The choice from a sorted list that the chain does not make, by its warps. COMMON: as of sample_by_relay.
template <bool COMMON>
static __device__ __noinline__ void choose_otherwise(const Row *row, u32 count, SampledToken *out, u32 local) {
  State *const sh = state();
  if ((!COMMON && !row->common && run_wide_chain(row, count, out, local)) || local >= 32) return;
  EditTable none{nullptr, 0};
  const Outcome outcome = run_list(DeviceWarp{}, row->request, none, ListCall{sh->places, sh->weights, count, row->plan.op, row->plan.temperature, 0});
  if (local == 0) *out = result(outcome, RawSums{}, row->request);
}

// The choice from the list, by the team. A barrier precedes.
template <bool COMMON>
__device__ __forceinline__ void choose_listed(const Row *row, SampledToken *out, u32 local) {
  State *const sh = state();
  const Request &r = row->request;
  u32 count = sh->listed;
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
  if (count > CHAIN_MOST && plan.kind == SlicePlan::ABOVE && then_draws(plan, row->program) && draw_from_list(row, out, count, local)) return;
  if (count > ORDERED_MOST && plan.kind == SlicePlan::FIRST) count = shorten_list(row, count, local);
  if (count <= ORDERED_MOST / 2) sort_few<2 * TEAM_THREADS / ORDERED_MOST>(sh->places, count, row->scale, local);
  else if (count <= ORDERED_MOST) sort_few<TEAM_THREADS / ORDERED_MOST>(sh->places, count, row->scale, local);
  else sort_many(sh->places, count, local);
  if (local < CHAIN_WARPS * 32 && !run_chain(row, count, out, local)) choose_otherwise<COMMON>(row, count, out, local);
}

// A row's token from what has been collected; false: it is not decided. By the team, after the row is read. `riser`: of list_raised. Not inlined, so that
// both calls run the same instructions.
template <bool COMMON>
static __device__ __noinline__ bool finish_row(Row *row, SampledToken *out, Riser riser) {
  State *const sh = state();
  const u32 local = threadIdx.x - TEAM_THREADS;
  if (row->strange || row->found > COLLECT_MOST) return false;
  u32 bound = row->bound;  // which may still be raised
  if (row->plan.edits) {  // a token is either collected or raised, so that all threads need the same one
    if (local == 0) sh->bound = bound;
    Finishing::sync();
    bound = sh->bound;
  }
  list_collected(row, bound, local);
  if (row->plan.edits) list_raised(row, bound, riser, local);
  Finishing::sync();
  if (sh->strange || sh->listed > LISTED) return false;
  choose_listed<COMMON>(row, out, local);
  return true;
}

// Finishes a made-up row that asks for the same as the first, so that the instructions are there when they are needed: while rows are read, fetching them takes
// microseconds.
template <bool COMMON>
__device__ __forceinline__ void rehearse(u32 local) {
  const Row *const row = &state()->rows[0];
  Row *const made_up = &state()->rows[1];
  if (!row->bounded || row->plan.greedy) return;
  constexpr u32 TOKENS = 40;
  UNROLL_NOT
  for (u32 i = local; i < &row->found - reinterpret_cast<const u32 *>(row); i += TEAM_THREADS)
    reinterpret_cast<u32 *>(made_up)[i] = reinterpret_cast<const u32 *>(row)[i];
  if (local < TOKENS) made_up->places[local] = place_of(static_cast<float>(local), local && row->plan.edits ? local * 97 : row->ids()[0]);
  clear_list(local);
  clear_notes(local);
  Finishing::sync();
  if (local == 0) {
    made_up->found = TOKENS;
    made_up->bound = made_up->strange = 0;
    made_up->request.slot = nullptr;
    made_up->ids()[0] = row->ids()[0];
    *Notes::head(row->ids()[0]) = 1;
    state()->notes[0] = SEEN + OCCURRENCE;
  }
  Finishing::sync();
  finish_row<COMMON>(made_up, &state()->spare, Riser());
  Finishing::sync();
}

// All rows of the block; those that are not decided are counted. `last`: see what_is_left.
template <bool COMMON, class B>
__device__ __forceinline__ void finish_rows(const B &batch, bool last) {
  State *const sh = state();
  const u32 local = threadIdx.x - TEAM_THREADS;
  Marking::sync();  // the first row's ids are there
  if (wants_ids(&sh->rows[0])) {
    mark_editable(&sh->rows[0], DESCRIBING_THREADS + local, Marking::THREADS_OF_IT);
    Marking::sync();
  }
  wait_for_copy(&sh->known[0], 0);
  rehearse<COMMON>(local);
  arrive_as_warp(&sh->finished[1]);
  u32 turn = 0;
  UNROLL_NOT
  for (u32 taken = blockIdx.x; taken < batch.rows; taken += gridDim.x, ++turn) {
    const u32 at = turn % 2, parity = turn / 2 % 2, index = batch.row_number(taken);
    Row *const row = &sh->rows[at];
    wait_for_copy(&sh->known[at], parity);
    Finishing::sync();  // what belongs to the row before is no longer needed
    const bool edits = wants_ids(row);
    // What is asked for early has come when it is needed.
    const u32 first_riser = Risers(row).from + local, bits = edits ? Riser::load(row, first_riser) : 0;
    clear_list(local);
    if (edits) prepare_edits(row, local);
    const Riser riser = edits ? Riser(row, first_riser, bits) : Riser();
    Finishing::sync();
    wait_for_copy(&sh->read[at], parity);
    if (!row->bounded || !finish_row<COMMON>(row, batch.out + index, riser)) {
      forget_collected(row, local, TEAM_THREADS);
      if (local == 0 && !(row->row.flags & NUCLEUS_ROW_PADDING)) {
        batch.out[index].token_id = row->largest;
        const u32 left = what_is_left(row, last);
        if (left == MANY_ABOVE) leave_many_above(batch.out + index, row->largest);
        else batch.out[index].status = left;
        sh->undecided += 1;
      }
    }
    arrive_as_warp(&sh->finished[at]);
  }
}

}  // namespace nucleus::relay
