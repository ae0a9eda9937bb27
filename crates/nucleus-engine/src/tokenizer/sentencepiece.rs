//! SentencePiece's BPE (Kudo and Richardson 2018, arXiv:1808.06226): neighbours are merged as long as what they make is a
//! token, the one of the highest score first; characters without a token become bytes. There are no pieces: spaces are
//! characters, written `▁`, and text that begins or follows a special token gets one before it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::byte_level::{SPACE, byte_token};
use super::error::TokenizerError;
use super::vocabulary::{TokenKind, Vocabulary};

/// A SentencePiece vocabulary's way from text to tokens.
#[derive(Debug)]
pub(super) struct SentencePiece {
    tokens: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    add_space_prefix: bool,
}

/// A run of characters that are one symbol so far, in the text.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    /// The end; the start of a symbol that was merged into the one before.
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that could be merged.
#[derive(Debug, Clone, Copy)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when it was found: if they have others now, one of them was merged otherwise.
    len: usize,
}

/// By score, and of the same score the leftmost.
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.score.total_cmp(&other.score)).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    pub(super) fn new(
        vocabulary: &Vocabulary,
        scores: Vec<f32>,
        add_space_prefix: bool,
    ) -> Result<Self, TokenizerError> {
        let mut tokens = HashMap::with_capacity(vocabulary.len());
        let mut unknown = None;
        for (id, text, kind) in vocabulary.iter() {
            match kind {
                TokenKind::Normal | TokenKind::UserDefined => {
                    tokens.insert(text.to_owned(), id);
                }
                TokenKind::Unknown => {
                    unknown.get_or_insert(id);
                }
                TokenKind::Control | TokenKind::Unused | TokenKind::Byte => {}
            }
        }
        let by_spelling: HashMap<&str, u32> = vocabulary
            .iter()
            .filter(|(_, _, kind)| *kind == TokenKind::Byte)
            .map(|(id, text, _)| (text, id))
            .collect();
        let bytes: Vec<Option<u32>> = (0..=255)
            .map(|byte| by_spelling.get(byte_token(byte).as_str()).copied())
            .collect();
        match bytes.iter().position(Option::is_none) {
            Some(byte) if unknown.is_none() => {
                Err(TokenizerError::MissingByte { byte: byte as u8 })
            }
            _ => Ok(Self {
                tokens,
                scores,
                bytes,
                unknown,
                add_space_prefix,
            }),
        }
    }

    /// Whether text that begins or follows a special token gets a space before it.
    pub(super) fn adds_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if self.add_space_prefix { SPACE } else { "" };
        let text = prefix.to_owned() + &text.replace(' ', SPACE);
        for symbol in self.merge(&text) {
            self.append(&text[symbol.start..symbol.end], ids);
        }
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, spelling: &str) -> Option<u32> {
        let byte = || self.bytes.iter().flatten().copied().zip(0..=255u8);
        let spelled = self.tokens.get(spelling).copied();
        spelled.or_else(|| {
            byte()
                .find(|&(_, byte)| byte_token(byte) == spelling)
                .map(|(id, _)| id)
        })
    }

    /// The text as symbols of which no two neighbours make a token.
    fn merge(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = characters(text);
        let mut pairs: BinaryHeap<Pair> = (1..symbols.len())
            .filter_map(|right| self.pair(text, &symbols, right - 1, right))
            .collect();
        while let Some(Pair {
            left, right, len, ..
        }) = pairs.pop()
        {
            let [first, second] = [symbols[left], symbols[right]];
            let is_there = first.end > first.start && second.end > second.start;
            if !is_there || first.end != second.start || second.end - first.start != len {
                continue;
            }
            symbols[left].end = second.end;
            symbols[left].next = second.next;
            symbols[right].end = second.start;
            if let Some(next) = second.next {
                symbols[next].previous = Some(left);
                pairs.extend(self.pair(text, &symbols, left, next));
            }
            if let Some(previous) = first.previous {
                pairs.extend(self.pair(text, &symbols, previous, left));
            }
        }
        symbols.retain(|symbol| symbol.end > symbol.start);
        symbols
    }

    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let both = &text[symbols[left].start..symbols[right].end];
        let id = *self.tokens.get(both)?;
        Some(Pair {
            score: self.scores[id as usize],
            left,
            right,
            len: both.len(),
        })
    }

    fn append(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some(&id) = self.tokens.get(symbol) {
            ids.push(id);
            return;
        }
        let bytes: Option<Vec<u32>> = symbol
            .bytes()
            .map(|byte| self.bytes[byte as usize])
            .collect();
        match bytes {
            Some(bytes) => ids.extend(bytes),
            // There is one where a byte has no token.
            None => ids.extend(self.unknown),
        }
    }
}

/// Each character as a symbol.
fn characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .char_indices()
        .enumerate()
        .map(|(index, (start, character))| Symbol {
            start,
            end: start + character.len_utf8(),
            previous: index.checked_sub(1),
            next: Some(index + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    symbols
}
