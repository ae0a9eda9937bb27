//! `nucleus models inspect`.

use crate::support::{BUNDLED, Files, gguf_of_architecture, run};

const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

const DIRECTORY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/crates/nucleus-engine/testdata/qwen3"
);

#[test]
fn json_holds_metadata_tensors_and_memory() {
    let object = run(&["models", "inspect", MODEL, "--json"]).json();
    assert_eq!(object["metadata"]["general.architecture"], "llama");
    assert_eq!(object["metadata"]["llama.block_count"], 5);
    let tensors = object["tensors"].as_array().unwrap();
    // Nine tensors in each of five layers, the embedding and the last norm.
    assert_eq!(tensors.len(), 47);
    let embedding = tensors
        .iter()
        .find(|tensor| tensor["name"] == "token_embd.weight")
        .unwrap();
    assert_eq!(embedding["type"], "Q8_0");
    assert_eq!(embedding["shape"], serde_json::json!([8192, 512]));
    // Q8_0: 34 bytes for 32 weights.
    assert_eq!(embedding["bytes"], 8192 * 512 / 32 * 34);
    assert!(object["memory"]["weights_bytes"].as_u64().unwrap() > 16_000_000);
    assert!(object["memory"]["kv_cache_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn text_is_for_people() {
    let run = run(&["models", "inspect", MODEL]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for word in ["llama", "token_embd.weight", "Q8_0", "context", "MB"] {
        assert!(
            run.stdout.contains(word),
            "{word:?} is not in\n{}",
            run.stdout
        );
    }
}

#[test]
fn a_model_that_cannot_run_can_be_looked_at() {
    let files = Files::new();
    let path = files.write("other.gguf", gguf_of_architecture("mamba"));
    let object = run(&["models", "inspect", &path, "--json"]).json();
    assert_eq!(object["metadata"]["general.architecture"], "mamba");
    assert_eq!(object["supported"], false);
}

#[test]
fn a_directory_of_safetensors_files_can_be_looked_at() {
    let object = run(&["models", "inspect", DIRECTORY, "--json"]).json();
    assert_eq!(object["format"], "safetensors");
    assert_eq!(object["gguf_version"], serde_json::Value::Null);
    assert_eq!(object["metadata"]["model_type"], "qwen3");
    let norm = object["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|tensor| tensor["name"] == "model.norm.weight")
        .unwrap();
    assert_eq!(
        (&norm["type"], &norm["bytes"]),
        (&"BF16".into(), &128.into())
    );
    // Keys and values of 2 heads of 32 values in f16, in 2 layers, at 128 positions.
    assert_eq!(object["memory"]["kv_cache_bytes"], 2 * 2 * 32 * 2 * 2 * 128);
    let text = run(&["models", "inspect", DIRECTORY]);
    for word in ["safetensors", "model_type", "self_attn.q_norm.weight", "MB"] {
        assert!(
            text.stdout.contains(word),
            "{word:?} is not in\n{}",
            text.stdout
        );
    }
}

#[test]
fn files_that_are_no_models() {
    let files = Files::new();
    run(&["models", "inspect", "absent.gguf"]).refused(1, &["absent.gguf", "No such file"]);
    run(&[
        "models",
        "inspect",
        &files.write("text.gguf", "not a model"),
    ])
    .refused(1, &["text.gguf", "GGUF"]);
    run(&[
        "models",
        "inspect",
        &files.write("cut.gguf", &BUNDLED[..5_000]),
    ])
    .refused(1, &["cut.gguf"]);
}
