//! Draws that are queued: which launches they are, and where their tokens arrive on the host.

use std::collections::VecDeque;

use super::device::{Buffer, Stream};
use super::error::{CudaError, check};
use super::layout::DeviceToken;
use super::pinned::{Event, Pinned};
use super::slots::{Grown, SlotRow};
use super::sys;

/// The most draws of a sampler that are queued and not collected.
pub const MAX_QUEUED: usize = 2;

/// A slot's row, and which row of the logits it reads.
#[derive(Clone, Copy, Debug)]
pub struct PlacedRow<'a> {
    /// The row of the logits.
    pub logits_row: u32,
    /// What is drawn from it.
    pub row: SlotRow<'a>,
}

/// Rows of a draw that are one launch: those from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) first: u32,
    pub(super) rows: u32,
    /// The row of logits that the first one reads.
    pub(super) logits_row: u32,
    /// Whether all read that one; else each the one behind that of the row before.
    pub(super) repeated: bool,
}

impl Launch {
    /// Row after row.
    pub(super) const fn all(rows: u32) -> Self {
        Self {
            first: 0,
            rows,
            logits_row: 0,
            repeated: false,
        }
    }
}

/// The launches of rows that read these rows of logits.
pub(super) fn launches(logits_rows: impl Iterator<Item = u32>) -> Vec<Launch> {
    let mut launches: Vec<Launch> = Vec::new();
    for (first, logits_row) in (0..).zip(logits_rows) {
        if let Some(last) = launches.last_mut() {
            let behind = last.logits_row + if last.repeated { 0 } else { last.rows };
            let repeats = logits_row == last.logits_row && (last.repeated || last.rows == 1);
            if repeats || (!last.repeated && logits_row == behind) {
                last.repeated = repeats;
                last.rows += 1;
                continue;
            }
        }
        launches.push(Launch {
            first,
            rows: 1,
            logits_row,
            repeated: false,
        });
    }
    launches
}

/// Tokens on their way to the host, oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    arrivals: [Option<Arrival>; MAX_QUEUED],
    queued: VecDeque<Queued>,
}

/// Where the tokens of a draw arrive.
#[derive(Debug)]
struct Arrival {
    tokens: Pinned<DeviceToken>,
    copied: Event,
}

#[derive(Debug)]
struct Queued {
    place: Place,
    /// For each row, the slot that it commits to.
    grown: Vec<Option<Grown>>,
}

/// Room for the tokens of one draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    arrival: usize,
    rows: usize,
}

impl Queue {
    /// Draws that are queued.
    pub(super) fn len(&self) -> usize {
        self.queued.len()
    }

    /// Room for one more draw, of so many rows.
    pub(super) fn reserve(&mut self, rows: usize) -> Result<Place, CudaError> {
        let is_used = |at: &usize| self.queued.iter().any(|queued| queued.place.arrival == *at);
        let arrival = (0..MAX_QUEUED)
            .find(|at| !is_used(at))
            .expect("the caller has counted");
        let slot = &mut self.arrivals[arrival];
        let place = match slot {
            Some(place) => place,
            None => slot.insert(Arrival {
                tokens: Pinned::new(),
                copied: Event::new()?,
            }),
        };
        place.tokens.reserve(rows)?;
        Ok(Place { arrival, rows })
    }

    /// Queues the copy of a draw's tokens.
    pub(super) fn read(
        &self,
        Place { arrival, rows }: Place,
        tokens: &Buffer<DeviceToken>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let arrival = self.arrivals[arrival].as_ref().expect("it was reserved");
        // SAFETY: both ranges hold `rows` tokens; the host's are not looked at before the event recorded below has come.
        let code = unsafe {
            sys::cudaMemcpyAsync(
                arrival.tokens.address(),
                tokens.address().cast(),
                rows * size_of::<DeviceToken>(),
                sys::DEVICE_TO_HOST,
                stream.raw(),
            )
        };
        check("cudaMemcpyAsync", code)?;
        arrival.copied.record(stream)
    }

    pub(super) fn push(&mut self, place: Place, grown: Vec<Option<Grown>>) {
        self.queued.push_back(Queued { place, grown });
    }

    /// Waits for the oldest draw and takes it out; `None` if there is none. The tokens stay until the next [`Queue::reserve`].
    #[expect(clippy::type_complexity, reason = "two lists of a row each")]
    pub(super) fn wait(
        &mut self,
    ) -> Result<Option<(&[DeviceToken], Vec<Option<Grown>>)>, CudaError> {
        let Some(Queued { place, grown }) = self.queued.pop_front() else {
            return Ok(None);
        };
        let arrival = self.arrivals[place.arrival].as_ref();
        let arrival = arrival.expect("it was reserved");
        arrival.copied.wait()?;
        Ok(Some((arrival.tokens.values(place.rows), grown)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[u32]) -> Vec<(u32, u32, u32, bool)> {
        let launches = launches(rows.iter().copied());
        let tuple = |it: &Launch| (it.first, it.rows, it.logits_row, it.repeated);
        launches.iter().map(tuple).collect()
    }

    #[test]
    fn neighbouring_rows_are_one_launch() {
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[0, 1, 2]), [(0, 3, 0, false)]);
        assert_eq!(of(&[1, 3, 4]), [(0, 1, 1, false), (1, 2, 3, false)]);
    }

    #[test]
    fn rows_of_the_same_logits_are_one_launch() {
        assert_eq!(of(&[2, 2, 2]), [(0, 3, 2, true)]);
        assert_eq!(of(&[0, 1, 1, 2, 3]), [(0, 2, 0, false), (2, 3, 1, false)]);
        assert_eq!(of(&[1, 1, 2]), [(0, 2, 1, true), (2, 1, 2, false)]);
    }

    /// Each row reads the logits that it names, whatever the launches are.
    #[test]
    fn launches_cover_their_rows() {
        for code in 0..4_u32.pow(6) {
            let rows: Vec<u32> = (0..6).map(|digit| code >> (2 * digit) & 3).collect();
            let mut covered = Vec::new();
            for launch in launches(rows.iter().copied()) {
                assert_eq!(launch.first as usize, covered.len());
                let row = |at| launch.logits_row + if launch.repeated { 0 } else { at };
                covered.extend((0..launch.rows).map(row));
            }
            assert_eq!(covered, rows);
        }
    }
}
