// Draws from what top_p keeps of rows without edits, beside draws from whole rows.
//
// The largest logits that warps tell each other, or halves of them, tell a bound that some hundred tokens reach: of independent logits 32 (1/3 + ... + 1/32) = 82 on average. Two more
// warps of a block, the listers, find it while the others weigh, look at the tokens of those lanes whose largest logit reaches it, and send what does to the block that finishes the row,
// which is also told what all tokens weigh. If the list weighs enough, that block sorts it, cuts, and draws. Rows that keep more are described, and left to the launch behind this one
// (cut.cuh).
#pragma once

#include "draw_finish.cuh"

namespace nucleus::draw {

constexpr u32 LIST_MOST = 192;  // tokens that a row is decided by
constexpr u32 SENDERS_MOST = MAX_BLOCKS * LISTERS;

struct alignas(16) Listed {
  u64 place, weight;
};

// What a block holds beside DrawState.
struct alignas(128) Lists {
  static constexpr u32 AT_ONCE = 16;  // keys that are compared in one go
  u64 sent[SENT_MOST];                // of the row that this block finishes: what listers of all blocks have sent, as places
  u64 told[SENDERS_MOST];             // how many each has sent, or would have
  Listed tokens[LIST_MOST];           // in the order of logits
  u64 places[LIST_MOST];              // as they came; then what each of the order and all before it weigh
  u32 keys[LIST_MOST + AT_ONCE];      // what they are sorted by, as they came
  u64 delivered;                      // mbarrier: all that was sent is there
  u64 masses[2][LIST_FINISH_WARPS];   // of the finishing warps: what all tokens weigh, and at T = 1 before any edit
  u32 there[LIST_FINISH_WARPS];       // tokens
  u32 passing[LIST_FINISH_WARPS];
  u64 seen[TEAMS_MOST];               // mbarriers: the team's warps have left what lanes have seen of a row
  u64 noted[TEAMS_MOST];              // mbarriers: its listers have read that
  float most[WARPS * 32];             // the largest logit of each lane of all teams
  uint16_t lanes[WARPS * 32];         // those with tokens to be sent, of each lister
};
__device__ __forceinline__ Lists *lists_of(const DrawShape &shape) { return reinterpret_cast<Lists *>(shared_memory + sizeof(DrawState) + shape.message_bytes()); }

// Whether tokens of a row are listed.
template <Form FORM>
__device__ __forceinline__ bool lists(const RowPlan &plan) { return takes_moments(FORM) ? plan.lists() : plan.kind == SlicePlan::MASS; }

// A warp that weighs its chunks of every row, and leaves what its lanes have seen.
template <u32 DTYPE, Form FORM>
struct ListedDrawer : Drawer<DTYPE, takes_masks(FORM), FORM> {
  using D = Drawer<DTYPE, takes_masks(FORM), FORM>;
  using D::team;
  Lists *lists;
  u32 left = 0;  // rows of which it has left something

