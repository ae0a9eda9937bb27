//! Files that are no models, or none that can run.

use crate::support::{BUNDLED, Files, generate, gguf_of_architecture, run};

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
