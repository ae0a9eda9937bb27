// What a row asks for, and the logits of the tokens that it edits, by one block.
#pragma once

#include "whole.cuh"

namespace nucleus {

constexpr u32 PREPARE_BYTES = SHARED_BYTES + (SHARED_EDITS + 1) * sizeof(Edit);

// Fills the row's list of edited tokens, in the order of its parts; `false`: more than it has room for, or an edit made NaN or +inf.
__device__ __forceinline__ bool list_edits(const Request &r, const SlicePlan &plan, const Division &division, u32 row_len, Changed *changed, u32 *edits, u32 &count) {
  Shared *sh = shared_state();
  DeviceTeam team;
  team.blocks = 1;
  team.block = 0;
  EditTable table{reinterpret_cast<Edit *>(shared_slice()), 16, &sh->unusual};
  const u64 bound = edited_bound(r);
  while (table.capacity < SHARED_EDITS && table.capacity < bound + bound / 2 + 1) table.capacity *= 2;
  clear_edits(team, table);
  u32 *in_part = sh->groups;
  for (u32 i = threadIdx.x; i < ROW_WARPS; i += THREADS) in_part[i] = 0;
  __syncthreads();
  note_slice_edits(team, r, plan, table);
  __syncthreads();
  if (sh->unusual) return false;
  constexpr u32 EACH = SHARED_EDITS / THREADS;
  Changed own[EACH];
  u32 at[EACH];  // its part, and its place in it
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u32 slot = i * THREADS + threadIdx.x;
    own[i].id = slot < table.capacity ? table.slots[slot].id : NO_ID;
    own[i].logit = own[i].id < r.limit ? load_logit(r, own[i].id) : -infinity();
  }
  bool unusual = false;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    at[i] = NO_ID;
    if (own[i].logit == -infinity()) continue;
    own[i].logit = edited(r, own[i].logit, table.slots[i * THREADS + threadIdx.x], unusual);
    const u32 part = Part::of(division, row_len, own[i].id);
    at[i] = part << 16 | atomicAdd(&in_part[part], 1);
  }
  unusual = __syncthreads_or(unusual);
  if (threadIdx.x < 32) {
    u32 before = 0;
    UNROLL_NOT
    for (u32 base = 0; base < ROW_WARPS; base += 32) {
      const u32 has = in_part[base + threadIdx.x], through = before + static_cast<u32>(DeviceWarp{}.inclusive(has));
      in_part[base + threadIdx.x] = edits[base + threadIdx.x] = (through - has) << 16 | has;
      before = __shfl_sync(~0u, through, 31);
    }
    if (threadIdx.x == 0) sh->found = before;
  }
  __syncthreads();
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
  to.mask = mask;
  return to;
}

// The same by a warp, where no row has edits; a row that has some all the same is left to later launches. Everything is read at once.
__device__ __forceinline__ RowPlan plan_row_without_edits(const SamplingBatch &batch, const Division &division, u32 index, bool pending) {
  const SamplingRow &row = batch.row[index];
  const u32 lists = row.bias.len | row.bad_words.len | row.eos.len, flags = row.flags, own = row.request;
  const i32 mask = row.mask;
  const bool skipped = (flags & NUCLEUS_ROW_PADDING) | (pending && !is_pending(batch, index));
  u32 request = batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : own, vocab;
  SamplingOp op;
  u32 len, min_keep;
#pragma unroll 1
  while (true) {
    const SamplingConfig &config = batch.configs[request];
    const SamplingProgram &program = batch.programs[request];
    op = program.ops[threadIdx.x % NUCLEUS_MAX_OPS];
    len = program.len;
    min_keep = config.min_keep;
    vocab = config.vocab_size;
    if (request == own) break;
    request = own;
  }
  if (threadIdx.x % 32 >= len) op = SamplingOp{NUCLEUS_OP_NONE, 0, 0};
  const SlicePlan plan = plan_of(op, len, lists != 0, min_keep);
  RowPlan to = plan_row(batch, division, plan, flags, mask, vocab, __shfl_sync(~0u, op.arg, plan.op), skipped);
  if (plan.edits || (batch.flags & NUCLEUS_BATCH_ALL_DRAWN && to.kind != SlicePlan::ALL)) to.kind = SlicePlan::EXACT;
  return to;
}

__device__ __forceinline__ void prepare_row(const SamplingBatch &batch, const Whole &whole, const Division &division, u32 index, bool pending) {
  Shared *sh = shared_state();
  const u32 request = batch.row[index].request;
  DescriptionWord word;
  word.read(batch, index, request);
  word.write(sh);
  if (threadIdx.x == 0) sh->unusual = sh->found = 0;
  __syncthreads();
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
