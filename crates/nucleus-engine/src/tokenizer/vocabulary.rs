//! The vocabulary of a model file, checked.

use std::collections::HashMap;

use tokenizers::models::bpe::{Merges, Vocab};

use super::bytes;
use super::error::TokenizerError;
use super::spelling::{Spelling, token_bytes};
use crate::gguf::{Metadata, StringList};

/// The ids with a meaning that files name.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Beginning of text.
    pub(super) bos: Option<u32>,
    /// End of text.
    pub(super) eos: Option<u32>,
    /// Others that end a generation.
    pub(super) ends: Vec<u32>,
}

/// What a token is, by GGUF's `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text, spelled in the byte alphabet or with `▁` for spaces.
    Normal,
    /// Stands for what cannot be encoded.
    Unknown,
    /// Steers the model and stands for no text.
    Control,
    /// Text, spelled as it is.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte, spelled `<0x2A>`.
    Byte,
}

impl TokenKind {
    fn from_number(kind: i32) -> Option<Self> {
        const KINDS: [TokenKind; 6] = [
            TokenKind::Normal,
            TokenKind::Unknown,
            TokenKind::Control,
            TokenKind::UserDefined,
            TokenKind::Unused,
            TokenKind::Byte,
        ];
        KINDS
            .get(usize::try_from(kind).ok()?.checked_sub(1)?)
            .copied()
    }
}

/// Tokens, their kinds and their bytes, and the ids with a meaning.
#[derive(Debug)]
pub(super) struct Vocabulary {
    texts: StringList,
    kinds: Vec<TokenKind>,
    bytes: TokenBytes,
    /// Whether each token is a word, with a space before it, or a part that goes on with one.
    pub(super) of_words: bool,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// In ascending order.
    pub(super) end_of_generation: Vec<u32>,
}

/// The bytes of all tokens, one after the other.
#[derive(Debug, Default)]
struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl TokenBytes {
    fn push(&mut self, token: &[u8]) {
        self.bytes.extend_from_slice(token);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.bytes[start..end])
    }
}

/// Names of control tokens that end a generation in every vocabulary that has them. GGUF names at most three ids, and
/// models use more.
const END_NAMES: [&str; 14] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<EOT>",
    "_<EOT>",
    "<｜end▁of▁sentence｜>",
];
/// OpenAI's Harmony format: with these two, `<|end|>` ends a message of several.
const HARMONY_ENDS: [&str; 2] = ["<|return|>", "<|call|>"];
const HARMONY_MESSAGE_END: &str = "<|end|>";

const END_KEYS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
const TYPES_KEY: &str = "tokenizer.ggml.token_type";
/// Ids are 32 bits, and kernels read them as signed.
const MAX_TOKENS: usize = i32::MAX as usize;

impl Vocabulary {
    pub(super) fn from_gguf(
        metadata: &Metadata,
        spelling: Spelling,
    ) -> Result<Self, TokenizerError> {
        let texts = metadata.strings("tokenizer.ggml.tokens")?.clone();
        let tokens = texts.len();
        check_size(tokens)?;
        check_model_size(metadata, tokens)?;
        let kinds = kinds(metadata, tokens)?;
        let special_id = |key| special_id(metadata, key, tokens);
        let mut ids = Ids {
            bos: special_id("tokenizer.ggml.bos_token_id")?,
            ..Ids::default()
        };
        for key in END_KEYS {
            ids.ends.extend(special_id(key)?);
        }
        ids.eos = special_id(END_KEYS[0])?;
        Self::new(texts, kinds, spelling, ids)
    }

