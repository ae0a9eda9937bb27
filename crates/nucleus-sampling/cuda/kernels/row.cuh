// The exact path over a whole row: every stage as sweeps over the ids, cuts by radix selection, no sort.
//
// A truncation keeps a contiguous run of the order, so the tokens that are left are those whose place (key_of the logit, then id) lies
// between two bounds. An edit begins a new order. Where the team holds the row in slices, the logits themselves are changed, and what is
// out becomes -inf. Elsewhere an edit is a layer on top: a token is left if it lies within the bounds of every layer, each reached from the
// layer below by that layer's edit.
#pragma once

#include "edits.cuh"

namespace nucleus {

constexpr u32 MAX_LAYERS = 8;
constexpr u32 DIGIT_BITS = 11;
constexpr u32 BINS = 1u << DIGIT_BITS;
constexpr u32 LIST_CAPACITY = 4096;
constexpr u32 LIST_WORTH = 512;  // tokens of a slice from which on a list takes longer than sweeps do

struct Layer {
  u32 code;         // the edit's operation; NONE: bias and masks
  float divide;     // the temperature divided out before it; 1: none
  float best;       // smoothing: the largest logit
  float s;          // adaptive-p: scale, largest exponent and Z of the layer below
  i32 max_n;
  u64 total;
  u64 top, bottom;  // places kept, both inclusive
};

// Which tokens of a slice are left: those of places from `bottom` to `top`.
struct Bounds {
  u64 top, bottom;
  float high, low;

  HD Bounds(u64 first, u64 last)
      : top(first), bottom(last), high(first == ~0ull ? infinity() : logit_at(first)), low(last ? logit_at(last) : least_finite()) {}
  // Whether any of four logits may be left.
  HD bool meet(float a, float b, float c, float d) const { return fmaxf(fmaxf(a, b), fmaxf(c, d)) >= low && fminf(fminf(a, b), fminf(c, d)) <= high; }
  HD bool hold(u32 id, float x) const {
    if (x > low && x < high) return true;
    if (!(x == low || x == high)) return false;
    const u64 place = place_of(x + 0.0f, id);
    return place <= top && place >= bottom;
  }
};

// Weights of a set: scale, largest exponent, sums.
struct Weighing {
  float s = 0;
  i32 max_n = 0;
  Surprise sums;

  HD u64 q(float x) const { return Exponent(x, s).weight(max_n); }
  HD i64 y(float x) const { return Exponent(x, s).log2_q16(max_n); }
};

// What mirostat learns from: the drawn token's surprise in Q16, from 0 on.
HD i32 feedback_of(i64 surprise) { return static_cast<i32>(surprise < 0 ? 0 : surprise > 0x7FFFFFFF ? 0x7FFFFFFF : surprise); }

// Whether XTC takes tokens away.
HD bool xtc_acts(const SamplingRow &row, const SamplingConfig &config) {
  return philox(config.seed, row.position, 1, row.choice, row.attempt) >> 32 < chance_q32(config.xtc_probability);
}

// Prepares to weigh a set whose largest logit is known, by the temperature's scale; false: overflow.
HD bool begin_weighing_by(float s, float largest, Weighing &w) {
  w.s = s;
  float scaled = largest * w.s;
  if (!(fabsf(scaled) < SCALED_LIMIT)) return false;
  w.max_n = Exponent(largest, w.s).n;
  w.sums = Surprise{};
  return true;
}
HD bool begin_weighing(float largest, float temperature, Weighing &w) { return begin_weighing_by(scale(temperature), largest, w); }

// The number that draws.
HD u64 uniform_of(const SamplingRow &row, const SamplingConfig &config) {
  return row.flags & NUCLEUS_ROW_UNIFORM ? row.uniform : philox(config.seed, row.position, 0, row.choice, row.attempt);
}
HD u64 uniform_of(const Request &r) { return uniform_of(*r.row, *r.config); }

// When a running sum suffices: from a least sum on.
struct Until {
  u64 least;

  HD static Until count(u64 k) { return Until{k}; }
  // A share of the total in Q32; the first token has weight: 0 of it is not enough.
  HD static Until reaches(u64 total, u64 share) {
    const u64 least = static_cast<u64>((static_cast<u128>(share) * total + (ONE_Q32 - 1)) >> 32);
    return Until{least ? least : 1};
  }
  HD static Until exceeds(u64 total, u64 share) { return above(static_cast<u64>((static_cast<u128>(share) * total) >> 32)); }
  HD static Until above(u64 sum) { return Until{sum + 1}; }

