// What a block of a row's cluster does: from the description to the tokens that it sends to the leading block.
#pragma once

#include "spread_chain.cuh"
#include "spread_edits.cuh"
#include "spread_send.cuh"

namespace nucleus::spread {

// Brings a line nearer, and the way to it, whatever it holds by now.
__device__ __forceinline__ void fetch(const void *line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line) : "memory"); }

// Makes the state's barriers plain memory, by one thread, when everything that they count has come.
__device__ __forceinline__ void end_barriers(RowState *sh) {
  end_barrier(&sh->told);
  end_barrier(&sh->arrived);
  end_barrier(&sh->masked);
#ifdef NUCLEUS_RACECHECK
  auto end = [](u32 barrier, u32 threads) { end_barrier(meeting(barrier, threads)); };
  end(CHAIN_TOTAL, CHAIN_WARPS * 32), end(CHAIN_LOGPROBS, CHAIN_WARPS * 32), end(COUNTED, READERS), end(PLANNED, READERS + 32);
  end(DESCRIBED, BLOCK_THREADS - 32), end(MARKED, BLOCK_THREADS - 32), end(TOGETHER, HELPERS), end(TOGETHER, HELPERS - 32), end(PLANNABLE, HELPERS);
  end(BOUND_KNOWN, BLOCK_THREADS), end(SORTED, BLOCK_THREADS), end(ORDERED, SORTERS + 32), end(LOOKED_AT, BLOCK_THREADS);
#endif
}

template <u32 DTYPE, u32 BLOCKS, bool SOME>
struct Block : Sender<DTYPE, BLOCKS, SOME> {
  using Base = Sender<DTYPE, BLOCKS, SOME>;
  using typename Base::D;
  using typename Base::Half;
  using Base::add_changed, Base::aligned, Base::batch, Base::block, Base::bound, Base::bring_mask, Base::group_largest, Base::index, Base::lane, Base::limit, Base::list_hits, Base::bring;
  using Base::load, Base::logit, Base::logits, Base::masked, Base::read, Base::reads, Base::send, Base::send_first, Base::send_to, Base::send_hits, Base::send_own_hits, Base::send_several, Base::sh, Base::tell_groups, Base::top_of;
  using Base::unedited, Base::warp;
  static constexpr u32 DESCRIBES = BLOCK_WARPS - 1;                  // the helping warp that does
  static constexpr u32 MARKERS = HELPERS - 32;                       // threads of the others
  static constexpr u32 EACH = (EDITS_MOST + MARKERS - 1) / MARKERS;  // tokens of the history such a thread reads

  const DeviceTeam &team;
  const u32 helper;  // of the threads that do not read

  __device__ __forceinline__ Block(const RowsOfBatch<SOME> &b, const DeviceTeam &t, RowState *state) : Base(b, t.block, state), team(t), helper(threadIdx.x - READERS) {}

  __device__ __forceinline__ Request request() const { return request_of(batch, index, sh->row, sh->config, sh->program); }

