// Draws from whole rows in one launch.
//
// Resident clusters take one row after another. The warps of a block are one team, or two, which have rows of their own, so that one weighs while the other
// waits. Each warp of a team has a part of the row in shared memory, where the bulk copy engine brings it. The teams of a cluster's blocks look at their parts,
// tell each other the largest logits, and sum weights run by run; as soon as a stage is weighed, the next row's follows in its place. The sums go to one of the
// blocks, to each in turn, where a few more warps find the run that the draw falls in and read it again (draw_finish.cuh), while the teams go on. What is told
// is stored in the receiver's shared memory and counted by an mbarrier: there is no barrier of a block or a cluster in the loop.
#pragma once

#include "part.cuh"
#include "prepare.cuh"

namespace nucleus::draw {

constexpr u32 STAGE = 512;         // tokens of a part that are swept at once, and copied at once where rows follow one another
constexpr u32 STAGES_MOST = 16;    // of a part
constexpr u32 STAGES_OF_RUN = 2;   // at least, whose weights make one sum
constexpr u32 RUNS_OF_LANE = 8;    // of a row, dealt out to the lanes of a warp
constexpr u32 RUNS = 32 * RUNS_OF_LANE;
constexpr u32 TEAMS_MOST = 2;
constexpr u32 FINISH_WARPS = 4;
constexpr u32 DRAW_THREADS = THREADS + 32 * FINISH_WARPS;
constexpr u32 TURNS_MOST = 80;     // rows of a cluster

// How rows are shared out.
struct DrawShape {
  u32 blocks, teams;  // of a cluster, of a block
  u32 room, span;     // ids of a block's slice of a row, and of a warp's part of that
  u32 copy;           // tokens that are copied at once
  u32 run;            // tokens of a run

  __host__ __device__ u32 warps_of_team() const { return WARPS / teams; }
  __host__ __device__ u32 warps() const { return blocks * warps_of_team(); }  // that share a row
  __host__ __device__ u32 sums() const { return RUNS / warps(); }  // that a warp tells: a power of two
  // What is told of a row: the sums, what each part weighs at T = 1 before any edit, how many tokens of it are there, and the row's largest logits.
  __host__ __device__ u32 words() const { return RUNS + 2 * warps() + 1; }
  __host__ __device__ u32 raw_at() const { return RUNS; }
  __host__ __device__ u32 there_at() const { return RUNS + warps(); }
  __host__ __device__ u32 largest_at() const { return RUNS + 2 * warps(); }
  __host__ __device__ size_t message_bytes() const { return (words() * sizeof(u64) + 127) / 128 * 128; }
};

// What is left of a row's plan where all of it is drawn from.
struct DrawnPlan {
  static constexpr u32 THERE = 1u << 31;
  u32 packed;  // limit, then kind and flags of 4 bits each; 0: it is not there yet
  float s;
  i32 mask;

  __device__ __forceinline__ void hold(const RowPlan &plan) {
    s = plan.s;
    mask = plan.mask;
    const u32 word = THERE | plan.limit << 8 | static_cast<u32>(plan.kind) << 4 | plan.flags;
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(shared_address(&packed)), "r"(word) : "memory");
  }
  // Waits until it is there.
  __device__ __forceinline__ RowPlan plan() const {
    u32 word = 0;
    while (!word) asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(word) : "r"(shared_address(&packed)) : "memory");
    return RowPlan{static_cast<uint16_t>(word >> 4 & 15), static_cast<uint16_t>(word & 15), 0, word << 1 >> 9, 0, 0, s, 0, mask};
  }
};
static_assert(NUCLEUS_MAX_VOCAB < 1u << 23);

// A team's largest logits as keys are told to all blocks. A warp tells the next row's when it has met the others over this one's, so that all have read the
// row's before: two buffers are enough for a team.
constexpr u32 BUFFERS = 2;

