//! Text to token ids and back, from the model file's own vocabulary.
//!
//! Byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019, "Language Models are
//! Unsupervised Multitask Learners"), which GGUF calls `gpt2`. Text is encoded in four steps:
//!
//! 1. special tokens that are written out in the text are cut out of it (`special`);
//! 2. what is between them is cut into pieces, roughly words, by the regular expressions of the vocabulary (`pre`);
//! 3. each byte of a piece becomes a printable character (`bytes`);
//! 4. pairs of symbols are merged into tokens, by rank (`tokenizers::models::bpe`).
//!
//! A vocabulary of another kind, or with a pre-tokenizer that is not known by name, is refused: a tokenizer that is
//! nearly right gives text that is subtly wrong.

mod bytes;
mod error;
mod pre;
mod special;
mod vocabulary;

use std::collections::BTreeSet;

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, BpeBuilder};

use crate::gguf::Metadata;

pub use error::TokenizerError;
pub use vocabulary::TokenKind;

use pre::PreTokenizer;
use special::SpecialTokens;
use vocabulary::{Vocabulary, missing_bytes};

/// The greatest text that is encoded, in bytes; far more than any context holds.
pub const MAX_TEXT_BYTES: usize = 1 << 26;

/// How a text is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Begin with the beginning-of-text token, if the vocabulary has one. [`Tokenizer::add_bos`] is what the model wants.
    pub add_bos: bool,
    /// Take control tokens that are written out in the text, such as `<|im_end|>`, for those tokens. Set it for a prompt
    /// that a chat template made; leave it off for text from users, which then cannot end a turn.
    ///
    /// Tokens that the vocabulary marks as user-defined are plain text by another name, and always found.
    pub parse_special: bool,
}

/// A model's vocabulary, ready to encode and decode. It can be shared between threads.
///
/// ```no_run
/// use nucleus_engine::gguf::ModelFile;
/// use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
///
/// let file = ModelFile::open("model.gguf")?;
/// let tokenizer = Tokenizer::from_gguf(file.metadata())?;
/// let ids = tokenizer.encode("Once upon a time", EncodeOptions::default())?;
/// assert_eq!(tokenizer.decode(&ids, true), "Once upon a time");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    special: SpecialTokens,
    pre: PreTokenizer,
    bpe: BPE,
    /// Bytes without a token; none of them is common.
    missing_bytes: Vec<u8>,
    add_bos: bool,
}

