// A row's token from the sums of its runs, by a few warps of the block that they were told to.
#pragma once

#include "chain.cuh"
#include "draw.cuh"

namespace nucleus::draw {

constexpr u32 FINISH_BARRIER = 1;

// Where a draw falls: a run of the row.
struct Fall {
  u64 total, target, before;  // before: what weighs all that comes before the run
  u32 first, end;             // ids
};

template <u32 DTYPE, Form FORM>
struct Finisher {
  using P = PartOf<DTYPE>;
  static constexpr u32 FINISHERS = finish_warps(FORM), FINISH_THREADS = 32 * FINISHERS;
  static constexpr u32 WIDTH = P::WIDTH, EACH = 8, VECTORS = EACH / WIDTH;  // EACH: tokens that a thread reads at once

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  u32 block;

  __device__ __forceinline__ static u32 thread() { return threadIdx.x - THREADS; }
  __device__ __forceinline__ static void sync() {
    __syncwarp();  // its lanes arrive together
    asm volatile("bar.sync %0, %1;" ::"n"(FINISH_BARRIER), "n"(FINISH_THREADS) : "memory");
  }
  // The same; whether any thread asks for something.
  __device__ __forceinline__ static bool sync_or(bool asks) {
    u32 any;
    __syncwarp();
    asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbarrier.cta.red.or.pred q, %2, %3, p;\nselp.u32 %0, 1, 0, q;\n}" : "=r"(any) : "r"(static_cast<u32>(asks)), "n"(FINISH_BARRIER), "n"(FINISH_THREADS) : "memory");
    return any;
  }
  __device__ __forceinline__ void expect() const {
    if (thread() == 0) arrive_expecting(&state->summed, shape.told_bytes() + (takes_moments(FORM) ? shape.warps() * static_cast<u32>(sizeof(u64)) : 0));
  }
  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    for (u32 turn = thread(); turn < turns.rows; turn += FINISH_THREADS) init_barrier(&state->planned[turn], 1);
    for (u32 at = thread(); at < shape.raw_at(); at += FINISH_THREADS) draw_messages()[at] = 0;  // some are never told
    if (thread() == 0) {
      init_barrier(&state->summed, 1);
      for (u32 other = 0; other < MAX_BLOCKS; ++other) init_barrier(&state->freed[other], 1);
    }
    __syncwarp();  // racecheck takes a warp's initialisations for those of another lane
    for (u32 turn = thread(); turn < turns.rows; turn += FINISH_THREADS)
      if (turn >= shape.teams) arrive_expecting(&state->planned[turn], sizeof(DrawnPlan) + (smooths(FORM) ? sizeof(SmoothingPlan) : 0) + (edits_tokens(FORM) ? sizeof(EditPlan) : 0));
    expect();
  }

  // Tells a block more of a row's plan, 16 bytes at a time.
  template <class T>
  __device__ __forceinline__ static void tell(const T *to, const T &plan, const u64 *planned, u32 block) {
    static_assert(sizeof(T) % sizeof(uint4) == 0);
    uint4 words[sizeof(T) / sizeof(uint4)];
    memcpy(words, &plan, sizeof(T));
#pragma unroll
    for (u32 i = 0; i < sizeof(T) / sizeof(uint4); ++i)
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address_in(shared_address(to) + i * static_cast<u32>(sizeof(uint4)), block)),
                   "r"(words[i].x), "r"(words[i].y), "r"(words[i].z), "r"(words[i].w), "r"(address_in(shared_address(planned), block))
                   : "memory");
  }
  // Whether a row of a batch that is not of draws alone is decided here.
  __device__ __forceinline__ static bool serves(const RowPlan &row) {
    if (row.kind == SlicePlan::ALL || (lists_tokens(FORM) && row.kind == SlicePlan::MASS && row.flags & RowPlan::DRAWS)) return true;
    switch (row.kind) {
      case SlicePlan::MASS: return cuts_by_weight(FORM) && (takes_moments(FORM) || row.flags & RowPlan::DRAWS);
      case SlicePlan::SURPRISE: return cuts_by_weight(FORM) && takes_moments(FORM);
      case SlicePlan::WARMED: return warms(FORM);
      case SlicePlan::WARMED_MASS: return cuts_by_weight(FORM) && warms(FORM);
      case SlicePlan::SMOOTHED: return smooths(FORM);
      default: return false;
    }
  }
  // What the rows ask for: the teams' first by every block for itself, each of the others by a block for all.
  __device__ __forceinline__ void plan(bool pending) const {
    const Division division{shape.blocks, shape.room, 1};
    const u32 warp = thread() / 32, lane = threadIdx.x % 32;
    static_assert(TEAMS_MOST <= FINISHERS);
#pragma unroll 1
    for (u32 turn = warp < shape.teams ? warp : warp + shape.teams + block * FINISHERS; turn < turns.rows;) {
      SmoothingPlan smoothing{};
      EditPlan editing{};
      RowPlan row;
      if constexpr (edits_tokens(FORM)) row = plan_row_by_warp<by_weight(FORM)>(batch, division, turns.index(turn), pending, &smoothing, PenaltiesAndBiases{&editing});
      else row = plan_row_by_warp<by_weight(FORM)>(batch, division, turns.index(turn), pending, &smoothing);
      if ((lists_tokens(FORM) || !weighs_plainly(FORM)) && !serves(row)) row.kind = SlicePlan::EXACT;
      if (edits_tokens(FORM) && !row.served()) row.edited = 0;
      const bool own = turn < shape.teams;
      if constexpr (edits_tokens(FORM)) {
        EditPlan *const to = &edits_of(shape)->plans[turn];
        if (own && lane == 0) *to = editing;
        if (!own && lane < shape.blocks) tell(to, editing, &state->planned[turn], lane);
      }
      if constexpr (smooths(FORM)) {
        SmoothingPlan *const to = &row_sums_of(shape)->smoothings[turn];
        if (own && lane == 0) *to = smoothing;
        if (!own && lane < shape.blocks) tell(to, smoothing, &state->planned[turn], lane);
      }
      if (own && lane == 0) state->plans[turn].hold(row, &state->planned[turn]);
      if (!own && lane < shape.blocks) state->plans[turn].tell(row, &state->planned[turn], lane);
      turn += own ? shape.teams + block * FINISHERS : shape.blocks * FINISHERS;
    }
  }

  // Leaves rows behind those of the launch to the last one.
  __device__ __forceinline__ void leave_others() const {
#pragma unroll 1
    for (u32 i = blockIdx.x * FINISH_THREADS + thread(); i < shape.left; i += gridDim.x * FINISH_THREADS) {
      const u32 index = turns.batch.row_number(shape.left_at + i);
      if (!(batch.row[index].flags & NUCLEUS_ROW_PADDING)) batch.out[index].status = PENDING;
    }
  }

  __device__ __forceinline__ void describe(u32 index) const {
    constexpr u32 ROW = DescriptionWord::ROW, CONFIG = DescriptionWord::CONFIG, PROGRAM = DescriptionWord::PROGRAM;
    const u32 request = batch.row[index].request;
    const u32 *row = reinterpret_cast<const u32 *>(batch.row + index), *config = reinterpret_cast<const u32 *>(batch.configs + request);
    const u32 *program = reinterpret_cast<const u32 *>(batch.programs + request);
    u32 *to = reinterpret_cast<u32 *>(&state->description);
#pragma unroll
    for (u32 i = thread(); i < ROW + CONFIG + PROGRAM; i += FINISH_THREADS) to[i] = i < ROW ? row[i] : i < ROW + CONFIG ? config[i - ROW] : program[i - ROW - CONFIG];
    sync();
    Description &d = state->description;
    if (d.row.flags & NUCLEUS_ROW_SLOT) {
      if (thread() == 0) read_slot(batch.slots[d.row.slot], d.config, d.row);
      sync();
    }
  }

  // The run in which the draw falls, to every lane; from the sums of all runs.
  __device__ __forceinline__ Fall find(u64 uniform) const {
    const u64 *sums = draw_messages();
    const u32 lane = threadIdx.x % 32;
    const u32 each = shape.runs_of_lane();
    u64 of_lane = 0;
#pragma unroll 1
    for (u32 first = 0; first < each; first += RUNS_AT_ONCE) {
      u64 pairs[RUNS_AT_ONCE / 2];
#pragma unroll
      for (u32 i = 0; i < RUNS_AT_ONCE / 2; ++i) {
        const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&sums[DrawShape::run_at(lane * each + first) + 2 * i]);
        pairs[i] = pair.x + pair.y;
      }
#pragma unroll
      for (u32 i = 0; i < RUNS_AT_ONCE / 2; ++i) of_lane += pairs[i];
    }
    const u64 through = prefix_sum(of_lane);
    Fall fall;
    fall.total = __shfl_sync(~0u, through, 31);
    fall.target = mulhi64(uniform, fall.total);
    const u32 from = (__ffs(__ballot_sync(~0u, through > fall.target)) - 1) & 31;
    const u64 before = __shfl_sync(~0u, through - of_lane, from);
    // A lane for each of that lane's runs.
    const u64 own = lane < each ? sums[DrawShape::run_at(from * each + lane)] : 0, upto = before + prefix_sum(own);
    const u32 chosen = (__ffs(__ballot_sync(~0u, upto > fall.target)) - 1) & 31;
    fall.before = __shfl_sync(~0u, upto - own, chosen);
    // Which that is: the powers of two that runs are shared out by.
    const u32 run = from * each + chosen, bits_of_stage = __ffs(shape.members) - 1, bits_of_block = bits_of_stage + __ffs(shape.sums) - 1;
    const u32 slice = (run >> bits_of_block) * shape.room, stage = run >> bits_of_stage & (shape.sums - 1), member = run & (shape.members - 1);
    fall.first = slice + stage * shape.stage + member * shape.chunk_of(stage);
    const u32 end = fall.first + shape.chunk_of(stage), end_of_slice = slice + shape.room;
    fall.end = end < end_of_slice ? end : end_of_slice;
    return fall;
  }

  // EACH tokens from `id` on; -inf from `end` on, and where a mask forbids them.
  __device__ __forceinline__ void read(const Request &r, u32 id, u32 end, float (&x)[EACH]) const {
    static_assert(EACH <= 32);
    u32 allowed = ~0u;
    if (r.mask) {
      const u32 at = id / 32, word = at < r.mask_words ? r.mask[at] : 0, next = at + 1 < r.mask_words ? r.mask[at + 1] : 0;
      allowed = __funnelshift_r(word, next, id % 32);
    }
    if (!widens(FORM) && reinterpret_cast<uintptr_t>(r.logits) % 16 == 0 && id + EACH <= batch.row_len) {
      const char *from = static_cast<const char *>(r.logits) + static_cast<u64>(id) * P::SIZE;
#pragma unroll
      for (u32 v = 0; v < VECTORS; ++v) P::widen(*reinterpret_cast<const uint4 *>(from + 16 * v), x + v * WIDTH);
    } else {
#pragma unroll 1
      for (u32 e = 0; e < EACH; ++e) {
        const float one = id + e < end ? load_logit(r, id + e) : -infinity();
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) x[i] = i == e ? one : x[i];
      }
    }
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) x[e] = id + e < end && allowed >> e & 1 ? x[e] : -infinity();
  }

  // The weights of some tokens.
  __device__ __forceinline__ static void weigh(const Weighing &w, const DoubleAddends &addends, const float (&x)[EACH], u64 (&q)[EACH]) {
    if (addends.serve) {
#pragma unroll
      for (u32 e = 0; e < EACH; ++e) {
        DoubleAddends::Sum sum = addends.none();
        addends.add(x[e], sum);
        q[e] = addends.taken(sum);
      }
    } else {
#pragma unroll
      for (u32 e = 0; e < EACH; ++e) q[e] = w.q(x[e]);
    }
  }
  // The token, of the run in which it is; one thread calls done(id, weight). `meanwhile` is called while logits are on their way; `logit`: what is weighed, from the logit that there is, and which of
  // the thread's tokens it is of.
  template <class L, class M, class D>
  __device__ __forceinline__ void draw_from(const Request &r, const Weighing &w, const Fall &fall, L logit, M meanwhile, D done) const {
    static_assert(CHUNK <= EACH * FINISH_THREADS);
    const u32 lane = threadIdx.x % 32, end = fall.end < r.limit ? fall.end : r.limit, id = fall.first + thread() * EACH;
    float x[EACH];
    read(r, id, end, x);
    const DoubleAddends addends(w);
    meanwhile();
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) x[e] = logit(x[e], e);
    u64 q[EACH], upto[EACH];
    weigh(w, addends, x, q);
    upto[0] = q[0];
