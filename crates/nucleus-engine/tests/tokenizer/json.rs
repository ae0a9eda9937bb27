//! `tokenizer.json` of directories, against transformers (`peers/architectures.py`).

use std::collections::BTreeMap;
use std::path::Path;

use nucleus_engine::chat_template::{ChatTemplate, Message};
use nucleus_engine::checkpoint::Checkpoint;
use nucleus_engine::model_source::ModelSource;

use super::*;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");

#[derive(Deserialize)]
struct Expected {
    vocabularies: BTreeMap<String, ExpectedVocabulary>,
}

#[derive(Deserialize)]
struct ExpectedVocabulary {
    adds_bos: bool,
    texts: Vec<ExpectedText>,
}

#[derive(Deserialize)]
struct ExpectedText {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(format!("{TESTDATA}/{name}")).unwrap()
}

fn load(name: &str) -> Tokenizer {
    Tokenizer::from_checkpoint(&checkpoint(name)).unwrap()
}

/// A copy of a directory without its weights' values, to be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(format!("{TESTDATA}/{name}")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    directory
}

fn error(directory: &Path) -> String {
    let checkpoint = Checkpoint::open(directory).unwrap();
    Tokenizer::from_checkpoint(&checkpoint)
        .unwrap_err()
        .to_string()
}

#[test]
fn texts_have_the_tokens_of_transformers() {
    let path = format!("{TESTDATA}/tokenizer_json.json");
    let expected: Expected = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(expected.vocabularies.len(), 4);
    for (name, expected) in expected.vocabularies {
        let tokenizer = load(&name);
        assert_eq!(tokenizer.add_bos(), expected.adds_bos, "{name}");
        assert_eq!(tokenizer.vocab_size(), 267, "{name}");
        for ExpectedText { text, ids, decoded } in expected.texts {
            assert_eq!(
                tokenizer.encode(&text, SPECIAL).unwrap(),
                ids,
                "{name} {text:?}"
            );
            if !text.contains("<|") {
                assert_eq!(tokenizer.decode(&ids, false), decoded, "{name} {text:?}");
            }
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|&id| tokenizer.token_bytes(id))
                .copied()
                .collect();
            assert!(String::from_utf8(bytes).is_ok(), "{name} {text:?}");
        }
    }
}

#[test]
fn control_tokens_are_text_unless_they_are_asked_for() {
    for name in ["qwen3", "gemma3"] {
        let tokenizer = load(name);
        assert_eq!(tokenizer.encode("<|eos|>", SPECIAL).unwrap(), [1], "{name}");
        let plain = tokenizer.encode("<|eos|>", PLAIN).unwrap();
        assert!(plain.len() > 1 && !plain.contains(&1), "{name}");
        assert_eq!(tokenizer.decode(&plain, true), "<|eos|>", "{name}");
        assert_eq!(tokenizer.kind(1), Some(TokenKind::Control));
        assert!(tokenizer.is_end_of_generation(1), "{name}");
        assert_eq!(tokenizer.eos(), Some(1));
    }
}

#[test]
fn names_come_from_the_configuration() {
    assert_eq!(load("qwen3").bos(), None);
    let tokenizer = load("gemma3");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
    let with_bos = EncodeOptions {
        add_bos: true,
        parse_special: false,
    };
    assert_eq!(tokenizer.encode("a", with_bos).unwrap(), [0, 265]);
    assert_eq!(tokenizer.token_bytes(258), b" ");
    assert_eq!(tokenizer.token_bytes(2 + 0xc3), [0xc3]);
    assert_eq!(tokenizer.id_of("▁the"), Some(264));
}

#[test]
fn what_a_directory_lacks_is_named() {
    let directory = copy("qwen3");
    let file = directory.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["decoder"] = serde_json::Value::Null;
    std::fs::write(&file, json.to_string()).unwrap();
    assert!(
        error(directory.path()).contains("a decoder of the kinds none, which is not supported")
    );
    std::fs::write(&file, "{").unwrap();
    assert!(error(directory.path()).starts_with("tokenizer.json: "));
    std::fs::remove_file(&file).unwrap();
    assert!(error(directory.path()).starts_with("the directory has no tokenizer.json"));
}

#[test]
fn a_model_with_fewer_outputs_than_tokens_is_refused() {
    let directory = copy("qwen3");
    let file = directory.path().join("config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace("\"vocab_size\": 267", "\"vocab_size\": 266"),
    )
    .unwrap();
    assert_eq!(
        error(directory.path()),
        "\"vocab_size\" is 266, but the vocabulary has 267 tokens"
    );
}

#[test]
fn chat_templates_come_from_the_configuration_or_a_file() {
    let messages = [Message::new("user", "Hi")];
    let directory = copy("qwen3");
    let render = || {
        let template = ModelSource::open(directory.path())
            .unwrap()
            .chat_template()
            .unwrap();
        template.map(|template: ChatTemplate| template.render(&messages).unwrap())
    };
    assert_eq!(
        render().unwrap(),
        "<|bos|>user\nHi<|eos|>\n<|bos|>assistant\n"
    );
    let named = r#"{"chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ bos_token }}y"}],
                    "bos_token": {"content": "<b>"}}"#;
    std::fs::write(directory.path().join("tokenizer_config.json"), named).unwrap();
    assert_eq!(render().unwrap(), "<b>y");
    std::fs::write(
        directory.path().join("chat_template.jinja"),
        "{{ messages[0].content }}",
    )
    .unwrap();
    assert_eq!(render().unwrap(), "Hi");
    assert!(
        ModelSource::open(format!("{TESTDATA}/gemma"))
            .unwrap()
            .chat_template()
            .unwrap()
            .is_none()
    );
}
