// What the tests of kernels share: device memory, random numbers, comparisons, times.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define CHECK(call)                                                               \
  do {                                                                            \
    int error_ = static_cast<int>(call);                                          \
    if (error_ != 0) {                                                            \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(static_cast<cudaError_t>(error_))); \
      std::exit(3);                                                               \
    }                                                                             \
  } while (0)

// Device memory, filled with NaNs of every width until something is written.
template <class T>
struct DeviceArray {
  T *data = nullptr;
  size_t count = 0;

  explicit DeviceArray(size_t n) : count(n) {
    CHECK(cudaMalloc(&data, std::max<size_t>(bytes(), 16)));
    poison();
  }
  explicit DeviceArray(const std::vector<T> &host) : DeviceArray(host.size()) { set(host); }
  DeviceArray(const DeviceArray &) = delete;
  ~DeviceArray() { cudaFree(data); }

  size_t bytes() const { return count * sizeof(T); }
  void poison() { CHECK(cudaMemset(data, 0xFF, bytes())); }
  void set(const std::vector<T> &host) { CHECK(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice)); }
  std::vector<T> host() const {
    std::vector<T> copy(count);
    CHECK(cudaMemcpy(copy.data(), data, bytes(), cudaMemcpyDeviceToHost));
    return copy;
  }
};

// SplitMix64 (Steele et al. 2014).
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
  }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  uint32_t below(uint32_t n) { return uint32_t(next() % n); }
  float normal() { return float(std::sqrt(-2.0 * std::log(1.0 - uniform())) * std::cos(6.283185307179586 * uniform())); }
  std::vector<float> normals(size_t n, float scale = 1.0f) {
    std::vector<float> values(n);
    for (float &x : values) x = scale * normal();
    return values;
  }
};

// Counts what a program found wrong.
struct Report {
  uint64_t checks = 0, failures = 0;

  void expect(bool good, const std::string &what) {
    checks += 1;
    if (good) return;
    failures += 1;
    if (failures <= 40) std::printf("FAILED %s\n", what.c_str());
  }
  int finish(const char *name) const {
    std::printf("%s: %llu checks, %llu failed\n", name, (unsigned long long)checks, (unsigned long long)failures);
    return failures != 0;
  }
};

inline bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The largest |actual - expected| / max(floor, |expected|); infinite where a number is NaN and the other is not.
inline double worst_error(const std::vector<float> &actual, const std::vector<double> &expected, double floor) {
  double worst = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(actual[i]) && std::isnan(expected[i])) continue;
    const double error = std::fabs(actual[i] - expected[i]) / std::max(floor, std::fabs(expected[i]));
    worst = error <= worst ? worst : error;
    if (std::isnan(error)) return INFINITY;
  }
  return worst;
}

// Median milliseconds of a graph of `calls(stream, i)` for i < count, over the count.
inline double time_each(uint32_t count, const std::function<void(cudaStream_t, uint32_t)> &call) {
  constexpr uint32_t REPEATS = 15;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (uint32_t i = 0; i < count; ++i) call(stream, i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (uint32_t i = 0; i < REPEATS + 2; ++i) {
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(executable, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float milliseconds;
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 2) times.push_back(milliseconds / count);
  }
  std::sort(times.begin(), times.end());
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  CHECK(cudaStreamDestroy(stream));
  return times[times.size() / 2];
}

inline void print_machine() {
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("machine: %s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
}
