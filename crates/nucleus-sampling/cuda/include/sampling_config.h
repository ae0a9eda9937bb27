/* Sampling on a CUDA device: plain data and one launch. Meaning of every field: docs/sampling.md. */
#ifndef NUCLEUS_SAMPLING_CONFIG_H
#define NUCLEUS_SAMPLING_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define NUCLEUS_ASSERT(condition) static_assert(condition, #condition)
#else
#define NUCLEUS_ASSERT(condition) _Static_assert(condition, #condition)
#endif

/* Version of the contract: the same version, seed, parameters, history and logits give the same token. */
#define NUCLEUS_CONTRACT_VERSION 1u
#define NUCLEUS_MAX_OPS 16u
#define NUCLEUS_MAX_VOCAB (1u << 19)
#define NUCLEUS_MAX_ROWS 1024u
#define NUCLEUS_UNLIMITED 0xFFFFFFFFu
#define NUCLEUS_NO_TOKEN 0xFFFFFFFFu

/* Bits of SamplingConfig.flags. */
#define NUCLEUS_IGNORE_EOS 1u
#define NUCLEUS_KEEP_TIES 2u
#define NUCLEUS_COUNT_PROMPT 4u
#define NUCLEUS_TYPICAL_STRICT 8u
#define NUCLEUS_BAD_WORDS_OUTPUT_ONLY 16u

/* The scalar parameters of one request; Rust's SamplingConfig. */
typedef struct {
  uint64_t seed;
  float temperature, dynatemp_range, dynatemp_exponent, smoothing_factor, smoothing_curve;
  float top_p, min_p, typical_p, top_n_sigma, epsilon_cutoff, eta_cutoff, top_a, tfs_z;
  float xtc_probability, xtc_threshold;
  float repetition_penalty, frequency_penalty, presence_penalty;
  float dry_multiplier, dry_base;
  float mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay;
  uint32_t top_k, min_keep, repeat_last_n, dry_allowed_length, dry_penalty_last_n;
  uint32_t no_repeat_ngram_size, min_tokens, mirostat, vocab_size, flags;
} SamplingConfig;
NUCLEUS_ASSERT(sizeof(SamplingConfig) == 144);
NUCLEUS_ASSERT(offsetof(SamplingConfig, temperature) == 8);
NUCLEUS_ASSERT(offsetof(SamplingConfig, top_p) == 28);
NUCLEUS_ASSERT(offsetof(SamplingConfig, repetition_penalty) == 68);
NUCLEUS_ASSERT(offsetof(SamplingConfig, top_k) == 104);
NUCLEUS_ASSERT(offsetof(SamplingConfig, flags) == 140);

/* Operation codes; Rust's OpCode. */
typedef enum {
  NUCLEUS_OP_NONE = 0, NUCLEUS_OP_DRY, NUCLEUS_OP_NO_REPEAT_NGRAM, NUCLEUS_OP_PENALTIES, NUCLEUS_OP_TEMPERATURE,
  NUCLEUS_OP_DYNAMIC_TEMPERATURE, NUCLEUS_OP_SMOOTHING, NUCLEUS_OP_TOP_N_SIGMA, NUCLEUS_OP_TOP_K, NUCLEUS_OP_TYPICAL_P,
  NUCLEUS_OP_TOP_P, NUCLEUS_OP_MIN_P, NUCLEUS_OP_EPSILON, NUCLEUS_OP_ETA, NUCLEUS_OP_TOP_A, NUCLEUS_OP_TFS, NUCLEUS_OP_XTC,
  NUCLEUS_OP_ARGMAX, NUCLEUS_OP_DRAW, NUCLEUS_OP_MIROSTAT_1, NUCLEUS_OP_MIROSTAT_2, NUCLEUS_OP_ADAPTIVE_P
} SamplingOpCode;

/* One operation: a number on the scale of logits, and a count or a probability in Q32; Rust's Op. */
typedef struct { uint32_t code; float arg; uint64_t threshold; } SamplingOp;
NUCLEUS_ASSERT(sizeof(SamplingOp) == 16);

/* The operations of a request; the last one chooses; Rust's Program. */
typedef struct { SamplingOp ops[NUCLEUS_MAX_OPS]; uint32_t len, reserved; } SamplingProgram;
NUCLEUS_ASSERT(sizeof(SamplingProgram) == 264);

