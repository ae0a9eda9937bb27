//! A map from token ids to numbers that is cleared at the cost of its contents.

/// An open-addressed hash table with its entries in order of insertion.
#[derive(Clone, Debug, Default)]
pub(super) struct IdTable {
    /// Place of an entry plus 1; 0 is free. A power of two, at least twice the number of entries.
    slots: Vec<u32>,
    entries: Vec<Entry>,
}

/// A token and its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) id: u32,
    pub(super) value: u32,
}

impl IdTable {
    /// The entries, in order of insertion.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Forgets every entry.
    pub(super) fn clear(&mut self) {
        let mask = self.slots.len().wrapping_sub(1);
        for entry in self.entries.drain(..) {
            let mut slot = start(entry.id) & mask;
            // An entry lies between its start and the next free slot; those before it are freed already or will be.
            while self.slots[slot] != 0 {
                self.slots[slot] = 0;
                slot = (slot + 1) & mask;
            }
        }
    }

    /// The number of a token.
    pub(super) fn get(&self, id: u32) -> Option<u32> {
        let place = *self.slots.get(self.slot(id)?)?;
        Some(self.entries.get(place.checked_sub(1)? as usize)?.value)
    }

    /// The number of a token, to be changed; a token without one gets `initial`.
    pub(super) fn get_or_insert(&mut self, id: u32, initial: u32) -> &mut u32 {
        if self.slots.len() < 2 * (self.entries.len() + 1) {
            self.grow();
        }
        let slot = self.slot(id).unwrap_or(0);
        let mut place = self.slots[slot] as usize;
        if place == 0 {
            self.entries.push(Entry { id, value: initial });
            place = self.entries.len();
            self.slots[slot] = place as u32;
        }
        &mut self.entries[place - 1].value
    }

    /// Replaces every number.
    pub(super) fn replace(&mut self, new: impl Fn(u32) -> u32) {
        self.entries
            .iter_mut()
            .for_each(|entry| entry.value = new(entry.value));
    }

    /// The slot of a token, or the free one where it belongs. `None` if there are no slots.
    fn slot(&self, id: u32) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = start(id) & mask;
        loop {
            match (self.slots[slot] as usize).checked_sub(1) {
                Some(place) if self.entries[place].id != id => slot = (slot + 1) & mask,
                _ => return Some(slot),
            }
        }
    }

    fn grow(&mut self) {
        let capacity = (self.slots.len() * 2).max(64);
        self.slots.clear();
        self.slots.resize(capacity, 0);
        for place in 0..self.entries.len() {
            let slot = self.slot(self.entries[place].id).unwrap_or(0);
            self.slots[slot] = place as u32 + 1;
        }
    }
}

/// Where the search for a token starts: the high bits of a multiplicative hash (Knuth, TAOCP 3, 6.4).
fn start(id: u32) -> usize {
    (id.wrapping_mul(0x9E37_79B1) >> 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_their_numbers() {
        let mut table = IdTable::default();
        assert_eq!(table.get(5), None);
        for id in (0..3000).chain(1000..2000) {
            *table.get_or_insert(id * 7, 0) += 1;
        }
        let number = |id: u32| table.get(id * 7);
        assert_eq!(
            (number(0), number(999), number(1000), number(2999)),
            (Some(1), Some(1), Some(2), Some(1))
        );
        assert_eq!((table.get(1), table.entries().len()), (None, 3000));
    }

    #[test]
    fn a_cleared_table_is_empty() {
        let mut table = IdTable::default();
        (0..1000).for_each(|id| *table.get_or_insert(id, 3) += id);
        table.clear();
        assert!(table.entries().is_empty());
        assert!((0..1000).all(|id| table.get(id).is_none()));
        assert!(table.slots.iter().all(|slot| *slot == 0));
        assert_eq!(*table.get_or_insert(4, 8), 8);
    }
}
