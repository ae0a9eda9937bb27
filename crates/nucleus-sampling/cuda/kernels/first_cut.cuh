// Rows held in slices that the first operation after edits and temperatures decides, or leaves few tokens of: sweeps by all warps, which meet twice. Nearly all tokens lie below a logit that
// the k-th certainly reaches, the k-th largest of the warps' own largest logits, or of those of their halves; what reaches it goes to the leading block as a list. Where that does not tell, the row's program
// is run from its beginning by the warp in control.
#pragma once

#include "block_chain.cuh"
#include "by_sums.cuh"
#include "few_chain.cuh"
#include "slice_edits.cuh"

namespace nucleus {

// What lies behind the warps' parts of the list, in the leading block.
struct FirstList {
  alignas(16) u64 places[LIST_WORTH];
  union {
    u64 scratch[LIST_WORTH];
    struct {
      u64 sorted[ORDERED_MOST], weights[ORDERED_MOST], weights_by_id[ORDERED_MOST];  // in the order, twice, and by id
      unsigned char by_id[ORDERED_MOST], order[ORDERED_MOST];                        // of a token of the order, how many have smaller ids; of one by id, its index in the order
      Description description;                                                       // of the row, which may make room for the next one's
    };
  };
};
static_assert(sizeof(FirstList) == 2 * LIST_WORTH * sizeof(u64));
// At the end of where lists are.
template <class Room>
__device__ __forceinline__ FirstList *first_list(Shared *sh) {
  constexpr u32 AT = Room::LIST - 2 * LIST_WORTH;
  static_assert(Room::HITS * Room::CLUSTER_WARPS <= AT);
  return reinterpret_cast<FirstList *>(sh->list + AT);
}
// Whether the next row is described while the first warp runs the program on the ordered list, or ends a draw: what it needs lies where a table of edits in which nothing is noted
// yet, and the window, leave it as it is.
template <class Room>
constexpr bool DESCRIBES_BESIDE = !ONE_BARRIER && Room::LIST * sizeof(u64) <= sizeof(EditedTokens) &&
                                  (Room::LIST - LIST_WORTH) * sizeof(u64) >= offsetof(EditedTokens, biases);

// What every warp knows once all have looked at their parts.
struct FirstLook {
  u32 count;         // tokens
  bool strange;      // not of numbers alone, or an edit has found no room
  u64 best;          // the first place; 0: there is none
  u32 own, of_lane;  // the keys of this warp's largest logit, and of this lane's; 0: there is none
  u32 keys[4];       // those of all groups, four a lane: of all warps, or first those, then those of the halves of warps that do not have the warp's
  u32 at;            // of this lane's largest logit, the vector in the slice
  float second;      // the largest logit of the lane's other vectors

  // Of how many groups the largest logit reaches a key.
  __device__ __forceinline__ u32 reaching(u32 tried) const {
    u32 reached = 0;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) reached += __popc(__ballot_sync(~0u, keys[i] >= tried));
    return reached;
  }
};

// The lesser of the largest keys of a warp's halves.
__device__ __forceinline__ u32 lesser_of_halves(u32 key) {
  const bool upper = threadIdx.x & 16;
  const u32 of_lower = __reduce_max_sync(~0u, upper ? 0 : key), of_upper = __reduce_max_sync(~0u, upper ? key : 0);
  return of_lower < of_upper ? of_lower : of_upper;
}

