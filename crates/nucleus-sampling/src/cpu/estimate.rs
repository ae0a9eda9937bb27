//! Where the best tokens' measure probably reaches a target, from a sample of the row.
//!
//! Nothing here decides anything: whoever uses a bracket proves that the cut is in it, and does without where it is not. So f64 is good
//! enough, and edits of the row are not looked at.

use super::kernels::{BLOCK, Band, ROUNDER, WEIGHTLESS};
use super::prefix::{Measure, Scratch};
use super::view::View;

/// Logits taken from each block.
const TAKEN: usize = 8;

/// Classes by logit.
const BINS: usize = 512;

/// The number of the last class.
const LAST_BIN: f32 = (BINS - 1) as f32;

/// How many standard deviations the bracket reaches beyond the estimate on either side.
const CAUTION: f64 = 3.0;

/// What the tokens of a sample in one class hold.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    count: u32,
    amount: u64,
}

/// Classes of the tokens below a logit, each `width` wide, the first around `top`.
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
        scratch.logits.clear();
        for index in 0..blocks {
            let logits: [f32; TAKEN] = view.sample(index, index * 37 % (BLOCK / TAKEN) * TAKEN);
            scratch.logits.extend_from_slice(&logits);
        }
        let lowest = view.cut.map_or(f32::MIN, |cut| cut.logit);
        let weighty = match measure {
            Measure::Mass(scale) => max - WEIGHTLESS as f32 / scale.s,
            Measure::Count => f32::MIN,
        };
        let inside = Band {
            low: lowest.max(weighty),
            high: top.min(max.next_up()),
        };
        let (low, high) = limit(&mut scratch.logits, inside);
        scratch.measure_logits(view.simd, measure);
        let mut sample = Self {
            bins: [Bin::default(); BINS],
            top: high,
            width: ((high - low) / LAST_BIN).max(f32::MIN_POSITIVE),
            share: view.logits.len() as f64 / (blocks * TAKEN) as f64,
        };
        sample.classify(&scratch.logits, &scratch.weights);
        sample
    }

    /// Adds tokens, passing over those at -inf.
    fn classify(&mut self, logits: &[f32], amounts: &[u64]) {
        let per_width = 1.0 / self.width;
        for (logit, amount) in logits.iter().zip(amounts) {
            let there = *logit > f32::NEG_INFINITY;
            let place = (self.top - logit) * per_width;
            let place = if place < LAST_BIN { place } else { LAST_BIN };
            let bin = (place + ROUNDER).to_bits() as usize % BINS;
            self.bins[bin].count += u32::from(there);
            self.bins[bin].amount += if there { *amount } else { 0 };
        }
    }

    /// The highest logit of a class.
    fn edge(&self, bin: usize) -> f32 {
        self.top - (bin as f32 - 0.5) * self.width
    }

    /// Brackets the cut behind which an amount of `dropped` lies.
    pub(super) fn bracket(&self, dropped: u64) -> Bracket {
        let dropped = dropped as f64;
        let (mut amount, mut squares, mut count) = (0.0, 0.0, 0.0);
        let (mut low, mut high) = (f32::MIN, None);
        for (index, bin) in self.bins.iter().enumerate().rev() {
            let held = self.share * bin.amount as f64;
            // The amounts of a class are about equal, so their mean gives the variance.
            squares += held * held / f64::from(bin.count.max(1));
            amount += held;
            count += self.share * f64::from(bin.count);
            let distance = dropped - amount;
            if distance * distance >= CAUTION * CAUTION * squares {
                if distance >= 0.0 {
                    low = self.edge(index);
                    count = 0.0;
                } else {
                    high = high.or(Some(self.edge(index)));
                }
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

/// Puts logits outside a band at -inf; the least and the largest of the others.
fn limit(logits: &mut [f32], band: Band) -> (f32, f32) {
    let mut low = [f32::INFINITY; TAKEN];
    let mut high = [f32::NEG_INFINITY; TAKEN];
    for chunk in logits.as_chunks_mut::<TAKEN>().0 {
        for lane in 0..TAKEN {
            let logit = chunk[lane];
            let there = (logit >= band.low) & (logit < band.high);
            let (least, most) = (low[lane], high[lane]);
            low[lane] = if there && logit < least { logit } else { least };
            high[lane] = if there && logit > most { logit } else { most };
            chunk[lane] = if there { logit } else { f32::NEG_INFINITY };
        }
    }
    (
        low.into_iter().fold(f32::INFINITY, f32::min),
        high.into_iter().fold(f32::NEG_INFINITY, f32::max),
    )
}
