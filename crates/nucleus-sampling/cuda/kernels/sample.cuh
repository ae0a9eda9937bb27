// One row from logits to token, by a team of threads: one or more blocks of a cluster on the device, one thread on the host.
#pragma once

#include "list.cuh"
#include "tail.cuh"

namespace nucleus {

// What log-probabilities of the row as it came need: largest logit, and ln of the sum of exp(x - largest).
struct RawSums {
  bool wanted = false, valid = false;
  float largest = 0;
  double log_sum = 0;
};

HD RawSums raw_sums_by(float largest, const Weighing &w, i64 log2_of_total) {
  RawSums raw;
  raw.wanted = raw.valid = true;
  raw.largest = largest;
  double log2 = static_cast<double>(log2_of_total) / 281474976710656.0;
  double scaled = static_cast<double>(raw.largest) * static_cast<double>(scale(1.0f));
  raw.log_sum = (static_cast<double>(w.max_n) + log2 - 44.0 - scaled) * 0.693147180559945309417;
  return raw;
}
HD RawSums raw_sums_of(float largest, const Weighing &w) { return raw_sums_by(largest, w, log2_q48(w.sums.total)); }

template <class Team>
HD RawSums raw_sums(const Team &team, const Request &r, const EditTable &table) {
  RawSums raw;
  raw.wanted = true;
  RowMachine<Team> machine(team, r, table);
  if (!machine.start(true) || !machine.count || !machine.weigh()) return raw;
  return raw_sums_of(logit_at(machine.best), machine.w);
}

HD float raw_logprob_of(const RawSums &raw, float x) {
  if (!raw.valid) return float_of(0x7FC00000u);
  if (x == -infinity()) return x;
  double logprob = static_cast<double>(x) - static_cast<double>(raw.largest) - raw.log_sum;
  return static_cast<float>(logprob < 0.0 ? logprob : 0.0);
}

// What the log-probability of a token of this logit needs. The logarithm's digits are computed one by one only where that float may depend on the last of them.
HD RawSums raw_sums_for(float largest, const Weighing &w, float x) {
  double whole;
  const double fraction = log2_ratio(w.sums.total, 1, whole), log2 = floor((whole + fraction) * 281474976710656.0);
  const RawSums least = raw_sums_by(largest, w, static_cast<i64>(log2) - 2), most = raw_sums_by(largest, w, static_cast<i64>(log2) + 3);
  return raw_logprob_of(least, x) == raw_logprob_of(most, x) ? least : raw_sums_of(largest, w);
}

HD float raw_logprob(const RawSums &raw, const Request &r, u32 id) { return raw_logprob_of(raw, load_logit(r, id) + 0.0f); }

// What a row has come to, by the one thread that writes it; its slot goes on from there.
HD SampledToken result(const Outcome &outcome, const RawSums &raw, const Request &r) {
  if (outcome.status != NUCLEUS_OK || outcome.token == NUCLEUS_NO_TOKEN)
    return SampledToken{NUCLEUS_NO_TOKEN, float_of(0x7FC00000u), 0, outcome.status, 0};
  float logprob = raw.wanted ? raw_logprob(raw, r, outcome.token) : outcome.logprob;
  SampledToken sampled{outcome.token, logprob, outcome.kept, NUCLEUS_OK, outcome.feedback};
  if (r.slot) commit(*r.slot, r.slot_tokens, *r.config, r.program->ops[r.program->len - 1].code, sampled);
  return sampled;
}

// A sorted list of tokens and how to go on with it. `total`: the weight of the row of which it is the beginning; 0: it is all there is.
struct ListCall {
  u64 *places, *scratch;
  u32 count, first;  // first: the operation to go on with
  float temperature;
  u64 total;
};

// Runs the program's operations from `first` on over a sorted list, by the leader's first warp.
template <class Warp>
HD Outcome run_operations(ListMachine<Warp> &machine, u32 first) {
  const SamplingProgram &program = *machine.r.program;
  UNROLL_NOT
  for (u32 i = first; i + 1 < program.len; ++i) {
    if (machine.apply(program.ops[i])) continue;
    Outcome failed;
    failed.status = machine.status;
    return failed;
  }
  return machine.choose(program.ops[program.len - 1]);
}

// No token and no failure: the first cut lies beyond the list.
template <class Warp>
HD_SLOW Outcome run_list(const Warp &warp, const Request &r, const EditTable &table, const ListCall &call) {
  ListMachine<Warp> list(warp, r, table, call.places, call.scratch, call.count, call.temperature);
  if (call.total && !list.begins_row(call.total)) {
    Outcome failed;
    failed.status = list.status;
    return failed;
  }
  return run_operations(list, call.first);
}

// Whether slices do not serve an operation. tfs over more tokens than a list holds is given the machine by reference: that would keep it in memory, which
// takes every other program a tenth longer.
template <class Team>
HD bool needs_device_memory(const RowMachine<Team> &machine, const SamplingOp &op) {
  return Team::SLICES && op.code == NUCLEUS_OP_TFS && machine.count;
}

// One operation before the choice over a whole row; false: a status.
template <class Team>
HD bool run_on_row(const Team &team, RowMachine<Team> &machine, const SamplingOp &op) {
  if constexpr (!Team::SLICES)
    if (op.code == NUCLEUS_OP_TFS && machine.count) return tail_free(team, machine, op);
  return machine.apply(op);
}

// How many tokens mirostat 1 keeps of a row that was weighed.
template <class Team>
HD u64 zipf_count_of(const Team &team, const RowMachine<Team> &machine) {
  u64 lowest = machine.count > MIROSTAT_TOKENS ? machine.kth_place(MIROSTAT_TOKENS) : 0;
  u32 count = gather(team, machine, lowest, ~0ull);
  team.by_warp([&](const auto &warp) {
    ListMachine<typename Team::Warp> list(warp, machine.r, machine.table, team.list(), team.scratch(), count, machine.temperature);
    u64 k = team.leader() ? list.zipf_count(machine.w) : 0;
    if (warp.lane() == 0) team.tell(k);
  });
  return team.told();
}

// The exact path. `unlisted` keeps everything on whole-row stages. Every thread of the team calls it; over slices, the first warp of every block. False: slices, or a row
// whose edits are merged, hold NaN or +inf, or do not serve the program, and nothing was decided.
template <class Team>
HD bool sample_exactly(const Team &team, const Request &r, const EditTable &table, const RawSums &raw, bool unlisted, SampledToken *out) {
  RowMachine<Team> machine(team, r, table);
  const SamplingProgram &program = *r.program;
  u32 last = program.len - 1;
  bool running = machine.start(false);
  if (!running && merges_edits(team)) return false;
  UNROLL_NOT
  for (u32 i = 0; running; ++i) {
    bool may_list = !(merges_edits(team) && edits_by_id(program.ops[i].code));
    if (machine.count && may_list && !unlisted) {
      u64 total = 0;
      const bool all = machine.count <= (Team::SLICES && program.ops[i].code != NUCLEUS_OP_TFS ? LIST_WORTH : Team::LISTED_MOST);
      const u32 count = all ? gather(team, machine, 0, ~0ull) : machine.list_beginning(program.ops[i], total);
      if (count && !team.leader()) return true;
      if (count) {
        if (!all) team.sort_list(count);
        team.by_warp([&](const auto &warp) {
          const ListCall call{team.list(), team.scratch(), count, i, machine.temperature, total};
          Outcome outcome;
          bool common = false;
          if constexpr (Team::SLICES) common = run_common(team, r, call, outcome);
          if (!common) outcome = run_list(warp, r, table, call);
          if (warp.lane() == 0) *out = result(outcome, raw, r);
        });
        return true;
      }
    }
    if (i == last) break;
    if (needs_device_memory(machine, program.ops[i])) return false;
    running = run_on_row(team, machine, program.ops[i]);
  }
  u64 zipf_count = 1;
  if (running && machine.count && program.ops[last].code == NUCLEUS_OP_MIROSTAT_1 && machine.weigh()) zipf_count = zipf_count_of(team, machine);
  Outcome outcome;
  if (machine.status != NUCLEUS_OK) outcome.status = machine.status;
  else outcome = machine.choose(program.ops[last], zipf_count);
  bool drawn_elsewhere = Team::SLICES && outcome.status == NUCLEUS_OK && program.ops[last].code != NUCLEUS_OP_ARGMAX;
  if ((drawn_elsewhere ? outcome.drawn_here : team.leader()) && team.local() == 0) *out = result(outcome, raw, r);
  if constexpr (!Team::SLICES) team.cluster_sync();  // no block leaves while another may still read its shared memory
  return true;
}

}  // namespace nucleus
