//! The engine's thread.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use nucleus_sampling::{CpuSampler, LogitsRow, Sampler, Status};
use tokio::sync::mpsc as events;

use super::rows::{Purpose, chunks_of, drawn, purposes_of, row_of, scored};
use super::{Command, Event, Gauges, GenerationError, Shared, Submission};
use crate::error::EngineError;
use crate::model::{Chunk, Logits, Model};
use crate::scheduler::{AdmissionError, Arrival, Scheduled, Scheduler, SequenceId, Step};
use crate::sequence::{Drawn, FinishReason, PromptToken, Sequence};

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

/// Most prompt tokens of one sequence that are scored in a step: each takes a row of logits.
const SCORED_ROWS: usize = 64;

/// What a step gave.
#[derive(Default)]
struct Outcome {
    /// A token for everyone who samples, in the order of the runs.
    drawn: Vec<Drawn>,
    /// Prompt tokens that are scored, in order.
    scored: Vec<(SequenceId, PromptToken)>,
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
            alone: submission.sequence.scores_prompt(),
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
        self.expire();
        let mut step = self.scheduler.schedule();
        self.shorten(&mut step.runs);
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
            Ok(outcome) => self.commit(&step.runs, outcome),
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

    /// Ends what has no token yet and no time left for one.
    fn expire(&mut self) {
        let now = Instant::now();
        let late = |(id, live): (&SequenceId, &Live)| live.sequence.is_late(now).then_some(*id);
        let late: Vec<SequenceId> = self.live.iter().filter_map(late).collect();
        late.into_iter()
            .for_each(|id| self.finish(id, FinishReason::TimeLimit));
    }

    /// Bounds the logits of a step: a run over a prompt that is scored takes a row for each of its tokens.
    fn shorten(&self, runs: &mut [Scheduled]) {
        for run in runs.iter_mut().filter(|run| run.len > SCORED_ROWS) {
            if self.live[&run.id].sequence.scores_prompt() {
                run.len = SCORED_ROWS;
                run.samples = false;
                run.followers.clear();
            }
        }
    }

    /// Runs the model; draws a token for everyone whose newest token it has seen, and scores the prompts that are to be.
    fn forward_and_sample(&mut self, step: &Step) -> Result<Outcome, EngineError> {
        let Self {
            model,
            sampler,
            live,
            ..
        } = self;
        let runs = || {
            let runs = step.runs.iter();
            runs.map(|run| (run, &live[&run.id].sequence))
        };
        let chunks: Vec<Chunk<'_>> = runs()
            .flat_map(|(run, sequence)| chunks_of(run, sequence))
            .collect();
        let purposes: Vec<Purpose<'_>> = runs()
            .flat_map(|(run, sequence)| purposes_of(run, sequence))
            .collect();
        let mut outcome = Outcome::default();
        let mut tail = |logits: Logits<'_>| {
            let (data, vocab) = logits.on_host().expect("the model is on the host");
            let mut rows = Vec::new();
            let mut wants_logits = Vec::new();
            for (logits, purpose) in data.chunks_exact(vocab).zip(&purposes) {
                let row = |id: SequenceId| row_of(LogitsRow::F32(logits), &live[&id].sequence);
                match *purpose {
                    Purpose::Score(id, token) => {
                        let token = scored(&mut **sampler, row(id), token);
                        outcome.scored.push((id, token));
                    }
                    Purpose::Draw(run) => {
                        rows.extend(run.sampled().map(row));
                        let wants = |id| live[&id].sequence.wants_logits();
                        wants_logits.extend(run.sampled().map(wants));
                    }
                }
            }
            let mut sampled = Vec::with_capacity(rows.len());
            sampler.sample_batch(&rows, &mut sampled);
            let tokens = rows.iter().zip(sampled).zip(wants_logits);
            let drawn =
                tokens.map(|((row, token), wants)| drawn(&mut **sampler, row, token, wants));
            outcome.drawn.extend(drawn);
            Ok(())
        };
        for &(from, to) in &step.copies {
            model.copy_block(from, to);
        }
        model.forward(&chunks, &mut tail)?;
        Ok(outcome)
    }

    fn commit(&mut self, runs: &[Scheduled], outcome: Outcome) {
        runs.iter().for_each(|run| self.scheduler.computed(run));
        for (id, token) in outcome.scored {
            if token.logprob.is_some_and(f32::is_nan) {
                self.fail_row(id, Status::Nan);
            } else if let Some(live) = self.live.get_mut(&id) {
                live.sequence.score(token);
            }
        }
        let sampled = runs.iter().flat_map(Scheduled::sampled);
        for (id, drawn) in sampled.zip(outcome.drawn) {
            if !self.live.contains_key(&id) {
                // Its prompt could not be scored.
                continue;
            }
            self.tell_prompt(id);
            if !self.sequence_mut(id).wants_output() {
                self.finish(id, FinishReason::Length);
            } else if drawn.token.status == Status::Ok {
                self.commit_token(id, drawn);
            } else {
                self.fail_row(id, drawn.token.status);
            }
        }
    }

    /// Ends a sequence whose logits are of no use.
    fn fail_row(&mut self, id: SequenceId, status: Status) {
        if let Some(live) = self.live.get(&id) {
            let position = live.sequence.state.position() as usize;
            // What made the row useless may be in the cache.
            self.scheduler.discard(id);
            self.fail(id, GenerationError::Row { position, status });
        }
    }

    /// Sends the prompt's tokens with their scores, if they are wanted and not sent yet.
    fn tell_prompt(&mut self, id: SequenceId) {
        if let Some(tokens) = self.sequence_mut(id).take_prompt_tokens() {
            // The receiver is gone when the client is; its cancel command is on the way.
            let _ = self.live[&id].events.send(Event::Prompt(tokens));
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
