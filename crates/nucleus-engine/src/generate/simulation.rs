//! The engine's loop, its scheduler and its cache under clients that come, read, stop reading, cancel and leave, and a model
//! that fails: one thread, no clock, everything from one seed.
//!
//! `NUCLEUS_SIM_SEED=N` replays the episode of one seed, `NUCLEUS_SIM_STEPS=N` runs for longer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, mpsc};

use nucleus_sampling::{
    CpuSampler, LogitsRow, Logprobs, LogprobsMode, Row, Sampler, SamplerState, SamplingParams,
    TokenLogprob,
};
use tokio::sync::mpsc::error::TryRecvError;

use super::draw::{DeviceDraw, Drawing, HostDraw};
use super::scripted::ScriptedSlots;
use super::step::Worker;
use super::{
    Command, Engine, EngineOptions, Event, Generation, GenerationError, Request, SubmitError,
};
use crate::constraint::{Constraint, Format, Progress};
use crate::gguf::ModelFile;
use crate::model::KvLayout;
use crate::scheduler::AdmissionError;
use crate::sequence::{Completion, FinishReason};
use crate::testing::{Fault, Faults, ScriptedModel};
use crate::tokenizer::Tokenizer;

/// Steps of all episodes together.
const STEPS: u64 = 1_000_000;
/// Steps of an episode in which clients come.
const BUSY_STEPS: u64 = 1_500;
/// Steps after which an episode must have come to its end, once nobody comes any more.
const PATIENCE: u64 = 5_000;
const VOCAB_SIZE: usize = 24;
const CONTEXT_LENGTH: usize = 64;

#[test]
fn a_million_steps() {
    be_quiet_about_scripted_panics();
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let tokenizer = tokenizer();
    if let Some(seed) = number("NUCLEUS_SIM_SEED") {
        println!("{:?}", Episode::run(seed, &tokenizer));
        return;
    }
    let wanted = number("NUCLEUS_SIM_STEPS").unwrap_or(STEPS);
    let (steps, seeds) = (AtomicU64::new(0), AtomicU64::new(0));
    let total = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while steps.load(Ordering::Relaxed) < wanted {
                    let tally = Episode::run(seeds.fetch_add(1, Ordering::Relaxed), &tokenizer);
                    steps.fetch_add(tally.steps, Ordering::Relaxed);
                    total.lock().unwrap().add(&tally);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{seeds:?} episodes: {total:?}");
    total.assert_everything_happened();
}

#[test]
fn an_episode_replays() {
    be_quiet_about_scripted_panics();
    let tokenizer = tokenizer();
    for seed in [3, 1 << 40] {
        assert_eq!(
            Episode::run(seed, &tokenizer),
            Episode::run(seed, &tokenizer)
        );
    }
}

fn tokenizer() -> Arc<Tokenizer> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
    let file = ModelFile::open(path).unwrap();
    Arc::new(Tokenizer::from_gguf(file.metadata()).unwrap())
}

/// A format whose masks depend on how many tokens came before, and which goes on for ever.
fn constraint(engine: &Engine) -> Constraint {
    static COMPILED: Mutex<Option<Constraint>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap();
    let compile = || {
        let format = Format::Regex(r#"([^!-%][^&-)])*[^!-%]?"#.into());
        engine.constraint(format).unwrap()
    };
    compiled.get_or_insert_with(compile).clone()
}

/// Panics on purpose are no news; others are told as ever.
fn be_quiet_about_scripted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some("scripted panic") {
                tell(info);
            }
        }));
    });
}

/// What happened, so that it is known to have happened.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    steps: u64,
    accepted: u64,
    refused: u64,
    finished: u64,
    cancelled: u64,
    aborted: u64,
    disconnected: u64,
    rows_failed: u64,
    models_failed: u64,
    memory_failed: u64,
    devices_lost: u64,
    engines_stopped: u64,
    /// Steps on a device, and those that it ran before the tokens of the one before were looked at.
    device_steps: u64,
    steps_ahead: u64,
    /// Rows of sequences that had ended on the device when they ran.
    ended_rows: u64,
    stop_tokens: u64,
    stop_strings: u64,
    tokens: u64,
    /// Tokens drawn under a mask.
    constrained: u64,
    evictions: u64,
    reused_tokens: u64,
    copies: u64,
    /// Times that the oldest was computed again from its beginning.
    set_back: u64,
}