  __device__ __forceinline__ void leave(const RowPlan &plan, const SeenPart &seen) {
    // A lister which has not read the largest logits of a row yet finds them until those of the next but one are told.
    if (left) wait_for_copy(&lists->noted[team], (left - 1) & 1);
    if (!draw::lists<FORM>(plan)) return;
    left += 1;
    lists->most[(team * D::shape.members + D::member) * 32 + threadIdx.x % 32] = seen.most_of_lane;
    arrive_as_warp(&lists->seen[team]);
  }
  __device__ __forceinline__ void take_turns() {
    D::take_turns([&](u32 turn, u32, u32) { return D::weigh_row(turn, [&](const RowPlan &plan, const SeenPart &seen) { leave(plan, seen); }, nullptr); });
  }
};

// A lister of some of a team's warps. A stage is left when it, too, needs it no more; all stages of a row with a mask when it does not need that.
template <u32 DTYPE, Form FORM>
struct Lister {
  static constexpr bool MASKS = takes_masks(FORM);
  using P = PartOf<DTYPE>;
  using Word = typename P::Word;
  static constexpr u32 WIDTH = P::WIDTH, OF_STAGE = CHUNK / P::STEP;  // OF_STAGE: vectors of a lane in a stage

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  Lists *lists;
  u32 block, number, team;  // number: of the block's listers
  const Word *ring;

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    if (edits_tokens(FORM) && is_first()) edit_lister().prepare(shape.members);
    if (threadIdx.x % 32 || number >= shape.teams) return;
    init_barrier(&lists->seen[number], shape.members * ARRIVING_LANES);
    init_barrier(&lists->noted[number], shape.listers);
  }
  // Of a team's listers one lists its edits.
  __device__ __forceinline__ bool is_first() const { return (number & (shape.listers - 1)) == 0; }
  __device__ __forceinline__ EditLister edit_lister() const { return EditLister{edits_of(shape), team, block * shape.room, shape.room}; }
  __device__ __forceinline__ void ask_for_edits(u32 turn, EditLister &edits) const {
    if (turn >= turns.rows) return;
    receive(&state->planned[turn], 0);
    if (state->plans[turn].edited) edits.ask(edits_of(shape)->plans[turn]);
  }
  __device__ __forceinline__ void list_edits(u32 turn, EditLister &edits) const {
    if (turn < turns.rows && state->plans[turn].edited) edits.list(edits_of(shape)->plans[turn], state->plans[turn].plan().limit);
  }
  // The bound: the groups are shared out to lanes, and the third least of the lanes' largest logits is taken; where a lane has none, every token reaches it.
  __device__ __forceinline__ float bound_of(const u32 *maxima) const {
    u32 most = 0;
#pragma unroll
    for (u32 i = 0; i < ROW_WARPS; i += 32) {
      const u32 key = maxima[i + threadIdx.x % 32];  // 0 of groups that are not there
      most = key > most ? key : most;
    }
    u32 least = __reduce_min_sync(~0u, most);
    if (!least) return least_finite();  // tokens at -inf are out
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const u32 next = __reduce_min_sync(~0u, most > least ? most : ~0u);
      least = next == ~0u ? least : next;
    }
    return fmaxf(value_of(least), least_finite());
  }
  __device__ __forceinline__ u32 first_of_team() const { return team * shape.members * 32; }
  // Notes the lanes that have tokens to be sent; returns how many.
  __device__ __forceinline__ u32 note_lanes(float threshold) const {
    // Half the block's warps: those of one of two teams, or half of one team's.
    constexpr u32 MEMBERS = WARPS / LISTERS;
    const u32 lane = threadIdx.x % 32, first = number * MEMBERS * 32;
    float most[MEMBERS];
#pragma unroll
    for (u32 i = 0; i < MEMBERS; ++i) most[i] = lists->most[first + i * 32 + lane];
    u32 count = 0;
#pragma unroll
    for (u32 i = 0; i < MEMBERS; ++i) {
      const u32 reach = __ballot_sync(~0u, most[i] >= threshold);
      if (most[i] >= threshold) lists->lanes[first + count + __popc(reach & ((1u << lane) - 1))] = static_cast<uint16_t>(first - first_of_team() + i * 32 + lane);
      count += __popc(reach);
    }
    __syncwarp();
    return count;
  }
  // A vector of a noted lane in a stage: where it lies in a chunk, and where that begins in the stage, if it is a whole one.
  struct Vector {
    u32 in_chunk, chunk_at;
  };
  __device__ __forceinline__ Vector vector_at(u32 i, u32 lanes) const {
    if (i >= lanes * OF_STAGE) return Vector{CHUNK, 0};
    const u32 of = lists->lanes[number * (WARPS / LISTERS) * 32 + i / OF_STAGE];
    return Vector{i % OF_STAGE * P::STEP + of % 32 * WIDTH, of / 32 * CHUNK};
  }
  // Of a row: which tokens are sent, where they go, and how many have gone.
  struct Sending {
    float threshold;
    u32 end;                    // ids from there on are no tokens
    const unsigned char *mask;  // of the slice; null: all are allowed
    u32 to, delivered, count = 0;
  };
  // Sends a vector's tokens. `first`: the stage's first id.
  __device__ __forceinline__ void send_tokens(const Vector &v, const Word *memory, u32 chunk, u32 first, Sending &row) const {
    const u32 at = v.chunk_at / CHUNK * chunk + v.in_chunk, id = first + at;
    const bool there = v.in_chunk < chunk && id < row.end;
    float x[WIDTH], most = -infinity();
    P::widen(P::vector(memory, there ? at : 0), x);
#pragma unroll
    for (u32 e = 0; e < WIDTH; ++e) most = fmaxf(most, x[e]);
    u32 those = __ballot_sync(~0u, there && most >= row.threshold);
    if (!those) return;
    u32 reach = 0;
#pragma unroll
    for (u32 e = 0; e < WIDTH; ++e) reach |= there && x[e] >= row.threshold && id + e < row.end ? 1u << e : 0;
    if (MASKS && row.mask && reach) {
      const u32 of_slice = id - block * shape.room;
      reach &= row.mask[of_slice / 8] >> of_slice % 8;
    }
#pragma unroll 1
    for (; (those = __ballot_sync(~0u, reach != 0)) != 0; row.count += __popc(those), reach &= reach - 1) {
      const u32 place = row.count + __popc(those & ((1u << threadIdx.x % 32) - 1)), e = (__ffs(reach) - 1) & (WIDTH - 1);
      if (reach && place < shape.places) send_u64(row.to + place * static_cast<u32>(sizeof(u64)), place_of(P::one(memory, at + e) + 0.0f, id + e), row.delivered);
    }
  }
  // Of rows that are cut tokens are sent to block `to`, which has finished so many rows before; of all it is told how many.
  __device__ __forceinline__ void take_turns() const {
    constexpr u32 KEPT = 2;  // vectors of a stage that a lane keeps the places of
    const u32 lane = threadIdx.x % 32, sender = block * shape.listers + (number & (shape.listers - 1));
    const u32 own_at = shared_address(&lists->sent[sender * shape.places]), told_at = shared_address(&lists->told[sender]), delivered_at = shared_address(&lists->delivered);
    const u32 slots = kept(shape.slots), stages = kept(shape.stages), stage_ids = kept(shape.stage), slice = block * shape.room;
    RingSlot at;
    u32 met = 0, listed = 0, to = team, use = 0;
    EditLister edits = edit_lister();
    const bool edited = edits_tokens(FORM) && is_first();
    if (edited) {
      ask_for_edits(team, edits);
      list_edits(team, edits);
      ask_for_edits(team + shape.teams, edits);
    }
#pragma unroll 1
    for (u32 turn = team; turn < turns.rows; turn += shape.teams, to += shape.teams) {
      for (; to >= shape.blocks; to -= shape.blocks) use += 1;
      // The next row's edits, as soon as this one's are made.
      if (edited) {
        list_edits(turn + shape.teams, edits);
        ask_for_edits(turn + 2 * shape.teams, edits);
      }
      receive(&state->planned[turn], 0);
      const RowPlan plan = state->plans[turn].plan();
      const bool masked = MASKS && plan.served() && plan.flags & RowPlan::MASKED;
      u32 lanes = 0;
      Sending row{};
      Vector kept_at[KEPT];
      // With a mask or edits, and raw log-probabilities, the warps meet twice.
      met += plan.served() + ((masked || (edits_tokens(FORM) && plan.edited)) && plan.flags & RowPlan::RAW);
      if (plan.served() && draw::lists<FORM>(plan)) {
        const u32 last = met - 1, buffer = team * BUFFERS + last % BUFFERS;
        // They are done with the first meeting when they have seen the rest.
        wait_for_copy(&lists->seen[team], listed & 1);
        listed += 1;
        receive(&state->told[buffer], last / BUFFERS & 1);
        row.threshold = bound_of(state->maxima[buffer]);
        lanes = note_lanes(row.threshold);
        if (lane == 0) arrive(&lists->noted[team]);
#pragma unroll
        for (u32 i = 0; i < KEPT; ++i) kept_at[i] = vector_at(i * 32 + lane, lanes);
      }
      if (use) receive(&state->freed[to], (use - 1) & 1);
      row.to = address_in(own_at, to);
      row.delivered = address_in(delivered_at, to);
      row.end = slice + shape.room < plan.limit ? slice + shape.room : plan.limit;
      if (masked) {
        const u32 of_team = turn >> (shape.teams - 1), place = of_team & (shape.masks - 1), words = batch.mask_words * 32;
        wait_for_copy(&state->masked[team][place], (of_team & shape.masks) != 0);
        row.mask = mask_memory(shape, team, place);
        row.end = row.end < words ? row.end : words;
      }
      RingSlot leaves = at;
      auto leave = [&] {
        __syncwarp();
        if (lane == 0) arrive(&state->weighed[team][leaves.slot]);
        leaves.advance(slots);
      };
#pragma unroll 1
      for (u32 stage = 0, first = slice; stage < stages; ++stage, at.advance(slots), first += stage_ids) {
        wait_for_copy(&state->arrived[team][at.slot], at.parity);
        if (lanes) {
          const Word *const memory = ring + at.slot * stage_ids;
          const u32 chunk = shape.chunk_of(stage);
#pragma unroll
          for (u32 i = 0; i < KEPT; ++i)
            if (i * 32 < lanes * OF_STAGE) send_tokens(kept_at[i], memory, chunk, first, row);
#pragma unroll 1
          for (u32 i = KEPT * 32; i < lanes * OF_STAGE; i += 32) send_tokens(vector_at(i + lane, lanes), memory, chunk, first, row);
        }
        if (!masked) leave();
      }
      if (masked)
        for (u32 stage = 0; stage < stages; ++stage) leave();
      if (lane == 0) send_u64(address_in(told_at, to), row.count, address_in(shared_address(&state->summed), to));
    }
  }
};

