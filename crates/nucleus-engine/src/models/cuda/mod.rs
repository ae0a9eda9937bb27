//! The decoder on a CUDA device.
//!
//! Everything is allocated when the model is loaded (`plan`), so that a step allocates nothing, does not wait for the device, and always uses
//! the same addresses. Hence a step in which every sequence decodes one token can be a CUDA graph (`graphs`): the numbers that describe its rows
//! (`step`) go up in one copy, and the graph reads them where they always lie.

mod executor;
mod graphs;
mod load;
mod plan;
mod profile;
mod step;

use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use nucleus_sampling::cuda::{DeviceTokens, device_info, device_memory};

use super::cache::BLOCK_SIZE;
use super::decoder::{Decoder, check};
use super::error::{ChunkProblem, ModelError};
use super::tensors::Reader;
use super::weights::Weights;
use super::{Checked, LoadOptions};
use crate::cuda::{self, Kind, Memory, Slice, Stream, TakeTokens, Uploader};
use crate::error::EngineError;
use crate::kv_cache::BlockId;
use crate::model::{
    Chunk, Compute, DrawnTokens, KvLayout, Logits, Model, ModelSpec, PENDING, StepTimes, Tail,
};

pub use self::plan::{Converted, DevicePlan};

use self::executor::{Cuda, CudaRows};
use self::graphs::Graphs;
use self::load::CudaLoad;
use self::profile::Profile;
use self::step::{Describe, Described, Shape};

/// Most rows of a step, unless told otherwise.
const DEFAULT_STEP_ROWS: usize = 2048;
/// Most sequences of a step, unless told otherwise.
const DEFAULT_SEQUENCES: usize = 256;
/// Steps that may be described before the device has read what describes them.
const STEPS_AHEAD: usize = 3;

/// The type in which a matrix is held, and whether that is another than in the file.
fn held_kind(dtype: GgmlDType) -> (Kind, bool) {
    match dtype {
        GgmlDType::F32 => (Kind::F32, false),
        GgmlDType::F16 => (Kind::F16, false),
        GgmlDType::BF16 => (Kind::Bf16, false),
        GgmlDType::Q4_0 => (Kind::Q4_0, false),
        GgmlDType::Q8_0 => (Kind::Q8_0, false),
        GgmlDType::Q4K => (Kind::Q4K, false),
        GgmlDType::Q6K => (Kind::Q6K, false),
        _ => (Kind::F16, true),
    }
}

/// What of [`LoadOptions`] concerns a device, with the defaults put in.
#[derive(Debug, Clone, Copy)]
struct CudaOptions {
    kv_tokens: Option<usize>,
    step_rows: usize,
    sequences: usize,
}

impl CudaOptions {
    fn new(options: &LoadOptions<'_>) -> Self {
        Self {
            kv_tokens: options.kv_tokens.map(usize::from),
            step_rows: options.step_rows.map_or(DEFAULT_STEP_ROWS, usize::from),
            sequences: options.sequences.map_or(DEFAULT_SEQUENCES, usize::from),
        }
    }
}

/// What a checked model would take of a device.
pub(super) fn plan(
    weights: Weights<'_>,
    checked: &Checked,
    device: u32,
    options: &LoadOptions<'_>,
) -> Result<DevicePlan, EngineError> {
    let info = device_info(device)?;
    info.check_models()?;
    let device = (&info, device_memory(device)?);
    let options = CudaOptions::new(options);
    Ok(DevicePlan::new(weights, checked, &options, device)?)
}

/// A loaded model with its cache, on a device.
pub(super) struct CudaModel {
    spec: ModelSpec,
    plan: DevicePlan,
    describe: Describe,
    described: Described,
    graphs: Option<Graphs>,
    decoder: Decoder<Cuda>,
    executor: Cuda,
    uploader: Uploader,
    /// What describes a step, on the device.
    words: Slice<u32>,
    /// What went wrong where no error could be returned.
    failed: Option<EngineError>,
    stream: Arc<Stream>,
}

