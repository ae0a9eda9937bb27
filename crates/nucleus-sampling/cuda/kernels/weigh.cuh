// Rows' largest logits, first tokens and sums of weights, by the warps of clusters.
#pragma once

#include "part.cuh"
#include "prepare.cuh"

namespace nucleus {

constexpr u32 SLICES_MOST = 4;
constexpr u32 TURNS = 4;

// What a block holds beside its slices.
struct alignas(128) WeighState {
  u32 maxima[TURNS][ROW_WARPS];
  u64 told[TURNS];                   // mbarriers: all warps of the cluster have sent theirs
  u64 found[TURNS];                  // mbarriers: the bound is there
  u32 bounds[TURNS];                 // of rows' first tokens, as keys
  u64 arrived[SLICES_MOST * WARPS];  // mbarriers: the warp's part of the slice is there
};
static_assert(232448 / 2 / THREADS / SUMS + 8 <= 128, "what the sums of a lane hold of a slice");
__device__ __forceinline__ WeighState *weigh_state() { return reinterpret_cast<WeighState *>(shared_memory); }

// The maxima of the warps of a cluster, or of halves of them, sent from shared memory to shared memory. A warp sends the next row's before it meets the others
// over its row's. Once it has met them, all have sent their row's, and so are done with the row two before; what it sends two rows on goes where the row two
// before was: four buffers are enough. No block leaves while another may still send to it, since it meets the others over its last row.
struct Exchange {
  WeighState *state;
  u32 block, blocks, groups;  // groups: maxima that a warp sends
  u32 sent = 0, met = 0, to = 0, barrier = 0;  // to: where this lane sends the warp's to; 0: nowhere

  __device__ __forceinline__ u32 count() const { return blocks * WARPS * groups; }
  __device__ __forceinline__ Exchange(WeighState *s, u32 own_block, u32 of, u32 maxima) : state(s), block(own_block), blocks(of), groups(maxima) {
    const u32 half = groups == 2 ? threadIdx.x % 32 / 16 : 0, other = groups == 2 ? threadIdx.x % 16 : threadIdx.x % 32;
    const u32 place = (block * WARPS + threadIdx.x / 32) * groups + half;
    if (other >= blocks) return;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(&state->maxima[0][place])), "r"(other));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(barrier) : "r"(shared_address(&state->told[0])), "r"(other));
  }
  // By the first warp, before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    if (threadIdx.x == 0)
      for (u32 turn = 0; turn < TURNS; ++turn) {
        init_barrier(&state->told[turn], 1);
        init_barrier(&state->found[turn], 1);
      }
    __syncwarp();
    for (u32 turn = 0; turn < TURNS; ++turn) {
      if (threadIdx.x == 0) expect(turn);
      for (u32 at = count() + threadIdx.x; at < ROW_WARPS; at += 32) state->maxima[turn][at] = 0;  // of warps that are not there
    }
  }
  __device__ __forceinline__ void expect(u32 turn) const { arrive_expecting(&state->told[turn], count() * static_cast<u32>(sizeof(u32))); }
  // A warp's; each half of the lanes has its own if there are two.
  __device__ __forceinline__ void send(u32 key) {
    const u32 turn = sent++ % TURNS;
    if (to)
      send_u32(to + turn * static_cast<u32>(sizeof(state->maxima[0])), key, barrier + turn * static_cast<u32>(sizeof(u64)));
  }
  // All warps' maxima are there; returns the largest.
  __device__ __forceinline__ u32 meet() {
    const u32 turn = met % TURNS;
    wait_for_copy(&state->told[turn], met / TURNS & 1);
    if (threadIdx.x == 0) expect(turn);
    met += 1;
    static_assert(ROW_WARPS == 4 * 32);
    const uint4 keys = reinterpret_cast<const uint4 *>(state->maxima[turn])[threadIdx.x % 32];
    return __reduce_max_sync(~0u, __vimax3_u32(__vimax3_u32(keys.x, keys.y, keys.z), keys.w, 0));
  }
  // A key that at least k of the maxima reach, and not many more; 0: there are not so many maxima.
  __device__ __forceinline__ u32 reached_by(u32 k) const {
    constexpr u32 EACH = ROW_WARPS / 32, ROUNDS = 8;
    const u32 *maxima = state->maxima[(met - 1) % TURNS];
    u32 keys[EACH], least = ~0u, most = 0, there = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 at = i * 32 + threadIdx.x % 32;
      keys[i] = at < count() ? maxima[at] : 0;
      there += __popc(__ballot_sync(~0u, keys[i] != 0));
      least = keys[i] && keys[i] < least ? keys[i] : least;
      most = keys[i] > most ? keys[i] : most;
    }
    if (there < k) return 0;
    u32 low = __reduce_min_sync(~0u, least), high = __reduce_max_sync(~0u, most);
