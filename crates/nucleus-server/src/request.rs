//! What every endpoint's request becomes before it goes to the engine.

use nucleus_engine::generate::{Engine, Generation, Request};
use nucleus_engine::tokenizer::EncodeOptions;
use nucleus_sampling::SamplingParams;
use serde::Serialize;

use crate::app::AppState;
use crate::error::ApiError;

/// A request in the engine's terms, but for its prompt, which is still text.
#[derive(Debug, Clone)]
pub(crate) struct TextRequest {
    pub(crate) prompt: String,
    pub(crate) params: SamplingParams,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    /// Whether each token's log-probability is reported.
    pub(crate) logprobs: bool,
}

/// A request that the engine has accepted.
pub(crate) struct Accepted {
    pub(crate) generation: Generation,
    pub(crate) params: EffectiveParams,
    /// What the client should be told about its parameters.
    pub(crate) warnings: Vec<ParamWarning>,
}

/// The parameters as they act.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct EffectiveParams {
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: bool,
    #[serde(flatten)]
    pub(crate) sampling: SamplingParams,
}

/// A parameter that was accepted and does not do what it says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ParamWarning {
    pub(crate) param: &'static str,
    pub(crate) message: String,
}

impl TextRequest {
    /// Tokenises the prompt and queues the request. Blocks until the engine has answered, at most one step.
    pub(crate) fn submit(self, state: &AppState) -> Result<Accepted, ApiError> {
        let engine = &state.engine;
        let prompt = self.encode(state)?;
        let room = engine.spec().context_length.saturating_sub(prompt.len());
        let max_tokens = self.max_tokens.unwrap_or(room).min(room);
        let generation = engine.submit(Request {
            prompt,
            params: self.params,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
        })?;
        let compiled = generation.params();
        let params = EffectiveParams {
            max_tokens,
            stop: self.stop,
            logprobs: self.logprobs,
            sampling: compiled.effective().clone(),
        };
        let warnings = compiled.warnings().iter().map(ParamWarning::from).collect();
        Ok(Accepted {
            generation,
            params,
            warnings,
        })
    }

    /// The prompt is the whole text that the model sees: control tokens written out in it are those tokens.
    fn encode(&self, state: &AppState) -> Result<Vec<u32>, ApiError> {
        let (bytes, limit) = (self.prompt.len(), state.prompt_bytes);
        if bytes > limit {
            let context_length = state.engine.spec().context_length;
            return Err(ApiError::PromptBytes {
                bytes,
                limit,
                context_length,
            });
        }
        let tokenizer = state.engine.tokenizer();
        let options = EncodeOptions {
            add_bos: tokenizer.add_bos(),
            parse_special: true,
        };
        tokenizer
            .encode(&self.prompt, options)
            .map_err(|error| ApiError::Prompt(error.to_string()))
    }
}

/// Bytes of the longest text that could fit the context: a longer prompt need not be tokenised to be refused.
pub(crate) fn longest_prompt(engine: &Engine) -> usize {
    let tokenizer = engine.tokenizer();
    let bytes = |id| {
        tokenizer
            .token_bytes(id)
            .len()
            .max(tokenizer.token_text(id).len())
    };
    let longest = (0..tokenizer.vocab_size() as u32)
        .map(bytes)
        .max()
        .unwrap_or(0);
    longest.saturating_mul(engine.spec().context_length)
}

impl From<&nucleus_sampling::Warning> for ParamWarning {
    fn from(warning: &nucleus_sampling::Warning) -> Self {
        Self {
            param: warning.param,
            message: warning.message.clone(),
        }
    }
}
