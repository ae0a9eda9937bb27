//! `tokenizer.json` of directories, against transformers (`peers/architectures.py`).

use std::collections::BTreeMap;
use std::path::Path;

use nucleus_engine::chat_template::{ChatTemplate, Message};
use nucleus_engine::checkpoint::Checkpoint;
use nucleus_engine::model_source::ModelSource;
use serde_json::json;

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
        ..PLAIN
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

/// A directory with another `tokenizer.json`, and what its configuration says of special tokens.
fn with_tokenizer(tokenizer: &serde_json::Value, config: &serde_json::Value) -> tempfile::TempDir {
    let directory = copy("qwen3");
    let write = |name: &str, json: &serde_json::Value| {
        std::fs::write(directory.path().join(name), json.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer);
    write("tokenizer_config.json", config);
    directory
}

fn special(id: u32, content: &str) -> serde_json::Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
}

/// A tokenizer as BERT has it.
fn bert() -> serde_json::Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]"), special(2, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "hug": 3, "##s": 4, ".": 5, "a": 6}},
    })
}

fn whole(tokenizer: &Tokenizer) -> EncodeOptions {
    EncodeOptions {
        add_bos: tokenizer.add_bos(),
        add_eos: tokenizer.add_eos(),
        ..SPECIAL
    }
}

#[test]
fn wordpiece_decodes_by_words_and_stands_between_what_its_template_adds() {
    let load = |config| {
        let directory = with_tokenizer(&bert(), &config);
        Tokenizer::from_checkpoint(&Checkpoint::open(directory.path()).unwrap()).unwrap()
    };
    let tokenizer = load(json!({"cls_token": "[CLS]", "sep_token": "[SEP]"}));
    let ids = tokenizer.encode("Hugs a. X", whole(&tokenizer)).unwrap();
    assert_eq!(ids, [1, 3, 4, 6, 5, 0, 2]);
    assert_eq!(tokenizer.decode(&ids, true), "hugs a.");
    assert_eq!(tokenizer.decode(&ids, false), "[CLS] hugs a. [UNK] [SEP]");
    assert_eq!((tokenizer.bos(), tokenizer.text_end()), (Some(1), Some(2)));
    let without = load(json!({"add_bos_token": false, "add_eos_token": false}));
    assert_eq!(without.encode("a", whole(&without)).unwrap(), [6]);
    let mut other = bert();
    other["decoder"]["prefix"] = json!("@@");
    let directory = with_tokenizer(&other, &json!({}));
    assert!(error(directory.path()).contains("a decoder of the kinds WordPiece"));
    let mut spaced = bert();
    spaced["decoder"]["cleanup"] = json!(false);
    let directory = with_tokenizer(&spaced, &json!({}));
    let spaced = Tokenizer::from_checkpoint(&Checkpoint::open(directory.path()).unwrap()).unwrap();
    assert_eq!(spaced.decode(&[3, 4, 5], true), "hugs .");
}

/// A template that only ends texts, as T5's, begins none.
#[test]
fn unigram_ends_where_its_template_says_so() {
    let vocabulary = json!([
        ["<pad>", 0.0],
        ["</s>", 0.0],
        ["<unk>", 0.0],
        ["\u{2581}", -4.0],
        ["\u{2581}a", -3.0],
        ["b", -3.0]
    ]);
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<pad>"), special(1, "</s>"), special(2, "<unk>")],
        "normalizer": null, "pre_tokenizer": metaspace, "decoder": metaspace,
        "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
                           "pair": [], "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false},
    });
    let directory = with_tokenizer(&json, &json!({"eos_token": "</s>"}));
    let tokenizer =
        Tokenizer::from_checkpoint(&Checkpoint::open(directory.path()).unwrap()).unwrap();
    assert!(!tokenizer.add_bos() && tokenizer.add_eos());
    assert_eq!(tokenizer.bos(), None);
    let ids = tokenizer.encode("ab b", whole(&tokenizer)).unwrap();
    assert_eq!(ids, [4, 5, 3, 5, 1]);
    assert_eq!(tokenizer.decode(&ids, true), "ab b");
}

/// A configuration that asks for the end of text, as those of models that compare texts, gets the one it names.
#[test]
fn the_configuration_can_ask_for_an_end() {
    let load = |config| {
        let directory = copy("qwen3");
        std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
        Tokenizer::from_checkpoint(&Checkpoint::open(directory.path()).unwrap()).unwrap()
    };
    let tokenizer = load(r#"{"eos_token": "<|eos|>", "add_eos_token": true}"#);
    assert_eq!((tokenizer.add_eos(), tokenizer.text_end()), (true, Some(1)));
    let plain = tokenizer.encode("the", SPECIAL).unwrap();
    let ended = tokenizer.encode("the", whole(&tokenizer)).unwrap();
    assert_eq!(ended, [plain.as_slice(), &[1]].concat());
    assert!(!load(r#"{"eos_token": "<|eos|>"}"#).add_eos());
    assert!(!load(r#"{"add_eos_token": true}"#).add_eos());
}

/// The library reads a damaged map with a panic, or encodes with one.
#[test]
fn damaged_character_maps_are_refused() {
    let with_map = |map: serde_json::Value| {
        let mut json = bert();
        json["normalizer"] = json!({"type": "Sequence", "normalizers": [
            {"type": "Lowercase"}, {"type": "Precompiled", "precompiled_charsmap": map}]});
        let directory = with_tokenizer(&json, &json!({}));
        error(directory.path())
    };
    let problem = |problem| format!("tokenizer.json: its \"precompiled_charsmap\": {problem}");
    assert_eq!(with_map(json!(null)), problem("it is no string"));
    assert_eq!(
        with_map(json!("A")),
        problem("Encoded text cannot have a 6-bit remainder.")
    );
    let short = "it is shorter than its header";
    assert_eq!(with_map(json!("AAAA")), problem(short));
    // A trie of one unit, whose root says that children are 256 units on.
    let astray = "its trie leads to a place that it does not have";
    assert_eq!(with_map(json!("BAAAAAAEAAA=")), problem(astray));
}
