// The edits of a row's tokens, by the finishing team.
#pragma once

#include "relay_describe.cuh"
#include "solo_team.cuh"

namespace nucleus::relay {

// The finishing team as the team of edits.cuh.
__device__ __forceinline__ SoloTeam<TEAM_THREADS, Finishing> edit_team() { return {state()->team_maxima}; }

// Empties the list, of which as much as is sorted by counting is 0 where it has no token. A barrier follows.
__device__ __forceinline__ void clear_list(u32 local) {
  State *const sh = state();
  if (local < ORDERED_MOST) sh->places[local] = 0;
  if (local == 0) sh->listed = sh->strange = 0;
}

// What happens to the ids of up to 32 neighbouring positions that are the same id, in one word: the flags of an edit and how often they are counted, as Edit has
// them; 1 + the position of the next such ids whose hash is the same, or 0; and DRY's longest passage.
constexpr u32 NOTE_FLAGS = OCCURRENCE - 1, NOTE_COUNT = 63 * OCCURRENCE, NOTE_NEXT = NOTE_COUNT + OCCURRENCE, NOTE_LONGEST = NOTE_NEXT << 11;
static_assert(NOTE_LONGEST == 1u << 21 && EDITS_MOST < 1 << 11);

// The notes of all ids that may be edited.
struct Notes {
  const Row *row;

  __device__ __forceinline__ static u32 *head(u32 id) { return &state()->note_heads[EditTable{nullptr, NOTE_HEADS}.start(id)]; }
  // Puts in what happens at this lane's position, by a warp; `id`: NO_ID where there is nothing. Of lanes with the same id and flags that meet in a slot of a
  // table, one notes for all: such ids are often many, and chains are looked through token by token.
  __device__ __forceinline__ static void put(u32 position, u32 id, u32 flags, bool counted, u32 longest) {
    State *const sh = state();
    const u32 lane = threadIdx.x % 32;
    u32 *const slot = &sh->speakers[Finishing::thread() / 32][(id ^ id >> 6 ^ id >> 12) % SPEAKERS];
    share_now(slot, lane);
    __syncwarp();
    const u32 speaker = shared_now(slot);
    const bool spoken_for = (__shfl_sync(~0u, id, speaker) == id) & (__shfl_sync(~0u, flags, speaker) == flags) & (speaker != lane);
    u32 *const note = &sh->notes[position - lane + (spoken_for ? speaker : lane)];
    if (id != NO_ID && !spoken_for) *note = flags + (counted ? OCCURRENCE : 0) + atomicExch(head(id), position + 1) * NOTE_NEXT;
    __syncwarp();
    if (id != NO_ID && spoken_for && counted) atomicAdd(note, OCCURRENCE);
    __syncwarp();
    if (longest) nucleus::raise_to(note, longest * NOTE_LONGEST | (*note & (NOTE_LONGEST - 1)));  // the lower bits do not change any more
  }
  // Calls f(position, note) for the notes of an id, while it says so.
  template <class F>
  __device__ __forceinline__ void each(u32 id, F f) const {
    State *const sh = state();
    UNROLL_NOT
    for (u32 at = *head(id); at;) {
      const u32 note = sh->notes[at - 1];
      if (row->ids()[at - 1] == id && !f(at - 1, note)) break;
      at = note % NOTE_LONGEST / NOTE_NEXT;
    }
  }
  __device__ __forceinline__ Edit edit_of(u32 id) const {
    Edit edit{id, 0, 0, 0.0f};
    each(id, [&](u32 position, u32 note) {
      const u32 longest = note / NOTE_LONGEST;
      edit.flags = (edit.flags | (note & NOTE_FLAGS)) + (note & NOTE_COUNT);
      edit.longest = longest > edit.longest ? longest : edit.longest;
      if (note & BIASED) edit.bias = row->rise(position - row->window);
      return true;
    });
    return edit;
  }
};

// Forgets all notes, by the team. A barrier follows.
__device__ __forceinline__ void clear_notes(u32 local) {
  static_assert(NOTE_HEADS == 4 * TEAM_THREADS);
  reinterpret_cast<uint4 *>(state()->note_heads)[local] = make_uint4(0, 0, 0, 0);
}

// Notes what happens to all ids that may be edited, while the row is read: all of the edits but what depends on logits.
__device__ __forceinline__ void prepare_edits(Row *row, u32 local) {
  const auto team = edit_team();
  const SlicePlan &plan = row->plan;
  const u32 window = row->window, biased = window + row->row.bias.len;
  clear_notes(local);
  if (local == 0) row->bans = 0;
  Finishing::sync();
  each_ban(team, row->request, [&](u32 id) { row->ids()[biased + atomicAdd(&row->bans, 1)] = id; });
  Request r = row->request;
  const u32 len = r.row->history.len, before = len - window;
  r.history = row->ids() - before;  // the window is in shared memory
  const Passages passages(r, plan.passages ? passage_limit(team, r) : 0);
  const u32 first = len - passages.size;  // of their window
  const u64 others = static_cast<u64>(r.config->no_repeat_ngram_size) - 1;
  Finishing::sync();
  // By warps, of 32 positions at a time.
  UNROLL_NOT
  for (u32 i = local; i - local % 32 < window; i += TEAM_THREADS) {
    const bool there = i < window;
    const u32 at = before + i;
    u32 flags = there && i >= row->seen_from ? SEEN : 0, longest = 0;
    if (there && passages.some() && at > first && passages.repeats(at - first)) longest = passages.length(at - first);
    if (there && plan.ngrams && others <= len && at >= others && ends_with(r.history, at, r.history + (len - others), static_cast<u32>(others))) flags |= NGRAM;
    __syncwarp();
    Notes::put(i, there ? row->ids()[i] : NO_ID, flags, there && i >= row->counted_from, longest);
  }
  UNROLL_NOT
  for (u32 i = local; i - local % 32 < biased + row->bans - window; i += TEAM_THREADS) {
    const u32 at = window + i;
    Notes::put(at, at < biased + row->bans ? row->ids()[at] : NO_ID, at < biased ? BIASED : BANNED, false, 0);
  }
}

// A token's place after its edits; 0 if it does not reach the threshold.
static __device__ __noinline__ u64 edited_place(const Row *row, u64 place, float threshold) {
  const Edit edit = Notes{row}.edit_of(id_at(place));
  if (!(edit.flags | edit.longest)) return place;
  bool strange = false;
  const float x = edited(row->request, logit_at(place), edit, strange);
  if (strange) state()->strange = 1;
  return x > -infinity() && x >= threshold ? place_of(x, id_at(place)) : 0;
}

// Lists up to two tokens of each lane of a warp, where the places are not 0.
__device__ __forceinline__ void list_places(u64 first, u64 second) {
  State *const sh = state();
  const u32 lane = threadIdx.x % 32, firsts = __ballot_sync(~0u, first != 0), seconds = __ballot_sync(~0u, second != 0), below = (1u << lane) - 1;
  u32 base = 0;
  if (lane == 0 && (firsts | seconds)) base = atomicAdd(&sh->listed, __popc(firsts) + __popc(seconds));
  base = __shfl_sync(~0u, base, 0);
  const u32 to = base + __popc(firsts & below), next = base + __popc(firsts) + __popc(seconds & below);
  if (first && to < LISTED) sh->places[to] = first;
  if (second && next < LISTED) sh->places[next] = second;
}

// Lists what was collected and reaches the bound, and still does so after its edits. Leaves no place collected. A barrier precedes, and one must follow.
__device__ __forceinline__ void list_collected(Row *row, u32 bound, u32 local) {
  const u32 count = row->found;
  const bool edits = row->plan.edits;
  const float threshold = value_or_none(bound);
  auto take = [&](u32 at) {
    const u64 place = at < count ? row->places[at] : 0;
    if (at < count) row->places[at] = 0;
    return static_cast<u32>(place >> 32) >= bound ? place : 0;
  };
  UNROLL_NOT
  for (u32 at = local; at - local < count; at += 2 * TEAM_THREADS) {
    u64 first = take(at), second = take(at + TEAM_THREADS);
    if (edits && first && row->marked(id_at(first))) first = edited_place(row, first, threshold);
    if (edits && second && row->marked(id_at(second))) second = edited_place(row, second, threshold);
    __syncwarp();
    list_places(first, second);
  }
}

// The tokens that edits may raise, by position in the ids: those with biases, or all.
struct Risers {
  u32 from, to;

