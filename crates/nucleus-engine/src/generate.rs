//! The generation loop, schedule → forward → sample → commit, and the handle that requests go through.
//!
//! One thread owns the model, the scheduler and the sampler. [`Engine`] is a cheap handle to it: it can be cloned,
//! shared between threads and used from async code. Each request gets a [`Generation`], a stream of events that ends
//! with exactly one [`Event::End`] or [`Event::Failed`]; dropping it cancels the request.

mod at_work;
#[cfg(feature = "cuda")]
mod cuda;
mod draw;
mod rows;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod simulation;
mod step;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nucleus_sampling::{
    CompiledParams, Logprobs, LogprobsMode, ParamError, SamplingParams, Status, VocabInfo,
    random_seed,
};
use tokio::sync::mpsc as events;

use self::draw::Drawing;
use crate::constraint::{Constraint, ConstraintError, Format, Formats};
use crate::error::EngineError;
use crate::kv_cache::BlockPool;
use crate::model::{Compute, KvLayout, Model, ModelSpec};
use crate::models::Device;
use crate::scheduler::{AdmissionError, Scheduler, SchedulerCounters, SchedulerLimits, SequenceId};
use crate::sequence::{Completion, PromptToken, Sequence, SequenceParts, TokenEvent};
use crate::stop::{StopError, StopMatcher};
use crate::tokenizer::Tokenizer;

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// How to sample. Without a seed one is drawn, and said in [`Generation::seed`].
    pub params: SamplingParams,
    /// Most tokens to generate; `None` is as many as the context holds. With 0 the prompt is computed, and nothing drawn.
    pub max_tokens: Option<usize>,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether the stop string or the stop token that ends the text is part of it.
    pub include_stop: bool,
    /// Tokens that end the text besides the model's own. `min_tokens` bans them as it bans those.
    pub stop_token_ids: Vec<u32>,
    /// What the text must be ([`Engine::constraint`]). It ends where it is that and nothing can follow; `max_tokens` and stops may end it before.
    pub constraint: Option<Constraint>,
    /// How many of the likeliest tokens each [`TokenEvent`] carries with their log-probabilities.
    pub top_logprobs: u32,
    /// The distribution of which log-probabilities are told.
    pub logprobs_mode: LogprobsMode,
    /// Whether an [`Event::Prompt`] tells the log-probabilities of the prompt's own tokens, and of `top_logprobs` others.
    /// They are of the model's own distribution in either mode.
    pub prompt_logprobs: bool,
    /// Whether the first [`TokenEvent`] carries the logits that it was drawn from.
    pub first_logits: bool,
    /// When to end for want of time.
    pub time_limits: TimeLimits,
}

/// How long a request may take. Time is looked at between tokens: the one that is drawn when it is over is the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeLimits {
    /// From submission. A request that has no token by then ends without one.
    pub total: Option<Duration>,
    /// From the first token on, once the output has a newline in it: never in the middle of the first line.
    pub after_newline: Option<Duration>,
}

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Event {
    /// The prompt's tokens with their log-probabilities, if the request wants them. It comes before any token.
    Prompt(Vec<PromptToken>),
    /// A token was drawn.
    Token(TokenEvent),
    /// The sequence ended. Nothing follows.
    End(Completion),
    /// The sequence failed. Nothing follows.
    Failed(GenerationError),
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Params(#[from] ParamError),
    /// There is nothing to continue.
    #[error("prompt is empty; it must have at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room for output.
    #[error(
        "prompt has {tokens} tokens; the context of {context_length} must leave room for at least one more"
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// The model's context.
        context_length: usize,
    },
    /// A prompt token is not in the vocabulary.
    #[error("prompt token {id} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// A stop string cannot be matched.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// A stop token is not in the vocabulary.
    #[error("stop_token_ids: {id} is not in the vocabulary of {vocab_size}")]
    UnknownStopToken {
        /// The token.
        id: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// The sampler knows one set of tokens that end a text: it cannot ban one part of it for a while and another for good.
    #[error("stop_token_ids: cannot be used together with both min_tokens and ignore_eos")]
    StopTokensWithoutEnd,
    /// The queue is full.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The engine takes no more requests.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The engine can run nothing any more.
    #[error("the engine has failed: {0}")]
    Failed(String),
}

/// Why an accepted request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerationError {
    /// The model produced a row of logits that nothing can be drawn from.
    #[error("no token can be drawn at position {position}: {status}")]
    Row {
        /// 0-based index of the token that could not be drawn.
        position: usize,
        /// What was wrong with the row.
        status: Status,
    },
    /// The output cannot be held to its format any longer.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The forward pass failed.
    #[error("the model failed: {0}")]
    Model(String),
    /// The device failed so that nothing runs on it any more in this process.
    #[error("{0}")]
    DeviceLost(String),
    /// The engine stopped without ending the request.
    #[error("the engine stopped")]
    EngineStopped,
}

