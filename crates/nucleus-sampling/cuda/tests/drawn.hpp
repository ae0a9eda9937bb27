// Batches of which every row draws from the whole of its row, or from what a cut that follows from what it weighs keeps of it, or by a temperature that does, or smoothed: the launches for them
// against the exact path.
#pragma once

#include <cuda_fp16.h>

#include <cmath>
#include <random>

#include "device_batch.hpp"

struct DrawnRows {
  uint32_t dtype, rows, vocab, row_len;
  bool cut, masked, edited;  // cut: most of them, a third of these by top_p
  std::vector<SamplingRow> row;
  std::vector<SamplingConfig> configs;
  std::vector<SamplingProgram> programs;
  std::vector<uint32_t> arena{0}, masks;
  std::vector<char> logits;
  std::mt19937 random;

  // `beyond`: logits of a row that are no tokens.
  DrawnRows(uint32_t type, uint32_t count, uint32_t vocab_size, uint32_t beyond, bool by_top_p = false, bool with_masks = true, bool with_edits = false)
      : dtype(type), rows(count), vocab(vocab_size), row_len(vocab_size + beyond), cut(by_top_p), masked(with_masks), edited(with_edits), random(count * 31 + vocab_size + type) {
    fill_logits();
    if (masked) fill_masks();
    for (uint32_t r = 0; r < rows; ++r) describe(r);
  }
  // Rows that end with what is no token have masks that are too short.
  uint32_t mask_words() const {
    if (!masked) return 0;
    const uint32_t words = (vocab + 31) / 32, missing = 8;
    return row_len > vocab && words > 2 * missing ? words - missing : words;
  }
  // A quarter of the ids, all but a quarter, some close together, and none of them.
  static constexpr uint32_t MASKS = 4;
  void fill_masks() {
    for (uint32_t kind = 0; kind < MASKS; ++kind)
      for (uint32_t i = 0; i < mask_words(); ++i)
        masks.push_back(kind == 0 ? random() & random() : kind == 1 ? random() | random() : kind == 2 && i / 16 % 37 == 5 ? random() : 0);
  }
  float uniform() { return static_cast<float>(random() >> 8) / 16777216.0f; }
  size_t size() const { return dtype == NUCLEUS_F32 ? 4 : 2; }
  void put(size_t at, float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    const uint16_t half = dtype == NUCLEUS_BF16 ? static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16) : __half_as_ushort(__float2half(x));
    if (size() == 4) std::memcpy(&logits[at * 4], &x, 4);
    else std::memcpy(&logits[at * 2], &half, 2);
  }

  // Rows with peaks and without, of negative logits alone, with tokens that are out, with few tokens, without any, with NaN or +inf, and with many logits that are the same.
  void fill_logits() {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> base(1 << 16);
    for (float &x : base) x = normal(random);
    logits.resize(static_cast<size_t>(rows) * row_len * size());
    for (uint32_t r = 0; r < rows; ++r) {
      const uint32_t kind = random() % 12;
      const float deviation = kind < 3 ? 2.0f : 0.1f + 3 * uniform(), mean = kind == 3 ? -40.0f : 1.0f;
      const size_t row_at = static_cast<size_t>(r) * row_len;
      for (uint32_t i = 0; i < row_len; ++i) {
        float x = deviation * base[(i * 2654435761u + r * 7919) & ((1 << 16) - 1)] + mean;
        if (kind == 4 && (i / 700) % 3 == r % 3) x = -INFINITY;
        if (kind == 5 && i % 1000 != r % 5) x = -INFINITY;
        if (kind == 6 && r % 4 == 0) x = -INFINITY;
        if (kind == 8) x = std::rint(4 * x) / 4;
        put(row_at + i, x);
      }
      for (uint32_t i = 0; i < 20 && kind < 3; ++i) put(row_at + random() % vocab, 8 + 8 * uniform());
      if (kind == 7 && r % 3 == 0) put(row_at + random() % vocab, r % 2 == 0 ? INFINITY : r % 4 == 1 ? NAN : -NAN);
    }
  }
  void describe(uint32_t r) {
    static const float TEMPERATURES[] = {0.02f, 0.7f, 1.0f, 1.3f, 40.0f};
    SamplingConfig c = {};
    c.seed = random();
    c.vocab_size = vocab;
    SamplingProgram p = {};
    SamplingRow w = {};
    if (edited) edit(r, c, p, w);
    if (random() % 4) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TEMPERATURE, TEMPERATURES[random() % 5], 0};
    static const double SHARES[] = {0.02, 0.3, 0.6, 0.9, 0.95, 0.99, 0.9999, 1.0};
    static const double PROBABILITIES[] = {1e-7, 1e-5, 3e-4, 0.002, 0.01, 0.05, 0.3, 1.0};  // of epsilon; of top_a
    static const uint32_t SURPRISES[] = {0, 1, 4, 7, 10, 12, 16, 30};                      // of mirostat 2, in bits
    const uint32_t cuts = edited ? 15 + random() % 9 : cut ? random() % 24 : 0, which = random() % 8;
    const auto add = [&](uint32_t code, float arg = 0, double share = 0) { p.ops[p.len++] = SamplingOp{code, arg, static_cast<uint64_t>(share * 4294967296.0)}; };
    static const float FACTORS[] = {0.001f, 0.05f, 0.2f, 1.0f, 6.0f, 0.2f, 0.2f, 0.0f}, CURVES[] = {1.0f, 2.0f, 3.0f, 1.5f, 1.0f, 0.5f, 4.0f, 1.0f};
    c.temperature = 0.2f + uniform();
    c.dynatemp_range = 0.05f + 1.5f * uniform();
    c.dynatemp_exponent = random() % 4 ? 1.0f : 3.0f * uniform();
    c.smoothing_factor = FACTORS[which];
    c.smoothing_curve = CURVES[which];
    if (cuts >= 4 && !edited && random() % 12 == 0) add(NUCLEUS_OP_DYNAMIC_TEMPERATURE);
    if (cuts > 16) add(NUCLEUS_OP_TOP_P, 0, SHARES[which]);
    if (cuts == 4 || cuts == 5) add(NUCLEUS_OP_EPSILON, 0, PROBABILITIES[which]);
    if (cuts == 6) add(NUCLEUS_OP_TOP_A, 0, PROBABILITIES[which]);
    if (cuts == 9 || cuts == 10) add(NUCLEUS_OP_ETA, 0, PROBABILITIES[which]);
    if (cuts >= 11 && cuts <= 13) add(NUCLEUS_OP_TYPICAL_P, 0, SHARES[which]);
    if (cuts == 14 || (cuts == 15 && !edited)) add(NUCLEUS_OP_DYNAMIC_TEMPERATURE);
    if (cuts == 16 && !edited) add(NUCLEUS_OP_SMOOTHING);
    if (cut && random() % 16 == 0) c.flags |= NUCLEUS_KEEP_TIES;
    if (cut && random() % 4 == 0) c.flags |= NUCLEUS_TYPICAL_STRICT;
    if (cut && random() % 16 == 0) add(NUCLEUS_OP_MIN_P, -3.0f);  // which another launch has to decide
    if (cut && random() % 8 == 0) c.min_keep = random() % 200;
    if (cut && random() % 4 == 0) add(NUCLEUS_OP_TEMPERATURE, TEMPERATURES[random() % 5]);
    const bool surprise = cuts == 7 || cuts == 8;
    add(surprise ? NUCLEUS_OP_MIROSTAT_2 : NUCLEUS_OP_DRAW);
    w.mirostat_mu = SURPRISES[which] << 16;
    w.request = rows - 1 - r;
    w.position = random() % 1000;
    w.mask = !masked || random() % 2 ? -1 : static_cast<int32_t>(random() % MASKS);
    w.flags = (random() % 3 ? NUCLEUS_ROW_PROCESSED : 0) | (random() % 3 ? 0 : NUCLEUS_ROW_UNIFORM) | (random() % 16 ? 0 : NUCLEUS_ROW_PADDING);
    w.uniform = random() % 3 == 0 ? 0 : random() % 2 ? ~0ull : static_cast<uint64_t>(random()) << 32 | random();
    row.push_back(w);
    configs.push_back(c);
    programs.push_back(p);
  }

  // Penalties over a history, biases and ids that may not be drawn; of some rows others, or more, which another launch has to edit. Half of a history are tokens close together, so that one warp has
  // many of them, some occur often, some are the row's largest.
  void edit(uint32_t r, SamplingConfig &c, SamplingProgram &p, SamplingRow &w) {
    static const uint32_t LENGTHS[] = {0, 1, 40, 300, 1000, 1500, 2000};
    const uint32_t len = LENGTHS[random() % 7], close = random() % vocab;
    c.repetition_penalty = random() % 4 ? 1.0f + uniform() : 0.7f;
    c.presence_penalty = 2 * uniform() - 0.5f;
    c.frequency_penalty = random() % 3 ? 0.2f * uniform() : -0.1f;
    c.repeat_last_n = random() % 3 ? len : random() % 900;
    if (random() % 2) c.flags |= NUCLEUS_COUNT_PROMPT;
    w.history = {arena.size(), len, 0};
    w.prompt_len = len ? random() % len : 0;
    for (uint32_t i = 0; i < len; ++i) {
      const uint32_t kind = random() % 8, last = static_cast<uint32_t>(arena.size() - w.history.offset);
      arena.push_back(kind < 4 ? (close + random() % 400) % vocab : kind == 4 && last ? arena[arena.size() - 1 - random() % std::min(last, 20u)] : kind == 5 ? largest(r, random() % 4) : random() % vocab);
    }
    if (random() % 8) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_PENALTIES, 0, 0};
    if (random() % 16 == 0) {  // which another launch has to decide
      c.dry_multiplier = 0.8f;
      c.dry_base = 1.75f;
      c.dry_allowed_length = 2;
      c.dry_penalty_last_n = 200;
      p.ops[p.len++] = SamplingOp{NUCLEUS_OP_DRY, 0, 0};
    }
    if (random() % 16 == 0) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_PENALTIES, 0, 0};
    const uint32_t biases = random() % 2 ? 0 : std::min(random() % 5 ? 16u : 300u, vocab);
    w.bias = {arena.size(), biases, 0};
    for (uint32_t i = 0; i < biases; ++i) {
      const uint32_t first = static_cast<uint32_t>(static_cast<uint64_t>(i) * vocab / biases), last = static_cast<uint32_t>(static_cast<uint64_t>(i + 1) * vocab / biases);
      add_bias(arena, first + random() % (last - first), random() % 16 == 0 ? -INFINITY : random() % 64 == 0 && r % 8 == 0 ? 3e38f : 8 * uniform() - 4);
    }
    if (random() % 3 == 0) c.min_tokens = 500;
    const uint32_t ends = random() % 3;
    w.eos = {arena.size(), ends, 0};
    for (uint32_t i = 0; i < ends; ++i) arena.push_back(random() % 2 ? largest(r, i) : random() % vocab);
    if (random() % 16 == 0) {
      w.bad_words = {arena.size(), 1, 0};
      arena.insert(arena.end(), {0, 1, largest(r, 0)});
    }
  }
  // One of a row's largest tokens.
  uint32_t largest(uint32_t r, uint32_t which) {
    if (tops.size() != rows) tops.assign(rows, {});
    if (tops[r].empty()) {
      std::vector<std::pair<float, uint32_t>> all;
      for (uint32_t i = 0; i < vocab; ++i) all.push_back({-value(static_cast<size_t>(r) * row_len + i), i});
      const size_t few = std::min<size_t>(4, all.size());
      std::partial_sort(all.begin(), all.begin() + few, all.end());
      for (size_t i = 0; i < few; ++i) tops[r].push_back(all[i].second);
    }
    return tops[r][which % tops[r].size()];
  }
  std::vector<std::vector<uint32_t>> tops;
  // A logit; of one that is not a number, none.
  float value(size_t at) const {
    float x;
    if (size() == 4) std::memcpy(&x, &logits[at * 4], 4);
    else {
      uint16_t half;
      std::memcpy(&half, &logits[at * 2], 2);
      const uint32_t word = static_cast<uint32_t>(half) << 16;
      if (dtype == NUCLEUS_BF16) std::memcpy(&x, &word, 4);
      else x = __half2float(__ushort_as_half(half));
    }
    return x == x ? x : -INFINITY;
  }
};

