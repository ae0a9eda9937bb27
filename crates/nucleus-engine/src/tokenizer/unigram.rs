//! Unigram (Kudo 2018, arXiv:1804.10959), as SentencePiece and T5 have it: of all ways to cut a text into tokens, the one whose
//! scores have the greatest sum. A character that no token has is unknown, with a score 10 below the least, or becomes
//! bytes where the vocabulary has them; unknown neighbours are one token.

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

/// How much worse an unknown character is than the worst token.
const UNKNOWN_PENALTY: f64 = 10.0;

/// A Unigram vocabulary's way from text to tokens. (The library's keeps a hash map in each node of a trie: 126 MB
/// more for 250,000 tokens.)
#[derive(Debug)]
pub(super) struct Unigram {
    tokens: Spellings,
    /// By id.
    scores: Vec<f32>,
    normalization: Normalization,
    unknown: u32,
    unknown_score: f64,
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
        let tokens = Spellings::new(&vocabulary);
        let score = |id: u32| f64::from(scores[id as usize]);
        let least = tokens.ids().map(score).fold(f64::INFINITY, f64::min);
        let unigram = Self {
            cuts_words: tokens.are_in_words(),
            tokens,
            normalization: Normalization::from_gguf(metadata)?,
            unknown,
            unknown_score: least - UNKNOWN_PENALTY,
            scores,
            bytes: bytes.unwrap_or_default(),
        };
        Ok((vocabulary, unigram))
    }

    /// Whether text that begins or follows a special token gets a space before it.
    pub(super) fn adds_space_prefix(&self) -> bool {
        self.normalization.add_space_prefix
    }

    /// Appends the tokens of text without special tokens.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let text = self.normalization.apply(text);
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(match self.cuts_words {
                true => word_end(rest),
                false => rest.len(),
            });
            rest = after;
            let mut was_unknown = false;
            for Cut { start, end, id } in self.best_cuts(piece) {
                let is_unknown = id == self.unknown;
                match is_unknown && !self.bytes.is_empty() {
                    true => {
                        let bytes = piece.as_bytes()[start..end].iter();
                        ids.extend(bytes.map(|&byte| self.bytes[byte as usize]));
                    }
                    false if is_unknown && was_unknown => {}
                    false => ids.push(id),
                }
                was_unknown = is_unknown;
            }
        }
    }

    /// The token of text of that spelling.
    pub(super) fn id_of(&self, spelling: &str) -> Option<u32> {
        self.tokens.id_of(spelling)
    }

    /// The cuts of the greatest sum of scores, of several the one whose last tokens begin first (Viterbi's algorithm, over the bytes
    /// at which a token may end).
    fn best_cuts(&self, text: &str) -> Vec<Cut> {
        // What ends at each byte, with the sum of scores up to there.
        let mut best: Vec<Option<(f64, Cut)>> = vec![None; text.len() + 1];
        for (start, character) in text.char_indices() {
            let before = best[start].map_or(0.0, |(score, _)| score);
            let mut offer = |len: usize, id: u32, score: f64| {
                let (end, score) = (start + len, before + score);
                if best[end].is_none_or(|(other, _)| score > other) {
                    best[end] = Some((score, Cut { start, end, id }));
                }
            };
            let mut is_known = false;
            for (len, id) in self.tokens.beginnings_of(&text.as_bytes()[start..]) {
                is_known |= len == character.len_utf8();
                offer(len, id, self.scores[id as usize].into());
            }
            if !is_known {
                offer(character.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let last = |end: usize| best[end].map(|(_, cut)| cut);
        let mut cuts: Vec<Cut> =
            std::iter::successors(last(text.len()), |cut| last(cut.start)).collect();
        cuts.reverse();
        cuts
    }
}

/// A token in a text, by bytes.
#[derive(Debug, Clone, Copy)]
struct Cut {
    start: usize,
    end: usize,
    id: u32,
}

/// The tokens that text can become, in the order of their bytes.
#[derive(Debug)]
struct Spellings(Vec<(String, u32)>);

impl Spellings {
    fn new(vocabulary: &Vocabulary) -> Self {
        let tokens = vocabulary
            .iter()
            .filter(|&(_, text, kind)| kind == TokenKind::Normal && !text.is_empty());
        let mut tokens: Vec<_> = tokens.map(|(id, text, _)| (text.to_owned(), id)).collect();
        tokens.sort_unstable();
        Self(tokens)
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        self.0.iter().map(|&(_, id)| id)
    }

    /// Whether no token goes over the beginning of a word, and a word's beginning is a token.
    fn are_in_words(&self) -> bool {
        let is_in_word = |text: &str| !text.trim_start_matches(SPACE).contains(SPACE);
        self.id_of(SPACE).is_some() && self.0.iter().all(|(text, _)| is_in_word(text))
    }

    fn id_of(&self, spelling: &str) -> Option<u32> {
        let found = self
            .0
            .binary_search_by(|(text, _)| text.as_str().cmp(spelling));
        found.ok().map(|index| self.0[index].1)
    }

    /// The tokens that a text begins with, from the shortest, and their lengths.
    fn beginnings_of(&self, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        let mut left = self.0.as_slice();
        let narrow = move |(depth, byte): (usize, &u8)| {
            // Those left have the same bytes before, and what ends there is the first.
            let next = |(text, _): &(String, u32)| text.as_bytes().get(depth).copied();
            let begin = left.partition_point(|token| next(token) < Some(*byte));
            let len = left[begin..].partition_point(|token| next(token) == Some(*byte));
            left = &left[begin..begin + len];
            let (text, id) = left.first()?;
            Some((depth + 1, (text.len() == depth + 1).then_some(*id)))
        };
        let steps = text.iter().enumerate().map_while(narrow);
        steps.filter_map(|(len, id)| Some((len, id?)))
    }
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
            map: map
                .map(|map| CharacterMap::new(&map))
                .transpose()
                .map_err(|problem| TokenizerError::CharacterMap { problem })?,
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
