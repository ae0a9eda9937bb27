// top_p and min_p that keep more tokens than a list holds, then the draw, by the blocks of a cluster.
//
// A sample of the row tells between which two logits the cut of top_p lies, most likely. One sweep over the row sums the weights above both by chunks of ids,
// and lists the tokens between them, whose weights are then summed by steps of the logit, and those of one step in order. The sample is only a guess: where
// the sums say that the cut lies elsewhere, the sweep is repeated. min_p cuts at a logit that is known: one sweep.
#pragma once

#include "cut_list.cuh"

namespace nucleus {

constexpr float BRACKET = 0.43f * LIST_CAPACITY;  // tokens to each side of the guess
constexpr u32 SWEEPS_MOST = 6;

// Sums the weights of tokens from `high` up by chunks, counts them, and lists those from `low` up to it; every block of the cluster some chunks.
template <u32 N, Reading R>
__device__ __noinline__ void sweep_chunks() {
  const DeviceTeam team;
  Shared *sh = team.sh;
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const DoubleAddends addends(room->w);
  const float low = room->low, high = room->high;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, step = team.blocks * (N / 32), full = row.limit / CHUNK, chunks = chunks_of(row.limit);
  PartedSum *const sums = team.in_block(room, 0)->chunks;
  const bool changes = row.edited || row.mask;
  u32 kept = 0, chunk = team.block * (N / 32) + warp;
  ChunkLane next;
  if (chunk < full) next.read<R>(row, chunk);
#pragma unroll 1
  for (; chunk < chunks; chunk += step) {
    ChunkLane own = next;
    if (chunk + step < full) next.read<R>(row, chunk + step);
    if (chunk == full) own.read_end<R>(row, chunk);
    if (changes) {
      const u32 edits = row.edited ? room->edits[chunk] : 0;
      own.settle(row, chunk, room->staged[warp], edits >> 16, edits & 0xFFFF);
    }
    DoubleAddends::Sum of_lane = addends.none();
    u32 between = 0;
#pragma unroll
    for (u32 e = 0; e < 8; ++e) {
      const float x = own.at(e);
      const bool above = x >= high;
      kept += above;
      between |= !above && x >= low ? 1u << e : 0;
      addends.add(above ? x : -infinity(), of_lane);
    }
    if (between) {
      u32 to = atomicAdd(&sh->listed, __popc(between));
#pragma unroll 1
      for (; between; between &= between - 1, ++to) {
        const u32 e = __ffs(between) - 1;
        if (to < LIST_CAPACITY) sh->list[to] = place_of(own.at(e) + 0.0f, chunk * CHUNK + ChunkLane::offset(e));
      }
    }
    __syncwarp();
    const u64 sum = DeviceWarp{}.sum_of_48_bits(addends.taken(of_lane));
    if (lane == 0) sums[chunk].put(sum);
  }
  const u32 of_warp = __reduce_add_sync(~0u, kept);
  if (lane == 0) atomicAdd(&sh->kept, of_warp);
}

// By how it is read.
template <u32 N>
__device__ __forceinline__ void sweep_row(Reading reading) {
  switch (reading) {
    case F32: sweep_chunks<N, F32>(); break;
    case F16: sweep_chunks<N, F16>(); break;
    case BF16: sweep_chunks<N, BF16>(); break;
    default: sweep_chunks<N, ANY>();
  }
}

// Brings what the blocks have listed and counted to the leader; returns how many are listed. Two barriers of the cluster, if there is one.
template <u32 N>
__device__ __forceinline__ u32 bring_together(const DeviceTeam &team) {
  Shared *sh = team.sh;
  __syncthreads();
  if (team.blocks == 1) return sh->listed;
  const u32 t = threadIdx.x;
  if (t < team.blocks) {
    team.in_block(sh, t)->sent[team.block] = sh->listed;
    team.in_block(sh, t)->groups[team.block] = sh->kept;
  }
  team.cluster_sync();
  u32 before = 0, all = 0, kept = 0;
  UNROLL_NOT
  for (u32 other = 0; other < team.blocks; ++other) {
    before += other < team.block ? sh->sent[other] : 0;
    all += sh->sent[other];
    kept += sh->groups[other];
  }
  if (team.block && all <= LIST_CAPACITY) {
    u64 *to = team.in_block(sh, 0)->list + before;
    UNROLL_NOT
    for (u32 i = t; i < sh->sent[team.block]; i += N) to[i] = sh->list[i];
  }
  if (t == 0) sh->kept = kept;
  team.cluster_sync();
  return all;
}

// Draws from the chunks, over the places from Shared's `told` up, `kept` of them.
template <u32 N>
__device__ __noinline__ void draw_from_chunks(u32 index) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const Weighing &w = room->w;
  const u64 lowest = sh->told;
  const u32 chunks = chunks_of(row.limit), each = (chunks + N - 1) / N, first = threadIdx.x * each;
  u64 own = 0, total;
  UNROLL_NOT
  for (u32 i = first; i < first + each && i < chunks; ++i) own += room->chunks[i].sum();
  u64 before = prefix_in_block<N>(own, total, 0);
  const u64 target = mulhi64(uniform_of(sh->row, sh->config), total);
  if (target >= before && target - before < own) {
    u32 i = first;
    UNROLL_NOT
    for (; target - before >= room->chunks[i].sum(); ++i) before += room->chunks[i].sum();
    sh->found_bin = i;
    sh->found_base = before;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const u32 chunk = sh->found_bin;
  u64 at = sh->found_base;
  ChunkLane lane;
  u32 begin_edits, end_edits;
  edits_of(row, chunk, begin_edits, end_edits);
  lane.read_end<ANY>(row, chunk);
  lane.settle(row, chunk, room->staged[0], begin_edits, end_edits);
#pragma unroll 1
  for (u32 half = 0; half < 2; ++half) {
    const float4 v = lane.v[0];
    lane.v[0] = lane.v[1];
    const float x[4] = {v.x, v.y, v.z, v.w};
    const u32 id = chunk * CHUNK + half * STEP + threadIdx.x * 4;
    u64 q[4], mine = 0;
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
      q[e] = place_of(x[e] + 0.0f, id + e) >= lowest ? w.q(x[e]) : 0;
      mine += q[e];
    }
    const u64 through = DeviceWarp{}.inclusive(mine);
    u64 begin = at + through - mine;
    if (target >= begin && target - begin < mine) {
      u32 e = 0;
#pragma unroll
      for (u32 i = 0; i < 3; ++i)
        if (e == i && target - begin >= q[i]) {
          begin += q[i];
          e = i + 1;
        }
      Outcome outcome;
      outcome.token = id + e;
      outcome.kept = sh->kept;
      outcome.logprob = processed_logprob(e == 0 ? q[0] : e == 1 ? q[1] : e == 2 ? q[2] : q[3], total);
      const RowCall call{index, 0, RawSums{}};
      *call.out() = result(outcome, room->many.raw, call.request());
    }
    at += DeviceWarp{}.last(through);
  }
}

