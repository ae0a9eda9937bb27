//! The shape of a model, from the `config.json` that transformers writes beside safetensors files.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::super::architecture::{Activation, Architecture, Pairs, Sliding};
use super::super::error::ModelError;
use super::super::rope::{Factors, Llama3Scaling, RopeConfig, Yarn, long_magnitude};
use super::{
    Config, GEMMA3_LOCAL_BASE, MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, ROPE_BASE, Window, YARN_BETAS,
    contradiction, default_head_dim, grouped, positive, rotated, soft_cap, unsupported,
};

/// Base of the rotary frequencies of Gemma 3's layers without a window, where a file does not say.
const GEMMA3_GLOBAL_BASE: f32 = 1_000_000.0;
/// What transformers takes for a text model of Gemma 3 that does not say; the first one's own configuration says little.
const GEMMA3_TEXT: [(&str, usize); 6] = [
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("query_pre_attn_scalar", 256),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
];
/// Added to the mean of squares, where a file does not say.
const RMS_EPS: f32 = 1e-6;

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// A key that is missing, of another type, out of range, in contradiction to another, or of a feature that the
    /// decoder does not have.
    pub(in super::super) fn from_json(config: &Map<String, Value>) -> Result<Self, ModelError> {
        let text = text_part(config);
        let (name, config) = match &text {
            Some(text) => ("\"text_config\" of config.json", text),
            None => ("config.json", config),
        };
        let fields = Fields::new(Cow::Borrowed(name), config);
        let model_type = fields.text("model_type")?;
        let model_type = model_type.ok_or_else(|| fields.missing("model_type"))?;
        let architecture = Architecture::by_model_type(model_type)
            .ok_or_else(|| ModelError::architecture(model_type))?;
        if let Some(quantization) = config.get("quantization_config") {
            let key = fields.place("quantization_config");
            let supported = "F32, F16 and BF16 weights are, and quantised ones in GGUF files";
            return Err(unsupported(key, quantization, supported));
        }
        Reader {
            fields,
            architecture,
        }
        .config()
    }
}

/// The configuration of the text model in one of text and images, whose sizes are those of [`GEMMA3_TEXT`] where it does not say;
/// `None` if there is none.
fn text_part(config: &Map<String, Value>) -> Option<Map<String, Value>> {
    if config.get("model_type")?.as_str()? != "gemma3" {
        return None;
    }
    let given = config.get("text_config")?.as_object()?;
    let mut text = Map::new();
    for (key, value) in GEMMA3_TEXT {
        text.insert(key.to_owned(), value.into());
    }
    text.insert("model_type".to_owned(), "gemma3_text".into());
    text.extend(given.clone());
    if let Some(quantization) = config.get("quantization_config") {
        text.insert("quantization_config".to_owned(), quantization.clone());
    }
    Some(text)
}

struct Reader<'a> {
    fields: Fields<'a>,
    architecture: &'static Architecture,
}

