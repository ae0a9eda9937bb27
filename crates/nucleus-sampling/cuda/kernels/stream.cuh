// One pass over the logits that leaves the few tokens a bounded request needs.
//
// What k of the threads' maxima reach is a lower bound of the k-th largest logit, so what lies below it cannot be among the first k.
// Tokens that the request edits are set aside (the edit table has them) and enter with their edited logits afterwards. If fewer than k
// tokens then reach the bound, or anything is unusual (NaN, infinities, too many candidates), the exact path decides.
#pragma once

#include "team.cuh"

namespace nucleus {

constexpr u32 CHUNK = THREADS * 16;  // logits per block and step, 16 a thread
constexpr u32 MARGIN = 32;           // how many candidates more than k the bound is to leave
constexpr u32 STREAM_MAX_K = THREADS - 64 - MARGIN;
constexpr u32 SHRINK_ABOVE = 1024;

// A program that begins with edits and temperatures and then keeps the first k.
struct StreamPlan {
  u32 k = 0;           // 0: not such a program
  u32 op = 0;          // the operation that keeps k, or chooses
  bool divides = false;  // an edit under a temperature divides every logit: order may gain ties
};

__device__ inline StreamPlan stream_plan(const Request &r) {
  StreamPlan plan;
  float temperature = 1.0f;
  if (r.row->flags & NUCLEUS_ROW_ALLOWED) return plan;
  for (u32 i = 0; i < r.program->len; ++i) {
    const SamplingOp &op = r.program->ops[i];
    switch (op.code) {
      case NUCLEUS_OP_DRY: case NUCLEUS_OP_NO_REPEAT_NGRAM: case NUCLEUS_OP_PENALTIES:
        plan.divides |= temperature != 1.0f;
        temperature = 1.0f;
        break;
      case NUCLEUS_OP_TEMPERATURE: temperature = op.arg; break;
      case NUCLEUS_OP_TOP_K:
        plan.op = i;
        if (op.threshold <= STREAM_MAX_K && !(r.config->flags & NUCLEUS_KEEP_TIES)) plan.k = static_cast<u32>(op.threshold);
        return plan;
      case NUCLEUS_OP_ARGMAX: plan.op = i; plan.k = 1; return plan;
      default: return plan;
    }
  }
  return plan;
}

// The operations before the cut on one token; `temperature` is what is in force afterwards. NaN and +inf come out as they are.
__device__ inline float edited(const Request &r, u32 ops, float x, const Edit *edit, float &temperature, bool &unusual) {
  temperature = 1.0f;
  x = x + 0.0f;
  for (u32 i = 0; i < ops; ++i) {
    const SamplingOp &op = r.program->ops[i];
    if (op.code == NUCLEUS_OP_TEMPERATURE) { temperature = op.arg; continue; }
    if (temperature != 1.0f) x = x / temperature;
    temperature = 1.0f;
    if (edit) x = apply_edit(op.code, x, *edit, *r.config) + 0.0f;
    else x = x + 0.0f;
    unusual |= !(x < infinity());
    if (x == -infinity()) return x;
  }
  unusual |= !(x < infinity());
  return x;
}

// 16 logits of a thread as they lie in memory, 16 bytes a load.
template <u32 DTYPE>
struct Raw {
  static constexpr u32 VECTOR = DTYPE == NUCLEUS_F32 ? 4 : 8;
  static constexpr u32 LOADS = 16 / VECTOR;
  uint4 v[LOADS];

  __device__ u32 id(u32 begin, u32 load) const { return begin + load * THREADS * VECTOR + threadIdx.x * VECTOR; }

  __device__ void load(const void *row, bool aligned, u32 begin, u32 end) {
    using Word = typename std::conditional<DTYPE == NUCLEUS_F32, u32, uint16_t>::type;
    const Word *words = static_cast<const Word *>(row);
    constexpr Word OUT = DTYPE == NUCLEUS_F32 ? Word(0xFF800000u) : DTYPE == NUCLEUS_F16 ? Word(0xFC00u) : Word(0xFF80u);
#pragma unroll
    for (u32 i = 0; i < LOADS; ++i) {
      u32 at = id(begin, i);
      if (aligned && at + VECTOR <= end) {
        v[i] = __ldg(reinterpret_cast<const uint4 *>(words + at));
      } else {
        u32 packed[4];
        constexpr u32 PER = VECTOR / 4;
#pragma unroll
        for (u32 w = 0; w < 4; ++w) {
          packed[w] = 0;
#pragma unroll
          for (u32 e = 0; e < PER; ++e) {
            u32 element = at + w * PER + e;
            packed[w] |= static_cast<u32>(element < end ? words[element] : OUT) << (16 * e);
          }
        }
        v[i] = make_uint4(packed[0], packed[1], packed[2], packed[3]);
      }
    }
  }

