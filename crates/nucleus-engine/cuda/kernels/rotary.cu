// Rotary positions (Su et al. 2021), and the way of keys and values into the cache.
#include "cache_layout.cuh"
#include "vectors.cuh"

namespace nucleus {
namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / WARP;
constexpr uint32_t MAX_HEAD_DIM = 256;

__global__ void __launch_bounds__(THREADS)
    rotations(const uint32_t *positions, uint32_t rows, const double *frequencies, uint32_t pairs, double magnitude, float2 *output) {
  const uint64_t place = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (place >= uint64_t(rows) * pairs) return;
  double sin, cos;
  sincos(positions[place / pairs] * frequencies[place % pairs], &sin, &cos);
  output[place] = {static_cast<float>(magnitude * cos), static_cast<float>(magnitude * sin)};
}

// One head of one row, by one warp: each lane takes every 32nd vector of four dimensions. `head` is in shared memory, for a pair's two
// dimensions are seldom the same lane's.
struct HeadRow {
  const NucleusRotateStore &call;
  float *head;
  uint32_t row;
  uint32_t lane;

  __device__ uint32_t width() const { return call.cache.head_dim; }

  __device__ float4 vector(uint32_t d) const { return *reinterpret_cast<const float4 *>(head + d); }

  // Brings the head to shared memory, normalised if there is a norm.
  __device__ void load(const float *from, const float *norm) const {
    float squares = 0.0f;
    for (uint32_t d = 4 * lane; d < width(); d += 4 * WARP) {
      const float4 x = *reinterpret_cast<const float4 *>(from + d);
      squares = add_squares(x, squares);
      *reinterpret_cast<float4 *>(head + d) = x;
    }
    if (norm) {
      const float scale = inverse_rms(warp_sum(squares), width(), call.eps);
      for (uint32_t d = 4 * lane; d < width(); d += 4 * WARP) {
        *reinterpret_cast<float4 *>(head + d) = vector(d) * scale * *reinterpret_cast<const float4 *>(norm + d);
      }
    }
    __syncwarp();
  }

  // Dimension `d` after the rotation: (x, y) becomes (x·cos - y·sin, x·sin + y·cos).
  __device__ float rotated(uint32_t d) const {
    if (d >= 2 * call.pairs) return head[d];
    const bool second = call.neighbours ? d % 2 : d >= call.pairs;
    const uint32_t pair = call.neighbours ? d / 2 : d - (second ? call.pairs : 0);
    const float2 turn = reinterpret_cast<const float2 *>(call.rotations)[uint64_t(row) * call.pairs + pair];
    const float x = head[call.neighbours ? 2 * pair : pair], y = head[call.neighbours ? 2 * pair + 1 : pair + call.pairs];
    return second ? fmaf(x, turn.y, y * turn.x) : fmaf(x, turn.x, -(y * turn.y));
  }

  __device__ float4 rotated_vector(uint32_t d) const { return {rotated(d), rotated(d + 1), rotated(d + 2), rotated(d + 3)}; }
};

// Every warp takes one head of one row: the heads of queries, then of keys, then of values.
__global__ void __launch_bounds__(THREADS) rotate_store(const __grid_constant__ NucleusRotateStore call) {
  __shared__ __align__(16) float heads_of_warps[WARPS][MAX_HEAD_DIM];
  const NucleusCache &cache = call.cache;
  const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, heads_a_row = call.heads + 2 * cache.kv_heads;
  const uint64_t item = uint64_t(blockIdx.x) * WARPS + warp;
  const uint32_t row = item / heads_a_row, head = item % heads_a_row;
  if (row >= call.rows.rows) return;
  const HeadRow states{call, heads_of_warps[warp], row, lane};
  const uint32_t width = cache.head_dim;
  if (head < call.heads) {
    float *query = call.query + (uint64_t(row) * call.heads + head) * width;
    states.load(query, call.query_norm);
    for (uint32_t d = 4 * lane; d < width; d += 4 * WARP) *reinterpret_cast<float4 *>(query + d) = states.rotated_vector(d);
    return;
  }
  const uint32_t position = call.rows.positions[row], slot = position % BLOCK;
  const uint32_t block = call.rows.block_tables[uint64_t(call.rows.sequences[row]) * call.rows.blocks_per_table + position / BLOCK];
  const bool is_key = head < call.heads + cache.kv_heads;
  const uint32_t kv_head = head - call.heads - (is_key ? 0 : cache.kv_heads), stored = stored_width(width);
  const uint64_t from = (uint64_t(row) * cache.kv_heads + kv_head) * width, to = head_block(block, cache.kv_heads, kv_head, stored);
  states.load((is_key ? call.key : call.value) + from, is_key ? call.key_norm : nullptr);
  for (uint32_t d = 4 * lane; d < stored; d += 4 * WARP) {
    const float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
    const float4 x = d >= width ? zeros : is_key ? states.rotated_vector(d) : states.vector(d);
    const __half2 front = {stored_half(x.x), stored_half(x.y)}, back = {stored_half(x.z), stored_half(x.w)};
    __half *place = static_cast<__half *>(is_key ? cache.keys : cache.values) + to + place_in_block(slot, d);
    *reinterpret_cast<uint2 *>(place) = {*reinterpret_cast<const uint32_t *>(&front), *reinterpret_cast<const uint32_t *>(&back)};
  }
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

size_t nucleus_cache_bytes(uint32_t blocks, uint32_t kv_heads, uint32_t head_dim) {
  return head_dim % 8 == 0 ? head_block(blocks, kv_heads, 0, stored_width(head_dim)) * sizeof(__half) : 0;
}

int nucleus_rotations(const uint32_t *positions, uint32_t rows, const double *frequencies, uint32_t pairs, double magnitude, float *rotations_of_rows,
                      void *stream) {
  const Grid grid{dim3(static_cast<uint32_t>(div_ceil(uint64_t(rows) * pairs, THREADS))), THREADS};
  return launch(rotations, grid, stream, positions, rows, frequencies, pairs, magnitude, reinterpret_cast<float2 *>(rotations_of_rows));
}

int nucleus_rotate_store(const NucleusRotateStore *call, void *stream) {
  const uint32_t width = call->cache.head_dim;
  if (width == 0 || width % 8 != 0 || stored_width(width) == 0 || 2 * call->pairs > width) return cudaErrorInvalidValue;
  const uint64_t heads = uint64_t(call->rows.rows) * (call->heads + 2 * call->cache.kv_heads);
  return launch(rotate_store, Grid{dim3(static_cast<uint32_t>(div_ceil(heads, WARPS))), THREADS}, stream, *call);
}
