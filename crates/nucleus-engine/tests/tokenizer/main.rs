//! The tokenizer: against llama.cpp on the bundled vocabulary, on small vocabularies made by hand, and on unsound ones.

mod chat_templates;
mod json;
mod llama_cpp;
#[path = "../llama_cpp_files/mod.rs"]
mod llama_cpp_files;
mod unigram;
mod wordpiece;

use std::collections::HashMap;

use nucleus_engine::gguf::{Metadata, ModelFile, Value};
use nucleus_engine::tokenizer::{
    EncodeOptions, MAX_TEXT_BYTES, TokenKind, Tokenizer, TokenizerError,
};
use proptest::prelude::*;
use serde::Deserialize;

const PLAIN: EncodeOptions = EncodeOptions {
    add_bos: false,
    add_eos: false,
    parse_special: false,
};
const SPECIAL: EncodeOptions = EncodeOptions {
    parse_special: true,
    ..PLAIN
};

// The bundled vocabulary.

fn bundled() -> Tokenizer {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
    );
    Tokenizer::from_gguf(ModelFile::open(path).unwrap().metadata()).unwrap()
}

#[derive(Deserialize)]
struct Vectors {
    texts: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    text: String,
    ids: Vec<u32>,
    ids_special: Vec<u32>,
}

#[test]
fn awkward_texts_have_the_tokens_of_llama_cpp() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/llama_cpp_tokens.json"
    );
    let vectors: Vectors = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(vectors.texts.len() >= 50);
    let tokenizer = bundled();
    for Vector {
        text,
        ids,
        ids_special,
    } in vectors.texts
    {
        assert_eq!(tokenizer.encode(&text, PLAIN).unwrap(), ids, "{text:?}");
        assert_eq!(
            tokenizer.encode(&text, SPECIAL).unwrap(),
            ids_special,
            "{text:?} with special tokens"
        );
        assert_eq!(tokenizer.decode(&ids, true), text);
        assert_eq!(tokenizer.decode(&ids_special, false), text);
    }
}

#[test]
fn special_tokens_stand_for_no_text_and_end_a_generation() {
    let tokenizer = bundled();
    assert_eq!(tokenizer.vocab_size(), 8192);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()),
        (Some(0), Some(2), false)
    );
    assert_eq!(tokenizer.end_of_generation(), [0, 2]);
    assert!(tokenizer.is_end_of_generation(2) && !tokenizer.is_end_of_generation(1));
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(3));
    assert_eq!(
        (tokenizer.token_text(2), tokenizer.token_bytes(2)),
        ("<|im_end|>", b"".as_slice())
    );
    assert_eq!(tokenizer.id_of("<|im_end|>"), Some(2));
}

#[test]
fn more_tokens_can_end_a_generation() {
    let tokenizer = bundled().with_end_of_generation(&[5, 2, 9000, 5]);
    assert_eq!(tokenizer.end_of_generation(), [0, 2, 5]);
    assert!(tokenizer.is_end_of_generation(5) && !tokenizer.is_special(5));
}

#[test]
fn tokens_have_the_bytes_they_stand_for() {
    let tokenizer = bundled();
    let the = tokenizer.id_of("Ġthe").unwrap();
    assert_eq!(tokenizer.token_bytes(the), b" the");
    let [first, second] = tokenizer.encode("é", PLAIN).unwrap()[..] else {
        panic!("é is one token here")
    };
    assert_eq!(
        (tokenizer.token_bytes(first), tokenizer.token_bytes(second)),
        ([0xc3].as_slice(), [0xa9].as_slice())
    );
    assert_eq!(tokenizer.decode(&[first], true), "\u{fffd}");
}

#[test]
fn ids_outside_the_vocabulary_stand_for_nothing() {
    let tokenizer = bundled();
    for id in [8192, u32::MAX] {
        assert_eq!(
            (
                tokenizer.token_bytes(id),
                tokenizer.token_text(id),
                tokenizer.kind(id)
            ),
            (b"".as_slice(), "", None)
        );
        assert!(!tokenizer.is_special(id));
    }
    assert_eq!(tokenizer.decode(&[8192, 2], false), "<|im_end|>");
    assert_eq!(tokenizer.id_of("no such token"), None);
}