#pragma unroll
    for (u32 e = 1; e < EACH; ++e) upto[e] = upto[e - 1] + q[e];
    const u64 mine = upto[EACH - 1], through = prefix_sum(mine);
    if (lane == 31) state->of_warps[thread() / 32] = through;
    sync();
    u64 before = fall.before + through - mine;
#pragma unroll
    for (u32 i = 0; i + 1 < FINISHERS; ++i) before += i < thread() / 32 ? state->of_warps[i] : 0;
    const u64 rest = fall.target - before;
    if (fall.target < before || rest >= mine) return;
    u32 chosen = 0;
    u64 weight = q[0];
#pragma unroll
    for (u32 e = 0; e + 1 < EACH; ++e) {
      const bool passes = rest >= upto[e];
      chosen += passes;
      weight = passes ? q[e + 1] : weight;
    }
    done(id + chosen, weight);
  }

  // What is known of a row before it is decided.
  struct Known {
    u32 index, key, raw_key;  // keys: of the largest logit, and before temperatures and masks
    RowPlan plan;
    Request r;
    u64 uniform;
    Weighing w;
    u32 status;
  };
  // `use`: rows that this block has finished before. `planned`: called when the row's plan is there.
  __device__ __forceinline__ Known learn(u32 turn, u32 use) const {
    return learn(turn, use, [](const Known &) {});
  }
  template <class P>
  __device__ __forceinline__ Known learn(u32 turn, u32 use, P planned) const {
    Known row;
    row.index = turns.index(turn);
    sync();  // the description of the row before is read no more
    describe(row.index);
    receive(&state->planned[turn], 0);
    row.plan = state->plans[turn].plan();
    row.r = request_of(batch, row.index, state->description.row, state->description.config, state->description.program);
    row.uniform = uniform_of(row.r);
    planned(row);
    receive(&state->summed, use & 1);
    expect();
    const u64 largest = draw_messages()[shape.largest_at()];
    row.key = static_cast<u32>(largest);
    row.raw_key = static_cast<u32>(largest >> 32);
    row.status = NUCLEUS_OK;
    if (!begin_weighing_by(row.plan.s, value_of(row.key), row.w)) row.status = NUCLEUS_OVERFLOW;
    if (!row.key) row.status = NUCLEUS_EMPTY;
    if (row.key >= INFINITE) row.status = row.key == INFINITE ? NUCLEUS_OVERFLOW : NUCLEUS_NAN;
    if (!row.plan.served() || (edits_tokens(FORM) && row.plan.edited && row.key >= INFINITE)) row.status = PENDING;
    return row;
  }
  // What else warps have told of a row.
  struct Rest {
    u64 raw_mass = 0;
    u32 there = 0;
  };
  __device__ __forceinline__ Rest read_rest(const Known &row) const {
    Rest rest;
    u64 mass = 0;
#pragma unroll 1
    for (u32 warp = threadIdx.x % 32; warp < shape.warps(); warp += 32) {
      mass += draw_messages()[shape.raw_at() + warp];
      rest.there += static_cast<u32>(draw_messages()[shape.there_at() + warp]);
    }
    rest.there = __reduce_add_sync(~0u, rest.there);
    if (row.plan.flags & RowPlan::RAW) rest.raw_mass = DeviceWarp{}.sum(mass);
    return rest;
  }
  // What log-probabilities of the row as it came start from; `id`: that of this token alone is asked for.
  __device__ __forceinline__ RawSums raw_sums(const Known &row, u64 mass, const u32 *id) const {
    RawSums raw;
    raw.wanted = row.plan.flags & RowPlan::RAW;
    Weighing unscaled;
    if (!raw.wanted || !row.raw_key || row.raw_key >= INFINITE || !begin_weighing(value_of(row.raw_key), 1.0f, unscaled)) return raw;
    unscaled.sums.total = mass;
    return id ? raw_sums_for(value_of(row.raw_key), unscaled, load_logit(row.r, *id) + 0.0f) : raw_sums_of(value_of(row.raw_key), unscaled);
  }
  // The token of a row that is drawn from as a whole, or why there is none.
  __device__ __forceinline__ void decide(const Known &row) const {
    decide(row, [](const Fall &) { return [](float x, u32) { return x; }; });
  }
  // `logit_in(fall)`: as of draw_from, where the draw falls; asked for if it does.
  template <class L>
  __device__ __forceinline__ void decide(const Known &row, L logit_in) const {
    const Fall fall = find(row.uniform);
    SampledToken *const out = batch.out + row.index;
    Rest rest;
    if (row.status == NUCLEUS_OK) {
      draw_from(row.r, row.w, fall, logit_in(fall), [&] { rest = read_rest(row); }, [&](u32 id, u64 q) {
        Outcome outcome;
        outcome.token = id;
        outcome.kept = rest.there;
        if (!(row.plan.flags & RowPlan::RAW)) outcome.logprob = processed_logprob(q, fall.total);
        *out = result(outcome, raw_sums(row, rest.raw_mass, &id), row.r);
      });
    } else if (thread() == 0 && !(row.plan.flags & RowPlan::SKIPPED)) {
      Outcome failed;
      failed.status = row.status;
      if (row.status == PENDING) out->status = PENDING;
      else *out = result(failed, RawSums{}, row.r);
    }
  }
  // Tells all blocks that what was told has been read, after a barrier, if they will tell more.
  __device__ __forceinline__ void release(u32 turn) const {
    if (turn + shape.blocks < turns.rows && thread() < shape.blocks)
      asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in(shared_address(&state->freed[block]), thread())) : "memory");
  }
  __device__ __forceinline__ void take_turns() const {
#pragma unroll 1
    for (u32 turn = block, use = 0; turn < turns.rows; turn += shape.blocks, ++use) {
      decide(learn(turn, use));
      sync();  // all have read what was told
      release(turn);
    }
  }
};

}  // namespace nucleus::draw