/* How a row ended. The first four are Rust's Status. */
#define NUCLEUS_OK 0u
#define NUCLEUS_NAN 1u
#define NUCLEUS_OVERFLOW 2u
#define NUCLEUS_EMPTY 3u
/* More tokens are edited (bias, masks by id, history) than the workspace was sized for. */
#define NUCLEUS_WORKSPACE 4u
/* The slot has no room for the token, which is in token_id and not committed. */
#define NUCLEUS_FULL 6u
/* The token was chosen and appended, and ends the slot's sequence. */
#define NUCLEUS_STOPPED 7u
/* The slot's sequence had ended: there is no token, and the slot is as it was. A row that has no token for another reason tells that. */
#define NUCLEUS_ENDED 8u

/* What was chosen; Rust's SampledToken. */
typedef struct { uint32_t token_id; float logprob; uint32_t kept_count; uint32_t status; int32_t feedback; } SampledToken;
NUCLEUS_ASSERT(sizeof(SampledToken) == 20);

/* A number added to one token's logit; Rust's Bias. */
typedef struct { uint32_t token_id; float value; } SamplingBias;
NUCLEUS_ASSERT(sizeof(SamplingBias) == 8);

/* Bits of SamplingRow.flags. */
#define NUCLEUS_ROW_UNIFORM 1u   /* draw with `uniform` */
#define NUCLEUS_ROW_PROCESSED 2u /* logprob of the final distribution, not of the raw logits */
#define NUCLEUS_ROW_ALLOWED 4u   /* only the ids of `allowed` may be drawn */
#define NUCLEUS_ROW_PADDING 8u   /* not a request: nothing is read or written for it */
#define NUCLEUS_ROW_SLOT 16u     /* history, prompt_len, position, choice, attempt, mirostat_mu and adaptive_target are those of `slot` */
#define NUCLEUS_ROW_COMMIT 32u   /* the slot goes on: the token is appended, and mirostat or adaptive-p learn from it */
#define NUCLEUS_ROW_NO_TOP 64u   /* launch_top_logprobs leaves the row out */
#define NUCLEUS_ROW_FEW 128u     /* its mask or its list allows at most 4,096 ids, which are gathered; never changes a result */
#define NUCLEUS_ROW_TOP 256u     /* launch_top_processed tells its likeliest tokens */

/* A list in the arena: index of its first 32-bit word, and a length in entries.
 * ids: one word each. Biases: two words each (SamplingBias). Sequences: length + 1 start indices, then the ids they index. */
typedef struct { uint64_t offset; uint32_t len, reserved; } SamplingList;
NUCLEUS_ASSERT(sizeof(SamplingList) == 16);

/* One row of work beside its logits. */
typedef struct {
  uint64_t uniform;
  SamplingList history;   /* prompt, then output */
  SamplingList bias;      /* ascending ids */
  SamplingList allowed;   /* ascending ids */
  SamplingList bad_words; /* sequences, none empty */
  SamplingList breakers;  /* sequences, none empty */
  SamplingList eos;
  uint32_t prompt_len;    /* how much of the history is prompt */
  uint32_t request;       /* index into configs and programs */
  uint32_t position, choice, attempt;
  int32_t mirostat_mu, adaptive_target; /* Q16.16 */
  int32_t mask;           /* index into masks; -1: none */
  uint32_t flags;
  uint32_t slot;          /* index into slots; no two rows of a batch that commit share one */
} SamplingRow;
NUCLEUS_ASSERT(sizeof(SamplingRow) == 144);

/* Ids that end the sequence of a slot, at most. */
#define NUCLEUS_MAX_STOPS 16u

/* What a sequence remembers between tokens. The host writes it to begin, fork, rewind or restore a sequence; the kernel reads it, and advances it
 * for rows with NUCLEUS_ROW_COMMIT, also when a captured graph is replayed. */
