// Rows of which a short list is left first, then cut in all ways that a chain knows, in any order, or that are edited before: every way to work against the exact path.
#pragma once

#include "drawn.hpp"

struct ChainRows : DrawnRows {
  bool edited;

  ChainRows(uint32_t type, uint32_t count, uint32_t vocab_size, uint32_t beyond, bool with_edits = false) : DrawnRows(type, count, vocab_size, beyond), edited(with_edits) {
    for (uint32_t r = 0; r < rows; ++r) {
      row[r].flags |= NUCLEUS_ROW_PROCESSED;
      program(configs[row[r].request], programs[row[r].request]);
      if (edited) edit(r);
    }
  }
  float value(uint32_t r, uint32_t id) const {
    const char *const at = &logits[(static_cast<size_t>(r) * row_len + id) * size()];
    if (dtype == NUCLEUS_F32) return *reinterpret_cast<const float *>(at);
    const uint16_t half = *reinterpret_cast<const uint16_t *>(at);
    if (dtype == NUCLEUS_F16) return __half2float(__ushort_as_half(half));
    const uint32_t word = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
  // Of the first ids of a row those with the largest logits, which decide what a kernel takes for a bound before it knows the edits.
  std::vector<uint32_t> largest(uint32_t r, uint32_t of_first, uint32_t count) const {
    std::vector<std::pair<float, uint32_t>> ids;
    for (uint32_t id = 0; id < std::min(of_first, vocab); ++id) ids.push_back({std::isnan(value(r, id)) ? 0.0f : -value(r, id), id});
    count = std::min<size_t>(count, ids.size());
    std::partial_sort(ids.begin(), ids.begin() + count, ids.end());
    std::vector<uint32_t> chosen;
    for (uint32_t i = 0; i < count; ++i) chosen.push_back(ids[i].second);
    return chosen;
  }
  // Penalties that lower or raise, DRY and biases, over a history of any ids, or of those with the largest logits, all or some of them.
  void edit(uint32_t r) {
    SamplingConfig &c = configs[row[r].request];
    SamplingProgram &p = programs[row[r].request];
    const uint32_t kind = random() % 4, len = 50 + random() % 900;
    const bool dry = random() % 2, penalties = !dry || random() % 2;
    c.repetition_penalty = kind == 3 ? 0.8f : 1.0f + 0.5f * uniform();
    c.presence_penalty = kind == 3 ? -0.5f : uniform();
    c.frequency_penalty = 0.1f * uniform();
    c.repeat_last_n = 20 + random() % 900;
    c.dry_multiplier = 0.8f;
    c.dry_base = 1.75f;
    c.dry_allowed_length = 1;
    c.dry_penalty_last_n = 300;
    std::vector<SamplingOp> ops;
    if (penalties) ops.push_back({NUCLEUS_OP_PENALTIES, 0, 0});
    if (dry) ops.push_back({NUCLEUS_OP_DRY, 0, 0});
    for (uint32_t i = 0; i < p.len; ++i) ops.push_back(p.ops[i]);
    if (random() % 16 == 0) ops = {ops[0], {NUCLEUS_OP_ARGMAX, 0, 0}};
    p = {};
    for (const SamplingOp &op : ops) p.ops[p.len++] = op;
    SamplingRow &w = row[r];
    w.history = {arena.size(), len, 0};
    w.prompt_len = len / 4;
    const std::vector<uint32_t> top = largest(r, random() % 2 ? 20000 : vocab, len);
    for (uint32_t i = 0; i < len; ++i) arena.push_back(kind == 0 || (kind == 1 && random() % 2) ? random() % vocab : top[random() % top.size()]);
    const uint32_t biases = random() % 3 == 0 ? std::min(16u, vocab) : 0;
    w.bias = {arena.size(), biases, 0};
    for (uint32_t i = 0; i < biases; ++i) {
      const float value = random() % 4 ? 12 * uniform() - 4 : -INFINITY;
      add_bias(arena, i * (vocab / 16) + random() % (vocab / 16), value);
    }
  }
  // In Q32: all kinds of shares, none and all included.
  uint64_t share() {
    const uint32_t kind = random() % 16;
    return kind == 0 ? 1ull << 32 : kind == 1 ? 0 : kind < 9 ? random() : random() >> random() % 14;
  }
  SamplingOp cut_by(uint32_t code) {
    SamplingOp op{code, 0, 0};
    if (code == NUCLEUS_OP_TEMPERATURE) op.arg = random() % 4 ? 0.2f + 2 * uniform() : 1.0f;
    else if (code == NUCLEUS_OP_TOP_N_SIGMA) op.arg = 3 * uniform(), op.threshold = random() % 4 ? 1 : random() % 6;
    else if (code == NUCLEUS_OP_MIN_P) op.arg = logf(uniform() + 1e-6f);
    else if (code == NUCLEUS_OP_TOP_K) op.threshold = 1 + random() % 70;
    else op.threshold = share();
    return op;
  }
  void program(SamplingConfig &c, SamplingProgram &p) {
    static const uint32_t CODES[] = {NUCLEUS_OP_TOP_N_SIGMA, NUCLEUS_OP_TYPICAL_P, NUCLEUS_OP_TYPICAL_P, NUCLEUS_OP_XTC, NUCLEUS_OP_XTC, NUCLEUS_OP_TOP_P, NUCLEUS_OP_MIN_P, NUCLEUS_OP_TOP_K,
                                     NUCLEUS_OP_EPSILON, NUCLEUS_OP_ETA, NUCLEUS_OP_TOP_A, NUCLEUS_OP_TEMPERATURE, NUCLEUS_OP_DYNAMIC_TEMPERATURE, NUCLEUS_OP_NONE};
    c.xtc_probability = random() % 4 ? 1.0f : 0.5f;
    c.temperature = 0.1f + 2 * uniform();
    c.dynatemp_range = 2 * uniform();
    c.dynatemp_exponent = 0.25f * (random() % 12);
    c.flags = (random() % 2 ? NUCLEUS_TYPICAL_STRICT : 0) | (random() % 16 ? 0 : NUCLEUS_KEEP_TIES);
    c.min_keep = random() % 4 ? 0 : random() % 20;
    p = {};
    if (random() % 2) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TEMPERATURE, 0.3f + 2 * uniform(), 0};
    if (random() % 4) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TOP_K, 0, 1 + random() % (random() % 4 ? 64 : 128)};
    else p.ops[p.len++] = SamplingOp{NUCLEUS_OP_MIN_P, -0.1f - 2 * uniform(), 0};
    for (uint32_t more = random() % 6; more; --more) p.ops[p.len++] = cut_by(CODES[random() % 14]);
    p.ops[p.len++] = SamplingOp{NUCLEUS_OP_DRAW, 0, 0};
  }
};

