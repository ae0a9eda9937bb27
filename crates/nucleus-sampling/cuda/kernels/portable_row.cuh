// A row by one block that reads it from device memory: what its largest logits, a bound or its weights decide in two or three sweeps; else the exact path.
#pragma once

#include "candidates.cuh"
#include "portable.cuh"

namespace nucleus::portable {

constexpr u32 MASS_GROUPS = 256;  // of the threads' largest logits, that bound the list of a cut by mass
constexpr u32 TRIED_GROUPS = 64;  // that bound its beginning, which most often has the cut and is sorted in a fifth of the time

__device__ __forceinline__ PortableShared *sh() { return portable_state(); }

__device__ __forceinline__ void fail(u32 status, SampledToken *out) {
  Outcome failed;
  failed.status = status;
  if (threadIdx.x == 0) *out = result(failed, sh()->raw, sh()->request);
}

// The part of a row that the block looks at: of so many parts of as many fours, but for the last.
__device__ __forceinline__ u32 fours_of_part(u32 limit, u32 parts) { return (limit / 4 / (32 * parts) + 1) * 32; }
__device__ __forceinline__ void take_part(u32 parts, u32 part) {
  const u32 fours = (sh()->request.limit + 3) / 4, each = fours_of_part(sh()->request.limit, parts), first = part * each < fours ? part * each : fours;
  const u32 end = first + each < fours ? first + each : fours;
  sync_block();
  if (threadIdx.x == 0) {
    sh()->first = first;
    sh()->end = end;
  }
  for (u32 i = first / 8 + threadIdx.x; i < (end + 7) / 8; i += THREADS) portable_marks()[i % (MARKED_IDS / 32)] = 0;
  sync_block();
}

// The request, by what the compiler knows to lie in shared memory.
__device__ __forceinline__ Request own_request() {
  Request r = sh()->request;
  r.row = &sh()->row;
  r.config = &sh()->config;
  r.program = &sh()->program;
  return r;
}

// Notes what happens to tokens in a table in shared memory.
__device__ __noinline__ void note_in_shared_memory(SlicePlan plan) {
  const BlockTeam team;
  Request r = own_request();
  EditTable table{sh()->edits, 16};
  while (table.capacity < SHARED_EDITS && table.capacity < sh()->edited + sh()->edited / 2 + 1) table.capacity *= 2;
  clear_edits(team, table);
  if (threadIdx.x == 0) sh()->table = table;
  if (!sh()->marked) {
    sync_block();
    return;
  }
  const u32 len = r.row->history.len;
  u32 window = plan.passages ? r.config->dry_penalty_last_n : 0;
  if (plan.occurrences && r.config->repeat_last_n > window) window = r.config->repeat_last_n;
  if (plan.ngrams || (r.row->bad_words.len && window) || window > len) window = len;
  if (window && window <= 2 * BINS) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < window; i += THREADS) sh()->tokens[i] = r.history[len - window + i];
    r.history = sh()->tokens - (len - window);
  }
  sync_block();
  note_bias_and_bans(team, r, table);
  if (plan.occurrences) note_occurrences(team, r, table);
  if (plan.passages) note_passages(team, r, table);
  if (plan.ngrams) note_ngrams(team, r, table);
  sync_block();
}

// Where a list of slots lies.
__device__ __forceinline__ u32 *listed_slots() {
  static_assert(SHARED_EDITS * sizeof(u32) <= sizeof(PortableShared::list));
  return reinterpret_cast<u32 *>(sh()->list);
}

// Marks a token of the block; where edits are merged, finds its logit after them.
__device__ __forceinline__ void settle_edit(const Request &r, Edit &edit) {
  BlockTeam::mark(edit.id);
  if (!sh()->merges) return;
  bool unusual = false;
  const float x = admitted(r, edit.id) ? edited(r, load_logit(r, edit.id), edit, unusual) : -infinity();
  edit.bias = unusual ? float_of(0x7FC00000u) : x;
}

