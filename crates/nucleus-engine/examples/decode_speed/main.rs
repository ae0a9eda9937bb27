//! Speed of a model's forward passes on this machine, as JSON: `decode_speed FILE|random:8B:Q4_K_M [--device cpu|cuda:0] [--threads N]
//! [--batch 1,4,16] [--context 16,960] [--steps N] [--repeats N] [--step-tokens N]`.
//!
//! As `peers/llama_cpp_speed.py` measures llama.cpp: so many sequences, each with a prompt of `--context` tokens, decode together, one
//! token each a step, the likeliest. Timed: `--steps` forward passes and the choice of the tokens, and apart from them the prompt of the
//! first sequence, whose keys and values are copied for the others. Shown: the median of `--repeats` runs. On a GPU also where a step's
//! time goes, by events between kernels that are queued one by one (their sum is more than a step, which is one graph), how long a draw
//! takes alone, and how long the host takes to queue a step.
#![allow(clippy::result_large_err, reason = "an error ends the program")]

use std::error::Error;
use std::io::Write;
use std::num::NonZeroUsize;
use std::time::Instant;

use nucleus_engine::error::EngineError;
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::kv_cache::{BlockId, blocks_for};
use nucleus_engine::model::{Chunk, Logits, Model};
use nucleus_engine::models::{self, BLOCK_SIZE, Device, LoadOptions};
use serde_json::{Value, json};

#[cfg(feature = "cuda")]
mod gpu;
mod random;

struct Options {
    path: String,
    device: Device,
    /// Tokens of a prompt that are computed at once; the engine's default is 512.
    step_tokens: usize,
    threads: usize,
    batches: Vec<usize>,
    contexts: Vec<usize>,
    steps: usize,
    repeats: usize,
}

impl Options {
    fn read() -> Result<Self, Box<dyn Error>> {
        let mut args = std::env::args().skip(1);
        let mut options = Self {
            path: args.next().ok_or("the first argument is a GGUF file")?,
            device: Device::Cpu,
            step_tokens: 512,
            threads: 2,
            batches: vec![1, 4, 16],
            contexts: vec![16, 960],
            steps: 32,
            repeats: 3,
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(format!("{flag} needs a value"))?;
            if flag == "--device" {
                options.device = value.parse()?;
                continue;
            }
            let numbers: Vec<usize> = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
            match flag.as_str() {
                "--threads" => options.threads = numbers[0],
                "--batch" => options.batches = numbers,
                "--context" => options.contexts = numbers,
                "--steps" => options.steps = numbers[0],
                "--step-tokens" => options.step_tokens = numbers[0],
                "--repeats" => options.repeats = numbers[0],
                other => return Err(format!("no flag {other}").into()),
            }
        }
        Ok(options)
    }
}

/// A prompt of so many tokens.
fn prompt(context: usize, vocab_size: usize) -> Vec<u32> {
    let token = |i: usize| (7919 * i % vocab_size) as u32;
    (0..context).map(token).collect()
}

#[cfg(feature = "cuda")]
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Sequences that decode together.
struct Batch<'a> {
    model: &'a mut dyn Model,
    /// The blocks of each sequence.
    blocks: Vec<Vec<BlockId>>,
    position: usize,
    /// The newest token of each.
    last: Vec<u32>,
}

impl<'a> Batch<'a> {
    fn new(model: &'a mut dyn Model, sequences: usize, tokens: usize) -> Self {
        let each = blocks_for(tokens, BLOCK_SIZE) as u32;
        let blocks = |sequence| {
            (sequence * each..(sequence + 1) * each)
                .map(BlockId)
                .collect()
        };
        Self {
            model,
            blocks: (0..sequences as u32).map(blocks).collect(),
            position: 0,
            last: vec![0; sequences],
        }
    }

    /// Computes a prompt of so many tokens, and copies its keys and values for the other sequences. Gives the seconds of the
    /// first.
    fn prefill(&mut self, context: usize, step_tokens: usize) -> Result<f64, EngineError> {
        let vocab_size = self.model.spec().vocab_size;
        let prompt = prompt(context, vocab_size);
        let start = Instant::now();
        for (index, tokens) in prompt.chunks(step_tokens).enumerate() {
            let chunk = Chunk {
                tokens,
                position: index * step_tokens,
                blocks: &self.blocks[0],
                wants_logits: true,
            };
            self.last[0] = likeliest(&mut *self.model, &[chunk])?[0];
        }
        let seconds = start.elapsed().as_secs_f64();
        // Different tokens, so that the sequences go different ways.
        let next =
            (0..).map(|sequence| self.last[0].wrapping_add(101 * sequence) % vocab_size as u32);
        self.last = next.take(self.last.len()).collect();
        for blocks in &self.blocks[1..] {
            for (&from, &to) in self.blocks[0].iter().zip(blocks) {
                self.model.copy_block(from, to);
            }
        }
        self.position = context;
        Ok(seconds)
    }

