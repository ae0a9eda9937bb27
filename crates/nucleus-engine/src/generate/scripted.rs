//! Slots of a device that is a script: it has histories of its own, which nobody but itself appends to.

use std::collections::VecDeque;

use nucleus_sampling::{CpuSampler, LogitsRow, Row, Sampler, SamplerState};

use super::draw::{Latest, SlotDraw, SlotSampler};
use super::rows::drawn;
use crate::error::EngineError;
use crate::model::Logits;
use crate::sequence::Drawn;
use crate::testing::{Fault, Faults};

/// The most of the likeliest tokens that the script tells.
const MAX_TOP: u32 = 3;

/// Draws from the host's logits by the slots' own histories, at once; the tokens are had as late as anybody asks for them.
pub(super) struct ScriptedSlots {
    sampler: CpuSampler,
    slots: Vec<Option<SamplerState>>,
    queued: VecDeque<Vec<Drawn>>,
    latest: Vec<u32>,
    capacity: usize,
    faults: Faults,
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
        }
    }

    fn give(&mut self, slot: u32, state: &SamplerState) -> Result<(), EngineError> {
        let slot = &mut self.slots[slot as usize];
        assert!(slot.is_none(), "the slot has a sequence");
        if self
            .faults
            .take_if(|fault| fault == Fault::NoSlot)
            .is_some()
        {
            return Err(EngineError::OutOfMemory("scripted slot".into()));
        }
        *slot = Some(state.clone());
        Ok(())
    }
}

impl SlotSampler for ScriptedSlots {
    fn restore(&mut self, slot: u32, state: &SamplerState) -> Result<(), EngineError> {
        self.give(slot, state)
    }

    fn fork(&mut self, from: u32, to: u32, state: &SamplerState) -> Result<(), EngineError> {
        let from = self.slots[from as usize]
            .as_ref()
            .expect("it has a sequence");
        assert_eq!(from.tokens(), state.tokens(), "a fork has other tokens");
        self.give(to, state)
    }

    fn free(&mut self, slot: u32) {
        let freed = self.slots[slot as usize].take();
        assert!(freed.is_some(), "a free slot is freed");
    }

    fn most_likeliest(&self) -> u32 {
        MAX_TOP
    }

    fn queue(&mut self, logits: Logits<'_>, rows: &[SlotDraw<'_>]) -> Result<(), EngineError> {
        assert!(self.queued.len() < 2, "nobody collects");
        let (data, vocab) = logits.on_host().expect("a script computes on the host");
        let mut tokens = Vec::with_capacity(rows.len());
        for row in rows {
            let logits = &data[row.logits_row as usize * vocab..][..vocab];
            let state = self.slots[row.slot as usize].as_mut();
            let state = state.expect("it has a sequence");
            let work = Row {
                logprobs: row.logprobs,
                ..Row::new(LogitsRow::F32(logits), row.params, state)
            };
            let token = self.sampler.sample(&work);
            tokens.push(drawn(&mut self.sampler, &work, token, false));
            state.commit(&token);
            assert!(state.tokens().len() <= self.capacity, "the slot is full");
        }
        self.latest = tokens.iter().map(|it| it.token.token_id).collect();
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
