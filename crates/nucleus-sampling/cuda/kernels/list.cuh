// The exact path over a short sorted list of tokens: every stage by one warp (on the host, by one thread).
#pragma once

#include "row.cuh"

namespace nucleus {

constexpr u32 MIROSTAT_TOKENS = 100;

// The tokens left are places[low..high), descending; the list may be the beginning of a longer order, whose rest weighs `rest`. `scratch` has
// room for as many: it holds their weights, from the first that weighs on.
template <class Warp>
struct ListMachine {
  const Warp &warp;
  const Request &r;
  const EditTable &table;
  u64 *places;
  u64 *scratch;
  u32 low = 0, high;
  float temperature;
  u32 status = NUCLEUS_OK;
  Weighing w;
  u64 rest = 0;
  u32 weighed_low = 0, weighed_high = 0;  // whose weights are in `scratch`
  float weighed_at = 0;                   // the temperature they were taken at; 0: there are none

  HD ListMachine(const Warp &lanes, const Request &request, const EditTable &edits, u64 *list, u64 *room, u32 count, float t)
      : warp(lanes), r(request), table(edits), places(list), scratch(room), high(count), temperature(t) {}

  HD u32 count() const { return high - low; }
  HD float logit(u32 i) const { return logit_at(places[i]); }
  HD u64 q(u32 i) const { return scratch[i]; }
  HD i64 y(u32 i) const { return w.y(logit(i)); }

  // `moment`: entropy and mean are wanted too.
  HD bool weigh(bool moment = true) {
    if (!count()) { status = NUCLEUS_EMPTY; return false; }
    if (weighed_at == temperature && weighed_low == low && weighed_high == high && !moment) return true;
    if (!(weighed_at == temperature && weighed_low == low)) {
      if (!begin_weighing(logit(low), temperature, w)) { status = NUCLEUS_OVERFLOW; return false; }
      warp.sync();  // no lane still reads weights taken before
      UNROLL_NOT
      for (u32 i = low + warp.lane(); i < high; i += warp.lanes()) scratch[i] = w.q(logit(i));
      warp.sync();
    }
    u64 total = 0;
    i64 sum = 0;
    UNROLL_NOT
    for (u32 i = low + warp.lane(); i < high; i += warp.lanes()) {
      total += q(i);
      if (moment && q(i)) sum += (static_cast<i64>(q(i)) * y(i)) >> 16;
    }
    w.sums.total = warp.sum(total) + rest;
    w.sums.moment = moment ? static_cast<i64>(warp.sum(static_cast<u64>(sum))) : 0;
    weighed_low = low;
    weighed_high = high;
    weighed_at = temperature;
    return true;
  }

  // The list is the beginning of a row of this weight; false: overflow.
  HD bool begins_row(u64 total) {
    if (!weigh(false)) return false;
    rest = total - w.sums.total;
    w.sums.total = total;
    return true;
  }

  // The first index from `low` on that fails, at most `high`.
  template <class P>
  HD u32 leading(P passes) const {
    UNROLL_NOT
    for (u32 i = low; i < high; i += warp.lanes()) {
      u32 own = i + warp.lane();
      u32 first = warp.first(own < high && !passes(own));
      if (first < warp.lanes()) return i + first;
    }
    return high;
  }

  HD void keep(u32 cut, u64 min_keep) {
    u64 least = static_cast<u64>(low) + min_keep;
    u64 end = cut > least ? cut : least;
    high = end < high ? static_cast<u32>(end) : high;
  }

  HD u32 with_ties(u32 cut) const {
    if (cut <= low || cut >= high) return cut;
    float last = logit(cut - 1);
    while (cut < high && logit(cut) == last) ++cut;
    return cut;
  }

  // As `keep`, and with all that equal the last of `min_keep`.
  HD void keep_floor(u32 cut, u64 min_keep, bool ties) {
    u64 least = min_keep < count() ? low + min_keep : high;
    u32 floor = ties ? with_ties(static_cast<u32>(least)) : static_cast<u32>(least);
    high = cut > floor ? cut : floor;
  }

  // The end of the shortest beginning whose mass suffices; one more than `high` if all of it does not.
  HD u32 mass_end(u64 threshold) const {
    u64 mass = 0;
    UNROLL_NOT
    for (u32 i = low; i < high; i += warp.lanes()) {
      u32 own = i + warp.lane();
      u64 prefix = warp.inclusive(own < high ? q(own) : 0);
      u32 first = warp.first(own < high && reaches(mass + prefix, w.sums.total, threshold));
      if (first < warp.lanes()) return i + first + 1;
      mass += warp.last(prefix);
    }
    return high + 1;
  }