    /// A vocabulary of tokens and their kinds. Ids that are not in it are left out.
    pub(super) fn new(
        texts: StringList,
        kinds: Vec<TokenKind>,
        spelling: Spelling,
        ids: Ids,
    ) -> Result<Self, TokenizerError> {
        let tokens = texts.len();
        check_size(tokens)?;
        let is_known = |&id: &u32| (id as usize) < tokens;
        let ends = named_ends(&texts, &kinds);
        let kinds = with_ends_as_control(kinds, &ends);
        let bytes =
            texts
                .iter()
                .zip(&kinds)
                .fold(TokenBytes::default(), |mut bytes, (text, &kind)| {
                    bytes.push(&token_bytes(text, kind, spelling));
                    bytes
                });
        let named = ids.ends.into_iter().chain(ids.eos).filter(is_known);
        let mut end_of_generation: Vec<u32> = ends.into_iter().chain(named).collect();
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        Ok(Self {
            texts,
            kinds,
            bytes,
            of_words: matches!(
                spelling,
                Spelling::WordPiece | Spelling::Continuations { .. }
            ),
            bos: ids.bos.filter(is_known),
            eos: ids.eos.filter(is_known),
            end_of_generation,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn text(&self, id: u32) -> &str {
        self.texts.get(id as usize).unwrap_or_default()
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).unwrap_or_default()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// The first token of that spelling.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let token = self.iter().find(|&(_, spelled, _)| spelled == text);
        token.map(|(id, ..)| id)
    }

    /// Ids, spellings and kinds in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0..)
            .zip(self.texts.iter())
            .zip(&self.kinds)
            .map(|((id, text), &kind)| (id, text, kind))
    }

    /// The symbols that text can become, and the merges between them.
    ///
    /// Special tokens are no symbols, so that no text becomes one, unless a merge makes them.
    pub(super) fn symbols_and_merges(
        &self,
        merges: &StringList,
    ) -> Result<(Vocab, Merges), TokenizerError> {
        let (mut symbols, others) = self.ids_by_text()?;
        let mut pairs = Merges::with_capacity(merges.len());
        let mut merged = String::new();
        for (index, merge) in merges.iter().enumerate() {
            let (left, right) = parse_merge(index, merge)?;
            merged.clear();
            merged.extend([left, right]);
            for symbol in [left, right, &merged] {
                if symbols.contains_key(symbol) {
                    continue;
                }
                let Some(&id) = others.get(symbol) else {
                    let (merge, symbol) = (merge.to_owned(), symbol.to_owned());
                    return Err(TokenizerError::MergeOutOfVocabulary {
                        index,
                        merge,
                        symbol,
                    });
                };
                symbols.insert(symbol.to_owned(), id);
            }
            pairs.push((left.to_owned(), right.to_owned()));
        }
        Ok((symbols, pairs))
    }

    /// Ids by spelling: of symbols, and of the others. Empty spellings, which some converters write for ids that are not
    /// used, have none.
    pub(super) fn ids_by_text(&self) -> Result<(Vocab, HashMap<&str, u32>), TokenizerError> {
        let mut symbols = Vocab::with_capacity(self.len());
        let mut others = HashMap::new();
        for (id, text, kind) in self.iter().filter(|(_, text, _)| !text.is_empty()) {
            let (before, other) = match kind {
                TokenKind::Normal | TokenKind::Byte => (
                    symbols.insert(text.to_owned(), id),
                    others.get(text).copied(),
                ),
                _ => (others.insert(text, id), symbols.get(text).copied()),
            };
            if let Some(first) = before.or(other) {
                let text = text.to_owned();
                return Err(TokenizerError::DuplicateToken {
                    first,
                    second: id,
                    text,
                });
            }
        }
        Ok((symbols, others))
    }
}

fn check_size(tokens: usize) -> Result<(), TokenizerError> {
    if (1..=MAX_TOKENS).contains(&tokens) {
        return Ok(());
    }
    Err(TokenizerError::VocabularySize {
        count: tokens,
        limit: MAX_TOKENS,
    })
}

/// The score of each token.
pub(super) fn scores(metadata: &Metadata, tokens: usize) -> Result<Vec<f32>, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.scores";
    let scores: Vec<f32> = metadata.require(KEY)?;
    if scores.len() != tokens {
        return Err(TokenizerError::LengthMismatch {
            key: KEY,
            count: scores.len(),
            tokens,
        });
    }
    match (0..).zip(&scores).find(|(_, score)| !score.is_finite()) {
        Some((id, &score)) => Err(TokenizerError::Score { id, score }),
        None => Ok(scores),
    }
}

