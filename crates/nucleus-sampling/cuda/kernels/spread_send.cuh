// What a block of a row's cluster sends to the leading one of what it has read: the tokens that reach the bound.
#pragma once

#include "spread_read.cuh"

namespace nucleus::spread {

template <u32 DTYPE, u32 BLOCKS, bool SOME>
struct Sender : Reader<DTYPE, BLOCKS, SOME> {
  using Base = Reader<DTYPE, BLOCKS, SOME>;
  using typename Base::D;
  using typename Base::First;
  using typename Base::Half;
  using typename Base::Vector;
  using Base::allowed_of, Base::batch, Base::block, Base::end_of, Base::is_ragged, Base::lane, Base::limit, Base::logits, Base::masked, Base::sh, Base::shift_of, Base::warp;
  static constexpr u32 WIDTH = D::WIDTH, VECTORS = D::VECTORS, SIZE = Base::SIZE, NONE = Base::NONE, TOPS = Base::TOPS;

  using Base::Base;

  __device__ __forceinline__ bool is_token_marked(u32 local) const { return sh->marks[local / 32] >> local % 32 & 1; }

  // Lists the pairs of pieces whose largest logit reaches the threshold. A barrier must follow.
  __device__ __forceinline__ void list_hits(u32 pieces, u32 threshold) const {
    this->each_tops(pieces, [&](const u32 (&tops)[TOPS], u32 from) {
      u32 lanes[TOPS], count = 0, first = 0;
#pragma unroll
      for (u32 i = 0; i < TOPS; ++i) {
        lanes[i] = __ballot_sync(~0u, tops[i] && (tops[i] | D::VECTOR_BITS) >= threshold);
        count += __popc(lanes[i]);
      }
      if (!count) return;
      if (lane == 0) first = atomicAdd(&sh->hit, count);
      first = __shfl_sync(~0u, first, 0);
#pragma unroll
      for (u32 i = 0; i < TOPS; ++i) {
        const u32 to = first + __popc(lanes[i] & ((1u << lane) - 1));
        if (lanes[i] >> lane & 1 && to < HITS_MOST) sh->hits[to] = static_cast<uint16_t>((from + i) * READERS + threadIdx.x);
        first += __popc(lanes[i]);
      }
    });
  }

  // Takes so many places of the leading block's list, for a warp: to its first lane the first one, on its way.
  __device__ __forceinline__ u32 take_places(u32 count) const { return add_in(address_in(shared_address(&sh->listed), 0), count); }
  // How many of them there are.
  __device__ __forceinline__ static u32 room_of(u32 first, u32 count) { return first >= LISTED ? 0 : LISTED - first < count ? LISTED - first : count; }
  __device__ __forceinline__ void send_to(u32 to, u64 place) const {
    if (to < LISTED) send_u64(address_in(shared_address(&sh->places[to]), 0), place, address_in(shared_address(&sh->arrived), 0));
  }
  // Whether places from there on are behind the list's: then it does not decide the row, and no more need be sent.
  __device__ __forceinline__ static bool is_full(u32 first) { return first >= LISTED; }
  // Sends tokens that lanes have to the leading block; how many there was room for. By a warp. `full`: set where its list has no place.
  __device__ __forceinline__ u32 send(bool has, u64 place, bool &full) const {
    const u32 lanes = __ballot_sync(~0u, has), count = __popc(lanes);
    if (!lanes) return 0;
    const u32 first = __shfl_sync(~0u, take_places(count), 0);
    full = is_full(first);
    if (has) send_to(first + __popc(lanes & ((1u << lane) - 1)), place);
    return room_of(first, count);
  }

  // A token whose edits decide, for a place that was taken.
  __device__ __forceinline__ void add_changed(u32 id, float x, u32 riser, u32 to = NOWHERE) const { sh->changes[atomicAdd(&sh->changed, 1)] = Changed{id, x, riser, to}; }

