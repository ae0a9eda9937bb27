// A row by several blocks without clusters, in two launches: the first finds the largest logits of the parts of the row, the second lists and weighs. The block
// that comes last decides, or takes the whole row by itself: nothing waits for another block.
#pragma once

#include "portable_row.cuh"
#include "whole.cuh"

namespace nucleus::portable {

constexpr u32 PARTS_MOST = 32;       // of a row, a power of two
constexpr u32 WEIGH_ALONG_FROM = 16;  // parts from which on what min_p keeps is weighed while it is listed, though few rows have more than a list holds
static_assert(PARTS_MOST * WARPS <= THREADS);

// What the blocks of a row tell each other.
struct SplitRow {
  u64 masses[PARTS_MOST * WARPS];  // of the parts' warps
  u64 raw[PARTS_MOST];             // of the parts, as the row came
  u64 list[PORTABLE_LISTED];
  Changed changed[SHARED_EDITS_USED];  // by parts
  u32 groups[THREADS];                 // largest keys of groups of threads
  u32 raw_maxima[PARTS_MOST];
  u32 edited[PARTS_MOST + 1];  // where the parts' begin in `changed`, and their end
  Description description;             // what the first launch has learnt
  Request request;                     // the same, but for what lies in shared memory
  SlicePlan plan;
  u32 listed, kept;
  u32 arrived;  // blocks that have told all
  u32 split;    // 0: the row is not shared out
};
static_assert(sizeof(SplitRow) <= Whole::ROW_BYTES && alignof(SplitRow) <= alignof(RowPlan), "it lies where the kernels for whole rows have theirs");

// What each block knows of a row's parts.
struct Part {
  SplitRow *row;
  u32 parts, part;
};

// Whether several blocks may share a row. The exact path is one block's, and looks at all of its tokens.
__device__ __forceinline__ bool may_split(const SamplingBatch &batch, const SlicePlan &plan) {
  return plan.sliced && plan.kind != SlicePlan::EXACT && !sh()->apart && !(batch.flags & NUCLEUS_BATCH_EXACT) && sh()->edited <= SHARED_EDITS_USED;
}

constexpr u32 DESCRIPTION_WORDS = sizeof(Description) / sizeof(u32), REQUEST_WORDS = sizeof(Request) / sizeof(u32);
static_assert(DESCRIPTION_WORDS + REQUEST_WORDS <= THREADS && sizeof(Description) % sizeof(u32) == 0 && sizeof(Request) % sizeof(u32) == 0);
// The word of this thread of what describes a row, at one place or the other; null: it has none.
__device__ __forceinline__ u32 *description_word(Description *description, Request *request) {
  if (threadIdx.x < DESCRIPTION_WORDS) return reinterpret_cast<u32 *>(description) + threadIdx.x;
  return threadIdx.x < DESCRIPTION_WORDS + REQUEST_WORDS ? reinterpret_cast<u32 *>(request) + (threadIdx.x - DESCRIPTION_WORDS) : nullptr;
}

// Tells the part's edited tokens, behind those of the parts before it: each block has all in its table, and note_edits has left a list of the part's.
__device__ __noinline__ void tell_edits(Part of) {
  const BlockTeam team;
  const EditTable table{sh()->edits, sh()->table.capacity};
  const u32 limit = sh()->request.limit, ids = 4 * fours_of_part(limit, of.parts);
  const u32 count = sh()->listed;
  u64 before[1] = {0};
  for (u32 i = threadIdx.x; i < table.capacity; i += THREADS) before[0] += table.slots[i].id < limit && table.slots[i].id / ids < of.part;
  team.sum(before);
  const u32 from = static_cast<u32>(before[0]);
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    const Edit &edit = sh()->edits[listed_slots()[i]];
    of.row->changed[from + i] = Changed{edit.id, edit.bias};
  }
  if (threadIdx.x == 0) {
    of.row->edited[of.part] = from;
    if (of.part + 1 == of.parts) of.row->edited[of.parts] = from + count;
  }
}

// The part's edited tokens from there, as note_edits leaves them.
__device__ __noinline__ void take_edits(Part of, u32 from, u32 count) {
  if (!count) {
    if (threadIdx.x == 0) sh()->marked = false;
    sync_block();
    return;
  }
  EditTable table{sh()->edits, 16};
  while (table.capacity < SHARED_EDITS && table.capacity < count + count / 2 + 1) table.capacity *= 2;
  clear_edits(BlockTeam{}, table);
  if (threadIdx.x == 0) {
    sh()->table = table;
    sh()->marked = true;
  }
  sync_block();
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    const Changed changed = of.row->changed[from + i];
    table.insert(changed.id)->bias = changed.logit;
    BlockTeam::mark(changed.id);
  }
  sync_block();
}

