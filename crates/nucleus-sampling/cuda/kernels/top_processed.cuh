// The likeliest tokens of the distribution that a row is drawn from: its program as far as the draw by the exact path, then the first of what is left.
#pragma once

#include "sample.cuh"

namespace nucleus {

// Where a row's likeliest tokens go.
struct TopCall {
  SamplingLogprob *top;
  u32 count;

  // One entry of a row without as many tokens, or without a distribution.
  HD static SamplingLogprob nothing(bool valid) { return SamplingLogprob{NUCLEUS_NO_TOKEN, valid ? -infinity() : float_of(0x7FC00000u)}; }

  // The first of `n` tokens in any order by one warp, with their share of the weights, or with certainty where there are none.
  template <class Warp>
  HD void tell(const Warp &warp, const u64 *places, u32 n, const Weighing *w) const {
    u64 before = ~0ull;
    UNROLL_NOT
    for (u32 base = 0; base < count; base += warp.lanes()) {
      u64 own = 0;
      UNROLL_NOT
      for (u32 turn = 0; turn < warp.lanes() && base + turn < count && before; ++turn) {
        u64 next = 0;
        UNROLL_NOT
        for (u32 i = warp.lane(); i < n; i += warp.lanes()) next = places[i] < before && places[i] > next ? places[i] : next;
        before = warp.most(next);
        own = turn == warp.lane() ? before : own;
      }
      if (base + warp.lane() >= count) continue;
      const float logprob = own && w ? processed_logprob(w->q(logit_at(own)), w->sums.total) : 0.0f;
      top[base + warp.lane()] = own ? SamplingLogprob{id_at(own), logprob} : nothing(true);
    }
  }

  template <class Team>
  HD void tell_nothing(const Team &team) const {
    if (team.leader())
      for (u32 i = team.local(); i < count; i += team.locals()) top[i] = nothing(false);
  }
};

// From operation `first` on over a list, by one warp; false: a status.
template <class Warp>
HD bool tell_top_of_list(ListMachine<Warp> &list, u32 first, const TopCall &call) {
  const SamplingProgram &program = *list.r.program;
  UNROLL_NOT
  for (u32 i = first; i + 1 < program.len; ++i)
    if (!list.apply(program.ops[i])) return false;
  const SamplingOp &op = program.ops[program.len - 1];
  if (!list.count()) return false;
  if (op.code == NUCLEUS_OP_ARGMAX) {
    call.tell(list.warp, list.places + list.low, 1, nullptr);
    return true;
  }
  if (!list.weigh(false) || !list.narrow(op)) return false;
  const Weighing before = list.w;
  if (op.code == NUCLEUS_OP_ADAPTIVE_P && !list.adapt(before)) return false;
  call.tell(list.warp, list.places + list.low, list.count(), &list.w);
  return true;
}

// What the choice draws from among more tokens than a list holds; false: a status.
template <class Team>
HD bool tell_top_of_row(const Team &team, RowMachine<Team> &machine, const SamplingOp &op, const TopCall &call) {
  const bool certain = op.code == NUCLEUS_OP_ARGMAX;
  if (!machine.count) return false;
  if (!certain) {
    const u64 zipf_count = op.code == NUCLEUS_OP_MIROSTAT_1 && machine.weigh() ? zipf_count_of(team, machine) : 1;
    if (!machine.weigh(false) || !machine.narrow(op, zipf_count) || !machine.count) return false;
  }
  const u64 lowest = certain ? machine.best : machine.count > call.count ? machine.kth_place(call.count) : 0;
  const u32 listed = gather(team, machine, lowest, ~0ull);
  team.by_warp([&](const auto &warp) {
    if (team.leader()) call.tell(warp, team.list(), listed, certain ? nullptr : &machine.w);
  });
  return true;
}

// Every thread of the team calls it. False: slices, or a row whose edits are merged, hold NaN or +inf, or do not serve the program, and nothing was told.
template <class Team>
HD bool tell_top(const Team &team, const Request &r, const EditTable &table, const TopCall &call) {
  RowMachine<Team> machine(team, r, table);
  const SamplingProgram &program = *r.program;
  const u32 last = program.len - 1;
  bool running = machine.start(false);
  if (!running && merges_edits(team)) return false;
  UNROLL_NOT
  for (u32 i = 0; running; ++i) {
    const bool may_list = !(merges_edits(team) && edits_by_id(program.ops[i].code));
    if (machine.count && machine.count <= Team::LISTED_MOST && may_list) {
      const u32 count = gather(team, machine, 0, ~0ull);
      team.by_warp([&](const auto &warp) {
        if (!team.leader()) return;
        ListMachine<typename Team::Warp> list(warp, r, table, team.list(), team.scratch(), count, machine.temperature);
        if (tell_top_of_list(list, i, call)) return;
        for (u32 k = warp.lane(); k < call.count; k += warp.lanes()) call.top[k] = TopCall::nothing(false);
      });
      return true;
    }
    if (i == last) break;
    if (needs_device_memory(machine, program.ops[i])) return false;
    running = run_on_row(team, machine, program.ops[i]);
  }
  if (!running || !tell_top_of_row(team, machine, program.ops[last], call)) call.tell_nothing(team);
  return true;
}

}  // namespace nucleus
