//! The engine's errors.

use nucleus_sampling::ParamError;

use crate::checkpoint::CheckpointError;
use crate::gguf::GgufError;
use crate::models::ModelError;
use crate::tokenizer::TokenizerError;

/// Why a model could not be loaded, or a step could not run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A directory of safetensors files cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The model's vocabulary cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The file is sound, but this engine cannot run it.
    #[error("{0}")]
    Unsupported(String),
    /// A decoder cannot run the file, or a step.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A request's sampling parameters are out of range.
    #[error(transparent)]
    Params(#[from] ParamError),
    /// The device has no memory left for a step. Smaller ones may still run.
    #[error("out of device memory: {0}")]
    OutOfMemory(String),
    /// The device failed so that nothing runs on it any more in this process.
    #[error("the device is lost: {0}")]
    DeviceLost(String),
    /// The device refused something else.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(nucleus_sampling::cuda::CudaError),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

#[cfg(feature = "cuda")]
impl From<nucleus_sampling::cuda::CudaError> for EngineError {
    fn from(error: nucleus_sampling::cuda::CudaError) -> Self {
        if error.is_out_of_memory() {
            Self::OutOfMemory(error.to_string())
        } else if error.loses_device() {
            Self::DeviceLost(error.to_string())
        } else {
            Self::Cuda(error)
        }
    }
}