  // False: where it ends lies beyond the list.
  HD bool top_p(const SamplingOp &op, u64 min_keep) {
    u32 end = mass_end(op.threshold);
    if (end > high && rest) return false;
    keep(end, min_keep);
    if (rest) weighed_at = 0;
    rest = 0;
    return true;
  }

  HD void top_n_sigma(const SamplingOp &op) {
    float largest = logit(low);
    Distances own;
    UNROLL_NOT
    for (u32 i = low + warp.lane(); i < high; i += warp.lanes()) own.add(logit(i), largest);
    own.sum[0] = warp.sum(own.sum[0]);
    own.halves[0] = warp.sum(own.halves[0]);
    own.halves[1] = warp.sum(own.halves[1]);
    float threshold = largest - op.arg * from_q16(deviation_q16(count(), own.sum[0], own.squares()));
    keep(leading([&](u32 i) { return logit(i) >= threshold; }), op.threshold);
  }

  HD u32 probable(u64 probability) const {
    return leading([&](u32 i) { return reaches(q(i), w.sums.total, probability); });
  }

  // Adds the neighbour of [a, b) that is nearest to the mean; returns its index.
  HD u32 grow(u32 &a, u32 &b, i64 mean) const {
    bool above = a > low && (b == high || y(a - 1) - mean <= mean - y(b));
    return above ? --a : b++;
  }

  HD void typical(const SamplingOp &op, u64 min_keep) {
    i64 mean = w.sums.mean_q16();
    bool strict = r.config->flags & NUCLEUS_TYPICAL_STRICT;
    u32 a = leading([&](u32 i) { return y(i) > mean; }), b = a;
    u64 mass = 0;
    while (b - a < count() &&
           (a == b || !(strict ? exceeds(mass, w.sums.total, op.threshold) : reaches(mass, w.sums.total, op.threshold))))
      mass += q(grow(a, b, mean));
    if (r.config->flags & NUCLEUS_KEEP_TIES) {
      float first = logit(a);
      while (a > low && logit(a - 1) == first) --a;
      b = with_ties(b);
    }
    while (b - a < (min_keep < count() ? min_keep : count())) grow(a, b, mean);
    low = a;
    high = b;
  }

  HD u64 bend_at(u32 i) const { return bend(q(i), q(i + 1), q(i + 2)); }

  HD void tail_free(const SamplingOp &op, u64 min_keep) {
    if (count() <= 2) return;
    u64 own = 0;
    UNROLL_NOT
    for (u32 i = low + warp.lane(); i + 2 < high; i += warp.lanes()) own += bend_at(i);
    u64 total = warp.sum(own), sum = 0;
    bool flat = total == 0;
    if (flat) total = count() - 2;
    UNROLL_NOT
    for (u32 i = low; i + 2 < high; i += warp.lanes()) {
      u32 own_index = i + warp.lane();
      bool there = own_index + 2 < high;
      u64 prefix = warp.inclusive(there ? (flat ? 1 : bend_at(own_index)) : 0);
      u128 left = static_cast<u128>(sum + prefix) << 32;
      u32 first = warp.first(there && left > static_cast<u128>(op.threshold) * total && own_index - low >= min_keep);
      if (first < warp.lanes()) { high = i + first; return; }
      sum += warp.last(prefix);
    }
  }

  HD void exclude_top_choices(const SamplingOp &op, u64 min_keep) {
    u32 passing = probable(op.threshold), first = passing > low ? passing - 1 : low;
    if (high - first >= min_keep) low = first;
  }

  HD bool truncate(const SamplingOp &op) {
    u64 min_keep = r.config->min_keep ? r.config->min_keep : 1;
    bool ties = r.config->flags & NUCLEUS_KEEP_TIES;
    bool weighs = op.code != NUCLEUS_OP_TOP_N_SIGMA && op.code != NUCLEUS_OP_TOP_K && op.code != NUCLEUS_OP_MIN_P;
    if (weighs && !weigh(op.code == NUCLEUS_OP_TYPICAL_P || op.code == NUCLEUS_OP_ETA)) return false;
    switch (op.code) {
      case NUCLEUS_OP_TOP_N_SIGMA: top_n_sigma(op); break;
      case NUCLEUS_OP_TOP_K:
        if (op.threshold < count()) high = ties ? with_ties(low + static_cast<u32>(op.threshold)) : low + static_cast<u32>(op.threshold);
        break;
      case NUCLEUS_OP_TYPICAL_P: typical(op, min_keep); break;
      case NUCLEUS_OP_TOP_P: return top_p(op, min_keep);
      case NUCLEUS_OP_MIN_P: {
        float threshold = fmaf(temperature, op.arg, logit(low));
        keep(leading([&](u32 i) { return logit(i) >= threshold; }), min_keep);
        break;
      }
      case NUCLEUS_OP_EPSILON: keep_floor(probable(op.threshold), min_keep, ties); break;
      case NUCLEUS_OP_ETA: keep_floor(probable(eta_threshold(op.threshold, w.sums)), min_keep, ties); break;
      case NUCLEUS_OP_TOP_A: keep_floor(probable(top_a_threshold(op.threshold, q(low), w.sums.total)), min_keep, false); break;
      case NUCLEUS_OP_TFS: tail_free(op, min_keep); break;
      default:
        if (xtc_acts(*r.row, *r.config)) exclude_top_choices(op, min_keep);
    }
    return true;
  }