impl Reader<'_> {
    fn is_gemma(&self) -> bool {
        self.architecture.activation == Activation::GeluTanh
    }

    fn config(&self) -> Result<Config, ModelError> {
        let (fields, architecture) = (&self.fields, self.architecture);
        self.check_activation()?;
        let hidden = fields.size("hidden_size", MAX_WIDTH)?;
        let heads = fields.size("num_attention_heads", MAX_WIDTH)?;
        let head_dim = match fields.find_size("head_dim", MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None => default_head_dim(fields.place("num_attention_heads"), hidden, heads)?,
        };
        let kv_heads = fields.find_size("num_key_value_heads", MAX_WIDTH)?;
        let layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        let context_length = fields.size("max_position_embeddings", MAX_CONTEXT)?;
        let (rope, local_rope) = self.ropes(head_dim, context_length)?;
        let scaled_by = match fields.number("query_pre_attn_scalar")? {
            Some(scalar) if self.is_gemma() => {
                positive(fields.place("query_pre_attn_scalar"), scalar)?
            }
            _ => head_dim as f32,
        };
        let cap = |key| soft_cap(fields.place(key), fields.number(key)?);
        Ok(Config {
            architecture,
            layers,
            hidden,
            heads,
            kv_heads: grouped(
                fields.place("num_key_value_heads"),
                kv_heads.unwrap_or(heads),
                heads,
            )?,
            head_dim,
            feed_forward: fields.size("intermediate_size", MAX_WIDTH)?,
            context_length,
            rms_eps: fields.positive("rms_norm_eps", Some(RMS_EPS))?,
            tied: fields.truth("tie_word_embeddings")?,
            rope,
            local_rope,
            window: self.window(layers)?,
            attention_scale: 1.0 / scaled_by.sqrt(),
            attention_soft_cap: cap("attn_logit_softcapping")?,
            logit_soft_cap: cap("final_logit_softcapping")?,
        })
    }

    /// Gemma's first models say `gelu` and mean its approximation.
    fn check_activation(&self) -> Result<(), ModelError> {
        let key = match self.fields.text("hidden_activation")? {
            Some(_) => "hidden_activation",
            None => "hidden_act",
        };
        let Some(name) = self.fields.text(key)? else {
            return Ok(());
        };
        let supported = match self.architecture.activation {
            Activation::Silu if matches!(name, "silu" | "swish") => return Ok(()),
            Activation::Silu => "silu is",
            Activation::GeluTanh if name == "gelu_pytorch_tanh" => return Ok(()),
            Activation::GeluTanh if name == "gelu" && key == "hidden_act" => return Ok(()),
            Activation::GeluTanh => "gelu_pytorch_tanh is",
        };
        Err(unsupported(self.fields.place(key), name, supported))
    }

    /// The rotary embedding of most layers, and of those with a window where it is another.
    ///
    /// transformers 5 writes `rope_parameters`, by type of layer where they differ; before it was `rope_scaling` beside
    /// `rope_theta`, and `rope_local_base_freq`.
    fn ropes(
        &self,
        head_dim: usize,
        context_length: usize,
    ) -> Result<(RopeConfig, Option<RopeConfig>), ModelError> {
        let fields = &self.fields;
        let given = match fields.object("rope_parameters")? {
            Some(given) => Some(given),
            None => fields.object("rope_scaling")?,
        };
        let rope = |given: Option<&Fields<'_>>, default_base| {
            RopeReader {
                reader: self,
                given,
                head_dim,
                context_length,
            }
            .rope(default_base)
        };
        if self.architecture.name != "gemma3" {
            return Ok((rope(given.as_ref(), ROPE_BASE)?, None));
        }
        let by_type = |layers: &str| match &given {
            Some(given) => given.object(layers),
            None => Ok(None),
        };
        if let (Some(global), Some(local)) =
            (by_type("full_attention")?, by_type("sliding_attention")?)
        {
            let global = rope(Some(&global), GEMMA3_GLOBAL_BASE)?;
            return Ok((global, Some(rope(Some(&local), GEMMA3_LOCAL_BASE)?)));
        }
        let global = rope(given.as_ref(), GEMMA3_GLOBAL_BASE)?;
        let local = RopeConfig {
            base: fields.positive("rope_local_base_freq", Some(GEMMA3_LOCAL_BASE))?,
            scale: 1.0,
            magnitude: 1.0,
            factors: Factors::None,
            ..global.clone()
        };
        Ok((global, Some(local)))
    }

    fn window(&self, layers: usize) -> Result<Option<Window>, ModelError> {
        let fields = &self.fields;
        // Qwen's configurations have a window and a switch for it, which is off.
        let is_switched = fields.object.contains_key("use_sliding_window");
        if is_switched && !fields.truth("use_sliding_window")?.unwrap_or(false) {
            return Ok(None);
        }
        let Some(positions) = fields.find_size("sliding_window", MAX_CONTEXT)? else {
            return Ok(None);
        };
        let sliding = match fields.list("layer_types")? {
            Some(types) => self.listed(types, layers)?,
            None => self.sliding(layers)?,
        };
        Ok(sliding
            .contains(&true)
            .then_some(Window { positions, sliding }))
    }

    fn listed(&self, types: &[Value], layers: usize) -> Result<Vec<bool>, ModelError> {
        let key = || self.fields.place("layer_types");
        if types.len() != layers {
            let expected = format!("a list of {layers}, one a layer");
            return Err(contradiction(
                key(),
                format!("a list of {}", types.len()),
                expected,
            ));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => Err(unsupported(
                    key(),
                    kind,
                    "full_attention and sliding_attention are",
                )),
            })
            .collect()
    }

    fn sliding(&self, layers: usize) -> Result<Vec<bool>, ModelError> {
        let fields = &self.fields;
        if let Some(first) = fields.integer("max_window_layers")? {
            return Ok((0..layers as u64).map(|layer| layer >= first).collect());
        }
        let pattern = match fields.find_size("sliding_window_pattern", MAX_LAYERS)? {
            Some(pattern) => Some(pattern),
            None => fields.find_size("_sliding_window_pattern", MAX_LAYERS)?,
        };
        let sliding = pattern.map_or(self.architecture.sliding, Sliding::AllBut);
        Ok(sliding.layers(layers))
    }
}

