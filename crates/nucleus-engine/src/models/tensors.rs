//! The tensors of a model: which there must be, with which shapes, and reading them.
//!
//! Tensors go by their names in GGUF files here; [`checkpoint_name`] knows the others.

use std::collections::HashSet;

use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};

use super::config::Config;
use super::error::ModelError;
use super::executor::{Load, MatrixOf, VectorOf};
use super::linear;
use super::rope::{Factors, RopeConfig};
use super::weights::{Tensor, Weights};
use crate::error::EngineError;

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
/// What frequencies are divided by (Llama 3.1).
const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The same for short and for long contexts (LongRoPE).
const ROPE_FACTORS_SHORT: &str = "rope_factors_short.weight";
const ROPE_FACTORS_LONG: &str = "rope_factors_long.weight";

/// The name of a layer's tensor: `blk.3.attn_q.weight`.
pub(super) fn in_layer(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}")
}

/// Names of layers' tensors, in GGUF files and in safetensors files.
const LAYER_NAMES: [(&str, &str); 13] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What a tensor is called in safetensors files.
pub(super) fn checkpoint_name(config: &Config, name: &str) -> String {
    let Some((layer, rest)) = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return match name {
            EMBEDDING => "model.embed_tokens.weight",
            OUTPUT => "lm_head.weight",
            OUTPUT_NORM => "model.norm.weight",
            other => other,
        }
        .to_owned();
    };
    let (stem, kind) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let architecture = config.architecture;
    let stem = match stem {
        // With norms after the blocks, the one before the second block has the name that tells it apart.
        "ffn_norm" if architecture.post_norms => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_up" if architecture.fused => "mlp.gate_up_proj",
        stem => LAYER_NAMES
            .iter()
            .find(|(name, _)| *name == stem)
            .map_or(stem, |(_, name)| name),
    };
    format!("model.layers.{layer}.{stem}.{kind}")
}

/// A tensor that a file may or must have.
struct Expected {
    name: String,
    shape: Vec<usize>,
    required: bool,
}

impl Expected {
    fn required(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            name: name.into(),
            shape: shape.to_vec(),
            required: true,
        }
    }

    fn optional(name: impl Into<String>, shape: &[usize]) -> Self {
        Self {
            required: false,
            ..Self::required(name, shape)
        }
    }
}

/// Every tensor of a model. An output matrix of its own is optional unless the file says that there is one, and so are
/// biases and frequency factors.
fn expected(config: &Config, vocab_size: usize) -> Vec<Expected> {
    let (hidden, pairs) = (config.hidden, config.rope.dimensions / 2);
    let mut tensors = vec![
        Expected::required(EMBEDDING, &[vocab_size, hidden]),
        Expected {
            required: config.tied == Some(false),
            ..Expected::optional(OUTPUT, &[vocab_size, hidden])
        },
        Expected::required(OUTPUT_NORM, &[hidden]),
        Expected::optional(ROPE_FACTORS, &[pairs]),
        Expected::optional(ROPE_FACTORS_SHORT, &[pairs]),
        Expected::optional(ROPE_FACTORS_LONG, &[pairs]),
    ];
    for layer in 0..config.layers {
        tensors.extend(
            expected_in_layer(config)
                .into_iter()
                .map(|tensor| Expected {
                    name: in_layer(layer, &tensor.name),
                    ..tensor
                }),
        );
    }
    tensors
}