  // Replaces every logit by change(x, id), checks, and begins a new order.
  template <class F>
  HD bool edit(F change) {
    float t = temperature;
    temperature = 1.0f;
    weighed_at = 0;
    u64 nan = 0, infinite = 0, left = 0;
    warp.sync();  // no lane still reads weights
    u32 n = count();
    UNROLL_NOT
    for (u32 i = warp.lane(); i < n; i += warp.lanes()) {
      float x = logit(low + i);
      u32 id = id_at(places[low + i]);
      if (t != 1.0f) x = x / t;
      x = change(x, id) + 0.0f;
      nan += x != x;
      infinite += x == infinity();
      bool out = x != x || x == -infinity();
      left += !out;
      scratch[i] = out ? 0 : place_of(x, id);
    }
    warp.sync();
    if (warp.sum(nan)) { status = NUCLEUS_NAN; return false; }
    if (warp.sum(infinite)) { status = NUCLEUS_OVERFLOW; return false; }
    UNROLL_NOT
    for (u32 i = warp.lane(); i < n; i += warp.lanes()) {  // rank by counting: places differ
      if (!scratch[i]) continue;
      u32 rank = 0;
      UNROLL_NOT
      for (u32 j = 0; j < n; ++j) rank += scratch[j] > scratch[i];
      places[rank] = scratch[i];
    }
    low = 0;
    high = static_cast<u32>(warp.sum(left));
    warp.sync();
    return true;
  }

  HD bool edit_by_table(u32 code) {
    return edit([&](float x, u32 id) {
      const Edit *e = table.find(id);
      return e ? apply_edit(code, x, *e, *r.config) : x;
    });
  }

  HD bool smoothing() {
    if (!edit([](float x, u32) { return x; })) return false;
    if (!count()) return true;
    const Smoothing smoothed(*r.config, logit(low));
    return edit([&](float x, u32) { return smoothed(x); });
  }

  HD bool apply(const SamplingOp &op) {
    switch (op.code) {
      case NUCLEUS_OP_NONE: return true;
      case NUCLEUS_OP_DRY: case NUCLEUS_OP_NO_REPEAT_NGRAM: case NUCLEUS_OP_PENALTIES: return edit_by_table(op.code);
      case NUCLEUS_OP_TEMPERATURE: temperature = op.arg; return true;
      case NUCLEUS_OP_DYNAMIC_TEMPERATURE:
        if (!count()) return true;
        if (!weigh()) return false;
        temperature = dynamic_temperature(count(), w.sums, r.config->temperature, r.config->dynatemp_range, r.config->dynatemp_exponent);
        return true;
      case NUCLEUS_OP_SMOOTHING: return smoothing();
      default: return !count() || truncate(op);
    }
  }

  // How many tokens mirostat 1 keeps; the list holds at least the first 100 of those left. Needs the weighing of all of them.
  HD u64 zipf_count(const Weighing &all) const {
    i64 products = 0, squares = 0;
    u32 end = high - low < MIROSTAT_TOKENS ? high : low + MIROSTAT_TOKENS;
    UNROLL_NOT
    for (u32 i = low; i + 1 < end && all.q(logit(i + 1)); ++i) {
      u32 rank = i - low + 1;
      i64 t = log2_q16(rank + 1) - log2_q16(rank);
      products += t * (all.y(logit(i)) - all.y(logit(i + 1)));
      squares += t * t;
    }
    i128 exponent = (static_cast<i128>(products) << 16) / (squares > 1 ? squares : 1);
    if (exponent <= 0) return ~0ull;
    u64 k = mirostat_k(static_cast<i64>(exponent), r.row->mirostat_mu, r.config->vocab_size);
    return k ? k : 1;
  }

