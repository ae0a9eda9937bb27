//! The shortest beginning of a wide set's order that holds a mass or a number of tokens.
//!
//! Three ways lead to the same cut. The first two look where the cut probably is and prove it; the third is a bounded search.
//!
//! 1. The best tokens are listed: those above a bound that a few maxima of blocks give, or above one that a sample of the row suggests.
//! 2. The sample brackets the cut; what lies above the bracket is summed, what lies within is gathered.
//! 3. Everything is counted by class, or else by the first 16 bits of the order; those that share the cut's are listed.

use super::classes::Classes;
use super::estimate::Sample;
use super::kernels::{BLOCK, Band, Scale};
use super::key::{self, Key};
use super::masks::LISTED;
use super::search::Counted;
use super::simd::Simd;
use super::view::Cut;
use super::wide::{Buffers, Form, Mass, Wide, scale_of};
use crate::row::Status;

/// The first guess lists the tokens that reach this many blocks' maxima.
const HEAD: usize = 64;

/// The most tokens within a bracket.
const BRACKETED: usize = 1 << 15;

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

/// What lies above a band.
#[derive(Clone, Copy, Debug)]
struct Above {
    band: Band,
    /// Measured as the goal is.
    amount: u64,
    count: usize,
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

impl Scratch {
    /// Puts the measures of the logits beside them.
    pub(super) fn measure_logits(&mut self, simd: Simd, measure: Measure) {
        self.weights.clear();
        self.weights.resize(self.logits.len(), 1);
        if let Measure::Mass(scale) = measure {
            simd.weigh_each(&self.logits, scale, &mut self.weights);
        }
    }

    /// The measures of listed tokens.
    pub(super) fn measure(&mut self, simd: Simd, keys: &[Key], measure: Measure) -> &[u64] {
        self.logits.clear();
        self.logits.extend(keys.iter().map(|key| key.logit()));
        self.measure_logits(simd, measure);
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
        if self.list_beginning(head, goal, keys) {
            return Some(Form::Listed);
        }
        let bracket = self
            .sample(head, goal.measure)
            .bracket(goal.total - goal.target);
        let few = bracket.count + HEAD <= LISTED / 2;
        if few && self.list_beginning(bracket.band.low, goal, keys) {
            return Some(Form::Listed);
        }
        self.cut_in_band(bracket.band, goal, keys)
            .then_some(Form::Wide)
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
        if band.is_some_and(|band| self.cut_in_band(band, goal, keys)) {
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
        if self.cut_in_band(equals, goal, keys) && self.count() > LISTED {
            return Form::Wide;
        }
        self.keep(cut, keys)
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

    /// Cuts within a band, if the cut is there.
    fn cut_in_band(&mut self, band: Band, goal: Goal, keys: &mut Vec<Key>) -> bool {
        let before = self.cut();
        let mut sums = self.take_sums();
        let above = self.measure_above(band, goal.measure, &mut sums, keys);
        let found = above.and_then(|above| self.cut_behind(above, goal, &mut sums, keys));
        self.put_sums(sums);
        match found {
            Some((cut, count)) => self.cut_to(cut, count, goal.measure),
            None => self.restore(before),
        }
        found.is_some()
    }

    /// The cut among the keys of a band and the number of tokens before it; adds what the band holds of those to the blocks' sums.
    fn cut_behind(
        &mut self,
        above: Above,
        goal: Goal,
        sums: &mut [u64],
        keys: &[Key],
    ) -> Option<(Cut, usize)> {
        let simd = self.simd;
        let classes = Classes::between(above.band.low, above.band.high.min(self.max));
        let Buffers { scratch, near, .. } = self.buffers();
        let missing = goal.target.checked_sub(above.amount)?;
        if missing == 0 {
            return None;
        }
        let amounts = scratch.measure(simd, keys, goal.measure);
        let last = classes.crossing(keys, amounts, missing, near)?;
        let mut count = above.count;
        for (key, amount) in keys.iter().zip(amounts).filter(|(key, _)| **key <= last) {
            sums[key.id() as usize / BLOCK] += amount;
            count += 1;
        }
        let cut = Cut {
            logit: last.logit(),
            id: last.id(),
        };
        Some((cut, count))
    }

    /// Leaves what the blocks hold above a band in `sums` and the keys within it in `keys`. `None` if there are too many.
    fn measure_above(
        &self,
        band: Band,
        measure: Measure,
        sums: &mut Vec<u64>,
        keys: &mut Vec<Key>,
    ) -> Option<Above> {
        let view = self.view();
        let mut buffer = [0.0; BLOCK];
        let mut above = Above {
            band,
            amount: 0,
            count: 0,
        };
        keys.clear();
        sums.clear();
        for (index, max) in self.maxima().iter().enumerate() {
            let mut sum = 0;
            if *max >= band.low {
                let block = view.block(index, &mut buffer);
                self.simd.gather(block, band, (index * BLOCK) as u32, keys);
                if *max >= band.high {
                    let (amount, count) = match measure {
                        Measure::Count => {
                            let count = self.simd.count(block, band.high);
                            (u64::from(count), count)
                        }
                        Measure::Mass(scale) => {
                            let kept = self.simd.weigh_from(block, scale, band.high);
                            (kept.mass, kept.count)
                        }
                    };
                    sum = amount;
                    above.amount += amount;
                    above.count += count as usize;
                }
            }
            sums.push(sum);
            if keys.len() > BRACKETED {
                return None;
            }
        }
        Some(above)
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
