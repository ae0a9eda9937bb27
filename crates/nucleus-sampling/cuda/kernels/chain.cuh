// The commonest programs on a short sorted list, without a general machine: top_k, then top_p and min_p in any order, then the draw. By one warp, of which
// lane i has the tokens 2 i and 2 i + 1 of the order.
#pragma once

#include "plan.cuh"

namespace nucleus {

constexpr u32 CHAIN_MOST = 64;     // tokens after top_k: two a lane
constexpr u32 ORDERED_MOST = 128;  // tokens of a list that is also ordered by id: four a lane

// Whether a program is one of these; by a warp whose lane i has the code of operation i of `len`. `first`: the operation that cuts.
__device__ __forceinline__ bool is_common(u32 code, u32 len, u32 first, u32 min_keep, u32 flags) {
  const u32 lane = threadIdx.x % 32;
  if (lane < first || lane >= len) code = NUCLEUS_OP_NONE;
  const bool known = code == NUCLEUS_OP_NONE || code == NUCLEUS_OP_TOP_P || code == NUCLEUS_OP_MIN_P || (code == NUCLEUS_OP_TOP_K && lane == first) ||
                     (code == NUCLEUS_OP_DRAW && lane == len - 1);
  return __all_sync(~0u, known) && min_keep <= 1 && !(flags & NUCLEUS_KEEP_TIES);
}

// As prefix_sum over a whole warp, where the shuffle tells which lanes have one `step` before: no predicates are kept, which may be spilled.
__device__ __forceinline__ u64 prefix_sum_by_shuffles(u64 v) {
#pragma unroll
  for (u32 step = 1; step < 32; step <<= 1)
    asm volatile(
        "{\n.reg .u32 low, high;\n.reg .u64 before;\n.reg .pred there;\nmov.b64 {low, high}, %0;\nshfl.sync.up.b32 low|there, low, %1, 0, 0xFFFFFFFF;\n"
        "shfl.sync.up.b32 high|there, high, %1, 0, 0xFFFFFFFF;\nmov.b64 before, {low, high};\n@there add.u64 %0, %0, before;\n}"
        : "+l"(v)
        : "r"(step));
  return v;
}

// What tokens are sorted by where 32 bits have to do: logits, or logits of 16 bits (`shorts`), which leave bits of the word free once they are widened, with a part of the id. Tokens
// of one key must be told apart otherwise.
__device__ __forceinline__ u32 sort_key(u64 place, bool shorts) {
  constexpr u32 ID_BITS = 19, FREE = 13;
  static_assert(NUCLEUS_MAX_VOCAB <= 1u << ID_BITS);
  const u32 key = static_cast<u32>(place >> 32);
  return shorts ? (key & ~0u << FREE) | (static_cast<u32>(place) >> (ID_BITS - FREE) & ~(~0u << FREE)) : key;
}

// A beginning of the order: how many tokens, and what they weigh.
struct Beginning {
  u32 kept;
  u64 total;
};

// What top_p and min_p keep of the first `kept` tokens, one at least. x, q: logits and weights of the lane's tokens; from `kept` on they weigh nothing.
// `largest`: the first one's logit. `of_row`: the weight of the row that they are the beginning of, cut by top_p first; 0: they are all there is. None are kept
// where the cut lies beyond them.
template <bool BY_SHUFFLES = false>
__device__ __forceinline__ Beginning truncate(const SamplingProgram &program, const SlicePlan &plan, float largest, const float (&x)[2], const u64 (&q)[2], u32 kept, u64 of_row = 0) {
  const u32 lane = threadIdx.x % 32, at = 2 * lane, last = program.len - 1;
  const u64 prefix = BY_SHUFFLES ? prefix_sum_by_shuffles(q[0] + q[1]) : prefix_sum(q[0] + q[1]), through[2] = {prefix - q[1], prefix};  // the mass up to and with each token
  u64 total = __shfl_sync(~0u, prefix, 31);
  if (of_row) {
    if (!reaches(total, of_row, program.ops[plan.op].threshold)) return Beginning{0, 0};
    total = of_row;
  }
  UNROLL_NOT
  for (u32 i = plan.op; i < last; ++i) {
    const SamplingOp op = program.ops[i];
    bool passes[2];
    if (op.code == NUCLEUS_OP_TOP_P) {  // a token passes while what precedes it does not suffice
      if constexpr (BY_SHUFFLES) {
        const u64 least = least_reaching(total, op.threshold);
        passes[0] = through[0] - q[0] < least || lane == 0;
        passes[1] = through[0] < least;
      } else {
        passes[0] = !reaches(through[0] - q[0], total, op.threshold) || lane == 0;
        passes[1] = !reaches(through[0], total, op.threshold);
      }
    } else if (op.code == NUCLEUS_OP_MIN_P) {
      const float threshold = fmaf(plan.temperature, op.arg, largest);
      passes[0] = x[0] >= threshold || lane == 0;
      passes[1] = x[1] >= threshold;
    } else {
      continue;
    }
    const u32 first = __popc(__ballot_sync(~0u, passes[0] && at < kept)), second = __popc(__ballot_sync(~0u, passes[1] && at + 1 < kept));
    kept = first + second;
    total = __shfl_sync(~0u, kept % 2 ? through[0] : through[1], (kept - 1) / 2);
  }
  return Beginning{kept, total};
}

// Where the inclusive sum of ORDERED_MOST weights, in the order of ids, exceeds the target: to the lane that has it; ORDERED_MOST to the others.
__device__ __forceinline__ u32 find_drawn(const u64 *weights_by_id, u64 target) {
  constexpr u32 EACH = 4;
  static_assert(ORDERED_MOST == EACH * 32);
  const u32 lane = threadIdx.x % 32;
  u64 own[EACH];
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) own[i] = weights_by_id[EACH * lane + i];
  const u64 of_lane = (own[0] + own[1]) + (own[2] + own[3]);
  u64 before = prefix_sum_by_shuffles(of_lane) - of_lane;
  u32 found = ORDERED_MOST;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    if (before <= target && target - before < own[i]) found = EACH * lane + i;
    before += own[i];
  }
  return found;
}

}  // namespace nucleus
