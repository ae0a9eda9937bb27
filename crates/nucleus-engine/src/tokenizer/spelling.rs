//! How vocabularies spell their tokens, and the bytes that these stand for.

use super::byte_level::SPACE;
use super::bytes;
use super::vocabulary::TokenKind;

/// How tokens of text are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// In the byte alphabet.
    ByteLevel,
    /// As the text, with `▁` for a space.
    SentencePiece,
    /// As words and parts of them, words with `▁` before them.
    WordPiece,
    /// As words and parts of them, parts that go on with `##` before them.
    Continuations {
        /// Whether punctuation loses the space before it.
        cleanup: bool,
    },
}

/// The bytes of text that a token stands for.
pub(super) fn token_bytes(text: &str, kind: TokenKind, spelling: Spelling) -> Vec<u8> {
    let spelled = || text.as_bytes().to_vec();
    match kind {
        TokenKind::Normal => match spelling {
            Spelling::ByteLevel => text
                .chars()
                .map(bytes::from_char)
                .collect::<Option<_>>()
                .unwrap_or_else(spelled),
            Spelling::SentencePiece => text.replace(SPACE, " ").into_bytes(),
            Spelling::WordPiece => match text.strip_prefix(SPACE) {
                Some(word) => word_bytes(word, true),
                None => spelled(),
            },
            Spelling::Continuations { cleanup } => match text.strip_prefix(CONTINUATION) {
                Some(part) => part.as_bytes().to_vec(),
                None => word_bytes(text, cleanup),
            },
        },
        TokenKind::UserDefined => spelled(),
        TokenKind::Byte => parse_byte(text).map_or_else(spelled, |byte| vec![byte]),
        TokenKind::Unknown | TokenKind::Control | TokenKind::Unused => Vec::new(),
    }
}

/// What a part that goes on with a word begins with, in `tokenizer.json`.
pub(super) const CONTINUATION: &str = "##";
/// Punctuation that loses the space before it, as in BERT's own decoder.
const CLOSING: [&str; 4] = [".", "?", "!", ","];

/// The bytes of a word, with a space before it.
fn word_bytes(word: &str, cleanup: bool) -> Vec<u8> {
    let space = if cleanup && CLOSING.contains(&word) {
        ""
    } else {
        " "
    };
    [space, word].concat().into_bytes()
}

/// The byte of `<0x2A>`.
pub(super) fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}
