// The likeliest tokens of rows as they came, a block a row: a sweep for the largest logits, which bound the n-th from below, and one for the weights and the
// tokens that reach the bound.
#include <cuda_runtime.h>

#include "call.cuh"

namespace nucleus {

constexpr u32 TOP_LISTED = 1024;

// Shared by a block.
struct TopShared {
  u64 places[TOP_LISTED];
  u64 masses[WARPS], best[WARPS];
  u32 maxima[WARPS], found;
};

// Calls f(id, logit) for this thread's share of a row, 16 bytes at a time where it is aligned, and `after()` before it was called 512 times without. BACK: from the
// row's end, so that a second sweep begins with what is still in the cache.
template <u32 DTYPE, bool BACK = false, class F, class A>
__device__ __forceinline__ void sweep_row(const void *row, u32 limit, F f, A after) {
  constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, AT_ONCE = 16 / WIDTH, STRETCH = 480 / WIDTH * THREADS;
  const u32 whole = reinterpret_cast<uintptr_t>(row) % 16 == 0 ? limit / WIDTH : 0;
#pragma unroll 1
  for (u32 begin = 0; begin < whole; begin += STRETCH) {
    const u32 end = begin + STRETCH < whole ? begin + STRETCH : whole;
#pragma unroll AT_ONCE
    for (u32 i = begin + threadIdx.x; i < end; i += THREADS) {
      const u32 at = BACK ? whole - 1 - i : i;
      const Lane<DTYPE> v(__ldg(static_cast<const uint4 *>(row) + at));
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) f(at * WIDTH + e, v.x[e]);
    }
    after();
  }
#pragma unroll 1
  for (u32 id = whole * WIDTH + threadIdx.x; id < limit; id += THREADS) {
    f(id, logit_in<DTYPE>(row, id));
    after();
  }
}
template <u32 DTYPE, class F>
__device__ __forceinline__ void sweep_row(const void *row, u32 limit, F f) {
  sweep_row<DTYPE>(row, limit, f, [] {});
}

// The largest place below `before`, to every thread; 0: there is none.
template <u32 DTYPE>
__device__ __forceinline__ u64 next_place(TopShared &sh, const void *row, u32 limit, u64 before) {
  u64 most = 0;
  sweep_row<DTYPE>(row, limit, [&](u32 id, float x) {
    const u64 place = x > -infinity() ? place_of(x + 0.0f, id) : 0;
    most = place < before && place > most ? place : most;
  });
  most = DeviceWarp{}.most(most);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.best[threadIdx.x / 32] = most;
  __syncthreads();
  for (u32 warp = 0; warp < WARPS; ++warp) most = sh.best[warp] > most ? sh.best[warp] : most;
  return most;
}

