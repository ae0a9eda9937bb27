// top_p and min_p that keep more tokens than a list holds, then the draw, by the blocks of a group.
//
// A sample of the row tells between which two logits the cut of top_p lies, most likely. One sweep over the row sums the weights above both by runs of ids, and
// lists the tokens between them, whose weights are then summed by steps of the logit, and those of one step in order. The sample is only a guess: where
// the sums say that the cut lies elsewhere, the sweep is repeated. min_p cuts at a logit that is known: one sweep.
#pragma once

#include "cut_list.cuh"

namespace nucleus {

constexpr float BRACKET = 0.43f * LIST_CAPACITY;  // tokens to each side of the guess, at most
constexpr float DEVIATIONS = 6.0f, SAMPLED_MORE = 10.0f;  // of the sample's rank, and tokens of the sample beside them, to each side
constexpr u32 SWEEPS_MOST = 6;

// Counts a logit if it is `high` at least; `nothing` if it is not.
__device__ __forceinline__ float counted(float x, float high, float nothing, u32 &kept) {
  float y;
  asm("{\n.reg .pred p;\nsetp.ge.f32 p, %2, %3;\n@p add.u32 %0, %0, 1;\nselp.f32 %1, %2, %4, p;\n}" : "+r"(kept), "=f"(y) : "f"(x), "f"(high), "f"(nothing));
  return y;
}

// Of a lane's tokens of a chunk, those between `low` and `high` are listed, those above counted and weighed. `id`: of the first.
template <u32 N>
__device__ __forceinline__ void sweep_eight(const float4 &v, const float4 &w, u32 id, float low, float high, const DoubleAddends &addends, DoubleAddends::Sum (&sums)[2], u32 &kept) {
  Shared *sh = shared_state();
  const float x[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
  u32 between = 0, to = LIST_CAPACITY;
#pragma unroll
  for (u32 e = 0; e < 8; ++e)
    if (x[e] >= low && x[e] < high) between |= 1u << e;
  if (between) to = atomicAdd(&sh->listed, __popc(between));
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    float y[4];
#pragma unroll
    for (u32 e = 0; e < 4; ++e) y[e] = counted(x[4 * half + e], high, addends.nothing(), kept);
    addends.add_four(y, sums);
  }
  if (to > LIST_CAPACITY - 8) return;
#pragma unroll 1
  for (; between; between &= between - 1, ++to) {
    const u32 e = __ffs(between) - 1;
    const float4 four = e & 4 ? w : v;
    const float one = e & 2 ? (e & 1 ? four.w : four.z) : (e & 1 ? four.y : four.x);
    sh->list[to] = place_of(one + 0.0f, id + e / 4 * STEP + e % 4);
  }
}

// Sums the weights of tokens from `high` up by runs, counts them, and lists those from `low` up to it; every block of the group its own runs. None from `high` up need be raised.
// A chunk is asked for while the one before it is looked at, in any case, so that nothing waits for it sooner.
template <u32 N, Reading R>
__device__ __noinline__ void sweep_runs() {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  constexpr u32 NONE = ~0u;
  u32 run = threadIdx.x / 32, kept = 0;
  if (run >= room->runs_here) return;
  const u32 lane = threadIdx.x % 32, full = row.limit / CHUNK;
  const char *const logits = row.logits;
  const DoubleAddends addends(room->w);
  const float low = room->low, high = room->high;
  const bool changes = row.edited || row.mask, reads = R != ANY && full;
  auto first_of = [&](u32 of) { return (room->first_run + of) * room->each; };
  auto end_from = [&](u32 first) { return first + room->each < room->chunks ? first + room->each : room->chunks; };
  uint4 next[2] = {};
  auto fetch = [&](u32 chunk) {
    if (!reads) return;
    const u32 id = (chunk < full ? chunk : full - 1) * CHUNK + lane * 4;
    next[0] = ChunkedRow::words_at<R>(logits, id);
    next[1] = ChunkedRow::words_at<R>(logits, id + STEP);
  };
  u32 chunk = first_of(run), last = end_from(chunk);
  fetch(chunk);
  DoubleAddends::Sum sums[2] = {addends.none(), addends.none()};
#pragma unroll 1
  for (;;) {
    float4 v = ChunkedRow::four_in<R>(next[0]), w = ChunkedRow::four_in<R>(next[1]);
    u32 after = chunk + 1;
    const bool ends = after == last;
    if (ends) after = run + N / 32 < room->runs_here ? first_of(run + N / 32) : NONE;
    fetch(after);
    const u32 id = chunk * CHUNK + lane * 4;
    if (__builtin_expect(R == ANY || chunk >= full, 0)) {
      v = row.four_or_less<R>(id);
      w = row.four_or_less<R>(id + STEP);
    }
    if (__builtin_expect(changes, 0)) {
      const u32 edits = row.edited ? room->edits[chunk] : 0;
      float *const staged = room->staged[threadIdx.x / 32];
      v = settled(row, v, chunk * 2, edits, staged);
      w = settled(row, w, chunk * 2 + 1, edits, staged);
    }
    sweep_eight<N>(v, w, id, low, high, addends, sums, kept);
    if (ends) {
      // Of a lane, 40 tokens' weights at most: what lies above 24 bits of them has 26.
      const u64 sum = DeviceWarp{}.sum_of_48_bits(addends.taken(sums[0]) + addends.taken(sums[1]));
      if (lane == 0) room->runs[run] = sum;
      if (after == NONE) break;
      run += N / 32;
      last = end_from(after);
      sums[0] = sums[1] = addends.none();
    }
    chunk = after;
  }
  const u32 of_warp = __reduce_add_sync(~0u, kept);
  if (lane == 0) atomicAdd(&sh->kept, of_warp);
}

// By how it is read.
template <u32 N>
__device__ __forceinline__ void sweep_row(Reading reading) {
  switch (reading) {
    case F32: sweep_runs<N, F32>(); break;
    case F16: sweep_runs<N, F16>(); break;
    case BF16: sweep_runs<N, BF16>(); break;
    default: sweep_runs<N, ANY>();
  }
}

// Four logits of a row, however it is read, where it may end within them.
__device__ __forceinline__ float4 four_of(const ChunkedRow &row, Reading reading, u32 id) {
  switch (reading) {
    case F32: return row.four_or_less<F32>(id);
    case F16: return row.four_or_less<F16>(id);
    case BF16: return row.four_or_less<BF16>(id);
    default: return row.four_or_less<ANY>(id);
  }
}

// Which of the group's blocks the draw falls in, and its target there; false: another than this.
template <u32 N>
__device__ __forceinline__ bool falls_here(u64 &target, u64 &total) {
  const CutRoom<N> *room = CutRoom<N>::here();
  const u32 lane = threadIdx.x % 32, blocks = CutRoom<N>::BLOCKS > 1 ? room->group.blocks : 1, block = CutRoom<N>::BLOCKS > 1 ? room->group.block : 0;
  const u64 own = lane < blocks ? room->block_mass[lane] : 0, inclusive = prefix_sum<MAX_BLOCKS>(own);
  total = __shfl_sync(~0u, inclusive, blocks - 1);
  target = mulhi64(room->uniform, total);
  const u64 through = __shfl_sync(~0u, inclusive, block), mass = __shfl_sync(~0u, own, block);
  target -= through - mass;  // below 0 is above all
  return target < mass;
}

// The run of this block's that a target falls in, by each warp; the target is then one within it.
template <u32 N>
__device__ __forceinline__ u32 find_run(u64 &target) {
  const CutRoom<N> *room = CutRoom<N>::here();
  const u32 lane = threadIdx.x % 32, runs = room->runs_here, each = (runs + 31) / 32, begin = lane * each;
  u64 own = 0;
  UNROLL_NOT
  for (u32 i = begin; i < begin + each && i < runs; ++i) own += room->runs[i];
  u64 at = target - (prefix_sum(own) - own);
  const u32 from = __ffs(__ballot_sync(~0u, at < own)) - 1;
  u32 run = begin;
  if (lane == from)
    UNROLL_NOT
    for (; at >= room->runs[run]; ++run) at -= room->runs[run];
  target = __shfl_sync(~0u, at, from);
  return room->first_run + __shfl_sync(~0u, run, from);
}

// The edits of a run's tokens, of which each thread has four. Every thread of the block.
template <u32 N>
__device__ __forceinline__ void edit_run(float4 &v, u32 first, u32 count) {
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  float *const staged = room->staged[0];
  const u32 t = threadIdx.x, last = (first + count < row.limit ? first + count : row.limit) - 1;
  const u32 from = row.edits[Part::of(row.division, row.row_len, first)] >> 16, to = row.edits[Part::of(row.division, row.row_len, last)];
  if (4 * t < count) reinterpret_cast<float4 *>(staged)[t] = v;
  sync_block();
  UNROLL_NOT
  for (u32 i = from + t; i < (to >> 16) + (to & 0xFFFF); i += N) {
    const Changed c = row.changed[i];
    if (c.id - first < count) staged[c.id - first] = c.logit;
  }
  sync_block();
  if (4 * t < count) v = reinterpret_cast<const float4 *>(staged)[t];
}

// Draws from the group's runs, over the places from Shared's `told` up, as many as the room has as `kept`: the block that it falls in. A thread has four tokens of the run.
template <u32 N>
__device__ __noinline__ void draw_from_runs() {
  static_assert(4 * N >= CutRoom<N>::RUN_MOST * CHUNK);
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const DoubleAddends addends(room->w);
  u64 target, total;
  if (!falls_here<N>(target, total)) return;
  const u32 t = threadIdx.x, count = room->each * CHUNK, first = find_run<N>(target) * count, id = first + 4 * t;
  const float out = -infinity();
  float4 v = make_float4(out, out, out, out);
  if (4 * t < count) v = four_of(row, room->reading, id);
  if (row.edited) edit_run<N>(v, first, count);
  if (id < row.limit) v = row.masked(v, id);
  const u64 lowest = sh->told;
  const float x[4] = {v.x, v.y, v.z, v.w};
  u64 q[4];
#pragma unroll
  for (u32 e = 0; e < 4; ++e) q[e] = x[e] > out && place_of(x[e] + 0.0f, id + e) >= lowest ? weight_of(addends, x[e]) : 0;
  const u64 own = (q[0] + q[1]) + (q[2] + q[3]), through = prefix_sum(own);
  if (t % 32 == 31) sh->part[t / 32][0] = through;
  sync_block();
  u64 at = target - (before_warp<N>(0) + through - own);
  if (at >= own) return;
  u32 e = 0;
  u64 drawn = q[0];
#pragma unroll
  for (u32 i = 0; i < 3; ++i) {
    const bool passed = e == i && at >= q[i];
    at -= passed ? q[i] : 0;
    e += passed;
    if (passed) drawn = q[i + 1];
  }
  Outcome outcome;
  outcome.token = id + e;
  outcome.kept = room->kept;
  outcome.logprob = processed_logprob(drawn, total);
  const RowCall call{room->index, 0, RawSums{}};
  *call.out() = result(outcome, room->many.raw, call.request());
}

// Where the list's lowest logit may be any: the group's lowest that is listed, for its steps. Every thread.
template <u32 N>
__device__ __noinline__ void find_lowest() {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  BlockGroup &group = room->group;
  u32 least = ~0u;
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < listed_here(); i += N) {
    const u32 key = static_cast<u32>(sh->list[i] >> 32);
    least = key < least ? key : least;
  }
  least = __reduce_min_sync(~0u, least);
  if (threadIdx.x % 32 == 0) atomicMin(&room->least_key, least);
  sync_block();
  if (group.blocks == 1) {
    if (threadIdx.x == 0) sh->sent[0] = room->least_key;
  } else if (threadIdx.x < group.blocks) {
    group.in_block(sh, threadIdx.x)->sent[group.block] = room->least_key;
  }
  group.sync();
  least = ~0u;
  UNROLL_NOT
  for (u32 other = 0; other < group.blocks; ++other) least = sh->sent[other] < least ? sh->sent[other] : least;
  sync_block();
  if (threadIdx.x == 0) room->low = least == ~0u ? room->first : value_of(least);
  sync_block();
}