impl Tally {
    fn fields(&mut self) -> [&mut u64; 23] {
        [
            &mut self.steps,
            &mut self.accepted,
            &mut self.refused,
            &mut self.finished,
            &mut self.cancelled,
            &mut self.aborted,
            &mut self.disconnected,
            &mut self.rows_failed,
            &mut self.models_failed,
            &mut self.memory_failed,
            &mut self.devices_lost,
            &mut self.device_steps,
            &mut self.steps_ahead,
            &mut self.ended_rows,
            &mut self.stop_tokens,
            &mut self.stop_strings,
            &mut self.engines_stopped,
            &mut self.tokens,
            &mut self.constrained,
            &mut self.evictions,
            &mut self.reused_tokens,
            &mut self.copies,
            &mut self.set_back,
        ]
    }

    fn add(&mut self, other: &Self) {
        let mut other = Self { ..*other };
        for (sum, value) in self.fields().into_iter().zip(other.fields()) {
            *sum += *value;
        }
    }

    fn assert_everything_happened(mut self) {
        let happened = self.fields().into_iter().all(|count| *count > 20);
        assert!(happened, "{self:?}");
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A client and what it knows.
struct Client {
    request: Request,
    /// `None` once it has gone away.
    generation: Option<Generation>,
    id: super::SequenceId,
    /// Whether the prompt's scores have come.
    scored: bool,
    received: Vec<u32>,
    /// The likeliest tokens at the place of each.
    top_logprobs: Vec<Vec<TokenLogprob>>,
    text: String,
    cancelled: bool,
    /// Whether keys and values were NaN while it was there.
    saw_nan: bool,
    /// What went wrong in the step in which it ended, and in the one before, whose tokens may come as late.
    faults: [Option<Fault>; 2],
    ended: bool,
    reads_slowly: bool,
}

struct Episode {
    random: Random,
    seed: u64,
    engine: Engine,
    /// `None` once it has panicked.
    worker: Option<Worker>,
    faults: Faults,
    fault_before: Option<Fault>,
    is_on_device: bool,
    ended_rows: Arc<AtomicU64>,
    oracle: Oracle,
    clients: Vec<Client>,
    aborted: bool,
    /// How often something happens: once in so many steps.
    arrivals: usize,
    tally: Tally,
}

/// Says which episode failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "replay with NUCLEUS_SIM_SEED={seed} cargo test -p nucleus-engine simulation"
            );
        }
    }
}

impl Episode {
    fn run(seed: u64, tokenizer: &Arc<Tokenizer>) -> Tally {
        let _named = Named(seed);
        let mut episode = Self::new(seed, tokenizer);
        for _ in 0..BUSY_STEPS {
            if episode.worker.is_none() {
                break;
            }
            episode.let_clients_act();
            episode.step();
        }
        episode.finish()
    }

    fn new(seed: u64, tokenizer: &Arc<Tokenizer>) -> Self {
        let mut random = Random(seed);
        let layout = KvLayout {
            block_size: 1 + random.below(5),
            blocks: 8 + random.below(60),
            value_bytes: 4,
        };
        let running = 1 + random.below(6);
        let options = EngineOptions {
            max_running: running,
            max_waiting: random.below(8),
            step_tokens: running + random.below(24),
            prefix_reuse: !random.one_in(8),
        };
        let model = || ScriptedModel::new(VOCAB_SIZE, CONTEXT_LENGTH, layout);
        let oracle = Oracle {
            model: model(),
            sampler: CpuSampler::new(),
        };
        let runs_ahead = random.one_in(2);
        let is_on_device = runs_ahead || random.one_in(3);
        let model = model()
            .with_step_tokens(options.step_tokens)
            .running_ahead(runs_ahead);
        let faults = model.faults();
        let slots = ScriptedSlots::new(running, CONTEXT_LENGTH, faults.clone());
        let ended_rows = slots.ended_rows();
        let drawing = if is_on_device {
            let ends = tokenizer.end_of_generation();
            Drawing::Device(DeviceDraw::new(Box::new(slots), running, ends))
        } else {
            Drawing::Host(HostDraw::default())
        };
        let tokenizer = Arc::clone(tokenizer);
        let (engine, worker) = Engine::new(Box::new(model), drawing, tokenizer, options);
        Self {
            arrivals: 1 + random.below(12),
            random,
            seed,
            engine,
            worker: Some(worker),
            faults,
            fault_before: None,
            is_on_device,
            ended_rows,
            oracle,
            clients: Vec::new(),
            aborted: false,
            tally: Tally::default(),
        }
    }

