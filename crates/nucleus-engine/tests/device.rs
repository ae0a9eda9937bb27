//! The generation loop on a GPU: what is drawn there, one step behind, is what the host draws from the same logits. Without the feature `cuda` there is
//! nothing here; `just test-gpu` runs it.
#![cfg(feature = "cuda")]

#[path = "on_gpu/mod.rs"]
mod on_gpu;

use std::time::Duration;

use nucleus_engine::error::EngineError;
use nucleus_engine::generate::{Engine, Generation, Request};
use nucleus_engine::kv_cache::BlockId;
use nucleus_engine::model::{Chunk, Compute, KvLayout, Model, ModelSpec, Tail};
use nucleus_engine::sequence::{Completion, FinishReason, TokenEvent};
use nucleus_sampling::{Logprobs, LogprobsMode, SamplingParams};
use on_gpu::{alone, encode, engine, engine_of, essence, follow, requests};

/// More likeliest tokens than a device tells: the host draws, from a copy of the row.
const ON_HOST: u32 = 200;

/// The likeliest tokens, as they are told beside a token.
fn likeliest(token: &TokenEvent) -> Vec<(u32, u32)> {
    let entries = token.top_logprobs.iter();
    entries
        .map(|entry| (entry.token_id, entry.logprob.to_bits()))
        .collect()
}

/// The host draws from a copy of the row, the device one step behind; both tell the same likeliest tokens, of either distribution.
#[test]
#[ignore = "needs a GPU"]
fn a_device_draws_what_the_host_draws_from_its_logits() {
    let engine = engine(8, 4096);
    for request in requests(&engine) {
        let with_top = |top_logprobs| {
            let request = Request {
                top_logprobs,
                ..request.clone()
            };
            alone(&engine, &request)
        };
        let on_host = with_top(ON_HOST);
        for top in [0, 1, 5, 20, 128] {
            let on_device = with_top(top);
            assert_eq!(
                essence(&on_device),
                essence(&on_host),
                "{:?}",
                request.params
            );
            for (ours, theirs) in on_device.0.iter().zip(&on_host.0) {
                let (ours_top, theirs_top) = (likeliest(ours), likeliest(theirs));
                // The token itself comes last if it is not among them; what could be drawn may be fewer.
                let mut expected: Vec<_> = theirs_top.iter().copied().take(top as usize).collect();
                if top > 0 && expected.iter().all(|&(id, _)| id != ours.id) {
                    expected.push((ours.id, ours.logprob.to_bits()));
                }
                assert_eq!(ours_top, expected, "{top} of {:?}", request.params);
            }
        }
    }
}

/// All at once, most of a prompt that several have, in a cache too small for them: evicted and resumed, followed and copied, some drawn from on
/// the host, some scored, some cancelled. Each is as it is alone.
#[test]
#[ignore = "needs a GPU"]
fn many_at_once_are_as_each_is_alone() {
    let reference = engine(1, 4096);
    let crowded = engine(24, 512);
    let requests = requests(&reference);
    let expected: Vec<_> = requests
        .iter()
        .map(|request| alone(&reference, request))
        .collect();
    for round in 0..3 {
        let running: Vec<Generation> = requests
            .iter()
            .enumerate()
            .map(|(index, request)| {
                let request = Request {
                    // On the device, and on the host.
                    top_logprobs: [3, ON_HOST, 0, 0, 0, 0][(index + round) % 6],
                    first_logits: index % 13 == round,
                    prompt_logprobs: index % 7 == round,
                    ..request.clone()
                };
                crowded.submit(request).unwrap()
            })
            .collect();
        let mut followed = Vec::new();
        for (index, generation) in running.into_iter().enumerate() {
            if index % 9 == round {
                // Gone, at whatever point it is.
                drop(generation);
            } else {
                followed.push((index, generation));
            }
        }
        for (index, generation) in followed {
            let run = follow(generation);
            assert_eq!(essence(&run), essence(&expected[index]), "request {index}");
            let logits = run
                .0
                .iter()
                .map(|token| token.logits.as_ref().map_or(0, Vec::len));
            let wanted = if index % 13 == round {
                crowded.spec().vocab_size
            } else {
                0
            };
            assert_eq!(logits.take(1).next(), Some(wanted));
        }
    }
    let counters = crowded.counters();
    assert!(
        counters.evictions > 0 && counters.reused_tokens > 0,
        "{counters:?}"
    );
    let memory = crowded.device_memory().expect("a device says it");
    assert!(memory.free_bytes < memory.total_bytes);
    println!("{counters:?} {:?} {:?}", crowded.device_name(), memory);
}

