//! Weights on their way from a model's files to a device.

use std::sync::Arc;

use candle_core::Device;
use half::{bf16, f16};
use nucleus_sampling::cuda::CudaError;
use rayon::prelude::*;

use super::super::architecture::Pairs;
use super::super::config::Config;
use super::super::executor::{Load, Width};
use super::super::rope::Rope;
use super::super::tensors::MatrixSource;
use super::executor::{Cuda, Rotation};
use super::held_kind;
use super::plan::{DevicePlan, stride};
use crate::cuda::{
    Activations, Arena, CacheSlice, Kind, Matrix, Memory, Slice, Stream, Uploader,
    cache_block_bytes, matrix_bytes, pack,
};
use crate::error::EngineError;

/// Pieces in which weights go up: one is read while the other is copied.
const PIECES: usize = 2;
/// Large enough that a copy's beginning costs nothing beside it.
const PIECE_BYTES: usize = 16 << 20;

/// Uploads weights.
pub(super) struct CudaLoad<'a> {
    stream: Arc<Stream>,
    config: &'a Config,
    plan: &'a DevicePlan,
    uploader: Uploader,
    /// Holds a matrix as it is in the file; given back for the cache.
    staging: Option<Arc<Memory>>,
    weights: Arena,
    activations: Arena,
    cache: Option<Cache>,
}

/// The cache of all layers: keys and values of each, one after the other.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) memory: Slice<u8>,
    /// Of the keys, or of the values, of a block of one layer.
    pub(super) block_bytes: usize,
    /// From the keys of a layer to its values, and on to the next layer's keys.
    pub(super) pitch: usize,
}

impl<'a> CudaLoad<'a> {
    /// Allocates what the plan says, but for the cache.
    pub(super) fn new(
        stream: &Arc<Stream>,
        config: &'a Config,
        plan: &'a DevicePlan,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Arc::clone(stream),
            config,
            plan,
            uploader: Uploader::new(stream, PIECES, PIECE_BYTES)?,
            weights: Arena::new(stream, plan.weights_bytes)?,
            activations: Arena::new(stream, plan.activations_bytes)?,
            staging: Some(Memory::new(stream, plan.staging_bytes as usize)?),
            cache: None,
        })
    }

    /// Room for the numbers that describe a step.
    pub(super) fn words(&mut self) -> Slice<u32> {
        self.activations.take(self.plan.words(self.config))
    }

    /// The cache, once it was made.
    pub(super) fn take_cache(&mut self) -> Option<Cache> {
        self.cache.take()
    }

    /// So many bytes of the staging memory.
    fn staging(&self, bytes: usize) -> Slice<u8> {
        let staging = self.staging.as_ref();
        let staging = staging.expect("matrices come before the cache");
        staging.whole().part(0, bytes)
    }

    fn upload(&mut self, source: &MatrixSource<'_>) -> Result<Slice<u8>, EngineError> {
        let staging = self.staging(source.bytes());
        for start in (0..source.bytes()).step_by(self.uploader.piece_bytes()) {
            let len = self.uploader.piece_bytes().min(source.bytes() - start);
            self.uploader.send(&staging.part(start, len), |piece| {
                source.read_at(start, piece)
            })?;
        }
        Ok(staging)
    }

    /// Uploads a matrix as 16-bit numbers of that kind; `None` if some are beyond them.
    fn upload_converted(
        &mut self,
        source: &MatrixSource<'_>,
        kind: Kind,
    ) -> Result<Option<Slice<u8>>, EngineError> {
        let [outputs, inputs] = source.shape;
        let row_bytes = inputs * size_of::<u16>();
        let staging = self.staging(outputs * row_bytes);
        let rows = (self.uploader.piece_bytes() / row_bytes).max(1);
        for start in (0..outputs).step_by(rows) {
            let part = source.outputs(start..outputs.min(start + rows));
            let values = dequantize(&part)?;
            if kind == Kind::F16 && values.iter().any(|x| x.abs() > f32::from(f16::MAX)) {
                return Ok(None);
            }
            let to = staging.part(start * row_bytes, values.len() * size_of::<u16>());
            self.uploader.send(&to, |piece| {
                for (bytes, &x) in piece.as_chunks_mut::<2>().0.iter_mut().zip(&values) {
                    *bytes = match kind {
                        Kind::F16 => f16::from_f32(x).to_le_bytes(),
                        _ => bf16::from_f32(x).to_le_bytes(),
                    };
                }
                Ok::<_, EngineError>(())
            })?;
        }
        Ok(Some(staging))
    }
}