// Builds the table of edits, and marks the block's tokens, of which a list of their slots is left where the table lies in shared memory; where edits are merged, with
// their logits after them. False: more tokens are edited than there is room for.
__device__ __noinline__ bool note_edits(const Workspace &workspace, u32 index, SlicePlan plan) {
  const Request r = own_request();
  if (sh()->edited <= SHARED_EDITS_USED) {
    note_in_shared_memory(plan);
    Edit *const slots = sh()->edits;
    const u32 capacity = sh()->marked ? sh()->table.capacity : 0;
    u32 *const list = listed_slots();
    BlockTeam{}.begin_list();
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < capacity; i += THREADS)
      if (slots[i].id < r.limit && BlockTeam::has(slots[i].id)) list[atomicAdd(&sh()->listed, 1)] = i;
    const u32 count = BlockTeam{}.end_list();
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += THREADS) settle_edit(r, slots[list[i]]);
  } else {
    EditTable table{nullptr, 0};
    if (!unsliced_edits(BlockTeam{}, r, index, workspace, sh()->edits, table)) return false;
    if (threadIdx.x == 0) sh()->table = table;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < table.capacity; i += THREADS)
      if (table.slots[i].id < r.limit && BlockTeam::has(table.slots[i].id)) settle_edit(r, table.slots[i]);
  }
  sync_block();
  return true;
}

// Learns what a row asks for; false: it is padding. Where most rows have the request of their own number, that is read before the row is known.
__device__ __noinline__ bool describe(const SamplingBatch &batch, u32 index, SlicePlan &plan) {
  const bool each = batch.flags & NUCLEUS_BATCH_REQUEST_EACH;
  u32 request = index;
  if (!each) {
    if (batch.row[index].flags & NUCLEUS_ROW_PADDING) return false;
    request = batch.row[index].request;
  }
  share_description(sh(), batch, index, request);
  sync_block();
  if (sh()->row.flags & NUCLEUS_ROW_PADDING) return false;
  if (each && sh()->row.request != request) {
    request = sh()->row.request;
    sync_block();
    share_description(sh(), batch, index, request);
    sync_block();
  }
  describe_slot(sh(), batch);
  plan = plan_of(*sh());
  if (threadIdx.x == 0) {
    const Request r = request_of(batch, index, sh()->row, sh()->config, sh()->program);
    sh()->request = r;
    sh()->raw = RawSums{};
    sh()->merges = plan.sliced;
    const u64 edited = plan.edits ? edited_bound(r) : 0;
    sh()->marked = edited > 0;
    sh()->edited = edited < ~0u ? static_cast<u32>(edited) : ~0u;
    sh()->apart = sh()->row.flags & NUCLEUS_ROW_ALLOWED;
  }
  sync_block();
  return true;
}

enum class Prepared : u32 { READY, CROWDED, PADDING };  // CROWDED: more tokens are edited than there is room for

// The same, and what happens to its tokens.
__device__ __forceinline__ Prepared prepare(const SamplingBatch &batch, const Workspace &workspace, u32 index, SlicePlan &plan) {
  if (!describe(batch, index, plan)) return Prepared::PADDING;
  take_part(1, 0);
  return note_edits(workspace, index, plan) ? Prepared::READY : Prepared::CROWDED;
}

// From here on edits are layers, each checked for itself.
__device__ __forceinline__ void unmerge(const Workspace &workspace, u32 index, const SlicePlan &plan) {
  sync_block();
  if (threadIdx.x == 0) sh()->merges = false;
  sync_block();
  note_edits(workspace, index, plan);
}

// The key of this thread's largest logit; 0: there is none. UNUSUAL: one is NaN or +inf. Edits are merged.
__device__ __noinline__ u32 largest_of_thread(bool raw) {
  const BlockTeam team;
  const Request &r = sh()->request;
  float most = -infinity();
  team.each_four_at_once(r, raw, [&](u32, float a, float b, float c, float d) { most = max_nan(most, max_nan(max_nan(a, b), max_nan(c, d))); }, [] {});
  team.each_merged(r, raw, [&](u32, float x) { most = max_nan(most, x); });
  return !(most < infinity()) ? UNUSUAL : most > -infinity() ? key_of(most + 0.0f) : 0;
}

// Lists the tokens from a logit on; more may be counted than there is room for.
__device__ __noinline__ u32 list_from(float least) {
  const BlockTeam team;
  const Request &r = sh()->request;
  auto look = [&](u32 id, float x) {
    if (x >= least) team.append(place_of(x + 0.0f, id));
  };
  team.begin_list();
  team.each_four_at_once(
      r, false,
      [&](u32 id, float a, float b, float c, float d) {
        if (!(fmaxf(fmaxf(a, b), fmaxf(c, d)) >= least)) return;
        UNROLL_NOT
        for (u32 e = 0; e < 4; ++e, a = b, b = c, c = d) look(id + e, a);
      },
      [] {});
  team.each_merged(r, false, look);
  return team.end_list();
}