fn expected_in_layer(config: &Config) -> Vec<Expected> {
    let architecture = config.architecture;
    let (hidden, feed_forward) = (config.hidden, config.feed_forward);
    let (query, kv) = (config.query_width(), config.kv_width());
    let mut norms = vec![("attn_norm", hidden), ("ffn_norm", hidden)];
    if architecture.head_norms {
        norms.extend([
            ("attn_q_norm", config.head_dim),
            ("attn_k_norm", config.head_dim),
        ]);
    }
    if architecture.post_norms {
        norms.extend([("post_attention_norm", hidden), ("post_ffw_norm", hidden)]);
    }
    let mut matrices = vec![
        ("attn_output", hidden, query),
        ("ffn_down", hidden, feed_forward),
    ];
    if architecture.fused {
        matrices.extend([
            ("attn_qkv", query + 2 * kv, hidden),
            ("ffn_up", 2 * feed_forward, hidden),
        ]);
    } else {
        matrices.extend([
            ("attn_q", query, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("ffn_gate", feed_forward, hidden),
            ("ffn_up", feed_forward, hidden),
        ]);
    }
    let norms = norms
        .into_iter()
        .map(|(name, width)| Expected::required(format!("{name}.weight"), &[width]));
    let matrices = matrices.into_iter().flat_map(|(name, outputs, inputs)| {
        let weight = Expected::required(format!("{name}.weight"), &[outputs, inputs]);
        let bias = Expected::optional(format!("{name}.bias"), &[outputs]);
        std::iter::once(weight).chain((!architecture.fused).then_some(bias))
    });
    norms.chain(matrices).collect()
}

/// Checks that there are the tensors that the configuration asks for, with their shapes and of types that can be computed
/// with, and no others. Returns the size of the vocabulary.
pub(super) fn check(weights: Weights<'_>, config: &Config) -> Result<usize, EngineError> {
    let embedding = weights.tensor(config, EMBEDDING)?;
    let vocab_size = match *embedding.shape {
        [vocab_size, _] if vocab_size > 0 => vocab_size,
        _ => {
            return Err(wrong_shape(
                &embedding,
                format!("[vocabulary, {}]", config.hidden),
            ));
        }
    };
    let mut known = HashSet::new();
    for expected in expected(config, vocab_size) {
        let Some(tensor) = weights.find(config, &expected.name) else {
            if expected.required {
                weights.tensor(config, &expected.name)?;
            }
            continue;
        };
        if tensor.shape != expected.shape {
            return Err(wrong_shape(&tensor, format!("{:?}", expected.shape)));
        }
        if tensor.dtype.is_none() {
            return Err(weights.unsupported(&tensor));
        }
        known.insert(tensor.name.to_owned());
    }
    refuse_unknown(weights, config, &known)?;
    Ok(vocab_size)
}

fn wrong_shape(tensor: &Tensor<'_>, expected: String) -> EngineError {
    ModelError::Shape {
        tensor: tensor.name.to_owned(),
        shape: tensor.shape.to_vec(),
        expected,
    }
    .into()
}

fn refuse_unknown(
    weights: Weights<'_>,
    config: &Config,
    known: &HashSet<String>,
) -> Result<(), EngineError> {
    const SHOWN: usize = 4;
    let unknown: Vec<&str> = weights
        .names()
        .into_iter()
        .filter(|&name| !known.contains(name) && !weights.ignores(name))
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let mut names = unknown
        .iter()
        .take(SHOWN)
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    if unknown.len() > SHOWN {
        names += &format!(" and {} more", unknown.len() - SHOWN);
    }
    Err(ModelError::UnknownTensors {
        architecture: config.architecture.name.to_owned(),
        names,
    }
    .into())
}

/// Bytes that the tensors of a checked model take in memory.
pub(super) fn held_bytes(weights: Weights<'_>, config: &Config) -> u64 {
    let held = |tensor: Tensor<'_>| match (tensor.shape, tensor.dtype) {
        (&[outputs, inputs], Some(dtype)) => linear::held_bytes(dtype, [outputs, inputs]),
        _ => tensor.elements() * size_of::<f32>() as u64,
    };
    used(weights, config).into_iter().map(held).sum()
}

/// What is made of a tensor when it is loaded.
#[cfg(feature = "cuda")]
pub(super) enum Part {
    /// A matrix of that type, outputs and inputs.
    Matrix(GgmlDType, [usize; 2]),
    /// A vector of that length.
    Vector(usize),
}

