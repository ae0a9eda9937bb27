//! WordPiece, on a small vocabulary made by hand.

use super::*;

/// Special tokens, which have no kind of their own here, and parts of words.
const TOKENS: [&str; 16] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "able", "a", "b", "▁hug", "s", "▁.", "▁,", "▁'",
    "▁中", "▁HUG", "▁é",
];

fn keys() -> Keys {
    let kinds = TOKENS.map(|token| if token.starts_with('[') { 3 } else { 1 });
    Keys(HashMap::new())
        .set("tokenizer.ggml.model", Value::String("bert".into()))
        .set(
            "tokenizer.ggml.tokens",
            Value::Strings(TOKENS.iter().collect()),
        )
        .set(
            "tokenizer.ggml.token_type",
            Value::Numbers(kinds.to_vec().into()),
        )
}

/// The tokens of a text as they are spelled.
fn spelled(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<String> {
    let ids = tokenizer.encode(text, options).unwrap();
    let text = |&id: &u32| tokenizer.token_text(id).to_owned();
    ids.iter().map(text).collect()
}

#[test]
fn words_are_cut_into_the_longest_tokens_or_are_unknown() {
    let tokenizer = keys().load().unwrap();
    let spelled = |text| spelled(&tokenizer, text, PLAIN);
    assert_eq!(spelled("unable"), ["▁un", "able"]);
    assert_eq!(spelled("unab hugs"), ["▁un", "a", "b", "▁hug", "s"]);
    // A part goes on with a word and begins none; nothing of a word that cannot be cut is kept.
    assert_eq!(spelled("able unx hug"), ["[UNK]", "[UNK]", "▁hug"]);
    assert_eq!(
        spelled("Hug. hug,hugs"),
        ["▁hug", "▁.", "▁hug", "▁,", "▁hug", "s"]
    );
    assert_eq!(spelled("中un中"), ["▁中", "▁un", "▁中"]);
    assert!(spelled(" \t\r\n\u{0}\u{3000}").is_empty());
}

#[test]
fn a_word_of_more_than_100_characters_is_unknown() {
    let tokenizer = keys().load().unwrap();
    let count = |letters: usize| {
        let text = "un".to_owned() + &"a".repeat(letters);
        tokenizer.encode(&text, PLAIN).unwrap().len()
    };
    assert_eq!((count(98), count(99)), (99, 1));
}

#[test]
fn capitals_and_accents_are_kept_where_the_file_says_so() {
    let key = |name: &str| format!("tokenizer.ggml.normalizer.{name}");
    let with = |lowercase: Option<bool>, strip: Option<bool>| {
        let mut keys = keys();
        if let Some(value) = lowercase {
            keys = keys.set(&key("lowercase"), Value::Bool(value));
        }
        if let Some(value) = strip {
            keys = keys.set(&key("strip_accents"), Value::Bool(value));
        }
        spelled(&keys.load().unwrap(), "HUG é húg", PLAIN)
    };
    assert_eq!(with(None, None), ["▁hug", "[UNK]", "▁hug"]);
    assert_eq!(with(Some(false), None), ["▁HUG", "▁é", "[UNK]"]);
    assert_eq!(with(None, Some(false)), ["▁hug", "▁é", "[UNK]"]);
    assert_eq!(with(Some(false), Some(true)), ["▁HUG", "[UNK]", "▁hug"]);
}

#[test]
fn whole_texts_stand_between_class_and_separator_by_key_or_by_name() {
    let whole = |keys: Keys| {
        let tokenizer = keys.load().unwrap();
        let options = EncodeOptions {
            add_bos: tokenizer.add_bos(),
            add_eos: tokenizer.add_eos(),
            ..SPECIAL
        };
        spelled(&tokenizer, "hug [SEP] hug", options)
    };
    let named = ["[CLS]", "▁hug", "[SEP]", "▁hug", "[SEP]"];
    assert_eq!(whole(keys()), named);
    let by_key = keys()
        .set("tokenizer.ggml.cls_token_id", Value::U32(0))
        .set("tokenizer.ggml.seperator_token_id", Value::U32(1));
    assert_eq!(whole(by_key), ["[PAD]", "▁hug", "[SEP]", "▁hug", "[UNK]"]);
    let without = keys()
        .set("tokenizer.ggml.add_bos_token", Value::Bool(false))
        .set("tokenizer.ggml.add_sep_token", Value::Bool(false));
    assert_eq!(whole(without), ["▁hug", "[SEP]", "▁hug"]);
    let outside = keys().set("tokenizer.ggml.seperator_token_id", Value::U32(16));
    assert!(outside.error().contains("seperator_token_id"));
}

#[test]
fn decoding_puts_words_apart_and_closing_punctuation_to_them() {
    let tokenizer = keys().load().unwrap();
    let ids = tokenizer.encode("[CLS]Unable, hugs . x", SPECIAL).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "unable, hugs.");
    assert_eq!(tokenizer.decode(&ids, false), "[CLS] unable, hugs. [UNK]");
    let hug = tokenizer.id_of("▁hug").unwrap();
    assert_eq!(tokenizer.token_bytes(hug), b" hug");
    assert_eq!(tokenizer.token_bytes(tokenizer.id_of("s").unwrap()), b"s");
    assert_eq!(tokenizer.token_bytes(tokenizer.id_of("▁.").unwrap()), b".");
    assert_eq!(tokenizer.decode(&[hug, 1, hug], true), "hug hug");
}

#[test]
fn text_becomes_no_special_token_unless_it_is_asked_for() {
    let tokenizer = keys().load().unwrap();
    assert!(!tokenizer.encode("[SEP]", PLAIN).unwrap().contains(&3));
    assert_eq!(tokenizer.encode("[SEP]", SPECIAL).unwrap(), [3]);
}

#[test]
fn a_vocabulary_without_unknown_token_is_refused() {
    let mut texts = TOKENS;
    texts[1] = "[X]";
    let keys = || {
        keys().set(
            "tokenizer.ggml.tokens",
            Value::Strings(texts.iter().collect()),
        )
    };
    assert_eq!(
        keys().error(),
        "the model file has neither \"tokenizer.ggml.unknown_token_id\" nor a token \"[UNK]\", so what the vocabulary does not have cannot be encoded"
    );
    let by_key = keys().set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    assert_eq!(by_key.load().unwrap().encode("x", PLAIN).unwrap(), [0]);
}

#[test]
fn long_texts_are_encoded() {
    let tokenizer = keys().load().unwrap();
    for (unit, tokens) in [
        ("hug ", 65_536),
        ("中", 65_536),
        ("a", 1),
        ("\u{301}", 0),
        (".", 65_536),
    ] {
        let ids = tokenizer.encode(&unit.repeat(65_536), PLAIN).unwrap();
        assert_eq!(ids.len(), tokens, "{unit:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_encoded_and_its_decoding_again_alike(text in any::<String>(), words in "[hugsunable., ]{0,40}") {
        thread_local!(static TOKENIZER: Tokenizer = keys().load().unwrap());
        TOKENIZER.with(|tokenizer| {
            tokenizer.encode(&text, SPECIAL).unwrap();
            let ids = tokenizer.encode(&words, PLAIN).unwrap();
            let known: Vec<u32> = ids.iter().copied().filter(|&id| id != 1).collect();
            prop_assert_eq!(tokenizer.encode(&tokenizer.decode(&ids, true), PLAIN).unwrap(), known);
            Ok(())
        })?;
    }
}
