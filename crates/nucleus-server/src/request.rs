//! What every endpoint's request becomes before it goes to the engine.

use std::time::Instant;

use nucleus_engine::chat_template::{ChatTemplateError, Message};
use nucleus_engine::generate::{Engine, Generation, Request};
use nucleus_engine::tokenizer::EncodeOptions;
use nucleus_sampling::{SamplingParams, random_seed};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::AppState;
use crate::config::Limits;
use crate::error::ApiError;
use crate::metrics::Observed;
use crate::openapi::EffectiveSampling;

/// What is to be continued.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    /// A text. What the model wants before a text is put before it.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// A conversation, which the model's chat template writes out.
    Chat(Vec<Message>),
}

/// How a prompt is to be continued.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) params: SamplingParams,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<u32>,
    /// Whether the stop that ends the text is part of it.
    pub(crate) include_stop: bool,
    /// Whether log-probabilities are reported, and of how many of the likeliest tokens beside each token's own.
    pub(crate) logprobs: Option<u32>,
}

/// A request that the engine has accepted.
pub(crate) struct Accepted {
    pub(crate) generation: Observed,
    pub(crate) params: EffectiveParams,
    /// What the client should be told about its parameters.
    pub(crate) warnings: Vec<ParamWarning>,
}

/// The parameters as they act.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct EffectiveParams {
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) logprobs: bool,
    #[serde(flatten)]
    #[schemars(with = "EffectiveSampling")]
    pub(crate) sampling: SamplingParams,
}

/// A parameter that was accepted and does not do what it says.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct ParamWarning {
    pub(crate) param: &'static str,
    pub(crate) message: String,
}

impl Settings {
    /// Tokenises the prompt and queues `choices` continuations of it, whose seeds follow each other: all of them or none. Blocks
    /// until the engine has answered, at most one step.
    pub(crate) fn submit(
        &self,
        state: &AppState,
        prompt: Prompt,
        choices: usize,
    ) -> Result<Vec<Accepted>, ApiError> {
        let conversation = matches!(prompt, Prompt::Chat(_));
        let settings = self.within(&state.config.limits);
        let submitted = Instant::now();
        let mut accepted = settings
            .submit_all(state, prompt, choices)
            .map_err(|error| {
                if conversation {
                    error.about_messages()
                } else {
                    error
                }
            })?;
        for choice in &mut accepted {
            choice.generation.count_in(&state.metrics, submitted);
        }
        Ok(accepted)
    }

    /// The same, asking for no more than the operator allows.
    fn within(&self, limits: &Limits) -> Self {
        let most = limits.output_tokens;
        let asked = self.max_tokens.or(most);
        Self {
            max_tokens: asked.map(|tokens| tokens.min(most.unwrap_or(usize::MAX))),
            ..self.clone()
        }
    }

    fn submit_all(
        &self,
        state: &AppState,
        prompt: Prompt,
        choices: usize,
    ) -> Result<Vec<Accepted>, ApiError> {
        let tokens = encode(prompt, state)?;
        check_length(tokens.len(), &state.config.limits)?;
        let room = state
            .engine
            .spec()
            .context_length
            .saturating_sub(tokens.len());
        let first = self.params.seed.unwrap_or_else(random_seed);
        let request = |choice| self.request(tokens.clone(), first.wrapping_add(choice));
        let requests = (0..choices as u64).map(request).collect();
        let generations = state.engine.submit_together(requests)?;
        Ok(generations
            .into_iter()
            .map(|generation| self.accepted(generation, room))
            .collect())
    }

    fn request(&self, prompt: Vec<u32>, seed: u64) -> Request {
        Request {
            prompt,
            params: SamplingParams {
                seed: Some(seed),
                ..self.params.clone()
            },
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            include_stop: self.include_stop,
            stop_token_ids: self.stop_token_ids.clone(),
            top_logprobs: self.logprobs.unwrap_or(0),
            ..Request::default()
        }
    }

    /// What the client is told of a request for whose output the context has `room`.
    fn accepted(&self, generation: Generation, room: usize) -> Accepted {
        let compiled = generation.params();
        let params = EffectiveParams {
            max_tokens: self.max_tokens.unwrap_or(room).min(room),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            logprobs: self.logprobs.is_some(),
            sampling: compiled.effective().clone(),
        };
        let warnings = compiled.warnings().iter().map(ParamWarning::from).collect();
        Accepted {
            generation: generation.into(),
            params,
            warnings,
        }
    }
}

fn check_length(tokens: usize, limits: &Limits) -> Result<(), ApiError> {
    match limits.prompt_tokens {
        Some(limit) if tokens > limit => Err(ApiError::PromptTokens { tokens, limit }),
        _ => Ok(()),
    }
}

/// The prompt's tokens. Control tokens that are written out in it are those tokens: it is the whole text that the model sees.
fn encode(prompt: Prompt, state: &AppState) -> Result<Vec<u32>, ApiError> {
    let add_bos = state.engine.tokenizer().add_bos();
    match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(text) => encode_text(&text, add_bos, state),
        Prompt::Chat(messages) => {
            let text = render(&messages, state)?;
            // The template has written the beginning of the text too.
            encode_text(&text, false, state)
        }
    }
}

fn render(messages: &[Message], state: &AppState) -> Result<String, ApiError> {
    let template = state.chat_template.as_ref();
    let template = template.ok_or_else(|| ApiError::no_chat_template(&state.engine))?;
    template.render(messages).map_err(|error| match error {
        ChatTemplateError::Thread(_) => ApiError::Internal,
        error => ApiError::Messages(error.to_string()),
    })
}

fn encode_text(text: &str, add_bos: bool, state: &AppState) -> Result<Vec<u32>, ApiError> {
    let (bytes, limit) = (text.len(), state.prompt_bytes);
    if bytes > limit {
        let context_length = state.engine.spec().context_length;
        return Err(ApiError::PromptBytes {
            bytes,
            limit,
            context_length,
        });
    }
    let options = EncodeOptions {
        add_bos,
        parse_special: true,
    };
    let tokens = state.engine.tokenizer().encode(text, options);
    tokens.map_err(|error| ApiError::Prompt(error.to_string()))
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