inline void check_drawn(const DrawnRows &d, uint32_t &results, uint32_t &failures) {
  const uint32_t drawn = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_ALL_DRAWN, many = NUCLEUS_BATCH_MANY_ROWS | NUCLEUS_BATCH_ALL_DRAWN;
  check_ways("drawn", d, 0, nullptr, {{0, drawn}, {0, drawn | NUCLEUS_BATCH_REQUEST_EACH}, {0, many}, {2, many}, {4, many}, {8, many}, {1, many}, {0, NUCLEUS_BATCH_PORTABLE}}, [](const SamplingRow &) { return true; }, results, failures);
}
// By so many ways from one on.
inline void check_cut(const DrawnRows &d, uint32_t most_ways, uint32_t first, uint32_t &results, uint32_t &failures) {
  const uint32_t whole = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS, by_top_p = whole | NUCLEUS_BATCH_DRAWN_AFTER_TOP_P, many = NUCLEUS_BATCH_MANY_ROWS;
  const uint32_t weight = NUCLEUS_BATCH_CUT_BY_WEIGHT, surprise = NUCLEUS_BATCH_CUT_BY_SURPRISE, warmed = NUCLEUS_BATCH_WARMED, smoothed = NUCLEUS_BATCH_SMOOTHED, any = weight | surprise | warmed | smoothed, cut = by_top_p | any;
  std::vector<Way> ways{{0, cut}, {0, by_top_p}, {0, by_top_p | weight}, {0, by_top_p | surprise}, {0, by_top_p | warmed}, {0, by_top_p | smoothed}, {0, cut | many}, {0, cut | NUCLEUS_BATCH_REQUEST_EACH}, {2, cut | many}, {4, by_top_p | weight | many}, {4, by_top_p | surprise | many},
                        {8, by_top_p | warmed | many | NUCLEUS_BATCH_REQUEST_EACH}, {8, by_top_p | smoothed | many | NUCLEUS_BATCH_REQUEST_EACH}, {1, cut | many}, {0, whole}, {8, whole | many}, {0, NUCLEUS_BATCH_PORTABLE}, {0, 0, Sorted::TRULY}, {0, NUCLEUS_BATCH_NONE_WHOLE | any, Sorted::TRULY},
                        {0, warmed | many, Sorted::TRULY}, {0, NUCLEUS_BATCH_NONE_WHOLE | surprise, Sorted::AT_RANDOM}};
  ways.erase(ways.begin(), ways.begin() + std::min<size_t>(first, ways.size()));
  if (ways.size() > most_ways) ways.resize(most_ways);
  check_ways("top_p", d, 0, nullptr, ways, is_processed, results, failures);
}

