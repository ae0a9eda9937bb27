// How draws share rows out, what a block holds meanwhile, and how its warps meet.
#pragma once

#include "part.cuh"
#include "prepare.cuh"

namespace nucleus::draw {

constexpr u32 CHUNK = 512;         // tokens of a stage that are a warp's
constexpr u32 STAGES_MOST = 16;    // of a slice
constexpr u32 SLOTS_MOST = 16;     // of a team's ring
constexpr u32 RUNS = 1024;         // chunks of a row, at most
constexpr u32 RUNS_AT_ONCE = 16;   // that a lane reads
constexpr u32 TEAMS_MOST = 2;
constexpr u32 FINISH_WARPS = 2, LIST_FINISH_WARPS = 4;  // the latter where rows may be cut by top_p
constexpr u32 DRAW_THREADS = THREADS + 32 * (FINISH_WARPS + TEAMS_MOST);
constexpr u32 LISTERS = 2;         // warps that list tokens where rows may be cut by top_p
constexpr u32 SENT_MOST = 512;     // places for the tokens that are sent of a row, of which each lister has as many
constexpr u32 LOOKERS = 4;         // warps that look ahead where some do: a block's first; as many of those that weigh are its last then
constexpr u32 AHEAD_THREADS = DRAW_THREADS + 32 * LOOKERS;
constexpr u32 TURNS_MOST = 80;     // rows of a cluster

// What a kernel is for: rows without masks; rows with them; rows whose slices a ring does not hold (draw_again.cuh); rows that follow one another, without masks and with
// them (draw_ahead.cuh); rows that top_p may cut, without masks, with them (draw_top_p.cuh), and with edits by id, of logits that are of 32 bits, or of 16 and widened in the ring (draw_edits.cuh); the same where other cuts follow from what rows weigh, too, or what they weigh and the
// moment of their surprise (draw_cut.cuh); whose temperatures follow from both; that are smoothed (draw_sums.cuh); and any of these, with masks.
enum class Form { PLAIN, MASKED, AGAIN, AHEAD, AHEAD_MASKED, TOP_P, TOP_P_MASKED, TOP_P_EDITED, TOP_P_WIDENED, CUT, CUT_MASKED, SURPRISE, WARMED, SMOOTHED, ANY };
HD constexpr bool looks_ahead(Form form) { return form == Form::AHEAD || form == Form::AHEAD_MASKED; }
HD constexpr bool takes_masks(Form form) { return form == Form::MASKED || form == Form::AHEAD_MASKED || form == Form::TOP_P_MASKED || form == Form::CUT_MASKED || form == Form::ANY; }
HD constexpr bool cuts_by_weight(Form form) { return form == Form::CUT || form == Form::CUT_MASKED || form == Form::SURPRISE || form == Form::ANY; }
HD constexpr bool warms(Form form) { return form == Form::WARMED || form == Form::ANY; }
HD constexpr bool takes_moments(Form form) { return form == Form::SURPRISE || warms(form); }
HD constexpr bool smooths(Form form) { return form == Form::SMOOTHED || form == Form::ANY; }
HD constexpr bool weighs_plainly(Form form) { return !takes_moments(form) && !smooths(form); }
HD constexpr bool widens(Form form) { return form == Form::TOP_P_WIDENED; }
HD constexpr bool edits_tokens(Form form) { return form == Form::TOP_P_EDITED || widens(form); }
HD constexpr bool lists_tokens(Form form) { return form == Form::TOP_P || form == Form::TOP_P_MASKED || edits_tokens(form) || cuts_by_weight(form); }
HD constexpr ByWeight by_weight(Form form) { return ByWeight{cuts_by_weight(form), cuts_by_weight(form) && takes_moments(form), warms(form), smooths(form)}; }
// Bytes of a logit in the ring.
HD constexpr u32 bytes_in_ring(u32 dtype, Form form) { return dtype == NUCLEUS_F32 || widens(form) ? 4 : 2; }
// Whether masks are conditions of what looks and weighs, where nobody looks ahead and logits are weighed in one way; logits of 16 bits are put out, two at a time.
HD constexpr bool keeps_bits(u32 dtype, Form form) { return dtype == NUCLEUS_F32 && form != Form::ANY; }
HD constexpr u32 finish_warps(Form form) { return lists_tokens(form) ? LIST_FINISH_WARPS : FINISH_WARPS; }
// The first threads of the warps that bring stages, one a team, and of those behind them: some that weigh, or that list tokens.
HD constexpr u32 bring_from(Form form) { return THREADS + 32 * finish_warps(form); }
HD constexpr u32 behind_bringers(Form form) { return bring_from(form) + 32 * TEAMS_MOST; }
constexpr u32 threads_of(Form form) { return behind_bringers(form) + 32 * (looks_ahead(form) ? LOOKERS : lists_tokens(form) ? LISTERS : 0); }
static_assert(threads_of(Form::PLAIN) == DRAW_THREADS && threads_of(Form::AHEAD) == AHEAD_THREADS);

// How rows are shared out.
struct DrawShape {
  u32 blocks, teams;  // of a cluster, of a block
  u32 members;        // warps of a team
  u32 room, stage;    // ids of a block's slice of a row, of a stage of it
  u32 stages;         // of a slice
  u32 sums;           // a power of two: places for the weights of a warp's chunks
  u32 last;           // ids of a warp in a slice's last stage
  u32 slots, ring;    // of a team's ring; tokens of the ring
  u32 masks;          // a power of two: rows of a team whose masks a block may hold at a time, if it holds any
  u32 mask_bytes;     // of a mask for a slice; 0: there are none
  u32 masks_at;       // where the teams' masks lie in shared memory, before their rings
  u32 copied;         // whether the copy engine brings masks
  u32 again;          // stages that the ring does not hold beside the others: each sweep but a row's first brings so many of them again (draw_again.cuh)
  u32 ahead;          // stages of a team's first row that are asked for before its plan is there, for which reads would else wait behind them
  u32 bits_bytes;     // of what a team keeps of a row's mask until it is weighed
  u32 groups;         // where tokens are listed: largest logits that a warp tells, one, or one of each half of its lanes
  u32 listers;        // of a team
  u32 places;         // of a lister, for the tokens that it sends of a row
  u32 left_at, left;  // rows of the order that are left to the last launch: where they begin, counted from the first of this one; how many

