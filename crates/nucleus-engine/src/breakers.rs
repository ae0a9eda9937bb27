//! DRY's sequence breakers: a text becomes the token sequences in which it can be written.
//!
//! A text is rarely a token by itself: `:` is part of `:\n` and of `]:`, and a longer text may begin in the middle of one
//! token and end in another. As in llama.cpp (and KoboldCpp, which it has this from; `src/llama-sampler.cpp`,
//! `get_overlapping_token_sequences`), the sequences are every token that has the text in it, and, for every token that ends with a
//! beginning of the text, that token with the tokens of the rest.

use crate::tokenizer::{EncodeOptions, Tokenizer, TokenizerError};

/// The longest text, in bytes, as long as llama.cpp's. Each byte costs a look at every token.
pub const MAX_BREAKER_BYTES: usize = 40;

/// The most tokens of a sequence behind its first, as in llama.cpp; a longer rest is cut, so that its beginning breaks.
const MAX_TAIL: usize = 20;

/// The token sequences in which a text can be written, by ascending first token; none for an empty text.
///
/// # Errors
/// When a rest of the text cannot be encoded.
pub fn breaker_sequences(
    tokenizer: &Tokenizer,
    text: &str,
) -> Result<Vec<Vec<u32>>, TokenizerError> {
    let mut sequences = Vec::new();
    if text.is_empty() {
        return Ok(sequences);
    }
    for id in 0..tokenizer.vocab_size() as u32 {
        let word = written(tokenizer, id);
        if contains(word, text.as_bytes()) {
            sequences.push(vec![id]);
            continue;
        }
        for begun in overlaps(word, text.as_bytes()) {
            let Some(mut rest) = rest_of(tokenizer, text, begun)? else {
                continue;
            };
            rest.truncate(MAX_TAIL);
            rest.insert(0, id);
            sequences.push(rest);
        }
    }
    Ok(sequences)
}

/// A token as it is written: a control token by its name.
fn written(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    match tokenizer.token_bytes(id) {
        [] => tokenizer.token_text(id).as_bytes(),
        bytes => bytes,
    }
}

fn contains(word: &[u8], text: &[u8]) -> bool {
    word.windows(text.len()).any(|window| window == text)
}

/// How many bytes of the text the word ends with, each possible number of them; fewer than all.
fn overlaps(word: &[u8], text: &[u8]) -> impl Iterator<Item = usize> {
    (1..text.len().min(word.len() + 1)).filter(|&begun| word.ends_with(&text[..begun]))
}

/// The tokens of the text behind its first bytes. If those end within a character, what is left is no text: it is the last
/// tokens of the whole text where one of them begins there, else nothing.
fn rest_of(
    tokenizer: &Tokenizer,
    text: &str,
    begun: usize,
) -> Result<Option<Vec<u32>>, TokenizerError> {
    if let Some(rest) = text.get(begun..) {
        return tokenizer.encode(rest, EncodeOptions::default()).map(Some);
    }
    let whole = tokenizer.encode(text, EncodeOptions::default())?;
    let ends: Vec<usize> = whole
        .iter()
        .scan(0, |end, &id| {
            *end += written(tokenizer, id).len();
            Some(*end)
        })
        .collect();
    let first = ends.iter().position(|&end| end == begun);
    Ok(first.map(|last_before| whole[last_before + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::gguf::ModelFile;

    fn tokenizer() -> Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
        Tokenizer::from_gguf(ModelFile::open(path).unwrap().metadata()).unwrap()
    }

    #[test]
    fn a_word_may_end_with_several_beginnings_of_a_text() {
        let of = |word: &str, text: &str| -> Vec<usize> {
            overlaps(word.as_bytes(), text.as_bytes()).collect()
        };
        assert_eq!(of("xaa", "aab"), [1, 2]);
        assert_eq!(of("a", "ab"), [1]);
        assert_eq!(of("b", "ab"), Vec::<usize>::new());
        assert_eq!(of("ab", "ab"), [1, 2][..0]);
        assert_eq!(of("", "ab"), Vec::<usize>::new());
    }

    /// Every sequence writes the text, and every token that has it in it is one.
    #[test]
    fn the_sequences_are_the_ways_to_write_the_text() {
        let tokenizer = tokenizer();
        for text in ["\n", ":", "\"", ".\n", " said", "é", "\u{201c}"] {
            let sequences = breaker_sequences(&tokenizer, text).unwrap();
            assert!(!sequences.is_empty(), "{text:?}");
            for sequence in &sequences {
                let bytes: Vec<u8> = sequence
                    .iter()
                    .flat_map(|&id| written(&tokenizer, id).to_vec())
                    .collect();
                assert!(contains(&bytes, text.as_bytes()), "{text:?}: {sequence:?}");
                let (first, rest) = sequence.split_first().unwrap();
                let alone = contains(written(&tokenizer, *first), text.as_bytes());
                assert_eq!(alone, rest.is_empty(), "{text:?}: {sequence:?}");
            }
            let whole = (0..tokenizer.vocab_size() as u32)
                .filter(|&id| contains(written(&tokenizer, id), text.as_bytes()))
                .count();
            let single = sequences.iter().filter(|sequence| sequence.len() == 1);
            assert_eq!(single.count(), whole, "{text:?}");
        }
        assert!(breaker_sequences(&tokenizer, "").unwrap().is_empty());
    }

    /// A control token is broken at by its name.
    #[test]
    fn a_control_token_has_its_name_in_it() {
        let tokenizer = tokenizer();
        let end = tokenizer.end_of_generation()[0];
        let name = tokenizer.token_text(end).to_owned();
        let sequences = breaker_sequences(&tokenizer, &name).unwrap();
        assert!(sequences.contains(&vec![end]));
    }
}