// What a sweep has come to; with FOUND, Shared's `told` and the room's `kept` are the lowest place and how many there are. `turn`: sweeps before. Every thread of the group.
template <u32 N>
__device__ __noinline__ Verdict end_sweep(u32 turn) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const bool by_mass = room->many.total != 0;
  if (by_mass && room->low == least_finite()) find_lowest<N>();
  tell_sums<N>(turn);
  if (threadIdx.x < 32) find_step<N>();
  sync_block();
  if (room->verdict != FOUND) return static_cast<Verdict>(room->verdict);
  if (by_mass) {
    gather_step<N>();
    sync_block();
    if (sh->found > STEP_TOKENS) return GIVEN_UP;
    end_cut<N>();
  } else {
    add_up_blocks<N>();
    if (threadIdx.x == 0) sh->told = static_cast<u64>(key_of(room->low + 0.0f)) << 32;
  }
  sync_block();
  return room->kept < room->many.least ? GIVEN_UP : FOUND;
}

// By how the row is read. `first`: the words of the thread's first four.
template <u32 N>
__device__ __noinline__ void take_sample(uint4 first) {
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const Sample<N> sample(room->counts_of, room->many.largest, room->w.s);
  switch (room->reading) {
    case F32: sample.template take<F32>(row, room->group, first); break;
    case F16: sample.template take<F16>(row, room->group, first); break;
    case BF16: sample.template take<BF16>(row, room->group, first); break;
    default: sample.template take<ANY>(row, room->group, first);
  }
}

