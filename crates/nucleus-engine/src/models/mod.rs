//! The decoders: from a model file to a [`Model`].
//!
//! Threads: a model has its own pool, and all loops here run in it. Matrices of the types that candle multiplies
//! (Q4_1 to Q5_1, Q2_K, Q3_K, Q5_K; away from x86-64 Q4_0, Q4_K and Q6_K too) are shared out over candle's threads instead, whose number is `CANDLE_NUM_THREADS`, else
//! `RAYON_NUM_THREADS`, else the number of physical cores, fixed at the first use in the process.

mod activation;
mod architecture;
mod attention;
mod cache;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod device;
mod error;
mod executor;
mod layer;
mod linear;
mod norm;
mod pages;
mod rope;
mod simd;
mod tensors;
mod threads;
mod weights;

use std::num::NonZeroUsize;
use std::path::Path;

use crate::error::EngineError;
use crate::kv_cache::blocks_for;
use crate::model::{KvType, Model, ModelSpec};

pub use self::cache::BLOCK_SIZE;
#[cfg(feature = "cuda")]
pub use self::cuda::{Converted, DevicePlan};
pub use self::device::{Device, DeviceParseError};
pub use self::error::{ChunkProblem, DeviceShortage, ModelError};
pub use self::simd::vector_instructions;
pub use self::tensors::LoadProgress;
pub use self::weights::Weights;

use self::cache::CacheShape;
use self::config::Config;
use self::cpu::CpuModel;

/// Most positions that the KV cache has room for unless told otherwise.
const DEFAULT_MAX_KV_TOKENS: usize = 32 * 1024;

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Where the model computes. By default the CPU.
    pub device: Device,
    /// Positions that the KV cache should hold, of all sequences together, rounded up to whole blocks. By default, on the CPU, one
    /// full context, at most 32,768; on a GPU, what nine tenths of its free memory leave, at most a full context for each sequence.
    pub kv_tokens: Option<NonZeroUsize>,
    /// Threads that compute, on the CPU. By default as many as the system lets this process use.
    pub threads: Option<NonZeroUsize>,
    /// What keys and values are held in; on a GPU always half precision.
    pub kv_type: KvType,
    /// Most rows of a step, on a GPU, where memory for them is allocated once. By default 2,048.
    pub step_rows: Option<NonZeroUsize>,
    /// Most sequences of a step, on a GPU. By default 256.
    pub sequences: Option<NonZeroUsize>,
    /// On a GPU, queue every kernel of a step by itself instead of replaying CUDA graphs. Results are the same.
    pub eager: bool,
    /// Called after each tensor.
    pub progress: Option<&'a mut dyn FnMut(LoadProgress)>,
}

/// Memory that a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// The weights, as they are held.
    pub weights_bytes: u64,
    /// The KV cache of one full context.
    pub kv_cache_bytes: u64,
    /// Positions in the context.
    pub context_length: usize,
}

/// Loads a model.
///
/// # Errors
/// When there is no decoder for the architecture, the metadata does not describe such a model, the tensors are not those
/// that the metadata asks for, or there is not enough memory; and when there is no such device, or its kernels do not take the
/// model's shape.
pub fn load<'a>(
    weights: impl Into<Weights<'a>>,
    options: LoadOptions<'_>,
) -> Result<Box<dyn Model>, EngineError> {
    let weights = weights.into();
    let checked = Checked::new(weights)?;
    match options.device {
        Device::Cpu => Ok(Box::new(CpuModel::load(weights, checked, options)?)),
        #[cfg(feature = "cuda")]
        device @ Device::Cuda(_) if options.kv_type == KvType::F32 => Err(ModelError::KvType {
            device: device.to_string(),
        }
        .into()),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            let model = cuda::CudaModel::load(weights, checked, device, options)?;
            Ok(Box::new(model))
        }
        #[cfg(not(feature = "cuda"))]
        device => Err(ModelError::NoCuda {
            device: device.to_string(),
        }
        .into()),
    }
}

/// What [`load`] would take of the memory of a CUDA device.
///
/// # Errors
/// As [`load`], as far as the headers show.
#[cfg(feature = "cuda")]
pub fn device_plan<'a>(
    weights: impl Into<Weights<'a>>,
    device: u32,
    options: &LoadOptions<'_>,
) -> Result<DevicePlan, EngineError> {
    let weights = weights.into();
    cuda::plan(weights, &Checked::new(weights)?, device, options)
}

/// The memory that a model will need; the files are checked as far as their headers go.
///
/// # Errors
/// As [`load`], as far as the headers show.
pub fn memory<'a>(weights: impl Into<Weights<'a>>) -> Result<Memory, EngineError> {
    let Checked { config, spec } = Checked::new(weights.into())?;
    let shape = cache_shape(&config, config.context_length);
    Ok(Memory {
        weights_bytes: spec.weight_bytes,
        kv_cache_bytes: shape.bytes(config.layers).unwrap_or(u64::MAX),
        context_length: config.context_length,
    })
}

/// What the headers of sound files say.
struct Checked {
    config: Config,
    spec: ModelSpec,
}

impl Checked {
    fn new(weights: Weights<'_>) -> Result<Self, EngineError> {
        let config = weights.config()?;
        let vocab_size = tensors::check(weights, &config)?;
        let spec = spec(weights, &config, vocab_size)?;
        Ok(Self { config, spec })
    }
}

fn spec(
    weights: Weights<'_>,
    config: &Config,
    vocab_size: usize,
) -> Result<ModelSpec, EngineError> {
    Ok(ModelSpec {
        architecture: config.architecture.name.to_owned(),
        name: name(weights)?,
        vocab_size,
        context_length: config.context_length,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        parameters: tensors::parameters(weights, config),
        weight_bytes: tensors::held_bytes(weights, config),
        quantization: tensors::commonest_type(weights, config),
    })
}

/// `general.name`, or the stem of the file or directory.
fn name(weights: Weights<'_>) -> Result<String, EngineError> {
    let file = match weights {
        Weights::Gguf(file) => file,
        Weights::Safetensors(checkpoint) => return Ok(checkpoint.stem()),
    };
    let stem = || {
        let stem = Path::new(file.name()).file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    };
    let name = file.metadata().find::<&str>("general.name")?;
    Ok(name.map_or_else(stem, str::to_owned))
}

/// The shape of a cache with room for `tokens` positions.
fn cache_shape(config: &Config, tokens: usize) -> CacheShape {
    CacheShape {
        blocks: blocks_for(tokens, BLOCK_SIZE),
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        kv_type: KvType::default(),
    }
}