  // Sends the unedited tokens of lanes' vectors that reach the threshold, and lists the others; how many were sent. `LANES` have a hit, vector i of lane j is number
  // i LANES + j of it. `first`, `local`: the lane's first token, by its id and among the block's. `taken`: to the first lane, the first of the places that were taken
  // for the hits, a place each of `hits`; `hit`: which of these the lane's is. `full`: the list has no place any more, and not all are looked at; places of the lanes'
  // hits are filled all the same.
  template <u32 LANES, u32 EACH>
  __device__ __forceinline__ u32 send_reaching(const uint4 (&v)[EACH], u32 first, u32 local, float least, u32 taken, u32 hit, u32 hits, bool &full) const {
    constexpr u32 APART = LANES * D::STRIDE;
    float x[EACH * WIDTH];
    u32 sent = 0, reaching = 0;
#pragma unroll
    for (u32 i = 0; i < EACH * WIDTH; ++i) {
      x[i] = Vector(v[i / WIDTH]).x[i % WIDTH];
      reaching |= x[i] >= least ? 1u << i : 0;
    }
    if (reaching && masked()) {
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) {
        const u32 bits = *allowed_of(sh, local + i * APART) * shift_of(local) >> Base::FIRST_BIT;
        reaching &= (bits & ((1u << WIDTH) - 1)) << i * WIDTH | ~(((1u << WIDTH) - 1) << i * WIDTH);
      }
    }
    const u32 lanes_of_hit = ((1u << LANES) - 1) << lane / LANES * LANES;
    bool open = hit < hits;  // its place
    taken = __shfl_sync(~0u, taken, 0);
    full = is_full(taken);
    if (full) return 0;
    UNROLL_NOT
    for (; __any_sync(~0u, reaching); reaching &= reaching - 1) {
      const u32 bit = __ffs(reaching) - 1, ids = EACH == 1 ? bit : bit / WIDTH * APART + bit % WIDTH, id = first + (EACH == 1 ? bit : bit / WIDTH * (APART * BLOCKS) + bit % WIDTH);
      float own = 0;
#pragma unroll
      for (u32 i = 0; i < EACH * WIDTH; ++i) own = i == bit ? x[i] : own;
      const bool marked = reaching && is_token_marked(local + ids), has = reaching && !marked;
      const u32 of_hit = __ballot_sync(~0u, reaching) & lanes_of_hit;
      const u64 place = place_of(own + 0.0f, id);
      const bool takes = open && reaching && !(of_hit & ((1u << lane) - 1));
      if (marked) add_changed(id, own + 0.0f, Changed::REACHES, takes ? taken + hit : NOWHERE);
      else if (takes) send_to(taken + hit, place);
      if (of_hit) open = false;
      sent += send(has && !takes, place, full);
      if (full) break;
    }
    if (open && lane % LANES == 0) send_to(taken + hit, no_token(taken + hit));
    return sent;
  }

  // Sends the unedited tokens of a vector of each lane that reach the limit, and lists the others; how many were sent to places that were not taken before. `there`: the
  // lane has one, which is in its place of shared memory. `first`, `local`: its first token, by its id and among the block's. `to`: a place that was taken for the vector,
  // NOWHERE: none. `full`: the list has no place any more, and not all are looked at.
  __device__ __forceinline__ u32 send_vector(bool there, u32 first, u32 local, u32 to, Limit<DTYPE> limit, bool &full) const {
    const uint4 *const v = &sh->vectors[threadIdx.x];
    u32 sent = 0, reaching = there ? limit.reached_by(*v) : 0;
    if (masked()) reaching &= *allowed_of(sh, local) * shift_of(local) >> Base::FIRST_BIT;
    const u32 edits = sh->marks[local / 32] >> local % 32;
    UNROLL_NOT
    for (; __any_sync(~0u, reaching) && !full; reaching &= reaching - 1) {
      const u32 at = reaching ? __ffs(reaching) - 1 : 0;
      const float x = logit_in<DTYPE>(v, at) + 0.0f;
      const bool marked = reaching && edits >> at & 1, has = reaching && !marked;
      const u64 place = place_of(x, first + at);
      const bool own = has && to != NOWHERE;
      if (own) send_to(to, place);
      if (marked) add_changed(first + at, x, Changed::REACHES, to);
      if (own || marked) to = NOWHERE;
      sent += send(has && !own, place, full);
    }
    if (to != NOWHERE) send_to(to, no_token(to));
    return sent;
  }
  // Those of a warp's threads, of which each looks at one vector; lists the threads that have several.
  __device__ __forceinline__ u32 send_first(const First &own, float least) const {
    if (own.other >= least) sh->several[atomicAdd(&sh->hit, 1)] = threadIdx.x | own.vector << 16;
    __syncwarp();
    pass<LOOKED_AT, BLOCK_THREADS>();
    const bool reaches = own.most >= least;
    const u32 lanes = __ballot_sync(~0u, reaches), hits = __popc(lanes);
    if (!lanes) return 0;
    // The places come while it is found what is for them.
    const u32 taken = take_places(hits), first = D::at(block, own.vector, threadIdx.x), local = own.vector * D::STRIDE + threadIdx.x * WIDTH;
    const Limit<DTYPE> limit = Limit<DTYPE>::above(least);
    asm volatile("cp.async.wait_all;" ::: "memory");
    const u32 place = __shfl_sync(~0u, taken, 0);
    bool full = is_full(place);
    const u32 sent = send_vector(reaches, first, local, reaches ? place + __popc(lanes & ((1u << lane) - 1)) : NOWHERE, limit, full);
    return sent + room_of(place, hits);
  }
  // Those of the other vectors of the threads that are listed, by the warps that do not read.
  __device__ __forceinline__ u32 send_several(u32 pieces, float least) const {
    const bool ragged = is_ragged();
    const Limit<DTYPE> limit = Limit<DTYPE>::above(least);
    const u32 count = sh->hit;
    u32 sent = 0;
    bool full = false;
    UNROLL_NOT
    for (u32 i = warp - READER_WARPS; i < count && !full; i += BLOCK_WARPS - READER_WARPS) {
      const u32 thread = sh->several[i] & 0xFFFFu, seen = sh->several[i] >> 16;
      UNROLL_NOT
      for (u32 from = 0; from < pieces * VECTORS && !full; from += 32) {
        const bool there = from + lane < pieces * VECTORS && from + lane != seen;
        const u32 vector = there ? from + lane : 0, first = D::at(block, vector, thread);
        if (there) sh->vectors[threadIdx.x] = vector_at(first, ragged);
        sent += send_vector(there, first, vector * D::STRIDE + thread * WIDTH, NOWHERE, limit, full);
      }
    }
    return sent;
  }

