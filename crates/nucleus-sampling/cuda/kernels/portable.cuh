// The team of a row, or of a part of one, on devices without clusters, or with less shared memory than those have: one block, which reads it from device memory in
// every sweep. It takes what compute capability 8.0 has, and at most 99 KiB of shared memory.
//
// Four logits are read at a time. Tokens with edits are marked by a bit each, as a mask marks those that are forbidden, and left out there: they come from the
// table of edits, which holds their logits where edits are merged.
#pragma once

#include "addends.cuh"
#include "few_chain.cuh"

namespace nucleus {

constexpr u32 PORTABLE_LISTED = 1024;         // tokens of a list
constexpr u32 PORTABLE_BYTES_MAX = 99 << 10;  // of shared memory that a block of compute capability 8.6, 8.9 or 12.0 may have
constexpr u32 MARKED_IDS = 1u << 18;          // that have a mark of their own; ids beyond share it, so that there are pairs
constexpr u32 FOURS_AT_ONCE = 4;              // that a thread asks for before it looks at the first
constexpr u32 STRETCH = 24;                   // as often, before a 32-bit sum is full
constexpr u32 DRAW_STEPS = NUCLEUS_MAX_VOCAB / WARPS / STEP;  // of a warp's part of the row
constexpr u32 KEY_ROUNDS = 8;                 // of two bits
constexpr float LOWEST = -3.402823466e38f;    // what is out is below it
static_assert(2 * MARKED_IDS == NUCLEUS_MAX_VOCAB);

// What the block holds of a row; then the marks, least significant bit first.
struct PortableShared : Description {
  u64 list[PORTABLE_LISTED];
  union {
    u64 bins[BINS];
    struct {
      u64 scratch[PORTABLE_LISTED];
      u64 aside[PORTABLE_LISTED];  // a list that is tried
    };
    u64 steps[DRAW_STEPS];
    u32 tokens[2 * BINS];  // the end of the history
  };
  Edit edits[SHARED_EDITS + 1];
  u64 part[WARPS][2];
  u64 masses[WARPS];  // of the warps' parts of the row
  Request request;
  EditTable table;  // where edits are merged, `bias` is the logit after all of them
  RawSums raw;
  u64 told;
  u32 listed, kept, fate;
  u32 edited;           // tokens that are edited at most
  u32 reached[KEY_ROUNDS][WARPS];  // see kth_key
  u32 first, end;  // the fours of the row that this block looks at, from a multiple of 32 on
  bool merges, marked, apart;  // marked: there are edits; apart: there is a list of allowed ids, and no others are looked at
};
constexpr u32 PORTABLE_SHARED_BYTES = (sizeof(PortableShared) + 15) / 16 * 16;
// Words of marks for a row of so many ids.
__host__ __device__ constexpr u32 mark_words(u32 ids) { return ((ids < MARKED_IDS ? ids : MARKED_IDS) + 31) / 32; }
static_assert(PORTABLE_SHARED_BYTES + mark_words(NUCLEUS_MAX_VOCAB) * sizeof(u32) <= PORTABLE_BYTES_MAX);
__device__ __forceinline__ PortableShared *portable_state() { return reinterpret_cast<PortableShared *>(shared_memory); }
__device__ __forceinline__ u32 *portable_marks() { return reinterpret_cast<u32 *>(shared_memory + PORTABLE_SHARED_BYTES); }

// Some fours of a row; none where `from` is not below `end`.
struct FourRange {
  u32 from, end;
};

// What the block looks at of a row in device memory, by fours.
struct FourReader {
  const void *logits;
  const u32 *mask;   // null: none
  const u32 *marks;  // null: none
  u32 mask_words, dtype, limit, first, end;
  bool aligned;