#pragma unroll 1
    for (u32 round = 0; round < ROUNDS; ++round) {
      const u32 middle = key_of(0.5f * value_of(low) + 0.5f * value_of(high) + 0.0f);
      u32 reach = 0;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) reach += __popc(__ballot_sync(~0u, keys[i] >= middle));
      if (reach >= k) low = middle;
      else high = middle;
      if (reach >= k && reach <= k + k / 8) break;
    }
    return low;
  }
};

// The edited tokens of a warp's part. A lane holds one; the rest are read where they are used.
struct Edits {
  const Changed *list;
  u32 count;
  Changed own;

  __device__ __forceinline__ void read(const Whole &whole, u32 index, u32 where) {
    list = whole.changed + static_cast<u64>(index) * ROW_EDITS + (where >> 16);
    count = where & 0xFFFF;
    if (threadIdx.x % 32 < count) own = list[threadIdx.x % 32];
  }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    if (threadIdx.x % 32 < count) f(own);
    UNROLL_NOT
    for (u32 i = 32 + threadIdx.x % 32; i < count; i += 32) f(list[i]);
  }
};

// A row on its way through a warp.
struct RowTurn {
  RowPlan plan;
  Edits edits;
  SeenPart seen;
  u64 raw;
  u32 raw_largest;
  u32 filler;  // where edited logits are kept apart: the word in their places
  bool wrote;  // to the slice, which the copy engine writes to next

  // Whether the warps meet over the row as it came, too, before they look at its edited logits.
  __device__ __forceinline__ bool raw_first() const { return plan.served() && plan.changes() && (plan.flags & RowPlan::RAW); }
};

// One row after another, by every warp of a cluster for itself. MASKS: masks have words.
template <u32 DTYPE, bool MASKS>
struct Weigher {
  using P = PartOf<DTYPE>;
  using Word = typename P::Word;
  // Edited logits need not be numbers of 16 bits: there they are kept apart, and what was edited is out of the slice.
  static constexpr bool APART = DTYPE != NUCLEUS_F32;
  const SamplingBatch &batch;
  const Whole &whole;
  const Division &division;
  P part;
  u32 own;  // this warp's place in the row
  Exchange exchange;
  u32 bounds = 0;  // that were found so far

  __device__ __forceinline__ const void *logits_of(u32 index) const {
    return static_cast<const char *>(batch.logits) + index * batch.row_stride * P::SIZE;
  }
  __device__ __forceinline__ bool allows(const RowPlan &plan, u32 id) const {
    if (!(plan.flags & RowPlan::MASKED)) return true;
    const u32 *mask = mask_of(plan.mask);
    return id / 32 < batch.mask_words && (mask[id / 32] >> (id % 32) & 1);
  }

  // The weight of the part at T = 1.
  __device__ __forceinline__ u64 raw_mass(const Word *memory, u32 largest, float lowest) const {
    Weighing w;
    if (!largest || largest >= INFINITE || !begin_weighing(value_of(largest), 1.0f, w)) return 0;
    return sum_of_lanes(part.mass(memory, w, lowest));
  }

  // A row's mask, of which each lane has words for the part's first tokens: they are asked for a turn ahead, since reads wait for the rows that were asked for before.
  struct MaskWords {
    u32 next = 0, second = 0;
  };
  __device__ __forceinline__ const u32 *mask_of(i32 mask) const { return batch.masks + static_cast<u64>(mask) * batch.mask_stride; }
  __device__ __forceinline__ MaskWords ask_mask(i32 mask) const {
    MaskWords words;
    if (!MASKS || mask < 0) return words;
    words.next = part.mask_word(mask_of(mask), batch.mask_words, 0);
    words.second = part.mask_word(mask_of(mask), batch.mask_words, P::MASK_GROUP);
    return words;
  }

