// What a sequence remembers between tokens, on the device: read at the start of a row, advanced by its choice (src/state.rs does the same on
// the host).
#pragma once

#include "../include/sampling_config.h"
#include "fixed.cuh"

namespace nucleus {

// mu never leaves [-2^14, 2^14] bits.
constexpr i64 MU_LIMIT = 1ll << 30;

// Product of two Q16 numbers, rounded to nearest.
HD i64 times_q16(i64 a, i64 b) { return (a * b + (1 << 15)) >> 16; }

// adaptive-p aims at 2 target - average, within [0, 1].
HD i32 adaptive_aim(const SamplingSlot &slot, const SamplingConfig &config) {
  i64 weight = slot.adaptive_weight > 1 ? slot.adaptive_weight : 1;
  i64 aim = 2 * q16(config.adaptive_target) - (slot.adaptive_sum << 16) / weight;
  return static_cast<i32>(aim < 0 ? 0 : aim > ONE_Q16 ? ONE_Q16 : aim);
}

// The part of a row's description that its sequence determines.
HD void read_slot(const SamplingSlot &slot, const SamplingConfig &config, SamplingRow &row) {
  row.history = SamplingList{slot.tokens, slot.len, 0};
  row.prompt_len = slot.prompt_len;
  row.position = slot.len - slot.prompt_len + slot.ahead;
  row.choice = slot.choice;
  row.attempt = slot.attempt;
  row.mirostat_mu = slot.mirostat_mu;
  row.adaptive_target = config.adaptive_target >= 0.0f ? adaptive_aim(slot, config) : 0;
}

// The bits of an id that ends a sequence.
HD u32 stop_bits(u32 id) {
  const u32 mixed = id * 0x9E3779B1u;
  return 1u << (mixed >> 27) | 1u << (mixed >> 22 & 31u);
}

// Whether the token ends the slot's sequence. Its bits spare nearly every row a look at the list, which is far from what it has read.
HD bool ends_sequence(const SamplingSlot &slot, const u32 *tokens, u32 token) {
  if (stop_bits(token) & ~slot.stops) return false;
  const u32 *list = tokens + slot.tokens - NUCLEUS_MAX_STOPS;
  bool ends = false;
#ifdef __CUDA_ARCH__
  uint4 ids[NUCLEUS_MAX_STOPS / 4];
#pragma unroll
  for (u32 i = 0; i < NUCLEUS_MAX_STOPS / 4; ++i) ids[i] = reinterpret_cast<const uint4 *>(list)[i];
#pragma unroll
  for (const uint4 &four : ids) ends |= four.x == token || four.y == token || four.z == token || four.w == token;
#else
  for (u32 i = 0; i < NUCLEUS_MAX_STOPS; ++i) ends |= list[i] == token;
#endif
  return ends;
}

// Appends the choice, learns from it, and notes whether the sequence ends with it.
HD void commit(SamplingSlot &slot, u32 *tokens, const SamplingConfig &config, u32 chooser, SampledToken &sampled) {
  if (sampled.status != NUCLEUS_OK) return;
  if (slot.len >= slot.capacity) {
    if (slot.capacity) sampled.status = NUCLEUS_FULL;
    else sampled = SampledToken{NUCLEUS_NO_TOKEN, float_of(0x7FC00000u), 0, NUCLEUS_ENDED, 0};
    return;
  }
  tokens[slot.tokens + slot.len] = sampled.token_id;
  slot.len += 1;
  if (ends_sequence(slot, tokens, sampled.token_id)) {
    slot.capacity = 0;
    sampled.status = NUCLEUS_STOPPED;
  }
  i64 value = sampled.feedback;
  if (chooser == NUCLEUS_OP_MIROSTAT_1 || chooser == NUCLEUS_OP_MIROSTAT_2) {
    i64 mu = slot.mirostat_mu - times_q16(q16(config.mirostat_eta), value - q16(config.mirostat_tau));
    slot.mirostat_mu = static_cast<i32>(mu < -MU_LIMIT ? -MU_LIMIT : mu > MU_LIMIT ? MU_LIMIT : mu);
  } else if (chooser == NUCLEUS_OP_ADAPTIVE_P) {
    i64 decay = q16(config.adaptive_decay);
    slot.adaptive_sum = value + times_q16(decay, slot.adaptive_sum);
    slot.adaptive_weight = ONE_Q16 + times_q16(decay, slot.adaptive_weight);
  }
}

}  // namespace nucleus
