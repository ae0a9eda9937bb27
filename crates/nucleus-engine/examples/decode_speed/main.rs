//! Speed of a model's forward passes on this machine, as JSON: `decode_speed FILE|random:8B:Q4_K_M [--device cpu|cuda:0] [--threads N]
//! [--batch 1,4,16] [--context 16,960] [--steps N] [--repeats N] [--step-tokens N] [--sampling JSON]…`.
//!
//! As `peers/llama_cpp_speed.py` measures llama.cpp: so many sequences, each with a prompt of `--context` tokens, decode together, one
//! token each a step, the likeliest. Timed: `--steps` forward passes and the choice of the tokens, and apart from them, once, the prompt of the
//! first sequence, whose keys and values are copied for the others. Shown: the median of `--repeats` runs. On a GPU also where a step's
//! time goes, by events between kernels that are queued one by one (their sum is more than a step, which is one graph), how long a forward pass
//! and a draw take alone, and how long the host takes to queue a draw and a step; and `--sampling` says what is asked of each token instead of the
//! likeliest, as the fields of `SamplingParams`, once for each way that is to be measured.
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
    /// Ways to draw tokens, as JSON; on a GPU alone.
    samplings: Vec<String>,
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
            samplings: Vec::new(),
        };
        while let Some(flag) = args.next() {
            let value = args.next().ok_or(format!("{flag} needs a value"))?;
            let numbers =
                || -> Result<Vec<usize>, _> { value.split(',').map(str::parse).collect() };
            match flag.as_str() {
                "--device" => options.device = value.parse()?,
                "--sampling" => options.samplings.push(value),
                "--threads" => options.threads = numbers()?[0],
                "--batch" => options.batches = numbers()?,
                "--context" => options.contexts = numbers()?,
                "--steps" => options.steps = numbers()?[0],
                "--step-tokens" => options.step_tokens = numbers()?[0],
                "--repeats" => options.repeats = numbers()?[0],
                other => return Err(format!("no flag {other}").into()),
            }
        }
        if options.samplings.is_empty() {
            options.samplings.push(r#"{"temperature": 0}"#.to_owned());
        } else if options.device == Device::Cpu {
            return Err("--sampling is for GPUs".into());
        }
        Ok(options)
    }
}

/// Steps before those that are timed.
const WARMUP: usize = 2;

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

/// A prompt in the cache, with room for sequences that go on from it.
struct Prompt<'a> {
    model: &'a mut dyn Model,
    context: usize,
    /// The blocks of each sequence; the first has the prompt.
    blocks: Vec<Vec<BlockId>>,
    /// The likeliest token after it.
    next: u32,
    /// How long it took.
    seconds: f64,
}

impl<'a> Prompt<'a> {
    /// Computes a prompt of so many tokens.
    fn new(
        model: &'a mut dyn Model,
        context: usize,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let most = options.batches.iter().copied().max().unwrap_or(1) as u32;
        let each = blocks_for(context + WARMUP + options.steps, BLOCK_SIZE) as u32;
        let blocks = |sequence| {
            (sequence * each..(sequence + 1) * each)
                .map(BlockId)
                .collect()
        };
        let blocks: Vec<Vec<BlockId>> = (0..most).map(blocks).collect();
        let prompt = prompt(context, model.spec().vocab_size);
        let mut next = 0;
        // The first pass after loading takes memory for the first time.
        let first = Chunk {
            tokens: &prompt[..1],
            position: 0,
            blocks: &blocks[0],
            wants_logits: true,
        };
        likeliest(model, &[first])?;
        let start = Instant::now();
        for (index, tokens) in prompt.chunks(options.step_tokens).enumerate() {
            let chunk = Chunk {
                tokens,
                position: index * options.step_tokens,
                blocks: &blocks[0],
                wants_logits: true,
            };
            next = likeliest(model, &[chunk])?[0];
        }
        Ok(Self {
            model,
            context,
            blocks,
            next,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Lets so many sequences go on from the prompt, a token each a step, and gives the seconds of the steps.
    fn decode(&mut self, sequences: usize, steps: usize) -> Result<f64, EngineError> {
        let (first, others) = self.blocks.split_first().expect("at least one sequence");
        for blocks in &others[..sequences - 1] {
            for (&from, &to) in first.iter().zip(blocks) {
                self.model.copy_block(from, to);
            }
        }
        // Different tokens, so that the sequences go different ways.
        let vocab_size = self.model.spec().vocab_size as u32;
        let next = (0..sequences as u32).map(|sequence| (self.next + 101 * sequence) % vocab_size);
        let mut last: Vec<u32> = next.collect();
        let mut start = Instant::now();
        for step in 0..WARMUP + steps {
            if step == WARMUP {
                start = Instant::now();
            }
            let chunks = last.iter().zip(&self.blocks).map(|(token, blocks)| Chunk {
                tokens: std::slice::from_ref(token),
                position: self.context + step,
                blocks,
                wants_logits: true,
            });
            last = likeliest(self.model, &chunks.collect::<Vec<_>>())?;
        }
        Ok(start.elapsed().as_secs_f64())
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

/// A batch of a context.
fn measure(
    prompt: &mut Prompt<'_>,
    sequences: usize,
    options: &Options,
) -> Result<Value, EngineError> {
    let mut rates = Vec::new();
    for _ in 0..options.repeats {
        let seconds = prompt.decode(sequences, options.steps)?;
        rates.push((sequences * options.steps) as f64 / seconds);
    }
    rates.sort_by(f64::total_cmp);
    let rounded = |rate: f64| (rate * 10.0).round() / 10.0;
    Ok(json!({
        "context": prompt.context,
        "batch": sequences,
        "decode_tokens_per_s": rounded(rates[rates.len() / 2]),
        "decode_tokens_per_s_min": rounded(rates[0]),
        "decode_tokens_per_s_max": rounded(rates[rates.len() - 1]),
        "prefill_tokens_per_s": rounded(prompt.context as f64 / prompt.seconds),
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
    let mut prompt = Prompt::new(model, context, options)?;
    let batches = options.batches.iter();
    Ok(batches
        .map(|&batch| measure(&mut prompt, batch, options))
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