/// Bounds of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most sequences that run at once.
    pub max_running: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// Most tokens in a step; prompts share what decoding leaves.
    pub step_tokens: usize,
    /// Whether a prompt that begins like an earlier one finds its keys and values in the cache. It changes no token.
    pub prefix_reuse: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_running: 64,
            max_waiting: 512,
            step_tokens: 512,
            prefix_reuse: true,
        }
    }
}

impl EngineOptions {
    /// Rows of logits that a step may have: one for each that runs, and those of prompts that are scored.
    pub fn logit_rows(&self) -> usize {
        self.max_running + step::SCORED_ROWS
    }

    /// The bounds on such a device: no more sequences run at once there than one launch draws for.
    fn on(self, compute: Compute) -> Self {
        match compute {
            Compute::Host => self,
            #[cfg(feature = "cuda")]
            Compute::Cuda(_) => Self {
                max_running: self.max_running.min(cuda::MOST_SEQUENCES),
                ..self
            },
        }
    }
}

fn device_of(compute: Compute) -> Device {
    match compute {
        Compute::Host => Device::Cpu,
        #[cfg(feature = "cuda")]
        Compute::Cuda(stream) => Device::Cuda(stream.device()),
    }
}

fn name_of(compute: Compute) -> Option<String> {
    match compute {
        Compute::Host => None,
        #[cfg(feature = "cuda")]
        Compute::Cuda(stream) => {
            let info = nucleus_sampling::cuda::device_info(stream.device());
            info.ok().map(|info| info.name)
        }
    }
}

/// A device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that nobody has allocated, in this process or another.
    pub free_bytes: u64,
    /// All bytes that can be.
    pub total_bytes: u64,
}

/// Most tokens, of prompt and output, that a sequence of this model may have.
fn longest_sequence(model: &dyn Model) -> usize {
    let layout = model.kv_layout();
    let cached = layout.blocks.saturating_mul(layout.block_size);
    // One that nobody sees is drawn after a prompt that fills the cache.
    model.spec().context_length.min(cached.saturating_add(1))
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sequences that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Cache blocks in use.
    pub used_blocks: usize,
    /// Cache blocks in all.
    pub blocks: usize,
}

/// A handle to the thread that generates.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// A request's events.
pub struct Generation {
    id: SequenceId,
    params: CompiledParams,
    seed: u64,
    receiver: events::UnboundedReceiver<Event>,
    commands: mpsc::Sender<Command>,
    ended: bool,
}

/// Cancels one request, from anywhere, any number of times.
#[derive(Clone)]
pub struct CancelHandle {
    id: SequenceId,
    commands: mpsc::Sender<Command>,
}

struct Shared {
    spec: ModelSpec,
    tokenizer: Arc<Tokenizer>,
    vocab: VocabInfo,
    /// Made when they are first needed.
    formats: OnceLock<Result<Formats, ConstraintError>>,
    kv_layout: KvLayout,
    options: EngineOptions,
    next_id: AtomicU64,
    accepting: AtomicBool,
    /// Why nothing runs any more.
    failure: OnceLock<String>,
    device: Device,
    device_name: Option<String>,
    gauges: Gauges,
}

impl Shared {
    /// Nothing runs any more.
    fn fail(&self, reason: String) {
        // The first reason is the one that counts.
        let _ = self.failure.set(reason);
        self.accepting.store(false, Ordering::Release);
    }

