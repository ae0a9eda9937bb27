// What a row asks for, and the logits of the tokens that it edits, by one block.
#pragma once

#include "bounded.cuh"
#include "double_addends.cuh"
#include "whole.cuh"

namespace nucleus {

constexpr u32 PREPARE_BYTES = SHARED_BYTES + (SHARED_EDITS + 1) * sizeof(Edit);

constexpr u32 EACH = SHARED_EDITS / THREADS;  // edited tokens of a thread

// The slots that ids have taken, dealt out to the threads in turn; returns how many. A barrier.
__device__ __forceinline__ u32 taken_slots(const EditTable &table, u32 limit, u32 (&slots)[EACH]) {
  Shared *sh = shared_state();
  const u32 lane = threadIdx.x % 32;
  u32 *const list = sh->tokens;
  u32 lanes[EACH], count = 0, base = 0;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 slot = i * THREADS + threadIdx.x;
    lanes[i] = __ballot_sync(~0u, slot < table.capacity && table.slots[slot].id < limit);
    count += __popc(lanes[i]);
  }
  if (lane == 0) base = atomicAdd(&sh->found, count);
  base = __shfl_sync(~0u, base, 0);
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    if (lanes[i] >> lane & 1) list[base + __popc(lanes[i] & ((1u << lane) - 1))] = i * THREADS + threadIdx.x;
    base += __popc(lanes[i]);
  }
  sync_block();
  const u32 taken = sh->found;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) slots[i] = i * THREADS + threadIdx.x < taken ? list[i * THREADS + threadIdx.x] : 0;
  return taken;
}

// The tokens' logits as they came, all asked for at once; -inf where there is no token.
__device__ __forceinline__ void load_logits(const Request &r, Changed (&tokens)[EACH]) {
  u32 words[EACH];
  const bool wide = r.dtype == NUCLEUS_F32;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 id = tokens[i].id == NO_ID ? 0 : tokens[i].id;
    words[i] = wide ? static_cast<const u32 *>(r.logits)[id] : static_cast<const uint16_t *>(r.logits)[id];
  }
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const float x = wide ? float_of(words[i]) : r.dtype == NUCLEUS_BF16 ? float_of(words[i] << 16) : widen_f16(static_cast<uint16_t>(words[i]));
    tokens[i].logit = tokens[i].id == NO_ID ? -infinity() : x;
  }
}

// Fills the row's list of edited tokens, in the order of its parts; `false`: more than it has room for, or an edit made NaN or +inf.
__device__ __forceinline__ bool list_edits(const Request &r, const SlicePlan &plan, const Division &division, u32 row_len, Changed *changed, u32 *edits, u32 &count) {
  Shared *sh = shared_state();
  DeviceTeam team;
  team.blocks = 1;
  team.block = 0;
  EditTable table{reinterpret_cast<Edit *>(shared_slice()), 16, &sh->unusual};
  const u64 bound = static_cast<u64>(editable_window(plan, r.config->dry_penalty_last_n, r.config->repeat_last_n, r.row->history.len)) + r.row->bias.len + r.row->bad_words.len + r.row->eos.len;
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  clear_edits(team, table);
  u32 *in_part = sh->groups;
  for (u32 i = threadIdx.x; i < ROW_WARPS; i += THREADS) in_part[i] = 0;
  sync_block();
  note_slice_edits(team, r, plan, table);
  sync_block();
  if (sh->unusual) return false;
  Changed own[EACH];
  u32 at[EACH];  // its part, and its place in it
  u32 slots[EACH];
  const u32 taken = taken_slots(table, r.limit, slots);
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) own[i].id = i * THREADS + threadIdx.x < taken ? table.slots[slots[i]].id : NO_ID;
  load_logits(r, own);
  bool unusual = false;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    at[i] = NO_ID;
    if (own[i].logit == -infinity()) continue;
    own[i].logit = edited(r, own[i].logit, table.slots[slots[i]], unusual);
    const u32 part = Part::of(division, row_len, own[i].id);
    at[i] = part << 16 | atomicAdd(&in_part[part], 1);
  }
  unusual = __syncthreads_or(unusual);
  if (threadIdx.x < 32) {
    constexpr u32 PARTS = ROW_WARPS / 32;  // of a lane
    u32 has[PARTS], own_count = 0;
#pragma unroll
    for (u32 i = 0; i < PARTS; ++i) own_count += has[i] = in_part[threadIdx.x * PARTS + i];
    u32 through = own_count;
#pragma unroll
    for (u32 step = 1; step < 32; step <<= 1) {
      const u32 other = __shfl_up_sync(~0u, through, step);
      through += threadIdx.x >= step ? other : 0;
    }
    u32 before = through - own_count;
#pragma unroll
    for (u32 i = 0; i < PARTS; ++i, before += has[i - 1]) in_part[threadIdx.x * PARTS + i] = edits[threadIdx.x * PARTS + i] = before << 16 | has[i];
    if (threadIdx.x == 31) sh->found = through;
  }
  sync_block();
  count = sh->found;
  if (unusual || count > ROW_EDITS) return false;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i)
    if (at[i] != NO_ID) changed[(in_part[at[i] >> 16] >> 16) + (at[i] & 0xFFFF)] = own[i];
  return true;
}