#[test]
fn the_beginning_of_text_is_added_on_request() {
    let tokenizer = bundled();
    let ids = tokenizer
        .encode(
            "a",
            EncodeOptions {
                add_bos: true,
                ..PLAIN
            },
        )
        .unwrap();
    assert_eq!((ids[0], ids.len()), (0, 2));
}

#[test]
fn a_text_that_is_too_long_is_refused() {
    let error = bundled()
        .encode(&"a".repeat(MAX_TEXT_BYTES + 1), PLAIN)
        .unwrap_err();
    assert!(
        matches!(error, TokenizerError::TextTooLong { .. }),
        "{error}"
    );
}

/// G1 of the research: runs that take other tokenizers quadratic time.
#[test]
fn long_runs_are_encoded() {
    let tokenizer = bundled();
    for unit in ["A", "us", " ", "\n", "\u{301}", "🐉", "<|im_end"] {
        let text = unit.repeat(131_072);
        let ids = tokenizer.encode(&text, SPECIAL).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

#[test]
fn a_tokenizer_is_shared_between_threads() {
    let tokenizer = bundled();
    let expected = tokenizer.encode("Once upon a time", PLAIN).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(
                    tokenizer.encode("Once upon a time", PLAIN).unwrap(),
                    expected
                );
            });
        }
    });
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in any::<String>()) {
        thread_local!(static TOKENIZER: Tokenizer = bundled());
        TOKENIZER.with(|tokenizer| {
            for options in [PLAIN, SPECIAL] {
                let ids = tokenizer.encode(&text, options).unwrap();
                prop_assert_eq!(&tokenizer.decode(&ids, false), &text);
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
                prop_assert!(options == SPECIAL || bytes == text.as_bytes());
            }
            Ok(())
        })?;
    }

    #[test]
    fn any_ids_can_be_decoded(ids in prop::collection::vec(0u32..9000, 0..50)) {
        thread_local!(static TOKENIZER: Tokenizer = bundled());
        TOKENIZER.with(|tokenizer| tokenizer.decode(&ids, true));
    }
}

// Small vocabularies: ids 0 to 255 are the bytes in the order of their characters.

/// A model file's keys, some of them changed.
struct Keys(HashMap<String, Value>);

impl Keys {
    /// The bytes, the given tokens of their kinds from id 256 on, and the given merges.
    fn new(pre: &str, tokens: &[(&str, i32)], merges: &[&str]) -> Self {
        let (texts, kinds): (Vec<String>, Vec<i32>) = byte_characters()
            .map(|text| (text, 1))
            .chain(tokens.iter().map(|&(text, kind)| (text.into(), kind)))
            .unzip();
        Self(HashMap::new())
            .set("general.architecture", Value::String("llama".into()))
            .set("tokenizer.ggml.model", Value::String("gpt2".into()))
            .set("tokenizer.ggml.pre", Value::String(pre.into()))
            .set(
                "tokenizer.ggml.tokens",
                Value::Strings(texts.iter().collect()),
            )
            .set("tokenizer.ggml.token_type", Value::Numbers(kinds.into()))
            .set(
                "tokenizer.ggml.merges",
                Value::Strings(merges.iter().collect()),
            )
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.0.insert(key.to_owned(), value);
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.0.remove(key);
        self
    }

    fn load(self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_gguf(&Metadata::new(self.0))
    }

    fn error(self) -> String {
        self.load().unwrap_err().to_string()
    }
}

/// The byte alphabet, printable bytes first: `!` is 0.
fn byte_characters() -> impl Iterator<Item = String> {
    let printable = ('!'..='~')
        .chain('\u{a1}'..='\u{ac}')
        .chain('\u{ae}'..='\u{ff}');
    printable.chain('\u{100}'..='\u{143}').map(String::from)
}

fn small() -> Keys {
    Keys::new(
        "gpt-2",
        &[("he", 1), ("ll", 1), ("hell", 1), ("Ġ!", 1)],
        &["h e", "l l", "he ll", "Ġ !"],
    )
}

fn byte_id(byte: u8) -> u32 {
    u32::from(byte - b'!')
}

