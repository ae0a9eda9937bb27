// Where top_p's cut falls among a few thousand tokens of a list, of which it is known what all others above them weigh.
#pragma once

#include "chunks.cuh"
#include "parted_sum.cuh"

namespace nucleus {

constexpr u32 LIST_STEPS = 512;   // of the listed logits
constexpr u32 STEP_TOKENS = 512;  // of one of these steps

// What a block of N threads holds beside Shared.
template <u32 N>
struct CutRoom {
  union {
    u32 edits[2 * STEP_TOKENS];  // of chunks: begin and end, of 16 bits each
    u64 step[STEP_TOKENS];
  };
  union {
    PartedSum masses[LIST_STEPS];
    float staged[N / 32][CHUNK];
  };
  u32 counts[SAMPLE_STEPS / 2];
  // What the functions that are not inlined need, so that nothing is handed over in local memory.
  BlockGroup group;
  ChunkedRow row;
  RowPlan plan;
  ManyKept many;
  u64 uniform;
  Weighing w;
  float rank[2];  // that of the cut in the sample, and what a token weighs there
  float low, high;
  u32 verdict;
  u32 left[2];  // of the rows of a cluster, those that are not decided, as bits
  PartedSum chunks[1];  // as many as the row has: what they weigh, as far as they are kept

  __device__ __forceinline__ static CutRoom *here() { return reinterpret_cast<CutRoom *>(shared_slice()); }
};
__host__ __device__ constexpr u32 chunks_of(u32 row_len) { return (row_len + CHUNK - 1) / CHUNK; }
template <u32 N>
__host__ constexpr size_t cut_room_bytes(u32 row_len) { return sizeof(CutRoom<N>) + chunks_of(row_len) * sizeof(PartedSum); }

// What lies before this thread's own, and the sum over N threads. A barrier before the slot is used again.
template <u32 N>
__device__ __forceinline__ u64 prefix_in_block(u64 own, u64 &total, u32 slot) {
  Shared *sh = shared_state();
  const u64 through = prefix_sum(own);
  if (threadIdx.x % 32 == 31) sh->part[threadIdx.x / 32][slot] = through;
  sync_block();
  u64 before = through - own;
  total = 0;
#pragma unroll 8
  for (u32 i = 0; i < N / 32; ++i) {
    before += i < threadIdx.x / 32 ? sh->part[i][slot] : 0;
    total += sh->part[i][slot];
  }
  return before;
}

// The weight of one token; `addends` serve.
__device__ __forceinline__ u64 weight_of(const DoubleAddends &addends, float x) {
  DoubleAddends::Sum sum = addends.none();
  addends.add(x, sum);
  return addends.taken(sum);
}

enum Verdict : u32 { FOUND, HIGHER, LOWER, CROWDED, GIVEN_UP };

// Looks for the cut among the leader's listed tokens. If it is there, the chunks have the weight of all that is kept, and Shared's `told` and `kept` the
// lowest place and how many there are.
template <u32 N>
__device__ __noinline__ Verdict cut_list(u32 count) {
  Shared *sh = shared_state();
  CutRoom<N> *room = CutRoom<N>::here();
  const DoubleAddends addends(room->w);
  const Until until = Until::reaches(room->many.total, room->many.threshold);
  const u32 t = threadIdx.x, warp = t / 32, lane = t % 32, chunks = chunks_of(room->row.limit);
  u64 *list = sh->list;
  u64 own = 0, above, exact = 0;
  UNROLL_NOT
  for (u32 i = t; i < chunks; i += N) own += room->chunks[i].sum();
  UNROLL_NOT
  for (u32 i = t; i < LIST_STEPS; i += N) room->masses[i].put(0);
  u32 most = 0, least = ~0u;
#pragma unroll 4
  for (u32 i = t; i < count; i += N) {
    const u32 key = static_cast<u32>(list[i] >> 32);
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  most = __reduce_max_sync(~0u, most);
  least = __reduce_min_sync(~0u, least);
  if (lane == 0) {
    sh->part[warp][1] = most;
    sh->part[warp][2] = least;
  }
  if (t == 0) sh->found = 0;
  prefix_in_block<N>(own, above, 0);
  if (until(above)) return HIGHER;
  if (!count) return LOWER;
#pragma unroll 8
  for (u32 i = 0; i < N / 32; ++i) {
    most = static_cast<u32>(sh->part[i][1]) > most ? static_cast<u32>(sh->part[i][1]) : most;
    least = static_cast<u32>(sh->part[i][2]) < least ? static_cast<u32>(sh->part[i][2]) : least;
  }
  const float first = value_of(most), range = first - value_of(least), rate = range > 0 ? static_cast<float>(LIST_STEPS - 1) / range : 0.0f;
  auto step_of = [&](u64 place) { return static_cast<u32>(fminf((first - logit_at(place)) * rate, static_cast<float>(LIST_STEPS - 1))); };
#pragma unroll 4
  for (u32 i = t; i < count; i += N) {
    const u64 q = weight_of(addends, logit_at(list[i]));
    room->masses[step_of(list[i])].add(q);
    exact += q;
  }
  u64 listed;
  prefix_in_block<N>(exact, listed, 3);
  constexpr u32 EACH = LIST_STEPS / N;
  static_assert(EACH * N == LIST_STEPS);
  u64 sum = 0, of_steps;
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) sum += room->masses[t * EACH + i].sum();
  u64 before = above + prefix_in_block<N>(sum, of_steps, 0);
  if (!until(above + listed)) return LOWER;
  if (of_steps != listed) return GIVEN_UP;  // a step has too many tokens
#pragma unroll
  for (u32 i = 0; i < EACH; ++i) {
    const u64 mass = room->masses[t * EACH + i].sum();
    if (!until(before) && until(before + mass)) {
      sh->found_bin = t * EACH + i;
      sh->found_base = before;
    }
    before += mass;
  }
  sync_block();
  const u32 step = sh->found_bin;
  u32 earlier = 0;
#pragma unroll 4
  for (u32 i = t; i < count; i += N) {
    const u32 at_step = step_of(list[i]);
    earlier += at_step < step;
    if (at_step != step) continue;
    const u32 at = atomicAdd(&sh->found, 1);
    if (at < STEP_TOKENS) room->step[at] = list[i];
  }
  earlier = __reduce_add_sync(~0u, earlier);
  if (lane == 0) atomicAdd(&sh->kept, earlier);
  sync_block();
  const u32 tokens = sh->found;
  if (tokens > STEP_TOKENS) return GIVEN_UP;
  sort_places<N>(room->step, tokens);
  if (warp == 0) {
    u64 mass = sh->found_base;
    UNROLL_NOT
    for (u32 base = 0; base < tokens; base += 32) {
      const u64 place = base + lane < tokens ? room->step[base + lane] : 0;
      const u64 prefix = DeviceWarp{}.inclusive(place ? weight_of(addends, logit_at(place)) : 0);
      const u32 last = DeviceWarp{}.first(place && until(mass + prefix));
      if (last == lane) {
        sh->told = place;
        sh->kept += base + lane + 1;
      }
      if (last < 32) break;
      mass += DeviceWarp{}.last(prefix);
    }
  }
  sync_block();
  const u64 lowest = sh->told;
#pragma unroll 4
  for (u32 i = t; i < count; i += N)
    if (list[i] >= lowest) room->chunks[id_at(list[i]) / CHUNK].add(weight_of(addends, logit_at(list[i])));
  sync_block();
  return FOUND;
}

}  // namespace nucleus
