// Causal attention of grouped queries over the paged cache.
//
// Tiles of few rows, such as those that decode, are taken by blocks of one team of warps; tiles of a prompt by blocks whose warps take rows of their own. Both
// compute with the same code, so a row's result does not show which of them it was.
#include <algorithm>

#include "attention_kernel.cuh"

namespace nucleus {
namespace {

constexpr uint32_t MAX_GROUP = 16;

// Warps of a block for tiles of a prompt: the totals of wide heads fill shared memory sooner.
constexpr uint32_t prompt_warps(uint32_t width) { return width <= 128 ? 8 : 4; }
constexpr uint32_t prompt_stages(uint32_t width) { return width <= 128 ? 4 : 3; }
constexpr uint32_t PROMPT_TILES = 2;

// Blocks of one team that a multiprocessor has room for, and the stages that fill their shared memory.
constexpr uint32_t decode_resident(uint32_t width, uint32_t tiles) {
  if (tiles > 1) return width > 128 ? 1 : 2;
  return width <= 80 ? 4 : width <= 128 ? 3 : 2;
}
constexpr uint32_t decode_stages(uint32_t width) { return width <= 64 || width > 128 ? 3 : 2; }

// A team with a block of the cache each.
constexpr uint32_t decode_team(uint32_t width) { return step_positions(width) / BLOCK; }

template <uint32_t WIDTH, uint32_t TILES>
using DecodeShape = AttentionShape<WIDTH, TILES, decode_team(WIDTH), decode_team(WIDTH), decode_stages(WIDTH), decode_resident(WIDTH, TILES)>;
template <uint32_t WIDTH>
using PromptShape = AttentionShape<WIDTH, PROMPT_TILES, 1, prompt_warps(WIDTH), prompt_stages(WIDTH), 1>;

// Blocks that are worth having: for rows that decode, some for each place on the machine, so that unequal contexts even out; for prompts, one a multiprocessor. More
// only begin and end. So many pairs of a tile and a key head are blocks enough without splits, whose results would have to be added.
constexpr uint32_t DECODE_BLOCKS = 2048, PROMPT_BLOCKS = 132, ENOUGH_PAIRS = 1024;
// Rows of a tile of a prompt with a query head a key head.
constexpr uint32_t MAX_TILE_ROWS = 8 * PROMPT_TILES * TILE;
// Workspace that is worth asking for; where it is too small for the results of splits, blocks take whole contexts.
constexpr size_t MAX_WORKSPACE = size_t(128) << 20;

// Calls `f(width)` with the stored width as a constant.
template <class F>
int with_width(uint32_t head_dim, F f) {
  switch (stored_width(head_dim)) {
    case 16: return f(std::integral_constant<uint32_t, 16>());
    case 32: return f(std::integral_constant<uint32_t, 32>());
    case 64: return f(std::integral_constant<uint32_t, 64>());
    case 80: return f(std::integral_constant<uint32_t, 80>());
    case 96: return f(std::integral_constant<uint32_t, 96>());
    case 128: return f(std::integral_constant<uint32_t, 128>());
    case 256: return f(std::integral_constant<uint32_t, 256>());
    default: return cudaErrorInvalidValue;
  }
}

// Most splits that a tile of so many positions meets.
uint32_t most_splits(uint32_t window, uint32_t tile_positions, uint32_t max_context) {
  const uint32_t all = splits_of(max_context);
  if (window == 0) return all;
  return static_cast<uint32_t>(std::min<uint64_t>(all, (uint64_t(window) + tile_positions) / SHORT_SPLIT + 2));
}

// Bytes of a row's results of one split.
constexpr size_t partial_bytes(uint32_t width) { return width * sizeof(float) + sizeof(Softmax); }

// Shares a call out to about so many blocks, if its contexts have so many splits and the workspace has room for their results.
AttentionPlan plan_of(const NucleusAttention &call, uint32_t blocks, uint32_t tile_rows, uint32_t width) {
  const uint64_t pairs = uint64_t(call.tile_count) * call.cache.kv_heads;
  const uint32_t splits = most_splits(call.window, tile_rows, call.max_context);
  AttentionPlan plan = {};
  plan.parts = pairs >= ENOUGH_PAIRS ? 1 : static_cast<uint32_t>(std::min<uint64_t>(std::max(1u, splits), std::max<uint64_t>(1, blocks / pairs)));
  const uint64_t results = pairs * splits * tile_rows;
  if (plan.parts > 1 && results * partial_bytes(width) <= call.workspace_bytes) {
    float *outputs = static_cast<float *>(call.workspace);
    plan.partials = {outputs, reinterpret_cast<Softmax *>(outputs + results * width), splits, tile_rows};
  } else {
    plan.parts = 1;
  }
  return plan;
}

template <class Shape>
int attend_tiles(const NucleusAttention &call, const AttentionPlan &plan, void *stream) {
  constexpr size_t bytes = sizeof(typename Shape::Shared);
  if (cudaError_t error = cudaFuncSetAttribute(attend<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) return error;
  const uint64_t pairs = uint64_t(call.tile_count) * call.cache.kv_heads;
  const Grid grid{dim3(static_cast<uint32_t>(pairs * plan.parts)), Shape::THREADS, bytes};
  if (int error = launch(attend<Shape>, grid, stream, call, plan)) return error;
  if (plan.parts == 1) return cudaSuccess;
  const Grid rows{dim3(static_cast<uint32_t>(pairs * plan.partials.rows)), Shape::WIDTH};
  return launch(combine<Shape::WIDTH>, rows, stream, call, plan);
}

// Tiles of at most Decode::ROWS rows by one kernel, and the others by another. Neither is launched for nothing: not the second where all tiles are single rows, nor the
// first where tiles are full on the average, for the second takes any.
template <class Decode, class Prompt>
int attend_call(const NucleusAttention &call, void *stream) {
  const uint32_t group = call.heads / call.cache.kv_heads;
  const bool only_single_rows = call.tile_count == call.rows.rows;
  const bool mostly_full = 2 * uint64_t(call.rows.rows) * group >= uint64_t(call.tile_count) * Prompt::ROWS;
  if (!mostly_full) {
    AttentionPlan decode = plan_of(call, DECODE_BLOCKS, only_single_rows ? group : Decode::ROWS, Decode::WIDTH);
    decode.most_rows = Decode::ROWS;
    const int error = attend_tiles<Decode>(call, decode, stream);
    if (error || only_single_rows) return error;
  }
  AttentionPlan prompt = plan_of(call, PROMPT_BLOCKS, Prompt::ROWS, Prompt::WIDTH);
  prompt.fewest_rows = mostly_full ? 1 : Decode::ROWS + 1;
  prompt.most_rows = Prompt::ROWS;
  return attend_tiles<Prompt>(call, prompt, stream);
}

}  // namespace
}  // namespace nucleus

using namespace nucleus;

uint32_t nucleus_attention_tile_rows(uint32_t heads_per_kv_head, uint32_t head_dim) {
  if (heads_per_kv_head == 0 || heads_per_kv_head > MAX_GROUP) return 0;
  return prompt_warps(stored_width(head_dim)) * PROMPT_TILES * TILE / heads_per_kv_head;
}

size_t nucleus_attention_workspace(uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t max_context) {
  // Tiles of a prompt take the room of full ones.
  const uint64_t results = (uint64_t(rows) + MAX_TILE_ROWS) * heads * splits_of(max_context);
  return std::min(MAX_WORKSPACE, results * partial_bytes(stored_width(head_dim)));
}

int nucleus_attention(const NucleusAttention *call, void *stream) {
  const uint32_t heads = call->heads, kv_heads = call->cache.kv_heads, head_dim = call->cache.head_dim;
  if (kv_heads == 0 || heads % kv_heads != 0 || heads / kv_heads > MAX_GROUP || head_dim % 8 != 0) return cudaErrorInvalidValue;
  if (call->tile_count == 0) return cudaSuccess;
  return with_width(head_dim, [&](auto width) {
    if (heads / kv_heads <= TILE) return attend_call<DecodeShape<width, 1>, PromptShape<width>>(*call, stream);
    return attend_call<DecodeShape<width, 2>, PromptShape<width>>(*call, stream);
  });
}