inline void check_chains(const ChainRows &c, uint32_t &results, uint32_t &failures) {
  const uint32_t unedited = c.edited ? 0 : NUCLEUS_BATCH_NO_EDITS;
  check_ways(c.edited ? "edited" : "chains", c, c.edited ? 1100 : 0, nullptr, {{0, 0}, {0, NUCLEUS_BATCH_ALL_BOUNDED | unedited | NUCLEUS_BATCH_REQUEST_EACH}, {0, NUCLEUS_BATCH_MANY_ROWS}, {0, NUCLEUS_BATCH_NONE_BOUNDED}, {0, NUCLEUS_BATCH_EXACT}, {0, 0, Sorted::TRULY},
              {0, NUCLEUS_BATCH_ALL_BOUNDED | unedited | NUCLEUS_BATCH_COMMON_CHAINS}, {0, NUCLEUS_BATCH_COMMON_CHAINS, Sorted::TRULY}},
             [](const SamplingRow &) { return true; }, results, failures);
}

inline void check_all_chains(uint32_t &results, uint32_t &failures) {
  for (uint32_t dtype : {0u, 1u, 2u}) {
    for (uint32_t rows : {13u, 25u, 35u, 60u, 300u})
      for (uint32_t vocab : {64u, 9008u}) check_chains(ChainRows(dtype, rows, vocab, rows % 2 ? 0 : 8), results, failures);
    check_chains(ChainRows(dtype, 70, 40000, 0), results, failures);
    for (uint32_t rows : {20u, 70u, 150u, 300u})
      for (uint32_t vocab : {64u, 9008u, 40000u}) check_chains(ChainRows(dtype, rows, vocab, 8, true), results, failures);
  }
}