#[test]
fn merges_are_applied_by_rank() {
    let tokenizer = small().load().unwrap();
    assert_eq!(
        tokenizer.encode("hello", PLAIN).unwrap(),
        [258, byte_id(b'o')]
    );
    assert_eq!(tokenizer.encode("he !", PLAIN).unwrap(), [256, 259]);
    assert_eq!(tokenizer.id_of("hell"), Some(258));
}

#[test]
fn whole_words_win_over_merges_where_the_vocabulary_says_so() {
    let words = |pre| {
        Keys::new(
            pre,
            &[("ab", 1), ("bc", 1), ("abc", 1)],
            &["a b", "b c", "a bc"],
        )
        .load()
        .unwrap()
    };
    assert_eq!(
        words("gpt-2").encode("abc", PLAIN).unwrap(),
        [256, byte_id(b'c')]
    );
    assert_eq!(words("llama-bpe").encode("abc", PLAIN).unwrap(), [258]);
}

#[test]
fn control_tokens_are_found_on_request_and_user_defined_ones_always() {
    let tokenizer = Keys::new("gpt-2", &[("<c>", 3), ("<u>", 4), ("<c><u>", 3)], &[])
        .load()
        .unwrap();
    let plain = tokenizer.encode("<c><u>", PLAIN).unwrap();
    assert_eq!(plain, [byte_id(b'<'), byte_id(b'c'), byte_id(b'>'), 257]);
    assert_eq!(tokenizer.encode("<c><c><u>", SPECIAL).unwrap(), [256, 258]);
    assert_eq!(
        (tokenizer.token_bytes(257), tokenizer.is_special(257)),
        (b"<u>".as_slice(), false)
    );
    assert_eq!(tokenizer.kind(256), Some(TokenKind::Control));
}

/// Or a user could end a turn: with `ignore_merges` a piece is looked up whole.
#[test]
fn a_control_token_never_comes_from_plain_text() {
    let tokenizer = Keys::new("llama-bpe", &[("STOP", 3)], &[]).load().unwrap();
    assert!(!tokenizer.encode("STOP", PLAIN).unwrap().contains(&256));
    assert_eq!(tokenizer.encode("STOP", SPECIAL).unwrap(), [256]);
}

#[test]
fn user_defined_tokens_are_spelled_as_they_are() {
    let tokenizer = Keys::new("gpt-2", &[("  é", 4), ("<0x41>", 6), ("plain ▁", 1)], &[])
        .load()
        .unwrap();
    assert_eq!(tokenizer.decode(&[256, 257, 258], true), "  éAplain ▁");
    assert_eq!(
        tokenizer.encode("a  é", PLAIN).unwrap(),
        [byte_id(b'a'), 256]
    );
}

#[test]
fn the_file_and_the_names_of_tokens_say_what_ends_a_generation() {
    let tokens = [
        ("<|eot_id|>", 3),
        ("</s>", 3),
        ("<|im_end|>", 4),
        ("<EOT>", 1),
    ];
    let keys = || Keys::new("gpt-2", &tokens, &[]);
    assert_eq!(keys().load().unwrap().end_of_generation(), [256, 258]);
    let tokenizer = keys()
        .set("tokenizer.ggml.eos_token_id", Value::U32(257))
        .load()
        .unwrap();
    assert_eq!(
        (tokenizer.eos(), tokenizer.end_of_generation()),
        (Some(257), [256, 257, 258].as_slice())
    );
    assert!(tokenizer.is_special(258));
}

#[test]
fn the_end_of_a_harmony_message_ends_no_generation() {
    let tokens = [("<|end|>", 3), ("<|return|>", 3), ("<|call|>", 3)];
    assert_eq!(
        Keys::new("gpt-4o", &tokens, &[])
            .load()
            .unwrap()
            .end_of_generation(),
        [257, 258]
    );
    assert_eq!(
        Keys::new("gpt-4o", &tokens[..2], &[])
            .load()
            .unwrap()
            .end_of_generation(),
        [256, 257]
    );
}

