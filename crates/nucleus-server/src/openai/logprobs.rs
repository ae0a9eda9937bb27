//! What is said of a choice's tokens: their spelling, where they begin, their log-probabilities and the likeliest others.

use std::fmt::Write;
use std::sync::Arc;

use nucleus_engine::detokenizer::Detokenizer;
use nucleus_engine::sequence::{PromptToken, TokenEvent};
use nucleus_engine::tokenizer::Tokenizer;
use nucleus_sampling::TokenLogprob;
use schemars::JsonSchema;
use serde::Serialize;

/// What is written for the logarithm of 0, which JSON cannot hold; as OpenAI does.
const LOWEST: f32 = -9999.0;

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(super) struct Scored {
    /// Its text. Bytes that are no text by themselves are spelled `bytes:\xe2\x80`, as OpenAI does.
    pub(super) token: String,
    /// Natural logarithm of its probability; none for a prompt's first token, which nothing comes before.
    #[schemars(with = "f32")]
    pub(super) logprob: Option<f32>,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// One token of a choice.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TokenReport {
    pub(super) chosen: Scored,
    /// The likeliest tokens, then the chosen one if it is not among them.
    pub(super) top: Vec<Scored>,
    /// How many of those are there for being the likeliest.
    pub(super) likeliest: usize,
    /// Characters of text before it.
    pub(super) text_offset: usize,
}

/// Reports the tokens of one choice, in order.
pub(super) struct Reporter {
    tokenizer: Arc<Tokenizer>,
    /// How many of the likeliest tokens are wanted.
    wanted: u32,
    /// Tokens that end the text and are not part of it.
    hidden: Vec<u32>,
    text: Detokenizer,
    characters: usize,
}

impl Reporter {
    /// `hidden` are the tokens, besides the model's own, that end the text without being part of it.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, wanted: u32, hidden: Vec<u32>) -> Self {
        Self {
            tokenizer,
            wanted,
            hidden,
            text: Detokenizer::default(),
            characters: 0,
        }
    }

    /// What is said of the next token; nothing if it is not part of the text.
    pub(super) fn report(&mut self, token: &TokenEvent) -> Option<TokenReport> {
        if self.tokenizer.is_end_of_generation(token.id) || self.hidden.contains(&token.id) {
            return None;
        }
        let text_offset = self.characters;
        let text = self.text.push(self.tokenizer.token_bytes(token.id));
        self.characters += text.chars().count();
        Some(self.of(
            token.id,
            Some(token.logprob),
            &token.top_logprobs,
            text_offset,
        ))
    }

    /// What is said of a prompt's tokens, which come before all others. What the model wants before a text (`added`) is not
    /// part of it; other control tokens are, by their names.
    pub(super) fn report_prompt(
        &mut self,
        tokens: &[PromptToken],
        added: bool,
    ) -> Vec<TokenReport> {
        let mut reports = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            let text_offset = self.characters;
            let written = match self.tokenizer.token_bytes(token.id) {
                [] if added && index == 0 => &[],
                [] => self.tokenizer.token_text(token.id).as_bytes(),
                bytes => bytes,
            };
            self.characters += self.text.push(written).chars().count();
            reports.push(self.of(token.id, token.logprob, &token.top_logprobs, text_offset));
        }
        reports
    }

    fn of(
        &self,
        id: u32,
        logprob: Option<f32>,
        top: &[TokenLogprob],
        text_offset: usize,
    ) -> TokenReport {
        TokenReport {
            chosen: self.scored(id, logprob),
            top: top
                .iter()
                .map(|other| self.scored(other.token_id, Some(other.logprob)))
                .collect(),
            likeliest: top.len().min(self.wanted as usize),
            text_offset,
        }
    }

    fn scored(&self, id: u32, logprob: Option<f32>) -> Scored {
        let bytes = match self.tokenizer.token_bytes(id) {
            // A control token adds nothing to the text; its name is what can be said of it.
            [] => self.tokenizer.token_text(id).as_bytes(),
            bytes => bytes,
        };
        Scored {
            token: spell(bytes),
            // `max` also replaces NaN.
            logprob: logprob.map(|logprob| logprob.max(LOWEST)),
            bytes: bytes.to_vec(),
        }
    }
}

fn spell(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut text, byte| {
            write!(text, "\\x{byte:02x}").expect("a string takes text");
            text
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_spelled() {
        assert_eq!(spell(" fox".as_bytes()), " fox");
        assert_eq!(spell(b"\xe2\x80"), "bytes:\\xe2\\x80");
    }

    #[test]
    fn every_log_probability_is_a_number() {
        assert_eq!(f32::NEG_INFINITY.max(LOWEST), LOWEST);
        assert_eq!(f32::NAN.max(LOWEST), LOWEST);
    }
}
