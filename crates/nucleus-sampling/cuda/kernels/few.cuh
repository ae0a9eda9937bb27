// Rows that a mask or a list allows few ids of: those are gathered, and nothing else of the row is read. A block a row; what does not fit is left PENDING.
#pragma once

#include "block_chain.cuh"
#include "few_chain.cuh"
#include "solo_team.cuh"

namespace nucleus {

constexpr u32 FEW_THREADS = 512;
constexpr u32 FEW_IDS = LIST_CAPACITY;  // that are gathered at most
constexpr u32 FEW_EDITS = 1024;         // slots for the edits of allowed ids
constexpr u32 FEW_SORTED = 256;         // of which all are sorted
constexpr u32 MASK_WORDS_EACH = 10;     // that a thread reads at a time: all of 163,840 ids

struct FewShared : Description {
  u64 places[FEW_IDS];
  union {
    u32 ids[FEW_IDS];
    u64 weights[FEW_IDS];
  };
  Edit edits[FEW_EDITS + 1];
  u64 masses[FEW_THREADS / 32];
  u32 maxima[FEW_THREADS / 32], counts[FEW_THREADS / 32];
  BlockChain<FEW_THREADS> chain;
  u32 found, strange;
};
__device__ __forceinline__ FewShared *few_state() { return reinterpret_cast<FewShared *>(shared_memory); }

// A table for the edits of allowed ids alone.
struct AllowedTable : EditTable {
  const Request &r;

  __device__ __forceinline__ AllowedTable(FewShared *sh, const Request &request) : EditTable{sh->edits, FEW_EDITS, &sh->strange}, r(request) {}
  __device__ __forceinline__ bool covers(u32 id) const { return id < r.limit && admitted(r, id); }
};

// The sum over the warps before, and over all of them, of what the warps have left in shared memory before a barrier.
__device__ __forceinline__ u32 before_warp(const u32 *of_warps, u32 &total) {
  const u32 lane = threadIdx.x % 32, own = lane < FEW_THREADS / 32 ? of_warps[lane] : 0;
  total = __reduce_add_sync(~0u, own);
  return __reduce_add_sync(~0u, lane < threadIdx.x / 32 ? own : 0);
}

// Lists the ids that are allowed, ascending, and NO_ID for those of a list that are not; more of them are counted than listed if they do not fit. Barriers precede
// and follow.
__device__ __forceinline__ void list_allowed(FewShared *sh, const Request &r) {
  if (r.row->flags & NUCLEUS_ROW_ALLOWED) {
    const u32 *ids = r.words(r.row->allowed), count = r.row->allowed.len;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count && i < FEW_IDS; i += FEW_THREADS) sh->ids[i] = ids[i] < r.limit && (!r.mask || mask_allows(r, ids[i])) ? ids[i] : NO_ID;
    if (threadIdx.x == 0) sh->found = count;
    return;
  }
  static_assert(MASK_WORDS_EACH * FEW_THREADS * sizeof(u32) <= sizeof(FewShared::places));
  const u32 whole = (r.limit + 31) / 32, words = r.mask_words < whole ? r.mask_words : whole;
  u32 *offsets = reinterpret_cast<u32 *>(sh->places), *neighbours = offsets + threadIdx.x * MASK_WORDS_EACH, found = 0;
  UNROLL_NOT
  for (u32 base = 0; base < words; base += MASK_WORDS_EACH * FEW_THREADS) {
    if (base) sync_block();
    // Words are read and listed by turns, so that ids side by side are many threads' work, and counted side by side, so that they are in order.
    u32 bits[MASK_WORDS_EACH], counts[MASK_WORDS_EACH], count = 0, total;
#pragma unroll
    for (u32 i = 0; i < MASK_WORDS_EACH; ++i) {
      const u32 word = base + i * FEW_THREADS + threadIdx.x;
      bits[i] = word < words ? __ldg(r.mask + word) : 0;
      if (word == whole - 1 && r.limit % 32) bits[i] &= (1u << r.limit % 32) - 1;
      offsets[i * FEW_THREADS + threadIdx.x] = __popc(bits[i]);
    }
    sync_block();
#pragma unroll
    for (u32 i = 0; i < MASK_WORDS_EACH; ++i) count += counts[i] = neighbours[i];
    const u32 through = static_cast<u32>(DeviceWarp{}.inclusive(count));
    if (threadIdx.x % 32 == 31) sh->counts[threadIdx.x / 32] = through;
    sync_block();
    u32 at = found + before_warp(sh->counts, total) + through - count;
    found += total;
#pragma unroll
    for (u32 i = 0; i < MASK_WORDS_EACH; ++i) {
      neighbours[i] = at;
      at += counts[i];
    }
    sync_block();
#pragma unroll
    for (u32 i = 0; i < MASK_WORDS_EACH; ++i) {
      at = bits[i] ? offsets[i * FEW_THREADS + threadIdx.x] : FEW_IDS;
      for (u32 left = bits[i]; left && at < FEW_IDS; left &= left - 1, ++at) sh->ids[at] = (base + i * FEW_THREADS + threadIdx.x) * 32 + __ffs(left) - 1;
    }
  }
  if (threadIdx.x == 0) sh->found = found;
}

