//! A row as the stages see it: in f32, with edits applied and removed tokens at -inf, one block at a time.

use std::ops::Range;

use super::kernels::{BLOCK, Block, Extent};
use super::overlay::Overlay;
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
        Self { logit, id: u32::MAX }
    }

    /// Whether a token is kept.
    pub(super) fn keeps(self, logit: f32, id: u32) -> bool {
        logit > self.logit || logit == self.logit && id <= self.id
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

impl<'a> View<'a> {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.logits.len().div_ceil(BLOCK)
    }

    /// The ids of a block.
    fn ids(&self, block: usize) -> Range<usize> {
        block * BLOCK..self.logits.len().min((block + 1) * BLOCK)
    }

    /// A block, read in place where nothing changes it, else made in `buffer`.
    pub(super) fn block<'b>(&self, index: usize, buffer: &'b mut Block) -> &'b Block
    where
        'a: 'b,
    {
        let edits = self.edits.map_or(&[][..], |edits| edits.of_block(index));
        if let (LogitsRow::F32(row), [], None) = (self.logits, edits, self.cut)
            && let Some(block) = row.as_chunks().0.get(index)
        {
            return block;
        }
        self.copy(index, buffer);
        for edit in edits {
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

    /// The maximum of every block, and the extent of the row.
    pub(super) fn scan(&self, maxima: &mut Vec<f32>) -> Extent {
        maxima.clear();
        maxima.resize(self.blocks(), f32::NEG_INFINITY);
        let whole = match (self.logits, self.edits, self.cut) {
            (LogitsRow::F32(row), None, None) => row.as_chunks().0,
            _ => &[],
        };
        let extent = self.simd.scan_f32(whole, maxima);
        (whole.len()..self.blocks()).fold(extent, |extent, index| {
            let (block, len) = self.extent(index);
            maxima[index] = block.max;
            // The filling of the last block is no -inf of the row.
            let min = if len < BLOCK && block.min == f32::NEG_INFINITY { self.tail_min(index) } else { block.min };
            extent.and(Extent { min, ..block })
        })
    }
}
