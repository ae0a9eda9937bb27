/* The decoder's kernels, as the executor calls them (plain C).
 *
 * Every function queues work on `stream` (a cudaStream_t) and returns at once: 0, or the cudaError_t that kept it from being queued. None allocates
 * or waits, so all can be captured in a CUDA graph. Addresses are of device memory unless said otherwise, aligned to 16 bytes; structs are read on
 * the host, before the function returns. Activations are float32, row-major and dense: `[rows, width]`.
 *
 * A row is one token of one sequence. What is computed for a row depends on that row alone: the same bits come out for any number of rows beside
 * it and in any place among them. Sums follow an order that the matrix, the head and the position decide, never the launch.
 */
#ifndef NUCLEUS_DECODER_KERNELS_H
#define NUCLEUS_DECODER_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- matrices ---- */

/* Types of weights that are computed with as they are; the numbers are ggml's. */
enum {
  NUCLEUS_F32 = 0,
  NUCLEUS_F16 = 1,
  NUCLEUS_Q4_0 = 2,
  NUCLEUS_Q8_0 = 8,
  NUCLEUS_Q4_K = 12,
  NUCLEUS_Q6_K = 14,
  NUCLEUS_BF16 = 30,
};

/* A matrix `[outputs, inputs]` as the device holds it. */
typedef struct {
  const void *data; /* what nucleus_pack_matrix wrote */
  uint32_t type;
  uint32_t outputs;
  uint32_t inputs; /* a multiple of the type's block: 1, 32 or 256 */
} NucleusMatrix;

/* `output = input · matrixᵀ + bias`, for every row. */
typedef struct {
  NucleusMatrix matrix;
  const float *bias; /* [outputs], or null */
  float *output;
  uint64_t output_stride; /* floats from one row to the next */
} NucleusProduct;

/* Bytes that a matrix takes on the device; 0 for a type that is not computed with. */
size_t nucleus_matrix_bytes(uint32_t type, uint32_t outputs, uint32_t inputs);

/* Rearranges a matrix from the bytes of a model file. */
int nucleus_pack_matrix(uint32_t type, uint32_t outputs, uint32_t inputs, const void *file_bytes, void *held, void *stream);

/* Bytes of workspace that products of `rows` rows of `inputs` values may need; never fewer for more of either. */
size_t nucleus_linear_workspace(uint32_t rows, uint32_t inputs);

/* Products of one input `[rows, inputs]` with one to four matrices of that many inputs, whatever their types. No output may overlap the input or
 * another output. What the workspace holds before does not matter; who shares it must be of the same stream. */
int nucleus_linear(const float *input, uint32_t rows, const NucleusProduct *products, uint32_t count, void *workspace, size_t workspace_bytes,
                   void *stream);

/* `output[row] = scale · matrix[tokens[row]]`: [rows, inputs]. */
int nucleus_embed(NucleusMatrix matrix, const uint32_t *tokens, uint32_t rows, float scale, float *output, void *stream);

/* `tokens[row] = drawn[drawn_rows[row] * drawn_stride]`, where drawn_rows[row] is not UINT32_MAX; 0 where what was drawn is not below vocab_size.
 * Where the word `status_offset` behind what was drawn is `stopped`, the row's sequence has ended: the row is token 0 at position 0 of the block
 * `spare_block`, which is no sequence's. Such a row's table must be no other row's. */
typedef struct {
  uint32_t *tokens;       /* [rows] */
  uint32_t *positions;    /* [rows] */
  uint32_t *block_tables; /* [tables, blocks_per_table] */
  const uint32_t *sequences;  /* [rows]: the row's table */
  const uint32_t *drawn_rows; /* [rows] */
  const uint32_t *drawn;
  uint32_t drawn_stride, status_offset, stopped;
  uint32_t rows, blocks_per_table, spare_block, vocab_size;
} NucleusTakeTokens;
int nucleus_take_tokens(const NucleusTakeTokens *call, void *stream);

/* ---- norms and activations: widths are multiples of 4, those of norms at most 16,384 ---- */

/* `output = x / √(mean(x²) + eps) · weight` (Zhang & Sennrich 2019), row by row. `output` may be `x`. */
int nucleus_rms_norm(const float *x, const float *weight, float eps, uint32_t rows, uint32_t width, float *output, void *stream);

/* `hidden += y`, where `y` is normalised by `post_norm` first unless that is null; then `normed = norm(hidden) · next_norm` unless that is null. */
typedef struct {
  float *hidden;
  const float *y;
  const float *post_norm;
  const float *next_norm;
  float *normed;
  float eps;
  uint32_t rows;
  uint32_t width;
} NucleusAddNorm;
int nucleus_add_norm(const NucleusAddNorm *call, void *stream);

enum { NUCLEUS_SILU = 0, NUCLEUS_GELU_TANH = 1 };

