// The exact path over slices: the first warp of every block runs the row's program; the others wait for the sweeps that it asks for, and make them with it. So only
// one warp holds what a program needs, which is more than registers hold.
#pragma once

#include "few_chain.cuh"
#include "steps.cuh"

namespace nucleus {

// A sweep and what it is told, in shared memory.
struct SliceTask {
  enum Kind : u32 { END, SURVEY, MASS, SURPRISE, COUNT, LAST, BELOW, DISTANCES, REACH, LIST, DIVIDE, SMOOTH, RANGE, BEGINNING, CUT, SELECT, RANK, SORT, DRAW, TELL } kind;
  u32 number;
  bool flag;
  i32 max_n;
  float s, logit;
  u64 top, bottom, first, second, third, fourth;
  Until until;
  Keys keys;
  Steps steps;
  StepRange range;
};
static_assert(sizeof(SliceTask) <= sizeof(Shared::task) && alignof(SliceTask) <= alignof(u64));
__device__ __forceinline__ SliceTask *slice_task() { return reinterpret_cast<SliceTask *>(shared_state()->task); }

// Where a block's warps meet when there is a new task; for racecheck also before it is told, since the tool does not see that what a warp has told of the last one depends on
// what it had read.
#ifdef NUCLEUS_RACECHECK
static_assert(sizeof(SliceTask) + sizeof(u64) <= sizeof(Shared::task));
__device__ __forceinline__ u64 *tasked() { return shared_state()->task + (sizeof(Shared::task) / sizeof(u64) - 1); }
__device__ __forceinline__ void begin_tasks() {
  if (threadIdx.x == 0) init_barrier(tasked(), THREADS);
  sync_block();
}
__device__ __forceinline__ void end_tasks() {
  sync_block();
  if (threadIdx.x == 0) end_barrier(tasked());
}
__device__ __forceinline__ void meet_before_task() { meet_at(tasked()); }
__device__ __forceinline__ void meet_for_task() { meet_at(tasked()); }
#else
__device__ __forceinline__ void begin_tasks() {}
__device__ __forceinline__ void end_tasks() {}
__device__ __forceinline__ void meet_before_task() {}
__device__ __forceinline__ void meet_for_task() { sync_block(); }
#endif

// What the warp that runs the program sees as its team.
struct SliceTeam : DeviceTeam {
  static constexpr bool SLICES = true;

