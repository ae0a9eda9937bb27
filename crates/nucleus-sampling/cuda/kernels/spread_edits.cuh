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
  const SlicePlan &plan = sh->plan;
  const Occurrences occurrences(r);
  const Passages passages(r, passage_limit);
  const u32 len = sh->row.history.len, skipped = len - passages.size;
  const u64 others = static_cast<u64>(sh->config.no_repeat_ngram_size) - 1;
  UNROLL_NOT
  for (u32 i = EDITS_MOST - sh->window + local; i < EDITS_MOST; i += locals) {
    const u32 place = len - (EDITS_MOST - i);
    u32 note = 0;
    if (plan.occurrences) note = (place >= occurrences.seen ? SEEN : 0) | (place >= occurrences.counted ? OCCURRENCE : 0);
    if (plan.passages && place > skipped && passages.some() && passages.repeats(place - skipped)) note |= passages.length(place - skipped) << NOTE_PASSAGE;
    if (plan.ngrams && place >= others && completes_ngram(r, place, static_cast<u32>(others))) note |= NGRAM;
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

// A token's logit after its edits, by a warp; -inf also if a riser at an earlier position is the same token. `r`: the request.
__device__ __forceinline__ float edit_token(const RowState *sh, const Request &r, const Changed &token, bool &strange) {
  const u32 lane = threadIdx.x % 32, id = token.id, biases = sh->row.bias.len, first = EDITS_MOST - sh->window;
  u32 flags = 0, occurrences = 0, longest = 0, position = Changed::REACHES;
  float bias = 0.0f;
#pragma unroll 2
  for (u32 i = first / 4 * 4 + 4 * lane; i < EDITS_MOST; i += 128) {
    const uint4 four = *reinterpret_cast<const uint4 *>(&sh->recent[i]);
    if (four.x != id && four.y != id && four.z != id && four.w != id) continue;
    UNROLL_NOT
    for (u32 e = i; e < i + 4; ++e) {
      if (sh->recent[e] != id || e < first) continue;
      const u32 note = sh->notes[e];
      flags |= note & (OCCURRENCE - 1);
      occurrences += note & OCCURRENCE;
      longest = note >> NOTE_PASSAGE > longest ? note >> NOTE_PASSAGE : longest;
      position = biases + (e - first) < position ? biases + (e - first) : position;
    }
  }
  const u32 listed = biases + sh->bans;
  UNROLL_NOT
  for (u32 i = lane; i < listed; i += 32) {
    if (sh->ids[i] != id) continue;
    flags |= i < biases ? BIASED : BANNED;
    if (i < biases) bias = sh->rises[i], position = i;
  }
  const u32 biased = __ballot_sync(~0u, flags & BIASED);
  const Edit edit{id, __reduce_or_sync(~0u, flags) + __reduce_add_sync(~0u, occurrences), __reduce_max_sync(~0u, longest), __shfl_sync(~0u, bias, biased ? __ffs(biased) - 1 : 0)};
  const float x = edited(r, token.logit, edit, strange);
  return token.riser != Changed::REACHES && __any_sync(~0u, position < token.riser) ? -infinity() : x;
}

}  // namespace nucleus::spread
