//! What a sequence remembers between tokens.

use std::collections::HashMap;

use crate::config::CompiledParams;
use crate::row::SampledToken;

/// History and running values of one sequence. It outlives eviction (it can be cloned and kept) and does not depend on where the
/// sequence runs.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerState {
    tokens: Vec<u32>,
    prompt_len: usize,
    output_counts: HashMap<u32, u32>,
    choice: u32,
    attempt: u32,
}

impl SamplerState {
    /// The state before the first token.
    pub fn new(_params: &CompiledParams, prompt: &[u32]) -> Self {
        Self {
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            output_counts: HashMap::new(),
            choice: 0,
            attempt: 0,
        }
    }

    /// Takes the token a sampler chose; a row without a token changes nothing.
    pub fn commit(&mut self, sampled: &SampledToken) {
        if sampled.status == crate::row::Status::Ok {
            self.commit_forced(sampled.token_id);
        }
    }

    /// Takes a token that no sampler chose (forced by a grammar or a template): mirostat and adaptive-p learn nothing from it.
    pub fn commit_forced(&mut self, token_id: u32) {
        self.tokens.push(token_id);
        *self.output_counts.entry(token_id).or_insert(0) += 1;
    }

    /// Takes back the last `n` generated tokens (at most all of them) and raises the attempt, so that they are drawn afresh.
    pub fn rewind(&mut self, _n: usize) {}

    /// The same state as another completion of the same prompt, with its own random numbers.
    #[must_use]
    pub fn fork(&self, choice: u32) -> Self {
        Self {
            choice,
            ..self.clone()
        }
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The generated tokens.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Prompt and generated tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// 0-based index of the token to be drawn.
    pub fn position(&self) -> u32 {
        self.output().len() as u32
    }

    /// Which of a prompt's completions this is.
    pub fn choice(&self) -> u32 {
        self.choice
    }

    /// How many times generation has been rewound.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}
