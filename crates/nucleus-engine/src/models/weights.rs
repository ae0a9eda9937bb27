//! Where a model's weights come from.

use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};

use super::config::Config;
use super::error::ModelError;
use super::tensors::{OUTPUT, checkpoint_name};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::error::EngineError;
use crate::gguf::{GgufError, ModelFile, TensorInfo};

/// A model's weights, with what the files say about its shape.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// A GGUF file.
    Gguf(&'a ModelFile),
    /// A directory of safetensors files.
    Safetensors(&'a Checkpoint),
}

impl<'a> From<&'a ModelFile> for Weights<'a> {
    fn from(file: &'a ModelFile) -> Self {
        Self::Gguf(file)
    }
}

impl<'a> From<&'a Checkpoint> for Weights<'a> {
    fn from(checkpoint: &'a Checkpoint) -> Self {
        Self::Safetensors(checkpoint)
    }
}

/// A tensor, by its name in its file.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    /// Outermost dimension first.
    pub(super) shape: &'a [usize],
    /// The name of its type.
    pub(super) kind: String,
    /// Its type, if it can be computed with.
    pub(super) dtype: Option<GgmlDType>,
    pub(super) bytes: u64,
}

impl Tensor<'_> {
    /// Number of values.
    pub(super) fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

impl<'a> Weights<'a> {
    /// The model's shape.
    pub(super) fn config(self) -> Result<Config, EngineError> {
        match self {
            Self::Gguf(file) => Config::from_gguf(file),
            Self::Safetensors(checkpoint) => Ok(Config::from_json(checkpoint.config())?),
        }
    }

    /// A tensor by its name in GGUF files, if there is one and the model uses it.
    pub(super) fn find(self, config: &Config, name: &str) -> Option<Tensor<'a>> {
        match self {
            Self::Gguf(file) => file.find_tensor(name).map(in_gguf),
            // A copy of the embedding that some files have.
            Self::Safetensors(_) if name == OUTPUT && config.tied == Some(true) => None,
            Self::Safetensors(checkpoint) => {
                let tensor = checkpoint.find_tensor(&name_in(checkpoint, config, name))?;
                Some(Tensor {
                    name: &tensor.name,
                    shape: &tensor.shape,
                    kind: tensor.kind.clone(),
                    dtype: tensor.dtype,
                    bytes: tensor.bytes,
                })
            }
        }
    }

    /// A tensor by its name in GGUF files.
    pub(super) fn tensor(self, config: &Config, name: &str) -> Result<Tensor<'a>, EngineError> {
        self.find(config, name).ok_or_else(|| {
            let tensor = match self {
                Self::Gguf(_) => name.to_owned(),
                Self::Safetensors(checkpoint) => name_in(checkpoint, config, name),
            };
            GgufError::MissingTensor { tensor }.into()
        })
    }

    /// The names of all tensors, in the file's own way.
    pub(super) fn names(self) -> Vec<&'a str> {
        match self {
            Self::Gguf(file) => file
                .tensors()
                .iter()
                .map(|tensor| tensor.name.as_str())
                .collect(),
            Self::Safetensors(checkpoint) => checkpoint
                .tensors()
                .iter()
                .map(|tensor| tensor.name.as_str())
                .collect(),
        }
    }

    /// Whether the model can do without a tensor: a copy of the embedding, frequencies that follow from the configuration,
    /// which old versions of transformers saved, or what reads images in a model of text and images.
    pub(super) fn ignores(self, name: &str) -> bool {
        match self {
            Self::Gguf(_) => false,
            Self::Safetensors(_) => {
                name.ends_with("lm_head.weight")
                    || name.ends_with(".rotary_emb.inv_freq")
                    || self.reads_images(name)
            }
        }
    }

    /// Whether a tensor belongs to the part that reads images, which is not loaded.
    fn reads_images(self, name: &str) -> bool {
        const PARTS: [&str; 2] = ["vision_tower.", "multi_modal_projector."];
        let name = name.strip_prefix("model.").unwrap_or(name);
        match self {
            Self::Gguf(_) => false,
            Self::Safetensors(checkpoint) => {
                has_text_part(checkpoint) && PARTS.iter().any(|part| name.starts_with(part))
            }
        }
    }

    /// Whether the files have a part that reads images, which is not loaded.
    pub fn has_images(self) -> bool {
        self.names().into_iter().any(|name| self.reads_images(name))
    }

    /// What is to be added to the weights of norms.
    pub(super) fn norm_offset(self, config: &Config) -> f32 {
        match self {
            Self::Gguf(_) => 0.0,
            Self::Safetensors(_) => config.architecture.norm_offset,
        }
    }

    /// That a tensor's type cannot be computed with.
    pub(super) fn unsupported(self, tensor: &Tensor<'_>) -> EngineError {
        match self {
            Self::Gguf(file) => file
                .tensor(tensor.name)
                .map_or_else(EngineError::from, |info| info.unsupported().into()),
            Self::Safetensors(_) => ModelError::TensorType {
                tensor: tensor.name.to_owned(),
                kind: tensor.kind.clone(),
            }
            .into(),
        }
    }

    /// Copies a tensor's bytes from so many on to `bytes`.
    pub(super) fn read_at(
        self,
        tensor: &Tensor<'_>,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), EngineError> {
        match self {
            Self::Gguf(file) => file.read_tensor_at(tensor.name, offset, bytes)?,
            Self::Safetensors(checkpoint) => {
                checkpoint.read_tensor_at(tensor.name, offset, bytes)?;
            }
        }
        Ok(())
    }

    /// Zeros for so many bytes of a tensor, or an error where the allocator would end the process.
    pub(super) fn buffer(self, tensor: &Tensor<'_>, bytes: usize) -> Result<Vec<u8>, EngineError> {
        let mut buffer = Vec::new();
        if buffer.try_reserve_exact(bytes).is_err() {
            let (tensor, bytes) = (tensor.name.to_owned(), bytes as u64);
            return Err(match self {
                Self::Gguf(_) => GgufError::OutOfMemory { tensor, bytes }.into(),
                Self::Safetensors(_) => CheckpointError::OutOfMemory { tensor, bytes }.into(),
            });
        }
        buffer.resize(bytes, 0);
        Ok(buffer)
    }

    /// A tensor as the library's.
    pub(super) fn read_qtensor(self, tensor: &Tensor<'_>) -> Result<QTensor, EngineError> {
        match self {
            Self::Gguf(file) => Ok(file.read_qtensor(tensor.name, &Device::Cpu)?),
            Self::Safetensors(checkpoint) => {
                let dtype = tensor.dtype.ok_or_else(|| self.unsupported(tensor))?;
                qtensor(
                    dtype,
                    tensor.shape,
                    &checkpoint.read_tensor_bytes(tensor.name)?,
                )
            }
        }
    }
}