  __host__ __device__ u32 warps() const { return blocks * members; }  // that share a row
  __host__ __device__ u32 senders() const { return blocks * listers; }
  __host__ __device__ u32 chunk_of(u32 at) const { return at + 1 == stages ? last : CHUNK; }
  // What is told of a row: the chunks' weights in the order of ids, what each warp's weigh at T = 1 before any edit, how many tokens of them are there, and the
  // row's largest logits. Lanes that read RUNS_AT_ONCE weights each find them in different banks.
  __host__ __device__ u32 runs_of_lane() const { return warps() * sums > 32 * RUNS_AT_ONCE ? 2 * RUNS_AT_ONCE : RUNS_AT_ONCE; }
  __host__ __device__ static u32 run_at(u32 run) { return run + run / RUNS_AT_ONCE * 2; }
  __host__ __device__ u32 raw_at() const { return run_at(32 * runs_of_lane()); }
  __host__ __device__ u32 there_at() const { return raw_at() + warps(); }
  __host__ __device__ u32 largest_at() const { return raw_at() + 2 * warps(); }
  __host__ __device__ size_t message_bytes() const { return ((largest_at() + 1) * sizeof(u64) + 127) / 128 * 128; }
  __host__ __device__ u32 rings_at() const { return masks_at + teams * masks * mask_bytes; }
  __host__ __device__ u32 bits_at() const { return rings_at() + teams * ring * static_cast<u32>(sizeof(float)); }  // of 32-bit logits
  __host__ __device__ u32 told_bytes() const { return (warps() * (stages + 2) + 1 + senders()) * static_cast<u32>(sizeof(u64)); }
};

// What is left of a row's plan where all of it is drawn from.
struct alignas(16) DrawnPlan {
  u32 packed;  // limit, then kind and flags of 4 bits each
  float s;
  i32 mask;
  u32 edited;

