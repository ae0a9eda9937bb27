//! The decoder on the CPU: every operation runs when it is asked for, on the threads of the pool that it is asked from.

use super::activation::gated;
use super::architecture::Activation;
use super::attention::{self, Row};
use super::cache::{AnyLayerCache, BLOCK_SIZE, CacheShape, Entry};
use super::decoder::{Decoder, check};
use super::error::ModelError;
use super::executor::{AddNormed, Attend, Executor, Heads, Load, Product, Rows, Width};
use super::linear::{self, Linear, multiply};
use super::norm::{rms_norm, rms_norm_in_place};
use super::rope::Rope;
use super::simd::{self, SoftCap};
use super::tensors::{MatrixSource, Reader};
use super::threads::Threads;
use super::weights::Weights;
use super::{Checked, DEFAULT_MAX_KV_TOKENS, LoadOptions, cache_shape};
use crate::error::EngineError;
use crate::kv_cache::BlockId;
use crate::model::{Chunk, KvLayout, Logits, Model, ModelSpec, Tail};

/// A loaded model with its cache and its threads.
pub(super) struct CpuModel {
    spec: ModelSpec,
    cache_shape: CacheShape,
    decoder: Decoder<Cpu>,
    threads: Threads,
    /// Whether some matrices are multiplied by candle, on threads of its own.
    has_candle_threads: bool,
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
        let cache_shape = CacheShape {
            kv_type: options.kv_type,
            ..cache_shape(&config, tokens)
        };
        reserve(cache_shape, config.layers)?;
        let threads = Threads::start(options.threads.map(usize::from))?;
        let load = CpuLoad {
            threads: &threads,
            cache_shape,
            has_candle_threads: false,
        };
        let mut reader = Reader::new(weights, &config, load, options.progress);
        let decoder = Decoder::read(&mut reader, &config, spec.vocab_size, cache_shape.blocks)?;
        let has_candle_threads = reader.load.has_candle_threads;
        Ok(Self {
            spec,
            cache_shape,
            decoder,
            threads,
            has_candle_threads,
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

impl Model for CpuModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn kv_layout(&self) -> KvLayout {
        self.cache_shape.layout()
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
        let (decoder, rows) = (&mut self.decoder, CpuRows::new(chunks));
        let step = || decoder.step(&mut Cpu, &rows);
        if self.has_candle_threads {
            // Ours would take the cores from them.
            self.threads.install(step)?;
        } else {
            self.threads.install_awake(step)?;
        }
        let data = self.decoder.logits();
        if data.is_empty() {
            Ok(())
        } else {
            tail.record(Logits::Host { data, vocab })
        }
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let copied = self.decoder.copy_block(&mut Cpu, from, to);
        copied.expect("memory can be copied");
    }
}

/// Turns a file's tensors into panels.
struct CpuLoad<'a> {
    /// Rearrange the weights.
    threads: &'a Threads,
    cache_shape: CacheShape,
    has_candle_threads: bool,
}

impl Load for CpuLoad<'_> {
    type Executor = Cpu;

    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<Linear, EngineError> {
        if !Linear::has_kernel(source.dtype) {
            self.has_candle_threads = true;
            return Ok(Linear::from_qtensor(&source.read_qtensor()?)?);
        }
        let data = source.read()?;
        Ok(self
            .threads
            .install(|| Linear::from_bytes(source.dtype, source.shape, &data)))
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        Ok(values)
    }

    fn rotation(&mut self, rope: Rope) -> Result<Rotation, EngineError> {
        Ok(Rotation {
            rope,
            rotations: Vec::new(),
        })
    }

    fn activations(&mut self, _: Width) -> Result<Vec<f32>, EngineError> {
        Ok(Vec::new())
    }

    fn caches(&mut self, layers: usize) -> Result<Vec<AnyLayerCache>, EngineError> {
        let cache = || AnyLayerCache::new(self.cache_shape);
        Ok(std::iter::repeat_with(cache).take(layers).collect())
    }
}

/// The CPU as an executor.
pub(super) struct Cpu;

/// A rotary embedding, and how far it turns each row's pairs: `[rows, pairs]` of (cos, sin).
pub(super) struct Rotation {
    rope: Rope,
    rotations: Vec<(f32, f32)>,
}

/// The rows of a step.
pub(super) struct CpuRows<'a> {
    chunks: &'a [Chunk<'a>],
    rows: Vec<Row<'a>>,
}

impl<'a> CpuRows<'a> {
    fn new(chunks: &'a [Chunk<'a>]) -> Self {
        Self {
            chunks,
            rows: chunks.iter().flat_map(rows_of).collect(),
        }
    }

    /// The places of the rows whose logits are wanted: the last of each chunk that wants them.
    fn wanted_rows(&self) -> impl Iterator<Item = usize> {
        let mut end = 0;
        self.chunks.iter().filter_map(move |chunk| {
            end += chunk.tokens.len();
            chunk.wants_logits.then_some(end - 1)
        })
    }
}

impl Rows for CpuRows<'_> {
    fn count(&self) -> usize {
        self.rows.len()
    }

    fn wanted(&self) -> usize {
        self.wanted_rows().count()
    }
}

