// Launches that overlap.
#pragma once

#include <cuda_runtime.h>

namespace nucleus {

// A launch that may begin while the one before it ends.
inline cudaLaunchAttribute begins_early() {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

}  // namespace nucleus
