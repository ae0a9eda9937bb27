//! The executor on a CUDA device: every operation is queued on one stream when it is asked for.

use std::sync::Arc;

use super::super::architecture::Activation;
use super::super::executor::{AddNormed, Attend, Executor, Heads, Product, Rows};
use super::load::Cache;
use super::profile::{Operation, Profile};
use super::step::Shape;
use crate::cuda::{self, Activations, CacheSlice, Matrix, Place, Slice, Stream};
use crate::error::EngineError;
use crate::kv_cache::BlockId;

/// A device as an executor.
pub(super) struct Cuda {
    pub(super) stream: Arc<Stream>,
    /// Of the matrix products and of attention, which follow each other.
    pub(super) workspace: Slice<u8>,
    pub(super) cache: Cache,
    pub(super) profile: Option<Profile>,
}

/// A rotary embedding, and how far it turns each row's pairs: `[rows, pairs]` of (cos, sin).
pub(super) struct Rotation {
    /// Radians a position, of each pair.
    pub(super) frequencies: Slice<f64>,
    pub(super) magnitude: f64,
    /// Whether values 2i and 2i + 1 turn together, or i and i + pairs.
    pub(super) neighbours: bool,
    pub(super) rotations: Slice<f32>,
}

/// The rows of a step, as the device has them.
#[derive(Debug)]
pub(super) struct CudaRows {
    pub(super) shape: Shape,
    pub(super) tokens: Slice<u32>,
    pub(super) drawn_rows: Slice<u32>,
    wanted: Slice<u32>,
    pub(super) place: Place,
    tiles: Slice<[u32; 2]>,
}

impl CudaRows {
    /// The rows that `words` describe.
    pub(super) fn new(words: &Slice<u32>, shape: Shape) -> Self {
        let layout = shape.layout();
        let list = |range: std::ops::Range<usize>| words.part(range.start, range.len());
        Self {
            shape,
            tokens: list(layout.tokens),
            drawn_rows: list(layout.drawn_rows),
            wanted: list(layout.wanted),
            place: Place {
                positions: list(layout.positions),
                sequences: list(layout.sequences),
                block_tables: list(layout.block_tables),
                blocks_per_table: shape.blocks_per_table,
            },
            tiles: list(layout.tiles).pairs(),
        }
    }
}

impl Rows for CudaRows {
    fn count(&self) -> usize {
        self.shape.rows
    }

    fn wanted(&self) -> usize {
        self.shape.wanted
    }
}

impl Cuda {
    /// Notes what kind of operation was queued, where that is measured.
    fn queued(&mut self, operation: Operation) -> Result<(), EngineError> {
        match &mut self.profile {
            Some(profile) => Ok(profile.queued(&self.stream, operation)?),
            None => Ok(()),
        }
    }
}

impl Executor for Cuda {
    type Matrix = Matrix;
    type Vector = Slice<f32>;
    type Activations = Activations;
    type Rotation = Rotation;
    type Cache = CacheSlice;
    type Rows<'a> = CudaRows;

    fn reshape(
        &mut self,
        activations: &mut Activations,
        shape: [usize; 2],
    ) -> Result<(), EngineError> {
        activations.reshape(shape);
        Ok(())
    }

    fn embed(
        &mut self,
        rows: &CudaRows,
        matrix: &Matrix,
        scale: Option<f32>,
        hidden: &mut Activations,
    ) -> Result<(), EngineError> {
        let scale = scale.unwrap_or(1.0);
        cuda::embed(&self.stream, matrix, &rows.tokens, scale, hidden)?;
        self.queued(Operation::Pointwise)
    }

    fn rms_norm(
        &mut self,
        input: &Activations,
        weight: &Slice<f32>,
        eps: f32,
        output: &mut Activations,
    ) -> Result<(), EngineError> {
        cuda::rms_norm(&self.stream, input, weight, eps, output)?;
        self.queued(Operation::Pointwise)
    }

