// The kernel against what the reference made of the corpus, in every cluster size, on the bounded and on the exact path; batches repeated to crowds, which take
// the ways of more rows; the call for one row; logits and rows that are written late; rows so far apart that their elements' indices need more than 32 bits; then
// rows without peaks, rows that are drawn from as a whole or cut by top_p, rows that top_n_sigma cuts at a token, and rows whose first tokens are cut in all ways.
// Usage: gpu_test CORPUS [BATCHES [PART [ROUNDS [STREAMS]]]]
//   BATCHES: `111`, those of vocabularies up to that; `32000-32000/2`, two of those between, spread over all
//   PART: `all`; `flat`, `drawn`, `top_p`, `edited`, `deviation`, `chains`, which take no batch of the corpus. For tools that are slow, and to be repeated: these with a type, a vocabulary and rows such
//     as `drawn,0,3001,20`, top_p with how many ways, too, from which on (`top_p,0,3001,1,1,3`); `processed` with a cluster and flags such as `processed,2,0`, `top`, `single`, `late` or `crowds`, also
//     with a number of rows such as `late,72`, `top` with flags, too (`top,20,8192`), `portable`, or a cluster and flags such as `0,8`, copies of each batch, how many rows of
//     them, and how these are sorted (1: by kind, 2: at random): `0,52,3`, `0,4,1,1`, `0,0,3,200,1`
//   ROUNDS: how often a part is gone through
//   STREAMS: so many threads at once, each with a stream of its own: they share `all` out (8 unless told), and each goes through the whole of another part (1)
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <mutex>
#include <thread>

#include "chains.hpp"
#include "corpus.hpp"
#include "deviation.hpp"
#include "device.hpp"
#include "drawn.hpp"
#include "flat.hpp"
#include "single.hpp"

constexpr uint32_t UNTOUCHED = 0xA5A5A5A5u;  // words of results before a launch
constexpr uint32_t CUTS_BY_WEIGHT = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_DRAWN_AFTER_TOP_P | NUCLEUS_BATCH_CUT_BY_WEIGHT | NUCLEUS_BATCH_CUT_BY_SURPRISE | NUCLEUS_BATCH_WARMED | NUCLEUS_BATCH_SMOOTHED;
constexpr uint32_t EDITED = NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_DRAWN_AFTER_TOP_P | NUCLEUS_BATCH_DRAWN_EDITED;
constexpr uint32_t COUNTED_FROM_LEN = 200;    // of rows, from which the caller never says untruly that a count bounds them: a block alone is slow then

static std::atomic<uint32_t> results{0}, failures{0}, others{0}, top_results{0};  // others: rows of which the caller says what is not so

static bool far[3] = {};  // the types whose rows lay far apart

template <class T>
static std::vector<T> repeated(const std::vector<T> &values, uint32_t copies) {
  std::vector<T> all;
  for (uint32_t copy = 0; copy < copies; ++copy) all.insert(all.end(), values.begin(), values.end());
  return all;
}

// Whether NUCLEUS_BATCH_ALL_COUNTED is said truly.
static bool only_counted(const CorpusBatch &b, const Way &way) { return way.flags & NUCLEUS_BATCH_ALL_COUNTED && (b.row_len > COUNTED_FROM_LEN || way.sorted != Sorted::NOT); }
static bool only_few(const Way &way) { return way.flags & (NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_ALL_FEW); }
// Whether a row may be in such a batch: of sorted rows draws, too.
static bool is_counted(const CorpusBatch &b, uint32_t row, Sorted sorted) { return bounded_by_count(b, row) || (sorted != Sorted::NOT && draws_from_all(b, row)); }

// Every row of every copy has a request of its own.
static std::vector<SamplingRow> repeated_rows(const CorpusBatch &b, uint32_t copies) {
  std::vector<SamplingRow> all = repeated(b.row, copies);
  for (uint32_t i = 0; i < all.size(); ++i) all[i].request += i / b.rows * b.rows;
  return all;
}

