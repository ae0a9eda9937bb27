//! A set of candidates spread over a whole row: all of it, or what a cut leaves.

use super::band::Within;
use super::flaws::Flaws;
use super::kernels::{BLOCK, Band, Block, Scale, WEIGHTLESS};
use super::key::{self, Key};
use super::masks::LISTED;
use super::overlay::Overlay;
use super::prefix::{Measure, Scratch};
use super::simd::Simd;
use super::view::{Cut, Scan, View};
use crate::fixed::{self, SCALED_LIMIT, Spread, Surprise};
use crate::row::{LogitsRow, Status};

/// Memory that outlives the row.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    /// The row, once stages have changed all of it: whole blocks, removed tokens at -inf.
    pub(super) dense: Vec<f32>,
    /// The next such copy.
    pub(super) next: Vec<f32>,
    pub(super) overlay: Overlay,
    /// Maxima of the blocks of the row as it came.
    pub(super) raw_maxima: Vec<f32>,
    /// Upper bounds of the blocks' maxima; without a cut the maxima themselves.
    pub(super) maxima: Vec<f32>,
    /// Sums of the blocks' weights.
    pub(super) sums: Vec<u64>,
    /// The same for the row as it came.
    raw_sums: Vec<u64>,
    /// Measures by the first bits of the order.
    pub(super) amounts: Vec<u64>,
    /// Working space of cuts.
    pub(super) within: Within,
    /// Working space of sorts.
    pub(super) spare: Vec<Key>,
    /// Working space of weights.
    pub(super) scratch: Scratch,
    /// Working space of selections.
    pub(super) codes: Vec<u32>,
}

/// The weights of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mass {
    pub(super) scale: Scale,
    /// Z.
    pub(super) total: u64,
}

/// The candidates of a row that are not listed one by one.
pub(super) struct Wide<'a> {
    pub(super) simd: Simd,
    /// Whether cuts may be found by bounds and guesses that are proven afterwards.
    pub(super) shortcuts: bool,
    pub(super) logits: LogitsRow<'a>,
    pub(super) buffers: &'a mut Buffers,
    /// What the row holds as it came, once it has been read.
    pub(super) raw: Option<Scan>,
    /// Whether the set is read from the dense copy.
    pub(super) dense: bool,
    /// Whether the set was read from a dense copy before the last replacement.
    pub(super) was_dense: bool,
    /// Whether edits wait to be put in order.
    pub(super) unsettled: bool,
    /// The largest logit; -inf without candidates.
    pub(super) max: f32,
    pub(super) cut: Option<Cut>,
    /// Number of candidates, once it is known.
    pub(super) count: Option<usize>,
    /// Their weights, as long as neither set nor temperature changes.
    pub(super) mass: Option<Mass>,
}

/// What a stage made of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// It is still spread over the row.
    Wide,
    /// It is small, and its keys are listed in order.
    Listed,
}

/// Fewest tokens a truncation leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Floor {
    /// That many, where there are as many.
    pub(super) min_keep: u64,
    /// And all that equal the last of them.
    pub(super) ties: bool,
}

impl Floor {
    /// That many.
    pub(super) const fn of(min_keep: u64) -> Self {
        Self {
            min_keep,
            ties: false,
        }
    }
}

impl<'a> Wide<'a> {
    /// Every token of a row, which has not been read yet.
    pub(super) fn new(
        simd: Simd,
        shortcuts: bool,
        logits: LogitsRow<'a>,
        buffers: &'a mut Buffers,
    ) -> Self {
        buffers.overlay.clear();
        Self {
            simd,
            shortcuts,
            logits,
            buffers,
            raw: None,
            dense: false,
            was_dense: false,
            unsettled: false,
            max: f32::NEG_INFINITY,
            cut: None,
            count: None,
            mass: None,
        }
    }

    /// What the row holds as it came.
    pub(super) fn raw(&mut self) -> Scan {
        if let Some(scan) = self.raw {
            return scan;
        }
        let view = View {
            simd: self.simd,
            logits: self.logits,
            edits: None,
            cut: None,
        };
        let scan = view.scan(&mut self.buffers.raw_maxima);
        self.raw = Some(scan);
        scan
    }

    /// Working space.
    pub(super) fn buffers(&mut self) -> &mut Buffers {
        self.buffers
    }

    /// Number of logits of the row.
    pub(super) fn row_len(&self) -> usize {
        self.logits.len()
    }

    /// The logit of a token as it came; -inf beyond the row.
    pub(super) fn raw_logit(&self, id: u32) -> f32 {
        let there = (id as usize) < self.logits.len();
        if there {
            logit(self.logits, id)
        } else {
            f32::NEG_INFINITY
        }
    }

