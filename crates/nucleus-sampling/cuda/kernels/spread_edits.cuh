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

// A token's logit after its edits, by a warp; -inf also if a riser at an earlier position is the same token. `r`: the request.
__device__ __forceinline__ float edit_token(const RowState *sh, const Request &r, const Changed &token, bool &strange) {
  const u32 lane = threadIdx.x % 32, id = token.id, biases = sh->row.bias.len, first = EDITS_MOST - sh->window;
  u32 flags = 0, occurrences = 0, longest = 0, position = Changed::REACHES;
  float bias = 0.0f;
  constexpr u32 ROUND = 128, ROUNDS = 4;  // places that a warp looks at by a read of each lane, and such reads at a time
  static_assert(EDITS_MOST % (ROUND * ROUNDS) == 0);
  UNROLL_NOT
  for (u32 from = first / (ROUND * ROUNDS) * (ROUND * ROUNDS) + 4 * lane; from < EDITS_MOST; from += ROUND * ROUNDS) {
    uint4 four[ROUNDS];
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) four[i] = *reinterpret_cast<const uint4 *>(&sh->recent[from + ROUND * i]);
    bool some = false;
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i) some |= (four[i].x == id) | (four[i].y == id) | (four[i].z == id) | (four[i].w == id);
    if (!some) continue;
    u32 places = 0;  // four bits of each read
#pragma unroll
    for (u32 i = 0; i < ROUNDS; ++i)
      places |= ((four[i].x == id ? 1u : 0) | (four[i].y == id ? 2u : 0) | (four[i].z == id ? 4u : 0) | (four[i].w == id ? 8u : 0)) << 4 * i;
    UNROLL_NOT
    for (; places; places &= places - 1) {
      const u32 bit = __ffs(places) - 1, e = from + bit / 4 * ROUND + bit % 4;
      if (e < first) continue;
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