    fn project<const N: usize>(
        &mut self,
        input: &Activations,
        products: [Product<'_, Self>; N],
    ) -> Result<(), EngineError> {
        let products = products.map(
            |Product {
                 matrix,
                 bias,
                 output,
             }| (matrix, bias, &*output),
        );
        cuda::linear(&self.stream, input, products, &self.workspace)?;
        self.queued(Operation::Product)
    }

    fn turn(&mut self, rows: &CudaRows, rotation: &mut Rotation) -> Result<(), EngineError> {
        cuda::rotations(
            &self.stream,
            &rows.place.positions,
            &rotation.frequencies,
            rotation.magnitude,
            &rotation.rotations,
        )?;
        self.queued(Operation::Pointwise)
    }

    fn rotate_and_store(
        &mut self,
        rows: &CudaRows,
        heads: Heads<'_, Self>,
        cache: &mut CacheSlice,
    ) -> Result<(), EngineError> {
        let call = cuda::RotateStore {
            place: &rows.place,
            cache,
            query: heads.query,
            key: heads.key,
            value: heads.value,
            query_norm: heads.query_norm,
            key_norm: heads.key_norm,
            eps: heads.rms_eps,
            rotations: &heads.rotation.rotations,
            pairs: heads.rotation.frequencies.len(),
            neighbours: heads.rotation.neighbours,
        };
        debug_assert_eq!(heads.head_dim, call.cache.head_dim);
        cuda::rotate_store(&self.stream, &call)?;
        self.queued(Operation::Pointwise)
    }

    fn attend(
        &mut self,
        rows: &CudaRows,
        cache: &CacheSlice,
        attend: Attend<'_, Self>,
    ) -> Result<(), EngineError> {
        let call = cuda::Attend {
            place: &rows.place,
            cache,
            query: attend.query,
            output: attend.output,
            scale: attend.attention.scale,
            soft_cap: attend.attention.soft_cap.unwrap_or(0.0),
            window: attend.attention.window.unwrap_or(0),
            tiles: &rows.tiles,
            max_context: rows.shape.max_context,
            workspace: &self.workspace,
        };
        cuda::attend(&self.stream, &call)?;
        self.queued(Operation::Attention)
    }

    fn gate(
        &mut self,
        activation: Activation,
        gate: &mut Activations,
        up: &Activations,
    ) -> Result<(), EngineError> {
        let gelu = match activation {
            Activation::Silu => false,
            Activation::GeluTanh => true,
        };
        cuda::gated(&self.stream, gate, up, gelu)?;
        self.queued(Operation::Pointwise)
    }

    fn add_normed(&mut self, sum: AddNormed<'_, Self>) -> Result<(), EngineError> {
        cuda::add_norm(
            &self.stream,
            [sum.hidden, sum.y, sum.normed],
            [sum.post_norm, sum.next_norm],
            sum.rms_eps,
        )?;
        self.queued(Operation::Pointwise)
    }

    fn gather_wanted(
        &mut self,
        rows: &CudaRows,
        input: &Activations,
        output: &mut Activations,
    ) -> Result<(), EngineError> {
        cuda::gather_rows(&self.stream, input, &rows.wanted, output)?;
        self.queued(Operation::Pointwise)
    }

    fn soft_cap(&mut self, x: &mut Activations, cap: f32) -> Result<(), EngineError> {
        cuda::soft_cap(&self.stream, x, cap)?;
        self.queued(Operation::Pointwise)
    }

    fn copy_block(
        &mut self,
        caches: &mut [CacheSlice],
        from: BlockId,
        to: BlockId,
    ) -> Result<(), EngineError> {
        let Cache {
            memory,
            block_bytes,
            pitch,
        } = &self.cache;
        if from == to {
            return Ok(());
        }
        let places = [from, to].map(|block| block.index() * block_bytes);
        // The keys and the values of each layer.
        let height = 2 * caches.len();
        Ok(memory.copy_within(places, [*block_bytes, height, *pitch])?)
    }
}