  HD bool operator()(u64 sum) const { return sum >= least; }
};

struct Selected {
  u64 key;
  u64 before;  // the sum over larger keys
};

// What a sweep for the first place finds.
struct Survey {
  u64 best = 0, count = 0;
  bool nan = false, infinite = false;
};

// How soon a token joins the typical run: larger is sooner, in 44 bits. Nearest first, at equal distances the likelier side.
HD u64 typical_rank(i64 y, i64 mean) {
  u64 distance = static_cast<u64>(y > mean ? y - mean : mean - y);
  return (1ull << 44) - 1 - (distance << 1 | (y > mean ? 0 : 1));
}

// What a selection over tokens goes by, and which of them take part.
struct Keys {
  enum Kind : u32 { PLACE, RANK, WITHIN_RANK } kind;  // the place; how typical; of tokens of one `rank`, the place or, if `above`, its complement
  bool by_mass, above;                              // by_mass: weights are added; else tokens are counted
  u64 low, high;                                    // places that take no part, if low <= high
  u64 rank;
  i64 mean;

  HD bool of(u32 id, float x, const Weighing &w, u64 &key, u64 &weight) const {
    key = place_of(x, id);
    if (key >= low && key <= high) return false;
    weight = by_mass ? w.q(x) : 1;
    if (kind == PLACE) return true;
    const u64 own = typical_rank(w.y(x), mean);
    if (kind == RANK) key = own;
    else key = above ? ~key : key;
    return kind == RANK || own == rank;
  }
};

// Smoothing by the distance from the largest logit.
struct Smoothing {
  float largest, quadratic, cubic;

  HD Smoothing(const SamplingConfig &c, float best)
      : largest(best), quadratic(c.smoothing_factor * ((3.0f - c.smoothing_curve) / 2.0f)), cubic(c.smoothing_factor * ((c.smoothing_curve - 1.0f) / 2.0f)) {}
  HD Smoothing(float best, float of_square, float of_cube) : largest(best), quadratic(of_square), cubic(of_cube) {}
  HD float operator()(float x) const {
    float distance = largest - x, square = distance * distance;
    return largest - (term(quadratic, square) + term(cubic, square * distance));
  }
};

// What a row's program has come to.
struct Outcome {
  u32 status = NUCLEUS_OK;
  u32 token = NUCLEUS_NO_TOKEN;
  u32 kept = 0;
  i32 feedback = 0;
  float logprob = 0;
  bool drawn_here = false;  // by a slice: this block holds the outcome, all others hold none
};

// Whether `code` looks tokens up in the edit table.
HD bool edits_by_id(u32 code) { return code == NUCLEUS_OP_DRY || code == NUCLEUS_OP_NO_REPEAT_NGRAM || code == NUCLEUS_OP_PENALTIES; }

// Whether a program's first edits by id are made before its first sweep, so that the row begins as they leave it.
template <class Team>
HD bool merges_edits(const Team &team) {
  if constexpr (Team::READS) return team.merges();
  else return Team::SLICES;
}

template <class Team>
struct RowMachine {
  const Team &team;
  const Request &r;
  const EditTable &table;
  Layer layers[Team::SLICES ? 1 : MAX_LAYERS];
  u32 depth = 0;  // index of the uppermost layer
  float temperature = 1.0f;
  u64 count = 0, best = 0;  // tokens left, and the first place of the order
  u32 status = NUCLEUS_OK;
  Weighing w;
  float weighed_at = 0;    // the temperature at which w was taken of as many tokens; 0: of none of this order
  u64 weighed_count = 0;
  bool raw = false;  // the row as it came: no masks, no bias

  HD RowMachine(const Team &t, const Request &request, const EditTable &edits) : team(t), r(request), table(edits) {}

  HD Layer &upper() {
    if constexpr (Team::SLICES) return layers[0];
    else return layers[depth];
  }
  HD static Layer layer(u32 code, float divide) { return Layer{code, divide, 0, 0, 0, 0, ~0ull, 0}; }

