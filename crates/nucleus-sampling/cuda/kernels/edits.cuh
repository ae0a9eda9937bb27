// What a request edits token by token: biases, bans, penalties. A hash table from id to edit, built by one block.
#pragma once

#include "../include/sampling_config.h"
#include "slot.cuh"

namespace nucleus {

constexpr u32 NO_ID = 0xFFFFFFFFu;

// What happens to one token. Above the flags: how often frequency and presence count it.
enum EditFlag : u32 { BANNED = 1, BIASED = 2, SEEN = 4, NGRAM = 8, OCCURRENCE = 16 };

struct Edit {
  u32 id;
  u32 flags;
  u32 longest;  // DRY's longest passage; 0: none
  float bias;

  HD u32 count() const { return flags / OCCURRENCE; }
};

// Atomic on the device; the host runs one thread.
HD u32 claim(u32 *word, u32 expected, u32 value) {
#ifdef __CUDA_ARCH__
  return atomicCAS(word, expected, value);
#else
  u32 old = *word;
  if (old == expected) *word = value;
  return old;
#endif
}
HD void raise_bits(u32 *word, u32 value) {
#ifdef __CUDA_ARCH__
  atomicOr(word, value);
#else
  *word |= value;
#endif
}
HD void add_to(u32 *word, u32 value) {
#ifdef __CUDA_ARCH__
  atomicAdd(word, value);
#else
  *word += value;
#endif
}
HD void raise_to(u32 *word, u32 value) {
#ifdef __CUDA_ARCH__
  atomicMax(word, value);
#else
  if (value > *word) *word = value;
#endif
}

// Open addressing with linear probing; `capacity` is a power of two, and one slot more takes what finds no
// room: then `*crowded` is raised and the table is of no use.
struct EditTable {
  Edit *slots;
  u32 capacity;
  u32 *crowded = nullptr;

  HD bool covers(u32 id) const { return id != NO_ID; }
  HD u32 start(u32 id) const { return (id * 0x9E3779B1u) >> 7 & (capacity - 1); }
  HD Edit *insert(u32 id) const {
    u32 at = start(id);
    UNROLL_NOT
    for (u32 probes = 0; probes < capacity / 2; ++probes, at = (at + 1) & (capacity - 1)) {
      u32 old = claim(&slots[at].id, NO_ID, id);
      if (old == NO_ID || old == id) return &slots[at];
    }
    if (crowded) raise_bits(crowded, 1);
    return &slots[capacity];
  }
  HD const Edit *find(u32 id) const {
    UNROLL_NOT
    for (u32 at = start(id);; at = (at + 1) & (capacity - 1)) {
      if (slots[at].id == id) return &slots[at];
      if (slots[at].id == NO_ID) return nullptr;
    }
  }
};

// Everything a row is made from.
struct Request {
  const SamplingConfig *config;
  const SamplingProgram *program;
  const SamplingRow *row;
  const u32 *arena;
  const u32 *history;  // prompt, then output
  SamplingSlot *slot;  // to commit to; null: nothing is committed
  u32 *slot_tokens;
  const void *logits;  // of this row
  const u32 *mask;     // of this row; null: none
  u32 mask_words;
  u32 dtype;
  u32 limit;  // ids from here on do not exist

