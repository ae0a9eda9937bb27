//! Where the tokens of a step are drawn: on the host, or on the device on which the logits lie.
//!
//! A device keeps the history of each sequence in a *slot*, draws from it and appends to it, so that nothing but token ids and
//! log-probabilities comes back, and not before [`DeviceDraw::collect`]. What a device does not tell (the scores of a prompt, the logits
//! themselves, more of the likeliest tokens than any endpoint tells) the host computes from a copy of that row, with the same bits.
#![cfg_attr(
    not(any(test, feature = "cuda")),
    allow(dead_code, reason = "this build has no device to draw on")
)]

use std::collections::{HashMap, HashSet};

use nucleus_sampling::{CompiledParams, CpuSampler, LogitsRow, Logprobs, Sampler, SamplerState};

use super::rows::{Purpose, drawn, row_of, scored};
use crate::error::EngineError;
use crate::model::{Compute, DrawnTokens, Logits};
use crate::scheduler::{Scheduled, SequenceId};
use crate::sequence::{Drawn, PromptToken, Sequence};

/// A sequence by its name.
pub(super) type Sequences<'a> = dyn Fn(SequenceId) -> &'a Sequence + 'a;

/// What a step gave.
#[derive(Default)]
pub(super) struct Outcome {
    /// Everyone who is sampled, in the order of the runs, with the token; none while it is on the device.
    pub(super) drawn: Vec<(SequenceId, Option<Drawn>)>,
    /// Prompt tokens that are scored, in order.
    pub(super) scored: Vec<(SequenceId, PromptToken)>,
    /// Of whom nothing of it counts.
    pub(super) void: HashSet<SequenceId>,
    /// Whether a token of it tells which may follow, so that the next step waits for it.
    pub(super) is_followed: bool,
}

impl Outcome {
    /// Whether the next step can be queued before the host has looked at this one: all of it is on the device, and nothing waits for a token.
    pub(super) fn may_be_left_behind(&self) -> bool {
        let is_on_device = self.scored.is_empty()
            && !self.drawn.is_empty()
            && self.drawn.iter().all(|(_, drawn)| drawn.is_none());
        is_on_device && !self.is_followed
    }

    fn is_awaited(&self) -> bool {
        self.drawn.iter().any(|(_, drawn)| drawn.is_none())
    }
}

/// A row to draw from, whose history is a slot's.
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotDraw<'a> {
    /// The row of the logits.
    pub(super) logits_row: u32,
    pub(super) slot: u32,
    pub(super) params: &'a CompiledParams,
    /// The tokens that may be drawn, if not all may.
    pub(super) mask: Option<&'a [u32]>,
    /// No more of the likeliest tokens are wanted than [`SlotSampler::most_likeliest`].
    pub(super) logprobs: Logprobs,
}

/// Where the sequence of a slot ends: what is drawn behind that is [`Status::Ended`](nucleus_sampling::Status::Ended).
#[derive(Debug, Clone, Copy)]
pub(super) struct SlotEnding<'a> {
    /// Ids that end it, no more than [`SlotSampler::most_stops`]. Others may: whoever collects the tokens knows them all.
    pub(super) stop_ids: &'a [u32],
    /// The most tokens, prompt and output together.
    pub(super) capacity: usize,
}

/// The tokens of a draw, where they lie.
pub(super) enum Latest {
    /// On the host, because the device is a script; none where a sequence has ended.
    #[cfg_attr(not(test), allow(dead_code, reason = "there is one in tests alone"))]
    Host(Vec<Option<u32>>),
    #[cfg(feature = "cuda")]
    Device(nucleus_sampling::cuda::DeviceTokens),
}

impl Latest {
    pub(super) fn tokens(&self) -> DrawnTokens<'_> {
        match *self {
            Self::Host(ref tokens) => DrawnTokens::Host(tokens),
            #[cfg(feature = "cuda")]
            Self::Device(tokens) => DrawnTokens::Device(tokens),
        }
    }
}

/// Draws tokens where the logits lie, from histories that are kept there. What is queued is done in the order in which it was queued,
/// after the forward pass that was queued before.
pub(super) trait SlotSampler: Send {
    /// Gives a slot the history of a sequence.
    fn restore(
        &mut self,
        slot: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError>;

    /// Gives the slot `to` the tokens of `from`, which are those of `state`.
    fn fork(
        &mut self,
        from: u32,
        to: u32,
        state: &SamplerState,
        ending: SlotEnding<'_>,
    ) -> Result<(), EngineError>;

    /// The slot's sequence is evicted or over.
    fn free(&mut self, slot: u32);

    /// The most of the likeliest tokens that a draw tells.
    fn most_likeliest(&self) -> u32;

    /// The most ids that end the sequence of a slot.
    fn most_stops(&self) -> usize;

    /// Queues the draw of a token for each row; each is appended to its slot. After an error nothing is queued, and nothing is known of the rows'
    /// slots.
    fn queue(&mut self, logits: Logits<'_>, rows: &[SlotDraw<'_>]) -> Result<(), EngineError>;