// The first launch.
__device__ __forceinline__ void look_at_part(const SamplingBatch &batch, const Workspace &workspace, u32 index, Part of) {
  const BlockTeam team;
  SlicePlan plan{};
  const bool split = describe(batch, index, plan) && may_split(batch, plan);
  if (of.part == 0 && threadIdx.x == 0) {
    of.row->split = split;
    of.row->plan = plan;
    of.row->listed = of.row->kept = of.row->arrived = 0;
  }
  if (!split) return;
  u32 *const word = description_word(&of.row->description, &of.row->request);
  if (of.part == 0 && word) *word = *description_word(sh(), &sh()->request);
  take_part(of.parts, of.part);
  if (sh()->marked) {
    note_edits(workspace, index, plan);  // has room: see may_split
    tell_edits(of);
  } else if (threadIdx.x == 0) {
    of.row->edited[of.part] = of.row->edited[of.part + 1] = 0;
  }
  if (!(sh()->row.flags & NUCLEUS_ROW_PROCESSED)) {
    const u32 most = team.local_max(largest_of_thread(true));
    if (threadIdx.x == 0) of.row->raw_maxima[of.part] = most;
  }
  u32 own = largest_of_thread(false);
  UNROLL_NOT
  for (u32 step = of.parts / 2; step; step /= 2) {
    const u32 other = __shfl_xor_sync(~0u, own, step);
    own = other > own ? other : own;
  }
  if (threadIdx.x % of.parts == 0) of.row->groups[(of.part * THREADS + threadIdx.x) / of.parts] = own;
}

// Weighs the part as it came; what all parts' largest logit is.
__device__ __noinline__ void weigh_raw_part(Part of) {
  const u32 largest = BlockTeam{}.local_max(threadIdx.x < of.parts ? of.row->raw_maxima[threadIdx.x] : 0);
  Weighing w;
  if (!largest || largest == UNUSUAL || !begin_weighing(value_of(largest), 1.0f, w)) return;
  const u64 mass = weigh_row(true, w.s, w.max_n, LOWEST, infinity());
  if (threadIdx.x == 0) of.row->raw[of.part] = mass;
}
// What log-probabilities of the row as it came need, when all parts have been weighed.
__device__ __noinline__ void sum_raw_parts(Part of) {
  const BlockTeam team;
  const u32 largest = team.local_max(threadIdx.x < of.parts ? of.row->raw_maxima[threadIdx.x] : 0);
  RawSums raw;
  raw.wanted = true;
  Weighing w;
  if (largest && largest != UNUSUAL && begin_weighing(value_of(largest), 1.0f, w)) {
    u64 mass[1] = {threadIdx.x < of.parts ? __ldcg(&of.row->raw[threadIdx.x]) : 0};
    team.sum(mass);
    w.sums.total = mass[0];
    raw = raw_sums_of(value_of(largest), w);
  }
  if (threadIdx.x == 0) sh()->raw = raw;
  sync_block();
}

// Tells what the part has; true for the block that does so last.
__device__ __noinline__ bool tell_part(Part of, bool weighed, bool listed) {
  sync_block();
  if (weighed && threadIdx.x < WARPS) of.row->masses[of.part * WARPS + threadIdx.x] = sh()->masses[threadIdx.x];
  if (weighed && threadIdx.x == 0) atomicAdd(&of.row->kept, sh()->kept);
  if (listed) {
    const u32 count = sh()->listed;
    if (threadIdx.x == 0) sh()->fate = count ? atomicAdd(&of.row->listed, count) : 0;
    sync_block();
    const u32 from = sh()->fate;
    for (u32 i = threadIdx.x; i < count && from + i < PORTABLE_LISTED; i += THREADS) of.row->list[from + i] = sh()->list[i];
  }
  sync_block();
  if (threadIdx.x == 0) {
    __threadfence();
    sh()->fate = atomicAdd(&of.row->arrived, 1);
    __threadfence();
  }
  sync_block();
  return sh()->fate + 1 == of.parts;
}

// The weight of all parts; `own`: of the warp that has this thread's number.
__device__ __forceinline__ u64 sum_parts(Part of, u64 &own) {
  own = threadIdx.x < of.parts * WARPS ? __ldcg(&of.row->masses[threadIdx.x]) : 0;
  u64 total[1] = {own};
  BlockTeam{}.sum(total);
  return total[0];
}

