// The kernel against what the reference made of the corpus, in every cluster size, on the bounded and on the exact path; then rows so far apart that their
// elements' indices need more than 32 bits; then rows without peaks.
// Usage: gpu_test CORPUS [LARGEST VOCABULARY [PART]]; PART: `top`, `processed`, or a cluster and flags such as `0,8`, for tools that are slow.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>

#include "corpus.hpp"
#include "device.hpp"
#include "flat.hpp"

static uint32_t results = 0, failures = 0, others = 0, top_results = 0;  // others: rows of which the caller says what is not so

// One way to work.
struct Way {
  uint32_t cluster, flags;
};

// A corpus batch on the device.
struct Loaded {
  const CorpusBatch &b;
  DeviceArray<SamplingRow> row, few;  // few: every row with a mask or a list says that it allows few ids
  DeviceArray<SamplingConfig> configs;
  DeviceArray<SamplingProgram> programs;
  DeviceArray<uint32_t> arena, masks;
  DeviceArray<SampledToken> out;
  SamplingBatch batch = {};
  DeviceArray<char> workspace;

  explicit Loaded(const CorpusBatch &c)
      : b(c), row(c.row), few(said_to_be_few(c.row)), configs(c.configs), programs(c.programs), arena(c.arena), masks(c.masks), out(c.rows), workspace(sampling_workspace_size(c.rows, 4096)) {
    batch.struct_size = sizeof(batch);
    batch.dtype = b.dtype;
    batch.rows = b.rows;
    batch.row_len = b.row_len;
    batch.row = row.data;
    batch.configs = configs.data;
    batch.programs = programs.data;
    batch.arena = arena.data;
    batch.masks = masks.data;
    batch.mask_stride = batch.mask_words = b.mask_words;
    batch.out = out.data;
    batch.max_edited = 4096;
  }

  static std::vector<SamplingRow> said_to_be_few(std::vector<SamplingRow> rows) {
    for (SamplingRow &r : rows) r.flags |= r.mask >= 0 || r.flags & NUCLEUS_ROW_ALLOWED ? NUCLEUS_ROW_FEW : 0;
    return rows;
  }

