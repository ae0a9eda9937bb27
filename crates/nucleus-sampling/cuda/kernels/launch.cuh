// What the translation units share of launching.
#pragma once

#include <cuda_runtime.h>

#include "overlap.cuh"
#include "top_processed.cuh"
#include "whole.cuh"

namespace nucleus {

constexpr u32 CLUSTER_ROWS = 64;                        // a cluster takes no more
constexpr u32 SLICE_ENOUGH = 19456;                     // logits a block for which more blocks a row do not pay where rows are many

inline bool has_masks(const SamplingBatch &batch) { return batch.masks && batch.mask_words; }
// Whether draw.cu takes rows with edits, of the batch or a part of it.
inline bool edits_drawn(const SamplingBatch &batch) {
  constexpr u32 OTHER_CUTS = NUCLEUS_BATCH_CUT_BY_WEIGHT | NUCLEUS_BATCH_CUT_BY_SURPRISE | NUCLEUS_BATCH_WARMED | NUCLEUS_BATCH_SMOOTHED;
  return (batch.flags & (NUCLEUS_BATCH_DRAWN_EDITED | OTHER_CUTS)) == NUCLEUS_BATCH_DRAWN_EDITED && !has_masks(batch);
}

// Clusters that hold rows in slices.
struct Shape {
  u32 blocks = 0, clusters = 0, room = 0;  // room: logits of a slice; 0: rows are too long for slices
  size_t bytes = 0;                        // of shared memory
  u32 threads = THREADS;

  // `beside`: bytes that a block has beside its slices.
  void share(u32 row_len, u32 of, u32 slices, u32 beside = SHARED_BYTES) {
    blocks = of;
    room = slice_of(row_len, of);
    if (beside + slices * room * sizeof(float) > SHARED_BYTES + SLICE_BYTES_MAX) room = 0;
    const size_t slice = slices * room * sizeof(float);
    bytes = beside + (slice > SPARE_BYTES ? slice : SPARE_BYTES);
  }
  // `attributes`: room for those of the launch. `early`: it may begin while the one before it ends.
  cudaLaunchConfig_t config(cudaLaunchAttribute (&attributes)[2], cudaStream_t stream, bool early) const {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = blocks;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1] = begins_early();
    cudaLaunchConfig_t launch = {};
    launch.gridDim = dim3(clusters * blocks);
    launch.blockDim = dim3(threads);
    launch.dynamicSmemBytes = bytes;
    launch.stream = stream;
    launch.attrs = attributes;
    launch.numAttrs = early ? 2 : 1;
    return launch;
  }
  // As many clusters as are resident at a time, but no more than rows.
  cudaError_t fill(u32 rows, const void *kernel) {
    // The answer is the device's own and does not change.
    struct Known {
      const void *kernel;
      int device;
      u32 blocks;
      size_t bytes;
      int resident;
    };
    constexpr size_t KNOWN = 61;
    thread_local Known known[KNOWN] = {};
    int device = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    Known &slot = known[(device + 7 * blocks + bytes / 1024 + reinterpret_cast<uintptr_t>(kernel) / 16) % KNOWN];
    if (!slot.resident || slot.kernel != kernel || slot.device != device || slot.blocks != blocks || slot.bytes != bytes) {
      cudaLaunchAttribute attributes[2];
      clusters = 1;
      const cudaLaunchConfig_t launch = config(attributes, nullptr, false);
      int resident = 0;
      error = cudaOccupancyMaxActiveClusters(&resident, kernel, &launch);
      if (error != cudaSuccess) return error;
      slot = Known{kernel, device, blocks, bytes, resident > 0 ? resident : 1};
    }
    const u32 resident = static_cast<u32>(slot.resident);
    clusters = rows < resident ? rows : resident;
    return cudaSuccess;
  }
  // Clusters of ShortRoom, of which a multiprocessor has a block, as many as are resident; no room: rows are too long for them, or those that would take them otherwise, `beside`,
  // are not the largest. Where the ways of many rows are tested, as few as see all rows.
  cudaError_t fit_wide(const SamplingBatch &batch, const Shape &beside, const void *kernel) {
    const bool many = batch.flags & NUCLEUS_BATCH_MANY_ROWS;
    share(batch.row_len, ShortRoom::BLOCKS, 1, ShortRoom::BYTES);
    if (batch.cluster || !(many || beside.blocks == MAX_BLOCKS)) room = 0;
    if (many) clusters = (batch.rows + CLUSTER_ROWS - 1) / CLUSTER_ROWS;
    return room && !many ? fill(batch.rows, kernel) : cudaSuccess;
  }
  // A block takes all shared memory of a multiprocessor if as many clusters are resident then.
  cudaError_t set_apart(u32 rows, const void *kernel) {
    Shape apart = *this;
    apart.bytes = SHARED_BYTES + SLICE_BYTES_MAX;
    const cudaError_t error = apart.fill(rows, kernel);
    if (apart.clusters == clusters) *this = apart;
    return error;
  }
  // Rows of a cluster, one after another.
  u32 turns(u32 rows) const { return (rows + clusters - 1) / clusters; }
  // The blocks that the batch asks for; where rows wait for a cluster, no more than they need, and no fewer than `least`. `slices`: that a block has.
  cudaError_t fit(const SamplingBatch &batch, const void *kernel, u32 slices = 1, u32 least = 1) {
    const u32 wanted = batch.cluster ? batch.cluster : MAX_BLOCKS;
    share(batch.row_len, wanted > least ? wanted : least, slices);
    cudaError_t error = fill(batch.rows, kernel);
    while (error == cudaSuccess && !batch.cluster && blocks > least && clusters < batch.rows && batch.row_len / (blocks / 2) <= SLICE_ENOUGH) {
      share(batch.row_len, blocks / 2, slices);
      error = fill(batch.rows, kernel);
    }
    return error;
  }
};

