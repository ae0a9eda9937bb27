//! The engine's thread.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use nucleus_sampling::Status;
use rayon::prelude::*;
use tokio::sync::mpsc as events;

use super::at_work::AtWork;
use super::draw::{Drawing, Outcome};
use super::rows::{Purpose, chunks_of, purposes_of};
use super::{Command, Event, Gauges, GenerationError, Shared, Submission};
use crate::error::EngineError;
use crate::model::{Chunk, Logits, Model, PENDING};
use crate::scheduler::{AdmissionError, Arrival, Scheduled, Scheduler, SequenceId, Step};
use crate::sequence::{Drawn, FinishReason, Sequence};

/// What the thread owns.
pub(super) struct Worker {
    // First: what it has on a device is freed before the model's stream ends.
    drawing: Drawing,
    model: Box<dyn Model>,
    scheduler: Scheduler,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Command>,
    live: HashMap<SequenceId, Live>,
    /// The step whose tokens are on their way from the device.
    in_flight: Option<Outcome>,
    /// Whose part in the step that was queued last is void: they are computed again.
    void: HashSet<SequenceId>,
    draining: bool,
}

/// Most prompt tokens that are scored in a step: each takes a row of logits.
pub(super) const SCORED_ROWS: usize = 64;

struct Live {
    sequence: Sequence,
    events: events::UnboundedSender<Event>,
}

