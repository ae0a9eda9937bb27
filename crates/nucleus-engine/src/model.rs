//! What a model is to the engine: rows of tokens in, logits out, where they lie.

#[cfg(feature = "cuda")]
use nucleus_sampling::cuda::{DeviceLogits, DeviceTokens, SharedStream};

use crate::error::EngineError;
use crate::kv_cache::BlockId;

/// The shape of a loaded model, as the rest of the engine needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// GGUF `general.architecture`, such as `llama`.
    pub architecture: String,
    /// Name for people: `general.name`, or the file's stem.
    pub name: String,
    /// Width of a row of logits.
    pub vocab_size: usize,
    /// Most positions (prompt and output) one sequence may have.
    pub context_length: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Number of weights.
    pub parameters: u64,
    /// Memory that the weights take, in bytes, as they are held.
    pub weight_bytes: u64,
    /// The commonest tensor type by bytes, such as `Q8_0`.
    pub quantization: String,
}

/// A run of consecutive tokens of one sequence: a prefill chunk, or one decode token.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    /// The tokens to run; never empty. [`PENDING`] stands for a token that [`Model::forward_ahead`] takes from the step before.
    pub tokens: &'a [u32],
    /// Position of `tokens[0]` in its sequence; everything before it is in the cache already.
    pub position: usize,
    /// The sequence's cache blocks in order; they cover `position + tokens.len()` positions.
    pub blocks: &'a [BlockId],
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// Stands in a chunk for a token that has been drawn and is not known on the host yet. It is no token of any vocabulary.
pub const PENDING: u32 = u32::MAX;

/// The tokens that the step before has drawn, where they lie.
#[derive(Debug, Clone, Copy)]
pub enum DrawnTokens<'a> {
    /// In host memory; none where the sequence has ended with what was drawn.
    Host(&'a [Option<u32>]),
    /// In a device's memory, written by work that precedes on the model's stream. A row that failed holds [`PENDING`]: the model runs
    /// any token in its place, and what comes of it is not used. A row whose sequence has ended says so.
    #[cfg(feature = "cuda")]
    Device(DeviceTokens),
}

/// Logits of a step, where they lie: one row per chunk that wanted them, in chunk order.
#[derive(Debug, Clone, Copy)]
pub enum Logits<'a> {
    /// In host memory: `[rows, vocab]`, row-major, contiguous.
    Host {
        /// The values.
        data: &'a [f32],
        /// Width of a row.
        vocab: usize,
    },
    /// In a device's memory, written by work that precedes on the stream of [`Compute::Cuda`]. They stay as they are until the model
    /// runs again; work that is on the stream by then may read them.
    #[cfg(feature = "cuda")]
    Device {
        /// Address, type, width and distance of the rows.
        data: DeviceLogits,
        /// How many there are.
        rows: usize,
    },
}

impl<'a> Logits<'a> {
    /// The values and the width of a row, if they are in host memory.
    pub fn on_host(self) -> Option<(&'a [f32], usize)> {
        match self {
            Self::Host { data, vocab } => Some((data, vocab)),
            #[cfg(feature = "cuda")]
            Self::Device { .. } => None,
        }
    }
}

impl Logits<'_> {
    /// A copy of the values in host memory, `[rows, vocab]`, and the width of a row. `compute` is the model's; a device is waited for.
    ///
    /// # Errors
    /// When a device fails.
    ///
    /// # Panics
    /// If the logits lie on a device and the model is said to compute on the host.
    pub fn to_host(self, compute: Compute) -> Result<(Vec<f32>, usize), EngineError> {
        match (self, compute) {
            (Self::Host { data, vocab }, _) => Ok((data.to_vec(), vocab)),
            #[cfg(feature = "cuda")]
            (Self::Device { data, rows }, Compute::Cuda(stream)) => {
                let values = crate::cuda::rows_to_host(stream, &data, rows)?;
                Ok((values, data.row_len() as usize))
            }
            #[cfg(feature = "cuda")]
            (Self::Device { .. }, Compute::Host) => {
                panic!("logits lie on a device, but the model computes on the host")
            }
        }
    }
}