// One meeting.
template <class Room>
__device__ __forceinline__ FirstLook look_for_first(const DeviceTeam &team) {
  constexpr u32 STRANGE_AT = 24;
  static_assert(NUCLEUS_MAX_VOCAB < 1u << STRANGE_AT && MAX_BLOCKS * WARPS <= 1u << (31 - STRANGE_AT));
  const LaneSurvey own = team.survey();
  const u32 strange = __any_sync(~0u, own.nan || own.infinite || team.unusual()), count = __reduce_add_sync(~0u, static_cast<u32>(own.count));
  const u64 first = DeviceWarp{}.most(own.best);
  u64 words[2] = {count | strange << STRANGE_AT, first};
  if constexpr (Room::MAXIMA == 2) words[0] |= static_cast<u64>(lesser_of_halves(static_cast<u32>(own.best >> 32))) << 32;
  const auto told = team.meet(words);
  FirstLook seen;
  u32 sum = 0;
  u64 best = 0;
  constexpr u32 EACH = 4 / Room::MAXIMA;  // warps a lane
  static_assert(EACH * 32 >= Room::CLUSTER_WARPS);
#pragma unroll
  for (u32 k = 0; k < EACH; ++k) {
    const u32 i = k * 32 + threadIdx.x % 32;
    const bool there = i < team.blocks * WARPS;
    const u64 place = there ? told[1][i] : 0, word = there ? told[0][i] : 0;
    sum += static_cast<u32>(word);
    best = place > best ? place : best;
    seen.keys[k] = static_cast<u32>(place >> 32);
    if constexpr (Room::MAXIMA == 2) seen.keys[EACH + k] = static_cast<u32>(word >> 32);
  }
  sum = __reduce_add_sync(~0u, sum);
  seen.count = sum & ((1u << STRANGE_AT) - 1);
  seen.strange = sum >> STRANGE_AT != 0;
  seen.best = DeviceWarp{}.most(best);
  seen.own = static_cast<u32>(first >> 32);
  seen.of_lane = static_cast<u32>(own.best >> 32);
  seen.at = own.at;
  seen.second = own.second;
  return seen;
}

// The largest number that k reach, but for bits below `shift` of the last round, at least `found`, which k reach. BITS a round, from `shift` on, until no more than `nearly`
// are left; each of a block's warps looks at as many of the 2^BITS numbers: reached(number) by the warp is how many do. A barrier of the block a round.
template <u32 BITS, class F>
__device__ __forceinline__ u32 largest_reached(const DeviceTeam &team, u32 k, u32 found, u32 shift, u32 nearly, F reached) {
  constexpr u32 NUMBERS = 1u << BITS, EACH = NUMBERS / WARPS;
  static_assert(EACH * WARPS == NUMBERS && NUMBERS <= 32);
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 *const counts = reinterpret_cast<u32 *>(team.sh->part);
#pragma unroll 1
  for (u32 round = 0;; ++round, shift = shift > BITS ? shift - BITS : 0) {
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
      const u32 number = e * WARPS + warp, count = reached(found + (number << shift));
      if (lane == 0) counts[round * NUMBERS + number] = count;
    }
    sync_block();
    const u32 enough = __ballot_sync(~0u, lane < NUMBERS && counts[round * NUMBERS + lane % NUMBERS] >= k);
    found += enough ? (31 - __clz(enough)) << shift : 0;
    if (shift <= nearly) return found;
  }
}

// The largest of 32 groups' largest logits that those of k groups reach; 0: none of them. One barrier of the block.
template <class Room>
__device__ __forceinline__ u32 kth_of_samples(const DeviceTeam &team, const FirstLook &seen, u32 k) {
  constexpr u32 SAMPLES = 32;
  const u32 lane = threadIdx.x % 32, warps = team.blocks * WARPS;
  const u64 *const told = team.last_told();
  u32 *const counts = reinterpret_cast<u32 *>(team.sh->part);
  const auto sample = [&](u32 i) {
    const u32 group = i * warps * Room::MAXIMA / SAMPLES, second = group < warps ? 0 : 1;
    return static_cast<u32>((second ? told[group - warps] : told[MAX_BLOCKS * WARPS + group]) >> 32);
  };
#pragma unroll
  for (u32 i = threadIdx.x / 32; i < SAMPLES; i += WARPS) {
    const u32 reached = seen.reaching(sample(i));
    if (lane == 0) counts[i] = reached;
  }
  sync_block();
  return __reduce_max_sync(~0u, counts[lane] >= k ? sample(lane) : 0);
}