typedef struct {
  uint64_t tokens;          /* index into slot_tokens of its first token: prompt, then output */
  int64_t adaptive_sum, adaptive_weight; /* adaptive-p's averages, Q16.16 */
  uint32_t capacity;        /* tokens there is room for; 0: the sequence has ended */
  uint32_t len, prompt_len; /* tokens there are, and how many of them are prompt */
  uint32_t ahead;           /* position = len - prompt_len + ahead */
  uint32_t choice, attempt;
  int32_t mirostat_mu;      /* Q16.16 */
  uint32_t stops;           /* two bits of each id that ends the sequence (slot.cuh). All of them, then NUCLEUS_NO_TOKEN, are the NUCLEUS_MAX_STOPS words
                             * before its tokens, at a multiple of 4 words; they are not looked at while no bit is set */
} SamplingSlot;
NUCLEUS_ASSERT(sizeof(SamplingSlot) == 56);

typedef enum { NUCLEUS_F32 = 0, NUCLEUS_F16 = 1, NUCLEUS_BF16 = 2 } SamplingDtype;

/* A batch. Every pointer is to device memory. Row i reads `row_len` logits at element i * row_stride. */
typedef struct {
  uint32_t struct_size; /* sizeof(SamplingBatch) */
  uint32_t dtype;
  uint32_t rows;
  uint32_t row_len;
  uint64_t row_stride;
  const void *logits;
  const SamplingRow *row;          /* [rows] */
  const SamplingConfig *configs;
  const SamplingProgram *programs;
  const uint32_t *arena;
  const uint32_t *masks;           /* [mask][mask_stride], least significant bit first; null where no row has one, which lets some batches be read faster */
  uint64_t mask_stride;            /* words from one mask to the next; a multiple of 4, and `masks` aligned to 16 bytes, is read faster */
  uint32_t mask_words;             /* words of a mask; ids beyond are forbidden */
  uint32_t cluster;                /* blocks a row: 1, 2, 4, 8, or 0 for the library's choice; never changes a result */
  SampledToken *out;               /* [rows] */
  uint32_t max_edited;             /* the number given to sampling_workspace_size */
  uint32_t flags;                  /* bits of NUCLEUS_BATCH_* */
  SamplingSlot *slots;             /* for rows with NUCLEUS_ROW_SLOT; else null */
  uint32_t *slot_tokens;
} SamplingBatch;
NUCLEUS_ASSERT(sizeof(SamplingBatch) == 120);

/* Every row takes the exact path, in the launch that takes what others leave, for tests; never changes a result. */
#define NUCLEUS_BATCH_EXACT 1u
/* Rows take the ways of large batches, for tests; never changes a result. */
#define NUCLEUS_BATCH_MANY_ROWS 2u
/* What the caller knows of the requests spares launches; never changes a result. Bounded: at most 1,536 ids edited (biases, masks by id, history
 * windows), and temperatures, then top_k up to 128, min_p or argmax. */
#define NUCLEUS_BATCH_ALL_BOUNDED 4u
#define NUCLEUS_BATCH_NONE_BOUNDED 8u
/* There is a request for each row, and most often row i's is i: then it is read before the row is known. */
#define NUCLEUS_BATCH_REQUEST_EACH 16u
/* Every row is bounded by a count (top_k or argmax), so that only ties can leave rows undecided: then no launch follows, or a small one. min_p
 * bounds no count: flat rows would all be left to it, unless rows are many, and NUCLEUS_BATCH_NO_EDITS and NUCLEUS_BATCH_DRAW_AFTER_MIN_P are said, too. */
#define NUCLEUS_BATCH_ALL_COUNTED 32u
/* There may be rows with NUCLEUS_ROW_FEW, of which the flags above tell nothing, or nothing but such rows; without either, the rows' flag only costs time. */
#define NUCLEUS_BATCH_SOME_FEW 64u
#define NUCLEUS_BATCH_ALL_FEW 128u
/* No row edits logits by id: no bias, no ids that end a text, no bad words, and no operation that looks tokens up in a history. */
#define NUCLEUS_BATCH_NO_EDITS 256u
/* The same, and every row draws from the whole of its row: temperatures, then the draw, without a list of allowed ids. Other rows would get no
 * result, and status 0xFFFFFFFF. */
