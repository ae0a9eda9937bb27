//! Where the time of steps goes.

use nucleus_sampling::cuda::CudaError;

use crate::cuda::{Event, Stream};
use crate::model::StepTimes;

/// What is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// A matrix product.
    Product,
    /// Attention.
    Attention,
    /// Everything else: norms, rotation, activation, embedding.
    Pointwise,
}

/// Events between the operations of a step, and the times between them.
#[derive(Debug, Default)]
pub(super) struct Profile {
    events: Vec<Event>,
    /// What was queued before each event but the first.
    operations: Vec<Operation>,
    times: StepTimes,
}

impl Profile {
    /// Marks the beginning of a step.
    pub(super) fn start(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.collect()?;
        self.mark(stream)
    }

    /// Marks the end of an operation.
    pub(super) fn queued(
        &mut self,
        stream: &Stream,
        operation: Operation,
    ) -> Result<(), CudaError> {
        self.operations.push(operation);
        self.mark(stream)
    }

    /// The times of all steps.
    pub(super) fn finish(mut self) -> Result<StepTimes, CudaError> {
        self.collect()?;
        Ok(self.times)
    }

    fn mark(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let index = self.operations.len();
        if index == self.events.len() {
            self.events.push(Event::timed()?);
        }
        self.events[index].record(stream)
    }

    /// Waits for the step and adds its times.
    fn collect(&mut self) -> Result<(), CudaError> {
        if self.operations.is_empty() {
            return Ok(());
        }
        self.events[self.operations.len()].synchronize()?;
        for (index, operation) in self.operations.drain(..).enumerate() {
            let milliseconds = self.events[index + 1].milliseconds_since(&self.events[index])?;
            let seconds = f64::from(milliseconds) / 1e3;
            match operation {
                Operation::Product => self.times.products += seconds,
                Operation::Attention => self.times.attention += seconds,
                Operation::Pointwise => self.times.pointwise += seconds,
            }
        }
        self.times.steps += 1;
        Ok(())
    }
}
