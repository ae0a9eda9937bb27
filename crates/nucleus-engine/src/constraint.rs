//! Constrained decoding: which tokens may come next, so that a text becomes what was asked for.
//!
//! A [`Format`] says what a text must be: JSON of a schema, a match of a regular expression, one of several strings, a sentence of a
//! grammar. [`Formats`] compiles it for a vocabulary to a [`Constraint`], which follows one sequence and has, before each token, the
//! mask of those with which the text can still become that. The end of the text is among them only where the text may end. The work is
//! done by `llguidance` (an Earley parser over lexemes, which walks a trie of the vocabulary's bytes); its limits are ours.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

mod gbnf;

pub use gbnf::GbnfError;

/// The longest regular expression, grammar, schema as JSON, or strings of a choice together, in bytes. It bounds the memory that a request
/// holds while it waits.
pub const MAX_FORMAT_BYTES: usize = 1 << 16;

/// White space between the parts of JSON. Without a bound a model may write nothing else, and with a large one a small model does.
const JSON_SPACE: &str = " ";

/// Stack for compiling: grammars nest as deep as [`MAX_FORMAT_BYTES`] lets them. Pages that are not reached are not taken.
const STACK_BYTES: usize = 256 << 20;

/// What compiling and following a format may take. One that needs more fails; nobody else waits long for it.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    // About 20 ms.
    initial_lexer_fuel: 1_000_000,
    // About 14 ms for a mask.
    step_lexer_fuel: 200_000,
    // About 3 ms for a mask.
    step_max_items: 50_000,
    // About 1.5 kB each.
    max_lexer_states: 50_000,
    max_grammar_size: 500_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};

/// What a text must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// JSON that a schema describes (JSON Schema 2020-12, as far as `llguidance` knows it; what it does not know is an error).
    JsonSchema(Value),
    /// A match, from beginning to end, of a regular expression in the syntax of Rust's `regex` crate, without anchors and look-around.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// A sentence of a grammar in `llguidance`'s variant of Lark's language; its first rule is `start`.
    Lark(String),
    /// A sentence of a grammar in GBNF, llama.cpp's language; its first rule is `root`.
    Gbnf(String),
}

impl Format {
    /// Any JSON object.
    pub fn json_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// A sentence of a grammar in GBNF or Lark's language, whichever it is written in: rules begin with `name ::=` in GBNF alone.
    pub fn grammar(text: String) -> Self {
        match gbnf::is_gbnf(&text) {
            true => Self::Gbnf(text),
            false => Self::Lark(text),
        }
    }

    fn check(&self) -> Result<(), ConstraintError> {
        let bytes = match self {
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) | Self::Gbnf(text) => text.len(),
            Self::Choice(choices) if choices.is_empty() => {
                return Err(ConstraintError::Invalid("there is no choice".into()));
            }
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
        };
        let limit = MAX_FORMAT_BYTES;
        if bytes > limit {
            return Err(ConstraintError::TooLong { bytes, limit });
        }
        Ok(())
    }

    fn into_grammar(self) -> Result<TopLevelGrammar, GbnfError> {
        Ok(match self {
            Self::JsonSchema(schema) => {
                TopLevelGrammar::from_json_schema(with_bounded_space(schema))
            }
            Self::Regex(regex) => TopLevelGrammar::from_regex(&regex),
            Self::Choice(choices) => {
                let choices: Vec<String> = choices.iter().map(|text| escape(text)).collect();
                TopLevelGrammar::from_regex(&format!("({})", choices.join("|")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar),
            Self::Gbnf(grammar) => TopLevelGrammar::from_lark(gbnf::to_lark(&grammar)?),
        })
    }
}

/// The schema with [`JSON_SPACE`] at most, unless it says itself how `llguidance` is to write JSON.
fn with_bounded_space(schema: Value) -> Value {
    const OPTIONS: &str = "x-guidance";
    match schema {
        Value::Object(mut object) => {
            object
                .entry(OPTIONS)
                .or_insert_with(|| json!({"whitespace_pattern": JSON_SPACE}));
            Value::Object(object)
        }
        // Anything, said in short.
        Value::Bool(true) => with_bounded_space(json!({})),
        other => other,
    }
}

/// A regular expression that matches the text alone.
fn escape(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() || character.is_ascii_control() {
            regex.push_str(&format!(r"\x{:02x}", u32::from(character)));
        } else {
            regex.push(character);
        }
    }
    regex
}

