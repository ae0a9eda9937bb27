// The likeliest tokens of rows as they came, a cluster a row: a sweep for the largest logits, which bound the n-th from below, and one for the weights and the
// tokens that reach the bound.
#include <cuda_runtime.h>

#include "call.cuh"
#include "launch.cuh"

namespace nucleus {

constexpr u32 TOP_LISTED = 1024;

// Shared by a block; what is listed and weighed is in that of the leader.
struct TopShared {
  u64 places[TOP_LISTED];
  u64 masses[MAX_BLOCKS * WARPS], best[WARPS];
  u32 groups[THREADS], maxima[WARPS], found;
};

// The share of a row that a thread has: vectors of 16 bytes, or logits, from `first` on.
struct Share {
  u32 first, step;
};

// Calls f(id, logit) for a share of a row, 16 bytes at a time where it is aligned, and `after()` before it was called 512 times without. BACK: from the row's
// end, so that a second sweep begins with what is still in the cache.
template <u32 DTYPE, bool BACK = false, class F, class A>
__device__ __forceinline__ void sweep_row(const void *row, u32 limit, Share share, F f, A after) {
  constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, AT_ONCE = 16 / WIDTH;
  const u32 whole = reinterpret_cast<uintptr_t>(row) % 16 == 0 ? limit / WIDTH : 0, stretch = 480 / WIDTH * share.step;
#pragma unroll 1
  for (u32 begin = 0; begin < whole; begin += stretch) {
    const u32 end = begin + stretch < whole ? begin + stretch : whole;
#pragma unroll AT_ONCE
    for (u32 i = begin + share.first; i < end; i += share.step) {
      const u32 at = BACK ? whole - 1 - i : i;
      const Lane<DTYPE> v(__ldg(static_cast<const uint4 *>(row) + at));
#pragma unroll
      for (u32 e = 0; e < WIDTH; ++e) f(at * WIDTH + e, v.x[e]);
    }
    after();
  }
#pragma unroll 1
  for (u32 id = whole * WIDTH + share.first; id < limit; id += share.step) {
    f(id, logit_in<DTYPE>(row, id));
    after();
  }
}
template <u32 DTYPE, class F>
__device__ __forceinline__ void sweep_row(const void *row, u32 limit, Share share, F f) {
  sweep_row<DTYPE>(row, limit, share, f, [] {});
}

// The largest place below `before`, to every thread of a block that sweeps the row alone; 0: there is none.
template <u32 DTYPE>
__device__ __forceinline__ u64 next_place(TopShared &sh, const void *row, u32 limit, u64 before) {
  u64 most = 0;
  sweep_row<DTYPE>(row, limit, Share{threadIdx.x, THREADS}, [&](u32 id, float x) {
    const u64 place = x > -infinity() ? place_of(x + 0.0f, id) : 0;
    most = place < before && place > most ? place : most;
  });
  most = DeviceWarp{}.most(most);
  sync_block();
  if (threadIdx.x % 32 == 0) sh.best[threadIdx.x / 32] = most;
  sync_block();
  for (u32 warp = 0; warp < WARPS; ++warp) most = sh.best[warp] > most ? sh.best[warp] : most;
  return most;
}

// The key of the largest logit of this thread's share; 0: there is none. UNUSUAL: one is NaN or +inf.
template <u32 DTYPE>
__device__ __forceinline__ u32 largest_of(const void *row, u32 limit, Share share) {
  float most = -infinity();
  bool unusual = false;
  sweep_row<DTYPE>(row, limit, share, [&](u32, float x) {
    most = fmaxf(most, x);
    unusual |= !(x < infinity());
  });
  return unusual ? UNUSUAL : most > -infinity() ? key_of(most + 0.0f) : 0;
}

// The blocks of a row.
struct RowBlocks : DeviceTeam {
  static constexpr bool ALONE = false;
  __device__ __forceinline__ Share share() const { return Share{rank(), size()}; }
  __device__ __forceinline__ TopShared *of_leader(TopShared *sh) const { return in_block(sh, 0); }
};
// A block that has a row alone.
struct OneBlock : RowBlocks {
  static constexpr bool ALONE = true;
  __device__ __forceinline__ OneBlock() {
    blocks = 1;
    block = 0;
  }
  __device__ __forceinline__ Share share() const { return Share{threadIdx.x, THREADS}; }
  __device__ __forceinline__ TopShared *of_leader(TopShared *sh) const { return sh; }
  __device__ __forceinline__ void cluster_arrive() const {}
  __device__ __forceinline__ void cluster_wait() const { sync_block(); }
  __device__ __forceinline__ void cluster_sync() const { sync_block(); }
};
__device__ __forceinline__ void publish_groups(const OneBlock &, u32 *groups, u32 own) { groups[threadIdx.x] = own; }

// Weighs this thread's share of a row, and lists its tokens from the threshold up at the leader, where they are counted even if there is no room.
template <u32 DTYPE, class Blocks>
__device__ __forceinline__ void weigh_and_list(const Blocks &team, TopShared &sh, const void *row, u32 limit, const Weighing &w, float threshold) {
  TopShared *const leader = team.of_leader(&sh);
  const Addends addends(w);
  u32 high = 0, low = 0, added = 0;
  u64 mass = 0;
  sweep_row<DTYPE, true>(
      row, limit, team.share(),
      [&](u32 id, float x) {
        if (addends.serve) addends.add(x, high, low);
        else mass += w.q(x);
        added += 1;
        if (!(x >= threshold) || !(x > -infinity())) return;
        const u32 at = atomicAdd(&leader->found, 1);
        if (at < TOP_LISTED) leader->places[at] = place_of(x + 0.0f, id);
      },
      [&] {
        if (addends.serve) mass += Addends::sum(high, low, added);
        high = low = added = 0;
      });
  mass = DeviceWarp{}.sum(mass);
  if (threadIdx.x % 32 == 0) leader->masses[team.block * WARPS + threadIdx.x / 32] = mass;
}

template <u32 DTYPE, class Blocks>
__device__ __forceinline__ void tell_top_of_row(const SamplingBatch &batch, u32 count, SamplingLogprob *top) {
  __shared__ TopShared sh;
  const Blocks team;
  const u32 index = team.share_of(blockIdx.x);
  if (batch.row[index].flags & (NUCLEUS_ROW_PADDING | NUCLEUS_ROW_NO_TOP)) return;
  const u32 vocab = batch.configs[batch.row[index].request].vocab_size, limit = vocab < batch.row_len ? vocab : batch.row_len;
  const void *row = static_cast<const char *>(batch.logits) + index * batch.row_stride * (DTYPE == NUCLEUS_F32 ? 4 : 2);
  if (threadIdx.x == 0) sh.found = 0;
  team.cluster_arrive();
  const u32 own = largest_of<DTYPE>(row, limit, team.share());
  team.cluster_wait();  // every block has begun
  publish_groups(team, sh.groups, own);
  team.cluster_sync();
  const u32 key = sh.groups[threadIdx.x], in_warp = __reduce_max_sync(~0u, key);
  if (threadIdx.x % 32 == 0) sh.maxima[threadIdx.x / 32] = in_warp;
  sync_block();
  const u32 largest = __reduce_max_sync(~0u, sh.maxima[threadIdx.x % WARPS]);
  Weighing w;
  SamplingLogprob *to = top + static_cast<u64>(index) * count;
  const bool valid = largest && largest != UNUSUAL && begin_weighing(value_of(largest), 1.0f, w);
  const u32 bound = valid ? kth_of_threads(key, count) : 0;
  if (valid) weigh_and_list<DTYPE>(team, sh, row, limit, w, bound ? value_of(bound) : -infinity());
  team.cluster_sync();
  if (!team.leader()) return;
  u32 listed = sh.found;
  if (listed > TOP_LISTED) {  // equal logits, or few threads that have any: one after another
    u64 place = ~0ull;
#pragma unroll 1
    for (listed = 0; listed < count; ++listed) {
      place = next_place<DTYPE>(sh, row, limit, place);
      if (!place) break;
      if (threadIdx.x == 0) sh.places[listed] = place;
    }
    sync_block();
  } else {
    sort_places<THREADS>(sh.places, listed);
  }
  if (threadIdx.x >= count) return;
  if (!valid || threadIdx.x >= listed) {
    to[threadIdx.x] = SamplingLogprob{NUCLEUS_NO_TOKEN, valid ? -infinity() : float_of(0x7FC00000u)};
    return;
  }
  for (u32 other = 0; other < team.blocks * WARPS; ++other) w.sums.total += sh.masses[other];
  const RawSums raw = raw_sums_of(value_of(largest), w);
  const u64 place = sh.places[threadIdx.x];
  to[threadIdx.x] = SamplingLogprob{id_at(place), raw_logprob_of(raw, logit_at(place))};
}

template <u32 DTYPE, class Blocks>
__global__ void __launch_bounds__(THREADS, 2) top_rows(const __grid_constant__ SamplingBatch batch, u32 count, SamplingLogprob *top) {
#if __CUDA_ARCH__ >= 900
  tell_top_of_row<DTYPE, Blocks>(batch, count, top);
#else
  if constexpr (Blocks::ALONE) tell_top_of_row<DTYPE, Blocks>(batch, count, top);
#endif
}

// Blocks of a row: as many as are resident for all rows on the devices this is tuned for, and have logits for all their threads.
static u32 blocks_of(const SamplingBatch &batch) {
  constexpr u32 EIGHTS = 30, FOURS = 62, TWOS = 132;
  const u32 at_once = THREADS * (batch.dtype == NUCLEUS_F32 ? 4 : 8);
  u32 blocks = batch.rows <= EIGHTS ? 8 : batch.rows <= FOURS ? 4 : batch.rows <= TWOS ? 2 : 1;
  while (blocks > 1 && blocks * at_once > batch.row_len) blocks /= 2;
  return blocks;
}

template <u32 DTYPE>
static cudaError_t launch_top(const SamplingBatch &batch, u32 count, SamplingLogprob *top, cudaStream_t stream) {
  bool without = false;
  const cudaError_t error = without_clusters(batch, without);
  if (error != cudaSuccess) return error;
  const u32 blocks = without ? 1 : blocks_of(batch);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(batch.rows * blocks);
  config.blockDim = dim3(THREADS);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = blocks > 1 ? 1 : 0;
  const auto kernel = blocks > 1 ? top_rows<DTYPE, RowBlocks> : top_rows<DTYPE, OneBlock>;
  return cudaLaunchKernelEx(&config, kernel, batch, count, top);
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
