//! The shortest beginning of a wide set's order that holds a mass or a number of tokens.
//!
//! Three ways lead to the same cut. The first two look where the cut probably is and prove it; the third is a bounded search.
//!
//! 1. The best tokens are listed: those above a bound that a few maxima of blocks give, or above one that a sample of the row suggests.
//! 2. The sample brackets the cut, which is then looked for [within a band](super::band).
//! 3. Everything is counted by class, or else by the first 16 bits of the order; the cut is in the class's band, or among those listed
//!    that share its first bits.

use super::estimate::Sample;
use super::kernels::{Band, Scale};
use super::key::{self, Key};
use super::masks::LISTED;
use super::search::Counted;
use super::simd::Simd;
use super::wide::{Form, Mass, Wide, scale_of};
use crate::row::Status;

/// The first guess lists the tokens that reach this many blocks' maxima.
const HEAD: usize = 64;

/// What a beginning is measured by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measure {
    /// The number of tokens.
    Count,
    /// The sum of weights.
    Mass(Scale),
}

/// What a beginning has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Goal {
    pub(super) measure: Measure,
    /// At least 1 and at most `total`.
    pub(super) target: u64,
    /// What the whole set holds.
    pub(super) total: u64,
}

/// The smallest mass of which `part / total >= threshold` holds, the threshold in Q32; at least 1.
pub(super) fn target(threshold: u64, total: u64) -> u64 {
    let product = u128::from(threshold) * u128::from(total);
    (product.div_ceil(1 << 32) as u64).max(1)
}

/// Place of the first weight with which the sum reaches `target`.
pub(super) fn reaching(weights: &[u64], target: u64) -> Option<usize> {
    let mut sum = 0;
    weights.iter().position(|q| {
        sum += q;
        sum >= target
    })
}

/// Working space for the weights of some tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    pub(super) logits: Vec<f32>,
    pub(super) weights: Vec<u64>,
}

/// Leaves the measures of logits in `amounts`.
pub(super) fn measure(simd: Simd, measure: Measure, logits: &[f32], amounts: &mut Vec<u64>) {
    amounts.clear();
    amounts.resize(logits.len(), 1);
    if let Measure::Mass(scale) = measure {
        simd.weigh_each(logits, scale, amounts);
    }
}

impl Scratch {
    /// Puts the measures of the logits beside them.
    pub(super) fn measure_logits(&mut self, simd: Simd, by: Measure) {
        measure(simd, by, &self.logits, &mut self.weights);
    }

    /// The measures of listed tokens.
    pub(super) fn measure(&mut self, simd: Simd, keys: &[Key], by: Measure) -> &[u64] {
        self.logits.clear();
        self.logits.extend(keys.iter().map(|key| key.logit()));
        self.measure_logits(simd, by);
        &self.weights
    }
}

