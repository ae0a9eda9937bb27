// Draws from rows without edits that are not weighed plainly. All are read once; what is weighed again lies in the rings still.
//
// The moment of the surprise, from which the entropy follows, is summed beside the weights, where a cut or the temperature needs it (draw_cut.cuh). Dynamic temperature: the block that
// finishes the row is told weight and moment first, and answers with the scale by which the row is weighed again. Smoothing: logits become what they are smoothed to when they are weighed,
// and again where the draw falls.
#pragma once

#include "draw_top_p.cuh"

namespace nucleus::draw {

// Logits of a row as smoothing leaves them.
struct Smoothed {
  Smoothing smoothing;
  float temperature;

  // `key`: of the largest logit as it came.
  __device__ __forceinline__ Smoothed(u32 key, const SmoothingPlan &plan) : smoothing(0.0f, plan.quadratic, plan.cubic), temperature(plan.temperature) {
    smoothing.largest = (temperature == 1.0f ? value_of(key) : value_of(key) / temperature) + 0.0f;
  }
  __device__ __forceinline__ float operator()(float x) const { return smoothing(temperature == 1.0f ? x : x / temperature); }
  // Whether nothing is divided and cubes do not count.
  __device__ __forceinline__ bool is_plain() const { return temperature == 1.0f && smoothing.cubic == 0.0f; }
  __device__ __forceinline__ float plainly(float x) const {
    const float distance = smoothing.largest - x;
    return smoothing.largest - smoothing.quadratic * (distance * distance);
  }
  // x / t to the bit, by its inverse, of numbers such as logits and temperatures are; -inf or NaN where that is -inf.
  __device__ __forceinline__ static float quotient(float x, float t, float inverse) {
    float q = x * inverse;
    q = fmaf(fmaf(-t, q, x), inverse, q);
    return fmaf(fmaf(-t, q, x), inverse, q);
  }
  // How they are weighed; false: not by sums of doubles.
  __device__ __forceinline__ bool begin(Weighing &w) const { return begin_weighing_by(scale(1.0f), smoothing.largest, w) && DoubleAddends(w).serve; }
};

template <u32 DTYPE, Form FORM>
using DrawerOf = std::conditional_t<lists_tokens(FORM), ListedDrawer<DTYPE, FORM>, Drawer<DTYPE, takes_masks(FORM), FORM>>;

// A warp that weighs its chunks of every row.
template <u32 DTYPE, Form FORM>
struct SumsDrawer : DrawerOf<DTYPE, FORM> {
  using Base = DrawerOf<DTYPE, FORM>;
  using D = Drawer<DTYPE, takes_masks(FORM), FORM>;
  using typename D::P;
  using typename D::Told;
  using D::shape, D::state, D::block, D::team, D::member;
  RowSums *row_sums;
  u32 asked = 0;  // rows whose temperature it has waited for

  // What weigh_by adds up where the moment of this lane's tokens is asked for, too.
  struct Moments : DoubleMoments {
    using Sum = DoubleMoments::Sums;
    i64 &of_lane;

