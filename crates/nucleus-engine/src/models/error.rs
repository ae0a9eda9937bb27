//! Why a model cannot be loaded, or a step cannot run.

use super::architecture::ARCHITECTURES;

/// What a decoder has against a file or a step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// No decoder for this architecture.
    #[error("architecture {architecture:?} is not supported; supported are {supported}")]
    Architecture {
        /// `general.architecture`.
        architecture: String,
        /// The architectures that are, separated by commas.
        supported: String,
    },
    /// A feature that changes the model's output and that the decoder lacks.
    #[error("{key} is {value}, which is not supported; {supported}")]
    Feature {
        /// The key, and where it is.
        key: String,
        /// Its value in the file.
        value: String,
        /// What is supported.
        supported: &'static str,
    },
    /// Two parts of the metadata contradict each other.
    #[error("{key} is {value}; it must be {expected}")]
    Metadata {
        /// The key, and where it is.
        key: String,
        /// Its value in the file.
        value: String,
        /// The values that would fit.
        expected: String,
    },
    /// The configuration lacks a key.
    #[error("there is no {key}")]
    MissingKey {
        /// The key, and where it should be.
        key: String,
    },
    /// A tensor's type cannot be used.
    #[error(
        "tensor {tensor:?} has type {kind}, which is not supported; F32, F16 and BF16 are, and quantised types in GGUF files"
    )]
    TensorType {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        kind: String,
    },
    /// Some of the factors of the rotary embedding, and not those that belong to them.
    #[error(
        "the tensors rope_freqs, rope_factors_short and rope_factors_long do not fit together; there may be the first, or the two others"
    )]
    RopeFactors,
    /// A tensor does not have the shape that the metadata asks for.
    #[error("tensor {tensor:?} has shape {shape:?}; the metadata asks for {expected}")]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// Its shape, outermost dimension first.
        shape: Vec<usize>,
        /// The shape it should have.
        expected: String,
    },
    /// Tensors that the decoder does not use: without them the output would be another model's.
    #[error("the file has tensors that a {architecture} model does not: {names}")]
    UnknownTensors {
        /// `general.architecture`.
        architecture: String,
        /// Their names; of many, the first.
        names: String,
    },
    /// There is no memory for the KV cache.
    #[error("no memory for a KV cache of {tokens} tokens")]
    CacheMemory {
        /// Positions asked for.
        tokens: usize,
    },
    /// A device has not enough memory for the model.
    #[error(transparent)]
    DeviceMemory(Box<DeviceShortage>),
    /// The kernels of a device do not take the model's shape.
    #[error("the CUDA kernels cannot compute {what}; the CPU can")]
    DeviceShape {
        /// What they do not take, and what they do.
        what: String,
    },
    /// The program was built without CUDA.
    #[error("device is {device}, but this program was built without the feature `cuda`")]
    NoCuda {
        /// The device asked for.
        device: String,
    },
    /// A GPU's kernels read keys and values in half precision.
    #[error("the KV cache is to hold f32, but on {device} it holds f16 only")]
    KvType {
        /// The device asked for.
        device: String,
    },
    /// A step is larger than there is memory for.
    #[error("a step has {value} {what}, but there is memory for {most}")]
    StepSize {
        /// What there are too many of.
        what: &'static str,
        /// How many.
        value: usize,
        /// How many there may be.
        most: usize,
    },
    /// The threads cannot be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// A chunk of a step cannot run.
    #[error("chunk {index}: {problem}")]
    Chunk {
        /// Its place in the step.
        index: usize,
        /// What is wrong with it.
        problem: ChunkProblem,
    },
}

impl ModelError {
    /// That there is no decoder for an architecture.
    pub(super) fn architecture(name: &str) -> Self {
        let names = ARCHITECTURES.iter().flat_map(|architecture| {
            std::iter::once(&architecture.name).chain(architecture.model_types)
        });
        let mut supported: Vec<&str> = Vec::new();
        for &name in names {
            if !supported.contains(&name) {
                supported.push(name);
            }
        }
        Self::Architecture {
            architecture: name.to_owned(),
            supported: supported.join(", "),
        }
    }
}

/// What a device has not enough memory for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{device} has {free} of memory free, of which {budget} may be used; the model would take {needed}: {parts}; {help}"
)]
pub struct DeviceShortage {
    /// The device's name.
    pub device: String,
    /// Memory that nothing uses.
    pub free: String,
    /// What of it the model may take.
    pub budget: String,
    /// What the model would take.
    pub needed: String,
    /// What for.
    pub parts: String,
    /// What would help.
    pub help: String,
}

/// What is wrong with a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkProblem {
    /// It has no tokens.
    #[error("it has no tokens")]
    Empty,
    /// A token that was drawn by the step before is to be its only one, and is not.
    #[error("it takes a token from the step before, but has others")]
    NotPending,
    /// A token is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// It reaches beyond the context.
    #[error("it ends at position {end}; the context has {context_length}")]
    Context {
        /// The position after its last token.
        end: usize,
        /// Positions in the context.
        context_length: usize,
    },
    /// Its blocks do not cover its positions.
    #[error("its {blocks} cache blocks cover {covered} positions; it ends at {end}")]
    Blocks {
        /// Blocks given.
        blocks: usize,
        /// Positions they hold.
        covered: usize,
        /// The position after its last token.
        end: usize,
    },
    /// A block is not one of the cache's.
    #[error("cache block {block} is not among the cache's {blocks}")]
    Block {
        /// The block's id.
        block: u32,
        /// Blocks in the cache.
        blocks: usize,
    },
}