// A key that the largest logits of k groups reach, and nearly the largest such; 0: fewer have tokens. Barriers of the block.
template <class Room>
__device__ __forceinline__ u32 kth_of_groups(const DeviceTeam &team, const FirstLook &seen, u32 k) {
  // Closer for more, of which a short list has little room for others.
  constexpr u32 BITS = 5, NEARLY = 15, CLOSER = 13, CLOSER_FROM = 65;
  if (k < CLOSER_FROM) {
    const u32 sampled = kth_of_samples<Room>(team, seen, k);
    if (sampled) return sampled;
    sync_block();
  }
  static_assert((32 - CLOSER + BITS - 1) / BITS << BITS <= sizeof(Shared::part) / sizeof(u32));
  const u32 largest = static_cast<u32>(seen.best >> 32);
  u32 least = seen.keys[0];
#pragma unroll
  for (u32 i = 1; i < 4; ++i) least = i % (4 / Room::MAXIMA) * 32 < team.blocks * WARPS && seen.keys[i] < least ? seen.keys[i] : least;
  least = __reduce_min_sync(~0u, least);
  const u32 differ = largest ^ least, highest = differ ? 31 - __clz(differ) : 0;  // bits above are common to all
  return largest_reached<BITS>(team, k, largest & ~((2u << highest) - 1), highest >= BITS ? highest - (BITS - 1) : 0, k < CLOSER_FROM ? NEARLY : CLOSER, [&](u32 tried) { return seen.reaching(tried); });
}

// The same of groups of four lanes, of which each warp has GROUPS_OF_WARP, in 16 bits. One meeting.
constexpr u32 GROUPS_OF_WARP = 8;
inline __device__ __noinline__ u32 kth_of_lanes(DeviceTeam team, u32 own, u32 k) {
  const u32 lane = threadIdx.x % 32;
  u32 key = own >> 16;
#pragma unroll
  for (u32 step = 1; step < 32 / GROUPS_OF_WARP; step *= 2) {
    const u32 other = __shfl_xor_sync(~0u, key, step);
    key = other > key ? other : key;
  }
  u32 pairs[4];
#pragma unroll
  for (u32 i = 0; i < 4; ++i) pairs[i] = __reduce_or_sync(~0u, lane / 8 == i ? key << (lane & 4 ? 16 : 0) : 0);
  const u64 words[2] = {static_cast<u64>(pairs[1]) << 32 | pairs[0], static_cast<u64>(pairs[3]) << 32 | pairs[2]};
  const auto told = team.meet(words);
  return largest_reached<4>(team, k, 0, 12, 0, [&](u32 tried) {
    u32 reached = 0;
    UNROLL_NOT
    for (u32 i = lane; i < team.blocks * WARPS; i += 32) {
#pragma unroll
      for (u32 word = 0; word < 2; ++word) {
        const u64 four = told[word][i];
#pragma unroll
        for (u32 part = 0; part < 64; part += 16) reached += (static_cast<u32>(four >> part) & 0xFFFF) >= tried;
      }
    }
    return __reduce_add_sync(~0u, reached);
  }) << 16;
}

// Groups of whose largest logits so many are reached by a bound.
template <class Room>
__device__ __forceinline__ u32 groups_of(const DeviceTeam &team) { return team.blocks * WARPS * Room::MAXIMA; }
// Whether there is a bound of the k-th largest logit that few more reach than a list holds.
template <class Room>
__device__ __forceinline__ bool kth_known(const DeviceTeam &team, u32 k) {
  constexpr u32 LISTED_MOST = 320;  // some 400 reach the bound
  return k <= groups_of<Room>(team) * 3 / 4 || (k <= team.blocks * WARPS * GROUPS_OF_WARP * 3 / 5 && k <= LISTED_MOST);
}
// A key that at least k tokens reach; 0: fewer are there.
template <class Room>
__device__ __forceinline__ u32 bound_of_kth(const DeviceTeam &team, const FirstLook &seen, u32 k) {
  if (k == 1) return static_cast<u32>(seen.best >> 32);
  return k <= groups_of<Room>(team) * 3 / 4 ? kth_of_groups<Room>(team, seen, k) : kth_of_lanes(team, seen.of_lane, k);
}

// Tokens of a warp that are in the list, and what they weigh.
struct Hits {
  u32 count = 0;  // all, or more than there is room for
  u64 mass = 0;   // of this lane's
};