// What a block holds beside what is told of a row and the parts.
struct alignas(128) DrawState {
  u32 maxima[TEAMS_MOST * BUFFERS][ROW_WARPS];
  u64 told[TEAMS_MOST * BUFFERS];   // mbarriers: all warps have told their largest logits
  u64 arrived[WARPS][STAGES_MOST];  // mbarriers: the copy is there
  u64 summed;                       // mbarrier: what is told of a row that this block finishes is there
  u64 freed[MAX_BLOCKS];            // mbarriers: that block has read what was told
  DrawnPlan plans[TURNS_MOST];
  Description description;          // of the row that is finished
  u64 of_warps[FINISH_WARPS];       // what they have found their tokens to weigh
};
__device__ __forceinline__ DrawState *draw_state() { return reinterpret_cast<DrawState *>(shared_memory); }
__device__ __forceinline__ u64 *draw_messages() { return reinterpret_cast<u64 *>(shared_memory + sizeof(DrawState)); }

// The rows of a cluster.
struct Turns {
  u32 cluster, clusters, rows;

  __device__ __forceinline__ u32 index(u32 turn) const { return cluster + turn * clusters; }
};

__device__ __forceinline__ u32 address_in(u32 own, u32 block) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(block));
  return there;
}
// Waits for messages of other blocks.
__device__ __forceinline__ void receive(const u64 *mbarrier, u32 parity) {
  const u32 barrier = shared_address(mbarrier);
  u32 done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
}

// How the warps of a team meet over a row.
struct Meeting {
  DrawState *state;
  u32 buffer = 0, met = 0;          // buffer: the first of the team's
  u32 to = 0, barrier = 0;          // where this lane tells the largest logit; 0: nowhere
  u32 bytes;                        // that are told of a row
  bool first_warp;                  // of the team in this block

  __device__ __forceinline__ Meeting(DrawState *s, const DrawShape &shape, u32 team, u32 own) : state(s), buffer(team * BUFFERS), bytes(shape.warps() * sizeof(u32)) {
    const u32 lane = threadIdx.x % 32;
    first_warp = threadIdx.x / 32 % shape.warps_of_team() == 0;
    if (lane >= shape.blocks) return;
    to = address_in(shared_address(&state->maxima[buffer][own]), lane);
    barrier = address_in(shared_address(&state->told[buffer]), lane);
  }
  // By the team's first warp, before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 i = 0; i < BUFFERS; ++i) {
#pragma unroll
      for (u32 at = 0; at < ROW_WARPS; at += 32) state->maxima[buffer + i][at + lane] = 0;
      if (lane) continue;
      init_barrier(&state->told[buffer + i], 1);
      arrive_expecting(&state->told[buffer + i], bytes);
    }
  }
  // Tells a warp's largest logit; returns the row's, when all have told theirs.
  __device__ __forceinline__ u32 meet(u32 key) {
    const u32 own = met % BUFFERS, parity = met / BUFFERS & 1;
    u64 *told = &state->told[buffer + own];
    if (to)
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to + own * static_cast<u32>(sizeof(state->maxima[0]))), "r"(key),
                   "r"(barrier + own * static_cast<u32>(sizeof(u64)))
                   : "memory");
    met += 1;
    receive(told, parity);
    if (first_warp && threadIdx.x % 32 == 0) arrive_expecting(told, bytes);
    static_assert(ROW_WARPS == 4 * 32);
    const uint4 keys = reinterpret_cast<const uint4 *>(state->maxima[buffer + own])[threadIdx.x % 32];
    return __reduce_max_sync(~0u, __vimax3_u32(__vimax3_u32(keys.x, keys.y, keys.z), keys.w, 0));
  }
};

// A warp with its part of every row of its team.
template <u32 DTYPE>
struct Drawer {
  using P = PartOf<DTYPE>;
  using Word = typename P::Word;
  static constexpr u32 WIDTH = P::WIDTH, SIZE = P::SIZE, STEP = P::STEP;
  static_assert(STAGES_MOST * STAGE / 32 / SUMS <= 128, "what a lane's sum holds");

