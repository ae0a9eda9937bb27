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
const BINS: usize = 512;

/// How many standard deviations the bracket reaches beyond the estimate on either side.
const CAUTION: f64 = 4.0;

/// What the tokens of a sample in one class hold.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    count: u32,
    amount: u64,
}

/// Classes of the tokens below a logit, each `width` wide, best first.
pub(super) struct Sample {
    bins: [Bin; BINS],
    top: f32,
    width: f32,
    /// How many tokens of the row each token of the sample stands for.
    share: f64,
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
    /// `max` is the set's largest logit: the row may have larger ones that were removed, which have no weight.
    pub(super) fn take(
        view: View<'_>,
        (max, top): (f32, f32),
        measure: Measure,
        scratch: &mut Scratch,
    ) -> Self {
        let blocks = view.blocks();
        let lowest = view.cut.map_or(f32::MIN, |cut| cut.logit);
        scratch.logits.clear();
        for index in 0..blocks {
            let logits: [f32; TAKEN] = view.sample(index, index * 37 % (BLOCK / TAKEN) * TAKEN);
            let inside = |logit| logit >= lowest && logit < top && logit <= max;
            let kept = |logit| {
                if inside(logit) {
                    logit
                } else {
                    f32::NEG_INFINITY
                }
            };
            scratch.logits.extend(logits.map(kept));
        }
        scratch.measure_logits(view.simd, measure);
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for (logit, amount) in scratch.logits.iter().zip(&mut scratch.weights) {
            if *logit > f32::NEG_INFINITY && *amount > 0 {
                low = low.min(*logit);
                high = high.max(*logit);
            } else {
                *amount = 0;
            }
        }
        let width = ((high - low) / BINS as f32).max(f32::MIN_POSITIVE);
        let share = view.logits.len() as f64 / (blocks * TAKEN) as f64;
        let mut sample = Self {
            bins: [Bin::default(); BINS],
            top: high,
            width,
            share,
        };
        sample.classify(&scratch.logits, &scratch.weights);
        sample
    }

    /// Adds tokens, passing over those that hold nothing.
    fn classify(&mut self, logits: &[f32], amounts: &[u64]) {
        let per_width = 1.0 / self.width;
        for (logit, amount) in logits
            .iter()
            .zip(amounts)
            .filter(|(_, amount)| **amount > 0)
        {
            let bin = ((self.top - logit) * per_width) as usize;
            let bin = &mut self.bins[bin.min(BINS - 1)];
            bin.count += 1;
            bin.amount += amount;
        }
    }

    /// Brackets the cut behind which an amount of `dropped` lies.
    pub(super) fn bracket(&self, dropped: u64) -> Bracket {
        let dropped = dropped as f64;
        let edge = |bin: usize| self.top - bin as f32 * self.width;
        let (mut amount, mut squares, mut count) = (0.0, 0.0, 0.0);
        let (mut low, mut high) = (f32::MIN, None);
        for (index, bin) in self.bins.iter().enumerate().rev() {
            let held = self.share * bin.amount as f64;
            // The amounts of a class are about equal, so their mean gives the variance.
            squares += held * held / f64::from(bin.count.max(1));
            amount += held;
            count += self.share * f64::from(bin.count);
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
        // Without a token in the sample the edges are not finite; what is at -inf is no candidate.
        let low = low.max(f32::MIN);
        Bracket {
            band: Band { low, high },
            count: count as usize,
        }
    }
}