    /// Why a request is not taken once the engine takes none.
    fn closed(&self) -> SubmitError {
        match self.failure.get() {
            Some(reason) => SubmitError::Failed(reason.clone()),
            None => SubmitError::ShuttingDown,
        }
    }
}

/// Written by the engine thread after every step, read by anyone.
#[derive(Default)]
struct Gauges {
    running: AtomicUsize,
    waiting: AtomicUsize,
    used_blocks: AtomicUsize,
    admitted_tokens: AtomicU64,
    reused_tokens: AtomicU64,
    evictions: AtomicU64,
    copies: AtomicU64,
}

enum Command {
    Submit {
        submissions: Vec<Submission>,
        admitted: mpsc::SyncSender<Result<(), AdmissionError>>,
    },
    Cancel(SequenceId),
    Shutdown {
        abort: bool,
    },
}

/// A request on its way to the engine's thread.
struct Submission {
    id: SequenceId,
    sequence: Box<Sequence>,
    /// Most tokens of prompt and output.
    capacity: usize,
    events: events::UnboundedSender<Event>,
}

impl Engine {
    /// Starts the engine's thread. It ends when the last handle and generation are gone, or at [`Engine::shutdown`]; or when the device is
    /// lost ([`Engine::failure`]).
    ///
    /// # Errors
    /// When the model's device has no memory for the sampler.
    pub fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<(Self, EngineThread), EngineError> {
        let options = options.on(model.compute());
        let tokens = longest_sequence(&*model);
        let ends = tokenizer.end_of_generation();
        let drawing = Drawing::of(model.compute(), options.max_running, tokens, ends)?;
        let (engine, worker) = Self::new(model, drawing, tokenizer, options);
        let shared = Arc::clone(&engine.shared);
        let thread = std::thread::Builder::new()
            .name("nucleus-engine".into())
            .spawn(move || {
                let _told = TellOfPanic(shared);
                worker.run();
            })
            .expect("the operating system can start a thread");
        let thread = EngineThread {
            thread: Some(thread),
        };
        Ok((engine, thread))
    }

    /// The handle, and what the thread runs.
    fn new(
        model: Box<dyn Model>,
        drawing: Drawing,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> (Self, step::Worker) {
        let layout = model.kv_layout();
        let limits = SchedulerLimits {
            running: options.max_running,
            waiting: options.max_waiting,
            step_tokens: options.step_tokens,
            prefix_reuse: options.prefix_reuse,
        };
        let spec = model.spec().clone();
        // Ids that the model's head has and the tokenizer has not are padding: never drawn.
        let ids = tokenizer.vocab_size().min(spec.vocab_size);
        let vocab = VocabInfo::new(ids as u32).with_eos(tokenizer.end_of_generation());
        let shared = Arc::new(Shared {
            spec,
            tokenizer,
            vocab,
            formats: OnceLock::new(),
            kv_layout: layout,
            options,
            next_id: AtomicU64::new(0),
            accepting: AtomicBool::new(true),
            failure: OnceLock::new(),
            device: device_of(model.compute()),
            device_name: name_of(model.compute()),
            gauges: Gauges::default(),
        });
        let scheduler = Scheduler::new(limits, layout.block_size, BlockPool::new(layout.blocks));
        let (commands, inbox) = mpsc::channel();
        let worker = step::Worker::new(model, drawing, scheduler, Arc::clone(&shared), inbox);
        (Self { shared, commands }, worker)
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.shared.spec
    }

    /// The model's vocabulary.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.shared.tokenizer
    }

    /// The tokens that can be drawn, and those that end a text.
    pub fn vocab(&self) -> &VocabInfo {
        &self.shared.vocab
    }

    /// The KV cache's shape.
    pub fn kv_layout(&self) -> KvLayout {
        self.shared.kv_layout
    }

    /// The engine's bounds.
    pub fn options(&self) -> EngineOptions {
        self.shared.options
    }

    /// Compiles an output format for this model's vocabulary. The first takes longer: a second for 128,000 tokens.
    ///
    /// # Errors
    /// When the format is not sound, too long or too complex.
    pub fn constraint(&self, format: Format) -> Result<Constraint, ConstraintError> {
        let shared = &self.shared;
        let formats = shared
            .formats
            .get_or_init(|| Formats::new(&shared.tokenizer, shared.vocab.size as usize));
        formats.as_ref().map_err(Clone::clone)?.compile(format)
    }

