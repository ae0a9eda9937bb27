//! Byte-level BPE: pieces of text, their bytes as printable characters, merged by rank.

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder};

use super::bytes;
use super::error::TokenizerError;
use super::pre::{PreTokenizer, Rules};
use super::vocabulary::{Vocabulary, missing_bytes};
use crate::gguf::StringList;

/// A byte-level vocabulary's way from text to tokens.
#[derive(Debug)]
pub(super) struct ByteLevel {
    pre: PreTokenizer,
    bpe: BPE,
    /// Bytes without a token; none of them is common.
    missing_bytes: Vec<u8>,
}

impl ByteLevel {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        merges: &StringList,
        rules: Rules,
    ) -> Result<Self, TokenizerError> {
        let (symbols, merges) = vocabulary.symbols_and_merges(merges)?;
        let missing_bytes = missing_bytes(|symbol| symbols.contains_key(symbol));
        // Real vocabularies lack bytes that begin characters beyond U+3FFFF; they may.
        if let Some(&byte) = missing_bytes.iter().find(|&&byte| bytes::is_common(byte)) {
            return Err(TokenizerError::MissingByte { byte });
        }
        let bpe = BpeBuilder::new()
            .vocab_and_merges(symbols, merges)
            .ignore_merges(rules.ignore_merges)
            .build()
            .map_err(TokenizerError::Library)?;
        Ok(Self {
            pre: PreTokenizer::new(rules)?,
            bpe,
            missing_bytes,
        })
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(byte) = text.bytes().find(|byte| self.missing_bytes.contains(byte)) {
            return Err(TokenizerError::MissingByte { byte });
        }
        for piece in self.pre.split(text)? {
            let symbols: String = piece.bytes().map(bytes::to_char).collect();
            append(&self.bpe, &symbols, ids)?;
        }
        Ok(())
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, symbol: &str) -> Option<u32> {
        self.bpe.token_to_id(symbol)
    }
}

/// BPE on characters, with spaces as `▁` and bytes for characters without a token, as Gemma 4 has it.
#[derive(Debug)]
pub(super) struct CharacterBpe {
    bpe: BPE,
}

impl CharacterBpe {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        merges: &StringList,
    ) -> Result<Self, TokenizerError> {
        let (symbols, merges) = vocabulary.symbols_and_merges(merges)?;
        if let Some(byte) = (0..=255).find(|&byte| !symbols.contains_key(&byte_token(byte))) {
            return Err(TokenizerError::MissingByte { byte });
        }
        let bpe = BpeBuilder::new()
            .vocab_and_merges(symbols, merges)
            .byte_fallback(true)
            .build()
            .map_err(TokenizerError::Library)?;
        Ok(Self { bpe })
    }

    /// Appends the tokens of text without special tokens. Runs of line ends are pieces of their own.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = text.replace(' ', SPACE);
        let mut rest = text.as_str();
        while let Some(first) = rest.chars().next() {
            let is_other = |character| (character == '\n') != (first == '\n');
            let (piece, after) = rest.split_at(rest.find(is_other).unwrap_or(rest.len()));
            rest = after;
            match self.bpe.token_to_id(piece).filter(|_| first == '\n') {
                Some(id) => ids.push(id),
                None => append(&self.bpe, piece, ids)?,
            }
        }
        Ok(())
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, symbol: &str) -> Option<u32> {
        self.bpe.token_to_id(symbol)
    }
}

/// What stands for a space in vocabularies on characters: U+2581.
pub(super) const SPACE: &str = "▁";

/// How vocabularies on characters spell a byte: `<0x2A>`.
pub(super) fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

fn append(bpe: &BPE, symbols: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
    let tokens = bpe.tokenize(symbols).map_err(TokenizerError::Library)?;
    ids.extend(tokens.iter().map(|token| token.id));
    Ok(())
}
