// Rows without peaks, of which top_p and min_p keep thousands of tokens, or as many as a list holds: every way to work against the exact path.
#pragma once

#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "device_batch.hpp"

struct FlatRows {
  uint32_t dtype, rows, vocab, row_len;
  float deviation, grain;  // grain: logits are multiples of it; 0: of nothing
  std::vector<SamplingRow> row;
  std::vector<SamplingConfig> configs;
  std::vector<SamplingProgram> programs;
  std::vector<uint32_t> arena, masks;
  std::vector<char> logits;
  std::vector<float> order, largest;  // what logits are taken from, descending; the largest of each row
  std::mt19937 random;

  FlatRows(uint32_t type, uint32_t count, uint32_t vocab_size, float spread, float multiple)
      : dtype(type), rows(count), vocab(vocab_size), row_len(vocab_size + 5), deviation(spread), grain(multiple), random(count * 31 + vocab_size + type) {
    fill_logits();
    masks.resize(2 * mask_words());
    for (uint32_t &word : masks) word = random() | random();
    for (uint32_t r = 0; r < rows; ++r) describe(r);
  }
  uint32_t mask_words() const { return (vocab + 31) / 32; }
  float uniform() { return static_cast<float>(random() >> 8) / 16777216.0f; }

  void fill_logits() {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> base(1 << 18);
    for (float &x : base) x = normal(random);
    order = base;
    std::sort(order.begin(), order.end(), std::greater<float>());
    largest.assign(rows, -INFINITY);
    const size_t size = dtype == NUCLEUS_F32 ? 4 : 2;
    logits.resize(static_cast<size_t>(rows) * row_len * size);
    for (size_t i = 0; i < static_cast<size_t>(rows) * row_len; ++i) {
      float x = deviation * base[(i * 2654435761u + i / row_len * 7919) & ((1 << 18) - 1)] + 2.0f;
      if (grain > 0) x = std::rint(x / grain) * grain;
      if (i % row_len < vocab) largest[i / row_len] = std::max(largest[i / row_len], x);
      uint32_t word;
      std::memcpy(&word, &x, 4);
      uint16_t half = dtype == NUCLEUS_BF16 ? static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16) : __half_as_ushort(__float2half(x));
      if (size == 4) std::memcpy(&logits[i * 4], &x, 4);
      else std::memcpy(&logits[i * 2], &half, 2);
    }
  }
  // min_p's argument that keeps about so many of a row's tokens.
  float keeping(uint32_t r, uint32_t tokens, float temperature) const {
    const float least = deviation * order[static_cast<size_t>(tokens) * order.size() / vocab] + 2.0f;
    return std::min((least - largest[r]) / temperature, -0.001f);
  }
  void add(SamplingProgram &p, uint32_t code, float arg, double threshold) {
    p.ops[p.len++] = SamplingOp{code, arg, static_cast<uint64_t>(threshold * 4294967296.0)};
  }
  void describe(uint32_t r) {
    static const double SHARES[] = {0.02, 0.3, 0.6, 0.9, 0.95, 0.99, 0.9999};
    static const float LEAST[] = {0.5f, 0.2f, 0.05f, 0.001f};
    SamplingConfig c = {};
    c.seed = random();
    c.vocab_size = vocab;
    c.repetition_penalty = 1.3f;
    c.presence_penalty = 0.5f;
    c.repeat_last_n = 400;
    SamplingProgram p = {};
    const bool penalties = random() % 3 == 0;
    if (penalties) add(p, NUCLEUS_OP_PENALTIES, 0, 0);
    const bool passages = penalties && r % 2;  // DRY, whose breaker is in the window
    if (passages) {
      c.dry_multiplier = 0.8f;
      c.dry_base = 1.75f;
      c.dry_allowed_length = 1;
      c.dry_penalty_last_n = 300;
      add(p, NUCLEUS_OP_DRY, 0, 0);
    }
    const float temperature = random() % 2 ? 0.4f + 1.6f * uniform() : 1.0f;
    if (temperature != 1.0f) add(p, NUCLEUS_OP_TEMPERATURE, temperature, 0);
    const uint32_t kind = random() % 4;
    if (kind < 2) add(p, NUCLEUS_OP_TOP_P, 0, SHARES[random() % 7]);
    else if (kind == 2) add(p, NUCLEUS_OP_MIN_P, logf(LEAST[random() % 4]), 0);
    else add(p, NUCLEUS_OP_MIN_P, keeping(rows - 1 - r, static_cast<uint32_t>(std::min(exp2f(4 + 8 * uniform()), vocab / 2.0f)), temperature), 0);  // 16 to 4,096, most often
    if (random() % 8 == 0) c.min_keep = random() % 200;
    if (random() % 8 == 0) add(p, NUCLEUS_OP_MIN_P, logf(0.1f), 0);
    add(p, NUCLEUS_OP_DRAW, 0, 0);
    SamplingRow w = {};
    w.request = rows - 1 - r;
    w.position = random() % 1000;
    w.mask = random() % 4 ? -1 : static_cast<int32_t>(random() % 2);
    w.flags = random() % 2 ? NUCLEUS_ROW_PROCESSED : 0;
    w.history = {arena.size(), 500, 0};
    w.prompt_len = 100;
    for (uint32_t i = 0; i < 500; ++i) arena.push_back(random() % vocab);
    if (passages) {
      const uint32_t breaker = arena[arena.size() - 1 - random() % 300];  // wherever a block looks for it
      w.breakers = {arena.size(), 1, 0};
      arena.insert(arena.end(), {0, 1, breaker});  // one sequence, of one id
    }
    const uint32_t biases = random() % 3 == 0 ? 40 : 0;
    w.bias = {arena.size(), biases, 0};
    for (uint32_t i = 0; i < biases; ++i) {
      const float value = random() % 4 ? 8 * uniform() - 4 : -INFINITY;
      add_bias(arena, i * (vocab / 50) + random() % (vocab / 50), value);
    }
    row.push_back(w);
    configs.push_back(c);
    programs.push_back(p);
  }
};

