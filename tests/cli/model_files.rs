//! Files that are no models, or none that can run.

use crate::support::{
    BUNDLED, Files, generate, generate_json, gguf_of_architecture, run, run_with_input,
};

/// Every command that reads a model refuses this file with these words.
fn refused(path: &str, words: &[&str]) {
    generate(&["--model", path]).refused(1, words);
    run(&["chat", "--model", path]).refused(1, words);
}

#[test]
fn r0_1_files_that_are_no_models() {
    let files = Files::new();
    refused("absent.gguf", &["absent.gguf", "No such file"]);
    refused(files.path().to_str().unwrap(), &["directory"]);
    refused(&files.write("empty.gguf", ""), &["empty.gguf", "empty"]);
    refused(
        &files.write("text.gguf", "Once upon a time there was a file."),
        &["text.gguf", "GGUF"],
    );
}

#[test]
fn r0_1_a_truncated_model() {
    let files = Files::new();
    for length in [3, 24, 5_000, BUNDLED.len() / 2, BUNDLED.len() - 1] {
        let path = files.write("cut.gguf", &BUNDLED[..length]);
        refused(&path, &["cut.gguf"]);
    }
}

#[test]
fn r0_1_an_unsupported_architecture_is_named() {
    let files = Files::new();
    let path = files.write("other.gguf", gguf_of_architecture("mamba"));
    refused(&path, &["mamba", "not supported"]);
}

/// A tiny random model with a vocabulary and a chat template.
const DIRECTORY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/crates/nucleus-engine/testdata/qwen3"
);

#[test]
fn a_directory_of_safetensors_files_generates_and_chats() {
    let flags = ["--model", DIRECTORY, "--seed", "3"];
    let generated = generate_json(&[&flags[..], &["--ignore-eos"]].concat());
    assert_eq!(generated["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(generated["finish_reason"], "length");
    let chat = run_with_input(
        &[&["chat", "--max-tokens", "5"][..], &flags].concat(),
        "the man\n",
    );
    assert_eq!(chat.code, 0, "{}", chat.stderr);
    assert!(!chat.stdout.is_empty());
}

#[test]
fn a_directory_without_a_tokenizer_is_refused() {
    let files = Files::new();
    for name in ["config.json", "model.safetensors"] {
        let content = std::fs::read(format!("{DIRECTORY}/{name}")).unwrap();
        files.write(name, content);
    }
    refused(files.path().to_str().unwrap(), &["tokenizer.json"]);
    files.write("model.safetensors", "too short for a header");
    refused(
        files.path().to_str().unwrap(),
        &["model.safetensors", "header"],
    );
}