  // The logit of a token in the uppermost layer; false if it is out.
  HD_SLOW bool eval(u32 id, float &x) const {
    const Edit *edit = nullptr;
    if constexpr (Team::READS) {
      if (!raw && team.merges()) {
        x = Team::merged(r, table, id);
        return climb(id, x, edit);
      }
    }
    x = load_logit(r, id);
    if (!raw) {
      edit = table.find(id);
      if ((edit && (edit->flags & BANNED)) || !admitted(r, id)) return false;
      if (edit && (edit->flags & BIASED)) x = x + edit->bias;
    }
    return climb(id, x, edit);
  }

  // From the lowest layer, whose logit is given, to the uppermost.
  HD bool climb(u32 id, float &x, const Edit *edit) const {
    UNROLL_NOT
    for (u32 i = 0;; ++i) {
      x = x + 0.0f;
      if (x == -infinity()) return false;
      u64 place = place_of(x, id);
      if (place > layers[i].top || place < layers[i].bottom) return false;
      if (i == depth) return true;
      x = transform(layers[i + 1], x, edit);
    }
  }

  HD float transform(const Layer &l, float x, const Edit *edit) const {
    if (l.divide != 1.0f) x = x / l.divide;
    if (l.code == NUCLEUS_OP_SMOOTHING) return Smoothing(*r.config, l.best)(x);
    if (l.code == NUCLEUS_OP_ADAPTIVE_P) return adapted(Exponent(x, l.s).weight(l.max_n), l.total, r.row->adaptive_target);
    return edit ? apply_edit(l.code, x, *edit, *r.config) : x;
  }

  // Calls f(id, x) for every token that is left in device memory, each on one thread of the team. Slices: sweeps.cuh.
  template <class F>
  HD void sweep(F f) const {
    if constexpr (Team::READS) {
      sweep_by_four(f);
    } else {
      UNROLL_NOT
      for (u32 id = team.rank(); id < r.limit; id += team.size()) {
        float x;
        if (eval(id, x)) f(id, x);
      }
    }
  }
  // The same by a team that reads four logits at a time, those of tokens with edits apart.
  template <class F>
  HD void sweep_by_four(F f) const {
    const u64 top = layers[0].top, bottom = layers[0].bottom;
    const float low = bottom ? logit_at(bottom) : -infinity();
    const bool single = depth == 0;
    team.each_four(r, raw, [&](u32 id, float a, float b, float c, float d) {
      if (fmaxf(fmaxf(a, b), fmaxf(c, d)) < low) return;
      UNROLL_NOT
      for (u32 e = 0; e < 4; ++e, ++id) {
        float x = a + 0.0f;
        a = b;
        b = c;
        c = d;
        if (x == -infinity()) continue;
        if (single) {
          const u64 place = place_of(x, id);
          if (place > top || place < bottom) continue;
        } else if (!climb(id, x, nullptr)) {
          continue;
        }
        f(id, x);
      }
    });
    team.each_apart(r, raw, [&](u32 id, const Edit *) {
      float x;
      if (eval(id, x)) f(id, x);
    });
  }

  // The logits of a slice have changed, and what was out is -inf. Begins a new order.
  HD bool begin_order() {
    layers[0] = layer(NUCLEUS_OP_NONE, 1.0f);
    return settle();
  }

  HD bool settle_slice() {
    weighed_at = 0;
    status = survey_slices(team, !raw && team.unusual(), count, best);
    return status == NUCLEUS_OK;
  }

  // Checks the uppermost layer, counts it and finds its first place.
  HD_SLOW bool settle() {
    if constexpr (Team::SLICES) return settle_slice();
    else return settle_layers();
  }

  HD bool settle_layers() {
    weighed_at = 0;
    u64 sums[2] = {0, 0}, most[2] = {0, 0};
    sweep([&](u32 id, float x) {
      if (x != x) { most[1] |= 2; return; }
      if (x == infinity()) { sums[1] += 1; return; }
      sums[0] += 1;
      u64 place = place_of(x, id);
      most[0] = place > most[0] ? place : most[0];
    });
    team.max(most);
    team.sum(sums);
    count = sums[0];
    best = most[0];
    if (most[1]) status = NUCLEUS_NAN;
    else if (sums[1]) status = NUCLEUS_OVERFLOW;
    return status == NUCLEUS_OK;
  }

  HD bool start(bool unedited) {
    raw = unedited;
    depth = 0;
    temperature = 1.0f;
    status = NUCLEUS_OK;
    layers[0] = layer(NUCLEUS_OP_NONE, 1.0f);
    return settle();
  }

