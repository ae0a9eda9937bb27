// The edits of a row's tokens: what each place of the history does, and what becomes of those few tokens that matter.
#pragma once

#include "solo_team.cuh"
#include "spread.cuh"

namespace nucleus::spread {

// The request with the window of its history in shared memory.
__device__ __forceinline__ Request with_window(RowState *sh, Request r) {
  r.history = sh->recent + EDITS_MOST - sh->row.history.len;
  return r;
}

// What the window's places do to their tokens: flags of an Edit, above which is DRY's passage.
constexpr u32 NOTE_PASSAGE = 16;
static_assert(EDITS_MOST < 1 << NOTE_PASSAGE);

// By threads of which this is `local` of `locals`. `r`: the request, its window in shared memory. Barriers precede and follow.
__device__ __forceinline__ void note_window(RowState *sh, const Request &r, u32 passage_limit, u32 local, u32 locals) {
  const Occurrences occurrences(r);
  const Passages passages(r, passage_limit);
  const u32 len = sh->row.history.len, skipped = len - passages.size, last = sh->recent[EDITS_MOST - 1];
  const u64 others = static_cast<u64>(sh->config.no_repeat_ngram_size) - 1;
  // In registers, since the notes might change what lies in shared memory, as far as the compiler knows.
  const bool ngrams = sh->plan.ngrams, repeats = sh->plan.passages && passages.some();
  const u32 seen = sh->plan.occurrences ? SEEN : 0, counted = sh->plan.occurrences ? OCCURRENCE : 0;
  UNROLL_NOT
  for (u32 i = EDITS_MOST - sh->window + local; i < EDITS_MOST; i += locals) {
    const u32 place = len - (EDITS_MOST - i);
    u32 note = (place >= occurrences.seen ? seen : 0) | (place >= occurrences.counted ? counted : 0);
    if (repeats && place > skipped && sh->recent[i - 1] == last) note |= passages.length(place - skipped) << NOTE_PASSAGE;
    if (ngrams && place >= others && completes_ngram(r, place, static_cast<u32>(others))) note |= NGRAM;
    sh->notes[i] = note;
  }
}

// Ids that may not be drawn now, behind those with biases; `mark(id)` of each. Barriers precede and follow.
template <class Mark>
__device__ __forceinline__ void note_bans(RowState *sh, const Request &r, Mark mark) {
  each_ban(SoloTeam<BLOCK_THREADS>{sh->maxima}, r, [&](u32 id) {
    sh->ids[sh->row.bias.len + atomicAdd(&sh->bans, 1)] = id;
    mark(id);
  });
}

// The ids that edits may raise, by position: those with biases, then, unless penalties only lower, those of the window.
struct Risers {
  const RowState *sh;
  u32 biases, window;
  bool lowers;

  __device__ __forceinline__ explicit Risers(const RowState *state)
      : sh(state), biases(state->row.bias.len), window(state->window), lowers(edits_lower(state->config)) {}
  __device__ __forceinline__ u32 count() const { return biases + (lowers ? 0 : window); }
  __device__ __forceinline__ u32 id(u32 position) const { return position < biases ? sh->ids[position] : sh->recent[EDITS_MOST - window + (position - biases)]; }
  // By how much at most.
  __device__ __forceinline__ float rise(u32 position) const { return lowers ? sh->rises[position] : infinity(); }
};

// Nothing is found of any token yet, by as many threads.
__device__ __forceinline__ void forget_found(RowState *sh, u32 local, u32 locals) {
  UNROLL_NOT
  for (u32 i = local; i < CHANGED_AT_A_TIME; i += locals) *reinterpret_cast<uint4 *>(&sh->found[i]) = make_uint4(0, 0, Changed::REACHES, 0);
}

// Finds the edits of so many tokens, by all threads, each of which looks for all of them at its places. Barriers precede and follow.
__device__ __forceinline__ void find_edits(RowState *sh, const Changed *tokens, u32 count) {
  constexpr u32 OWN = EDITS_MOST / BLOCK_THREADS;  // places of the window
  static_assert(OWN == 2);
  const u32 first = EDITS_MOST - sh->window, biases = sh->row.bias.len, listed = biases + sh->bans, from = OWN * threadIdx.x;
  const uint2 own = *reinterpret_cast<const uint2 *>(&sh->recent[from]);
  const u32 one = threadIdx.x < listed ? sh->ids[threadIdx.x] : NO_ID;
  const auto add_place = [&](u32 place, FoundEdits &found) {
    if (place < first) return;
    const u32 note = sh->notes[place];
    atomicOr(&found.flags, note & (OCCURRENCE - 1));
    atomicAdd(&found.flags, note & OCCURRENCE);
    atomicMin(&found.position, biases + (place - first));
    if (note >> NOTE_PASSAGE) atomicMax(&found.longest, note >> NOTE_PASSAGE);
  };
  const auto add_listed = [&](u32 i, FoundEdits &found) {
    if (i < biases) atomicMin(&found.position, i);
    else atomicOr(&found.flags, BANNED);
  };
  UNROLL_NOT
  for (u32 token = 0; token < count; ++token) {
    const u32 id = tokens[token].id;
    FoundEdits &found = sh->found[token];
    if (own.x == id) add_place(from, found);
    if (own.y == id) add_place(from + 1, found);
    if (one == id) add_listed(threadIdx.x, found);
    UNROLL_NOT
    for (u32 i = threadIdx.x + BLOCK_THREADS; i < listed; i += BLOCK_THREADS)
      if (sh->ids[i] == id) add_listed(i, found);
  }
}

// A token's logit after its edits, which have been found; -inf also if a riser at an earlier position is the same token. `r`: the request.
__device__ __forceinline__ float edit_token(const RowState *sh, const Request &r, const Changed &token, const FoundEdits &found, bool &strange) {
  const bool biased = found.position < sh->row.bias.len;
  const Edit edit{token.id, found.flags | (biased ? BIASED : 0), found.longest, biased ? sh->rises[found.position] : 0.0f};
  const float x = edited(r, token.logit, edit, strange);
  return token.riser != Changed::REACHES && found.position < token.riser ? -infinity() : x;
}

}  // namespace nucleus::spread