/// Reads one rotary embedding.
struct RopeReader<'a> {
    reader: &'a Reader<'a>,
    given: Option<&'a Fields<'a>>,
    head_dim: usize,
    context_length: usize,
}

impl RopeReader<'_> {
    /// A number of the parameters, or else of the configuration itself.
    fn number(&self, key: &str) -> Result<Option<(String, f32)>, ModelError> {
        for fields in self.given.into_iter().chain([&self.reader.fields]) {
            if let Some(number) = fields.number(key)? {
                return Ok(Some((fields.place(key), number)));
            }
        }
        Ok(None)
    }

    fn positive(&self, key: &str, default: Option<f32>) -> Result<f32, ModelError> {
        match (self.number(key)?, default) {
            (Some((place, number)), _) => positive(place, number),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.given.unwrap_or(&self.reader.fields).missing(key)),
        }
    }

    fn rope(&self, default_base: f32) -> Result<RopeConfig, ModelError> {
        let part = self.positive("partial_rotary_factor", Some(1.0))?;
        let dimensions = (self.head_dim as f32 * part) as usize;
        let key = self.reader.fields.place("partial_rotary_factor");
        let original_context = match self.number("original_max_position_embeddings")? {
            Some((place, number)) => positive(place, number)? as usize,
            None => self.context_length,
        };
        let rope = RopeConfig {
            dimensions: rotated(key, dimensions, self.head_dim)?,
            pairs: Pairs::Halves,
            base: self.positive("rope_theta", Some(default_base))?,
            scale: 1.0,
            magnitude: 1.0,
            original_context,
            factors: Factors::None,
        };
        let kind = match self.given {
            Some(given) => given.text("rope_type")?.or(given.text("type")?),
            None => None,
        };
        self.scaled(rope, kind.unwrap_or("default"))
    }

    fn scaled(&self, rope: RopeConfig, kind: &str) -> Result<RopeConfig, ModelError> {
        let factor = || self.positive("factor", None);
        match kind {
            "default" => Ok(rope),
            "linear" => Ok(RopeConfig {
                scale: factor()?,
                ..rope
            }),
            "llama3" => {
                let scaling = Llama3Scaling {
                    factor: factor()?,
                    low_turns: self.positive("low_freq_factor", None)?,
                    high_turns: self.positive("high_freq_factor", None)?,
                };
                Ok(RopeConfig {
                    factors: scaling.factors(&rope),
                    ..rope
                })
            }
            // Frequencies change with sequences beyond the context length, which none grows to here.
            "dynamic" => factor().map(|_| rope),
            // Phi-3's first files call LongRoPE "su".
            "longrope" | "su" => self.long(rope),
            "yarn" => {
                let [fast, slow] = YARN_BETAS;
                let yarn = Yarn {
                    factor: factor()?,
                    beta_fast: self.positive("beta_fast", Some(fast))?,
                    beta_slow: self.positive("beta_slow", Some(slow))?,
                };
                Ok(RopeConfig {
                    magnitude: self.positive("attention_factor", Some(yarn.magnitude()))?,
                    factors: yarn.factors(&rope),
                    ..rope
                })
            }
            other => {
                let place = self.given.unwrap_or(&self.reader.fields).place("rope_type");
                let supported = "default, linear, dynamic, llama3, longrope and yarn are";
                Err(unsupported(place, other, supported))
            }
        }
    }

    fn long(&self, rope: RopeConfig) -> Result<RopeConfig, ModelError> {
        let pairs = rope.dimensions / 2;
        let factors = |key: &str| {
            self.given
                .map_or(Ok(Vec::new()), |given| given.numbers(key, pairs))
        };
        let default = long_magnitude(self.context_length, rope.original_context);
        Ok(RopeConfig {
            magnitude: self.positive("attention_factor", Some(default))?,
            factors: Factors::ByContext {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
            },
            ..rope
        })
    }
}

