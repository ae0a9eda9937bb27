// Causal attention of grouped queries over the paged cache.
#include "cache_layout.cuh"
#include "vectors.cuh"

namespace nucleus {
namespace {

constexpr uint32_t MAX_HEAD_DIM = 256;

// One query head of one row by one warp: 32 positions at a time, a lane each for the scores, then all lanes for the values.
__global__ void __launch_bounds__(WARP) attend(const __grid_constant__ NucleusAttention call) {
  __shared__ float query[MAX_HEAD_DIM], weights[WARP];
  const NucleusCache &cache = call.cache;
  const uint32_t head = blockIdx.x % call.heads, row = blockIdx.x / call.heads, lane = threadIdx.x;
  const uint32_t kv_head = head / (call.heads / cache.kv_heads), width = cache.head_dim, stored = stored_width(width);
  const uint32_t position = call.rows.positions[row];
  const uint32_t *table = call.rows.block_tables + uint64_t(call.rows.sequences[row]) * call.rows.blocks_per_table;
  const uint32_t start = call.window && position >= call.window ? position - call.window + 1 : 0;
  const uint64_t place = (uint64_t(row) * call.heads + head) * width;
  for (uint32_t d = lane; d < width; d += WARP) query[d] = call.query[place + d];
  float max = -INFINITY, sum = 0.0f, output[MAX_HEAD_DIM / WARP] = {};
  for (uint32_t first = start; first <= position; first += WARP) {
    const uint32_t own = first + lane;
    __syncwarp();
    float score = -INFINITY;
    if (own <= position) {
      const __half *keys = static_cast<const __half *>(cache.keys) + head_block(table[own / BLOCK], cache.kv_heads, kv_head, stored);
      float dot = 0.0f;
      for (uint32_t d = 0; d < width; ++d) dot = fmaf(query[d], __half2float(keys[key_place(own % BLOCK, d)]), dot);
      score = call.scale * dot;
      if (call.soft_cap != 0.0f) score = call.soft_cap * tanhf(score / call.soft_cap);
    }
    float largest = score;
    for (uint32_t distance = WARP / 2; distance > 0; distance /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    const float next = fmaxf(max, largest), kept = expf(max - next);
    weights[lane] = own <= position ? expf(score - next) : 0.0f;
    sum = sum * kept + warp_sum(weights[lane]);
    max = next;
    __syncwarp();
    for (float &x : output) x *= kept;
    for (uint32_t i = 0; i < WARP && first + i <= position; ++i) {
      const uint32_t at = first + i;
      const __half *values = static_cast<const __half *>(cache.values) + head_block(table[at / BLOCK], cache.kv_heads, kv_head, stored);
      for (uint32_t d = lane, j = 0; d < width; d += WARP, ++j) output[j] = fmaf(weights[i], __half2float(values[value_place(at % BLOCK, d)]), output[j]);
    }
  }
  for (uint32_t d = lane, j = 0; d < width; d += WARP, ++j) call.output[place + d] = output[j] / sum;
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

uint32_t nucleus_attention_tile_rows(uint32_t heads_per_kv_head, uint32_t) { return 128 / heads_per_kv_head; }

size_t nucleus_attention_workspace(uint32_t, uint32_t, uint32_t, uint32_t) { return 0; }

int nucleus_attention(const NucleusAttention *call, void *stream) {
  const uint32_t heads = call->heads, kv_heads = call->cache.kv_heads;
  if (kv_heads == 0 || heads % kv_heads != 0 || stored_width(call->cache.head_dim) == 0) return cudaErrorInvalidValue;
  return launch(attend, Grid{dim3(call->rows.rows * heads), WARP}, stream, *call);
}