/* `gate = activation(gate) · up`, `count` values. */
int nucleus_gated(float *gate, const float *up, uint64_t count, uint32_t activation, void *stream);

/* `output[i] = x[rows[i]]`, `count` rows of `width`. */
int nucleus_gather_rows(const float *x, const uint32_t *rows, uint32_t count, uint32_t width, float *output, void *stream);

/* `x = cap · tanh(x / cap)`: [rows, width] with `stride` floats from one row to the next. */
int nucleus_soft_cap(float *x, float cap, uint32_t rows, uint32_t width, uint64_t stride, void *stream);

/* ---- positions and the cache ---- */

/* Positions in a block of the cache. */
enum { NUCLEUS_BLOCK_SIZE = 16 };

/* Where the rows of a step stand: row i is position positions[i] of sequence sequences[i], whose j-th block is
 * block_tables[sequences[i] * blocks_per_table + j]. */
typedef struct {
  const uint32_t *positions;
  const uint32_t *sequences;
  const uint32_t *block_tables;
  uint32_t blocks_per_table;
  uint32_t rows;
} NucleusRows;

/* The cache of one layer, in float16: keys and values are [blocks, kv_heads] parts of NUCLEUS_BLOCK_SIZE positions each, whose inner order is the
 * kernels' own (cache_layout.cuh); narrow heads are filled up with zeros. Blocks that were never written may hold any bits. To copy a block of keys or of
 * values is to copy nucleus_cache_bytes(1, kv_heads, head_dim) bytes. */
typedef struct {
  void *keys;
  void *values;
  uint32_t kv_heads;
  uint32_t head_dim; /* a multiple of 8, at most 256 */
} NucleusCache;

/* Bytes of the keys (or of the values) of one layer; 0 for a head_dim that attention does not support. */
size_t nucleus_cache_bytes(uint32_t blocks, uint32_t kv_heads, uint32_t head_dim);

/* (cos, sin) times `magnitude` of the angle positions[row] · frequencies[pair], computed in float64: [rows, pairs, 2]. */
int nucleus_rotations(const uint32_t *positions, uint32_t rows, const double *frequencies, uint32_t pairs, double magnitude, float *rotations,
                      void *stream);

/* Normalises the heads of queries and keys where there are norms for it, rotates both, leaves the queries in place and writes keys and values to
 * the cache, rounded to float16 (to the largest finite number where they are beyond it). */
typedef struct {
  NucleusRows rows;
  NucleusCache cache;
  float *query;       /* [rows, heads, head_dim] */
  float *key;         /* [rows, kv_heads, head_dim] */
  const float *value; /* [rows, kv_heads, head_dim] */
  uint32_t heads;
  const float *query_norm; /* [head_dim], or null */
  const float *key_norm;   /* [head_dim], or null */
  float eps;
  const float *rotations; /* of nucleus_rotations */
  uint32_t pairs;         /* at most head_dim / 2 */
  uint32_t neighbours;    /* 1: values 2i and 2i + 1 turn together; 0: i and i + pairs */
} NucleusRotateStore;
int nucleus_rotate_store(const NucleusRotateStore *call, void *stream);

/* Rows that attend together: consecutive rows, which are consecutive positions of one sequence. */
typedef struct {
  uint32_t first_row;
  uint32_t rows; /* at most nucleus_attention_tile_rows */
} NucleusTile;

/* Most rows of a tile, for that many query heads a key head. */
uint32_t nucleus_attention_tile_rows(uint32_t heads_per_kv_head, uint32_t head_dim);

/* Bytes of workspace for that many rows, with contexts of up to `max_context` positions. */
size_t nucleus_attention_workspace(uint32_t rows, uint32_t heads, uint32_t head_dim, uint32_t max_context);

/* Causal attention of grouped queries over the cache, in which the rows' own keys and values are already:
 * softmax(cap · tanh(scale · q·k / cap)) · v over the positions max(0, p - window + 1) … p of a row at position p. */
typedef struct {
  NucleusRows rows;
  NucleusCache cache;
  const float *query; /* [rows, heads, head_dim] */
  float *output;      /* [rows, heads, head_dim] */
  uint32_t heads; /* 1 to 16 times kv_heads */
  float scale;
  float soft_cap;  /* 0: none */
  uint32_t window; /* 0: none */
  const NucleusTile *tiles; /* they cover every row once; a row that decodes is a tile of its own */
  uint32_t tile_count;      /* as many as rows: tile i is row i, and `tiles` is not read */
  uint32_t max_context; /* every row's position is below it; it decides the grid, never a result */
  void *workspace;
  size_t workspace_bytes;
} NucleusAttention;
int nucleus_attention(const NucleusAttention *call, void *stream);

#ifdef __cplusplus
}
#endif

#endif