  // A vector of a hit, read again. `first`: its first token.
  __device__ __forceinline__ uint4 vector_at(u32 first, bool ragged) const {
    uint4 v = make_uint4(NONE, NONE, NONE, NONE);
    if (first + WIDTH <= batch.row_len) v = *reinterpret_cast<const uint4 *>(logits + static_cast<u64>(first) * SIZE);
    if (ragged && first + WIDTH > limit()) v = end_of(first);
    return v;
  }
  // The same in a function of its own, where a warp has more hits than vectors are kept of.
  static __device__ __noinline__ uint4 read_again(const RowsOfBatch<SOME> *batch, u32 first) {
    const Sender own(*batch, DeviceTeam{}.block, row_state());
    return own.vector_at(first, own.is_ragged());
  }
  // Those of a warp's hits in a row that has no more than one pair of pieces, whose vectors are still in its registers.
  __device__ __forceinline__ u32 send_own_hits(const Half &even, const Half &odd, u32 pieces, u32 key, u32 threshold, float least) const {
    constexpr u32 LANES = 8, PARTS = 32 / LANES, EACH = (D::PAIR + LANES - 1) / LANES;  // for a hit, with so many vectors each; hits that a warp looks at together
    constexpr u32 HELD = HELD_MOST / READER_WARPS;
    const u32 part = lane / LANES, j = lane % LANES;
    const u32 lanes = __ballot_sync(~0u, key && (key | D::VECTOR_BITS) >= threshold), hits = __popc(lanes);
    if (!lanes) return 0;
    // The places come while it is found what is for them.
    const u32 taken = take_places(hits);
    if (lanes >> lane & 1) {
      const u32 number = __popc(lanes & ((1u << lane) - 1));
      sh->hits[warp * 32 + number] = static_cast<uint16_t>(threadIdx.x);
      if (number < HELD) {
#pragma unroll
        for (u32 i = 0; i < VECTORS; ++i) {
          sh->held[warp * HELD + number][i] = even.v[i];
          if (pieces > 1) sh->held[warp * HELD + number][VECTORS + i] = odd.v[i];
        }
      }
    }
    __syncwarp();
    u32 sent = 0, hit = part;
    bool full = false;
    UNROLL_NOT
    for (; hit - part < hits && !full; hit += PARTS) {
      const u32 thread = hit < hits ? sh->hits[warp * 32 + hit] : 0, first = D::at(block, j, thread);
      uint4 v[EACH];
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) {
        const u32 vector = i * LANES + j;
        v[i] = make_uint4(NONE, NONE, NONE, NONE);
        if (hit >= hits || vector >= pieces * VECTORS) continue;
        if (hit < HELD) {
          v[i] = sh->held[warp * HELD + hit][vector];
          continue;
        }
        const RowsOfBatch<SOME> *of = &batch;
        asm volatile("" : "+l"(of));  // else its words are read before it is known whether they are needed
        v[i] = read_again(of, D::at(block, vector, thread));
      }
      sent += send_reaching<LANES>(v, first, j * D::STRIDE + thread * WIDTH, least, taken, hit, hits, full);
    }
    const u32 first = __shfl_sync(~0u, taken, 0);
    if (full && hit - part + lane < hits) send_to(first + (hit - part + lane), no_token(first + (hit - part + lane)));  // those that are not looked at
    return sent + room_of(first, hits);
  }
  // Those of the hits that are listed, by all warps.
  __device__ __forceinline__ u32 send_hits(float least) const {
    constexpr u32 LANES = D::PAIR <= 8 ? 8 : 16, PARTS = 32 / LANES;
    const bool ragged = is_ragged();
    const u32 hits = sh->hit, j = lane % LANES;
    u32 sent = 0;
    bool full = false;
    UNROLL_NOT
    for (u32 from = warp * PARTS; from < hits && !full; from += BLOCK_WARPS * PARTS) {
      const u32 at = from + lane / LANES, count = hits - from < PARTS ? hits - from : PARTS, taken = take_places(count);
      u32 first = 0, local = 0;
      uint4 v[1] = {make_uint4(NONE, NONE, NONE, NONE)};
      if (at < hits && j < D::PAIR) {
        const u32 hit = sh->hits[at], thread = hit % READERS, vector = hit / READERS * D::PAIR + j;
        first = D::at(block, vector, thread);
        local = vector * D::STRIDE + thread * WIDTH;
        v[0] = vector_at(first, ragged);
      }
      sent += send_reaching<LANES>(v, first, local, least, taken, lane / LANES, count, full);
      sent += room_of(__shfl_sync(~0u, taken, 0), count);
    }
    return sent;
  }
};

}  // namespace nucleus::spread
