//! Sequences whose history and running values stay on the device.

use crate::config::CompiledParams;
use crate::row::LogprobsMode;
use crate::state::SamplerState;

use super::device::{Buffer, Stream};
use super::error::CudaError;
use super::layout::{MAX_STOPS, SamplingSlot, stop_bits};
use crate::row::NO_TOKEN;

/// One row whose history is a slot's.
#[derive(Clone, Copy, Debug)]
pub struct SlotRow<'a> {
    /// The slot.
    pub slot: u32,
    /// The request.
    pub params: &'a CompiledParams,
    /// Allowed ids as bits, as [`Row::mask`](crate::Row::mask).
    pub mask: Option<&'a [u32]>,
    /// The uniform number to draw with, instead of the one that seed and position give.
    pub uniform: Option<u64>,
    /// The distribution from which the log-probability is taken.
    pub logprobs: LogprobsMode,
    /// How many of the likeliest tokens of that distribution to tell, at most [`MAX_TOP`](super::MAX_TOP):
    /// [`CudaSampler::collect_with_top`](super::CudaSampler::collect_with_top) has them.
    pub top: u32,
    /// Append the token to the slot's history, where it is chosen; else the slot stays as it is (for warm-up, or to time a launch).
    pub commit: bool,
}

impl<'a> SlotRow<'a> {
    /// A row that is committed, without mask or override.
    pub fn new(slot: u32, params: &'a CompiledParams) -> Self {
        Self {
            slot,
            params,
            mask: None,
            uniform: None,
            logprobs: LogprobsMode::default(),
            top: 0,
            commit: true,
        }
    }
}

/// Where the sequence of a slot ends, as the device is to know. Behind that nothing is drawn: such a row is [`Status::Ended`](crate::Status::Ended),
/// and the slot stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotEnd<'a> {
    /// Ids that end the sequence when they are drawn, at most [`MAX_STOPS`].
    pub stop_ids: &'a [u32],
    /// The most tokens, prompt and output together; `None`: as many as slots have room for.
    pub capacity: Option<u32>,
}

impl SlotEnd<'_> {
    /// The ids as they lie before the slot's tokens.
    fn list(&self) -> [u32; MAX_STOPS] {
        let mut list = [NO_TOKEN; MAX_STOPS];
        list[..self.stop_ids.len()].copy_from_slice(self.stop_ids);
        list
    }
}

/// A slot that a queued row commits to, for the sequence that it has then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grown {
    slot: usize,
    given: u64,
}

/// What the host knows of a slot that has a sequence.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The length of the history, no less than it is.
    len: u32,
    /// The most that it may be.
    capacity: u32,
    /// The bits of the ids that end the sequence.
    stops: u32,
}

/// Words of a slot for so many tokens: the ids that end its sequence, of which the device reads four at a time, then the tokens.
const fn words_each(capacity: u32) -> usize {
    MAX_STOPS + (capacity as usize).next_multiple_of(4)
}

