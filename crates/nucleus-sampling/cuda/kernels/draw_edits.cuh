// Edits by id of rows that are drawn from, in the rings: penalties over a window of the history, biases, and ids that may not be drawn now.
//
// While a team weighs the row before, one of its listers lists the tokens of the window that lie in the block's slice. When the slice has come, the team's warps share these out, wherever they lie, and edit them before they
// look at the row. What is noted of a token is added to the bits of its logit in the ring, so that nothing is counted elsewhere.
#pragma once

#include "draw_state.cuh"

namespace nucleus::draw {

// What is noted of a token, in a word: how often frequency and presence count it, how often repetition sees it, whether it has a bias, and whether it may not be drawn.
struct Notes {
  static constexpr u32 BITS = 11, COUNTED = 1, SEEN = 1u << BITS, BIASED = 1u << (2 * BITS), BANNED = 2 * BIASED;
  static_assert(EDITS_ROOM < SEEN);

  __device__ __forceinline__ static bool has_bias(u32 notes) { return notes < BANNED && notes & BIASED; }
  // A logit after the row's edits.
  __device__ __forceinline__ static float edited(float x, float bias, u32 notes, const EditPlan &plan) {
    if (notes >= BANNED) return -infinity();
    x = x + bias + 0.0f;
    if (!(x > -infinity())) return x;
    return penalise(x, Edit{0, (notes % BIASED >= SEEN ? EditFlag::SEEN : 0u) + notes % SEEN * OCCURRENCE, 0, 0.0f}, plan) + 0.0f;
  }
};

// A number that is added to a token's logit, or that it may not be drawn.
struct SliceBias {
  static constexpr u32 BAN = 1u << 31;

  u32 of_slice;  // the token's place in the slice, and BAN
  float value;

  __device__ __forceinline__ u32 place() const { return of_slice & ~BAN; }
  __device__ __forceinline__ u32 notes() const { return of_slice & BAN ? Notes::BANNED : Notes::BIASED; }
};

// What a block holds beside the others where rows are edited.
struct alignas(128) DrawEdits {
  static constexpr u32 POINTS = 4;

  EditPlan plans[TURNS_MOST];
  // Of each team's next row: tokens of the window by their places in the slice, in the order of the window, from the beginning on; biases from the end down.
  alignas(16) uint16_t room[TEAMS_MOST][EDITS_ROOM];
  u32 listed[TEAMS_MOST], before[TEAMS_MOST], biases[TEAMS_MOST];  // tokens, those of them before the window's later beginning (EditPlan::later), biases
  u64 ready[TEAMS_MOST];                                           // mbarriers: the edits are there
  u64 used[TEAMS_MOST];                                            // mbarriers: the team's warps need them no more
  u64 met[TEAMS_MOST][POINTS];                                     // mbarriers: they have come to a point of a row's edits

  __device__ __forceinline__ SliceBias *bias(u32 team, u32 i) { return reinterpret_cast<SliceBias *>(&room[team][EDITS_ROOM]) - (i + 1); }
};
static_assert(sizeof(SliceBias) == PLACES_OF_BIAS * sizeof(uint16_t));
__device__ __forceinline__ DrawEdits *edits_of(const DrawShape &shape) { return reinterpret_cast<DrawEdits *>(shared_memory + shape.masks_at - sizeof(DrawEdits)); }

// The lister that lists a team's edits.
struct EditLister {
  static constexpr u32 AT_ONCE = 16;  // tokens of a lane that are on their way together
  static constexpr u32 LINE = 32;     // words of a line of the cache

  DrawEdits *edits;
  u32 team, slice, room;
  u32 rows = 0;         // edited ones, before
  u32 touched[4] = {};  // words that were read for the cache alone, of which nobody waits for any before the edits are listed

