//! The ranges that endpoints accept.

use std::fmt;

use crate::config::VocabInfo;
use crate::error::ParamError;
use crate::params::{Bound, Domain, PARAMS, ParamSpec, Policy, SamplingParams};
use crate::value::ParamValue;

impl SamplingParams {
    /// Checks every present parameter against the ranges of an endpoint.
    ///
    /// # Errors
    /// [`ParamError::OutOfRange`] with the parameter, its value and the range.
    pub fn check_policy(&self, policy: Policy, vocab: &VocabInfo) -> Result<(), ParamError> {
        for spec in PARAMS {
            if let (Some(value), Some(domain)) = (self.get(spec.name)?, spec.range(policy)) {
                check(spec, &value, domain.at(vocab.size))?;
            }
        }
        Ok(())
    }
}

fn check(spec: &ParamSpec, value: &ParamValue, domain: Domain) -> Result<(), ParamError> {
    let outside = numbers(value).find(|number| !domain.contains(*number));
    outside.map_or(Ok(()), |number| {
        Err(ParamError::OutOfRange {
            param: spec.name,
            value: number.to_string(),
            range: domain.to_string(),
        })
    })
}

/// The numbers that a range applies to.
fn numbers(value: &ParamValue) -> Box<dyn Iterator<Item = f64> + '_> {
    match value {
        ParamValue::Float(value) => Box::new(std::iter::once(*value)),
        ParamValue::Int(value) => Box::new(std::iter::once(*value as f64)),
        ParamValue::Uint(value) => Box::new(std::iter::once(*value as f64)),
        ParamValue::Bias(map) => Box::new(map.values().copied()),
        _ => Box::new(std::iter::empty()),
    }
}

impl Domain {
    /// The same range with the vocabulary's size put in.
    #[must_use]
    pub fn at(self, vocab_size: u32) -> Self {
        let put = |bound| match bound {
            Bound::Vocab => Bound::Inclusive(f64::from(vocab_size)),
            other => other,
        };
        Self {
            low: put(self.low),
            high: put(self.high),
        }
    }

    /// Whether the number lies in the range. NaN never does; an end that is the vocabulary's size must have been put in (see [`Domain::at`]).
    pub fn contains(self, number: f64) -> bool {
        let above = match self.low {
            Bound::Inclusive(low) => low <= number,
            Bound::Exclusive(low) => low < number,
            Bound::Vocab => false,
        };
        let below = match self.high {
            Bound::Inclusive(high) => number <= high,
            Bound::Exclusive(high) => number < high,
            Bound::Vocab => false,
        };
        above && below
    }
}

/// Interval notation: `[0, 1]`, `(0, 2]`, `[0, vocab]`.
impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.low {
            Bound::Inclusive(low) => write!(f, "[{low}, ")?,
            Bound::Exclusive(low) => write!(f, "({low}, ")?,
            Bound::Vocab => write!(f, "[vocab, ")?,
        }
        match self.high {
            // As a float, the largest u64 would show digits that it does not have.
            Bound::Inclusive(high) if high == u64::MAX as f64 => write!(f, "2^64-1]"),
            Bound::Inclusive(high) => write!(f, "{high}]"),
            Bound::Exclusive(high) => write!(f, "{high})"),
            Bound::Vocab => write!(f, "vocab]"),
        }
    }
}