// The edits by id that come first. Barriers precede and follow.
__device__ __forceinline__ void note_allowed_edits(FewShared *sh, const Request &r, const SlicePlan &plan) {
  const SoloTeam<FEW_THREADS> team{sh->maxima};
  const AllowedTable table(sh, r);
  note_bias_and_bans(team, r, table);
  if (plan.occurrences) note_occurrences(team, r, table);
  if (plan.passages) note_passages(team, r, table);
  if (plan.ngrams) note_ngrams(team, r, table);
}

// The tokens that a thread holds of those that are listed, in their places; 0: none.
struct Gathered {
  static constexpr u32 EACH = FEW_IDS / FEW_THREADS;
  u64 places[EACH];

  // Reads the listed ids' logits and edits them. `strange` is raised for NaN and +inf.
  __device__ __forceinline__ Gathered(FewShared *sh, const Request &r, bool edits) {
    const EditTable table{sh->edits, FEW_EDITS};
    const bool wide = r.dtype == NUCLEUS_F32;
    u32 ids[EACH], bits[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = i * FEW_THREADS + threadIdx.x;
      ids[i] = at < sh->found ? sh->ids[at] : NO_ID;
    }
#pragma unroll
    for (u32 i = 0; i < EACH; ++i)  // all on their way before the first is looked at
      if (ids[i] != NO_ID) bits[i] = wide ? __ldg(static_cast<const u32 *>(r.logits) + ids[i]) : __ldg(static_cast<const uint16_t *>(r.logits) + ids[i]);
    bool unusual = false;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      places[i] = 0;
      if (ids[i] == NO_ID) continue;
      float x = (wide ? float_of(bits[i]) : r.dtype == NUCLEUS_F16 ? widen_f16(static_cast<uint16_t>(bits[i])) : float_of(bits[i] << 16)) + 0.0f;
      const Edit *edit = edits ? table.find(ids[i]) : nullptr;
      if (edit && x > -infinity()) x = edited(r, x, *edit, unusual);
      unusual |= !(x < infinity());
      places[i] = x > -infinity() ? place_of(x, ids[i]) : 0;
    }
    if (unusual) sh->strange = 1;
  }

  // Lists the places whose keys reach a bound; `sh->found` counts them, and was 0.
  __device__ __forceinline__ void list(FewShared *sh, u32 bound) const {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      if (!__any_sync(~0u, places[i] != 0)) continue;
      const bool stays = places[i] && static_cast<u32>(places[i] >> 32) >= bound;
      const u32 to = reserve(&sh->found, stays);
      if (stays) sh->places[to] = places[i];
    }
  }

  // A key that the first tokens reach, where a count or min_p bounds them; to every thread.
  __device__ __forceinline__ u32 bound(const FewShared *sh, const SlicePlan &plan) const {
    u64 most = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) most = places[i] > most ? places[i] : most;
    const u32 key = static_cast<u32>(most >> 32), reached = kth_of_threads(key, plan.k);
    if (plan.kind != SlicePlan::ABOVE || !reached) return reached;
    const float threshold = fmaf(plan.temperature, sh->program.ops[plan.op].arg, value_of(kth_of_threads(key, 1)));
    return key_of(fminf(threshold, value_of(reached)) + 0.0f);
  }

  // The largest key, to every thread; the places are in shared memory afterwards, in the order of the list.
  __device__ __forceinline__ u32 publish(FewShared *sh) const {
    u64 most = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      most = places[i] > most ? places[i] : most;
      const u32 at = i * FEW_THREADS + threadIdx.x;
      if (at < sh->found) sh->places[at] = places[i];
    }
    return SoloTeam<FEW_THREADS>{sh->maxima}.local_max(static_cast<u32>(most >> 32));
  }
};