/// The numbers of a matrix.
fn dequantize(source: &MatrixSource<'_>) -> Result<Vec<f32>, EngineError> {
    let [outputs, _] = source.shape;
    let each = outputs.div_ceil(rayon::current_num_threads()).max(1);
    let parts: Vec<MatrixSource<'_>> = (0..outputs)
        .step_by(each)
        .map(|start| source.outputs(start..outputs.min(start + each)))
        .collect();
    let parts = parts
        .par_iter()
        .map(|part| {
            let matrix = part.read_qtensor()?.dequantize(&Device::Cpu)?;
            Ok(matrix.flatten_all()?.to_vec1()?)
        })
        .collect::<Result<Vec<Vec<f32>>, EngineError>>()?;
    Ok(parts.concat())
}

impl Load for CudaLoad<'_> {
    type Executor = Cuda;

    fn matrix(&mut self, source: &MatrixSource<'_>) -> Result<Matrix, EngineError> {
        let [outputs, inputs] = source.shape;
        let (mut kind, is_converted) = held_kind(source.dtype);
        let file = if is_converted {
            match self.upload_converted(source, kind)? {
                Some(file) => file,
                None => {
                    kind = Kind::Bf16;
                    let file = self.upload_converted(source, kind)?;
                    file.expect("every f32 is in the range of bfloat16")
                }
            }
        } else {
            self.upload(source)?
        };
        let matrix = Matrix {
            data: self.weights.take(matrix_bytes(kind, source.shape)),
            kind,
            outputs,
            inputs,
        };
        pack(&self.stream, &file, &matrix)?;
        Ok(matrix)
    }

    fn vector(&mut self, values: Vec<f32>) -> Result<Slice<f32>, EngineError> {
        let vector = self.weights.take(values.len());
        self.uploader.send_values(&vector, &values)?;
        Ok(vector)
    }

    fn rotation(&mut self, rope: Rope) -> Result<Rotation, EngineError> {
        let pairs = rope.frequencies().len();
        let frequencies = self.activations.take(pairs);
        self.uploader
            .send_values(&frequencies, rope.frequencies())?;
        Ok(Rotation {
            frequencies,
            magnitude: rope.magnitude(),
            neighbours: rope.pairs() == Pairs::Neighbours,
            rotations: self.activations.take(self.plan.step_rows * pairs * 2),
        })
    }

    fn activations(&mut self, width: Width) -> Result<Activations, EngineError> {
        let stride = stride(width);
        let values = self.activations.take(self.plan.rows_of(width) * stride);
        Ok(Activations::new(values, stride))
    }

    fn caches(&mut self, layers: usize) -> Result<Vec<CacheSlice>, EngineError> {
        // What is queued still reads the staging memory; the runtime waits for it.
        self.staging = None;
        let Config {
            kv_heads, head_dim, ..
        } = *self.config;
        let block_bytes = cache_block_bytes(kv_heads, head_dim);
        let pitch = (self.plan.kv_blocks + 1) * block_bytes;
        // Attention reads whole blocks and leaves out what is beyond a row's position.
        let memory = Memory::zeroed(&self.stream, self.plan.kv_bytes as usize)?.whole();
        let part = |index: usize| memory.part(index * pitch, pitch);
        let caches = (0..layers).map(|layer| CacheSlice {
            keys: part(2 * layer),
            values: part(2 * layer + 1),
            kv_heads,
            head_dim,
        });
        let caches = caches.collect();
        self.cache = Some(Cache {
            memory,
            block_bytes,
            pitch,
        });
        Ok(caches)
    }
}