#[test]
fn whether_texts_begin_with_bos_is_the_files_word_then_the_pre_tokenizers() {
    let keys = |pre| {
        Keys::new(pre, &[("<s>", 3)], &[]).set("tokenizer.ggml.bos_token_id", Value::U32(256))
    };
    let add_bos = |keys: Keys| keys.load().unwrap().add_bos();
    assert!(!add_bos(keys("gpt-2")));
    assert!(add_bos(keys("llama-bpe")));
    assert!(add_bos(
        keys("gpt-2").set("tokenizer.ggml.add_bos_token", Value::Bool(true))
    ));
    assert!(!add_bos(
        keys("llama-bpe").set("tokenizer.ggml.add_bos_token", Value::Bool(false))
    ));
    assert!(!add_bos(
        keys("llama-bpe").without("tokenizer.ggml.bos_token_id")
    ));
}

#[test]
fn a_byte_that_only_rare_characters_have_may_be_missing_until_a_text_has_it() {
    let texts: Vec<String> = byte_characters().filter(|text| text != "ñ").collect(); // byte f1
    let keys = small()
        .set(
            "tokenizer.ggml.tokens",
            Value::Strings(texts.iter().collect()),
        )
        .set(
            "tokenizer.ggml.merges",
            Value::Strings([""; 0].iter().collect()),
        )
        .without("tokenizer.ggml.token_type");
    let tokenizer = keys.load().unwrap();
    assert!(tokenizer.encode("ñ🐉", PLAIN).is_ok());
    let error = tokenizer.encode("\u{40000}", PLAIN).unwrap_err();
    assert!(
        matches!(error, TokenizerError::MissingByte { byte: 0xf1 }),
        "{error}"
    );
}

// SentencePiece.

/// An unknown token, a control token, the bytes, and the given tokens with their scores from id 258 on.
fn sentencepiece(tokens: &[(&str, f32)]) -> Keys {
    let bytes = (0..=255).map(|byte: u8| (format!("<0x{byte:02X}>"), 6, 0.0));
    let text = tokens
        .iter()
        .map(|&(text, score)| (text.to_owned(), 1, score));
    let all: Vec<(String, i32, f32)> = [("<unk>".into(), 2, 0.0), ("<s>".into(), 3, 0.0)]
        .into_iter()
        .chain(bytes)
        .chain(text)
        .collect();
    let scores: Vec<f32> = all.iter().map(|&(_, _, score)| score).collect();
    let kinds: Vec<i32> = all.iter().map(|&(_, kind, _)| kind).collect();
    let texts = all.iter().map(|(text, _, _)| text).collect();
    Keys(HashMap::new())
        .set("tokenizer.ggml.model", Value::String("llama".into()))
        .set("tokenizer.ggml.tokens", Value::Strings(texts))
        .set("tokenizer.ggml.token_type", Value::Numbers(kinds.into()))
        .set("tokenizer.ggml.scores", Value::Numbers(scores.into()))
        .set("tokenizer.ggml.bos_token_id", Value::U32(1))
}

fn small_sentencepiece() -> Keys {
    sentencepiece(&[
        ("▁", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("c", -9.0),
        ("ab", -2.0),
        ("bc", -1.0),
        ("▁a", -3.0),
        ("▁▁", -1.5),
    ])
}

#[test]
fn the_pair_of_the_highest_score_is_merged_first() {
    let tokenizer = small_sentencepiece().load().unwrap();
    let spelled = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        ids.iter()
            .map(|&id| tokenizer.token_text(id).to_owned())
            .collect()
    };
    assert_eq!(spelled("abc"), ["▁a", "bc"]);
    assert_eq!(spelled("ab"), ["▁", "ab"]);
    assert_eq!(spelled("a  b"), ["▁a", "▁▁", "b"]);
    // Of equal scores the leftmost: of three spaces after the prefix, the first two.
    assert_eq!(spelled("  b"), ["▁▁", "▁", "b"]);
    assert!(spelled("").is_empty());
    assert!(tokenizer.add_bos());
}

