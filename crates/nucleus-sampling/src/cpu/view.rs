//! A row as the stages see it: in f32, with edits applied and removed tokens at -inf, one block at a time.

use std::ops::Range;

use half::{bf16, f16};

use super::flaws::Flaws;
use super::kernels::{self, BLOCK, Band, Beginning, Block, Room, Scale};
use super::key::Key;
use super::overlay::{Edit, Overlay};
use super::simd::Simd;
use crate::row::LogitsRow;

/// The last token kept of a row: those with a higher logit are kept too, and those with the same logit up to this id.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cut {
    pub(super) logit: f32,
    pub(super) id: u32,
}

impl Cut {
    /// Every token that reaches a logit.
    pub(super) const fn at(logit: f32) -> Self {
        Self {
            logit,
            id: u32::MAX,
        }
    }

    /// The one that keeps less.
    pub(super) fn tighter(self, other: Option<Self>) -> Self {
        let key = |cut: Self| Key::new(cut.logit, cut.id);
        other
            .filter(|other| key(*other) < key(self))
            .unwrap_or(self)
    }
}

/// Logits, what replaces some of them, and where they are cut.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) simd: Simd,
    pub(super) logits: LogitsRow<'a>,
    pub(super) edits: Option<&'a Overlay>,
    pub(super) cut: Option<Cut>,
}