    /// Waits for the oldest draw that is queued; its tokens, row by row, with the likeliest ones where they are wanted.
    fn collect(&mut self, out: &mut Vec<Drawn>) -> Result<(), EngineError>;

    /// The tokens of the draw that was queued last.
    fn latest(&self) -> Latest;

    /// Copies a row of logits to the host.
    fn read_row(
        &mut self,
        logits: Logits<'_>,
        row: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError>;
}

/// Where tokens are drawn.
pub(super) enum Drawing {
    Host(HostDraw),
    Device(DeviceDraw),
}

impl Drawing {
    /// The drawing that belongs to a model: room for so many sequences of so many tokens each, on a device. Every sequence ends with any of the ids
    /// `ends`.
    pub(super) fn of(
        compute: Compute,
        sequences: usize,
        tokens: usize,
        ends: &[u32],
    ) -> Result<Self, EngineError> {
        match compute {
            Compute::Host => {
                // The host keeps each history with its sequence.
                let _ = (sequences, tokens, ends);
                Ok(Self::Host(HostDraw::default()))
            }
            #[cfg(feature = "cuda")]
            Compute::Cuda(stream) => {
                let sampler = super::cuda::CudaSlots::new(stream, sequences, tokens)?;
                let sampler = Box::new(sampler);
                Ok(Self::Device(DeviceDraw::new(sampler, sequences, ends)))
            }
        }
    }
}

/// Draws on the host.
#[derive(Default)]
pub(super) struct HostDraw {
    sampler: CpuSampler,
}

impl HostDraw {
    /// Draws a token for everyone whose newest token the model has seen, and scores the prompts that are to be.
    pub(super) fn draw(
        &mut self,
        logits: Logits<'_>,
        purposes: &[Purpose<'_>],
        sequences: &Sequences<'_>,
    ) -> Result<Outcome, EngineError> {
        let (data, vocab) = logits.on_host().ok_or_else(|| {
            EngineError::Unsupported("logits on a device are not drawn from on the host".into())
        })?;
        let sampler = &mut self.sampler;
        let mut outcome = Outcome::default();
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        for (logits, purpose) in data.chunks_exact(vocab).zip(purposes) {
            let row = |id| row_of(LogitsRow::F32(logits), sequences(id));
            match *purpose {
                Purpose::Score(id, token) => {
                    let token = scored(sampler, row(id), token);
                    outcome.scored.push((id, token));
                }
                Purpose::Draw(run) => {
                    ids.extend(run.sampled());
                    rows.extend(run.sampled().map(row));
                }
            }
        }
        let mut sampled = Vec::with_capacity(rows.len());
        sampler.sample_batch(&rows, &mut sampled);
        let tokens = ids.into_iter().zip(rows.iter().zip(sampled));
        outcome.drawn.extend(tokens.map(|(id, (row, token))| {
            let wants_logits = sequences(id).wants_logits();
            (id, Some(drawn(sampler, row, token, wants_logits)))
        }));
        Ok(outcome)
    }
}

/// Draws on a device.
pub(super) struct DeviceDraw {
    sampler: Box<dyn SlotSampler>,
    /// For what the device does not tell.
    host: CpuSampler,
    slots: HashMap<SequenceId, u32>,
    free: Vec<u32>,
    /// Ids that end every sequence.
    ends: Vec<u32>,
    /// Whose tokens the latest draw is, and in which row.
    latest: HashMap<SequenceId, u32>,
    /// A row of logits that was copied, and which.
    copied: Vec<f32>,
}

impl DeviceDraw {
    /// A sampler with slots `0..count`, all free.
    pub(super) fn new(sampler: Box<dyn SlotSampler>, count: usize, ends: &[u32]) -> Self {
        Self {
            sampler,
            host: CpuSampler::new(),
            slots: HashMap::new(),
            free: (0..count as u32).rev().collect(),
            ends: ends.to_vec(),
            latest: HashMap::new(),
            copied: Vec::new(),
        }
    }

    /// Whether the next token of a sequence is drawn on the host.
    fn needs_host(&self, sequence: &Sequence) -> bool {
        sequence.wants_logits() || sequence.logprobs().top > self.sampler.most_likeliest()
    }