// The weight of the tokens from `least` on, the warps' parts of it in `masses`, and in `kept` how many they are; those from `list_from` on are listed.
__device__ __noinline__ u64 weigh_row(bool raw, float s, i32 max_n, float least, float list_from) {
  const BlockTeam team;
  const Request &r = sh()->request;
  const FourReader row(r, raw);
  if (threadIdx.x == 0) sh()->kept = 0;
  team.clear_masses();
  team.begin_list();
  Weighing w;
  w.s = s;
  w.max_n = max_n;
  const Addends addends(w);
  u32 high = 0, low = 0, added = 0, count = 0;
  u64 mass = 0;
  auto look = [&](u32 id, float x) {
    if (x >= list_from) team.append(place_of(x + 0.0f, id));
  };
  team.each_four_at_once(
      r, raw,
      [&](u32 id, float a, float b, float c, float d) {
        const float x[4] = {a, b, c, d};
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
          const bool in = x[e] >= least;
          count += in;
          if (addends.serve) addends.add(in ? x[e] : -infinity(), high, low);
          else if (in) mass += w.q(x[e]);
        }
        added += 4;
        if (!(fmaxf(fmaxf(a, b), fmaxf(c, d)) >= list_from)) return;
        UNROLL_NOT
        for (u32 e = 0; e < 4; ++e, a = b, b = c, c = d) look(id + e, a);
      },
      [&] {
        if (addends.serve) mass += Addends::sum(high, low, added);
        high = low = added = 0;
      });
  team.each_merged(r, raw, [&](u32 id, float x) {
    look(id, x);
    if (!(x >= least)) return;
    count += 1;
    add_by_halves(&sh()->masses[row.warp_of(id)], w.q(x + 0.0f));
  });
  count = __reduce_add_sync(~0u, count);
  if (threadIdx.x % 32 == 0) atomicAdd(&sh()->kept, count);
  return team.sum_masses(mass);
}

// What log-probabilities of the row as it came need.
__device__ __noinline__ void find_raw_sums() {
  const u32 largest = BlockTeam{}.local_max(largest_of_thread(true));
  RawSums raw;
  raw.wanted = true;
  Weighing w;
  if (largest && largest != UNUSUAL && begin_weighing(value_of(largest), 1.0f, w)) {
    w.sums.total = weigh_row(true, w.s, w.max_n, LOWEST, infinity());
    raw = raw_sums_of(value_of(largest), w);
  }
  if (threadIdx.x == 0) sh()->raw = raw;
  sync_block();
}

// Four logits after all edits.
__device__ __forceinline__ void edited_four(const FourReader &row, u32 i, float (&x)[4]) {
  const u32 allowed = row.allowed(i), take = row.unmarked(i, allowed);
  const bool apart = sh()->apart;
  const float4 v = row.widened(row.dtype == NUCLEUS_F32, row.ask(i), take);
  x[0] = v.x;
  x[1] = v.y;
  x[2] = v.z;
  x[3] = v.w;
#pragma unroll
  for (u32 e = 0; e < 4; ++e)
    if ((apart || (allowed & ~take) >> e & 1) && 4 * i + e < row.limit) x[e] = BlockTeam::merged(sh()->request, sh()->table, 4 * i + e);
}

// Draws from a warp's tokens from `least` on, of which so much weight is passed over.
__device__ __noinline__ void draw_of_warp(u32 warp, u64 target, float s, i32 max_n, float least, u64 total, SampledToken *out) {
  const Request &r = sh()->request;
  const FourReader row(r, false);
  BlockTeam{}.find_token(
      warp, target,
      [&](u32 i, u64 (&q)[4]) {
        float x[4];
        edited_four(row, i, x);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) q[e] = x[e] >= least ? Exponent(x[e] + 0.0f, s).weight(max_n) : 0;
      },
      [&](u32 id, u64 weight) {
        Outcome outcome;
        outcome.token = id;
        outcome.kept = sh()->kept;
        outcome.logprob = processed_logprob(weight, total);
        *out = result(outcome, sh()->raw, r);
      });
}
// Draws from the tokens from `least` on after weigh_row.
__device__ __forceinline__ void draw_token(const Weighing &w, float least, u64 total, SampledToken *out) {
  u64 target = mulhi64(uniform_of(sh()->request), total);
  const u32 warp = BlockTeam::warp_of_target(target);
  draw_of_warp(warp, target, w.s, w.max_n, least, total, out);
}