impl Executor for Cpu {
    type Matrix = Linear;
    type Vector = Vec<f32>;
    type Activations = Vec<f32>;
    type Rotation = Rotation;
    type Cache = AnyLayerCache;
    type Rows<'a> = CpuRows<'a>;

    fn reshape(
        &mut self,
        activations: &mut Vec<f32>,
        [rows, width]: [usize; 2],
    ) -> Result<(), EngineError> {
        activations.resize(rows * width, 0.0);
        Ok(())
    }

    fn embed(
        &mut self,
        rows: &CpuRows<'_>,
        matrix: &Linear,
        scale: Option<f32>,
        hidden: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let width = hidden.len() / rows.count();
        let tokens = rows.chunks.iter().flat_map(|chunk| chunk.tokens);
        for (&token, hidden) in tokens.zip(hidden.chunks_exact_mut(width)) {
            matrix.weights_of(token as usize, hidden)?;
        }
        if let Some(scale) = scale {
            hidden.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        input: &Vec<f32>,
        weight: &Vec<f32>,
        eps: f32,
        output: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        rms_norm(input, weight, eps, output);
        Ok(())
    }

    fn project<const N: usize>(
        &mut self,
        input: &Vec<f32>,
        products: [Product<'_, Self>; N],
    ) -> Result<(), EngineError> {
        let biases = products.each_ref().map(|product| product.bias);
        let mut products =
            products.map(|Product { matrix, output, .. }| linear::Product { matrix, output });
        multiply(input, &mut products)?;
        for (product, bias) in products.iter_mut().zip(biases) {
            if let Some(bias) = bias {
                let rows = product.output.chunks_exact_mut(bias.len());
                rows.for_each(|row| add(row, bias));
            }
        }
        Ok(())
    }

    fn turn(&mut self, rows: &CpuRows<'_>, rotation: &mut Rotation) -> Result<(), EngineError> {
        let Rotation { rope, rotations } = rotation;
        rope.rotations(rows.rows.iter().map(|row| row.position), rotations);
        Ok(())
    }

    fn rotate_and_store(
        &mut self,
        rows: &CpuRows<'_>,
        heads: Heads<'_, Self>,
        cache: &mut AnyLayerCache,
    ) -> Result<(), EngineError> {
        let Heads {
            query, key, value, ..
        } = heads;
        let Rotation { rope, rotations } = heads.rotation;
        for (states, norm) in [(query, heads.query_norm), (&mut *key, heads.key_norm)] {
            if let Some(norm) = norm {
                rms_norm_in_place(states, norm, heads.rms_eps);
            }
            rope.rotate(states, heads.head_dim, rotations);
        }
        let width = key.len() / rows.count();
        let entries = key.chunks_exact(width).zip(value.chunks_exact(width));
        for (row, (keys, values)) in rows.rows.iter().zip(entries) {
            cache.write(row.blocks, row.position, Entry { keys, values });
        }
        Ok(())
    }

    fn attend(
        &mut self,
        rows: &CpuRows<'_>,
        cache: &AnyLayerCache,
        attend: Attend<'_, Self>,
    ) -> Result<(), EngineError> {
        let Attend {
            attention,
            query,
            output,
        } = attend;
        let rows = &rows.rows;
        match cache {
            AnyLayerCache::F16(cache) => attention::attend(cache, attention, rows, query, output),
            AnyLayerCache::F32(cache) => attention::attend(cache, attention, rows, query, output),
        }
        Ok(())
    }

    fn gate(
        &mut self,
        activation: Activation,
        gate: &mut Vec<f32>,
        up: &Vec<f32>,
    ) -> Result<(), EngineError> {
        gated(activation, gate, up);
        Ok(())
    }

    fn add_normed(&mut self, sum: AddNormed<'_, Self>) -> Result<(), EngineError> {
        if let Some(norm) = sum.post_norm {
            rms_norm_in_place(sum.y, norm, sum.rms_eps);
        }
        add(sum.hidden, sum.y);
        if let Some(norm) = sum.next_norm {
            rms_norm(sum.hidden, norm, sum.rms_eps, sum.normed);
        }
        Ok(())
    }

    fn gather_wanted(
        &mut self,
        rows: &CpuRows<'_>,
        input: &Vec<f32>,
        output: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let width = input.len() / rows.count();
        for (row, output) in rows.wanted_rows().zip(output.chunks_exact_mut(width)) {
            output.copy_from_slice(&input[row * width..(row + 1) * width]);
        }
        Ok(())
    }

    fn soft_cap(&mut self, x: &mut Vec<f32>, cap: f32) -> Result<(), EngineError> {
        simd::run(SoftCap { values: x, cap });
        Ok(())
    }

    fn copy_block(
        &mut self,
        caches: &mut [AnyLayerCache],
        from: BlockId,
        to: BlockId,
    ) -> Result<(), EngineError> {
        caches
            .iter_mut()
            .for_each(|cache| cache.copy_block(from, to));
        Ok(())
    }
}

/// `x += y`.
fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
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
