//! Which tokens may be drawn at all, and their bias.

use super::table::IdTable;
use crate::config::Flags;
use crate::row::Row;

/// Sets up to this size are lists; larger ones stay spread over the row.
pub(super) const LISTED: usize = 4096;

/// How the tokens that are allowed are best written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All but a few.
    MostOfRow,
    /// Those that a mask or a long list allows.
    PartOfRow,
    /// Few enough for a list.
    Few,
}

/// The masks of a row.
pub(super) struct Masks<'a> {
    row: &'a Row<'a>,
    /// Number of logits.
    len: usize,
    /// Ids forbidden one by one.
    forbidden: &'a IdTable,
}

impl<'a> Masks<'a> {
    /// The masks of a row of `len` logits; `forbidden` is working space.
    pub(super) fn new(row: &'a Row<'a>, len: usize, forbidden: &'a mut IdTable) -> Self {
        forbidden.clear();
        let tables = row.params.tables();
        if eos_is_banned(row) {
            tables
                .eos
                .iter()
                .for_each(|id| *forbidden.get_or_insert(*id, 0) = 0);
        }
        let history = history_of_bad_words(row);
        for word in &tables.bad_words {
            if let Some((last, others)) = word.split_last()
                && history.ends_with(others)
            {
                forbidden.get_or_insert(*last, 0);
            }
        }
        Self {
            row,
            len,
            forbidden,
        }
    }

    /// How many tokens are allowed, roughly.
    pub(super) fn scope(&self) -> Scope {
        let listed = self.row.params.tables().allowed.as_ref().map(Vec::len);
        let masked = self.row.mask.map(|mask| {
            self.words(mask)
                .map(|word| word.count_ones() as usize)
                .sum()
        });
        match listed.into_iter().chain(masked).min() {
            None => Scope::MostOfRow,
            Some(count) if count <= LISTED => Scope::Few,
            Some(_) => Scope::PartOfRow,
        }
    }

    /// The words of the bit mask, if nothing but them and single ids is forbidden.
    pub(super) fn only_words(&self) -> Option<impl Iterator<Item = u32> + use<'a>> {
        let unlisted = self.row.params.tables().allowed.is_none();
        self.row
            .mask
            .filter(|_| unlisted)
            .map(|mask| self.words(mask))
    }

    /// The words of a bit mask that cover the row.
    fn words(&self, mask: &'a [u32]) -> impl Iterator<Item = u32> + use<'a> {
        let whole = self.len / 32;
        let rest = (1u32 << (self.len % 32)) - 1;
        let keep =
            move |(index, word): (usize, &u32)| if index < whole { *word } else { word & rest };
        mask.iter()
            .take(self.len.div_ceil(32))
            .enumerate()
            .map(keep)
    }

    /// Calls `visit` with every allowed id, ascending.
    pub(super) fn each_allowed(&self, mut visit: impl FnMut(u32)) {
        let mut visit = |id: u32| {
            if (id as usize) < self.len && self.forbidden.get(id).is_none() {
                visit(id);
            }
        };
        match (&self.row.params.tables().allowed, self.row.mask) {
            (None, None) => (0..self.len as u32).for_each(visit),
            (Some(ids), None) => ids.iter().for_each(|id| visit(*id)),
            (Some(ids), Some(mask)) => ids
                .iter()
                .filter(|id| bit(mask, **id))
                .for_each(|id| visit(*id)),
            (None, Some(mask)) => {
                for (first, word) in (0..).step_by(32).zip(self.words(mask)) {
                    ones(word).for_each(|bit| visit(first + bit));
                }
            }
        }
    }

    /// Ids forbidden one by one, for a row of which everything else is allowed.
    pub(super) fn forbidden(&self) -> impl Iterator<Item = u32> {
        let entries = self.forbidden.entries().iter();
        entries
            .map(|entry| entry.id)
            .filter(|id| (*id as usize) < self.len)
    }
}

/// Bit `id` of a mask, least significant bit first; missing words forbid.
fn bit(mask: &[u32], id: u32) -> bool {
    mask.get(id as usize / 32)
        .is_some_and(|word| word >> (id % 32) & 1 == 1)
}

/// The places of the ones of a word, ascending.
fn ones(mut word: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let place = (word != 0).then(|| word.trailing_zeros());
        word &= word.wrapping_sub(1);
        place
    })
}

fn eos_is_banned(row: &Row<'_>) -> bool {
    let config = row.params.config();
    config.flags & Flags::IGNORE_EOS != 0 || row.state.position() < config.min_tokens
}

fn history_of_bad_words<'a>(row: &Row<'a>) -> &'a [u32] {
    if row.params.config().flags & Flags::BAD_WORDS_OUTPUT_ONLY != 0 {
        row.state.output()
    } else {
        row.state.tokens()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_are_found_from_the_lowest() {
        assert_eq!(ones(0x8000_0015).collect::<Vec<_>>(), [0, 2, 4, 31]);
        assert_eq!(ones(0).count(), 0);
    }

    #[test]
    fn missing_words_forbid() {
        assert!(bit(&[2], 1) && !bit(&[2], 0) && !bit(&[2], 33));
    }
}
