//! The tokens still in the running, in order, and their weights.

use std::ops::Range;

use crate::fixed::{self, Exponent, Spread, Surprise, Y_NONE};
use crate::row::Status;

/// A token that can still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    pub(crate) logit: f32,
}

/// The candidates by logit descending, id ascending; logits are finite and contain no -0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidates {
    list: Vec<Candidate>,
    /// The temperature that divides the logits wherever they are weighed.
    pub(crate) temperature: f32,
}

impl Candidates {
    /// Orders tokens; those at -inf are out.
    ///
    /// # Errors
    /// [`Status::Nan`] if a logit is not a number, else [`Status::Overflow`] if one is +inf.
    pub(crate) fn new(tokens: impl Iterator<Item = Candidate>) -> Result<Self, Status> {
        let mut candidates = Self {
            list: tokens.collect(),
            temperature: 1.0,
        };
        candidates.settle()?;
        Ok(candidates)
    }

    /// Checks, turns -0 into +0, drops -inf, sorts.
    fn settle(&mut self) -> Result<(), Status> {
        if self.list.iter().any(|token| token.logit.is_nan()) {
            return Err(Status::Nan);
        }
        if self.list.iter().any(|token| token.logit == f32::INFINITY) {
            return Err(Status::Overflow);
        }
        self.list.retain(|token| token.logit != f32::NEG_INFINITY);
        self.list.iter_mut().for_each(|token| token.logit += 0.0);
        self.list
            .sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn as_slice(&self) -> &[Candidate] {
        &self.list
    }

    /// The largest logit.
    pub(crate) fn max(&self) -> Option<f32> {
        self.list.first().map(|token| token.logit)
    }

    /// Keeps a contiguous run of the order.
    pub(crate) fn keep(&mut self, run: Range<usize>) {
        self.list.truncate(run.end);
        self.list.drain(..run.start);
    }

    /// Changes logits, which begins a new order. A temperature already in force is divided out first, so that the edit sees scaled logits.
    ///
    /// # Errors
    /// As [`Candidates::new`].
    pub(crate) fn edit(&mut self, change: impl Fn(Candidate) -> f32) -> Result<(), Status> {
        let temperature = std::mem::replace(&mut self.temperature, 1.0);
        for token in &mut self.list {
            if temperature != 1.0 {
                token.logit /= temperature;
            }
            token.logit = change(*token);
        }
        self.settle()
    }

    /// The weights of the candidates, in their order.
    ///
    /// # Errors
    /// [`Status::Empty`] without candidates; [`Status::Overflow`] if the largest |x s| is 2^22 or more.
    pub(crate) fn weights(&self) -> Result<Weights, Status> {
        let s = fixed::scale(self.temperature);
        let largest = self.max().ok_or(Status::Empty)? * s;
        if largest.is_nan() || largest.abs() >= fixed::SCALED_LIMIT {
            return Err(Status::Overflow);
        }
        let exponents: Vec<_> = self
            .list
            .iter()
            .map(|token| Exponent::of(token.logit, s))
            .collect();
        let max = exponents.iter().flatten().map(|e| e.n).max().unwrap_or(0);
        Ok(Weights {
            q: exponents
                .iter()
                .map(|e| e.map_or(0, |e| e.weight(max)))
                .collect(),
            y: exponents
                .iter()
                .map(|e| e.map_or(Y_NONE, |e| e.log2_q16(max)))
                .collect(),
            max,
        })
    }

    /// The spread of the logits.
    pub(crate) fn spread(&self) -> Spread {
        let mut spread = Spread::default();
        for token in &self.list {
            spread.add(token.logit, self.max().unwrap_or(0.0));
        }
        spread
    }
}

/// Weights of a set of candidates: floor(2^44 2^(n - max) P(f)), and their logarithms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Weights {
    /// The weights.
    pub(crate) q: Vec<u64>,
    /// Their base-2 logarithms in Q16, relative to 2^max.
    pub(crate) y: Vec<i64>,
    /// The largest n.
    pub(crate) max: i32,
}

impl Weights {
    /// No weights, for a stage that looks at logits alone.
    pub(crate) fn none() -> Self {
        Self {
            q: Vec::new(),
            y: Vec::new(),
            max: 0,
        }
    }

    /// The weight of a single candidate, whatever its logit.
    pub(crate) fn one() -> Self {
        Self {
            q: vec![1 << fixed::WEIGHT_BITS],
            y: vec![0],
            max: 0,
        }
    }

    /// Entropy in nats: sum of -p ln p.
    pub(crate) fn entropy(&self) -> f64 {
        let total = self.total();
        let log2_total = fixed::log2_q48(total);
        let terms = self
            .q
            .iter()
            .filter(|q| **q > 0)
            .map(|q| *q as f64 * fixed::ln_of_log2_q48(log2_total - fixed::log2_q48(*q)));
        terms.sum::<f64>() / total as f64
    }

    /// The sums from which mass, mean surprise and entropy follow.
    pub(crate) fn surprise(&self) -> Surprise {
        let mut surprise = Surprise::default();
        self.q
            .iter()
            .zip(&self.y)
            .for_each(|(q, y)| surprise.add(*q, *y));
        surprise
    }

    /// Z.
    pub(crate) fn total(&self) -> u64 {
        self.q.iter().sum()
    }
}