  HD bool edit(u32 code) {
    if constexpr (Team::SLICES) return true;  // made before the first sweep
    else return (merges_edits(team) && edits_by_id(code)) || add_layer(code);
  }

  HD_SLOW bool add_layer(u32 code) {
    layers[depth + 1] = layer(code, temperature);
    if (code == NUCLEUS_OP_ADAPTIVE_P) {  // its weights were taken at the temperature that is divided out: they belong to the layer below
      layers[depth + 1].divide = 1.0f;
      layers[depth + 1].s = w.s;
      layers[depth + 1].max_n = w.max_n;
      layers[depth + 1].total = w.sums.total;
    }
    temperature = 1.0f;
    depth += 1;
    return settle();
  }

  HD bool smooth_slice() {
    float t = temperature;
    temperature = 1.0f;
    divide_slices(team, layers[0].top, layers[0].bottom, t);
    if (!begin_order()) return false;
    if (!count) return true;
    smooth_slices(team, layers[0].top, layers[0].bottom, Smoothing(*r.config, logit_at(best)));
    return begin_order();
  }

  HD_SLOW bool smoothing() {
    if constexpr (Team::SLICES) return smooth_slice();
    else return smooth_layers();
  }

  HD bool smooth_layers() {
    if (!edit(NUCLEUS_OP_NONE)) return false;
    if (!count) return true;
    layers[depth + 1] = layer(NUCLEUS_OP_SMOOTHING, 1.0f);
    layers[depth + 1].best = logit_at(best);
    depth += 1;
    return settle();
  }

  // `moment`: entropy and mean are wanted too. `again`: even if it has been done; every warp of a slice has told its own sum last.
  HD_SLOW bool weigh(bool moment = true, bool again = false) {
    if (!count) { status = NUCLEUS_EMPTY; return false; }
    if (!moment && !again && weighed_at == temperature && weighed_count == count) return true;
    if (!begin_weighing(logit_at(best), temperature, w)) { status = NUCLEUS_OVERFLOW; return false; }
    if constexpr (Team::SLICES) {
      if (moment) w.sums = surprise_in_slices(team, layers[0].top, layers[0].bottom, w.s, w.max_n);
      else w.sums.total = mass_in_slices(team, layers[0].top, layers[0].bottom, w.s, w.max_n);
    } else {
      weigh_layers(moment);
    }
    weighed_at = temperature;
    weighed_count = count;
    return true;
  }
  HD void weigh_layers(bool moment) {
    const Weighing &weighing = w;
    Surprise own;
    sweep([&](u32, float x) {
      const Exponent e(x, weighing.s);
      const u64 q = e.weight(weighing.max_n);
      if (moment) own.add(q, e.log2_q16(weighing.max_n));
      else own.total += q;
    });
    u64 sums[2] = {own.total, static_cast<u64>(own.moment)};
    team.sum(sums);
    w.sums.total = sums[0];
    w.sums.moment = static_cast<i64>(sums[1]);
  }

  // Descending over the keys, the first at which base plus the sum suffices; the smallest key if none does.
  HD Selected select(u32 bits, u64 base, Until until, const Keys &keys) const {
    if constexpr (Team::SLICES) return select_in_slices(team, layers[0].top, layers[0].bottom, w, keys, bits, 0, base, until);
    else return select_in_layers(bits, base, until, keys);
  }
  HD_SLOW Selected select_in_layers(u32 bits, u64 base, Until until, const Keys &keys) const {
    return select_by(bits, base, until, [&](u32 id, float x, u64 &key, u64 &weight) { return keys.of(id, x, w, key, weight); });
  }

  // By digits of the key: f(id, x, key, weight) returns whether the token takes part.
  template <class F>
  HD Selected select_by(u32 bits, u64 base, Until until, F f) const {
    u64 prefix = 0;
    UNROLL_NOT
    for (u32 left = bits; left > 0;) {
      u32 width = left < DIGIT_BITS ? left : DIGIT_BITS, shift = left - width;
      team.clear_bins();
      sweep([&](u32 id, float x) {
        u64 key, weight;
        if (!f(id, x, key, weight) || (left < 64 && (key >> left) != prefix)) return;
        team.add_bin(static_cast<u32>(key >> shift) & ((1u << width) - 1), weight);
      });
      u32 bin = team.find_bin(1u << width, base, until);
      prefix = prefix << width | bin;
      left = shift;
    }
    return Selected{prefix, base};
  }

