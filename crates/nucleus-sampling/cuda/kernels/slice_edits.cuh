// The edits by id of a row whose tokens a block holds in its slice.
#pragma once

#include "call.cuh"

namespace nucleus {

// The threads that describe a row are those from here on.
constexpr u32 DESCRIBING_FROM = 32;
// racecheck and synccheck lose sight of who has met at a barrier that has a number: built for them, all threads meet.
#ifdef NUCLEUS_RACECHECK
constexpr bool ONE_BARRIER = true;
#else
constexpr bool ONE_BARRIER = false;
#endif
__device__ __forceinline__ bool describes() { return ONE_BARRIER || threadIdx.x >= DESCRIBING_FROM; }
__device__ __forceinline__ void meet_describing() {
  if constexpr (ONE_BARRIER) sync_block();
  else asm volatile("barrier.sync 1, %0;" ::"n"(THREADS - DESCRIBING_FROM) : "memory");
}

// Tokens of the slice that edits change: an open-addressed table with linear probing, its columns apart, so that few stores empty it.
struct EditedTokens {
  static constexpr u32 CAPACITY = SLICE_EDITS, EACH = CAPACITY / THREADS, NONE = CAPACITY;
  static_assert(EACH == 2, "a thread's slots are read and written as pairs");
  alignas(8) u32 ids[CAPACITY];
  alignas(8) u32 flags[CAPACITY];    // of an Edit
  alignas(8) u32 longest[CAPACITY];
  float biases[CAPACITY];

  __device__ __forceinline__ static EditedTokens *of(Shared *sh) {
    static_assert(sizeof(EditedTokens) <= sizeof(Shared::edits));
    return reinterpret_cast<EditedTokens *>(sh->edits);
  }
  // By every thread, between barriers of the block.
  __device__ __forceinline__ void clear() {
    reinterpret_cast<uint2 *>(ids)[threadIdx.x] = make_uint2(NO_ID, NO_ID);
    reinterpret_cast<uint2 *>(flags)[threadIdx.x] = make_uint2(0, 0);
    reinterpret_cast<uint2 *>(longest)[threadIdx.x] = make_uint2(0, 0);
  }
  __device__ __forceinline__ static u32 start(u32 id) { return (id * 0x9E3779B1u) >> 7 & (CAPACITY - 1); }
  // The slot of an id; NONE: there is no room.
  __device__ __forceinline__ u32 slot_of(u32 id) {
    u32 at = start(id);
    UNROLL_NOT
    for (u32 probes = 0; probes < CAPACITY / 2; ++probes, at = (at + 1) & (CAPACITY - 1)) {
      const u32 old = atomicCAS(&ids[at], NO_ID, id);
      if (old == NO_ID || old == id) return at;
    }
    return NONE;
  }
  __device__ __forceinline__ Edit edit(u32 slot) const { return Edit{ids[slot], flags[slot], longest[slot], biases[slot]}; }
};

// Whether rows may have edits, so that an empty table and the window are prepared for those that have.
__device__ __forceinline__ bool may_edit(const SamplingBatch &batch) { return !(batch.flags & NUCLEUS_BATCH_NO_EDITS); }

// Tokens of a history's end that are brought to shared memory, for whatever the row's edits look at; none if it is more than fits.
template <class Room = FullRoom>
__device__ __forceinline__ u32 held_window(const Shared *sh) {
  const SamplingConfig &c = sh->config;
  const u32 len = sh->row.history.len, window = c.repeat_last_n > c.dry_penalty_last_n ? c.repeat_last_n : c.dry_penalty_last_n;
  const bool all = c.no_repeat_ngram_size || sh->row.bad_words.len || window > len;
  const u32 held = all ? len : window;
  return held <= Room::TOKENS ? held : 0;
}
// Asks for them, once the row is described, by the threads from a first one on. Out of line, since what most rows run should not be fetched across it.
template <class Room = FullRoom>
static __device__ __noinline__ void ask_for_window(u32 from) {
  Shared *const sh = shared_state();
  if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
  const u32 held = held_window<Room>(sh);
  const u32 *const tokens = (sh->row.flags & NUCLEUS_ROW_SLOT ? sh->batch.slot_tokens : sh->batch.arena) + sh->row.history.offset + (sh->row.history.len - held);
  UNROLL_NOT
  for (u32 i = threadIdx.x - from; i < held; i += THREADS - from)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(sh->tokens + i)), "l"(tokens + i) : "memory");
}
// By every thread; what it has asked for is there for all after a barrier of the block.
__device__ __forceinline__ void await_window() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Notes the tokens of the slice that may not be drawn now.
static __device__ __noinline__ void note_bans(DeviceTeam team, Request r) {
  each_ban(team, r, [&](u32 id) {
    if (id - team.first >= team.held) return;
    const u32 slot = EditedTokens::of(team.sh)->slot_of(id);
    if (slot == EditedTokens::NONE) team.sh->unusual = 1;
    else atomicOr(&EditedTokens::of(team.sh)->flags[slot], BANNED);
  });
}

