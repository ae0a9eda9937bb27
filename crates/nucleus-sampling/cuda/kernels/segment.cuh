// A segment of a row: its unedited tokens that may be among the row's first.
#pragma once

#include "bounded.cuh"

namespace nucleus {

constexpr u32 COLLECT_ROOM = 1024;  // tokens collected before the bound is raised
constexpr u32 RAISE_FROM = 320;     // more than these raise it
constexpr u32 LEAVE_MOST = 96;      // and more than these do at the end of a segment
static_assert(LEAVE_MOST <= SEGMENT_ROOM && RAISE_FROM + TILE_THREADS < COLLECT_ROOM);

struct SegmentShared : BoundedRow {
  alignas(16) u64 places[COLLECT_ROOM];
  u64 arrived[TILES_AHEAD];  // mbarriers of the ring
};

// Shared memory: the ring, then SegmentShared, then a bit for each id of a segment.
__device__ __forceinline__ unsigned char *ring() { return shared_memory; }
__device__ __forceinline__ SegmentShared *segment_state() { return reinterpret_cast<SegmentShared *>(shared_memory + TILES_AHEAD * TILE_BYTES); }
__device__ __forceinline__ u32 *edited_bits() { return reinterpret_cast<u32 *>(shared_memory + TILES_AHEAD * TILE_BYTES + sizeof(SegmentShared)); }
inline size_t segment_bytes(u32 length) { return TILES_AHEAD * TILE_BYTES + sizeof(SegmentShared) + (length + 31) / 32 * 4; }

// The tiles that a block reads, one after another: those of its segments, which are blockIdx.x, blockIdx.x + gridDim.x, ... of all rows'.
template <u32 DTYPE>
struct Ring {
  static constexpr u32 WIDTH = Lane<DTYPE>::WIDTH, SIZE = 16 / WIDTH, IDS = TILE_BYTES / SIZE;
  const SamplingBatch &batch;
  const Segments &segments;
  u32 tiles;  // of a segment
  u32 next_item = blockIdx.x, next_tile = 0, stage = 0, parity = 0;

  __device__ __forceinline__ Ring(const SamplingBatch &b, const Segments &s) : batch(b), segments(s), tiles((s.length + IDS - 1) / IDS) {}

  __device__ __forceinline__ static u32 barrier(u32 stage) { return shared_address(&segment_state()->arrived[stage]); }
  __device__ __forceinline__ const void *row(u32 index) const { return static_cast<const char *>(batch.logits) + index * batch.row_stride * SIZE; }
  // Logits of a segment.
  __device__ __forceinline__ u32 held(u32 segment) const {
    const u32 first = segment * segments.length;
    return first >= batch.row_len ? 0 : batch.row_len - first < segments.length ? batch.row_len - first : segments.length;
  }

  // By one thread: the next tile goes to a stage. The engine copies 16 bytes at a time; what is left of the row is read when it is needed.
  __device__ __forceinline__ void issue(u32 to) {
    if (next_item >= batch.rows * segments.count) return;
    const u32 index = next_item / segments.count, segment = next_item - index * segments.count, at = next_tile * IDS, here = held(segment);
    u32 bytes = at < here ? (here - at < IDS ? here - at : IDS) * SIZE / 16 * 16 : 0;
    const char *from = static_cast<const char *>(row(index)) + static_cast<u64>(segment * segments.length + at) * SIZE;
    if (reinterpret_cast<uintptr_t>(from) % 16) bytes = 0;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(to)), "r"(bytes) : "memory");
    if (bytes)
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(ring() + to * TILE_BYTES)),
                   "l"(from), "r"(bytes), "r"(barrier(to))
                   : "memory");
    if (++next_tile == tiles) {
      next_tile = 0;
      next_item += gridDim.x;
    }
  }
  __device__ __forceinline__ void begin() {
    UNROLL_NOT
    for (u32 i = 0; i < TILES_AHEAD; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(i)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    UNROLL_NOT
    for (u32 i = 0; i < TILES_AHEAD; ++i) issue(i);
  }
  // Every thread: the oldest tile has arrived.
  __device__ __forceinline__ const unsigned char *wait() const {
    wait_for_copy(&segment_state()->arrived[stage], parity);
    return ring() + stage * TILE_BYTES;
  }
  // After a barrier: the oldest tile is no longer needed.
  __device__ __forceinline__ void release() {
    if (threadIdx.x == 0) issue(stage);
    if (++stage == TILES_AHEAD) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Whether a token of the segment has an edit.
__device__ __forceinline__ bool is_edited(u32 at) { return edited_bits()[at / 32] >> at % 32 & 1; }

// Raises the bound by what has been collected, and drops what does not reach it. Called by every thread, after a barrier; a barrier follows.
__device__ __noinline__ float raise_bound(float threshold) {
  SegmentShared *sh = segment_state();
  constexpr u32 EACH = COLLECT_ROOM / TILE_THREADS;
  const u32 count = sh->found;
  // Spread over the warps, so that each has as many.
  const u32 spread = threadIdx.x % 32 * TILE_WARPS + threadIdx.x / 32;
  u64 own[EACH], most = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 at = i * TILE_THREADS + spread;
    own[i] = at < count ? sh->places[at] : 0;
    most = own[i] > most ? own[i] : most;
  }
  threshold = fmaxf(threshold, threshold_of<TILE_THREADS>(sh, static_cast<u32>(most >> 32)));
  if (threadIdx.x == 0) sh->found = 0;
  __syncthreads();
  const u32 bound = threshold > -infinity() ? key_of(threshold + 0.0f) : 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    if (i * TILE_THREADS >= count) break;  // of the whole block
    const bool stays = own[i] && static_cast<u32>(own[i] >> 32) >= bound;
    const u32 at = reserve(&sh->found, stays);
    if (stays) sh->places[at] = own[i];
  }
  __syncthreads();
  return threshold;
}