impl Worker {
    pub(super) fn new(
        model: Box<dyn Model>,
        drawing: Drawing,
        scheduler: Scheduler,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            drawing,
            model,
            scheduler,
            shared,
            inbox,
            live: HashMap::new(),
            in_flight: None,
            void: HashSet::new(),
            draining: false,
        }
    }

    /// Steps while there is work, sleeps while there is none, until everyone has left or a shutdown has drained.
    pub(super) fn run(self) {
        let mut at_work = AtWork::on(self.model.compute());
        // Dropped before `at_work`: freeing a device's memory is work too.
        let mut worker = self;
        while worker.take_commands(&mut at_work) {
            worker.step();
        }
    }

    /// Handles what has come in; waits for something when idle. False when the thread should end.
    fn take_commands(&mut self, at_work: &mut AtWork) -> bool {
        if self.live.is_empty() {
            if self.draining {
                return false;
            }
            match at_work.pause(|| self.inbox.recv()) {
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

    /// One step: schedule, forward, sample, commit. On a device that runs ahead, what is committed is the step before: its tokens come
    /// while this one is computed.
    pub(super) fn step(&mut self) {
        self.expire();
        self.void.clear();
        let mut step = self.scheduler.schedule();
        step.evicted.iter().for_each(|&id| self.release(id));
        self.shorten(&mut step.runs);
        let queued = (!step.runs.is_empty()).then(|| self.run_step(&mut step));
        self.collect();
        match queued {
            Some(Ok(outcome)) => self.advance(&step.runs, outcome),
            Some(Err(error)) => self.fail_step(&step.runs, error),
            None => {}
        }
        self.publish();
    }

    /// Queues a step, or as much of it as the device has memory for: `step` is what was queued, or what failed.
    fn run_step(&mut self, step: &mut Step) -> Result<Outcome, EngineError> {
        for run in &step.runs {
            self.sequence_mut(run.id).start();
            for &follower in &run.followers {
                self.sequence_mut(follower).start();
            }
        }
        for &(from, to) in &step.copies {
            self.model.copy_block(from, to);
        }
        loop {
            let what = match self.forward_and_sample(&step.runs) {
                Err(EngineError::OutOfMemory(what)) => what,
                result => return result,
            };
            tracing::warn!("a step was too large for the device's memory: {what}");
            // What is tried again takes its tokens from the host: of those on the device, and of slots, it is not known what is left.
            self.collect();
            let fewer = self.drop_ended(&mut step.runs);
            if step.runs.is_empty() {
                return Ok(Outcome::default());
            }
            if !fewer && !shrink(&mut step.runs) {
                return Err(EngineError::OutOfMemory(what));
            }
        }
    }

    /// Takes whoever has ended, or is computed again, out of a step; whether there was anybody.
    fn drop_ended(&self, runs: &mut Vec<Scheduled>) -> bool {
        let sampled = |runs: &[Scheduled]| runs.iter().map(|run| 1 + run.followers.len()).sum();
        let before: usize = sampled(runs);
        let is_live = |id: &SequenceId| self.live.contains_key(id) && !self.void.contains(id);
        runs.retain(|run| is_live(&run.id));
        let followers = runs.iter_mut().map(|run| &mut run.followers);
        followers.for_each(|followers| followers.retain(is_live));
        before > sampled(runs)
    }

    /// Takes a step to be in the cache, and commits its tokens: now, or when they have come.
    fn advance(&mut self, runs: &[Scheduled], mut outcome: Outcome) {
        outcome.void = std::mem::take(&mut self.void);
        let is_void = |id: &SequenceId| outcome.void.contains(id);
        for run in runs.iter().filter(|run| !is_void(&run.id)) {
            self.scheduler.computed(run);
        }
        let is_ahead = self.model.runs_ahead() && outcome.may_be_left_behind();
        if is_ahead {
            let drawn = outcome.drawn.iter().map(|(id, _)| id);
            for &id in drawn.filter(|id| !is_void(id)) {
                self.scheduler.grown(id, PENDING);
            }
        }
        self.in_flight = Some(outcome);
        // Whoever has left waits for nothing.
        if !is_ahead || self.live.is_empty() {
            self.collect();
        }
    }

    /// Fails everyone in a step; everyone at all if nothing can run any more.
    fn fail_step(&mut self, runs: &[Scheduled], error: EngineError) {
        if let EngineError::DeviceLost(_) = error {
            return self.lose_device(&error);
        }
        let error = GenerationError::Model(error.to_string());
        for run in runs {
            let followers = run.followers.iter();
            followers.for_each(|&id| self.fail(id, error.clone()));
            self.fail(run.id, error.clone());
        }
    }

    /// Ends everything: nothing runs in this process any more.
    fn lose_device(&mut self, error: &EngineError) {
        let reason = error.to_string();
        tracing::error!("{reason}");
        self.draining = true;
        self.in_flight = None;
        // Set before anybody is told, so that whoever is can read it.
        self.shared.fail(reason.clone());
        let ids: Vec<SequenceId> = self.live.keys().copied().collect();
        for id in ids {
            self.fail(id, GenerationError::DeviceLost(reason.clone()));
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

    /// Bounds the logits of a step: runs over prompts that are scored take a row for each of their tokens. The first of them goes on in
    /// any case, the last may have to wait.
    fn shorten(&self, runs: &mut Vec<Scheduled>) {
        let mut left = SCORED_ROWS;
        runs.retain_mut(|run| {
            if !self.live[&run.id].sequence.scores_prompt() {
                return true;
            }
            if run.len > left {
                run.len = left;
                run.samples = false;
                run.followers.clear();
            }
            left -= run.len;
            run.len > 0
        });
    }

    /// Runs the model; draws a token for everyone whose newest token it has seen, and scores the prompts that are to be.
    fn forward_and_sample(&mut self, runs: &[Scheduled]) -> Result<Outcome, EngineError> {
        let Self {
            model,
            drawing,
            live,
            ..
        } = self;
        let sequences = |id: SequenceId| &live[&id].sequence;
        let chunks: Vec<Chunk<'_>> = runs
            .iter()
            .flat_map(|run| chunks_of(run, sequences(run.id)))
            .collect();
        let purposes: Vec<Purpose<'_>> = runs
            .iter()
            .flat_map(|run| purposes_of(run, sequences(run.id)))
            .collect();
        let mut outcome = Outcome::default();
        match drawing {
            Drawing::Host(drawing) => {
                let mut tail = |logits: Logits<'_>| {
                    outcome = drawing.draw(logits, &purposes, &sequences)?;
                    Ok(())
                };
                model.forward(&chunks, &mut tail)?;
            }
            Drawing::Device(drawing) => {
                drawing.admit(runs, &sequences)?;
                let is_pending = |chunk: &Chunk<'_>| *chunk.tokens == [PENDING];
                let is_ahead = chunks.iter().any(is_pending);
                let latest = drawing.latest();
                let mut rows = Vec::with_capacity(chunks.len());
                for run in runs {
                    let row = drawing.latest_row(run.id);
                    let chunks = chunks_of(run, sequences(run.id));
                    rows.extend(chunks.map(|chunk| row.filter(|_| is_pending(&chunk))));
                }
                let mut tail = |logits: Logits<'_>| {
                    outcome = drawing.draw(logits, &purposes, &sequences)?;
                    Ok(())
                };
                if is_ahead {
                    model.forward_ahead(&chunks, &rows, latest.tokens(), &mut tail)?;
                } else {
                    model.forward(&chunks, &mut tail)?;
                }
            }
        }
        Ok(outcome)
    }

    /// Commits the step that is in flight, when its tokens have come.
    fn collect(&mut self) {
        let Some(mut outcome) = self.in_flight.take() else {
            return;
        };
        if let Drawing::Device(drawing) = &mut self.drawing
            && let Err(error) = drawing.collect(&mut outcome)
        {
            if let EngineError::DeviceLost(_) = error {
                return self.lose_device(&error);
            }
            let error = GenerationError::Model(error.to_string());
            for (id, _) in outcome.drawn {
                self.fail(id, error.clone());
            }
            return;
        }
        self.commit(outcome);
    }

    fn commit(&mut self, mut outcome: Outcome) {
        for (id, token) in std::mem::take(&mut outcome.scored) {
            if token.logprob.is_some_and(f32::is_nan) {
                self.fail_row(id, Status::Nan);
            } else if let Some(live) = self.live.get_mut(&id) {
                live.sequence.score(token);
            }
        }
        self.foresee(&outcome);
        for (id, drawn) in outcome.drawn {
            let Some(drawn) = drawn else { continue };
            if !self.live.contains_key(&id) || outcome.void.contains(&id) {
                // It ended before its token came, its prompt could not be scored, or it is computed again.
                continue;
            }
            self.tell_prompt(id);
            if !self.sequence_mut(id).wants_output() {
                if drawn.token.status == Status::Ok {
                    // Nobody sees the token, but others may use what it was drawn from.
                    self.scheduler.grown(id, drawn.token.token_id);
                }
                self.finish(id, FinishReason::Length);
            } else if drawn.token.status == Status::Ok {
                self.commit_token(id, drawn);
            } else {
                self.fail_row(id, drawn.token.status);
            }
        }
    }

    /// Finds the masks of all who have one at once, on as many threads as there are.
    fn foresee(&mut self, outcome: &Outcome) {
        let drawn = outcome.drawn.iter().filter_map(|(id, drawn)| {
            let token = &drawn.as_ref()?.token;
            let counts = token.status == Status::Ok && !outcome.void.contains(id);
            counts.then_some((*id, token.token_id))
        });
        let is_masked = |id: &SequenceId| {
            let live = self.live.get(id);
            live.is_some_and(|live| live.sequence.mask().is_some())
        };
        let tokens: HashMap<SequenceId, u32> = drawn.filter(|(id, _)| is_masked(id)).collect();
        if tokens.len() < 2 {
            return;
        }
        let live = self.live.iter_mut();
        let masked = live.filter_map(|(id, live)| Some((&mut live.sequence, *tokens.get(id)?)));
        let masked: Vec<(&mut Sequence, u32)> = masked.collect();
        let tokenizer = &self.shared.tokenizer;
        masked
            .into_par_iter()
            .for_each(|(sequence, token)| sequence.foresee(token, tokenizer));
    }

    /// Ends a sequence whose logits are of no use, or computes it again if that may be due to what others have left in the cache.
    fn fail_row(&mut self, id: SequenceId, status: Status) {
        let may_be_found = matches!(status, Status::Nan | Status::Overflow);
        if may_be_found && let Some(evicted) = self.scheduler.recompute(id) {
            tracing::warn!(
                "a row is of no use ({status}), and may be so by what was in the cache: it is computed again"
            );
            self.void.insert(id);
            self.release(id);
            return evicted.into_iter().for_each(|id| self.release(id));
        }
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
        let (event, finish) = match live.sequence.commit(drawn, &tokenizer) {
            Ok(committed) => committed,
            Err(error) => return self.fail(id, error.into()),
        };
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

    /// The sequence does not run any more: what a device has of it is freed.
    fn release(&mut self, id: SequenceId) {
        if let Drawing::Device(drawing) = &mut self.drawing {
            drawing.release(id);
        }
    }

    fn forget(&mut self, id: SequenceId) -> Option<Live> {
        self.scheduler.remove(id);
        self.release(id);
        let live = self.live.remove(&id);
        self.publish();
        live
    }

    #[cfg(test)]
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        self.scheduler.assert_consistent();
        if let Drawing::Device(drawing) = &self.drawing {
            let count = self.shared.options.max_running;
            drawing.assert_consistent(|id| self.scheduler.is_running(id), count);
        }
    }

    /// Whether there is anything to do: commands that have come in apart.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        !self.live.is_empty() || self.in_flight.is_some()
    }

    /// Whether the tokens of a step have not been looked at yet.
    #[cfg(test)]
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
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

/// Makes a step smaller: half of its runs, or half of its only one. False if it is a single token.
fn shrink(runs: &mut Vec<Scheduled>) -> bool {
    match runs.as_mut_slice() {
        [run] if run.len > 1 => {
            run.len /= 2;
            run.samples = false;
            run.followers.clear();
            true
        }
        [_, _, ..] => {
            runs.truncate(runs.len().div_ceil(2));
            true
        }
        _ => false,
    }
}