// What the row's later launches do, but for its edits. `arg`: of the operation that cuts.
__device__ __forceinline__ RowPlan plan_row(const SamplingBatch &batch, const Division &division, const SlicePlan &plan, u32 flags, i32 mask, u32 vocab, float arg, bool skipped) {
  const u32 groups = division.warps() * division.groups(), most = groups * 3 / 4;
  RowPlan to;
  to.k = plan.kind == SlicePlan::MASS && plan.k < groups / 2 ? groups / 2 : plan.k;
  const bool served = !skipped && plan.sliced && to.k <= most && !(flags & NUCLEUS_ROW_ALLOWED);
  to.kind = served ? plan.kind : SlicePlan::EXACT;
  to.limit = vocab < batch.row_len ? vocab : batch.row_len;
  to.edited = 0;
  to.temperature = plan.temperature;
  to.s = scale(plan.temperature);
  to.arg = arg;
  to.flags = (flags & NUCLEUS_ROW_PROCESSED ? 0 : RowPlan::RAW) | (mask >= 0 ? RowPlan::MASKED : 0) | (skipped ? RowPlan::SKIPPED : 0);
  to.mask = served ? mask : -1;
  return to;
}

// How a row is smoothed.
struct alignas(16) SmoothingPlan {
  float quadratic, cubic, temperature;  // logits are divided by the latter first
  u32 nothing;
};

// What edits a row's tokens where that is done by the launch for draws: penalties over a window at the end of the history, biases, and ids that may not be drawn now.
struct alignas(16) EditPlan {
  const u32 *window;
  const SamplingBias *bias;
  const u32 *ban;
  float repetition_penalty, frequency_penalty, presence_penalty;
  uint16_t places;                   // of the window
  uint16_t seen_from, counted_from;  // of those, what repetition sees, and what frequency and presence count
  uint16_t biases, bans;

  __device__ __forceinline__ u32 bias_words() const { return biases * static_cast<u32>(sizeof(SamplingBias) / sizeof(u32)); }
  // One of the two is 0.
  __device__ __forceinline__ u32 later() const { return seen_from > counted_from ? seen_from : counted_from; }
  // What may not be drawn comes behind the biases, as one of -inf.
  __device__ __forceinline__ SamplingBias bias_at(u32 i) const { return i < biases ? bias[i] : SamplingBias{ban[i - biases], -infinity()}; }
};
static_assert(sizeof(EditPlan) == 48);
constexpr u32 EDITS_ROOM = 1536, PLACES_OF_BIAS = 4;  // places of a window there is room for; of which a bias, or an id that may not be drawn, takes so many
constexpr u32 OTHER_EDITS = ~0u;

// No edits: how many tokens a row edits at most, or OTHER_EDITS.
struct NoEdits {
  __device__ __forceinline__ u32 operator()(const SamplingBatch &, const SamplingRow &, u32, const SamplingOp &, const SlicePlan &plan) const { return plan.edits ? OTHER_EDITS : 0; }
};

// Penalties as the first operation, biases and bans, told as a plan.
struct PenaltiesAndBiases {
  EditPlan *to;

  __device__ __forceinline__ u32 operator()(const SamplingBatch &batch, const SamplingRow &row, u32 request, const SamplingOp &op, const SlicePlan &plan) const {
    const u32 penalties = __ballot_sync(~0u, op.code == NUCLEUS_OP_PENALTIES);
    if (!plan.edits || row.flags & NUCLEUS_ROW_PADDING) return 0;
    const SamplingConfig &config = batch.configs[request];
    const u32 *tokens = batch.arena + row.history.offset;
    u32 len = row.history.len, prompt = row.prompt_len, position = row.position;
    if (row.flags & NUCLEUS_ROW_SLOT) {
      const SamplingSlot &slot = batch.slots[row.slot];
      tokens = batch.slot_tokens + slot.tokens;
      len = slot.len;
      prompt = slot.prompt_len;
      position = len - prompt + slot.ahead;
    }
    const u32 seen = window_start(len, config.repeat_last_n), counted = config.flags & NUCLEUS_COUNT_PROMPT ? seen : prompt + window_start(len - prompt, config.repeat_last_n);
    const u32 first = !penalties ? len : seen < counted ? seen : counted, places = len - first;
    const u32 bans = config.flags & NUCLEUS_IGNORE_EOS || position < config.min_tokens ? row.eos.len : 0;
    if (penalties > 1 || plan.passages || plan.ngrams || !plan.sliced || row.bad_words.len) return OTHER_EDITS;
    if (places > EDITS_ROOM || row.bias.len > EDITS_ROOM || bans > EDITS_ROOM || places + PLACES_OF_BIAS * (row.bias.len + bans) > EDITS_ROOM) return OTHER_EDITS;
    *to = EditPlan{tokens + first, reinterpret_cast<const SamplingBias *>(batch.arena + row.bias.offset), batch.arena + row.eos.offset, config.repetition_penalty, config.frequency_penalty,
                   config.presence_penalty, static_cast<uint16_t>(places), static_cast<uint16_t>(places ? seen - first : 0), static_cast<uint16_t>(places ? counted - first : 0), static_cast<uint16_t>(row.bias.len), static_cast<uint16_t>(bans)};
    return places + row.bias.len + bans;
  }
};