// By the leader, of a row that is swept: what it has come to. With FOUND, Shared's `told` and `kept` are the lowest place and how many there are.
template <u32 N>
__device__ __forceinline__ Verdict verdict_of(u32 listed) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  Verdict verdict = FOUND;
  if (room->many.total) verdict = listed > LIST_CAPACITY ? CROWDED : cut_list<N>(listed);
  else if (threadIdx.x == 0) sh->told = static_cast<u64>(key_of(room->low + 0.0f)) << 32;
  return verdict == FOUND && sh->kept < room->many.least ? GIVEN_UP : verdict;
}

// Where the cut falls. Every thread of the cluster gets the verdict.
template <u32 N>
__device__ __noinline__ Verdict find_cut(Reading reading) {
  const DeviceTeam team;
  Shared *sh = team.sh;
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const ManyKept &many = room->many;
  const u32 t = threadIdx.x, chunks = chunks_of(row.limit);
  const bool by_mass = many.total != 0;
  const float least = float_of(0xFF7FFFFFu);  // tokens at -inf are out
  float rank = 0, half = 0;
  Sample<N> sample(room->counts, &room->rank, many.largest, room->w.s);
  if (by_mass) {
    switch (reading) {
      case F32: sample.template take<F32>(row); break;
      case F16: sample.template take<F16>(row); break;
      case BF16: sample.template take<BF16>(row); break;
      default: sample.template take<ANY>(row);
    }
    half = BRACKET / sample.share;
    const float rest = static_cast<float>(many.total) * (static_cast<float>(ONE_Q32 - many.threshold) * (1.0f / 4294967296.0f)) / sample.share;
    rank = sample.rank_of(static_cast<u64>(rest * (1.0f / 4096.0f)), fmaf(many.largest, room->w.s, -static_cast<float>(room->w.max_n)));
  }
  Verdict verdict = GIVEN_UP;
#pragma unroll 1
  for (u32 sweeps = 0; sweeps < SWEEPS_MOST; ++sweeps) {
    if (t == 0) {
      sh->listed = sh->kept = 0;
      room->low = by_mass ? least : fmaxf(fmaf(room->plan.temperature, room->plan.arg, many.largest), least);
      room->high = by_mass ? infinity() : room->low;
    }
    if (row.edited)
      for (u32 chunk = t; chunk < chunks; chunk += N) {
        u32 begin, end;
        edits_of(row, chunk, begin, end);
        room->edits[chunk] = begin << 16 | end;
      }
    __syncthreads();
    if (by_mass) {
      sample.logit_at_rank(rank - half, room->low);
      sample.logit_at_rank(rank + half, room->high);
      __syncthreads();
    }
    sweep_row<N>(reading);
    const u32 listed = bring_together<N>(team);
    if (team.leader()) {
      verdict = verdict_of<N>(listed);
      if (t < team.blocks) team.in_block(room, t)->verdict = verdict;
    }
    if (team.blocks > 1) team.cluster_sync();
    else __syncthreads();
    verdict = static_cast<Verdict>(room->verdict);
    if (verdict == HIGHER) rank += 2 * half;
    else if (verdict == LOWER) rank -= 2 * half;
    else if (verdict == CROWDED) half *= 0.5f;
    else break;
    __syncthreads();
  }
  return verdict;
}