    fn let_clients_act(&mut self) {
        if self.random.one_in(self.arrivals) {
            self.arrive();
        }
        if !self.clients.is_empty() && self.random.one_in(12) {
            let at = self.random.below(self.clients.len());
            self.disturb(at);
        }
        for at in 0..self.clients.len() {
            if !self.clients[at].reads_slowly || self.random.one_in(40) {
                self.read(at);
            }
        }
    }

    /// One to four requests at once, often of the same prompt.
    fn arrive(&mut self) {
        let first = self.request();
        let count = 1 + self.random.below(4) * self.random.below(2);
        let same_prompt = self.random.one_in(2);
        let mut requests = vec![first];
        while requests.len() < count {
            let mut next = self.request();
            if same_prompt {
                next.prompt.clone_from(&requests[0].prompt);
            }
            requests.push(next);
        }
        self.submit(requests);
    }

    fn request(&mut self) -> Request {
        let random = &mut self.random;
        // Three stories that prompts are beginnings of; some take a turn of their own.
        let story = random.below(3) as u64;
        let len = 1 + random.below(CONTEXT_LENGTH - 2);
        let mut tokens = Random(self.seed ^ story);
        let mut prompt: Vec<u32> = (0..len).map(|_| tokens.below(VOCAB_SIZE) as u32).collect();
        if random.one_in(2) {
            let turn = random.below(len);
            let turned = prompt[turn..].iter_mut();
            turned.for_each(|token| *token = random.below(VOCAB_SIZE) as u32);
        }
        // None most often, one, or more than a device looks for.
        let stops = [0, 0, 0, 1, 2, 9][random.below(6)];
        let stop_token_ids = (0..stops)
            .map(|_| random.below(VOCAB_SIZE) as u32)
            .collect();
        let ignore_eos = random.one_in(2);
        let params = SamplingParams {
            min_tokens: (!ignore_eos && random.one_in(3)).then(|| 1 + random.below(9) as u64),
            seed: Some(random.next() >> 32),
            temperature: Some([0.0, 0.7, 1.5][random.below(3)]),
            repetition_penalty: random.one_in(3).then_some(1.3),
            mirostat: random.one_in(5).then_some(2),
            top_k: Some(if random.one_in(8) { 7 } else { 0 }),
            ignore_eos: ignore_eos.then_some(true),
            ..SamplingParams::default()
        };
        Request {
            prompt,
            params,
            max_tokens: Some(random.below(40)),
            stop_token_ids,
            stop: if random.one_in(6) {
                // The text of some token.
                let bytes = self
                    .engine
                    .tokenizer()
                    .token_bytes(random.below(VOCAB_SIZE) as u32);
                let text = std::str::from_utf8(bytes).ok();
                let text = text.filter(|text| !text.is_empty());
                text.map(String::from).into_iter().collect()
            } else {
                Vec::new()
            },
            prompt_logprobs: random.one_in(4),
            // Some that a device tells, and some that it does not.
            top_logprobs: if random.one_in(5) {
                [2, 5][random.below(2)]
            } else {
                0
            },
            logprobs_mode: if random.one_in(4) {
                LogprobsMode::Processed
            } else {
                LogprobsMode::Raw
            },
            first_logits: random.one_in(10),
            constraint: random.one_in(6).then(|| constraint(&self.engine)),
            ..Request::default()
        }
    }