#define NUCLEUS_BATCH_ALL_DRAWN 512u
/* With NUCLEUS_BATCH_EXACT: no row goes on as a list where few of its tokens are left, for tests; never changes a result. */
#define NUCLEUS_BATCH_UNLISTED 1024u
/* Nothing but the draw follows min_p in any row that it bounds: one block draws from what a flat row keeps, but would be slow at another operation. */
#define NUCLEUS_BATCH_DRAW_AFTER_MIN_P 2048u
/* No row that is not bounded has the draw, top_p, min_p, top_k of 96 at most or argmax next to its edits and temperatures: rows of other programs go to launches of
 * clusters at once, since those that weigh whole rows would leave them to these. Said of others it only costs time. */
#define NUCLEUS_BATCH_NONE_WHOLE 4096u
/* Rows are sampled, and likeliest tokens told, as on devices without clusters or with less than 227 KiB of shared memory a block, for tests; never changes a
 * result. Of the flags above, those for tests are heeded beside it. */
#define NUCLEUS_BATCH_PORTABLE 8192u
/* No row that is neither bounded nor weighed whole has log-probabilities of what it draws from and a program of edits, temperatures, smoothing, top_n_sigma, typical_p, min_p, epsilon,
 * eta, top_a and XTC alone, then the draw or mirostat 2: with NUCLEUS_BATCH_NONE_WHOLE, all go to the last launch at once. Said of others it only costs time. */
#define NUCLEUS_BATCH_NONE_SUMMED 16384u
/* Of those, no row has top_k of 230 at most next to its edits and temperatures: all go to the last launch without the one for first cuts. Said of others it only costs time. */
#define NUCLEUS_BATCH_NONE_CUT 32768u
/* With NUCLEUS_BATCH_NO_EDITS: every row draws from the whole of its row, or from what top_p keeps of it: temperatures, then top_p, if any, then the draw, without a list of
 * allowed ids. Said of others it only costs time. */
#define NUCLEUS_BATCH_DRAWN_AFTER_TOP_P 65536u
/* Of the rows that are said to draw from what top_p keeps, some draw from what epsilon or top_a keeps instead, or by mirostat 2. Said or not, it only costs time. */
#define NUCLEUS_BATCH_CUT_BY_WEIGHT 131072u
/* Some of these are cut by eta or typical_p, or temperatures follow their cut; have dynamic temperature, then one of the other cuts or none; or are smoothed, and drawn from as a whole. Beside the latter two
 * NUCLEUS_BATCH_CUT_BY_WEIGHT tells of rows that are cut by top_p, too. Each said or not, it only costs time. */
#define NUCLEUS_BATCH_CUT_BY_SURPRISE 262144u
#define NUCLEUS_BATCH_WARMED 524288u
#define NUCLEUS_BATCH_SMOOTHED 1048576u
/* Some of the rows that are said to draw from the whole of their row, or from what top_p keeps, have edits, and NUCLEUS_BATCH_NO_EDITS is not said: penalties as their first operation, over
 * at most 1,536 tokens of the history, fewer by four for each bias and each id of eos that may not be drawn, and no bad words. Heeded where no row has a mask and none of the four flags above is said; else such rows are others. Said of rows without edits it only costs time. */
#define NUCLEUS_BATCH_DRAWN_EDITED 2097152u
/* Behind the top_k or min_p that bounds them, bounded rows have top_p, min_p and the draw alone, keep at least one token, and no ties; or they are bounded by argmax. Said of others it only costs time. */
#define NUCLEUS_BATCH_COMMON_CHAINS 4194304u

/* What the caller knows of a batch of several kinds of rows: each kind goes to the launches for it, which see no other rows. Of what is not so it only
 * costs time, but for NUCLEUS_BATCH_ALL_COUNTED. `order` is null or, in device memory, [rows]: the rows' numbers, each once. First come those that are
 * bounded (NUCLEUS_BATCH_ALL_BOUNDED), then those that NUCLEUS_BATCH_ALL_DRAWN could be said of, then those that are not edited either and draw from what
 * top_p keeps, or as NUCLEUS_BATCH_CUT_BY_WEIGHT and the flags behind it say, then all others but rows with NUCLEUS_ROW_FEW, which are last. NUCLEUS_BATCH_NONE_WHOLE,
 * _NONE_SUMMED and _NONE_CUT tell of the others alone, NUCLEUS_BATCH_ALL_COUNTED of those that are bounded: if all others are draws from whole rows, no
 * launch follows; of these, rows of another kind would get no result, and status 0xFFFFFFFF. */