/// What is made of the tensors of a checked model when they are loaded; rotary factors stay on the host.
#[cfg(feature = "cuda")]
pub(super) fn parts(weights: Weights<'_>, config: &Config) -> Vec<Part> {
    let mut parts = Vec::new();
    for expected in expected(config, 0) {
        let Some(tensor) = weights.find(config, &expected.name) else {
            continue;
        };
        let fused = config.architecture.fused;
        match (tensor.shape, tensor.dtype) {
            (&[_, inputs], Some(dtype)) if fused && expected.name.ends_with("attn_qkv.weight") => {
                let widths = config.qkv_widths().into_iter();
                parts.extend(widths.map(|outputs| Part::Matrix(dtype, [outputs, inputs])));
            }
            (&[_, inputs], Some(dtype)) if fused && expected.name.ends_with("ffn_up.weight") => {
                let widths = config.gate_up_widths().into_iter();
                parts.extend(widths.map(|outputs| Part::Matrix(dtype, [outputs, inputs])));
            }
            (&[outputs, inputs], Some(dtype)) => {
                parts.push(Part::Matrix(dtype, [outputs, inputs]));
            }
            (&[len], _) if !expected.name.starts_with("rope_") => parts.push(Part::Vector(len)),
            _ => {}
        }
    }
    parts
}

/// Number of weights of a checked model.
pub(super) fn parameters(weights: Weights<'_>, config: &Config) -> u64 {
    let tensors = used(weights, config);
    tensors.iter().map(Tensor::elements).sum()
}

/// The tensors of a checked model.
fn used<'a>(weights: Weights<'a>, config: &Config) -> Vec<Tensor<'a>> {
    expected(config, 0)
        .iter()
        .filter_map(|expected| weights.find(config, &expected.name))
        .collect()
}

/// The type with the most bytes.
pub(super) fn commonest_type(weights: Weights<'_>, config: &Config) -> String {
    let tensors = used(weights, config);
    let bytes_of = |dtype: Option<GgmlDType>| -> u64 {
        let same = tensors.iter().filter(|tensor| tensor.dtype == dtype);
        same.map(|tensor| tensor.bytes).sum()
    };
    let commonest = tensors.iter().max_by_key(|tensor| bytes_of(tensor.dtype));
    commonest
        .map(|tensor| tensor.kind.clone())
        .unwrap_or_default()
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors loaded.
    pub done: u64,
    /// Bytes of tensors in all.
    pub total: u64,
}

/// A matrix in a model's files: some rows of a tensor.
pub(super) struct MatrixSource<'a> {
    weights: Weights<'a>,
    tensor: &'a Tensor<'a>,
    /// Its type.
    pub(super) dtype: GgmlDType,
    /// Outputs and inputs.
    pub(super) shape: [usize; 2],
    /// Of its first byte in the tensor.
    offset: u64,
}

impl MatrixSource<'_> {
    /// Its size in the file.
    pub(super) fn bytes(&self) -> usize {
        let [outputs, inputs] = self.shape;
        outputs * inputs / self.dtype.block_size() * self.dtype.type_size()
    }

    /// Some of its outputs.
    #[cfg(feature = "cuda")]
    pub(super) fn outputs(&self, outputs: std::ops::Range<usize>) -> Self {
        let [_, inputs] = self.shape;
        let mut part = Self {
            shape: [outputs.start, inputs],
            ..*self
        };
        part.offset += part.bytes() as u64;
        part.shape = [outputs.len(), inputs];
        part
    }

    /// Copies its bytes from so many on to `bytes`.
    pub(super) fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<(), EngineError> {
        let offset = self.offset + offset as u64;
        self.weights.read_at(self.tensor, offset, bytes)
    }

    /// A copy of its bytes.
    pub(super) fn read(&self) -> Result<Vec<u8>, EngineError> {
        let mut bytes = self.weights.buffer(self.tensor, self.bytes())?;
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The library's matrix.
    pub(super) fn read_qtensor(&self) -> Result<QTensor, EngineError> {
        // The library reads blocks in place, so the bytes must begin where a block of floats may.
        const ALIGNMENT: usize = 64;
        let len = self.bytes();
        let mut padded = self.weights.buffer(self.tensor, len + ALIGNMENT)?;
        let start = padded.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut padded[start..][..len];
        self.read_at(0, aligned)?;
        let shape = self.shape.to_vec();
        Ok(qtensor_from_ggml(self.dtype, aligned, shape, &Device::Cpu)?)
    }
}

