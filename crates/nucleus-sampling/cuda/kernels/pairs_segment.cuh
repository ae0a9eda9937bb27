// A segment of a row: its tokens that may be among the row's first.
#pragma once

#include "pairs.cuh"

namespace nucleus::pairs {

constexpr u32 RAISE_FROM = 320;  // more tokens than these raise the bound
constexpr u32 LEAVE_MOST = 128;  // and more than these do at the end; for min_p, whose first bound may be far from the last, as many as the chain takes

// The tiles that a block reads, one after another: those of its segments, which are blockIdx.x, blockIdx.x + gridDim.x, ... of all rows'.
template <u32 DTYPE>
struct Ring {
  static constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, SIZE = 16 / WIDTH, IDS = TILE_BYTES / SIZE;
  const SamplingBatch &batch;
  const Sharing &sharing;
  u64 *arrived;  // mbarriers
  u32 tiles;     // of a segment
  u32 next_item = blockIdx.x, next_tile = 0, stage = 0, parity = 0;

  __device__ __forceinline__ Ring(const SamplingBatch &b, const Sharing &s, BoundedRow *sh)
      : batch(b), sharing(s), arrived(sh->arrived), tiles((s.length + IDS - 1) / IDS) {}

  __device__ __forceinline__ const void *row(u32 index) const { return static_cast<const char *>(batch.logits) + index * batch.row_stride * SIZE; }
  // Logits of a segment.
  __device__ __forceinline__ u32 held(u32 segment) const {
    const u32 first = segment * sharing.length;
    return first >= batch.row_len ? 0 : batch.row_len - first < sharing.length ? batch.row_len - first : sharing.length;
  }
  __device__ __forceinline__ unsigned char *tile_at(u32 at) const { return ring() + at * TILE_BYTES; }