  const SamplingBatch &batch;
  const DrawShape &shape;
  const Turns &turns;
  DrawState *state;
  u32 own;  // this warp's place in the row
  P part;
  Word *memory;
  u32 copies;  // that bring the part
  Meeting meeting;

  __device__ __forceinline__ const char *logits_of(u32 turn) const {
    return static_cast<const char *>(batch.logits) + turns.index(turn) * batch.row_stride * SIZE;
  }
  __device__ __forceinline__ u64 *arrival(u32 copy) const { return &state->arrived[threadIdx.x / 32][copy]; }

  // By one lane, when no lane reads what was there any more, after a fence between the proxies by those that wrote to it.
  __device__ __forceinline__ void start(u32 turn, u32 copy) const {
    const u32 begin = copy * shape.copy, ids = part.copied > begin ? (part.copied - begin < shape.copy ? part.copied - begin : shape.copy) : 0, bytes = ids * SIZE;
    arrive_expecting(arrival(copy), bytes);
    start_copy(memory + begin, logits_of(turn) + static_cast<u64>(part.first + begin) * SIZE, bytes, arrival(copy));
  }
  __device__ __forceinline__ void start_all(u32 turn) const {
    if (turn < turns.rows && threadIdx.x % 32 == 0) {
#pragma unroll 1
      for (u32 copy = 0; copy < copies; ++copy) start(turn, copy);
    }
    __syncwarp();
  }
  __device__ __forceinline__ void wait_for_all(u32 parity) const {
#pragma unroll 1
    for (u32 copy = 0; copy < copies; ++copy) wait_for_copy(arrival(copy), parity);
  }

  template <class F>
  __device__ __forceinline__ void each_of_stage(u32 begin, F f) const {
    const u32 at = begin + threadIdx.x % 32 * WIDTH;
    if (begin + STAGE <= part.count) {
#pragma unroll
      for (u32 v = 0; v < STAGE / STEP; ++v) f(P::vector(memory, at + v * STEP));
    } else {
#pragma unroll 1
      for (u32 i = at; i < part.count; i += STEP) f(P::vector(memory, i));
    }
  }
  __device__ __forceinline__ SeenPart look(u32 parity) const {
    return P::look_in(
        [&](auto f) {
          u32 begin = 0;
#pragma unroll 1
          for (u32 copy = 0; copy < copies; ++copy) {
            wait_for_copy(arrival(copy), parity);
#pragma unroll 1
            for (const u32 end = begin + shape.copy; begin < end; begin += STAGE) each_of_stage(begin, f);
          }
        },
        part.count, false);
  }

  // The weights of the part's runs, run i by lane i. `next`: the turn whose logits follow where these were; none from turns.rows on.
  enum Pace { AS_THEY_ARE, RAISED, ONE_BY_ONE };
  template <Pace PACE>
  __device__ __forceinline__ u64 weigh(const Weighing &w, const DoubleAddends &addends, u32 next) const {
    const u32 lane = threadIdx.x % 32;
    const bool follows = next < turns.rows;
    u64 told = 0;
    u32 begin = 0;
#pragma unroll 1
    for (u32 run = 0; begin < part.held; ++run) {
      DoubleAddends::Sum sums[SUMS];
#pragma unroll
      for (u32 i = 0; i < SUMS; ++i) sums[i] = addends.none();
      u64 sum = 0;
#pragma unroll 1
      for (const u32 end = begin + shape.run; begin < end && begin < part.held; begin += STAGE) {
        each_of_stage(begin, [&](uint4 v) {
          float x[WIDTH];
          P::widen(v, x);
#pragma unroll
          for (u32 e = 0; e < WIDTH; ++e) {
            if constexpr (PACE == ONE_BY_ONE) sum += w.q(x[e]);
            else addends.template add<PACE == RAISED>(x[e], sums[e % SUMS]);
          }
        });
        if (!follows) continue;
        __syncwarp();
        if (lane == 0) start(next, begin / STAGE);
      }
#pragma unroll
      for (u32 i = 0; i < SUMS; ++i) sum += addends.taken(sums[i]);
      sum = sum_of_lanes(sum);
      told = lane == run ? sum : told;
    }
    return told;
  }
  __device__ __forceinline__ u64 weigh(const Weighing &w, float lowest, u32 next) const {
    const DoubleAddends addends(w);
    return !addends.serve ? weigh<ONE_BY_ONE>(w, addends, next) : addends.reach(lowest) ? weigh<AS_THEY_ARE>(w, addends, next) : weigh<RAISED>(w, addends, next);
  }