// The warps that finish rows, cut or not.
template <u32 DTYPE, Form FORM>
struct ListFinisher : Finisher<DTYPE, FORM> {
  using F = Finisher<DTYPE, FORM>;
  using P = typename F::P;
  using typename F::Known;
  using F::batch, F::shape, F::turns, F::state, F::block, F::thread, F::sync, F::FINISH_THREADS;
  const Whole &whole;
  Lists *lists;

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    F::prepare();
    if (thread() == 0) init_barrier(&lists->delivered, 1);
  }
  // What all warps have told of a row, to every thread.
  struct Summary {
    u64 total, raw_mass;
    u32 there, listed;
  };
  // The same, with the list brought together; more than LIST_MOST are listed if not all had a place. After it nothing of what was told is read. `use`: rows before that had a list.
  __device__ __forceinline__ Summary sum_up(bool raw, u32 use) const {
    static_assert(ROW_WARPS == FINISH_THREADS && RUNS_AT_ONCE % 4 == 0);
    const u64 *const messages = draw_messages();
    const u32 t = thread(), lane = t % 32, warp = t / 32, each = shape.runs_of_lane() / LIST_FINISH_WARPS;
    u64 mass = 0;
#pragma unroll 1
    for (u32 i = 0; i < each; i += 4) {
      const ulonglong2 *const runs = reinterpret_cast<const ulonglong2 *>(&messages[DrawShape::run_at(t * each + i)]);
      mass += (runs[0].x + runs[0].y) + (runs[1].x + runs[1].y);
    }
    const bool tells = t < shape.warps();
    const u64 of_warp = DeviceWarp{}.sum(mass);
    const u32 there = __reduce_add_sync(~0u, tells ? static_cast<u32>(messages[shape.there_at() + t]) : 0);
    if (raw) {
      const u64 raw_of_warp = DeviceWarp{}.sum(tells ? messages[shape.raw_at() + t] : 0);
      if (lane == 0) lists->masses[1][warp] = raw_of_warp;
    }
    if (lane == 0) {
      lists->masses[0][warp] = of_warp;
      lists->there[warp] = there;
    }
    // A lane for each lister, then so many threads that bring together what it has sent.
    constexpr u32 SHARE = FINISH_THREADS / SENDERS_MOST;
    static_assert(SENDERS_MOST <= 32);
    const u32 told = lane < shape.senders() ? static_cast<u32>(lists->told[lane]) : 0, room = shape.places, own = told < room ? told : room;
    u32 through = own;
#pragma unroll
    for (u32 step = 1; step < SENDERS_MOST; step <<= 1) {
      const u32 other = __shfl_up_sync(~0u, through, step);
      through += lane >= step ? other : 0;
    }
    const u32 all = __shfl_sync(~0u, through, SENDERS_MOST - 1), count = __shfl_sync(~0u, own, t / SHARE), from = __shfl_sync(~0u, through, t / SHARE) - count;
    bool crowded = __any_sync(~0u, told > room);
    if (t == 0) arrive_expecting(&lists->delivered, all * static_cast<u32>(sizeof(u64)));
    receive(&lists->delivered, use & 1);
    crowded |= all > LIST_MOST;
    if (!crowded) {
#pragma unroll 1
      for (u32 i = t % SHARE; i < count; i += SHARE) {
        const u64 place = lists->sent[t / SHARE * room + i];
        lists->places[from + i] = place;
        lists->keys[from + i] = sort_key(place, P::SIZE == 2);
        lists->tokens[from + i].place = 0;
      }
      if (t < Lists::AT_ONCE) lists->keys[all + t] = 0;
    }
    sync();
    Summary sums{0, 0, 0, crowded ? LIST_MOST + 1 : all};
#pragma unroll
    for (u32 i = 0; i < LIST_FINISH_WARPS; ++i) {
      sums.total += lists->masses[0][i];
      if (raw) sums.raw_mass += lists->masses[1][i];
      sums.there += lists->there[i];
    }
    return sums;
  }
  // Sorts the list, descending, by counting, and weighs it.
  __device__ __forceinline__ void sort(const Weighing &w, u32 count) const {
    constexpr u32 AT_ONCE = Lists::AT_ONCE;
    const u32 t = thread(), padded = (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
#pragma unroll 1
    for (u32 i = t; i < count; i += FINISH_THREADS) {
      const u32 key = lists->keys[i];
      u32 before[2] = {0, 0};
#pragma unroll 1
      for (u32 first = 0; first < padded; first += AT_ONCE) {
#pragma unroll
        for (u32 j = 0; j < AT_ONCE; j += 4) {
          const uint4 others = *reinterpret_cast<const uint4 *>(&lists->keys[first + j]);
          before[0] += others.x > key;
          before[1] += others.y > key;
          before[0] += others.z > key;
          before[1] += others.w > key;
        }
      }
      const u64 place = lists->places[i];
      lists->tokens[before[0] + before[1]] = Listed{place, w.q(logit_at(place))};
    }
    sync();
    // Tokens of one key come to one place, and leave another as it was.
    bool lost = false;
#pragma unroll 1
    for (u32 i = t; i < count; i += FINISH_THREADS) lost |= lists->tokens[i].place == 0;
    if (!F::sync_or(lost)) return;
#pragma unroll 1
    for (u32 i = t; i < count; i += FINISH_THREADS) {
      const u64 place = lists->places[i];
      u32 before = 0;
#pragma unroll 4
      for (u32 j = 0; j < count; ++j) before += lists->places[j] > place;
      lists->tokens[before] = Listed{place, w.q(logit_at(place))};
    }
    sync();
  }
  // Of the sorted list: how many tokens come before what all before them suffices; 0: the list does not suffice. Afterwards `places` has the weights of beginnings.
  __device__ __forceinline__ u32 cut(const Until &until, u32 count) const {
    const u32 t = thread(), lane = t % 32, warp = t / 32;
    u64 weighed = 0;
    u32 kept = 0;
#pragma unroll 1
    for (u32 first = 0; first < count; first += FINISH_THREADS) {
      const u32 i = first + t;
      const u64 own = i < count ? lists->tokens[i].weight : 0, through = prefix_sum(own);
      if (lane == 31) state->of_warps[warp] = through;
      sync();
      u64 before = weighed + through - own;
#pragma unroll
      for (u32 other = 0; other < LIST_FINISH_WARPS; ++other) {
        before += other < warp ? state->of_warps[other] : 0;
        weighed += state->of_warps[other];
      }
      if (i < count) lists->places[i] = before + own;
      const u32 passing = __popc(__ballot_sync(~0u, i < count && (i == 0 || !until(before))));
      if (lane == 0) lists->passing[warp] = passing;
      sync();
#pragma unroll
      for (u32 other = 0; other < LIST_FINISH_WARPS; ++other) kept += lists->passing[other];
    }
    return until(weighed) ? kept : 0;
  }
  // How many of the list the row keeps, once it is sorted; 0: more.
  __device__ __forceinline__ u32 kept_by_mass(const Known &row, const Summary &sums, u64 threshold, u32 least) const {
    const u32 count = sums.listed;
    if (count > LIST_MOST) return 0;
    sort(row.w, count);
    const u32 kept = cut(Until::reaches(sums.total, threshold), count);
    if (!kept || (least > count && count < sums.there)) return 0;
    return kept >= least ? kept : least < count ? least : count;
  }
  // The row's token, of a run of the sorted list before which nothing weighs; tell(outcome, logit, mass) adds what else is told of it.
  template <class T>
  __device__ __forceinline__ void draw_run(const Known &row, const Summary &sums, u32 first, u32 end, T tell) const {
    const u64 mass = lists->places[end - 1], target = mulhi64(row.uniform, mass);
#pragma unroll 1
    for (u32 i = first + thread(); i < end; i += FINISH_THREADS) {
      const Listed own = lists->tokens[i];
      const u32 id = id_at(own.place);
      u64 before = 0;
#pragma unroll 4
      for (u32 j = first; j < end; ++j) {
        const Listed other = lists->tokens[j];
        before += id_at(other.place) < id ? other.weight : 0;
      }
      if (target < before || target - before >= own.weight) continue;
      Outcome outcome;
      outcome.token = id;
      outcome.kept = end - first;
      outcome.logprob = processed_logprob(own.weight, mass);
      tell(outcome, logit_at(own.place), mass);
      batch.out[row.index] = result(outcome, F::raw_sums(row, sums.raw_mass, &id), row.r);
    }
  }
  // `listed`: rows before that had a list.
  __device__ __forceinline__ void finish(u32 turn, u32 use, u32 &listed) const {
    const Known row = F::learn(turn, use, [&](const Known &known) {
      // Of a row that is drawn from as a whole, whose edits are made once more where the draw falls.
      if constexpr (edits_tokens(FORM)) {
        if (known.plan.edited && known.plan.kind == SlicePlan::ALL) touch_edits(edits_of(shape)->plans[turn]);
      }
    });
    const bool cut = row.plan.kind == SlicePlan::MASS;
    if (row.status != NUCLEUS_OK || !cut) {
      // Of a row that cannot be weighed nothing of the list is needed, but it must have come.
      if (cut) sum_up(false, listed);
      if constexpr (edits_tokens(FORM)) decide_edited(row, turn);
      else F::decide(row);
      sync();  // all have read what was told
      F::release(turn);
    } else {
      const Description &d = state->description;
      const u64 threshold = d.program.ops[d.program.len - 2].threshold;
      const u32 least = d.config.min_keep ? d.config.min_keep : 1;
      const Summary sums = sum_up(row.plan.flags & RowPlan::RAW, listed);
      F::release(turn);
      if (const u32 kept = kept_by_mass(row, sums, threshold, least)) draw_run(row, sums, 0, kept, [](Outcome &, float, u64) {});
      else leave_many(turn, row, sums, threshold, least);
    }
    listed += cut;
  }
  // The token of a row that is drawn from as a whole, some of whose tokens may be edited.
  __device__ __forceinline__ void decide_edited(const Known &row, u32 turn) const {
    if (!row.plan.edited) return F::decide(row);
    const EditPlan &plan = edits_of(shape)->plans[turn];
    // Of the chunk that the draw falls in: nobody sends tokens of this row.
    static_assert(sizeof(lists->sent) >= CHUNK * (sizeof(u32) + sizeof(float)));
    u32 *const notes = reinterpret_cast<u32 *>(lists->sent);
    float *const biases = reinterpret_cast<float *>(notes + CHUNK);
    F::decide(row, [&](const Fall &fall) {
      note_run(plan, fall, notes, biases);
      return [&](float x, u32 e) {
        const u32 at = thread() * F::EACH + e;
        if (at >= CHUNK) return x;
        return Notes::edited(x, biases[at], notes[at], plan);
      };
    });
  }
  // Has edits brought near while what the row weighs is waited for.
  __device__ __forceinline__ void touch_edits(const EditPlan &plan) const {
    u32 touched[3];
    EditLister::touch(plan.window, plan.places, thread(), touched[0]);
    EditLister::touch(plan.bias, plan.bias_words(), thread(), touched[1]);
    EditLister::touch(plan.ban, plan.bans, thread(), touched[2]);
  }
  // Edits of a run of a row's tokens. Barriers.
  __device__ __forceinline__ void note_run(const EditPlan &plan, const Fall &fall, u32 *notes, float *biases) const {
    const u32 t = thread(), count = fall.end - fall.first;
#pragma unroll 1
    for (u32 i = t; i < CHUNK; i += FINISH_THREADS) {
      notes[i] = 0;
      biases[i] = 0.0f;
    }
    sync();
#pragma unroll 4
    for (u32 i = t; i < plan.places; i += FINISH_THREADS) {
      const u32 at = plan.window[i] - fall.first;
      if (at < count) atomicAdd(&notes[at], (i >= plan.seen_from ? Notes::SEEN : 0) + (i >= plan.counted_from ? Notes::COUNTED : 0));
    }
#pragma unroll 1
    for (u32 i = t; i < plan.biases + plan.bans; i += FINISH_THREADS) {
      const SamplingBias bias = plan.bias_at(i);
      const u32 at = bias.token_id - fall.first;
      if (at >= count) continue;
      if (i < plan.biases) biases[at] = bias.value;
      else atomicAdd(&notes[at], Notes::BANNED);
    }
    sync();
  }
  // Lists a row's edited tokens by the parts of its slices, as Whole has them; returns how many. Barriers.
  __device__ __forceinline__ u32 list_edited(const Known &row, const EditPlan &plan) const {
    // A table in the workspace, of a token's id + 1, and its notes, then the edited logit, below 32 bits.
    constexpr u32 SLOTS = 2048, ID_AT = 32;
    static_assert(SLOTS <= ROW_PLACES && SLOTS > EDITS_ROOM && ROW_WARPS == FINISH_THREADS && sizeof(lists->keys) >= ROW_WARPS * sizeof(u32));
    using Slot = unsigned long long;
    Slot *const table = reinterpret_cast<Slot *>(whole.places + static_cast<u64>(row.index) * ROW_PLACES);
    u32 *const in_part = lists->keys;  // how many tokens of a part, then where they begin
    const Division division{shape.blocks, shape.room, 1};
    const u32 t = thread(), wanted = plan.places + plan.biases + plan.bans;
#pragma unroll 1
    for (u32 slot = t; slot < SLOTS; slot += FINISH_THREADS) table[slot] = 0;
    in_part[t] = 0;
    sync();
    const auto note = [&](u32 id, u32 notes) {
      const Slot own = static_cast<Slot>(id + 1) << ID_AT;
      for (u32 slot = id * 0x9E3779B1u >> 21;; slot = (slot + 1) % SLOTS) {
        const Slot found = atomicCAS(&table[slot], Slot{0}, own);
        if (found && found >> ID_AT != id + 1) continue;
        atomicAdd(&table[slot], Slot{notes});
        return;
      }
    };
#pragma unroll 1
    for (u32 i = t; i < wanted; i += FINISH_THREADS) {
      const bool of_window = i < plan.places;
      const u32 id = of_window ? plan.window[i] : plan.bias_at(i - plan.places).token_id;
      if (id < row.r.limit) note(id, of_window ? (i >= plan.seen_from ? Notes::SEEN : 0) + (i >= plan.counted_from ? Notes::COUNTED : 0) : i - plan.places < plan.biases ? Notes::BIASED : Notes::BANNED);
    }
    sync();
    constexpr u32 EACH = SLOTS / FINISH_THREADS;
    uint16_t at[EACH];  // among its part's
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      Slot *const slot = &table[e * FINISH_THREADS + t];
      if (!*slot) continue;
      const u32 id = static_cast<u32>(*slot >> ID_AT) - 1, notes = static_cast<u32>(*slot);
      const float edited = Notes::edited(load_logit(row.r, id), notes & Notes::BIASED ? bias_of(plan, id) : 0.0f, notes, plan);
      *slot = (*slot >> ID_AT << ID_AT) | bits_of(edited);
      at[e] = static_cast<uint16_t>(atomicAdd(&in_part[Part::of(division, batch.row_len, id)], 1));
    }
    sync();
    const u32 own = in_part[t];
    const u64 through = prefix_sum(own);
    if (t % 32 == 31) state->of_warps[t / 32] = through;
    sync();
    u32 before = static_cast<u32>(through) - own, all = 0;
#pragma unroll
    for (u32 warp = 0; warp < LIST_FINISH_WARPS; ++warp) {
      before += warp < t / 32 ? static_cast<u32>(state->of_warps[warp]) : 0;
      all += static_cast<u32>(state->of_warps[warp]);
    }
    in_part[t] = before;
    whole.edits[static_cast<u64>(row.index) * ROW_WARPS + t] = before << 16 | own;
    sync();
    Changed *const changed = whole.changed + static_cast<u64>(row.index) * ROW_EDITS;
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      const Slot slot = table[e * FINISH_THREADS + t];
      if (!slot) continue;
      const u32 id = static_cast<u32>(slot >> ID_AT) - 1;
      changed[in_part[Part::of(division, batch.row_len, id)] + at[e]] = Changed{id, float_of(static_cast<u32>(slot))};
    }
    return all;
  }
  // The bias of a token that has one.
  __device__ __forceinline__ static float bias_of(const EditPlan &plan, u32 id) {
    u32 i = 0;
    while (plan.bias[i].token_id != id) ++i;
    return plan.bias[i].value;
  }
  // Leaves a row of which top_p keeps many tokens to the launch behind this one.
  __device__ __forceinline__ void leave_many(u32 turn, const Known &row, const Summary &sums, u64 threshold, u32 least) const {
    RowPlan plan{};
    if constexpr (edits_tokens(FORM)) {
      if (row.plan.edited) plan.edited = list_edited(row, edits_of(shape)->plans[turn]);
    }
    if (thread() >= 32) return;
    plan.kind = SlicePlan::MASS;
    plan.temperature = plan_of(state->description).temperature;
    if (thread() == 0) leave(row.index, plan, ManyKept{sums.total, threshold, least, value_of(row.key), F::raw_sums(row, sums.raw_mass, nullptr), false, plan.edited ? shape.room : 0});
  }
  // By a thread.
  __device__ __forceinline__ void leave(u32 index, const RowPlan &plan, const ManyKept &many) const {
    whole.plans[index] = plan;
    whole.many[index] = many;
    batch.out[index].status = MANY_KEPT;
  }
  __device__ __forceinline__ void take_turns() const {
    u32 listed = 0;
#pragma unroll 1
    for (u32 turn = block, use = 0; turn < turns.rows; turn += shape.blocks, ++use) finish(turn, use, listed);
  }
};

}  // namespace nucleus::draw
