//! What computes a decoder.
//!
//! [`Decoder`](super::decoder::Decoder) and [`Layer`](super::layer::Layer) say which operations follow each other, in every architecture; an
//! executor is where and how each is computed. The operations are as large as what one kernel of a GPU does at once.

use super::architecture::Activation;
use super::attention::Attention;
use super::config::Config;
use super::rope::Rope;
use super::tensors::MatrixSource;
use crate::error::EngineError;
use crate::kv_cache::BlockId;

/// Computes the operations of a decoder, in the order in which it is asked for them.
pub(super) trait Executor: Sized {
    /// A matrix of weights, `[outputs, inputs]`.
    type Matrix;
    /// A vector of weights.
    type Vector;
    /// Values of a step, `[rows, width]`, kept from step to step.
    type Activations;
    /// A rotary embedding, and how far it turns each row of a step.
    type Rotation;
    /// The keys and values of one layer.
    type Cache;
    /// The rows of a step: a token each, at its position, in its sequence's blocks.
    type Rows<'a>: Rows;

    /// Makes `activations` have that shape; what is in them then has no meaning.
    fn reshape(
        &mut self,
        activations: &mut Self::Activations,
        shape: [usize; 2],
    ) -> Result<(), EngineError>;

    /// `hidden = scale · matrix[token]`, row by row.
    fn embed(
        &mut self,
        rows: &Self::Rows<'_>,
        matrix: &Self::Matrix,
        scale: Option<f32>,
        hidden: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// `output = norm(input) · weight` (root mean square), row by row.
    fn rms_norm(
        &mut self,
        input: &Self::Activations,
        weight: &Self::Vector,
        eps: f32,
        output: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// `output = input · matrixᵀ + bias`, of one input.
    fn project<const N: usize>(
        &mut self,
        input: &Self::Activations,
        products: [Product<'_, Self>; N],
    ) -> Result<(), EngineError>;

    /// Computes how far the rows of a step are turned.
    fn turn(
        &mut self,
        rows: &Self::Rows<'_>,
        rotation: &mut Self::Rotation,
    ) -> Result<(), EngineError>;

    /// Normalises and rotates the heads of queries and keys, and writes keys and values into the cache.
    fn rotate_and_store(
        &mut self,
        rows: &Self::Rows<'_>,
        heads: Heads<'_, Self>,
        cache: &mut Self::Cache,
    ) -> Result<(), EngineError>;

    /// Attention of every row over its own sequence.
    fn attend(
        &mut self,
        rows: &Self::Rows<'_>,
        cache: &Self::Cache,
        attend: Attend<'_, Self>,
    ) -> Result<(), EngineError>;

    /// `gate = activation(gate) · up`.
    fn gate(
        &mut self,
        activation: Activation,
        gate: &mut Self::Activations,
        up: &Self::Activations,
    ) -> Result<(), EngineError>;

    /// Adds to the residual stream and normalises the sum.
    fn add_normed(&mut self, sum: AddNormed<'_, Self>) -> Result<(), EngineError>;

    /// The rows whose logits are wanted, below each other.
    fn gather_wanted(
        &mut self,
        rows: &Self::Rows<'_>,
        input: &Self::Activations,
        output: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// `x = cap · tanh(x / cap)`.
    fn soft_cap(&mut self, x: &mut Self::Activations, cap: f32) -> Result<(), EngineError>;

    /// Copies the keys and values of a block into another, in every layer.
    fn copy_block(
        &mut self,
        caches: &mut [Self::Cache],
        from: BlockId,
        to: BlockId,
    ) -> Result<(), EngineError>;
}

/// How many rows a step has.
pub(super) trait Rows {
    /// All.
    fn count(&self) -> usize;
    /// Those whose logits are wanted.
    fn wanted(&self) -> usize;
}

/// A matrix with its bias, if it has one, and where the product goes.
pub(super) struct Product<'a, E: Executor> {
    pub(super) matrix: &'a E::Matrix,
    pub(super) bias: Option<&'a E::Vector>,
    pub(super) output: &'a mut E::Activations,
}

/// Queries, keys and values, `[rows, heads, head_dim]` each, and what happens to them.
pub(super) struct Heads<'a, E: Executor> {
    pub(super) query: &'a mut E::Activations,
    pub(super) key: &'a mut E::Activations,
    pub(super) value: &'a E::Activations,
    /// Width of a head.
    pub(super) head_dim: usize,
    /// The weights of the queries' norm, where heads are normalised before they are rotated.
    pub(super) query_norm: Option<&'a E::Vector>,
    /// The same of the keys.
    pub(super) key_norm: Option<&'a E::Vector>,
    pub(super) rms_eps: f32,
    pub(super) rotation: &'a E::Rotation,
}

/// Queries, `[rows, heads, head_dim]`, and where what they find goes.
pub(super) struct Attend<'a, E: Executor> {
    pub(super) attention: Attention,
    pub(super) query: &'a E::Activations,
    pub(super) output: &'a mut E::Activations,
}

/// `hidden += y`, and the norm of the sum.
pub(super) struct AddNormed<'a, E: Executor> {
    pub(super) hidden: &'a mut E::Activations,
    /// What is added; afterwards it has no meaning.
    pub(super) y: &'a mut E::Activations,
    /// The weights of the norm of `y`, where it is normalised before it is added.
    pub(super) post_norm: Option<&'a E::Vector>,
    /// The weights of the norm that follows, if one does.
    pub(super) next_norm: Option<&'a E::Vector>,
    /// Where the norm of the sum goes.
    pub(super) normed: &'a mut E::Activations,
    pub(super) rms_eps: f32,
}

/// Activations of a step, `[rows, width]` each.
pub(super) struct Buffers<A> {
    /// The residual stream.
    pub(super) hidden: A,
    pub(super) normed: A,
    /// What a block adds to the residual stream.
    pub(super) added: A,
    pub(super) query: A,
    pub(super) key: A,
    pub(super) value: A,
    pub(super) attended: A,
    pub(super) gate: A,
    pub(super) up: A,
    /// One row for each chunk that wants them.
    pub(super) logits: A,
}

impl<A> Buffers<A> {
    /// Makes each, from its width.
    pub(super) fn new<Error>(
        config: &Config,
        vocab_size: usize,
        mut make: impl FnMut(Width) -> Result<A, Error>,
    ) -> Result<Self, Error> {
        let [hidden, query, kv] = [config.hidden, config.query_width(), config.kv_width()];
        let mut rows = |width| make(Width::Row(width));
        Ok(Self {
            hidden: rows(hidden)?,
            normed: rows(hidden)?,
            added: rows(hidden)?,
            query: rows(query)?,
            key: rows(kv)?,
            value: rows(kv)?,
            attended: rows(query)?,
            gate: rows(config.feed_forward)?,
            up: rows(config.feed_forward)?,
            logits: make(Width::Logits(vocab_size))?,
        })
    }