inline void check_flat(const FlatRows &f, cudaStream_t stream, uint32_t &results, uint32_t &failures) {
  std::vector<Way> ways{{0, NUCLEUS_BATCH_NONE_BOUNDED}, {0, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_REQUEST_EACH}, {0, 0}, {0, NUCLEUS_BATCH_MANY_ROWS}, {8, NUCLEUS_BATCH_MANY_ROWS}, {4, 0},
                        {0, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_MANY_ROWS}, {0, NUCLEUS_BATCH_ALL_BOUNDED},
                        {0, NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_DRAW_AFTER_MIN_P}, {0, NUCLEUS_BATCH_PORTABLE},
                        {0, 0, Sorted::TRULY}, {0, NUCLEUS_BATCH_REQUEST_EACH, Sorted::TRULY}};
  constexpr uint32_t HELD_BY_TWO = 100000;  // longer rows go down the exact path over device memory by two blocks, a few clusters of them: seconds
  if (f.row_len <= HELD_BY_TWO) ways.push_back({2, NUCLEUS_BATCH_MANY_ROWS});
  check_ways("flat", f, 4096, stream, ways, is_processed, results, failures);
}

// Every `of`-th kind of rows from the `first` on.
inline void check_all_flat(uint32_t first, uint32_t of, cudaStream_t stream, uint32_t &results, uint32_t &failures) {
  uint32_t kind = 0;
  for (uint32_t dtype : {0u, 1u, 2u})
    for (uint32_t rows : {5u, 40u, 150u})
      for (uint32_t vocab : {3001u, 32003u, 151931u})
        for (float deviation : {0.3f, 1.0f, 3.0f})
          if (kind++ % of == first) check_flat(FlatRows(dtype, rows, vocab, deviation, rows == 40 && deviation == 1.0f ? 0.25f : 0.0f), stream, results, failures);
}