// The choice from the list, the beginning of a row of weight `total`, or all that counts. MANY: the cut lies beyond it.
__device__ __noinline__ Fate choose_from_list(SlicePlan plan, u32 count, u64 total, SampledToken *out) {
  BlockTeam::sort_list(count);
  sync_block();
  if (threadIdx.x < 32) {
    const Request &r = sh()->request;
    const EditTable none{nullptr, 0};
    Outcome outcome;
    if (plan.greedy) outcome = first_of_order(count ? sh()->list[0] : 0);
    else if (!run_chain(r, plan, sh()->list, sh()->scratch, count, outcome, total))
      outcome = run_list(DeviceWarp{}, r, none, ListCall{sh()->list, sh()->scratch, count, plan.op, plan.temperature, total});
    const bool beyond = outcome.status == NUCLEUS_OK && outcome.token == NUCLEUS_NO_TOKEN;
    if (threadIdx.x == 0) {
      if (!beyond) *out = result(outcome, sh()->raw, r);
      sh()->fate = static_cast<u32>(beyond ? Fate::MANY : Fate::DECIDED);
    }
  }
  sync_block();
  return static_cast<Fate>(sh()->fate);
}

// The same of a list for a cut by mass: its beginning is tried first.
__device__ __noinline__ Fate choose_by_beginning(SlicePlan plan, u32 count, u64 total, float tried, SampledToken *out) {
  constexpr u32 WORTH = 2 * TRIED_GROUPS;  // tokens from which on that is faster
  if (count <= WORTH) return choose_from_list(plan, count, total, out);
  const u64 least = static_cast<u64>(key_of(tried)) << 32;
  u64 *const list = sh()->list, *const aside = sh()->aside;
  sync_block();
  if (threadIdx.x == 0) sh()->listed = sh()->fate = 0;
  sync_block();
  for (u32 i = threadIdx.x; i < count; i += THREADS) {
    const bool belongs = list[i] >= least;
    const u32 at = atomicAdd(belongs ? &sh()->listed : &sh()->fate, 1);
    aside[belongs ? at : count - 1 - at] = list[i];
  }
  const u32 first = BlockTeam{}.end_list();
  for (u32 i = threadIdx.x; i < first; i += THREADS) list[i] = aside[i];
  sync_block();
  if (choose_from_list(plan, first, total, out) == Fate::DECIDED) return Fate::DECIDED;
  sync_block();
  for (u32 i = threadIdx.x; i < count; i += THREADS) list[i] = aside[i];
  sync_block();
  return choose_from_list(plan, count, total, out);
}

// As kth_of_threads, with a barrier for two bits of the key, and none for those that no key has. `largest`: of all.
__device__ __noinline__ u32 kth_key(u32 key, u32 k, u32 largest) {
  static_assert(THREADS < 1u << 10, "three counts in a word");
  const u32 lane = threadIdx.x % 32;
  u32 found = 0;
  sync_block();  // all have read what an earlier call told
#pragma unroll 1
  for (u32 round = 0; round < KEY_ROUNDS; ++round) {
    const u32 bit = 1u << (30 - 2 * round);
    if ((found | bit) > largest) continue;
    const u32 ones = __ballot_sync(~0u, key >= (found | bit)), twos = __ballot_sync(~0u, key >= (found | 2 * bit)), threes = __ballot_sync(~0u, key >= (found | 3 * bit));
    if (lane == 0) sh()->reached[round][threadIdx.x / 32] = __popc(ones) | __popc(twos) << 10 | __popc(threes) << 20;
    sync_block();
    const u32 all = __reduce_add_sync(~0u, lane < WARPS ? sh()->reached[round][lane] : 0);
    found |= bit * ((all >> 20) >= k ? 3 : (all >> 10 & 1023) >= k ? 2 : (all & 1023) >= k ? 1 : 0);
  }
  return found;
}

// From which logits on the tokens matter that decide a row.
struct Search {
  Weighing w;
  bool weighs, empty;
  float threshold;  // what is weighed begins here
  float listed;     // what is listed
  float tried;      // a list for a cut by mass as far as it is tried first

