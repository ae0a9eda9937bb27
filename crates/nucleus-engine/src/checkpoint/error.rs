//! Why a directory of safetensors files was refused.

use std::io;

use super::{INDEX, MAX_TEXT_FILE_BYTES, WEIGHTS};
use crate::gguf::GgufError;

/// Why a directory of safetensors files, or something in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file of weights cannot be opened.
    #[error(transparent)]
    Open(Box<GgufError>),
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file of text is too large.
    #[error("{file} is larger than {MAX_TEXT_FILE_BYTES} bytes")]
    TextTooLarge {
        /// The path.
        file: String,
    },
    /// A file is not a JSON object.
    #[error("{file} is not a JSON object: {source}")]
    Json {
        /// The path.
        file: String,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// There are no weights.
    #[error(
        "{directory} has neither {WEIGHTS} nor {INDEX}; a model is one .gguf file, or a directory with safetensors files"
    )]
    NoWeights {
        /// The path.
        directory: String,
    },
    /// The list of files is not sound.
    #[error("{file}: {problem}")]
    Index {
        /// The path.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A file of weights is not sound.
    #[error("{file}: {problem}")]
    Malformed {
        /// The path.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no such tensor.
    #[error("the model has no tensor {tensor:?}")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// There is not enough memory for a tensor.
    #[error("no memory for tensor {tensor:?} of {bytes} bytes")]
    OutOfMemory {
        /// Its name.
        tensor: String,
        /// What it needs.
        bytes: u64,
    },
}

impl From<GgufError> for CheckpointError {
    fn from(error: GgufError) -> Self {
        Self::Open(Box::new(error))
    }
}
