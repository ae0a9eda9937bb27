//! Draws that are queued: which launches they are, and where their tokens arrive on the host.

use std::collections::VecDeque;

use super::device::{Buffer, Stream};
use super::error::{CudaError, check};
use super::layout::{DeviceToken, SamplingLogprob};
use super::pinned::{Event, Pinned};
use super::slots::{Grown, SlotRow};
use super::sys;
use crate::row::{NO_TOKEN, TokenLogprob};

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
    likeliest: Pinned<SamplingLogprob>,
    copied: Event,
}

/// What the host has to know of a row when its token comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueuedRow {
    /// The slot that it commits to.
    pub(super) grown: Option<Grown>,
    /// How many of the likeliest tokens it wants.
    pub(super) top: u32,
}

#[derive(Debug)]
struct Queued {
    place: Place,
    rows: Vec<QueuedRow>,
}

/// Room for what comes of one draw.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    arrival: usize,
    rows: usize,
    /// Likeliest tokens of a row.
    top: usize,
}

/// What has come of a draw.
pub(super) struct Arrived<'a> {
    pub(super) rows: Vec<QueuedRow>,
    pub(super) tokens: &'a [DeviceToken],
    likeliest: &'a [SamplingLogprob],
    top: usize,
}

impl Arrived<'_> {
    /// The likeliest tokens of a row, as many as it wants or there are.
    pub(super) fn likeliest(&self, row: usize) -> impl Iterator<Item = TokenLogprob> {
        let wanted = self.rows[row].top as usize;
        let all = &self.likeliest[row * self.top..][..wanted];
        all.iter()
            .take_while(|entry| entry.token_id != NO_TOKEN)
            .map(|entry| TokenLogprob {
                token_id: entry.token_id,
                logprob: entry.logprob,
            })
    }
}

impl Queue {
    /// Draws that are queued.
    pub(super) fn len(&self) -> usize {
        self.queued.len()
    }

    /// Room for one more draw, of so many rows and likeliest tokens of each.
    pub(super) fn reserve(&mut self, rows: usize, top: usize) -> Result<Place, CudaError> {
        let is_used = |at: &usize| self.queued.iter().any(|queued| queued.place.arrival == *at);
        let arrival = (0..MAX_QUEUED)
            .find(|at| !is_used(at))
            .expect("the caller has counted");
        let slot = &mut self.arrivals[arrival];
        let place = match slot {
            Some(place) => place,
            None => slot.insert(Arrival {
                tokens: Pinned::new(),
                likeliest: Pinned::new(),
                copied: Event::new()?,
            }),
        };
        place.tokens.reserve(rows)?;
        place.likeliest.reserve(rows * top)?;
        Ok(Place { arrival, rows, top })
    }

    /// Queues the copy of a draw's tokens, and of the likeliest ones if any row wants them.
    pub(super) fn read(
        &self,
        Place { arrival, rows, top }: Place,
        tokens: &Buffer<DeviceToken>,
        likeliest: &Buffer<SamplingLogprob>,
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
        if top > 0 {
            // SAFETY: as above, of `rows * top` entries.
            let code = unsafe {
                sys::cudaMemcpyAsync(
                    arrival.likeliest.address(),
                    likeliest.address().cast(),
                    rows * top * size_of::<SamplingLogprob>(),
                    sys::DEVICE_TO_HOST,
                    stream.raw(),
                )
            };
            check("cudaMemcpyAsync", code)?;
        }
        arrival.copied.record(stream)
    }

    pub(super) fn push(&mut self, place: Place, rows: Vec<QueuedRow>) {
        self.queued.push_back(Queued { place, rows });
    }

    /// Waits for the oldest draw and takes it out; `None` if there is none. What has come stays until the next [`Queue::reserve`].
    pub(super) fn wait(&mut self) -> Result<Option<Arrived<'_>>, CudaError> {
        let Some(Queued { place, rows }) = self.queued.pop_front() else {
            return Ok(None);
        };
        let arrival = self.arrivals[place.arrival].as_ref();
        let arrival = arrival.expect("it was reserved");
        arrival.copied.wait()?;
        Ok(Some(Arrived {
            rows,
            tokens: arrival.tokens.values(place.rows),
            likeliest: arrival.likeliest.values(place.rows * place.top),
            top: place.top,
        }))
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
