// Rows held in slices, one after another by a cluster: the next one is asked for when the first cut of one needs it no more.
#pragma once

#include "first_cut.cuh"
#include "held_row.cuh"

namespace nucleus {

// What log-probabilities of the row as it came need, to Shared, before it is changed. Two meetings.
inline __device__ __noinline__ void note_raw_sums(DeviceTeam team) {
  const Survey own = team.survey();
  u64 strange = own.nan || own.infinite, best = own.best;
  team.sum_and_max(strange, best);
  Weighing unscaled;
  if (strange || !best || !begin_weighing(logit_at(best), 1.0f, unscaled)) return;
  u64 mass[1] = {team.mass(unscaled)};
  team.sum(mass);
  if (threadIdx.x) return;
  team.sh->raw_largest = logit_at(best);
  team.sh->raw_total = mass[0];
}

// The rows of a cluster, as bits: row `first + bit * step`.
struct Rows {
  u32 first, step;
  u64 bits;

  // Of `rows`, those of a cluster, which has one at least.
  __device__ __forceinline__ static Rows all(u32 rows, u32 cluster, u32 clusters) { return Rows{cluster, clusters, ~0ull >> (64 - (rows - cluster + clusters - 1) / clusters)}; }
  __device__ __forceinline__ u32 index(u64 set) const { return first + (__ffsll(static_cast<long long>(set)) - 1) * step; }
  __device__ __forceinline__ void begin() const { wait_for_launch_before(); }
};

// The same of a launch that may take some of the batch's rows.
struct OrderedRows : Rows {
  const PartOfBatch &batch;

  __device__ __forceinline__ u32 index(u64 set) const { return batch.row_number(Rows::index(set)); }
  __device__ __forceinline__ void begin() const { batch.begin_after_launch_before(); }
};

// The rows of a cluster that an earlier launch may have left: undecided, or keeping many tokens. A lane has two.
struct LeftRows {
  u32 status[2];

  __device__ __forceinline__ LeftRows(const SamplingBatch &batch, u32 cluster, u32 clusters) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      const u32 index = cluster + (half * 32 + threadIdx.x % 32) * clusters;
      status[half] = index < batch.rows ? reinterpret_cast<const volatile u32 &>(batch.out[index].status) : NUCLEUS_OK;
    }
  }
  __device__ __forceinline__ bool none() const {
    static_assert(MANY_ABOVE < MANY_KEPT && MANY_KEPT < PENDING && PENDING == ~0u);
    return !__any_sync(~0u, status[0] >= MANY_ABOVE || status[1] >= MANY_ABOVE);
  }
  // Those of a status, as bits.
  __device__ __forceinline__ u64 with(u32 wanted) const { return static_cast<u64>(__ballot_sync(~0u, status[1] == wanted)) << 32 | __ballot_sync(~0u, status[0] == wanted); }
};

// The team over slices. Read anew wherever it is needed: what is kept while functions are called lies in local memory, which hardly any L1 is left for. So does the
// address of shared memory, unless it is hidden that it is always the same.
template <class Room>
__device__ __forceinline__ typename Room::Team slice_team(u32 row_len, u32 slice_room) {
  typename Room::Team team;
  u32 address = shared_address(shared_memory);
  asm volatile("" : "+r"(address));
  team.sh = static_cast<Shared *>(__cvta_shared_to_generic(address));
  team.slice = reinterpret_cast<float *>(reinterpret_cast<unsigned char *>(team.sh) + Room::BYTES);
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(team.blocks));
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(team.block));
#endif
  team.take_slice(row_len, slice_room);
  return team;
}

// Masks and edits a row in slices that has edits or masks, once it is there. `raw`: log-probabilities of the row as it came are asked for.
template <class Room>
static __device__ __noinline__ void change_row(u32 index, u32 slice_room, u32 dtype, bool raw) {
  const RowCallIn<Room> call{{index, slice_room, RawSums{}}};
  const DeviceTeam team = call.team();
  const Request r = call.request();
  change_slices<Room>(team, r, shared_plan(team.sh), PartLoad(team, dtype), static_cast<const char *>(r.logits), [&] {
    if (raw) note_raw_sums(team);
  });
}
// The same of one that has none.
__device__ __forceinline__ void settle_row(const DeviceTeam &team, const SamplingBatch &batch, u32 index, bool raw) {
  const PartLoad load(team, batch.dtype);
  load.settle(row_of(batch, index), team.sh->config.vocab_size);
  if (!raw) return;
  note_raw_sums(team);
  sync_block();
}

