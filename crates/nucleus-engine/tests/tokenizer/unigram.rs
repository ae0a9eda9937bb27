//! Unigram, on a small vocabulary made by hand.

use super::*;

/// Spellings with kinds and scores.
const TOKENS: [(&str, i32, f32); 13] = [
    ("<pad>", 3, 0.0),
    ("</s>", 3, 0.0),
    ("<unk>", 2, 0.0),
    ("▁", 1, -4.0),
    ("a", 1, -3.0),
    ("b", 1, -3.0),
    ("ab", 1, -5.0),
    ("▁a", 1, -3.5),
    ("bab", 1, -7.0),
    ("▁▁", 1, -6.0),
    ("<extra>", 4, 0.0),
    ("é", 1, -6.0),
    ("unused", 5, 0.0),
];

fn keys_of(tokens: &[(&str, i32, f32)]) -> Keys {
    let scores: Vec<f32> = tokens.iter().map(|&(.., score)| score).collect();
    let kinds: Vec<i32> = tokens.iter().map(|&(_, kind, _)| kind).collect();
    let texts = tokens.iter().map(|(text, ..)| text).collect();
    Keys(HashMap::new())
        .set("tokenizer.ggml.model", Value::String("t5".into()))
        .set("tokenizer.ggml.tokens", Value::Strings(texts))
        .set("tokenizer.ggml.token_type", Value::Numbers(kinds.into()))
        .set("tokenizer.ggml.scores", Value::Numbers(scores.into()))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1))
}

fn keys() -> Keys {
    keys_of(&TOKENS)
}

/// The tokens of a text as they are spelled.
fn spelled(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<String> {
    let ids = tokenizer.encode(text, options).unwrap();
    let text = |&id: &u32| tokenizer.token_text(id).to_owned();
    ids.iter().map(text).collect()
}

#[test]
fn the_cut_of_the_greatest_score_is_taken() {
    let tokenizer = keys().load().unwrap();
    let spelled = |text| spelled(&tokenizer, text, PLAIN);
    // ▁a + b: -6.5; ▁ + ab: -9.
    assert_eq!(spelled("ab"), ["▁a", "b"]);
    // ▁ + bab: -11; ▁ + b + ab: -12; ▁ + b + a + b: -13.
    assert_eq!(spelled("bab"), ["▁", "bab"]);
    assert_eq!(spelled("ab ba"), ["▁a", "b", "▁", "b", "a"]);
    // ▁▁ + a: -9; ▁ + ▁a: -7.5.
    assert_eq!(spelled(" a"), ["▁", "▁a"]);
    // ▁▁ + b: -9; ▁ + ▁ + b: -11.
    assert_eq!(spelled(" b"), ["▁▁", "b"]);
    assert!(spelled("").is_empty());
}

#[test]
fn characters_without_a_token_are_unknown_together() {
    let tokenizer = keys().load().unwrap();
    assert_eq!(spelled(&tokenizer, "axyzb", PLAIN), ["▁a", "<unk>", "b"]);
    let ids = tokenizer.encode("axyzb", PLAIN).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "ab");
    assert_eq!(tokenizer.decode(&ids, false), "a<unk>b");
    // What follows keeps its space.
    let ids = tokenizer.encode("a x b", PLAIN).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "a  b");
}

#[test]
fn characters_without_a_token_become_bytes_where_there_are_bytes() {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let bytes = bytes.iter().map(|text| (text.as_str(), 6, 0.0));
    let tokens: Vec<_> = TOKENS.into_iter().chain(bytes).collect();
    let tokenizer = keys_of(&tokens).load().unwrap();
    assert_eq!(spelled(&tokenizer, "aè", PLAIN), ["▁a", "<0xC3>", "<0xA8>"]);
    let text = "ab <0x41> é🐉";
    let ids = tokenizer.encode(text, PLAIN).unwrap();
    assert_eq!(tokenizer.decode(&ids, true), text);
    // What is spelled like a byte is no byte.
    assert!(!ids.contains(&tokenizer.id_of("<0x41>").unwrap()));
}

