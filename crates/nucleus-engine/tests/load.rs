//! Loading: what is refused and how it is said, what is reported, and what a step refuses.

use std::io::Write;
use std::num::NonZeroUsize;

use nucleus_engine::error::EngineError;
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::kv_cache::BlockId;
use nucleus_engine::model::{Chunk, Logits, Model, Tail};
use nucleus_engine::models::{self, BLOCK_SIZE, LoadOptions, LoadProgress, Memory};
use tempfile::NamedTempFile;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny-q8_0.gguf");
const GQA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/tiny-f32-gqa.gguf");

/// A fixture with some of its bytes changed.
struct Patched {
    bytes: Vec<u8>,
}

impl Patched {
    fn new(path: &str) -> Self {
        Self {
            bytes: std::fs::read(path).unwrap(),
        }
    }

    /// Where the bytes of a name end, which must be in the file once, with its length before it.
    fn after(&self, name: &str) -> usize {
        let needle = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
        let places: Vec<usize> = self
            .bytes
            .windows(needle.len())
            .enumerate()
            .filter(|(_, window)| *window == needle)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(places.len(), 1, "{name} is not in the file once");
        places[0] + needle.len()
    }

    /// Changes a metadata value of four bytes; they follow the number of its type.
    fn set(mut self, key: &str, value: [u8; 4]) -> Self {
        let at = self.after(key) + 4;
        self.bytes[at..at + 4].copy_from_slice(&value);
        self
    }

    fn set_u32(self, key: &str, value: u32) -> Self {
        self.set(key, value.to_le_bytes())
    }

    fn set_f32(self, key: &str, value: f32) -> Self {
        self.set(key, value.to_le_bytes())
    }

    /// Changes a name to another of the same length.
    fn rename(mut self, from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        let end = self.after(from);
        self.bytes[end - to.len()..end].copy_from_slice(to.as_bytes());
        self
    }

    /// Changes the innermost dimension of a tensor; it follows the number of dimensions.
    fn set_columns(mut self, tensor: &str, columns: u64) -> Self {
        let at = self.after(tensor) + 4;
        self.bytes[at..at + 8].copy_from_slice(&columns.to_le_bytes());
        self
    }

    fn open(&self) -> ModelFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&self.bytes).unwrap();
        ModelFile::open(file.path()).unwrap()
    }

    /// The error of loading the file, which `memory` must find too.
    fn error(&self) -> String {
        let file = self.open();
        let error = message(models::load(&file, LoadOptions::default()));
        assert_eq!(models::memory(&file).unwrap_err().to_string(), error);
        error
    }
}

