//! Writes a GGUF file of the shape of Llama 3.2 1B with random weights, to measure speed with: `random_model Q4_K_M FILE`.
//!
//! The tensors have the types that llama.cpp's quantiser gives them; the output matrix is the embedding. A tensor repeats a few
//! random rows: its bytes are as many as those of any other, and quantising them takes no time. There is no vocabulary.

use std::borrow::Cow;
use std::fs::File;
use std::io::BufWriter;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor};

const LAYERS: usize = 16;
const HIDDEN: usize = 2048;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 8192;
const VOCAB_SIZE: usize = 128_256;
/// Rows that a tensor repeats.
const RANDOM_ROWS: usize = 16;

/// Which type each tensor has.
#[derive(Clone, Copy)]
struct Recipe {
    most: GgmlDType,
    embedding: GgmlDType,
    /// Of the values and the last feed-forward matrix, in the layers that matter most.
    better: GgmlDType,
}

fn recipe(name: &str) -> Option<Recipe> {
    let recipe = |most, embedding, better| Recipe {
        most,
        embedding,
        better,
    };
    match name {
        "Q8_0" => Some(recipe(GgmlDType::Q8_0, GgmlDType::Q8_0, GgmlDType::Q8_0)),
        "Q4_0" => Some(recipe(GgmlDType::Q4_0, GgmlDType::Q6K, GgmlDType::Q4_0)),
        "Q4_K_M" => Some(recipe(GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::Q6K)),
        _ => None,
    }
}

/// llama.cpp's `use_more_bits`: the first and the last eighth of the layers, and every third one between.
fn matters_more(layer: usize) -> bool {
    !(LAYERS / 8..7 * LAYERS / 8).contains(&layer) || (layer - LAYERS / 8) % 3 == 2
}

fn matrix(outputs: usize, inputs: usize, dtype: GgmlDType) -> Result<QTensor> {
    let deviation = 1.0 / (inputs as f32).sqrt();
    let rows = Tensor::randn(0.0, deviation, (RANDOM_ROWS, inputs), &Device::Cpu)?;
    let rows = QTensor::quantize(&rows, dtype)?;
    let mut data = rows.data()?.repeat(outputs.div_ceil(RANDOM_ROWS));
    data.truncate(rows.storage_size_in_bytes() / RANDOM_ROWS * outputs);
    let storage = QStorage::from_data(Cow::Owned(data), &Device::Cpu, dtype)?;
    QTensor::new(storage, (outputs, inputs))
}

fn norm() -> Result<QTensor> {
    let ones = Tensor::ones(HIDDEN, candle_core::DType::F32, &Device::Cpu)?;
    QTensor::quantize(&ones, GgmlDType::F32)
}

fn tensors(recipe: Recipe) -> Result<Vec<(String, QTensor)>> {
    let Recipe {
        most,
        embedding,
        better,
    } = recipe;
    let mut tensors = vec![
        (
            "token_embd.weight".to_owned(),
            matrix(VOCAB_SIZE, HIDDEN, embedding)?,
        ),
        ("output_norm.weight".to_owned(), norm()?),
    ];
    for layer in 0..LAYERS {
        let better = if matters_more(layer) { better } else { most };
        let kv = KV_HEADS * HEAD_DIM;
        for (name, outputs, inputs, dtype) in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN, most),
            ("attn_k", kv, HIDDEN, most),
            ("attn_v", kv, HIDDEN, better),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM, most),
            ("ffn_gate", FEED_FORWARD, HIDDEN, most),
            ("ffn_up", FEED_FORWARD, HIDDEN, most),
            ("ffn_down", HIDDEN, FEED_FORWARD, better),
        ] {
            let name = format!("blk.{layer}.{name}.weight");
            tensors.push((name, matrix(outputs, inputs, dtype)?));
        }
        for name in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.{layer}.{name}.weight"), norm()?));
        }
    }
    Ok(tensors)
}

fn metadata(name: &str) -> Vec<(&'static str, Value)> {
    let number = |number: usize| Value::U32(number as u32);
    vec![
        ("general.architecture", Value::String("llama".into())),
        ("general.name", Value::String(format!("random 1.2B {name}"))),
        ("llama.context_length", number(8192)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.block_count", number(LAYERS)),
        ("llama.feed_forward_length", number(FEED_FORWARD)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KV_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", number(HEAD_DIM)),
        ("llama.rope.freq_base", Value::F32(500_000.0)),
        ("llama.vocab_size", number(VOCAB_SIZE)),
        ("tokenizer.ggml.model", Value::String("no_vocab".into())),
    ]
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let usage = "usage: random_model Q8_0|Q4_0|Q4_K_M FILE";
    let mut args = std::env::args().skip(1);
    let (name, path) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let tensors = tensors(recipe(&name).ok_or(usage)?)?;
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let metadata = metadata(&name);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let mut file = BufWriter::new(File::create(path)?);
    Ok(gguf_file::write(&mut file, &metadata, &tensors)?)
}