/// Whether the text model is a part of one of text and images.
fn has_text_part(checkpoint: &Checkpoint) -> bool {
    checkpoint.config().contains_key("text_config")
}

/// What a tensor, by its name in GGUF files, is called in a directory. In a model of text and images the name says that it belongs to
/// the text model, in one of two ways.
fn name_in(checkpoint: &Checkpoint, config: &Config, name: &str) -> String {
    let plain = checkpoint_name(config, name);
    if !has_text_part(checkpoint) {
        return plain;
    }
    let inner = plain.replacen("model.", "model.language_model.", 1);
    let outer = format!("language_model.{plain}");
    match checkpoint.find_tensor(&inner) {
        Some(_) => inner,
        None => outer,
    }
}

/// The library's tensor of those bytes.
pub(super) fn qtensor(
    dtype: GgmlDType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<QTensor, EngineError> {
    // The library reads blocks in place, so the bytes must begin where a block of floats may.
    const ALIGNMENT: usize = 64;
    let mut padded = vec![0; bytes.len() + ALIGNMENT];
    let start = padded.as_ptr().align_offset(ALIGNMENT);
    let aligned = &mut padded[start..][..bytes.len()];
    aligned.copy_from_slice(bytes);
    Ok(qtensor_from_ggml(
        dtype,
        aligned,
        shape.to_vec(),
        &Device::Cpu,
    )?)
}

fn in_gguf(tensor: &TensorInfo) -> Tensor<'_> {
    Tensor {
        name: &tensor.name,
        shape: &tensor.shape,
        kind: tensor.kind.to_string(),
        dtype: tensor.kind.candle_type(),
        bytes: tensor.bytes.unwrap_or_default(),
    }
}