/// The slots of a sampler.
#[derive(Debug)]
pub(super) struct Slots {
    /// Tokens that each slot has room for.
    capacity: u32,
    /// What each slot holds; `None`: it is free.
    held: Vec<Option<Held>>,
    /// How often each slot was given to a sequence.
    given: Vec<u64>,
    pub(super) states: Buffer<SamplingSlot>,
    pub(super) tokens: Buffer<u32>,
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self {
            capacity: 0,
            held: Vec::new(),
            given: Vec::new(),
            states: Buffer::new(),
            tokens: Buffer::new(),
        }
    }

    /// Makes room for `count` slots of `capacity` tokens; all are free afterwards.
    pub(super) fn reserve(&mut self, count: u32, capacity: u32) -> Result<(), CudaError> {
        self.states.reserve(count as usize)?;
        self.tokens.reserve(count as usize * words_each(capacity))?;
        self.held = vec![None; count as usize];
        self.given = vec![0; count as usize];
        self.capacity = capacity;
        Ok(())
    }

    /// The length of a slot's history.
    pub(super) fn len(&self, slot: u32) -> Result<u32, CudaError> {
        Ok(self.held(slot)?.len)
    }

    fn held(&self, slot: u32) -> Result<Held, CudaError> {
        let held = self.held.get(slot as usize).copied().flatten();
        held.ok_or_else(|| self.unknown(slot))
    }

    fn unknown(&self, slot: u32) -> CudaError {
        CudaError::Batch {
            field: "slot",
            value: u64::from(slot),
            range: format!("one of {} slots that holds a sequence", self.held.len()),
        }
    }

    /// Where a slot's tokens begin, behind the ids that end its sequence.
    fn offset(&self, slot: u32) -> usize {
        slot as usize * words_each(self.capacity) + MAX_STOPS
    }

    /// Refuses a commit to a slot without room.
    pub(super) fn check_room(&self, slot: u32) -> Result<(), CudaError> {
        let Held { len, capacity, .. } = self.held(slot)?;
        if len < capacity {
            return Ok(());
        }
        Err(CudaError::Batch {
            field: "slot length",
            value: u64::from(len) + 1,
            range: format!("at most {capacity}"),
        })
    }

    /// Follows a commit that is queued.
    pub(super) fn grew(&mut self, slot: u32) -> Grown {
        let slot = slot as usize;
        if let Some(Some(held)) = self.held.get_mut(slot) {
            held.len += 1;
        }
        Grown {
            slot,
            given: self.given[slot],
        }
    }

    /// A commit that was queued did not come about: there was no token.
    pub(super) fn did_not_grow(&mut self, Grown { slot, given }: Grown) {
        if let (Some(Some(held)), true) = (
            self.held.get_mut(slot),
            self.given.get(slot) == Some(&given),
        ) {
            held.len -= 1;
        }
    }

    /// Gives a slot the tokens and the running values of a state.
    pub(super) fn restore(
        &mut self,
        slot: u32,
        state: &SamplerState,
        end: SlotEnd<'_>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.describe(slot, state, end, stream)?;
        let at = self.offset(slot);
        if end.stop_ids.is_empty() {
            return self.write(at, state.tokens(), stream);
        }
        let words = [end.list().as_slice(), state.tokens()].concat();
        self.write(at - MAX_STOPS, &words, stream)
    }

    /// Lets a slot that has a state's tokens go on from there.
    pub(super) fn go_on(
        &mut self,
        slot: u32,
        state: &SamplerState,
        end: SlotEnd<'_>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.describe(slot, state, end, stream)?;
        if end.stop_ids.is_empty() {
            return Ok(());
        }
        self.write(self.offset(slot) - MAX_STOPS, &end.list(), stream)
    }

    /// Takes a slot back to a state that it has the tokens of; its sequence ends where it did.
    pub(super) fn rewind(
        &mut self,
        slot: u32,
        state: &SamplerState,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let held = self.held(slot)?;
        self.describe_held(slot, state, held, stream)
    }

    /// Gives a slot the running values of a state, and notes where its sequence ends.
    fn describe(
        &mut self,
        slot: u32,
        state: &SamplerState,
        end: SlotEnd<'_>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let count = self.held.len();
        if slot as usize >= count {
            return Err(CudaError::Batch {
                field: "slot",
                value: u64::from(slot),
                range: format!("below {count}, the number of slots"),
            });
        }
        if end.stop_ids.len() > MAX_STOPS {
            return Err(CudaError::Batch {
                field: "stop_ids",
                value: end.stop_ids.len() as u64,
                range: format!("at most {MAX_STOPS}"),
            });
        }
        let capacity = end.capacity.unwrap_or(self.capacity).min(self.capacity);
        let len = state.tokens().len();
        if len > capacity as usize {
            return Err(CudaError::Batch {
                field: "slot length",
                value: len as u64,
                range: format!("at most {capacity}"),
            });
        }
        let held = Held {
            len: len as u32,
            capacity,
            stops: end
                .stop_ids
                .iter()
                .fold(0, |bits, &id| bits | stop_bits(id)),
        };
        self.describe_held(slot, state, held, stream)
    }

    fn describe_held(
        &mut self,
        slot: u32,
        state: &SamplerState,
        held: Held,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let len = state.tokens().len() as u32;
        let running = state.running();
        let described = SamplingSlot {
            tokens: self.offset(slot) as u64,
            adaptive_sum: running.adaptive_sum,
            adaptive_weight: running.adaptive_weight,
            capacity: held.capacity,
            len,
            prompt_len: state.prompt().len() as u32,
            ahead: running.ahead,
            choice: state.choice(),
            attempt: state.attempt(),
            mirostat_mu: running.mirostat_mu,
            stops: held.stops,
        };
        self.states
            .write_at(slot as usize, &[described], self.held.len(), stream)?;
        self.held[slot as usize] = Some(Held { len, ..held });
        self.given[slot as usize] += 1;
        Ok(())
    }

    fn write(&mut self, at: usize, words: &[u32], stream: &Stream) -> Result<(), CudaError> {
        let all = self.held.len() * words_each(self.capacity);
        self.tokens.write_at(at, words, all, stream)
    }

    /// Copies a slot's tokens to another.
    pub(super) fn copy(&mut self, from: u32, to: u32, stream: &Stream) -> Result<(), CudaError> {
        let len = self.len(from)? as usize;
        if to as usize >= self.held.len() {
            return Err(self.unknown(to));
        }
        self.tokens
            .copy_within(self.offset(from), self.offset(to), len, stream)
    }

    pub(super) fn free(&mut self, slot: u32) {
        if let Some(held) = self.held.get_mut(slot as usize) {
            *held = None;
        }
    }
}
