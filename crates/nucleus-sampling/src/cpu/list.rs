//! A set of candidates listed one by one, in order of logit descending, id ascending.

use std::ops::Range;

use super::flaws::Flaws;
use super::history::Changes;
use super::kernels::Scale;
use super::key::Key;
use super::simd::Simd;
use super::wide::{Mass, scale_of};
use crate::fixed::{Spread, Surprise};
use crate::row::Status;

/// Listed candidates and their weights.
#[derive(Clone, Debug)]
pub(super) struct List {
    simd: Simd,
    keys: Vec<Key>,
    logits: Vec<f32>,
    weights: Vec<u64>,
    logarithms: Vec<i64>,
    /// What the weights are measured by, while they are those of the keys.
    scale: Option<Scale>,
}

impl List {
    /// An empty list.
    pub(super) fn new(simd: Simd) -> Self {
        Self {
            simd,
            keys: Vec::new(),
            logits: Vec::new(),
            weights: Vec::new(),
            logarithms: Vec::new(),
            scale: None,
        }
    }

    /// The keys, to be replaced by others in order.
    pub(super) fn refill(&mut self) -> &mut Vec<Key> {
        self.scale = None;
        &mut self.keys
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The largest logit.
    pub(super) fn max(&self) -> Option<f32> {
        self.keys.first().map(|key| key.logit())
    }

    /// The weights, after [`List::weigh`].
    pub(super) fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// Keeps a contiguous run.
    pub(super) fn keep(&mut self, run: Range<usize>) {
        self.keys.truncate(run.end);
        self.keys.drain(..run.start);
        self.weights.truncate(run.end);
        self.weights.drain(..run.start.min(self.weights.len()));
    }

    /// The weights at a temperature.
    ///
    /// # Errors
    /// [`Status::Empty`] without candidates; [`Status::Overflow`] if the largest |x s| is 2^22 or more.
    pub(super) fn weigh(&mut self, temperature: f32) -> Result<Mass, Status> {
        let scale = scale_of(self.max(), temperature)?;
        if self.scale != Some(scale) {
            self.logits.clear();
            self.logits.extend(self.keys.iter().map(|key| key.logit()));
            self.weights.clear();
            self.weights.resize(self.keys.len(), 0);
            self.simd.weigh_each(&self.logits, scale, &mut self.weights);
            self.scale = Some(scale);
        }
        Ok(Mass {
            scale,
            total: self.weights.iter().sum(),
        })
    }

    /// Changes the logits of some tokens, which begins a new order. A temperature other than 1 is divided out first.
    ///
    /// # Errors
    /// [`Status::Nan`] if a logit becomes a NaN, else [`Status::Overflow`] if one becomes +inf.
    pub(super) fn edit(&mut self, changes: Changes<'_>, temperature: f32) -> Result<(), Status> {
        self.replace(|key| {
            let logit = if temperature == 1.0 {
                key.logit()
            } else {
                key.logit() / temperature
            };
            let number = changes.table.get(key.id());
            number.map_or(logit, |number| changes.rule.apply(logit, number))
        })
    }

    /// Replaces every logit, which begins a new order.
    ///
    /// # Errors
    /// As [`List::edit`].
    pub(super) fn replace(&mut self, change: impl Fn(Key) -> f32) -> Result<(), Status> {
        self.scale = None;
        let mut flaws = Flaws::default();
        self.keys.retain_mut(|key| {
            let logit = change(*key);
            flaws.note(logit);
            *key = Key::new(logit, key.id());
            logit > f32::NEG_INFINITY
        });
        self.keys.sort_unstable();
        flaws.status()
    }

    /// Computes the base-2 logarithms of the weights, in Q16.
    pub(super) fn take_logarithms(&mut self, scale: Scale) {
        self.logits.clear();
        self.logits.extend(self.keys.iter().map(|key| key.logit()));
        self.logarithms.clear();
        self.logarithms.resize(self.keys.len(), 0);
        self.simd
            .log2_each(&self.logits, scale, &mut self.logarithms);
    }

    /// The logarithms of the weights, after [`List::take_logarithms`].
    pub(super) fn logarithms(&self) -> &[i64] {
        &self.logarithms
    }

    /// The sums from which the entropy follows, after [`List::weigh`].
    pub(super) fn surprise(&mut self, scale: Scale) -> Surprise {
        self.take_logarithms(scale);
        let mut surprise = Surprise::default();
        for (q, y) in self.weights.iter().zip(&self.logarithms) {
            surprise.add(*q, *y);
        }
        surprise
    }

    /// The spread of the logits.
    pub(super) fn spread(&self) -> Spread {
        let mut spread = Spread::default();
        let max = self.max().unwrap_or(0.0);
        self.keys
            .iter()
            .for_each(|key| spread.add(key.logit(), max));
        spread
    }

    /// Number of leading candidates that reach a logit.
    pub(super) fn reaching(&self, threshold: f32) -> usize {
        self.keys.partition_point(|key| key.logit() >= threshold)
    }

    /// Number of leading candidates of which `passes`, given their place, holds.
    pub(super) fn leading(&self, passes: impl Fn(usize) -> bool) -> usize {
        (0..self.len())
            .find(|place| !passes(*place))
            .unwrap_or(self.len())
    }

    /// A length raised to that of a floor, where there are as many candidates.
    pub(super) fn at_least(&self, len: usize, min_keep: u64) -> usize {
        let floor = usize::try_from(min_keep).unwrap_or(usize::MAX);
        len.max(floor).min(self.len())
    }

    /// A length that takes in all that equal the last candidate within it.
    pub(super) fn with_ties(&self, len: usize) -> usize {
        let Some(last) = len.checked_sub(1).and_then(|place| self.keys.get(place)) else {
            return len;
        };
        self.keys.partition_point(|key| key.high() <= last.high())
    }
}
