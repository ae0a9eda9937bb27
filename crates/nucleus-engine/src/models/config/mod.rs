//! The shape of a model, from what its files say about it.

mod gguf;
mod huggingface;

use super::architecture::Architecture;
use super::attention::Attention;
use super::error::ModelError;
use super::rope::RopeConfig;

/// More layers than any model has; a bound for damaged files.
const MAX_LAYERS: u32 = 4096;
/// Wider than any model; a bound for damaged files.
const MAX_WIDTH: u32 = 1 << 20;
/// Longer than any model's context; a bound for damaged files.
const MAX_CONTEXT: u32 = 1 << 28;

/// Base of the rotary frequencies, where a file does not say.
const ROPE_BASE: f32 = 10_000.0;
/// YaRN's borders, in turns, where a file does not say.
const YARN_BETAS: [f32; 2] = [32.0, 1.0];
/// Base of the rotary frequencies of Gemma 3's layers with a window.
const GEMMA3_LOCAL_BASE: f32 = 10_000.0;

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    /// What kind of model it is.
    pub(super) architecture: &'static Architecture,
    /// Transformer layers.
    pub(super) layers: usize,
    /// Width of the hidden state.
    pub(super) hidden: usize,
    /// Query heads.
    pub(super) heads: usize,
    /// Key and value heads; divides `heads`.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// Width of the feed-forward block.
    pub(super) feed_forward: usize,
    /// Most positions of a sequence.
    pub(super) context_length: usize,
    /// Added to the mean of squares in every norm.
    pub(super) rms_eps: f32,
    /// Whether the embedding is the output matrix too; `None` where the tensors tell.
    pub(super) tied: Option<bool>,
    /// Rotary embedding.
    pub(super) rope: RopeConfig,
    /// Rotary embedding of the layers with a window, where it is another.
    pub(super) local_rope: Option<RopeConfig>,
    /// How far back layers attend, where not all attend to everything.
    pub(super) window: Option<Window>,
    /// What scores are multiplied by.
    pub(super) attention_scale: f32,
    /// Bound of the scores.
    pub(super) attention_soft_cap: Option<f32>,
    /// Bound of the logits.
    pub(super) logit_soft_cap: Option<f32>,
}

/// A sliding window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    /// Positions that a row attends to, itself included; at least 1.
    pub(super) positions: usize,
    /// For each layer, whether it slides; the others attend to everything.
    pub(super) sliding: Vec<bool>,
}

impl Config {
    /// Width of all query heads.
    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Widths of queries, keys and values, in the order in which a fused matrix has them.
    pub(super) fn qkv_widths(&self) -> [usize; 3] {
        [self.query_width(), self.kv_width(), self.kv_width()]
    }

    /// Widths of gate and up, in the order in which a fused matrix has them.
    pub(super) fn gate_up_widths(&self) -> [usize; 2] {
        [self.feed_forward; 2]
    }

    /// The window of a layer.
    pub(super) fn window_of(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.sliding[layer].then_some(window.positions)
    }

    /// How a layer attends.
    pub(super) fn attention(&self, layer: usize) -> Attention {
        Attention {
            scale: self.attention_scale,
            soft_cap: self.attention_soft_cap,
            window: self.window_of(layer),
        }
    }

    /// What embeddings are multiplied by.
    pub(super) fn embedding_scale(&self) -> Option<f32> {
        self.architecture
            .scaled_embedding
            .then(|| (self.hidden as f32).sqrt())
    }
}

/// A key with a value that contradicts another.
fn contradiction(key: String, value: impl ToString, expected: impl Into<String>) -> ModelError {
    ModelError::Metadata {
        key,
        value: value.to_string(),
        expected: expected.into(),
    }
}

/// A key whose value asks for something that the decoder does not have.
fn unsupported(key: String, value: impl ToString, supported: &'static str) -> ModelError {
    ModelError::Feature {
        key,
        value: value.to_string(),
        supported,
    }
}

/// `number`, if it is finite and above zero.
fn positive(key: String, number: f32) -> Result<f32, ModelError> {
    if number.is_finite() && number > 0.0 {
        return Ok(number);
    }
    Err(contradiction(key, number, "finite and above 0"))
}

/// A bound of scores or logits; 0 is none.
fn soft_cap(key: String, cap: Option<f32>) -> Result<Option<f32>, ModelError> {
    match cap {
        None | Some(0.0) => Ok(None),
        Some(cap) => positive(key, cap).map(Some),
    }
}

/// `kv_heads`, if it divides `heads`.
fn grouped(key: String, kv_heads: usize, heads: usize) -> Result<usize, ModelError> {
    if heads.is_multiple_of(kv_heads) {
        return Ok(kv_heads);
    }
    let expected = format!("a divisor of the head count, {heads}");
    Err(contradiction(key, kv_heads, expected))
}

/// The width of a head, where the file does not say.
fn default_head_dim(key: String, hidden: usize, heads: usize) -> Result<usize, ModelError> {
    if hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let expected = format!("a divisor of the embedding length, {hidden}");
    Err(contradiction(key, heads, expected))
}

/// `dimensions`, if a head has so many values that can be rotated.
fn rotated(key: String, dimensions: usize, head_dim: usize) -> Result<usize, ModelError> {
    if dimensions <= head_dim && dimensions > 0 && dimensions.is_multiple_of(2) {
        return Ok(dimensions);
    }
    let expected = format!("even and at most the width of a head, {head_dim}");
    Err(contradiction(key, dimensions, expected))
}
