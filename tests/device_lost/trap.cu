// To be loaded before a program that uses a GPU: as soon as the file NUCLEUS_TEST_TRAP names exists, a kernel that traps ends the context that
// the program's calls share, so that each of them fails from then on.
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static __global__ void trap() { asm("trap;"); }

static void *wait_for_file(void *path) {
  while (access(static_cast<const char *>(path), F_OK)) usleep(500);
  trap<<<1, 1>>>();
  cudaDeviceSynchronize();
  return nullptr;
}

__attribute__((constructor)) static void begin() {
  pthread_t thread;
  if (char *path = getenv("NUCLEUS_TEST_TRAP")) pthread_create(&thread, nullptr, wait_for_file, path);
}