  __device__ __forceinline__ FourReader(const Request &r, bool raw)
      : logits(r.logits), mask(raw ? nullptr : r.mask), marks(raw || !portable_state()->marked ? nullptr : portable_marks()), mask_words(r.mask_words), dtype(r.dtype), limit(r.limit), first(portable_state()->first), end(portable_state()->end) {
    aligned = reinterpret_cast<uintptr_t>(logits) % (dtype == NUCLEUS_F32 ? 16 : 8) == 0;
  }
  // Fours of a warp's part, a multiple of 32.
  __device__ __forceinline__ u32 span() const { return ((end - first + WARPS - 1) / WARPS + 31) & ~31u; }
  __device__ __forceinline__ FourRange of_warp(u32 warp) const {
    const u32 from = first + warp * span();
    return FourRange{from, from + span() < end ? from + span() : end};
  }
  // Whose part an id of the block lies in.
  __device__ __forceinline__ u32 warp_of(u32 id) const { return (id / 4 - first) / span(); }

  __device__ __forceinline__ u32 single(u32 id) const {
    if (dtype == NUCLEUS_F32) return id < limit ? __ldg(static_cast<const u32 *>(logits) + id) : 0xFF800000u;
    return id < limit ? __ldg(static_cast<const uint16_t *>(logits) + id) : dtype == NUCLEUS_F16 ? 0xFC00u : 0xFF80u;
  }
  // The bits of four logits; of 16-bit types in the first two words. WHOLE: the row is aligned, and all four are there.
  template <bool WIDE, bool WHOLE>
  __device__ __forceinline__ uint4 ask(u32 i) const {
    if (WHOLE || (aligned && 4 * i + 4 <= limit)) {
      if (WIDE) return __ldg(static_cast<const uint4 *>(logits) + i);
      const uint2 halves = __ldg(static_cast<const uint2 *>(logits) + i);
      return make_uint4(halves.x, halves.y, 0, 0);
    }
    const u32 a = single(4 * i), b = single(4 * i + 1), c = single(4 * i + 2), d = single(4 * i + 3);
    return WIDE ? make_uint4(a, b, c, d) : make_uint4(a | b << 16, c | d << 16, 0, 0);
  }
  __device__ __forceinline__ uint4 ask(u32 i) const { return dtype == NUCLEUS_F32 ? ask<true, false>(i) : ask<false, false>(i); }
  __device__ __forceinline__ u32 allowed(u32 i) const { return mask ? (i / 8 < mask_words ? __ldg(mask + i / 8) : 0) >> (i % 8 * 4) & 15 : 15; }
  // Which of the four take part, of those that are allowed.
  __device__ __forceinline__ u32 unmarked(u32 i, u32 of) const { return marks ? of & ~(marks[i % (MARKED_IDS / 4) / 8] >> (i % 8 * 4)) : of; }
  // The logits; of those that do not take part, -inf.
  __device__ __forceinline__ float4 widened(bool wide, const uint4 &bits, u32 take) const {
    float4 v;
    if (wide) v = make_float4(float_of(bits.x), float_of(bits.y), float_of(bits.z), float_of(bits.w));
    else if (dtype == NUCLEUS_BF16) v = make_float4(float_of(bits.x << 16), float_of(bits.x & 0xFFFF0000u), float_of(bits.y << 16), float_of(bits.y & 0xFFFF0000u));
    else v = make_float4(widen_f16(static_cast<uint16_t>(bits.x)), widen_f16(static_cast<uint16_t>(bits.x >> 16)), widen_f16(static_cast<uint16_t>(bits.y)), widen_f16(static_cast<uint16_t>(bits.y >> 16)));
    if (take != 15) {
      v.x = take & 1 ? v.x : -infinity();
      v.y = take & 2 ? v.y : -infinity();
      v.z = take & 4 ? v.z : -infinity();
      v.w = take & 8 ? v.w : -infinity();
    }
    return v;
  }
  // Calls f(first id, four logits) for a warp's fours as long as all that it asks for at once are whole; returns where it ends. Lanes that f keeps
  // longer are waited for: without that they would go through the rest by themselves.
  template <bool WIDE, class F, class A>
  __device__ __forceinline__ u32 each_whole(FourRange own, F f, A after) const {
    const u32 whole = aligned ? (own.end < limit / 4 ? own.end : limit / 4) : 0;
    u32 from = own.from, calls = 0;
    UNROLL_NOT
    for (; from + 32 * FOURS_AT_ONCE <= whole; from += 32 * FOURS_AT_ONCE) {
      const u32 i = from + threadIdx.x % 32;
      uint4 bits[FOURS_AT_ONCE];
      u32 take[FOURS_AT_ONCE];
#pragma unroll
      for (u32 k = 0; k < FOURS_AT_ONCE; ++k) bits[k] = ask<WIDE, true>(i + 32 * k);
#pragma unroll
      for (u32 k = 0; k < FOURS_AT_ONCE; ++k) take[k] = allowed(i + 32 * k);
#pragma unroll
      for (u32 k = 0; k < FOURS_AT_ONCE; ++k) {
        const float4 v = widened(WIDE, bits[k], unmarked(i + 32 * k, take[k]));
        f(4 * (i + 32 * k), v.x, v.y, v.z, v.w);
      }
      if (++calls % STRETCH == 0) after();
      __syncwarp();
    }
    after();
    return from;
  }
};

struct BlockTeam {
  using Warp = DeviceWarp;
  static constexpr bool SLICES = false, READS = true;
  static constexpr u32 LISTED_MOST = PORTABLE_LISTED;