// Notes what a request does to the tokens of the slice in an empty table. Barriers precede and follow.
template <class Room = FullRoom>
__device__ __forceinline__ void note_edited_tokens(const DeviceTeam &team, Request r, const SlicePlan &plan) {
  Shared *const sh = team.sh;
  EditedTokens *const table = EditedTokens::of(sh);
  const u32 len = r.row->history.len, from_last = THREADS - 1 - threadIdx.x, listed = r.row->bias.len;
  // By the last threads, whose warps have the fewest tokens of a window.
  const SamplingBias *const biases = reinterpret_cast<const SamplingBias *>(r.words(r.row->bias));
  SamplingBias bias{NO_ID, 0.0f};
  if (from_last < listed) bias = biases[from_last];
  u32 window = 0;
  if (plan.passages) window = r.config->dry_penalty_last_n;
  if (plan.occurrences && r.config->repeat_last_n > window) window = r.config->repeat_last_n;
  if (plan.ngrams || window > len) window = len;
  u32 held = 0;
  if (may_edit(sh->batch)) {
    held = held_window<Room>(sh);
  } else {  // there should be none
    table->clear();
    sync_block();
  }
  if (held) r.history = sh->tokens - (len - held);
  // A slot by every lane, of an id that the block may have; lanes come together after each step.
  const auto slot_of = [&](u32 id) {
    bool looks = id - team.first < team.held && id < r.limit;
    const bool some = looks;
    u32 at = EditedTokens::start(id), slot = EditedTokens::NONE;
    UNROLL_NOT
    for (u32 probes = 0; probes < EditedTokens::CAPACITY / 2 && __any_sync(~0u, looks); ++probes) {
      if (looks) {
        const u32 old = atomicCAS(&table->ids[at], NO_ID, id);
        looks = old != NO_ID && old != id;
        slot = looks ? slot : at;
        at = (at + 1) & (EditedTokens::CAPACITY - 1);
      }
      __syncwarp();
    }
    if (some && slot == EditedTokens::NONE) sh->unusual = 1;
    return slot;
  };
  const Occurrences occurrences(r);
  const Passages passages(r, plan.passages ? passage_limit(team, r) : 0);
  const bool repeats = plan.passages && passages.some();
  const u32 skipped = len - passages.size, seen = plan.occurrences ? occurrences.seen : len, counted = plan.occurrences ? occurrences.counted : len;
  const u32 others = plan.ngrams ? r.config->no_repeat_ngram_size - 1 : NO_ID, last = repeats ? r.history[len - 1] : 0, lane = threadIdx.x % 32;
  UNROLL_NOT
  for (u32 of_warp = len - window + (threadIdx.x - lane); of_warp < len; of_warp += THREADS) {
    const u32 i = of_warp + lane;
    u32 id = i < len ? r.history[i] : NO_ID, flags = i >= seen ? SEEN : 0, length = 0;
    if (i < len && id - team.first < team.held) {
      if (repeats && i > skipped && r.history[i - 1] == last) length = passages.length(i - skipped);
      if (i >= others && completes_ngram(r, i, others)) flags |= NGRAM;
      if (!flags && !length && i < counted) id = NO_ID;
    }
    __syncwarp();
    const u32 slot = slot_of(id);
    if (slot != EditedTokens::NONE) {
      if (flags) atomicOr(&table->flags[slot], flags);
      if (i >= counted) atomicAdd(&table->flags[slot], OCCURRENCE);
      if (length) atomicMax(&table->longest[slot], length);
    }
    __syncwarp();
  }
  UNROLL_NOT
  for (u32 of_warp = from_last - (31 - lane); of_warp < listed; of_warp += THREADS) {
    const u32 i = of_warp + (31 - lane);
    if (i != from_last) bias = i < listed ? biases[i] : SamplingBias{NO_ID, 0.0f};
    const u32 slot = slot_of(bias.token_id);
    if (slot != EditedTokens::NONE) {
      atomicOr(&table->flags[slot], BIASED);
      table->biases[slot] = bias.value;
    }
    __syncwarp();
  }
  if (r.row->eos.len || r.row->bad_words.len) note_bans(team, r);
}

// As `edited`, by a warp whose lanes have tokens of the same row: they go the same way.
__device__ __forceinline__ float edited_together(const Request &r, float x, const Edit &edit) {
  const SamplingConfig &c = *r.config;
  x = (edit.flags & BANNED ? -infinity() : edit.flags & BIASED ? x + edit.bias : x) + 0.0f;
  UNROLL_NOT
  for (u32 i = 0; i < r.program->len; ++i) {
    const u32 code = r.program->ops[i].code;
    float next;
    if (code == NUCLEUS_OP_PENALTIES) {
      const float quotient = x / c.repetition_penalty, product = x * c.repetition_penalty;
      next = edit.flags & SEEN ? (x > 0.0f ? quotient : product) : x;
      const float counted = next - c.frequency_penalty * static_cast<float>(edit.count()) - c.presence_penalty;
      next = edit.count() ? counted : next;
    } else if (code == NUCLEUS_OP_DRY) {
      next = dry(x, edit, c);
    } else if (code == NUCLEUS_OP_NO_REPEAT_NGRAM) {
      next = edit.flags & NGRAM ? -infinity() : x;
    } else {
      break;
    }
    x = fabsf(x) < infinity() ? next + 0.0f : x;  // what is out stays out, and what is strange is told
    __syncwarp();
  }
  return x;
}

