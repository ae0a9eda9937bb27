//! Log-probabilities, raw and processed.

use std::f64::consts::LN_2;

use super::choose::Chosen;
use super::key::Key;
use super::run::Run;
use super::wide::{Mass, scale_of};
use crate::fixed;
use crate::row::{LogprobsMode, TokenLogprob};

/// Softmax at temperature 1 of the logits as they came: ln p = (x - max) - ln(sum exp(x - max)).
#[derive(Clone, Copy, Debug)]
pub(super) struct RawSoftmax {
    max: f64,
    log_sum: f64,
}

impl RawSoftmax {
    fn new(max: f32, mass: Mass) -> Self {
        let log2 = fixed::log2_q48(mass.total) as f64 / (1u64 << 48) as f64;
        let scaled = f64::from(max) * f64::from(mass.scale.s);
        let log2_sum = f64::from(mass.scale.max) + log2 - f64::from(fixed::WEIGHT_BITS) - scaled;
        Self {
            max: f64::from(max),
            log_sum: log2_sum * LN_2,
        }
    }

    /// The log-probability of a logit.
    fn of(self, logit: f32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        (f64::from(logit + 0.0) - self.max - self.log_sum).min(0.0) as f32
    }
}

/// ln(q / Z); -inf for q = 0.
fn processed(weight: u64, total: u64) -> f32 {
    if weight == 0 {
        return f32::NEG_INFINITY;
    }
    fixed::ln_of_log2_q48(fixed::log2_q48(weight) - fixed::log2_q48(total)) as f32
}

impl Run<'_> {
    /// Whether the row asks for the distribution that is drawn from.
    pub(super) fn wants_processed(&self) -> bool {
        self.row.logprobs.mode == LogprobsMode::Processed
    }

    /// The log-probability of the choice, in the mode that the row asks for.
    pub(super) fn logprob(&mut self, chosen: Chosen) -> f32 {
        if self.wants_processed() {
            return processed(chosen.weight, chosen.total);
        }
        self.raw_softmax().map_or(f32::NAN, |softmax| {
            softmax.of(self.wide.raw_logit(chosen.id))
        })
    }

    /// `None` if the row has no softmax: a NaN, +inf, nothing finite, or logits beyond the range of weights.
    pub(super) fn raw_softmax(&mut self) -> Option<RawSoftmax> {
        let scan = self.wide.raw();
        scan.flaws.status().ok()?;
        let max = scan.max + 0.0;
        let scale = scale_of(Some(max).filter(|max| max.is_finite()), 1.0).ok()?;
        let mass = self.wide.raw_mass(scale);
        Some(RawSoftmax::new(max, mass))
    }

    /// The likeliest tokens of the row as it came, then `also` if it is not among them.
    pub(super) fn raw_top(&mut self, count: usize, also: Option<u32>) -> Vec<TokenLogprob> {
        let softmax = self.raw_softmax();
        self.wide.begin();
        let logprob = |logit| softmax.map_or(f32::NAN, |softmax| softmax.of(logit));
        let also = also.map(|token_id| TokenLogprob {
            token_id,
            logprob: logprob(self.wide.raw_logit(token_id)),
        });
        let count = if softmax.is_some() { count } else { 0 };
        let top = self.top(count).iter().map(|key| TokenLogprob {
            token_id: key.id(),
            logprob: logprob(key.logit()),
        });
        with(top.collect(), also)
    }

    /// The likeliest tokens of those that could have been drawn, then `also` if it is not among them.
    pub(super) fn processed_top(
        &mut self,
        chosen: Chosen,
        count: usize,
        also: Option<u32>,
    ) -> Vec<TokenLogprob> {
        let scale = self.scale().ok();
        // The single token of a greedy choice has probability 1 whatever its logit.
        let certain = chosen.count == 1;
        let logprob = |logit| {
            let weight = scale.map_or(0, |scale| scale.weight(logit));
            if certain {
                0.0
            } else {
                processed(weight, chosen.total)
            }
        };
        let also = also.map(|token_id| TokenLogprob {
            token_id,
            logprob: self.logit(token_id).map_or(f32::NEG_INFINITY, logprob),
        });
        let top = self.top(count).iter().map(|key| TokenLogprob {
            token_id: key.id(),
            logprob: logprob(key.logit()),
        });
        with(top.collect(), also)
    }

    /// The logit of a token of the set.
    fn logit(&mut self, id: u32) -> Option<f32> {
        if self.listed {
            return self
                .list
                .keys()
                .iter()
                .find(|key| key.id() == id)
                .map(|key| key.logit());
        }
        self.wide
            .logit(id)
            .filter(|logit| *logit > f32::NEG_INFINITY)
    }

    /// The first candidates.
    fn top(&mut self, count: usize) -> &[Key] {
        if count == 0 {
            return &[];
        }
        self.first(count as u64, false);
        self.make_listed();
        let keys = self.list.keys();
        &keys[..count.min(keys.len())]
    }
}

/// A list with one more entry, if its token is not there yet.
fn with(mut list: Vec<TokenLogprob>, also: Option<TokenLogprob>) -> Vec<TokenLogprob> {
    let missing = also.filter(|also| list.iter().all(|entry| entry.token_id != also.token_id));
    list.extend(missing);
    list
}
