// Launching: clusters, and beginning before the kernel in front has ended.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

#include "layout.cuh"

namespace nucleus::linear {

// What the device of this thread has room for.
struct Device {
  int index = 0, major = 0, shared_bytes = 0;  // `major`: of the compute capability

  static cudaError_t current(Device &device) {
    if (cudaError_t status = cudaGetDevice(&device.index)) return status;
    if (cudaError_t status = cudaDeviceGetAttribute(&device.major, cudaDevAttrComputeCapabilityMajor, device.index)) return status;
    return cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index);
  }
};

// Lets a kernel's blocks have all the shared memory that there is. It is the same for every launch: threads that launch at the same time share it.
template <class... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), const Device &device) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
}

// A launch of clusters that may begin while the kernel in front of it ends: up to `wait_for_inputs` it must touch nothing but weights.
class Launch {
 public:
  Launch(dim3 blocks, uint32_t threads, uint32_t cluster, cudaStream_t stream) {
    config_.gridDim = blocks;
    config_.blockDim = dim3(threads);
    config_.stream = stream;
    config_.attrs = attributes_;
    config_.numAttrs = 2;
    attributes_[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes_[0].val.programmaticStreamSerializationAllowed = 1;
    attributes_[1].id = cudaLaunchAttributeClusterDimension;
    attributes_[1].val.clusterDim = {cluster, 1, 1};
  }
  Launch(const Launch &) = delete;

  void shared_bytes(uint32_t bytes) { config_.dynamicSmemBytes = bytes; }

  template <class... Parameters, class... Arguments>
  cudaError_t operator()(void (*kernel)(Parameters...), Arguments... arguments) const {
    return cudaLaunchKernelEx(&config_, kernel, arguments...);
  }
  // Clusters that run at the same time.
  template <class... Parameters>
  cudaError_t clusters(void (*kernel)(Parameters...), int &count) const {
    return cudaOccupancyMaxActiveClusters(&count, kernel, &config_);
  }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attributes_[2]{};
};

// Clusters of that many blocks that run at once, where a block fills a multiprocessor. Asking takes microseconds, so the answer is kept.
template <class Kernel>
cudaError_t cluster_count(Kernel kernel, const Launch &launch, const Device &device, uint32_t blocks, uint32_t &count) {
  constexpr int DEVICES = 64;
  static std::atomic<int> known[DEVICES][MAX_SECTIONS + 1];
  std::atomic<int> &clusters = known[device.index % DEVICES][blocks];
  if (!clusters) {
    int most = 0;
    if (cudaError_t status = launch.clusters(kernel, most)) return status;
    clusters = most < 1 ? 1 : most;
  }
  count = static_cast<uint32_t>(clusters);
  return cudaSuccess;
}

// Waits until all that was queued before is done and visible.
__device__ __forceinline__ void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may begin, as far as there is room.
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace nucleus::linear
