// What a block of a row's cluster does: from the description to the tokens that it sends to the leading block.
#pragma once

#include "solo_team.cuh"
#include "spread.cuh"

namespace nucleus::spread {

// Loads that stay where they are written, so that all are on their way before one is waited for.
__device__ __forceinline__ u32 load_now(const u32 *from) {
  u32 word;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}
__device__ __forceinline__ u64 load_now(const uint64_t *from) {
  u64 word;
  asm volatile("ld.global.u64 %0, [%1];" : "=l"(word) : "l"(from));
  return word;
}
__device__ __forceinline__ SamplingOp load_now(const SamplingOp *from) {
  SamplingOp op;
  u32 arg;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(op.code), "=r"(arg) : "l"(from));
  op.arg = float_of(arg);
  op.threshold = load_now(&from->threshold);
  return op;
}
__device__ __forceinline__ SamplingBias load_now(const SamplingBias *from) {
  u32 value;
  SamplingBias bias;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(bias.token_id) : "l"(from));
  asm volatile("ld.global.u32 %0, [%1 + 4];" : "=r"(value) : "l"(from));
  bias.value = float_of(value);
  return bias;
}

// What decides how a row is sampled beside its program.
struct Asked {
  u32 biases, ends, bad, min_keep, flags, dry, repeat;

  __device__ __forceinline__ void read(const SamplingRow *row) {
    biases = load_now(&row->bias.len), ends = load_now(&row->eos.len), bad = load_now(&row->bad_words.len);
  }
  __device__ __forceinline__ void read(const SamplingConfig *config) {
    min_keep = load_now(&config->min_keep), flags = load_now(&config->flags);
    dry = load_now(&config->dry_penalty_last_n), repeat = load_now(&config->repeat_last_n);
  }
};

// What a thread brings of the lists that are edited.
struct Listed {
  u32 recent[RECENT];  // of the history, from its end on
  SamplingBias bias;
};

template <u32 DTYPE, u32 BLOCKS>
struct Block {
  using D = Deal<DTYPE, BLOCKS>;
  using Vector = typename D::Vector;
  static constexpr u32 WIDTH = D::WIDTH, VECTORS = D::VECTORS, SIZE = 16 / WIDTH;
  static constexpr u32 NONE = Peak<DTYPE>::NONE, DESCRIBES = TILE_WARPS - 1;  // the warp that does
  static constexpr u32 NO_SLOT = ~0u;
  struct Half {
    uint4 v[VECTORS];
  };

  const SamplingBatch &batch;
  const DeviceTeam &team;
  RowState *const sh;
  const u32 index, block;
  const char *const logits;
  Half even, odd;  // pieces

  __device__ __forceinline__ Block(const SamplingBatch &b, const DeviceTeam &t, RowState *state)
      : batch(b), team(t), sh(state), index(blockIdx.x / BLOCKS), block(t.block),
        logits(static_cast<const char *>(b.logits) + static_cast<u64>(blockIdx.x / BLOCKS) * b.row_stride * SIZE) {}

  __device__ __forceinline__ u32 at(u32 piece, u32 j) const { return D::at(block, piece * VECTORS + j); }
  __device__ __forceinline__ u32 local(u32 piece, u32 j) const { return (piece * VECTORS + j) * D::STRIDE + threadIdx.x * WIDTH; }
  __device__ __forceinline__ bool aligned() const { return reinterpret_cast<uintptr_t>(logits) % 16 == 0; }