inline void check_edited(const DrawnRows &d, uint32_t most_ways, uint32_t first, uint32_t &results, uint32_t &failures) {
  const uint32_t none = NUCLEUS_BATCH_NONE_BOUNDED, edited = none | NUCLEUS_BATCH_DRAWN_AFTER_TOP_P | NUCLEUS_BATCH_DRAWN_EDITED, many = NUCLEUS_BATCH_MANY_ROWS;
  std::vector<Way> ways{{0, edited}, {0, edited | many}, {0, edited | NUCLEUS_BATCH_REQUEST_EACH}, {2, edited | many}, {4, edited | many}, {8, edited | many | NUCLEUS_BATCH_REQUEST_EACH}, {1, edited | many},
                        {0, edited | NUCLEUS_BATCH_CUT_BY_WEIGHT}, {0, none}, {0, NUCLEUS_BATCH_DRAWN_EDITED, Sorted::TRULY}, {0, NUCLEUS_BATCH_DRAWN_EDITED, Sorted::AT_RANDOM}, {0, NUCLEUS_BATCH_DRAWN_EDITED | many, Sorted::AT_RANDOM}};
  ways.erase(ways.begin(), ways.begin() + std::min<size_t>(first, ways.size()));
  if (ways.size() > most_ways) ways.resize(most_ways);
  check_ways("edited", d, 4096, nullptr, ways, is_processed, results, failures);
}

// check(rows) for rows of every shape, those that top_p cuts or those that are drawn from as a whole.
template <class F>
void each_drawn(bool cut, bool masked, bool edited, F check) {
  for (uint32_t dtype : {0u, 1u, 2u}) {
    for (uint32_t rows : {1u, 13u, 24u, 70u})
      for (uint32_t vocab : {1u, 5u, 111u, 3001u, 32000u})
        for (uint32_t beyond : {0u, 3u}) check(DrawnRows(dtype, rows, vocab, beyond, cut, masked, edited));
    for (uint32_t rows : {3u, 20u, 40u}) {
      check(DrawnRows(dtype, rows, 151936, 0, cut, masked, edited));
      check(DrawnRows(dtype, rows, 151931, 5, cut, masked, edited));
    }
    check(DrawnRows(dtype, 140, 151936, 0, cut, masked, edited));
    check(DrawnRows(dtype, 20, 262144, 0, cut, masked, edited));
    check(DrawnRows(dtype, 5, NUCLEUS_MAX_VOCAB, 0, cut, masked, edited));
  }
}
