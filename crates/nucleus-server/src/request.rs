//! What every endpoint's request becomes before it goes to the engine.

use nucleus_engine::generate::{Engine, Generation, Request};
use nucleus_sampling::SamplingParams;
use serde::Serialize;

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
    pub(crate) fn submit(self, engine: &Engine) -> Result<Accepted, ApiError> {
        let prompt = engine.tokenizer().encode_prompt(&self.prompt);
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
            params,
            warnings,
            generation,
        })
    }
}

impl From<&nucleus_sampling::Warning> for ParamWarning {
    fn from(warning: &nucleus_sampling::Warning) -> Self {
        Self {
            param: warning.param,
            message: warning.message.clone(),
        }
    }
}