// Decides a row that keeps many tokens, after Shared's description of it and what the room says of it: plan, many. Every thread of the cluster, after a barrier
// of it, gets whether it did.
template <u32 N>
__device__ __forceinline__ bool draw_of_many(u32 index, const Whole &whole, const Division &division) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const Request r = RowCall{index, 0, RawSums{}}.request();
  if (threadIdx.x == 0) {
    room->row = row_of(r, sh->batch.row_len, index, room->plan, whole, division);
    room->verdict = begin_weighing(room->many.largest, room->plan.temperature, room->w) && DoubleAddends(room->w).serve && !(room->plan.edited && chunks_of(r.limit) > 2 * STEP_TOKENS);
  }
  __syncthreads();
  if (!room->verdict || find_cut<N>(reading_of(r)) != FOUND) return false;
  if (DeviceTeam{}.leader()) draw_from_chunks<N>(index);
  return true;
}

// Whether top_p or min_p, at the plan's operation, is followed by the draw.
__device__ __forceinline__ bool then_draws(const SlicePlan &plan, const SamplingProgram &program) {
  const bool cuts = plan.kind == SlicePlan::MASS || plan.kind == SlicePlan::ABOVE;
  return cuts && plan.op + 2 == program.len && program.ops[plan.op + 1].code == NUCLEUS_OP_DRAW;
}

}  // namespace nucleus