fn message(result: Result<Box<dyn Model>, EngineError>) -> String {
    match result {
        Ok(_) => panic!("the file was loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_unsupported_architecture_is_named_with_those_that_are() {
    let error = Patched::new(FIXTURE).rename("llama", "mamba").error();
    assert_eq!(
        error,
        "architecture \"mamba\" is not supported; supported are llama, mistral, qwen2, qwen3, phi3, gemma, gemma2, gemma3, \
         gemma3_text"
    );
}

#[test]
fn sizes_of_zero_are_refused() {
    for key in [
        "block_count",
        "attention.head_count",
        "attention.head_count_kv",
        "embedding_length",
        "context_length",
        "feed_forward_length",
    ] {
        let key = format!("llama.{key}");
        let error = Patched::new(FIXTURE).set_u32(&key, 0).error();
        assert!(
            error.contains(&format!("{key:?} is 0")) && error.contains("from 1 to"),
            "{error}"
        );
    }
}

#[test]
fn a_missing_key_is_named() {
    let error = Patched::new(FIXTURE)
        .rename("llama.block_count", "llama.block_c0unt")
        .error();
    assert!(error.contains(r#""llama.block_count""#), "{error}");
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    let cases = [
        (
            "llama.attention.head_count_kv",
            3,
            "a divisor of the head count, 4",
        ),
        ("llama.attention.value_length", 8, "the length of a key, 16"),
        (
            "llama.rope.dimension_count",
            15,
            "even and at most the width of a head, 16",
        ),
        (
            "llama.rope.dimension_count",
            18,
            "even and at most the width of a head, 16",
        ),
    ];
    for (key, value, expected) in cases {
        let error = Patched::new(FIXTURE).set_u32(key, value).error();
        assert_eq!(
            error,
            format!("metadata key {key:?} is {value}; it must be {expected}")
        );
    }
}

#[test]
fn constants_must_be_finite_and_positive() {
    for key in [
        "llama.attention.layer_norm_rms_epsilon",
        "llama.rope.freq_base",
    ] {
        for value in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = Patched::new(FIXTURE).set_f32(key, value).error();
            assert_eq!(
                error,
                format!("metadata key {key:?} is {value}; it must be finite and above 0")
            );
        }
    }
}

#[test]
fn a_head_count_that_does_not_divide_the_width_needs_a_key_length() {
    let error = Patched::new(FIXTURE)
        .rename("llama.attention.key_length", "llama.attention.key_l3ngth")
        .set_u32("llama.attention.head_count", 5)
        .error();
    assert_eq!(
        error,
        r#"metadata key "llama.attention.head_count" is 5; it must be a divisor of the embedding length, 64"#
    );
}

#[test]
fn features_that_would_change_the_output_are_refused() {
    let key = "llama.attention.key_length";
    let scale = "llama.attention.scale";
    let mut file = Patched::new(FIXTURE);
    // The key becomes one of another name, and what was its length shrinks with it.
    let end = file.after(key);
    let start = end - key.len();
    let shorter = [&(scale.len() as u64).to_le_bytes(), scale.as_bytes()].concat();
    file.bytes.splice(start - 8..end, shorter);
    // The data section begins at a multiple of 32, so what was taken out is put in front of it, in the first string.
    let name = file.after("general.name");
    let length = name + 4;
    let grown = u64::from_le_bytes(file.bytes[length..length + 8].try_into().unwrap()) + 5;
    file.bytes[length..length + 8].copy_from_slice(&grown.to_le_bytes());
    file.bytes.splice(length + 8..length + 8, *b"very ");
    let error = file.error();
    assert_eq!(
        error,
        r#"metadata key "llama.attention.scale" is 16, which is not supported; only models without this key are"#
    );
}

#[test]
fn a_missing_tensor_is_named() {
    let error = Patched::new(FIXTURE)
        .rename("blk.1.ffn_down.weight", "blk.1.ffn_d0wn.weight")
        .error();
    assert!(error.contains(r#""blk.1.ffn_down.weight""#), "{error}");
}

#[test]
fn tensors_that_would_not_be_used_are_named() {
    let error = Patched::new(GQA)
        .rename("rope_freqs.weight", "rope_fr3qs.weight")
        .error();
    assert_eq!(
        error,
        r#"the file has tensors that a llama model does not: "rope_fr3qs.weight""#
    );
    let error = Patched::new(FIXTURE)
        .set_u32("llama.block_count", 1)
        .error();
    assert!(
        error.contains(r#""blk.1."#) && error.ends_with("and 5 more"),
        "{error}"
    );
}

#[test]
fn a_wrong_shape_is_named_with_the_right_one() {
    let error = Patched::new(FIXTURE)
        .set_columns("blk.0.attn_q.weight", 32)
        .error();
    assert_eq!(
        error,
        r#"tensor "blk.0.attn_q.weight" has shape [64, 32]; the metadata asks for [64, 64]"#
    );
    let error = Patched::new(FIXTURE)
        .set_columns("output_norm.weight", 63)
        .error();
    assert_eq!(
        error,
        r#"tensor "output_norm.weight" has shape [63]; the metadata asks for [64]"#
    );
}

#[test]
fn a_cache_that_no_memory_can_hold_is_an_error() {
    let options = LoadOptions {
        kv_tokens: NonZeroUsize::new(usize::MAX / 4),
        ..LoadOptions::default()
    };
    let error = message(models::load(&ModelFile::open(FIXTURE).unwrap(), options));
    assert!(error.starts_with("no memory for a KV cache of"), "{error}");
}

#[test]
fn the_cache_has_room_for_what_was_asked_for() {
    let load = |kv_tokens| {
        let options = LoadOptions {
            kv_tokens: NonZeroUsize::new(kv_tokens),
            ..LoadOptions::default()
        };
        models::load(&ModelFile::open(FIXTURE).unwrap(), options)
            .unwrap()
            .kv_layout()
            .blocks
    };
    assert_eq!([load(1), load(BLOCK_SIZE), load(BLOCK_SIZE + 1)], [1, 1, 2]);
    // the fixture's context is 64
    assert_eq!(load(0), 4);
}

#[test]
fn the_spec_describes_the_model() {
    let model = models::load(&ModelFile::open(FIXTURE).unwrap(), LoadOptions::default()).unwrap();
    let spec = model.spec();
    assert_eq!(
        (spec.architecture.as_str(), spec.name.as_str()),
        ("llama", "tiny-q8_0")
    );
    assert_eq!(
        (spec.vocab_size, spec.context_length, spec.layers),
        (267, 64, 2)
    );
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim), (4, 2, 16));
    assert_eq!(spec.quantization, "Q8_0");
    // embedding, two norms and seven matrices a layer, and the last norm
    let layer = 2 * 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64;
    assert_eq!(spec.parameters, 267 * 64 + 2 * layer + 64);
}

#[test]
fn the_memory_needed_is_that_of_the_weights_and_one_context() {
    let file = ModelFile::open(FIXTURE).unwrap();
    let Memory {
        weights_bytes,
        kv_cache_bytes,
        context_length,
    } = models::memory(&file).unwrap();
    assert_eq!(context_length, 64);
    // 64 positions, two layers, keys and values of two heads of 16 values of 2 bytes
    assert_eq!(kv_cache_bytes, 64 * 2 * 2 * 2 * 16 * 2);
    // 34 bytes for 32 weights; the embedding's 267 rows become 272; norms in f32
    let matrices = 272 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
    assert_eq!(weights_bytes, matrices / 32 * 34 + (2 * 2 + 1) * 64 * 4);
}

#[test]
fn progress_reaches_the_total() {
    let mut reports: Vec<LoadProgress> = Vec::new();
    let mut progress = |report| reports.push(report);
    let options = LoadOptions {
        progress: Some(&mut progress),
        ..LoadOptions::default()
    };
    let file = ModelFile::open(FIXTURE).unwrap();
    models::load(&file, options).unwrap();
    assert_eq!(reports.len(), file.tensors().len());
    assert!(reports.windows(2).all(|pair| pair[0].done < pair[1].done));
    let last = reports.last().unwrap();
    assert_eq!(
        (last.done, last.total),
        (
            last.total,
            file.tensors()
                .iter()
                .filter_map(|tensor| tensor.bytes)
                .sum()
        )
    );
}

/// A tail that fails.
struct NoSampler;

impl Tail for NoSampler {
    fn record(&mut self, _: Logits<'_>) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("no sampler".to_owned()))
    }
}

#[test]
fn a_step_refuses_chunks_that_cannot_run() {
    let mut model =
        models::load(&ModelFile::open(FIXTURE).unwrap(), LoadOptions::default()).unwrap();
    let sound = Chunk {
        tokens: &[1],
        position: 0,
        blocks: &[BlockId(0)],
        wants_logits: true,
    };
    let cases = [
        (
            Chunk {
                tokens: &[],
                ..sound
            },
            "it has no tokens",
        ),
        (
            Chunk {
                tokens: &[5, 267],
                ..sound
            },
            "token 267 is not in the vocabulary of 267",
        ),
        (
            Chunk {
                position: 64,
                ..sound
            },
            "it ends at position 65; the context has 64",
        ),
        (
            Chunk {
                position: usize::MAX,
                ..sound
            },
            "it ends at position 18446744073709551615; the context has 64",
        ),
        (
            Chunk {
                position: 16,
                ..sound
            },
            "its 1 cache blocks cover 16 positions; it ends at 17",
        ),
        (
            Chunk {
                blocks: &[BlockId(4)],
                ..sound
            },
            "cache block 4 is not among the cache's 4",
        ),
    ];
    for (chunk, problem) in cases {
        let error = model.forward(&[sound, chunk], &mut NoSampler).unwrap_err();
        assert_eq!(error.to_string(), format!("chunk 1: {problem}"));
    }
}

#[test]
fn an_error_of_the_tail_is_handed_on() {
    let mut model =
        models::load(&ModelFile::open(FIXTURE).unwrap(), LoadOptions::default()).unwrap();
    let chunk = Chunk {
        tokens: &[1],
        position: 0,
        blocks: &[BlockId(0)],
        wants_logits: true,
    };
    assert_eq!(
        model
            .forward(&[chunk], &mut NoSampler)
            .unwrap_err()
            .to_string(),
        "no sampler"
    );
}