    /// [`Engine::submit_together`], with the engine's thread in this one.
    fn submit(&mut self, requests: Vec<Request>) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        let prepared = requests
            .iter()
            .map(|request| self.engine.prepare(request.clone()));
        let prepared: Result<Vec<_>, SubmitError> = prepared.collect();
        let (submissions, generations): (Vec<_>, Vec<_>) = prepared.unwrap().into_iter().unzip();
        let (admitted, admission) = mpsc::sync_channel(1);
        let command = Command::Submit {
            submissions,
            admitted,
        };
        self.engine.commands.send(command).unwrap();
        worker.take_waiting_commands();
        match admission.try_recv().unwrap() {
            Ok(()) => {}
            Err(AdmissionError::QueueFull { .. } | AdmissionError::TooLong { .. }) => {
                self.tally.refused += generations.len() as u64;
                return generations.into_iter().for_each(Generation::forget);
            }
        }
        self.tally.accepted += generations.len() as u64;
        for (request, generation) in requests.into_iter().zip(generations) {
            self.clients.push(Client {
                request,
                id: generation.id,
                generation: Some(generation),
                scored: false,
                received: Vec::new(),
                top_logprobs: Vec::new(),
                text: String::new(),
                cancelled: false,
                saw_nan: false,
                faults: [None; 2],
                ended: false,
                reads_slowly: self.random.one_in(4),
            });
        }
    }

    /// A client cancels, once or twice, before or after its end; or goes away.
    fn disturb(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let Some(generation) = &client.generation else {
            return;
        };
        client.cancelled |= !client.ended;
        if self.random.one_in(2) {
            generation.cancel_handle().cancel();
            generation.cancel_handle().cancel();
        } else {
            client.generation = None;
            self.tally.disconnected += u64::from(!client.ended);
        }
    }

    /// A step of the engine, with its faults; the oldest sequence must have got on by it.
    fn step(&mut self) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        worker.take_waiting_commands();
        worker.assert_consistent();
        for client in self.clients.iter().filter(|client| client.cancelled) {
            assert!(!worker.is_live(client.id), "cancelled, but not ended");
        }
        let live: Vec<usize> = (0..self.clients.len())
            .filter(|&at| worker.is_live(self.clients[at].id))
            .collect();
        let fault = match self.random.below(600) {
            0..=3 => Some(Fault::NanRow(self.random.below(8))),
            4 => Some(Fault::Error),
            5 => self.random.one_in(6).then_some(Fault::Panic),
            6..=8 => Some(Fault::OutOfMemory(self.random.below(6))),
            10..=11 if self.is_on_device => Some(Fault::NoSlot),
            12..=13 if self.is_on_device => Some(Fault::NoDraw),
            9 if self.random.one_in(6) => Some(Fault::DeviceLost),
            9 if self.is_on_device && self.random.one_in(6) => Some(Fault::DrawLost),
            _ => None,
        };
        self.faults.set(fault);
        if let Some(Fault::NanRow(_)) = fault {
            live.iter().for_each(|&at| self.clients[at].saw_nan = true);
        }
        self.tally.steps += 1;
        let oldest = worker.scheduler().oldest();
        if catch_unwind(AssertUnwindSafe(|| worker.step())).is_err() {
            assert_eq!(fault, Some(Fault::Panic));
            self.keep_counters();
            self.worker = None;
        } else if self.engine.failure().is_some() {
            assert!(matches!(fault, Some(Fault::DeviceLost | Fault::DrawLost)));
            assert!(!worker.is_busy(), "a request outlives the device");
            self.tally.devices_lost += 1;
            self.keep_counters();
            self.worker = None;
        } else {
            worker.assert_consistent();
            self.tally.device_steps += u64::from(self.is_on_device);
            self.tally.steps_ahead += u64::from(worker.is_in_flight());
            if let Some((oldest, before, alone)) = oldest {
                let now = worker.scheduler().oldest();
                let now = now.filter(|&(id, ..)| id == oldest);
                // To be computed by itself, if what it found in the cache was of no use.
                let is_back = now.is_some_and(|(.., now)| now && !alone);
                let moved = now.is_none_or(|(_, computed, _)| is_back || computed > before);
                assert!(moved, "{oldest:?} is the oldest, and has not moved");
                self.tally.set_back += u64::from(is_back);
            }
        }
        for at in live {
            let id = self.clients[at].id;
            if self
                .worker
                .as_ref()
                .is_none_or(|worker| !worker.is_live(id))
            {
                self.clients[at].faults = [fault, self.fault_before];
            }
        }
        self.fault_before = fault;
    }

    /// Takes what has come for a client.
    fn read(&mut self, at: usize) {
        while let Some(event) = self.clients[at].next() {
            let client = &mut self.clients[at];
            match event {
                Event::Prompt(tokens) => {
                    assert!(client.request.prompt_logprobs && client.received.is_empty());
                    assert!(
                        tokens.iter().map(|token| token.id).eq(client
                            .request
                            .prompt
                            .iter()
                            .copied())
                    );
                    let scored = tokens.iter().filter(|token| token.logprob.is_some());
                    assert_eq!(scored.count() + 1, tokens.len());
                    assert!(!std::mem::replace(&mut client.scored, true));
                }
                Event::Token(token) => {
                    assert_eq!(token.index, client.received.len());
                    let is_first = token.index == 0 && client.request.first_logits;
                    assert_eq!(token.logits.is_some(), is_first);
                    let wants = client.request.top_logprobs > 0;
                    assert_eq!(!token.top_logprobs.is_empty(), wants);
                    client.received.push(token.id);
                    client.top_logprobs.push(token.top_logprobs);
                    client.text.push_str(&token.text);
                    self.tally.tokens += 1;
                    self.tally.constrained += u64::from(client.request.constraint.is_some());
                }
                Event::End(completion) => {
                    client.ended = true;
                    self.check_completion(at, completion);
                }
                Event::Failed(error) => {
                    client.ended = true;
                    self.check_failure(at, &error);
                }
            }
        }
    }

    fn check_completion(&mut self, at: usize, completion: Completion) {
        let client = &self.clients[at];
        assert_eq!(completion.token_ids, client.received);
        assert_eq!(completion.text, client.text);
        let (alone, likeliest) =
            self.oracle
                .tokens(&self.engine, &client.request, client.received.len());
        assert_eq!(client.received, alone, "not the tokens of the run alone");
        assert_eq!(client.top_logprobs, likeliest);
        if !client.received.is_empty() {
            assert_eq!(client.scored, client.request.prompt_logprobs);
        }
        let Self { engine, tally, .. } = self;
        let (&last, before) = match client.received.split_last() {
            Some(split) => split,
            None => (&u32::MAX, &[][..]),
        };
        let ends = |id| engine.tokenizer().is_end_of_generation(id);
        let stops = |id| client.request.stop_token_ids.contains(&id);
        assert!(!before.iter().any(|&id| ends(id) || stops(id)));
        let least = client.request.params.min_tokens.unwrap_or(0) as usize;
        match completion.finish_reason {
            FinishReason::EndOfText => {
                assert!(ends(last) && before.len() >= least);
                tally.finished += 1;
            }
            FinishReason::StopToken(id) => {
                assert!(id == last && stops(last) && before.len() >= least);
                tally.finished += 1;
                tally.stop_tokens += 1;
            }
            FinishReason::StopSequence(stop) => {
                assert!(client.request.stop.contains(&stop));
                tally.finished += 1;
                tally.stop_strings += 1;
            }
            FinishReason::Length => {
                let room = CONTEXT_LENGTH - client.request.prompt.len();
                let most = client.request.max_tokens.unwrap().min(room);
                assert_eq!(client.received.len(), most);
                tally.finished += 1;
            }
            FinishReason::Cancelled => {
                assert!(client.cancelled);
                tally.cancelled += 1;
            }
            FinishReason::Aborted => {
                assert!(self.aborted);
                tally.aborted += 1;
            }
            other => panic!("nobody asked for {other:?}"),
        }
    }

    fn check_failure(&mut self, at: usize, error: &GenerationError) {
        let client = &self.clients[at];
        let faults = client.faults;
        let had = |is: fn(&Fault) -> bool| faults.iter().flatten().any(is);
        match error {
            GenerationError::Row { position, .. } => {
                assert!(client.saw_nan, "it fails for another's NaN");
                assert_eq!(*position, client.received.len());
                self.tally.rows_failed += 1;
            }
            GenerationError::Constraint(error) => panic!("{error}"),
            GenerationError::Model(message) if message.contains("memory") => {
                // A single token that does not fit, or a slot for whoever runs alone.
                let is_short = |fault: &Fault| {
                    matches!(fault, Fault::OutOfMemory(0) | Fault::NoSlot | Fault::NoDraw)
                };
                assert!(had(is_short), "{faults:?}");
                self.tally.memory_failed += 1;
            }
            GenerationError::Model(_) => {
                assert!(had(|fault| *fault == Fault::Error), "{faults:?}");
                self.tally.models_failed += 1;
            }
            GenerationError::DeviceLost(reason) => {
                assert!(reason.contains("scripted loss") && self.worker.is_none());
            }
            GenerationError::EngineStopped => {
                assert!(self.worker.is_none());
                self.tally.engines_stopped += 1;
            }
        }
    }

    fn keep_counters(&mut self) {
        let Some(worker) = &self.worker else {
            return;
        };
        self.tally.ended_rows += self.ended_rows.load(Ordering::Relaxed);
        let counters = worker.scheduler().counters();
        self.tally.evictions += counters.evictions;
        self.tally.reused_tokens += counters.reused_tokens;
        self.tally.copies += counters.copies;
    }

    /// Lets everyone come to an end, or shuts down; then nobody may be left, and no block.
    fn finish(mut self) -> Tally {
        if self.random.one_in(4) {
            self.aborted = true;
            self.engine.shutdown(true);
        }
        let mut patience = PATIENCE;
        while self.worker.as_ref().is_some_and(Worker::is_busy) {
            patience = patience.checked_sub(1).expect("everyone ends at last");
            self.step();
        }
        if let Some(worker) = &mut self.worker {
            worker.take_waiting_commands();
            assert_eq!(
                (worker.scheduler().running(), worker.scheduler().waiting()),
                (0, 0)
            );
            assert_eq!(worker.scheduler().pool().used(), 0);
            worker.assert_consistent();
        }
        for at in 0..self.clients.len() {
            self.read(at);
            let client = &self.clients[at];
            assert!(
                client.ended || client.generation.is_none(),
                "it never ended"
            );
        }
        self.keep_counters();
        self.tally
    }
}