/// An object of the configuration. A value of null is as good as none.
struct Fields<'a> {
    /// How errors call it.
    name: Cow<'static, str>,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(name: Cow<'static, str>, object: &'a Map<String, Value>) -> Self {
        Self { name, object }
    }

    fn place(&self, key: &str) -> String {
        format!("{key:?} of {}", self.name)
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingKey {
            key: self.place(key),
        }
    }

    /// The value of a key through `read`, which gives `None` for a value of another type.
    fn find<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(contradiction(self.place(key), value, expected)),
            },
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.find(key, "a string", Value::as_str)
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.find(key, "true or false", Value::as_bool)
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.find(key, "an integer of at least 0", Value::as_u64)
    }

    fn number(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.find(key, "a number", |value| Some(value.as_f64()? as f32))
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ModelError> {
        self.find(key, "a list", |value| Some(value.as_array()?.as_slice()))
    }

    fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ModelError> {
        let object = self.find(key, "an object", Value::as_object)?;
        let name = || Cow::Owned(format!("{key:?} of {}", self.name));
        Ok(object.map(|object| Fields::new(name(), object)))
    }

    fn find_size(&self, key: &str, max: u32) -> Result<Option<usize>, ModelError> {
        let size = |value: &Value| {
            let size = u32::try_from(value.as_u64()?).ok()?;
            (1..=max).contains(&size).then_some(size as usize)
        };
        self.find(key, &format!("from 1 to {max}"), size)
    }

    fn size(&self, key: &str, max: u32) -> Result<usize, ModelError> {
        self.find_size(key, max)?.ok_or_else(|| self.missing(key))
    }

    fn positive(&self, key: &str, default: Option<f32>) -> Result<f32, ModelError> {
        let number = self.number(key)?.or(default);
        positive(self.place(key), number.ok_or_else(|| self.missing(key))?)
    }

    /// A list of so many finite numbers above zero.
    fn numbers(&self, key: &str, count: usize) -> Result<Vec<f32>, ModelError> {
        let list = self.list(key)?.ok_or_else(|| self.missing(key))?;
        let numbers: Option<Vec<f32>> = list
            .iter()
            .map(|value| Some(value.as_f64()? as f32))
            .collect();
        match numbers {
            Some(numbers)
                if numbers.len() == count && numbers.iter().all(|&n| n.is_finite() && n > 0.0) =>
            {
                Ok(numbers)
            }
            _ => {
                let expected = format!("a list of {count} finite numbers above 0");
                Err(contradiction(
                    self.place(key),
                    format!("a list of {}", list.len()),
                    expected,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A configuration with the given keys besides the sizes.
    fn read(more: Value) -> Result<Config, ModelError> {
        let mut config = json!({
            "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 96,
            "max_position_embeddings": 4096,
        });
        let object = config.as_object_mut().unwrap();
        object.extend(more.as_object().unwrap().clone());
        Config::from_json(object)
    }

    fn error(more: Value) -> String {
        read(more).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_said_has_its_usual_value() {
        let config = read(json!({"model_type": "llama"})).unwrap();
        assert_eq!((config.head_dim, config.kv_heads), (16, 4));
        assert_eq!((config.rms_eps, config.rope.base), (RMS_EPS, ROPE_BASE));
        assert_eq!(config.attention_scale, 0.25);
        assert_eq!((config.window, config.tied), (None, None));
        assert_eq!(config.rope.pairs, Pairs::Halves);
    }

    #[test]
    fn a_dynamic_rope_is_as_it_is_within_the_context() {
        let plain = read(json!({"model_type": "llama"})).unwrap();
        let scaling = json!({"rope_type": "dynamic", "factor": 2.0});
        let dynamic = read(json!({"model_type": "llama", "rope_scaling": scaling})).unwrap();
        assert_eq!(dynamic.rope, plain.rope);
        assert_eq!(dynamic.context_length, 4096);
        let error = error(json!({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}));
        assert!(error.contains("no \"factor\""), "{error}");
    }

    #[test]
    fn the_text_model_of_gemma_3_has_its_usual_sizes() {
        // As Gemma 3 4B says it.
        let config = json!({
            "model_type": "gemma3", "vision_config": {"hidden_size": 1152}, "mm_tokens_per_image": 256,
            "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            },
        });
        let mut config = config.as_object().unwrap().clone();
        let text = Config::from_json(&config).unwrap();
        assert_eq!(text.architecture.name, "gemma3");
        assert_eq!((text.layers, text.hidden), (34, 2560));
        assert_eq!((text.heads, text.kv_heads, text.head_dim), (8, 4, 256));
        assert_eq!(
            (text.context_length, text.attention_scale),
            (131_072, 1.0 / 16.0)
        );
        let window = text.window.unwrap();
        assert_eq!(window.positions, 1024);
        assert_eq!(window.sliding[..6], [true, true, true, true, true, false]);
        assert_eq!((text.rope.scale, text.rope.base), (8.0, GEMMA3_GLOBAL_BASE));
        assert_eq!(text.local_rope.unwrap().base, GEMMA3_LOCAL_BASE);

        config.insert("quantization_config".into(), json!({"bits": 4}));
        let error = Config::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("which is not supported"), "{error}");
        config.remove("text_config");
        let error = Config::from_json(&config).unwrap_err().to_string();
        assert!(error.contains("gemma3"), "{error}");
    }

    #[test]
    fn rope_is_written_in_two_ways() {
        let llama3 = json!({
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        });
        let with = |kind: &str, theta: Option<f64>| {
            let mut object = llama3.clone();
            object[kind] = json!("llama3");
            if let Some(theta) = theta {
                object["rope_theta"] = json!(theta);
            }
            object
        };
        let new =
            read(json!({"model_type": "llama", "rope_parameters": with("rope_type", Some(5e5))}))
                .unwrap();
        for kind in ["rope_type", "type"] {
            let scaling = with(kind, None);
            let old = json!({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": scaling});
            assert_eq!(read(old).unwrap().rope, new.rope);
        }
        assert_eq!(new.rope.base, 5e5);
        assert_eq!(new.rope.original_context, 64);
        assert!(matches!(&new.rope.factors, Factors::Fixed(factors) if factors.len() == 8));
    }

    #[test]
    fn phi_3_calls_its_long_factors_su() {
        let factors = |factor: f64| vec![factor; 8];
        let config = read(json!({
            "model_type": "phi3", "original_max_position_embeddings": 1024, "sliding_window": 2047,
            "rope_scaling": {"type": "su", "short_factor": factors(1.0), "long_factor": factors(4.0)},
        }))
        .unwrap();
        assert_eq!(config.rope.magnitude, long_magnitude(4096, 1024));
        let expected = Factors::ByContext {
            short: vec![1.0; 8],
            long: vec![4.0; 8],
        };
        assert_eq!(config.rope.factors, expected);
        assert_eq!(config.window_of(3), Some(2047));
        let short = json!({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": []}});
        assert_eq!(
            error(short),
            r#""short_factor" of "rope_scaling" of config.json is a list of 1; it must be a list of 8 finite numbers above 0"#
        );
    }

    #[test]
    fn qwen_has_a_switch_for_its_window() {
        let qwen = |switch: Value| {
            read(json!({
                "model_type": "qwen2", "sliding_window": 32, "max_window_layers": 3, "use_sliding_window": switch,
            }))
            .unwrap()
        };
        assert_eq!(qwen(json!(false)).window, None);
        let windows = |config: Config| {
            (0..4)
                .map(|layer| config.window_of(layer))
                .collect::<Vec<_>>()
        };
        assert_eq!(windows(qwen(json!(true))), [None, None, None, Some(32)]);
    }

    #[test]
    fn gemma_3_turns_layers_with_a_window_by_another_base() {
        let old = read(json!({
            "model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 64,
            "rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        }))
        .unwrap();
        assert_eq!((old.rope.base, old.rope.scale), (1e6, 8.0));
        let local = old.local_rope.as_ref().unwrap();
        assert_eq!((local.base, local.scale), (2e4, 1.0));
        let windows: Vec<_> = (0..4).map(|layer| old.window_of(layer)).collect();
        assert_eq!(windows, [Some(8), None, Some(8), None]);
        assert_eq!(old.attention_scale, 0.125);
        assert_eq!(old.embedding_scale(), Some(8.0));
        assert_eq!(old.attention(1).window, None);
    }

    #[test]
    fn what_cannot_be_computed_is_named() {
        assert_eq!(
            error(json!({"model_type": "mixtral"})),
            "architecture \"mixtral\" is not supported; supported are llama, mistral, qwen2, qwen3, phi3, gemma, gemma2, \
             gemma3, gemma3_text"
        );
        assert_eq!(
            error(json!({})),
            "there is no \"model_type\" of config.json"
        );
        for (key, value, message) in [
            (
                "quantization_config",
                json!({"bits": 4}),
                r#"{"bits":4}, which is not supported"#,
            ),
            (
                "hidden_act",
                json!("relu"),
                r#"relu, which is not supported; silu is"#,
            ),
            (
                "rope_scaling",
                json!({"rope_type": "spiral"}),
                "spiral, which is not supported",
            ),
            (
                "num_key_value_heads",
                json!(3),
                "3; it must be a divisor of the head count, 4",
            ),
            (
                "num_attention_heads",
                json!(5),
                "5; it must be a divisor of the embedding length, 64",
            ),
            ("hidden_size", json!(0), "0; it must be from 1 to 1048576"),
            (
                "hidden_size",
                json!("wide"),
                r#""wide"; it must be from 1 to 1048576"#,
            ),
            (
                "rms_norm_eps",
                json!(-1.0),
                "-1; it must be finite and above 0",
            ),
            ("rope_theta", json!(true), "true; it must be a number"),
            (
                "partial_rotary_factor",
                json!(0.2),
                "3; it must be even and at most the width of a head, 16",
            ),
        ] {
            let error = error(json!({"model_type": "llama", key: value}));
            assert!(error.contains(message), "{key}: {error}");
        }
        let types = json!({"model_type": "mistral", "sliding_window": 4, "layer_types": vec!["chunked_attention"; 4]});
        assert!(error(types).contains("full_attention and sliding_attention are"));
    }
}
