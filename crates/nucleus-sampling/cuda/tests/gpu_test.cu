// The kernel against what the reference made of the corpus, in every cluster size, on the bounded and on the exact path.
// Usage: gpu_test CORPUS [LARGEST VOCABULARY]
#include "corpus.hpp"
#include "device.hpp"

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  CorpusReader reader(argv[1]);
  uint32_t largest = argc > 2 ? std::atoi(argv[2]) : 0xFFFFFFFFu, results = 0, failures = 0, unsupported = 0;
  for (uint32_t i = 0; i < reader.count(); ++i) {
    CorpusBatch b = reader.next();
    if (b.configs[0].vocab_size > largest) continue;
    DeviceArray<SamplingRow> row(b.row);
    DeviceArray<SamplingConfig> configs(b.configs);
    DeviceArray<SamplingProgram> programs(b.programs);
    DeviceArray<uint32_t> arena(b.arena), masks(b.masks);
    DeviceArray<char> logits(b.logits);
    DeviceArray<SampledToken> out(b.rows);
    SamplingBatch batch = {};
    batch.struct_size = sizeof(batch);
    batch.dtype = b.dtype;
    batch.rows = b.rows;
    batch.row_len = b.row_len;
    batch.row_stride = b.stride;
    batch.logits = logits.data;
    batch.row = row.data;
    batch.configs = configs.data;
    batch.programs = programs.data;
    batch.arena = arena.data;
    batch.masks = masks.data;
    batch.mask_stride = batch.mask_words = b.mask_words;
    batch.out = out.data;
    batch.max_edited = 4096;
    DeviceArray<char> workspace(sampling_workspace_size(b.rows, batch.max_edited));
    for (uint32_t cluster : {0u, 1u, 2u, 4u, 8u}) {
      for (uint32_t flags : {0u, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_BLOCK_EACH, NUCLEUS_BATCH_ALL_BOUNDED, NUCLEUS_BATCH_NONE_BOUNDED}) {
        if (flags == NUCLEUS_BATCH_EXACT && cluster == 0) continue;
        batch.cluster = cluster;
        batch.flags = flags;
        CHECK(cudaMemset(out.data, 0xA5, b.rows * sizeof(SampledToken)));
        CHECK(cudaMemset(workspace.data, 0x5A, workspace.count));
        int code = launch_advanced_sample_batch(&batch, workspace.data, workspace.count, nullptr);
        if (code) { std::printf("launch: %d\n", code); return 1; }
        CHECK(cudaDeviceSynchronize());
        std::vector<SampledToken> got = out.host();
        for (uint32_t r = 0; r < b.rows; ++r) {
          results += 1;
          if (got[r].status == NUCLEUS_UNSUPPORTED && may_be_unsupported(b, r)) { unsupported += 1; continue; }
          if (same_result(got[r], b.expected[r], b.row[r].flags & NUCLEUS_ROW_PROCESSED)) continue;
          failures += 1;
          if (failures <= 25) { std::printf("cluster %u flags %u: ", cluster, flags); print_difference(i, r, b, got[r]); }
        }
      }
    }
  }
  std::printf("%u results, %u differ, %u unsupported\n", results, failures, unsupported);
  return failures != 0;
}
