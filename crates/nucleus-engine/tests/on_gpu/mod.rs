//! What the tests of the generation loop on a GPU share.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use nucleus_engine::constraint::Format;
use nucleus_engine::generate::{Engine, EngineOptions, Event, Generation, Request};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::model::Model;
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

/// An engine with the bundled model on the GPU, for so many sequences in a cache of so many tokens.
pub(crate) fn engine(max_running: usize, kv_tokens: usize) -> Engine {
    engine_of(max_running, kv_tokens, |model| model)
}

/// An engine of what `wrap` makes of the bundled model.
pub(crate) fn engine_of(
    max_running: usize,
    kv_tokens: usize,
    wrap: impl FnOnce(Box<dyn Model>) -> Box<dyn Model>,
) -> Engine {
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
    let model = wrap(models::load(&file, load).unwrap());
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    Engine::start(model, Arc::new(tokenizer), options)
        .unwrap()
        .0
}

/// The tokens of a text.
pub(crate) fn encode(engine: &Engine, prompt: &str) -> Vec<u32> {
    let options = EncodeOptions {
        parse_special: true,
        ..EncodeOptions::default()
    };
    engine.tokenizer().encode(prompt, options).unwrap()
}

/// Requests of every class and with every kind of memory, some held to a format, and several ways to end.
pub(crate) fn requests(engine: &Engine) -> Vec<Request> {
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
            // Common words, one of them twice; none where they would have to be banned with the model's own end.
            let stop_token_ids: Vec<u32> = match (turn, params.ignore_eos) {
                (2, _) => encode(engine, "and, but the and")[1..].to_vec(),
                (3, None) => encode(engine, " her")[1..].to_vec(),
                _ => Vec::new(),
            };
            // A mask of nearly all tokens, and one of few.
            let format = match (turn, index % 2) {
                (0, 1) => Some(Format::Regex("[^\"]*".into())),
                (3, 0) => Some(Format::json_object()),
                _ => None,
            };
            requests.push(Request {
                stop_token_ids,
                constraint: format.map(|format| engine.constraint(format).unwrap()),
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

/// Waits for the end.
pub(crate) fn follow(mut generation: Generation) -> (Vec<TokenEvent>, Completion) {
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
pub(crate) fn essence(
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

/// What a request gives when nothing else runs.
pub(crate) fn alone(engine: &Engine, request: &Request) -> (Vec<TokenEvent>, Completion) {
    follow(engine.submit(request.clone()).unwrap())
}
