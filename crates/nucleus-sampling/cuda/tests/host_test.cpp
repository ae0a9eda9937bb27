// The device's stages on the host, against what the reference made of the corpus. Usage: host_test CORPUS [LARGEST VOCABULARY]
#include "../kernels/host.cuh"
#include "../kernels/top_processed.cuh"
#include "corpus.hpp"

using namespace nucleus;

// A row with its edits.
struct Prepared {
  HostTeam team;
  Request request;
  std::vector<Edit> slots;
  EditTable table;

  Prepared(const SamplingBatch &batch, uint32_t index) {
    const SamplingRow &row = batch.row[index];
    request = request_of(batch, index, row, batch.configs[row.request], batch.programs[row.request]);
    u64 capacity = 16;
    while (capacity < 2 * edited_bound(request)) capacity *= 2;
    slots.resize(capacity + 1);
    table = EditTable{slots.data(), static_cast<u32>(capacity)};
    build_edits(team, request, table);
  }
  SampledToken sample(bool exact_only) const {
    RawSums raw;
    if (!(request.row->flags & NUCLEUS_ROW_PROCESSED)) raw = raw_sums(team, request, table);
    SampledToken out{};
    sample_exactly(team, request, table, raw, exact_only, &out);
    return out;
  }
  std::vector<SamplingLogprob> top() const {
    std::vector<SamplingLogprob> top(CORPUS_TOP);
    tell_top(team, request, table, TopCall{top.data(), CORPUS_TOP});
    return top;
  }
};

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  CorpusReader reader(argv[1]);
  uint32_t results = 0, tops = 0, failures = 0;
  for (uint32_t i = 0; i < reader.count(); ++i) {
    CorpusBatch b = reader.next();
    if (argc > 2 && b.configs[0].vocab_size > static_cast<uint32_t>(std::atoi(argv[2]))) continue;
    SamplingBatch batch{};
    batch.dtype = b.dtype;
    batch.rows = b.rows;
    batch.row_len = b.row_len;
    batch.row_stride = b.stride;
    batch.logits = b.logits.data();
    batch.row = b.row.data();
    batch.configs = b.configs.data();
    batch.programs = b.programs.data();
    batch.arena = b.arena.data();
    batch.masks = b.masks.data();
    batch.mask_stride = batch.mask_words = b.mask_words;
    for (uint32_t r = 0; r < b.rows; ++r) {
      const Prepared row(batch, r);
      for (bool exact_only : {false, true}) {
        SampledToken got = row.sample(exact_only);
        results += 1;
        if (same_result(got, b.expected[r], b.row[r].flags & NUCLEUS_ROW_PROCESSED)) continue;
        failures += 1;
        if (failures <= 20) { std::printf("%s: ", exact_only ? "row" : "list"); print_difference(i, r, b, got); }
      }
      const std::vector<SamplingLogprob> top = row.top();
      for (uint32_t k = 0; k < CORPUS_TOP && !b.top.empty(); ++k) {
        const SamplingLogprob &expected = b.top[r * CORPUS_TOP + k];
        tops += 1;
        if (same_top(top[k], expected)) continue;
        failures += 1;
        if (failures <= 20) std::printf("batch %u row %u top %u: %u %.9g, expected %u %.9g\n", i, r, k, top[k].token_id, top[k].logprob, expected.token_id, expected.logprob);
      }
    }
  }
  std::printf("%u results, %u likeliest tokens, %u differ\n", results, tops, failures);
  return failures != 0;
}