  __device__ __forceinline__ explicit SliceTeam(const DeviceTeam &team) : DeviceTeam(team) {}
  // Tells all warps of the block what to do next. What they were told before they have read: they have met since, or come to a barrier.
  template <class F>
  __device__ __forceinline__ void ask(SliceTask::Kind kind, F tell) const {
    __syncwarp();
    meet_before_task();
    if (threadIdx.x == 0) {
      slice_task()->kind = kind;
      tell(*slice_task());
    }
    meet_for_task();
  }
  __device__ __forceinline__ void ask(SliceTask::Kind kind, u64 top, u64 bottom, float s = 0, i32 max_n = 0) const {
    ask(kind, [=](SliceTask &t) { set(t, top, bottom, s, max_n); });
  }
  __device__ __forceinline__ static void set(SliceTask &t, u64 top, u64 bottom, float s, i32 max_n) {
    t.top = top;
    t.bottom = bottom;
    t.s = s;
    t.max_n = max_n;
  }
  __device__ __forceinline__ u32 local() const { return threadIdx.x; }
  __device__ __forceinline__ u32 locals() const { return 32; }
  __device__ __forceinline__ void sort_list(u32 count) const;
  template <class F>
  __device__ __forceinline__ void by_warp(F f) const {
    f(DeviceWarp{});
    __syncwarp();
  }
  __device__ __forceinline__ u64 told() const;
};

inline __device__ __noinline__ void sort_in_block(DeviceTeam team, u32 count) {
  team.sort_list(count);
  sync_block();
}
// What the leader's Shared has as `told`, to all.
inline __device__ __noinline__ u64 told_by_leader(DeviceTeam team) {
  u64 most[1] = {team.leader() && threadIdx.x < 32 ? team.sh->told : 0};
  team.max(most);
  return most[0];
}

// The warps that do not run the program.
inline __device__ __noinline__ void serve(DeviceTeam team) {
  const SliceTask &t = *slice_task();
#pragma unroll 1
  for (;;) {
    meet_before_task();
    meet_for_task();
    u64 a = t.third, b = t.fourth;
    switch (t.kind) {
      case SliceTask::END: return;
      case SliceTask::SURVEY: survey_slices(team, t.flag, a, b); break;
      case SliceTask::MASS: mass_in_slices(team, t.top, t.bottom, t.s, t.max_n); break;
      case SliceTask::SURPRISE: surprise_in_slices(team, t.top, t.bottom, t.s, t.max_n); break;
      case SliceTask::COUNT: count_in_slices(team, t.top, t.bottom, a); break;
      case SliceTask::LAST: last_in_slices(team, t.top, t.bottom); break;
      case SliceTask::BELOW: largest_below(team, t.top, t.bottom, t.s, t.max_n, static_cast<i64>(t.first), t.flag); break;
      case SliceTask::DISTANCES: distances_in_slices(team, t.top, t.bottom, t.logit, a); break;
      case SliceTask::REACH: reach_of_typical(team, t.top, t.bottom, t.s, t.max_n, t.keys.mean, t.keys.rank, t.first, t.keys.above, a, b); break;
      case SliceTask::LIST: list_between(team, t.top, t.bottom); break;
      case SliceTask::DIVIDE: divide_slices(team, t.top, t.bottom, t.logit); break;
      case SliceTask::SMOOTH: smooth_slices(team, t.top, t.bottom, Smoothing(t.steps.largest, t.s, t.logit)); break;
      case SliceTask::RANGE: range_of_cut(team, t.top, t.bottom, t.steps, t.first, t.until, t.flag); break;
      case SliceTask::BEGINNING: list_in_slices(team, t.top, t.bottom, t.steps, t.number, t.s, t.max_n, a); break;
      case SliceTask::CUT: cut_in_range(team, t.top, t.bottom, t.steps, t.range, t.s, t.max_n, t.until, t.flag); break;
      case SliceTask::SELECT: select_in_slices(team, t.top, t.bottom, t.s, t.max_n, t.keys, t.number, t.first, t.second, t.until); break;
      case SliceTask::RANK: end_of_rank(team, t.top, t.bottom, t.s, t.max_n, t.keys, t.first, t.until); break;
      case SliceTask::SORT: sort_in_block(team, t.number); break;
      case SliceTask::DRAW: draw_in_slices(team, t.top, t.bottom, t.s, t.max_n, t.first); break;
      case SliceTask::TELL: told_by_leader(team); break;
    }
  }
}

// The same functions, asked for by the warp that runs the program.
__device__ __forceinline__ void SliceTeam::sort_list(u32 count) const {
  ask(SliceTask::SORT, [=](SliceTask &t) { t.number = count; });
  sort_in_block(*this, count);
}
__device__ __forceinline__ u64 SliceTeam::told() const {
  ask(SliceTask::TELL, [](SliceTask &) {});
  return told_by_leader(*this);
}
// What Shared holds as known of the row is taken once.
__device__ __forceinline__ u64 take_known(u64 &known) {
  const u64 value = known;
  __syncwarp();
  if (threadIdx.x == 0) known = 0;
  __syncwarp();
  return value;
}
__device__ __forceinline__ u32 survey_slices(const SliceTeam &team, bool strange, u64 &count, u64 &best) {
  count = take_known(team.sh->known_count);
  best = team.sh->known_best;
  if (count) return NUCLEUS_OK;
  team.ask(SliceTask::SURVEY, [=](SliceTask &t) { t.flag = strange; });
  return survey_slices(static_cast<DeviceTeam>(team), strange, count, best);
}
__device__ __forceinline__ u64 mass_in_slices(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n) {
  const u64 known = take_known(team.sh->known_total);
  if (known) return known;
  team.ask(SliceTask::MASS, top, bottom, s, max_n);
  return mass_in_slices(static_cast<DeviceTeam>(team), top, bottom, s, max_n);
}
__device__ __forceinline__ Surprise surprise_in_slices(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n) {
  team.ask(SliceTask::SURPRISE, top, bottom, s, max_n);
  return surprise_in_slices(static_cast<DeviceTeam>(team), top, bottom, s, max_n);
}
__device__ __forceinline__ u64 count_in_slices(const SliceTeam &team, u64 top, u64 bottom, u64 &first) {
  team.ask(SliceTask::COUNT, top, bottom);
  return count_in_slices(static_cast<DeviceTeam>(team), top, bottom, first);
}
__device__ __forceinline__ u64 last_in_slices(const SliceTeam &team, u64 top, u64 bottom) {
  team.ask(SliceTask::LAST, top, bottom);
  return last_in_slices(static_cast<DeviceTeam>(team), top, bottom);
}
__device__ __forceinline__ u32 largest_below(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n, i64 least, bool by_weight) {
  team.ask(SliceTask::BELOW, [=](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.first = static_cast<u64>(least);
    t.flag = by_weight;
  });
  return largest_below(static_cast<DeviceTeam>(team), top, bottom, s, max_n, least, by_weight);
}
__device__ __forceinline__ u128 distances_in_slices(const SliceTeam &team, u64 top, u64 bottom, float largest, u64 &sum) {
  team.ask(SliceTask::DISTANCES, [=](SliceTask &t) {
    SliceTeam::set(t, top, bottom, 0, 0);
    t.logit = largest;
  });
  return distances_in_slices(static_cast<DeviceTeam>(team), top, bottom, largest, sum);
}
__device__ __forceinline__ void reach_of_typical(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n, i64 mean, u64 rank, u64 end, bool above, u64 &low, u64 &high) {
  team.ask(SliceTask::REACH, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.keys.mean = mean;
    t.keys.rank = rank;
    t.keys.above = above;
    t.first = end;
    t.third = low;
    t.fourth = high;
  });
  reach_of_typical(static_cast<DeviceTeam>(team), top, bottom, s, max_n, mean, rank, end, above, low, high);
}
__device__ __forceinline__ u32 list_between(const SliceTeam &team, u64 top, u64 bottom) {
  team.ask(SliceTask::LIST, top, bottom);
  return list_between(static_cast<DeviceTeam>(team), top, bottom);
}
__device__ __forceinline__ void divide_slices(const SliceTeam &team, u64 top, u64 bottom, float by) {
  team.ask(SliceTask::DIVIDE, [=](SliceTask &t) {
    SliceTeam::set(t, top, bottom, 0, 0);
    t.logit = by;
  });
  divide_slices(static_cast<DeviceTeam>(team), top, bottom, by);
}
__device__ __forceinline__ void smooth_slices(const SliceTeam &team, u64 top, u64 bottom, const Smoothing &smoothing) {
  team.ask(SliceTask::SMOOTH, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, smoothing.quadratic, 0);
    t.steps.largest = smoothing.largest;
    t.logit = smoothing.cubic;
  });
  smooth_slices(static_cast<DeviceTeam>(team), top, bottom, smoothing);
}
__device__ __forceinline__ StepRange range_of_cut(const SliceTeam &team, u64 top, u64 bottom, const Steps &steps, u64 largest_weight, const Until &until, bool by_mass) {
  team.ask(SliceTask::RANGE, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, 0, 0);
    t.steps = steps;
    t.first = largest_weight;
    t.until = until;
    t.flag = by_mass;
  });
  return range_of_cut(static_cast<DeviceTeam>(team), top, bottom, steps, largest_weight, until, by_mass);
}
__device__ __forceinline__ u32 list_in_slices(const SliceTeam &team, u64 top, u64 bottom, const Steps &steps, u32 low, float s, i32 max_n, u64 &mass) {
  team.ask(SliceTask::BEGINNING, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.steps = steps;
    t.number = low;
  });
  return list_in_slices(static_cast<DeviceTeam>(team), top, bottom, steps, low, s, max_n, mass);
}
__device__ __forceinline__ StepCut cut_in_range(const SliceTeam &team, u64 top, u64 bottom, const Steps &steps, const StepRange &range, float s, i32 max_n, const Until &until, bool by_mass) {
  team.ask(SliceTask::CUT, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.steps = steps;
    t.range = range;
    t.until = until;
    t.flag = by_mass;
  });
  return cut_in_range(static_cast<DeviceTeam>(team), top, bottom, steps, range, s, max_n, until, by_mass);
}
__device__ __forceinline__ Selected select_in_slices(const SliceTeam &team, u64 top, u64 bottom, const Weighing &w, const Keys &keys, u32 bits, u64 prefix, u64 base, const Until &until) {
  team.ask(SliceTask::SELECT, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, w.s, w.max_n);
    t.keys = keys;
    t.number = bits;
    t.first = prefix;
    t.second = base;
    t.until = until;
  });
  return select_in_slices(static_cast<DeviceTeam>(team), top, bottom, w.s, w.max_n, keys, bits, prefix, base, until);
}
__device__ __forceinline__ StepCut end_of_rank(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n, const Keys &keys, u64 base, const Until &until) {
  team.ask(SliceTask::RANK, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.keys = keys;
    t.first = base;
    t.until = until;
  });
  return end_of_rank(static_cast<DeviceTeam>(team), top, bottom, s, max_n, keys, base, until);
}
// The place that is drawn, if it is in this block; else 0.
__device__ __forceinline__ u64 draw_in_slices(const SliceTeam &team, u64 top, u64 bottom, float s, i32 max_n, u64 target) {
  team.ask(SliceTask::DRAW, [&](SliceTask &t) {
    SliceTeam::set(t, top, bottom, s, max_n);
    t.first = target;
    team.sh->told = 0;
  });
  draw_in_slices(static_cast<DeviceTeam>(team), top, bottom, s, max_n, target);
  return team.sh->told;
}

