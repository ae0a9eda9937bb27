//! Models of well-known shapes with random weights, to measure speed with.
//!
//! The tensors have the types that llama.cpp's quantiser gives them. A tensor repeats a few random rows: its bytes are as many as those of any
//! other, and making them takes no time. There is no vocabulary.

use std::borrow::Cow;
use std::collections::HashMap;
use std::error::Error;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use nucleus_engine::gguf::ModelFile;

/// Rows that a tensor repeats.
const RANDOM_ROWS: usize = 16;
/// Rows that the tensor of logits repeats: so few tokens are equally likely that a draw is as one from any model.
const RANDOM_LOGIT_ROWS: usize = 4096;
/// Outputs from which a tensor is that of logits.
const LEAST_VOCAB: usize = 32_000;
/// Of every tensor in the file, in bytes.
const ALIGNMENT: u64 = 32;

/// A model's shape.
#[derive(Debug, Clone, Copy)]
struct Shape {
    name: &'static str,
    architecture: &'static str,
    layers: usize,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    feed_forward: usize,
    vocab_size: usize,
    rope_base: f32,
    /// Whether the embedding is the output matrix too.
    tied: bool,
}

/// Llama 3.2 1B, Phi-3 mini, Llama 3.1 8B.
const SHAPES: [Shape; 3] = [
    Shape {
        name: "1B",
        architecture: "llama",
        layers: 16,
        hidden: 2048,
        heads: 32,
        kv_heads: 8,
        head_dim: 64,
        feed_forward: 8192,
        vocab_size: 128_256,
        rope_base: 500_000.0,
        tied: true,
    },
    Shape {
        name: "3.8B",
        architecture: "phi3",
        layers: 32,
        hidden: 3072,
        heads: 32,
        kv_heads: 32,
        head_dim: 96,
        feed_forward: 8192,
        vocab_size: 32_064,
        rope_base: 10_000.0,
        tied: false,
    },
    Shape {
        name: "8B",
        architecture: "llama",
        layers: 32,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        feed_forward: 14_336,
        vocab_size: 128_256,
        rope_base: 500_000.0,
        tied: false,
    },
];

/// Positions of a context.
const CONTEXT: usize = 8192;

/// Which type each tensor has.
#[derive(Clone, Copy)]
struct Recipe {
    most: GgmlDType,
    /// Of the output matrix.
    output: GgmlDType,
    /// Of the values and the last feed-forward matrix, in the layers that matter most.
    better: GgmlDType,
}

fn recipe(name: &str) -> Option<Recipe> {
    let all = |most| Recipe {
        most,
        output: most,
        better: most,
    };
    match name {
        "F16" => Some(all(GgmlDType::F16)),
        "BF16" => Some(all(GgmlDType::BF16)),
        "Q8_0" => Some(all(GgmlDType::Q8_0)),
        "Q4_0" => Some(Recipe {
            output: GgmlDType::Q6K,
            ..all(GgmlDType::Q4_0)
        }),
        "Q4_K_M" => Some(Recipe {
            output: GgmlDType::Q6K,
            better: GgmlDType::Q6K,
            ..all(GgmlDType::Q4K)
        }),
        _ => None,
    }
}

impl Shape {
    /// llama.cpp's `use_more_bits`: the first and the last eighth of the layers, and every third one between.
    fn matters_more(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        !(eighth..7 * eighth).contains(&layer) || (layer - eighth) % 3 == 2
    }

