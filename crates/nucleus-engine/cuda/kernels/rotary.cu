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
  take_turn();
  const uint64_t place = uint64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (place >= uint64_t(rows) * pairs) return;
  double sin, cos;
  sincos(positions[place / pairs] * frequencies[place % pairs], &sin, &cos);
  output[place] = {static_cast<float>(magnitude * cos), static_cast<float>(magnitude * sin)};
}

// Heads of a row that a warp takes: their loads are in flight together, and they share what is looked up.
constexpr uint32_t HEADS = 4;

// One head of a row in shared memory, by one warp, for a pair's two dimensions are seldom the same lane's. A lane takes the dimensions 4·lane … 4·lane + 3, and those 128
// further.
struct HeadStates {
  const NucleusRotateStore &call;
  float *head;
  const float2 *turns;  // of the row

  __device__ __forceinline__ uint32_t width() const { return call.cache.head_dim; }

  __device__ __forceinline__ float4 &vector(uint32_t d) const { return *reinterpret_cast<float4 *>(head + d); }

  // Calls `f(d)` for the first of each of the lane's fours below `end`.
  template <class F>
  static __device__ __forceinline__ void each(uint32_t end, F f) {
    for (uint32_t d = threadIdx.x % WARP * 4; d < end; d += WARP * 4) f(d);
  }

  __device__ void normalise(const float *norm) const {
    float squares = 0.0f;
    each(width(), [&](uint32_t d) { squares = add_squares(vector(d), squares); });
    const float scale = inverse_rms(warp_sum(squares), width(), call.eps);
    each(width(), [&](uint32_t d) { vector(d) = vector(d) * scale * *reinterpret_cast<const float4 *>(norm + d); });
  }

  // Dimension `d` after the rotation: (x, y) becomes (x·cos - y·sin, x·sin + y·cos).
  __device__ __forceinline__ float rotated(uint32_t d) const {
    if (d >= 2 * call.pairs) return head[d];
    const bool second = call.neighbours ? d % 2 : d >= call.pairs;
    const uint32_t pair = call.neighbours ? d / 2 : d - (second ? call.pairs : 0);
    const float2 turn = turns[pair];
    const float x = head[call.neighbours ? 2 * pair : pair], y = head[call.neighbours ? 2 * pair + 1 : pair + call.pairs];
    return second ? fmaf(x, turn.y, y * turn.x) : fmaf(x, turn.x, -(y * turn.y));
  }

  __device__ __forceinline__ float4 rotated_vector(uint32_t d) const { return {rotated(d), rotated(d + 1), rotated(d + 2), rotated(d + 3)}; }
};

// A place in the cache, where a row's position is kept.
struct CachePlace {
  const NucleusCache &cache;
  uint32_t block, slot;

  __device__ CachePlace(const NucleusRotateStore &call, uint32_t row) : cache(call.cache) {
    const uint32_t position = call.rows.positions[row];
    slot = position % BLOCK;
    block = call.rows.block_tables[uint64_t(call.rows.sequences[row]) * call.rows.blocks_per_table + position / BLOCK];
  }

  // Writes one head of four dimensions.
  __device__ __forceinline__ void write(void *numbers, uint32_t kv_head, uint32_t d, float4 x) const {
    const __half2 front = {stored_half(x.x), stored_half(x.y)}, back = {stored_half(x.z), stored_half(x.w)};
    __half *place = static_cast<__half *>(numbers) + head_block(block, cache.kv_heads, kv_head, stored_width(cache.head_dim)) + place_in_block(slot, d);
    *reinterpret_cast<uint2 *>(place) = {*reinterpret_cast<const uint32_t *>(&front), *reinterpret_cast<const uint32_t *>(&back)};
  }
};

// The heads of a row: of its queries, then of its keys, then of its values.
struct RowHeads {
  const NucleusRotateStore &call;
  uint32_t row;

  __device__ uint32_t count() const { return call.heads + 2 * call.cache.kv_heads; }
  __device__ bool is_query(uint32_t head) const { return head < call.heads; }
  __device__ bool is_key(uint32_t head) const { return !is_query(head) && head < call.heads + call.cache.kv_heads; }
  __device__ uint32_t kv_head(uint32_t head) const { return (head - call.heads) % call.cache.kv_heads; }