  __device__ __forceinline__ explicit Risers(const Row *row) : from(row->lowers ? row->window : 0), to(row->window + row->row.bias.len) {}
};

// One of them.
struct Riser {
  float x = 0.0f, most = -infinity();  // its logit, and what edits may raise that to

  // The bits of a position's logit.
  __device__ __forceinline__ static u32 load(const Row *row, u32 at) {
    const u32 id = at < Risers(row).to ? row->ids()[at] : NO_ID;
    return id < row->request.limit ? load_logit_bits(row->request, id) : 0;
  }
  __device__ __forceinline__ Riser() {}
  __device__ __forceinline__ Riser(const Row *row, u32 at, u32 bits) {
    const Risers risers(row);
    const u32 id = at < risers.to ? row->ids()[at] : NO_ID;
    if (id >= row->request.limit || (row->request.mask && !mask_allows(row->request, id))) return;
    const float rise = row->lowers ? row->rise(at - risers.from) : infinity();
    x = widen_bits(row->request.dtype, bits) + 0.0f;
    if (x > -infinity() && rise > 0.0f) most = x + rise;
  }
};

// Lists tokens below the bound, which were not collected, that edits raise to it. `first`: this thread's first. Barriers as above.
__device__ __forceinline__ void list_raised(const Row *row, u32 bound, Riser first, u32 local) {
  const Risers risers(row);
  const float threshold = value_or_none(bound);
  UNROLL_NOT
  for (u32 at = risers.from + local; at - local < risers.to; at += TEAM_THREADS) {
    const Riser riser = at - local == risers.from ? first : Riser(row, at, Riser::load(row, at));
    const bool rises = riser.most >= threshold && key_of(riser.x) < bound;
    if (!__any_sync(~0u, rises)) continue;
    u64 place = 0;
    if (rises) {
      // Of equal ids, the one whose notes are found first.
      const u32 id = row->ids()[at];
      u32 found = NO_ID;
      Notes{row}.each(id, [&](u32 position, u32) { return !(position >= risers.from && position < risers.to && (found = position, true)); });
      if (found == at) place = edited_place(row, place_of(riser.x, id), threshold);
    }
    __syncwarp();
    list_places(place, 0);
  }
}

}  // namespace nucleus::relay
