//! A sequence's logits have the same bits alone, in any batch, at any chunking, after eviction and prefix reuse, and in another
//! choice's copied block: for every type of weights, through the scheduler.

#![allow(clippy::result_large_err, reason = "an error fails the test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::num::NonZeroUsize;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use nucleus_engine::gguf::{ModelFile, TensorType};
use nucleus_engine::kv_cache::BlockPool;
use nucleus_engine::model::{Chunk, Logits, Model};
use nucleus_engine::models::{self, LoadOptions};
use nucleus_engine::scheduler::{
    Arrival, Scheduled, Scheduler, SchedulerCounters, SchedulerLimits, SequenceId, Step,
};

const HIDDEN: usize = 256;
const VOCAB_SIZE: usize = 80;
const LAYERS: usize = 2;
/// Blocks of 16 positions: too few for all sequences at once.
const BLOCKS: usize = 7;
/// Tokens of a finished sequence.
const LENGTH: usize = 50;

fn model(dtype: GgmlDType, device: models::Device) -> Box<dyn Model> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    write(dtype, &mut BufWriter::new(File::create(&path).unwrap()));
    let options = LoadOptions {
        device,
        kv_tokens: NonZeroUsize::new(16 * BLOCKS),
        threads: NonZeroUsize::new(2),
        ..LoadOptions::default()
    };
    models::load(&ModelFile::open(&path).unwrap(), options).unwrap()
}

/// A model of the Llama architecture with random matrices of one type.
fn write(dtype: GgmlDType, file: &mut BufWriter<File>) {
    let matrix = |outputs: usize, seed: usize| {
        let scramble = |i: usize| ((i + 977 * seed) as u32).wrapping_mul(2_654_435_769) >> 8;
        let weight = |i: usize| (scramble(i) as f32 / (1 << 23) as f32 - 1.0) / 8.0;
        let weights: Vec<f32> = (0..outputs * HIDDEN).map(weight).collect();
        let weights = Tensor::from_vec(weights, (outputs, HIDDEN), &Device::Cpu).unwrap();
        QTensor::quantize(&weights, dtype).unwrap()
    };
    let norm = || {
        let ones = Tensor::ones(HIDDEN, DType::F32, &Device::Cpu).unwrap();
        QTensor::quantize(&ones, GgmlDType::F32).unwrap()
    };
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), matrix(VOCAB_SIZE, 1)),
        ("output_norm.weight".to_owned(), norm()),
    ];
    for layer in 0..LAYERS {
        let matrices = [
            ("attn_q", HIDDEN),
            ("attn_k", HIDDEN / 2),
            ("attn_v", HIDDEN / 2),
            ("attn_output", HIDDEN),
            ("ffn_gate", HIDDEN),
            ("ffn_up", HIDDEN),
            ("ffn_down", HIDDEN),
        ];
        for (index, (name, outputs)) in matrices.into_iter().enumerate() {
            let name = format!("blk.{layer}.{name}.weight");
            tensors.push((name, matrix(outputs, 2 + 7 * layer + index)));
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.{layer}.{name}.weight"), norm()));
        }
    }
    let number = |number: usize| Value::U32(number as u32);
    let metadata = [
        ("general.architecture", Value::String("llama".into())),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(LAYERS)),
        ("llama.feed_forward_length", number(HIDDEN)),
        ("llama.attention.head_count", number(4)),
        ("llama.attention.head_count_kv", number(2)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
    ];
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    gguf_file::write(file, &metadata, &tensors).unwrap();
}

/// The bits of the logits after so many tokens.
type Rows = BTreeMap<usize, Vec<u32>>;

