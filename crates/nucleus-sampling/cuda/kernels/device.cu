// What the runtime knows of a device.
#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

// Rust's DeviceDescription.
struct DeviceDescription {
  uint64_t total_bytes;
  uint32_t major, minor, multiprocessors, shared_bytes, reserved, name_bytes;
  char name[256];
};
static_assert(sizeof(DeviceDescription) == 288);

extern "C" int sampling_describe_device(int device, DeviceDescription *out) {
  cudaDeviceProp properties;
  if (cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  out->total_bytes = properties.totalGlobalMem;
  out->major = properties.major;
  out->minor = properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  out->shared_bytes = static_cast<uint32_t>(properties.sharedMemPerBlockOptin);
  out->reserved = 0;
  const char *name = properties.name, *end = std::find(name, name + sizeof out->name, '\0');
  out->name_bytes = end - name;
  std::copy(name, end, out->name);
  return 0;
}