impl Wide<'_> {
    /// Keeps the shortest beginning whose mass reaches a threshold in Q32.
    ///
    /// # Errors
    /// As [`Wide::weigh`].
    pub(super) fn keep_mass(
        &mut self,
        threshold: u64,
        temperature: f32,
        min_keep: u64,
        keys: &mut Vec<Key>,
    ) -> Result<Form, Status> {
        let before = self.cut();
        let scale = scale_of(self.max(), temperature)?;
        let form = if self.shortcuts {
            let total = self.weigh(temperature)?.total;
            let goal = Goal {
                measure: Measure::Mass(scale),
                target: target(threshold, total),
                total,
            };
            self.keep_beginning(goal, keys)
                .unwrap_or_else(|| self.keep_searched(goal, keys))
        } else {
            self.keep_mass_searched(threshold, scale, keys)
        };
        let kept = if form == Form::Listed {
            keys.len()
        } else {
            self.count()
        };
        if kept as u64 >= min_keep {
            return Ok(form);
        }
        self.restore(before);
        Ok(self.keep_first(min_keep, false, keys))
    }

    /// Keeps the beginning that reaches a goal, if it can be found without a search.
    pub(super) fn keep_beginning(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Option<Form> {
        if !self.shortcuts {
            return None;
        }
        let head = self.kth_maximum(HEAD).unwrap_or(f32::INFINITY);
        if self.may_hold(head, goal) && self.list_beginning(head, goal, keys) {
            return Some(Form::Listed);
        }
        let bracket = self
            .sample(head, goal.measure)
            .bracket(goal.total - goal.target);
        let few = bracket.count + HEAD <= LISTED / 2;
        if few && self.list_beginning(bracket.band.low, goal, keys) {
            return Some(Form::Listed);
        }
        self.cut_in_band(bracket.band, goal).then_some(Form::Wide)
    }

    /// Keeps the shortest beginning whose mass reaches a threshold, after a search that weighs the row.
    fn keep_mass_searched(&mut self, threshold: u64, scale: Scale, keys: &mut Vec<Key>) -> Form {
        let measure = Measure::Mass(scale);
        let counted = self.count_by_class(measure);
        let total = counted.total();
        let target = target(threshold, total);
        let goal = Goal {
            measure,
            target,
            total,
        };
        self.keep_counted(&counted, goal, keys)
    }

    /// Keeps the beginning that reaches a goal, after a search.
    pub(super) fn keep_searched(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Form {
        let counted = self.count_by_class(goal.measure);
        self.keep_counted(&counted, goal, keys)
    }

    fn keep_counted(&mut self, counted: &Counted, goal: Goal, keys: &mut Vec<Key>) -> Form {
        let band = counted.band(goal.target);
        if band.is_some_and(|band| self.cut_in_band(band, goal)) {
            return match self.cut() {
                Some(cut) if self.count() <= LISTED => self.keep(cut, keys),
                _ => Form::Wide,
            };
        }
        let cut = self.search_by_prefix(goal, keys);
        let equals = Band {
            low: cut.logit,
            high: cut.logit.next_up(),
        };
        if self.cut_in_band(equals, goal) && self.count() > LISTED {
            return Form::Wide;
        }
        self.keep(cut, keys)
    }

    /// Whether the blocks with a token from `lowest` on hold what a goal needs.
    fn may_hold(&self, lowest: f32, goal: Goal) -> bool {
        let blocks = self.maxima().iter().zip(self.sums());
        let held = blocks.map(|(max, sum)| if *max >= lowest { *sum } else { 0 });
        goal.measure == Measure::Count || held.sum::<u64>() >= goal.target
    }

    /// A sample of the tokens below `top`.
    fn sample(&mut self, top: f32, measure: Measure) -> Sample {
        let mut scratch = std::mem::take(&mut self.buffers().scratch);
        let limits = (self.max, top);
        let sample = Sample::take(self.view(), limits, measure, &mut scratch);
        self.buffers().scratch = scratch;
        sample
    }

    /// Lists the beginning, if the tokens from `lowest` on are few and reach the goal.
    fn list_beginning(&mut self, lowest: f32, goal: Goal, keys: &mut Vec<Key>) -> bool {
        keys.clear();
        if !self.gather(Band::from(lowest), LISTED, keys) {
            return false;
        }
        let simd = self.simd;
        let buffers = self.buffers();
        key::sort(keys, &mut buffers.spare);
        let last = reaching(
            buffers.scratch.measure(simd, keys, goal.measure),
            goal.target,
        );
        keys.truncate(last.map_or(keys.len(), |last| last + 1));
        last.is_some()
    }

    /// Lists the tokens that reach the maxima of a few blocks, if they are few.
    pub(super) fn list_head(&mut self, keys: &mut Vec<Key>) -> bool {
        keys.clear();
        let head = self.kth_maximum(HEAD).filter(|_| self.shortcuts);
        let few = head.is_some_and(|head| self.gather(Band::from(head), LISTED, keys));
        key::sort(keys, &mut self.buffers().spare);
        few
    }

    /// Lists a beginning that probably holds somewhat more than a threshold's mass, if that is a few tokens.
    pub(super) fn list_mass_above(
        &mut self,
        mass: Mass,
        threshold: u64,
        keys: &mut Vec<Key>,
    ) -> bool {
        keys.clear();
        if !self.shortcuts {
            return false;
        }
        let dropped = (mass.total - target(threshold, mass.total)) / 4;
        let bracket = self
            .sample(f32::INFINITY, Measure::Mass(mass.scale))
            .bracket(dropped);
        let few = bracket.count <= LISTED / 2;
        let listed = few && self.gather(Band::from(bracket.band.low), LISTED, keys);
        key::sort(keys, &mut self.buffers().spare);
        listed && !keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_smallest_mass_that_reaches_the_threshold() {
        for (threshold, total) in [
            (1u64 << 31, 5u64),
            (0, 7),
            (1, 1 << 40),
            ((1 << 32) - 1, 99),
            (3 << 30, 1 << 62),
        ] {
            let target = target(threshold, total);
            assert!(crate::fixed::reaches(target, total, threshold));
            assert!(target == 1 || !crate::fixed::reaches(target - 1, total, threshold));
        }
    }

    #[test]
    fn the_weight_that_reaches_belongs_to_the_beginning() {
        assert_eq!(reaching(&[5, 3, 2], 1), Some(0));
        assert_eq!(reaching(&[5, 3, 2], 8), Some(1));
        assert_eq!(reaching(&[5, 3, 2], 9), Some(2));
        assert_eq!(reaching(&[5, 3, 2], 11), None);
    }
}