/// Runs sequences to [`LENGTH`] tokens; whatever is sampled, their next token is the script's. The bits of all logits.
fn run(
    model: &mut dyn Model,
    prompts: &[usize],
    scripts: &[Vec<u32>],
    step_tokens: usize,
) -> (Vec<Rows>, SchedulerCounters) {
    let limits = SchedulerLimits {
        running: 4,
        waiting: 8,
        step_tokens,
        prefix_reuse: true,
    };
    let layout = model.kv_layout();
    let mut scheduler = Scheduler::new(limits, layout.block_size, BlockPool::new(layout.blocks));
    let arrival = |(index, (&prompt, script)): (usize, (&usize, &Vec<u32>))| Arrival {
        id: SequenceId(index as u64),
        prompt: script[..prompt].to_vec(),
        capacity: LENGTH,
        alone: false,
    };
    let arrivals = prompts.iter().zip(scripts).enumerate().map(arrival);
    scheduler.enqueue(arrivals.collect()).unwrap();
    let mut rows = vec![Rows::new(); scripts.len()];
    while scheduler.running() + scheduler.waiting() > 0 {
        let step = scheduler.schedule();
        let logits = forward(model, &step, scripts);
        step.runs.iter().for_each(|run| scheduler.computed(run));
        for (run, row) in step.runs.iter().filter(|run| run.samples).zip(logits) {
            for id in run.sampled() {
                let index = id.0 as usize;
                let known = run.start + run.len;
                rows[index].insert(known, row.clone());
                match scripts[index].get(known) {
                    Some(&token) => scheduler.grown(id, token),
                    None => assert!(scheduler.remove(id)),
                }
            }
        }
    }
    (rows, scheduler.counters())
}

fn forward(model: &mut dyn Model, step: &Step, scripts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    for &(from, to) in &step.copies {
        model.copy_block(from, to);
    }
    let chunk = |run: &Scheduled| (run.id.0 as usize, run.start..run.start + run.len);
    let chunks: Vec<Chunk<'_>> = step
        .runs
        .iter()
        .map(|run| {
            let (index, tokens) = chunk(run);
            Chunk {
                tokens: &scripts[index][tokens],
                position: run.start,
                blocks: &run.blocks,
                wants_logits: run.samples,
            }
        })
        .collect();
    let mut rows = Vec::new();
    let compute = model.compute();
    let mut tail = |logits: Logits<'_>| {
        let (data, vocab) = logits.to_host(compute)?;
        let bits = |row: &[f32]| row.iter().map(|logit| logit.to_bits()).collect();
        rows.extend(data.chunks_exact(vocab).map(bits));
        Ok(())
    };
    model.forward(&chunks, &mut tail).unwrap();
    rows
}

#[test]
fn every_type_gives_the_same_bits_through_the_scheduler_as_alone() {
    every_type_gives_the_same_bits(models::Device::Cpu);
}

#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs a GPU"]
fn every_type_gives_the_same_bits_through_the_scheduler_as_alone_on_a_gpu() {
    every_type_gives_the_same_bits(models::Device::Cuda(0));
}

fn every_type_gives_the_same_bits(device: models::Device) {
    let token = |i: usize, story: usize| ((31 * i + 17 * story * i * i) % VOCAB_SIZE) as u32;
    // Two of the same 20 tokens, one that parts from them after 32, and one of its own.
    let parts = |story: usize, own: usize| -> Vec<u32> {
        (0..LENGTH)
            .map(|i| token(i, if i < own { 1 } else { story }))
            .collect()
    };
    let scripts = [parts(1, 20), parts(2, 20), parts(3, 32), parts(4, 0)];
    let prompts = [20, 20, 34, 25];
    let types = TensorType::supported().filter_map(TensorType::candle_type);
    for dtype in types {
        let mut model = model(dtype, device);
        let alone: Vec<Rows> = (0..scripts.len())
            .map(|index| {
                let one = &scripts[index..=index];
                run(&mut *model, &prompts[index..=index], one, 64)
                    .0
                    .remove(0)
            })
            .collect();
        // candle's products wait for each other in a loop, which takes long on a busy machine.
        let has_kernel = device != models::Device::Cpu
            || matches!(dtype, GgmlDType::F32 | GgmlDType::Q8_0 | GgmlDType::Q4K);
        for step_tokens in [7, 64].into_iter().take(if has_kernel { 2 } else { 1 }) {
            let (together, counters) = run(&mut *model, &prompts, &scripts, step_tokens);
            for (index, (rows, alone)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(alone.len(), LENGTH + 1 - prompts[index]);
                assert_eq!(rows, alone, "{dtype:?}, sequence {index}, {step_tokens}");
            }
            let SchedulerCounters {
                evictions,
                reused_tokens,
                copies,
                ..
            } = counters;
            assert!(
                evictions > 0 && reused_tokens > 20 && copies > 0,
                "{counters:?}"
            );
        }
    }
}