  __device__ __forceinline__ static PortableShared *sh() { return portable_state(); }
  __device__ __forceinline__ static u32 local() { return threadIdx.x; }
  __device__ __forceinline__ static u32 locals() { return THREADS; }
  __device__ __forceinline__ static u32 rank() { return threadIdx.x; }
  __device__ __forceinline__ static u32 size() { return THREADS; }
  __device__ __forceinline__ static bool leader() { return true; }
  __device__ __forceinline__ static void sync() { sync_block(); }
  __device__ __forceinline__ static void cluster_sync() { sync_block(); }
  __device__ __forceinline__ static bool merges() { return sh()->merges; }

  // The logit of a token of a row whose edits are merged; -inf: it is out. NaN where an edit made NaN or +inf.
  __device__ __noinline__ static float merged(const Request &r, const EditTable &table, u32 id) {
    if (!admitted(r, id)) return -infinity();
    const Edit *edit = table.find(id);
    return edit ? edit->bias : load_logit(r, id);
  }

  // Calls f(first id, four logits) for this thread's fours, a contiguous part of the row a warp; tokens that each_apart calls for are -inf.
  template <class F>
  __device__ __forceinline__ void each_four(const Request &r, bool raw, F f) const {
    if (!raw && sh()->apart) return;
    const FourReader row(r, raw);
    const auto [from, end] = row.of_warp(threadIdx.x / 32);
    uint4 next[2];
    u32 allowed[2];
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
      const u32 i = from + 32 * k + threadIdx.x % 32;
      if (i >= end) continue;
      next[k] = row.ask(i);
      allowed[k] = row.allowed(i);
    }
    UNROLL_NOT
    for (u32 first = from; first < end; first += 32) {
      const u32 i = first + threadIdx.x % 32;
      const float4 v = row.widened(row.dtype == NUCLEUS_F32, next[0], i < end ? row.unmarked(i, allowed[0]) : 0);
      next[0] = next[1];
      allowed[0] = allowed[1];
      if (i + 64 < end) {
        next[1] = row.ask(i + 64);
        allowed[1] = row.allowed(i + 64);
      }
      if (i < end) f(4 * i, v.x, v.y, v.z, v.w);
      __syncwarp();
    }
  }
  // The same for what takes few instructions; `after` is called after a stretch, and at the end.
  template <class F, class A>
  __device__ __forceinline__ void each_four_at_once(const Request &r, bool raw, F f, A after) const {
    if (!raw && sh()->apart) return;
    const FourReader row(r, raw);
    const FourRange own = row.of_warp(threadIdx.x / 32);
    u32 from = row.dtype == NUCLEUS_F32 ? row.each_whole<true>(own, f, after) : row.each_whole<false>(own, f, after);
    UNROLL_NOT
    for (u32 k = 0; from < own.end; from += 32, ++k) {
      const u32 i = from + threadIdx.x % 32;
      if (i < own.end) {
        const float4 v = row.widened(row.dtype == NUCLEUS_F32, row.ask(i), row.unmarked(i, row.allowed(i)));
        f(4 * i, v.x, v.y, v.z, v.w);
      }
      if (k % STRETCH == STRETCH - 1) after();
      __syncwarp();
    }
    after();
  }
  // Whether the block looks at an id.
  __device__ __forceinline__ static bool has(u32 id) { return id / 4 - sh()->first < sh()->end - sh()->first; }
  // Calls f(id, its edit or null) for the block's tokens that the fours leave out, one a thread.
  template <class F>
  __device__ __forceinline__ void each_apart(const Request &r, bool raw, F f) const {
    if (raw || !(sh()->marked || sh()->apart)) return;
    const bool apart = sh()->apart;
    const EditTable table = sh()->table;
    const u32 *ids = apart ? r.words(r.row->allowed) : nullptr;
    const u32 limit = r.limit, count = apart ? r.row->allowed.len : table.capacity;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
      u32 id = apart ? ids[i] : table.slots[i].id;
      if (id >= limit || !has(id)) continue;
      UNROLL_NOT
      for (u32 turn = 0; turn < 2; ++turn, id ^= MARKED_IDS) {  // then the id that shares its mark
        if (turn && (apart || id >= limit || !has(id) || table.find(id))) continue;
        f(id, apart || turn ? nullptr : table.slots + i);
      }
    }
  }
  // The same with their logits after all edits, where they are merged.
  template <class F>
  __device__ __forceinline__ void each_merged(const Request &r, bool raw, F f) const {
    each_apart(r, raw, [&](u32 id, const Edit *edit) { f(id, edit ? edit->bias : merged(r, sh()->table, id)); });
  }
  __device__ __forceinline__ static void mark(u32 id) { atomicOr(portable_marks() + id % MARKED_IDS / 32, 1u << id % 32); }

  // Over all threads: word k of all is added up, or their largest taken if bit k of LARGEST is set.
  template <u32 LARGEST, u32 N>
  __device__ __forceinline__ void reduce(u64 (&v)[N]) const {
    static_assert(N <= 2);
    const DeviceWarp warp;
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 k = 0; k < N; ++k) v[k] = LARGEST >> k & 1 ? warp.most(v[k]) : warp.sum(v[k]);
    sync_block();
