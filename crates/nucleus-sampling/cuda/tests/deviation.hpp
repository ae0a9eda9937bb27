// Rows that top_n_sigma cuts at a token, or the last digits of a float beside one: every way to work against the exact path.
#pragma once

#include "drawn.hpp"

struct DeviationRows : DrawnRows {
  DeviationRows(uint32_t type, uint32_t count, uint32_t vocab_size, uint32_t beyond) : DrawnRows(type, count, vocab_size, beyond) {
    for (uint32_t r = 0; r < rows; ++r) {
      level(r);
      cut(r);
    }
  }
  float get(size_t at) const {
    uint16_t half;
    uint32_t word;
    std::memcpy(&half, &logits[at * size()], 2);
    if (dtype == NUCLEUS_F16) return __half2float(__ushort_as_half(half));
    if (dtype == NUCLEUS_F32) std::memcpy(&word, &logits[at * 4], 4);
    else word = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
  bool allows(uint32_t r, uint32_t id) const {
    if (row[r].mask < 0) return true;
    const uint32_t word = id / 32;
    return word < mask_words() && masks[row[r].mask * mask_words() + word] >> id % 32 & 1;
  }
  // Some rows have many equal logits, nearly the same ones, or ones far from 0.
  void level(uint32_t r) {
    const uint32_t kind = random() % 10;
    for (uint32_t i = 0; i < row_len && kind < 4; ++i) {
      const size_t at = static_cast<size_t>(r) * row_len + i;
      const float x = get(at);
      if (!(std::fabs(x) < INFINITY)) continue;
      put(at, kind == 0 ? std::rint(x * 4) / 4 : kind == 1 ? 2.0f + x * 1e-4f : kind == 2 ? 900.0f + x : i % 3001 == r % 3001 ? 3.0f : 2.0f);
    }
  }
  // As many deviations as lie between the largest logit and a token, and the floats beside that; the deviation as sampling rounds it.
  void cut(uint32_t r) {
    std::vector<float> there;
    for (uint32_t id = 0; id < vocab; ++id) {
      const float x = get(static_cast<size_t>(r) * row_len + id);
      if (allows(r, id) && std::fabs(x) < INFINITY) there.push_back(x);
    }
    float factor = 1.5f;
    if (!there.empty()) {
      std::sort(there.begin(), there.end(), std::greater<float>());
      uint64_t sum = 0;
      unsigned __int128 squares = 0;
      for (float x : there) {
        const uint64_t d = static_cast<uint64_t>(std::rint(std::fmin(there[0] - x, 32768.0f) * 65536.0f));
        sum += d;
        squares += static_cast<unsigned __int128>(d) * d;
      }
      const unsigned __int128 variance = squares * there.size() - static_cast<unsigned __int128>(sum) * sum;
      const float deviation = static_cast<float>(std::rint(sqrtl(static_cast<long double>(variance)) / there.size())) / 65536.0f;
      const size_t place = static_cast<size_t>(exp2f(uniform() * log2f(there.size()))) - (random() % 8 == 0);
      factor = (there[0] - there[std::min(place, there.size() - 1)]) / deviation;
      if (!(factor < INFINITY)) factor = uniform();
      for (uint32_t step = random() % 4; step; --step) factor = std::nextafter(factor, random() % 2 ? INFINITY : 0.0f);
    }
    static const float TEMPERATURES[] = {0.1f, 0.7f, 1.0f, 1.3f, 40.0f};
    SamplingProgram p = {};
    if (random() % 2) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TEMPERATURE, TEMPERATURES[random() % 5], 0};
    p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TOP_N_SIGMA, factor, random() % 8 ? 1 : random() % 64};
    if (random() % 2) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_TEMPERATURE, TEMPERATURES[random() % 5], 0};
    if (random() % 8 == 0) p.ops[p.len++] = SamplingOp{NUCLEUS_OP_MIN_P, -3.0f, 0};
    p.ops[p.len++] = SamplingOp{NUCLEUS_OP_DRAW, 0, 0};
    programs[row[r].request] = p;
  }
};

inline void check_deviation(const DeviationRows &d, uint32_t &results, uint32_t &failures) {
  const uint32_t sums = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE;
  check_ways("deviation", d, 0, nullptr, {{0, sums}, {0, sums | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_REQUEST_EACH}, {0, sums | NUCLEUS_BATCH_MANY_ROWS}, {1, sums | NUCLEUS_BATCH_MANY_ROWS}, {2, sums | NUCLEUS_BATCH_NO_EDITS}, {4, sums | NUCLEUS_BATCH_MANY_ROWS}, {8, sums}, {0, 0}, {0, NUCLEUS_BATCH_EXACT}}, is_processed, results, failures);
}

inline void check_all_deviations(uint32_t &results, uint32_t &failures) {
  for (uint32_t dtype : {0u, 1u, 2u}) {
    for (uint32_t rows : {13u, 70u})
      for (uint32_t vocab : {5u, 111u, 3001u, 32000u})
        for (uint32_t beyond : {0u, 3u}) check_deviation(DeviationRows(dtype, rows, vocab, beyond), results, failures);
    check_deviation(DeviationRows(dtype, 70, 151936, 0), results, failures);
    check_deviation(DeviationRows(dtype, 40, 151931, 5), results, failures);
  }
}
