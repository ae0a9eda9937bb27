//! Slots of a device that is a script: it has histories of its own, which nobody but itself appends to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nucleus_sampling::{
    CpuSampler, LogitsRow, NO_TOKEN, Row, SampledToken, Sampler, SamplerState, Status,
};

use super::draw::{Latest, SlotDraw, SlotEnding, SlotSampler};
use super::rows::drawn;
use crate::error::EngineError;
use crate::model::Logits;
use crate::sequence::Drawn;
use crate::testing::{Fault, Faults};

/// The most of the likeliest tokens that the script tells.
const MAX_TOP: u32 = 3;
/// The most ids that end the sequence of a slot.
const MAX_STOPS: usize = 4;

/// A sequence on the device.
#[derive(Clone)]
struct Slot {
    state: SamplerState,
    stop_ids: Vec<u32>,
    capacity: usize,
    ended: bool,
}

/// Draws from the host's logits by the slots' own histories, at once; the tokens are had as late as anybody asks for them.
pub(super) struct ScriptedSlots {
    sampler: CpuSampler,
    slots: Vec<Option<Slot>>,
    queued: VecDeque<Vec<Drawn>>,
    latest: Vec<Option<u32>>,
    capacity: usize,
    faults: Faults,
    /// Rows of sequences that had ended.
    ended: Arc<AtomicU64>,
}

impl ScriptedSlots {
    /// So many slots, of so many tokens each.
    pub(super) fn new(count: usize, capacity: usize, faults: Faults) -> Self {
        Self {
            sampler: CpuSampler::new(),
            slots: vec![None; count],
            queued: VecDeque::new(),
            latest: Vec::new(),
            capacity,
            faults,
            ended: Arc::default(),
        }
    }

    /// How many rows were of sequences that had ended.
    pub(super) fn ended_rows(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.ended)
    }

    fn give(
        &mut self,
        slot: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError> {
        assert!(ending.stop_ids.len() <= MAX_STOPS && ending.capacity <= self.capacity);
        assert!(state.tokens().len() < ending.capacity, "it has ended");
        let slot = &mut self.slots[slot as usize];
        assert!(slot.is_none(), "the slot has a sequence");
        if self
            .faults
            .take_if(|fault| fault == Fault::NoSlot)
            .is_some()
        {
            return Err(EngineError::OutOfMemory("scripted slot".into()));
        }
        *slot = Some(Slot {
            state: state.clone(),
            stop_ids: ending.stop_ids.to_vec(),
            capacity: ending.capacity,
            ended: false,
        });
        Ok(())
    }
}

impl SlotSampler for ScriptedSlots {
    fn restore(
        &mut self,
        slot: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError> {
        self.give(slot, state, ending)
    }

    fn fork(
        &mut self,
        from: u32,
        to: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError> {
        let from = self.slots[from as usize]
            .as_ref()
            .expect("it has a sequence");
        let tokens = from.state.tokens();
        assert_eq!(tokens, state.tokens(), "a fork has other tokens");
        self.give(to, state, ending)
    }

    fn free(&mut self, slot: u32) {
        let freed = self.slots[slot as usize].take();
        let freed = freed.expect("a free slot is freed");
        let is_stop = |token: &u32| freed.stop_ids.contains(token);
        let stops = freed.state.output().iter().filter(|&token| is_stop(token));
        assert_eq!(stops.count(), usize::from(freed.ended));
        assert!(!freed.ended || freed.state.tokens().last().is_some_and(is_stop));
    }

    fn most_likeliest(&self) -> u32 {
        MAX_TOP
    }

    fn most_stops(&self) -> usize {
        MAX_STOPS
    }

    fn queue(&mut self, logits: Logits<'_>, rows: &[SlotDraw<'_>]) -> Result<(), EngineError> {
        assert!(self.queued.len() < 2, "nobody collects");
        let (data, vocab) = logits.on_host().expect("a script computes on the host");
        let mut tokens = Vec::with_capacity(rows.len());
        self.latest.clear();
        for row in rows {
            let logits = &data[row.logits_row as usize * vocab..][..vocab];
            let slot = self.slots[row.slot as usize].as_mut();
            let slot = slot.expect("it has a sequence");
            if slot.ended {
                self.ended.fetch_add(1, Ordering::Relaxed);
                self.latest.push(Some(NO_TOKEN));
                tokens.push(nothing());
                continue;
            }
            let work = Row {
                mask: row.mask,
                logprobs: row.logprobs,
                ..Row::new(LogitsRow::F32(logits), row.params, &slot.state)
            };
            let token = self.sampler.sample(&work);
            tokens.push(drawn(&mut self.sampler, &work, token, false));
            slot.state.commit(&token);
            slot.ended = slot.stop_ids.contains(&token.token_id);
            self.latest.push((!slot.ended).then_some(token.token_id));
            let len = slot.state.tokens().len();
            assert!(len <= slot.capacity, "the slot is full");
        }
        if self
            .faults
            .take_if(|fault| fault == Fault::NoDraw)
            .is_some()
        {
            return Err(EngineError::OutOfMemory("scripted draw".into()));
        }
        self.queued.push_back(tokens);
        Ok(())
    }

    fn collect(&mut self, out: &mut Vec<Drawn>) -> Result<(), EngineError> {
        if self
            .faults
            .take_if(|fault| fault == Fault::DrawLost)
            .is_some()
        {
            return Err(EngineError::DeviceLost("scripted loss".into()));
        }
        *out = self.queued.pop_front().expect("something is queued");
        Ok(())
    }

    fn latest(&self) -> Latest {
        Latest::Host(self.latest.clone())
    }

    fn read_row(
        &mut self,
        logits: Logits<'_>,
        row: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let (data, vocab) = logits.on_host().expect("a script computes on the host");
        *out = data[row * vocab..][..vocab].to_vec();
        Ok(())
    }
}

/// What is drawn for a sequence that has ended.
fn nothing() -> Drawn {
    Drawn {
        token: SampledToken {
            token_id: NO_TOKEN,
            logprob: f32::NAN,
            kept_count: 0,
            status: Status::Ended,
            feedback: 0,
        },
        top_logprobs: Vec::new(),
        logits: None,
    }
}