/// Why a text cannot be held to a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The format is longer than it may be.
    #[error("{bytes} bytes are more than {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The format is not sound, asks for what is not implemented, or no text can be so.
    #[error("{0}")]
    Invalid(String),
    /// The same of a GBNF grammar.
    #[error(transparent)]
    Gbnf(#[from] GbnfError),
    /// Following the format takes more work or memory than it may.
    #[error("the output format is too complex: {0}")]
    TooComplex(String),
    /// No token of the vocabulary goes on from here: it cannot write what has to follow.
    #[error("no token of the vocabulary can follow in the output format")]
    NoToken,
    /// The vocabulary has no token that ends a text.
    #[error("the model has no token that ends a text")]
    NoEnd,
    /// There is no thread to compile on, or it panicked.
    #[error("the output format cannot be compiled: {0}")]
    Thread(String),
}

/// Compiles formats for one vocabulary. It can be shared between threads.
pub struct Formats {
    factory: ParserFactory,
}

impl Formats {
    /// Builds a trie of the vocabulary's bytes: a second of work for 128,000 tokens.
    ///
    /// # Errors
    /// [`ConstraintError::NoEnd`], or when the vocabulary cannot be such a trie.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, ConstraintError> {
        let size = vocab_size.min(tokenizer.vocab_size()) as u32;
        let ends = tokenizer.end_of_generation().iter().copied();
        let ends: Vec<u32> = ends.filter(|&id| id < size).collect();
        let Some(&end) = ends.first() else {
            return Err(ConstraintError::NoEnd);
        };
        // Tokens that stand for no text are never part of one.
        let words: Vec<Vec<u8>> = (0..size)
            .map(|id| match tokenizer.is_special(id) {
                true => Vec::new(),
                false => tokenizer.token_bytes(id).to_vec(),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words).with_eos_tokens(&ends);
        // It says of itself that it does not encode as the model's tokenizer does; so no token is forced, and the model chooses among all
        // that write the same text.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|error| ConstraintError::Invalid(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self { factory })
    }

    /// A constraint on a sequence that has no output yet.
    ///
    /// # Errors
    /// When the format is too long, not sound, too complex, or no text of this vocabulary can be so.
    pub fn compile(&self, format: Format) -> Result<Constraint, ConstraintError> {
        format.check()?;
        let compile = || {
            let parser = self.factory.create_parser(format.into_grammar()?);
            let parser = parser.map_err(|error| refused(&format!("{error:#}")))?;
            Constraint::new(Matcher::new(Ok(parser)))
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("output-format".into())
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, compile)
                .map_err(|error| ConstraintError::Thread(error.to_string()))?;
            let panicked = |_| Err(ConstraintError::Thread("it panicked".into()));
            thread.join().unwrap_or_else(panicked)
        })
    }
}

/// What `llguidance` says of a format that it does not compile. Its panics, which it turns into errors, are limits that it has found exceeded.
fn refused(reason: &str) -> ConstraintError {
    if reason.contains(PANIC) {
        return ConstraintError::TooComplex(one_line(reason));
    }
    ConstraintError::Invalid(one_line(reason))
}

/// What an error that was a panic begins with.
const PANIC: &str = "panic: ";

/// A reason without line breaks, and without the frames of the stack.
fn one_line(reason: &str) -> String {
    let text = reason.split("<backtrace>").next().unwrap_or_default();
    let text = text.replacen(PANIC, "", 1);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join(" ").trim().to_owned()
}

/// What may follow in one sequence. A clone goes its own way.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    /// A bit for each token, least significant first.
    mask: Vec<u32>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed: u32 = self.mask.iter().map(|word| word.count_ones()).sum();
        f.debug_struct("Constraint")
            .field("allowed", &allowed)
            .finish_non_exhaustive()
    }
}

/// Whether a text goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There is a mask for the next token.
    GoesOn,
    /// The text is what was asked for, and no longer one would be.
    Ended,
}

