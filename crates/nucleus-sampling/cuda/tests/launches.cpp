// Linked with -Wl,--wrap=cudaLaunchKernelExC,--wrap=__cudaLaunchKernel: at the end of the program it is told which kernels were launched how often, so that it
// can be seen what a test reaches. With LAUNCHES=apart in the environment launches do not overlap, for tools that cannot follow it.
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

struct Launches {
  std::mutex lock;
  std::map<std::string, unsigned> of;
  bool apart = false;

  Launches() {
    const char *word = std::getenv("LAUNCHES");
    apart = word && !std::strcmp(word, "apart");
  }
  // Without its arguments and the namespaces that have no name.
  static std::string name_alone(std::string name) {
    static const std::string NAMELESS = "(anonymous namespace)::";
    for (size_t at; (at = name.find(NAMELESS)) != std::string::npos;) name.erase(at, NAMELESS.size());
    return name.substr(0, name.find('('));
  }
  void note(const void *kernel) {
    const char *mangled = nullptr;
    if (cudaFuncGetName(&mangled, kernel) != cudaSuccess) return;
    int status;
    char *name = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
    const std::string whole = name ? name : mangled;
    std::free(name);
    const std::lock_guard<std::mutex> held(lock);
    of[name_alone(whole)] += 1;
  }
  ~Launches() {
    for (const auto &[name, count] : of) std::printf("launched %5u times: %s\n", count, name.c_str());
  }
} launches;

}  // namespace

extern "C" {

cudaError_t __real_cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments);
cudaError_t __real___cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t stream);

cudaError_t __wrap_cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments) {
  launches.note(kernel);
  cudaLaunchAttribute attributes[8];
  cudaLaunchConfig_t own = *config;
  own.attrs = attributes;
  own.numAttrs = 0;
  for (unsigned i = 0; i < config->numAttrs && i < 8; ++i)
    if (!launches.apart || config->attrs[i].id != cudaLaunchAttributeProgrammaticStreamSerialization) attributes[own.numAttrs++] = config->attrs[i];
  return __real_cudaLaunchKernelExC(&own, kernel, arguments);
}

cudaError_t __wrap___cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes, cudaStream_t stream) {
  launches.note(kernel);
  return __real___cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

}
