//! llama.cpp's vocabularies and test vectors, fetched once into the target directory (that needs Python's pip and a network). Where they
//! cannot be had, the tests here say that they did not run, or fail if `NUCLEUS_LLAMA_CPP_VECTORS` is `required`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::*;

/// Vocabularies with vectors that pass.
const SUPPORTED: [&str; 14] = [
    "command-r",
    "deepseek-coder",
    "deepseek-llm",
    "falcon",
    "gemma-4",
    "gpt-2",
    "llama-bpe",
    "llama-spm",
    "mpt",
    "phi-3",
    "qwen2",
    "qwen35",
    "refact",
    "starcoder",
];

/// What the others lack.
const REFUSED: [(&str, &str); 4] = [
    ("bert-bge", "tokenizer model \"bert\" is not supported"),
    ("nomic-bert-moe", "tokenizer model \"t5\" is not supported"),
    ("aquila", "no key \"tokenizer.ggml.pre\""),
    ("gpt-neox", "no key \"tokenizer.ggml.pre\""),
];

/// What is said where they cannot be fetched.
pub(crate) const NOT_RUN: &str = "not run: llama.cpp's vocabularies cannot be fetched";

/// The folder of the vocabularies; `None` where they cannot be fetched.
pub(crate) fn models() -> Option<&'static Path> {
    static MODELS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let fetch = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llama.cpp-models");
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/tokenizer/fetch_llama_cpp_models.sh"
        );
        let status = Command::new(script).arg(&folder).status();
        let fetched = status.is_ok_and(|status| status.success());
        let required =
            std::env::var_os("NUCLEUS_LLAMA_CPP_VECTORS").is_some_and(|value| value == "required");
        assert!(
            fetched || !required,
            "llama.cpp's vocabularies are required and cannot be fetched"
        );
        if !fetched {
            return None;
        }
        Some(folder)
    };
    MODELS.get_or_init(fetch).as_deref()
}

fn load(folder: &Path, name: &str) -> Result<Tokenizer, TokenizerError> {
    let file = ModelFile::open(folder.join(format!("ggml-vocab-{name}.gguf"))).unwrap();
    Tokenizer::from_gguf(file.metadata())
}

/// Texts and their tokens.
fn vectors(folder: &Path, name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |end: &str| {
        std::fs::read_to_string(folder.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap()
    };
    let (texts, ids) = (read("inp"), read("out"));
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<&str> = ids.lines().collect();
    assert!(texts.len() >= ids.len() && ids.len() > 40, "{name}");
    let parse = |line: &str| {
        line.split_whitespace()
            .map(|id| id.parse().unwrap())
            .collect()
    };
    texts
        .into_iter()
        .map(str::to_owned)
        .zip(ids.into_iter().map(parse))
        .collect()
}

#[test]
fn every_vector_of_llama_cpp_passes() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    let mut failures = Vec::new();
    for name in SUPPORTED {
        let tokenizer = load(folder, name).unwrap();
        let vectors = vectors(folder, name);
        let mut passed = 0;
        for (text, expected) in &vectors {
            let ids = tokenizer.encode(text, PLAIN).unwrap();
            if ids != *expected {
                failures.push(format!("{name}: {text:?} is {ids:?}, not {expected:?}"));
            } else if tokenizer.decode(&ids, false) != *text {
                failures.push(format!(
                    "{name}: {text:?} is decoded as {:?}",
                    tokenizer.decode(&ids, false)
                ));
            } else {
                passed += 1;
            }
        }
        println!("{name}: {passed} of {}", vectors.len());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn other_vocabularies_of_llama_cpp_are_refused_by_name() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    for (name, message) in REFUSED {
        let error = load(folder, name).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
    }
}

/// So that none that a later version adds goes unnoticed.
#[test]
fn every_vocabulary_of_llama_cpp_is_known() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        let Some(name) = file
            .strip_prefix("ggml-vocab-")
            .and_then(|name| name.strip_suffix(".gguf"))
        else {
            continue;
        };
        let is_refused = REFUSED.iter().any(|(refused, _)| *refused == name);
        // baichuan has no vectors.
        assert!(
            SUPPORTED.contains(&name) || is_refused || name == "baichuan",
            "{name}"
        );
        assert_eq!(load(folder, name).is_ok(), !is_refused, "{name}");
    }
}

#[test]
fn special_tokens_of_phi_3_take_the_white_space_after_them() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    let tokenizer = load(folder, "phi-3").unwrap();
    let id = |name| tokenizer.id_of(name).unwrap();
    let ids = tokenizer
        .encode("<|user|>\n \tHi<|end|>\n<|assistant|>\n", SPECIAL)
        .unwrap();
    assert_eq!(
        ids,
        [
            id("<|user|>"),
            id("▁Hi"),
            id("<|end|>"),
            id("<|assistant|>")
        ]
    );
    let spaced = tokenizer.encode("<s> Hi", SPECIAL).unwrap();
    assert_eq!(spaced[0], id("<s>"));
    assert_eq!(tokenizer.decode(&spaced[1..], true), " Hi");
    assert!(tokenizer.add_bos() && !tokenizer.add_eos());
    assert!(tokenizer.is_end_of_generation(id("<|end|>")));
}