  // Before the launch before is done, by every thread: the barriers, and no marks.
  __device__ __forceinline__ void prepare() const {
    if (threadIdx.x == 0) {
      init_barrier(&sh->told, 1);
      init_barrier(&sh->arrived, BLOCKS * BLOCK_WARPS);
      init_barrier(&sh->masked, 32);
#ifdef NUCLEUS_RACECHECK
      auto init = [](u32 barrier, u32 threads) { init_barrier(meeting(barrier, threads), threads); };
      init(CHAIN_TOTAL, CHAIN_WARPS * 32), init(CHAIN_LOGPROBS, CHAIN_WARPS * 32), init(COUNTED, READERS), init(PLANNED, READERS + 32);
      init(DESCRIBED, BLOCK_THREADS - 32), init(MARKED, BLOCK_THREADS - 32), init(TOGETHER, HELPERS), init(TOGETHER, MARKERS), init(PLANNABLE, HELPERS);
      init(BOUND_KNOWN, BLOCK_THREADS), init(SORTED, BLOCK_THREADS), init(ORDERED, SORTERS + 32), init(LOOKED_AT, BLOCK_THREADS);
#endif
      sh->listed = sh->hit = sh->changed = sh->bans = 0;
      sh->way = DECIDED;
      sh->out = batch.out + index;
      publish_barriers();
      arrive_expecting(&sh->told, D::GROUPS * 4);
    }
    if (threadIdx.x < ORDERED_MOST) sh->places[threadIdx.x] = sh->chain.sorted[threadIdx.x] = sh->chain.weights_by_id[threadIdx.x] = 0;
    if (threadIdx.x < ORDERED_MOST) asm volatile("fence.acq_rel.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    forget_found(sh, threadIdx.x, BLOCK_THREADS);
    UNROLL_NOT
    for (u32 i = threadIdx.x; i < D::pieces(batch.row_len) * (D::PIECE / BLOCKS / 128); i += BLOCK_THREADS)
      reinterpret_cast<uint4 *>(sh->marks)[i] = make_uint4(0, 0, 0, 0);
    if (warp == DESCRIBES && lane < 4)
      fetch(lane == 0   ? static_cast<const void *>(batch.row + index)
            : lane == 1 ? static_cast<const void *>(batch.configs)
            : lane == 2 ? static_cast<const void *>(batch.programs)
                        : logits);
    team.cluster_wait();  // every block has begun: its shared memory may be written
  }

  __device__ __forceinline__ u32 window_of(const SlicePlan &plan) const {
    return editable_window(plan, sh->config.dry_penalty_last_n, sh->config.repeat_last_n, sh->row.history.len);
  }
  // Plans, by a warp.
  __device__ __forceinline__ void describe() const {
    const SlicePlan plan = plan_of(*sh);
    const u32 flags = sh->row.flags, len = sh->program.len;
    const u32 code = lane < NUCLEUS_MAX_OPS ? sh->program.ops[lane].code : NUCLEUS_OP_NONE;
    const bool common = is_common(code, len, plan.op, sh->config.min_keep, sh->config.flags), wide = !common && is_wide(code, len, plan.op, sh->config.flags);
    if (lane) return;
    const u64 ids = static_cast<u64>(window_of(plan)) + sh->row.bias.len + sh->row.eos.len + sh->row.bad_words.len;
    sh->plan = plan;
    sh->common = common;
    sh->wide = wide;
    sh->bounded = aligned() && is_bounded(plan, ids, flags);
  }

  // The warp that plans waits for nobody, and the marking threads not for those that read.
  __device__ __forceinline__ void tell_plan() const {
    pass<PLANNED, READERS + 32>();
    pass<TOGETHER, HELPERS>();
  }
  __device__ __forceinline__ void await_plan() const {
    if (reads()) meet<PLANNED, READERS + 32>();
    else meet<TOGETHER, HELPERS>();
  }

  // The tokens at the end of the history that may be edited, before there is a plan; more than there is room for are of no use.
  __device__ __forceinline__ u32 window_asked() const {
    const u32 code = lane < sh->program.len && lane < NUCLEUS_MAX_OPS ? sh->program.ops[lane].code : NUCLEUS_OP_NONE;
    SlicePlan plan;
    plan.passages = __any_sync(~0u, code == NUCLEUS_OP_DRY);
    plan.occurrences = __any_sync(~0u, code == NUCLEUS_OP_PENALTIES);
    plan.ngrams = __any_sync(~0u, code == NUCLEUS_OP_NO_REPEAT_NGRAM);
    const u32 window = window_of(plan);
    return window < EDITS_MOST ? window : EDITS_MOST;
  }

  // Marks a token that may be edited, if it is this block's.
  __device__ __forceinline__ bool is_own(u32 id, u32 end) const { return D::block_of(id) == block && id < end; }
  __device__ __forceinline__ void mark(u32 id, u32 end) const {
    if (!is_own(id, end)) return;
    const u32 local = D::local(id);
    atomicOr(&sh->marks[local / 32], 1u << local % 32);
  }

  // The first bias that a marking thread looks at: the last threads begin, which have fewer tokens of the history.
  __device__ __forceinline__ u32 first_bias() const { return MARKERS - 1 - helper; }
  // Brings the ids that may be edited to shared memory and marks them, by the helping threads but those of a warp.
  __device__ __forceinline__ void mark_editable() const {
    const u32 len = sh->row.history.len, biases = sh->row.bias.len < EDITS_MOST ? sh->row.bias.len : EDITS_MOST, end = limit();
    const u32 *const recent = (sh->row.flags & NUCLEUS_ROW_SLOT ? batch.slot_tokens : batch.arena) + sh->row.history.offset + len - 1;
    const u32 *const bias = batch.arena + sh->row.bias.offset;
    u32 ids[EACH], id = NO_ID, value = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      const u32 back = i * MARKERS + helper;
      ids[i] = NO_ID;
      if (back < len && back < EDITS_MOST) ids[i] = load_now(recent - back);
    }
    const u32 biased = first_bias();
    if (biased < biases) id = load_now(bias + 2 * biased), value = load_now(bias + 2 * biased + 1);
    const u32 window = window_asked();
    if (helper == 0) sh->window = window;
    u32 *const own = sh->recent + (EDITS_MOST - 1 - helper);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
      if (i * MARKERS + helper >= window) continue;
      *(own - i * MARKERS) = ids[i];
      mark(ids[i], end);
    }
    UNROLL_NOT
    for (u32 i = biased; i < biases; i += MARKERS) {
      if (i >= MARKERS) id = bias[2 * i], value = bias[2 * i + 1];
      sh->ids[i] = id;
      sh->rises[i] = float_of(value);
      mark(id, end);
    }
  }
  // The logit that the first bias of a marking thread raises, on its way; -inf: none.
  __device__ __forceinline__ float first_raised() const {
    const u32 biased = first_bias();
    if (biased < sh->row.bias.len && biased < EDITS_MOST && sh->rises[biased] > 0.0f && is_own(sh->ids[biased], limit())) return logit(sh->ids[biased]);
    return -infinity();
  }

  // Whether a mask allows a token of the block.
  __device__ __forceinline__ bool is_allowed(u32 id) const { return !masked() || sh->allowed[D::local(id) / 32] >> id % 32 & 1; }
  // Lists the tokens that only edits may raise to the threshold, by the marking threads. `early`: the logit of the thread's first bias, if that raises it.
  __device__ __forceinline__ void list_risers(float threshold, float least, float early) const {
    const Risers risers(sh);
    if (risers.lowers && early > -infinity() && early < least && early + sh->rises[first_bias()] >= threshold && is_allowed(sh->ids[first_bias()]))
      add_changed(sh->ids[first_bias()], early + 0.0f, first_bias());
    if (!risers.lowers || risers.biases > MARKERS) list_other_risers(batch, threshold, least, early);
  }
  // Those of many biases, or of edits that raise.
  static __device__ __noinline__ void list_other_risers(const RowsOfBatch<SOME> &batch, float threshold, float least, float early) {
    const DeviceTeam team;
    const Block own(batch, team, row_state());
    const Risers risers(own.sh);
    const u32 end = own.limit();
    UNROLL_NOT
    for (u32 position = own.first_bias(); position < risers.count(); position += MARKERS) {
      const u32 id = risers.id(position);
      const float rise = risers.rise(position);
      if (!(rise > 0.0f) || !own.is_own(id, end)) continue;
      if (position == own.first_bias() && early > -infinity() && risers.lowers) continue;
      const float x = own.logit(id);
      if (x > -infinity() && x < least && x + rise >= threshold && own.is_allowed(id)) own.add_changed(id, x + 0.0f, position);
    }
  }

  // Sends what a warp has of the tokens whose edits decide; how many were sent. By all warps; a barrier precedes.
  __device__ __forceinline__ u32 send_changed(float threshold, bool &strange) const {
    u32 sent = 0;
    bool full;
    const u32 count = sh->changed;
    UNROLL_NOT
    for (u32 from = 0; from < count; from += CHANGED_AT_A_TIME) {
      if (from) {
        sync_block();
        forget_found(sh, threadIdx.x, BLOCK_THREADS);
        sync_block();
      }
      const u32 many = count - from < CHANGED_AT_A_TIME ? count - from : CHANGED_AT_A_TIME;
      find_edits(sh, sh->changes + from, many);
      sync_block();
      if (warp >= many) continue;
      const Request r = request();
      UNROLL_NOT
      for (u32 i = warp; i < many; i += BLOCK_WARPS) {
        const Changed token = sh->changes[from + i];
        const float x = edit_token(sh, r, token, sh->found[i], strange);
        const bool reaches = x > -infinity() && x >= threshold;
        if (token.to == NOWHERE) sent += send(lane == 0 && reaches, place_of(x, token.id), full);
        else if (lane == 0) send_to(token.to, reaches ? place_of(x, token.id) : no_token(token.to));  // the warp that took it has counted it
      }
    }
    return sent;
  }

  // The same of a row with the request of another number, when the row is there.
  static __device__ __noinline__ void read_other_request(const RowsOfBatch<SOME> &batch) {
    RowState *const sh = row_state();
    const u32 index = Base::number_of(batch), helper = threadIdx.x - READERS, *const from = DescriptionWord::source(batch, index, sh->row.request, helper);
    DescriptionWord word;
    if (from) word.word = load_now(from);
    meet<TOGETHER, MARKERS>();
    if (from) word.write(sh, helper);
    meet<TOGETHER, MARKERS>();
  }
  static __device__ __noinline__ void describe_slot(const RowsOfBatch<SOME> &batch) {
    RowState *const sh = row_state();
    if (threadIdx.x == READERS) read_slot(batch.slots[sh->row.slot], sh->config, sh->row);
    meet<TOGETHER, MARKERS>();
  }
  static_assert(128 + DescriptionWord::PROGRAM <= MARKERS, "the other helping threads have no word");
  // Brings the description to shared memory, by the marking threads. `from`: where this one's word is, if the row has the request of its own number.
  __device__ __forceinline__ void read_description(const u32 *from) const {
    DescriptionWord word;
    // Most often a row has: then it is read before the row is known.
    if (!(batch.flags & NUCLEUS_BATCH_REQUEST_EACH)) from = DescriptionWord::source(batch, index, load_now(&batch.row[index].request), helper);
    if (from) word.word = load_now(from);
    word.write(sh, helper);
    meet<TOGETHER, MARKERS>();
    if (sh->row.flags & NUCLEUS_ROW_PADDING) return;
    if (batch.flags & NUCLEUS_BATCH_REQUEST_EACH && sh->row.request != index) read_other_request(batch);
    if (sh->row.flags & NUCLEUS_ROW_SLOT) describe_slot(batch);
  }

  // Marks what may not be drawn now; DRY's longest passage. By all threads, where lists ask for it.
  static __device__ __noinline__ u32 look_up_lists(const RowsOfBatch<SOME> &batch) {
    RowState *const sh = row_state();
    const DeviceTeam team;
    const Block own(batch, team, sh);
    u32 passage_limit = ~0u;
    sync_block();
    if (sh->bounded) {
      const u32 end = own.limit();
      note_bans(sh, own.request(), [&](u32 id) { own.mark(id, end); });
      if (sh->plan.passages && sh->row.breakers.len) passage_limit = nucleus::passage_limit(SoloTeam<BLOCK_THREADS>{sh->maxima}, with_window(sh, own.request()));
    }
    sync_block();
    return passage_limit;
  }

  // The least logit that a key's tokens have, and that one which exists has.
  __device__ __forceinline__ static float least_of(u32 threshold) { return fmaxf(value_or_none(threshold), value_of(key_of(-infinity()) + 1)); }

  // From the description to what is sent; false: the row is not decided here, and nothing is sent.
  __device__ __forceinline__ bool collect() {
    prepare();
    const u32 pieces = D::pieces(batch.row_len), *word = reads() ? nullptr : DescriptionWord::source(batch, index, index, helper);
    asm volatile("" : "+l"(word));  // now, while there is time
    batch.begin_after_launch_before();
    let_next_launch_begin();
    Half even, odd;
    if (reads()) {
      if (aligned()) {
        load(even, 0);
        if (pieces > 1) load(odd, 1);
      }
      meet<DESCRIBED, BLOCK_THREADS - 32>();
    } else if (warp != DESCRIBES) {
      read_description(word);
      pass<DESCRIBED, BLOCK_THREADS - 32>();
      pass<PLANNABLE, HELPERS>();
    } else {
      // The mask takes longest, and does not wait for the description.
      const u32 mask = load_now(reinterpret_cast<const u32 *>(&batch.row[index].mask)), flags = load_now(&batch.row[index].flags);
      if (static_cast<i32>(mask) >= 0 && !(flags & NUCLEUS_ROW_PADDING) && aligned()) bring_mask(mask, pieces);
      meet<PLANNABLE, HELPERS>();
    }
    if (sh->row.flags & NUCLEUS_ROW_PADDING) return false;
    bool strange = false;
    float early = -infinity();
    typename Base::Top own;
    typename Base::First first;
    u32 of_group = 0;  // unless it turns out that its largest token may be edited
    if (warp == DESCRIBES) {
      describe();
      tell_plan();
    } else {
      if (!reads()) mark_editable();
      else if (aligned()) {
        strange = read(even, odd, pieces, first);
        if constexpr (!D::ONE_FIRST) own = top_of(pieces), of_group = group_largest(own.key);
      }
    }
    const bool held = pieces <= 2, lists = sh->row.eos.len | sh->row.bad_words.len | sh->row.breakers.len;
    // Where it takes long to read the row, those that mark note what the window does meanwhile.
    if (D::ONE_FIRST && helper < MARKERS) pass<MARKED, BLOCK_THREADS - 32>();
    else if (warp != DESCRIBES) meet<MARKED, BLOCK_THREADS - 32>();
    if (helper < MARKERS) early = first_raised();
    u32 passage_limit = ~0u, sent = 0;
    if (lists) {
      if (warp != DESCRIBES) await_plan();
      passage_limit = look_up_lists(batch);
      if (warp == DESCRIBES) tell_plan();
    }
    if (reads()) {
      if constexpr (D::ONE_FIRST) of_group = group_largest(unedited(first));
      else if (__any_sync(~0u, own.key && Base::is_marked(own.vector))) of_group = group_largest(unedited(pieces));
      tell_groups(of_group);
      if (D::ONE_FIRST && first.most > -infinity()) bring(first);
      wait_for_copy(&sh->told, 0);
      await_plan();
      const bool bounded = sh->bounded;
      const u32 threshold = bound();
      if (threadIdx.x == 0) sh->threshold = threshold;
      pass<BOUND_KNOWN, BLOCK_THREADS>();
      if constexpr (D::ONE_FIRST) {
        if (bounded) sent = send_first(first, least_of(threshold));
      } else {
        if (bounded && held) sent = send_own_hits(even, odd, pieces, own.key, threshold, least_of(threshold));
        else if (bounded) list_hits(pieces, threshold);
      }
    } else {
      if (warp != DESCRIBES) {
        await_plan();
        if (sh->bounded && sh->plan.edits) note_window(sh, with_window(sh, request()), passage_limit, helper, MARKERS);
      }
      // What the leading block needs in the end.
      if (block == 0 && threadIdx.x == DESCRIBES * 32) {
        sh->scale = scale(sh->plan.temperature);
        sh->uniform = uniform_of(sh->row, sh->config);
        if (sh->wide) prepare_wide();
      }
      meet<BOUND_KNOWN, BLOCK_THREADS>();
    }
    if (!sh->bounded) return false;
    u32 unsent = 0;
    if (!D::ONE_FIRST && !held) {
      sync_block();
      if (sh->hit <= HITS_MOST) sent = send_hits(least_of(sh->threshold));
      else if (warp == 0) unsent = LISTED + 1;
    }
    const auto list_raised = [&] {
      if (helper < MARKERS) list_risers(value_or_none(sh->threshold), least_of(sh->threshold), early);
    };
    if constexpr (D::ONE_FIRST) {
      if (sh->plan.edits) list_raised();
      if (!reads()) {
        meet<LOOKED_AT, BLOCK_THREADS>();
        sent = send_several(pieces, least_of(sh->threshold));
      }
    }
    if (sh->plan.edits) {
      if constexpr (!D::ONE_FIRST) list_raised();
      sync_block();
      sent += send_changed(value_or_none(sh->threshold), strange);
    }
    if (__any_sync(~0u, strange)) unsent += STRANGE;
    if (unsent) {
      add_in(address_in(shared_address(&sh->listed), 0), unsent);
      asm volatile("fence.acq_rel.cluster;" ::: "memory");  // no place waits for this addition, as those that are sent do
    }
    if (lane == 0) announce(address_in(shared_address(&sh->arrived), 0), 8 * sent);
    return true;
  }
};

}  // namespace nucleus::spread