    /// The weights of the row as it came.
    pub(super) fn raw_mass(&mut self, scale: Scale) -> Mass {
        let untouched = !self.dense && self.cut.is_none() && self.buffers.overlay.is_empty();
        if let Some(mass) = self.mass.filter(|mass| untouched && mass.scale == scale) {
            return mass;
        }
        let view = View {
            simd: self.simd,
            logits: self.logits,
            edits: None,
            cut: None,
        };
        let total = weigh_blocks(
            view,
            &self.buffers.raw_maxima,
            scale,
            &mut self.buffers.raw_sums,
        );
        Mass { scale, total }
    }

    /// The logit of a token of the set; -inf if it is not in the set. `None` beyond the row.
    pub(super) fn logit(&self, id: u32) -> Option<f32> {
        let block = id as usize / BLOCK;
        let there = (id as usize) < self.logits.len();
        there.then(|| self.view().block(block, &mut [0.0; BLOCK])[id as usize % BLOCK])
    }

    /// The row without what stages removed.
    pub(super) fn view(&self) -> View<'_> {
        let logits = if self.dense {
            LogitsRow::F32(&self.buffers.dense)
        } else {
            self.logits
        };
        let edited = !self.dense && !self.buffers.overlay.is_empty();
        View {
            simd: self.simd,
            logits,
            edits: edited.then_some(&self.buffers.overlay),
            cut: self.cut,
        }
    }

    /// Upper bounds of the blocks' maxima.
    pub(super) fn maxima(&self) -> &[f32] {
        &self.buffers.maxima
    }

    /// Whether the bounds are reached by candidates wherever they lie above the cut.
    pub(super) fn cut(&self) -> Option<Cut> {
        self.cut
    }

    /// The largest logit.
    pub(super) fn max(&self) -> Option<f32> {
        (self.max > f32::NEG_INFINITY).then_some(self.max)
    }

    /// Makes the set of every token of the row, and tells what it holds.
    pub(super) fn begin(&mut self) -> Scan {
        let raw = self.raw();
        self.buffers.maxima.clone_from(&self.buffers.raw_maxima);
        self.max = raw.max + 0.0;
        let whole = !raw.holes && raw.flaws == Flaws::default();
        self.count = whole.then_some(self.logits.len());
        raw
    }

    // Weights and other sums over the set.

    /// The weights at a temperature.
    ///
    /// # Errors
    /// [`Status::Empty`] without candidates; [`Status::Overflow`] if the largest |x s| is 2^22 or more.
    pub(super) fn weigh(&mut self, temperature: f32) -> Result<Mass, Status> {
        let scale = scale_of(self.max(), temperature)?;
        if let Some(mass) = self.mass.filter(|mass| mass.scale == scale) {
            return Ok(mass);
        }
        let mut sums = std::mem::take(&mut self.buffers.sums);
        let total = weigh_blocks(self.view(), self.maxima(), scale, &mut sums);
        self.buffers.sums = sums;
        let mass = Mass { scale, total };
        self.mass = Some(mass);
        Ok(mass)
    }

    /// Sums of the blocks' weights, after [`Wide::weigh`].
    pub(super) fn sums(&self) -> &[u64] {
        &self.buffers.sums
    }

    /// Takes the sums of the blocks' weights, to be changed and put back.
    pub(super) fn take_sums(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.buffers.sums)
    }

    /// Puts the sums of the blocks' weights back.
    pub(super) fn put_sums(&mut self, sums: Vec<u64>) {
        self.buffers.sums = sums;
    }

    /// Number of candidates.
    pub(super) fn count(&mut self) -> usize {
        let lowest = self.cut.map_or(f32::MIN, |cut| cut.logit);
        let count = self.count.unwrap_or_else(|| {
            self.over_blocks(lowest, |block| self.simd.count(block, f32::MIN) as usize)
                .sum()
        });
        self.count = Some(count);
        count
    }

    /// The weights at a temperature, and the sums from which their entropy follows.
    ///
    /// # Errors
    /// As [`Wide::weigh`].
    pub(super) fn surprise(&mut self, temperature: f32) -> Result<(Mass, Surprise), Status> {
        let scale = scale_of(self.max(), temperature)?;
        let mut sums = std::mem::take(&mut self.buffers.sums);
        let mut all = Surprise::default();
        let mut buffer = [0.0; BLOCK];
        sums.clear();
        for (index, max) in self.maxima().iter().enumerate() {
            let block = match scale.depth(*max) {
                WEIGHTLESS.. => Surprise::default(),
                _ => self
                    .simd
                    .surprise(self.view().block(index, &mut buffer), scale),
            };
            sums.push(block.total);
            all.total += block.total;
            all.moment += block.moment;
        }
        self.buffers.sums = sums;
        let mass = Mass {
            scale,
            total: all.total,
        };
        self.mass = Some(mass);
        Ok((mass, all))
    }

    /// The spread of the logits.
    pub(super) fn spread(&self) -> Spread {
        let blocks = self.over_blocks(f32::MIN, |block| self.simd.spread(block, self.max));
        blocks.fold(Spread::default(), |a, b| Spread {
            count: a.count + b.count,
            sum: a.sum + b.sum,
            squares: a.squares + b.squares,
        })
    }

    /// What `f` gives for every block that may hold a candidate of at least `lowest`.
    fn over_blocks<R>(&self, lowest: f32, f: impl Fn(&Block) -> R) -> impl Iterator<Item = R> {
        let blocks = self
            .maxima()
            .iter()
            .enumerate()
            .filter(move |(_, max)| **max >= lowest);
        blocks.map(move |(index, _)| f(self.view().block(index, &mut [0.0; BLOCK])))
    }

    /// Appends the keys of the candidates in a band, by id, until there are more than `limit`. Whether all were appended.
    pub(super) fn gather(&self, band: Band, limit: usize, keys: &mut Vec<Key>) -> bool {
        let view = self.view();
        let mut buffer = [0.0; BLOCK];
        for (index, max) in self.maxima().iter().enumerate() {
            if *max >= band.low {
                let first = (index * BLOCK) as u32;
                self.simd
                    .gather(view.block(index, &mut buffer), band, first, keys);
                if keys.len() > limit {
                    return false;
                }
            }
        }
        true
    }

    /// Lists every finite logit of the row as it came, in order.
    pub(super) fn list_raw(&mut self, keys: &mut Vec<Key>) {
        let view = View {
            simd: self.simd,
            logits: self.logits,
            edits: None,
            cut: None,
        };
        let mut buffer = [0.0; BLOCK];
        for index in 0..view.blocks() {
            let block = view.block(index, &mut buffer);
            self.simd
                .gather(block, Band::from(f32::MIN), (index * BLOCK) as u32, keys);
        }
        key::sort(keys, &mut self.buffers.spare);
    }

    // Truncations.

    /// Takes a cut of which the number of candidates and, in the blocks' sums, their measure are known.
    pub(super) fn cut_to(&mut self, cut: Cut, count: usize, measure: Measure) {
        self.cut = Some(cut);
        self.count = Some(count);
        self.mass = match measure {
            Measure::Count => None,
            Measure::Mass(scale) => Some(Mass {
                scale,
                total: self.buffers.sums.iter().sum(),
            }),
        };
    }

    /// Goes back to the set before the last cut.
    pub(super) fn restore(&mut self, cut: Option<Cut>) {
        self.cut = cut;
        (self.count, self.mass) = (None, None);
    }

    /// Keeps what a cut leaves of the set.
    pub(super) fn keep(&mut self, cut: Cut, keys: &mut Vec<Key>) -> Form {
        self.cut = Some(cut.tighter(self.cut));
        (self.count, self.mass) = (None, None);
        keys.clear();
        if !self.gather(Band::from(cut.logit), LISTED, keys) {
            return Form::Wide;
        }
        key::sort(keys, &mut self.buffers.spare);
        Form::Listed
    }
}

