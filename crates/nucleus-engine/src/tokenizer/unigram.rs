//! Unigram (Kudo 2018, arXiv:1804.10959), as SentencePiece and T5 have it: of all ways to cut a text into tokens, the one whose
//! scores have the greatest sum. A character that no token has is unknown, with a score 10 below the least, or becomes
//! bytes where the vocabulary has them; unknown neighbours are one token.

use tokenizers::Model;
use tokenizers::models::unigram::Unigram as Library;

use super::byte_level::{SPACE, byte_token};
use super::character_map::CharacterMap;
use super::error::TokenizerError;
use super::spelling::Spelling;
use super::vocabulary::{TokenKind, Vocabulary, scores, unknown};
use crate::gguf::Metadata;

const UNKNOWN_NAME: &str = "<unk>";

/// How text is normalised before it is cut.
#[derive(Debug)]
struct Normalization {
    map: Option<CharacterMap>,
    /// Text that begins or follows a special token gets a space before it.
    add_space_prefix: bool,
    /// Spaces at the ends are taken away, and of several in a row all but one.
    merge_spaces: bool,
}

/// A Unigram vocabulary's way from text to tokens.
#[derive(Debug)]
pub(super) struct Unigram {
    model: Library,
    normalization: Normalization,
    unknown: u32,
    /// The token of each byte; none where one is missing.
    bytes: Vec<u32>,
    /// Whether no token goes over the beginning of a word, so that words can be cut one by one.
    cuts_words: bool,
}

impl Unigram {
    /// The vocabulary of a model file.
    pub(super) fn from_gguf(metadata: &Metadata) -> Result<(Vocabulary, Self), TokenizerError> {
        let vocabulary = Vocabulary::from_gguf(metadata, Spelling::SentencePiece)?;
        let scores = scores(metadata, vocabulary.len())?;
        let unknown = unknown(metadata, &vocabulary, UNKNOWN_NAME)?;
        let (by_text, _) = vocabulary.ids_by_text()?;
        let bytes: Option<Vec<u32>> = (0..=255)
            .map(|byte| by_text.get(&byte_token(byte)).copied())
            .map(|id| id.filter(|&id| vocabulary.kind(id) == Some(TokenKind::Byte)))
            .collect();
        let is_in_word = |text: &str| !text.trim_start_matches(SPACE).contains(SPACE);
        let cuts_words = by_text.contains_key(SPACE) && by_text.keys().all(|text| is_in_word(text));
        let tokens = tokens(&vocabulary, &scores);
        let model = Library::from(tokens, Some(unknown as usize), false)
            .map_err(TokenizerError::Library)?;
        let normalization = Normalization::from_gguf(metadata)?;
        let unigram = Self {
            model,
            normalization,
            unknown,
            bytes: bytes.unwrap_or_default(),
            cuts_words,
        };
        Ok((vocabulary, unigram))
    }

    /// Whether text that begins or follows a special token gets a space before it.
    pub(super) fn adds_space_prefix(&self) -> bool {
        self.normalization.add_space_prefix
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = self.normalization.apply(text);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(match self.cuts_words {
                true => word_end(rest),
                false => rest.len(),
            });
            rest = after;
            for token in self
                .model
                .tokenize(piece)
                .map_err(TokenizerError::Library)?
            {
                match token.id == self.unknown && !self.bytes.is_empty() {
                    true => ids.extend(token.value.bytes().map(|byte| self.bytes[byte as usize])),
                    false => ids.push(token.id),
                }
            }
        }
        Ok(())
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, spelling: &str) -> Option<u32> {
        let hidden = || self.model.token_to_id(&hidden(spelling));
        self.model.token_to_id(spelling).or_else(hidden)
    }
}

/// Spellings with their scores, in order. Tokens that are no text are hidden, and no worse than the others.
fn tokens(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<(String, f64)> {
    let scored = || vocabulary.iter().zip(scores);
    let is_text = |kind| kind == TokenKind::Normal;
    let least = scored()
        .filter(|&((.., kind), _)| is_text(kind))
        .fold(f32::INFINITY, |least, (_, &score)| least.min(score));
    let token = |((_, text, kind), &score): ((u32, &str, TokenKind), &f32)| match is_text(kind) {
        true => (text.to_owned(), score.into()),
        false => (hidden(text), least.into()),
    };
    scored().map(token).collect()
}

/// A spelling that no text has: normalised text has no spaces. Text cannot become a token of that spelling.
fn hidden(text: &str) -> String {
    format!(" {text}")
}

/// Where a text's first word ends, with the spaces before it.
fn word_end(text: &str) -> usize {
    let word = text.trim_start_matches(SPACE);
    let spaces = text.len() - word.len();
    spaces + word.find(SPACE).unwrap_or(word.len())
}

impl Normalization {
    fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let map: Option<Vec<u8>> = metadata.find("tokenizer.ggml.precompiled_charsmap")?;
        let prefix = metadata.find("tokenizer.ggml.add_space_prefix")?;
        let merge = metadata.find("tokenizer.ggml.remove_extra_whitespaces")?;
        Ok(Self {
            map: map.map(|map| CharacterMap::new(&map)).transpose()?,
            add_space_prefix: prefix.unwrap_or(true),
            merge_spaces: merge.unwrap_or(false),
        })
    }

    fn apply(&self, text: &str) -> String {
        let mapped = self.map.as_ref().map(|map| map.apply(text));
        let text = mapped.as_deref().unwrap_or(text);
        let words = match self.merge_spaces {
            true => {
                let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
                words.join(SPACE)
            }
            false => text.replace(' ', SPACE),
        };
        match self.add_space_prefix && !words.is_empty() {
            true => SPACE.to_owned() + &words,
            false => words,
        }
    }
}