  __device__ __forceinline__ RowPlan plan() const {
    return RowPlan{static_cast<uint16_t>(packed >> 4 & 15), static_cast<uint16_t>(packed & 15), 0, packed >> 8, edited, 0, s, 0, mask};
  }
  // How often a slice is swept: looked at and weighed, as it came, too, if that is asked for and not the same.
  __device__ __forceinline__ u32 sweeps() const {
    const RowPlan row = plan();
    const bool masked = row.flags & RowPlan::MASKED;
    return !row.served() ? 1 : !(row.flags & RowPlan::RAW) || (row.s == scale(1.0f) && !masked) ? 2 : masked ? 4 : 3;
  }
  __device__ __forceinline__ static u32 pack(const RowPlan &plan) { return plan.limit << 8 | static_cast<u32>(plan.kind) << 4 | plan.flags; }
  // For this block.
  __device__ __forceinline__ void hold(const RowPlan &plan, u64 *planned) {
    packed = pack(plan);
    s = plan.s;
    mask = plan.mask;
    edited = plan.edited;
    arrive(planned);
  }
  // Tells a block, whose barrier counts the bytes.
  __device__ __forceinline__ void tell(const RowPlan &plan, const u64 *planned, u32 block) const {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.u32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address_in(shared_address(this), block)), "r"(pack(plan)),
                 "r"(bits_of(plan.s)), "r"(plan.mask), "r"(plan.edited), "r"(address_in(shared_address(planned), block))
                 : "memory");
  }
};
static_assert(NUCLEUS_MAX_VOCAB < 1u << 23);

// A team's largest logits as keys are told to all blocks. A warp tells the next row's when it has met the others over this one's, so that all have read the
// row's before: two buffers are enough for a team.
constexpr u32 BUFFERS = 2;

// What weighing warps are to do where others look ahead.
struct alignas(16) Order {
  enum Flags : u32 { WEIGH = 1, LAST = 2, RAW = 4, THEN_LOOKED_AT = 8 };  // of a row; its sum is that at T = 1; what is forbidden is put out afterwards
  u32 flags, largest;  // largest: of the row's logits, as a key
  u32 until;           // where the slice's tokens end
  u32 nothing;
  float s;
  i32 max_n;           // of a Weighing
};

// What a block holds beside what is told of a row and the rings.
struct alignas(128) DrawState {
  u32 maxima[TEAMS_MOST * BUFFERS][ROW_WARPS];
  u64 told[TEAMS_MOST * BUFFERS];       // mbarriers: all warps have told their largest logits
  u64 arrived[TEAMS_MOST][SLOTS_MOST];  // mbarriers: the stage is there
  u64 weighed[TEAMS_MOST][SLOTS_MOST];  // mbarriers: the team needs it no more
  u64 masked[TEAMS_MOST][SLOTS_MOST];   // mbarriers: the mask of one of the team's rows is there, if it has one
  u64 ordered;                          // mbarrier: the lookers have written an order
  u64 taken;                            // mbarrier: the weighing warps have read it
  Order orders[BUFFERS];
  float lowest[BUFFERS][LOOKERS];       // no logit that a looker has seen is below it
  u32 there[BUFFERS][LOOKERS];          // tokens that it has seen
  u64 summed;                           // mbarrier: what is told of a row that this block finishes is there
  u64 freed[MAX_BLOCKS];                // mbarriers: that block has read what was told
  u64 planned[TURNS_MOST];              // mbarriers: the plan is there
  DrawnPlan plans[TURNS_MOST];
  Description description;              // of the row that is finished
  u64 of_warps[LIST_FINISH_WARPS];      // what they have found their tokens to weigh
};
__device__ __forceinline__ DrawState *draw_state() { return reinterpret_cast<DrawState *>(shared_memory); }
__device__ __forceinline__ u64 *draw_messages() { return reinterpret_cast<u64 *>(shared_memory + sizeof(DrawState)); }