// Lists the tokens of this warp from `lowest` up, more than -inf, in the leading block's memory, in a part of the list of the warp's own. Not even the leading block sees them before all have met.
template <class Room, class F>
__device__ __forceinline__ Hits send_hits(const DeviceTeam &team, const FirstLook &seen, float lowest, F weight) {
  const u32 lane = threadIdx.x % 32, part = (team.block * WARPS + threadIdx.x / 32) * Room::HITS, end_of_warp = (threadIdx.x / 32 + 1) * team.span;
  const u32 end = end_of_warp < team.held ? end_of_warp : team.held;
  u64 *const list = team.sh->list + part;
  Hits hits;
  static_assert(SLICE_BYTES_MAX / sizeof(float) / (WARPS * STEP) < 32, "vectors of a lane, of the longest slice");
  // A lane looks at its one vector that has such tokens; where it has more, all lanes look at its vectors.
  u32 several = __ballot_sync(~0u, seen.second >= lowest), vector = seen.at;
  bool looks = seen.of_lane && value_of(seen.of_lane) >= lowest && !(seen.second >= lowest);
#pragma unroll 1
  for (;;) {
    u32 left = 0;
    if (looks) {
      const float4 v = *reinterpret_cast<const float4 *>(team.slice + vector);
      left = (v.x >= lowest ? 1u : 0) | (v.y >= lowest ? 2u : 0) | (v.z >= lowest ? 4u : 0) | (v.w >= lowest ? 8u : 0);
    }
#pragma unroll 1
    for (u32 lanes = __ballot_sync(~0u, left); lanes; lanes = __ballot_sync(~0u, left)) {
      const u32 at = hits.count + __popc(lanes & ((1u << lane) - 1));
      hits.count += __popc(lanes);
      if (!left) continue;
      const u32 i = vector + __ffs(left) - 1;
      left &= left - 1;
      const float x = team.slice[i] + 0.0f;
      hits.mass += weight(x);
      if (at >= Room::HITS) continue;
      const u64 place = place_of(x, team.first + i);
      if (team.leader()) list[at] = place;
      else send_u64(DeviceTeam::address_in(list + at, 0), place, DeviceTeam::address_in(&team.sh->delivered, 0));
    }
    if (!several || hits.count > Room::HITS) break;
    vector = end_of_warp - team.span + (__ffs(several) - 1) * 4 + lane * STEP;
    looks = vector < end;
    several &= several - 1;
  }
  return hits;
}

// What all warps have listed.
struct FirstHits {
  u32 count;         // tokens
  u32 elsewhere;     // of them those that blocks other than the leading one have sent
  bool fit;          // all are in the list
  u64 mass, of_row;  // what they weigh, and what all tokens do, where it is asked
  u32 parts[4];      // of four warps, 4 * lane and on: the tokens before theirs and how many they have
};
constexpr u32 COUNT_AT = 56, PART_BITS = 8;  // of a word; weights of a warp's tokens in the list are below

// One meeting. `mass_of_lane`: what the lane's tokens weigh, those in the list and others; `by_mass`: it is asked.
template <class Room>
__device__ __forceinline__ FirstHits all_hits(const DeviceTeam &team, const Hits &own, u64 mass_of_lane, bool by_mass) {
  static_assert(Room::HITS + 1 < 1u << PART_BITS && PART_BITS <= 64 - COUNT_AT);
  const u32 lane = threadIdx.x % 32, most = Room::HITS + 1;
  const u64 mass = by_mass && own.count <= Room::HITS ? DeviceWarp{}.sum(own.mass) : 0;
  const u64 words[2] = {mass | static_cast<u64>(own.count < most ? own.count : most) << COUNT_AT, by_mass ? DeviceWarp{}.sum(mass_of_lane) : 0};
  const auto told = team.meet(words);
  FirstHits hits{0, 0, true, 0, 0, {0, 0, 0, 0}};
  bool crowded = false;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    const u32 i = 4 * lane + e;
    if (i >= team.blocks * WARPS) continue;
    const u64 word = told[0][i];
    const u32 told_count = static_cast<u32>(word >> COUNT_AT);
    crowded |= told_count > Room::HITS;
    hits.parts[e] = told_count < Room::HITS ? told_count : Room::HITS;
    hits.count += hits.parts[e];
    hits.mass += word & ((1ull << COUNT_AT) - 1);
    hits.of_row += told[1][i];
  }
  const u32 of_lane = hits.count;
  u32 before = prefix_sum(of_lane);
  hits.count = __shfl_sync(~0u, before, 31);
  hits.elsewhere = hits.count - __shfl_sync(~0u, before, WARPS / 4 - 1);
  hits.fit = !__any_sync(~0u, crowded);
  before -= of_lane;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    const u32 has = hits.parts[e];
    hits.parts[e] = before << PART_BITS | has;
    before += has;
  }
  if (by_mass) {
    hits.mass = DeviceWarp{}.sum(hits.mass);
    hits.of_row = DeviceWarp{}.sum(hits.of_row);
  }
  return hits;
}