impl CudaModel {
    /// Loads checked weights.
    pub(super) fn load(
        weights: Weights<'_>,
        checked: Checked,
        device: u32,
        options: LoadOptions<'_>,
    ) -> Result<Self, EngineError> {
        let plan = plan(weights, &checked, device, &options)?;
        tracing::info!("{plan}");
        for converted in &plan.converted {
            tracing::warn!(
                "{} matrices of type {} are computed with as {} on the GPU, where they take {} bytes",
                converted.matrices,
                converted.from,
                converted.to,
                converted.bytes
            );
        }
        let Checked { config, mut spec } = checked;
        let stream = Stream::new(device)?;
        let load = CudaLoad::new(&stream, &config, &plan)?;
        let workspace = Memory::new(&stream, plan.workspace_bytes as usize)?.whole();
        let mut reader = Reader::new(weights, &config, load, options.progress);
        let decoder = Decoder::read(&mut reader, &config, spec.vocab_size, plan.kv_blocks)?;
        let words = reader.load.words();
        let cache = reader.load.take_cache();
        // The pinned memory that weights went through is given back, and errors of loading show.
        drop(reader);
        stream.synchronize()?;
        spec.weight_bytes = plan.weights_bytes;
        Ok(Self {
            describe: Describe {
                spare_block: plan.kv_blocks as u32,
                tile_rows: cuda::tile_rows(config.heads / config.kv_heads, config.head_dim).max(1),
                pads: !options.eager,
            },
            described: Described::default(),
            graphs: (!options.eager).then(Graphs::default),
            decoder,
            executor: Cuda {
                stream: Arc::clone(&stream),
                workspace,
                cache: cache.expect("the decoder has a cache"),
                profile: None,
            },
            uploader: Uploader::new(&stream, STEPS_AHEAD, words.len() * size_of::<u32>())?,
            words,
            failed: None,
            spec,
            plan,
            stream,
        })
    }

    /// Queues a step; the number of rows of logits.
    fn run(
        &mut self,
        chunks: &[Chunk<'_>],
        drawn: Option<(&[Option<u32>], DrawnTokens<'_>)>,
    ) -> Result<usize, EngineError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.stream.make_current()?;
        let shape = self.described.fill(chunks, self.describe);
        self.check_size(shape)?;
        let on_device = drawn.and_then(|(rows, tokens)| self.place_drawn(shape, rows, tokens));
        let words = self.words.part(0, self.described.words.len());
        self.uploader.send_values(&words, &self.described.words)?;
        let rows = CudaRows::new(&self.words, shape);
        if let Some(tokens) = on_device {
            let call = TakeTokens {
                tokens: &rows.tokens,
                place: &rows.place,
                drawn_rows: &rows.drawn_rows,
                drawn: tokens,
                vocab_size: self.spec.vocab_size,
                spare_block: self.describe.spare_block,
            };
            cuda::take_tokens(&self.stream, &call)?;
        }
        let (decoder, executor) = (&mut self.decoder, &mut self.executor);
        if let Some(profile) = &mut executor.profile {
            profile.start(&self.stream)?;
            decoder.step(executor, &rows)?;
            return Ok(self.described.wanted);
        }
        match &mut self.graphs {
            Some(graphs) if self.described.is_padded => {
                graphs.run(&self.stream, shape, || decoder.step(executor, &rows))?;
            }
            _ => decoder.step(executor, &rows)?,
        }
        Ok(self.described.wanted)
    }

    /// Refuses a step that there is no memory for.
    fn check_size(&self, shape: Shape) -> Result<(), ModelError> {
        let words = shape.layout().len;
        for (what, value, most) in [
            ("rows", shape.rows, self.plan.step_rows),
            (
                "rows of logits",
                self.described.wanted,
                self.plan.logit_rows,
            ),
            ("numbers that describe it", words, self.words.len()),
        ] {
            if value > most {
                return Err(ModelError::StepSize { what, value, most });
            }
        }
        Ok(())
    }

    /// Puts drawn tokens into the description, or says which row takes which, where they are on the device.
    fn place_drawn(
        &mut self,
        shape: Shape,
        rows: &[Option<u32>],
        tokens: DrawnTokens<'_>,
    ) -> Option<DeviceTokens> {
        for (index, &drawn) in rows.iter().enumerate() {
            let Some(drawn) = drawn else { continue };
            let row = self.described.last_rows[index];
            match tokens {
                DrawnTokens::Host(tokens) => match tokens[drawn as usize] {
                    Some(token) => {
                        let known = (token as usize) < self.spec.vocab_size;
                        let token = if known { token } else { 0 };
                        self.described.words[shape.layout().tokens.start + row] = token;
                    }
                    None => self.described.make_padding(shape, row, self.describe),
                },
                DrawnTokens::Device(_) => {
                    let drawn_rows = shape.layout().drawn_rows;
                    self.described.words[drawn_rows.start + row] = drawn;
                }
            }
        }
        match tokens {
            DrawnTokens::Host(_) => None,
            DrawnTokens::Device(tokens) => Some(tokens),
        }
    }

    fn hand_over(&self, rows: usize, tail: &mut dyn Tail) -> Result<(), EngineError> {
        if rows == 0 {
            return Ok(());
        }
        let data = self.decoder.logits().as_logits();
        tail.record(Logits::Device { data, rows })
    }
}

impl Model for CudaModel {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn kv_layout(&self) -> KvLayout {
        KvLayout {
            block_size: BLOCK_SIZE,
            blocks: self.plan.kv_blocks,
            value_bytes: size_of::<half::f16>(),
        }
    }

