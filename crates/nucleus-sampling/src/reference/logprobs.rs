//! Log-probabilities, raw and processed.

use crate::fixed;
use crate::reference::candidates::{Candidate, Candidates, Weights};
use crate::reference::masks;
use crate::row::{LogprobsMode, Row, TokenLogprob};

/// A distribution from which log-probabilities are read.
pub(crate) enum Distribution {
    /// Softmax at temperature 1 of finite logits with their largest: ln p = (x - max) - ln(sum exp(x - max)).
    Raw {
        candidates: Candidates,
        max: f32,
        log_sum: f64,
    },
    /// The distribution drawn from.
    Processed {
        candidates: Candidates,
        weights: Weights,
        /// Z.
        total: u64,
    },
    /// A row that has no softmax (a NaN, +inf, or logits beyond the range of weights).
    None,
}

impl Distribution {
    /// The raw distribution of a row.
    pub(crate) fn raw(row: &Row<'_>) -> Self {
        let Ok(candidates) = Candidates::new(masks::tokens(row)) else {
            return Self::None;
        };
        let (Ok(weights), Some(max)) = (candidates.weights(), candidates.max()) else {
            return Self::None;
        };
        let log2 = fixed::log2_q48(weights.total()) as f64 / (1u64 << 48) as f64;
        let scaled = f64::from(max) * f64::from(fixed::scale(1.0));
        let log2_sum = f64::from(weights.max) + log2 - f64::from(fixed::WEIGHT_BITS) - scaled;
        Self::Raw {
            candidates,
            max,
            log_sum: log2_sum * std::f64::consts::LN_2,
        }
    }

    /// The log-probability of the candidate at a place of the order.
    fn logprob(&self, index: usize) -> f32 {
        match self {
            Self::Raw {
                candidates,
                max,
                log_sum,
            } => {
                let distance = f64::from(candidates.as_slice()[index].logit) - f64::from(*max);
                (distance - log_sum).min(0.0) as f32
            }
            Self::Processed { weights, total, .. } => processed(weights.q[index], *total),
            Self::None => f32::NAN,
        }
    }

    fn candidates(&self) -> &[Candidate] {
        match self {
            Self::Raw { candidates, .. } | Self::Processed { candidates, .. } => {
                candidates.as_slice()
            }
            Self::None => &[],
        }
    }

    /// The log-probability of a token; -inf if it is not in the distribution.
    pub(crate) fn of(&self, token_id: u32) -> f32 {
        let place = self
            .candidates()
            .iter()
            .position(|token| token.id == token_id);
        match (place, self) {
            (Some(index), _) => self.logprob(index),
            (None, Self::None) => f32::NAN,
            (None, _) => f32::NEG_INFINITY,
        }
    }

    /// The first `count` tokens of the order.
    pub(crate) fn top(&self, count: usize) -> Vec<TokenLogprob> {
        let tokens = self.candidates().iter().enumerate().take(count);
        tokens
            .map(|(index, token)| TokenLogprob {
                token_id: token.id,
                logprob: self.logprob(index),
            })
            .collect()
    }
}

/// ln(q / Z); -inf for q = 0.
fn processed(q: u64, total: u64) -> f32 {
    if q == 0 {
        return f32::NEG_INFINITY;
    }
    fixed::ln_of_log2_q48(fixed::log2_q48(q) - fixed::log2_q48(total)) as f32
}

/// Whether a request wants the distribution drawn from.
pub(crate) fn wants_processed(row: &Row<'_>) -> bool {
    row.logprobs.mode == LogprobsMode::Processed
}