// By the leading block: waits for what the others have sent. Its own warps' tokens are listed when a barrier of the block has followed; then count_delivery.
__device__ __forceinline__ void await_hits(const DeviceTeam &team, u32 elsewhere) {
  if (!elsewhere) return;
  if (threadIdx.x == 0) arrive_expecting(&team.sh->delivered, elsewhere * static_cast<u32>(sizeof(u64)));
  wait_for_copy(&team.sh->delivered, team.sh->deliveries % 2);
}
__device__ __forceinline__ void count_delivery(const DeviceTeam &team, u32 elsewhere) {
  if (threadIdx.x == 0 && elsewhere) team.sh->deliveries += 1;
}

// Copies the warps' parts of the list, one behind another, to where the slice was. A barrier of the block must follow.
template <class Room>
__device__ __forceinline__ void close_up(const DeviceTeam &team, const FirstHits &hits, u64 *places) {
  const u32 lane = threadIdx.x % 32, group = threadIdx.x / 4;  // four threads a part
  u32 part = 0;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) {
    const u32 other = __shfl_sync(~0u, hits.parts[e], group / 4);
    part = group % 4 == e ? other : part;
  }
  const u32 before = part >> PART_BITS, has = part & ((1u << PART_BITS) - 1);
  UNROLL_NOT
  for (u32 i = lane % 4; i < has; i += 4) places[before + i] = team.sh->list[group * Room::HITS + i];
  if (threadIdx.x == 0 && hits.count < LIST_WORTH) places[hits.count] = 0;  // whoever takes pairs takes it, too
}
static_assert(THREADS / 4 == MAX_BLOCKS * WARPS);

// The log-probability of the row as it came, of which Shared has the largest logit and the weight at temperature 1; by the thread that writes a token of logit x.
__device__ __forceinline__ RawSums raw_sums_of_row(const Shared *sh, u32 flags, const float *x) {
  RawSums raw;
  if (flags & NUCLEUS_ROW_PROCESSED) return raw;
  raw.wanted = true;
  Weighing unscaled;
  if (!sh->raw_total || !begin_weighing(sh->raw_largest, 1.0f, unscaled)) return raw;
  unscaled.sums.total = sh->raw_total;
  return x ? raw_sums_for(sh->raw_largest, unscaled, *x) : raw_sums_of(sh->raw_largest, unscaled);
}

// By one thread, of a row that goes on in its slot, or whose log-probability is that of the row as it came.
static __device__ __noinline__ void write_and_go_on(const Description *d, u32 index, u32 token, u32 kept, float logprob) {
  const Shared *sh = shared_state();
  const Request r = request_of(sh->batch, index, d->row, d->config, d->program);
  Outcome outcome;
  outcome.token = token;
  outcome.kept = kept;
  outcome.logprob = logprob;
  const float x = d->row.flags & NUCLEUS_ROW_PROCESSED ? 0.0f : load_logit(r, token) + 0.0f;
  sh->batch.out[index] = result(outcome, raw_sums_of_row(sh, d->row.flags, &x), r);
}
__device__ __forceinline__ bool goes_on(u32 flags) {
  constexpr u32 COMMITS = NUCLEUS_ROW_SLOT | NUCLEUS_ROW_COMMIT;
  return !(flags & NUCLEUS_ROW_PROCESSED) || (flags & COMMITS) == COMMITS;
}
// `d`: of the row, read if it goes on.
__device__ __forceinline__ void write_token(const Shared *sh, const Description *d, u32 flags, u32 index, u32 token, u32 kept, float logprob) {
  if (goes_on(flags)) return write_and_go_on(d, index, token, kept, logprob);
  sh->batch.out[index] = SampledToken{token, logprob, kept, NUCLEUS_OK, 0};
}

