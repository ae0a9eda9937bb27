// A row's token from what its segments have left, by one block.
#pragma once

#include "few_chain.cuh"
#include "solo_team.cuh"

namespace nucleus {

constexpr u32 CHANGED = 256;  // tokens with edits that may be among the first
constexpr u32 CHANGED_SLOTS = 2 * CHANGED;

// Shared memory: FinishShared, then the heads of the row's segments.
struct FinishShared : BoundedRow {
  Request request, window_request;  // of the row; the second's history is the window in `ids`
  u64 listed_places[LISTED], listed_weights[LISTED];
  u32 ids[EDITS_MOST];                         // that may be edited: the window of the history, then the lists
  float logits[EDITS_MOST], most[EDITS_MOST];  // theirs: as they came, and what biases may raise them to; -inf if a mask forbids them
  Edit changed[CHANGED_SLOTS + 1];
  float changed_logits[CHANGED_SLOTS];  // as they came
  u32 changed_count, largest_bound, most_left;
  u64 arrived;  // an mbarrier: the heads are there
};
__device__ __forceinline__ FinishShared *finish_state() { return reinterpret_cast<FinishShared *>(shared_memory); }
__device__ __forceinline__ const SegmentHead *shared_heads() { return reinterpret_cast<const SegmentHead *>(shared_memory + (sizeof(FinishShared) + 127) / 128 * 128); }
inline size_t finish_bytes(u32 segments) { return (sizeof(FinishShared) + 127) / 128 * 128 + segments * sizeof(SegmentHead); }

// The tokens whose edits matter: a table that takes no others.
struct ChangedTable : EditTable {
  __device__ __forceinline__ explicit ChangedTable(FinishShared *sh) : EditTable{sh->changed, CHANGED_SLOTS} {}
  __device__ __forceinline__ Edit *insert(u32 id) const { return const_cast<Edit *>(find(id)); }
  __device__ __forceinline__ bool covers(u32 id) const { return find(id) != nullptr; }
};

// Whether edits by id never raise a logit, biases apart.
__device__ __forceinline__ bool edits_lower(const SamplingConfig &c) {
  return c.repetition_penalty >= 1.0f && c.frequency_penalty >= 0.0f && c.presence_penalty >= 0.0f && c.dry_multiplier >= 0.0f && c.dry_base >= 0.0f;
}

// Brings the ids that may be edited and their logits to shared memory.
template <u32 N>
__device__ __forceinline__ void read_editable(FinishShared *sh, const Request &r, const Editable &editable) {
  constexpr u32 EDITS_EACH = EDITS_MOST / N;
  u32 ids[EDITS_EACH];
  float rise[EDITS_EACH];
#pragma unroll
  for (u32 i = 0; i < EDITS_EACH; ++i) {
    const u32 at = i * N + threadIdx.x;
    ids[i] = NO_ID;
    if (at < editable.count()) ids[i] = editable.at(at, rise[i]);
  }
#pragma unroll
  for (u32 i = 0; i < EDITS_EACH; ++i) {
    const u32 at = i * N + threadIdx.x;
    if (at >= editable.count()) break;
    const float x = ids[i] < r.limit && !(r.mask && !mask_allows(r, ids[i])) ? load_logit(r, ids[i]) : -infinity();
    sh->ids[at] = ids[i];
    sh->logits[at] = x;
    sh->most[at] = x + rise[i];
  }
}

// Puts a token into the table of changed ones, once.
__device__ __forceinline__ void add_changed(FinishShared *sh, u32 id, float x) {
  const EditTable table{sh->changed, CHANGED_SLOTS};
  u32 at = table.start(id);
  UNROLL_NOT
  for (u32 probes = 0; probes < CHANGED; ++probes, at = (at + 1) & (CHANGED_SLOTS - 1)) {
    const u32 old = atomicCAS(&sh->changed[at].id, NO_ID, id);
    if (old == id) return;
    if (old != NO_ID) continue;
    sh->changed_logits[at] = x;
    atomicAdd(&sh->changed_count, 1);
    return;
  }
  atomicAdd(&sh->changed_count, CHANGED);
}

// Lists the tokens with edits that reach the bound. Barriers precede and follow.
template <u32 N>
__device__ __noinline__ void list_changed(const Request &r, float threshold) {
  FinishShared *const sh = finish_state();
  const float least = edits_lower(*r.config) ? threshold : -infinity();
  const u32 editable = sh->window + r.row->bias.len + r.row->eos.len + r.row->bad_words.len;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < editable; i += N) {
    const float x = sh->logits[i];
    if (!(x < infinity())) sh->strange = 1;
    else if (x > -infinity() && sh->most[i] >= least) add_changed(sh, sh->ids[i], x);
  }
  __syncthreads();
  if (sh->changed_count >= CHANGED) {  // too many: the row is not decided here
    if (threadIdx.x == 0) sh->strange = 1;
    return;
  }
  const SoloTeam<FinishShared, N> team{sh};
  const ChangedTable table(sh);
  const SlicePlan &plan = sh->plan;
  note_bias_and_bans(team, r, table);
  if (plan.occurrences) note_occurrences(team, sh->window_request, table);
  if (plan.passages) note_passages(team, sh->window_request, table);
  if (plan.ngrams) note_ngrams(team, sh->window_request, table);
  __syncthreads();
  bool strange = false;
#pragma unroll
  for (u32 i = 0; i < CHANGED_SLOTS / N; ++i) {
    const u32 at = i * N + threadIdx.x, id = sh->changed[at].id;
    const float x = id != NO_ID ? edited(r, sh->changed_logits[at], sh->changed[at], strange) : -infinity();
    const bool reaches = x > -infinity() && x >= threshold;
    const u32 to = reserve(&sh->found, reaches);
    if (reaches && to < LISTED) sh->listed_places[to] = place_of(x, id);
  }
  if (strange) sh->strange = 1;
}