  __device__ float *query(uint32_t head) const { return call.query + (uint64_t(row) * call.heads + head) * call.cache.head_dim; }
  __device__ const float *states(uint32_t head) const {
    if (is_query(head)) return query(head);
    return (is_key(head) ? call.key : call.value) + (uint64_t(row) * call.cache.kv_heads + kv_head(head)) * call.cache.head_dim;
  }
  __device__ const float *norm(uint32_t head) const { return is_query(head) ? call.query_norm : is_key(head) ? call.key_norm : nullptr; }
};

// Every warp takes HEADS heads of one row.
__global__ void __launch_bounds__(THREADS) rotate_store(const __grid_constant__ NucleusRotateStore call) {
  __shared__ __align__(16) float heads_of_warps[WARPS][HEADS][MAX_HEAD_DIM];
  take_turn();
  const uint32_t warp = threadIdx.x / WARP, width = call.cache.head_dim;
  const uint32_t warps_a_row = div_ceil(call.heads + 2 * call.cache.kv_heads, HEADS);
  const uint64_t item = uint64_t(blockIdx.x) * WARPS + warp;
  const RowHeads heads{call, static_cast<uint32_t>(item / warps_a_row)};
  const uint32_t first = item % warps_a_row * HEADS;
  if (heads.row >= call.rows.rows) return;
  const CachePlace place(call, heads.row);
  const float2 *turns = reinterpret_cast<const float2 *>(call.rotations) + uint64_t(heads.row) * call.pairs;
  constexpr uint32_t VECTORS = MAX_HEAD_DIM / (WARP * 4);
  float4 loaded[HEADS * VECTORS] = {};
  const auto dimension = [](uint32_t i) { return (i % VECTORS * WARP + threadIdx.x % WARP) * 4; };
#pragma unroll
  for (uint32_t i = 0; i < HEADS * VECTORS; ++i) {
    const uint32_t head = first + i / VECTORS;
    if (head < heads.count() && dimension(i) < width) loaded[i] = *reinterpret_cast<const float4 *>(heads.states(head) + dimension(i));
  }
#pragma unroll
  for (uint32_t i = 0; i < HEADS * VECTORS; ++i) *reinterpret_cast<float4 *>(&heads_of_warps[warp][i / VECTORS][dimension(i)]) = loaded[i];
  for (uint32_t i = 0; i < HEADS && first + i < heads.count(); ++i) {
    const uint32_t head = first + i;
    const HeadStates states{call, heads_of_warps[warp][i], turns};
    if (heads.norm(head)) states.normalise(heads.norm(head));
    __syncwarp();
    if (heads.is_query(head)) {
      HeadStates::each(width, [&](uint32_t d) { *reinterpret_cast<float4 *>(heads.query(head) + d) = states.rotated_vector(d); });
      continue;
    }
    const bool is_key = heads.is_key(head);
    HeadStates::each(stored_width(width), [&](uint32_t d) {
      const float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
      const float4 x = d >= width ? zeros : is_key ? states.rotated_vector(d) : states.vector(d);
      place.write(is_key ? call.cache.keys : call.cache.values, heads.kv_head(head), d, x);
    });
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
  const Grid grid{dim3(static_cast<uint32_t>(div_ceil(uint64_t(rows) * pairs, THREADS))), THREADS, 0, true};
  return launch(rotations, grid, stream, positions, rows, frequencies, pairs, magnitude, reinterpret_cast<float2 *>(rotations_of_rows));
}

int nucleus_rotate_store(const NucleusRotateStore *call, void *stream) {
  const uint32_t width = call->cache.head_dim;
  if (width == 0 || width % 8 != 0 || stored_width(width) == 0 || 2 * call->pairs > width) return cudaErrorInvalidValue;
  const uint64_t warps = call->rows.rows * div_ceil(call->heads + 2 * call->cache.kv_heads, HEADS);
  return launch(rotate_store, Grid{dim3(static_cast<uint32_t>(div_ceil(warps, WARPS))), THREADS, 0, true}, stream, *call);
}
