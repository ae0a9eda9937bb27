// What the translation units share of launching.
#pragma once

#include <cuda_runtime.h>

#include "bounded.cuh"

namespace nucleus {

// A launch that may begin while the one before it ends.
inline cudaLaunchAttribute begins_early() {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

// Segments that a row is shared out in.
u32 segments_of(u32 rows, u32 row_len, u32 dtype);

// Bounded requests get their token; the status of every other row is PENDING afterwards. `heads` and `rest` have room for all segments.
cudaError_t launch_bounded(const SamplingBatch &batch, SegmentHead *heads, u64 *rest, cudaStream_t stream);

}  // namespace nucleus
