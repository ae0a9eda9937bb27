//! The engine's thread.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use nucleus_sampling::{CpuSampler, LogitsRow, Row, SampledToken, Sampler, Status};
use tokio::sync::mpsc as events;

use super::{Command, Event, GenerationError, Shared, Submitted};
use crate::error::EngineError;
use crate::model::{Chunk, Logits, Model};
use crate::scheduler::{Scheduled, Scheduler, SequenceId};
use crate::sequence::{Drawn, FinishReason, Sequence};

/// What the thread owns.
pub(super) struct Worker {
    model: Box<dyn Model>,
    scheduler: Scheduler,
    sampler: Box<dyn Sampler + Send>,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Command>,
    live: HashMap<SequenceId, Live>,
    draining: bool,
}

struct Live {
    sequence: Sequence,
    events: events::UnboundedSender<Event>,
}

impl Worker {
    pub(super) fn new(
        model: Box<dyn Model>,
        scheduler: Scheduler,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        let sampler = Box::new(CpuSampler::new());
        Self {
            model,
            scheduler,
            sampler,
            shared,
            inbox,
            live: HashMap::new(),
            draining: false,
        }
    }

    /// Steps while there is work, sleeps while there is none, until everyone has left or a shutdown has drained.
    pub(super) fn run(mut self) {
        while self.take_commands() {
            let plan = self.scheduler.schedule();
            if !plan.is_empty() {
                self.step(&plan);
            }
            self.publish();
        }
    }

    /// Handles what has come in; waits for something when idle. False when the thread should end.
    fn take_commands(&mut self) -> bool {
        if self.live.is_empty() {
            if self.draining {
                return false;
            }
            match self.inbox.recv() {
                Ok(command) => self.handle(command),
                Err(mpsc::RecvError) => return false,
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.handle(command);
        }
        true
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit {
                id,
                sequence,
                capacity,
                reply,
            } => self.submit(id, *sequence, capacity, reply),
            Command::Cancel(id) => self.finish(id, FinishReason::Cancelled),
            Command::Shutdown { abort } => {
                self.draining = true;
                if abort {
                    let ids: Vec<_> = self.live.keys().copied().collect();
                    ids.into_iter()
                        .for_each(|id| self.finish(id, FinishReason::Aborted));
                }
            }
        }
    }

    fn submit(&mut self, id: SequenceId, sequence: Sequence, capacity: usize, reply: Submitted) {
        let queued = self
            .scheduler
            .enqueue(id, sequence.tokens().len(), capacity);
        if queued.is_ok() {
            self.live.insert(
                id,
                Live {
                    sequence,
                    events: reply.events,
                },
            );
        }
        let accepted = queued.is_ok();
        if reply.admitted.send(queued).is_err() && accepted {
            self.finish(id, FinishReason::Cancelled);
        }
        self.publish();
    }

    fn step(&mut self, plan: &[Scheduled]) {
        for run in plan {
            self.sequence_mut(run.id).start();
        }
        match self.forward_and_sample(plan) {
            Ok(drawn) => self.commit(plan, drawn),
            Err(error) => {
                let error = GenerationError::Model(error.to_string());
                plan.iter().for_each(|run| self.fail(run.id, error.clone()));
            }
        }
    }

    /// Runs the model and draws one token for each run that samples, in plan order.
    fn forward_and_sample(&mut self, plan: &[Scheduled]) -> Result<Vec<Drawn>, EngineError> {
        let Self {
            model,
            sampler,
            live,
            ..
        } = self;
        let chunks: Vec<Chunk<'_>> = plan
            .iter()
            .map(|run| Chunk {
                tokens: &live[&run.id].sequence.tokens()[run.start..run.start + run.len],
                position: run.start,
                blocks: &run.blocks,
                wants_logits: run.samples,
            })
            .collect();
        let sequences: Vec<&Sequence> = plan
            .iter()
            .filter(|run| run.samples)
            .map(|run| &live[&run.id].sequence)
            .collect();
        let mut drawn = Vec::with_capacity(sequences.len());
        let mut tail = |logits: Logits<'_>| {
            let Logits::Host { data, vocab } = logits;
            let rows: Vec<Row<'_>> = data
                .chunks_exact(vocab)
                .zip(&sequences)
                .map(|(row, sequence)| Row {
                    logprobs: sequence.logprobs(),
                    ..Row::new(LogitsRow::F32(row), &sequence.params, &sequence.state)
                })
                .collect();
            let mut sampled = Vec::with_capacity(rows.len());
            sampler.sample_batch(&rows, &mut sampled);
            drawn.extend(
                rows.iter()
                    .zip(sampled)
                    .map(|(row, token)| with_top_logprobs(&mut **sampler, row, token)),
            );
            Ok(())
        };
        model.forward(&chunks, &mut tail)?;
        Ok(drawn)
    }

    fn commit(&mut self, plan: &[Scheduled], drawn: Vec<Drawn>) {
        plan.iter().for_each(|run| self.scheduler.computed(run));
        for (run, drawn) in plan.iter().filter(|run| run.samples).zip(drawn) {
            if drawn.token.status == Status::Ok {
                self.commit_token(run.id, drawn);
            } else {
                let position = self.sequence_mut(run.id).state.position() as usize;
                self.fail(
                    run.id,
                    GenerationError::Row {
                        position,
                        status: drawn.token.status,
                    },
                );
            }
        }
    }

    fn commit_token(&mut self, id: SequenceId, drawn: Drawn) {
        let tokenizer = Arc::clone(&self.shared.tokenizer);
        let live = self
            .live
            .get_mut(&id)
            .expect("a scheduled sequence is live");
        let (event, finish) = live.sequence.commit(drawn, &tokenizer);
        self.scheduler.grown(id);
        // The receiver is gone when the client is; its cancel command is on the way.
        let _ = live.events.send(Event::Token(event));
        if let Some(reason) = finish {
            self.finish(id, reason);
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        if let Some(live) = self.forget(id) {
            let _ = live.events.send(Event::End(live.sequence.complete(reason)));
        }
    }

    fn fail(&mut self, id: SequenceId, error: GenerationError) {
        if let Some(live) = self.forget(id) {
            let _ = live.events.send(Event::Failed(error));
        }
    }

    fn forget(&mut self, id: SequenceId) -> Option<Live> {
        self.scheduler.remove(id);
        let live = self.live.remove(&id);
        self.publish();
        live
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        &mut self
            .live
            .get_mut(&id)
            .expect("a scheduled sequence is live")
            .sequence
    }

    fn publish(&self) {
        let gauges = &self.shared.gauges;
        gauges
            .running
            .store(self.scheduler.running(), Ordering::Relaxed);
        gauges
            .waiting
            .store(self.scheduler.waiting(), Ordering::Relaxed);
        gauges.used_blocks.store(
            self.shared.kv_layout.blocks - self.scheduler.free_blocks(),
            Ordering::Relaxed,
        );
    }
}

/// A token and, if the row asks for them, the likeliest ones.
fn with_top_logprobs(sampler: &mut dyn Sampler, row: &Row<'_>, token: SampledToken) -> Drawn {
    let wanted = row.logprobs.top > 0 && token.status == Status::Ok;
    let top_logprobs = if wanted {
        sampler.top_logprobs(row, &token)
    } else {
        Vec::new()
    };
    Drawn {
        token,
        top_logprobs,
    }
}
