// Products with matrices of weights: what decoder_kernels.h declares of them.
#include "linear/pack.cuh"
#include "linear/stream.cuh"
#include "linear/tile.cuh"
#include "linear/warpgroup.cuh"

namespace nucleus::linear {
namespace {

// Calls `f` with the type of weights of ggml's number, or returns `none`.
template <class F, class R>
R with_type(uint32_t type, R none, F f) {
  switch (type) {
    case NUCLEUS_F32: return f(F32{});
    case NUCLEUS_F16: return f(F16{});
    case NUCLEUS_BF16: return f(BF16{});
    case NUCLEUS_Q8_0: return f(Q8_0{});
    case NUCLEUS_Q4_0: return f(Q4_0{});
    case NUCLEUS_Q4_K: return f(Q4_K{});
    case NUCLEUS_Q6_K: return f(Q6_K{});
    default: return none;
  }
}

template <class F>
int launch_with_type(uint32_t type, F f) {
  return static_cast<int>(with_type(type, cudaErrorInvalidValue, f));
}

// The products of the type of the first that `done` does not have, which are added to it.
Call next_call(const NucleusProduct *products, uint32_t count, uint32_t rows, uint32_t &done) {
  Call call{};
  call.rows = rows;
  uint32_t taken = 0, panels = 0, type = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const NucleusMatrix &matrix = products[i].matrix;
    if (done >> i & 1 || (taken && matrix.type != type)) continue;
    type = matrix.type;
    done |= 1u << i;
    call.inputs = matrix.inputs;
    call.products[taken] = products[i];
    call.first_panels[taken++] = panels;
    panels += div_up(matrix.outputs, PANEL);
  }
  for (; taken <= MAX_PRODUCTS; ++taken) call.first_panels[taken] = panels;
  return call;
}

// Whether the device has wgmma. A build with NUCLEUS_NO_WGMMA does without, as other devices do: the tests compare both.
bool has_groups(const Device &device) {
#ifdef NUCLEUS_NO_WGMMA
  return false;
#else
  constexpr int HOPPER = 9;
  return device.major == HOPPER;
#endif
}

// Rows from which groups of warps are faster than streaming (measured on an H200, for all types).
constexpr uint32_t GROUP_ROWS = 9;

// Which kernel is taken never changes a result.
template <class W>
cudaError_t launch_products(const Call &call, const float *x, void *workspace, cudaStream_t stream) {
  Device device;
  if (cudaError_t status = Device::current(device)) return status;
  const bool groups = has_groups(device);
  if (!(groups && call.rows >= GROUP_ROWS) && can_stream<W>(call.rows, call.inputs, device)) return launch_streaming<W>(call, x, device, stream);
  return groups ? launch_groups<W>(call, x, workspace, device, stream) : launch_tiles<W>(call, x, workspace, device, stream);
}

bool is_valid(const NucleusProduct *products, uint32_t count) {
  if (!count || count > MAX_PRODUCTS) return false;
  for (uint32_t i = 0; i < count; ++i) {
    const NucleusMatrix &matrix = products[i].matrix;
    if (matrix.inputs != products[0].matrix.inputs || !matrix.outputs || !nucleus_matrix_bytes(matrix.type, matrix.outputs, matrix.inputs)) return false;
  }
  return true;
}

}  // namespace
}  // namespace nucleus::linear

using namespace nucleus::linear;

extern "C" size_t nucleus_matrix_bytes(uint32_t type, uint32_t outputs, uint32_t inputs) {
  return with_type(type, size_t{0}, [=]<class W>(W) {
    return inputs % W::BLOCK ? size_t{0} : div_up(outputs, PANEL) * panel_bytes<W>(inputs);
  });
}

extern "C" int nucleus_pack_matrix(uint32_t type, uint32_t outputs, uint32_t inputs, const void *file_bytes, void *held, void *stream) {
  return launch_with_type(type, [=]<class W>(W) {
    if (inputs % W::BLOCK) return cudaErrorInvalidValue;
    return launch_pack<W>(file_bytes, outputs, inputs, held, static_cast<cudaStream_t>(stream));
  });
}

extern "C" size_t nucleus_linear_workspace(uint32_t rows, uint32_t inputs) {
  return split_row_count(rows) / SMALL_TILE * SplitRows(inputs, SMALL_TILE).tile_bytes();
}

extern "C" int nucleus_linear(const float *input, uint32_t rows, const NucleusProduct *products, uint32_t count, void *workspace, size_t workspace_bytes,
                              void *stream) {
  if (!is_valid(products, count)) return cudaErrorInvalidValue;
  if (!rows) return cudaSuccess;
  if (workspace_bytes < nucleus_linear_workspace(rows, products[0].matrix.inputs)) return cudaErrorInvalidValue;
  for (uint32_t done = 0; done + 1 < 1u << count;) {
    Call call = next_call(products, count, rows, done);
    int status = launch_with_type(call.products[0].matrix.type, [&]<class W>(W) {
      return launch_products<W>(call, input, workspace, static_cast<cudaStream_t>(stream));
    });
    if (status) return status;
  }
  return cudaSuccess;
}

extern "C" int nucleus_embed(NucleusMatrix matrix, const uint32_t *tokens, uint32_t rows, float scale, float *output, void *stream) {
  return launch_with_type(matrix.type, [=]<class W>(W) {
    if (matrix.inputs % W::BLOCK) return cudaErrorInvalidValue;
    return launch_embed<W>(matrix, tokens, rows, scale, output, static_cast<cudaStream_t>(stream));
  });
}
