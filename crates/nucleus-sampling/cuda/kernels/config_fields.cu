// The fields of SamplingConfig as this compiler sees them, in the order of the header: what a test of the layout compares with.
#include "../include/sampling_config.h"

extern "C" void sampling_config_fields(const SamplingConfig *config, double *fields) {
  const SamplingConfig &c = *config;
  const double all[] = {
      static_cast<double>(c.seed), c.temperature, c.dynatemp_range, c.dynatemp_exponent, c.smoothing_factor, c.smoothing_curve, c.top_p, c.min_p,
      c.typical_p, c.top_n_sigma, c.epsilon_cutoff, c.eta_cutoff, c.top_a, c.tfs_z, c.xtc_probability, c.xtc_threshold, c.repetition_penalty,
      c.frequency_penalty, c.presence_penalty, c.dry_multiplier, c.dry_base, c.mirostat_tau, c.mirostat_eta, c.adaptive_target, c.adaptive_decay,
      static_cast<double>(c.top_k), static_cast<double>(c.min_keep), static_cast<double>(c.repeat_last_n), static_cast<double>(c.dry_allowed_length),
      static_cast<double>(c.dry_penalty_last_n), static_cast<double>(c.no_repeat_ngram_size), static_cast<double>(c.min_tokens),
      static_cast<double>(c.mirostat), static_cast<double>(c.vocab_size), static_cast<double>(c.flags)};
  for (size_t i = 0; i < sizeof(all) / sizeof(*all); ++i) fields[i] = all[i];
}
