// A batch on the device, and one of made rows, to be sampled in several ways.
#pragma once

#include "corpus.hpp"
#include "device.hpp"
#include "order.hpp"

// One way to work.
struct Way {
  uint32_t cluster, flags;
  Sorted sorted = Sorted::NOT;
};

// A batch of what a test holds on the device, without its rows and logits.
template <class Held>
SamplingBatch batch_of(const Held &held, uint32_t dtype, uint32_t rows, uint32_t row_len, uint32_t mask_words, uint32_t max_edited) {
  SamplingBatch batch = {};
  batch.struct_size = sizeof(batch);
  batch.dtype = dtype;
  batch.rows = rows;
  batch.row_len = row_len;
  batch.configs = held.configs.data;
  batch.programs = held.programs.data;
  batch.arena = held.arena.data;
  batch.masks = held.masks.data;
  batch.mask_stride = batch.mask_words = mask_words;
  batch.out = held.out.data;
  batch.max_edited = max_edited;
  return batch;
}

// Fills memory with edits of a token, by which it is out: rows have one token less then. A likelier token would not show, since what then weighs more than the row does is decided another way.
__global__ void leave_edits(uint2 *memory, size_t count) {
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) memory[i] = make_uint2(3, __float_as_uint(-INFINITY));
}

// Adds a bias to those that lie last in an arena.
inline void add_bias(std::vector<uint32_t> &arena, uint32_t id, float value) {
  uint32_t word;
  std::memcpy(&word, &value, 4);
  arena.insert(arena.end(), {id, word});
}

struct DeviceBatch {
  DeviceArray<SamplingRow> row;
  DeviceArray<SamplingConfig> configs;
  DeviceArray<SamplingProgram> programs;
  DeviceArray<uint32_t> arena, masks;
  DeviceArray<char> logits, workspace;
  DeviceArray<SampledToken> out;
  DeviceOrders orders;
  SamplingBatch batch = {};
  cudaStream_t stream;

  // `rows`: FlatRows or DrawnRows, whose logits lie one row behind the other.
  template <class R>
  DeviceBatch(const R &rows, uint32_t max_edited, cudaStream_t on)
      : row(rows.row), configs(rows.configs), programs(rows.programs), arena(rows.arena), masks(rows.masks), logits(rows.logits),
        workspace(sampling_workspace_size(rows.rows, max_edited)), out(rows.rows), orders(rows.row, rows.programs, max_edited && !rows.mask_words()), stream(on) {
    batch = batch_of(*this, rows.dtype, rows.rows, rows.row_len, rows.mask_words(), max_edited);
    batch.row = row.data;
    batch.row_stride = rows.row_len;
    batch.logits = logits.data;
  }

  // The results of one way to work, from poisoned memory. `edits`: the workspace's reads as edits of a token, else as no id.
  std::vector<SampledToken> sample(const Way &way, bool edits = false) {
    batch.cluster = way.cluster;
    batch.flags = way.flags;
    const SamplingOrder order = orders.of(way.sorted);
    CHECK(cudaMemsetAsync(out.data, 0xA5, out.count * sizeof(SampledToken), stream));
    CHECK(cudaMemsetAsync(workspace.data, 0x5A, workspace.count, stream));
    if (edits) leave_edits<<<64, 256, 0, stream>>>(reinterpret_cast<uint2 *>(workspace.data), workspace.count / sizeof(uint2));
    if (int code = launch_sorted_sample_batch(&batch, &order, workspace.data, workspace.count, stream)) { std::printf("launch: %d\n", code); std::exit(1); }
    CHECK(cudaStreamSynchronize(stream));
    return out.host();
  }
};

// Every way against the exact path: counts results that differ, and all of them. `name`: of the rows; processed(row): whether its log-probability must be the same to the bit (same_result).
template <class R, class P>
void check_ways(const char *name, const R &rows, uint32_t max_edited, cudaStream_t stream, const std::vector<Way> &ways, P processed, uint32_t &results, uint32_t &failures) {
  DeviceBatch batch(rows, max_edited, stream);
  const std::vector<SampledToken> expected = batch.sample({8, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_UNLISTED});
  bool edits = false;  // every other way, so that what an earlier batch has left is not taken for this one's
  for (const Way &way : ways) {
    const std::vector<SampledToken> got = batch.sample(way, edits);
    edits = !edits;
    for (uint32_t r = 0; r < rows.rows; ++r) {
      results += 1;
      if (same_result(got[r], expected[r], processed(rows.row[r]))) continue;
      failures += 1;
      if (failures > 25) continue;
      std::printf("%s: type %u, vocabulary %u of %u, row %u of %u, cluster %u, flags %u, sorted %u: token %u, expected %u; kept %u, %u; status %u, %u; logprob %.9g, %.9g; mask %d, biases %u, flags %u; ops", name,
                  rows.dtype, rows.vocab, rows.row_len, r, rows.rows, way.cluster, way.flags, static_cast<uint32_t>(way.sorted), got[r].token_id, expected[r].token_id, got[r].kept_count, expected[r].kept_count, got[r].status,
                  expected[r].status, got[r].logprob, expected[r].logprob, rows.row[r].mask, rows.row[r].bias.len, rows.row[r].flags);
      const SamplingProgram &program = rows.programs[rows.row[r].request];
      for (uint32_t i = 0; i < program.len; ++i) std::printf(" %u", program.ops[i].code);
      std::printf("\n");
    }
  }
}
inline bool is_processed(const SamplingRow &row) { return row.flags & NUCLEUS_ROW_PROCESSED; }
