// What test programs share: memory, checks of return codes, times of captured graphs.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

namespace test {

inline void check(int status, const char *what, int line) {
  if (status == cudaSuccess) return;
  std::printf("%s (line %d): %s\n", what, line, cudaGetErrorString(static_cast<cudaError_t>(status)));
  std::exit(2);
}
#define CHECK(call) test::check(static_cast<int>(call), #call, __LINE__)

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) { CHECK(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(T))); }
  explicit Buffer(const std::vector<T> &values) : Buffer(values.size()) { set(values); }
  Buffer(Buffer &&other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  ~Buffer() { cudaFree(data_); }
  T *get() const { return data_; }
  size_t size() const { return count_; }
  void set(const std::vector<T> &values) { CHECK(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice)); }
  // Every byte 0xff, which is NaN.
  void poison() { CHECK(cudaMemset(data_, 0xff, count_ * sizeof(T))); }
  std::vector<T> host() const {
    std::vector<T> values(count_);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T *data_ = nullptr;
  size_t count_;
};

// Microseconds of one of `count` calls of a graph: the median of its replays.
inline double graph_time(cudaStream_t stream, uint32_t count, uint32_t replays, const std::function<void(uint32_t)> &call) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (uint32_t i = 0; i < count; ++i) call(i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (uint32_t i = 0; i < replays + 2; ++i) {
    float milliseconds;
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 2) times.push_back(milliseconds);
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1000.0 / count;
}

}  // namespace test