// Draws from the tokens from `least` on.
__device__ __noinline__ void draw_from_parts(Part of, u64 own, u64 total, float s, i32 max_n, float least, SampledToken *out) {
  u64 target = mulhi64(uniform_of(sh()->request), total);
  const u64 through = DeviceWarp{}.inclusive(own);
  sync_block();
  if (threadIdx.x % 32 == 31) sh()->part[threadIdx.x / 32][0] = through;
  sync_block();
  u64 before = through - own;
  UNROLL_NOT
  for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) before += sh()->part[warp][0];
  if (target >= before && target - before < own) {
    sh()->told = target - before;
    sh()->fate = threadIdx.x;
  }
  sync_block();
  target = sh()->told;
  of.part = sh()->fate / WARPS;
  const u32 warp = sh()->fate % WARPS;
  take_part(of.parts, of.part);
  const u32 from = of.row->edited[of.part];
  take_edits(of, from, of.row->edited[of.part + 1] - from);
  draw_of_warp(warp, target, s, max_n, least, total, out);
}

// What all parts have told decides the row; MANY: it does not.
__device__ __forceinline__ Fate choose_from_parts(Part of, const SlicePlan &plan, const Search &search, bool weighed, bool listed, SampledToken *out) {
  if (!weighed && !listed) {
    if (plan.kind != SlicePlan::ALL) return Fate::MANY;
    fail(search.empty ? NUCLEUS_EMPTY : NUCLEUS_OVERFLOW, out);
    return Fate::DECIDED;
  }
  const u32 count = listed ? __ldcg(&of.row->listed) : 0, kept = __ldcg(&of.row->kept);
  u64 own = 0;
  const u64 total = weighed ? sum_parts(of, own) : 0;
  if (threadIdx.x == 0) sh()->kept = kept;
  if (listed && count <= PORTABLE_LISTED) {
    for (u32 i = threadIdx.x; i < count; i += THREADS) sh()->list[i] = __ldcg(&of.row->list[i]);
    sync_block();
    return plan.kind == SlicePlan::MASS ? choose_by_beginning(plan, count, total, search.tried, out) : choose_from_list(plan, count, 0, out);
  }
  if (!weighed || plan.kind == SlicePlan::MASS || kept < plan.k) return Fate::MANY;
  draw_from_parts(of, own, total, search.w.s, search.w.max_n, search.threshold, out);
  return Fate::DECIDED;
}

// The second launch.
__device__ __forceinline__ void sample_part(const SamplingBatch &batch, const Workspace &workspace, u32 index, Part of) {
  const u32 split = of.row->split, group = of.row->groups[threadIdx.x], edits = of.row->edited[of.part], edits_end = of.row->edited[of.part + 1];
  const u32 *const word = description_word(&of.row->description, &of.row->request);
  const u32 described = word ? *word : 0;
  const SlicePlan plan = of.row->plan;
  if (split) {
    if (word) *description_word(sh(), &sh()->request) = described;
    sync_block();
    if (threadIdx.x == 0) {
      sh()->request = own_request();
      sh()->raw = RawSums{};
      sh()->merges = true;
      sh()->apart = false;
    }
  }
  const u32 own = split ? group : UNUSUAL, largest = BlockTeam{}.local_max(own);
  if (largest == UNUSUAL) {
    if (of.part == 0) sample_row(batch, workspace, index, batch.flags & NUCLEUS_BATCH_EXACT);
    return;
  }
  take_part(of.parts, of.part);
  take_edits(of, edits, edits_end - edits);
  const bool raw = !(sh()->row.flags & NUCLEUS_ROW_PROCESSED);
  if (raw) weigh_raw_part(of);
  const Search search(plan, own, largest);
  const bool all = plan.kind == SlicePlan::ALL, by_mass = plan.kind == SlicePlan::MASS;
  const bool along = of.parts >= WEIGH_ALONG_FROM && then_draws(plan, sh()->program);
  const bool weighed = search.weighs && (all || by_mass || along), listed = !all && (weighed || !by_mass);
  if (weighed) weigh_row(false, search.w.s, search.w.max_n, search.threshold, all ? infinity() : search.listed);
  else if (listed) list_from(search.listed);
  if (!tell_part(of, weighed, listed)) return;
  if (raw) sum_raw_parts(of);
  if (choose_from_parts(of, plan, search, weighed, listed, batch.out + index) != Fate::DECIDED) sample_row(batch, workspace, index, weighed || by_mass);
}

}  // namespace nucleus::portable
