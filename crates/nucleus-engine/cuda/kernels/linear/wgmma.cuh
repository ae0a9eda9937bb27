// Hopper's products of four warps: 64 outputs by 16 inputs from registers, 16 inputs by 16 to 64 rows from shared memory, in the background.
//
// The instructions are Hopper's alone: machine code for `sm_90a` has them, and no other.
#pragma once

#include <type_traits>

#include "mma.cuh"

namespace nucleus::linear {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool HAS_WGMMA = true;
#else
constexpr bool HAS_WGMMA = false;
#endif

// By all warps of a group: the registers that a thread has from now on, fewer or more.
template <uint32_t REGISTERS>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <uint32_t REGISTERS>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Where 16 inputs of rows lie in shared memory: blocks of 8 rows by 16 bytes, one behind the other for all rows, then `half_bytes` further those of the
// inputs' second half. The word has the address and that distance, in units of 16 bytes; another place is one addition away. (An address has the block's number in
// its upper bits where there are clusters.)
struct RowsDescriptor {
  uint32_t word;

  __device__ __forceinline__ explicit RowsDescriptor(uint32_t word) : word(word) {}
  __device__ __forceinline__ RowsDescriptor(uint32_t shared_address, uint32_t half_bytes) : word((shared_address & 0x3ffff) / 16 | half_bytes / 16 << 16) {}
  __device__ __forceinline__ RowsDescriptor moved(uint32_t bytes) const { return RowsDescriptor(word + bytes / 16); }
  // So many bytes further.
  __device__ __forceinline__ uint64_t after(uint32_t bytes) const {
    constexpr uint64_t BLOCK_BYTES = 128;
    return BLOCK_BYTES / 16 << 32 | word + bytes / 16;
  }
};

// Before a product takes registers that were written.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all groups.
__device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
// Keeps the compiler from reading sums before they were waited for.
template <uint32_t COUNT>
__device__ __forceinline__ void settle(float (&sums)[COUNT]) {
#pragma unroll
  for (float &sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

#define NUCLEUS_SUMS8(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define NUCLEUS_WGMMA(ROWS, TYPE, SUMS, A, DESCRIPTOR, ADDS)                                                                                              \
  "{\n.reg .pred adds;\nsetp.ne.b32 adds, " ADDS ", 0;\nwgmma.mma_async.sync.aligned.m64n" ROWS "k16.f32." TYPE "." TYPE " {" SUMS "}, {" A "}, " DESCRIPTOR \
  ", adds, 1, 1, 0;\n}"
#define NUCLEUS_WGMMA16(TYPE, c, a, rows, adds)                                                                                                        \
  asm volatile(NUCLEUS_WGMMA("16", TYPE, "%0, %1, %2, %3, %4, %5, %6, %7", "%8, %9, %10, %11", "%12", "%13")                                            \
               : NUCLEUS_SUMS8(c, 0)                                                                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "n"(adds))
#define NUCLEUS_WGMMA32(TYPE, c, a, rows, adds)                                                                                                        \
  asm volatile(NUCLEUS_WGMMA("32", TYPE, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15", "%16, %17, %18, %19", "%20", "%21")     \
               : NUCLEUS_SUMS8(c, 0), NUCLEUS_SUMS8(c, 8)                                                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "n"(adds))
#define NUCLEUS_WGMMA64(TYPE, c, a, rows, adds)                                                                                                        \
  asm volatile(NUCLEUS_WGMMA("64", TYPE,                                                                                                                \
                             "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, " \
                             "%26, %27, %28, %29, %30, %31",                                                                                           \
                             "%32, %33, %34, %35", "%36", "%37")                                                                                        \
               : NUCLEUS_SUMS8(c, 0), NUCLEUS_SUMS8(c, 8), NUCLEUS_SUMS8(c, 16), NUCLEUS_SUMS8(c, 24)                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows), "n"(adds))

// c = a · rows, added to c if it ADDS; a lane's sums are those of mma.sync for each eight rows, one behind the other.
template <class Number, bool ADDS, uint32_t COUNT>
__device__ __forceinline__ void multiply_rows(float (&c)[COUNT], const uint32_t (&a)[4], uint64_t rows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(COUNT == 8 || COUNT == 16 || COUNT == 32);
  if constexpr (std::is_same_v<Number, Half>) {
    if constexpr (COUNT == 8) NUCLEUS_WGMMA16("f16", c, a, rows, ADDS);
    else if constexpr (COUNT == 16) NUCLEUS_WGMMA32("f16", c, a, rows, ADDS);
    else NUCLEUS_WGMMA64("f16", c, a, rows, ADDS);
  } else {
    if constexpr (COUNT == 8) NUCLEUS_WGMMA16("bf16", c, a, rows, ADDS);
    else if constexpr (COUNT == 16) NUCLEUS_WGMMA32("bf16", c, a, rows, ADDS);
    else NUCLEUS_WGMMA64("bf16", c, a, rows, ADDS);
  }
#endif
}

#undef NUCLEUS_WGMMA64
#undef NUCLEUS_WGMMA32
#undef NUCLEUS_WGMMA16
#undef NUCLEUS_WGMMA
#undef NUCLEUS_SUMS8

}  // namespace nucleus::linear