    /// Names, outputs, inputs and types of all matrices.
    fn matrices(&self, recipe: Recipe) -> Vec<(String, [usize; 2], GgmlDType)> {
        let Recipe {
            most,
            output,
            better,
        } = recipe;
        let (hidden, feed_forward) = (self.hidden, self.feed_forward);
        let [query, kv] = [self.heads, self.kv_heads].map(|heads| heads * self.head_dim);
        let vocabulary = [self.vocab_size, hidden];
        let embedding = if self.tied { output } else { most };
        let mut matrices = vec![("token_embd.weight".to_owned(), vocabulary, embedding)];
        if !self.tied {
            matrices.push(("output.weight".to_owned(), vocabulary, output));
        }
        for layer in 0..self.layers {
            let better = if self.matters_more(layer) {
                better
            } else {
                most
            };
            let mut of_layer = vec![
                ("attn_output", [hidden, query], most),
                ("ffn_down", [hidden, feed_forward], better),
            ];
            if self.architecture == "phi3" {
                of_layer.extend([
                    ("attn_qkv", [query + 2 * kv, hidden], most),
                    ("ffn_up", [2 * feed_forward, hidden], most),
                ]);
            } else {
                of_layer.extend([
                    ("attn_q", [query, hidden], most),
                    ("attn_k", [kv, hidden], most),
                    ("attn_v", [kv, hidden], better),
                    ("ffn_gate", [feed_forward, hidden], most),
                    ("ffn_up", [feed_forward, hidden], most),
                ]);
            }
            for (name, shape, dtype) in of_layer {
                matrices.push((format!("blk.{layer}.{name}.weight"), shape, dtype));
            }
        }
        matrices
    }

    fn norms(&self) -> Vec<String> {
        let mut norms = vec!["output_norm.weight".to_owned()];
        for layer in 0..self.layers {
            for name in ["attn_norm", "ffn_norm"] {
                norms.push(format!("blk.{layer}.{name}.weight"));
            }
        }
        norms
    }

    fn metadata(&self, types: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut count = 0_u64;
        let mut key = |bytes: &mut Vec<u8>, key: &str, kind: u32, value: &[u8]| {
            push_string(bytes, key);
            bytes.extend(kind.to_le_bytes());
            bytes.extend(value);
            count += 1;
        };
        let name = format!("random {} {types}", self.name);
        for (name, value) in [
            ("general.architecture", self.architecture),
            ("general.name", &name),
            ("tokenizer.ggml.model", "no_vocab"),
        ] {
            let mut string = Vec::new();
            push_string(&mut string, value);
            key(&mut bytes, name, STRING, &string);
        }
        for (name, value) in [
            ("context_length", CONTEXT),
            ("embedding_length", self.hidden),
            ("block_count", self.layers),
            ("feed_forward_length", self.feed_forward),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("rope.dimension_count", self.head_dim),
            ("vocab_size", self.vocab_size),
        ] {
            let name = format!("{}.{name}", self.architecture);
            key(&mut bytes, &name, U32, &(value as u32).to_le_bytes());
        }
        for (name, value) in [
            ("attention.layer_norm_rms_epsilon", 1e-5_f32),
            ("rope.freq_base", self.rope_base),
        ] {
            let name = format!("{}.{name}", self.architecture);
            key(&mut bytes, &name, F32, &value.to_le_bytes());
        }
        let mut all = count.to_le_bytes().to_vec();
        all.extend(bytes);
        all
    }
}

/// GGUF's number of a value's type.
const U32: u32 = 4;
/// GGUF's number of a value's type.
const F32: u32 = 6;
/// GGUF's number of a value's type.
const STRING: u32 = 8;

fn push_string(bytes: &mut Vec<u8>, string: &str) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string.as_bytes());
}

/// ggml's number of a tensor's type.
fn number(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::F16 => 1,
        GgmlDType::Q4_0 => 2,
        GgmlDType::Q8_0 => 8,
        GgmlDType::Q4K => 12,
        GgmlDType::Q6K => 14,
        GgmlDType::BF16 => 30,
        other => unreachable!("no recipe has {other:?}"),
    }
}

/// A tensor's place in the file, and the bytes that it repeats.
struct Part {
    start: u64,
    end: u64,
    pattern: usize,
}

/// A file that is computed when it is read.
struct Computed {
    header: Vec<u8>,
    parts: Vec<Part>,
    patterns: Vec<Vec<u8>>,
}

impl Computed {
    fn size(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.end)
    }

    fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let rest = &mut bytes[done..];
            done += if at < self.header.len() as u64 {
                copy(&self.header[at as usize..], rest)
            } else {
                let index = self.parts.partition_point(|part| part.end <= at);
                let Some(part) = self.parts.get(index) else {
                    return;
                };
                if at < part.start {
                    let len = rest.len().min((part.start - at) as usize);
                    rest[..len].fill(0);
                    len
                } else {
                    let pattern = &self.patterns[part.pattern];
                    let len = rest.len().min((part.end - at) as usize);
                    let from = (at - part.start) % pattern.len() as u64;
                    copy(&pattern[from as usize..], &mut rest[..len])
                }
            };
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}

