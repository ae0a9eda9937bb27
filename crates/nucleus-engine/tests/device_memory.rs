//! The generation loop on a GPU whose memory is taken by others while it decodes. Alone in its program, since whoever else used the GPU then would fail
//! too. Without the feature `cuda` there is nothing here; `just test-gpu` runs it.
#![cfg(feature = "cuda")]

#[path = "on_gpu/mod.rs"]
#[allow(dead_code, reason = "the other program uses all of it")]
mod on_gpu;

use std::collections::BTreeMap;
use std::sync::Mutex;

use nucleus_engine::generate::{Engine, Event, Generation, GenerationError, Request};
use nucleus_engine::sequence::{Completion, TokenEvent};
use nucleus_sampling::cuda::{CudaOptions, CudaSampler, device_memory};
use nucleus_sampling::{LogitsRow, MAX_VOCAB};
use on_gpu::{alone, engine, essence, requests};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};

/// Counts what the engine warns of.
struct Warnings;

/// Keeps what a warning says.
struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let mut warnings = WARNINGS.lock().unwrap();
            *warnings.entry(format!("{value:?}")).or_default() += 1;
        }
    }
}

/// How often each was told.
static WARNINGS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut Message);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// More than there are pieces of memory to hold.
const HOLDERS: usize = 1024;

/// Memory that nobody else has: allocations of powers of two, the largest first.
struct Filler {
    taken: Vec<(usize, CudaSampler)>,
    /// Made while there was memory for what a sampler itself needs, so that the last pieces are taken, too; and kept, since they would give it back.
    unused: Vec<CudaSampler>,
}

impl Filler {
    /// Takes all that there is, down to pieces of 4 KiB.
    fn everything() -> Self {
        let holder = |_| CudaSampler::new(CudaOptions::default()).unwrap();
        let mut filler = Self {
            taken: Vec::new(),
            unused: (0..HOLDERS).map(holder).collect(),
        };
        for bytes in (12..=33).rev().map(|power| 1_usize << power) {
            while let Some(mut holder) = filler.unused.pop() {
                if !holds(&mut holder, bytes) {
                    filler.unused.push(holder);
                    break;
                }
                filler.taken.push((bytes, holder));
            }
        }
        assert!(!filler.unused.is_empty(), "there is more to hold");
        filler
    }

    /// Gives back so much at least, the smallest pieces first.
    fn give_back(&mut self, bytes: usize) {
        let mut given = 0;
        while given < bytes
            && let Some((bytes, _)) = self.taken.pop()
        {
            given += bytes;
        }
    }
}

/// Lets a sampler take so much of the device's memory, if there is so much: as slots, or, what is less than their surroundings take, as logits.
fn holds(sampler: &mut CudaSampler, bytes: usize) -> bool {
    let values = bytes / size_of::<f32>();
    if values > MAX_VOCAB as usize {
        let tokens = (values - 64) as u32;
        sampler.reserve_slots(1, tokens).is_ok()
    } else {
        let row = vec![0.0; values];
        sampler.place_rows(&[LogitsRow::F32(&row)]).is_ok()
    }
}

/// Waits for the end; the error, if it is one.
fn outcome(mut generation: Generation) -> Result<(Vec<TokenEvent>, Completion), GenerationError> {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().expect("an end comes") {
            Event::Token(token) => tokens.push(token),
            Event::End(completion) => return Ok((tokens, completion)),
            Event::Prompt(_) => {}
            Event::Failed(error) => return Err(error),
        }
    }
}

/// All requests at once: how many failed, for want of memory. The others are as each is alone.
fn crowd(
    engine: &Engine,
    requests: &[Request],
    expected: &[(Vec<TokenEvent>, Completion)],
) -> usize {
    let running = requests.iter().enumerate().map(|(index, request)| {
        let request = Request {
            // The likeliest tokens take memory of their own.
            top_logprobs: [0, 0, 5, 100][index % 4],
            ..request.clone()
        };
        engine.submit(request).unwrap()
    });
    let running: Vec<Generation> = running.collect();
    let mut failed = 0;
    for (index, (generation, expected)) in running.into_iter().zip(expected).enumerate() {
        match outcome(generation) {
            Ok(run) => assert_eq!(essence(&run), essence(expected), "request {index}"),
            Err(GenerationError::Model(message)) if message.contains("memory") => failed += 1,
            Err(error) => panic!("request {index}: {error}"),
        }
    }
    failed
}

/// The memory is gone when an engine has its model and before it has decoded: what it allocates then (a larger draw, likeliest tokens, graphs, code that is
/// loaded late) fails. Requests come to their right end or fail each for itself, and with memory everything is as ever.
#[test]
#[ignore = "needs a GPU"]
fn whoever_finds_no_memory_fails_alone() {
    tracing::subscriber::set_global_default(Warnings).unwrap();
    let reference = engine(1, 4096);
    let requests = requests(&reference);
    let expected: Vec<_> = requests
        .iter()
        .map(|request| alone(&reference, request))
        .collect();
    let mut warned_in_all = 0;
    for (warm, spare) in [
        (false, 0),
        (true, 0),
        (true, 16 << 10),
        (true, 256 << 10),
        (false, 2 << 20),
        (true, 8 << 20),
    ] {
        let engine = engine(24, 8192);
        if warm {
            let run = alone(&engine, &requests[1]);
            assert_eq!(essence(&run), essence(&expected[1]));
        }
        let mut filler = Filler::everything();
        filler.give_back(spare);
        let free = device_memory(0).unwrap().free_bytes;
        let without = crowd(&engine, &requests, &expected);
        let warnings = std::mem::take(&mut *WARNINGS.lock().unwrap());
        drop(filler);
        let after = crowd(&engine, &requests, &expected);
        println!(
            "warm {warm}, {spare} bytes given back, {free} free: {without} of {} failed, with memory {after}; {warnings:?}",
            requests.len()
        );
        assert_eq!(after, 0);
        warned_in_all += warnings.len();
    }
    assert!(warned_in_all > 0, "there was memory after all");
}
