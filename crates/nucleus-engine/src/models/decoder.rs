//! The decoder (Touvron et al. 2023, "LLaMA", and what others made of it): embedding, layers, norm and output matrix.

use super::cache::BLOCK_SIZE;
use super::config::Config;
use super::error::ChunkProblem;
use super::executor::{Buffers, Executor, Load, Product, Rows};
use super::layer::{Layer, Rotations, Step};
use super::rope::{Rope, RopeConfig};
use super::tensors::{self, Reader};
use crate::error::EngineError;
use crate::kv_cache::BlockId;
use crate::model::{Chunk, KvLayout, ModelSpec};

/// A decoder's weights, cache and activations, where its executor has them.
pub(super) struct Decoder<E: Executor> {
    config: Config,
    rotations: Rotations<E::Rotation>,
    embedding: E::Matrix,
    layers: Vec<Layer<E>>,
    output_norm: E::Vector,
    /// `None` when the embedding is the output matrix too.
    output: Option<E::Matrix>,
    vocab_size: usize,
    buffers: Buffers<E::Activations>,
    /// Of each layer.
    caches: Vec<E::Cache>,
}

impl<E: Executor> Decoder<E> {
    /// Reads the weights of a model whose cache has so many blocks.
    pub(super) fn read<L: Load<Executor = E>>(
        reader: &mut Reader<'_, '_, L>,
        config: &Config,
        vocab_size: usize,
        blocks: usize,
    ) -> Result<Self, EngineError> {
        // No sequence grows beyond the cache, so one that is small leaves models that choose to their original context.
        let context = config.context_length.min(blocks.saturating_mul(BLOCK_SIZE));
        let rope = reader.rope()?;
        let mut rotation = |rope: &RopeConfig| reader.load.rotation(Rope::new(rope, context));
        let rotations = Rotations {
            global: rotation(&rope)?,
            local: config.local_rope.as_ref().map(rotation).transpose()?,
        };
        // The largest tensor first: while one is rearranged it is there twice, and now there is nothing else yet.
        let embedding = reader.matrix(tensors::EMBEDDING)?;
        let layers = (0..config.layers)
            .map(|layer| Layer::read(reader, config, layer))
            .collect::<Result<_, _>>()?;
        let output_norm = reader.norm(tensors::OUTPUT_NORM)?;
        let output = reader.find_output()?;
        let caches = reader.load.caches(config.layers)?;
        Ok(Self {
            rotations,
            embedding,
            layers,
            output_norm,
            output,
            vocab_size,
            buffers: Buffers::new(config, vocab_size, |width| reader.load.activations(width))?,
            caches,
            config: config.clone(),
        })
    }

    /// Runs the rows; the wanted logits are in [`logits`](Self::logits) then.
    pub(super) fn step(&mut self, executor: &mut E, rows: &E::Rows<'_>) -> Result<(), EngineError> {
        let (config, buffers) = (&self.config, &mut self.buffers);
        for rotation in std::iter::once(&mut self.rotations.global).chain(&mut self.rotations.local)
        {
            executor.turn(rows, rotation)?;
        }
        for (activations, width) in buffers.of_rows(config) {
            executor.reshape(activations, [rows.count(), width])?;
        }
        let scale = config.embedding_scale();
        executor.embed(rows, &self.embedding, scale, &mut buffers.hidden)?;
        if let Some(first) = self.layers.first() {
            let (norm, eps) = (first.input_norm(), config.rms_eps);
            executor.rms_norm(&buffers.hidden, norm, eps, &mut buffers.normed)?;
        }
        let mut step = Step {
            executor,
            config,
            rows,
            rotations: &self.rotations,
            buffers,
        };
        for (index, (layer, cache)) in self.layers.iter().zip(&mut self.caches).enumerate() {
            let next = self.layers.get(index + 1).map(Layer::input_norm);
            layer.run(&mut step, cache, next)?;
        }
        self.read_out(executor, rows)
    }

    /// Norm and output matrix for the rows whose logits are wanted.
    fn read_out(&mut self, executor: &mut E, rows: &E::Rows<'_>) -> Result<(), EngineError> {
        let (wanted, hidden) = (rows.wanted(), self.config.hidden);
        let Buffers {
            hidden: all,
            added: last,
            normed,
            logits,
            ..
        } = &mut self.buffers;
        executor.reshape(logits, [wanted, self.vocab_size])?;
        if wanted == 0 {
            return Ok(());
        }
        executor.reshape(last, [wanted, hidden])?;
        executor.reshape(normed, [wanted, hidden])?;
        executor.gather_wanted(rows, all, last)?;
        executor.rms_norm(last, &self.output_norm, self.config.rms_eps, normed)?;
        let product = Product {
            matrix: self.output.as_ref().unwrap_or(&self.embedding),
            bias: None,
            output: &mut *logits,
        };
        executor.project(normed, [product])?;
        match self.config.logit_soft_cap {
            Some(cap) => executor.soft_cap(logits, cap),
            None => Ok(()),
        }
    }

    /// The logits of the last step: `[wanted rows, vocabulary]`.
    pub(super) fn logits(&self) -> &E::Activations {
        &self.buffers.logits
    }

    /// Copies a block of the cache into another, in every layer.
    pub(super) fn copy_block(
        &mut self,
        executor: &mut E,
        from: BlockId,
        to: BlockId,
    ) -> Result<(), EngineError> {
        executor.copy_block(&mut self.caches, from, to)
    }
}

/// Finds what would make a chunk read or write where it must not.
pub(super) fn check(
    chunk: &Chunk<'_>,
    spec: &ModelSpec,
    layout: KvLayout,
) -> Result<(), ChunkProblem> {
    let (vocab_size, context_length) = (spec.vocab_size, spec.context_length);
    let end = chunk.position.saturating_add(chunk.tokens.len());
    let covered = chunk.blocks.len() * layout.block_size;
    if chunk.tokens.is_empty() {
        return Err(ChunkProblem::Empty);
    }
    if let Some(&token) = chunk
        .tokens
        .iter()
        .find(|&&token| token as usize >= vocab_size)
    {
        return Err(ChunkProblem::Token { token, vocab_size });
    }
    if end > context_length {
        return Err(ChunkProblem::Context {
            end,
            context_length,
        });
    }
    if end > covered {
        return Err(ChunkProblem::Blocks {
            blocks: chunk.blocks.len(),
            covered,
            end,
        });
    }
    match chunk
        .blocks
        .iter()
        .find(|block| block.index() >= layout.blocks)
    {
        Some(block) => Err(ChunkProblem::Block {
            block: block.0,
            blocks: layout.blocks,
        }),
        None => Ok(()),
    }
}