// Rows as a caller tells them: where the flags say so, every row with a mask or a list says that it allows few ids, or those that are not counted are padding.
static std::vector<SamplingRow> as_told(const CorpusBatch &b, uint32_t copies, const Way &way) {
  std::vector<SamplingRow> all = repeated_rows(b, copies);
  for (uint32_t i = 0; i < all.size(); ++i) {
    SamplingRow &r = all[i];
    if (only_few(way) && (r.mask >= 0 || r.flags & NUCLEUS_ROW_ALLOWED)) r.flags |= NUCLEUS_ROW_FEW;
    if (only_counted(b, way) && !is_counted(b, i % b.rows, way.sorted)) r.flags |= NUCLEUS_ROW_PADDING;
  }
  return all;
}

// The same on the device, with the ways to sort them.
struct Told {
  DeviceArray<SamplingRow> rows;
  DeviceOrders orders;

  Told(const CorpusBatch &b, uint32_t copies, uint32_t count, const Way &way) : Told(as_told(b, copies, way), count, repeated(b.programs, copies)) {}

 private:
  Told(std::vector<SamplingRow> all, uint32_t count, const std::vector<SamplingProgram> &programs) : rows(all), orders((all.resize(count), all), programs) {}
};

// Lets the launch behind it begin, and writes after a while.
__global__ void write_late(char *logits, const char *from, size_t bytes, char *rows, const char *rows_from, size_t row_bytes) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  constexpr unsigned long long NANOSECONDS = 100000;
  unsigned long long begin, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - begin < NANOSECONDS);
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < bytes; i += gridDim.x * blockDim.x) logits[i] = from[i];
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < row_bytes; i += gridDim.x * blockDim.x) rows[i] = rows_from[i];
}

// A corpus batch on the device, so many times one behind the other.
struct Loaded {
  const CorpusBatch &b;
  const uint32_t rows;  // of all copies
  const size_t logit_bytes;
  cudaStream_t stream;
  DeviceArray<SamplingConfig> configs;
  DeviceArray<SamplingProgram> programs;
  DeviceArray<uint32_t> arena, masks;
  DeviceArray<SampledToken> out;
  Told as_they_are, few, counted, counted_or_drawn;
  SamplingBatch batch = {};
  DeviceArray<char> workspace, logits;

  Loaded(const CorpusBatch &c, cudaStream_t s, uint32_t copies = 1, uint32_t most_rows = ~0u)
      : b(c), rows(std::min(c.rows * copies, most_rows)), logit_bytes(c.dtype == NUCLEUS_F32 ? 4 : 2), stream(s),
        configs(repeated(c.configs, copies)), programs(repeated(c.programs, copies)), arena(c.arena), masks(c.masks), out(rows),
        as_they_are(c, copies, rows, Way{}), few(c, copies, rows, Way{0, NUCLEUS_BATCH_SOME_FEW}), counted(c, copies, rows, Way{0, NUCLEUS_BATCH_ALL_COUNTED}),
        counted_or_drawn(c, copies, rows, Way{0, NUCLEUS_BATCH_ALL_COUNTED, Sorted::TRULY}),
        workspace(sampling_workspace_size(rows, 4096)), logits((copies - 1) * c.rows * c.stride * logit_bytes + c.logits.size()) {
    for (uint32_t copy = 0; copy < copies; ++copy)
      CHECK(cudaMemcpyAsync(logits.data + copy * c.rows * c.stride * logit_bytes, c.logits.data(), c.logits.size(), cudaMemcpyHostToDevice, stream));
    batch = batch_of(*this, b.dtype, rows, b.row_len, b.mask_words, 4096);
    batch.row = as_they_are.rows.data;
  }

  const Told &told(const Way &way) const {
    if (!only_counted(b, way)) return only_few(way) ? few : as_they_are;
    return way.sorted == Sorted::NOT ? counted : counted_or_drawn;
  }

