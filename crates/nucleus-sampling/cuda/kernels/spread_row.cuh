// What a block of a row's cluster does: from the description to the tokens that it sends to the leading block.
#pragma once

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

template <u32 DTYPE, u32 BLOCKS>
struct Block {
  using D = Deal<DTYPE, BLOCKS>;
  using Vector = typename D::Vector;
  static constexpr u32 WIDTH = D::WIDTH, VECTORS = D::VECTORS, SIZE = 16 / WIDTH;
  static constexpr u32 NONE = Tile<DTYPE>::NONE, DESCRIBES = TILE_WARPS - 1;  // the warp that does

  const SamplingBatch &batch;
  const DeviceTeam &team;
  RowState *const sh;
  const u32 index, block;
  const char *const logits;
  uint4 v[VECTORS];  // of a chunk

  __device__ __forceinline__ Block(const SamplingBatch &b, const DeviceTeam &t, RowState *state)
      : batch(b), team(t), sh(state), index(blockIdx.x / BLOCKS), block(t.block),
        logits(static_cast<const char *>(b.logits) + static_cast<u64>(blockIdx.x / BLOCKS) * b.row_stride * SIZE) {}

  __device__ __forceinline__ u32 chunks() const { return (batch.row_len + D::CHUNK - 1) / D::CHUNK; }
  __device__ __forceinline__ u32 at(u32 chunk, u32 j) const { return D::at(block, chunk * VECTORS + j); }
  __device__ __forceinline__ bool aligned() const { return reinterpret_cast<uintptr_t>(logits) % 16 == 0; }

