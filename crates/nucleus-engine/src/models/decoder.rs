//! The decoder (Touvron et al. 2023, "LLaMA", and what others made of it): embedding, layers, norm and output matrix.

use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::attention::Row;
use super::cache::{BLOCK_SIZE, CacheShape};
use super::config::Config;
use super::error::{ChunkProblem, ModelError};
use super::layer::{Buffers, Layer, Rotation, Rotations};
use super::linear::{Linear, Product, multiply};
use super::norm::rms_norm;
use super::rope::{Rope, RopeConfig};
use super::simd::{self, SoftCap};
use super::tensors::{self, Reader};
use super::weights::Weights;
use super::{Checked, DEFAULT_MAX_KV_TOKENS, LoadOptions, cache_shape};
use crate::error::EngineError;
use crate::kv_cache::BlockId;
use crate::model::{Chunk, KvLayout, Logits, Model, ModelSpec, Tail};

/// A loaded model with its cache and its threads.
pub(super) struct CpuModel {
    spec: ModelSpec,
    decoder: Decoder,
    threads: ThreadPool,
}

/// What the threads of a model work on.
struct Decoder {
    config: Config,
    cache_shape: CacheShape,
    rotations: Rotations,
    embedding: Linear,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    /// `None` when the embedding is the output matrix too.
    output: Option<Linear>,
    buffers: Buffers,
}

impl CpuModel {
    /// Loads checked weights.
    pub(super) fn load(
        weights: Weights<'_>,
        checked: Checked,
        options: LoadOptions<'_>,
    ) -> Result<Self, EngineError> {
        let Checked { config, spec } = checked;
        let tokens = options.kv_tokens.map_or(
            config.context_length.min(DEFAULT_MAX_KV_TOKENS),
            usize::from,
        );
        let cache_shape = cache_shape(&config, tokens);
        reserve(cache_shape, config.layers)?;
        let threads = start_threads(options.threads.map(usize::from))?;
        let mut reader = Reader::new(weights, &config, &threads, options.progress);
        let decoder = Decoder::read(&mut reader, &config, cache_shape)?;
        Ok(Self {
            spec,
            decoder,
            threads,
        })
    }
}

/// Finds out whether there is memory for the cache, while that is still an error and not the end of the process.
fn reserve(shape: CacheShape, layers: usize) -> Result<(), ModelError> {
    let tokens = shape.blocks.saturating_mul(BLOCK_SIZE);
    let no_memory = || ModelError::CacheMemory { tokens };
    let bytes = shape
        .bytes(layers)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(no_memory)?;
    Vec::<u8>::new()
        .try_reserve_exact(bytes)
        .map_err(|_| no_memory())
}

fn start_threads(threads: Option<usize>) -> Result<ThreadPool, ModelError> {
    let threads = threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("nucleus-model-{index}"))
        .build()
        .map_err(|error| ModelError::Threads {
            threads,
            reason: error.to_string(),
        })
}

impl Model for CpuModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn kv_layout(&self) -> KvLayout {
        self.decoder.cache_shape.layout()
    }

    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError> {
        if chunks.is_empty() {
            return Ok(());
        }
        let vocab = self.spec.vocab_size;
        for (index, chunk) in chunks.iter().enumerate() {
            check(chunk, &self.spec, self.kv_layout())
                .map_err(|problem| ModelError::Chunk { index, problem })?;
        }
        let decoder = &mut self.decoder;
        self.threads.install(|| decoder.step(chunks))?;
        let data = &self.decoder.buffers.logits;
        if data.is_empty() {
            Ok(())
        } else {
            tail.record(Logits::Host { data, vocab })
        }
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        for layer in &mut self.decoder.layers {
            layer.copy_block(from, to);
        }
    }
}