  __device__ float get(u32 load, u32 e) const {
    u32 w = 0;
    u32 index = DTYPE == NUCLEUS_F32 ? e : e / 2;
    w = index == 0 ? v[load].x : index == 1 ? v[load].y : index == 2 ? v[load].z : v[load].w;
    if (DTYPE == NUCLEUS_F32) return float_of(w);
    u32 half = e % 2 ? w >> 16 : w & 0xFFFFu;
    return DTYPE == NUCLEUS_BF16 ? float_of(half << 16) : widen_f16(static_cast<uint16_t>(half));
  }
};

__device__ inline float max_nan(float a, float b) {
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}

template <u32 BLOCKS, u32 DTYPE>
struct Stream {
  const DeviceTeam<BLOCKS> &team;
  Shared *sh;
  const void *row;
  bool aligned;
  u32 begin, end;  // this block's slice
  Raw<DTYPE> next;

  // Starts the first loads, before anything is known of the request.
  __device__ Stream(const DeviceTeam<BLOCKS> &t, const void *logits, u32 row_len) : team(t), sh(t.sh), row(logits) {
    u32 slice = ((row_len + BLOCKS - 1) / BLOCKS + 7) & ~7u;
    begin = team.block * slice < row_len ? team.block * slice : row_len;
    end = begin + slice < row_len ? begin + slice : row_len;
    aligned = reinterpret_cast<uintptr_t>(logits) % 16 == 0;
    next.load(row, aligned, begin, end);
    if (threadIdx.x == 0) sh->candidates = 0;
  }

  // A key that at least k (<= THREADS) of the threads' keys reach, the largest such with 16 low bits of 0; to every thread.
  __device__ u32 kth_key(u32 key, u32 k) {
    u32 found = 0;
#pragma unroll 1
    for (u32 bit = 1u << 31; bit >= 1u << 16; bit >>= 1)
      if (static_cast<u32>(__syncthreads_count(key >= (found | bit))) >= k) found |= bit;
    return found;
  }

  // Leaves of `count` <= LIST_CAPACITY places those that reach kth_key of the threads' maxima; returns that key.
  __device__ u32 shrink(u64 *places, u32 *counter, u32 count, u32 k) {
    u64 own[LIST_CAPACITY / THREADS], most = 0;
#pragma unroll
    for (u32 i = 0; i < LIST_CAPACITY / THREADS; ++i) {
      u32 at = i * THREADS + threadIdx.x;
      own[i] = at < count ? places[at] : 0;
      most = own[i] > most ? own[i] : most;
    }
    u32 key = kth_key(static_cast<u32>(most >> 32), k);
    if (threadIdx.x == 0) *counter = 0;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < LIST_CAPACITY / THREADS; ++i)
      if (own[i] && static_cast<u32>(own[i] >> 32) >= key) places[atomicAdd(counter, 1)] = own[i];
    __syncthreads();
    return key;
  }