// Every row of `rows`, of which there is one. What its first cut does not decide, and all if `uncut`, goes to otherwise(index, sliced), which says whether the others are to
// be gone through. `sliced`: the slices hold the row, as it is after its edits.
template <class Room, class R, class F>
__device__ __forceinline__ void cut_each_row(const SamplingBatch &batch, const R &rows, u32 slice_room, bool uncut, F otherwise) {
  const auto team_now = [&] { return slice_team<Room>(batch.row_len, slice_room); };
  DescriptionWord word;
  {
    const DeviceTeam team = team_now();
    const PartLoad load(team, batch.dtype);
    if (threadIdx.x % 32 == 0) load.prepare();
    team.prepare_meetings();
    team.cluster_arrive_alone();  // the fences tell the others of the barriers
    sync_block();                 // the batch is there
    rows.begin();
    // Where rows wait for a cluster, the clusters of the next launch, which take places as they become free, would be fewer than fit.
    if (Room::RESIDENT > 1 || batch.rows <= rows.step) let_next_launch_begin();
    word = read_word(batch, rows.index(rows.bits));
    if (threadIdx.x % 32 == 0) load.start(row_of(batch, rows.index(rows.bits)));
  }
  u64 bits = rows.bits;
  u32 left = WARPS;  // the part that is not asked for yet; WARPS: all are
  constexpr u32 ALL = WARPS + 1;
#pragma unroll 1
  for (u32 use = 0; bits; ++use, bits &= bits - 1) {
    const u32 index = rows.index(bits);
    if (left == ALL) word = ask_for_row(PartLoad(team_now(), batch.dtype), batch, index);
    else if (left < WARPS && threadIdx.x < 32) ask_for_part(PartLoad(team_now(), batch.dtype, left), batch, index);
    left = ALL;
    Fate fate = Fate::STRANGE;
    {
      const DeviceTeam team = team_now();
      describe_row<Room>(team.sh, batch, index, word);
      await_window();
      if (may_edit(batch)) wait_for_copy(&team.sh->arrived[threadIdx.x / 32], use & 1);  // while others plan
      if (!use) team.cluster_wait();
    }
    sync_block();
    const DeviceTeam team = team_now();
    const u32 flags = team.sh->row.flags;
    if (!may_edit(batch)) wait_for_copy(&team.sh->arrived[threadIdx.x / 32], use & 1);  // as late as its own part is read
    if (flags & NUCLEUS_ROW_PADDING) continue;
    const bool raw = !(flags & NUCLEUS_ROW_PROCESSED);
    if (slice_room && shared_plan(team.sh).sliced) {
      if (shared_plan(team.sh).edits || team.sh->row.mask >= 0 || flags & NUCLEUS_ROW_ALLOWED)
        change_row<Room>(index, slice_room, batch.dtype, raw);
      else
        settle_row(team, batch, index, raw);
      fate = Fate::MANY;
      const DeviceTeam then = team_now();
      if (!uncut && shared_plan(then.sh).kind != SlicePlan::EXACT)
        fate = sample_at_first_cut<Room>(then, index, shared_plan(then.sh), [&](u32 part) {
          const u64 rest = bits & (bits - 1);
          left = part;
          if (rest) [[unlikely]]  // out of the way of a cluster's only row
            word = ask_for_row(PartLoad(team_now(), batch.dtype), batch, rows.index(rest), part);
          else
            sync_block();
        });
    }
    if (fate != Fate::DECIDED && !otherwise(index, fate == Fate::MANY)) break;
  }
  // No block leaves while another may still read its shared memory.
  team_now().cluster_arrive_alone();
  team_now().cluster_wait();
}

}  // namespace nucleus