// The heads of the row's segments on their way, by one thread, once they are written.
__device__ __forceinline__ void start_heads(const Segments &segments) {
  const u32 barrier = shared_address(&finish_state()->arrived), bytes = segments.count * sizeof(SegmentHead);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(shared_heads())),
               "l"(segments.heads + static_cast<u64>(blockIdx.x) * segments.count), "r"(bytes), "r"(barrier)
               : "memory");
}

// Appends tokens to the list, `place` 0 for none; lanes of a warp together.
__device__ __forceinline__ void list_place(FinishShared *sh, u64 place) {
  if (!__any_sync(~0u, place != 0)) return;
  const u32 to = reserve(&sh->found, place != 0);
  if (place && to < LISTED) sh->listed_places[to] = place;
}

// Lists what the segments have left that reaches the row's threshold, which it returns; `strange` if one has not decided. Barriers within, none at the end.
template <u32 N>
__device__ __forceinline__ float list_left(FinishShared *sh, const Segments &segments) {
  const u64 *words = reinterpret_cast<const u64 *>(shared_heads());
  const u32 entries = segments.count * HEAD_WORDS;
  if (threadIdx.x < SEGMENTS_MOST) {
    const u64 head = threadIdx.x < segments.count ? words[threadIdx.x * HEAD_WORDS] : 0;
    const u32 most = __reduce_max_sync(~0u, static_cast<u32>(head)), bound = __reduce_max_sync(~0u, static_cast<u32>(head >> 32));
    if (threadIdx.x % 32 == 0) {
      atomicMax(&sh->most_left, most);
      atomicMax(&sh->largest_bound, bound);
    }
  }
  // Word 0 of a head is no place. The thread's two largest places: few threads have a third that counts.
  u64 first = 0, second = 0;
#pragma unroll 2
  for (u32 i = threadIdx.x; i < entries; i += N) {
    const u64 own = i % HEAD_WORDS ? words[i] : 0;
    const u64 less = own < first ? own : first;
    first = own > first ? own : first;
    second = less > second ? less : second;
  }
  float threshold = threshold_of<N>(sh, static_cast<u32>(first >> 32));
  if (sh->most_left == UNDECIDED) {
    sh->strange = 1;
    return -infinity();
  }
  if (sh->largest_bound) threshold = fmaxf(threshold, value_of(sh->largest_bound));
  const u32 bound = threshold > -infinity() ? key_of(threshold + 0.0f) : 1;
  const bool some = static_cast<u32>(first >> 32) >= bound, more = static_cast<u32>(second >> 32) >= bound;
  list_place(sh, some ? first : 0);
  list_place(sh, more ? second : 0);
  if (__any_sync(~0u, more)) {
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < entries; i += N) {
      const u64 own = more && i % HEAD_WORDS ? words[i] : 0;
      list_place(sh, own < second && static_cast<u32>(own >> 32) >= bound ? own : 0);
    }
  }
  if (sh->most_left <= HEAD_ROOM) return threshold;
  const u64 *rest = segments.rest + static_cast<u64>(blockIdx.x) * segments.count * (SEGMENT_ROOM - HEAD_ROOM);
  UNROLL_NOT
  for (u32 segment = 0; segment < segments.count; ++segment) {
    const u32 count = static_cast<u32>(words[segment * HEAD_WORDS]);
    if (count <= HEAD_ROOM) continue;
    const u64 place = threadIdx.x < count - HEAD_ROOM ? __ldcg(rest + segment * (SEGMENT_ROOM - HEAD_ROOM) + threadIdx.x) : 0;
    list_place(sh, static_cast<u32>(place >> 32) >= bound ? place : 0);
  }
  return threshold;
}