  // How many of the tokens that are left lie between two places, both inclusive.
  HD u64 count_between(u64 low, u64 high) const {
    if constexpr (Team::SLICES) {
      u64 first;
      return count_in_slices(team, lesser(layers[0].top, high), greater(layers[0].bottom, low), first);
    } else {
      u64 sums[1] = {0};
      sweep([&](u32 id, float x) {
        u64 place = place_of(x, id);
        sums[0] += place >= low && place <= high;
      });
      team.sum(sums);
      return sums[0];
    }
  }
  HD u64 total_count(u64 lowest) const { return count_between(lowest, ~0ull); }
  HD static u64 lesser(u64 a, u64 b) { return a < b ? a : b; }
  HD static u64 greater(u64 a, u64 b) { return a > b ? a : b; }

  HD u64 &bottom() { return upper().bottom; }

  // Keeps the places from `lowest` up, of which there are `kept`.
  HD void cut(u64 lowest, u64 kept) {
    if (kept >= count) return;
    bottom() = lowest;
    count = kept;
  }

  // The place, descending, at which the sum of weights or the count suffices; the lowest place if it never does.
  HD_SLOW u64 select_place(Until until, bool by_mass) const {
    if constexpr (Team::READS) {
      const u64 place = team.place_by_steps(*this, until, by_mass);
      if (place) return place;
    }
    if constexpr (Team::SLICES) return place_in_slices(team, layers[0], w, logit_at(best), until, by_mass);
    else return select(64, 0, until, Keys{Keys::PLACE, by_mass, false, 1, 0, 0, 0}).key;
  }

  HD u64 kth_place(u64 k) const { return select_place(Until::count(k), false); }

  HD_SLOW void keep_first(u64 k, bool ties) {
    if (k >= count) return;
    u64 lowest = kth_place(k);
    if (ties) {
      lowest = lowest >> 32 << 32;
      k = total_count(lowest);
    }
    cut(lowest, k);
  }

  // Keeps the places from `lowest` up, but at least `min_keep` tokens.
  HD_SLOW void keep_from(u64 lowest, u64 min_keep, bool ties) {
    u64 kept = total_count(lowest);
    if (kept < min_keep) {
      // Tokens that pass the cut stay even if the floor's ties reach less far.
      keep_first(min_keep, ties);
    } else {
      cut(lowest, kept);
    }
  }

  HD u64 place_above(float x) const { return x == x ? static_cast<u64>(key_of(x + 0.0f)) << 32 : ~0ull; }

  // Returns the sum of the squares of the distances from the largest logit; `sum` becomes that of the distances.
  HD u128 distances(float largest, u64 &sum) const {
    if constexpr (Team::SLICES) {
      return distances_in_slices(team, layers[0].top, layers[0].bottom, largest, sum);
    } else {
      Distances own;
      sweep([&](u32, float x) { own.add(x, largest); });
      team.sum(own.sum);
      team.sum(own.halves);
      sum = own.sum[0];
      return own.squares();
    }
  }

  HD_SLOW void top_n_sigma(const SamplingOp &op) {
    float largest = logit_at(best);
    u64 sum;
    u128 squares = distances(largest, sum);
    float sigma = from_q16(deviation_q16(count, sum, squares));
    float threshold = largest - op.arg * sigma;
    keep_from(place_above(threshold), op.threshold ? op.threshold : 0, false);
  }

  HD void min_p(const SamplingOp &op, u64 min_keep) {
    float threshold = fmaf(temperature, op.arg, logit_at(best));
    keep_from(place_above(threshold), min_keep, false);
  }

  HD void top_p(const SamplingOp &op, u64 min_keep) {
    keep_from(select_place(Until::reaches(w.sums.total, op.threshold), true), min_keep, false);
  }

  // The lowest place of the beginning whose every token's weight, or surprise, is at least that; equal logits pass or fail together.
  HD_SLOW u64 beginning(i64 least, bool by_weight) const {
    if constexpr (Team::SLICES) {
      const u64 key = largest_below(team, layers[0].top, layers[0].bottom, w.s, w.max_n, least, by_weight);
      return key ? (key + 1) << 32 : 0;
    } else {
      const Weighing &weighing = w;
      u64 most[1] = {0};
      sweep([&](u32, float x) {
        const i64 own = by_weight ? static_cast<i64>(weighing.q(x)) : weighing.y(x);
        if (own >= least) return;
        u64 next = static_cast<u64>(key_of(x)) + 1;
        most[0] = next > most[0] ? next : most[0];
      });
      team.max(most);
      return most[0] << 32;
    }
  }

