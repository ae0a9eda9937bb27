// tfs over more tokens than a list holds, such as ties at top_k leave: the order is listed part by part, each with the last two tokens of the one before,
// since a second difference takes three.
#pragma once

#include "row.cuh"

namespace nucleus {

template <class Team>
struct TailFree {
  const Team &team;
  const RowMachine<Team> &machine;

  // One part of the order: its tokens in the leader's list, sorted, and its first token's rank in the whole.
  struct Part {
    const u64 *places;
    u32 count;
    u64 rank;
  };

  HD u64 weight(const Part &part, u32 i) const { return machine.w.q(logit_at(part.places[i])); }
  HD u64 bend_at(const Part &part, u32 i) const { return bend(weight(part, i), weight(part, i + 1), weight(part, i + 2)); }

  // The sum of a part's second differences, by one warp.
  template <class Warp>
  HD u64 bends(const Warp &warp, const Part &part) const {
    u64 own = 0;
    UNROLL_NOT
    for (u32 i = warp.lane(); i + 2 < part.count; i += warp.lanes()) own += bend_at(part, i);
    return warp.sum(own);
  }

  // The rank of the part's first token, from `min_keep` on, through which the second differences exceed the threshold; 0: none does. By one warp.
  template <class Warp>
  HD u64 find(const Warp &warp, const Part &part, u64 before, u64 total, u64 threshold, u64 min_keep) const {
    UNROLL_NOT
    for (u32 i = 0; i + 2 < part.count; i += warp.lanes()) {
      const u32 own = i + warp.lane();
      const bool there = own + 2 < part.count;
      const u64 prefix = warp.inclusive(there ? bend_at(part, own) : 0);
      const u32 first = warp.first(there && part.rank + own >= min_keep && exceeds(before + prefix, total, threshold));
      if (first < warp.lanes()) return part.rank + i + first;
      before += warp.last(prefix);
    }
    return 0;
  }

  // Lists part after part; f(warp, part), by the leader's first warp, returns what every thread is told. Ends when done(told) or the order does.
  template <class F, class D>
  HD void each_part(F f, D done) const {
    u64 top = ~0ull;
    UNROLL_NOT
    for (u64 rank = 0;; rank += Team::LISTED_MOST - 2) {
      const bool last = machine.count - rank <= Team::LISTED_MOST;
      const u64 bottom = last ? 0 : machine.kth_place(rank + Team::LISTED_MOST);
      const u32 count = gather(team, machine, bottom, top);
      team.by_warp([&](const auto &warp) {
        const u64 value = team.leader() ? f(warp, Part{team.list(), count, rank}) : 0;
        if (warp.lane() == 0) team.tell(value);
      });
      if (done(team.told()) || last) return;
      team.by_warp([&](const auto &warp) {
        if (warp.lane() == 0) team.tell(team.leader() ? team.list()[Team::LISTED_MOST - 2] : 0);
      });
      top = team.told();
    }
  }

  // How many tokens are kept.
  HD u64 kept(u64 threshold, u64 min_keep) const {
    u64 total = 0, before = 0, found = 0;
    each_part([&](const auto &warp, const Part &part) { return bends(warp, part); }, [&](u64 sum) { total += sum; return false; });
    if (!total) {  // flat: every second difference counts as much
      found = static_cast<u64>((static_cast<u128>(threshold) * (machine.count - 2)) >> 32);
      found = found > min_keep ? found : min_keep;
      return found + 2 < machine.count ? found : machine.count;
    }
    each_part(
        [&](const auto &warp, const Part &part) {
          const u64 rank = find(warp, part, before, total, threshold, min_keep);
          before += bends(warp, part);
          return rank;
        },
        [&](u64 rank) { found = rank; return rank != 0; });
    return found ? found : machine.count;
  }
};

// One truncation by tfs; false: a status.
template <class Team>
HD_SLOW bool tail_free(const Team &team, RowMachine<Team> &machine, const SamplingOp &op) {
  if (!machine.weigh(false)) return false;
  if (machine.count <= 2) return true;
  const u64 least = machine.r.config->min_keep ? machine.r.config->min_keep : 1, kept = TailFree<Team>{team, machine}.kept(op.threshold, least);
  if (kept < machine.count) machine.cut(machine.kth_place(kept), kept);
  return true;
}

}  // namespace nucleus
