//! The generation loop on a GPU: what is drawn there, one step behind, is what the host draws from the same logits. Without the feature `cuda` there is
//! nothing here; `just test-gpu` runs it.
#![cfg(feature = "cuda")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nucleus_engine::generate::{Engine, EngineOptions, Event, Generation, Request};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::models::{self, Device, LoadOptions};
use nucleus_engine::sequence::{Completion, FinishReason, TokenEvent};
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::{LogprobsMode, SamplingParams};

const PROMPTS: [&str; 4] = [
    "Once upon a time",
    "The fox said to the",
    "There was once a poor woodcutter who lived with his wife and his seven children at the edge of a great forest, and",
    "\"Who goes there?\"",
];

fn engine(max_running: usize, kv_tokens: usize) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
    let file = ModelFile::open(path).unwrap();
    let options = EngineOptions {
        max_running,
        ..EngineOptions::default()
    };
    let load = LoadOptions {
        device: Device::Cuda(0),
        kv_tokens: NonZeroUsize::new(kv_tokens),
        step_rows: NonZeroUsize::new(options.step_tokens),
        sequences: NonZeroUsize::new(options.logit_rows()),
        ..LoadOptions::default()
    };
    let model = models::load(&file, load).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    Engine::start(model, Arc::new(tokenizer), options)
        .unwrap()
        .0
}

fn encode(engine: &Engine, prompt: &str) -> Vec<u32> {
    let options = EncodeOptions {
        parse_special: true,
        ..EncodeOptions::default()
    };
    engine.tokenizer().encode(prompt, options).unwrap()
}

/// Requests of every class and with every kind of memory, and several ways to end.
fn requests(engine: &Engine) -> Vec<Request> {
    let neutral = SamplingParams::default();
    let usual = SamplingParams {
        temperature: Some(0.8),
        top_k: Some(40),
        top_p: Some(0.95),
        min_p: Some(0.05),
        ..neutral.clone()
    };
    let sets = [
        SamplingParams {
            temperature: Some(0.0),
            ..neutral.clone()
        },
        neutral.clone(),
        usual.clone(),
        SamplingParams {
            repetition_penalty: Some(1.2),
            frequency_penalty: Some(0.3),
            presence_penalty: Some(0.3),
            dry_multiplier: Some(0.8),
            no_repeat_ngram_size: Some(4),
            ..usual.clone()
        },
        SamplingParams {
            mirostat: Some(2),
            ..neutral.clone()
        },
        SamplingParams {
            adaptive_target: Some(0.4),
            adaptive_decay: Some(0.9),
            samplers: None,
            ..neutral.clone()
        },
        SamplingParams {
            typical_p: Some(0.9),
            xtc_probability: Some(0.5),
            xtc_threshold: Some(0.1),
            ..usual.clone()
        },
        SamplingParams {
            dynatemp_range: Some(0.5),
            top_n_sigma: Some(1.5),
            min_tokens: Some(10),
            ..neutral.clone()
        },
        SamplingParams {
            ignore_eos: Some(true),
            logit_bias: Some([(5, 2.0), (9, -100.0)].into()),
            ..usual.clone()
        },
        SamplingParams {
            tfs_z: Some(0.9),
            ..usual
        },
    ];
    let mut requests = Vec::new();
    for (index, params) in sets.into_iter().enumerate() {
        for (turn, prompt) in PROMPTS.into_iter().enumerate() {
            let stop: &[&str] = if turn == 1 { &["the", ". "] } else { &[] };
            requests.push(Request {
                prompt: encode(engine, prompt),
                params: SamplingParams {
                    seed: Some((10 * index + turn) as u64),
                    ..params.clone()
                },
                max_tokens: Some([200, 90, 1, 60][(index + turn) % 4]),
                stop: stop.iter().map(|&text| text.to_owned()).collect(),
                logprobs_mode: if turn == 3 {
                    LogprobsMode::Processed
                } else {
                    LogprobsMode::Raw
                },
                ..Request::default()
            });
        }
    }
    requests
}

fn follow(mut generation: Generation) -> (Vec<TokenEvent>, Completion) {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().expect("an end comes") {
            Event::Token(token) => tokens.push(token),
            Event::End(completion) => return (tokens, completion),
            Event::Prompt(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// What of a run must be the same however it was computed.
fn essence(
    run: &(Vec<TokenEvent>, Completion),
) -> (Vec<(u32, u32)>, String, FinishReason, [u64; 3]) {
    let (tokens, completion) = run;
    let tokens = tokens
        .iter()
        .map(|token| (token.id, token.logprob.to_bits()));
    let sampling = completion.sampling;
    (
        tokens.collect(),
        completion.text.clone(),
        completion.finish_reason.clone(),
        [
            sampling.kept,
            sampling.min_kept.into(),
            sampling.max_kept.into(),
        ],
    )
}

fn alone(engine: &Engine, request: &Request) -> (Vec<TokenEvent>, Completion) {
    follow(engine.submit(request.clone()).unwrap())
}

/// With `top_logprobs` the host draws, from a copy of the row; without, the device does, one step behind.
#[test]
#[ignore = "needs a GPU"]
fn a_device_draws_what_the_host_draws_from_its_logits() {
    let engine = engine(8, 4096);
    for request in requests(&engine) {
        let on_device = alone(&engine, &request);
        let on_host = alone(
            &engine,
            &Request {
                top_logprobs: 2,
                ..request.clone()
            },
        );
        assert!(on_host.0.iter().all(|token| !token.top_logprobs.is_empty()));
        assert_eq!(
            essence(&on_device),
            essence(&on_host),
            "{:?}",
            request.params
        );
    }
}

/// All at once, most of a prompt that several have, in a cache too small for them: evicted and resumed, followed and copied, some drawn from on
/// the host, some scored, some cancelled. Each is as it is alone.
#[test]
#[ignore = "needs a GPU"]
fn many_at_once_are_as_each_is_alone() {
    let reference = engine(1, 4096);
    let crowded = engine(24, 1024);
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
                    top_logprobs: u32::from(index % 11 == round),
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
        std::thread::sleep(std::time::Duration::from_micros(after));
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

/// How fast the loop is: tokens a second, with everything that it does on the host.
#[test]
#[ignore = "needs a GPU; it measures"]
fn speed() {
    for sequences in [1, 8, 64, 256] {
        let engine = engine(sequences, sequences * 512);
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
            ..Request::default()
        };
        // The first round captures graphs.
        for round in 0..2 {
            let begun = Instant::now();
            let running: Vec<_> = (0..sequences as u64)
                .map(|seed| engine.submit(request(seed)).unwrap())
                .collect();
            let done: Vec<Completion> = running.into_iter().map(|run| follow(run).1).collect();
            let decode = done.iter().map(|one| one.timings.decode).max().unwrap();
            let tokens: usize = done.iter().map(|one| one.token_ids.len() - 1).sum();
            println!(
                "round {round}, {sequences} sequences: {:.0} tokens/s, {:.1} us a step, {:?} in all",
                tokens as f64 / decode.as_secs_f64(),
                decode.as_secs_f64() * 1e6 / 255.0,
                begun.elapsed()
            );
        }
    }
}