// The list by the general machine, by one warp.
static __device__ __noinline__ void run_first_list(u32 index, u32 first, float temperature, u64 *places, u64 *scratch, u32 count, u64 of_row) {
  run_candidates(RowCall{index, 0, raw_sums_of_row(shared_state(), shared_state()->row.flags, nullptr)}, ListCall{places, scratch, count, first, temperature, of_row});
}

// The commonest programs on such a list, by a block; false: another, or too long a list. Barriers of the block.
template <class Room>
__device__ __forceinline__ bool choose_from_first(Shared *sh, u32 row, const SlicePlan plan, float s, i32 max_n, u32 count, u64 of_row, u64 uniform) {
  FirstList *const room = first_list<Room>(sh);
  const u32 lane = threadIdx.x % 32, code = lane < sh->program.len && lane < NUCLEUS_MAX_OPS ? sh->program.ops[lane].code : NUCLEUS_OP_NONE;
  u32 kept = plan.kind == SlicePlan::FIRST && plan.k < count ? plan.k : count;
  if (of_row && kept > CHAIN_MOST) kept = CHAIN_MOST;
  if (count > ORDERED_MOST || kept > CHAIN_MOST || !is_common(code, sh->program.len, plan.op, sh->config.min_keep, sh->config.flags)) return false;
  // Four threads a token tell where it is in the order, and by id.
  const u32 index = threadIdx.x / 4;
  if (threadIdx.x % 4 == 0) room->weights_by_id[index] = 0;
  const Description *d = sh;
  if (DESCRIBES_BESIDE<Room>) {
    static_assert(sizeof(Description) / 4 <= THREADS);
    d = &room->description;
    if (threadIdx.x < sizeof(Description) / 4) reinterpret_cast<u32 *>(&room->description)[threadIdx.x] = reinterpret_cast<const u32 *>(static_cast<const Description *>(sh))[threadIdx.x];
  }
  if (threadIdx.x / 32 * 8 < count) {
    const u64 own = room->places[index];
    u32 rank = 0, lower = 0;
#pragma unroll 4
    for (u32 i = threadIdx.x % 4 * 2; i < count; i += 8) {
      const ulonglong2 pair = *reinterpret_cast<const ulonglong2 *>(&room->places[i]);
      rank += (pair.x > own) + (pair.y > own);
      lower += (static_cast<u32>(pair.x) > static_cast<u32>(own)) + (static_cast<u32>(pair.y) > static_cast<u32>(own));
    }
#pragma unroll
    for (u32 step = 2; step; step /= 2) {
      rank += __shfl_xor_sync(~0u, rank, step);
      lower += __shfl_xor_sync(~0u, lower, step);
    }
    if (threadIdx.x % 4 == 0 && index < count) {
      room->sorted[rank] = own;
      room->weights[rank] = Exponent(logit_at(own), s).weight(max_n);
      room->by_id[rank] = lower;
      room->order[lower] = rank;
    }
  }
  sync_block();
  if (threadIdx.x >= 32) return true;
  // Lane i has the tokens 2 i and 2 i + 1 of the order.
  const u32 at = 2 * lane;
  u64 q[2] = {0, 0};
  float x[2] = {-infinity(), -infinity()};
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    if (at + i >= kept) continue;
    q[i] = room->weights[at + i];
    x[i] = logit_at(room->sorted[at + i]);
  }
  const Beginning left = truncate<true>(d->program, plan, logit_at(room->sorted[0]), x, q, kept, of_row);
  if (!left.kept) {  // the cut lies beyond CHAIN_MOST tokens
    run_first_list(row, plan.op, plan.temperature, room->sorted, room->places, count, of_row);
    return true;
  }
