//! llama.cpp's vocabularies and test vectors.

use std::collections::BTreeMap;
use std::path::Path;

use nucleus_engine::detokenizer::Detokenizer;
use tokenizers::Decoder;
use tokenizers::decoders::wordpiece::WordPiece;

use super::llama_cpp_files::{NOT_RUN, models};
use super::*;

/// Vocabularies with vectors that pass.
const SUPPORTED: [&str; 15] = [
    "bert-bge",
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

/// Vocabularies without vectors.
const WITHOUT_VECTORS: [&str; 2] = ["baichuan", "nomic-bert-moe"];

/// What the others lack.
const REFUSED: [(&str, &str); 2] = [
    ("aquila", "no key \"tokenizer.ggml.pre\""),
    ("gpt-neox", "no key \"tokenizer.ggml.pre\""),
];

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

/// WordPiece forgets capitals, accents and spaces; what is left is what BERT's own decoder makes of the tokens.
fn decoded_by_library(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let spelled = |&id: &u32| {
        let text = tokenizer.token_text(id);
        match (text.strip_prefix('▁'), tokenizer.is_special(id)) {
            (Some(word), _) => word.to_owned(),
            (None, true) => text.to_owned(),
            (None, false) => format!("##{text}"),
        }
    };
    let tokens = ids.iter().map(spelled).collect();
    WordPiece::default().decode(tokens).unwrap()
}

/// Whether the tokens, one after the other, become the text that they are decoded as, but for a space that the vocabulary
/// puts before every text.
fn is_streamed(tokenizer: &Tokenizer, ids: &[u32]) -> bool {
    let mut detokenizer = Detokenizer::default();
    let mut text: String = ids
        .iter()
        .map(|&id| detokenizer.push(tokenizer.token_bytes(id)))
        .collect();
    text += &detokenizer.finish();
    let decoded = tokenizer.decode(ids, true);
    text == decoded || text.strip_prefix(' ') == Some(&decoded)
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
            let decoded = tokenizer.decode(&ids, false);
            let original = match name {
                "bert-bge" => decoded_by_library(&tokenizer, &ids),
                _ => text.clone(),
            };
            if ids != *expected {
                failures.push(format!("{name}: {text:?} is {ids:?}, not {expected:?}"));
            } else if decoded != original {
                failures.push(format!("{name}: {text:?} is decoded as {decoded:?}"));
            } else if !is_streamed(&tokenizer, &ids) {
                failures.push(format!("{name}: {text:?} is streamed as another text"));
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
        assert!(
            SUPPORTED.contains(&name) || is_refused || WITHOUT_VECTORS.contains(&name),
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

/// Texts that llama.cpp takes for others than BERT's own tokenizer does, which is followed here: it does not take Hangul
/// apart, and it leaves out marks that have a width of their own.
const UNLIKE_BERT: [&str; 3] = ["한국어", "각 \u{1100}\u{1161}\u{11a8}", "क\u{94d}षि"];

/// What `peers/llama_cpp_tokens.py --vocabularies` writes.
#[derive(Deserialize)]
struct Awkward {
    vocabularies: BTreeMap<String, Vec<AwkwardText>>,
}

#[derive(Deserialize)]
struct AwkwardText {
    text: String,
    ids: Vec<u32>,
    ids_special: Vec<u32>,
    ids_whole: Vec<u32>,
}

#[test]
fn awkward_texts_have_the_tokens_of_llama_cpp_in_wordpiece_and_unigram_vocabularies() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/llama_cpp_vocabularies.json"
    );
    let awkward: Awkward = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(awkward.vocabularies.len(), 2);
    let mut failures = Vec::new();
    for (name, texts) in &awkward.vocabularies {
        let tokenizer = load(folder, name).unwrap();
        let whole = EncodeOptions {
            add_bos: tokenizer.add_bos(),
            add_eos: tokenizer.add_eos(),
            ..SPECIAL
        };
        for row in texts {
            let text = row.text.as_str();
            let forms = [
                (PLAIN, &row.ids),
                (SPECIAL, &row.ids_special),
                (whole, &row.ids_whole),
            ];
            for (options, expected) in forms {
                let ids = tokenizer.encode(text, options).unwrap();
                let is_unlike = name == "bert-bge" && UNLIKE_BERT.contains(&text);
                if (ids != *expected) != is_unlike {
                    failures.push(format!("{name}: {text:?} is {ids:?}, not {expected:?}"));
                }
            }
            let decoded = tokenizer.decode(&row.ids, false);
            let unknown = row.ids.iter().any(|&id| tokenizer.is_special(id));
            let again = tokenizer.encode(&decoded, PLAIN).unwrap();
            if !is_streamed(&tokenizer, &row.ids) || (!unknown && again != row.ids) {
                failures.push(format!("{name}: {text:?} is decoded as {decoded:?}"));
            }
        }
        println!("{name}: {} texts", texts.len());
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn whole_texts_begin_and_end_as_encoders_want_them() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    for (name, first, last) in [
        ("bert-bge", "[CLS]", "[SEP]"),
        ("nomic-bert-moe", "<s>", "</s>"),
    ] {
        let tokenizer = load(folder, name).unwrap();
        assert!(tokenizer.add_bos() && tokenizer.add_eos(), "{name}");
        assert_eq!(tokenizer.bos(), tokenizer.id_of(first), "{name}");
        assert_eq!(tokenizer.text_end(), tokenizer.id_of(last), "{name}");
    }
    for name in ["llama-spm", "llama-bpe", "qwen2", "gemma-4"] {
        assert!(!load(folder, name).unwrap().add_eos(), "{name}");
    }
}