#[test]
fn spaces_are_added_and_merged_as_the_file_says() {
    let with = |prefix: bool, merge: bool, text: &str| {
        let tokenizer = keys()
            .set("tokenizer.ggml.add_space_prefix", Value::Bool(prefix))
            .set(
                "tokenizer.ggml.remove_extra_whitespaces",
                Value::Bool(merge),
            )
            .load()
            .unwrap();
        let ids = tokenizer.encode(text, PLAIN).unwrap();
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokenizer.token_bytes(id))
            .copied()
            .collect();
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(with(true, true, "  a   b "), " a b");
    assert_eq!(with(false, true, "  a   b "), "a b");
    assert_eq!(with(true, false, " a  b "), "  a  b ");
    assert_eq!(with(false, false, " a  b "), " a  b ");
    assert_eq!(with(true, true, "   "), "");
}

#[test]
fn special_tokens_are_found_and_text_follows_them_as_it_begins() {
    let tokenizer = keys().load().unwrap();
    let whole = EncodeOptions {
        add_bos: tokenizer.add_bos(),
        add_eos: tokenizer.add_eos(),
        ..SPECIAL
    };
    assert!(!tokenizer.add_bos() && tokenizer.add_eos());
    assert_eq!(
        spelled(&tokenizer, "a</s>a<extra>b", whole),
        ["▁a", "</s>", "▁a", "<extra>", "▁", "b", "</s>"]
    );
    // Tokens that users defined are found in any text; control and unused tokens are not.
    let plain = tokenizer.encode("</s><extra>unused", PLAIN).unwrap();
    assert!(plain.contains(&10) && !plain.contains(&1) && !plain.contains(&12));
    let ids = tokenizer.encode("a</s>b", SPECIAL).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), "a</s>b");
    for (index, (text, ..)) in TOKENS.into_iter().enumerate() {
        assert_eq!(tokenizer.id_of(text), Some(index as u32), "{text}");
    }
}

#[test]
fn tokens_over_the_beginning_of_a_word_are_found() {
    let mut tokens = TOKENS;
    tokens[6] = ("a▁b", 1, -1.0);
    let tokenizer = keys_of(&tokens).load().unwrap();
    assert_eq!(spelled(&tokenizer, "aa ba", PLAIN), ["▁a", "a▁b", "a"]);
}

#[test]
fn whole_texts_end_unless_the_file_says_no() {
    let with = |value| {
        keys()
            .set("tokenizer.ggml.add_eos_token", Value::Bool(value))
            .load()
            .unwrap()
    };
    assert!(with(true).add_eos() && !with(false).add_eos());
    let tokenizer = keys()
        .without("tokenizer.ggml.eos_token_id")
        .load()
        .unwrap();
    assert_eq!((tokenizer.text_end(), tokenizer.add_eos()), (None, false));
}

#[test]
fn the_character_map_is_read_from_bytes() {
    let map = |bytes: Vec<i32>| {
        keys()
            .set(
                "tokenizer.ggml.precompiled_charsmap",
                Value::Numbers(bytes.into()),
            )
            .error()
    };
    assert_eq!(
        map(vec![1, 2]),
        "metadata key \"tokenizer.ggml.precompiled_charsmap\" is array of int32, not array of uint8"
    );
}

#[test]
fn what_it_cannot_do_without_is_named() {
    assert!(
        keys()
            .without("tokenizer.ggml.scores")
            .error()
            .contains("tokenizer.ggml.scores")
    );
    let mut tokens = TOKENS;
    tokens[2] = ("x", 1, -2.0);
    assert!(keys_of(&tokens).error().contains("nor a token \"<unk>\""));
    tokens[3] = ("a", 1, -2.0);
    tokens[2] = TOKENS[2];
    assert_eq!(keys_of(&tokens).error(), "tokens 3 and 4 are both \"a\"");
}

#[test]
fn long_texts_are_encoded() {
    let tokenizer = keys().load().unwrap();
    for unit in ["ab", "a ", "é", " "] {
        let text = unit.repeat(65_536);
        let ids = tokenizer.encode(&text, PLAIN).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text, "{unit:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_encoded_and_what_has_tokens_comes_back(text in any::<String>(), known in "[abé ]{0,40}") {
        thread_local!(static TOKENIZER: Tokenizer = keys().load().unwrap());
        TOKENIZER.with(|tokenizer| {
            tokenizer.encode(&text, SPECIAL).unwrap();
            let ids = tokenizer.encode(&known, PLAIN).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, false), known);
            Ok(())
        })?;
    }
}