    /// All but the logits, with their widths.
    pub(super) fn of_rows(&mut self, config: &Config) -> [(&mut A, usize); 9] {
        let [hidden, query, kv] = [config.hidden, config.query_width(), config.kv_width()];
        [
            (&mut self.hidden, hidden),
            (&mut self.normed, hidden),
            (&mut self.added, hidden),
            (&mut self.query, query),
            (&mut self.key, kv),
            (&mut self.value, kv),
            (&mut self.attended, query),
            (&mut self.gate, config.feed_forward),
            (&mut self.up, config.feed_forward),
        ]
    }
}

/// How wide the rows of some activations are, and how many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// One for each row of a step.
    Row(usize),
    /// One for each row whose logits are wanted.
    Logits(usize),
}

/// Makes of a model's files what an executor computes with.
pub(super) trait Load {
    /// The executor.
    type Executor: Executor;

    /// A matrix.
    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<MatrixOf<Self>, EngineError>;

    /// A vector.
    fn vector(&mut self, values: Vec<f32>) -> Result<VectorOf<Self>, EngineError>;

    /// A rotary embedding.
    fn rotation(
        &mut self,
        rope: Rope,
    ) -> Result<<Self::Executor as Executor>::Rotation, EngineError>;

    /// Activations without values.
    fn activations(
        &mut self,
        width: Width,
    ) -> Result<<Self::Executor as Executor>::Activations, EngineError>;

    /// The empty caches of so many layers. Called once, after the last matrix and vector.
    fn caches(
        &mut self,
        layers: usize,
    ) -> Result<Vec<<Self::Executor as Executor>::Cache>, EngineError>;
}

/// The matrices of what is loaded.
pub(super) type MatrixOf<L> = <<L as Load>::Executor as Executor>::Matrix;
/// The vectors of what is loaded.
pub(super) type VectorOf<L> = <<L as Load>::Executor as Executor>::Vector;
