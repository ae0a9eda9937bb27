//! The shape of a Llama model, from its metadata.

use super::error::ModelError;
use super::rope::RopeConfig;
use crate::error::EngineError;
use crate::gguf::{FromValue, Metadata, ModelFile};

/// The architecture that files of these models name.
pub(super) const ARCHITECTURE: &str = "llama";

/// More layers than any model has; a bound for damaged files.
const MAX_LAYERS: u32 = 4096;
/// Wider than any model; a bound for damaged files.
const MAX_WIDTH: u32 = 1 << 20;
/// Longer than any model's context; a bound for damaged files.
const MAX_CONTEXT: u32 = 1 << 28;

/// Keys under the architecture's name that change what the model computes, in ways that the decoder does not know.
const UNSUPPORTED_KEYS: [&str; 7] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.sliding_window",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
];

/// Sizes and constants of a Llama model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LlamaConfig {
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
    /// Rotary embedding.
    pub(super) rope: RopeConfig,
}

impl LlamaConfig {
    /// Reads and checks the metadata of a file whose architecture is [`ARCHITECTURE`].
    ///
    /// # Errors
    /// A key that is missing, of another type, out of range, in contradiction to another, or of a feature that the
    /// decoder does not have.
    pub(super) fn read(file: &ModelFile) -> Result<Self, EngineError> {
        let keys = Keys {
            metadata: file.metadata(),
        };
        keys.refuse_unsupported()?;
        let hidden = keys.size("embedding_length", MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", MAX_WIDTH)?;
        let head_dim = keys.head_dim(hidden, heads)?;
        Ok(Self {
            layers: keys.size("block_count", MAX_LAYERS)?,
            hidden,
            heads,
            kv_heads: keys.kv_heads(heads)?,
            head_dim,
            feed_forward: keys.size("feed_forward_length", MAX_WIDTH)?,
            context_length: keys.size("context_length", MAX_CONTEXT)?,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon", None)?,
            rope: keys.rope(head_dim)?,
        })
    }

    /// Width of all query heads.
    pub(super) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads.
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

/// The metadata under the architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata,
}

impl<'a> Keys<'a> {
    fn name(&self, key: &str) -> String {
        format!("{ARCHITECTURE}.{key}")
    }

    fn find<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, EngineError> {
        Ok(self.metadata.find(&self.name(key))?)
    }

    /// A size of at least 1.
    fn size(&self, key: &str, max: u32) -> Result<usize, EngineError> {
        Ok(self.metadata.size_in(&self.name(key), 1..=max)?)
    }

    /// A size of at least 1, or `default` when the file does not have it.
    fn size_or(&self, key: &str, default: usize) -> Result<usize, EngineError> {
        match self.metadata.get(&self.name(key)) {
            Some(_) => self.size(key, MAX_WIDTH),
            None => Ok(default),
        }
    }

    /// A finite number above zero.
    fn positive(&self, key: &str, default: Option<f32>) -> Result<f32, EngineError> {
        let number = match (self.find(key)?, default) {
            (Some(number), _) | (None, Some(number)) => number,
            (None, None) => self.metadata.f32(&self.name(key))?,
        };
        if number.is_finite() && number > 0.0 {
            return Ok(number);
        }
        Err(self.contradiction(key, number, "finite and above 0".to_owned()))
    }

    fn contradiction(&self, key: &str, value: impl ToString, expected: String) -> EngineError {
        ModelError::Metadata {
            key: self.name(key),
            value: value.to_string(),
            expected,
        }
        .into()
    }

    fn unsupported(&self, key: &str, value: impl ToString, supported: &'static str) -> EngineError {
        ModelError::Feature {
            key: self.name(key),
            value: value.to_string(),
            supported,
        }
        .into()
    }

    fn refuse_unsupported(&self) -> Result<(), EngineError> {
        for key in UNSUPPORTED_KEYS {
            if let Some(value) = self.metadata.get(&self.name(key)) {
                return Err(self.unsupported(key, value, "only models without this key are"));
            }
        }
        match self.find::<u32>("expert_count")? {
            Some(experts) if experts > 0 => Err(self.unsupported(
                "expert_count",
                experts,
                "mixtures of experts are not, only dense models",
            )),
            _ => Ok(()),
        }
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, EngineError> {
        let is_given = self
            .metadata
            .get(&self.name("attention.key_length"))
            .is_some();
        if !is_given && !hidden.is_multiple_of(heads) {
            let expected = format!("a divisor of the embedding length, {hidden}");
            return Err(self.contradiction("attention.head_count", heads, expected));
        }
        let head_dim = self.size_or("attention.key_length", hidden / heads)?;
        let value_length = self.size_or("attention.value_length", head_dim)?;
        if value_length != head_dim {
            let expected = format!("the length of a key, {head_dim}");
            return Err(self.contradiction("attention.value_length", value_length, expected));
        }
        Ok(head_dim)
    }

    fn kv_heads(&self, heads: usize) -> Result<usize, EngineError> {
        let kv_heads = self.size_or("attention.head_count_kv", heads)?;
        if heads.is_multiple_of(kv_heads) {
            return Ok(kv_heads);
        }
        Err(self.contradiction(
            "attention.head_count_kv",
            kv_heads,
            format!("a divisor of the head count, {heads}"),
        ))
    }

    fn rope(&self, head_dim: usize) -> Result<RopeConfig, EngineError> {
        let dimensions = self.size_or("rope.dimension_count", head_dim)?;
        if dimensions > head_dim || !dimensions.is_multiple_of(2) {
            let expected = format!("even and at most the width of a head, {head_dim}");
            return Err(self.contradiction("rope.dimension_count", dimensions, expected));
        }
        let base = self.positive("rope.freq_base", Some(10_000.0))?;
        Ok(RopeConfig {
            dimensions,
            base,
            scale: self.rope_scale()?,
        })
    }

    fn rope_scale(&self) -> Result<f32, EngineError> {
        match self.find::<&str>("rope.scaling.type")? {
            None | Some("none") => Ok(1.0),
            Some("linear") => self.positive("rope.scaling.factor", None),
            Some(other) => Err(self.unsupported("rope.scaling.type", other, "none and linear are")),
        }
    }
}