    fn step(&mut self) -> Result<(), EngineError> {
        let chunks: Vec<Chunk<'_>> = self
            .last
            .iter()
            .zip(&self.blocks)
            .map(|(token, blocks)| Chunk {
                tokens: std::slice::from_ref(token),
                position: self.position,
                blocks,
                wants_logits: true,
            })
            .collect();
        self.last = likeliest(&mut *self.model, &chunks)?;
        self.position += 1;
        Ok(())
    }
}

fn likeliest(model: &mut dyn Model, chunks: &[Chunk<'_>]) -> Result<Vec<u32>, EngineError> {
    let mut tokens = Vec::new();
    let mut tail = |logits: Logits<'_>| {
        let (data, vocab) = logits.on_host().expect("the model is on the host");
        let argmax = |row: &[f32]| {
            let best = row.iter().fold(f32::NEG_INFINITY, |best, &x| best.max(x));
            row.iter().position(|&x| x == best).unwrap_or_default() as u32
        };
        tokens.extend(data.chunks_exact(vocab).map(argmax));
        Ok(())
    };
    model.forward(chunks, &mut tail)?;
    Ok(tokens)
}

fn measure(
    model: &mut dyn Model,
    sequences: usize,
    context: usize,
    options: &Options,
) -> Result<Value, EngineError> {
    let warmup = 2;
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..options.repeats {
        let mut batch = Batch::new(&mut *model, sequences, context + warmup + options.steps);
        prefill.push(context as f64 / batch.prefill(context, options.step_tokens)?);
        (0..warmup).try_for_each(|_| batch.step())?;
        let start = Instant::now();
        (0..options.steps).try_for_each(|_| batch.step())?;
        decode.push((sequences * options.steps) as f64 / start.elapsed().as_secs_f64());
    }
    let rounded = |rates: &mut Vec<f64>, at: fn(usize) -> usize| {
        rates.sort_by(f64::total_cmp);
        (rates[at(rates.len())] * 10.0).round() / 10.0
    };
    Ok(json!({
        "context": context,
        "batch": sequences,
        "decode_tokens_per_s": rounded(&mut decode, |len| len / 2),
        "decode_tokens_per_s_min": rounded(&mut decode, |_| 0),
        "decode_tokens_per_s_max": rounded(&mut decode, |len| len - 1),
        "prefill_tokens_per_s": rounded(&mut prefill, |len| len / 2),
    }))
}

/// The most memory that this process has had in RAM, in bytes, where Linux says it.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Bytes of the model's device that nothing uses; none on the host.
fn device_free_bytes(model: &dyn Model) -> Option<u64> {
    #[cfg(feature = "cuda")]
    return gpu::free_bytes(model);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = model;
        None
    }
}

/// All batches of a context.
fn measure_all(
    model: &mut dyn Model,
    context: usize,
    options: &Options,
) -> Result<Vec<Value>, Box<dyn Error>> {
    #[cfg(feature = "cuda")]
    if options.device != Device::Cpu {
        return gpu::measure(model, context, options);
    }
    let batches = options.batches.iter();
    Ok(batches
        .map(|&batch| measure(model, batch, context, options))
        .collect::<Result<_, _>>()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read()?;
    let file = match options.path.strip_prefix("random:") {
        Some(name) => random::model(name)?,
        None => ModelFile::open(&options.path)?,
    };
    let most = |numbers: &[usize]| numbers.iter().copied().max().unwrap_or(1);
    let each = (most(&options.contexts) + options.steps + 2).next_multiple_of(BLOCK_SIZE);
    let is_on_host = options.device == Device::Cpu;
    let start = Instant::now();
    let mut model = models::load(
        &file,
        LoadOptions {
            device: options.device,
            // A GPU's cache takes what is left of its memory.
            kv_tokens: NonZeroUsize::new(most(&options.batches) * each).filter(|_| is_on_host),
            threads: NonZeroUsize::new(options.threads),
            step_rows: NonZeroUsize::new(options.step_tokens),
            sequences: NonZeroUsize::new(most(&options.batches)),
            ..LoadOptions::default()
        },
    )?;
    let load_seconds = start.elapsed().as_secs_f64();
    let loaded_bytes = peak_bytes();
    let device_free_loaded = device_free_bytes(&*model);
    let mut rows = Vec::new();
    for &context in &options.contexts {
        rows.extend(measure_all(&mut *model, context, &options)?);
    }
    let device_free = device_free_bytes(&*model);
    let (spec, layout) = (model.spec(), model.kv_layout());
    let report = json!({
        "model": spec.name,
        "device": options.device.to_string(),
        "threads": options.threads,
        "steps": options.steps,
        "repeats": options.repeats,
        "step_tokens": options.step_tokens,
        "file_bytes": file.size(),
        "weight_bytes": spec.weight_bytes,
        "kv_cache_bytes": layout.bytes(spec),
        "load_s": (load_seconds * 100.0).round() / 100.0,
        "peak_bytes_loaded": loaded_bytes,
        "peak_bytes": peak_bytes(),
        "device_free_bytes_loaded": device_free_loaded,
        "device_free_bytes": device_free,
        "rows": rows,
    });
    Ok(writeln!(std::io::stdout(), "{report:#}")?)
}