// Without the largest logit.
__device__ __forceinline__ Smoothing smoothing_by(float factor, float curve) {
  SamplingConfig config{};
  config.smoothing_factor = factor;
  config.smoothing_curve = curve;
  return Smoothing(config, 0.0f);
}

// What a launch decides by rows' weights beside draws and top_p before the draw: other cuts before it; those by the surprise, and with temperatures behind the cut; dynamic temperatures; smoothed rows.
struct ByWeight {
  bool cuts = false, surprises = false, warms = false, smooths = false;
  HD constexpr bool any() const { return cuts || surprises || warms || smooths; }
};

// What a program without edits asks of a row where its weight decides; `op`, `plan`: as of plan_of.
template <ByWeight BY>
__device__ __forceinline__ SlicePlan::Kind kind_by_weight(const SamplingOp &op, u32 len, const SlicePlan &plan, bool ties, float factor, float curve) {
  const u32 code = __shfl_sync(~0u, op.code, plan.op), next = plan.op + 1 < len ? __shfl_sync(~0u, op.code, plan.op + 1) : NUCLEUS_OP_NONE;
  const u32 by_mass = 1u << NUCLEUS_OP_TOP_P | 1u << NUCLEUS_OP_TOP_A | (ties ? 0 : 1u << NUCLEUS_OP_EPSILON);
  if (BY.cuts && code == NUCLEUS_OP_MIROSTAT_2) return SlicePlan::MASS;
  if (BY.cuts && by_mass >> code & 1) {
    if (code == NUCLEUS_OP_TOP_P && plan.kind == SlicePlan::EXACT) return plan.kind;  // too many are kept at least
    if (!BY.surprises) return SlicePlan::MASS;
  }
  if constexpr (BY.surprises) {
    constexpr u32 DRAW = 1u << NUCLEUS_OP_DRAW, TEMPERATURES = 1u << NUCLEUS_OP_TEMPERATURE | 1u << NUCLEUS_OP_NONE;
    const u32 by_surprise = ties || !NUCLEUS_FAST_DOUBLES ? 0 : 1u << NUCLEUS_OP_ETA | 1u << NUCLEUS_OP_TYPICAL_P;
    const u32 lane = threadIdx.x % 32, last = len - 1;
    if ((by_mass | by_surprise) >> code & 1) {
      const bool draws = plan.op < last && __all_sync(~0u, lane <= plan.op || lane > last || 1u << op.code & (lane == last ? DRAW : TEMPERATURES));
      return !draws ? SlicePlan::EXACT : by_mass >> code & 1 ? SlicePlan::MASS : SlicePlan::SURPRISE;
    }
  }
  if (BY.warms && NUCLEUS_FAST_DOUBLES && code == NUCLEUS_OP_DYNAMIC_TEMPERATURE) {
    if (next == NUCLEUS_OP_DRAW) return SlicePlan::WARMED;
    return BY.cuts && by_mass >> next & 1 && plan.op + 3 == len && __shfl_sync(~0u, op.code, len - 1) == NUCLEUS_OP_DRAW ? SlicePlan::WARMED_MASS : SlicePlan::EXACT;
  }
  if (BY.smooths && code == NUCLEUS_OP_SMOOTHING && next == NUCLEUS_OP_DRAW) {
    const Smoothing smoothing = smoothing_by(factor, curve);
    const bool falls = smoothing.quadratic >= 0.0f && smoothing.cubic >= 0.0f && smoothing.quadratic + smoothing.cubic > 0.0f && smoothing.quadratic + smoothing.cubic < infinity();
    return falls ? SlicePlan::SMOOTHED : SlicePlan::EXACT;  // the largest logit is the largest one still
  }
  return plan.kind;
}

