// Rows of which a short list is left first, then cut in all ways that a chain knows, in any order: every way to work against the exact path.
#pragma once

#include "drawn.hpp"

struct ChainRows : DrawnRows {
  ChainRows(uint32_t type, uint32_t count, uint32_t vocab_size, uint32_t beyond) : DrawnRows(type, count, vocab_size, beyond) {
    for (uint32_t r = 0; r < rows; ++r) {
      row[r].flags |= NUCLEUS_ROW_PROCESSED;
      program(configs[row[r].request], programs[row[r].request]);
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
  check_ways("chains", c, 0, nullptr, {{0, 0}, {0, NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_REQUEST_EACH}, {0, NUCLEUS_BATCH_MANY_ROWS}, {0, NUCLEUS_BATCH_NONE_BOUNDED}, {0, NUCLEUS_BATCH_EXACT}, {0, 0, Sorted::TRULY}},
             [](const SamplingRow &) { return true; }, results, failures);
}

inline void check_all_chains(uint32_t &results, uint32_t &failures) {
  for (uint32_t dtype : {0u, 1u, 2u}) {
    for (uint32_t rows : {13u, 25u, 35u, 60u, 300u})
      for (uint32_t vocab : {64u, 9008u}) check_chains(ChainRows(dtype, rows, vocab, rows % 2 ? 0 : 8), results, failures);
    check_chains(ChainRows(dtype, 70, 40000, 0), results, failures);
  }
}