  // The index of the smallest id whose inclusive prefix of q exceeds the target.
  HD u32 draw(u64 target) {
    u32 n = count();
    if (n <= 4 * warp.lanes()) {
      u32 drawn = n;
      UNROLL_NOT
      for (u32 i = warp.lane(); i < n; i += warp.lanes()) {
        u32 id = id_at(places[low + i]);
        u64 before = 0;
        UNROLL_8
        for (u32 j = low; j < high; ++j) before += id_at(places[j]) < id ? q(j) : 0;
        if (before <= target && before + q(low + i) > target) drawn = i;
      }
      return low + warp.least(drawn);
    }
    return draw_by_bisection(target, [this](u32 i) { return q(i); });
  }

  template <class F>
  HD u32 draw_by_bisection(u64 target, F weight_at) const {
    u32 least = 0, most = r.limit - 1;
    while (least < most) {
      u32 middle = (least + most) / 2;
      u64 mass = 0;
      UNROLL_NOT
      for (u32 i = low + warp.lane(); i < high; i += warp.lanes()) mass += id_at(places[i]) <= middle ? weight_at(i) : 0;
      if (warp.sum(mass) > target) most = middle; else least = middle + 1;
    }
    u32 found = high;
    UNROLL_NOT
    for (u32 i = low + warp.lane(); i < high; i += warp.lanes())
      if (id_at(places[i]) == least) found = i;
    return warp.least(found);
  }

  HD Outcome choose(const SamplingOp &op) {
    Outcome out;
    if (!count()) {
      status = NUCLEUS_EMPTY;
    } else if (op.code == NUCLEUS_OP_ARGMAX) {
      out.token = id_at(places[low]);
      out.kept = 1;
      return out;
    } else if (weigh(false)) {
      decide(op, out);
    }
    out.status = status;
    return out;
  }

  // What the choice itself keeps, and its weights, but for adaptive-p; false: a status.
  HD bool narrow(const SamplingOp &op) {
    if (op.code == NUCLEUS_OP_MIROSTAT_1) {
      u64 k = zipf_count(w);
      if (k < count()) high = low + static_cast<u32>(k);
    }
    if (op.code == NUCLEUS_OP_MIROSTAT_2) {
      i64 offset = w.sums.offset_q16(), mu = r.row->mirostat_mu;
      keep(leading([&](u32 i) { return offset - y(i) <= mu; }), 1);
    }
    return weigh(false);
  }

  HD void decide(const SamplingOp &op, Outcome &out) {
    if (!narrow(op)) return;
    if (op.code == NUCLEUS_OP_ADAPTIVE_P) {
      decide_adapted(out);
      return;
    }
    u32 drawn = draw(mulhi64(uniform_of(r), w.sums.total));
    out.token = id_at(places[drawn]);
    out.kept = count();
    out.logprob = processed_logprob(q(drawn), w.sums.total);
    if (op.code == NUCLEUS_OP_MIROSTAT_1 || op.code == NUCLEUS_OP_MIROSTAT_2) out.feedback = feedback_of(w.sums.offset_q16() - y(drawn));
  }

  // adaptive-p: its new logits stay in the order of the old ones, since the draw needs none; false: a status.
  HD bool adapt(const Weighing &before) {
    const u64 *old = places + low;
    u32 n = count();
    u64 most = 0;
    warp.sync();  // no lane still reads weights
    UNROLL_NOT
    for (u32 i = warp.lane(); i < n; i += warp.lanes()) {
      float x = adapted(before.q(logit_at(old[i])), before.sums.total, r.row->adaptive_target) + 0.0f;
      scratch[i] = place_of(x, id_at(old[i]));
      most = scratch[i] > most ? scratch[i] : most;
    }
    places = scratch;
    low = 0;
    high = n;
    temperature = 1.0f;
    float largest = logit_at(warp.most(most));
    warp.sync();
    if (!begin_weighing(largest, temperature, w)) { status = NUCLEUS_OVERFLOW; return false; }
    u64 own = 0;
    UNROLL_NOT
    for (u32 i = warp.lane(); i < n; i += warp.lanes()) own += w.q(logit(i));
    w.sums.total = warp.sum(own);
    return true;
  }

  HD void decide_adapted(Outcome &out) {
    const Weighing before = w;
    const u64 *old = places + low;
    if (!adapt(before)) return;
    auto weight_at = [this](u32 i) { return w.q(logit(i)); };
    u32 drawn = draw_by_bisection(mulhi64(uniform_of(r), w.sums.total), weight_at);
    out.token = id_at(places[drawn]);
    out.kept = count();
    out.logprob = processed_logprob(weight_at(drawn), w.sums.total);
    u128 share = static_cast<u128>(before.q(logit_at(old[drawn]))) << 16;
    out.feedback = static_cast<i32>(share / (before.sums.total ? before.sums.total : 1));
  }
};

}  // namespace nucleus