template <u32 DTYPE>
__global__ void __launch_bounds__(THREADS, 2) top_rows(const __grid_constant__ SamplingBatch batch, u32 count, SamplingLogprob *top) {
  __shared__ TopShared sh;
  const u32 warp = threadIdx.x / 32, vocab = batch.configs[batch.row[blockIdx.x].request].vocab_size, limit = vocab < batch.row_len ? vocab : batch.row_len;
  if (batch.row[blockIdx.x].flags & (NUCLEUS_ROW_PADDING | NUCLEUS_ROW_NO_TOP)) return;
  const void *row = static_cast<const char *>(batch.logits) + blockIdx.x * batch.row_stride * (DTYPE == NUCLEUS_F32 ? 4 : 2);
  if (threadIdx.x == 0) sh.found = 0;
  float most = -infinity();
  bool unusual = false;
  sweep_row<DTYPE>(row, limit, [&](u32, float x) {
    most = fmaxf(most, x);
    unusual |= !(x < infinity());
  });
  unusual = __syncthreads_or(unusual);
  const u32 key = most > -infinity() && !unusual ? key_of(most + 0.0f) : 0, in_warp = __reduce_max_sync(~0u, key);
  if (threadIdx.x % 32 == 0) sh.maxima[warp] = in_warp;
  __syncthreads();
  const u32 largest = __reduce_max_sync(~0u, sh.maxima[threadIdx.x % WARPS]);
  Weighing w;
  SamplingLogprob *to = top + static_cast<u64>(blockIdx.x) * count;
  const bool valid = largest && begin_weighing(value_of(largest), 1.0f, w);
  const u32 bound = valid ? kth_of_threads(key, count) : 0;
  const float threshold = bound ? value_of(bound) : -infinity();
  if (valid) {
    const Addends addends(w);
    u32 high = 0, low = 0, added = 0;
    u64 mass = 0;
    sweep_row<DTYPE, true>(
        row, limit,
        [&](u32 id, float x) {
          if (addends.serve) addends.add(x, high, low);
          else mass += w.q(x);
          added += 1;
          if (!(x >= threshold) || !(x > -infinity())) return;
          const u32 at = atomicAdd(&sh.found, 1);
          if (at < TOP_LISTED) sh.places[at] = place_of(x + 0.0f, id);
        },
        [&] {
          if (addends.serve) mass += Addends::sum(high, low, added);
          high = low = added = 0;
        });
    mass = DeviceWarp{}.sum(mass);
    if (threadIdx.x % 32 == 0) sh.masses[warp] = mass;
  }
  __syncthreads();
  u32 listed = sh.found;
  if (listed > TOP_LISTED) {  // equal logits, or few threads that have any: one after another
    u64 place = ~0ull;
#pragma unroll 1
    for (listed = 0; listed < count; ++listed) {
      place = next_place<DTYPE>(sh, row, limit, place);
      if (!place) break;
      if (threadIdx.x == 0) sh.places[listed] = place;
    }
    __syncthreads();
  } else {
    sort_places<THREADS>(sh.places, listed);
  }
  if (threadIdx.x >= count) return;
  if (!valid || threadIdx.x >= listed) {
    to[threadIdx.x] = SamplingLogprob{NUCLEUS_NO_TOKEN, valid ? -infinity() : float_of(0x7FC00000u)};
    return;
  }
  for (u32 other = 0; other < WARPS; ++other) w.sums.total += sh.masses[other];
  const RawSums raw = raw_sums_of(value_of(largest), w);
  const u64 place = sh.places[threadIdx.x];
  to[threadIdx.x] = SamplingLogprob{id_at(place), raw_logprob_of(raw, logit_at(place))};
}

template <u32 DTYPE>
static cudaError_t launch_top(const SamplingBatch &batch, u32 count, SamplingLogprob *top, cudaStream_t stream) {
  top_rows<DTYPE><<<batch.rows, THREADS, 0, stream>>>(batch, count, top);
  return cudaGetLastError();
}

}  // namespace nucleus

using namespace nucleus;

extern "C" int launch_top_logprobs(const SamplingBatch *batch, uint32_t count, SamplingLogprob *top, void *stream) {
  if (!batch || batch->struct_size != sizeof(SamplingBatch) || batch->dtype > NUCLEUS_BF16 || batch->rows > NUCLEUS_MAX_ROWS || count > NUCLEUS_MAX_TOP)
    return NUCLEUS_LAUNCH_INVALID;
  if (batch->rows == 0 || count == 0) return NUCLEUS_LAUNCH_OK;
  if (!batch->logits || !batch->row || !batch->configs || !top) return NUCLEUS_LAUNCH_INVALID;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const cudaError_t error = batch->dtype == NUCLEUS_F32   ? launch_top<NUCLEUS_F32>(*batch, count, top, on)
                            : batch->dtype == NUCLEUS_F16 ? launch_top<NUCLEUS_F16>(*batch, count, top, on)
                                                          : launch_top<NUCLEUS_BF16>(*batch, count, top, on);
  return error == cudaSuccess ? NUCLEUS_LAUNCH_OK : NUCLEUS_LAUNCH_CUDA + static_cast<int>(error);
}
