//! Sets of characters, as small numbers: characters between which no class of a grammar distinguishes are one letter.

use super::grammar::{Class, Grammar, Node, after};

const WORDS: usize = 4;
/// Most letters. A grammar that distinguishes more has neighbours share one: sets may then meet that are apart, never the other way round.
const MAX_LETTERS: usize = WORDS * u64::BITS as usize;

/// A set of letters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Letters([u64; WORDS]);

impl Letters {
    #[must_use]
    pub(super) fn with(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub(super) fn meets(self, other: Self) -> bool {
        self.0.iter().zip(other.0).any(|(a, b)| a & b != 0)
    }
}

/// Which characters are which letter.
pub(super) struct Alphabet {
    /// The first character of each run that no class divides, ascending.
    begins: Vec<char>,
}

impl Alphabet {
    pub(super) fn new(grammar: &Grammar) -> Self {
        let mut begins = vec!['\0'];
        for node in &grammar.nodes {
            if let Node::Class(class) = node {
                for &(first, last) in class.ranges() {
                    begins.push(first);
                    begins.extend(after(last));
                }
            }
        }
        begins.sort_unstable();
        begins.dedup();
        Self { begins }
    }

    /// Every letter of which a character is in the class.
    pub(super) fn letters(&self, class: &Class) -> Letters {
        let share = self.begins.len().div_ceil(MAX_LETTERS);
        let run = |character| self.begins.partition_point(|begin| *begin <= character) - 1;
        let mut letters = Letters::default();
        for &(first, last) in class.ranges() {
            for letter in run(first) / share..=run(last) / share {
                letters.0[letter / 64] |= 1 << (letter % 64);
            }
        }
        letters
    }
}
