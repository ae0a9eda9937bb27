//! WordPiece as BERT has it (Devlin et al. 2019, arXiv:1810.04805): text is cleaned and cut into words, and a word into the
//! longest tokens from the left. A word that cannot be cut so is unknown as a whole.
//!
//! GGUF spells a token that begins a word with `▁` before it, and one that goes on as it is; `tokenizer.json` spells the
//! former as it is, and the latter with `##` before it.

use tokenizers::models::wordpiece::{WordPiece as Library, WordPieceBuilder};
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer,
};

use super::byte_level::SPACE;
use super::error::TokenizerError;
use super::spelling::Spelling;
use super::vocabulary::{Vocabulary, special_id, unknown};
use crate::gguf::Metadata;

/// The most characters of a word; longer ones are unknown, as in BERT's own tokenizer.
const MAX_WORD_CHARS: usize = 100;

/// What begins a text, by its key and by its name.
const CLASS: (&str, &str) = ("tokenizer.ggml.cls_token_id", "[CLS]");
/// What ends a text; the key is spelled so.
const SEPARATOR: (&str, &str) = ("tokenizer.ggml.seperator_token_id", "[SEP]");
const UNKNOWN_NAME: &str = "[UNK]";

/// A WordPiece vocabulary's way from text to tokens.
#[derive(Debug)]
pub(super) struct WordPiece {
    normalizer: BertNormalizer,
    model: Library,
}

impl WordPiece {
    /// The vocabulary of a model file. Texts begin with its `[CLS]`.
    pub(super) fn from_gguf(metadata: &Metadata) -> Result<(Vocabulary, Self), TokenizerError> {
        let mut vocabulary = Vocabulary::from_gguf(metadata, Spelling::WordPiece)?;
        if vocabulary.bos.is_none() {
            vocabulary.bos = named(metadata, &vocabulary, CLASS)?;
        }
        let unknown = unknown(metadata, &vocabulary, UNKNOWN_NAME)?;
        let (mut tokens, _) = vocabulary.ids_by_text()?;
        let unknown_text = vocabulary.text(unknown).to_owned();
        tokens.insert(unknown_text.clone(), unknown);
        let model = WordPieceBuilder::new()
            .vocab(tokens)
            .unk_token(unknown_text)
            .continuing_subword_prefix(String::new())
            // And the mark.
            .max_input_chars_per_word(MAX_WORD_CHARS + 1)
            .build()
            .map_err(TokenizerError::Library)?;
        let lowercase = metadata.find("tokenizer.ggml.normalizer.lowercase")?;
        let lowercase = lowercase.unwrap_or(true);
        let strip_accents = metadata.find("tokenizer.ggml.normalizer.strip_accents")?;
        let strip_accents = strip_accents.unwrap_or(lowercase);
        let normalizer = BertNormalizer::new(true, true, Some(strip_accents), lowercase);
        Ok((vocabulary, Self { normalizer, model }))
    }

    /// The token that ends a text.
    pub(super) fn separator(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
    ) -> Result<Option<u32>, TokenizerError> {
        named(metadata, vocabulary, SEPARATOR)
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        // These end a word however it is cleaned, so that what is cleaned at once is short.
        for part in text.split([' ', '\t', '\n', '\r']) {
            if !part.is_empty() {
                self.encode_part(part, ids)
                    .map_err(TokenizerError::Library)?;
            }
        }
        Ok(())
    }

    fn encode_part(&self, part: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut cleaned = NormalizedString::from(part);
        self.normalizer.normalize(&mut cleaned)?;
        let mut words = PreTokenizedString::from(cleaned);
        BertPreTokenizer.pre_tokenize(&mut words)?;
        for (word, ..) in words.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            if !word.is_empty() {
                let tokens = self.model.tokenize(&[SPACE, word].concat())?;
                ids.extend(tokens.iter().map(|token| token.id));
            }
        }
        Ok(())
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, spelling: &str) -> Option<u32> {
        self.model.token_to_id(spelling)
    }
}

/// The token of a key, or else of a name.
fn named(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    (key, name): (&'static str, &str),
) -> Result<Option<u32>, TokenizerError> {
    Ok(special_id(metadata, key, vocabulary.len())?.or_else(|| vocabulary.find(name)))
}
