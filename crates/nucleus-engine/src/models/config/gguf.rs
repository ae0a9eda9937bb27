//! The shape of a model, from GGUF metadata.

use super::super::architecture::{Architecture, Sliding};
use super::super::error::ModelError;
use super::super::rope::{Factors, RopeConfig, Yarn};
use super::{
    Config, GEMMA3_LOCAL_BASE, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, ROPE_BASE, Window, YARN_BETAS,
    contradiction, default_head_dim, grouped, positive, rotated, soft_cap, unsupported,
};
use crate::error::EngineError;
use crate::gguf::{FromValue, Metadata, ModelFile, Value};

/// Keys under the architecture's name that change what the model computes, in ways that the decoder does not know.
const UNSUPPORTED_KEYS: [&str; 8] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.temperature_scale",
    "embedding_scale",
    "logit_scale",
    "residual_scale",
    "rope.scaling.yarn_log_multiplier",
];

/// Gemma 2's window, where a file does not say.
const GEMMA2_WINDOW: usize = 4096;

/// Gemma models of 27 billion weights divide scores by the root of hidden width / heads, and not of the width of a head.
/// GGUF files do not say so; their numbers of layers tell.
const SCALED_BY_HIDDEN: [(&str, usize); 2] = [("gemma2", 46), ("gemma3", 62)];

impl Config {
    /// Reads and checks the metadata of a file.
    ///
    /// # Errors
    /// A key that is missing, of another type, out of range, in contradiction to another, or of a feature that the
    /// decoder does not have.
    pub(in super::super) fn from_gguf(file: &ModelFile) -> Result<Self, EngineError> {
        let name = file.metadata().str("general.architecture")?;
        let architecture =
            Architecture::by_name(name).ok_or_else(|| ModelError::architecture(name))?;
        let keys = Keys {
            metadata: file.metadata(),
            architecture,
        };
        keys.refuse_unsupported()?;
        let layers = keys.size("block_count", MAX_LAYERS)?;
        let hidden = keys.size("embedding_length", MAX_WIDTH)?;
        let heads = keys.size("attention.head_count", MAX_WIDTH)?;
        let head_dim = keys.head_dim(hidden, heads)?;
        let kv_heads = keys.size_or("attention.head_count_kv", heads)?;
        let context_length = keys.size("context_length", MAX_CONTEXT)?;
        let rope = keys.rope(head_dim, context_length)?;
        let window = keys.window(layers)?;
        let local_rope = keys.local_rope(&rope, window.is_some())?;
        let scaled_by = match SCALED_BY_HIDDEN.contains(&(architecture.name, layers)) {
            true => hidden / heads,
            false => head_dim,
        };
        Ok(Self {
            architecture,
            layers,
            hidden,
            heads,
            kv_heads: grouped(keys.place("attention.head_count_kv"), kv_heads, heads)?,
            head_dim,
            feed_forward: keys.size("feed_forward_length", MAX_WIDTH)?,
            context_length,
            rms_eps: keys.positive("attention.layer_norm_rms_epsilon", None)?,
            tied: None,
            rope,
            local_rope,
            window,
            attention_scale: 1.0 / (scaled_by as f32).sqrt(),
            attention_soft_cap: keys.soft_cap("attn_logit_softcapping")?,
            logit_soft_cap: keys.soft_cap("final_logit_softcapping")?,
        })
    }
}

/// The metadata under the architecture's name.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static Architecture,
}