    /// Compiles parameters for this model's vocabulary without submitting anything.
    pub fn validate(&self, params: &SamplingParams) -> Result<CompiledParams, ParamError> {
        params.validate(&self.shared.vocab)
    }

    /// Queues a request. Returns once the engine has accepted or refused it.
    pub fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let mut generations = self.submit_together(vec![request])?;
        Ok(generations.pop().expect("one for one request"))
    }

    /// Queues requests that belong together: all are accepted, or none is. Those with the same prompt compute it once, and
    /// share its blocks of the cache.
    pub fn submit_together(&self, requests: Vec<Request>) -> Result<Vec<Generation>, SubmitError> {
        let prepared = requests.into_iter().map(|request| self.prepare(request));
        let (submissions, generations): (Vec<_>, Vec<_>) =
            prepared.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        if !self.shared.accepting.load(Ordering::Acquire) {
            return Err(self.shared.closed());
        }
        let (admitted, admission) = mpsc::sync_channel(1);
        let command = Command::Submit {
            submissions,
            admitted,
        };
        self.commands
            .send(command)
            .map_err(|_| self.shared.closed())?;
        match admission.recv() {
            Ok(Ok(())) => Ok(generations),
            refused => {
                // Nothing was queued, so that there is nothing to cancel.
                generations.into_iter().for_each(Generation::forget);
                Err(refused.map_or_else(
                    |_| self.shared.closed(),
                    |refused| {
                        refused
                            .expect_err("the other arm took what was accepted")
                            .into()
                    },
                ))
            }
        }
    }

    /// Checks a request, and makes the two ends of its way.
    fn prepare(&self, request: Request) -> Result<(Submission, Generation), SubmitError> {
        let max_tokens = self.check_length(&request)?;
        let seed = request.params.seed.unwrap_or_else(random_seed);
        let params = SamplingParams {
            seed: Some(seed),
            ..request.params
        };
        let vocab = self.ending_at(&request.stop_token_ids, &params)?;
        let params = params.validate(&vocab)?;
        let stop = StopMatcher::new(&request.stop)?.including_stop(request.include_stop);
        let capacity = request.prompt.len() + max_tokens;
        let id = SequenceId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let sequence = Box::new(Sequence::new(SequenceParts {
            prompt: request.prompt,
            max_tokens,
            params: params.clone(),
            stop,
            stop_token_ids: request.stop_token_ids,
            constraint: request.constraint,
            include_stop_token: request.include_stop,
            logprobs: Logprobs {
                top: request.top_logprobs,
                mode: request.logprobs_mode,
            },
            prompt_logprobs: request.prompt_logprobs,
            first_logits: request.first_logits,
            time_limits: request.time_limits,
        }));
        let (events, receiver) = events::unbounded_channel();
        let submission = Submission {
            id,
            sequence,
            capacity,
            events,
        };
        let generation = Generation {
            id,
            params,
            seed,
            receiver,
            commands: self.commands.clone(),
            ended: false,
        };
        Ok((submission, generation))
    }

    /// Why nothing runs any more; `None` while all is well. Whoever ran or waited has been told.
    pub fn failure(&self) -> Option<&str> {
        self.shared.failure.get().map(String::as_str)
    }

    /// Where the model computes.
    pub fn device(&self) -> Device {
        self.shared.device
    }

    /// What that device calls itself; nothing for the CPU.
    pub fn device_name(&self) -> Option<&str> {
        self.shared.device_name.as_deref()
    }

    /// The memory of that device, as of now; nothing for the CPU, and when the device does not answer.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        match self.shared.device {
            Device::Cpu => None,
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                nucleus_sampling::cuda::device_memory(device)
                    .ok()
                    .map(|memory| DeviceMemory {
                        free_bytes: memory.free_bytes,
                        total_bytes: memory.total_bytes,
                    })
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => None,
        }
    }

    /// How busy the engine is, as of its last step.
    pub fn load(&self) -> Load {
        let gauges = &self.shared.gauges;
        Load {
            running: gauges.running.load(Ordering::Relaxed),
            waiting: gauges.waiting.load(Ordering::Relaxed),
            used_blocks: gauges.used_blocks.load(Ordering::Relaxed),
            blocks: self.shared.kv_layout.blocks,
        }
    }

    /// What the scheduler has done, as of its last step.
    pub fn counters(&self) -> SchedulerCounters {
        let gauges = &self.shared.gauges;
        SchedulerCounters {
            admitted_tokens: gauges.admitted_tokens.load(Ordering::Relaxed),
            reused_tokens: gauges.reused_tokens.load(Ordering::Relaxed),
            evictions: gauges.evictions.load(Ordering::Relaxed),
            copies: gauges.copies.load(Ordering::Relaxed),
        }
    }

    /// Refuses new requests from now on. With `abort`, ends those that run or wait too; else they run to their end.
    pub fn shutdown(&self, abort: bool) {
        self.shared.accepting.store(false, Ordering::Release);
        // The thread may have ended already; then there is nothing left to shut down.
        let _ = self.commands.send(Command::Shutdown { abort });
    }

    /// The vocabulary of a request: its own stop tokens end a text too, as far as `min_tokens` is concerned.
    fn ending_at(
        &self,
        stop_token_ids: &[u32],
        params: &SamplingParams,
    ) -> Result<VocabInfo, SubmitError> {
        let vocab = &self.shared.vocab;
        if let Some(&id) = stop_token_ids.iter().find(|&&id| id >= vocab.size) {
            let vocab_size = vocab.size as usize;
            return Err(SubmitError::UnknownStopToken { id, vocab_size });
        }
        let banned = params.min_tokens.is_some_and(|tokens| tokens > 0);
        if stop_token_ids.is_empty() || !banned {
            return Ok(vocab.clone());
        }
        if params.ignore_eos == Some(true) {
            return Err(SubmitError::StopTokensWithoutEnd);
        }
        Ok(VocabInfo::new(vocab.size).with_eos(&[&vocab.eos, stop_token_ids].concat()))
    }

    fn check_length(&self, request: &Request) -> Result<usize, SubmitError> {
        let context_length = self.shared.spec.context_length;
        let vocab_size = self.shared.spec.vocab_size;
        let tokens = request.prompt.len();
        if tokens == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if tokens >= context_length {
            return Err(SubmitError::PromptTooLong {
                tokens,
                context_length,
            });
        }
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { id, vocab_size });
        }
        Ok(request
            .max_tokens
            .unwrap_or(usize::MAX)
            .min(context_length - tokens))
    }
}

