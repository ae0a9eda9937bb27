// A row's program as sweeps over slices: what each sweep is to find, and what follows from it. For programs whose every cut follows from sums over what is left of
// the row: top_n_sigma, typical, min_p, epsilon, eta, top_a, XTC and mirostat 2, with temperatures, dynamic ones too, and smoothing between them.
#pragma once

#include "call.cuh"
#include "typical.cuh"

namespace nucleus {

// Whether a program whose edits by id come first is one of these; by a warp.
__device__ __forceinline__ bool cuts_by_sums(const SamplingProgram &program) {
  constexpr u32 KNOWN = 1u << NUCLEUS_OP_NONE | 1u << NUCLEUS_OP_DRY | 1u << NUCLEUS_OP_PENALTIES | 1u << NUCLEUS_OP_NO_REPEAT_NGRAM | 1u << NUCLEUS_OP_TEMPERATURE |
                        1u << NUCLEUS_OP_DYNAMIC_TEMPERATURE | 1u << NUCLEUS_OP_SMOOTHING | 1u << NUCLEUS_OP_TOP_N_SIGMA | 1u << NUCLEUS_OP_TYPICAL_P | 1u << NUCLEUS_OP_MIN_P |
                        1u << NUCLEUS_OP_EPSILON | 1u << NUCLEUS_OP_ETA | 1u << NUCLEUS_OP_TOP_A | 1u << NUCLEUS_OP_XTC;
  constexpr u32 LAST = 1u << NUCLEUS_OP_DRAW | 1u << NUCLEUS_OP_MIROSTAT_2;
  const u32 lane = threadIdx.x % 32, last = program.len - 1, code = lane < program.len && lane < NUCLEUS_MAX_OPS ? program.ops[lane].code : NUCLEUS_OP_NONE;
  return __all_sync(~0u, (lane == last ? LAST : KNOWN) >> code & 1);
}

// Words of a sweep's two, as bits, of which the largest is wanted; of the others the sum.
constexpr u32 SUM_AND_LARGEST = 2, LARGEST_OF_BOTH = 3, SUMS_OF_BOTH = 0;

// The same in every block of a cluster; of one, in shared memory, by its first thread. What a cut keeps is counted by the next sweep; where that is less than it has
// to keep, the exact path decides the row from its beginning.
struct SumsState {
  // What the next sweep finds, in two words of every thread.
  enum Step : u32 {
    SURVEY,     // tokens, and what is strange; the first logit
    SMOOTH,     // divides and smooths the logits, then the same
    MASS,       // weight, tokens
    MOMENT,     // weight, moment of the surprise
    DISTANCES,  // from the largest logit: their sum, that of their squares
    FAILING,    // the largest logit whose weight, or surprise, is below `number`
    LAST,       // tokens from `lowest` up, the complement of the last place
    RANGE,      // of typical tokens: bins between which the run ends
    END,        // its last token
    RUN,        // its first place, the complement of its last
    DRAW,
    DONE
  } step;
  static constexpr u32 STRANGE_AT = 24, FAR_AT = 51;  // bits of a sum
  static constexpr u32 FAR = 1u << 22;                // distances from which on squares may not be added up in one word

  Fate fate;
  u32 op;
  bool counted, changed;     // changed: the slices are not as they were brought
  bool narrowed, last;       // mirostat has cut; the weights are those of the draw
  bool by_weight;
  float temperature, s;
  i32 max_n, mean;
  u32 shift;
  OrderRange range, other_range;
  u64 top, bottom, best, count, least;  // places that are left, the first of them, tokens, and how many cuts since they were counted have to keep
  u64 total, lowest, end;
  u64 uniform, before;  // the number that draws; what weighs all that comes before the part in which the draw falls
  u32 part;
  i64 number;
  Until until;

  __device__ __forceinline__ static SumsState *here() { return reinterpret_cast<SumsState *>(shared_state()->task); }
  __device__ __forceinline__ static const SamplingConfig &config() { return shared_state()->config; }
  __device__ __forceinline__ static u32 min_keep() { return config().min_keep ? config().min_keep : 1; }

