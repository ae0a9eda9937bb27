//! The cut behind a beginning of a wide set's order, looked for within a band of logits.
//!
//! One pass sums what lies above the band, block by block, and packs the logits within; the cut is found among those. They are packed by
//! id, so a logit's place says which of two equals comes first.

use super::classes::Classes;
use super::kernels::{BLOCK, Band, Beginning, ROOM};
use super::key::Key;
use super::prefix::{Goal, Measure, measure};
use super::view::Cut;
use super::wide::Wide;

/// The most tokens within a band.
const WITHIN: usize = 1 << 15;

/// The logits within a band, and working space.
#[derive(Clone, Debug, Default)]
pub(super) struct Within {
    /// The logits, and room for another block's.
    logits: Vec<f32>,
    /// Where those of each block end.
    ends: Vec<u32>,
    /// Their measures.
    amounts: Vec<u64>,
    near: Vec<(Key, u64)>,
}

/// What lies above a band.
#[derive(Clone, Copy, Debug)]
struct Above {
    band: Band,
    /// Measured as the goal is.
    amount: u64,
    count: usize,
}

impl Wide<'_> {
    /// Cuts within a band, if the cut is there.
    pub(super) fn cut_in_band(&mut self, band: Band, goal: Goal) -> bool {
        let before = self.cut();
        let mut sums = self.take_sums();
        let mut within = std::mem::take(&mut self.buffers().within);
        let above = self.take_apart(band, goal.measure, &mut sums, &mut within);
        let found = above.and_then(|above| self.cut_behind(above, goal, &mut sums, &mut within));
        self.buffers().within = within;
        self.put_sums(sums);
        match found {
            Some((cut, count)) => self.cut_to(cut, count, goal.measure),
            None => self.restore(before),
        }
        found.is_some()
    }

    /// Leaves what the blocks hold above a band in `sums` and the logits within it in `within`. `None` if there are too many.
    fn take_apart(
        &self,
        band: Band,
        measure: Measure,
        sums: &mut Vec<u64>,
        within: &mut Within,
    ) -> Option<Above> {
        let view = self.view();
        let mut buffer = [0.0; BLOCK];
        let mut above = Above {
            band,
            amount: 0,
            count: 0,
        };
        let mut len = 0;
        within.logits.resize(WITHIN + ROOM, 0.0);
        within.ends.clear();
        sums.clear();
        for (index, max) in self.maxima().iter().enumerate() {
            let mut here = Beginning::default();
            if *max >= band.low {
                let room = within.logits[len..].first_chunk_mut()?;
                here = match measure {
                    Measure::Mass(scale) => view.weigh_from(index, scale, band, room),
                    Measure::Count => {
                        let block = view.block(index, &mut buffer);
                        let count = self.simd.count(block, band.high);
                        Beginning {
                            mass: u64::from(count),
                            count,
                            within: self.simd.pack(block, band, room),
                        }
                    }
                };
            }
            above.amount += here.mass;
            above.count += here.count as usize;
            len += here.within as usize;
            sums.push(here.mass);
            within.ends.push(len as u32);
            if len > WITHIN {
                return None;
            }
        }
        Some(above)
    }

    /// The cut among the logits of a band and the number of tokens before it; adds what the band holds of those to the blocks' sums.
    fn cut_behind(
        &self,
        above: Above,
        goal: Goal,
        sums: &mut [u64],
        within: &mut Within,
    ) -> Option<(Cut, usize)> {
        let band = above.band;
        let missing = goal.target.checked_sub(above.amount).filter(|m| *m > 0)?;
        let Within {
            logits,
            ends,
            amounts,
            near,
        } = within;
        let logits = &logits[..*ends.last()? as usize];
        measure(self.simd, goal.measure, logits, amounts);
        let classes = Classes::between(band.low, band.high.min(self.max));
        let last = classes.crossing(logits, amounts, missing, near)?;
        let count = sum_up_to(last, logits, amounts);
        let mut before = 0;
        for (sum, end) in sums.iter_mut().zip(&*ends) {
            let up_to = end.checked_sub(1).map_or(0, |last| amounts[last as usize]);
            *sum += up_to - before;
            before = up_to;
        }
        let cut = Cut {
            logit: last.logit(),
            id: self.id_at(last.id(), band, ends),
        };
        Some((cut, above.count + count))
    }

    /// The token of a place among those within a band.
    fn id_at(&self, place: u32, band: Band, ends: &[u32]) -> u32 {
        let index = ends.partition_point(|end| *end <= place);
        let first = index.checked_sub(1).map_or(0, |previous| ends[previous]);
        let mut buffer = [0.0; BLOCK];
        let block = self.view().block(index, &mut buffer);
        let inside = |logit: f32| logit >= band.low && logit < band.high;
        let mut ids = (0..).zip(block).filter(|(_, logit)| inside(**logit));
        let id = ids.nth((place - first) as usize).map_or(0, |(id, _)| id);
        (index * BLOCK) as u32 + id
    }
}

/// Replaces amounts by the sums of those up to the last in the order, by place; the number of these.
fn sum_up_to(last: Key, logits: &[f32], amounts: &mut [u64]) -> usize {
    let (mut sum, mut count) = (0, 0);
    for (place, (logit, amount)) in (0..).zip(logits.iter().zip(amounts)) {
        let kept = *logit > last.logit() || (*logit == last.logit() && place <= last.id());
        sum += if kept { *amount } else { 0 };
        count += usize::from(kept);
        *amount = sum;
    }
    count
}