  // The same of the tokens that have this share of the weights.
  HD u64 probable(u64 probability) const {
    const u128 least = static_cast<u128>(probability) * w.sums.total + (ONE_Q32 - 1);
    return beginning(static_cast<i64>(static_cast<u64>(least >> 32)), true);
  }

  HD_SLOW void exclude_top_choices(const SamplingOp &op, u64 min_keep) {
    u64 lowest = probable(op.threshold), kept = total_count(lowest);
    if (kept < 2) return;
    u64 removed = kept - 1;
    if (count - removed < min_keep) return;
    upper().top = best = last_from(lowest);
    count -= removed;
  }

  // The last place that is left from `lowest` up.
  HD u64 last_from(u64 lowest) const {
    if constexpr (Team::SLICES) {
      return last_in_slices(team, layers[0].top, greater(layers[0].bottom, lowest));
    } else {
      u64 most[1] = {0};
      sweep([&](u32 id, float x) {
        u64 place = place_of(x, id);
        if (place >= lowest) most[0] = ~place > most[0] ? ~place : most[0];
      });
      team.max(most);
      return ~most[0];
    }
  }
  // The first place that is left from `highest` down.
  HD u64 first_to(u64 highest) const {
    u64 most[1] = {0};
    if constexpr (Team::SLICES) {
      count_in_slices(team, lesser(layers[0].top, highest), layers[0].bottom, most[0]);
    } else {
      sweep([&](u32 id, float x) {
        u64 place = place_of(x, id);
        if (place <= highest && place > most[0]) most[0] = place;
      });
      team.max(most);
    }
    return most[0];
  }

  // Joins tokens until the sum suffices, to `low` and `high`; tokens within [low, high] are in already.
  HD_SLOW void join_typical(i64 mean, bool by_mass, u64 base, Until until, u64 &low, u64 &high) const {
    Keys keys{Keys::RANK, by_mass, false, low, high, 0, mean};
    Selected nearest = select_rank(base, until, keys);
    // Among tokens of one y the run grows away from the mean: upwards on the likelier side, downwards on the other.
    bool above = !((((1ull << 44) - 1) - nearest.key) & 1);
    keys.kind = Keys::WITHIN_RANK;
    keys.above = above;
    keys.rank = nearest.key;
    u64 end = last_of_rank(nearest.before, until, keys);
    if constexpr (Team::SLICES) {
      reach_of_typical(team, layers[0].top, layers[0].bottom, w.s, w.max_n, mean, nearest.key, end, above, low, high);
    } else {
      const Weighing &weighing = w;
      u64 most[2] = {0, 0};
      sweep([&](u32 id, float x) {
        u64 place = place_of(x, id);
        if (place >= keys.low && place <= keys.high) return;
        u64 rank = typical_rank(weighing.y(x), mean);
        bool joins = rank > nearest.key || (rank == nearest.key && (above ? place <= end : place >= end));
        if (!joins) return;
        most[0] = place > most[0] ? place : most[0];
        most[1] = ~place > most[1] ? ~place : most[1];
      });
      team.max(most);
      high = most[0] > high ? most[0] : high;
      low = ~most[1] < low ? ~most[1] : low;
    }
  }

  HD Selected select_rank(u64 base, const Until &until, const Keys &keys) const {
    if constexpr (Team::SLICES) {
      // Most often it lies within 32 octaves of the mean, which 22 bits tell.
      const Selected near = select_in_slices(team, layers[0].top, layers[0].bottom, w, keys, 2 * DIGIT_BITS, (1ull << 22) - 1, base, until);
      if (near.key & ((1u << 22) - 1) || near.before != base) return near;
    }
    return select(44, base, until, keys);
  }
  HD u64 last_of_rank(u64 before, const Until &until, const Keys &keys) const {
    if constexpr (Team::SLICES) {
      const auto end = end_of_rank(team, layers[0].top, layers[0].bottom, w.s, w.max_n, keys, before, until);
      if (end.found) return end.place;
    }
    const u64 last = select(64, before, until, keys).key;
    return keys.above ? ~last : last;
  }

