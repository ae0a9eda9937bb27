// One row after another by a block, or one by a pair of blocks.
#pragma once

#include "pairs_finish.cuh"
#include "pairs_segment.cuh"

namespace nucleus::pairs {

// All rows, by blocks that take one after another, or by clusters that take one each.
template <u32 DTYPE>
__device__ __forceinline__ void sample_by_segments(const SamplingBatch &batch, const Sharing &sharing) {
  BoundedRow *const sh = bounded_row(sharing.ring_bytes);
  const DeviceTeam team;
  Ring<DTYPE> tiles(batch, sharing, sh);
  const u32 ahead = sharing.ahead;
  const bool shared = sharing.blocks > 1, resident = shared && ahead == tiles.tiles;
  if (shared) team.cluster_arrive();
  let_next_launch_begin();
  if (threadIdx.x == 0) tiles.prepare();
  wait_for_launch_before();
  // What is asked for after the tiles arrives after them.
  DescriptionWords words;
  if (threadIdx.x < 32) {
    words.load(batch, blockIdx.x / sharing.blocks);
    if (threadIdx.x == 0) {
      tiles.begin();
      if (shared) tiles.begin_others();
    }
    __syncwarp();
  }
  UNROLL_NOT
  for (u32 item = blockIdx.x; item < batch.rows * sharing.blocks; item += gridDim.x) {
    const u32 index = item / sharing.blocks, block = item - index * sharing.blocks, first = block * sharing.length;
    if (item != blockIdx.x) __syncthreads();  // what belongs to the row before is no longer needed
    if (threadIdx.x < 32) {
      describe_bounded(sh, batch, index, words);
      if (item + gridDim.x < batch.rows * sharing.blocks) words.load(batch, (item + gridDim.x) / sharing.blocks);
    } else {
      for (u32 i = threadIdx.x - 32; i < (sharing.length + 127) / 128; i += TILE_THREADS - 32) reinterpret_cast<uint4 *>(bits_after(sh))[i] = make_uint4(0, 0, 0, 0);
      for (u32 i = threadIdx.x - 32; i <= CHANGED_SLOTS; i += TILE_THREADS - 32) sh->changed[i] = Edit{NO_ID, 0, 0, 0.0f};
    }
    __syncthreads();
    const u32 limit = sh->config.vocab_size < batch.row_len ? sh->config.vocab_size : batch.row_len;
    const void *logits = tiles.row(index);
    const Segment<DTYPE> own{sh,
                             logits,
                             sh->row.mask < 0 ? nullptr : batch.masks + static_cast<u64>(sh->row.mask) * batch.mask_stride,
                             batch.mask_words,
                             first,
                             limit > first ? (limit - first < sharing.length ? limit - first : sharing.length) : 0,
                             sh->plan.edits};
    const bool decides = sh->bounded && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
    bool active = decides;
    if (active && own.edits) own.mark(batch, sharing.length);
    if (threadIdx.x == 0 && item == blockIdx.x && !shared) tiles.begin_others();
    if (threadIdx.x == TILE_THREADS - 32) sh->scale = scale(sh->plan.temperature);
    if (threadIdx.x == TILE_THREADS - 64) sh->uniform = uniform_of(sh->row, sh->config);
    if (active && own.edits) __syncthreads();
    // The first tiles tell a bound.
    float threshold = -infinity(), top = -infinity(), unedited = -infinity();
    UNROLL_NOT
    for (u32 tile = 0; tile < ahead; ++tile) {
      const unsigned char *data = tiles.wait(tile);
      const u32 begin = tile * tiles.IDS;
      if (!active || begin >= own.held) continue;
      own.complete(data, begin);
      const float most = own.most(data, begin);
      if (!(most < infinity())) sh->strange = 1;
      top = max_nan(top, most);
      if (most > unedited && most < infinity() && !(own.edits && own.may_edit(begin + own.place_in_tile(data, begin, most)))) unedited = most;
    }
    if (decides) {
      float most = -infinity(), bound = shared ? bound_of_row(team, sh, unedited, sh->plan.k, most) : -infinity();
      threshold = bound > -infinity() ? threshold_of(sh, bound, most) : threshold_of_threads(sh, unedited);
    }
    UNROLL_NOT
    for (u32 tile = 0; tile < tiles.tiles; ++tile) {
      const unsigned char *data = tiles.wait();
      const u32 begin = tile * tiles.IDS;
      bool look = false;
      if (active && begin < own.held) {
        float most = top;
        if (tile >= ahead) {
          own.complete(data, begin);
          most = own.most(data, begin);
          if (!(most < infinity())) {
            sh->strange = 1;
            look = true;
          }
        }
        if (most >= threshold) look |= own.collect(data, begin, threshold);
      }
      if (resident) {
        tiles.release();
        continue;
      }
      look = __syncthreads_or(look);
      tiles.release();
      if (!look) continue;
      const u32 found = sh->found;
      active = !sh->strange && found <= COLLECT_MOST;
      __syncthreads();  // all have seen it
      if (active && found > RAISE_FROM) threshold = raise_bound(sh, threshold, false);
    }
    bool decided = false;
    if (decides) {
      const u32 leave_most = sh->plan.kind == SlicePlan::ABOVE ? CHAIN_MOST : LEAVE_MOST;
      if (!resident) {  // else all blocks have one bound, and a good one
        __syncthreads();
        const u32 found = sh->found;
        active = !sh->strange && found <= COLLECT_MOST;
        if (own.edits) __syncthreads();  // all have seen it
        if (active && found > (shared ? RAISE_FROM : leave_most)) threshold = raise_bound(sh, threshold, false);
      }
      if (own.edits) own.collect_raised(request_of(batch, index, sh->row, sh->config, sh->program), threshold, resident);
      if (shared) {
        if (threadIdx.x == 0) sh->bound = key_or_none(threshold);
        team.cluster_sync();
        if (block == 0) {
          take_in(team, sh);
          __syncthreads();
          threshold = value_or_none(sh->bound);
          if (sh->found > leave_most && sh->found <= COLLECT_MOST) threshold = raise_bound(sh, threshold, true);
        }
      } else if (own.edits) {
        __syncthreads();
      }
      if (shared) team.cluster_arrive();  // the leading block has all
      if (block == 0) decided = finish_row(sh, batch, index, threshold);
    }
    if (threadIdx.x == 0 && block == 0 && !decided && !(sh->row.flags & NUCLEUS_ROW_PADDING)) batch.out[index].status = PENDING;
    if (shared) team.cluster_wait();  // no block leaves while the leading one may still read its shared memory
  }
}

}  // namespace nucleus::pairs