  // By one thread, always the same: the next tile goes to a stage. The engine copies 16 bytes at a time; what is left of the row is read when it is needed.
  __device__ __forceinline__ void issue(u32 to) {
    if (next_item >= batch.rows * sharing.blocks) return;
    const u32 index = next_item / sharing.blocks, segment = next_item - index * sharing.blocks, at = next_tile * IDS, here = held(segment);
    u32 bytes = at < here ? (here - at < IDS ? here - at : IDS) * SIZE / 16 * 16 : 0;
    const char *from = static_cast<const char *>(row(index)) + static_cast<u64>(segment * sharing.length + at) * SIZE;
    if (reinterpret_cast<uintptr_t>(from) % 16) bytes = 0;
    const u32 barrier = shared_address(&arrived[to]);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    if (bytes)
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(tile_at(to))), "l"(from),
                   "r"(bytes), "r"(barrier)
                   : "memory");
    if (++next_tile == tiles) {
      next_tile = 0;
      next_item += gridDim.x;
    }
  }
  __device__ __forceinline__ void prepare() const {
    UNROLL_NOT
    for (u32 i = 0; i < sharing.stages; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&arrived[i])) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  // The first tile, and later the others: what is asked for after tiles arrives after them.
  __device__ __forceinline__ void begin() { issue(0); }
  __device__ __forceinline__ void begin_others() {
    UNROLL_NOT
    for (u32 i = 1; i < sharing.stages; ++i) issue(i);
  }
  // Every thread: the tile `later` after the oldest has arrived.
  __device__ __forceinline__ const unsigned char *wait(u32 later = 0) const {
    const u32 at = stage + later, wraps = at >= sharing.stages;
    wait_for_copy(&arrived[at - (wraps ? sharing.stages : 0)], parity ^ wraps);
    return tile_at(at - (wraps ? sharing.stages : 0));
  }
  // After a barrier: the oldest tile is no longer needed.
  __device__ __forceinline__ void release() {
    if (threadIdx.x == 0) issue(stage);
    if (++stage == sharing.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// What a block knows of the segment it reads.
template <u32 DTYPE>
struct Segment {
  using T = Tile<DTYPE>;
  using R = Ring<DTYPE>;
  BoundedRow *sh;
  const void *logits;  // of the row
  const u32 *mask;     // of the row; null: none
  u32 mask_words;
  u32 first;  // the id of the segment's first logit
  u32 held;   // logits that count
  bool edits;

  // Whether a token of the segment may be edited.
  __device__ __forceinline__ bool may_edit(u32 at) const { return bits_after(sh)[at / 32] >> at % 32 & 1; }

  // Notes the ids that the request may edit.
  __device__ __forceinline__ void mark(const SamplingBatch &batch, u32 length) const {
    const Editable editable(batch, sh->row, sh->window);
#pragma unroll 6
    for (u32 i = threadIdx.x; i < editable.count(); i += TILE_THREADS) {
      const u32 id = editable.at(i), at = id - first;
      sh->ids[i] = id;
      if (at < length) atomicOr(&bits_after(sh)[at / 32], 1u << at % 32);
    }
  }

  // Fetches what the copy engine has left out of the row's last tile. A barrier within, if there is something.
  __device__ __forceinline__ void complete(const unsigned char *data, u32 begin) const {
    const u32 limit = held - begin, rest = limit / T::WIDTH * T::WIDTH;
    if (limit >= R::IDS || limit == rest) return;
    if (threadIdx.x < limit - rest) {
      const u32 at = rest + threadIdx.x;
      if (DTYPE == NUCLEUS_F32) reinterpret_cast<u32 *>(const_cast<unsigned char *>(data))[at] = static_cast<const u32 *>(logits)[first + begin + at];
      else reinterpret_cast<uint16_t *>(const_cast<unsigned char *>(data))[at] = static_cast<const uint16_t *>(logits)[first + begin + at];
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before a later copy to this place
    }
    __syncthreads();
  }

  // This thread's share of a part of a tile, without what masks forbid and what is no part of the segment.
  __device__ __forceinline__ T load(const unsigned char *data, u32 begin) const {
    T own(data);
    const u32 limit = held > begin ? held - begin : 0;
    if (mask || limit < T::IDS) own.template restrict<true>(mask, mask_words, first + begin, limit);
    return own;
  }

  // The largest logit of this thread's share of a tile; NaN if one is.
  __device__ __forceinline__ float most(const unsigned char *data, u32 begin) const { return max_nan(-infinity(), load(data, begin).most()); }

  // Where this logit is in this thread's share of a tile.
  __device__ __forceinline__ u32 place_in_tile(const unsigned char *data, u32 begin, float x) const {
    const u32 bits = load(data, begin).reaching(x);
    return bits ? T::place(__ffs(bits) - 1) : 0;
  }

  // Collects this thread's tokens of a tile that reach the threshold; true if the bound should be raised.
  __device__ __forceinline__ bool collect(const unsigned char *data, u32 begin, float threshold) const {
    bool many = false;
    u32 reaching = load(data, begin).reaching(threshold);
    UNROLL_NOT
    for (; reaching; reaching &= reaching - 1) {
      const u32 at = T::place(__ffs(reaching) - 1);
      u64 place = place_of(T::logit(data, at) + 0.0f, first + begin + at);
      if (edits && may_edit(begin + at)) {
        if (!sh->lowers) continue;
        place = editable_place(place);
      }
      many |= append(sh, place) >= RAISE_FROM;
    }
    return many;
  }

  // Lists the tokens that an edit may raise to the threshold. `resident`: the whole segment is in the ring.
  __device__ __forceinline__ void collect_raised(const Request &r, float threshold, bool resident) const {
    const u32 biases = sh->row.bias.len, from = sh->lowers ? sh->window : 0;
    const u32 to = sh->lowers ? from + biases : sh->window + biases + sh->row.eos.len + sh->row.bad_words.len;
    UNROLL_NOT
    for (u32 i = from + threadIdx.x; i < to; i += TILE_THREADS) {
      const u32 id = sh->ids[i], at = id - first;
      if (at >= held || (mask && !mask_allows(r, id))) continue;
      const float rise = sh->lowers ? reinterpret_cast<const SamplingBias *>(r.words(r.row->bias))[i - from].value : infinity();
      if (!(rise > 0.0f)) continue;
      const float x = resident ? T::logit(ring(), at) : load_logit(r, id);
      if (x > -infinity() && x + rise >= threshold) append(sh, editable_place(place_of(x + 0.0f, id)));
    }
  }
};

// A bound of the row's k-th largest logit, from the largest of groups of threads of all its blocks; -inf: it tells none. `most`: the largest. Two
// barriers of the cluster.
__device__ __forceinline__ float bound_of_row(const DeviceTeam &team, BoundedRow *sh, float own, u32 k, float &most) {
  constexpr u32 EACH = GROUPS_OF_ROW / 32;
  const u32 blocks = team.blocks, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The fewer the blocks, the more groups a warp: together there are as many as groups of the row.
  const u32 groups = GROUPS_OF_ROW / TILE_WARPS / blocks, width = 32 / groups;
  UNROLL_NOT
  for (u32 step = 1; step < width; step *= 2) own = fmaxf(own, __shfl_xor_sync(~0u, own, step));
  team.cluster_wait();  // every block has begun: its shared memory may be written
  // The lanes of a group share out the blocks.
  const u32 at = team.block * (GROUPS_OF_ROW / blocks) + warp * groups + lane / width;
  UNROLL_NOT
  for (u32 other = lane % width; other < blocks; other += width) *team.in_block(&sh->groups[at], other) = own;
  team.cluster_sync();
  // Every warp for itself.
  const float4 some = *reinterpret_cast<const float4 *>(&sh->groups[EACH * lane]);
  const float x[EACH] = {some.x, some.y, some.z, some.w};
  u32 filled = 0;
  float largest = -infinity(), least = infinity();
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    filled += x[i] > -infinity();
    largest = fmaxf(largest, x[i]);
    least = fminf(least, x[i] > -infinity() ? x[i] : infinity());
  }
  filled = __reduce_add_sync(~0u, filled);
  most = value_or_none(__reduce_max_sync(~0u, key_or_none(largest)));
  if (k == 1) return most;
  if (filled < k) return -infinity();
  float low = value_of(__reduce_min_sync(~0u, key_of(least + 0.0f))), high = most;
  UNROLL_NOT
  for (u32 round = 0; round < 8; ++round) {
    const float middle = 0.5f * low + 0.5f * high;
    u32 own_reach = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) own_reach += x[i] >= middle;
    const u32 reach = __reduce_add_sync(~0u, own_reach);
    if (reach < k) high = middle;
    else low = middle;
    if (reach - k <= k / 4) break;
  }
  return low;
}
static_assert(GROUPS_OF_ROW == 4 * 32 && GROUPS_OF_ROW >= BOUND_K && GROUPS_OF_ROW >= TILE_WARPS * SHARERS_MOST);

}  // namespace nucleus::pairs