  // What is told of a row: lane i the weight of run i, all the rest.
  struct Told {
    u64 runs = 0, raw = 0;
    u32 there = 0, largest = 0, raw_largest = 0;
  };
  // From the row's logits to what is told of it. In the end those of turn `next` are on their way.
  __device__ __forceinline__ Told weigh_row(u32 turn, u32 next, u32 parity) {
    const RowPlan plan = state->plans[turn].plan();
    Told told;
    if (!plan.served()) {
      wait_for_all(parity);
      start_all(next);
      return told;
    }
    const u32 *mask = plan.flags & RowPlan::MASKED ? batch.masks + static_cast<u64>(plan.mask) * batch.mask_stride : nullptr;
    const bool raw = plan.flags & RowPlan::RAW, same = plan.s == scale(1.0f) && !mask;
    bool wrote = mask != nullptr;
    if (part.copied != part.held || part.held % WIDTH || part.first + part.held > plan.limit) {
      wait_for_all(parity);
      wrote |= part.settle(logits_of(turn), memory, plan.limit);
    } else part.count = part.held;
    SeenPart seen;
    Weighing w;
    // Twice where logits are weighed as they came, too: first so, then with the temperature, and without what a mask forbids.
#pragma unroll 1
    for (u32 pass = raw && !same ? 0 : 1; pass < 2; ++pass) {
      const bool last = pass == 1;
      if (last && mask) {
        wait_for_all(parity);
        __syncwarp();
        part.forbid(memory, mask, batch.mask_words);
      }
      if (!last || mask || !raw || same) {
        seen = look(parity);
        told.largest = meeting.meet(seen.key);
      }
      if (!last) told.raw_largest = told.largest;
      if (last && wrote) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
      __syncwarp();
      const float s = last ? plan.s : scale(1.0f);
      u64 runs = 0;
      if (told.largest && told.largest < INFINITE && begin_weighing_by(s, value_of(told.largest), w)) runs = weigh(w, seen.lowest, last ? next : turns.rows);
      else if (last) start_all(next);
      if (last) told.runs = runs;
      if (!last || (raw && same)) {
        told.raw = sum_of_lanes(runs);
        told.raw_largest = told.largest;
      }
    }
    told.there = seen.count;
    return told;
  }

  // Sends it to the block that finishes the row, once that has read what lies there.
  __device__ __forceinline__ void tell(u32 turn, const Told &told) const {
    const u32 to = turn & (shape.blocks - 1), use = turn >> (__ffs(shape.blocks) - 1), lane = threadIdx.x % 32, sums = shape.sums();
    if (use) receive(&state->freed[to], (use - 1) & 1);
    const u32 at = lane < sums ? own * sums + lane : lane == sums ? shape.raw_at() + own : lane == sums + 1 ? shape.there_at() + own : shape.largest_at();
    const u64 word = lane < sums ? told.runs : lane == sums ? told.raw : lane == sums + 1 ? told.there : static_cast<u64>(told.raw_largest) << 32 | told.largest;
    if (lane < sums + 2 || (lane == sums + 2 && own == 0))
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(address_in(shared_address(draw_messages() + at), to)), "l"(word),
                   "r"(address_in(shared_address(&state->summed), to))
                   : "memory");
  }
  __device__ __forceinline__ void take_turns(u32 team) {
    u32 parity = 0;
#pragma unroll 1
    for (u32 turn = team; turn < turns.rows; turn += shape.teams, parity ^= 1) tell(turn, weigh_row(turn, turn + shape.teams, parity));
  }
};

}  // namespace nucleus::draw
