//! Slots on a CUDA device.

use nucleus_sampling::cuda::{
    CudaOptions, CudaSampler, DeviceLogits, MAX_ROWS, PlacedRow, SharedStream, SlotRow,
};
use nucleus_sampling::{SampledToken, SamplerState};

use super::draw::{Latest, SlotDraw, SlotSampler};
use crate::error::EngineError;
use crate::model::Logits;

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
    fn restore(&mut self, slot: u32, state: &SamplerState) -> Result<(), EngineError> {
        Ok(self.sampler.restore_slot(slot, state)?)
    }

    fn fork(&mut self, from: u32, to: u32, state: &SamplerState) -> Result<(), EngineError> {
        Ok(self.sampler.fork_slot(from, to, state)?)
    }

    fn free(&mut self, slot: u32) {
        self.sampler.free_slot(slot);
    }

    fn queue(&mut self, logits: Logits<'_>, rows: &[SlotDraw<'_>]) -> Result<(), EngineError> {
        let placed: Vec<PlacedRow<'_>> = rows
            .iter()
            .map(|row| PlacedRow {
                logits_row: row.logits_row,
                row: SlotRow {
                    logprobs: row.logprobs,
                    ..SlotRow::new(row.slot, row.params)
                },
            })
            .collect();
        Ok(self.sampler.queue_slots(&on_device(logits)?, &placed)?)
    }

    fn collect(&mut self, out: &mut Vec<SampledToken>) -> Result<(), EngineError> {
        let mut tokens = Vec::new();
        self.sampler.collect(&mut tokens)?;
        out.clear();
        for token in tokens {
            out.push(token?);
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

fn on_device(logits: Logits<'_>) -> Result<DeviceLogits, EngineError> {
    match logits {
        Logits::Device { data, .. } => Ok(data),
        Logits::Host { .. } => Err(EngineError::Unsupported(
            "logits on the host are not drawn from on a device".into(),
        )),
    }
}
