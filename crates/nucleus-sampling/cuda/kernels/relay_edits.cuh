// The edits of a row's tokens, by the finishing team.
#pragma once

#include "relay_describe.cuh"
#include "solo_team.cuh"

namespace nucleus::relay {

// The finishing team as the team of edits.cuh.
__device__ __forceinline__ SoloTeam<TEAM_THREADS, Finishing> edit_team() { return {state()->team_maxima}; }

// The tokens whose edits matter: a table that takes no others.
struct ChangedTable : EditTable {
  __device__ __forceinline__ ChangedTable() : EditTable{state()->changed, CHANGED_SLOTS} {}
  __device__ __forceinline__ Edit *insert(u32 id) const { return const_cast<Edit *>(find(id)); }
  __device__ __forceinline__ bool covers(u32 id) const { return find(id) != nullptr; }
};

// Empties the table and the list. A barrier follows.
__device__ __forceinline__ void clear_lists(u32 local) {
  State *const sh = state();
  UNROLL_NOT
  for (u32 i = local; i <= CHANGED_SLOTS; i += TEAM_THREADS) sh->changed[i] = Edit{NO_ID, 0, 0, 0.0f};
  if (local == 0) sh->changed_count = sh->listed = 0;
}

// Puts a token into the table, once.
__device__ __forceinline__ void add_changed(u32 id, float x) {
  State *const sh = state();
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

// The request with the window of its history in shared memory.
__device__ __forceinline__ Request window_of(const Row *row, Request r) {
  r.history = row->ids - (row->row.history.len - row->window);
  return r;
}

// What of the edits does not depend on logits and needs device memory, while the row is read. `r`: its request.
__device__ __forceinline__ void prepare_edits(Row *row, const Request &r, u32 local) {
  const auto team = edit_team();
  const u32 first = row->window + row->row.bias.len;
  each_ban(team, r, [&](u32 id) { row->ids[first + atomicAdd(&row->bans, 1)] = id; });
  if (!row->plan.passages) return;
  const u32 limit = passage_limit(team, window_of(row, r));
  if (local == 0) row->passage_limit = limit;
}

// The tokens that edits may raise, by position in the ids: those with biases, or all.
struct Risers {
  u32 from, to;

  __device__ __forceinline__ explicit Risers(const Row *row) : from(row->lowers ? row->window : 0), to(row->window + row->row.bias.len) {}
};

// Lists what was collected and reaches the bound; tokens that may be edited go to the table instead. Leaves no place collected. A barrier precedes, and one
// must follow. Whether this thread has put a token into the table.
__device__ __forceinline__ bool list_collected(Row *row, u32 bound, u32 local) {
  State *const sh = state();
  const u32 count = row->found;
  bool some = false;
  UNROLL_NOT
  for (u32 first = 0; first < count; first += TEAM_THREADS) {
    const u32 at = first + local;
    u64 place = 0;
    if (at < count) {
      place = row->places[at];
      row->places[at] = 0;
    }
    const bool edits = place && row->plan.edits && row->marked(id_at(place));
    if (edits) {
      some = true;
      add_changed(id_at(place), logit_at(place));
    }
    const bool stays = place && !edits && static_cast<u32>(place >> 32) >= bound;
    const u32 to = reserve(&sh->listed, stays);
    if (stays) sh->places[to] = place;
  }
  return some;
}

// Puts tokens into the table that edits may raise to the threshold. `riser`: the logit of this thread's first one. Whether there was one.
__device__ __forceinline__ bool add_risers(const Row *row, const Request &r, float threshold, float riser, u32 local) {
  const Risers risers(row);
  bool some = false;
  UNROLL_NOT
  for (u32 i = risers.from + local; i < risers.to; i += TEAM_THREADS) {
    const u32 id = row->ids[i];
    const float rise = row->lowers ? row->rise(r, i - risers.from) : infinity();
    if (!(rise > 0.0f) || id >= r.limit) continue;
    const float x = i < risers.from + TEAM_THREADS ? riser : load_logit(r, id);
    if (!(x > -infinity() && x + rise >= threshold) || (r.mask && !mask_allows(r, id))) continue;
    some = true;
    add_changed(id, x + 0.0f);
  }
  return some;
}

// Edits the tokens of the table, and lists those that reach the threshold. A barrier precedes, and one must follow. False: that decides nothing.
__device__ __forceinline__ bool edit_changed(Row *row, const Request &r, float threshold, u32 local) {
  State *const sh = state();
  if (sh->changed_count >= CHANGED) return false;  // too many
  const auto team = edit_team();
  const ChangedTable table;
  const SlicePlan &plan = row->plan;
  const u32 *const biased = row->ids + row->window;
  note_biases(team, r, table, [&](u32 i) { return SamplingBias{biased[i], row->rise(r, i)}; });
  UNROLL_NOT
  for (u32 i = local; i < row->bans; i += TEAM_THREADS) {
    const u32 id = biased[row->row.bias.len + i];
    if (table.covers(id)) raise_bits(&table.insert(id)->flags, BANNED);
  }
  const Request of_window = window_of(row, r);
  if (plan.occurrences) note_occurrences(team, of_window, table);
  if (plan.passages) note_passages(team, of_window, table, row->passage_limit);
  if (plan.ngrams) note_ngrams(team, of_window, table);
  Finishing::sync();
  bool strange = false;
  UNROLL_NOT
  for (u32 at = local; at < CHANGED_SLOTS; at += TEAM_THREADS) {
    const u32 id = sh->changed[at].id;
    if (id == NO_ID) continue;
    const float x = edited(r, sh->changed_logits[at], sh->changed[at], strange);
    if (!(x > -infinity() && x >= threshold)) continue;
    const u32 to = atomicAdd(&sh->listed, 1);
    if (to < LISTED) sh->places[to] = place_of(x, id);
  }
  return !Finishing::count(strange);
}

}  // namespace nucleus::relay
