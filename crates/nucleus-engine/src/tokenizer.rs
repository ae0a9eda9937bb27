//! Text to token ids and back, from the model's own vocabulary.
//!
//! | kind | GGUF's `tokenizer.ggml.model` | how |
//! |---|---|---|
//! | byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") | `gpt2` | `byte_level` |
//! | SentencePiece's BPE | `llama` | `sentencepiece` |
//! | BPE on characters | `gemma4` | `byte_level::CharacterBpe` |
//! | WordPiece | `bert` | `wordpiece` |
//! | Unigram | `t5` | `unigram`, `character_map` |
//! | `tokenizer.json` of a directory | | `json` |
//!
//! Text is encoded in steps: special tokens that are written out in the text are cut out of it (`special`); for byte-level
//! BPE, what is between them is cut into pieces, roughly words, by the regular expressions of the vocabulary (`pre`), and
//! each byte of a piece becomes a printable character (`bytes`); neighbouring symbols are merged into tokens.
//!
//! A vocabulary of another kind, or with a pre-tokenizer that is not known by name, is refused: a tokenizer that is
//! nearly right gives text that is subtly wrong.

mod byte_level;
mod bytes;
mod character_map;
mod error;
mod json;
mod pre;
mod sentencepiece;
mod special;
mod spelling;
mod unigram;
mod vocabulary;
mod wordpiece;

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;

pub use error::TokenizerError;
pub use vocabulary::TokenKind;

use byte_level::{ByteLevel, CharacterBpe};
use json::JsonTokenizer;
use sentencepiece::SentencePiece;
use special::SpecialTokens;
use spelling::Spelling;
use unigram::Unigram;
use vocabulary::Vocabulary;
use wordpiece::WordPiece;

/// The greatest text that is encoded, in bytes; far more than any context holds.
pub const MAX_TEXT_BYTES: usize = 1 << 26;

/// How a text is encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Begin with the beginning-of-text token, if the vocabulary has one. [`Tokenizer::add_bos`] is what the model wants.
    pub add_bos: bool,
    /// End with the token that a whole text ends with, if the vocabulary has one ([`Tokenizer::text_end`]). [`Tokenizer::add_eos`] is what
    /// the model wants; leave it off for a text that is to be continued.
    pub add_eos: bool,
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
    model: Model,
    add_bos: bool,
    add_eos: bool,
    text_end: Option<u32>,
    /// Whether the first token of a text begins with a space that is not the text's.
    adds_space_prefix: bool,
}