/// The weights' measure for a set with this largest logit.
///
/// # Errors
/// As [`Wide::weigh`].
pub(super) fn scale_of(max: Option<f32>, temperature: f32) -> Result<Scale, Status> {
    let s = fixed::scale(temperature);
    let largest = max.ok_or(Status::Empty)? * s;
    if largest.is_nan() || largest.abs() >= SCALED_LIMIT {
        return Err(Status::Overflow);
    }
    Ok(Scale {
        s,
        max: largest.round_ties_even() as i32,
    })
}

/// Sums the weights of every block of a view into `sums`; `maxima` are upper bounds of the blocks' maxima.
pub(super) fn weigh_blocks(
    view: View<'_>,
    maxima: &[f32],
    scale: Scale,
    sums: &mut Vec<u64>,
) -> u64 {
    sums.clear();
    sums.extend(
        maxima
            .iter()
            .enumerate()
            .map(|(index, max)| match scale.depth(*max) {
                WEIGHTLESS.. => 0,
                depth => view.weigh(index, scale, depth),
            }),
    );
    sums.iter().sum()
}

/// One logit as f32.
pub(super) fn logit(logits: LogitsRow<'_>, id: u32) -> f32 {
    match logits {
        LogitsRow::F32(row) => row[id as usize],
        LogitsRow::F16(row) => row[id as usize].to_f32(),
        LogitsRow::Bf16(row) => row[id as usize].to_f32(),
    }
}
