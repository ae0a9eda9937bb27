// Reads the file that tests/cuda_corpus.rs writes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../include/sampling_config.h"

struct CorpusBatch {
  uint32_t dtype, rows, row_len, mask_words, mask_count, arena_len;
  uint64_t stride, total;
  std::vector<SamplingRow> row;
  std::vector<SamplingConfig> configs;
  std::vector<SamplingProgram> programs;
  std::vector<uint32_t> arena, masks;
  std::vector<char> logits;
  std::vector<SampledToken> expected;
  std::vector<SamplingLogprob> top;  // of what each row draws from, CORPUS_TOP a row; empty in files without
};
constexpr uint32_t CORPUS_TOP = 8;

class CorpusReader {
 public:
  explicit CorpusReader(const char *path) : file_(std::fopen(path, "rb")) {
    if (!file_) { std::perror(path); std::exit(2); }
    uint32_t magic;
    read(&magic, 1);
    tops_ = magic == 0x32534C4E;
    if (magic != 0x31534C4E && !tops_) { std::fprintf(stderr, "%s is no corpus\n", path); std::exit(2); }
    read(&count_, 1);
  }
  ~CorpusReader() { std::fclose(file_); }
  uint32_t count() const { return count_; }

  CorpusBatch next() {
    CorpusBatch b;
    read(&b.dtype, 6);
    read(&b.stride, 2);
    fill(b.row, b.rows);
    fill(b.configs, b.rows);
    fill(b.programs, b.rows);
    fill(b.arena, b.arena_len);
    fill(b.masks, static_cast<size_t>(b.mask_words) * b.mask_count);
    fill(b.logits, b.total * (b.dtype == NUCLEUS_F32 ? 4 : 2));
    align();
    fill(b.expected, b.rows);
    align();
    if (tops_) fill(b.top, static_cast<size_t>(b.rows) * CORPUS_TOP);
    return b;
  }

 private:
  template <class T> void read(T *to, size_t n) {
    if (std::fread(to, sizeof(T), n, file_) != n) { std::fprintf(stderr, "the corpus ends early\n"); std::exit(2); }
  }
  template <class T> void fill(std::vector<T> &v, size_t n) { v.resize(n); if (n) read(v.data(), n); }
  void align() { std::fseek(file_, (8 - std::ftell(file_) % 8) % 8, SEEK_CUR); }

  std::FILE *file_;
  uint32_t count_ = 0;
  bool tops_ = false;
};

// Whether a row is one of those that NUCLEUS_BATCH_ALL_DRAWN is for.
inline bool draws_from_all(const CorpusBatch &b, uint32_t row) {
  const SamplingProgram &p = b.programs[row];
  bool drawn = !b.row[row].bias.len && !b.row[row].eos.len && !b.row[row].bad_words.len && !(b.row[row].flags & NUCLEUS_ROW_ALLOWED);
  for (uint32_t i = 0; i + 1 < p.len; ++i) drawn &= p.ops[i].code == NUCLEUS_OP_TEMPERATURE || p.ops[i].code == NUCLEUS_OP_NONE;
  return drawn && p.len && p.ops[p.len - 1].code == NUCLEUS_OP_DRAW;
}

// Whether a row is one of those that NUCLEUS_BATCH_ALL_COUNTED is for, but for its edits.
inline bool bounded_by_count(const CorpusBatch &b, uint32_t row) {
  constexpr uint64_t MOST = 128;
  const SamplingProgram &p = b.programs[row];
  for (uint32_t i = 0; i < p.len; ++i) {
    const SamplingOp &op = p.ops[i];
    if (op.code == NUCLEUS_OP_ARGMAX || op.code == NUCLEUS_OP_TOP_K) return (op.code == NUCLEUS_OP_ARGMAX || op.threshold <= MOST) && b.configs[row].min_keep <= MOST;
    if (op.code != NUCLEUS_OP_TEMPERATURE && op.code != NUCLEUS_OP_NONE && op.code != NUCLEUS_OP_PENALTIES && op.code != NUCLEUS_OP_DRY && op.code != NUCLEUS_OP_NO_REPEAT_NGRAM) return false;
  }
  return false;
}

// Whether two results are the same: every bit, but for raw log-probabilities a difference of a few units in the last place.
inline bool same_result(const SampledToken &a, const SampledToken &b, bool processed) {
  if (a.token_id != b.token_id || a.kept_count != b.kept_count || a.status != b.status || a.feedback != b.feedback) return false;
  uint32_t x, y;
  std::memcpy(&x, &a.logprob, 4);
  std::memcpy(&y, &b.logprob, 4);
  if (a.logprob != a.logprob) return b.logprob != b.logprob;
  return x == y || (!processed && (x > y ? x - y : y - x) <= 4);
}

inline bool same_top(const SamplingLogprob &a, const SamplingLogprob &b) {
  return a.token_id == b.token_id && (std::memcmp(&a.logprob, &b.logprob, 4) == 0 || (a.logprob != a.logprob && b.logprob != b.logprob));
}

inline void print_difference(uint32_t batch, uint32_t row, const CorpusBatch &b, const SampledToken &got) {
  const SampledToken &e = b.expected[row];
  std::printf("batch %u row %u (vocab %u, dtype %u): token %u, expected %u; kept %u, %u; status %u, %u; feedback %d, %d; logprob %.9g, %.9g; ops", batch,
              row, b.configs[row].vocab_size, b.dtype, got.token_id, e.token_id, got.kept_count, e.kept_count, got.status, e.status, got.feedback,
              e.feedback, got.logprob, e.logprob);
  for (uint32_t i = 0; i < b.programs[row].len; ++i) std::printf(" %u", b.programs[row].ops[i].code);
  std::printf("; flags %x %x\n", b.configs[row].flags, b.row[row].flags);
}
