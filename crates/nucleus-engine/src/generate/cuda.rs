//! Slots on a CUDA device.

use nucleus_sampling::SamplerState;
use nucleus_sampling::cuda::{
    CudaOptions, CudaSampler, DeviceLogits, MAX_ROWS, MAX_STOPS, MAX_TOP, PlacedRow, SharedStream,
    SlotEnd, SlotRow,
};

use super::draw::{Latest, SlotDraw, SlotEnding, SlotSampler};
use crate::error::EngineError;
use crate::model::Logits;
use crate::sequence::Drawn;

/// The most sequences that one launch draws for, and so the most that run at once.
pub(super) const MOST_SEQUENCES: usize = MAX_ROWS;

/// The sampler, in the model's stream.
pub(super) struct CudaSlots {
    sampler: CudaSampler,
}

impl CudaSlots {
    /// Room for so many sequences of so many tokens each, in the stream that writes the logits.
    pub(super) fn new(
        stream: SharedStream,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self, EngineError> {
        let mut sampler = CudaSampler::on_stream(CudaOptions::default(), stream)?;
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        sampler.reserve_slots(number(sequences), number(tokens))?;
        Ok(Self { sampler })
    }
}

impl SlotSampler for CudaSlots {
    fn restore(
        &mut self,
        slot: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError> {
        Ok(self.sampler.restore_slot(slot, state, end_of(ending))?)
    }

    fn fork(
        &mut self,
        from: u32,
        to: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError> {
        Ok(self.sampler.fork_slot(from, to, state, end_of(ending))?)
    }

    fn free(&mut self, slot: u32) {
        self.sampler.free_slot(slot);
    }

    fn most_likeliest(&self) -> u32 {
        MAX_TOP
    }

    fn most_stops(&self) -> usize {
        MAX_STOPS
    }

    fn queue(&mut self, logits: Logits<'_>, rows: &[SlotDraw<'_>]) -> Result<(), EngineError> {
        let placed: Vec<PlacedRow<'_>> = rows
            .iter()
            .map(|row| PlacedRow {
                logits_row: row.logits_row,
                row: SlotRow {
                    mask: row.mask,
                    logprobs: row.logprobs.mode,
                    top: row.logprobs.top,
                    ..SlotRow::new(row.slot, row.params)
                },
            })
            .collect();
        Ok(self.sampler.queue_slots(&on_device(logits)?, &placed)?)
    }

    fn collect(&mut self, out: &mut Vec<Drawn>) -> Result<(), EngineError> {
        let (mut tokens, mut top) = (Vec::new(), Vec::new());
        self.sampler.collect_with_top(&mut tokens, &mut top)?;
        out.clear();
        for (token, top_logprobs) in tokens.into_iter().zip(top) {
            out.push(Drawn {
                token: token?,
                top_logprobs,
                logits: None,
            });
        }
        Ok(())
    }

    fn latest(&self) -> Latest {
        Latest::Device(self.sampler.tokens_on_device())
    }

    fn read_row(
        &mut self,
        logits: Logits<'_>,
        row: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let row = u32::try_from(row).unwrap_or(u32::MAX);
        Ok(self.sampler.read_row(&on_device(logits)?, row, out)?)
    }
}

fn end_of(SlotEnding { stop_ids, capacity }: SlotEnding<'_>) -> SlotEnd<'_> {
    SlotEnd {
        stop_ids,
        capacity: u32::try_from(capacity).ok(),
    }
}

fn on_device(logits: Logits<'_>) -> Result<DeviceLogits, EngineError> {
    match logits {
        Logits::Device { data, .. } => Ok(data),
        Logits::Host { .. } => Err(EngineError::Unsupported(
            "logits on the host are not drawn from on a device".into(),
        )),
    }
}
