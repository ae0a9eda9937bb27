// The call for one row against the call for batches.
#pragma once

#include "corpus.hpp"
#include "device.hpp"

struct SingleCheck {
  const CorpusBatch &b;
  SamplingBatch batch;  // what of the corpus batch lies on the device
  cudaStream_t stream;
  DeviceArray<SamplingRow> row{1}, scratch{1};
  DeviceArray<SampledToken> expected{1}, out{1};
  DeviceArray<char> workspace{sampling_workspace_size(1, 4096)};

  // What the call for one row makes of its arguments.
  SamplingRow described(uint32_t r, uint64_t uniform) const {
    SamplingRow w = {};
    w.uniform = uniform;
    w.history = b.row[r].history;
    w.prompt_len = b.row[r].prompt_len;
    w.position = w.history.len - w.prompt_len;
    w.request = b.row[r].request;
    w.mask = -1;
    w.flags = NUCLEUS_ROW_UNIFORM;
    return w;
  }
  const char *logits(uint32_t r) const { return static_cast<const char *>(batch.logits) + r * b.stride * (b.dtype == NUCLEUS_F32 ? 4 : 2); }
  SingleSample sample(const SamplingRow &w) const {
    return SingleSample{batch.configs + w.request, batch.programs + w.request, batch.arena + w.history.offset, w.history.len, w.prompt_len, b.dtype, 0, scratch.data, out.data};
  }

  // Whether both calls say the same of a row without its lists.
  bool agrees(uint32_t r) {
    const SamplingRow w = described(r, (r + 1) * 0x9E3779B97F4A7C15ull);
    CHECK(cudaMemcpyAsync(row.data, &w, sizeof w, cudaMemcpyHostToDevice, stream));
    SamplingBatch one = batch;
    one.rows = 1;
    one.row = row.data;
    one.logits = logits(r);
    one.out = expected.data;
    one.cluster = 8;
    one.flags = NUCLEUS_BATCH_EXACT;
    CHECK(cudaMemsetAsync(out.data, 0xA5, sizeof(SampledToken), stream));
    CHECK(cudaMemsetAsync(workspace.data, 0x5A, workspace.count, stream));
    const SingleSample s = sample(w);
    if (launch_advanced_sample_batch(&one, workspace.data, workspace.count, stream) || launch_advanced_sample(logits(r), b.row_len, &s, w.uniform, workspace.data, workspace.count, stream)) return false;
    CHECK(cudaStreamSynchronize(stream));
    return same_result(out.host()[0], expected.host()[0], false);
  }
  bool refuses() const {
    SingleSample s = sample(described(0, 0)), no_row = s, long_prompt = s;
    no_row.row = nullptr;
    long_prompt.prompt_length = s.history_length + 1;
    auto call = [&](const SingleSample *of, size_t bytes) { return launch_advanced_sample(logits(0), b.row_len, of, 0, workspace.data, bytes, stream); };
    return call(nullptr, workspace.count) == NUCLEUS_LAUNCH_INVALID && call(&no_row, workspace.count) == NUCLEUS_LAUNCH_INVALID &&
           call(&long_prompt, workspace.count) == NUCLEUS_LAUNCH_INVALID && call(&s, 0) == NUCLEUS_LAUNCH_WORKSPACE;
  }
};
