//! Logits that replace those of a row.

use super::kernels::BLOCK;
use super::table::IdTable;

/// A token's logit after the edits so far; -inf removes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Edit {
    pub(super) id: u32,
    pub(super) logit: f32,
    /// The row's own logit.
    pub(super) original: f32,
}

/// Edited logits, first in order of insertion and then by block.
#[derive(Clone, Debug, Default)]
pub(super) struct Overlay {
    /// Place of each token's edit.
    places: IdTable,
    edits: Vec<Edit>,
    /// The edits by block, and where each block's begin; made by [`Overlay::settle`].
    by_block: Vec<Edit>,
    starts: Vec<u32>,
}

impl Overlay {
    /// Forgets every edit.
    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.edits.clear();
        self.by_block.clear();
        self.starts.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The edits, in order of insertion.
    pub(super) fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The edit of a token; one without gets its own logit as `original` gives it.
    pub(super) fn edit(&mut self, id: u32, original: impl FnOnce(u32) -> f32) -> &mut Edit {
        let next = self.edits.len() as u32;
        let place = *self.places.get_or_insert(id, next);
        if place == next {
            let original = original(id);
            self.edits.push(Edit {
                id,
                logit: original + 0.0,
                original,
            });
        }
        &mut self.edits[place as usize]
    }

    /// Puts the edits in order of blocks, of which there are `blocks`.
    pub(super) fn settle(&mut self, blocks: usize) {
        self.starts.clear();
        self.starts.resize(blocks + 1, 0);
        for edit in &self.edits {
            self.starts[edit.id as usize / BLOCK + 1] += 1;
        }
        (0..blocks).for_each(|block| self.starts[block + 1] += self.starts[block]);
        self.by_block.clear();
        self.by_block.extend_from_slice(&self.edits);
        for edit in &self.edits {
            let start = &mut self.starts[edit.id as usize / BLOCK];
            self.by_block[*start as usize] = *edit;
            *start += 1;
        }
        // Each start has moved to the next block's.
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// The edits of a block.
    pub(super) fn of_block(&self, block: usize) -> &[Edit] {
        match (self.starts.get(block), self.starts.get(block + 1)) {
            (Some(start), Some(end)) => &self.by_block[*start as usize..*end as usize],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_found_by_token_and_by_block() {
        let mut overlay = Overlay::default();
        for (id, logit) in [(700, 1.0), (3, 2.0), (255, 3.0), (256, 4.0), (3, 5.0)] {
            overlay.edit(id, |id| id as f32).logit = logit;
        }
        overlay.settle(4);
        let logits = |block| {
            overlay
                .of_block(block)
                .iter()
                .map(|edit| (edit.id, edit.logit))
                .collect::<Vec<_>>()
        };
        assert_eq!(logits(0), [(3, 5.0), (255, 3.0)]);
        assert_eq!(
            (logits(1), logits(2), logits(3)),
            (vec![(256, 4.0)], vec![(700, 1.0)], vec![])
        );
        assert_eq!(overlay.edits().len(), 4);
        assert_eq!(
            overlay.edits()[3],
            Edit {
                id: 256,
                logit: 4.0,
                original: 256.0
            }
        );
        overlay.clear();
        assert!(overlay.is_empty() && overlay.of_block(0).is_empty());
    }
}
