// What the runtime knows of a device.
#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

// Rust's DeviceDescription.
struct DeviceDescription {
  uint64_t total_bytes;
  uint32_t major, minor, multiprocessors, name_bytes;
  char name[256];
};
static_assert(sizeof(DeviceDescription) == 280);

extern "C" int sampling_describe_device(int device, DeviceDescription *out) {
  cudaDeviceProp properties;
  if (cudaError_t error = cudaGetDeviceProperties(&properties, device)) return error;
  out->total_bytes = properties.totalGlobalMem;
  out->major = properties.major;
  out->minor = properties.minor;
  out->multiprocessors = properties.multiProcessorCount;
  const char *name = properties.name, *end = std::find(name, name + sizeof out->name, '\0');
  out->name_bytes = end - name;
  std::copy(name, end, out->name);
  return 0;
}