  __device__ __forceinline__ void begin() {
    step = SURVEY;
    changed = narrowed = last = false;
    left_is_all();
  }
  __device__ __forceinline__ void left_is_all() {
    top = ~0ull;
    bottom = 0;
    temperature = 1.0f;
  }
  __device__ __forceinline__ float largest() const { return logit_at(best); }
  __device__ __forceinline__ Typical typical() const { return Typical{s, max_n, mean}; }
  __device__ __forceinline__ Smoothing smoothing() const { return Smoothing(config(), largest() / temperature + 0.0f); }

  __device__ __forceinline__ void stop(Fate how) {
    step = DONE;
    fate = how;
  }
  // The exact path goes on; from device memory if the slices have changed.
  __device__ __forceinline__ void give_up() { stop(changed ? Fate::STRANGE : Fate::MANY); }

  // Keeps the places from `from` up, at least so many tokens.
  __device__ __forceinline__ void cut(u64 from, u64 keep) {
    bottom = from > bottom ? from : bottom;
    least = keep > least ? keep : least;
    counted = false;
  }
  __device__ __forceinline__ void cut_at(float x, u64 keep) { cut(x == x ? static_cast<u64>(key_of(x + 0.0f)) << 32 : ~0ull, keep); }
  // False: cuts have kept too few.
  __device__ __forceinline__ bool count_is(u64 tokens) {
    const bool enough = tokens && (counted || tokens >= least);
    count = tokens;
    counted = true;
    least = 0;
    return enough;
  }
  // Not inlined, nor is what else several steps end with: one thread fetches these instructions, once a sweep.
  static __device__ __noinline__ void weigh(Step how) {
    SumsState &state = *here();
    Weighing w;
    if (!begin_weighing(state.largest(), state.temperature, w)) return state.give_up();
    state.s = w.s;
    state.max_n = w.max_n;
    state.step = how;
  }
  __device__ __forceinline__ void find_failing(i64 from, bool of_weight) {
    number = from;
    by_weight = of_weight;
    step = FAILING;
  }
  __device__ __forceinline__ void find_improbable(u64 probability) {
    find_failing(static_cast<i64>(static_cast<u64>((static_cast<u128>(probability) * total + (ONE_Q32 - 1)) >> 32)), true);
  }

  // Goes on to the next operation that needs a sweep.
  static __device__ __noinline__ void go_on() { here()->find_next(); }
  __device__ __forceinline__ void find_next() {
    const SamplingProgram &program = shared_state()->program;
    step = DONE;
    UNROLL_NOT
    while (step == DONE) {
      op += 1;
      const SamplingOp &own = program.ops[op];
      if (op + 1 == program.len) {
        last = own.code != NUCLEUS_OP_MIROSTAT_2;
        return weigh(MASS);
      }
      switch (own.code) {
        case NUCLEUS_OP_TEMPERATURE: temperature = own.arg; break;
        case NUCLEUS_OP_SMOOTHING: step = SMOOTH; break;
        case NUCLEUS_OP_MIN_P: cut_at(fmaf(temperature, own.arg, largest()), min_keep()); break;
        case NUCLEUS_OP_TOP_N_SIGMA:
          if (!counted) return weigh(MASS);
          step = DISTANCES;
          break;
        case NUCLEUS_OP_DYNAMIC_TEMPERATURE: return weigh(counted ? MOMENT : MASS);
        case NUCLEUS_OP_TYPICAL_P:
          if (config().flags & NUCLEUS_KEEP_TIES) return give_up();
          return weigh(MOMENT);
        case NUCLEUS_OP_ETA: return weigh(MOMENT);
        case NUCLEUS_OP_EPSILON: case NUCLEUS_OP_TOP_A: return weigh(MASS);
        case NUCLEUS_OP_XTC:
          weigh(MASS);
          if (step == DONE || xtc_acts(shared_state()->row, config())) return;
          step = DONE;
          break;
        default: break;
      }
    }
  }