  // Vectors [FROM, TO) of a chunk on their way to registers; without the row's last, if it is not whole.
  template <u32 FROM, u32 TO>
  __device__ __forceinline__ void load(u32 chunk) {
#pragma unroll
    for (u32 j = FROM; j < TO; ++j) {
      const u32 first = at(chunk, j);
      v[j] = make_uint4(NONE, NONE, NONE, NONE);
      if (first + WIDTH <= batch.row_len)
        asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w) : "l"(logits + static_cast<u64>(first) * SIZE));
    }
  }
  // Fetches the row's last vector where it is not whole, and takes out what does not exist and what the mask forbids.
  __device__ __forceinline__ void restrict(u32 chunk, u32 limit, const u32 *mask) {
    if (limit == batch.row_len && !mask && batch.row_len % WIDTH == 0) return;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const u32 first = at(chunk, j);
      u32 w[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
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
      v[j] = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }

  // What decides how a row is sampled beside its program, asked for together.
  struct Asked {
    u32 biases, ends, bad, min_keep, flags, dry, repeat;

    __device__ __forceinline__ void read(const SamplingRow *row, const SamplingConfig *config) {
      biases = load_now(&row->bias.len), ends = load_now(&row->eos.len), bad = load_now(&row->bad_words.len);
      read_config(config);
    }
    __device__ __forceinline__ void read_config(const SamplingConfig *config) {
      min_keep = load_now(&config->min_keep), flags = load_now(&config->flags);
      dry = load_now(&config->dry_penalty_last_n), repeat = load_now(&config->repeat_last_n);
    }
  };

  // By a warp that has the program in its lanes.
  __device__ __forceinline__ void describe(const SamplingOp &op, u32 len, const Asked &asked, u32 flags, u32 history) const {
    const SlicePlan plan = plan_of(op, len, asked.biases || asked.ends || asked.bad, asked.min_keep);
    const u32 lane = threadIdx.x % 32;
    const u32 code = lane >= plan.op && lane < len ? op.code : NUCLEUS_OP_NONE;
    const bool known = code == NUCLEUS_OP_NONE || code == NUCLEUS_OP_TOP_P || code == NUCLEUS_OP_MIN_P || (code == NUCLEUS_OP_TOP_K && lane == plan.op) ||
                       (code == NUCLEUS_OP_DRAW && lane == len - 1);
    const bool common = __all_sync(~0u, known) && asked.min_keep <= 1 && !(asked.flags & NUCLEUS_KEEP_TIES);
    if (lane) return;
    u32 window = plan.passages ? asked.dry : 0;
    if (plan.occurrences && asked.repeat > window) window = asked.repeat;
    if (plan.ngrams || window > history) window = history;
    sh->plan = plan;
    sh->common = common;
    sh->window = window;
    sh->bounded = plan.sliced && (plan.kind == SlicePlan::FIRST || plan.kind == SlicePlan::ABOVE) && plan.k <= BOUND_K &&
                  static_cast<u64>(window) + asked.biases + asked.ends + asked.bad <= EDITS_MOST && aligned() &&
                  (flags & (NUCLEUS_ROW_ALLOWED | NUCLEUS_ROW_FEW | NUCLEUS_ROW_PROCESSED | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_PROCESSED;
  }

  // Learns what is asked, and brings the first chunk on its way. False: the row is not decided here.
  __device__ __forceinline__ bool begin(u32 (&recent)[RECENT]) {
    const u32 lane = threadIdx.x % 32;
    const SamplingRow *row = batch.row + index;
    const bool each = batch.flags & NUCLEUS_BATCH_REQUEST_EACH;
    // Most often a row has the request of its own number: then it is read before the row is known.
    u32 request = each ? index : load_now(&row->request);
    DescriptionWord word;
    word.read(batch, index, request);
    u32 len = load_now(&batch.programs[request].len);
    SamplingOp op{NUCLEUS_OP_NONE, 0, 0};
    if (lane < NUCLEUS_MAX_OPS) op = load_now(&batch.programs[request].ops[lane]);
    const u32 flags = load_now(&row->flags), meant = load_now(&row->request);
    u32 history = load_now(&row->history.len);
    u64 offset = load_now(&row->history.offset);
    Asked asked;
    if (threadIdx.x / 32 == DESCRIBES) asked.read(row, batch.configs + request);
    if (aligned()) load<0, VECTORS / 2>(0);
    else load_none();
    if (meant != request && !(flags & NUCLEUS_ROW_PADDING)) {
      request = meant;
      word.read(batch, index, request);
      len = load_now(&batch.programs[request].len);
      if (lane < NUCLEUS_MAX_OPS) op = load_now(&batch.programs[request].ops[lane]);
      asked.read_config(batch.configs + request);
    }
    const u32 *tokens = batch.arena;
    const bool slot = (flags & (NUCLEUS_ROW_SLOT | NUCLEUS_ROW_PADDING)) == NUCLEUS_ROW_SLOT;
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
      if (by_id && back < history && !(flags & NUCLEUS_ROW_PADDING)) recent[i] = tokens[offset + (history - 1 - back)];
    }
    if (aligned()) load<VECTORS / 2, VECTORS>(0);
    word.write(sh);
    if (threadIdx.x / 32 == DESCRIBES) describe(op, len, asked, flags, history);
    if (threadIdx.x == 0) sh->found = sh->strange = 0;
    for (u32 i = threadIdx.x; i <= TABLE; i += TILE_THREADS) sh->edits[i] = Edit{NO_ID, 0, 0, 0.0f};
    for (u32 i = threadIdx.x; i < chunks() * (D::CHUNK / BLOCKS / 128); i += TILE_THREADS) reinterpret_cast<uint4 *>(sh->edited)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    if (slot) {
      if (threadIdx.x == 0) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
      __syncthreads();
    }
    return sh->bounded;
  }
  __device__ __forceinline__ void load_none() {
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) v[j] = make_uint4(NONE, NONE, NONE, NONE);
  }

  // Fills the table of this block's edits. Barriers within, the last at the end.
  __device__ __forceinline__ void note_edits(const Request &r, const DealtTable<D> &table, const u32 (&recent)[RECENT]) const {
    const u32 window = sh->window;
#pragma unroll
    for (u32 i = 0; i < RECENT; ++i) {
      const u32 back = i * TILE_THREADS + threadIdx.x;
      if (back < window) sh->ids[window - 1 - back] = recent[i];
    }
    const BlockTeam block_team{sh};
    const SlicePlan &plan = sh->plan;
    Request of_window = r;
    of_window.history = sh->ids - (sh->row.history.len - window);
    note_bias_and_bans(block_team, r, table);
    __syncthreads();
    if (plan.occurrences) note_occurrences(block_team, of_window, table);
    if (plan.passages) note_passages(block_team, of_window, table);
    if (plan.ngrams) note_ngrams(block_team, of_window, table);
    __syncthreads();
  }

  // Leaves the edited tokens' logits in the table, in place of their biases; -inf for what is no token.
  __device__ __forceinline__ void apply_edits(const Request &r) const {
    bool strange = false;
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < TABLE; i += TILE_THREADS) {
      Edit &edit = sh->edits[i];
      if (edit.id == NO_ID) continue;
      float x = r.mask && !mask_allows(r, edit.id) ? -infinity() : load_logit(r, edit.id);
      if (x > -infinity()) x = edited(r, x, edit, strange);
      edit.bias = x;
    }
    if (strange) sh->strange = 1;
  }

  __device__ __forceinline__ bool is_edited(u32 local) const { return sh->edited[local / 32] >> local % 32 & 1; }

  // The largest logit of the chunk; NaN if one is. Raises `unedited` to it, unless it may be edited.
  __device__ __forceinline__ float look(u32 chunk, bool edits, float &unedited) const {
    float m[VECTORS], most;
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const Vector x(v[j]);
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
      const u32 local = (chunk * VECTORS + j) * D::PIECE + threadIdx.x * WIDTH;
      if (sh->edited[local / 32] >> local % 32 & ((1u << WIDTH) - 1)) return most;
    }
    unedited = fmaxf(unedited, most);
    return most;
  }

  // A lower bound of the row's k-th largest unedited logit and the largest, from the largest of groups of threads of all blocks; -inf: it tells none. Two
  // barriers of the cluster, `between` them.
  template <class F>
  __device__ __forceinline__ float bound(float own, u32 k, float &most, F between) const {
    constexpr u32 EACH = GROUPS_MOST / 32, IN_WARP = GROUPS_MOST / TILE_WARPS / BLOCKS, LANES = 32 / IN_WARP;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, key = key_or_none(own);
    u32 group = 0;
#pragma unroll
    for (u32 i = 0; i < IN_WARP; ++i) {
      const u32 largest = __reduce_max_sync(~0u, lane / LANES == i ? key : 0);
      group = lane % IN_WARP == i ? largest : group;
    }
    team.cluster_wait();  // every block has begun: its shared memory may be written
    const u32 place = (block * TILE_WARPS + warp) * IN_WARP + lane % IN_WARP;
    if (lane < BLOCKS * IN_WARP) *team.in_block(&sh->groups[place], lane / IN_WARP) = value_or_none(group);
    team.cluster_arrive();
    between();
    team.cluster_wait();
    // Every warp for itself.
    float x[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i += 4) {
      const float4 some = *reinterpret_cast<const float4 *>(&sh->groups[i * 32 + 4 * lane]);
      x[i] = some.x, x[i + 1] = some.y, x[i + 2] = some.z, x[i + 3] = some.w;
    }
    u32 filled = 0;
    float largest = x[0], least = infinity();
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      filled += x[i] > -infinity();
      largest = fmaxf(largest, x[i]);
      least = fminf(least, x[i] > -infinity() ? x[i] : infinity());
    }
    most = value_or_none(__reduce_max_sync(~0u, key_or_none(largest)));
    if (k == 1) return most;
    filled = __reduce_add_sync(~0u, filled);
    if (filled < k) return -infinity();
    float low = value_of(__reduce_min_sync(~0u, key_of(least + 0.0f))), high = most;
    UNROLL_NOT
    for (u32 round = 0; round < 8; ++round) {
      const float middle = 0.5f * low + 0.5f * high;
      u32 own_reach = 0;
#pragma unroll
      for (u32 i = 0; i < EACH; ++i) own_reach += x[i] >= middle;
      const u32 reach = __reduce_add_sync(~0u, own_reach);
      if (reach < k) high = middle;
      else low = middle;
      if (reach - k <= k / 4) break;
    }
    return low;
  }

  // Sends a token to the leading block.
  __device__ __forceinline__ void send(RowState *leader, u64 place) const {
    const u32 to = atomicAdd(&sh->found, 1);
    if (to < D::ROOM) leader->arrivals[block * D::ROOM + to] = place;
  }

  // Sends the chunk's unedited tokens that reach the threshold.
  __device__ __forceinline__ void send_reaching(RowState *leader, u32 chunk, bool edits, float threshold) const {
    const float least = fmaxf(threshold, value_of(key_of(-infinity()) + 1));
#pragma unroll
    for (u32 j = 0; j < VECTORS; ++j) {
      const Vector x(v[j]);
#pragma unroll
      for (u32 i = 0; i < WIDTH; ++i) {
        if (!(x.x[i] >= least)) continue;
        if (edits && is_edited((chunk * VECTORS + j) * D::PIECE + threadIdx.x * WIDTH + i)) continue;
        send(leader, place_of(x.x[i] + 0.0f, at(chunk, j) + i));
      }
    }
  }

  // From the description to what is sent; false: the row is not decided here, and nothing was sent. A wait for the cluster's barrier must follow.
  __device__ __forceinline__ bool collect() {
    u32 recent[RECENT];
    if (!begin(recent)) return false;
    const Request r = request_of(batch, index, sh->row, sh->config, sh->program);
    const bool edits = sh->plan.edits;
    if (edits) note_edits(r, DealtTable<D>(sh, block, r.limit), recent);
    float top = -infinity(), unedited = -infinity();
    const u32 last = chunks() - 1;
    UNROLL_NOT
    for (u32 chunk = 0;; ++chunk) {
      restrict(chunk, r.limit, r.mask);
      const float most = look(chunk, edits, unedited);
      if (!(most < infinity())) sh->strange = 1;
      top = fmaxf(top, most);
      if (chunk == last) break;
      load<0, VECTORS>(chunk + 1);
    }
    float most;
    const SlicePlan &plan = sh->plan;
    float threshold = bound(unedited, plan.k, most, [&] {
      if (edits) apply_edits(r);
      if (block == 0 && threadIdx.x == TILE_THREADS - 32) sh->scale = scale(sh->plan.temperature);
      if (block == 0 && threadIdx.x == TILE_THREADS - 64) sh->uniform = uniform_of(sh->row, sh->config);
    });
    if (plan.kind == SlicePlan::ABOVE && most > -infinity()) threshold = fminf(threshold, fmaf(plan.temperature, sh->program.ops[plan.op].arg, most));
    RowState *const leader = team.in_block(sh, 0);
    if (top >= threshold) {
      UNROLL_NOT
      for (u32 chunk = last;; --chunk) {
        send_reaching(leader, chunk, edits, threshold);
        if (chunk == 0) break;
        load<0, VECTORS>(chunk - 1);
        restrict(chunk - 1, r.limit, r.mask);
      }
    }
    if (edits) {
      UNROLL_NOT
      for (u32 i = threadIdx.x; i < TABLE; i += TILE_THREADS) {
        const Edit &edit = sh->edits[i];
        if (edit.id != NO_ID && edit.bias > -infinity() && edit.bias >= threshold) send(leader, place_of(edit.bias, edit.id));
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) leader->sent[block] = sh->strange ? SENT_MOST : sh->found;
    team.cluster_arrive();
    return true;
  }
};

}  // namespace nucleus::spread
