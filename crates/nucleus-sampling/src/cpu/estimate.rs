//! Where the best tokens' measure probably reaches a target, from a sample of the row.
//!
//! Nothing here decides anything: whoever uses a bracket proves that the cut is in it, and does without where it is not. So f64 is good
//! enough, and edits of the row are not looked at.

use super::kernels::{BLOCK, Band};
use super::prefix::{Measure, Scratch};
use super::view::View;

/// Logits taken from each block.
const TAKEN: usize = 8;

/// Classes by logit.
const BINS: usize = 1024;

/// How many standard deviations the bracket reaches beyond the estimate on either side.
const CAUTION: f64 = 5.0;

/// What the tokens of a sample in one class stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    count: f64,
    amount: f64,
    /// Sum of the squared amounts, which gives the variance.
    squares: f64,
}

/// Classes of the tokens below `top`, each `width` wide, best first; the last holds all the rest.
pub(super) struct Sample {
    bins: [Bin; BINS],
    top: f32,
    width: f32,
}

/// Where the cut probably lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bracket {
    pub(super) band: Band,
    /// Estimated number of tokens from `band.low` on.
    pub(super) count: usize,
}

impl Sample {
    /// Takes 8 logits in a row from each block, at places that differ from block to block, and sorts those below `top` into classes.
    pub(super) fn take(view: View<'_>, top: f32, measure: Measure, scratch: &mut Scratch) -> Self {
        let blocks = view.blocks();
        scratch.logits.clear();
        for index in 0..blocks {
            let logits: [f32; TAKEN] = view.sample(index, index * 37 % (BLOCK / TAKEN) * TAKEN);
            scratch.logits.extend_from_slice(&logits);
        }
        // A logit above the largest weight's is one that an edit lowers or a mask removes.
        let top = match measure {
            Measure::Count => top,
            Measure::Mass(scale) => top.min(scale.highest()),
        };
        for logit in &mut scratch.logits {
            *logit = if *logit < top {
                *logit
            } else {
                f32::NEG_INFINITY
            };
        }
        scratch.measure_logits(view.simd, measure);
        let lowest = view.cut.map_or(f32::MIN, |cut| cut.logit);
        let pairs = scratch.logits.iter().zip(&scratch.weights);
        let pairs = pairs.filter(|(logit, amount)| **logit >= lowest && **amount > 0);
        let range = |(low, high): (f32, f32), logit: f32| (low.min(logit), high.max(logit));
        let (low, high) = pairs
            .clone()
            .map(|(logit, _)| *logit)
            .fold((top, f32::MIN), range);
        let width = ((high.max(low) - low) / BINS as f32).max(f32::MIN_POSITIVE);
        let mut sample = Self {
            bins: [Bin::default(); BINS],
            top: high,
            width,
        };
        let share = view.logits.len() as f64 / (blocks * TAKEN) as f64;
        pairs.for_each(|(logit, amount)| sample.add(*logit, *amount as f64, share));
        sample
    }

    fn add(&mut self, logit: f32, amount: f64, share: f64) {
        let bin = &mut self.bins[(((self.top - logit) / self.width) as usize).min(BINS - 1)];
        bin.count += share;
        bin.amount += share * amount;
        bin.squares += share * share * amount * amount;
    }

    /// Brackets the cut behind which an amount of `dropped` lies.
    pub(super) fn bracket(&self, dropped: u64) -> Bracket {
        let dropped = dropped as f64;
        let edge = |bin: usize| self.top - bin as f32 * self.width;
        let (mut amount, mut squares, mut count) = (0.0, 0.0, 0.0);
        let (mut low, mut high) = (f32::MIN, None);
        for (index, bin) in self.bins.iter().enumerate().rev() {
            amount += bin.amount;
            squares += bin.squares;
            count += bin.count;
            let doubt = CAUTION * f64::sqrt(squares);
            if amount + doubt <= dropped {
                low = edge(index);
                count = 0.0;
            }
            if amount - doubt >= dropped {
                high = high.or(Some(edge(index)));
            }
        }
        let high = high.unwrap_or(f32::INFINITY);
        Bracket {
            band: Band { low, high },
            count: count as usize,
        }
    }
}
