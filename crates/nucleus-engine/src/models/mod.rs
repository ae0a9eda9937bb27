//! The decoders: from a model file to a [`Model`].
//!
//! Threads: a model has its own pool, and all loops here run in it. Matrices of the types that candle multiplies
//! ([`linear`]) are shared out over candle's threads instead, whose number is `CANDLE_NUM_THREADS`, else
//! `RAYON_NUM_THREADS`, else the number of physical cores, fixed at the first use in the process.

mod activation;
mod attention;
mod cache;
mod config;
mod error;
mod linear;
mod llama;
mod norm;
mod rope;
mod simd;
mod tensors;

use std::num::NonZeroUsize;
use std::path::Path;

use crate::error::EngineError;
use crate::gguf::ModelFile;
use crate::kv_cache::blocks_for;
use crate::model::{Model, ModelSpec};

pub use self::cache::BLOCK_SIZE;
pub use self::error::{ChunkProblem, ModelError};
pub use self::tensors::LoadProgress;

use self::cache::CacheShape;
use self::config::LlamaConfig;
use self::llama::Llama;

/// The values of `general.architecture` that [`load`] knows.
pub const ARCHITECTURES: [&str; 1] = [config::ARCHITECTURE];

/// Most positions that the KV cache has room for unless told otherwise.
const DEFAULT_MAX_KV_TOKENS: usize = 32 * 1024;

/// How to load a model.
#[derive(Default)]
pub struct LoadOptions<'a> {
    /// Positions that the KV cache should hold, of all sequences together, rounded up to whole blocks. By default one full
    /// context, at most 32,768.
    pub kv_tokens: Option<NonZeroUsize>,
    /// Threads that compute. By default as many as the system lets this process use.
    pub threads: Option<NonZeroUsize>,
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

/// Loads a model for the CPU.
///
/// # Errors
/// When the file's architecture is not one of [`ARCHITECTURES`], its metadata does not describe such a model, its tensors
/// are not those that the metadata asks for, or there is not enough memory.
pub fn load(file: &ModelFile, options: LoadOptions<'_>) -> Result<Box<dyn Model>, EngineError> {
    let checked = Checked::new(file)?;
    Ok(Box::new(Llama::load(file, checked, options)?))
}

/// The memory that a model will need; the file is checked as far as its header goes.
///
/// # Errors
/// As [`load`], as far as the header shows.
pub fn memory(file: &ModelFile) -> Result<Memory, EngineError> {
    let Checked { config, spec } = Checked::new(file)?;
    let shape = cache_shape(&config, config.context_length);
    Ok(Memory {
        weights_bytes: spec.weight_bytes,
        kv_cache_bytes: shape.bytes(config.layers).unwrap_or(u64::MAX),
        context_length: config.context_length,
    })
}

/// What the header of a sound file says.
struct Checked {
    config: LlamaConfig,
    spec: ModelSpec,
}

impl Checked {
    fn new(file: &ModelFile) -> Result<Self, EngineError> {
        let architecture = file.metadata().str("general.architecture")?;
        if !ARCHITECTURES.contains(&architecture) {
            let supported = ARCHITECTURES.join(", ");
            return Err(ModelError::Architecture {
                architecture: architecture.to_owned(),
                supported,
            }
            .into());
        }
        let config = LlamaConfig::read(file)?;
        let vocab_size = tensors::check(file, &config)?;
        let spec = spec(file, &config, vocab_size)?;
        Ok(Self { config, spec })
    }
}

fn spec(
    file: &ModelFile,
    config: &LlamaConfig,
    vocab_size: usize,
) -> Result<ModelSpec, EngineError> {
    Ok(ModelSpec {
        architecture: config::ARCHITECTURE.to_owned(),
        name: name(file)?,
        vocab_size,
        context_length: config.context_length,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        parameters: file.tensors().iter().map(|tensor| tensor.elements()).sum(),
        weight_bytes: tensors::held_bytes(file),
        quantization: commonest_type(file),
    })
}

/// `general.name`, or the file's stem.
fn name(file: &ModelFile) -> Result<String, EngineError> {
    let stem = || {
        Path::new(file.name())
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    Ok(file
        .metadata()
        .find::<&str>("general.name")?
        .map_or_else(stem, str::to_owned))
}

/// The tensor type with the most bytes.
fn commonest_type(file: &ModelFile) -> String {
    let bytes_of = |kind| -> u64 {
        file.tensors()
            .iter()
            .filter(|tensor| tensor.kind == kind)
            .filter_map(|tensor| tensor.bytes)
            .sum()
    };
    let commonest = file
        .tensors()
        .iter()
        .map(|tensor| tensor.kind)
        .max_by_key(|&kind| bytes_of(kind));
    commonest.map(|kind| kind.to_string()).unwrap_or_default()
}

/// The shape of a cache with room for `tokens` positions.
fn cache_shape(config: &LlamaConfig, tokens: usize) -> CacheShape {
    CacheShape {
        blocks: blocks_for(tokens, BLOCK_SIZE),
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
    }
}