// Between which logits the sweep lists. `guesses`: the sample tells the rank of the cut, and to how many to each side; else the room has both. What it writes it writes after a barrier
// of the block; another must follow.
template <u32 N>
__device__ __forceinline__ void find_bracket(bool guesses) {
  CutRoom<N> *room = CutRoom<N>::here();
  const ManyKept &many = room->many;
  const Sample<N> sample(room->counts_of, many.largest, room->w.s);
  const float exponent = fmaf(many.largest, room->w.s, -static_cast<float>(room->w.max_n));
  const SampledSteps<N> steps(sample, room->group.blocks, exponent);
  if (guesses) {
    const float share = Sample<N>::share_of(room->row.limit);
    const float mass = __fdividef(static_cast<float>(many.total) * (static_cast<float>(ONE_Q32 - many.threshold) * (1.0f / 4294967296.0f / 4096.0f)), share);
    steps.find_rank(static_cast<u64>(mass), exponent, [&](float rank, float weight) {
      room->rank = rank;
      // So many tokens of the weight at the cut, or fewer, tell where it lies.
      const float tokens = __fdividef(mass, weight);
      room->half = fminf(__fdividef(BRACKET, share), fmaf(DEVIATIONS, tokens * rsqrtf(tokens), SAMPLED_MORE));
    });
    sync_block();
  }
  steps.logit_at_rank(room->rank - room->half, room->low);
  float high = infinity();
  steps.logit_at_rank(room->rank + room->half, high);
  if (high < infinity()) room->high = room->first = fmaxf(high, DoubleAddends(room->w).nothing());
}