// The draw from the allowed tokens from a place up, whose largest key this is; true for the one thread that gets the outcome.
__device__ __forceinline__ bool draw_allowed(FewShared *sh, const Request &r, u32 largest, u64 lowest, float temperature, Outcome &outcome) {
  const u32 warp = threadIdx.x / 32;
  Weighing w;
  if (!largest || !begin_weighing(value_of(largest), temperature, w)) {
    outcome.status = largest ? NUCLEUS_OVERFLOW : NUCLEUS_EMPTY;
    return threadIdx.x == 0;
  }
  // A thread's tokens: an odd number side by side, for the banks of shared memory.
  const u32 count = sh->found, each = (count + FEW_THREADS - 1) / FEW_THREADS | 1, begin = threadIdx.x * each, end = begin + each < count ? begin + each : count;
  u64 mass = 0, total = 0;
  u32 there = 0;
  UNROLL_NOT
  for (u32 i = begin; i < end; ++i) {
    const u64 place = sh->places[i];
    mass += place >= lowest ? w.q(logit_at(place)) : 0;
    there += place >= lowest;
  }
  const u64 through = DeviceWarp{}.inclusive(mass);
  there = __reduce_add_sync(~0u, there);
  if (threadIdx.x % 32 == 31) {
    sh->masses[warp] = through;
    sh->counts[warp] = there;
  }
  sync_block();
  u64 at = through - mass;
#pragma unroll
  for (u32 i = 0; i < FEW_THREADS / 32; ++i) {
    at += i < warp ? sh->masses[i] : 0;
    total += sh->masses[i];
  }
  const u64 target = mulhi64(uniform_of(r), total);
  before_warp(sh->counts, outcome.kept);
  if (target < at || target - at >= mass) return false;
  UNROLL_NOT
  for (u32 i = begin; i < end; ++i) {
    const u64 place = sh->places[i], q = place >= lowest ? w.q(logit_at(place)) : 0;
    if (target - at < q) {
      outcome.token = id_at(place);
      outcome.logprob = processed_logprob(q, total);
      return true;
    }
    at += q;
  }
  return false;
}

// Lists the allowed tokens that may count, sorted; returns how many.
__device__ __forceinline__ u32 list_sorted(FewShared *sh, const Gathered &own, const SlicePlan &plan) {
  const bool many = sh->found > FEW_SORTED && (plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE);
  const u32 bound = many ? own.bound(sh, plan) : 0;
  sync_block();
  if (threadIdx.x == 0) sh->found = 0;
  sync_block();
  own.list(sh, bound);
  sync_block();
  sort_places<FEW_THREADS>(sh->places, sh->found);
  return sh->found;
}

