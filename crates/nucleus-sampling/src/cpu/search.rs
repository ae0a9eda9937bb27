//! The cut behind a beginning of a wide set, found by counting everything: exact on any row, in a bounded number of passes.

use super::classes::Classes;
use super::kernels::{BLOCK, Band, CLASSES, WEIGHTLESS};
use super::key::{self, Key};
use super::prefix::{Goal, Measure, reaching};
use super::view::Cut;
use super::wide::{Buffers, Wide};

/// The most tokens of a class that are put in order; a class that holds more is counted by prefix.
const GATHERED: usize = 1 << 15;

/// Bits of the order by which a search counts.
const PREFIX_BITS: u32 = 16;

/// What the candidates of each class hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    classes: Classes,
    sums: [u64; CLASSES],
}

impl Counted {
    /// What all candidates hold.
    pub(super) fn total(&self) -> u64 {
        self.sums.iter().sum()
    }

    /// Where the beginning that reaches `target` ends.
    pub(super) fn band(&self, target: u64) -> Option<Band> {
        reaching(&self.sums, target).map(|class| self.classes.band(class))
    }
}

impl Wide<'_> {
    /// The cut behind the beginning that reaches a goal, by counting everything. `keys` is working space.
    pub(super) fn search(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Cut {
        self.search_by_class(goal, keys)
            .unwrap_or_else(|| self.search_by_prefix(goal, keys))
    }

    /// [`Wide::search`] where the cut's class is not too large.
    fn search_by_class(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Option<Cut> {
        let Counted { classes, sums } = self.count_by_class(goal.measure);
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
    pub(super) fn count_by_class(&self, measure: Measure) -> Counted {
        let classes = Classes::between(self.lowest_class(measure), self.max);
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
                    measures = block.map(|logit| u64::from(logit > f32::NEG_INFINITY));
                }
            }
            self.simd.classify(block, classes, &mut places);
            for (place, measure) in places.iter().zip(&measures) {
                sums[*place as usize % CLASSES] += measure;
            }
        }
        Counted { classes, sums }
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
    pub(super) fn search_by_prefix(&mut self, goal: Goal, keys: &mut Vec<Key>) -> Cut {
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