// After a sweep that has not found the cut, by one thread.
template <u32 N>
__device__ __forceinline__ void look_elsewhere(Verdict verdict) {
  CutRoom<N> *room = CutRoom<N>::here();
  const float half = room->half;
  if (verdict == CROWDED) {
    room->half = half * 0.5f;
    return;
  }
  const float wider = fminf(2 * half, BRACKET / Sample<N>::share_of(room->row.limit));
  room->rank += verdict == HIGHER ? half + wider : -half - wider;
  room->half = wider;
}

// Clears what a sweep adds to, and tells it between which logits it lists. `sweeps`: before it. Every thread; the block has met when it returns.
template <u32 N>
__device__ __noinline__ void begin_sweep(u32 sweeps) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const bool by_mass = room->many.total != 0;
  if (threadIdx.x == 0) {
    const float bound = room->min_p_bound();
    sh->listed = sh->kept = sh->found = 0;
    room->listed_mass = 0;
    room->least_key = ~0u;
    room->low = by_mass ? least_finite() : bound;
    room->high = by_mass ? infinity() : bound;
    room->first = by_mass ? room->many.largest : bound;
  }
  if (threadIdx.x < LIST_STEPS) room->masses[threadIdx.x].put(0);
  if (by_mass) find_bracket<N>(sweeps == 0);  // which writes after a barrier
  sync_block();
}

