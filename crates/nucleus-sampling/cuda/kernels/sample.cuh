// One row from logits to token, by a team of threads: one or more blocks of a cluster on the device, one thread on the host.
#pragma once

#include "list.cuh"

namespace nucleus {

// What log-probabilities of the row as it came need: largest logit, and ln of the sum of exp(x - largest).
struct RawSums {
  bool wanted = false, valid = false;
  float largest = 0;
  double log_sum = 0;
};

template <class Team>
HD RawSums raw_sums(const Team &team, const Request &r, const EditTable &table) {
  RawSums raw;
  raw.wanted = true;
  RowMachine<Team> machine(team, r, table);
  if (!machine.start(true) || !machine.count || !machine.weigh()) return raw;
  raw.valid = true;
  raw.largest = logit_at(machine.best);
  double log2 = static_cast<double>(log2_q48(machine.w.sums.total)) / 281474976710656.0;
  double scaled = static_cast<double>(raw.largest) * static_cast<double>(scale(1.0f));
  raw.log_sum = (static_cast<double>(machine.w.max_n) + log2 - 44.0 - scaled) * 0.693147180559945309417;
  return raw;
}

HD float raw_logprob(const RawSums &raw, const Request &r, u32 id) {
  if (!raw.valid) return float_of(0x7FC00000u);
  float x = load_logit(r, id) + 0.0f;
  if (x == -infinity()) return x;
  double logprob = static_cast<double>(x) - static_cast<double>(raw.largest) - raw.log_sum;
  return static_cast<float>(logprob < 0.0 ? logprob : 0.0);
}

HD SampledToken result(const Outcome &outcome, const RawSums &raw, const Request &r) {
  if (outcome.status != NUCLEUS_OK || outcome.token == NUCLEUS_NO_TOKEN)
    return SampledToken{NUCLEUS_NO_TOKEN, float_of(0x7FC00000u), 0, outcome.status, 0};
  float logprob = raw.wanted ? raw_logprob(raw, r, outcome.token) : outcome.logprob;
  return SampledToken{outcome.token, logprob, outcome.kept, NUCLEUS_OK, outcome.feedback};
}

// Runs the program's operations from `first` on over a sorted list, by the leader's first warp.
template <class Warp>
HD Outcome run_list(ListMachine<Warp> &machine, u32 first) {
  const SamplingProgram &program = *machine.r.program;
  for (u32 i = first; i + 1 < program.len; ++i) {
    if (machine.apply(program.ops[i])) continue;
    Outcome failed;
    failed.status = machine.status;
    return failed;
  }
  return machine.choose(program.ops[program.len - 1]);
}

// Collects the tokens that are left in the leader's list, sorted; returns how many. Tokens below `lowest` are left out.
template <class Team>
HD u32 gather(const Team &team, const RowMachine<Team> &machine, u64 lowest) {
  team.begin_list();
  machine.sweep([&](u32 id, float x) {
    u64 place = place_of(x, id);
    if (place >= lowest) team.append(place);
  });
  team.end_list();
  u32 count = team.listed();
  if (team.leader()) team.sort_list(count);
  return count;
}

// The exact path. `exact_only` keeps everything on whole-row stages that can be there. Every thread of the team calls it.
template <class Team>
HD void sample_exactly(const Team &team, const Request &r, const EditTable &table, const RawSums &raw, bool exact_only, SampledToken *out) {
  RowMachine<Team> machine(team, r, table);
  const SamplingProgram &program = *r.program;
  u32 last = program.len - 1;
  bool running = machine.start(false);
  for (u32 i = 0; running; ++i) {
    bool needs_list = i < last && program.ops[i].code == NUCLEUS_OP_TFS;
    if (machine.count && machine.count <= LIST_CAPACITY && (needs_list || !exact_only)) {
      u32 count = gather(team, machine, 0);
      if (!team.leader()) return;
      team.by_warp([&](const auto &warp) {
        ListMachine<typename Team::Warp> list(warp, r, table, team.list(), team.scratch(), count, machine.temperature);
        Outcome outcome = run_list(list, i);
        if (warp.lane() == 0) *out = result(outcome, raw, r);
      });
      return;
    }
    if (i == last) break;
    running = machine.apply(program.ops[i]);
  }
  u64 zipf_count = 1;
  if (running && machine.count && program.ops[last].code == NUCLEUS_OP_MIROSTAT_1 && machine.weigh()) {
    u64 lowest = machine.count > MIROSTAT_TOKENS ? machine.kth_place(MIROSTAT_TOKENS) : 0;
    u32 count = gather(team, machine, lowest);
    team.by_warp([&](const auto &warp) {
      ListMachine<typename Team::Warp> list(warp, r, table, team.list(), team.scratch(), count, machine.temperature);
      u64 k = team.leader() ? list.zipf_count(machine.w) : 0;
      if (warp.lane() == 0) team.tell(k);
    });
    zipf_count = team.told();
  }
  Outcome outcome;
  if (machine.status != NUCLEUS_OK) outcome.status = machine.status;
  else outcome = machine.choose(program.ops[last], zipf_count);
  if (team.rank() == 0) *out = result(outcome, raw, r);
  team.cluster_sync();  // no block leaves while another may still read its shared memory
}

}  // namespace nucleus