/// Notes that the engine has failed, should its thread panic.
struct TellOfPanic(Arc<Shared>);

impl Drop for TellOfPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("it stopped unexpectedly".into());
        }
    }
}

/// Joins the engine's thread.
pub struct EngineThread {
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Waits until the engine's thread has ended. Returns whether it ended without a panic.
    pub fn join(mut self) -> bool {
        self.thread
            .take()
            .is_none_or(|thread| thread.join().is_ok())
    }

    /// Whether the thread has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Generation {
    /// The seed in use: the request's, or the one drawn for it.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The parameters in use.
    pub fn params(&self) -> &CompiledParams {
        &self.params
    }

    /// A way to cancel that outlives this value.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle {
            id: self.id,
            commands: self.commands.clone(),
        }
    }

    /// The next event; `None` after the last one. An engine that stopped without a word is a failure.
    pub async fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.receiver.recv().await;
        Some(self.note(event))
    }

    /// [`Generation::next`], blocking this thread.
    pub fn blocking_next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.receiver.blocking_recv();
        Some(self.note(event))
    }

    /// Lets go of a request that was never queued.
    fn forget(mut self) {
        self.ended = true;
    }

    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or(Event::Failed(GenerationError::EngineStopped));
        self.ended = matches!(event, Event::End(_) | Event::Failed(_));
        event
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.ended {
            self.cancel_handle().cancel();
        }
    }
}

impl CancelHandle {
    /// Ends the request before its next token. Without effect once it has ended.
    pub fn cancel(&self) {
        // A closed channel means that the engine has ended, and every request with it.
        let _ = self.commands.send(Command::Cancel(self.id));
    }
}
