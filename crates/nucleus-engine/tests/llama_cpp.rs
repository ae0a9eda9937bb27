//! Greedy continuations of the bundled model against those of llama.cpp (`peers/llama_cpp_greedy.py`).

use std::num::NonZeroUsize;

use nucleus_engine::error::EngineError;
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::kv_cache::BlockId;
use nucleus_engine::model::{Chunk, Logits, Model, Tail};
use nucleus_engine::models::{self, LoadOptions};
use serde::Deserialize;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
const BUNDLED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

#[derive(Deserialize)]
struct Continuations {
    prompts: Vec<Continuation>,
}

#[derive(Deserialize)]
struct Continuation {
    prompt: String,
    prompt_ids: Vec<u32>,
    token_ids: Vec<u32>,
    /// The lead of each token's logit over the second largest.
    top2_gap: Vec<f32>,
}

/// The two largest logits of the last row: the token and its lead.
#[derive(Default)]
struct Best {
    token: u32,
    lead: f32,
}

impl Tail for Best {
    fn record(&mut self, Logits::Host { data, .. }: Logits<'_>) -> Result<(), EngineError> {
        let token = (0..data.len())
            .rev()
            .max_by(|&a, &b| data[a].total_cmp(&data[b]))
            .unwrap();
        let second = data
            .iter()
            .enumerate()
            .filter(|&(id, _)| id != token)
            .map(|(_, &logit)| logit);
        *self = Self {
            token: token as u32,
            lead: data[token] - second.fold(f32::NEG_INFINITY, f32::max),
        };
        Ok(())
    }
}

/// How the model's choices compare with a continuation, up to the first that differs.
struct Comparison {
    /// Choices that are equal.
    equal: usize,
    /// llama.cpp's lead where the choices differ.
    lead_at_divergence: Option<f32>,
    /// The largest difference between the leads of equal choices.
    lead_distance: f32,
}

fn compare(model: &mut dyn Model, continuation: &Continuation) -> Comparison {
    let blocks: Vec<BlockId> = (0..model.kv_layout().blocks as u32).map(BlockId).collect();
    let mut best = Best::default();
    let mut position = 0;
    let mut tokens = continuation.prompt_ids.as_slice();
    let mut lead_distance: f32 = 0.0;
    for (equal, (expected, &lead)) in continuation
        .token_ids
        .chunks(1)
        .zip(&continuation.top2_gap)
        .enumerate()
    {
        let chunk = Chunk {
            tokens,
            position,
            blocks: &blocks,
            wants_logits: true,
        };
        model.forward(&[chunk], &mut best).unwrap();
        if best.token != expected[0] {
            return Comparison {
                equal,
                lead_at_divergence: Some(lead),
                lead_distance,
            };
        }
        lead_distance = lead_distance.max((best.lead - lead).abs());
        position += tokens.len();
        tokens = expected;
    }
    Comparison {
        equal: continuation.token_ids.len(),
        lead_at_divergence: None,
        lead_distance,
    }
}

/// Compares all continuations of a file; prints every divergence and refuses those where llama.cpp's lead was `noise` or
/// more. Returns the largest difference of leads.
fn compare_all(file: &str, noise: f32) -> f32 {
    let text = std::fs::read_to_string(format!("{TESTDATA}/{file}")).unwrap();
    let continuations: Continuations = serde_json::from_str(&text).unwrap();
    let options = LoadOptions {
        kv_tokens: NonZeroUsize::new(256),
        ..LoadOptions::default()
    };
    let mut model = models::load(&ModelFile::open(BUNDLED).unwrap(), options).unwrap();
    assert_eq!(continuations.prompts.len(), 10);
    let mut largest: f32 = 0.0;
    for continuation in &continuations.prompts {
        let Comparison {
            equal,
            lead_at_divergence,
            lead_distance,
        } = compare(&mut *model, continuation);
        largest = largest.max(lead_distance);
        if let Some(lead) = lead_at_divergence {
            println!(
                "{:?} diverges after {equal} tokens, where llama.cpp's lead was {lead:.1e}",
                continuation.prompt
            );
            assert!(lead < noise);
        }
    }
    println!("{file}: leads within {largest:.1e}");
    largest
}

/// The same weights in F32: what differs is the order of sums here and there, and 16-bit activations here.
#[test]
fn greedy_text_is_that_of_llama_cpp_on_the_dequantised_weights() {
    let distance = compare_all("llama_cpp_greedy_f32.json", 1e-3);
    assert!(distance < 2e-3);
}

/// The Q8_0 file: llama.cpp rounds activations to 8 bits, which moves its own logits by about 0.1.
#[test]
fn greedy_text_is_that_of_llama_cpp_within_the_noise_of_its_activations() {
    let distance = compare_all("llama_cpp_greedy.json", 0.1);
    assert!(distance < 0.3);
}
