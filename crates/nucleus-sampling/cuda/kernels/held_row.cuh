// A row on its way into the slices of a cluster's blocks.
#pragma once

#include "slice_edits.cuh"

namespace nucleus {

// Rows up to which a call's first launch of clusters begins while the launch before it ends. Clusters of more take places in the order in which that leaves them, and fewer
// are resident.
constexpr u32 FIRST_EARLY_MOST = 16;

// The first logit of a row.
__device__ __forceinline__ const char *row_of(const SamplingBatch &batch, u32 index) {
  return static_cast<const char *>(batch.logits) + index * batch.row_stride * PartLoad::size_of(batch.dtype);
}

// The word of a row's description that this thread has. Asked for before logits, which reads that follow wait for.
__device__ __forceinline__ DescriptionWord read_word(const SamplingBatch &batch, u32 index) {
  DescriptionWord word;
  word.read(batch, index, likely_request(batch, index), threadIdx.x - DESCRIBING_FROM);
  return word;
}
// What the copy engine writes where the thread has read or written comes after that.
__device__ __forceinline__ void begin_overwriting() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Asks for the word, and for a block's slice of the row but for a warp's part that is still read: by every thread, when the block reads no more of what is there.
__device__ __forceinline__ DescriptionWord ask_for_row(const PartLoad &load, const SamplingBatch &batch, u32 index, u32 still_read = WARPS) {
  const DescriptionWord word = read_word(batch, index);
  begin_overwriting();
  sync_block();  // a slice is read by its own block alone
  if (threadIdx.x % 32 == 0 && threadIdx.x / 32 != still_read) load.start(row_of(batch, index));
  return word;
}
// Asks for a part that was still read then, by the first warp, when no other reads it any more.
__device__ __forceinline__ void ask_for_part(const PartLoad &load, const SamplingBatch &batch, u32 index) {
  begin_overwriting();
  __syncwarp();
  if (threadIdx.x == 0) load.start(row_of(batch, index));
}
// Describes and plans it in shared memory, and asks for the window: by all warps but the first, which comes when the token of the row before is written; where nothing else
// reads the description of that any more. A barrier of the block must follow.
template <class Room = FullRoom>
__device__ __forceinline__ void describe_row(Shared *sh, const SamplingBatch &batch, u32 index, DescriptionWord word) {
  if (may_edit(batch)) EditedTokens::of(sh)->clear();
  if (threadIdx.x == 0) {
    sh->unusual = sh->found = sh->kept = 0;
    sh->known_count = sh->known_total = sh->raw_total = 0;
  }
  if (!describes()) return;
  const u32 thread = threadIdx.x - DESCRIBING_FROM;
  word.write(sh, thread);
  meet_describing();
  const u32 request = sh->row.request, flags = sh->row.flags;
  if (flags & NUCLEUS_ROW_PADDING) return;
  if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH && request != index) {
    word.read(batch, index, request, thread);
    meet_describing();
    word.write(sh, thread);
    meet_describing();
  }
  if (flags & NUCLEUS_ROW_SLOT) {
    if (thread == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
    meet_describing();
  }
  if (thread < 32) share_plan(sh);
  else if (may_edit(batch)) ask_for_window<Room>(DESCRIBING_FROM + 32);
  if (thread / 32 == 1) {
    const u64 uniform = uniform_of(sh->row, sh->config);
    if (thread % 32 == 0) sh->uniform = uniform;
  }
}

// Masks the slices that have arrived, and edits their tokens by id. `unusual` tells of an edit that had no room, or made NaN or +inf. A row that is to be changed is
// there as it came when `before_changes` is called.
template <class Room = FullRoom, class F>
__device__ __forceinline__ void change_slices(const DeviceTeam &team, const Request &r, const SlicePlan &plan, const PartLoad &load, const char *logits, F before_changes) {
  Shared *sh = team.sh;
  const u32 word = first_mask_word(team, r);
  const bool masked = r.mask || sh->row.flags & NUCLEUS_ROW_ALLOWED;
  if (plan.edits) note_edited_tokens<Room>(team, r, plan);
  load.settle(logits, r.limit);
  if (!plan.edits && !masked) return;
  sync_block();
  before_changes();
  end_reads_for_racecheck();
  if (masked) {
    forbid(team, r, word);
    sync_block();
  }
  if (plan.edits && change_edited_tokens(team, r)) sh->unusual = 1;
  sync_block();
}

}  // namespace nucleus