/// The model, of which the loop does not know that it could run ahead.
struct Waits(Box<dyn Model>);

impl Model for Waits {
    fn spec(&self) -> &ModelSpec {
        self.0.spec()
    }

    fn kv_layout(&self) -> KvLayout {
        self.0.kv_layout()
    }

    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError> {
        self.0.forward(chunks, tail)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        self.0.copy_block(from, to);
    }

    fn compute(&self) -> Compute {
        self.0.compute()
    }
}

/// Where a sequence ends with a token, the row behind it does nothing. So a loop that waits for each step's tokens, and never has such a row, gives
/// the same; and who goes on from there finds in the cache what a new engine computes.
#[test]
#[ignore = "needs a GPU"]
fn sequences_end_where_a_token_ends_them() {
    let waiting = engine_of(24, 8192, |model| Box::new(Waits(model)));
    let ahead = engine(24, 8192);
    let requests = requests(&ahead);
    let run = |engine: &Engine| -> Vec<(Vec<TokenEvent>, Completion)> {
        let running = requests
            .iter()
            .map(|request| engine.submit(request.clone()).unwrap());
        let running: Vec<Generation> = running.collect();
        running.into_iter().map(follow).collect()
    };
    let [waited, at_once] = [&waiting, &ahead].map(run);
    let mut reasons = [0; 3];
    for (index, (waited, ran)) in waited.iter().zip(&at_once).enumerate() {
        assert_eq!(essence(ran), essence(waited), "request {index}");
        match ran.1.finish_reason {
            FinishReason::EndOfText => reasons[0] += 1,
            FinishReason::StopToken(_) => reasons[1] += 1,
            _ => reasons[2] += 1,
        }
    }
    println!("{reasons:?} ended with the model's end, with a stop token, in another way");
    assert!(reasons.iter().all(|&count| count > 0));
    let fresh = engine_of(4, 4096, |model| model);
    for (request, (_, completion)) in requests.iter().zip(&at_once) {
        let FinishReason::StopToken(_) = completion.finish_reason else {
            continue;
        };
        let rest = encode(&fresh, " The end of it was another.");
        let onwards = Request {
            prompt: [&request.prompt, &completion.token_ids, &rest[1..]].concat(),
            stop_token_ids: Vec::new(),
            ..request.clone()
        };
        assert_eq!(
            essence(&alone(&ahead, &onwards)),
            essence(&alone(&fresh, &onwards))
        );
    }
    assert!(ahead.counters().reused_tokens > 0);
}

/// Several choices of one prompt, which share its slot at first, end each for itself.
#[test]
#[ignore = "needs a GPU"]
fn choices_end_each_for_itself() {
    let engine = engine(16, 4096);
    let choice = |seed| Request {
        prompt: encode(&engine, "The fox said to the"),
        params: SamplingParams {
            seed: Some(seed),
            temperature: Some(1.0),
            min_tokens: Some(seed % 3),
            ..SamplingParams::default()
        },
        max_tokens: Some(60),
        // Of three words, each choice has two that end it.
        stop_token_ids: [" the", " and", " a"]
            .iter()
            .enumerate()
            .filter(|&(word, _)| word as u64 != seed % 3)
            .map(|(_, word)| *encode(&engine, word).last().unwrap())
            .collect(),
        ..Request::default()
    };
    let choices: Vec<Request> = (0..16).map(choice).collect();
    let expected: Vec<_> = choices.iter().map(|one| alone(&engine, one)).collect();
    let running = engine.submit_together(choices).unwrap();
    let mut stopped = 0;
    for (generation, expected) in running.into_iter().zip(&expected) {
        let run = follow(generation);
        assert_eq!(essence(&run), essence(expected));
        stopped += usize::from(matches!(run.1.finish_reason, FinishReason::StopToken(_)));
    }
    println!("{stopped} of 16 ended with a stop token");
    assert!(stopped > 8);
}