// What a block holds beside the others where rows are not weighed plainly: of the row that it finishes, but for what its teams are told, and plans.
struct alignas(128) RowSums {
  SmoothingPlan smoothings[TURNS_MOST];  // of rows that are smoothed
  u64 moments[ROW_WARPS];                // of the surprise, of each warp's tokens
  u64 told;                              // mbarrier: all warps have told what the temperature follows from
  u64 answered[TEAMS_MOST];              // mbarriers: the scale by which the team's row is weighed again is there
  float scales[TEAMS_MOST];
  u64 masses_of_warps[LIST_FINISH_WARPS];  // what the finishing warps have found of the former
  i64 moments_of_warps[LIST_FINISH_WARPS];
  i64 statistics[2];                     // log2 of the weight, of which the mean surprise was taken; log2 of the tokens
  u32 there_of_warps[LIST_FINISH_WARPS];
  u32 ranks[LIST_FINISH_WARPS];          // at which typical's last token joins, by what each of these has looked at
  u32 first, end;                        // the run that typical keeps of the list
};
__device__ __forceinline__ RowSums *row_sums_of(const DrawShape &shape) { return reinterpret_cast<RowSums *>(shared_memory + shape.masks_at - sizeof(RowSums)); }

// The rows of a cluster.
struct Turns {
  const PartOfBatch &batch;
  u32 cluster, clusters, rows;

  __device__ __forceinline__ u32 index(u32 turn) const { return batch.row_number(cluster + turn * clusters); }
};

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

  // `tellers`: warps of a block that meet; `first`: this is their first; `own`: its number among those of all blocks.
  // `groups`: largest logits that a warp tells.
  __device__ __forceinline__ Meeting(DrawState *s, const DrawShape &shape, u32 team, u32 tellers, bool first, u32 own, u32 groups = 1)
      : state(s), buffer(team * BUFFERS), bytes(shape.blocks * tellers * groups * sizeof(u32)), first_warp(first) {
    const u32 lane = threadIdx.x % 32, half = groups == 2 ? lane / 16 : 0, block = groups == 2 ? lane % 16 : lane;
    if (block >= shape.blocks) return;
    to = address_in(shared_address(&state->maxima[buffer][own * groups + half]), block);
    barrier = address_in(shared_address(&state->told[buffer]), block);
  }
  // By the team's first warp, before a barrier of the cluster.
  __device__ __forceinline__ void prepare() const {
    const u32 lane = threadIdx.x % 32;
    if (lane < BUFFERS) init_barrier(&state->told[buffer + lane], 1);
#pragma unroll
    for (u32 i = 0; i < BUFFERS; ++i)
#pragma unroll
      for (u32 at = 0; at < ROW_WARPS; at += 32) state->maxima[buffer + i][at + lane] = 0;
    __syncwarp();  // racecheck takes a warp's initialisations for those of another lane
    if (lane < BUFFERS) arrive_expecting(&state->told[buffer + lane], bytes);
  }
  // Tells a warp's largest logit, or a half's; returns the row's, when all have told theirs. `wrote`: what is copied later follows what the warp wrote to shared memory.
  // `meanwhile` is called while it waits for the others.
  template <class M>
  __device__ __forceinline__ u32 meet(u32 key, bool wrote, M meanwhile) {
    const u32 own = met % BUFFERS, parity = met / BUFFERS & 1;
    u64 *told = &state->told[buffer + own];
    if (to)
      send_u32(to + own * static_cast<u32>(sizeof(state->maxima[0])), key, barrier + own * static_cast<u32>(sizeof(u64)));
    met += 1;
    if (wrote) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    meanwhile();
    receive(told, parity);
    if (first_warp && threadIdx.x % 32 == 0) arrive_expecting(told, bytes);
    static_assert(ROW_WARPS == 4 * 32);
    const uint4 keys = reinterpret_cast<const uint4 *>(state->maxima[buffer + own])[threadIdx.x % 32];
    return __reduce_max_sync(~0u, __vimax3_u32(__vimax3_u32(keys.x, keys.y, keys.z), keys.w, 0));
  }
};

// A slot of a ring, and the parity of the phase in which it is used.
struct RingSlot {
  u32 slot = 0, parity = 0;

  __device__ __forceinline__ void advance(u32 slots) {
    slot += 1;
    if (slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
  __device__ __forceinline__ void advance(u32 slots, u32 by) {
    for (slot += by; slot >= slots; parity ^= 1) slot -= slots;
  }
};

// A value that is kept in a register: reads of parameters in a loop take longer than most of what it does.
__device__ __forceinline__ u32 kept(u32 value) { return __shfl_sync(~0u, value, 0); }

}  // namespace nucleus::draw
