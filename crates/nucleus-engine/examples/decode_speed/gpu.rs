//! On a GPU: tokens are drawn on the device, which goes on with them; the host learns of them a step later.

use std::error::Error;
use std::time::Instant;

use nucleus_engine::kv_cache::{BlockId, blocks_for};
use nucleus_engine::model::{Chunk, Compute, DrawnTokens, Logits, Model, PENDING, StepTimes};
use nucleus_engine::models::BLOCK_SIZE;
use nucleus_sampling::cuda::{CudaOptions, CudaSampler, DeviceLogits, PlacedRow, SlotEnd, SlotRow};
use nucleus_sampling::{CompiledParams, SamplerState, SamplingParams, VocabInfo};
use serde_json::{Value, json};

use super::{Options, median, prompt};

/// Steps before those that are timed: the first of a shape runs kernel by kernel, the second is captured, the third is the first that
/// only launches the graph.
const WARMUP: usize = 4;
/// Steps whose parts are timed.
const PROFILED: usize = 8;
/// Draws that are timed.
const DRAWS: usize = 32;

/// Sequences that decode together.
struct Batch<'a> {
    model: &'a mut dyn Model,
    sampler: CudaSampler,
    params: CompiledParams,
    /// The blocks of each sequence.
    blocks: &'a [Vec<BlockId>],
    position: usize,
    logits: Option<DeviceLogits>,
    queued: usize,
    drawn: Vec<Result<nucleus_sampling::SampledToken, nucleus_sampling::cuda::CudaError>>,
}

/// Tokens that are read are those the step before has drawn, or one for each sequence.
enum Source {
    Drawn,
    Known,
}

impl Batch<'_> {
    fn step(&mut self, sequences: usize, source: &Source) -> Result<(), Box<dyn Error>> {
        self.forward(sequences, source, true)?;
        if self.queued > 1 {
            self.collect()?;
        }
        Ok(())
    }

    /// Queues a forward pass and, if it is wanted, a draw.
    fn forward(
        &mut self,
        sequences: usize,
        source: &Source,
        draws: bool,
    ) -> Result<(), Box<dyn Error>> {
        let tokens: Vec<u32> = (0..sequences as u32)
            .map(|sequence| match source {
                Source::Known => 101 * sequence % self.model.spec().vocab_size as u32,
                Source::Drawn => PENDING,
            })
            .collect();
        let chunks: Vec<Chunk<'_>> = tokens
            .iter()
            .zip(self.blocks)
            .map(|(token, blocks)| Chunk {
                tokens: std::slice::from_ref(token),
                position: self.position,
                blocks,
                wants_logits: true,
            })
            .collect();
        let rows = placed(&self.params, sequences, true);
        let (sampler, kept) = (&mut self.sampler, &mut self.logits);
        let before = DrawnTokens::Device(sampler.tokens_on_device());
        let mut tail = |logits: Logits<'_>| {
            if let Logits::Device { data, .. } = logits {
                *kept = Some(data);
                if draws {
                    sampler.queue_slots(&data, &rows)?;
                }
            }
            Ok(())
        };
        match source {
            Source::Known => self.model.forward(&chunks, &mut tail)?,
            Source::Drawn => {
                let drawn: Vec<Option<u32>> = (0..sequences as u32).map(Some).collect();
                self.model
                    .forward_ahead(&chunks, &drawn, before, &mut tail)?;
            }
        }
        self.position += 1;
        self.queued += usize::from(draws);
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Box<dyn Error>> {
        self.sampler.collect(&mut self.drawn)?;
        for token in self.drawn.drain(..) {
            token?;
        }
        self.queued -= 1;
        Ok(())
    }

    /// Waits for everything.
    fn finish(&mut self) -> Result<(), Box<dyn Error>> {
        while self.queued > 0 {
            self.collect()?;
        }
        Ok(())
    }

    /// Seconds a step, and of them those in which the host worked.
    fn time(&mut self, sequences: usize, steps: usize) -> Result<[f64; 2], Box<dyn Error>> {
        self.finish()?;
        let start = Instant::now();
        let mut busy = 0.0;
        for _ in 0..steps {
            let start = Instant::now();
            let waits = self.queued > 0;
            self.step(sequences, &Source::Drawn)?;
            // A step that collects waits for the device.
            if !waits {
                busy += start.elapsed().as_secs_f64();
            }
        }
        self.finish()?;
        Ok([start.elapsed().as_secs_f64() / steps as f64, busy])
    }

    /// Seconds a forward pass, one behind the other, of which only the last is drawn from.
    fn time_forward(&mut self, sequences: usize, steps: usize) -> Result<f64, Box<dyn Error>> {
        self.finish()?;
        let start = Instant::now();
        for _ in 1..steps {
            self.forward(sequences, &Source::Known, false)?;
        }
        self.forward(sequences, &Source::Known, true)?;
        self.finish()?;
        Ok(start.elapsed().as_secs_f64() / steps as f64)
    }

    /// Seconds that drawing takes beside the model, a draw behind the other, and of them those in which the host queues it.
    fn time_draws(&mut self, sequences: usize) -> Result<[f64; 2], Box<dyn Error>> {
        self.finish()?;
        let logits = self.logits.ok_or("no step has run")?;
        let rows = placed(&self.params, sequences, false);
        let start = Instant::now();
        let mut queueing = 0.0;
        for index in 0..DRAWS {
            let start = Instant::now();
            self.sampler.queue_slots(&logits, &rows)?;
            queueing += start.elapsed().as_secs_f64();
            // At most two are queued.
            if index > 0 {
                self.sampler.collect(&mut self.drawn)?;
            }
        }
        self.sampler.collect(&mut self.drawn)?;
        self.drawn.clear();
        Ok([start.elapsed().as_secs_f64(), queueing].map(|seconds| seconds / DRAWS as f64))
    }
}

