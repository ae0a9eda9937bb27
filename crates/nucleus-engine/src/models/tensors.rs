//! The tensors of a Llama model: which there must be, with which shapes, and reading them.

use std::collections::HashSet;

use candle_core::Device;
use rayon::ThreadPool;

use super::config::{ARCHITECTURE, LlamaConfig};
use super::error::ModelError;
use super::linear::{self, Linear};
use crate::error::EngineError;
use crate::gguf::{GgufError, ModelFile, TensorInfo};

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The name of a layer's tensor: `blk.3.attn_q.weight`.
pub(super) fn in_layer(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}")
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

/// Every tensor of a model; biases, an output matrix of its own and frequency factors are optional.
fn expected(config: &LlamaConfig, vocab_size: usize) -> Vec<Expected> {
    let hidden = config.hidden;
    let mut tensors = vec![
        Expected::required(EMBEDDING, &[vocab_size, hidden]),
        Expected::optional(OUTPUT, &[vocab_size, hidden]),
        Expected::required(OUTPUT_NORM, &[hidden]),
        Expected::optional(ROPE_FACTORS, &[config.rope.dimensions / 2]),
    ];
    let matrices = [
        ("attn_q", config.query_width(), hidden),
        ("attn_k", config.kv_width(), hidden),
        ("attn_v", config.kv_width(), hidden),
        ("attn_output", hidden, config.query_width()),
        ("ffn_gate", config.feed_forward, hidden),
        ("ffn_up", config.feed_forward, hidden),
        ("ffn_down", hidden, config.feed_forward),
    ];
    for layer in 0..config.layers {
        for norm in ["attn_norm.weight", "ffn_norm.weight"] {
            tensors.push(Expected::required(in_layer(layer, norm), &[hidden]));
        }
        for (name, outputs, inputs) in matrices {
            tensors.push(Expected::required(
                in_layer(layer, &format!("{name}.weight")),
                &[outputs, inputs],
            ));
            tensors.push(Expected::optional(
                in_layer(layer, &format!("{name}.bias")),
                &[outputs],
            ));
        }
    }
    tensors
}

/// Checks that the file has the tensors that the metadata asks for, with their shapes and of types that can be computed
/// with, and no others. Returns the size of the vocabulary.
pub(super) fn check(file: &ModelFile, config: &LlamaConfig) -> Result<usize, EngineError> {
    let embedding = file.tensor(EMBEDDING)?;
    let vocab_size = match embedding.shape[..] {
        [vocab_size, _] if vocab_size > 0 => vocab_size,
        _ => {
            return Err(wrong_shape(
                embedding,
                format!("[vocabulary, {}]", config.hidden),
            ));
        }
    };
    let mut known = HashSet::new();
    for expected in expected(config, vocab_size) {
        let Some(tensor) = file.find_tensor(&expected.name) else {
            if expected.required {
                file.tensor(&expected.name)?;
            }
            continue;
        };
        if tensor.shape != expected.shape {
            return Err(wrong_shape(tensor, format!("{:?}", expected.shape)));
        }
        if !tensor.kind.is_supported() {
            return Err(GgufError::UnsupportedType {
                tensor: expected.name,
                kind: tensor.kind,
            }
            .into());
        }
        known.insert(expected.name);
    }
    refuse_unknown(file, &known)?;
    Ok(vocab_size)
}

fn wrong_shape(tensor: &TensorInfo, expected: String) -> EngineError {
    ModelError::Shape {
        tensor: tensor.name.clone(),
        shape: tensor.shape.clone(),
        expected,
    }
    .into()
}

fn refuse_unknown(file: &ModelFile, known: &HashSet<String>) -> Result<(), EngineError> {
    const SHOWN: usize = 4;
    let unknown: Vec<&str> = file
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .filter(|&name| !known.contains(name))
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
        architecture: ARCHITECTURE.to_owned(),
        names,
    }
    .into())
}

/// Bytes that the tensors of a checked file take in memory.
pub(super) fn held_bytes(file: &ModelFile) -> u64 {
    let held = |tensor: &TensorInfo| match (&tensor.shape[..], tensor.kind.candle_type()) {
        (&[outputs, inputs], Some(dtype)) => linear::held_bytes(dtype, [outputs, inputs]),
        _ => tensor.elements() * size_of::<f32>() as u64,
    };
    file.tensors().iter().map(held).sum()
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors loaded.
    pub done: u64,
    /// Bytes of tensors in all.
    pub total: u64,
}

/// Reads the tensors of a checked file.
pub(super) struct Reader<'a, 'b> {
    file: &'a ModelFile,
    /// Rearrange the weights.
    threads: &'a ThreadPool,
    progress: LoadProgress,
    report: Option<&'b mut dyn FnMut(LoadProgress)>,
}

impl<'a, 'b> Reader<'a, 'b> {
    /// A reader that reports how far it has come after each tensor.
    pub(super) fn new(
        file: &'a ModelFile,
        threads: &'a ThreadPool,
        report: Option<&'b mut dyn FnMut(LoadProgress)>,
    ) -> Self {
        let total = file
            .tensors()
            .iter()
            .filter_map(|tensor| tensor.bytes)
            .sum();
        Self {
            file,
            threads,
            progress: LoadProgress { done: 0, total },
            report,
        }
    }

    /// A matrix.
    pub(super) fn linear(&mut self, name: &str) -> Result<Linear, EngineError> {
        let tensor = self.file.tensor(name)?;
        let linear = match (tensor.kind.candle_type(), &tensor.shape[..]) {
            (Some(dtype), &[outputs, inputs]) if Linear::has_kernel(dtype) => {
                let data = self.file.read_tensor_bytes(name)?;
                self.threads
                    .install(|| Linear::from_bytes(dtype, [outputs, inputs], &data))
            }
            _ => Linear::from_qtensor(&self.file.read_qtensor(name, &Device::Cpu)?)?,
        };
        self.report(name);
        Ok(linear)
    }

    /// A matrix, if the file has it.
    pub(super) fn find_linear(&mut self, name: &str) -> Result<Option<Linear>, EngineError> {
        self.file
            .find_tensor(name)
            .map(|_| self.linear(name))
            .transpose()
    }

    /// A vector, dequantised.
    pub(super) fn vector(&mut self, name: &str) -> Result<Vec<f32>, EngineError> {
        let tensor = self.file.read_qtensor(name, &Device::Cpu)?;
        let vector = tensor.dequantize(&Device::Cpu)?.to_vec1()?;
        self.report(name);
        Ok(vector)
    }

    /// A vector, if the file has it.
    pub(super) fn find_vector(&mut self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        self.file
            .find_tensor(name)
            .map(|_| self.vector(name))
            .transpose()
    }

    fn report(&mut self, name: &str) {
        let bytes = self.file.find_tensor(name).and_then(|tensor| tensor.bytes);
        self.progress.done += bytes.unwrap_or_default();
        if let Some(report) = &mut self.report {
            report(self.progress);
        }
    }
}