    fn forward(&mut self, chunks: &[Chunk<'_>], tail: &mut dyn Tail) -> Result<(), EngineError> {
        if chunks.is_empty() {
            return Ok(());
        }
        for (index, chunk) in chunks.iter().enumerate() {
            check(chunk, &self.spec, self.kv_layout())
                .map_err(|problem| ModelError::Chunk { index, problem })?;
        }
        let rows = self.run(chunks, None)?;
        self.hand_over(rows, tail)
    }

    fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let copied = self
            .stream
            .make_current()
            .map_err(EngineError::from)
            .and_then(|()| self.decoder.copy_block(&mut self.executor, from, to));
        if let Err(error) = copied {
            self.failed.get_or_insert(error);
        }
    }

    fn compute(&self) -> Compute {
        Compute::Cuda(self.stream.shared())
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn forward_ahead(
        &mut self,
        chunks: &[Chunk<'_>],
        rows: &[Option<u32>],
        tokens: DrawnTokens<'_>,
        tail: &mut dyn Tail,
    ) -> Result<(), EngineError> {
        if chunks.is_empty() {
            return Ok(());
        }
        for (index, chunk) in chunks.iter().enumerate() {
            let drawn = rows.get(index).copied().flatten();
            let problem = |problem| ModelError::Chunk { index, problem };
            let checked = match (drawn, chunk.tokens) {
                // Any token stands for one that is not known yet.
                (Some(_), [PENDING]) => Chunk {
                    tokens: &[0],
                    ..*chunk
                },
                (Some(_), _) => return Err(problem(ChunkProblem::NotPending).into()),
                (None, _) => *chunk,
            };
            check(&checked, &self.spec, self.kv_layout()).map_err(problem)?;
        }
        let rows = self.run(chunks, Some((rows, tokens)))?;
        self.hand_over(rows, tail)
    }

    fn profile(&mut self, on: bool) -> Result<StepTimes, EngineError> {
        let profile = on.then(Profile::default);
        match std::mem::replace(&mut self.executor.profile, profile) {
            Some(profile) => Ok(profile.finish()?),
            None => Ok(StepTimes::default()),
        }
    }
}