// Where the edits of each chunk are.
template <u32 N>
__device__ __noinline__ void note_edits() {
  CutRoom<N> *room = CutRoom<N>::here();
  for (u32 chunk = threadIdx.x; chunk < chunks_of(room->row.limit); chunk += N) {
    u32 begin, end;
    edits_of(room->row, chunk, begin, end);
    room->edits[chunk] = begin << 16 | end;
  }
}

// Where the cut falls. Every thread of the group gets the verdict. `first`: of the sample, the words of the thread's first four.
template <u32 N>
__device__ __forceinline__ Verdict find_cut(const uint4 &first) {
  if (CutRoom<N>::here()->many.total) take_sample<N>(first);
  if (CutRoom<N>::here()->row.edited) note_edits<N>();
#pragma unroll 1
  for (u32 sweeps = 0; sweeps < SWEEPS_MOST; ++sweeps) {
    begin_sweep<N>(sweeps);
    sweep_row<N>(CutRoom<N>::here()->reading);
    sync_block();
    if (threadIdx.x == 0) CutRoom<N>::here()->sweeps = sweeps + 1;
    const Verdict verdict = end_sweep<N>(sweeps);
    if (verdict == FOUND || verdict == GIVEN_UP) return verdict;
    if (threadIdx.x == 0) look_elsewhere<N>(verdict);
    CutRoom<N>::here()->group.sync();
  }
  return GIVEN_UP;
}

// What the row's program makes of what is known of it: a cut, before which temperatures may lie, or one that followed from the row, then temperatures, then the draw. False: it is not for this way.
template <u32 N>
__device__ __noinline__ bool follow_program() {
  const Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const SamplingProgram &program = sh->program;
  const SamplingConfig &config = sh->config;
  ManyKept &many = room->many;
  float temperature = 1.0f;
  u32 at = 0;
#pragma unroll 1
  for (; at + 1 < program.len; ++at) {
    const SamplingOp &op = program.ops[at];
    if (op.code == NUCLEUS_OP_TEMPERATURE) temperature = op.arg;
    else if (op.code == NUCLEUS_OP_DYNAMIC_TEMPERATURE) temperature = room->plan.temperature;
    else if (op.code != NUCLEUS_OP_NONE) break;
  }
  const SamplingOp &op = program.ops[at];
  KeptBy by{KeptBy::MASS, 0.0f, 0, 0};
#pragma unroll 1
  for (at += 1; at + 1 < program.len; ++at)
    if (program.ops[at].code == NUCLEUS_OP_TEMPERATURE) by.temperature = program.ops[at].arg;
  room->plan.temperature = temperature;
  Weighing w;
  if (!begin_weighing(many.largest, temperature, w)) return false;
  const u64 largest = w.q(many.largest);
  w.sums = Surprise{many.total, many.moment};
  many.threshold = op.threshold;
  bool serves = true;
  u64 share = op.threshold;
  switch (op.code) {
    case NUCLEUS_OP_TOP_P: break;
    case NUCLEUS_OP_TYPICAL_P:
      by.cut = KeptBy::TYPICAL;
      by.mean = w.sums.mean_q16();
      serves = !(config.flags & NUCLEUS_TYPICAL_STRICT);
      break;
    case NUCLEUS_OP_ETA: share = eta_threshold(op.threshold, w.sums); by.cut = KeptBy::WEIGHT; break;
    case NUCLEUS_OP_TOP_A: share = top_a_threshold(op.threshold, largest, many.total); by.cut = KeptBy::WEIGHT; break;
    case NUCLEUS_OP_EPSILON: by.cut = KeptBy::WEIGHT; break;
    default: serves = false;
  }
  if (by.cut == KeptBy::WEIGHT) {
    by.least = least_reaching(many.total, share);
    serves = by.least && largest >= by.least;
  }
  room->by = by;
  return serves;
}