/// Finds what would make a chunk read or write where it must not.
fn check(chunk: &Chunk<'_>, spec: &ModelSpec, layout: KvLayout) -> Result<(), ChunkProblem> {
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

impl Decoder {
    fn read(
        reader: &mut Reader<'_, '_>,
        config: &Config,
        cache_shape: CacheShape,
    ) -> Result<Self, EngineError> {
        // No sequence grows beyond the cache, so one that is small leaves models that choose to their original context.
        let context = config
            .context_length
            .min(cache_shape.blocks.saturating_mul(BLOCK_SIZE));
        let rotation = |config: &RopeConfig| Rotation::new(Rope::new(config, context));
        let rotations = Rotations {
            global: rotation(&reader.rope()?),
            local: config.local_rope.as_ref().map(rotation),
        };
        // The largest tensor first: while one is rearranged it is there twice, and now there is nothing else yet.
        let embedding = reader.linear(tensors::EMBEDDING)?;
        let layers = (0..config.layers)
            .map(|layer| Layer::read(reader, config, layer, cache_shape))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            rotations,
            embedding,
            layers,
            output_norm: reader.norm(tensors::OUTPUT_NORM)?,
            output: reader.find_output()?,
            buffers: Buffers::default(),
            cache_shape,
            config: config.clone(),
        })
    }

    /// Runs the chunks' tokens and leaves the wanted logits in the buffers.
    fn step(&mut self, chunks: &[Chunk<'_>]) -> Result<(), EngineError> {
        let rows: Vec<Row<'_>> = chunks.iter().flat_map(rows_of).collect();
        let (config, buffers) = (&self.config, &mut self.buffers);
        self.rotations.global.turn_to(&rows);
        if let Some(local) = &mut self.rotations.local {
            local.turn_to(&rows);
        }
        buffers.resize(config, rows.len());
        let tokens = chunks.iter().flat_map(|chunk| chunk.tokens);
        for (&token, hidden) in tokens.zip(buffers.hidden.chunks_exact_mut(config.hidden)) {
            self.embedding.weights_of(token as usize, hidden)?;
        }
        if let Some(scale) = config.embedding_scale() {
            buffers.hidden.iter_mut().for_each(|value| *value *= scale);
        }
        for layer in &mut self.layers {
            layer.attend(config, &self.rotations, &rows, buffers)?;
            layer.feed_forward(config, buffers)?;
        }
        self.read_out(chunks)
    }

    /// Norm and output matrix for the last row of each chunk that wants logits.
    fn read_out(&mut self, chunks: &[Chunk<'_>]) -> Result<(), EngineError> {
        let hidden = self.config.hidden;
        let matrix = self.output.as_ref().unwrap_or(&self.embedding);
        let buffers = &mut self.buffers;
        let mut wanted = 0;
        let mut end = 0;
        for chunk in chunks {
            end += chunk.tokens.len();
            if chunk.wants_logits {
                let last = &buffers.hidden[(end - 1) * hidden..end * hidden];
                let normed = &mut buffers.normed[wanted * hidden..(wanted + 1) * hidden];
                rms_norm(last, &self.output_norm, self.config.rms_eps, normed);
                wanted += 1;
            }
        }
        // What is in it from the step before is overwritten.
        buffers.logits.resize(wanted * matrix.outputs(), 0.0);
        if wanted == 0 {
            return Ok(());
        }
        let product = Product {
            matrix,
            output: &mut buffers.logits,
        };
        multiply(&buffers.normed[..wanted * hidden], &mut [product])?;
        if let Some(cap) = self.config.logit_soft_cap {
            let values = &mut buffers.logits;
            simd::run(SoftCap { values, cap });
        }
        Ok(())
    }
}

/// A row for each token of a chunk.
fn rows_of<'a>(chunk: &Chunk<'a>) -> impl Iterator<Item = Row<'a>> {
    let Chunk {
        tokens,
        position,
        blocks,
        ..
    } = *chunk;
    (position..position + tokens.len()).map(move |position| Row { blocks, position })
}