  __device__ __forceinline__ void put(Word *memory, const RowTurn &row, u32 word) const {
    row.edits.each([&](const Changed &c) { memory[c.id - part.first] = static_cast<Word>(word); });
    __syncwarp();
  }
  // Puts the lowest of a few logits of the part in the places of its edited tokens, which are out, so that weights need not be raised; returns it, or OUT.
  __device__ __forceinline__ u32 fill(Word *memory, const RowTurn &row) const {
    const u32 each = part.count / 32, word = each ? memory[threadIdx.x % 32 * each] : P::OUT, key = word == P::OUT ? ~0u : key_of(P::widened(word) + 0.0f);
    const u32 least = __reduce_min_sync(~0u, key);
    if (least == ~0u) return P::OUT;
    const u32 filler = __shfl_sync(~0u, word, __ffs(__ballot_sync(~0u, key == least)) - 1);
    put(memory, row, filler);
    return filler;
  }

  // Before the row's largest logit is known.
  __device__ __forceinline__ void look(u32 index, Word *memory, const MaskWords &words, RowTurn &row) {
    const RowPlan &plan = row.plan;
    row.wrote = part.settle(logits_of(index), memory, plan.limit) || plan.changes();
    row.raw = 0;
    row.raw_largest = 0;
    row.filler = P::OUT;
    if (plan.changes()) {
      if (row.raw_first()) {
        const SeenPart before = part.look(memory, false);
        exchange.send(before.key);
        row.raw_largest = exchange.meet();
        row.raw = raw_mass(memory, row.raw_largest, before.lowest);
        __syncwarp();
      }
      row.edits.each([&](const Changed &c) { memory[c.id - part.first] = static_cast<Word>(APART ? P::OUT : bits_of(c.logit)); });
      __syncwarp();
      // A bound that a number of tokens must reach may not count fillers.
      const bool counts = 2 * plan.k > division.warps() * exchange.groups;
      if (APART && row.edits.count && plan.weighs() && !counts && !(plan.flags & RowPlan::MASKED)) row.filler = fill(memory, row);
    }
    const bool halves = plan.kind != SlicePlan::ALL && exchange.groups == 2;
    const bool masked = plan.flags & RowPlan::MASKED;
    if (!MASKS && masked) part.count = 0;
    row.seen = MASKS && masked ? part.look_allowed(memory, mask_of(plan.mask), batch.mask_words, words.next, words.second, halves) : part.look(memory, halves);
    if (APART && plan.edited) {
      u32 key = 0, count = 0;
      row.edits.each([&](const Changed &c) {
        if (!(c.logit > -infinity()) || !allows(plan, c.id)) return;
        count += 1;
        key = key_of(c.logit) > key ? key_of(c.logit) : key;
      });
      key = __reduce_max_sync(~0u, key);
      row.seen.key = key > row.seen.key ? key : row.seen.key;
      row.seen.of_half = key > row.seen.of_half && threadIdx.x % 32 < 16 ? key : row.seen.of_half;
      row.seen.count += __reduce_add_sync(~0u, count) - (row.filler == P::OUT ? 0 : row.edits.count);
    }
    exchange.send(row.seen.of_half);
  }