// Prepares for a row that keeps many tokens, after Shared's description of it and what the room says of it: the group, its plan, and what it keeps; whether this way serves it.
// `first`: for what draws from it. After it the blocks of a group must have met since their barriers began.
template <u32 N>
__device__ __forceinline__ bool begin_draw_of_many(u32 index, const Whole &whole, const Division &division, uint4 &first) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const Request r = RowCall{index, 0, RawSums{}}.request();
  first = make_uint4(0, 0, 0, 0);
  if (room->many.total) first = Sample<N>::first_words(r, room->group);
  if (threadIdx.x == 0) {
    room->row = row_of(r, sh->batch.row_len, index, room->plan, whole, room->many.room ? Division{division.blocks, room->many.room, division.slices} : division);
    room->reading = reading_of(r);
    room->index = index;
  }
  if (threadIdx.x == 32) room->uniform = uniform_of(sh->row, sh->config);
  if (threadIdx.x == 64)
    room->verdict = (!room->many.by_program || follow_program<N>()) && begin_weighing(room->many.largest, room->plan.temperature, room->w) && DoubleAddends(room->w).serve && !(room->plan.edited && chunks_of(r.limit) > EDIT_CHUNKS) &&
                    (room->many.total || room->min_p_bound() >= DoubleAddends(room->w).nothing());
  if (threadIdx.x == 96) room->share_out(chunks_of(r.limit));
  Sample<N>::clear();
  sync_block();
  return room->verdict;
}

// Sums what is kept, for the draw, where that is known: tokens from `high` up, and those between `low` and it of which keep(place) is true. By the draw's temperature, if that is another.
// False: it cannot be, or not so many are kept. `count`: 0 if that is not known. `lowest`: place that is kept. `sweeps`: before it.
template <u32 N, class K>
__device__ __forceinline__ bool sum_kept(float low, float high, u64 lowest, u32 count, u32 sweeps, K keep) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  if (threadIdx.x == 0) {
    const bool weighs = room->by.temperature == 0.0f || begin_weighing(room->many.largest, room->by.temperature, room->w);
    room->verdict = weighs && DoubleAddends(room->w).serve && low >= DoubleAddends(room->w).nothing();
    room->many.total = 0;
    room->low = room->first = low;
    room->high = high;
    sh->listed = sh->kept = sh->found = 0;
    room->listed_mass = 0;
  }
  if (threadIdx.x < LIST_STEPS) room->masses[threadIdx.x].put(0);
  sync_block();
  if (!room->verdict) return false;
  sweep_row<N>(room->reading);
  sync_block();
  const u32 listed = listed_here();
  const DoubleAddends addends(room->w);
  UNROLL_NOT
  for (u32 i = threadIdx.x; i < listed; i += N) {
    const u64 place = sh->list[i];
    if (!keep(place)) continue;
    add_by_halves(&room->runs[room->run_of(id_at(place)) - room->first_run], weight_of(addends, logit_at(place)));
    atomicAdd(&sh->kept, 1);
  }
  // All blocks learn that one had no room by how many are kept.
  if (threadIdx.x == 0 && sh->listed > LIST_CAPACITY - 8) atomicAdd(&sh->kept, NUCLEUS_MAX_VOCAB + 1);
  sync_block();
  if (threadIdx.x == 0) sh->listed = 0;
  sync_block();
  const bool found = end_sweep<N>(sweeps) == FOUND && room->kept <= NUCLEUS_MAX_VOCAB && (!count || room->kept == count);
  if (threadIdx.x == 0) sh->told = lowest;
  sync_block();
  return found;
}
// What a cut by mass has kept. Tokens that equal the last one are listed.
template <u32 N>
__device__ __forceinline__ bool sum_cut() {
  CutRoom<N> *room = CutRoom<N>::here();
  const u64 last = shared_state()->told;
  const float bound = logit_at(last);
  const u32 kept = room->kept, sweeps = room->sweeps;
  room->group.sync();  // all have read what they told each other
  return sum_kept<N>(bound, value_of(key_of(bound) + 1), last, kept, sweeps, [&](u64 place) { return place >= last; });
}

