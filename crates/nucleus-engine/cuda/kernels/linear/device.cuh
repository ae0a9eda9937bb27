// What the device of this thread has room for.
#pragma once

#include <cuda_runtime.h>

namespace nucleus::linear {

struct Device {
  int index = 0, processors = 0, shared_bytes = 0;

  static cudaError_t current(Device &device) {
    if (cudaError_t status = cudaGetDevice(&device.index)) return status;
    if (cudaError_t status = cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, device.index)) return status;
    return cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index);
  }
};

}  // namespace nucleus::linear
