// Device memory of a test or a benchmark.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                                    \
  do {                                                                                                 \
    cudaError_t error_ = (call);                                                                       \
    if (error_ != cudaSuccess) {                                                                       \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));                      \
      std::exit(3);                                                                                    \
    }                                                                                                  \
  } while (0)

template <class T>
struct DeviceArray {
  T *data = nullptr;
  size_t count;

  explicit DeviceArray(size_t n) : count(n) { CHECK(cudaMalloc(&data, n ? n * sizeof(T) : 16)); }
  explicit DeviceArray(const std::vector<T> &host) : DeviceArray(host.size()) {
    if (count) CHECK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    CHECK(cudaStreamSynchronize(cudaStreamLegacy));  // a stream that does not wait for this one may read it next
  }
  DeviceArray(const DeviceArray &) = delete;
  ~DeviceArray() { cudaFree(data); }
  std::vector<T> host() const {
    std::vector<T> copy(count);
    CHECK(cudaMemcpy(copy.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }
};