// The place, descending from `largest`, at which the sum of weights or the count suffices; the lowest place if it never does.
__device__ __forceinline__ u64 place_in_slices(const SliceTeam &team, const Layer &layer, const Weighing &w, float largest, const Until &until, bool by_mass) {
  const Steps steps = steps_of(w, largest, by_mass);
  const StepRange range = range_of_cut(team, layer.top, layer.bottom, steps, by_mass ? w.q(largest) : 0, until, by_mass);
  const StepCut cut = cut_in_range(team, layer.top, layer.bottom, steps, range, w.s, w.max_n, until, by_mass);
  if (cut.found) return cut.place;
  return select_in_slices(team, layer.top, layer.bottom, w, Keys{Keys::PLACE, by_mass, false, 1, 0, 0, 0}, 64, 0, 0, until).key;
}

// Lists the beginning of the order in which an operation's cut lies; returns how many tokens it has, 0: it is not listed. `total`: what all weighs, 0 for a count.
// The list begins as the order does, and no cut by the operation reaches beyond it.
__device__ __forceinline__ u32 beginning_in_slices(const SliceTeam &team, const Layer &layer, const Weighing &w, float largest, const Until &until, bool by_mass, u64 min_keep) {
  const Steps steps = steps_of(w, largest, by_mass);
  const StepRange range = range_of_cut(team, layer.top, layer.bottom, steps, by_mass ? w.q(largest) : 0, until, by_mass);
  if (range.through > LIST_WORTH || range.through < min_keep) return 0;
  u64 mass;
  const u32 listed = list_in_slices(team, layer.top, layer.bottom, steps, range.low, w.s, w.max_n, mass);
  return listed <= LIST_WORTH && (!by_mass || until(mass)) ? listed : 0;
}

// The commonest programs on a sorted list; false: this is another.
__device__ __forceinline__ bool run_common(const SliceTeam &team, const Request &r, const ListCall &call, Outcome &outcome) {
  const SlicePlan plan = plan_of(*team.sh);
  const bool counted = plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE;
  if (plan.greedy || !(counted || plan.kind == SlicePlan::MASS) || plan.temperature != call.temperature) return false;
  // What a count or a bound has kept already it keeps again.
  if (call.first != plan.op && !(counted && call.first == plan.op + 1)) return false;
  return run_chain(r, plan, call.places, call.scratch, call.count, outcome, call.total);
}

// Calls run(), by the first warp of the block, while the others make its sweeps; returns what it returned to all.
template <class F>
__device__ __forceinline__ bool in_control(const DeviceTeam &team, F run) {
  begin_tasks();
  if (threadIdx.x < 32) {
    const bool answer = run();
    SliceTeam(team).ask(SliceTask::END, [=](SliceTask &t) { t.flag = answer; });
  } else {
    serve(team);
  }
  end_tasks();
  return slice_task()->flag;
}

}  // namespace nucleus