  // `own`: the largest key of the thread's group of tokens; all of them bound the k-th.
  __device__ __forceinline__ Search(const SlicePlan &plan, u32 own, u32 largest) {
    empty = !largest;
    weighs = !empty && begin_weighing(value_of(largest), plan.temperature, w);
    threshold = listed = tried = LOWEST;
    if (plan.kind == SlicePlan::ALL) return;
    const bool by_mass = plan.kind == SlicePlan::MASS;
    const u32 k = by_mass && plan.k < MASS_GROUPS ? MASS_GROUPS : plan.k, bound = k == 1 ? largest : kth_key(own, k, largest), first = by_mass ? kth_key(own, plan.k < TRIED_GROUPS ? TRIED_GROUPS : plan.k, largest) : 0;
    if (bound) listed = value_of(bound);
    if (first) tried = value_of(first);
    if (plan.kind != SlicePlan::ABOVE) return;
    threshold = empty ? listed : fmaxf(fmaf(plan.temperature, sh()->program.ops[plan.op].arg, value_of(largest)), LOWEST);
    listed = fminf(threshold, listed);
  }
};

// Decides a row by its first tokens, by all above a bound or by all of it.
__device__ __noinline__ Fate sample_first(SlicePlan plan, SampledToken *out) {
  const u32 own = largest_of_thread(false), largest = BlockTeam{}.local_max(own);
  if (largest == UNUSUAL) return Fate::STRANGE;
  const bool by_mass = plan.kind == SlicePlan::MASS;
  const Search search(plan, own, largest);
  const Weighing &w = search.w;
  if (plan.kind == SlicePlan::ALL) {
    if (search.weighs) draw_token(w, LOWEST, weigh_row(false, w.s, w.max_n, LOWEST, infinity()), out);
    else fail(search.empty ? NUCLEUS_EMPTY : NUCLEUS_OVERFLOW, out);
    return Fate::DECIDED;
  }
  if (by_mass && !search.weighs) return Fate::MANY;
  u64 total = 0;
  if (by_mass) total = weigh_row(false, w.s, w.max_n, LOWEST, search.listed);
  else list_from(search.listed);
  const u32 count = sh()->listed;
  if (count <= PORTABLE_LISTED) return by_mass ? choose_by_beginning(plan, count, total, search.tried, out) : choose_from_list(plan, count, total, out);
  if (plan.kind != SlicePlan::ABOVE || !search.weighs || !then_draws(plan, sh()->program)) return Fate::MANY;
  total = weigh_row(false, w.s, w.max_n, search.threshold, infinity());
  if (sh()->kept < plan.k) return Fate::MANY;
  draw_token(w, search.threshold, total, out);
  return Fate::DECIDED;
}

// The exact path; false: the row's edits are merged, and it is not of numbers alone.
__device__ __noinline__ bool sample_whole(bool unlisted, SampledToken *out) {
  return sample_exactly(BlockTeam{}, sh()->request, sh()->table, sh()->raw, unlisted, out);
}

// `exactly`: what decides a row by few sweeps was tried.
__device__ __noinline__ void sample_row(const SamplingBatch &batch, const Workspace &workspace, u32 index, bool exactly) {
  SampledToken *const out = batch.out + index;
  SlicePlan plan;
  const Prepared prepared = prepare(batch, workspace, index, plan);
  if (prepared == Prepared::CROWDED) fail(NUCLEUS_WORKSPACE, out);
  if (prepared != Prepared::READY) return;
  if (!(sh()->row.flags & NUCLEUS_ROW_PROCESSED)) find_raw_sums();
  const bool bounded = plan.sliced && plan.kind != SlicePlan::EXACT && !exactly, unlisted = batch.flags & NUCLEUS_BATCH_UNLISTED;
  const Fate fate = bounded ? sample_first(plan, out) : Fate::MANY;
  if (fate == Fate::DECIDED) return;
  if (fate == Fate::STRANGE) unmerge(workspace, index, plan);
  sync_block();
  if (sample_whole(unlisted, out)) return;
  unmerge(workspace, index, plan);
  sample_whole(unlisted, out);
}

__device__ __noinline__ bool tell_from_row(TopCall top) { return tell_top(BlockTeam{}, sh()->request, sh()->table, top); }

// The likeliest tokens of what a row is drawn from.
__device__ __forceinline__ void tell_top_of(const SamplingBatch &batch, const Workspace &workspace, const TopCall &call, u32 index) {
  if ((batch.row[index].flags & (NUCLEUS_ROW_TOP | NUCLEUS_ROW_PADDING)) != NUCLEUS_ROW_TOP) return;
  const TopCall own{call.top + static_cast<u64>(index) * call.count, call.count};
  SlicePlan plan;
  if (prepare(batch, workspace, index, plan) != Prepared::READY) {
    own.tell_nothing(BlockTeam{});
    return;
  }
  if (tell_from_row(own)) return;
  unmerge(workspace, index, plan);
  tell_from_row(own);
}

}  // namespace nucleus::portable
