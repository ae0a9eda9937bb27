//! The shortest beginning of a wide set's order that holds a mass or a number of tokens.
//!
//! Three ways lead to the same cut. The first two look where the cut probably is and prove it; the third is a bounded search.
//!
//! 1. The best tokens are listed: those above a bound that a few maxima of blocks give, or above one that a sample of the row suggests.
//! 2. The sample brackets the cut; what lies above the bracket is summed, what lies within is gathered.
//! 3. Everything is counted by class, or else by the first 16 bits of the order; those that share the cut's are listed.

use super::classes::Classes;
use super::estimate::Sample;
use super::kernels::{BLOCK, Band, CLASSES, Scale, WEIGHTLESS};
use super::key::{self, Key};
use super::masks::LISTED;
use super::simd::Simd;
use super::view::Cut;
use super::wide::{Buffers, Form, Mass, Wide};
use crate::row::Status;

/// The first guess lists the tokens that reach this many blocks' maxima.
const HEAD: usize = 64;

/// The most tokens that are gathered to find a cut among them.
const GATHERED: usize = 1 << 15;

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

/// What lies above a bracket.
#[derive(Clone, Copy, Debug, Default)]
struct Above {
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
    fn measure(&mut self, simd: Simd, keys: &[Key], measure: Measure) -> &[u64] {
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
        let Mass { scale, total } = self.weigh(temperature)?;
        let target = target(threshold, total);
        let goal = Goal {
            measure: Measure::Mass(scale),
            target,
            total,
        };
        let form = self
            .keep_beginning(goal, keys)
            .unwrap_or_else(|| self.keep_searched(goal, keys));
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

    /// Keeps the beginning that reaches a goal, after a search.
    pub(super) fn keep_searched(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Form {
        let cut = self.search(goal, keys);
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
        let found = above.and_then(|above| self.cut_behind(band, above, goal, &mut sums, keys));
        self.put_sums(sums);
        match found {
            Some((cut, count)) => self.cut_to(cut, count, goal.measure),
            None => self.restore(before),
        }
        found.is_some()
    }

    /// The cut among the keys of a band and the number of tokens before it; adds what the band holds of them to the blocks' sums.
    fn cut_behind(
        &mut self,
        band: Band,
        above: Above,
        goal: Goal,
        sums: &mut [u64],
        keys: &[Key],
    ) -> Option<(Cut, usize)> {
        let simd = self.simd;
        let classes = Classes::between(band.low, band.high.min(self.max));
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
        let mut above = Above::default();
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
            if keys.len() > GATHERED {
                return None;
            }
        }
        Some(above)
    }
}

/// Bits of the order by which a search counts.
const PREFIX_BITS: u32 = 16;

impl Wide<'_> {
    /// The cut behind the beginning that reaches a goal, by counting everything. `keys` is working space.
    pub(super) fn search(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Cut {
        self.search_by_class(goal, keys)
            .unwrap_or_else(|| self.search_by_prefix(goal, keys))
    }

    /// [`Wide::search`] where the cut's class is not too large.
    fn search_by_class(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Option<Cut> {
        let classes = Classes::between(self.lowest_class(goal.measure), self.max);
        let sums = self.count_by_class(classes, goal.measure);
        let class = reaching(&sums, goal.target)?;
        let before: u64 = sums[..class].iter().sum();
        keys.clear();
        if !self.gather(classes.band(class), GATHERED, keys) {
            return None;
        }
        keys.retain(|key| classes.of(key.logit()) == class);
        self.crossing(goal.measure, goal.target - before, keys)
    }

    /// A logit down to which classes are fine; nothing depends on it. In a bell-shaped row the maxima of the blocks span a quarter of it or so.
    fn lowest_class(&self, measure: Measure) -> f32 {
        let finite = self.maxima().iter().filter(|max| **max > f32::NEG_INFINITY);
        let least = finite.fold(self.max, |least, max| least.min(*max));
        let low = self.max - 4.0 * (self.max - least);
        match measure {
            Measure::Count => low,
            Measure::Mass(scale) => low.max(self.max - WEIGHTLESS as f32 / scale.s),
        }
    }

    /// Sums the measures of the candidates by class.
    fn count_by_class(&self, classes: Classes, measure: Measure) -> [u64; CLASSES] {
        let view = self.view();
        let mut sums = [0; CLASSES];
        let (mut buffer, mut measures, mut places) = ([0.0; BLOCK], [0; BLOCK], [0; BLOCK]);
        for (index, max) in self.maxima().iter().enumerate() {
            if *max == f32::NEG_INFINITY {
                continue;
            }
            let block = view.block(index, &mut buffer);
            match measure {
                Measure::Mass(scale) => self.simd.weigh_each(block, scale, &mut measures),
                Measure::Count => {
                    measures = block.map(|logit| u64::from(logit > f32::NEG_INFINITY))
                }
            }
            self.simd.classify(block, classes, &mut places);
            for (place, measure) in places.iter().zip(&measures) {
                sums[*place as usize % CLASSES] += measure;
            }
        }
        sums
    }

    /// The last of listed candidates with which the sum reaches `target`; puts them in order.
    fn crossing(&mut self, measure: Measure, target: u64, keys: &mut Vec<Key>) -> Option<Cut> {
        let simd = self.simd;
        let Buffers { scratch, spare, .. } = self.buffers();
        key::sort(keys, spare);
        let last = keys[reaching(scratch.measure(simd, keys, measure), target)?];
        Some(Cut {
            logit: last.logit(),
            id: last.id(),
        })
    }

    /// [`Wide::search`] whatever the row.
    fn search_by_prefix(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Cut {
        let mut amounts = std::mem::take(&mut self.buffers().amounts);
        self.count_by_prefix(goal.measure, &mut amounts);
        let prefix = reaching(&amounts, goal.target).unwrap_or(amounts.len() - 1);
        let before: u64 = amounts[..prefix].iter().sum();
        self.buffers().amounts = amounts;
        self.list_prefix(prefix as u32, keys);
        let cut = self.crossing(goal.measure, goal.target - before, keys);
        cut.unwrap_or(Cut::at(f32::MIN))
    }

    /// Sums the measures of the candidates by the first bits of their order.
    fn count_by_prefix(&self, measure: Measure, amounts: &mut Vec<u64>) {
        amounts.clear();
        amounts.resize(1 << PREFIX_BITS, 0);
        let view = self.view();
        let (mut buffer, mut measures) = ([0.0; BLOCK], [1; BLOCK]);
        for (index, _) in self
            .maxima()
            .iter()
            .enumerate()
            .filter(|(_, max)| **max > f32::NEG_INFINITY)
        {
            let block = view.block(index, &mut buffer);
            if let Measure::Mass(scale) = measure {
                self.simd.weigh_each(block, scale, &mut measures);
            }
            for (logit, amount) in block.iter().zip(&measures) {
                if *logit > f32::NEG_INFINITY {
                    amounts[(key::descending(*logit) >> (32 - PREFIX_BITS)) as usize] += amount;
                }
            }
        }
    }

    /// Lists the candidates whose order begins with these bits.
    fn list_prefix(&mut self, prefix: u32, keys: &mut Vec<Key>) {
        let first = prefix << (32 - PREFIX_BITS);
        let last = first | (u32::MAX >> PREFIX_BITS);
        let band = Band {
            low: key::ascending(last),
            high: key::ascending(first).next_up(),
        };
        keys.clear();
        self.gather(band, usize::MAX, keys);
        // At zero the band takes in both signs.
        keys.retain(|key| (first..=last).contains(&key.high()));
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