  HD_SLOW void typical(const SamplingOp &op, u64 min_keep) {
    i64 mean = w.sums.mean_q16();
    bool strict = r.config->flags & NUCLEUS_TYPICAL_STRICT;
    u64 low = ~0ull, high = 0;
    join_typical(mean, true, 0, strict ? Until::exceeds(w.sums.total, op.threshold) : Until::reaches(w.sums.total, op.threshold), low, high);
    if (r.config->flags & NUCLEUS_KEEP_TIES) {
      low = low >> 32 << 32;
      high = high | 0xFFFFFFFFu;
    }
    u64 kept = count_between(low, high), wanted = min_keep < count ? min_keep : count;
    if (kept < wanted) {
      join_typical(mean, false, kept, Until::count(wanted), low, high);
      kept = wanted;
    }
    // The bounds are moved to tokens that are there, so that `top` is the first place.
    upper().top = best = first_to(high);
    bottom() = low > bottom() ? low : bottom();
    count = kept;
  }

  // Lists the beginning of the order in which the cut of an operation on a slice lies; returns how many tokens it has; 0: it is not listed. `total`: what all weighs,
  // 0 where it does not matter.
  HD_SLOW u32 list_beginning(const SamplingOp &op, u64 &total) {
    total = 0;
    if constexpr (Team::SLICES) {
      if (op.code == NUCLEUS_OP_TOP_K && op.threshold <= LIST_WORTH)
        return beginning_in_slices(team, layers[0], w, logit_at(best), Until::count(op.threshold), false, 0);
      if (op.code == NUCLEUS_OP_TOP_P && weigh(false)) {
        total = w.sums.total;
        return beginning_in_slices(team, layers[0], w, logit_at(best), Until::reaches(total, op.threshold), true, r.config->min_keep);
      }
    }
    return 0;
  }

  // One truncation of at least one token, but for tfs (tail.cuh); false: a status.
  HD bool truncate(const SamplingOp &op) {
    u64 min_keep = r.config->min_keep ? r.config->min_keep : 1;
    bool ties = r.config->flags & NUCLEUS_KEEP_TIES;
    bool weighs = op.code != NUCLEUS_OP_TOP_N_SIGMA && op.code != NUCLEUS_OP_TOP_K && op.code != NUCLEUS_OP_MIN_P;
    if (weighs && !weigh(op.code == NUCLEUS_OP_TYPICAL_P || op.code == NUCLEUS_OP_ETA)) return false;
    switch (op.code) {
      case NUCLEUS_OP_TOP_N_SIGMA: top_n_sigma(op); break;
      case NUCLEUS_OP_TOP_K: keep_first(op.threshold, ties); break;
      case NUCLEUS_OP_TYPICAL_P: typical(op, min_keep); break;
      case NUCLEUS_OP_TOP_P: top_p(op, min_keep); break;
      case NUCLEUS_OP_MIN_P: min_p(op, min_keep); break;
      case NUCLEUS_OP_EPSILON: keep_from(probable(op.threshold), min_keep, ties); break;
      case NUCLEUS_OP_ETA: keep_from(probable(eta_threshold(op.threshold, w.sums)), min_keep, ties); break;
      case NUCLEUS_OP_TOP_A:
        keep_from(probable(top_a_threshold(op.threshold, w.q(logit_at(best)), w.sums.total)), min_keep, false);
        break;
      default:
        if (xtc_acts(*r.row, *r.config)) exclude_top_choices(op, min_keep);
    }
    return true;
  }

  // One operation before the choice; false: a status.
  HD bool apply(const SamplingOp &op) {
    switch (op.code) {
      case NUCLEUS_OP_NONE: return true;
      case NUCLEUS_OP_DRY: case NUCLEUS_OP_NO_REPEAT_NGRAM: case NUCLEUS_OP_PENALTIES: return edit(op.code);
      case NUCLEUS_OP_TEMPERATURE: temperature = op.arg; return true;
      case NUCLEUS_OP_DYNAMIC_TEMPERATURE:
        if (!count) return true;
        if (!weigh()) return false;
        temperature = dynamic_temperature(count, w.sums, r.config->temperature, r.config->dynatemp_range, r.config->dynatemp_exponent);
        return true;
      case NUCLEUS_OP_SMOOTHING: return smoothing();
      default: return !count || truncate(op);
    }
  }

