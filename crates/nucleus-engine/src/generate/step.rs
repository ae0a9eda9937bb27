//! The engine's thread.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use nucleus_sampling::{CpuSampler, LogitsRow, Row, SampledToken, Sampler, Status};
use tokio::sync::mpsc as events;

use super::{Command, Event, Gauges, GenerationError, Shared, Submission};
use crate::error::EngineError;
use crate::model::{Chunk, Logits, Model};
use crate::scheduler::{AdmissionError, Arrival, Scheduled, Scheduler, SequenceId, Step};
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
            self.step();
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
        self.take_waiting_commands();
        true
    }

    /// Handles what has come in.
    pub(super) fn take_waiting_commands(&mut self) {
        while let Ok(command) = self.inbox.try_recv() {
            self.handle(command);
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit {
                submissions,
                admitted,
            } => self.submit(submissions, &admitted),
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

    fn submit(
        &mut self,
        submissions: Vec<Submission>,
        admitted: &mpsc::SyncSender<Result<(), AdmissionError>>,
    ) {
        let arrival = |submission: &Submission| Arrival {
            id: submission.id,
            prompt: submission.sequence.tokens().to_vec(),
            capacity: submission.capacity,
        };
        let arrivals = submissions.iter().map(arrival).collect();
        let queued = self.scheduler.enqueue(arrivals);
        if queued.is_ok() {
            let live = submissions.into_iter().map(|submission| {
                let live = Live {
                    sequence: *submission.sequence,
                    events: submission.events,
                };
                (submission.id, live)
            });
            self.live.extend(live);
        }
        // Whoever does not wait for the answer any more has dropped the requests, which cancels them.
        let _ = admitted.send(queued);
        self.publish();
    }

    /// One step: schedule, forward, sample, commit.
    pub(super) fn step(&mut self) {
        let step = self.scheduler.schedule();
        if !step.runs.is_empty() {
            self.run_step(&step);
        }
        self.publish();
    }

    fn run_step(&mut self, step: &Step) {
        for run in &step.runs {
            self.sequence_mut(run.id).start();
            for &follower in &run.followers {
                self.sequence_mut(follower).start();
            }
        }
        match self.forward_and_sample(step) {
            Ok(drawn) => self.commit(&step.runs, drawn),
            Err(error) => {
                let error = GenerationError::Model(error.to_string());
                for run in &step.runs {
                    let followers = run.followers.iter();
                    followers.for_each(|&id| self.fail(id, error.clone()));
                    self.fail(run.id, error.clone());
                }
            }
        }
    }

    /// Runs the model and draws a token for everyone whose newest token it has seen, in the order of the runs.
    fn forward_and_sample(&mut self, step: &Step) -> Result<Vec<Drawn>, EngineError> {
        let Self {
            model,
            sampler,
            live,
            ..
        } = self;
        let chunks: Vec<Chunk<'_>> = step
            .runs
            .iter()
            .map(|run| Chunk {
                tokens: &live[&run.id].sequence.tokens()[run.start..run.start + run.len],
                position: run.start,
                blocks: &run.blocks,
                wants_logits: run.samples,
            })
            .collect();
        let sampling: Vec<&Scheduled> = step.runs.iter().filter(|run| run.samples).collect();
        let mut drawn = Vec::new();
        let mut tail = |logits: Logits<'_>| {
            let Logits::Host { data, vocab } = logits;
            let rows: Vec<Row<'_>> = data
                .chunks_exact(vocab)
                .zip(&sampling)
                .flat_map(|(row, run)| run.sampled().map(move |id| (row, id)))
                .map(|(row, id)| {
                    let sequence = &live[&id].sequence;
                    Row {
                        logprobs: sequence.logprobs(),
                        ..Row::new(LogitsRow::F32(row), &sequence.params, &sequence.state)
                    }
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
        for &(from, to) in &step.copies {
            model.copy_block(from, to);
        }
        model.forward(&chunks, &mut tail)?;
        Ok(drawn)
    }

    fn commit(&mut self, runs: &[Scheduled], drawn: Vec<Drawn>) {
        runs.iter().for_each(|run| self.scheduler.computed(run));
        for (id, drawn) in runs.iter().flat_map(Scheduled::sampled).zip(drawn) {
            if drawn.token.status == Status::Ok {
                self.commit_token(id, drawn);
            } else {
                let error = GenerationError::Row {
                    position: self.sequence_mut(id).state.position() as usize,
                    status: drawn.token.status,
                };
                // What made the row useless may be in the cache.
                self.scheduler.discard(id);
                self.fail(id, error);
            }
        }
    }

    fn commit_token(&mut self, id: SequenceId, drawn: Drawn) {
        let tokenizer = Arc::clone(&self.shared.tokenizer);
        let live = self
            .live
            .get_mut(&id)
            .expect("a scheduled sequence is live");
        let token = drawn.token.token_id;
        let (event, finish) = live.sequence.commit(drawn, &tokenizer);
        self.scheduler.grown(id, token);
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

    #[cfg(test)]
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Whether there is anything to do: commands that have come in apart.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        !self.live.is_empty()
    }

    /// Whether a request has been accepted and has not ended.
    #[cfg(test)]
    pub(super) fn is_live(&self, id: SequenceId) -> bool {
        self.live.contains_key(&id)
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        &mut self
            .live
            .get_mut(&id)
            .expect("a scheduled sequence is live")
            .sequence
    }

    fn publish(&self) {
        let Gauges {
            running,
            waiting,
            used_blocks,
            admitted_tokens,
            reused_tokens,
            evictions,
            copies,
        } = &self.shared.gauges;
        let counters = self.scheduler.counters();
        for (gauge, value) in [
            (running, self.scheduler.running()),
            (waiting, self.scheduler.waiting()),
            (used_blocks, self.scheduler.pool().used()),
        ] {
            gauge.store(value, Ordering::Relaxed);
        }
        for (counter, value) in [
            (admitted_tokens, counters.admitted_tokens),
            (reused_tokens, counters.reused_tokens),
            (evictions, counters.evictions),
            (copies, counters.copies),
        ] {
            counter.store(value, Ordering::Relaxed);
        }
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