/// The way from text without special tokens to tokens.
#[derive(Debug)]
enum Model {
    ByteLevel(ByteLevel),
    CharacterBpe(CharacterBpe),
    SentencePiece(SentencePiece),
    WordPiece(Box<WordPiece>),
    Unigram(Box<Unigram>),
    Json(Box<JsonTokenizer>),
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
        let kind = metadata.str("tokenizer.ggml.model")?;
        let merges = || metadata.strings("tokenizer.ggml.merges");
        let read = |spelling| Vocabulary::from_gguf(metadata, spelling);
        let (vocabulary, model, default_bos) = match kind {
            "gpt2" => {
                let rules = pre::rules(metadata.find("tokenizer.ggml.pre")?)?;
                let vocabulary = read(Spelling::ByteLevel)?;
                let model = ByteLevel::new(&vocabulary, merges()?, rules)?;
                (vocabulary, Model::ByteLevel(model), rules.add_bos)
            }
            "llama" => {
                let vocabulary = read(Spelling::SentencePiece)?;
                let scores = vocabulary::scores(metadata, vocabulary.len())?;
                let prefix = metadata.find("tokenizer.ggml.add_space_prefix")?;
                let model = SentencePiece::new(&vocabulary, scores, prefix.unwrap_or(true))?;
                (vocabulary, Model::SentencePiece(model), true)
            }
            "gemma4" => {
                let vocabulary = read(Spelling::SentencePiece)?;
                let model = CharacterBpe::new(&vocabulary, merges()?)?;
                (vocabulary, Model::CharacterBpe(model), true)
            }
            "bert" => {
                let (vocabulary, model) = WordPiece::from_gguf(metadata)?;
                (vocabulary, Model::WordPiece(Box::new(model)), true)
            }
            "t5" => {
                let (vocabulary, model) = Unigram::from_gguf(metadata)?;
                (vocabulary, Model::Unigram(Box::new(model)), false)
            }
            other => {
                return Err(TokenizerError::UnsupportedModel {
                    name: other.to_owned(),
                });
            }
        };
        let (text_end, add_eos) = text_end(metadata, &vocabulary, &model)?;
        // Phi-3's template writes a line end after each role, which its tokens swallow.
        let strips_right =
            kind == "llama" && metadata.find("general.architecture")? == Some("phi3");
        Ok(Self {
            special: SpecialTokens::new(&vocabulary, strips_right),
            add_bos: add_bos(metadata, &vocabulary, default_bos)?,
            add_eos,
            text_end,
            adds_space_prefix: model.prefixes_all() || vocabulary.of_words,
            vocabulary,
            model,
        })
    }

    /// The tokenizer of a directory: its `tokenizer.json`, and the names in `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// When there is no `tokenizer.json`, it is not sound, the bytes of its tokens do not follow from it, or the model has
    /// fewer outputs than it has tokens.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, TokenizerError> {
        let json::Described {
            tokenizer,
            vocabulary,
            add_bos,
            add_eos,
            text_end,
            adds_space_prefix,
        } = json::read(checkpoint)?;
        Ok(Self {
            special: SpecialTokens::default(),
            model: Model::Json(Box::new(tokenizer)),
            vocabulary,
            add_bos,
            add_eos,
            text_end,
            adds_space_prefix,
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
        match &self.model {
            Model::Json(model) => model.encode(text, options.parse_special, &mut ids)?,
            _ => self.encode_parts(text, options.parse_special, &mut ids)?,
        }
        if options.add_eos {
            ids.extend(self.text_end);
        }
        Ok(ids)
    }

    /// Appends the special tokens of a text, and the tokens of what is between them.
    fn encode_parts(
        &self,
        text: &str,
        parse_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let mut rest = text;
        while let Some(found) = self.special.find(rest, parse_special) {
            self.encode_plain(&rest[..found.start], ids)?;
            ids.push(found.id);
            rest = &rest[found.end..];
        }
        self.encode_plain(rest, ids)
    }

    /// Appends the tokens of text without special tokens, which begins or follows one.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match &self.model {
            Model::ByteLevel(model) => model.encode(text, ids),
            Model::CharacterBpe(model) => model.encode(text, ids),
            Model::WordPiece(model) => model.encode(text, ids),
            Model::Json(model) => model.encode(text, false, ids),
            Model::SentencePiece(model) => {
                model.encode(text, ids);
                Ok(())
            }
            Model::Unigram(model) => {
                model.encode(text, ids);
                Ok(())
            }
        }
    }

    /// The text of tokens. Bytes that are no UTF-8 become U+FFFD; ids that are not in the vocabulary are left out.
    /// Control tokens are left out (`skip_special`) or written as their names. A space that the vocabulary puts before
    /// every text is taken away again.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut text = Vec::new();
        let mut begins = self.adds_space_prefix;
        for &id in ids {
            if self.is_special(id) {
                if !skip_special && self.vocabulary.of_words {
                    text.extend_from_slice(if begins { b"" } else { b" " });
                    begins = false;
                }
                if !skip_special {
                    text.extend_from_slice(self.token_text(id).as_bytes());
                }
                begins |= self.kind(id) == Some(TokenKind::Control) && self.model.prefixes_all();
            } else {
                let bytes = self.token_bytes(id);
                let own = bytes.strip_prefix(b" ").filter(|_| begins);
                text.extend_from_slice(own.unwrap_or(bytes));
                begins = false;
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
        self.special.id_of(piece).or_else(|| match &self.model {
            Model::ByteLevel(model) => model.id_of(piece),
            Model::CharacterBpe(model) => model.id_of(piece),
            Model::SentencePiece(model) => model.id_of(piece),
            Model::WordPiece(model) => model.id_of(piece),
            Model::Unigram(model) => model.id_of(piece).or_else(|| self.vocabulary.find(piece)),
            Model::Json(model) => model.id_of(piece),
        })
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

    /// Whether a whole text ends with [`text_end`](Self::text_end), as models that compare or translate texts want. A prompt that
    /// is to be continued must not, whatever the model: there is nothing to add to a text that has ended.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// The token that a whole text ends with where the model wants one: the separator of WordPiece, what the template of a
    /// `tokenizer.json` puts there, and the end-of-text token of the others.
    pub fn text_end(&self) -> Option<u32> {
        self.text_end
    }
}

impl Model {
    /// Whether text gets a space before it wherever it begins or follows a special token.
    fn prefixes_all(&self) -> bool {
        match self {
            Self::SentencePiece(model) => model.adds_space_prefix(),
            Self::Unigram(model) => model.adds_space_prefix(),
            Self::ByteLevel(_) | Self::CharacterBpe(_) | Self::WordPiece(_) | Self::Json(_) => {
                false
            }
        }
    }
}

/// The token that whole texts end with, and whether they do.
fn text_end(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    model: &Model,
) -> Result<(Option<u32>, bool), TokenizerError> {
    const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    let (id, key, default) = match model {
        Model::WordPiece(_) => {
            let separator = WordPiece::separator(metadata, vocabulary)?;
            (separator, "tokenizer.ggml.add_sep_token", true)
        }
        Model::Unigram(_) => (vocabulary.eos, ADD_EOS, true),
        _ => (vocabulary.eos, ADD_EOS, false),
    };
    let wanted = metadata.find(key)?.unwrap_or(default);
    Ok((id, wanted && id.is_some()))
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