impl Constraint {
    fn new(matcher: Matcher) -> Result<Self, ConstraintError> {
        let mut constraint = Self {
            matcher,
            mask: Vec::new(),
        };
        constraint.find_mask()?;
        Ok(constraint)
    }

    /// The tokens that may be drawn next: a bit for each, least significant first; those beyond the last word may not.
    pub fn mask(&self) -> &[u32] {
        &self.mask
    }

    /// Takes a token that the mask allows, other than one that ends the text; finds the mask of the next.
    ///
    /// # Errors
    /// When that would take more work than [`Formats`] allows, or the vocabulary cannot write what has to follow.
    pub fn advance(&mut self, token: u32) -> Result<Progress, ConstraintError> {
        if self.matcher.consume_token(token).is_err() {
            return Err(self.failure());
        }
        self.find_mask()
    }

    fn find_mask(&mut self) -> Result<Progress, ConstraintError> {
        if self.matcher.is_stopped() {
            return self.stopped();
        }
        match self.matcher.compute_mask() {
            Ok(mask) => {
                self.mask = mask.into();
                Ok(Progress::GoesOn)
            }
            Err(_) => Err(self.failure()),
        }
    }

    fn stopped(&self) -> Result<Progress, ConstraintError> {
        match self.matcher.stop_reason() {
            StopReason::NoExtension | StopReason::EndOfSentence => Ok(Progress::Ended),
            _ => Err(self.failure()),
        }
    }

    fn failure(&self) -> ConstraintError {
        let reason = self.matcher.get_error().unwrap_or_default();
        // The matcher's own name for an error that has taken its place is lost; what is left says it.
        if reason.contains("NoExtensionBias") || reason.contains("no tokens allowed") {
            return ConstraintError::NoToken;
        }
        ConstraintError::TooComplex(one_line(&reason))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::gguf::{Metadata, Value};

    /// A vocabulary of words that write no digit.
    fn words() -> Tokenizer {
        let keys = [
            ("tokenizer.ggml.model", Value::String("bert".into())),
            (
                "tokenizer.ggml.tokens",
                Value::Strings(["[UNK]", "[END]", "▁yes", "no"].iter().collect()),
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Numbers(vec![3, 3, 1, 1].into()),
            ),
        ];
        let keys: HashMap<String, Value> = keys.map(|(key, value)| (key.to_owned(), value)).into();
        Tokenizer::from_gguf(&Metadata::new(keys)).unwrap()
    }

    /// R5.2: what no token can write is an error, not a text without end.
    #[test]
    fn r5_2_a_vocabulary_that_cannot_write_it() {
        let tokenizer = words().with_end_of_generation(&[1]);
        let formats = Formats::new(&tokenizer, 4).unwrap();
        let compile = |regex: &str| formats.compile(Format::Regex(regex.into()));
        assert_eq!(compile("[0-9]+").unwrap_err(), ConstraintError::NoToken);
        let mut constraint = compile("(no)+[0-9]").unwrap();
        assert_eq!(constraint.mask(), [0b1000]);
        assert_eq!(constraint.advance(3), Ok(Progress::GoesOn));
        // Only "no" again: this vocabulary never gets to the digit, and never to an end.
        assert_eq!(constraint.mask(), [0b1000]);
        let mut constraint = compile("no[0-9]").unwrap();
        assert_eq!(constraint.advance(3), Err(ConstraintError::NoToken));
    }

    #[test]
    fn a_reason_is_one_line_without_frames_of_the_stack() {
        let panicked = "panic: assertion failed: few < many\n<backtrace>\n   0: main\n</backtrace>";
        assert_eq!(
            refused(panicked),
            ConstraintError::TooComplex("assertion failed: few < many".into())
        );
        assert_eq!(
            refused("no such rule:\n  start"),
            ConstraintError::Invalid("no such rule: start".into())
        );
    }

    #[test]
    fn a_text_is_matched_by_its_escaped_form_alone() {
        assert_eq!(escape("a.b\n"), r"a\x2eb\x0a");
        assert_eq!(escape("é_"), r"é\x5f");
    }
}
