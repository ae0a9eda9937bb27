// The commonest programs on a sorted list that is long for one warp (chain.cuh), by a block.
#pragma once

#include "chain.cuh"

namespace nucleus {

// What N threads tell each other meanwhile.
template <u32 N>
struct BlockChain {
  u64 masses[N / 32];
  u32 counts[2][N / 32];

  // What top_p and min_p keep of the first `kept` of `count` tokens, one at least, to every thread; `through`: what each and all before it weigh, for as many of these. `of_row`: what the
  // row weighs where top_p cuts first and the list suffices for it; 0: the list is all there is. Weighed by `s` and `max_n`. Barriers precede and, unless nothing reads it again, follow.
  __device__ __forceinline__ Beginning truncate(const SamplingProgram &program, const SlicePlan &plan, const u64 *places, u64 *through, u32 count, u32 kept, float s, i32 max_n, u64 of_row) {
    // A thread's tokens: an odd number side by side, for the banks of shared memory.
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, last = program.len - 1, each = (count + N - 1) / N | 1;
    const u32 begin = threadIdx.x * each < count ? threadIdx.x * each : count, end = begin + each < count ? begin + each : count;
    u64 own = 0;
    UNROLL_NOT
    for (u32 i = begin; i < end; ++i) {
      own += i < kept ? Exponent(logit_at(places[i]), s).weight(max_n) : 0;
      through[i] = own;
    }
    const u64 of_lanes = prefix_sum(own);
    if (lane == 31) masses[warp] = of_lanes;
    sync_block();
    u64 before = of_lanes - own, total = 0;
#pragma unroll
    for (u32 i = 0; i < N / 32; ++i) {
      before += i < warp ? masses[i] : 0;
      total += masses[i];
    }
    UNROLL_NOT
    for (u32 i = begin; i < end; ++i) through[i] += before;
    sync_block();
    if (of_row) total = of_row;
    UNROLL_NOT
    for (u32 op_at = plan.op; op_at < last; ++op_at) {
      const SamplingOp &op = program.ops[op_at];
      const bool by_mass = op.code == NUCLEUS_OP_TOP_P;
      if (!by_mass && op.code != NUCLEUS_OP_MIN_P) continue;
      const u64 least = Until::reaches(total, op.threshold).least;  // a token passes while what precedes it does not suffice
      const float lowest = fmaf(plan.temperature, op.arg, logit_at(places[0]));
      u32 passing = 0;
      UNROLL_NOT
      for (u32 i = begin; i < end && i < kept; ++i) passing += i == 0 || (by_mass ? through[i - 1] < least : logit_at(places[i]) >= lowest);
      passing = __reduce_add_sync(~0u, passing);
      u32 *const of_warps = counts[op_at % 2];  // those of the operation before may still be read
      if (lane == 0) of_warps[warp] = passing;
      sync_block();
      kept = __reduce_add_sync(~0u, lane < N / 32 ? of_warps[lane] : 0);
      total = through[kept - 1];
    }
    return Beginning{kept, total};
  }
};

}  // namespace nucleus
