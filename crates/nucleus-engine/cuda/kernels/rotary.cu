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

// One head of a row in shared memory, by one warp, for a pair's two dimensions are seldom the same lane's. A lane takes the dimensions 4·lane … 4·lane + 3, and those 128
// further.
struct HeadStates {
  const NucleusRotateStore &call;
  float *head;
  const float2 *turns;  // of the row: (cos, sin)

  __device__ __forceinline__ uint32_t width() const { return call.cache.head_dim; }

  __device__ __forceinline__ float4 &vector(uint32_t d) const { return *reinterpret_cast<float4 *>(head + d); }

  // Calls `f(d)` for the first of each of the lane's fours below `end`.
  template <class F>
  static __device__ __forceinline__ void each(uint32_t end, F f) {
    for (uint32_t d = threadIdx.x % WARP * 4; d < end; d += WARP * 4) f(d);
  }

  // Brings the head to shared memory, normalised if there is a norm.
  __device__ __forceinline__ void load(const float *states, const float *norm) const {
    float squares = 0.0f;
    each(width(), [&](uint32_t d) {
      vector(d) = *reinterpret_cast<const float4 *>(states + d);
      squares = add_squares(vector(d), squares);
    });
    if (norm) {
      const float scale = inverse_rms(warp_sum(squares), width(), call.eps);
      each(width(), [&](uint32_t d) { vector(d) = vector(d) * scale * *reinterpret_cast<const float4 *>(norm + d); });
    }
    __syncwarp();
  }

  // (x, y) becomes (x·cos - y·sin, x·sin + y·cos).
  static __device__ __forceinline__ float first_of(float x, float y, float2 turn) { return fmaf(x, turn.x, -(y * turn.y)); }
  static __device__ __forceinline__ float second_of(float x, float y, float2 turn) { return fmaf(x, turn.y, y * turn.x); }

  __device__ __forceinline__ float rotated(uint32_t d) const {
    if (d >= 2 * call.pairs) return head[d];
    if (call.neighbours) {
      const float x = head[d / 2 * 2], y = head[d / 2 * 2 + 1];
      return d % 2 == 0 ? first_of(x, y, turns[d / 2]) : second_of(x, y, turns[d / 2]);
    }
    if (d < call.pairs) return first_of(head[d], head[d + call.pairs], turns[d]);
    return second_of(head[d - call.pairs], head[d], turns[d - call.pairs]);
  }

  // Dimensions d … d + 3 after the rotation.
  __device__ __forceinline__ float4 rotated_vector(uint32_t d) const {
    if (call.neighbours || call.pairs % 4 != 0 || d >= 2 * call.pairs) return {rotated(d), rotated(d + 1), rotated(d + 2), rotated(d + 3)};
    const bool is_first = d < call.pairs;
    const uint32_t pair = is_first ? d : d - call.pairs;
    const float4 x = vector(pair), y = vector(pair + call.pairs);
    const float2 turn[4] = {turns[pair], turns[pair + 1], turns[pair + 2], turns[pair + 3]};
    if (is_first) return {first_of(x.x, y.x, turn[0]), first_of(x.y, y.y, turn[1]), first_of(x.z, y.z, turn[2]), first_of(x.w, y.w, turn[3])};
    return {second_of(x.x, y.x, turn[0]), second_of(x.y, y.y, turn[1]), second_of(x.z, y.z, turn[2]), second_of(x.w, y.w, turn[3])};
  }
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

  __device__ bool is_query(uint32_t head) const { return head < call.heads; }
  __device__ bool is_key(uint32_t head) const { return head < call.heads + call.cache.kv_heads; }
  __device__ uint32_t kv_head(uint32_t head) const { return (head - call.heads) % call.cache.kv_heads; }

  __device__ float *query(uint32_t head) const { return call.query + (uint64_t(row) * call.heads + head) * call.cache.head_dim; }
  __device__ const float *kv_states(uint32_t head) const {
    return (is_key(head) ? call.key : call.value) + (uint64_t(row) * call.cache.kv_heads + kv_head(head)) * call.cache.head_dim;
  }
};

// Every warp takes a head of a row.
__global__ void __launch_bounds__(THREADS) rotate_store(const __grid_constant__ NucleusRotateStore call) {
  __shared__ __align__(16) float heads_of_warps[WARPS][MAX_HEAD_DIM];
  take_turn();
  const uint32_t warp = threadIdx.x / WARP, width = call.cache.head_dim;
  const uint64_t item = uint64_t(blockIdx.x) * WARPS + warp;
  const uint32_t heads_a_row = call.heads + 2 * call.cache.kv_heads;
  const RowHeads heads{call, static_cast<uint32_t>(item / heads_a_row)};
  const uint32_t head = item % heads_a_row;
  if (heads.row >= call.rows.rows) return;
  const HeadStates states{call, heads_of_warps[warp], reinterpret_cast<const float2 *>(call.rotations) + uint64_t(heads.row) * call.pairs};
  if (heads.is_query(head)) {
    states.load(heads.query(head), call.query_norm);
    HeadStates::each(width, [&](uint32_t d) { *reinterpret_cast<float4 *>(heads.query(head) + d) = states.rotated_vector(d); });
    return;
  }
  const CachePlace place(call, heads.row);
  const bool is_key = heads.is_key(head);
  states.load(heads.kv_states(head), is_key ? call.key_norm : nullptr);
  HeadStates::each(stored_width(width), [&](uint32_t d) {
    const float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
    const float4 x = d >= width ? zeros : is_key ? states.rotated_vector(d) : states.vector(d);
    place.write(is_key ? call.cache.keys : call.cache.values, heads.kv_head(head), d, x);
  });
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
  const uint64_t warps = uint64_t(call->rows.rows) * (call->heads + 2 * call->cache.kv_heads);
  return launch(rotate_store, Grid{dim3(static_cast<uint32_t>(div_ceil(warps, WARPS))), THREADS, 0, true}, stream, *call);
}