  // Once all have looked.
  __device__ __forceinline__ void weigh(u32 index, Word *memory, const RowTurn &row) {
    const u32 lane = threadIdx.x % 32;
    const RowPlan &plan = row.plan;
    const u32 largest = exchange.meet();
    u64 mass = 0, raw = row.raw;
    u32 listed = 0;
    u32 raw_largest = row.raw_largest;
    Weighing w;
    const bool weighs = plan.weighs();
    if (largest && largest < INFINITE && (!weighs || begin_weighing_by(plan.s, value_of(largest), w))) {
      // A warp of each block, each in turn, finds the bound; the others need it when they have weighed.
      const bool bounded = plan.kind != SlicePlan::ALL && plan.k != 1;
      WeighState *const state = exchange.state;
      const u32 turn = bounds % TURNS, parity = bounds / TURNS & 1;
      if (bounded && bounds++ % WARPS == threadIdx.x / 32) {
        const u32 found = exchange.reached_by(plan.k);
        if (lane == 0) {
          state->bounds[turn] = found;
          arrive(&state->found[turn]);
        }
      }
      if (weighs) {
        u64 own = part.mass(memory, w, row.seen.lowest);
        if (APART && plan.edited)
          row.edits.each([&](const Changed &c) {
            if (c.logit > -infinity() && allows(plan, c.id)) own += w.q(c.logit);
          });
        mass = sum_of_lanes(own);
        if (APART && row.filler != P::OUT) mass -= row.edits.count * w.q(P::widened(row.filler));
      }
      if (plan.kind != SlicePlan::ALL) {
        if (bounded) wait_for_copy(&state->found[turn], parity);
        const u32 bound = bounded ? state->bounds[turn] : largest;
        float threshold = bound ? value_of(bound) : -infinity();
        if (plan.kind == SlicePlan::ABOVE) threshold = fminf(threshold, fmaf(plan.temperature, plan.arg, value_of(largest)));
        threshold = fmaxf(threshold, least_finite());  // tokens at -inf are out
        if (APART && row.filler != P::OUT && P::widened(row.filler) >= threshold) put(memory, row, P::OUT);
        if (row.seen.key && value_of(row.seen.key) >= threshold) listed = list(index, memory, row, threshold);
      }
    }
    if ((plan.flags & RowPlan::RAW) && !plan.changes()) {
      raw_largest = largest;
      const bool same = weighs && plan.s == scale(1.0f);
      raw = same ? mass : raw_mass(memory, largest, row.seen.lowest);
    }
    if (lane) return;
    const u64 at = static_cast<u64>(index) * ROW_WARPS + own;
    whole.masses[at] = mass;
    whole.raw[at] = raw;
    whole.there[at] = row.seen.count;
    whole.listed[at] = listed;
    if (own == 0) whole.maxima[index] = RowMaxima{largest, raw_largest};
  }

  // Lists the part's tokens that reach the threshold.
  __device__ __forceinline__ u32 list(u32 index, const Word *memory, const RowTurn &row, float threshold) const {
    const u32 lane = threadIdx.x % 32;
    const u32 most = division.places();
    u64 *places = whole.places + static_cast<u64>(index) * ROW_PLACES + own * most;
    u32 listed = part.list(memory, threshold, row.seen.of_lane, places, most);
    if constexpr (APART) {
      UNROLL_NOT
      for (u32 base = 0; base < row.edits.count; base += 32) {
        Changed c{0, -infinity()};
        if (base + lane < row.edits.count) c = base ? row.edits.list[base + lane] : row.edits.own;
        const bool reaches = c.logit >= threshold && allows(row.plan, c.id);
        const u32 lanes = __ballot_sync(~0u, reaches), to = listed + __popc(lanes & ((1u << lane) - 1));
        if (reaches && to < most) places[to] = place_of(c.logit, c.id);
        listed += __popc(lanes);
      }
    }
    return listed;
  }
};