/// A block in the row's type.
enum Whole<'a> {
    F32(&'a Block),
    F16(&'a [f16; BLOCK]),
    Bf16(&'a [bf16; BLOCK]),
}

impl<'a> View<'a> {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.logits.len().div_ceil(BLOCK)
    }

    /// The ids of a block.
    fn ids(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.logits.len().min((block + 1) * BLOCK)
    }

    /// The sum of a block's weights. The block's largest exponent is at least `depth` below the scale's.
    pub(super) fn weigh(&self, index: usize, scale: Scale, depth: i32) -> u64 {
        let simd = self.simd;
        match self.as_it_came(index) {
            Some(Whole::F32(block)) => simd.weigh(block, scale, depth),
            Some(Whole::F16(block)) => simd.weigh_f16(block, scale, depth),
            Some(Whole::Bf16(block)) => simd.weigh_bf16(block, scale, depth),
            None => simd.weigh(self.block(index, &mut [0.0; BLOCK]), scale, depth),
        }
    }

    /// What a block holds from the upper end of a band on; see [`kernels::weigh_from`].
    pub(super) fn weigh_from(
        &self,
        index: usize,
        scale: Scale,
        band: Band,
        within: &mut Room,
    ) -> Beginning {
        let simd = self.simd;
        match self.as_it_came(index) {
            Some(Whole::F32(block)) => simd.weigh_from(block, scale, band, within),
            Some(Whole::F16(block)) => simd.weigh_from_f16(block, scale, band, within),
            Some(Whole::Bf16(block)) => simd.weigh_from_bf16(block, scale, band, within),
            None => {
                let mut buffer = [0.0; BLOCK];
                let block = self.block(index, &mut buffer);
                simd.weigh_from(block, scale, band, within)
            }
        }
    }

    /// A block that is whole and that nothing changes.
    #[inline]
    fn as_it_came(&self, index: usize) -> Option<Whole<'a>> {
        if self.cut.is_some() || !self.edits_of(index).is_empty() {
            return None;
        }
        match self.logits {
            LogitsRow::F32(row) => row.as_chunks().0.get(index).map(Whole::F32),
            LogitsRow::F16(row) => row.as_chunks().0.get(index).map(Whole::F16),
            LogitsRow::Bf16(row) => row.as_chunks().0.get(index).map(Whole::Bf16),
        }
    }

    fn edits_of(&self, block: usize) -> &'a [Edit] {
        self.edits.map_or(&[], |edits| edits.of_block(block))
    }

    /// A block, read in place where nothing changes it, else made in `buffer`.
    pub(super) fn block<'b>(&self, index: usize, buffer: &'b mut Block) -> &'b Block
    where
        'a: 'b,
    {
        if let Some(Whole::F32(block)) = self.as_it_came(index) {
            return block;
        }
        self.copy(index, buffer);
        for edit in self.edits_of(index) {
            buffer[edit.id as usize % BLOCK] = edit.logit;
        }
        if let Some(cut) = self.cut {
            self.clip(index, cut, buffer);
        }
        buffer
    }

    fn copy(&self, index: usize, buffer: &mut Block) {
        let ids = self.ids(index);
        let (head, tail) = buffer.split_at_mut(ids.len());
        match self.logits {
            LogitsRow::F32(row) => head.copy_from_slice(&row[ids]),
            LogitsRow::F16(row) => self.simd.widen_f16(&row[ids], head),
            LogitsRow::Bf16(row) => self.simd.widen_bf16(&row[ids], head),
        }
        tail.fill(f32::NEG_INFINITY);
    }

    /// Puts what the cut removes at -inf.
    fn clip(&self, index: usize, cut: Cut, buffer: &mut Block) {
        let ids = self.ids(index);
        let above = (cut.logit + 0.0).next_up();
        if ids.end <= cut.id as usize + 1 {
            self.simd.clip(buffer, cut.logit);
        } else if ids.start > cut.id as usize {
            self.simd.clip(buffer, above);
        } else {
            let (up_to, beyond) = buffer.split_at_mut(cut.id as usize + 1 - ids.start);
            let lower = |logits: &mut [f32], threshold: f32| {
                let below = logits.iter_mut().filter(|logit| **logit < threshold);
                below.for_each(|logit| *logit = f32::NEG_INFINITY);
            };
            lower(up_to, cut.logit);
            lower(beyond, above);
        }
    }

    /// Logits of a block from a place on, neither edited nor cut; -inf beyond the row.
    pub(super) fn sample<const N: usize>(&self, block: usize, place: usize) -> [f32; N] {
        let ids = self.ids(block);
        let first = (ids.start + place).min(ids.end);
        let mut sample = [f32::NEG_INFINITY; N];
        // So few are widened in place sooner than by a call.
        match self.logits {
            LogitsRow::F32(row) if let Some(whole) = row[first..].first_chunk() => return *whole,
            LogitsRow::F16(row) if let Some(whole) = row[first..].first_chunk::<N>() => {
                kernels::widen_f16(whole, &mut sample);
                return sample;
            }
            LogitsRow::Bf16(row) if let Some(whole) = row[first..].first_chunk::<N>() => {
                kernels::widen_bf16(whole, &mut sample);
                return sample;
            }
            _ => {}
        }
        let ids = first..ids.end.min(first + N);
        let head = &mut sample[..ids.len()];
        match self.logits {
            LogitsRow::F32(row) => head.copy_from_slice(&row[ids]),
            LogitsRow::F16(row) => self.simd.widen_f16(&row[ids], head),
            LogitsRow::Bf16(row) => self.simd.widen_bf16(&row[ids], head),
        }
        sample
    }

    /// Reads every block once and leaves the maximum of each in `maxima`.
    pub(super) fn scan(&self, maxima: &mut Vec<f32>) -> Scan {
        maxima.clear();
        maxima.resize(self.blocks(), f32::NEG_INFINITY);
        let plain = self.edits.is_none() && self.cut.is_none();
        let whole = if plain { self.logits.len() / BLOCK } else { 0 };
        let extent = match self.logits {
            LogitsRow::F32(row) => self.simd.scan_f32(&row.as_chunks().0[..whole], maxima),
            LogitsRow::F16(row) => self.simd.scan_f16(&row.as_chunks().0[..whole], maxima),
            LogitsRow::Bf16(row) => self.simd.scan_bf16(&row.as_chunks().0[..whole], maxima),
        };
        let mut scan = Scan {
            max: extent.max,
            flaws: Flaws {
                nan: extent.nan,
                infinity: extent.max == f32::INFINITY,
            },
            holes: extent.min == f32::NEG_INFINITY,
        };
        for (index, max) in maxima.iter_mut().enumerate().skip(whole) {
            let block = self.scan_block(index);
            *max = block.max;
            scan.max = block.max.max(scan.max);
            scan.flaws |= block.flaws;
            scan.holes |= block.holes;
        }
        scan
    }

    /// What a scan finds in one block.
    pub(super) fn scan_block(&self, index: usize) -> Scan {
        let mut buffer = [0.0; BLOCK];
        let block = self.block(index, &mut buffer);
        let extent = self.simd.extent(block);
        // What fills up the last block is no hole.
        let holes = extent.min == f32::NEG_INFINITY
            && self.simd.count(block, f32::MIN) < self.ids(index).len() as u32;
        let flaws = Flaws {
            nan: extent.nan,
            infinity: extent.max == f32::INFINITY,
        };
        Scan {
            max: extent.max,
            flaws,
            holes,
        }
    }
}

/// What one reading of a row finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scan {
    /// The largest logit, NaNs apart.
    pub(super) max: f32,
    pub(super) flaws: Flaws,
    /// Whether there is a -inf.
    pub(super) holes: bool,
}