  // The slice's candidates in sh->bins; returns the key that all of the slice's other tokens are below. `unusual`: NaN or +inf seen.
  __device__ u32 collect(const Request &r, u32 k, bool &unusual) {
    const u32 limit = r.limit;
    const bool masked = r.mask != nullptr;
    u32 wanted = k + MARGIN, key = 0;
    float threshold = -infinity();
    bool first = true;
    for (u32 at = begin; at < end; at += CHUNK) {
      Raw<DTYPE> now = next;
      if (at + CHUNK < end) next.load(row, aligned, at + CHUNK, end);
      float x[16], most = -infinity();
      constexpr u32 VECTOR = Raw<DTYPE>::VECTOR;
#pragma unroll
      for (u32 i = 0; i < 16; ++i) x[i] = now.get(i / VECTOR, i % VECTOR);
      if (masked || at + CHUNK > limit) {
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
          u32 id = now.id(at, i / VECTOR) + i % VECTOR;
          if (id >= limit || (masked && !mask_allows(r, id))) x[i] = -infinity();
        }
      }
#pragma unroll
      for (u32 i = 0; i < 16; ++i) most = max_nan(most, x[i]);
      unusual |= !(most < infinity());
      if (first) {
        key = kth_key(most == most ? key_of(most + 0.0f) : 0, wanted);
        threshold = value_of(key);
        first = false;
      }
      if (most >= threshold) {
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
          if (x[i] >= threshold && x[i] > -infinity()) {
            u32 slot = atomicAdd(&sh->candidates, 1);
            if (slot < LIST_CAPACITY) sh->bins[slot] = place_of(x[i] + 0.0f, now.id(at, i / VECTOR) + i % VECTOR);
          }
        }
      }
      __syncthreads();
      u32 count = sh->candidates;
      __syncthreads();
      if (count > SHRINK_ABOVE && count <= LIST_CAPACITY) {
        key = shrink(sh->bins, &sh->candidates, count, wanted);
        threshold = value_of(key);
      }
    }
    return key;
  }

  // The first k tokens at least, sorted in the leader's list; returns their number there, 0 if the exact path has to decide.
  // `table` is the leader's.
  __device__ u32 run(const Request &r, const StreamPlan &plan, const EditTable &table, float &temperature) {
    bool unusual = false;
    u64 most[3];
    most[0] = collect(r, plan.k, unusual);
    __syncthreads();
    u32 own = sh->candidates;
    most[1] = unusual || own > LIST_CAPACITY;
    most[2] = 0;
    if (threadIdx.x == 0) { sh->listed = 0; sh->verdict = 0; }
    team.max(most);
    if (most[1]) return 0;
    u32 key = static_cast<u32>(most[0]);
    for (u32 i = threadIdx.x; i < own; i += THREADS)
      if (static_cast<u32>(sh->bins[i] >> 32) >= key) team.append(sh->bins[i]);
    team.cluster_sync();
    if (team.leader()) {
      u32 count = finish(r, plan, table, key, temperature);
      if (threadIdx.x < BLOCKS) team.in_block(sh, threadIdx.x)->verdict = count;
    }
    team.cluster_sync();
    return sh->verdict;
  }

  // The leader's part: the candidates without the edited tokens, the edited tokens, the proof, the order.
  __device__ u32 finish(const Request &r, const StreamPlan &plan, const EditTable &table, u32 key, float &temperature) {
    u32 count = sh->listed;
    bool unusual = count > LIST_CAPACITY;
    count = unusual ? LIST_CAPACITY : count;
    u64 own[LIST_CAPACITY / THREADS];
#pragma unroll
    for (u32 i = 0; i < LIST_CAPACITY / THREADS; ++i) {
      u32 at = i * THREADS + threadIdx.x;
      own[i] = at < count ? sh->list[at] : 0;
    }
    float bound = edited(r, plan.op, value_of(key), nullptr, temperature, unusual);
    __syncthreads();
    if (threadIdx.x == 0) sh->listed = 0;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < LIST_CAPACITY / THREADS; ++i) {
      if (!own[i] || table.find(id_at(own[i]))) continue;
      float x = plan.divides ? edited(r, plan.op, logit_at(own[i]), nullptr, temperature, unusual) : logit_at(own[i]);
      if (plan.divides ? x > bound : true) team.append(place_of(x, id_at(own[i])));
    }
    constexpr u32 AHEAD = SHARED_EDITS / THREADS;  // gathers in flight
    float ahead[AHEAD];
    for (u32 base = 0; base < table.capacity; base += AHEAD * THREADS) {
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i) {
        u32 at = base + i * THREADS + threadIdx.x;
        u32 id = at < table.capacity ? table.slots[at].id : NO_ID;
        ahead[i] = id < r.limit ? load_logit(r, id) : 0.0f;
      }
#pragma unroll
      for (u32 i = 0; i < AHEAD; ++i) {
      u32 at = base + i * THREADS + threadIdx.x;
      if (at >= table.capacity) continue;
      const Edit &edit = table.slots[at];
      if (edit.id >= r.limit || (edit.flags & BANNED) || (r.mask && !mask_allows(r, edit.id))) continue;
      float x = ahead[i];
      if (edit.flags & BIASED) x = x + edit.bias;
      unusual |= !(x < infinity());
      if (x == -infinity()) continue;
      x = edited(r, plan.op, x, &edit, temperature, unusual);
      if (x > -infinity() && (plan.divides ? x > bound : x >= bound)) team.append(place_of(x, edit.id));
      }
    }
    float in_force;
    edited(r, plan.op, 0.0f, nullptr, in_force, unusual);
    temperature = in_force;
    unusual = __syncthreads_or(unusual);
    count = sh->listed;
    if (unusual || count < plan.k || count > LIST_CAPACITY) return 0;
    if (count > 96) {
      __syncthreads();
      shrink(sh->list, &sh->listed, count, plan.k);
      count = sh->listed;
    }
    team.sort_list(count);
    return count;
  }
};

}  // namespace nucleus
