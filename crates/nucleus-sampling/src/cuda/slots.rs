//! Sequences whose history and running values stay on the device.

use crate::config::CompiledParams;
use crate::row::LogprobsMode;
use crate::state::SamplerState;

use super::device::{Buffer, Stream};
use super::error::CudaError;
use super::layout::SamplingSlot;

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

/// A slot that a queued row commits to, for the sequence that it has then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grown {
    slot: usize,
    given: u64,
}

/// The slots of a sampler.
#[derive(Debug)]
pub(super) struct Slots {
    /// Tokens of each slot.
    capacity: u32,
    /// The length of each slot's history, no less than it is; `None`: the slot is free.
    lens: Vec<Option<u32>>,
    /// How often each slot was given to a sequence.
    given: Vec<u64>,
    pub(super) states: Buffer<SamplingSlot>,
    pub(super) tokens: Buffer<u32>,
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self {
            capacity: 0,
            lens: Vec::new(),
            given: Vec::new(),
            states: Buffer::new(),
            tokens: Buffer::new(),
        }
    }

    /// Makes room for `count` slots of `capacity` tokens; all are free afterwards.
    pub(super) fn reserve(&mut self, count: u32, capacity: u32) -> Result<(), CudaError> {
        self.states.reserve(count as usize)?;
        self.tokens.reserve(count as usize * capacity as usize)?;
        self.lens = vec![None; count as usize];
        self.given = vec![0; count as usize];
        self.capacity = capacity;
        Ok(())
    }

    /// The length of a slot's history.
    pub(super) fn len(&self, slot: u32) -> Result<u32, CudaError> {
        self.lens
            .get(slot as usize)
            .copied()
            .flatten()
            .ok_or_else(|| self.unknown(slot))
    }

    fn unknown(&self, slot: u32) -> CudaError {
        CudaError::Batch {
            field: "slot",
            value: u64::from(slot),
            range: format!("one of {} slots that holds a sequence", self.lens.len()),
        }
    }

    /// Where a slot's tokens begin.
    fn offset(&self, slot: u32) -> usize {
        slot as usize * self.capacity as usize
    }

    /// Refuses a commit to a slot without room.
    pub(super) fn check_room(&self, slot: u32) -> Result<(), CudaError> {
        let len = self.len(slot)?;
        if len < self.capacity {
            return Ok(());
        }
        Err(CudaError::Batch {
            field: "slot length",
            value: u64::from(len) + 1,
            range: format!("at most {}", self.capacity),
        })
    }

    /// Follows a commit that is queued.
    pub(super) fn grew(&mut self, slot: u32) -> Grown {
        let slot = slot as usize;
        if let Some(Some(len)) = self.lens.get_mut(slot) {
            *len += 1;
        }
        Grown {
            slot,
            given: self.given[slot],
        }
    }

    /// A commit that was queued did not come about: there was no token.
    pub(super) fn did_not_grow(&mut self, Grown { slot, given }: Grown) {
        if let (Some(Some(len)), true) = (
            self.lens.get_mut(slot),
            self.given.get(slot) == Some(&given),
        ) {
            *len -= 1;
        }
    }

    pub(super) fn restore(
        &mut self,
        slot: u32,
        state: &SamplerState,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.describe(slot, state, stream)?;
        let (at, all) = (self.offset(slot), self.lens.len() * self.capacity as usize);
        self.tokens.write_at(at, state.tokens(), all, stream)
    }

    /// Gives a slot the running values of a state whose tokens it already has.
    pub(super) fn describe(
        &mut self,
        slot: u32,
        state: &SamplerState,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let count = self.lens.len();
        if slot as usize >= count {
            return Err(CudaError::Batch {
                field: "slot",
                value: u64::from(slot),
                range: format!("below {count}, the number of slots"),
            });
        }
        let len = state.tokens().len();
        if len > self.capacity as usize {
            return Err(CudaError::Batch {
                field: "slot length",
                value: len as u64,
                range: format!("at most {}", self.capacity),
            });
        }
        let running = state.running();
        let described = SamplingSlot {
            tokens: self.offset(slot) as u64,
            adaptive_sum: running.adaptive_sum,
            adaptive_weight: running.adaptive_weight,
            capacity: self.capacity,
            len: len as u32,
            prompt_len: state.prompt().len() as u32,
            ahead: running.ahead,
            choice: state.choice(),
            attempt: state.attempt(),
            mirostat_mu: running.mirostat_mu,
            reserved: 0,
        };
        self.states
            .write_at(slot as usize, &[described], count, stream)?;
        self.lens[slot as usize] = Some(len as u32);
        self.given[slot as usize] += 1;
        Ok(())
    }

    /// Copies a slot's tokens to another.
    pub(super) fn copy(&mut self, from: u32, to: u32, stream: &Stream) -> Result<(), CudaError> {
        let len = self.len(from)? as usize;
        if to as usize >= self.lens.len() {
            return Err(self.unknown(to));
        }
        self.tokens
            .copy_within(self.offset(from), self.offset(to), len, stream)
    }

    pub(super) fn free(&mut self, slot: u32) {
        if let Some(len) = self.lens.get_mut(slot as usize) {
            *len = None;
        }
    }
}