  // The likeliest tokens, against a sort of the row and a softmax in binary64.
  void check_top(uint32_t number, const void *logits, uint64_t stride) {
    constexpr uint32_t COUNT = 20;
    DeviceArray<SamplingLogprob> top(static_cast<size_t>(b.rows) * COUNT);
    CHECK(cudaMemset(top.data, 0xA5, top.count * sizeof(SamplingLogprob)));
    batch.logits = logits;
    batch.row_stride = stride;
    if (launch_top_logprobs(&batch, COUNT, top.data, nullptr)) { std::printf("launch of top\n"); std::exit(1); }
    CHECK(cudaDeviceSynchronize());
    std::vector<SamplingLogprob> got = top.host();
    for (uint32_t r = 0; r < b.rows; ++r) {
      std::vector<std::pair<float, uint32_t>> order;
      bool usual = true;
      const uint32_t vocab = b.configs[b.row[r].request].vocab_size;
      for (uint32_t id = 0; id < b.row_len && id < vocab; ++id) {
        const float x = logit(r * b.stride + id);
        usual &= x < INFINITY;
        if (x > -INFINITY) order.push_back({-x, id});
      }
      std::sort(order.begin(), order.end());
      if (!order.empty()) usual &= std::fabs(order[0].first * 1.4426950408889634f) < 4194304.0f;
      double sum = 0;
      for (auto &token : order) sum += std::exp(static_cast<double>(order[0].first) - token.first);
      for (uint32_t i = 0; i < COUNT; ++i) {
        const SamplingLogprob &g = got[r * COUNT + i];
        const bool there = usual && i < order.size();
        const double expected = there ? order[0].first - static_cast<double>(order[i].first) - std::log(sum) : 0;
        top_results += 1;
        if (there ? g.token_id == order[i].second && std::fabs(g.logprob - expected) <= 1e-6 * (1 + std::fabs(expected))
                  : g.token_id == NUCLEUS_NO_TOKEN && (usual && !order.empty() ? g.logprob == -INFINITY : g.logprob != g.logprob))
          continue;
        failures += 1;
        if (failures <= 25) std::printf("batch %u row %u top %u: %u %.9g, expected %u %.9g\n", number, r, i, g.token_id, g.logprob, there ? order[i].second : ~0u, expected);
      }
    }
  }
  // The likeliest tokens of what rows draw from, against the reference; every fifth row does not ask.
  void check_processed_top(uint32_t number, const Way &way, const void *logits, uint64_t stride) {
    if (b.top.empty()) return;
    std::vector<SamplingRow> asking = b.row;
    for (uint32_t r = 0; r < b.rows; ++r) asking[r].flags |= r % 5 != 4 ? NUCLEUS_ROW_TOP : 0;
    DeviceArray<SamplingRow> rows(asking);
    DeviceArray<SamplingLogprob> top(b.top.size());
    CHECK(cudaMemset(top.data, 0xA5, top.count * sizeof(SamplingLogprob)));
    CHECK(cudaMemset(workspace.data, 0x5A, workspace.count));
    SamplingBatch of_top = batch;
    of_top.row = rows.data;
    of_top.logits = logits;
    of_top.row_stride = stride;
    of_top.cluster = way.cluster;
    if (launch_top_processed(&of_top, CORPUS_TOP, top.data, workspace.data, workspace.count, nullptr)) { std::printf("launch of processed top\n"); std::exit(1); }
    CHECK(cudaDeviceSynchronize());
    const std::vector<SamplingLogprob> got = top.host();
    SamplingLogprob untouched;
    std::memset(&untouched, 0xA5, sizeof untouched);
    for (size_t i = 0; i < got.size(); ++i) {
      const SamplingLogprob &expected = i / CORPUS_TOP % 5 != 4 ? b.top[i] : untouched;
      top_results += 1;
      if (same_top(got[i], expected)) continue;
      failures += 1;
      if (failures <= 25)
        std::printf("batch %u row %zu processed top %zu, cluster %u: %u %.9g, expected %u %.9g\n", number, i / CORPUS_TOP, i % CORPUS_TOP, way.cluster, got[i].token_id,
                    got[i].logprob, expected.token_id, expected.logprob);
    }
  }
  float logit(size_t at) const {
    uint32_t word = 0;
    if (b.dtype == NUCLEUS_F32) std::memcpy(&word, &b.logits[at * 4], 4);
    else std::memcpy(&word, &b.logits[at * 2], 2);
    if (b.dtype == NUCLEUS_F16) return __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
    if (b.dtype == NUCLEUS_BF16) word <<= 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }

  void check(uint32_t number, const Way &way, const void *logits, uint64_t stride) {
    batch.logits = logits;
    batch.row_stride = stride;
    batch.cluster = way.cluster;
    batch.flags = way.flags;
    batch.row = way.flags & (NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_ALL_FEW) ? few.data : row.data;
    CHECK(cudaMemset(out.data, 0xA5, b.rows * sizeof(SampledToken)));
    CHECK(cudaMemset(workspace.data, 0x5A, workspace.count));
    int code = launch_advanced_sample_batch(&batch, workspace.data, workspace.count, nullptr);
    if (code) { std::printf("launch: %d\n", code); std::exit(1); }
    CHECK(cudaDeviceSynchronize());
    std::vector<SampledToken> got = out.host();
    for (uint32_t r = 0; r < b.rows; ++r) {
      results += 1;
      if (got[r].status == 0xFFFFFFFFu && way.flags & NUCLEUS_BATCH_ALL_DRAWN && !draws_from_all(b, r)) { others += 1; continue; }
      if (same_result(got[r], b.expected[r], b.row[r].flags & NUCLEUS_ROW_PROCESSED)) continue;
      failures += 1;
      if (failures <= 25) { std::printf("cluster %u flags %u: ", way.cluster, way.flags); print_difference(number, r, b, got[r]); }
    }
  }
};