    /// Gives everyone who is sampled from these runs on the device a slot, if it has none.
    ///
    /// # Panics
    /// If more sequences run than there are slots.
    pub(super) fn admit(
        &mut self,
        runs: &[Scheduled],
        sequences: &Sequences<'_>,
    ) -> Result<(), EngineError> {
        for run in runs {
            for id in run.sampled() {
                let sequence = sequences(id);
                if self.needs_host(sequence) || self.slots.contains_key(&id) {
                    continue;
                }
                let slot = self.free.pop().expect("a slot for each that may run");
                let mut stop_ids = [&self.ends, sequence.stop_token_ids()].concat();
                stop_ids.truncate(self.sampler.most_stops());
                let ending = SlotEnding {
                    stop_ids: &stop_ids,
                    capacity: sequence.capacity(),
                };
                let given = match self.slots.get(&run.id) {
                    Some(&leader) => self.sampler.fork(leader, slot, &sequence.state, ending),
                    None => self.sampler.restore(slot, &sequence.state, ending),
                };
                if let Err(error) = given {
                    self.free.push(slot);
                    return Err(error);
                }
                self.slots.insert(id, slot);
            }
        }
        Ok(())
    }

    /// Queues the draws of a step; what the device does not tell is computed here, from the rows that it needs.
    pub(super) fn draw(
        &mut self,
        logits: Logits<'_>,
        purposes: &[Purpose<'_>],
        sequences: &Sequences<'_>,
    ) -> Result<Outcome, EngineError> {
        let mut outcome = Outcome::default();
        let mut rows = Vec::new();
        self.latest.clear();
        for (index, purpose) in purposes.iter().enumerate() {
            // Rows that the host needs are copied when they are reached, and the device is waited for.
            let mut is_copied = false;
            let mut copied = |this: &mut Self| {
                if std::mem::replace(&mut is_copied, true) {
                    return Ok(());
                }
                this.sampler.read_row(logits, index, &mut this.copied)
            };
            match *purpose {
                Purpose::Score(id, token) => {
                    copied(self)?;
                    let row = row_of(LogitsRow::F32(&self.copied), sequences(id));
                    let token = scored(&mut self.host, row, token);
                    outcome.scored.push((id, token));
                }
                Purpose::Draw(run) => {
                    for id in run.sampled() {
                        let sequence = sequences(id);
                        if self.needs_host(sequence) {
                            copied(self)?;
                            let row = row_of(LogitsRow::F32(&self.copied), sequence);
                            let token = self.host.sample(&row);
                            let wants = sequence.wants_logits();
                            let token = drawn(&mut self.host, &row, token, wants);
                            outcome.drawn.push((id, Some(token)));
                        } else {
                            outcome.is_followed |= sequence.mask().is_some();
                            self.latest.insert(id, rows.len() as u32);
                            rows.push(SlotDraw {
                                logits_row: index as u32,
                                slot: self.slots[&id],
                                params: &sequence.params,
                                mask: sequence.mask(),
                                logprobs: sequence.logprobs(),
                            });
                            outcome.drawn.push((id, None));
                        }
                    }
                }
            }
        }
        if rows.is_empty() {
            return Ok(outcome);
        }
        let queued = self.sampler.queue(logits, &rows);
        if queued.is_err() {
            // What their slots hold is not known: they are restored when their sequences draw next.
            let drawn: Vec<SequenceId> = self.latest.drain().map(|(id, _)| id).collect();
            drawn.into_iter().for_each(|id| self.release(id));
        }
        queued.map(|()| outcome)
    }

    /// Waits for the tokens of a step, which is the oldest that has not been collected.
    pub(super) fn collect(&mut self, outcome: &mut Outcome) -> Result<(), EngineError> {
        if !outcome.is_awaited() {
            return Ok(());
        }
        let mut tokens = Vec::with_capacity(outcome.drawn.len());
        self.sampler.collect(&mut tokens)?;
        let awaited = outcome.drawn.iter_mut();
        let awaited = awaited.filter_map(|(_, drawn)| drawn.is_none().then_some(drawn));
        for (drawn, token) in awaited.zip(tokens) {
            *drawn = Some(token);
        }
        Ok(())
    }

    /// The tokens of the latest draw.
    pub(super) fn latest(&self) -> Latest {
        self.sampler.latest()
    }

    /// The row of the latest draw that is a sequence's.
    pub(super) fn latest_row(&self, id: SequenceId) -> Option<u32> {
        self.latest.get(&id).copied()
    }

    /// The sequence does not run any more.
    pub(super) fn release(&mut self, id: SequenceId) {
        if let Some(slot) = self.slots.remove(&id) {
            self.sampler.free(slot);
            self.free.push(slot);
        }
    }

    /// Checks that those have slots who run and draw on the device, each its own, and that no slot is lost.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self, runs: impl Fn(SequenceId) -> bool, count: usize) {
        let mut slots: Vec<u32> = self.slots.values().chain(&self.free).copied().collect();
        slots.sort_unstable();
        assert!(
            slots.into_iter().eq(0..count as u32),
            "a slot is lost, or given twice"
        );
        for &id in self.slots.keys() {
            assert!(runs(id), "{id:?} has a slot and does not run");
        }
    }
}