typedef struct {
  const uint32_t *order;
  uint32_t bounded, drawn, cut, others; /* rows of each kind */
} SamplingOrder;
NUCLEUS_ASSERT(sizeof(SamplingOrder) == 24);

/* Results of a launch. A CUDA error is NUCLEUS_LAUNCH_CUDA + its code. */
#define NUCLEUS_LAUNCH_OK 0
#define NUCLEUS_LAUNCH_INVALID 1   /* a size, stride, dtype or pointer of the batch is out of range */
#define NUCLEUS_LAUNCH_WORKSPACE 2 /* the workspace is too small */
#define NUCLEUS_LAUNCH_CUDA 1000

/* Bytes of workspace for batches of up to so many rows. `max_edited`: the most ids a row edits by bias, ids that end a text, bad words and history
 * windows together; a row that edits more ends with NUCLEUS_WORKSPACE. */
size_t sampling_workspace_size(uint32_t rows, uint32_t max_edited);

/* Samples every row, in one or more launches that overlap; returns once the work is queued on the stream (a cudaStream_t). Allocates nothing,
 * synchronises nothing and can be captured in a CUDA graph. One workspace serves one stream at a time. */
int launch_advanced_sample_batch(const SamplingBatch *batch, void *workspace, size_t workspace_bytes, void *stream);

/* The same where the kinds of the batch's rows are known; an `order` of null says that they are not. */
int launch_sorted_sample_batch(const SamplingBatch *batch, const SamplingOrder *order, void *workspace, size_t workspace_bytes, void *stream);

/* A token and its log-probability. */
typedef struct { uint32_t token_id; float logprob; } SamplingLogprob;
NUCLEUS_ASSERT(sizeof(SamplingLogprob) == 8);
#define NUCLEUS_MAX_TOP 128u

/* The `count` likeliest tokens of every row as it came, before masks and edits, with the log-probabilities of its softmax: top[row * count + i], most likely
 * first, ids ascending where they are equal. Fewer tokens: NUCLEUS_NO_TOKEN and -inf; a row with NaN, +inf or nothing finite: NUCLEUS_NO_TOKEN and NaN.
 * Nothing is read or written for rows with NUCLEUS_ROW_PADDING or NUCLEUS_ROW_NO_TOP.
 * Of the batch, struct_size, dtype, rows, row_len, row_stride, logits, row (request and flags), configs (vocab_size) and flags are read. Needs no workspace;
 * asynchronous and capturable as launch_advanced_sample_batch. */
int launch_top_logprobs(const SamplingBatch *batch, uint32_t count, SamplingLogprob *top, void *stream);

/* The `count` likeliest tokens of the distribution that each row with NUCLEUS_ROW_TOP draws from, with the log-probabilities that its draw would have with
 * NUCLEUS_ROW_PROCESSED: top[row * count + i], most likely first, ids ascending where they are equal. Fewer tokens: NUCLEUS_NO_TOKEN and -inf; a row that
 * ends without a token: NUCLEUS_NO_TOKEN and NaN. Nothing is written for other rows. It commits nothing, and sees slots as they are: where rows commit, it
 * comes before launch_advanced_sample_batch on the stream. The same batch and the same workspace; asynchronous and capturable. */
int launch_top_processed(const SamplingBatch *batch, uint32_t count, SamplingLogprob *top, void *workspace, size_t workspace_bytes, void *stream);

/* One row of f32 logits without lists: `random_value` is the uniform number in units of 2^-64. Every pointer is to device memory.
 * `row` is written with a SamplingRow on the stream and must stay alive until the work is done. */
typedef struct {
  const SamplingConfig *config;   /* device */
  const SamplingProgram *program; /* device */
  const uint32_t *history;        /* device: prompt, then output */
  uint32_t history_length, prompt_length, dtype, reserved;
  SamplingRow *row;               /* device, scratch */
  SampledToken *out;              /* device */
} SingleSample;
int launch_advanced_sample(const void *logits, uint32_t vocab_size, const SingleSample *sample, uint64_t random_value, void *workspace,
                           size_t workspace_bytes, void *stream);

#undef NUCLEUS_ASSERT
#ifdef __cplusplus
}
#endif
#endif