  HD const u32 *words(const SamplingList &list) const { return arena + list.offset; }
  HD bool has(u32 code) const {
    UNROLL_NOT
    for (u32 i = 0; i < program->len; ++i)
      if (program->ops[i].code == code) return true;
    return false;
  }
};

// The request of row `index` of a batch, from its parts.
HD Request request_of(const SamplingBatch &b, u32 index, const SamplingRow &row, const SamplingConfig &config, const SamplingProgram &program) {
  Request r;
  r.row = &row;
  r.config = &config;
  r.program = &program;
  r.arena = b.arena;
  r.history = (row.flags & NUCLEUS_ROW_SLOT ? b.slot_tokens : b.arena) + row.history.offset;
  r.slot = row.flags & NUCLEUS_ROW_SLOT && row.flags & NUCLEUS_ROW_COMMIT ? b.slots + row.slot : nullptr;
  r.slot_tokens = b.slot_tokens;
  u64 size = b.dtype == NUCLEUS_F32 ? 4 : 2;
  r.logits = static_cast<const char *>(b.logits) + index * b.row_stride * size;
  r.mask = row.mask < 0 ? nullptr : b.masks + static_cast<u64>(row.mask) * b.mask_stride;
  r.mask_words = b.mask_words;
  r.dtype = b.dtype;
  r.limit = config.vocab_size < b.row_len ? config.vocab_size : b.row_len;
  return r;
}

HD float widen_f16(uint16_t h) {
#ifdef __CUDA_ARCH__
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
#else
  u32 sign = static_cast<u32>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 0x3FFu;
  if (exponent == 31) return float_of(sign | 0x7F800000u | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  float small = static_cast<float>(fraction) * (1.0f / 16777216.0f);
  return float_of(bits_of(small) | sign);
#endif
}

// A logit's bits, of 16-bit types in the lower half; widening them waits until they are there.
HD u32 load_logit_bits(const Request &request, u32 id) {
  return request.dtype == NUCLEUS_F32 ? static_cast<const u32 *>(request.logits)[id] : static_cast<const uint16_t *>(request.logits)[id];
}
HD float widen_bits(u32 dtype, u32 bits) {
  if (dtype == NUCLEUS_F32) return float_of(bits);
  return dtype == NUCLEUS_F16 ? widen_f16(static_cast<uint16_t>(bits)) : float_of(bits << 16);
}
HD float load_logit(const Request &request, u32 id) { return widen_bits(request.dtype, load_logit_bits(request, id)); }

// The last `window` of `len` tokens begin here.
HD u32 window_start(u32 len, u32 window) { return window < len ? len - window : 0; }

// Sequences of token ids in the arena.
struct Sequences {
  const u32 *starts;
  u32 count;

  HD Sequences(const Request &request, const SamplingList &list) : starts(request.words(list)), count(list.len) {}
  HD u32 len(u32 i) const { return starts[i + 1] - starts[i]; }
  HD const u32 *ids(u32 i) const { return starts + count + 1 + starts[i]; }
};

// Whether tokens[..len] ends with these ids.
HD bool ends_with(const u32 *tokens, u32 len, const u32 *ids, u32 count) {
  if (count > len) return false;
  UNROLL_NOT
  for (u32 i = 0; i < count; ++i)
    if (tokens[len - count + i] != ids[i]) return false;
  return true;
}

// An upper bound of the number of ids that a row edits.
HD u64 edited_bound(const Request &r) {
  u32 len = r.row->history.len, window = 0;
  if (r.has(NUCLEUS_OP_DRY)) window = len < r.config->dry_penalty_last_n ? len : r.config->dry_penalty_last_n;
  if (r.has(NUCLEUS_OP_PENALTIES)) {
    u32 penalised = len < r.config->repeat_last_n ? len : r.config->repeat_last_n;
    // The window over the output may reach no further back than the one over everything.
    window = penalised > window ? penalised : window;
  }
  if (r.has(NUCLEUS_OP_NO_REPEAT_NGRAM)) window = len;
  return static_cast<u64>(window) + r.row->bias.len + r.row->bad_words.len + r.row->eos.len;
}

// Length of the longest common suffix of h[..end] and h[..len], at most `limit`.
HD u32 common_suffix(const u32 *h, u32 end, u32 len, u32 limit) {
  u32 most = end < limit ? end : limit, length = 0;
  while (length < most && h[end - 1 - length] == h[len - 1 - length]) ++length;
  return length;
}

HD bool single_breaker(const Sequences &breakers, u32 id) {
  UNROLL_NOT
  for (u32 i = 0; i < breakers.count; ++i)
    if (breakers.len(i) == 1 && breakers.ids(i)[0] == id) return true;
  return false;
}

// Empties the table with the threads of one block; the caller separates this from what follows by a barrier.
template <class Team>
HD void clear_edits(const Team &team, const EditTable &table) {
  UNROLL_NOT
  for (u32 i = team.local(); i <= table.capacity; i += team.locals()) table.slots[i] = Edit{NO_ID, 0, 0, 0.0f};
}

// How often and where tokens of the windows occur: the places of a history that count. The tables of these functions take every id that they cover.
struct Occurrences {
  u32 seen, counted;

  HD explicit Occurrences(const Request &r) {
    const SamplingConfig &c = *r.config;
    const u32 len = r.row->history.len, prompt = r.row->prompt_len;
    seen = window_start(len, c.repeat_last_n);
    counted = c.flags & NUCLEUS_COUNT_PROMPT ? seen : prompt + window_start(len - prompt, c.repeat_last_n);
  }
  HD u32 first() const { return seen < counted ? seen : counted; }
};

template <class Team, class Table>
HD void note_occurrences(const Team &team, const Request &r, const Table &table) {
  const Occurrences occurrences(r);
  UNROLL_NOT
  for (u32 i = occurrences.first() + team.local(); i < r.row->history.len; i += team.locals()) {
    u32 id = r.history[i];
    if (id >= r.limit || !table.covers(id)) continue;
    Edit *edit = table.insert(id);
    if (i >= occurrences.seen && !(edit->flags & SEEN)) raise_bits(&edit->flags, SEEN);
    if (i >= occurrences.counted) add_to(&edit->flags, OCCURRENCE);
  }
}

// Where the last complete sequence breaker of h[..size] ends.
template <class Team>
HD u32 last_break(const Team &team, const Sequences &breakers, const u32 *h, u32 size) {
  if (!breakers.count) return 0;
  u32 last = 0;
  UNROLL_NOT
  for (u32 end = team.local() + 1; end <= size; end += team.locals())
    for (u32 b = 0; b < breakers.count; ++b)
      if (ends_with(h, end, breakers.ids(b), breakers.len(b))) last = end;
  return team.local_max(last);
}

// DRY's longest passage that no sequence breaker ends. The tokens it looks at are the last of the history.
template <class Team>
HD u32 passage_limit(const Team &team, const Request &r) {
  u32 first = window_start(r.row->history.len, r.config->dry_penalty_last_n), size = r.row->history.len - first;
  return size - last_break(team, Sequences(r, r.row->breakers), r.history + first, size);
}

// Passages of the history's end that the same token followed before: h[..size] ends as h[..end] does, of which `limit` tokens at most are compared.
struct Passages {
  const u32 *h;
  u32 size, limit, allowed;
  Sequences breakers;

  HD Passages(const Request &r, u32 most) : limit(most), breakers(r, r.row->breakers) {
    const u32 first = window_start(r.row->history.len, r.config->dry_penalty_last_n);
    size = r.row->history.len - first;
    h = r.history + first;
    allowed = r.config->dry_allowed_length ? r.config->dry_allowed_length : 1;
  }
  HD bool some() const { return limit >= allowed; }
  HD bool repeats(u32 end) const { return h[end - 1] == h[size - 1]; }
  // How long the passage before h[end] is that DRY minds; 0: none. It repeats at least one token.
  HD u32 length(u32 end) const {
    const u32 common = common_suffix(h, end, size, limit);
    return common >= allowed && !single_breaker(breakers, h[end]) ? common : 0;
  }
};

template <class Team, class Table>
HD void note_passages(const Team &team, const Request &r, const Table &table, u32 limit) {
  const Passages passages(r, limit);
  UNROLL_NOT
  for (u32 end = team.local() + 1; end < passages.size && passages.some(); end += team.locals())
    if (passages.repeats(end) && passages.h[end] < r.limit && table.covers(passages.h[end])) {
      const u32 length = passages.length(end);
      if (length) raise_to(&table.insert(passages.h[end])->longest, length);
    }
}
template <class Team, class Table>
HD void note_passages(const Team &team, const Request &r, const Table &table) {
  note_passages(team, r, table, passage_limit(team, r));
}

// Whether the token at a place of the history would complete an n-gram a second time; `others`: its other tokens.
HD bool completes_ngram(const Request &r, u32 at, u32 others) {
  return ends_with(r.history, at, r.history + (r.row->history.len - others), others);
}

template <class Team, class Table>
HD void note_ngrams(const Team &team, const Request &r, const Table &table) {
  const u32 *tokens = r.history;
  u32 len = r.row->history.len;
  u64 others = r.config->no_repeat_ngram_size - 1;
  if (others > len) return;
  UNROLL_NOT
  for (u64 end = others + team.local(); end < len; end += team.locals())
    if (tokens[end] < r.limit && table.covers(tokens[end]) && completes_ngram(r, static_cast<u32>(end), static_cast<u32>(others)))
      raise_bits(&table.insert(tokens[end])->flags, NGRAM);
}

// `bias(i)`: the i-th of them.
template <class Team, class Table, class Bias>
HD void note_biases(const Team &team, const Request &r, const Table &table, Bias bias) {
  UNROLL_NOT
  for (u32 i = team.local(); i < r.row->bias.len; i += team.locals()) {
    SamplingBias entry = bias(i);
    if (!table.covers(entry.token_id)) continue;
    Edit *edit = table.insert(entry.token_id);
    raise_bits(&edit->flags, BIASED);
    edit->bias = entry.value;
  }
}

// Calls ban(id) for the ids that may not be drawn now.
template <class Team, class Ban>
HD void each_ban(const Team &team, const Request &r, Ban ban) {
  const u32 t = team.local(), n = team.locals();
  const SamplingConfig &c = *r.config;
  if ((c.flags & NUCLEUS_IGNORE_EOS) || r.row->position < c.min_tokens)
    for (u32 i = t; i < r.row->eos.len; i += n) ban(r.words(r.row->eos)[i]);
  Sequences bad(r, r.row->bad_words);
  u32 from = c.flags & NUCLEUS_BAD_WORDS_OUTPUT_ONLY ? r.row->prompt_len : 0;
  UNROLL_NOT
  for (u32 i = t; i < bad.count; i += n)
    if (ends_with(r.history + from, r.row->history.len - from, bad.ids(i), bad.len(i) - 1)) ban(bad.ids(i)[bad.len(i) - 1]);
}

template <class Team, class Table>
HD void note_bias_and_bans(const Team &team, const Request &r, const Table &table) {
  const SamplingBias *bias = reinterpret_cast<const SamplingBias *>(r.words(r.row->bias));
  note_biases(team, r, table, [bias](u32 i) { return bias[i]; });
  each_ban(team, r, [&](u32 id) { if (table.covers(id)) raise_bits(&table.insert(id)->flags, BANNED); });
}

// Fills an empty table with the threads of one block. `team.local_max` reduces over the block.
template <class Team>
HD void note_edits(const Team &team, const Request &r, const EditTable &table) {
  note_bias_and_bans(team, r, table);
  if (r.has(NUCLEUS_OP_PENALTIES)) note_occurrences(team, r, table);
  if (r.has(NUCLEUS_OP_DRY)) note_passages(team, r, table);
  if (r.has(NUCLEUS_OP_NO_REPEAT_NGRAM)) note_ngrams(team, r, table);
}

// Builds the table with the threads of one block.
template <class Team>
HD_SLOW void build_edits(const Team &team, const Request &r, const EditTable &table) {
  clear_edits(team, table);
  team.sync();
  note_edits(team, r, table);
  team.sync();
}

// Bit `id` of a mask; missing words forbid.
HD bool mask_allows(const Request &r, u32 id) {
  return id / 32 < r.mask_words && (r.mask[id / 32] >> (id % 32) & 1);
}

HD bool list_holds(const u32 *ids, u32 count, u32 id) {
  u32 low = 0, high = count;
  while (low < high) {
    u32 middle = (low + high) / 2;
    if (ids[middle] < id) low = middle + 1; else high = middle;
  }
  return low < count && ids[low] == id;
}

// Whether a token may be drawn, by everything but the table's bans.
HD bool admitted(const Request &r, u32 id) {
  if (r.mask && !mask_allows(r, id)) return false;
  return !(r.row->flags & NUCLEUS_ROW_ALLOWED) || list_holds(r.words(r.row->allowed), r.row->allowed.len, id);
}

// Whether edits by id never raise a logit, biases apart.
HD bool edits_lower(const SamplingConfig &c) {
  return c.repetition_penalty >= 1.0f && c.frequency_penalty >= 0.0f && c.presence_penalty >= 0.0f && c.dry_multiplier >= 0.0f && c.dry_base >= 0.0f;
}

HD float repetition(float x, float penalty) { return x > 0.0f ? x / penalty : x * penalty; }

// `c`: a SamplingConfig, or another that has its penalties.
template <class C>
HD float penalise(float x, const Edit &edit, const C &c) {
  if (edit.flags & SEEN) x = repetition(x, c.repetition_penalty);
  if (edit.count()) {
    x = x - c.frequency_penalty * static_cast<float>(edit.count());
    x = x - c.presence_penalty;
  }
  return x;
}

HD float dry(float x, const Edit &edit, const SamplingConfig &c) {
  if (!edit.longest) return x;
  return x - c.dry_multiplier * power(c.dry_base, static_cast<u64>(edit.longest) - c.dry_allowed_length);
}

// The logit after the edit `code` of a token that the table holds.
HD float apply_edit(u32 code, float x, const Edit &edit, const SamplingConfig &c) {
  switch (code) {
    case NUCLEUS_OP_DRY: return dry(x, edit, c);
    case NUCLEUS_OP_NO_REPEAT_NGRAM: return edit.flags & NGRAM ? -infinity() : x;
    case NUCLEUS_OP_PENALTIES: return penalise(x, edit, c);
    default: return x;
  }
}

}  // namespace nucleus