impl Client {
    /// The next event, if one has come; never one after the last.
    fn next(&mut self) -> Option<Event> {
        let generation = self.generation.as_mut()?;
        let event = match generation.receiver.try_recv() {
            Ok(event) => Some(event),
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) if generation.ended => return None,
            Err(TryRecvError::Disconnected) => None,
        };
        assert!(!self.ended, "{event:?} after the end");
        Some(generation.note(event))
    }
}

/// What a request gives when there is nothing but it.
struct Oracle {
    model: ScriptedModel,
    sampler: CpuSampler,
}

impl Oracle {
    /// The first `count` tokens, and the likeliest ones at the place of each.
    fn tokens(
        &mut self,
        engine: &Engine,
        request: &Request,
        count: usize,
    ) -> (Vec<u32>, Vec<Vec<TokenLogprob>>) {
        let vocab = engine.ending_at(&request.stop_token_ids, &request.params);
        let params = request.params.validate(&vocab.unwrap()).unwrap();
        let mut state = SamplerState::new(&params, &request.prompt);
        let mut constraint = request.constraint.clone();
        let mut likeliest = vec![Vec::new(); count];
        for likeliest in &mut likeliest {
            let logits = self.model.logits_after(state.tokens());
            let row = Row {
                mask: constraint.as_ref().map(Constraint::mask),
                logprobs: Logprobs {
                    top: request.top_logprobs,
                    mode: request.logprobs_mode,
                },
                ..Row::new(LogitsRow::F32(&logits), &params, &state)
            };
            let sampled = self.sampler.sample(&row);
            if request.top_logprobs > 0 {
                *likeliest = self.sampler.top_logprobs(&row, &sampled);
            }
            state.commit(&sampled);
            let id = sampled.token_id;
            if let Some(constraint) = &mut constraint
                && !engine.tokenizer().is_end_of_generation(id)
            {
                assert_eq!(constraint.advance(id), Ok(Progress::GoesOn));
            }
        }
        (state.output().to_vec(), likeliest)
    }
}