#pragma unroll
  for (u32 i = 0; i < 2; ++i)
    if (at + i < left.kept) room->weights_by_id[room->by_id[at + i]] = q[i];
  __syncwarp();
  const u32 found = find_drawn(room->weights_by_id, mulhi64(uniform, left.total));
  if (found == ORDERED_MOST) return true;
  const u32 drawn = room->order[found];
  write_token(sh, d, d->row.flags, row, id_at(room->sorted[drawn]), left.kept, processed_logprob(room->weights[drawn], left.total));
  return true;
}

// The same on a sorted list of up to a token a thread, by a block; false: another program. `of_row`: what the row weighs where top_p cuts first, which the list suffices for.
static __device__ __noinline__ bool choose_by_threads(u32 row, const u64 *places, u64 *through, u32 count, float s, i32 max_n, u64 of_row, u64 uniform) {
  Shared *const sh = shared_state();
  const SlicePlan plan = shared_plan(sh);
  const SamplingProgram &program = sh->program;
  const u32 t = threadIdx.x, lane = t % 32, code = lane < program.len && lane < NUCLEUS_MAX_OPS ? program.ops[lane].code : NUCLEUS_OP_NONE;
  if (!is_common(code, program.len, plan.op, sh->config.min_keep, sh->config.flags)) return false;
  static_assert(sizeof(BlockChain<THREADS>) <= sizeof sh->part);
  const u32 first = plan.kind == SlicePlan::FIRST && plan.k < count ? plan.k : count;
  const Beginning left = reinterpret_cast<BlockChain<THREADS> *>(sh->part)->truncate(program, plan, places, through, count, first, s, max_n, of_row);
  if (t >= left.kept) return true;
  // The token whose interval, in the order of ids, has the target.
  const u64 target = mulhi64(uniform, left.total);
  const u32 id = id_at(places[t]);
  u64 earlier = 0, up_to = 0;
#pragma unroll 4
  for (u32 i = 0; i < left.kept; ++i) {
    const u64 next = through[i];
    earlier += id_at(places[i]) < id ? next - up_to : 0;
    up_to = next;
  }
  const u64 q = through[t] - (t ? through[t - 1] : 0);
  if (target >= earlier && target - earlier < q) write_token(sh, sh, sh->row.flags, row, id, left.kept, processed_logprob(q, left.total));
  return true;
}