fn placed(params: &CompiledParams, sequences: usize, commit: bool) -> Vec<PlacedRow<'_>> {
    (0..sequences as u32)
        .map(|slot| PlacedRow {
            logits_row: slot,
            row: SlotRow {
                commit,
                ..SlotRow::new(slot, params)
            },
        })
        .collect()
}

/// Computes a prompt in the first sequence's blocks; seconds.
fn prefill(
    model: &mut dyn Model,
    blocks: &[BlockId],
    tokens: &[u32],
    step_tokens: usize,
) -> Result<f64, Box<dyn Error>> {
    let compute = model.compute();
    let start = Instant::now();
    for (index, piece) in tokens.chunks(step_tokens).enumerate() {
        let position = index * step_tokens;
        let chunk = Chunk {
            tokens: piece,
            position,
            blocks,
            wants_logits: position + piece.len() == tokens.len(),
        };
        model.forward(&[chunk], &mut |logits: Logits<'_>| {
            logits.to_host(compute).map(|_| ())
        })?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Bytes of the model's device that nothing uses.
pub(crate) fn free_bytes(model: &dyn Model) -> Option<u64> {
    let Compute::Cuda(stream) = model.compute() else {
        return None;
    };
    let memory = nucleus_sampling::cuda::device_memory(stream.device()).ok()?;
    Some(memory.free_bytes)
}

/// All batches of a context.
pub(crate) fn measure(
    model: &mut dyn Model,
    context: usize,
    options: &Options,
) -> Result<Vec<Value>, Box<dyn Error>> {
    let spec = model.spec().clone();
    let most_steps =
        (WARMUP + options.steps * options.repeats + PROFILED + 1) * options.batches.len();
    let each = blocks_for(
        context + WARMUP + options.steps * options.repeats + PROFILED,
        BLOCK_SIZE,
    );
    let fitting = model.kv_layout().blocks / each;
    let sequences = options
        .batches
        .iter()
        .copied()
        .filter(|&batch| batch <= fitting)
        .max()
        .unwrap_or(0);
    let blocks = |sequence: usize| {
        let first = (sequence * each) as u32;
        (first..first + each as u32).map(BlockId).collect()
    };
    let blocks: Vec<Vec<BlockId>> = (0..sequences.max(1)).map(blocks).collect();
    let tokens = prompt(context, spec.vocab_size);
    let mut prefills = Vec::new();
    for _ in 0..options.repeats {
        let seconds = prefill(model, &blocks[0], &tokens, options.step_tokens)?;
        prefills.push(context as f64 / seconds);
    }
    for others in &blocks[1..] {
        let used = blocks_for(context, BLOCK_SIZE);
        for (&from, &to) in blocks[0][..used].iter().zip(others) {
            model.copy_block(from, to);
        }
    }
    let mut rows = Vec::new();
    for sampling in &options.samplings {
        let mut batch = batch(model, sampling, &tokens, &blocks, most_steps)?;
        for &sequences in &options.batches {
            let mut row = json!({ "context": context, "batch": sequences, "sampling": sampling });
            if sequences > fitting {
                row["skipped"] = json!(format!("the cache holds {fitting} such sequences"));
            } else {
                decode(&mut batch, context, sequences, options, &mut row)?;
            }
            row["prefill_tokens_per_s"] = json!(median(&mut prefills).round());
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Sequences of these blocks whose tokens so far are `history`, and which are drawn from as `sampling` says.
fn batch<'a>(
    model: &'a mut dyn Model,
    sampling: &str,
    history: &[u32],
    blocks: &'a [Vec<BlockId>],
    most_steps: usize,
) -> Result<Batch<'a>, Box<dyn Error>> {
    let Compute::Cuda(stream) = model.compute() else {
        return Err("the model is not on a device".into());
    };
    let mut sampler = CudaSampler::on_stream(CudaOptions::default(), stream)?;
    let vocab = VocabInfo::new(model.spec().vocab_size as u32);
    let params = serde_json::from_str::<SamplingParams>(sampling)?.validate(&vocab)?;
    let capacity = history.len() + most_steps + 1;
    sampler.reserve_slots(blocks.len() as u32, capacity as u32)?;
    for slot in 0..blocks.len() as u32 {
        let state = SamplerState::new(&params, history);
        sampler.restore_slot(slot, &state, SlotEnd::default())?;
    }
    Ok(Batch {
        model,
        sampler,
        params,
        blocks,
        position: history.len(),
        logits: None,
        queued: 0,
        drawn: Vec::new(),
    })
}

fn decode(
    batch: &mut Batch<'_>,
    context: usize,
    sequences: usize,
    options: &Options,
    row: &mut Value,
) -> Result<(), Box<dyn Error>> {
    batch.position = context;
    batch.step(sequences, &Source::Known)?;
    let first: Vec<f64> = (1..WARMUP)
        .map(|_| Ok(batch.time(sequences, 1)?[0]))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let mut seconds = Vec::new();
    let mut host = Vec::new();
    for _ in 0..options.repeats {
        let [each, first] = batch.time(sequences, options.steps)?;
        seconds.push(each);
        host.push(first);
    }
    let [draw, draw_host] = batch.time_draws(sequences)?;
    // The positions that the steps above have taken are taken again.
    batch.position -= options.steps;
    let forward = batch.time_forward(sequences, options.steps)?;
    batch.model.profile(true)?;
    batch.time(sequences, PROFILED)?;
    let StepTimes {
        steps,
        products,
        attention,
        pointwise,
    } = batch.model.profile(false)?;
    let step = median(&mut seconds);
    let microseconds = |seconds: f64| json!((seconds * 1e7).round() / 10.0);
    let part = |seconds: f64| microseconds(seconds / steps as f64);
    row["first_steps_us"] = first.into_iter().map(microseconds).collect();
    row["decode_tokens_per_s"] = json!((sequences as f64 / step).round());
    row["step_us"] = microseconds(step);
    row["products_us"] = part(products);
    row["attention_us"] = part(attention);
    row["other_kernels_us"] = part(pointwise);
    row["forward_us"] = microseconds(forward);
    row["draw_us"] = microseconds(draw);
    row["draw_host_us"] = microseconds(draw_host);
    row["host_us"] = microseconds(median(&mut host));
    Ok(())
}
