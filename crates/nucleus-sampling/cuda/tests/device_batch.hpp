// A batch on the device, and one of made rows, to be sampled in several ways.
#pragma once

#include "corpus.hpp"
#include "device.hpp"

// A batch of what a test holds on the device, without its logits.
template <class Held>
SamplingBatch batch_of(const Held &held, uint32_t dtype, uint32_t rows, uint32_t row_len, uint32_t mask_words, uint32_t max_edited) {
  SamplingBatch batch = {};
  batch.struct_size = sizeof(batch);
  batch.dtype = dtype;
  batch.rows = rows;
  batch.row_len = row_len;
  batch.row = held.row.data;
  batch.configs = held.configs.data;
  batch.programs = held.programs.data;
  batch.arena = held.arena.data;
  batch.masks = held.masks.data;
  batch.mask_stride = batch.mask_words = mask_words;
  batch.out = held.out.data;
  batch.max_edited = max_edited;
  return batch;
}

struct DeviceBatch {
  DeviceArray<SamplingRow> row;
  DeviceArray<SamplingConfig> configs;
  DeviceArray<SamplingProgram> programs;
  DeviceArray<uint32_t> arena, masks;
  DeviceArray<char> logits, workspace;
  DeviceArray<SampledToken> out;
  SamplingBatch batch = {};
  cudaStream_t stream;

  // `rows`: FlatRows or DrawnRows, whose logits lie one row behind the other.
  template <class R>
  DeviceBatch(const R &rows, uint32_t max_edited, cudaStream_t on)
      : row(rows.row), configs(rows.configs), programs(rows.programs), arena(rows.arena), masks(rows.masks), logits(rows.logits),
        workspace(sampling_workspace_size(rows.rows, max_edited)), out(rows.rows), stream(on) {
    batch = batch_of(*this, rows.dtype, rows.rows, rows.row_len, rows.mask_words(), max_edited);
    batch.row_stride = rows.row_len;
    batch.logits = logits.data;
  }

  // The results of one way to work, from poisoned memory.
  std::vector<SampledToken> sample(uint32_t cluster, uint32_t flags) {
    batch.cluster = cluster;
    batch.flags = flags;
    CHECK(cudaMemsetAsync(out.data, 0xA5, out.count * sizeof(SampledToken), stream));
    CHECK(cudaMemsetAsync(workspace.data, 0x5A, workspace.count, stream));
    if (int code = launch_advanced_sample_batch(&batch, workspace.data, workspace.count, stream)) { std::printf("launch: %d\n", code); std::exit(1); }
    CHECK(cudaStreamSynchronize(stream));
    return out.host();
  }
};
