//! Greedy continuations of the bundled model against those of llama.cpp (`peers/llama_cpp_greedy.py`).

use std::fmt;
use std::num::NonZeroUsize;

use nucleus_engine::error::EngineError;
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::kv_cache::BlockId;
use nucleus_engine::model::{Chunk, KvType, Logits, Model, Tail};
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
    fn record(&mut self, logits: Logits<'_>) -> Result<(), EngineError> {
        let (data, _) = logits.on_host().expect("the model is on the host");
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

/// Where the model's first different choice is.
struct Divergence {
    prompt: String,
    /// Choices before it, which are equal.
    equal: usize,
    /// llama.cpp's lead there.
    lead: f32,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            prompt,
            equal,
            lead,
        } = self;
        write!(
            f,
            "{prompt:?} diverges after {equal} tokens, where llama.cpp's lead was {lead:.1e}"
        )
    }
}

/// How the model's choices compare with llama.cpp's.
#[derive(Default)]
struct Comparison {
    divergences: Vec<Divergence>,
    /// The largest difference between the leads of equal choices.
    lead_distance: f32,
}

impl Comparison {
    /// Follows a continuation up to the first choice that differs.
    fn add(&mut self, model: &mut dyn Model, continuation: &Continuation) {
        let blocks: Vec<BlockId> = (0..model.kv_layout().blocks as u32).map(BlockId).collect();
        let mut best = Best::default();
        let (mut tokens, mut position) = (continuation.prompt_ids.as_slice(), 0);
        let expected = continuation.token_ids.chunks(1).zip(&continuation.top2_gap);
        for (equal, (token, &lead)) in expected.enumerate() {
            let chunk = Chunk {
                tokens,
                position,
                blocks: &blocks,
                wants_logits: true,
            };
            model.forward(&[chunk], &mut best).unwrap();
            if best.token != token[0] {
                let prompt = continuation.prompt.clone();
                self.divergences.push(Divergence {
                    prompt,
                    equal,
                    lead,
                });
                return;
            }
            self.lead_distance = self.lead_distance.max((best.lead - lead).abs());
            position += tokens.len();
            tokens = token;
        }
    }

    fn diverges_only_below(&self, lead: f32) -> bool {
        self.divergences
            .iter()
            .all(|divergence| divergence.lead < lead)
    }
}

/// Compares all continuations of a file.
fn compare(file: &str, kv_type: KvType) -> Comparison {
    let text = std::fs::read_to_string(format!("{TESTDATA}/{file}")).unwrap();
    let continuations: Continuations = serde_json::from_str(&text).unwrap();
    assert_eq!(continuations.prompts.len(), 10);
    let options = LoadOptions {
        kv_tokens: NonZeroUsize::new(256),
        kv_type,
        ..LoadOptions::default()
    };
    let mut model = models::load(&ModelFile::open(BUNDLED).unwrap(), options).unwrap();
    let mut comparison = Comparison::default();
    for continuation in &continuations.prompts {
        comparison.add(&mut *model, continuation);
    }
    comparison
}

/// The same weights in F32, and keys and values in f32: what differs is the order of sums here and there, and 16-bit activations here.
#[test]
fn greedy_text_is_that_of_llama_cpp_on_the_dequantised_weights() {
    let comparison = compare("llama_cpp_greedy_f32.json", KvType::F32);
    comparison
        .divergences
        .iter()
        .for_each(|divergence| println!("{divergence}"));
    println!("leads within {:.1e}", comparison.lead_distance);
    assert!(comparison.diverges_only_below(1e-3));
    assert!(comparison.lead_distance < 2e-3);
}

/// The Q8_0 file: llama.cpp rounds activations to 8 bits, which moves its own logits by about 0.1.
#[test]
fn greedy_text_is_that_of_llama_cpp_within_the_noise_of_its_activations() {
    let comparison = compare("llama_cpp_greedy.json", KvType::F16);
    comparison
        .divergences
        .iter()
        .for_each(|divergence| println!("{divergence}"));
    println!("leads within {:.1e}", comparison.lead_distance);
    assert!(comparison.diverges_only_below(0.1));
    assert!(comparison.lead_distance < 0.3);
}