  // Before a barrier of the cluster.
  __device__ __forceinline__ void prepare(u32 members) const {
    if (threadIdx.x % 32) return;
    init_barrier(&edits->ready[team], ARRIVING_LANES);
    init_barrier(&edits->used[team], members * ARRIVING_LANES);
    for (u32 point = 0; point < DrawEdits::POINTS; ++point) init_barrier(&edits->met[team][point], members * ARRIVING_LANES);
  }
  // Has a line of these words brought near.
  __device__ __forceinline__ static void touch(const void *words, u32 count, u32 line, u32 &touched) {
    if (line * LINE < count) asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(touched) : "l"(static_cast<const u32 *>(words) + line * LINE));
  }
  // Has a row's edits brought near, a line a lane: asking for all of them ahead would take a register each.
  __device__ __forceinline__ void ask(const EditPlan &plan) {
    static_assert(EDITS_ROOM <= 64 * LINE && EDITS_ROOM / PLACES_OF_BIAS * sizeof(SamplingBias) <= 32 * LINE * sizeof(u32));
    const u32 lane = threadIdx.x % 32;
    touch(plan.window, plan.places, lane, touched[0]);
    touch(plan.window, plan.places, lane + 32, touched[1]);
    touch(plan.bias, plan.bias_words(), lane, touched[2]);
    touch(plan.ban, plan.bans, lane, touched[3]);
  }
  // Lists what was asked for. `limit`: ids from there on do not exist.
  __device__ __forceinline__ void list(const EditPlan &plan, u32 limit) {
    asm volatile("" ::"r"(touched[0]), "r"(touched[1]), "r"(touched[2]), "r"(touched[3]));
    const u32 lane = threadIdx.x % 32, below = (1u << lane) - 1, slice_end = slice + room < limit ? slice + room : limit, end = slice_end > slice ? slice_end - slice : 0, places = plan.places, later = plan.later();
    uint16_t *const to = edits->room[team];
    if (rows) wait_for_copy(&edits->used[team], (rows - 1) & 1);
    rows += 1;
    u32 listed = 0, before = 0;
    // Before the later of the two windows begins, then behind.
#pragma unroll 1
    for (u32 part = 0; part < 2; ++part) {
      const u32 until = part ? places : later;
      if (part) before = listed;
#pragma unroll 1
      for (u32 first = part ? later : 0; first < until; first += AT_ONCE * 32) {
        const u32 *const window = plan.window + first + lane;
        u32 ids[AT_ONCE];
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) ids[i] = first + i * 32 + lane < until ? window[i * 32] : NO_ID;
#pragma unroll
        for (u32 i = 0; i < AT_ONCE; ++i) {
          const u32 of_slice = ids[i] - slice, those = __ballot_sync(~0u, of_slice < end);
          if (of_slice < end) to[listed + __popc(those & below)] = static_cast<uint16_t>(of_slice);
          listed += __popc(those);
        }
      }
    }
    u32 biases = 0;
    const u32 wanted = plan.biases + plan.bans;
#pragma unroll 1
    for (u32 first = 0; first < wanted; first += 32) {
      const SamplingBias own = first + lane < wanted ? plan.bias_at(first + lane) : SamplingBias{NO_ID, 0.0f};
      const u32 of_slice = own.token_id - slice, those = __ballot_sync(~0u, of_slice < end);
      if (of_slice < end) *edits->bias(team, biases + __popc(those & below)) = SliceBias{of_slice + (first + lane < plan.biases ? 0 : SliceBias::BAN), own.value};
      biases += __popc(those);
    }
    if (lane == 0) {
      edits->listed[team] = listed;
      edits->before[team] = before;
      edits->biases[team] = biases;
    }
    arrive_as_warp(&edits->ready[team]);
  }
};

// A warp's share of a team's edits, of a row whose slice is there.
struct TeamEdits {
  static constexpr u32 EACH = EDITS_ROOM / (WARPS / TEAMS_MOST) / 32;  // edits of a lane, at most
  static constexpr u32 NONE = ~0u;

  DrawEdits *edits;
  const EditPlan &plan;
  u32 *ring;  // of the team
  u32 team, member, members;
  u32 slots, first_slot, stage_ids;  // of the ring; first_slot: of the row's first stage

  __device__ __forceinline__ SliceBias bias_of(u32 i) const { return *edits->bias(team, i); }
  // Where a token is in the ring.
  __device__ __forceinline__ u32 at(u32 of_slice) const {
    const u32 slot = first_slot + (of_slice >> (31 - __clz(stage_ids)));
    return (slot < slots ? slot : slot - slots) * stage_ids + (of_slice & (stage_ids - 1));
  }
  // The bias of a token that has one.
  __device__ __forceinline__ float bias_at(u32 word) const {
    u32 i = 0;
    while (at(bias_of(i).place()) != word) ++i;
    return bias_of(i).value;
  }
  // The team's warps have come to a point of the row with this parity.
  __device__ __forceinline__ void meet(u32 point, u32 parity) const {
    arrive_as_warp(&edits->met[team][point]);
    wait_for_copy(&edits->met[team][point], parity);
  }
  // Tokens of the window come first, then biases. Notes are added to the bits of a token's logit; who adds the first of them edits it. `settled`: warps may have written their chunks of the slice.
  __device__ __forceinline__ void apply(u32 parity, bool settled) const {
    const u32 lane = threadIdx.x % 32, listed = edits->listed[team], before = edits->before[team], all = listed + edits->biases[team], first = member * 32 + lane, step = members * 32;
    const u32 of_later = Notes::COUNTED + Notes::SEEN, of_earlier = plan.seen_from ? Notes::COUNTED : Notes::SEEN;
    // Of the first one in registers. Few instructions are run for most rows, since fetching them is what takes time.
    u32 word0 = 0, words[EACH - 1], bits0 = 0, bits[EACH - 1];
    const auto each = [&](auto f) {
      if (first < all) f(first, word0, bits0);
      UNROLL_NOT
      for (u32 r = 1; first + r * step < all; ++r) f(first + r * step, words[r - 1], bits[r - 1]);
    };
    if (settled) meet(0, parity);
    each([&](u32 i, u32 &word, u32 &logit) {
      word = at(i < listed ? edits->room[team][i] : bias_of(i - listed).place());
      logit = ring[word];
    });
    meet(1, parity);
    each([&](u32 i, u32 &word, u32 logit) {
      const u32 notes = i >= listed ? bias_of(i - listed).notes() : i >= before ? of_later : of_earlier;
      if (atomicAdd(&ring[word], notes) != logit) word = NONE;
    });
    meet(2, parity);
    each([&](u32, u32 word, u32 logit) {
      if (word == NONE) return;
      const u32 notes = ring[word] - logit;
      const float bias = Notes::has_bias(notes) ? bias_at(word) : 0.0f;
      ring[word] = bits_of(Notes::edited(float_of(logit), bias, notes, plan));
    });
    arrive_as_warp(&edits->used[team]);
    meet(3, parity);
  }
};

}  // namespace nucleus::draw