// A kernel whose blocks hold slices may have all shared memory.
inline cudaError_t allow_slices(const void *kernel) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_BYTES + SLICE_BYTES_MAX);
  return error == cudaSuccess ? cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared) : error;
}

// Whether rows are sampled without clusters: the device has none, or less shared memory than their kernels take, or this build has no code of them for it;
// or the batch asks for it.
cudaError_t without_clusters(const SamplingBatch &batch, bool &without);

// Every row gets its token, by a block each that takes nothing that compute capability 8.0 has not.
cudaError_t launch_portable(const SamplingBatch &batch, const Workspace &workspace, cudaStream_t stream);

// The same of launch_tops.
cudaError_t launch_portable_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream);

// Writes what describes a row.
cudaError_t launch_description(SamplingRow *to, const SamplingRow &row, cudaStream_t stream);

// Bounded requests get their token; the status of every other row is PENDING afterwards. `last`: no launch follows, so that every other row gets its token, too.
// Where rows are few, and not short: clusters of blocks.
constexpr u32 SPREAD_TO = 66, SPREAD_FROM_LEN = 8192;
cudaError_t launch_spread(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream);

// The same everywhere: a block a multiprocessor.
cudaError_t launch_relay(const PartOfBatch &batch, const Workspace &workspace, bool last, cudaStream_t stream);

// Rows with NUCLEUS_ROW_FEW get their token or PENDING; unless another launch went before, so does every other row PENDING.
cudaError_t launch_few(const PartOfBatch &batch, bool follows, cudaStream_t stream);

// Rows whose programs' cuts follow from sums get their token, most often; the status of every other row is PENDING afterwards.
cudaError_t launch_sums(const PartOfBatch &batch, cudaStream_t stream);

// Tells the likeliest tokens of the rows with NUCLEUS_ROW_TOP.
cudaError_t launch_tops(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, cudaStream_t stream);

// Rows that their first cut decides get their token; the status of every other row is PENDING afterwards. With `pending`, of rows that an earlier launch left PENDING; if `tells`,
// MANY_KEPT where top_p keeps too many. `division`: how rows were shared out; no room if nothing was launched: rows are too long, or so many that it would take more time than
// launch_whole, or, unless it tells, than the last launch alone.
cudaError_t launch_cuts(const PartOfBatch &batch, const Whole &whole, bool pending, bool tells, cudaStream_t stream, Division &division);

// Rows of an order, counted from the first that a launch takes.
struct LeftRange {
  u32 first, count;
};

// Rows that draw from the whole of their row get their token and, unless all do (NUCLEUS_BATCH_ALL_DRAWN), those that draw from what top_p keeps, or MANY_KEPT if that
// is too much for a list; the status of every other row is PENDING afterwards. With `pending`, of rows that an earlier launch left PENDING. `division`: how rows were shared out; no
// room if they are too long, then nothing was launched. `left`: rows of their order whose status is PENDING afterwards, too.
cudaError_t launch_draw(const PartOfBatch &batch, const Whole &whole, bool pending, LeftRange left, cudaStream_t stream, Division &division);

// Bytes of workspace that launch_whole needs.
size_t whole_bytes(size_t rows);

// Rows that few tokens do not decide get their token; the status of the others is PENDING afterwards, or MANY_KEPT. With `pending`, of rows that an earlier
// launch left PENDING. `division`: how rows were shared out; no room if they are too long, then nothing was launched.
cudaError_t launch_whole(const PartOfBatch &batch, const Whole &whole, bool pending, cudaStream_t stream, Division &division);

}  // namespace nucleus
