//! What is said of tokens: their spelling, and how likely they were.

use nucleus_engine::sequence::TokenEvent;
use nucleus_engine::tokenizer::Tokenizer;
use nucleus_sampling::TokenLogprob;
use schemars::JsonSchema;
use serde::Serialize;

/// A token and how likely it was, in the one way or the other.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(super) struct Probability {
    id: u32,
    /// Its text, as far as it is text by itself.
    token: String,
    bytes: Vec<u8>,
    /// Natural logarithm of its probability in the model's own distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    logprob: Option<f32>,
    /// Its probability in the distribution that was drawn from.
    #[serde(skip_serializing_if = "Option::is_none")]
    prob: Option<f32>,
}

/// A token of the output with the likeliest ones in its place.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(super) struct TokenProbability {
    #[serde(flatten)]
    chosen: Probability,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Probability>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_probs: Option<Vec<Probability>>,
}

/// In which way it is said how likely tokens were.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    /// How many of the likeliest tokens are wanted.
    pub(super) n_probs: u32,
    /// Probabilities of the distribution that was drawn from, or log-probabilities of the model's own.
    pub(super) post_sampling: bool,
}

impl Scale<'_> {
    /// A drawn token.
    pub(super) fn report(self, token: &TokenEvent) -> TokenProbability {
        let top = token.top_logprobs.iter().take(self.n_probs as usize);
        // Of what the chain has removed there is nothing to say.
        let top = top.filter(|entry| !self.post_sampling || entry.logprob > f32::NEG_INFINITY);
        let top: Vec<Probability> = top.map(|entry| self.entry(*entry)).collect();
        let chosen = TokenLogprob {
            token_id: token.id,
            logprob: token.logprob,
        };
        let (top_logprobs, top_probs) = if self.post_sampling {
            (None, Some(top))
        } else {
            (Some(top), None)
        };
        TokenProbability {
            chosen: self.entry(chosen),
            top_logprobs,
            top_probs,
        }
    }

    fn entry(self, entry: TokenLogprob) -> Probability {
        let TokenLogprob { token_id, logprob } = entry;
        let bytes = written(self.tokenizer, token_id);
        Probability {
            id: token_id,
            token: beginning(bytes).to_owned(),
            bytes: bytes.to_vec(),
            // `max` also replaces NaN. The lowest number is what llama.cpp says for the logarithm of 0.
            logprob: (!self.post_sampling).then(|| logprob.max(f32::MIN)),
            prob: self.post_sampling.then(|| logprob.exp()),
        }
    }
}

/// A token's bytes; a control token is written as its name.
pub(super) fn written(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    match tokenizer.token_bytes(id) {
        [] => tokenizer.token_text(id).as_bytes(),
        bytes => bytes,
    }
}

/// The longest beginning that is text.
fn beginning(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_character_is_left_out() {
        assert_eq!(beginning(" fox".as_bytes()), " fox");
        assert_eq!(beginning(b"a\xe2\x80"), "a");
        assert_eq!(beginning(b"\x9c"), "");
    }
}