#pragma unroll
    for (u32 k = 0; k < N; ++k)
      if (lane == 0) sh()->part[threadIdx.x / 32][k] = v[k];
    sync_block();
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
      const u64 other = lane < WARPS ? sh()->part[lane][k] : 0;
      v[k] = LARGEST >> k & 1 ? warp.most(other) : warp.sum(other);
    }
  }
  template <u32 N>
  __device__ __forceinline__ void sum(u64 (&v)[N]) const {
    reduce<0>(v);
  }
  template <u32 N>
  __device__ __forceinline__ void max(u64 (&v)[N]) const {
    reduce<~0u>(v);
  }
  __device__ __forceinline__ u32 local_max(u32 v) const {
    u64 most[1] = {v};
    max(most);
    return static_cast<u32>(most[0]);
  }

  __device__ __forceinline__ void clear_bins() const {
    sync_block();
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < BINS; i += THREADS) sh()->bins[i] = 0;
    sync_block();
  }
  __device__ __forceinline__ void add_bin(u32 bin, u64 weight) const {
    if (weight) add_by_halves(&sh()->bins[bin], weight);
  }
  // As DeviceTeam's: descending, the first bin at which `base` plus the sum suffices.
  __device__ __noinline__ u32 find_bin(u32 count, u64 &base, const Until &until) const {
    constexpr u32 EACH = BINS / THREADS;
    sync_block();
    u64 v[EACH], total = 0;
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) {
      const u32 at = threadIdx.x * EACH + k;
      total += v[k] = at < count ? sh()->bins[count - 1 - at] : 0;
    }
    const u64 through = DeviceWarp{}.inclusive(total);
    if (threadIdx.x % 32 == 31) sh()->part[threadIdx.x / 32][0] = through;
    sync_block();
    u64 before = base + through - total, found[2] = {0, 0};  // the first that suffices is the largest bin, and has least before it
    UNROLL_NOT
    for (u32 warp = 0; warp < threadIdx.x / 32; ++warp) before += sh()->part[warp][0];