// The same rows 2^28 elements apart.
static bool check_far_rows(Loaded &loaded, uint32_t number) {
  const CorpusBatch &b = loaded.b;
  const uint64_t stride = 1ull << 28;
  const size_t size = b.dtype == NUCLEUS_F32 ? 4 : 2, bytes = ((b.rows - 1) * stride + b.row_len) * size;
  size_t available, total;
  CHECK(cudaMemGetInfo(&available, &total));
  if (bytes > available) return false;
  DeviceArray<char> logits(bytes);
  for (uint64_t r = 0; r < b.rows; ++r) CHECK(cudaMemcpy(logits.data + r * stride * size, b.logits.data() + r * b.stride * size, b.row_len * size, cudaMemcpyHostToDevice));
  for (Way way : {Way{0, 0}, Way{0, NUCLEUS_BATCH_MANY_ROWS}, Way{0, NUCLEUS_BATCH_NONE_BOUNDED}, Way{4, 0}, Way{8, NUCLEUS_BATCH_EXACT}})
    loaded.check(number, way, logits.data, stride);
  return true;
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  CorpusReader reader(argv[1]);
  uint32_t largest = argc > 2 ? std::atoi(argv[2]) : 0xFFFFFFFFu;
  const char *part = argc > 3 ? argv[3] : nullptr;
  bool far[3] = {};
  for (uint32_t i = 0; i < reader.count(); ++i) {
    CorpusBatch b = reader.next();
    if (b.configs[0].vocab_size > largest) continue;
    Loaded loaded(b);
    DeviceArray<char> logits(b.logits);
    if (part) {
      Way way{0, 0};
      if (!std::strcmp(part, "top")) loaded.check_top(i, logits.data, b.stride);
      else if (!std::strcmp(part, "processed")) loaded.check_processed_top(i, way, logits.data, b.stride);
      else if (std::sscanf(part, "%u,%u", &way.cluster, &way.flags) == 2) loaded.check(i, way, logits.data, b.stride);
      continue;
    }
    for (uint32_t cluster : {0u, 1u, 2u, 4u, 8u})
      for (uint32_t flags : {0u, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_MANY_ROWS, NUCLEUS_BATCH_ALL_BOUNDED, NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_ALL_COUNTED | NUCLEUS_BATCH_REQUEST_EACH, NUCLEUS_BATCH_NONE_BOUNDED,
                             NUCLEUS_BATCH_NO_EDITS, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_ALL_DRAWN,
                             NUCLEUS_BATCH_MANY_ROWS | NUCLEUS_BATCH_ALL_DRAWN})
        if (flags != NUCLEUS_BATCH_EXACT || cluster) loaded.check(i, Way{cluster, flags}, logits.data, b.stride);
    for (uint32_t flags : {NUCLEUS_BATCH_SOME_FEW, NUCLEUS_BATCH_ALL_FEW, NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_NONE_BOUNDED}) loaded.check(i, Way{0, flags}, logits.data, b.stride);
    loaded.check_top(i, logits.data, b.stride);
    for (uint32_t cluster : {0u, 1u, 4u}) loaded.check_processed_top(i, Way{cluster, 0}, logits.data, b.stride);
    if (b.rows > 8 && b.row_len >= 32000 && !far[b.dtype]) far[b.dtype] = check_far_rows(loaded, i);
  }
  uint32_t flat_results = 0;
  if (!part) check_all_flat(flat_results, failures);
  std::printf("%u results, %u of flat rows, %u top tokens, %u differ, %u not drawn; far rows in %s%s%s\n", results, flat_results, top_results, failures, others, far[0] ? "f32 " : "", far[1] ? "f16 " : "",
              far[2] ? "bf16" : "");
  return failures != 0;
}