/// Where a model computes and leaves its logits.
#[derive(Debug, Clone, Copy)]
pub enum Compute {
    /// On the host: [`Logits::Host`].
    Host,
    /// On this device and stream: [`Logits::Device`].
    #[cfg(feature = "cuda")]
    Cuda(SharedStream),
}

/// What happens to the logits of a step: sampling, or a test that looks at them.
pub trait Tail {
    /// Takes the logits in the stream in which they were computed.
    fn record(&mut self, logits: Logits<'_>) -> Result<(), EngineError>;
}

impl<F: FnMut(Logits<'_>) -> Result<(), EngineError>> Tail for F {
    fn record(&mut self, logits: Logits<'_>) -> Result<(), EngineError> {
        self(logits)
    }
}

/// How the numbers of keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Rounded to half precision: half the memory, and half the time to read it. Finite numbers beyond ±65,504 become that.
    #[default]
    F16,
    /// As they are computed.
    F32,
}

impl KvType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The paged cache a model owns: `blocks` blocks of `block_size` positions each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Positions in a block.
    pub block_size: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Bytes of one number of a key or a value: 4 in `f32`, 2 in `f16`.
    pub value_bytes: usize,
}

impl KvLayout {
    /// Bytes of the whole cache for a model of that shape: a key and a value of every head at every position.
    pub fn bytes(&self, spec: &ModelSpec) -> u64 {
        [
            self.blocks,
            self.block_size,
            spec.layers,
            spec.kv_heads,
            spec.head_dim,
            2,
            self.value_bytes,
        ]
        .into_iter()
        .fold(1, |product, factor| product.saturating_mul(factor as u64))
    }
}

/// Where the time of some steps went on a device, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    /// How many there were.
    pub steps: usize,
    /// Matrix products.
    pub products: f64,
    /// Attention.
    pub attention: f64,
    /// Norms, rotation, activation, embedding.
    pub pointwise: f64,
}

/// A decoder with its own paged KV cache.
pub trait Model: Send {
    /// The model's shape.
    fn spec(&self) -> &ModelSpec;

    /// The cache's shape; block ids run from 0 to `blocks - 1`.
    fn kv_layout(&self) -> KvLayout;

    /// Runs the chunks, writing their keys and values into their blocks, then hands the wanted logits to `tail`.
    ///
    /// Chunks of one sequence follow each other, in order, and share their blocks: a token sees those of the chunks before
    /// it. So the logits after every token are to be had by a chunk for each. `tail` is not called when no chunk wants logits.
    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError>;

    /// Copies the keys and values of a block into another, in every layer.
    fn copy_block(&mut self, from: BlockId, to: BlockId);

    /// Where it computes. What `Compute::Cuda` names lives as long as the model, and does not change.
    fn compute(&self) -> Compute {
        Compute::Host
    }

    /// Whether [`Model::forward_ahead`] works: the model queues its work and does not wait for it.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// [`Model::forward`] before the host knows what the step before has drawn: where `rows[i]` is a number, the only token of chunk `i`
    /// is [`PENDING`], and is the one of that number among `tokens`. Where a sequence has ended with that, the chunk writes nothing into its blocks, and
    /// its logits mean nothing.
    fn forward_ahead(
        &mut self,
        chunks: &[Chunk<'_>],
        rows: &[Option<u32>],
        tokens: DrawnTokens<'_>,
        tail: &mut dyn Tail,
    ) -> Result<(), EngineError> {
        let _ = (chunks, rows, tokens, tail);
        Err(EngineError::Unsupported(
            "this model does not run ahead of its tokens".into(),
        ))
    }

    /// From now on, measures where the time of steps on a device goes, or does not. Tells it of the steps since it was switched on.
    /// Steps that are measured take longer; a model on the host measures nothing.
    fn profile(&mut self, on: bool) -> Result<StepTimes, EngineError> {
        let _ = on;
        Ok(StepTimes::default())
    }
}