// Edits these tokens in the slice; whether one has become NaN or +inf. Barriers precede and follow.
__device__ __forceinline__ bool change_edited_tokens(const DeviceTeam &team, const Request &r) {
  EditedTokens *const table = EditedTokens::of(team.sh);
  // A warp's slots are taken one by one by its lanes.
  const u32 lane = threadIdx.x % 32, below = (1u << lane) - 1, first = EditedTokens::EACH * threadIdx.x;
  u32 *const taken = team.sh->tokens + threadIdx.x / 32 * 32 * EditedTokens::EACH;
  const uint2 ids = *reinterpret_cast<const uint2 *>(table->ids + first);
  const u32 firsts = __ballot_sync(~0u, ids.x < r.limit), seconds = __ballot_sync(~0u, ids.y < r.limit), count = __popc(firsts) + __popc(seconds);
  if (ids.x < r.limit) taken[__popc(firsts & below)] = first;
  if (ids.y < r.limit) taken[__popc(firsts) + __popc(seconds & below)] = first + 1;
  __syncwarp();
  bool unusual = false;
  UNROLL_NOT
  for (u32 base = 0; base < count; base += 32) {
    const Edit edit = table->edit(taken[base + lane < count ? base + lane : 0]);
    float &logit = team.slice[edit.id - team.first];
    const float before = logit, after = edited_together(r, before, edit);
    const bool changes = base + lane < count && before != -infinity();
    unusual |= changes && !(after < infinity());
    __syncwarp();
    if (changes) logit = after;
  }
  return unusual;
}

// Words of a mask's bits that a warp takes at once, one for each of half its lanes, and the tokens that they are of.
constexpr u32 MASK_WORDS = 16, MASK_TOKENS = MASK_WORDS * 32;
static_assert(MASK_TOKENS % STEP == 0 && 8 * WARPS % 32 == 0, "slices begin with a word");

// Puts out the tokens of the slice whose bits are not set. word_at(i): the slice's i-th word; `word`: this lane's first one.
template <class W>
__device__ __forceinline__ void put_out(const DeviceTeam &team, u32 word, W word_at) {
  const u32 lane = threadIdx.x % 32;
  UNROLL_NOT
  for (u32 base = threadIdx.x / 32 * MASK_TOKENS; base < team.held; base += WARPS * MASK_TOKENS) {
    const u32 own = word, next = base + WARPS * MASK_TOKENS;
    if (next < team.held) word = word_at(next / 32 + lane % MASK_WORDS);
#pragma unroll
    for (u32 k = 0; k < MASK_TOKENS / STEP; ++k) {
      const u32 i = base + k * STEP + lane * 4, bits = __shfl_sync(~0u, own, k * (STEP / 32) + lane / 8) >> lane % 8 * 4;
      if (i >= team.held || (bits & 15) == 15) continue;
      float4 *const at = reinterpret_cast<float4 *>(team.slice + i);
      const float4 v = *at;
      *at = make_float4(bits & 1 ? v.x : -infinity(), bits & 2 ? v.y : -infinity(), bits & 4 ? v.z : -infinity(), bits & 8 ? v.w : -infinity());
    }
  }
}
// This lane's first word of the row's mask; missing ones forbid.
__device__ __forceinline__ u32 mask_word(const DeviceTeam &team, const Request &r, u32 i) {
  const u32 at = team.first / 32 + i;
  return at < r.mask_words ? r.mask[at] : 0;
}
__device__ __forceinline__ u32 first_mask_word(const DeviceTeam &team, const Request &r) {
  return r.mask && team.held ? mask_word(team, r, threadIdx.x / 32 * MASK_WORDS + threadIdx.x % MASK_WORDS) : 0;
}

// Puts out what masks and lists of allowed ids forbid. `word`: first_mask_word. Barriers precede and follow.
__device__ __forceinline__ void forbid(const DeviceTeam &team, const Request &r, u32 word) {
  if (r.mask) put_out(team, word, [&](u32 i) { return mask_word(team, r, i); });
  if (!(r.row->flags & NUCLEUS_ROW_ALLOWED)) return;
  u32 *const bits = team.sh->tokens;
  sync_block();
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < (team.held + 31) / 32; i += THREADS) bits[i] = 0;
  sync_block();
  const u32 *const ids = r.words(r.row->allowed);
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < r.row->allowed.len; i += THREADS) {
    const u32 at = ids[i] - team.first;
    if (at < team.held) atomicOr(&bits[at / 32], 1u << at % 32);
  }
  sync_block();
  const auto word_at = [=](u32 i) { return bits[i < (team.held + 31) / 32 ? i : 0]; };
  put_out(team, word_at(threadIdx.x / 32 * MASK_WORDS + threadIdx.x % MASK_WORDS), word_at);
}

}  // namespace nucleus