#[test]
fn characters_without_a_token_become_bytes() {
    let tokenizer = small_sentencepiece().load().unwrap();
    let ids = tokenizer.encode("aé", PLAIN).unwrap();
    let texts: Vec<&str> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
    assert_eq!(texts, ["▁a", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.decode(&ids, true), "aé");
    assert_eq!(tokenizer.token_bytes(ids[1]), [0xc3]);
    assert_eq!(tokenizer.id_of("<0xC3>"), Some(ids[1]));
}

#[test]
fn a_space_is_added_where_text_begins_unless_the_file_says_no() {
    let text = "b<s>b";
    let encode = |keys: Keys| {
        let tokenizer = keys.load().unwrap();
        let ids = tokenizer.encode(text, SPECIAL).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
        let texts: Vec<String> = ids
            .iter()
            .map(|&id| tokenizer.token_text(id).to_owned())
            .collect();
        texts.concat()
    };
    assert_eq!(encode(small_sentencepiece()), "▁b<s>▁b");
    let without = small_sentencepiece().set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    assert_eq!(encode(without), "b<s>b");
}

#[test]
fn a_control_token_never_comes_from_merged_text() {
    let tokenizer = sentencepiece(&[
        ("<", -1.0),
        ("s", -1.0),
        ("<s", -1.0),
        (">", -1.0),
        ("s>", -1.0),
    ])
    .load()
    .unwrap();
    assert!(!tokenizer.encode("<s>", PLAIN).unwrap().contains(&1));
    assert_eq!(tokenizer.encode("<s>", SPECIAL).unwrap(), [1]);
}

#[test]
fn unsound_scores_are_refused() {
    let scores = |scores: Vec<f32>| {
        small_sentencepiece()
            .set("tokenizer.ggml.scores", Value::Numbers(scores.into()))
            .error()
    };
    assert_eq!(
        scores(vec![0.0; 3]),
        "\"tokenizer.ggml.scores\" has 3 elements, but the vocabulary has 266 tokens"
    );
    let mut nan = vec![0.0; 266];
    nan[7] = f32::NAN;
    assert_eq!(
        scores(nan),
        "token 7 has the score NaN (tokenizer.ggml.scores); scores must be finite"
    );
    assert!(
        small_sentencepiece()
            .without("tokenizer.ggml.scores")
            .error()
            .contains("tokenizer.ggml.scores")
    );
}

#[test]
fn long_texts_are_encoded_by_sentencepiece() {
    let tokenizer = small_sentencepiece().load().unwrap();
    for unit in ["a", "ab", " ", "abc ", "é", "🐉"] {
        let text = unit.repeat(131_072);
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
}

proptest! {
    #[test]
    fn decoding_undoes_sentencepiece(text in "[abc é🐉▁\n]{0,40}") {
        thread_local!(static TOKENIZER: Tokenizer = small_sentencepiece().load().unwrap());
        TOKENIZER.with(|tokenizer| {
            let ids = tokenizer.encode(&text, PLAIN).unwrap();
            // `▁` itself is a space in such vocabularies.
            prop_assert_eq!(tokenizer.decode(&ids, true), text.replace('▁', " "));
            Ok(())
        })?;
    }
}

// Unsound vocabularies.

#[test]
fn other_tokenizers_are_refused_by_name() {
    let error = small()
        .set("tokenizer.ggml.model", Value::String("rwkv".into()))
        .error();
    assert_eq!(
        error,
        "tokenizer model \"rwkv\" is not supported; \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece), \"gemma4\", \"bert\" (WordPiece) and \"t5\" (Unigram) are"
    );
    let error = small()
        .set("tokenizer.ggml.pre", Value::String("new-bpe".into()))
        .error();
    assert!(
        error.contains("\"new-bpe\"") && error.contains("llama-bpe"),
        "{error}"
    );
    assert!(matches!(
        small().without("tokenizer.ggml.pre").load(),
        Err(TokenizerError::MissingPre)
    ));
}

#[test]
fn missing_keys_are_named() {
    for key in [
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.merges",
    ] {
        assert_eq!(
            small().without(key).error(),
            format!("the model file has no metadata key {key:?}")
        );
    }
    assert!(small().without("tokenizer.ggml.token_type").load().is_ok());
}

#[test]
fn keys_of_wrong_types_are_named() {
    for key in [
        "model",
        "pre",
        "tokens",
        "token_type",
        "merges",
        "eos_token_id",
        "add_bos_token",
    ] {
        let key = format!("tokenizer.ggml.{key}");
        let error = small().set(&key, Value::F64(1.0)).error();
        assert!(
            error.starts_with(&format!("metadata key {key:?} is float64, not ")),
            "{error}"
        );
    }
}

#[test]
fn a_vocabulary_without_tokens_is_refused() {
    let none = Value::Strings([""; 0].iter().collect());
    assert_eq!(
        small().set("tokenizer.ggml.tokens", none).error(),
        "the vocabulary has 0 tokens; it must have from 1 to 2147483647"
    );
}

#[test]
fn lists_of_different_lengths_are_refused() {
    let error = small()
        .set(
            "tokenizer.ggml.token_type",
            Value::Numbers(vec![1; 259].into()),
        )
        .error();
    assert_eq!(
        error,
        "\"tokenizer.ggml.token_type\" has 259 elements, but the vocabulary has 260 tokens"
    );
    let error = small().set("llama.vocab_size", Value::U32(259)).error();
    assert_eq!(
        error,
        "\"llama.vocab_size\" is 259, but the vocabulary has 260 tokens"
    );
    assert!(
        small()
            .set("llama.vocab_size", Value::U32(512))
            .load()
            .is_ok()
    );
}

#[test]
fn kinds_are_1_to_6() {
    for kind in [0, 7, -1, i32::MAX] {
        let error = Keys::new("gpt-2", &[("x y", kind)], &[]).error();
        assert_eq!(
            error,
            format!("token 256 is of kind {kind} (tokenizer.ggml.token_type); kinds are 1 to 6")
        );
    }
}

#[test]
fn a_token_twice_is_refused() {
    let twice = |kind| Keys::new("gpt-2", &[("ab", kind), ("xyz", kind), ("ab", 1)], &[]).error();
    assert_eq!(twice(3), "tokens 256 and 258 are both \"ab\"");
    assert_eq!(
        Keys::new("gpt-2", &[("!", 1)], &[]).error(),
        "tokens 0 and 256 are both \"!\""
    );
    assert_eq!(
        Keys::new("gpt-2", &[("!", 3)], &[]).error(),
        "tokens 0 and 256 are both \"!\""
    );
    assert!(Keys::new("gpt-2", &[("", 5), ("", 5)], &[]).load().is_ok());
}

#[test]
fn a_byte_without_a_token_is_refused() {
    let texts: Vec<String> = byte_characters()
        .map(|text| if text == "Ġ" { "space".into() } else { text })
        .collect();
    let error = small().set(
        "tokenizer.ggml.tokens",
        Value::Strings(texts.iter().collect()),
    );
    let error = error
        .set(
            "tokenizer.ggml.merges",
            Value::Strings([""; 0].iter().collect()),
        )
        .without("tokenizer.ggml.token_type")
        .error();
    assert_eq!(
        error,
        "no token stands for the byte 0x20, so text with it cannot be encoded"
    );
}

#[test]
fn merges_are_two_tokens_that_make_a_third() {
    let error = |merge| Keys::new("gpt-2", &[("ab", 1)], &["a b", merge]).error();
    for malformed in ["", "ab", " ab", "ab ", " ", "a b c", "a  b"] {
        assert_eq!(
            error(malformed),
            format!("merge 1 is {malformed:?}; it must be two symbols with a space between")
        );
    }
    assert_eq!(
        error("xy b"),
        "merge 1 is \"xy b\", but \"xy\" is not in the vocabulary"
    );
    assert_eq!(
        error("b xy"),
        "merge 1 is \"b xy\", but \"xy\" is not in the vocabulary"
    );
    // Longer than every token, for which the library has no room.
    assert_eq!(
        error("ab ab"),
        "merge 1 is \"ab ab\", but \"abab\" is not in the vocabulary"
    );
}

#[test]
fn special_ids_are_in_the_vocabulary() {
    for key in ["bos", "eos", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let error = small().set(&key, Value::U32(260)).error();
        assert_eq!(
            error,
            format!("{key:?} is 260, but the vocabulary has 260 tokens")
        );
        assert!(small().set(&key, Value::U32(259)).load().is_ok());
    }
    let error = small()
        .set("tokenizer.ggml.add_bos_token", Value::Bool(true))
        .error();
    assert!(
        error.starts_with("\"tokenizer.ggml.add_bos_token\" is true, but"),
        "{error}"
    );
}