/// Reads the tensors of a checked model.
pub(super) struct Reader<'a, 'b, L> {
    weights: Weights<'a>,
    config: &'a Config,
    /// Makes of them what is computed with.
    pub(super) load: L,
    progress: LoadProgress,
    report: Option<&'b mut dyn FnMut(LoadProgress)>,
}

impl<'a, 'b, L: Load> Reader<'a, 'b, L> {
    /// A reader that reports how far it has come after each tensor.
    pub(super) fn new(
        weights: Weights<'a>,
        config: &'a Config,
        load: L,
        report: Option<&'b mut dyn FnMut(LoadProgress)>,
    ) -> Self {
        let total = used(weights, config)
            .iter()
            .map(|tensor| tensor.bytes)
            .sum();
        Self {
            weights,
            config,
            load,
            progress: LoadProgress { done: 0, total },
            report,
        }
    }

    /// A matrix.
    pub(super) fn matrix(&mut self, name: &str) -> Result<MatrixOf<L>, EngineError> {
        let tensor = self.weights.tensor(self.config, name)?;
        let &[rows, _] = tensor.shape else {
            return Err(self.weights.unsupported(&tensor));
        };
        let [matrix] = self.matrices(name, [rows])?;
        Ok(matrix)
    }

    /// A matrix, cut into matrices of so many outputs each.
    pub(super) fn matrices<const N: usize>(
        &mut self,
        name: &str,
        outputs: [usize; N],
    ) -> Result<[MatrixOf<L>; N], EngineError> {
        let tensor = self.weights.tensor(self.config, name)?;
        let (Some(dtype), &[rows, inputs]) = (tensor.dtype, tensor.shape) else {
            return Err(self.weights.unsupported(&tensor));
        };
        debug_assert_eq!(outputs.iter().sum::<usize>(), rows);
        let mut offset = 0;
        let mut matrices = Vec::with_capacity(N);
        for outputs in outputs {
            let source = MatrixSource {
                weights: self.weights,
                tensor: &tensor,
                dtype,
                shape: [outputs, inputs],
                offset,
            };
            offset += source.bytes() as u64;
            matrices.push(self.load.matrix(&source)?);
        }
        self.report(&tensor);
        Ok(matrices
            .try_into()
            .unwrap_or_else(|_| unreachable!("one matrix for each number of outputs")))
    }

    /// The output matrix, if the model has one of its own.
    pub(super) fn find_output(&mut self) -> Result<Option<MatrixOf<L>>, EngineError> {
        match self.weights.find(self.config, OUTPUT) {
            Some(_) => self.matrix(OUTPUT).map(Some),
            None => Ok(None),
        }
    }

    /// The values of a vector, dequantised.
    fn values(&mut self, name: &str) -> Result<Vec<f32>, EngineError> {
        let tensor = self.weights.tensor(self.config, name)?;
        let qtensor = self.weights.read_qtensor(&tensor)?;
        let vector = qtensor.dequantize(&Device::Cpu)?.to_vec1()?;
        self.report(&tensor);
        Ok(vector)
    }

    fn find_values(&mut self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        match self.weights.find(self.config, name) {
            Some(_) => self.values(name).map(Some),
            None => Ok(None),
        }
    }