// The choice from the sorted list, by one warp.
__device__ __forceinline__ Outcome choose_listed(FinishShared *sh, const Request &r, u32 count) {
  const SlicePlan &plan = sh->plan;
  if (plan.greedy) {
    u64 first = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += 32) first = sh->listed_places[i] > first ? sh->listed_places[i] : first;
    return first_of_order(DeviceWarp{}.most(first));
  }
  Outcome outcome;
  if (run_chain(r, plan, sh->listed_places, sh->listed_weights, count, outcome)) return outcome;
  EditTable none{nullptr, 0};
  return run_list(DeviceWarp{}, r, none, ListCall{sh->listed_places, sh->listed_weights, count, plan.op, plan.temperature, 0});
}

// One row, by one block.
template <u32 N>
__device__ __forceinline__ void finish_row(const SamplingBatch &batch, const Segments &segments) {
  FinishShared *const sh = finish_state();
  const u32 index = blockIdx.x;
  let_next_launch_begin();
  if (threadIdx.x < 32) {
    describe_bounded(sh, batch, index);
  } else {
    for (u32 i = threadIdx.x - 32; i <= CHANGED_SLOTS; i += N - 32) sh->changed[i] = Edit{NO_ID, 0, 0, 0.0f};
    if (threadIdx.x == N - 1) {
      sh->changed_count = sh->largest_bound = sh->most_left = 0;
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&sh->arrived)) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
  }
  __syncthreads();
  if (!sh->bounded) {
    wait_for_launch_before();
    if (threadIdx.x == 0 && !(sh->row.flags & NUCLEUS_ROW_PADDING)) batch.out[index].status = PENDING;
    return;
  }
  // What does not need the segments.
  if (threadIdx.x == 0) {
    sh->request = sh->window_request = request_of(batch, index, sh->row, sh->config, sh->program);
    sh->window_request.history = sh->ids - (sh->row.history.len - sh->window);
  }
  __syncthreads();
  const Request &r = sh->request;
  const bool edits = sh->plan.edits;
  if (edits) read_editable<N>(sh, r, Editable(r, sh->window));
  if (threadIdx.x == N - 1) {  // once, here
    sh->row.uniform = uniform_of(r);
    sh->row.flags |= NUCLEUS_ROW_UNIFORM;
  }
  __syncthreads();
  wait_for_launch_before();
  if (threadIdx.x == 0) start_heads(segments);
  wait_for_copy(&sh->arrived, 0);
  const float threshold = list_left<N>(sh, segments);
  if (edits) list_changed<N>(r, threshold);
  __syncthreads();
  const u32 count = sh->found;
  if (sh->strange || count > LISTED) {
    if (threadIdx.x == 0) batch.out[index].status = PENDING;
    return;
  }
  if (!sh->plan.greedy) sort_places<N>(sh->listed_places, count);
  if (threadIdx.x >= 32) return;
  const Outcome outcome = choose_listed(sh, r, count);
  if (threadIdx.x == 0) batch.out[index] = result(outcome, RawSums{}, r);
}

}  // namespace nucleus
