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

// Appends the choice and learns from it.
HD void commit(SamplingSlot &slot, u32 *tokens, const SamplingConfig &config, u32 chooser, SampledToken &sampled) {
  if (sampled.status != NUCLEUS_OK) return;
  if (slot.len >= slot.capacity) {
    sampled.status = NUCLEUS_FULL;
    return;
  }
  tokens[slot.tokens + slot.len] = sampled.token_id;
  slot.len += 1;
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