/// A process may end at any point of a step, or while the engine frees its memory, without a crash.
#[test]
#[ignore = "needs a GPU"]
fn a_process_may_end_while_the_engine_works() {
    const CHILD: &str = "NUCLEUS_TEST_ENDS_AFTER_MICROSECONDS";
    if let Ok(after) = std::env::var(CHILD) {
        let engine = engine(4, 2048);
        let requests = requests(&engine);
        let running: Vec<_> = requests[..4]
            .iter()
            .map(|request| engine.submit(request.clone()).unwrap())
            .collect();
        let after: u64 = after.parse().unwrap();
        std::thread::sleep(Duration::from_micros(after));
        if after.is_multiple_of(2) {
            drop((running, engine));
        }
        std::process::exit(7);
    }
    let program = std::env::current_exe().unwrap();
    for after in (0..24).map(|turn| 1501 * turn) {
        let status = std::process::Command::new(&program)
            .args(["--ignored", "--exact"])
            .arg("a_process_may_end_while_the_engine_works")
            .env(CHILD, after.to_string())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(7), "after {after} µs: {status}");
    }
}

/// How fast the loop is, with everything that it does on the host: one step behind, and waiting for each step's tokens.
#[test]
#[ignore = "needs a GPU; it measures"]
fn speed() {
    for sequences in [1, 4, 16, 64, 256] {
        let (raw, processed) = (LogprobsMode::Raw, LogprobsMode::Processed);
        for (name, waits, top, mode) in [
            ("one step behind", false, 0, raw),
            ("one step behind, processed", false, 0, processed),
            ("waiting", true, 0, raw),
            ("one step behind, with 5 likeliest", false, 5, raw),
            (
                "one step behind, processed, with 5 likeliest",
                false,
                5,
                processed,
            ),
            ("with 200 likeliest, from the host", false, ON_HOST, raw),
        ] {
            let engine = engine_of(sequences, sequences * 512, |model| {
                if waits { Box::new(Waits(model)) } else { model }
            });
            // The first round captures graphs.
            for round in 0..2 {
                let (tokens, decode) = decode(&engine, sequences, Logprobs { top, mode });
                if round > 0 {
                    println!(
                        "{sequences} sequences, {name}: {:.0} tokens/s, {:.1} us a step",
                        tokens as f64 / decode.as_secs_f64(),
                        decode.as_secs_f64() * 1e6 / 255.0,
                    );
                }
            }
        }
    }
}

/// Lets so many sequences generate 256 tokens each; the tokens behind the first ones, and the time from the first to the last.
fn decode(
    engine: &Engine,
    sequences: usize,
    Logprobs { top, mode }: Logprobs,
) -> (usize, Duration) {
    let request = |seed| Request {
        prompt: (0..64)
            .map(|at| ((seed * 31 + at * 7) % 8000) as u32)
            .collect(),
        params: SamplingParams {
            seed: Some(seed),
            ignore_eos: Some(true),
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.95),
            ..SamplingParams::default()
        },
        max_tokens: Some(256),
        top_logprobs: top,
        logprobs_mode: mode,
        ..Request::default()
    };
    let running: Vec<_> = (0..sequences as u64)
        .map(|seed| engine.submit(request(seed)).unwrap())
        .collect();
    let done: Vec<Completion> = running.into_iter().map(|run| follow(run).1).collect();
    let decode = done.iter().map(|one| one.timings.decode).max().unwrap();
    let tokens = done.iter().map(|one| one.token_ids.len() - 1).sum();
    (tokens, decode)
}