    __device__ __forceinline__ Moments(const Weighing &w, i64 &moment) : DoubleMoments(w), of_lane(moment) {}
    __device__ __forceinline__ u64 taken(const Sum &sum) const {
      of_lane += moment(sum);
      return mass(sum);
    }
    template <bool RAISE, bool FUSE>
    __device__ __forceinline__ void add(float x, Sum &sum) const {
      DoubleMoments::template add<RAISE>(x, sum);
    }
  };
  // The weights of the chunks, and the moment of the surprise of the warp's tokens; none of either where it is not summed by doubles.
  __device__ __forceinline__ u64 weigh_moments(bool weighs, const Weighing &w, float lowest, bool leaves, i64 &moment) const {
    i64 of_lane = 0;
    const Moments moments(w, of_lane);
    if (!weighs || !moments.serve) {
      if (leaves) D::leave_all();
      return 0;
    }
    const bool leaver = leaves && threadIdx.x % 32 == 0;
    const auto sweep_all = [&](auto begin, auto add, auto end) { return D::sweep_row(leaver, begin, add, end); };
    const u64 runs = moments.reach(lowest) ? D::template weigh_by<D::AS_THEY_ARE>(w, moments, sweep_all) : D::template weigh_by<D::RAISED>(w, moments, sweep_all);
    moment = static_cast<i64>(DeviceWarp{}.sum(static_cast<u64>(of_lane)));
    return runs;
  }
  // Tells the block that finishes the row, which has finished so many before, what its temperature follows from.
  __device__ __forceinline__ void ask(u32 to, u32 use, u64 mass, u32 there, i64 moment) const {
    const u32 lane = threadIdx.x % 32, own = block * shape.members + member;
    if (use) receive(&state->freed[to], (use - 1) & 1);
    if (lane >= 3) return;
    const u64 *const at = lane == 0 ? &draw_messages()[shape.raw_at() + own] : lane == 1 ? &draw_messages()[shape.there_at() + own] : &row_sums->moments[own];
    send_u64(address_in(shared_address(at), to), lane == 0 ? mass : lane == 1 ? there : static_cast<u64>(moment), address_in(shared_address(&row_sums->told), to));
  }
  // The scale by that temperature, when it is there.
  __device__ __forceinline__ float await_answer() {
    u64 *const answered = &row_sums->answered[team];
    receive(answered, asked & 1);
    asked += 1;
    if (D::meeting.first_warp && threadIdx.x % 32 == 0) arrive_expecting(answered, sizeof(float));
    return row_sums->scales[team];
  }
  __device__ __forceinline__ u64 weigh_smoothed(bool weighs, float lowest, u32 turn, Told &told) const {
    const Smoothed smoothed(told.largest, row_sums->smoothings[turn]);
    Weighing w;
    if (!weighs || !smoothed.begin(w)) {
      D::leave_all();
      return 0;
    }
    const bool leaver = threadIdx.x % 32 == 0;
    const auto sweep_all = [&](auto begin, auto add, auto end) { return D::sweep_row(leaver, begin, add, end); };
    // None is out that was not before.
    if (smoothed.is_plain() && smoothed.plainly(lowest) > -infinity()) return D::template weigh_by<D::RAISED>(w, DoubleAddends(w), sweep_all, [&](float x) { return smoothed.plainly(x); });
    u32 there = 0;
    const float inverse = 1.0f / smoothed.temperature;
    const u64 runs = D::template weigh_by<D::RAISED>(w, DoubleAddends(w), sweep_all, [&](float x) {
      const float own = smoothed.smoothing(Smoothed::quotient(x, smoothed.temperature, inverse));
      there += own > -infinity();
      return own;
    });
    told.there = __reduce_add_sync(~0u, there);
    return runs;
  }
  __device__ __forceinline__ void take_turns() {
    D::take_turns([&](u32 turn, u32 to, u32 use) {
      const auto looked = [&](const RowPlan &plan, const SeenPart &seen) {
        if constexpr (lists_tokens(FORM)) Base::leave(plan, seen);
      };
      return D::weigh_row(turn, looked, [&](const RowPlan &plan, bool weighs, const Weighing &w, const SeenPart &seen, bool fuses, bool last, Told &told) -> u64 {
        Weighing own = w;
        // Where there is nothing else, other rows are weighed so, too.
        if (FORM == Form::SURPRISE || (takes_moments(FORM) && last && plan.kind == SlicePlan::SURPRISE)) return weigh_moments(weighs, w, seen.lowest, last, told.moment);
        if (smooths(FORM) && last && plan.kind == SlicePlan::SMOOTHED) return weigh_smoothed(weighs, seen.lowest, turn, told);
        if (warms(FORM) && last && plan.warmed()) {
          i64 moment = 0;
          const u64 mass = sum_of_lanes(weigh_moments(weighs, w, seen.lowest, false, moment));
          if (plan.s == scale(1.0f) && !(plan.flags & RowPlan::MASKED)) told.raw = mass;  // of the row as it came
          ask(to, use, mass, seen.count, moment);
          own.s = await_answer();
          weighs = weighs && begin_weighing_by(own.s, value_of(told.largest), own);
          fuses = P::fuses(value_of(seen.key), own.s);
        }
        if (weighs) return D::weigh_plainly(own, seen, fuses, last, false);
        if (last) D::leave_all();
        return 0;
      });
    });
  }
};

// What a block's finishing warps, F, do of rows that are not weighed plainly.
template <class F>
struct SumsFinish {
  const F &f;
  RowSums *row_sums;

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    if (f.thread()) return;
    init_barrier(&row_sums->told, 1);
    for (u32 team = 0; team < f.shape.teams; ++team) {
      init_barrier(&row_sums->answered[team], 1);
      arrive_expecting(&row_sums->answered[team], sizeof(float));
    }
  }
  // A row's temperature, by all threads. `log2_mass`: of what its tokens weigh, their mean surprise taken off; both as of Surprise.
  __device__ __forceinline__ float temperature_of(u64 count, i64 log2_mass, i64 log2_count) const {
    const SamplingConfig &config = f.state->description.config;
    const i64 entropy = log2_mass - (static_cast<i64>(WEIGHT_BITS) << 16);
    return dynamic_temperature_of(count, entropy > 0 ? entropy : 0, log2_count, config.temperature, config.dynatemp_range, config.dynatemp_exponent);
  }
  // One warp takes the logarithms of the weight and another that of the number of tokens.
  __device__ __forceinline__ i64 statistic(const Surprise &all, u64 count) const { return f.thread() / 32 ? log2_q16(count) : log2_q16(all.total) - all.mean_q16(); }
  // The temperature that follows from what the warps have told of a row, the scale of which is told the team that weighs it. `use`: such rows before.
  __device__ __forceinline__ float answer(u32 turn, u32 use) const {
    const DrawShape &shape = f.shape;
    const u32 t = f.thread(), warp = t / 32;
    if (t == 0) arrive_expecting(&row_sums->told, shape.warps() * 3 * static_cast<u32>(sizeof(u64)));
    if (use == 0) {
      // Instructions are fetched before they are needed.
      volatile float made_up = temperature_of(1000, statistic(Surprise{1ull << 50, -(1ll << 52)}, 1000) + (50ll << 16), 20 << 16);
      static_cast<void>(made_up);
    }
    receive(&row_sums->told, use & 1);
    u64 mass = 0, moment = 0;
    u32 there = 0;
    for (u32 i = t; i < shape.warps(); i += F::FINISH_THREADS) {
      mass += draw_messages()[shape.raw_at() + i];
      moment += row_sums->moments[i];
      there += static_cast<u32>(draw_messages()[shape.there_at() + i]);
    }
    mass = DeviceWarp{}.sum(mass);
    moment = DeviceWarp{}.sum(moment);
    there = __reduce_add_sync(~0u, there);
    if (t % 32 == 0) {
      row_sums->masses_of_warps[warp] = mass;
      row_sums->moments_of_warps[warp] = static_cast<i64>(moment);
      row_sums->there_of_warps[warp] = there;
    }
    f.sync();
    Surprise all;
    u64 count = 0;
#pragma unroll
    for (u32 i = 0; i < F::FINISHERS; ++i) {
      all.total += row_sums->masses_of_warps[i];
      all.moment += row_sums->moments_of_warps[i];
      count += row_sums->there_of_warps[i];
    }
    if (warp < 2) {
      const i64 own = statistic(all, count);
      if (t % 32 == 0) row_sums->statistics[warp] = own;
    }
    f.sync();
    const float temperature = temperature_of(count, row_sums->statistics[0], row_sums->statistics[1]), s = scale(temperature);
    const u32 team = turn & (shape.teams - 1);
    if (t < shape.blocks) send_u32(address_in(shared_address(&row_sums->scales[team]), t), bits_of(s), address_in(shared_address(&row_sums->answered[team]), t));
    return temperature;
  }
  // What is known of a row, whose scale is that of its temperature then. `answered`: rows before that had to wait for it.
  template <bool WARMS>
  __device__ __forceinline__ typename F::Known learn(u32 turn, u32 use, u32 &answered) const {
    float first_s = 0.0f;
    typename F::Known row = f.learn(turn, use, [&](typename F::Known &own) {
      if (!WARMS || !own.plan.warmed()) return;
      first_s = own.plan.s;
      own.plan.temperature = answer(turn, answered);
      own.plan.s = scale(own.plan.temperature);
      answered += 1;
    });
    if (WARMS && row.plan.warmed() && row.key && row.key < INFINITE) {
      Weighing first;
      if (!begin_weighing_by(first_s, value_of(row.key), first)) row.status = NUCLEUS_OVERFLOW;
      else if (!DoubleMoments(first).serve) row.status = PENDING;
    }
    return row;
  }
  // A row that is drawn from as a whole.
  template <bool SMOOTHS>
  __device__ __forceinline__ void decide(typename F::Known row, u32 turn) const {
    if (!SMOOTHS || row.plan.kind != SlicePlan::SMOOTHED) return f.decide(row);
    const Smoothed smoothed(row.key, row_sums->smoothings[turn]);
    if (row.key && row.key < INFINITE) row.status = smoothed.begin(row.w) && row.status == NUCLEUS_OK ? NUCLEUS_OK : PENDING;
    f.decide(row, [&](const Fall &) { return [&](float x, u32) { return smoothed(x); }; });
  }
};

// The warps that finish rows which are drawn from as a whole, where no tokens are listed.
template <u32 DTYPE, Form FORM>
struct SumsFinisher : Finisher<DTYPE, FORM> {
  using F = Finisher<DTYPE, FORM>;
  RowSums *row_sums;

  __device__ __forceinline__ SumsFinish<F> sums() const { return SumsFinish<F>{*this, row_sums}; }
  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    F::prepare();
    if (warms(FORM)) sums().prepare();
  }
  __device__ __forceinline__ void take_turns() const {
    u32 answered = 0;
#pragma unroll 1
    for (u32 turn = F::block, use = 0; turn < F::turns.rows; turn += F::shape.blocks, ++use) {
      sums().template decide<smooths(FORM)>(sums().template learn<warms(FORM)>(turn, use, answered), turn);
      F::sync();  // all have read what was told
      F::release(turn);
    }
  }
};

}  // namespace nucleus::draw
