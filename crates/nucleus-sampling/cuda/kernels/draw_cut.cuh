// Draws from rows without edits where other cuts than top_p follow from what a row weighs, too: epsilon, eta, top_a, typical_p and mirostat 2, where the moment is taken also with temperatures behind the cut.
//
// Epsilon, top_a and mirostat 2: tokens are kept by what they weigh beside the row. Eta and typical_p: warps also tell the moment of the surprise.
#pragma once

#include "draw_sums.cuh"

namespace nucleus::draw {

// The warps that finish rows, cut or not.
template <u32 DTYPE, Form FORM>
struct CutFinisher : ListFinisher<DTYPE, FORM> {
  using L = ListFinisher<DTYPE, FORM>;
  using F = typename L::F;
  using typename F::Known;
  using typename L::Summary;
  using F::batch, F::shape, F::turns, F::state, F::block, F::thread, F::sync, F::FINISH_THREADS;
  using L::lists;
  RowSums *row_sums;

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    L::prepare();
    if (warms(FORM)) sums().prepare();
  }
  __device__ __forceinline__ SumsFinish<F> sums() const { return SumsFinish<F>{*this, row_sums}; }

  // What a program does with the row: what cuts, if anything does, and the last temperature.
  struct Steps {
    SamplingOp cut;
    float temperature;
  };
  __device__ __forceinline__ Steps steps() const {
    const SamplingProgram &program = state->description.program;
    const u32 lane = threadIdx.x % 32, last = program.len - 1;
    if constexpr (!takes_moments(FORM)) return Steps{program.ops[program.ops[last].code == NUCLEUS_OP_DRAW ? last - 1 : last], 1.0f};
    SamplingOp op{NUCLEUS_OP_NONE, 0, 0};
    if (lane < program.len && lane < NUCLEUS_MAX_OPS) op = program.ops[lane];
    const bool temperature = op.code == NUCLEUS_OP_TEMPERATURE;
    const u32 temperatures = __ballot_sync(~0u, temperature), cuts = __ballot_sync(~0u, !temperature && op.code != NUCLEUS_OP_NONE && op.code != NUCLEUS_OP_DYNAMIC_TEMPERATURE);
    return Steps{program.ops[(__ffs(cuts) - 1) & 15], temperatures ? __shfl_sync(~0u, op.arg, 31 - __clz(temperatures)) : 1.0f};
  }
  // A run of the sorted list; empty: the list does not tell.
  struct Run {
    u32 first = 0, end = 0;
  };
  // The share of what all weigh that epsilon, eta or top_a asks of a token, in Q32.
  __device__ __forceinline__ u64 share_of(const Known &row, const SamplingOp &op, const Surprise &all) const {
    if (op.code == NUCLEUS_OP_TOP_A) return top_a_threshold(op.threshold, row.w.q(value_of(row.key)), all.total);
    return takes_moments(FORM) && op.code == NUCLEUS_OP_ETA ? eta_threshold(op.threshold, all) : op.threshold;
  }
  // Tokens of the sorted list that are kept by what they weigh beside the row.
  __device__ __forceinline__ Run run_by_weight(const Known &row, const Summary &sums, const SamplingOp &op, const Surprise &all) const {
    const Description &d = state->description;
    const u32 count = sums.listed;
    if (count > LIST_MOST) return Run{};
    L::sort(row.w, count);
    const bool by_surprise = op.code == NUCLEUS_OP_MIROSTAT_2;
    const Listed *const tokens = lists->tokens;
    const i64 offset = by_surprise ? all.offset_q16() : 0, most = d.row.mirostat_mu;
    const u64 share = by_surprise ? 0 : share_of(row, op, all);
    u32 passing = 0;  // the first of the list; counted by each warp
#pragma unroll 1
    for (u32 first = 0; first < count; first += 32) {
      const Listed own = tokens[first + threadIdx.x % 32 < count ? first + threadIdx.x % 32 : count - 1];
      const bool passes = by_surprise ? offset - row.w.y(logit_at(own.place)) <= most : reaches(own.weight, sums.total, share);
      passing += __popc(__ballot_sync(~0u, passes && first + threadIdx.x % 32 < count));
    }
    u32 least = !by_surprise && d.config.min_keep ? d.config.min_keep : 1;
    least = least < sums.there ? least : sums.there;
    const u32 kept = passing < least ? least : passing;
    // Where all that is listed passes, there may be more.
    if (kept > count || (passing == count && count < sums.there)) return Run{};
    L::cut(Until{~0ull}, count);  // tells the weights of beginnings
    return Run{0, kept};
  }
  // The run of the sorted list that typical_p keeps. Tokens above the mean and below it each lie in the order of their distance, so that a token finds by bisection the run that it is the
  // last to join, of which the length is its rank. Those that are not listed are further below than any of the list: the rank of a token is known if one of the list is as far from the mean
  // on that side.
  __device__ __forceinline__ Run run_of_typical(const Known &row, const Summary &sums, const SamplingOp &op, const Surprise &all) const {
    constexpr u32 EACH = (LIST_MOST + FINISH_THREADS - 1) / FINISH_THREADS, NONE = ~0u;
    constexpr i64 FAR = -(1ll << 30);  // below what weighs nothing
    const SamplingConfig &config = state->description.config;
    const u32 count = sums.listed, t = thread();
    if (count > LIST_MOST) return Run{};
    L::sort(row.w, count);
    i32 *const surprises = reinterpret_cast<i32 *>(lists->keys);
#pragma unroll 1
    for (u32 i = t; i < count; i += FINISH_THREADS) {
      const i64 y = row.w.y(logit_at(lists->tokens[i].place));
      surprises[i] = static_cast<i32>(y > FAR ? y : FAR);
    }
    if (t == 0) row_sums->end = 0;
    L::cut(Until{~0ull}, count);
    const i64 mean = all.mean_q16();
    const Until until = config.flags & NUCLEUS_TYPICAL_STRICT ? Until::exceeds(sums.total, op.threshold) : Until::reaches(sums.total, op.threshold);
    bool disordered = false;
    u32 middle = 0;
#pragma unroll 1
    for (u32 first = 0; first < count; first += 32) {
      const u32 i = first + threadIdx.x % 32;
      disordered |= i < count && i && surprises[i] > surprises[i - 1];
      middle += __popc(__ballot_sync(~0u, i < count && surprises[i] > mean));
    }
    if (__any_sync(~0u, disordered)) return Run{};
    // The first of a side, from `from` on, of which far(distance) is true; `to` if there is none.
    const auto first_of = [&](u32 from, u32 to, auto far) {
#pragma unroll 1
      while (from < to) {
        const u32 half = (from + to) / 2;
        const bool is_far = far(surprises[half] - mean);
        to = is_far ? half : to;
        from = is_far ? from : half + 1;
      }
      return from;
    };
    Run runs[EACH];
    u32 least = NONE;
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      const u32 i = e * FINISH_THREADS + t;
      if (i >= count) continue;
      const i64 off = surprises[i] - mean, distance = off < 0 ? -off : off;
      const Run run = i < middle ? Run{i, first_of(middle, count, [&](i64 other) { return -other >= distance; })} : Run{first_of(0, middle, [&](i64 other) { return other <= distance; }), i + 1};
      const bool known = i >= middle || run.end < count || count == sums.there;
      if (!known) continue;
      runs[e] = run;
      const u64 mass = lists->places[run.end - 1] - (run.first ? lists->places[run.first - 1] : 0);
      const u32 rank = run.end - run.first;
      if (until(mass) && rank < least) least = rank;
    }
    least = __reduce_min_sync(~0u, least);
    if (t % 32 == 0) row_sums->ranks[t / 32] = least;
    sync();
#pragma unroll
    for (u32 i = 0; i < LIST_FINISH_WARPS; ++i) least = row_sums->ranks[i] < least ? row_sums->ranks[i] : least;
    if (least == NONE) {
      if (count < sums.there) return Run{};
      return Run{0, count};
    }
    const u32 wanted = config.min_keep < sums.there ? config.min_keep : sums.there;
    if (least < wanted) least = wanted;
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      if (runs[e].end - runs[e].first != least) continue;
      row_sums->first = runs[e].first;
      row_sums->end = runs[e].end;
    }
    sync();
    return Run{row_sums->first, row_sums->end};
  }
  // Weighs a run of the list by another scale, or beside another largest logit, and what is not of it not at all; false: it cannot be weighed.
  __device__ __forceinline__ bool weigh_again(Known &row, const Run &run, u32 count, float s) const {
    Weighing w;
    if (!begin_weighing_by(s, logit_at(lists->tokens[run.first].place), w)) return false;
    row.w = w;
    sync();  // what they weighed is read no more
#pragma unroll 1
    for (u32 i = thread(); i < count; i += FINISH_THREADS) {
      Listed &token = lists->tokens[i];
      token.weight = i >= run.first && i < run.end ? w.q(logit_at(token.place)) : 0;
    }
    sync();
    L::cut(Until{~0ull}, count);
    return true;
  }
  // The row's token from the list; false: it has not all that is kept, or cannot be weighed.
  __device__ __forceinline__ bool choose(Known &row, const Summary &sums, const Surprise &all, const Steps &steps) const {
    const SamplingOp &op = steps.cut;
    const u32 min_keep = state->description.config.min_keep;
    Run run;
    if (op.code == NUCLEUS_OP_TOP_P) run.end = L::kept_by_mass(row, sums, op.threshold, min_keep ? min_keep : 1);
    else if (takes_moments(FORM) && op.code == NUCLEUS_OP_TYPICAL_P) run = run_of_typical(row, sums, op, all);
    else run = run_by_weight(row, sums, op, all);
    if (!run.end) return false;
    if (takes_moments(FORM) && (run.first || !(row.plan.flags & RowPlan::DRAWS)) && !(warms(FORM) && row.plan.warmed()) && !weigh_again(row, run, sums.listed, scale(steps.temperature))) return false;
    L::draw_run(row, sums, run.first, run.end, [&](Outcome &outcome, float x, u64 mass) {
      if (op.code != NUCLEUS_OP_MIROSTAT_2) return;
      Weighing w = row.w;
      w.sums.total = mass;
      outcome.feedback = feedback_of(w.sums.offset_q16() - w.y(x));
    });
    return true;
  }
  // Leaves a row whose list does not tell to the launch behind this one, by a thread.
  __device__ __forceinline__ void leave_by_program(const Known &row, const Summary &told, const Surprise &all) const {
    const u32 min_keep = state->description.config.min_keep;
    RowPlan plan{};
    plan.kind = SlicePlan::MASS;
    plan.temperature = row.plan.temperature;  // if it followed from the row
    ManyKept many{told.total, 0, min_keep ? min_keep : 1, value_of(row.key), F::raw_sums(row, told.raw_mass, nullptr)};
    many.by_program = true;
    many.moment = all.moment;
    L::leave(row.index, plan, many);
  }
  // `listed`, `answered`: rows before that had a list, or waited for a temperature.
  __device__ __forceinline__ void finish(u32 turn, u32 use, u32 &listed, u32 &answered) const {
    Known row = sums().template learn<warms(FORM)>(turn, use, answered);
    const bool cut = draw::lists<FORM>(row.plan);
    if (row.status != NUCLEUS_OK || !cut) {
      // Of a row that cannot be weighed nothing of the list is needed, but it must have come.
      if (cut) L::sum_up(false, listed);
      sums().template decide<smooths(FORM)>(row, turn);
      sync();  // all have read what was told
      F::release(turn);
    } else {
      const bool by_surprise = takes_moments(FORM) && row.plan.kind == SlicePlan::SURPRISE;
      const u32 t = thread();
      if (by_surprise) {
        const u64 moment = DeviceWarp{}.sum(t < shape.warps() ? row_sums->moments[t] : 0);
        if (t % 32 == 0) row_sums->moments_of_warps[t / 32] = static_cast<i64>(moment);
      }
      const Summary told = L::sum_up(row.plan.flags & RowPlan::RAW, listed);
      Surprise all;
      all.total = told.total;
      if (by_surprise)
        for (u32 i = 0; i < LIST_FINISH_WARPS; ++i) all.moment += row_sums->moments_of_warps[i];
      F::release(turn);
      const Steps own = steps();
      const bool serves = !by_surprise || DoubleMoments(row.w).serve;
      const bool chosen = serves && choose(row, told, all, own);
      if (!chosen && t == 0) {
        if (serves && own.cut.code != NUCLEUS_OP_MIROSTAT_2) leave_by_program(row, told, all);
        else batch.out[row.index].status = PENDING;
      }
    }
    listed += cut;
  }
  __device__ __forceinline__ void take_turns() const {
    u32 listed = 0, answered = 0;
#pragma unroll 1
    for (u32 turn = block, use = 0; turn < turns.rows; turn += shape.blocks, ++use) finish(turn, use, listed, answered);
  }
};

}  // namespace nucleus::draw