// By every thread of the cluster, of a row that is masked and edited. MANY: the exact path decides it; STRANGE: from device memory. early(part) is called when the block
// needs no more of its slice than a warp's part, or than nothing if that is WARPS, or never: a barrier of the block.
template <class Room, class F>
__device__ __forceinline__ Fate sample_at_first_cut(const DeviceTeam &team, u32 row, const SlicePlan &plan, F early) {
  Shared *sh = team.sh;
  const bool all = plan.kind == SlicePlan::ALL, by_mass = plan.kind == SlicePlan::MASS, above = plan.kind == SlicePlan::ABOVE;
  if (!all && !kth_known<Room>(team, plan.k)) return Fate::MANY;
  const FirstLook seen = look_for_first<Room>(team);
  if (seen.strange) return Fate::STRANGE;
  if (plan.greedy && seen.best) {
    if (team.rank() == 0) write_token(sh, sh, sh->row.flags, row, id_at(seen.best), 1, 0.0f);
    return Fate::DECIDED;
  }
  if (!seen.best) return Fate::MANY;
  if (threadIdx.x == 0) {
    sh->known_best = seen.best;
    sh->known_count = seen.count;
  }
  const float largest = logit_at(seen.best);
  const u64 uniform = sh->uniform;  // the next row's may be there when the token is drawn
  Weighing w;
  if (!begin_weighing_by(sh->scale, largest, w)) return Fate::MANY;
  float lowest = -infinity();  // of what is left
  const u64 *masses;
  u32 kept = seen.count;
  if (all) {
    const u64 own[1] = {DeviceWarp{}.sum(DeviceTeam::mass_of(typename Room::Team(team), w))};
    masses = team.meet(own)[0];
  } else {
    constexpr u32 OF_MASS = 3, OF_GROUPS = 5;  // top_p is looked for in what three of five groups' largest logits reach
    const u32 groups = groups_of<Room>(team), least = by_mass && plan.k < groups * OF_MASS / OF_GROUPS ? groups * OF_MASS / OF_GROUPS : plan.k;
    const u32 bound = bound_of_kth<Room>(team, seen, least);
    float from = bound ? value_of(bound) : least_finite();
    if (above) {
      lowest = fmaf(plan.temperature, sh->program.ops[plan.op].arg, largest);
      if (lowest < from) from = lowest > -infinity() ? lowest : least_finite();
    }
    Hits own;
    if (seen.own && value_of(seen.own) >= from) own = send_hits<Room>(team, seen, from, [&](float x) { return by_mass ? w.q(x) : 0; });
    const FirstHits hits = all_hits<Room>(team, own, by_mass ? DeviceTeam::mass_of(typename Room::Team(team), w) : 0, by_mass);
    const bool listed = hits.fit && hits.count <= LIST_WORTH && (!by_mass || Until::reaches(hits.of_row, sh->program.ops[plan.op].threshold)(hits.mass));
    if (listed) early(WARPS);
    if (team.leader()) await_hits(team, hits.elsewhere);
    if (listed) {
      if (!team.leader()) return Fate::DECIDED;
      FirstList *const list = first_list<Room>(sh);
      close_up<Room>(team, hits, list->places);
      sync_block();
      count_delivery(team, hits.elsewhere);
      const bool chosen = choose_from_first<Room>(sh, row, plan, w.s, w.max_n, hits.count, hits.of_row, uniform);
      if (DESCRIBES_BESIDE<Room> && chosen && !by_mass) return Fate::DECIDED;
      if (!chosen) {
        sort_places<THREADS>(list->places, hits.count);
        static_assert(LIST_WORTH <= THREADS);
        const bool common = choose_by_threads(row, list->places, list->scratch, hits.count, w.s, w.max_n, hits.of_row, uniform);
        if (!common && threadIdx.x < 32) run_first_list(row, plan.op, plan.temperature, list->places, list->scratch, hits.count, hits.of_row);
      }
      sync_block();  // what is read here the next row takes the place of
      return Fate::DECIDED;
    }
    if (team.leader()) {
      sync_block();  // all have waited
      count_delivery(team, hits.elsewhere);
    }
    if (threadIdx.x == 0) sh->known_total = hits.of_row;
    if (!above || plan.k > 1 || !(lowest > -infinity() && lowest <= largest) || !then_draws(plan, sh->program)) return Fate::MANY;
    u64 left[2] = {0, 0};
    mass_and_count(team, Bounds(~0ull, static_cast<u64>(key_of(lowest + 0.0f)) << 32), w, left);
    const u64 words[2] = {DeviceWarp{}.sum(left[0]), DeviceWarp{}.sum(left[1])};
    const auto told = team.meet(words);
    u32 of_lane = 0;
    UNROLL_NOT
    for (u32 i = threadIdx.x % 32; i < team.blocks * WARPS; i += 32) of_lane += static_cast<u32>(told[1][i]);
    kept = __reduce_add_sync(~0u, of_lane);
    masses = told[0];
  }
  u64 total = 0;
  const DeviceTeam::DrawnPart drawn = team.find_part(masses, [&](u64 of_all) { return mulhi64(uniform, total = of_all); });
  const u32 part = __shfl_sync(~0u, drawn.part, drawn.owner);
  const bool here = part / WARPS == team.block;
  const u32 flags = sh->row.flags;
  early(here ? part % WARPS : WARPS);
  if (!here) return Fate::DECIDED;
  team.template draw_in<DESCRIBES_BESIDE<Room>>(
      drawn, [&](u32, float x) { return x >= lowest ? w.q(x) : 0; }, [&](u32 id, float x) { write_token(sh, sh, flags, row, id, kept, processed_logprob(w.q(x), total)); });
  if (!DESCRIBES_BESIDE<Room> || goes_on(flags)) sync_block();
  return Fate::DECIDED;
}

}  // namespace nucleus