/// Random rows of a matrix with so many inputs.
fn random_rows(shape: (usize, usize), dtype: GgmlDType) -> candle_core::Result<Vec<u8>> {
    let deviation = 1.0 / (shape.1 as f32).sqrt();
    let rows = Tensor::randn(0.0, deviation, shape, &Device::Cpu)?;
    QTensor::quantize(&rows, dtype)?.data().map(Cow::into_owned)
}

fn ones(width: usize) -> candle_core::Result<Vec<u8>> {
    let ones = Tensor::ones(width, DType::F32, &Device::Cpu)?;
    QTensor::quantize(&ones, GgmlDType::F32)?
        .data()
        .map(Cow::into_owned)
}

fn computed(shape: Shape, types: &str, recipe: Recipe) -> candle_core::Result<Computed> {
    let mut patterns = vec![ones(shape.hidden)?];
    let mut known: HashMap<(usize, usize, u32), usize> = HashMap::new();
    let (mut infos, mut parts) = (Vec::new(), Vec::new());
    let mut end = 0_u64;
    let mut add = |name: &str, dims: &[usize], dtype: GgmlDType, bytes: u64, pattern: usize| {
        let start = end.next_multiple_of(ALIGNMENT);
        push_string(&mut infos, name);
        infos.extend((dims.len() as u32).to_le_bytes());
        // GGUF has the innermost dimension first.
        for &dim in dims.iter().rev() {
            infos.extend((dim as u64).to_le_bytes());
        }
        infos.extend(number(dtype).to_le_bytes());
        infos.extend(start.to_le_bytes());
        end = start + bytes;
        parts.push(Part {
            start,
            end,
            pattern,
        });
    };
    for name in shape.norms() {
        let bytes = patterns[0].len() as u64;
        add(&name, &[shape.hidden], GgmlDType::F32, bytes, 0);
    }
    for (name, dims, dtype) in shape.matrices(recipe) {
        let [outputs, inputs] = dims;
        let rows = if outputs < LEAST_VOCAB {
            RANDOM_ROWS
        } else {
            RANDOM_LOGIT_ROWS
        };
        let key = (rows, inputs, number(dtype));
        let pattern = match known.get(&key) {
            Some(&pattern) => pattern,
            None => {
                patterns.push(random_rows((rows, inputs), dtype)?);
                known.insert(key, patterns.len() - 1);
                patterns.len() - 1
            }
        };
        let bytes = (patterns[pattern].len() / rows * outputs) as u64;
        add(&name, &dims, dtype, bytes, pattern);
    }
    let mut header = b"GGUF".to_vec();
    header.extend(3_u32.to_le_bytes());
    header.extend((parts.len() as u64).to_le_bytes());
    header.extend(shape.metadata(types));
    header.extend(infos);
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
    for part in &mut parts {
        part.start += header.len() as u64;
        part.end += header.len() as u64;
    }
    Ok(Computed {
        header,
        parts,
        patterns,
    })
}

/// The model of a name such as `8B:Q4_K_M`.
pub(crate) fn model(name: &str) -> Result<ModelFile, Box<dyn Error>> {
    let unknown = || {
        format!(
            "no random model {name:?}: 1B, 3.8B or 8B, a colon, and F16, BF16, Q8_0, Q4_0 or Q4_K_M"
        )
    };
    let (shape, types) = name.split_once(':').ok_or_else(unknown)?;
    let shape = SHAPES.into_iter().find(|known| known.name == shape);
    let (shape, recipe) = shape.zip(recipe(types)).ok_or_else(unknown)?;
    let computed = computed(shape, types, recipe)?;
    let size = computed.size();
    let fill = move |offset, bytes: &mut [u8]| computed.fill(offset, bytes);
    Ok(ModelFile::computed(size, fill, name)?)
}