#pragma unroll
    for (u32 k = 0; k < EACH; ++k) {
      const u32 bin = count - (threadIdx.x * EACH + k);  // one more
      if (v[k] && until(before + v[k]) && bin > found[0]) {
        found[0] = bin;
        found[1] = ~before;
      }
      before += v[k];
    }
    max(found);
    if (!found[0]) return 0;
    base = ~found[1];
    return static_cast<u32>(found[0]) - 1;
  }

  __device__ __forceinline__ void begin_list() const {
    sync_block();
    if (threadIdx.x == 0) sh()->listed = 0;
    sync_block();
  }
  __device__ __forceinline__ void append(u64 place) const {
    const u32 at = atomicAdd(&sh()->listed, 1);
    if (at < PORTABLE_LISTED) sh()->list[at] = place;
  }
  __device__ __forceinline__ u32 end_list() const {
    sync_block();
    return sh()->listed;
  }
  __device__ __noinline__ static void sort_list(u32 count) { sort_places<THREADS>(sh()->list, count); }
  __device__ __forceinline__ static u64 *list() { return sh()->list; }
  __device__ __forceinline__ static u64 *scratch() { return sh()->scratch; }

  // Lowers the target of a draw by what comes before the warp's part that it falls in, and tells whose that is.
  __device__ __forceinline__ static u32 warp_of_target(u64 &target) {
    u32 warp = 0;
    UNROLL_NOT
    for (; target >= sh()->masses[warp]; ++warp) target -= sh()->masses[warp];
    return warp;
  }
  // Finds the smallest id of a warp's part at which the inclusive sum of weights exceeds the target: one thread does, and calls done(id, weight).
  // weights(i, q): the weights of four i.
  template <class F, class D>
  __device__ __forceinline__ void find_token(u32 warp_of_part, u64 target, F weights, D done) const {
    const FourRange part = FourReader(sh()->request, false).of_warp(warp_of_part);
    const u32 from = part.from, end = part.end;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 at = 0, q[4];
    u32 step = 0;
    auto of_lane = [&](u32 of) {
      q[0] = q[1] = q[2] = q[3] = 0;
      if (from + of * 32 + lane < end) weights(from + of * 32 + lane, q);
      return q[0] + q[1] + q[2] + q[3];
    };
    UNROLL_NOT
    for (u32 of = warp; from + of * 32 < end; of += WARPS) {
      const u64 sum = DeviceWarp{}.sum(of_lane(of));
      if (lane == 0) sh()->steps[of] = sum;
    }
    sync_block();
    UNROLL_NOT
    for (; target - at >= sh()->steps[step]; ++step) at += sh()->steps[step];
    if (step % WARPS != warp) return;
    const u64 own = of_lane(step);
    at += DeviceWarp{}.inclusive(own) - own;
    if (target < at || target - at >= own) return;
    u32 e = 0;
    if (target - at >= q[0]) { at += q[0]; e = 1; }
    if (e == 1 && target - at >= q[1]) { at += q[1]; e = 2; }
    if (e == 2 && target - at >= q[2]) e = 3;
    done((from + step * 32 + lane) * 4 + e, e == 0 ? q[0] : e == 1 ? q[1] : e == 2 ? q[2] : q[3]);
  }
  __device__ __forceinline__ void clear_masses() const {
    sync_block();
    if (threadIdx.x < WARPS) sh()->masses[threadIdx.x] = 0;
    sync_block();
  }
  // The sum of all that warps have added to `masses`, each to that of its part.
  __device__ __forceinline__ u64 sum_masses(u64 own) const {
    own = DeviceWarp{}.sum(own);
    if (threadIdx.x % 32 == 0) add_by_halves(&sh()->masses[threadIdx.x / 32], own);
    sync_block();
    return DeviceWarp{}.sum(threadIdx.x % 32 < WARPS ? sh()->masses[threadIdx.x % 32] : 0);
  }
  // The token that is drawn of those that a machine has left, by its weights.
  template <class Machine>
  __device__ __noinline__ u32 draw(const Machine &machine, u64 target) const {
    const Weighing &w = machine.w;
    const FourReader row(machine.r, false);
    const u32 span = row.span(), from = row.of_warp(threadIdx.x / 32).from;
    u64 own = 0;
    clear_masses();
    machine.sweep([&](u32 id, float x) {
      const u64 q = w.q(x);
      if (id / 4 - from < span) own += q;
      else add_by_halves(&sh()->masses[row.warp_of(id)], q);
    });
    sum_masses(own);
    const u32 warp = warp_of_target(target);
    find_token(
        warp, target,
        [&](u32 i, u64 (&q)[4]) {
#pragma unroll
          for (u32 e = 0; e < 4; ++e) {
            float x;
            q[e] = 4 * i + e < machine.r.limit && machine.eval(4 * i + e, x) ? w.q(x) : 0;
          }
        },
        [&](u32 id, u64) { tell(id); });
    return static_cast<u32>(told());
  }
  // The place, descending, at which the sum of weights or the count suffices: by equal steps of the logit below the largest, then among the tokens of one of
  // them. 0: it is far below the largest, or more tokens than a list holds are in its step.
  template <class Machine>
  __device__ __noinline__ u64 place_by_steps(const Machine &machine, Until until, bool by_mass) const {
    constexpr float PER_LOGIT = 64;
    const Weighing &w = machine.w;
    const float largest = logit_at(machine.best), steps = by_mass ? PER_LOGIT / machine.temperature : PER_LOGIT;
    auto bin_of = [&](float x) { return BINS - 1 - static_cast<u32>(fminf((largest - x) * steps, static_cast<float>(BINS - 1))); };
    clear_bins();
    machine.sweep([&](u32, float x) { add_bin(bin_of(x), by_mass ? w.q(x) : 1); });
    u64 base = 0;
    const u32 bin = find_bin(BINS, base, until);
    if (!bin) return 0;
    begin_list();
    machine.sweep([&](u32 id, float x) {
      if (bin_of(x) == bin) append(place_of(x, id));
    });
    const u32 count = end_list();
    if (count > PORTABLE_LISTED) return 0;
    sort_list(count);
    by_warp([&](const DeviceWarp &warp) {
      u64 place = 0;
      for (u32 i = 0; i < count && !place; i += 32) {
        const u64 own = i + warp.lane() < count ? list()[i + warp.lane()] : 0, through = warp.inclusive(!own ? 0 : by_mass ? w.q(logit_at(own)) : 1);
        const u32 first = warp.first(own && until(base + through));
        if (first < 32) place = __shfl_sync(~0u, own, first);
        base += warp.last(through);
      }
      if (warp.lane() == 0) tell(place);
    });
    return told();
  }

  template <class F>
  __device__ __forceinline__ void by_warp(F f) const {
    if (threadIdx.x < 32) f(DeviceWarp{});
  }
  __device__ __forceinline__ void tell(u64 value) const { sh()->told = value; }
  __device__ __forceinline__ u64 told() const {
    sync_block();
    const u64 value = sh()->told;
    sync_block();
    return value;
  }
};

}  // namespace nucleus