// `plans`: no launch before has learnt what the rows ask for, since none has edits. SOME: the launch takes some of the batch's rows.
template <u32 DTYPE, bool MASKS, bool SOME>
__device__ __forceinline__ void weigh_rows_of(const RowsOfBatch<SOME> &batch, const Whole &whole, const Division &division, bool plans, bool pending) {
  using P = PartOf<DTYPE>;
  u32 block, blocks;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(block));
  const u32 cluster = blockIdx.x / blocks, clusters = gridDim.x / blocks, rows = (batch.rows - cluster + clusters - 1) / clusters;
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = block * WARPS + warp;
  WeighState *state = weigh_state();
  const Part place(division, batch.row_len, own);
  Weigher<DTYPE, MASKS> weigher{batch, whole, division, P(batch, place.first, place.count), own, Exchange(state, block, blocks, division.groups())};
  typename P::Word *const slices = reinterpret_cast<typename P::Word *>(shared_memory + sizeof(WeighState)) + (place.first - Part(division, batch.row_len, block * WARPS).first);
  auto memory = [&](u32 slice) { return slices + slice * division.room; };
  auto arrival = [&](u32 slice) { return &state->arrived[slice * WARPS + warp]; };
  auto index_of = [&](u32 turn) { return batch.row_number(cluster + turn * clusters); };
  auto start = [&](u32 turn, u32 slice) {
    if (turn < rows) weigher.part.start(weigher.logits_of(index_of(turn)), memory(slice), arrival(slice));
  };
  if (warp == 0) weigher.exchange.prepare();
  if (lane == 0) {
#pragma unroll 1
    for (u32 slice = 0; slice < division.slices; ++slice) init_barrier(arrival(slice), 1);
  }
  publish_barriers();
  if (lane == 0) start(0, 0);
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  wait_for_launch_before();
  let_next_launch_begin();
  if (blockIdx.x == 0 && threadIdx.x == 0) *whole.left = 0;
  // Before more of the rows is asked for, behind which these reads would wait.
  RowPlan first;
  if (plans) {
    first = plan_row_by_warp(batch, division, index_of(0), pending);
    if (own == 0 && lane == 0) whole.plans[index_of(0)] = first;
#pragma unroll 1
    for (u32 turn = 1 + own; turn < rows; turn += division.warps()) {
      const RowPlan plan = plan_row_by_warp(batch, division, index_of(turn), pending);
      if (lane == 0) whole.plans[index_of(turn)] = plan;
    }
  }
  if (lane == 0) {
#pragma unroll 1
    for (u32 slice = 1; slice < division.slices; ++slice) start(slice, slice);
  }
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  if (plans && rows > 1) {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }
  const u32 lag = division.looks_ahead();
  // A row's plan and, of its edits, this warp's: a word a lane, asked for one turn before the row is looked at; with masks two, and the mask then one.
  constexpr u32 WORDS = sizeof(RowPlan) / 4, MASK_AT = offsetof(RowPlan, mask) / 4;
  auto ask = [&](u32 index) {
    const u32 *from = reinterpret_cast<const u32 *>(whole.plans + index) + lane;
    if (lane >= WORDS) from = whole.edits + static_cast<u64>(index) * ROW_WARPS + own;
    return lane < WORDS || !plans ? __ldcg(from) : 0;
  };
  auto told = [&](u32 word, RowPlan &plan) {
    u32 *to = reinterpret_cast<u32 *>(&plan);
#pragma unroll
    for (u32 i = 0; i < WORDS; ++i) to[i] = __shfl_sync(~0u, word, i);
    return plan.edited ? __shfl_sync(~0u, word, WORDS) : 0;
  };
  RowTurn ahead, current;
  u32 slice = 0, parity = 0, weighed = 0, asked = 0, second = 0;
  typename Weigher<DTYPE, MASKS>::MaskWords words;
  if (!plans) asked = ask(index_of(0));
  if (MASKS) {
    second = ask(index_of(rows > 1 ? 1 : 0));
    words = weigher.ask_mask(plans ? first.mask : __shfl_sync(~0u, static_cast<i32>(asked), MASK_AT));
  }
#pragma unroll 1
  for (u32 turn = 0; turn < rows + lag; ++turn) {
    const u32 index = index_of(turn < rows ? turn : rows - 1);
    if (turn < rows) {
      ahead.wrote = false;
      u32 edits = 0;
      if (turn == 0 && plans) ahead.plan = first;
      else edits = told(asked, ahead.plan);
      ahead.edits.read(whole, index, edits);
      asked = second;
      const u32 later = MASKS ? 2 : 1, next = ask(turn + later < rows ? index_of(turn + later) : index);
      if (MASKS) second = next;
      else asked = next;
    }
    // The next row is looked at before this one is weighed, unless the warps meet twice over it.
    const bool weighs_first = lag && turn < rows && ahead.raw_first();
#pragma unroll 1
    for (u32 step = 0; step < 2; ++step) {
      if ((step == 0) != weighs_first) {
        if (turn >= rows) continue;
        wait_for_copy(arrival(slice), parity);
        if (ahead.plan.served()) weigher.look(index, memory(slice), words, ahead);
        if (MASKS && turn + 1 < rows) words = weigher.ask_mask(__shfl_sync(~0u, static_cast<i32>(asked), MASK_AT));
        parity ^= slice + 1 == division.slices;
        slice = slice + 1 == division.slices ? 0 : slice + 1;
        if (!lag) current = ahead;
      } else if (turn >= lag) {
        if (current.plan.served()) weigher.weigh(index_of(turn - lag), memory(weighed), current);
        if (current.wrote) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (lane == 0) start(turn - lag + division.slices, weighed);
        __syncwarp();
        weighed = weighed + 1 == division.slices ? 0 : weighed + 1;
      }
    }
    current = ahead;
  }
}

}  // namespace nucleus
