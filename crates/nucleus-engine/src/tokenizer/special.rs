//! Special tokens that are written out in a text.

use std::collections::HashMap;

use super::vocabulary::{TokenKind, Vocabulary};

/// The tokens that are found in a text before it is cut into pieces, in a trie.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// From a node and a byte to the next node.
    edges: HashMap<(u32, u8), u32>,
    /// The token that each node spells, if it does.
    tokens: Vec<Option<Special>>,
    /// The bytes that tokens begin with, in ascending order: most text is passed over without a look at the trie.
    first_bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Special {
    id: u32,
    /// Found only where special tokens are parsed.
    control: bool,
    /// White space that follows belongs to it.
    strips_right: bool,
}

/// A token in a text, by bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: usize,
    /// Where the text goes on.
    pub(super) end: usize,
    pub(super) id: u32,
}

/// Phi-3's tokens that do not take the white space after them.
const KEEPS_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

const ROOT: u32 = 0;

impl SpecialTokens {
    /// The special tokens of a vocabulary; `strips_right` says whether most take the white space after them, as those of
    /// Phi-3 do.
    pub(super) fn new(vocabulary: &Vocabulary, strips_right: bool) -> Self {
        let mut special = Self {
            edges: HashMap::new(),
            tokens: vec![None],
            first_bytes: Vec::new(),
        };
        for (id, text, kind) in vocabulary.iter().filter(|(_, text, _)| !text.is_empty()) {
            let control = match kind {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => continue,
            };
            let strips_right = strips_right && !KEEPS_SPACE.contains(&text);
            let token = Special {
                id,
                control,
                strips_right,
            };
            special.insert(text, token);
        }
        special.first_bytes = (0..=255)
            .filter(|&byte| special.edges.contains_key(&(ROOT, byte)))
            .collect();
        special
    }

    fn insert(&mut self, text: &str, token: Special) {
        let mut node = ROOT;
        for byte in text.bytes() {
            let fresh = self.tokens.len() as u32;
            node = *self.edges.entry((node, byte)).or_insert(fresh);
            if node == fresh {
                self.tokens.push(None);
            }
        }
        self.tokens[node as usize] = Some(token);
    }

    /// The first token in a text, and the longest of those that begin there. Control tokens are found with `control` only.
    pub(super) fn find(&self, text: &str, control: bool) -> Option<Found> {
        let bytes = text.as_bytes();
        let may_begin = |&start: &usize| self.first_bytes.binary_search(&bytes[start]).is_ok();
        (0..bytes.len()).filter(may_begin).find_map(|start| {
            let (len, token) = self.longest(&bytes[start..], control)?;
            let after = &bytes[start + len..];
            let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t'..=b'\r');
            let stripped = match token.strips_right {
                true => after.iter().take_while(is_space).count(),
                false => 0,
            };
            Some(Found {
                start,
                end: start + len + stripped,
                id: token.id,
            })
        })
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        let end = text
            .bytes()
            .try_fold(ROOT, |node, byte| self.edges.get(&(node, byte)).copied())?;
        self.tokens[end as usize].map(|token| token.id)
    }

    /// The longest token at the beginning, and its length.
    fn longest(&self, bytes: &[u8], control: bool) -> Option<(usize, Special)> {
        let (mut node, mut longest) = (ROOT, None);
        for (len, &byte) in (1..).zip(bytes) {
            let Some(&next) = self.edges.get(&(node, byte)) else {
                break;
            };
            node = next;
            if let Some(token) =
                self.tokens[node as usize].filter(|token| control || !token.control)
            {
                longest = Some((len, token));
            }
        }
        longest
    }
}