/// The model must have an output for every token; it may have more, as padding.
fn check_model_size(metadata: &Metadata, tokens: usize) -> Result<(), TokenizerError> {
    let Some(architecture) = metadata.find::<&str>("general.architecture")? else {
        return Ok(());
    };
    let key = format!("{architecture}.vocab_size");
    match metadata.find::<u32>(&key)? {
        Some(size) if (size as usize) < tokens => {
            Err(TokenizerError::ModelSize { key, size, tokens })
        }
        _ => Ok(()),
    }
}

fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(numbers) = metadata.find::<Vec<i32>>(TYPES_KEY)? else {
        return Ok(vec![TokenKind::Normal; tokens]);
    };
    if numbers.len() != tokens {
        return Err(TokenizerError::LengthMismatch {
            key: TYPES_KEY,
            count: numbers.len(),
            tokens,
        });
    }
    (0..)
        .zip(numbers)
        .map(|(id, kind)| {
            TokenKind::from_number(kind).ok_or(TokenizerError::UnknownKind { id, kind })
        })
        .collect()
}

/// The tokens that end a generation by their names.
fn named_ends(texts: &StringList, kinds: &[TokenKind]) -> Vec<u32> {
    let is_special = |kind| matches!(kind, TokenKind::Control | TokenKind::UserDefined);
    let named: Vec<(u32, &str)> = (0..)
        .zip(texts.iter())
        .zip(kinds)
        .filter(|&((_, text), &kind)| is_special(kind) && END_NAMES.contains(&text))
        .map(|(named, _)| named)
        .collect();
    let has = |name: &str| named.iter().any(|&(_, text)| text == name);
    let harmony = HARMONY_ENDS.into_iter().all(has);
    let ends = named
        .iter()
        .filter(|&&(_, text)| !(harmony && text == HARMONY_MESSAGE_END));
    ends.map(|&(id, _)| id).collect()
}

/// Some converters mark the tokens that end a turn as text; they are control tokens.
fn with_ends_as_control(mut kinds: Vec<TokenKind>, ends: &[u32]) -> Vec<TokenKind> {
    for &id in ends {
        kinds[id as usize] = TokenKind::Control;
    }
    kinds
}

/// The id that a key names.
pub(super) fn special_id(
    metadata: &Metadata,
    key: &'static str,
    tokens: usize,
) -> Result<Option<u32>, TokenizerError> {
    match metadata.find::<u32>(key)? {
        Some(id) if id as usize >= tokens => {
            Err(TokenizerError::SpecialOutOfVocabulary { key, id, tokens })
        }
        id => Ok(id),
    }
}

/// The token of what cannot be encoded: that of its key, the first of its kind, or that of its usual name.
pub(super) fn unknown(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    name: &'static str,
) -> Result<u32, TokenizerError> {
    const KEY: &str = "tokenizer.ggml.unknown_token_id";
    let of_kind = || {
        let token = vocabulary
            .iter()
            .find(|&(.., kind)| kind == TokenKind::Unknown);
        token.map(|(id, ..)| id)
    };
    special_id(metadata, KEY, vocabulary.len())?
        .or_else(of_kind)
        .or_else(|| vocabulary.find(name))
        .ok_or(TokenizerError::NoUnknown { key: KEY, name })
}

/// The bytes that are no symbol of their own.
pub(super) fn missing_bytes(is_symbol: impl Fn(&str) -> bool) -> Vec<u8> {
    (0..=255)
        .filter(|&byte| !is_symbol(bytes::to_char(byte).encode_utf8(&mut [0; 4])))
        .collect()
}

/// The two symbols of a merge, neither of them empty.
fn parse_merge(index: usize, merge: &str) -> Result<(&str, &str), TokenizerError> {
    match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
            Ok((left, right))
        }
        _ => Err(TokenizerError::MalformedMerge {
            index,
            merge: merge.to_owned(),
        }),
    }
}
