//! What every sampler does, and what it reports of its work.

use crate::row::{Row, SampledToken, TokenLogprob};

/// Chooses tokens. All samplers choose the same token, bit for bit, from the same row.
pub trait Sampler {
    /// Chooses one token. Reads the row's state and does not change it: the caller commits.
    fn sample(&mut self, row: &Row<'_>) -> SampledToken;

    /// Chooses a token for each row; `out` is cleared first. Rows do not see each other.
    fn sample_batch(&mut self, rows: &[Row<'_>], out: &mut Vec<SampledToken>) {
        out.clear();
        out.extend(rows.iter().map(|row| self.sample(row)));
    }

    /// The log-probabilities that the row asks for: the likeliest tokens (logprob descending, id ascending), then the chosen token if it is not
    /// among them.
    fn top_logprobs(&mut self, row: &Row<'_>, sampled: &SampledToken) -> Vec<TokenLogprob>;

    /// Chooses a token and tells what each stage did.
    fn trace(&mut self, row: &Row<'_>) -> Trace;
}

/// What one stage did.
#[derive(Clone, Debug, PartialEq)]
pub struct StageTrace {
    /// The stage's name.
    pub name: &'static str,
    /// Tokens left after it.
    pub kept: usize,
    /// Tokens it removed.
    pub removed: usize,
    /// The likeliest token it removed.
    pub first_removed: Option<u32>,
    /// Share of the probability it received that it kept.
    pub mass: f64,
    /// Entropy of what is left, in nats.
    pub entropy: f64,
    /// Largest logit left.
    pub max_logit: f32,
    /// Temperature in force after it.
    pub temperature: f32,
}

/// What a sampler did with one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Every stage that ran, in order.
    pub stages: Vec<StageTrace>,
    /// The tokens that could be drawn with their probabilities q / Z, in order of logit descending, id ascending.
    pub distribution: Vec<(u32, f64)>,
    /// The choice.
    pub sampled: SampledToken,
}