// The least logit of which a token weighs so much, if weights grow with logits, to all lanes; `largest` does. By a warp, which looks at 32 logits at a time.
__device__ __forceinline__ float least_of_weight(const Weighing &w, float largest, u64 weight) {
  u64 low = key_of(least_finite()) - 1ull, high = key_of(largest);
#pragma unroll 1
  while (high - low > 1) {
    const u64 range = high - low, own = low + (range * (threadIdx.x % 32 + 1) + 31) / 32;
    const u32 first = __ffs(__ballot_sync(~0u, w.q(value_of(static_cast<u32>(own))) >= weight)) - 1;
    high = __shfl_sync(~0u, own, first);
    low = first ? __shfl_sync(~0u, own, (first - 1) & 31) : low;
  }
  return value_of(static_cast<u32>(high));
}
// What weighs so much at least. Weights grow with logits but for the rounding of the power of two, less than 2^-20 of it: tokens that are as close to the least logit as that are
// listed, and looked at one by one. False, too, where one of them is on the other side.
template <u32 N>
__device__ __forceinline__ bool sum_by_weight() {
  constexpr float CLOSE = 1.0f / 65536.0f;
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const Weighing w = room->w;
  const u64 least = room->by.least;
  if (threadIdx.x < 32) {
    const float bound = least_of_weight(w, room->many.largest, least);
    if (threadIdx.x == 0) room->rank = bound;
  }
  sync_block();
  const float bound = room->rank, close = fmaf(fabsf(bound), 1.0f / 4194304.0f, CLOSE * room->plan.temperature);
  return sum_kept<N>(bound - close, bound + close, static_cast<u64>(key_of(bound)) << 32, 0, 0, [&](u64 place) {
    const float x = logit_at(place);
    if ((x >= bound) != (w.q(x) >= least)) atomicAdd(&sh->kept, NUCLEUS_MAX_VOCAB + 1);
    return x >= bound;
  });
}

// What is kept where that is not the beginning with a mass, or is drawn from by another temperature; after the cut if that is by mass, of typical_p if the first token joins before the last.
template <u32 N>
__device__ __noinline__ bool sum_otherwise() {
  const CutRoom<N> *room = CutRoom<N>::here();
  const KeptBy &by = room->by;
  if (by.cut == KeptBy::WEIGHT) return sum_by_weight<N>();
  if (by.cut == KeptBy::TYPICAL && room->w.y(room->many.largest) - by.mean > by.mean - room->w.y(logit_at(shared_state()->told))) return false;
  return by.temperature == 0.0f || sum_cut<N>();
}

// Decides it; every thread of the group gets whether it did.
template <u32 N>
__device__ __forceinline__ bool draw_of_many(const uint4 &first) {
  const CutRoom<N> *room = CutRoom<N>::here();
  const bool otherwise = room->many.by_program && (room->by.cut != KeptBy::MASS || room->by.temperature != 0.0f), searches = !otherwise || room->by.cut != KeptBy::WEIGHT;
  if (searches && find_cut<N>(first) != FOUND) return false;
  if (otherwise && !sum_otherwise<N>()) return false;
  draw_from_runs<N>();
  return true;
}

}  // namespace nucleus