  HD_SLOW void mirostat_2() {
    i64 offset = w.sums.offset_q16(), mu = r.row->mirostat_mu;
    keep_from(beginning(offset - mu, false), 1, false);
  }

  // The logit of one token in the uppermost layer.
  HD float logit_of(u32 id) const {
    float x = 0;
    eval(id, x);
    return x;
  }

  // The choice. Mirostat 1 runs on lists, where its first 100 tokens are at hand: `zipf_count` is how many it keeps.
  HD Outcome choose(const SamplingOp &op, u64 zipf_count) {
    Outcome out;
    if (!count) status = NUCLEUS_EMPTY;
    if (status == NUCLEUS_OK && op.code == NUCLEUS_OP_ARGMAX) {
      out.token = id_at(best);
      out.kept = 1;
      return out;
    }
    if (status == NUCLEUS_OK && weigh(false, Team::SLICES)) decide(op, zipf_count, out);
    out.status = status;
    return out;
  }

  // What follows from the chosen token's logit.
  HD void conclude(const SamplingOp &op, float x, Outcome &out) const {
    out.logprob = processed_logprob(w.q(x), w.sums.total);
    if (op.code == NUCLEUS_OP_MIROSTAT_1 || op.code == NUCLEUS_OP_MIROSTAT_2) out.feedback = feedback_of(w.sums.offset_q16() - w.y(x));
  }

  HD void draw_in_slice(const SamplingOp &op, u64 target, Outcome &out) const {
    const u64 place = draw_in_slices(team, layers[0].top, layers[0].bottom, w.s, w.max_n, target);
    out.drawn_here = place != 0;
    if (!place) return;
    out.token = id_at(place);
    conclude(op, logit_at(place), out);
  }

  HD void draw_by_id(const SamplingOp &op, u64 target, Outcome &out) const {
    if constexpr (Team::READS) {
      out.token = team.draw(*this, target);
    } else {
      const Weighing &weighing = w;
      Selected drawn = select_by(19, 0, Until::above(target), [&](u32 id, float x, u64 &key, u64 &weight) {
        key = (NUCLEUS_MAX_VOCAB - 1) - id;
        weight = weighing.q(x);
        return true;
      });
      out.token = (NUCLEUS_MAX_VOCAB - 1) - static_cast<u32>(drawn.key);
    }
    conclude(op, logit_of(out.token), out);
  }

  // What the choice itself keeps, and the weights that it draws by; false: a status.
  HD bool narrow(const SamplingOp &op, u64 zipf_count) {
    if (op.code == NUCLEUS_OP_MIROSTAT_1) keep_first(zipf_count, false);
    if (op.code == NUCLEUS_OP_MIROSTAT_2) mirostat_2();
    if (op.code == NUCLEUS_OP_ADAPTIVE_P && !edit(op.code)) return false;
    return op.code == NUCLEUS_OP_DRAW || weigh(false, Team::SLICES);
  }

  HD_SLOW void decide(const SamplingOp &op, u64 zipf_count, Outcome &out) {
    Weighing before = w;
    u32 below = depth;
    if (!narrow(op, zipf_count)) return;
    u64 target = mulhi64(uniform_of(r), w.sums.total);
    out.kept = static_cast<u32>(count);
    if constexpr (Team::SLICES) draw_in_slice(op, target, out);
    else draw_by_id(op, target, out);
    if constexpr (!Team::SLICES) {
      if (op.code != NUCLEUS_OP_ADAPTIVE_P) return;
      depth = below;
      u128 q = static_cast<u128>(before.q(logit_of(out.token))) << 16;
      out.feedback = static_cast<i32>(q / (before.sums.total ? before.sums.total : 1));
    }
  }
};

// Collects the tokens that are left, of places from `lowest` to `highest`, in the leader's list, sorted; returns how many.
template <class Team>
HD u32 gather(const Team &team, const RowMachine<Team> &machine, u64 lowest, u64 highest) {
  u32 count;
  if constexpr (Team::SLICES) {
    count = list_between(team, machine.lesser(machine.layers[0].top, highest), machine.greater(machine.layers[0].bottom, lowest));
  } else {
    team.begin_list();
    machine.sweep([&](u32 id, float x) {
      u64 place = place_of(x, id);
      if (place >= lowest && place <= highest) team.append(place);
    });
    count = team.end_list();
  }
  if (team.leader()) team.sort_list(count);
  return count;
}

}  // namespace nucleus