impl Tokenizer {
    /// The tokenizer that a model file describes.
    ///
    /// # Errors
    ///
    /// When a key is missing or of a wrong type, the tokenizer model or the pre-tokenizer is not supported, or the
    /// vocabulary is not sound: lists of different lengths, a token twice, a byte without a token, merges or special ids
    /// that are not in the vocabulary.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.str("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(TokenizerError::UnsupportedModel {
                name: model.to_owned(),
            });
        }
        let rules = pre::rules(metadata.find("tokenizer.ggml.pre")?)?;
        let vocabulary = Vocabulary::from_gguf(metadata)?;
        let bpe = bpe(&vocabulary, metadata, rules.ignore_merges)?;
        let add_bos = add_bos(metadata, &vocabulary, rules.add_bos)?;
        let special = SpecialTokens::new(&vocabulary);
        let missing_bytes = missing_bytes(|symbol| bpe.token_to_id(symbol).is_some());
        Ok(Self {
            vocabulary,
            special,
            pre: PreTokenizer::new(rules)?,
            bpe,
            missing_bytes,
            add_bos,
        })
    }

    /// The tokens of a text.
    ///
    /// # Errors
    ///
    /// When the text is longer than [`MAX_TEXT_BYTES`], has a run of more than 262,144 characters of white space, or a
    /// character beyond U+3FFFF whose first byte the vocabulary has no token for.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong {
                bytes: text.len(),
                limit: MAX_TEXT_BYTES,
            });
        }
        let mut ids = Vec::new();
        if options.add_bos {
            ids.extend(self.bos());
        }
        let mut rest = text;
        while let Some(found) = self.special.find(rest, options.parse_special) {
            self.encode_plain(&rest[..found.start], &mut ids)?;
            ids.push(found.id);
            rest = &rest[found.end..];
        }
        self.encode_plain(rest, &mut ids)?;
        Ok(ids)
    }

    /// Appends the tokens of text without special tokens.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if let Some(byte) = text.bytes().find(|byte| self.missing_bytes.contains(byte)) {
            return Err(TokenizerError::MissingByte { byte });
        }
        for piece in self.pre.split(text)? {
            let symbols: String = piece.bytes().map(bytes::to_char).collect();
            let tokens = self
                .bpe
                .tokenize(&symbols)
                .map_err(TokenizerError::Library)?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }

    /// The text of tokens. Bytes that are no UTF-8 become U+FFFD; ids that are not in the vocabulary are left out.
    /// Control tokens are left out (`skip_special`) or written as their names.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = Vec::new();
        for &id in ids {
            if self.is_special(id) && !skip_special {
                text.extend_from_slice(self.token_text(id).as_bytes());
            } else {
                text.extend_from_slice(self.token_bytes(id));
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The bytes of text that a token stands for. Control and unused tokens stand for none, nor do ids that are not in
    /// the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// A token as the vocabulary spells it: the name of a control token, and printable characters for the bytes of others
    /// (`Ġthe` is ` the`). Empty for ids that are not in the vocabulary.
    pub fn token_text(&self, id: u32) -> &str {
        self.vocabulary.text(id)
    }

    /// The token of that spelling (see [`token_text`](Self::token_text)).
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.special
            .id_of(piece)
            .or_else(|| self.bpe.token_to_id(piece))
    }

    /// Number of tokens; ids run from 0 to one less.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// What kind of token an id is; `None` for ids that are not in the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.vocabulary.kind(id)
    }

    /// Whether the token is a control token: it stands for no text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.vocabulary.bos
    }

    /// The end-of-text token that the file names.
    pub fn eos(&self) -> Option<u32> {
        self.vocabulary.eos
    }

    /// The tokens that end a generation, in ascending order: the file's end of text, of turn and of message, and control
    /// tokens of a name that means an end in every vocabulary that has it, such as `<|endoftext|>`.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.vocabulary.end_of_generation
    }

    /// The same tokenizer with more tokens that end a generation, such as those of a `generation_config.json`. Ids that
    /// are not in the vocabulary are left out: they are never drawn.
    #[must_use]
    pub fn with_end_of_generation(mut self, ids: &[u32]) -> Self {
        let known = ids
            .iter()
            .copied()
            .filter(|&id| (id as usize) < self.vocab_size());
        let all: BTreeSet<u32> = self
            .end_of_generation()
            .iter()
            .copied()
            .chain(known)
            .collect();
        self.vocabulary.end_of_generation = all.into_iter().collect();
        self
    }

    /// Whether the token ends a generation.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation().binary_search(&id).is_ok()
    }

    /// Whether the model wants prompts to begin with the beginning-of-text token. (A prompt that a chat template made has
    /// it already, if it is wanted.)
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }
}

fn add_bos(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    default: bool,
) -> Result<bool, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.add_bos_token";
    let wanted: Option<bool> = metadata.find(KEY)?;
    if wanted == Some(true) && vocabulary.bos.is_none() {
        return Err(TokenizerError::NoBos { key: KEY });
    }
    Ok(wanted.unwrap_or(default && vocabulary.bos.is_some()))
}

fn bpe(
    vocabulary: &Vocabulary,
    metadata: &Metadata,
    ignore_merges: bool,
) -> Result<BPE, TokenizerError> {
    let merges = metadata.strings("tokenizer.ggml.merges")?;
    let (ids, merges) = vocabulary.symbols_and_merges(merges)?;
    BpeBuilder::new()
        .vocab_and_merges(ids, merges)
        .ignore_merges(ignore_merges)
        .build()
        .map_err(TokenizerError::Library)
}
