//! GBNF, llama.cpp's language for grammars, as a Lark grammar that `llguidance` reads.
//!
//! GBNF describes characters; `llguidance` parses lexemes, and its lexer takes the longest it can. So [`parse`] reads rules into a
//! [`grammar`], [`lexemes`] chooses the parts without recursion that can be lexemes without a change of what the grammar means (the
//! conflicts are found by [`automaton`], over sets of characters called [`letters`]), and [`lark`] writes the result. A part that would
//! conflict is cut up, at worst into single characters, of which none begins another: every grammar means the same afterwards. It could
//! all be single characters; lexemes are what makes a mask of tokens cheap.
//!
//! The language is that of llama.cpp's `grammars/README.md`: rules, literals, classes, `.`, groups, alternatives, `*`, `+`, `?`, `{m,n}`,
//! escapes and comments. Its tokens (`<[7]>`, `<think>`) are refused.

mod automaton;
mod grammar;
mod lark;
mod letters;
mod lexemes;
mod parse;

/// The rule that a text must be.
const ROOT: &str = "root";

/// The largest number in a repetition, as in llama.cpp.
const MAX_REPETITION: u32 = 2_000;

/// The longest Lark grammar that a GBNF grammar may become, in bytes. Rules without recursion are written out where they are used.
const MAX_LARK_BYTES: usize = 1 << 20;

/// Why a GBNF grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GbnfError {
    /// The text is not of the language.
    #[error("line {line}: {found} where {expected} should be")]
    Unexpected {
        /// Its line, from 1.
        line: usize,
        /// What is there.
        found: String,
        /// What could be there.
        expected: &'static str,
    },
    /// An escape that the language does not have, or that stands for no character.
    #[error(
        "line {line}: {escape} is no character; escapes are \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\xHH \\uHHHH \\UHHHHHHHH"
    )]
    Escape {
        /// Its line, from 1.
        line: usize,
        /// The escape.
        escape: String,
    },
    /// A class of characters that has none, or a range that ends before it begins.
    #[error("line {line}: the class [{class}] has {fault}")]
    Class {
        /// Its line, from 1.
        line: usize,
        /// What is between the brackets.
        class: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A repetition whose numbers cannot be.
    #[error(
        "line {line}: {{{repetition}}} is not {{m}}, {{m,}} or {{m,n}} with m <= n in [0, {MAX_REPETITION}]"
    )]
    Repetition {
        /// Its line, from 1.
        line: usize,
        /// What is between the braces.
        repetition: String,
    },
    /// llama.cpp's syntax for tokens of the vocabulary.
    #[error("line {line}: tokens such as <[7]> and <name> cannot be part of a grammar here")]
    Token {
        /// Its line, from 1.
        line: usize,
    },
    /// A rule that is defined again.
    #[error("line {line}: the rule {name:?} is defined a second time")]
    Twice {
        /// Its line, from 1.
        line: usize,
        /// The rule's name.
        name: String,
    },
    /// A rule that is used and not defined.
    #[error("line {line}: there is no rule {name:?}")]
    Undefined {
        /// The line that uses it, from 1.
        line: usize,
        /// The rule's name.
        name: String,
    },
    /// The grammar has no rule `root`.
    #[error("there is no rule \"root\", which says what the whole text must be")]
    NoRoot,
    /// A rule that goes on for ever.
    #[error("no text ends the rule {name:?}: each of its alternatives needs the rule itself again")]
    Endless {
        /// The rule's name.
        name: String,
    },
    /// Written out, the grammar is too long.
    #[error("the grammar is too large: its rules written out are more than {MAX_LARK_BYTES} bytes")]
    TooLarge,
}

/// Whether a grammar is written in GBNF: one of its lines begins a rule with `name ::=`, which no line of a Lark grammar does.
pub(super) fn is_gbnf(grammar: &str) -> bool {
    grammar.lines().any(|line| {
        let rest = line.trim_start().trim_start_matches(parse::is_name);
        rest.len() < line.trim_start().len() && rest.trim_start().starts_with("::=")
    })
}

/// The same grammar in `llguidance`'s variant of Lark's language.
pub(super) fn to_lark(text: &str) -> Result<String, GbnfError> {
    let mut grammar = parse::parse(text)?;
    grammar.unroll();
    grammar.check_endings()?;
    let facts = grammar::Facts::new(&grammar);
    let plan = lexemes::choose(&grammar, &facts);
    lark::write(&grammar, &facts, &plan)
}

#[cfg(test)]
mod tests;