    /// A vector, if the file has it.
    pub(super) fn find_vector(&mut self, name: &str) -> Result<Option<VectorOf<L>>, EngineError> {
        let values = self.find_values(name)?;
        values.map(|values| self.load.vector(values)).transpose()
    }

    /// The weights of a norm.
    pub(super) fn norm(&mut self, name: &str) -> Result<VectorOf<L>, EngineError> {
        let mut norm = self.values(name)?;
        let offset = self.weights.norm_offset(self.config);
        norm.iter_mut().for_each(|weight| *weight += offset);
        self.load.vector(norm)
    }

    /// The weights of a layer's norm, where the architecture has it.
    pub(super) fn norm_if(
        &mut self,
        has: bool,
        layer: usize,
        name: &str,
    ) -> Result<Option<VectorOf<L>>, EngineError> {
        has.then(|| self.norm(&in_layer(layer, name))).transpose()
    }

    /// The rotary embedding with the factors that GGUF files keep as tensors.
    pub(super) fn rope(&mut self) -> Result<RopeConfig, EngineError> {
        let rope = self.config.rope.clone();
        let short = self.find_values(ROPE_FACTORS_SHORT)?;
        let factors = match (
            self.find_values(ROPE_FACTORS)?,
            short,
            self.find_values(ROPE_FACTORS_LONG)?,
        ) {
            (Some(factors), None, None) => Factors::Fixed(factors),
            (None, Some(short), Some(long)) => Factors::ByContext { short, long },
            (None, None, None) => return Ok(rope),
            _ => return Err(ModelError::RopeFactors.into()),
        };
        Ok(RopeConfig { factors, ..rope })
    }

    fn report(&mut self, tensor: &Tensor<'_>) {
        self.progress.done += tensor.bytes;
        if let Some(report) = &mut self.report {
            report(self.progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::architecture::Architecture;
    use super::*;
    use serde_json::{Map, Value, json};

    fn config(model_type: &str) -> Config {
        let config = json!({
            "model_type": model_type, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
            "intermediate_size": 16, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        });
        let config: Map<String, Value> = serde_json::from_value(config).unwrap();
        Config::from_json(&config).unwrap()
    }

    fn names(model_type: &str) -> Vec<String> {
        let config = config(model_type);
        let expected = expected_in_layer(&config);
        let required = expected.iter().filter(|tensor| tensor.required);
        required
            .map(|tensor| checkpoint_name(&config, &in_layer(7, &tensor.name)))
            .map(|name| name.strip_prefix("model.layers.7.").unwrap().to_owned())
            .collect()
    }

    #[test]
    fn the_norm_before_the_second_block_goes_by_two_names() {
        assert_eq!(
            names("llama")[..2],
            ["input_layernorm.weight", "post_attention_layernorm.weight"]
        );
        assert_eq!(
            names("gemma3_text")[..6],
            [
                "input_layernorm.weight",
                "pre_feedforward_layernorm.weight",
                "self_attn.q_norm.weight",
                "self_attn.k_norm.weight",
                "post_attention_layernorm.weight",
                "post_feedforward_layernorm.weight",
            ]
        );
    }

    #[test]
    fn fused_matrices_have_names_of_their_own() {
        assert_eq!(
            names("phi3")[2..],
            [
                "self_attn.o_proj.weight",
                "mlp.down_proj.weight",
                "self_attn.qkv_proj.weight",
                "mlp.gate_up_proj.weight",
            ]
        );
    }

    #[test]
    fn tensors_outside_of_layers() {
        let config = config("qwen3");
        assert_eq!(config.architecture, Architecture::by_name("qwen3").unwrap());
        let names = [EMBEDDING, OUTPUT_NORM, OUTPUT].map(|name| checkpoint_name(&config, name));
        assert_eq!(
            names,
            [
                "model.embed_tokens.weight",
                "model.norm.weight",
                "lm_head.weight"
            ]
        );
    }
}