// The same by a warp, where rows' edits are no others than those that `edits` tells; a row that has others all the same is left to later launches. Everything is read at once. BY: what the row
// weighs decides (kind_by_weight). `smoothing`: if it is that.
template <ByWeight BY = ByWeight{}, class E = NoEdits>
__device__ __forceinline__ RowPlan plan_row_by_warp(const SamplingBatch &batch, const Division &division, u32 index, bool pending, SmoothingPlan *smoothing = nullptr, E edits = {}) {
  const SamplingRow &row = batch.row[index];
  const u32 lists = row.bias.len | row.bad_words.len | row.eos.len, flags = row.flags, own = row.request;
  const i32 mask = row.mask;
  const bool skipped = (flags & NUCLEUS_ROW_PADDING) | (pending && !is_pending(batch, index));
  u32 request = batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : own, vocab;
  SamplingOp op;
  u32 len, min_keep;
  bool ties = false;
  float factor = 0.0f, curve = 0.0f;  // of smoothing
#pragma unroll 1
  while (true) {
    const SamplingConfig &config = batch.configs[request];
    const SamplingProgram &program = batch.programs[request];
    op = program.ops[threadIdx.x % NUCLEUS_MAX_OPS];
    len = program.len;
    min_keep = config.min_keep;
    if constexpr (BY.cuts) ties = config.flags & NUCLEUS_KEEP_TIES;
    if constexpr (BY.smooths) {
      factor = reinterpret_cast<const volatile float &>(config.smoothing_factor);
      curve = reinterpret_cast<const volatile float &>(config.smoothing_curve);
    }
    vocab = config.vocab_size;
    if (request == own) break;
    request = own;
  }
  if (threadIdx.x % 32 >= len) op = SamplingOp{NUCLEUS_OP_NONE, 0, 0};
  SlicePlan plan = plan_of(op, len, lists != 0, min_keep);
  const bool chooses = BY.cuts && __shfl_sync(~0u, op.code, plan.op) == NUCLEUS_OP_MIROSTAT_2;
  if constexpr (BY.any()) {
    const SlicePlan::Kind kind = kind_by_weight<BY>(op, len, plan, ties, factor, curve);
    if (kind != plan.kind) plan.k = 1;
    plan.kind = kind;
  }
  RowPlan to = plan_row(batch, division, plan, flags, mask, vocab, __shfl_sync(~0u, op.arg, plan.op), skipped);
  if (BY.smooths && to.kind == SlicePlan::SMOOTHED) {
    const Smoothing by = smoothing_by(factor, curve);
    *smoothing = SmoothingPlan{by.quadratic, by.cubic, plan.temperature, 0};
    to.s = scale(1.0f);  // by which smoothed logits are weighed
  }
  if (plan.op + 2 == len && __shfl_sync(~0u, op.code, plan.op + 1) == NUCLEUS_OP_DRAW) to.flags |= RowPlan::DRAWS;
  if (chooses) to.flags |= RowPlan::DRAWS;
  const u32 edited = edits(batch, row, request, op, plan);
  if (edited == OTHER_EDITS || (batch.flags & NUCLEUS_BATCH_ALL_DRAWN && to.kind != SlicePlan::ALL)) to.kind = SlicePlan::EXACT;
  else to.edited = edited;
  return to;
}

__device__ __forceinline__ void prepare_row(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, bool pending) {
  Shared *sh = shared_state();
  const bool each = batch.flags & NUCLEUS_BATCH_REQUEST_EACH;
  const u32 request = likely_request(batch, index);
  DescriptionWord word;
  word.read(batch, index, request);
  word.write(sh);
  if (threadIdx.x == 0) sh->unusual = sh->found = 0;
  sync_block();
  if (each && sh->row.request != request && !(sh->row.flags & NUCLEUS_ROW_PADDING)) {
    word.read(batch, index, sh->row.request);
    word.write(sh);
    sync_block();
  }
  describe_slot(sh, batch);
  const SlicePlan plan = plan_of(*sh);
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  const bool skipped = (sh->row.flags & NUCLEUS_ROW_PADDING) || (pending && !is_pending(batch, index));
  RowPlan to = plan_row(batch, division, plan, sh->row.flags, sh->row.mask, sh->config.vocab_size, sh->program.ops[plan.op].arg, skipped);
  if (to.served() && plan.edits) {
    u32 edited = 0;
    const u64 at = index;
    if (!list_edits(r, plan, division, batch.row_len, whole.changed + at * ROW_EDITS, whole.edits + at * ROW_WARPS, edited)) to.kind = SlicePlan::EXACT;
    else to.edited = edited;
  }
  if (threadIdx.x == 0) whole.plans[index] = to;
}

}  // namespace nucleus