  // The likeliest tokens, against a sort of the row and a softmax in binary64.
  void check_top(uint32_t number, uint32_t flags = 0) {
    constexpr uint32_t COUNT = 20;
    batch.flags = flags;
    DeviceArray<SamplingLogprob> top(static_cast<size_t>(rows) * COUNT);
    CHECK(cudaMemsetAsync(top.data, 0xA5, top.count * sizeof(SamplingLogprob), stream));
    batch.logits = logits.data;
    batch.row_stride = b.stride;
    if (launch_top_logprobs(&batch, COUNT, top.data, stream)) { std::printf("launch of top\n"); std::exit(1); }
    CHECK(cudaStreamSynchronize(stream));
    std::vector<SamplingLogprob> got = top.host();
    for (uint32_t r = 0; r < std::min(rows, b.rows); ++r) {
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
  void check_processed_top(uint32_t number, const Way &way) {
    if (b.top.empty()) return;
    std::vector<SamplingRow> asking = b.row;
    for (uint32_t r = 0; r < b.rows; ++r) asking[r].flags |= r % 5 != 4 ? NUCLEUS_ROW_TOP : 0;
    DeviceArray<SamplingRow> asking_rows(asking);
    DeviceArray<SamplingLogprob> top(b.top.size());
    CHECK(cudaMemsetAsync(top.data, 0xA5, top.count * sizeof(SamplingLogprob), stream));
    CHECK(cudaMemsetAsync(workspace.data, 0x5A, workspace.count, stream));
    SamplingBatch of_top = batch;
    of_top.row = asking_rows.data;
    of_top.logits = logits.data;
    of_top.row_stride = b.stride;
    of_top.cluster = way.cluster;
    of_top.flags = way.flags;
    if (launch_top_processed(&of_top, CORPUS_TOP, top.data, workspace.data, workspace.count, stream)) { std::printf("launch of processed top\n"); std::exit(1); }
    CHECK(cudaStreamSynchronize(stream));
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

  // Where a copy ends before the next one's first row begins, which a kernel in front reads with all the rest.
  void fill_between_copies() {
    const size_t apart = b.rows * b.stride * logit_bytes;
    for (size_t end = b.logits.size(); end < logits.count; end += apart) CHECK(cudaMemsetAsync(logits.data + end, 0xA5, apart - b.logits.size(), stream));
  }
  // Logits and rows that a kernel in front, which lets the next begin at once, writes only when all launches may have begun.
  void check_late(uint32_t number, const Way &way) {
    fill_between_copies();
    std::vector<SamplingRow> other = as_told(b, (rows + b.rows - 1) / b.rows, way);
    std::rotate(other.begin(), other.begin() + 1, other.end());
    DeviceArray<char> late_logits(logits.count);
    DeviceArray<SamplingRow> late_row(other);
    CHECK(cudaMemsetAsync(late_logits.data, 0xA5, late_logits.count, stream));
    check(number, way, late_logits.data, b.stride, late_row.data, [&] {
      write_late<<<8, 256, 0, stream>>>(late_logits.data, logits.data, late_logits.count, reinterpret_cast<char *>(late_row.data), reinterpret_cast<const char *>(told(way).rows.data), rows * sizeof(SamplingRow));
      CHECK(cudaGetLastError());
    });
  }
  // So many rows by the call for one row.
  void check_single(uint32_t number) {
    batch.logits = logits.data;
    SingleCheck single{b, batch, stream};
    results += 1;
    if (!single.refuses()) failures += 1, std::printf("batch %u: a call for one row is not refused\n", number);
    for (uint32_t r = 0; r < rows; ++r) {
      results += 1;
      if (single.agrees(r)) continue;
      failures += 1;
      if (failures <= 25) std::printf("batch %u row %u (vocab %u, dtype %u): the call for one row says something else\n", number, r, b.configs[r].vocab_size, b.dtype);
    }
  }
  void check(uint32_t number, const Way &way) { check(number, way, logits.data, b.stride); }
  void check(uint32_t number, const Way &way, const void *at, uint64_t stride, const SamplingRow *rows_at = nullptr, const std::function<void()> &in_front = [] {}) {
    batch.logits = at;
    batch.row_stride = stride;
    batch.cluster = way.cluster;
    batch.flags = way.flags;
    batch.row = rows_at ? rows_at : told(way).rows.data;
    CHECK(cudaMemsetAsync(out.data, UNTOUCHED & 0xFF, rows * sizeof(SampledToken), stream));
    CHECK(cudaMemsetAsync(workspace.data, 0x5A, workspace.count, stream));
    in_front();
    const SamplingOrder order = told(way).orders.of(way.sorted);
    int code = launch_sorted_sample_batch(&batch, &order, workspace.data, workspace.count, stream);
    if (code) { std::printf("launch: %d\n", code); std::exit(1); }
    CHECK(cudaStreamSynchronize(stream));
    std::vector<SampledToken> got = out.host();
    for (uint32_t i = 0; i < rows; ++i) {
      const uint32_t r = i % b.rows;
      results += 1;
      if (only_counted(b, way) && !is_counted(b, r, way.sorted)) {
        failures += got[i].status != UNTOUCHED || got[i].token_id != UNTOUCHED;
        continue;
      }
      if (got[i].status == 0xFFFFFFFFu && way.flags & NUCLEUS_BATCH_ALL_DRAWN && !draws_from_all(b, r)) { others += 1; continue; }
      if (same_result(got[i], b.expected[r], b.row[r].flags & NUCLEUS_ROW_PROCESSED)) continue;
      failures += 1;
      if (failures <= 25) { std::printf("cluster %u flags %u sorted %u, row %u of %u: ", way.cluster, way.flags, static_cast<uint32_t>(way.sorted), i, rows); print_difference(number, r, b, got[i]); }
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

// A batch repeated to so many rows and, of `whole` copies, a few more.
static Loaded repeated_to(const CorpusBatch &b, cudaStream_t stream, uint32_t rows, bool whole) {
  return Loaded(b, stream, (rows + b.rows - 1) / b.rows, whole ? ~0u : rows);
}

// Rows that the caller has sorted by kind.
static void check_sorted(Loaded &loaded, uint32_t number) {
  for (Sorted sorted : {Sorted::TRULY, Sorted::AT_RANDOM})
    for (uint32_t flags : {NUCLEUS_BATCH_CUT_BY_WEIGHT, NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_REQUEST_EACH}) loaded.check(number, Way{0, flags, sorted});
  for (uint32_t flags : {NUCLEUS_BATCH_SOME_FEW, NUCLEUS_BATCH_ALL_COUNTED, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_MANY_ROWS}) loaded.check(number, Way{0, flags, Sorted::TRULY});
}

// A batch repeated to about as many rows as each way of working is for, or to so many.
static void check_crowds(const CorpusBatch &b, uint32_t number, cudaStream_t stream, uint32_t of_rows = 0) {
  for (uint32_t rows : of_rows ? std::vector<uint32_t>{of_rows} : std::vector<uint32_t>{40, 72, 300}) {
    Loaded crowd = repeated_to(b, stream, rows, !of_rows);
    for (uint32_t flags : {0u, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_ALL_BOUNDED, NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_ALL_COUNTED | NUCLEUS_BATCH_REQUEST_EACH | NUCLEUS_BATCH_COMMON_CHAINS, NUCLEUS_BATCH_NONE_BOUNDED,
                           NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_ALL_DRAWN, CUTS_BY_WEIGHT, EDITED, NUCLEUS_BATCH_NONE_WHOLE, NUCLEUS_BATCH_SOME_FEW})
      crowd.check(number, Way{0, flags});
    check_sorted(crowd, number);
  }
}

// What the caller's kernel has not written yet when the launches begin.
static void check_late(const CorpusBatch &b, uint32_t number, cudaStream_t stream, uint32_t of_rows = 0) {
  for (uint32_t rows : of_rows ? std::vector<uint32_t>{of_rows} : std::vector<uint32_t>{1, 72}) {
    Loaded loaded = repeated_to(b, stream, rows, !of_rows);
    for (uint32_t flags : {0u, NUCLEUS_BATCH_ALL_BOUNDED, NUCLEUS_BATCH_COMMON_CHAINS, NUCLEUS_BATCH_NONE_BOUNDED, NUCLEUS_BATCH_NO_EDITS, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_ALL_DRAWN, CUTS_BY_WEIGHT, EDITED,
                           NUCLEUS_BATCH_SOME_FEW, NUCLEUS_BATCH_ALL_FEW, NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_NONE_BOUNDED})
      loaded.check_late(number, Way{0, flags});
    for (uint32_t flags : {0u, NUCLEUS_BATCH_ALL_COUNTED}) loaded.check_late(number, Way{0, flags, Sorted::TRULY});
    loaded.check_late(number, Way{0, NUCLEUS_BATCH_NONE_WHOLE, Sorted::AT_RANDOM});
  }
}

// The ways of devices without clusters, with one block a row and with several.
static void check_portable(Loaded &loaded, uint32_t number) {
  for (uint32_t blocks : {1u, 2u, 8u})
    for (uint32_t flags : {0u, NUCLEUS_BATCH_REQUEST_EACH}) loaded.check(number, Way{blocks, NUCLEUS_BATCH_PORTABLE | flags});
  for (uint32_t flags : {0u, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_UNLISTED, NUCLEUS_BATCH_SOME_FEW, NUCLEUS_BATCH_ALL_DRAWN})
    loaded.check(number, Way{0, NUCLEUS_BATCH_PORTABLE | flags});
  loaded.check_top(number, NUCLEUS_BATCH_PORTABLE);
  loaded.check_processed_top(number, Way{0, NUCLEUS_BATCH_PORTABLE});
  loaded.check_late(number, Way{0, NUCLEUS_BATCH_PORTABLE});
}

static void check_all_ways(const CorpusBatch &b, uint32_t number, cudaStream_t stream) {
  Loaded loaded(b, stream);
  for (uint32_t cluster : {0u, 1u, 2u, 4u, 8u})
    for (uint32_t flags : {0u, NUCLEUS_BATCH_EXACT, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_UNLISTED, NUCLEUS_BATCH_MANY_ROWS, NUCLEUS_BATCH_ALL_BOUNDED, NUCLEUS_BATCH_ALL_BOUNDED | NUCLEUS_BATCH_ALL_COUNTED | NUCLEUS_BATCH_REQUEST_EACH, NUCLEUS_BATCH_NONE_BOUNDED,
                           NUCLEUS_BATCH_NO_EDITS, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_ALL_DRAWN, CUTS_BY_WEIGHT, CUTS_BY_WEIGHT | NUCLEUS_BATCH_MANY_ROWS, EDITED, EDITED | NUCLEUS_BATCH_MANY_ROWS,
                           NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_MANY_ROWS,
                           NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_NONE_SUMMED, NUCLEUS_BATCH_NONE_BOUNDED | NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_NONE_SUMMED | NUCLEUS_BATCH_NONE_CUT,
                           NUCLEUS_BATCH_MANY_ROWS | NUCLEUS_BATCH_ALL_DRAWN})
      if (!(flags & NUCLEUS_BATCH_EXACT) || cluster) loaded.check(number, Way{cluster, flags});
  for (uint32_t flags : {NUCLEUS_BATCH_SOME_FEW, NUCLEUS_BATCH_ALL_FEW, NUCLEUS_BATCH_SOME_FEW | NUCLEUS_BATCH_NONE_BOUNDED, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_MANY_ROWS}) loaded.check(number, Way{0, flags});
  loaded.check_top(number);
  loaded.check_single(number);
  for (uint32_t cluster : {0u, 1u, 4u}) loaded.check_processed_top(number, Way{cluster, 0});
  static std::mutex far_lock;  // they take most of the memory
  if (b.rows > 8 && b.row_len >= 32000) {
    const std::lock_guard<std::mutex> held(far_lock);
    if (!far[b.dtype]) far[b.dtype] = check_far_rows(loaded, number);
  }
  check_late(b, number, stream);
  check_crowds(b, number, stream);
  check_sorted(loaded, number);
  check_portable(loaded, number);
}

// One part of what there is to check of a batch.
static void check_part(const CorpusBatch &b, uint32_t number, cudaStream_t stream, const char *part) {
  uint32_t of_rows = 0;
  if (!std::strcmp(part, "crowds") || std::sscanf(part, "crowds,%u", &of_rows) == 1) return check_crowds(b, number, stream, of_rows);
  if (!std::strcmp(part, "late") || std::sscanf(part, "late,%u", &of_rows) == 1) return check_late(b, number, stream, of_rows);
  Way way{0, 0};
  uint32_t copies = 1, most_rows = ~0u, sorted = 0;
  const bool top = !std::strncmp(part, "top", 3), portable = !std::strcmp(part, "portable"), single = !std::strncmp(part, "single", 6), processed = !std::strncmp(part, "processed", 9);
  if (processed) std::sscanf(part, "processed,%u,%u", &way.cluster, &way.flags);
  else if (top) std::sscanf(part, "top,%u,%u", &most_rows, &way.flags);
  else if (single) std::sscanf(part, "single,%u", &most_rows);
  else if (!portable && std::sscanf(part, "%u,%u,%u,%u,%u", &way.cluster, &way.flags, &copies, &most_rows, &sorted) < 2) {
    std::fprintf(stderr, "%s is no part\n", part);
    std::exit(2);
  }
  way.sorted = static_cast<Sorted>(sorted);
  Loaded loaded(b, stream, copies, most_rows);
  if (top) loaded.check_top(number, way.flags);
  else if (portable) check_portable(loaded, number);
  else if (single) loaded.check_single(number);
  else if (processed) loaded.check_processed_top(number, way);
  else loaded.check(number, way);
}

// Which batches are gone through.
class Chosen {
 public:
  Chosen(const char *path, const char *batches) {
    if (!batches) return;
    if (std::strchr(batches, '-') ? std::sscanf(batches, "%u-%u/%u", &least_, &largest_, &count_) >= 2 : std::sscanf(batches, "%u/%u", &largest_, &count_) >= 1) {
      CorpusReader reader(path);
      for (uint32_t i = 0; i < reader.count(); ++i) there_ += is_between(reader.next());
      return;
    }
    std::fprintf(stderr, "%s are no batches\n", batches);
    std::exit(2);
  }
  // Asked of one batch after another; `number`: of those between so far.
  bool has(const CorpusBatch &b, uint32_t &number) const {
    if (!is_between(b)) return false;
    const uint64_t n = number++;
    return count_ >= there_ || (n + 1) * count_ / there_ > n * count_ / there_;
  }

 private:
  bool is_between(const CorpusBatch &b) const { return b.configs[0].vocab_size >= least_ && b.configs[0].vocab_size <= largest_; }

  uint32_t least_ = 0, largest_ = 0xFFFFFFFFu, count_ = 0xFFFFFFFFu, there_ = 0;
};

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  const Chosen chosen(argv[1], argc > 2 ? argv[2] : nullptr);
  const char *part = argc > 3 && std::strcmp(argv[3], "all") ? argv[3] : nullptr;
  const uint32_t rounds = argc > 4 ? std::atoi(argv[4]) : 1, streams = argc > 5 ? std::atoi(argv[5]) : part && std::strcmp(part, "flat") ? 1 : 8;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  const bool flat = !part || !std::strncmp(part, "flat", 4), drawn = !part || !std::strncmp(part, "drawn", 5), deviation = !part || !std::strncmp(part, "deviation", 9);
  const bool cut = !part || !std::strncmp(part, "top_p", 5), chains = !part || !std::strncmp(part, "chains", 6), edited = !part || !std::strncmp(part, "edited", 6), corpus = !part || !(flat || drawn || cut || edited || deviation || chains);
  share_device_memory = streams > 1;
  std::atomic<uint32_t> flat_results{0};
  uint32_t drawn_results = 0, cut_results = 0, edited_results = 0, deviation_results = 0, chain_results = 0;
  auto go_through = [&](uint32_t thread) {
    cudaStream_t stream = nullptr;
    if (streams > 1) CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (uint32_t round = 0; corpus && round < rounds; ++round) {
      CorpusReader reader(argv[1]);
      uint32_t number = 0;
      for (uint32_t i = 0; i < reader.count(); ++i) {
        const CorpusBatch b = reader.next();
        if (!chosen.has(b, number)) continue;
        if (part) check_part(b, i, stream, part);
        else if (i % streams == thread) check_all_ways(b, i, stream);
      }
    }
    if (!flat) return;
    uint32_t type, vocab, count, flat_of_thread = 0, differ = 0;
    const bool one = part && std::sscanf(part, "flat,%u,%u,%u", &type, &vocab, &count) == 3;
    for (uint32_t round = 0; round < rounds; ++round) {
      if (one) check_flat(FlatRows(type, count, vocab, 1.0f, 0.0f), stream, flat_of_thread, differ);
      else check_all_flat(thread, streams, stream, flat_of_thread, differ);
    }
    flat_results += flat_of_thread;
    failures += differ;
  };
  std::vector<std::thread> threads;
  for (uint32_t thread = 1; thread < streams; ++thread) threads.emplace_back(go_through, thread);
  go_through(0);
  for (std::thread &thread : threads) thread.join();
  uint32_t type, vocab, rows, ways = ~0u, first = 0;
  const char *const shape = part ? std::strchr(part, ',') : nullptr;
  const bool one = shape && std::sscanf(shape, ",%u,%u,%u,%u,%u", &type, &vocab, &rows, &ways, &first) >= 3;
  for (uint32_t round = 0; round < rounds; ++round) {
    uint32_t differ = 0;
    if (drawn && one) check_drawn(DrawnRows(type, rows, vocab, 3), drawn_results, differ);
    else if (drawn) each_drawn(false, true, false, [&](const DrawnRows &d) { check_drawn(d, drawn_results, differ); });
    for (bool masked : {false, true}) {
      if (cut && one) check_cut(DrawnRows(type, rows, vocab, 3, true, masked), ways, first, cut_results, differ);
      else if (cut) each_drawn(true, masked, false, [&](const DrawnRows &d) { check_cut(d, ways, first, cut_results, differ); });
    }
    if (edited && one) check_edited(DrawnRows(type, rows, vocab, 3, true, false, true), ways, first, edited_results, differ);
    else if (edited) each_drawn(true, false, true, [&](const DrawnRows &d) { check_edited(d, ways, first, edited_results, differ); });
    if (deviation && one) check_deviation(DeviationRows(type, rows, vocab, 3), deviation_results, differ);
    else if (deviation) check_all_deviations(deviation_results, differ);
    if (chains && one) {
      for (bool edited : {false, true}) check_chains(ChainRows(type, rows, vocab, 8, edited), chain_results, differ);
    } else if (chains) {
      check_all_chains(chain_results, differ);
    }
    failures += differ;
  }
  std::printf("%u results, %u of flat rows, %u of drawn rows, %u of rows cut by top_p, %u of those with edits, %u by deviations, %u of chains, %u top tokens, %u differ, %u not drawn; far rows in %s%s%s\n", results.load(), flat_results.load(), drawn_results, cut_results, edited_results, deviation_results, chain_results, top_results.load(), failures.load(), others.load(),
              far[0] ? "f32 " : "", far[1] ? "f16 " : "", far[2] ? "bf16" : "");
  return failures != 0;
}
