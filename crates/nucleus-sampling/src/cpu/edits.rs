//! Edits of a wide set: masks, bias, penalties, and stages that replace every logit.
//!
//! A few edits are laid over the row; a stage that changes everything, or comes after a cut or a temperature, makes a dense copy.

use super::flaws::Flaws;
use super::history::Changes;
use super::kernels::{BLOCK, Block};
use super::key::{self, Key};
use super::masks::Masks;
use super::wide::{Wide, logit};
use crate::config::Bias;
use crate::row::Status;

impl Wide<'_> {
    /// Applies masks that forbid few tokens, and the bias.
    pub(super) fn bias(&mut self, masks: &Masks<'_>, bias: &[Bias]) -> Result<(), Status> {
        let raw = self.begin();
        let logits = self.logits;
        let own = |id| logit(logits, id);
        let overlay = &mut self.buffers.overlay;
        for bias in bias
            .iter()
            .filter(|bias| (bias.token_id as usize) < logits.len())
        {
            let edit = overlay.edit(bias.token_id, own);
            edit.logit = edit.logit + bias.value + 0.0;
        }
        for id in masks.forbidden() {
            overlay.edit(id, own).logit = f32::NEG_INFINITY;
        }
        self.unsettled = !overlay.is_empty();
        let mut flaws = Flaws::default();
        overlay
            .edits()
            .iter()
            .for_each(|edit| flaws.note(edit.logit));
        if raw.flaws != Flaws::default() {
            // Something is wrong with the row, unless it is wrong only where it is masked.
            self.settle();
            let blocks = 0..self.maxima().len();
            blocks.for_each(|index| flaws |= self.view().scan_block(index).flaws);
        }
        flaws.status()
    }

    /// Lists the few tokens that masks allow, with their bias.
    pub(super) fn pick(
        &mut self,
        masks: &Masks<'_>,
        bias: &[Bias],
        keys: &mut Vec<Key>,
    ) -> Result<(), Status> {
        let mut flaws = Flaws::default();
        masks.each_allowed(|id| {
            let own = logit(self.logits, id);
            let entry = bias.binary_search_by_key(&id, |bias| bias.token_id);
            let logit = entry.map_or(own, |place| own + bias[place].value);
            flaws.note(logit);
            if logit > f32::NEG_INFINITY {
                keys.push(Key::new(logit, id));
            }
        });
        key::sort(keys, &mut self.buffers.spare);
        flaws.status()
    }

    /// Applies masks that forbid much, and the bias.
    pub(super) fn mask(&mut self, masks: &Masks<'_>, bias: &[Bias]) -> Result<(), Status> {
        let logits = self.logits;
        let mut dense = std::mem::take(&mut self.buffers.dense);
        dense.clear();
        dense.resize(logits.len().next_multiple_of(BLOCK), f32::NEG_INFINITY);
        if let Some(words) = masks.only_words() {
            self.copy_allowed(words, &mut dense);
            masks
                .forbidden()
                .for_each(|id| dense[id as usize] = f32::NEG_INFINITY);
        } else {
            masks.each_allowed(|id| dense[id as usize] = logit(logits, id) + 0.0);
        }
        for bias in bias
            .iter()
            .filter(|bias| (bias.token_id as usize) < logits.len())
        {
            dense[bias.token_id as usize] += bias.value;
        }
        self.buffers.dense = dense;
        self.dense = true;
        self.rescan()
    }

    /// Copies the logits whose bits are set.
    fn copy_allowed(&self, mut words: impl Iterator<Item = u32>, dense: &mut [f32]) {
        let mut buffer = [0.0; BLOCK];
        for (index, to) in dense.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let from = self.view().block(index, &mut buffer);
            let places = to
                .as_chunks_mut::<32>()
                .0
                .iter_mut()
                .zip(from.as_chunks::<32>().0);
            for ((to, from), word) in places.zip(&mut words) {
                for (bit, (to, from)) in to.iter_mut().zip(from).enumerate() {
                    *to = if word >> bit & 1 == 1 {
                        from + 0.0
                    } else {
                        f32::NEG_INFINITY
                    };
                }
            }
        }
    }

    /// Changes the logits of some tokens. A temperature other than 1 is divided out first.
    pub(super) fn edit(&mut self, changes: Changes<'_>, temperature: f32) -> Result<(), Status> {
        if self.cut.is_some() || temperature != 1.0 {
            self.rewrite(|from, to| divide(from, temperature, to));
        }
        if self.dense {
            self.edit_dense(changes)
        } else {
            self.edit_overlay(changes)
        }
    }

    fn edit_dense(&mut self, changes: Changes<'_>) -> Result<(), Status> {
        for entry in changes.below(self.logits.len()) {
            let logit = &mut self.buffers.dense[entry.id as usize];
            if *logit > f32::NEG_INFINITY {
                *logit = changes.rule.apply(*logit, entry.value) + 0.0;
            }
        }
        self.rescan()
    }

    fn edit_overlay(&mut self, changes: Changes<'_>) -> Result<(), Status> {
        let logits = self.logits;
        let mut flaws = Flaws::default();
        self.unsettled = true;
        for entry in changes.below(logits.len()) {
            let edit = self.buffers.overlay.edit(entry.id, |id| logit(logits, id));
            if edit.logit > f32::NEG_INFINITY {
                edit.logit = changes.rule.apply(edit.logit, entry.value) + 0.0;
            }
            flaws.note(edit.logit);
        }
        flaws.status()
    }

    /// Replaces every candidate's logit.
    pub(super) fn replace(&mut self, change: impl Fn(&Block, &mut Block)) -> Result<(), Status> {
        self.rewrite(change);
        self.rescan()
    }

    /// Makes a new dense copy, block by block; tokens that are not candidates come and must stay at -inf.
    fn rewrite(&mut self, change: impl Fn(&Block, &mut Block)) {
        self.settle();
        let mut next = std::mem::take(&mut self.buffers.next);
        next.resize(self.maxima().len() * BLOCK, 0.0);
        let mut buffer = [0.0; BLOCK];
        for (index, to) in next.as_chunks_mut().0.iter_mut().enumerate() {
            change(self.view().block(index, &mut buffer), to);
        }
        self.buffers.next = std::mem::replace(&mut self.buffers.dense, next);
        self.was_dense = std::mem::replace(&mut self.dense, true);
        self.cut = None;
    }

    /// The logit that a token had before the last replacement.
    pub(super) fn replaced(&self, id: u32) -> f32 {
        if self.was_dense {
            return self.buffers.next[id as usize];
        }
        let mut edits = self.buffers.overlay.of_block(id as usize / BLOCK).iter();
        let edit = edits.find(|edit| edit.id == id);
        edit.map_or_else(|| logit(self.logits, id), |edit| edit.logit)
    }

    /// Removes tokens of the set, not all of them.
    pub(super) fn remove(&mut self, keys: &[Key]) {
        for key in keys {
            if self.dense {
                self.buffers.dense[key.id() as usize] = f32::NEG_INFINITY;
            } else {
                let logits = self.logits;
                self.buffers
                    .overlay
                    .edit(key.id(), |id| logit(logits, id))
                    .logit = f32::NEG_INFINITY;
            }
        }
        if self.dense {
            // Tokens that were sound before are sound without the others.
            let _ = self.rescan();
        } else {
            self.unsettled = true;
            self.settle();
        }
    }

    /// Reads the dense copy anew.
    fn rescan(&mut self) -> Result<(), Status> {
        let mut maxima = std::mem::take(&mut self.buffers.maxima);
        let scan = self.view().scan(&mut maxima);
        self.buffers.maxima = maxima;
        (self.max, self.count, self.mass) = (scan.max + 0.0, None, None);
        scan.flaws.status()
    }

    /// Puts waiting edits in order and brings the maxima up to date.
    pub(super) fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        let mut maxima = std::mem::take(&mut self.buffers.maxima);
        self.buffers.overlay.settle(maxima.len());
        for (index, max) in maxima.iter_mut().enumerate() {
            *max = self.edited_max(index);
        }
        self.buffers.maxima = maxima;
        self.max = self
            .maxima()
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, f32::max)
            + 0.0;
        let removed = self
            .buffers
            .overlay
            .edits()
            .iter()
            .filter(|edit| edit.logit == f32::NEG_INFINITY);
        let left = self.logits.len() - removed.count();
        let whole = self
            .raw
            .is_some_and(|raw| !raw.holes && raw.flaws == Flaws::default())
            && self.cut.is_none();
        self.count = whole.then_some(left);
        self.mass = None;
    }

    /// The maximum of a block of the edited row. The block is read again only if its largest logit was edited.
    fn edited_max(&self, index: usize) -> f32 {
        let raw = self.buffers.raw_maxima[index];
        let edits = self.buffers.overlay.of_block(index);
        if edits.iter().any(|edit| edit.original == raw) {
            return self.view().scan_block(index).max;
        }
        edits.iter().fold(raw, |max, edit| max.max(edit.logit))
    }
}

/// Divides by a temperature.
pub(super) fn divide(from: &Block, temperature: f32, to: &mut Block) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to = from / temperature + 0.0);
}
