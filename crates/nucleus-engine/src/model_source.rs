//! A model by its path: a GGUF file, or a directory of safetensors files.

use std::path::Path;

use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::checkpoint::Checkpoint;
use crate::error::EngineError;
use crate::gguf::ModelFile;
use crate::models::Weights;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// An opened model: what its files say, and the weights on request.
#[derive(Debug)]
pub enum ModelSource {
    /// A GGUF file.
    Gguf(Box<ModelFile>),
    /// A directory of safetensors files.
    Safetensors(Box<Checkpoint>),
}

impl ModelSource {
    /// Opens a directory as one of safetensors files, and anything else as a GGUF file.
    ///
    /// # Errors
    /// See [`ModelFile::open`] and [`Checkpoint::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, EngineError> {
        let path = path.as_ref();
        if path.is_dir() {
            return Ok(Self::Safetensors(Box::new(Checkpoint::open(path)?)));
        }
        Ok(ModelFile::open(path)?.into())
    }

    /// The path as it was given, or the name of an embedded file.
    pub fn name(&self) -> String {
        match self {
            Self::Gguf(file) => file.name().to_owned(),
            Self::Safetensors(checkpoint) => checkpoint.name(),
        }
    }

    /// Bytes of the files that hold the weights.
    pub fn size(&self) -> u64 {
        match self {
            Self::Gguf(file) => file.size(),
            Self::Safetensors(checkpoint) => checkpoint.size(),
        }
    }

    /// The weights, to be [loaded](crate::models::load).
    pub fn weights(&self) -> Weights<'_> {
        match self {
            Self::Gguf(file) => Weights::Gguf(file),
            Self::Safetensors(checkpoint) => Weights::Safetensors(checkpoint),
        }
    }

    /// The vocabulary. Errors: see [`Tokenizer::from_gguf`] and [`Tokenizer::from_checkpoint`].
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        match self {
            Self::Gguf(file) => Tokenizer::from_gguf(file.metadata()),
            Self::Safetensors(checkpoint) => Tokenizer::from_checkpoint(checkpoint),
        }
    }

    /// The chat template, if the model has one. Errors: see [`ChatTemplate::from_gguf`] and
    /// [`ChatTemplate::from_checkpoint`].
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ChatTemplateError> {
        match self {
            Self::Gguf(file) => ChatTemplate::from_gguf(file.metadata()),
            Self::Safetensors(checkpoint) => ChatTemplate::from_checkpoint(checkpoint),
        }
    }
}

impl From<ModelFile> for ModelSource {
    fn from(file: ModelFile) -> Self {
        Self::Gguf(Box::new(file))
    }
}