  // Before the launch before is done, by every thread: the barriers, and an empty table.
  __device__ __forceinline__ void prepare() const {
    if (threadIdx.x == 0) {
      init_barrier(&sh->told, 1);
      init_barrier(&sh->arrived, BLOCKS);
      publish_barriers();
      arrive_expecting(&sh->told, D::GROUPS * 4);
      sh->found = sh->strange = sh->fills = 0;
    }
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#pragma unroll
    for (u32 i = 0; i < TABLE; i += TILE_THREADS) sh->edits[i + threadIdx.x] = Edit{NO_ID, 0, 0, 0.0f};
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < D::pieces(batch.row_len) * (D::PIECE / BLOCKS / 128); i += TILE_THREADS)
      reinterpret_cast<uint4 *>(sh->edited)[i] = make_uint4(0, 0, 0, 0);
  }

  // A piece on its way to registers; without the row's last vector, if it is not whole.
  __device__ __forceinline__ void load(Half &half, u32 piece) const {
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const u32 first = at(piece, j);
      uint4 &v = half.v[j];
      v = make_uint4(NONE, NONE, NONE, NONE);
      if (first + WIDTH <= batch.row_len)
        asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(logits + static_cast<u64>(first) * SIZE));
    }
  }
  // Fetches the row's last vector where it is not whole, and takes out what does not exist and what the mask forbids.
  __device__ __forceinline__ void restrict(Half &half, u32 piece, u32 limit, const u32 *mask) const {
    if (limit == batch.row_len && !mask && batch.row_len % WIDTH == 0) return;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const u32 first = at(piece, j);
      u32 w[4] = {half.v[j].x, half.v[j].y, half.v[j].z, half.v[j].w};
      if (first < batch.row_len && first + WIDTH > batch.row_len) {
#pragma unroll
        for (u32 i = 0; i < WIDTH; ++i) {
          if (first + i >= batch.row_len) continue;
          if (DTYPE == NUCLEUS_F32) w[i] = reinterpret_cast<const u32 *>(logits)[first + i];
          else w[i / 2] = reinterpret_cast<const uint16_t *>(logits)[first + i] << (i % 2 * 16) | (w[i / 2] & (i % 2 ? 0xFFFFu : 0xFFFF0000u));
        }
      }
      u32 allowed = !mask ? ~0u : first / 32 < batch.mask_words ? mask[first / 32] >> first % 32 : 0;
      if (first + WIDTH > limit) allowed &= first < limit ? ~(~0u << (limit - first)) : 0;
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) {
        if (allowed >> i & 1) continue;
        if (DTYPE == NUCLEUS_F32) w[i] = NONE;
        else w[i / 2] = i % 2 ? (w[i / 2] & 0xFFFFu) | (NONE & 0xFFFF0000u) : (w[i / 2] & 0xFFFF0000u) | (NONE & 0xFFFFu);
      }
      half.v[j] = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }

  // By a warp that has the program in its lanes.
  __device__ __forceinline__ void describe(const SamplingOp &op, u32 len, const Asked &asked, u32 flags, u32 history) const {
    const SlicePlan plan = plan_of(op, len, asked.biases || asked.ends || asked.bad, asked.min_keep);
    const u32 lane = threadIdx.x % 32;
    const bool common = is_common(op.code, len, plan.op, asked.min_keep, asked.flags);
    if (lane) return;
    const u32 window = editable_window(plan, asked.dry, asked.repeat, history);
    sh->plan = plan;
    sh->common = common;
    sh->window = window;
    sh->bounded = aligned() && is_bounded(plan, static_cast<u64>(window) + asked.biases + asked.ends + asked.bad, flags);
  }

  // Learns what is asked, and brings the first two pieces on their way. False: the row is not decided here.
  __device__ __forceinline__ bool begin(Listed &listed) {
    const u32 lane = threadIdx.x % 32;
    const SamplingRow *row = batch.row + index;
    const bool describes = threadIdx.x / 32 == DESCRIBES;
    // Most often a row has the request of its own number: then it is read before the row is known.
    u32 request = batch.flags & NUCLEUS_BATCH_REQUEST_EACH ? index : load_now(&row->request);
    DescriptionWord word;
    SamplingOp op{NUCLEUS_OP_NONE, 0, 0};
    Asked asked;
    u32 len;
    auto read_request = [&] {
      word.read(batch, index, request);
      len = load_now(&batch.programs[request].len);
      if (lane < NUCLEUS_MAX_OPS) op = load_now(&batch.programs[request].ops[lane]);
      if (describes) asked.read(batch.configs + request);
    };
    read_request();
    const u32 flags = load_now(&row->flags), meant = load_now(&row->request), biases = load_now(&row->bias.len);
    const u64 bias_offset = load_now(&row->bias.offset);
    u32 history = load_now(&row->history.len);
    u64 offset = load_now(&row->history.offset);
    if (describes) asked.read(row);
    const bool reads = aligned();
    if (reads) load(even, 0);
    const bool padding = flags & NUCLEUS_ROW_PADDING, slot = !padding && flags & NUCLEUS_ROW_SLOT;
    if (meant != request && !padding) {
      request = meant;
      read_request();
    }
    const u32 *tokens = batch.arena;
    if (slot) {
      const SamplingSlot &own = batch.slots[row->slot];
      offset = own.tokens;
      history = own.len;
      tokens = batch.slot_tokens;
    }
    const bool by_id = __any_sync(~0u, lane < len && (op.code == NUCLEUS_OP_DRY || op.code == NUCLEUS_OP_PENALTIES || op.code == NUCLEUS_OP_NO_REPEAT_NGRAM));
#pragma unroll
    for (u32 i = 0; i < RECENT; ++i) {
      const u32 back = i * TILE_THREADS + threadIdx.x;
      if (by_id && !padding && back < history) listed.recent[i] = load_now(tokens + offset + (history - 1 - back));
    }
    if (!padding && threadIdx.x < biases) listed.bias = load_now(reinterpret_cast<const SamplingBias *>(batch.arena + bias_offset) + threadIdx.x);
    if (reads && D::pieces(batch.row_len) > 1) load(odd, 1);
    word.write(sh);
    if (describes) describe(op, len, asked, flags, history);
    if (by_id) {
#pragma unroll
      for (u32 i = 0; i < RECENT; ++i) {
        const u32 back = i * TILE_THREADS + threadIdx.x;
        if (back < history) sh->recent[EDITS_MOST - 1 - back] = listed.recent[i];
      }
    }
    __syncthreads();
    if (slot) {
      if (threadIdx.x == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
      __syncthreads();
    }
    return sh->bounded;
  }

  // Fills the table of this block's edits.
  __device__ __forceinline__ void note_edits(const Request &r, const Listed &listed) const {
    const DealtTable<D> table(sh, block, r.limit);
    const SoloTeam<TILE_THREADS> block_team{sh->maxima};
    const SlicePlan &plan = sh->plan;
    const SamplingConfig &c = sh->config;
    const u32 len = sh->row.history.len, prompt = sh->row.prompt_len;
    if (plan.occurrences) {
      const u32 seen = window_start(len, c.repeat_last_n), counted = c.flags & NUCLEUS_COUNT_PROMPT ? seen : prompt + window_start(len - prompt, c.repeat_last_n);
// All at once: most find their slot at the first attempt.
      u32 slot[RECENT], there[RECENT];
#pragma unroll
      for (u32 i = 0; i < RECENT; ++i) {
        const u32 back = i * TILE_THREADS + threadIdx.x, id = listed.recent[i];
        slot[i] = NO_SLOT;
        if (back >= len || len - 1 - back < seen || !table.covers(id)) continue;
        slot[i] = table.start(id);
        there[i] = claim(&sh->edits[slot[i]].id, NO_ID, id);
      }
#pragma unroll
      for (u32 i = 0; i < RECENT; ++i) {
        const u32 id = listed.recent[i];
        if (slot[i] == NO_SLOT) continue;
        if (there[i] == NO_ID) table.note_filled(slot[i], id);
        else if (there[i] != id) slot[i] = table.insert(id) - sh->edits;
        raise_bits(&sh->edits[slot[i]].flags, SEEN);
        if (len - 1 - (i * TILE_THREADS + threadIdx.x) >= counted) add_to(&sh->edits[slot[i]].flags, OCCURRENCE);
      }
    }
    const SamplingBias *biases = reinterpret_cast<const SamplingBias *>(r.words(r.row->bias));
    note_biases(block_team, r, table, [&](u32 i) { return i < TILE_THREADS ? listed.bias : biases[i]; });
    each_ban(block_team, r, [&](u32 id) { if (table.covers(id)) raise_bits(&table.insert(id)->flags, BANNED); });
    Request of_window = r;
    of_window.history = sh->recent + EDITS_MOST - len;
    if (plan.passages) note_passages(block_team, of_window, table);
    if (plan.ngrams) note_ngrams(block_team, of_window, table);
  }

  // A token that has edits.
  struct EditedToken {
    u32 slot = 0;
    float x = -infinity();
  };
  // The one of a number, as it came; a mask may forbid it.
  __device__ __forceinline__ EditedToken edited_token(const Request &r, u32 number) const {
    EditedToken token;
    if (number >= sh->fills) return token;
    token.slot = sh->filled[number];
    const u32 id = sh->edits[token.slot].id;
    if (!(r.mask && !mask_allows(r, id))) token.x = load_logit(r, id);
    return token;
  }
  __device__ __forceinline__ void apply_edits(const Request &r, EditedToken &token) const {
    bool strange = false;
    if (token.x > -infinity()) token.x = edited(r, token.x, sh->edits[token.slot], strange);
    if (strange) sh->strange = 1;
  }

  __device__ __forceinline__ bool is_edited(u32 at) const { return sh->edited[at / 32] >> at % 32 & 1; }

  // The largest logit of a piece; NaN if one is. Raises `unedited` to it, unless it may be edited.
  __device__ __forceinline__ float look(const Half &half, u32 piece, bool edits, float &unedited) const {
    float m[VECTORS], most;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const Vector x(half.v[j]);
      m[j] = x.x[0];
#pragma unroll
      for (u32 i = 1; i < WIDTH; ++i) m[j] = max_nan(m[j], x.x[i]);
      most = j ? max_nan(most, m[j]) : m[0];
    }
    if (edits) {
      u32 j = 0;
#pragma unroll
      for (u32 i = 1; i < VECTORS; ++i) j = m[i] == most ? i : j;
      // No token of the vector, for simplicity.
      const u32 first = local(piece, j);
      if (sh->edited[first / 32] >> first % 32 & ((1u << WIDTH) - 1)) return most;
    }
    unedited = fmaxf(unedited, most);
    return most;
  }

  // Tells every block the largest logits of this block's groups of threads.
  __device__ __forceinline__ void tell_groups(float own) const {
    constexpr u32 LANES = 32 / D::IN_WARP;
    const u32 lane = threadIdx.x % 32, key = key_or_none(own);
    u32 group = 0;
#pragma unroll
    for (u32 i = 0; i < D::IN_WARP; ++i) {
      const u32 largest = __reduce_max_sync(~0u, lane / LANES == i ? key : 0);
      group = lane % D::IN_WARP == i ? largest : group;
    }
    team.cluster_wait();  // every block has begun: its shared memory may be written
    const u32 place = (block * TILE_WARPS + threadIdx.x / 32) * D::IN_WARP + lane % D::IN_WARP;
#pragma unroll
    for (u32 to = lane / D::IN_WARP; to < BLOCKS; to += LANES)
      send_word(address_in(shared_address(&sh->groups[place]), to), bits_of(value_or_none(group)), address_in(shared_address(&sh->told), to));
  }

  // A lower bound of the row's k-th largest unedited logit, and the largest; -inf: it tells none. Once all groups are known. A barrier within.
  __device__ __forceinline__ float bound(u32 k, float &most) const {
    constexpr u32 EACH = D::GROUPS / 32, SAMPLES = 2 * TILE_WARPS, APART = D::GROUPS / SAMPLES;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float x[EACH], largest;
#pragma unroll
    for (u32 i = 0; i < EACH; i += 2) {
      const float2 some = *reinterpret_cast<const float2 *>(&sh->groups[i * 32 + 2 * lane]);
      x[i] = some.x, x[i + 1] = some.y;
      largest = i ? fmaxf(largest, fmaxf(x[i], x[i + 1])) : fmaxf(x[0], x[1]);
    }
    if (k == 1) return most = value_or_none(__reduce_max_sync(~0u, key_or_none(largest)));
    // How many groups reach each of 32 of them: the largest that enough reach is the bound.
    const float one = sh->groups[2 * warp * APART], other = sh->groups[(2 * warp + 1) * APART];
    u32 reach = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) reach += (x[i] >= one ? 1 : 0) + (x[i] >= other ? 1u << 16 : 0);
    reach = __reduce_add_sync(~0u, reach);
    if (lane == 0) *reinterpret_cast<uint2 *>(&sh->reach[2 * warp]) = make_uint2(reach & 0xFFFFu, reach >> 16);
    most = value_or_none(__reduce_max_sync(~0u, key_or_none(largest)));
    __syncthreads();
    const u32 sample = key_or_none(sh->groups[lane * APART]), reached = sh->reach[lane];
    const u32 found = __reduce_max_sync(~0u, reached >= k ? sample : 0);
    if (found) return value_of(found);
    // All of the samples are among the first k: then all groups that there are.
    u32 filled = 0, lowest = ~0u;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 key = key_or_none(x[i]);
      filled += key != 0;
      lowest = key && key < lowest ? key : lowest;
    }
    filled = __reduce_add_sync(~0u, filled);
    lowest = __reduce_min_sync(~0u, lowest);
    return filled < k ? -infinity() : value_of(lowest);
  }

  // Sends a token to the leading block.
  __device__ __forceinline__ void send(u64 place) const {
    const u32 to = atomicAdd(&sh->found, 1);
    if (to < D::ROOM)
      send_place(address_in(shared_address(&sh->arrivals[block * D::ROOM + to]), 0), place, address_in(shared_address(&sh->arrived), 0));
  }

  // Sends the piece's unedited tokens that reach the threshold.
  __device__ __forceinline__ void send_reaching(const Half &half, u32 piece, bool edits, float threshold) const {
    const float least = fmaxf(threshold, value_of(key_of(-infinity()) + 1));
    u32 reaching = 0;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const Vector x(half.v[j]);
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) reaching |= x.x[i] >= least ? 1u << (j * WIDTH + i) : 0;
    }
    // Lanes go on together, each with its next token.
    UNROLL_NOT
    for (; reaching; reaching &= reaching - 1) {
      const u32 bit = __ffs(reaching) - 1, j = bit / WIDTH, i = bit % WIDTH;
      if (edits && is_edited(local(piece, j) + i)) continue;
      float own = 0;
#pragma unroll
      for (u32 of = 0; of < VECTORS; ++of) {
        const Vector x(half.v[of]);
#pragma unroll
        for (u32 e = 0; e < WIDTH; ++e) own = of * WIDTH + e == bit ? x.x[e] : own;
      }
      send(place_of(own + 0.0f, at(piece, j) + i));
    }
  }
  static_assert(VECTORS * WIDTH <= 32);

  // From the description to what is sent; false: the row is not decided here, and nothing is sent.
  __device__ __forceinline__ bool collect() {
    prepare();
    wait_for_launch_before();
    let_next_launch_begin();
    Listed listed;
    if (!begin(listed)) {
      team.cluster_wait();  // no arrival is left behind
      return false;
    }
    const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
    const bool edits = sh->plan.edits;
    EditedToken own;
    if (edits) {
      note_edits(r, listed);
      __syncthreads();
      own = edited_token(r, threadIdx.x);
    }
    const u32 pieces = D::pieces(batch.row_len);
    float unedited = -infinity(), top[2] = {-infinity(), -infinity()};
    bool strange = false;
    auto take = [&](Half &half, float &most, u32 piece) {
      restrict(half, piece, r.limit, r.mask);
      most = look(half, piece, edits, unedited);
      if (!(most < infinity())) strange = true;
      if (pieces > 2) sh->tops[piece][threadIdx.x] = most;
      if (piece + 2 < pieces) load(half, piece + 2);
    };
    UNROLL_NOT
    for (u32 piece = 0; piece < pieces; piece += 2) {
      take(even, top[0], piece);
      if (piece + 1 < pieces) take(odd, top[1], piece + 1);
    }
    if (strange) sh->strange = 1;
    tell_groups(unedited);
    if (edits) apply_edits(r, own);
    // What the leading block needs in the end.
    if (block == 0 && threadIdx.x == TILE_THREADS - 32) sh->scale = scale(sh->plan.temperature);
    if (block == 0 && threadIdx.x == TILE_THREADS - 64) sh->uniform = uniform_of(sh->row, sh->config);
    receive(&sh->told);
    float most;
    const SlicePlan &plan = sh->plan;
    float threshold = bound(plan.k, most);
    if (plan.kind == SlicePlan::ABOVE && most > -infinity()) threshold = fminf(threshold, fmaf(plan.temperature, sh->program.ops[plan.op].arg, most));
    const u32 last_even = (pieces - 1) / 2 * 2;
    if (top[0] >= threshold) send_reaching(even, last_even, edits, threshold);
    if (pieces > 1 && top[1] >= threshold) send_reaching(odd, pieces - 1 - (pieces - 1 == last_even), edits, threshold);
    // What the registers no longer hold.
    UNROLL_NOT
    for (u32 piece = 0; piece + 2 < pieces; ++piece) {
      if (!(sh->tops[piece][threadIdx.x] >= threshold)) continue;
      load(even, piece);
      restrict(even, piece, r.limit, r.mask);
      send_reaching(even, piece, edits, threshold);
    }
    if (edits) {
      UNROLL_NOT
      for (u32 number = threadIdx.x;;) {
        if (own.x > -infinity() && own.x >= threshold) send(place_of(own.x, sh->edits[own.slot].id));
        number += TILE_THREADS;
        if (number >= sh->fills) break;
        own = edited_token(r, number);
        apply_edits(r, own);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const u32 found = sh->found, barrier = address_in(shared_address(&sh->arrived), 0);
      announce(barrier, 4 + 8 * (found < D::ROOM ? found : D::ROOM));
      send_word(address_in(shared_address(&sh->sent[block]), 0), sh->strange ? SENT_MOST : found, barrier);
    }
    return true;
  }
};

}  // namespace nucleus::spread
