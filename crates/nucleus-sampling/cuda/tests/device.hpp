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

// Whether memory is taken from a pool: else each piece that is given back waits for all streams.
inline bool share_device_memory = false;

inline void *take_device_memory(size_t bytes) {
  void *memory = nullptr;
  if (!share_device_memory) {
    CHECK(cudaMalloc(&memory, bytes));
    return memory;
  }
  static const bool kept = [] {
    cudaMemPool_t pool;
    uint64_t all = ~0ull;
    CHECK(cudaDeviceGetDefaultMemPool(&pool, 0));
    CHECK(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
    return true;
  }();
  static_cast<void>(kept);
  CHECK(cudaMallocAsync(&memory, bytes, cudaStreamPerThread));
  CHECK(cudaStreamSynchronize(cudaStreamPerThread));
  return memory;
}

template <class T>
struct DeviceArray {
  T *data = nullptr;
  size_t count;

  explicit DeviceArray(size_t n) : count(n) { data = static_cast<T *>(take_device_memory(n ? n * sizeof(T) : 16)); }
  explicit DeviceArray(const std::vector<T> &host) : DeviceArray(host.size()) {
    if (count) CHECK(cudaMemcpy(data, host.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    CHECK(cudaStreamSynchronize(cudaStreamLegacy));  // a stream that does not wait for this one may read it next
  }
  DeviceArray(const DeviceArray &) = delete;
  // Once no stream uses it.
  ~DeviceArray() {
    if (share_device_memory) cudaFreeAsync(data, cudaStreamPerThread);
    else cudaFree(data);
  }
  std::vector<T> host() const {
    std::vector<T> copy(count);
    CHECK(cudaMemcpy(copy.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return copy;
  }
};
