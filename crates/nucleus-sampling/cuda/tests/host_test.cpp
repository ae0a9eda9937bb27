// The device's stages on the host, against what the reference made of the corpus. Usage: host_test CORPUS
#include "../kernels/host.cuh"
#include "corpus.hpp"

using namespace nucleus;

static SampledToken sample(const SamplingBatch &batch, uint32_t index, bool exact_only) {
  HostTeam team;
  const SamplingRow &row = batch.row[index];
  Request request = request_of(batch, index, row, batch.configs[row.request], batch.programs[row.request]);
  u64 capacity = 16;
  while (capacity < 2 * edited_bound(request)) capacity *= 2;
  std::vector<Edit> slots(capacity + 1);
  EditTable table{slots.data(), static_cast<u32>(capacity)};
  build_edits(team, request, table);
  RawSums raw;
  if (!(request.row->flags & NUCLEUS_ROW_PROCESSED)) raw = raw_sums(team, request, table);
  SampledToken out{};
  sample_exactly(team, request, table, raw, exact_only, &out);
  return out;
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  CorpusReader reader(argv[1]);
  uint32_t rows = 0, failures = 0;
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
      for (bool exact_only : {false, true}) {
        SampledToken got = sample(batch, r, exact_only);
        rows += 1;
        if (got.status == NUCLEUS_UNSUPPORTED && may_be_unsupported(b, r)) continue;
        if (same_result(got, b.expected[r], b.row[r].flags & NUCLEUS_ROW_PROCESSED)) continue;
        failures += 1;
        if (failures <= 20) { std::printf("%s: ", exact_only ? "row" : "list"); print_difference(i, r, b, got); }
      }
    }
  }
  std::printf("%u results, %u differ\n", rows, failures);
  return failures != 0;
}
