// top_p and min_p that keep more tokens than a list holds, then the draw, by the blocks of a group.
//
// A sample of the row tells between which two logits the cut of top_p lies, most likely. One sweep over the row sums the weights above both by chunks of ids,
// and lists the tokens between them, whose weights are then summed by steps of the logit, and those of one step in order. The sample is only a guess: where
// the sums say that the cut lies elsewhere, the sweep is repeated. min_p cuts at a logit that is known: one sweep.
#pragma once

#include "cut_list.cuh"

namespace nucleus {

constexpr float BRACKET = 0.43f * LIST_CAPACITY;  // tokens to each side of the guess, at most
constexpr float DEVIATIONS = 6.0f, SAMPLED_MORE = 10.0f;  // of the sample's rank, and tokens of the sample beside them, to each side
constexpr u32 SWEEPS_MOST = 6;

// Sums the weights of tokens from `high` up by chunks, counts them, and lists those from `low` up to it; every block of the group some chunks.
template <u32 N, Reading R>
__device__ __noinline__ void sweep_chunks() {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const BlockGroup &group = room->group;
  const ChunkedRow row = room->row;
  const DoubleAddends addends(room->w);
  const float low = room->low, high = room->high;
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, step = group.blocks * (N / 32), full = row.limit / CHUNK;
  PartedSum *const sums = group.in_block(room, 0)->chunks;
  const bool changes = row.edited || row.mask;
  u32 kept = 0, chunk = group.block * (N / 32) + warp;
  auto take = [&](ChunkLane &own) {
    if (changes) {
      const u32 edits = row.edited ? room->edits[chunk] : 0;
      own.settle(row, chunk, room->staged[warp], edits >> 16, edits & 0xFFFF);
    }
    DoubleAddends::Sum of_lane[2] = {addends.none(), addends.none()};
    u32 above = 0, reach = 0;
#pragma unroll
    for (u32 e = 0; e < 8; ++e) {
      const float x = own.at(e);
      if (x >= high) above |= 1u << e;
      if (x >= low) reach |= 1u << e;
      addends.add(x >= high ? x : -infinity(), of_lane[e % 2]);
    }
    kept += __popc(above);
    reach &= ~above;
    if (reach) {
      u32 to = atomicAdd(&sh->listed, __popc(reach));
#pragma unroll 1
      for (; reach; reach &= reach - 1, ++to) {
        const u32 e = __ffs(reach) - 1;
        if (to < LIST_CAPACITY) sh->list[to] = place_of(own.at(e) + 0.0f, chunk * CHUNK + ChunkLane::offset(e));
      }
    }
    __syncwarp();
    const u64 sum = DeviceWarp{}.sum_of_48_bits(addends.taken(of_lane[0]) + addends.taken(of_lane[1]));
    if (lane == 0) sums[chunk].put(sum);
  };
  ChunkLane next;
  if (chunk < full) next.read<R>(row, chunk);
#pragma unroll 1
  for (; chunk < full; chunk += step) {
    ChunkLane own = next;
    if (chunk + step < full) next.read<R>(row, chunk + step);
    take(own);
  }
  if (chunk == full && chunk < chunks_of(row.limit)) {
    ChunkLane own;
    own.read_end<R>(row, chunk);
    take(own);
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

// Brings what the blocks have listed and counted to the leader; returns how many are listed. Two barriers of the group.
template <u32 N>
__device__ __forceinline__ u32 bring_together(BlockGroup &group) {
  Shared *sh = shared_state();
  sync_block();
  if (group.blocks == 1) return sh->listed;
  const u32 t = threadIdx.x;
  if (t < group.blocks) {
    group.in_block(sh, t)->sent[group.block] = sh->listed;
    group.in_block(sh, t)->groups[group.block] = sh->kept;
  }
  group.sync();
  u32 before = 0, all = 0, kept = 0;
  UNROLL_NOT
  for (u32 other = 0; other < group.blocks; ++other) {
    before += other < group.block ? sh->sent[other] : 0;
    all += sh->sent[other];
    kept += sh->groups[other];
  }
  if (group.block && all <= LIST_CAPACITY) {
    u64 *to = group.in_block(sh, 0)->list + before;
    UNROLL_NOT
    for (u32 i = t; i < sh->sent[group.block]; i += N) to[i] = sh->list[i];
  }
  if (t == 0) sh->kept = kept;
  group.sync();
  return all;
}

// Draws from the chunks, over the places from Shared's `told` up, `kept` of them. A thread has one token of the chunk in which the draw falls.
template <u32 N>
__device__ __noinline__ void draw_from_chunks(u32 index) {
  static_assert(N >= CHUNK);
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const ChunkedRow &row = room->row;
  const DoubleAddends addends(room->w);
  const u64 lowest = sh->told, uniform = room->uniform;
  const u32 t = threadIdx.x, chunks = chunks_of(row.limit), each = (chunks + N - 1) / N, begin = t * each;
  u64 own = 0, total;
  UNROLL_NOT
  for (u32 i = begin; i < begin + each && i < chunks; ++i) own += room->chunks[i].sum();
  u64 before = prefix_in_block<N>(own, total, 0);
  const u64 target = mulhi64(uniform, total);
  if (target >= before && target - before < own) {
    u32 i = begin;
    UNROLL_NOT
    for (; target - before >= room->chunks[i].sum(); ++i) before += room->chunks[i].sum();
    sh->found_bin = i;
    sh->found_base = before;
  }
  sync_block();
  const u32 chunk = sh->found_bin, first = chunk * CHUNK, id = first + t;
  const bool has = t < CHUNK && id < row.limit;
  float x = has ? row.single(id) : -infinity();
  if (has && row.mask && !(id / 32 < row.mask_words && row.mask[id / 32] >> (id % 32) & 1)) x = -infinity();
  if (row.edited) {
    float *const staged = room->staged[0];
    u32 from, to;
    edits_of(row, chunk, from, to);
    if (t < CHUNK) staged[t] = x;
    sync_block();
    UNROLL_NOT
    for (u32 i = from + t; i < to; i += N) {
      const Changed c = row.changed[i];
      const bool allowed = !row.mask || (c.id / 32 < row.mask_words && row.mask[c.id / 32] >> (c.id % 32) & 1);
      if (c.id - first < CHUNK) staged[c.id - first] = allowed ? c.logit : -infinity();
    }
    sync_block();
    if (has) x = staged[t];
  }
  const u64 q = has && place_of(x + 0.0f, id) >= lowest ? weight_of(addends, x) : 0;
  u64 of_chunk;
  before = sh->found_base + prefix_in_block<N>(q, of_chunk, 1);
  if (!(target >= before && target - before < q)) return;
  Outcome outcome;
  outcome.token = id;
  outcome.kept = sh->kept;
  outcome.logprob = processed_logprob(q, total);
  const RowCall call{index, 0, RawSums{}};
  *call.out() = result(outcome, room->many.raw, call.request());
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

// Where the cut falls. Every thread of the group gets the verdict.
template <u32 N>
__device__ __noinline__ Verdict find_cut(Reading reading) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  BlockGroup &group = room->group;
  const ChunkedRow &row = room->row;
  const ManyKept &many = room->many;
  const u32 t = threadIdx.x, chunks = chunks_of(row.limit);
  const bool by_mass = many.total != 0;
  const float least = least_finite();  // tokens at -inf are out
  float rank = 0, half = 0, most = 0;
  Sample<N> sample(room->counts, room->rank, many.largest, room->w.s);
  if (by_mass) {
    switch (reading) {
      case F32: sample.template take<F32>(row, group); break;
      case F16: sample.template take<F16>(row, group); break;
      case BF16: sample.template take<BF16>(row, group); break;
      default: sample.template take<ANY>(row, group);
    }
    most = BRACKET / sample.share;
    const float rest = static_cast<float>(many.total) * (static_cast<float>(ONE_Q32 - many.threshold) * (1.0f / 4294967296.0f)) / sample.share;
    const float mass = rest * (1.0f / 4096.0f);
    rank = sample.rank_of(static_cast<u64>(mass), fmaf(many.largest, room->w.s, -static_cast<float>(room->w.max_n)));
    // So many tokens of the weight at the cut, or fewer, tell where it lies.
    half = fminf(most, fmaf(DEVIATIONS, sqrtf(mass / room->rank[1]), SAMPLED_MORE));
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
    sync_block();
    if (by_mass) {
      sample.logit_at_rank(rank - half, room->low);
      sample.logit_at_rank(rank + half, room->high);
      sync_block();
    }
    sweep_row<N>(reading);
    const u32 listed = bring_together<N>(group);
    if (group.leader()) {
      verdict = verdict_of<N>(listed);
      if (t < group.blocks) group.in_block(room, t)->verdict = verdict;
    }
    group.sync();
    verdict = static_cast<Verdict>(room->verdict);
    if (verdict == CROWDED) half *= 0.5f;
    else if (verdict == HIGHER || verdict == LOWER) {
      const float wider = fminf(2 * half, most);
      rank += verdict == HIGHER ? half + wider : -half - wider;
      half = wider;
    } else break;
    sync_block();
  }
  return verdict;
}

// Decides a row that keeps many tokens, after Shared's description of it and what the room says of it: the group, its plan, and what it keeps. Every thread of
// the group, after a barrier of it, gets whether it did.
template <u32 N>
__device__ __forceinline__ bool draw_of_many(u32 index, const Whole &whole, const Division &division) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const Request r = RowCall{index, 0, RawSums{}}.request();
  if (threadIdx.x == 0) room->row = row_of(r, sh->batch.row_len, index, room->plan, whole, division);
  sync_block();
  if (threadIdx.x == 32) room->uniform = uniform_of(sh->row, sh->config);
  if (threadIdx.x == 0)
    room->verdict = begin_weighing(room->many.largest, room->plan.temperature, room->w) && DoubleAddends(room->w).serve && !(room->plan.edited && chunks_of(r.limit) > 2 * STEP_TOKENS);
  sync_block();
  if (!room->verdict || find_cut<N>(reading_of(r)) != FOUND) return false;
  if (room->group.leader()) draw_from_chunks<N>(index);
  return true;
}

}  // namespace nucleus