// The last place that the usual chain keeps of a sorted list that is long for one warp, by all threads; 0: another program, or a shorter list.
static __device__ __noinline__ u64 last_of_chain(SlicePlan plan, u32 count) {
  FewShared *const sh = few_state();
  const SamplingProgram &program = sh->program;
  const u32 lane = threadIdx.x % 32, code = lane < program.len && lane < NUCLEUS_MAX_OPS ? program.ops[lane].code : NUCLEUS_OP_NONE;
  const u32 first = plan.kind == SlicePlan::FIRST && plan.k < count ? plan.k : count;
  Weighing w;
  if (first <= CHAIN_MOST || !is_common(code, program.len, plan.op, sh->config.min_keep, sh->config.flags) || !begin_weighing(logit_at(sh->places[0]), plan.temperature, w)) return 0;
  return sh->places[sh->chain.truncate(program, plan, sh->places, sh->weights, count, first, w.s, w.max_n, 0).kept - 1];
}

// The choice from the sorted list, by one warp.
__device__ __forceinline__ Outcome choose_allowed(FewShared *sh, const Request &r, const SlicePlan &plan, u32 count) {
  if (plan.greedy) return first_of_order(count ? sh->places[0] : 0);
  Outcome outcome;
  if (run_chain(r, plan, sh->places, sh->weights, count, outcome)) return outcome;
  EditTable none{nullptr, 0};
  return run_list(DeviceWarp{}, r, none, ListCall{sh->places, sh->weights, count, plan.op, plan.temperature, 0});
}

// One row, by one block. With `follows`, rows of other kinds were dealt with by the launch before.
__device__ __forceinline__ void sample_few(const SamplingBatch &batch, u32 index, bool follows) {
  FewShared *const sh = few_state();
  let_next_launch_begin();
  share_description(sh, batch, index, batch.row[index].request);
  if (threadIdx.x == 0) sh->found = sh->strange = 0;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i <= FEW_EDITS; i += FEW_THREADS) sh->edits[i] = Edit{NO_ID, 0, 0, 0.0f};
  sync_block();
  const u32 flags = sh->row.flags;
  const bool padding = flags & NUCLEUS_ROW_PADDING;
  if (!padding && flags & NUCLEUS_ROW_SLOT) {
    if (threadIdx.x == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
    sync_block();
  }
  const SlicePlan plan = plan_of(*sh);
  const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
  const bool own = flags & NUCLEUS_ROW_FEW && !padding, bounded = r.mask || (flags & NUCLEUS_ROW_ALLOWED && r.row->allowed.len <= FEW_IDS);
  bool serves = own && bounded && plan.sliced && flags & NUCLEUS_ROW_PROCESSED;
  const bool all = plan.kind == SlicePlan::ALL;
  bool drawn = false;
  u32 count = 0;
  u64 lowest = 1;  // place of what is drawn from by all threads; 0: the list goes to one warp
  Outcome outcome;
  if (serves) {
    list_allowed(sh, r);
    if (plan.edits) note_allowed_edits(sh, r, plan);
    sync_block();
    serves = sh->found <= FEW_IDS && !sh->strange;
    sync_block();
    if (serves) {
      const Gathered gathered(sh, r, plan.edits);
      const u32 allowed = sh->found;
      if (!all) {
        count = list_sorted(sh, gathered, plan);
        lowest = count > CHAIN_MOST ? last_of_chain(plan, count) : 0;
        if (lowest) {
          sync_block();
          if (threadIdx.x == 0) sh->found = allowed;
          sync_block();
        }
      }
      if (lowest) drawn = draw_allowed(sh, r, gathered.publish(sh), lowest, plan.temperature, outcome);
    }
    sync_block();
    serves = serves && !sh->strange;
  }
  wait_for_launch_before();
  if (padding || (follows && !own)) return;
  if (!serves) {
    if (threadIdx.x == 0) batch.out[index].status = PENDING;
    return;
  }
  if (!lowest) {
    if (threadIdx.x >= 32) return;
    outcome = choose_allowed(sh, r, plan, count);
    drawn = threadIdx.x == 0;
  }
  if (drawn) batch.out[index] = result(outcome, RawSums{}, r);
}

}  // namespace nucleus
