// The team of one thread that runs the same stages on the host, for tests.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "sample.cuh"

namespace nucleus {

struct HostWarp {
  u32 lane() const { return 0; }
  u32 lanes() const { return 1; }
  u64 sum(u64 v) const { return v; }
  u64 inclusive(u64 v) const { return v; }
  u64 last(u64 v) const { return v; }
  u64 most(u64 v) const { return v; }
  u32 least(u32 v) const { return v; }
  u32 first(bool found) const { return found ? 0 : 1; }
  void sync() const {}
};

struct HostTeam {
  using Warp = HostWarp;
  static constexpr bool SLICES = false, READS = false;
  static constexpr u32 LISTED_MOST = LIST_CAPACITY;
  mutable std::vector<u64> bins = std::vector<u64>(BINS), places, room;
  mutable u64 told_value = 0;

  u32 rank() const { return 0; }
  u32 size() const { return 1; }
  u32 local() const { return 0; }
  u32 locals() const { return 1; }
  bool leader() const { return true; }
  void sync() const {}
  void cluster_sync() const {}
  template <u32 N> void sum(u64 (&)[N]) const {}
  template <u32 N> void max(u64 (&)[N]) const {}
  void sum_and_max(u64 &, u64 &) const {}
  u32 local_max(u32 v) const { return v; }
  void clear_bins() const { std::fill(bins.begin(), bins.end(), 0); }
  void add_bin(u32 bin, u64 weight) const { bins[bin] += weight; }
  u32 find_bin(u32 count, u64 &base, const Until &until) const {
    for (u32 bin = count; bin-- > 1;) {
      if (until(base + bins[bin])) return bin;
      base += bins[bin];
    }
    return 0;
  }
  void begin_list() const { places.clear(); }
  void append(u64 place) const { places.push_back(place); }
  u32 end_list() const {
    room.resize(places.size() + 1);
    return static_cast<u32>(places.size());
  }
  void sort_list(u32) const { std::sort(places.begin(), places.end(), std::greater<u64>()); }
  u64 *list() const { return places.data(); }
  u64 *scratch() const { return room.data(); }
  template <class F> void by_warp(F f) const { f(HostWarp{}); }
  void tell(u64 value) const { told_value = value; }
  u64 told() const { return told_value; }
};

}  // namespace nucleus