impl<'a> Keys<'a> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    /// How errors name a key.
    fn place(&self, key: &str) -> String {
        format!("metadata key {:?}", self.name(key))
    }

    fn find<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, EngineError> {
        Ok(self.metadata.find(&self.name(key))?)
    }

    fn has(&self, key: &str) -> bool {
        self.metadata.get(&self.name(key)).is_some()
    }

    /// A size of at least 1.
    fn size(&self, key: &str, max: u32) -> Result<usize, EngineError> {
        Ok(self.metadata.size_in(&self.name(key), 1..=max)?)
    }

    /// A size of at least 1, or `default` when the file does not have it.
    fn size_or(&self, key: &str, default: usize) -> Result<usize, EngineError> {
        if self.has(key) {
            self.size(key, MAX_WIDTH)
        } else {
            Ok(default)
        }
    }

    /// A finite number above zero.
    fn positive(&self, key: &str, default: Option<f32>) -> Result<f32, EngineError> {
        let number = match (self.find(key)?, default) {
            (Some(number), _) | (None, Some(number)) => number,
            (None, None) => self.metadata.f32(&self.name(key))?,
        };
        Ok(positive(self.place(key), number)?)
    }

    fn soft_cap(&self, key: &str) -> Result<Option<f32>, EngineError> {
        Ok(soft_cap(self.place(key), self.find(key)?)?)
    }

    fn refuse_unsupported(&self) -> Result<(), EngineError> {
        for key in UNSUPPORTED_KEYS {
            if let Some(value) = self.metadata.get(&self.name(key)) {
                let supported = "only models without this key are";
                return Err(unsupported(self.place(key), value, supported).into());
            }
        }
        match self.find::<u32>("expert_count")? {
            Some(experts) if experts > 0 => {
                let supported = "mixtures of experts are not, only dense models";
                Err(unsupported(self.place("expert_count"), experts, supported).into())
            }
            _ => Ok(()),
        }
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, EngineError> {
        let head_dim = if self.has("attention.key_length") {
            self.size("attention.key_length", MAX_WIDTH)?
        } else {
            default_head_dim(self.place("attention.head_count"), hidden, heads)?
        };
        let value_length = self.size_or("attention.value_length", head_dim)?;
        if value_length != head_dim {
            let expected = format!("the length of a key, {head_dim}");
            let key = self.place("attention.value_length");
            return Err(contradiction(key, value_length, expected).into());
        }
        Ok(head_dim)
    }

    /// The rotary embedding; factors that are tensors come later.
    fn rope(&self, head_dim: usize, context_length: usize) -> Result<RopeConfig, EngineError> {
        const DIMENSIONS: &str = "rope.dimension_count";
        const ORIGINAL: &str = "rope.scaling.original_context_length";
        let dimensions = self.size_or(DIMENSIONS, head_dim)?;
        let original_context = if self.has(ORIGINAL) {
            self.size(ORIGINAL, MAX_CONTEXT)?
        } else {
            context_length
        };
        let rope = RopeConfig {
            dimensions: rotated(self.place(DIMENSIONS), dimensions, head_dim)?,
            pairs: self.architecture.gguf_pairs,
            base: self.positive("rope.freq_base", Some(ROPE_BASE))?,
            scale: 1.0,
            magnitude: self.positive("rope.scaling.attn_factor", Some(1.0))?,
            original_context,
            factors: Factors::None,
        };
        self.scaled(rope)
    }

    fn scaled(&self, rope: RopeConfig) -> Result<RopeConfig, EngineError> {
        const FACTOR: &str = "rope.scaling.factor";
        match self.find::<&str>("rope.scaling.type")? {
            Some("none" | "longrope") => Ok(rope),
            None if !self.has(FACTOR) => Ok(rope),
            None | Some("linear") => Ok(RopeConfig {
                scale: self.positive(FACTOR, None)?,
                ..rope
            }),
            Some("yarn") => {
                let [fast, slow] = YARN_BETAS;
                let yarn = Yarn {
                    factor: self.positive(FACTOR, None)?,
                    beta_fast: self.positive("rope.scaling.yarn_beta_fast", Some(fast))?,
                    beta_slow: self.positive("rope.scaling.yarn_beta_slow", Some(slow))?,
                };
                Ok(RopeConfig {
                    magnitude: rope.magnitude * yarn.magnitude(),
                    factors: yarn.factors(&rope),
                    ..rope
                })
            }
            Some(other) => {
                let supported = "none, linear, yarn and longrope are";
                Err(unsupported(self.place("rope.scaling.type"), other, supported).into())
            }
        }
    }

    fn window(&self, layers: usize) -> Result<Option<Window>, EngineError> {
        const WINDOW: &str = "attention.sliding_window";
        let default = match self.architecture.name {
            "gemma2" => GEMMA2_WINDOW,
            _ => 0,
        };
        let positions = self
            .find::<u32>(WINDOW)?
            .map_or(default, |size| size as usize);
        if positions == 0 {
            return Ok(None);
        }
        let sliding = self.sliding(layers)?;
        Ok(sliding
            .contains(&true)
            .then_some(Window { positions, sliding }))
    }

    /// For each layer, whether it has a window: as the file lists it, by the file's number, or by the architecture.
    fn sliding(&self, layers: usize) -> Result<Vec<bool>, EngineError> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let list = match self.metadata.get(&self.name(PATTERN)) {
            None => return Ok(self.architecture.sliding.layers(layers)),
            Some(Value::Numbers(list)) => list,
            Some(_) => {
                let each = self.size(PATTERN, MAX_LAYERS)?;
                return Ok(Sliding::AllBut(each).layers(layers));
            }
        };
        if list.len() == layers {
            return Ok(list
                .iter()
                .map(|slides| slides == Value::Bool(true))
                .collect());
        }
        let found = format!("a list of {}", list.len());
        let expected = format!("a list of {layers} truth values, one a layer");
        Err(contradiction(self.place(PATTERN), found, expected).into())
    }

    /// Gemma 3 turns the layers with a window by a base of their own, and does not scale their positions.
    fn local_rope(
        &self,
        rope: &RopeConfig,
        has_window: bool,
    ) -> Result<Option<RopeConfig>, EngineError> {
        if self.architecture.name != "gemma3" || !has_window {
            return Ok(None);
        }
        Ok(Some(RopeConfig {
            base: self.positive("rope.freq_base_swa", Some(GEMMA3_LOCAL_BASE))?,
            scale: 1.0,
            magnitude: 1.0,
            factors: Factors::None,
            ..rope.clone()
        }))
    }
}
