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

// Asks for a block's slice of a row, and for the word of its description that this thread has: by every thread, when the block does not read its slice any more.
__device__ __forceinline__ DescriptionWord ask_for_row(const PartLoad &load, const SamplingBatch &batch, u32 index) {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // other warps wrote to this part
  sync_block();  // a slice is read by its own block alone
  if (threadIdx.x % 32 == 0) load.start(row_of(batch, index));
  // Most often a row has the request of its own number: then that is read before the row is known.
  DescriptionWord word;
  word.read(batch, index, batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : batch.row[index].request);
  return word;
}
// Describes it in shared memory, once the block does not read the description of the row before any more.
__device__ __forceinline__ void describe_row(Shared *sh, const SamplingBatch &batch, u32 index, const DescriptionWord &word) {
  sync_block();
  if (may_edit(batch)) EditedTokens::of(sh)->clear();  // while the description is on its way
  word.write(sh);
  if (threadIdx.x == 0) {
    sh->unusual = sh->found = sh->kept = 0;
    sh->known_count = sh->known_total = sh->raw_total = 0;
  }
  sync_block();
  const u32 request = sh->row.request;
  if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH && request != index && !(sh->row.flags & NUCLEUS_ROW_PADDING)) {
    sync_block();
    share_description(sh, batch, index, request);
    sync_block();
  }
  describe_slot(sh, batch);
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
  if (masked) forbid(team, r, word);
  sync_block();
  if (plan.edits && change_edited_tokens(team, r)) sh->unusual = 1;
  sync_block();
}

}  // namespace nucleus