// Every row's segments, by blocks that take one after another.
template <u32 DTYPE>
__device__ __forceinline__ void sample_segments(const SamplingBatch &batch, const Segments &segments) {
  using T = Tile<DTYPE>;
  SegmentShared *const sh = segment_state();
  Ring<DTYPE> ring(batch, segments);
  let_next_launch_begin();
  if (threadIdx.x == TILE_THREADS - 1) ring.begin();
  // Thread 0 goes on with it.
  if (threadIdx.x == 0) {
    const u32 ahead = TILES_AHEAD / ring.tiles;
    ring.next_item = blockIdx.x + ahead * gridDim.x;
    ring.next_tile = TILES_AHEAD - ahead * ring.tiles;
  }
  UNROLL_NOT
  for (u32 item = blockIdx.x; item < batch.rows * segments.count; item += gridDim.x) {
    const u32 index = item / segments.count, segment = item - index * segments.count, first = segment * segments.length;
    __syncthreads();  // what describes the row before is no longer needed
    if (threadIdx.x < 32) describe_bounded(sh, batch, index);
    else
      for (u32 i = threadIdx.x - 32; i < (segments.length + 31) / 32; i += TILE_THREADS - 32) edited_bits()[i] = 0;
    __syncthreads();
    const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
    const bool edits = sh->plan.edits;
    const u32 held = r.limit > first ? (r.limit - first < segments.length ? r.limit - first : segments.length) : 0;
    const bool aligned = reinterpret_cast<uintptr_t>(r.logits) % 16 == 0;
    bool active = sh->bounded && aligned;
    if (active && edits) {
      const Editable editable(r, sh->window);
#pragma unroll 6
      for (u32 i = threadIdx.x; i < editable.count(); i += TILE_THREADS) {
        float rise;
        const u32 at = editable.at(i, rise) - first;
        if (at < segments.length) atomicOr(&edited_bits()[at / 32], 1u << at % 32);
      }
      __syncthreads();
    }
    float threshold = -infinity();
    UNROLL_NOT
    for (u32 tile = 0; tile < ring.tiles; ++tile) {
      const unsigned char *data = ring.wait();
      const u32 begin = tile * ring.IDS;
      bool changed = false;  // what the block has found
      if (active && begin < held) {
        u32 limit = held - begin;
        if (limit < ring.IDS && limit % T::WIDTH) {  // what the copy engine left out
          const u32 rest = limit / T::WIDTH * T::WIDTH;
          if (threadIdx.x < limit - rest) {
            const u32 at = rest + threadIdx.x;
            if (DTYPE == NUCLEUS_F32) reinterpret_cast<u32 *>(const_cast<unsigned char *>(data))[at] = static_cast<const u32 *>(r.logits)[first + begin + at];
            else reinterpret_cast<uint16_t *>(const_cast<unsigned char *>(data))[at] = static_cast<const uint16_t *>(r.logits)[first + begin + at];
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // before a later copy to this place
          }
          __syncthreads();
        }
        T own(data);
        if (r.mask || limit < ring.IDS) own.restrict(r.mask, r.mask_words, first + begin, limit);
        const float most = own.most();
        const bool strange = !(most < infinity());
        if (strange) sh->strange = 1;
        if (threshold == -infinity()) {
          u32 key = most > -infinity() && !strange ? key_of(most + 0.0f) : 0;
          if (edits && key && is_edited(begin + T::place(__ffs(own.reaching(most)) - 1))) key = 0;
          threshold = threshold_of<TILE_THREADS>(sh, key);
        }
        u32 reaching = most >= threshold ? own.reaching(threshold) : 0;
        changed = strange || reaching;
        while (__any_sync(~0u, reaching != 0)) {
          const u32 at = T::place(reaching ? __ffs(reaching) - 1 : 0);
          const float x = T::logit(data, at);
          const bool leaves = reaching && !(edits && is_edited(begin + at));
          reaching &= reaching - 1;
          const u32 to = reserve(&sh->found, leaves);
          if (leaves && to < COLLECT_ROOM) sh->places[to] = place_of(x + 0.0f, first + begin + at);
        }
      }
      const bool look = __syncthreads_or(changed);
      ring.release();
      if (!look) continue;
      const u32 found = sh->found;
      active = !sh->strange && found <= COLLECT_ROOM;
      __syncthreads();  // all have seen it
      if (active && found > RAISE_FROM) threshold = raise_bound(threshold);
    }
    if (active && sh->found > LEAVE_MOST) threshold = raise_bound(threshold);
    const u32 count = sh->found;
    const bool decided = active && count <= SEGMENT_ROOM;
    SegmentHead &head = segments.heads[item];
    if (threadIdx.x < HEAD_ROOM) head.places[SegmentHead::slot(threadIdx.x)] = decided && threadIdx.x < count ? sh->places[threadIdx.x] : 0;
    else if (decided && threadIdx.x < count)
      segments.rest[static_cast<u64>(item) * (SEGMENT_ROOM - HEAD_ROOM) + (threadIdx.x - HEAD_ROOM)] = sh->places[threadIdx.x];
    if (threadIdx.x == 0) *reinterpret_cast<uint2 *>(&head) = make_uint2(decided ? count : UNDECIDED, threshold > -infinity() ? key_of(threshold + 0.0f) : 0);
  }
}

}  // namespace nucleus