  __device__ __forceinline__ void surveyed(u64 tokens, u64 first) {
    if (tokens >> STRANGE_AT) return stop(Fate::STRANGE);
    best = first;
    if (step == SURVEY) {
      counted = true;
      least = 0;
      op = ~0u;
    } else {
      left_is_all();
      changed = true;
    }
    if (!count_is(tokens)) return give_up();
    go_on();
  }
  __device__ __forceinline__ void weighed(u64 mass, u64 tokens) {
    total = mass;
    if (!count_is(tokens)) return give_up();
    if (last) {
      step = DRAW;
      return;
    }
    const SamplingOp &own = shared_state()->program.ops[op];
    Weighing w;
    w.s = s;
    w.max_n = max_n;
    w.sums.total = mass;
    switch (own.code) {
      case NUCLEUS_OP_TOP_N_SIGMA: step = DISTANCES; break;
      case NUCLEUS_OP_DYNAMIC_TEMPERATURE: step = MOMENT; break;
      case NUCLEUS_OP_MIROSTAT_2: find_failing(w.sums.offset_q16() - shared_state()->row.mirostat_mu, false); break;
      case NUCLEUS_OP_TOP_A: find_improbable(top_a_threshold(own.threshold, w.q(largest()), mass)); break;
      default: find_improbable(own.threshold);
    }
  }
  __device__ __forceinline__ void weighed_with_moment(u64 mass, i64 moment) {
    total = mass;
    const SamplingOp &own = shared_state()->program.ops[op];
    Surprise sums;
    sums.total = mass;
    sums.moment = moment;
    if (own.code == NUCLEUS_OP_ETA) return find_improbable(eta_threshold(own.threshold, sums));
    if (own.code == NUCLEUS_OP_DYNAMIC_TEMPERATURE) {
      temperature = dynamic_temperature(count, sums, config().temperature, config().dynatemp_range, config().dynatemp_exponent);
      return go_on();
    }
    constexpr u32 UNITS = 31;  // bits of what weights are added up to
    const u32 bits = 64 - leading_zeros(mass);
    mean = static_cast<i32>(sums.mean_q16());
    shift = bits > UNITS ? bits - UNITS : 0;
    until = config().flags & NUCLEUS_TYPICAL_STRICT ? Until::exceeds(mass, own.threshold) : Until::reaches(mass, own.threshold);
    step = RANGE;
  }
  __device__ __forceinline__ void measured(u64 sum, u64 squares) {
    if (sum >> FAR_AT) return give_up();
    const SamplingOp &own = shared_state()->program.ops[op];
    cut_at(largest() - own.arg * from_q16(deviation_q16(count, sum, squares)), own.threshold);
    go_on();
  }
  __device__ __forceinline__ void failed(u64 key) {
    const u64 from = key ? (key + 1) << 32 : 0;
    const u32 code = shared_state()->program.ops[op].code;
    if (code == NUCLEUS_OP_XTC) {
      lowest = from > bottom ? from : bottom;
      step = LAST;
    } else if (code == NUCLEUS_OP_MIROSTAT_2) {
      cut(from, 1);
      last = true;
      weigh(MASS);
    } else {
      cut(from, min_keep());
      go_on();
    }
  }
  __device__ __forceinline__ void excluded(u64 passing, u64 last_of_them) {
    if (passing > 1 && count - (passing - 1) >= min_keep()) {
      top = best = last_of_them;
      count -= passing - 1;
    }
    go_on();
  }
  __device__ __forceinline__ void ended(u64 key) {
    end = key;
    if (key) {
      step = RUN;
      return;
    }
    if (!other_range.far) return give_up();
    range = other_range;
    other_range.far = 0;
  }
  __device__ __forceinline__ void run_found(u64 first, u64 last_place) {
    top = best = first;
    cut(last_place, min_keep());
    go_on();
  }
  // What follows from what all threads have found.
  __device__ __forceinline__ void advance(u64 a, u64 b) {
    switch (step) {
      case SURVEY: case SMOOTH: return surveyed(a, b);
      case MASS: return weighed(a, b);
      case MOMENT: return weighed_with_moment(a, static_cast<i64>(b));
      case DISTANCES: return measured(a, b);
      case FAILING: return failed(a);
      case LAST: return excluded(a, ~b);
      case RANGE:
        range = OrderRange::of(a, b, other_range);
        if (!range.far) return give_up();
        step = END;
        return;
      case END: return ended(a);
      case RUN: return run_found(a, ~b);
      default: return;
    }
  }
};
static_assert(sizeof(SumsState) <= sizeof(Shared::task) && alignof(SumsState) <= alignof(u64));

}  // namespace nucleus
