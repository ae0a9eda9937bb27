//! The definition: slow, obvious, exact.

use crate::row::{Row, SampledToken, TokenLogprob};
use crate::sampler::{Sampler, Trace};

/// The sampler that defines the meaning of every parameter: integers, full sorts, one function per stage.
#[derive(Clone, Debug, Default)]
pub struct ReferenceSampler;

impl Sampler for ReferenceSampler {
    fn sample(&mut self, _row: &Row<'_>) -> SampledToken {
        unimplemented!()
    }

    fn top_logprobs(&mut self, _row: &Row<'_>, _sampled: &SampledToken) -> Vec<TokenLogprob> {
        unimplemented!()
    }

    fn trace(&mut self, _row: &Row<'_>) -> Trace {
        unimplemented!()
    }
}
