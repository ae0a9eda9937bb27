//! What every endpoint's request becomes before it goes to the engine.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use nucleus_engine::breakers::breaker_sequences;
use nucleus_engine::chat_template::{ChatTemplateError, Message, RenderOptions};
use nucleus_engine::constraint::Constraint;
use nucleus_engine::generate::{Engine, Generation, Request, TimeLimits};
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::{LogprobsMode, SamplingParams, random_seed};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::app::AppState;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::metrics::Observed;
use crate::openapi::EffectiveSampling;
use crate::output_format::OutputFormat;

/// What is to be continued.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// A text. What the model wants before a text is put before it.
    Text(String),
    /// Tokens, as they are.
    Tokens(Vec<u32>),
    /// Texts and tokens, one behind the other. What the model wants before a text is put before the first, if that is a text.
    Mixed(Vec<Piece>),
    /// A conversation, which the model's chat template writes out.
    Chat(Vec<Message>),
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    Token(u32),
}

/// Which log-probabilities are reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogprobsWanted {
    /// Of how many of the likeliest tokens beside each token's own.
    pub(crate) top: u32,
    pub(crate) mode: LogprobsMode,
    /// Whether those of the prompt's tokens are reported too.
    pub(crate) prompt: bool,
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
    pub(crate) logprobs: Option<LogprobsWanted>,
    pub(crate) time_limits: TimeLimits,
    /// What the text must be.
    pub(crate) output_format: Option<OutputFormat>,
    /// DRY's sequence breakers where they are given as text.
    pub(crate) dry_breakers: Vec<String>,
}

/// A request that the engine has accepted.
pub(crate) struct Accepted {
    pub(crate) generation: Observed,
    /// The prompt's tokens.
    pub(crate) prompt: Arc<[u32]>,
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
    /// Milliseconds that the request may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_time_ms: Option<u64>,
    /// What the text must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) structured_outputs: Option<Value>,
    /// Sequence breakers that were given as text; [`EffectiveSampling`] describes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    pub(crate) dry_sequence_breakers: Vec<String>,
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

/// Hands prompts to the engine, each to be continued `n` times; the answers are in the order of prompts, then of choices.
pub(crate) async fn submit(
    mut settings: Settings,
    prompts: Vec<Prompt>,
    n: usize,
    state: &AppState,
) -> Result<Vec<Accepted>, ApiError> {
    let constraint = match &settings.output_format {
        Some(format) => Some(compile(format.clone(), state).await?),
        None => None,
    };
    let state = state.clone();
    let submit = move || {
        let tokenizer = state.engine.tokenizer();
        settings.params = with_breakers(settings.params, &settings.dry_breakers, tokenizer)?;
        let mut accepted = Vec::with_capacity(prompts.len() * n);
        for prompt in prompts {
            accepted.extend(settings.submit(&state, prompt, n, constraint.as_ref())?);
        }
        Ok(accepted)
    };
    // Tokenising a long prompt takes long, and the engine answers between two steps.
    tokio::task::spawn_blocking(submit)
        .await
        .map_err(|_| ApiError::Internal)?
}

/// Compiles an output format when there is leave to.
async fn compile(format: OutputFormat, state: &AppState) -> Result<Constraint, ApiError> {
    let leave = Arc::clone(&state.compiling);
    let leave = leave.acquire_owned().await.expect("it is never closed");
    let engine = state.engine.clone();
    let compile = move || {
        // Even if the client has left meanwhile.
        let _leave = leave;
        format.compile(&engine)
    };
    tokio::task::spawn_blocking(compile)
        .await
        .map_err(|_| ApiError::Internal)?
}

/// The number of choices for each prompt, in the field of that name; together they may be as many as the limit says.
pub(crate) fn choices(
    fields: &mut Fields,
    name: &'static str,
    prompts: usize,
    limits: &Limits,
) -> Result<usize, ApiError> {
    let most = limits.choices;
    let n = fields.integer(name, 1..=most as u64)?.unwrap_or(1) as usize;
    check_choices(name, n, prompts, most).map(|()| n)
}

/// Refuses more choices together than there may be.
pub(crate) fn check_choices(
    name: &'static str,
    n: usize,
    prompts: usize,
    most: usize,
) -> Result<(), ApiError> {
    if n * prompts <= most {
        return Ok(());
    }
    let expected = format!("at most {most} choices together");
    Err(if n == 1 {
        ApiError::field("prompt", format!("an array of {prompts}"), &expected)
    } else {
        ApiError::field(name, format!("{n}, with {prompts} prompts,"), &expected)
    })
}

/// The parameters with sequence breakers as token ids, where they are given as text. Without DRY they are not looked for.
pub(crate) fn with_breakers(
    mut params: SamplingParams,
    texts: &[String],
    tokenizer: &Tokenizer,
) -> Result<SamplingParams, ApiError> {
    if texts.is_empty() {
        return Ok(params);
    }
    let acts = params.dry_multiplier.is_some_and(|strength| strength > 0.0);
    let mut sequences = Vec::new();
    for text in texts.iter().filter(|_| acts) {
        let found = breaker_sequences(tokenizer, text);
        sequences.extend(found.map_err(|error| {
            let text = crate::json::quote(text);
            ApiError::field("dry_sequence_breakers", text, &error.to_string())
        })?);
    }
    sequences.sort_unstable();
    sequences.dedup();
    params.dry_sequence_breakers = Some(sequences);
    Ok(params)
}

impl Settings {
    /// Tokenises the prompt and queues `choices` continuations of it, whose seeds follow each other: all of them or none. Blocks
    /// until the engine has answered, at most one step.
    fn submit(
        &self,
        state: &AppState,
        prompt: Prompt,
        choices: usize,
        constraint: Option<&Constraint>,
    ) -> Result<Vec<Accepted>, ApiError> {
        let conversation = matches!(prompt, Prompt::Chat(_));
        let settings = self.within(&state.config.limits);
        let submitted = Instant::now();
        let mut accepted = settings
            .submit_all(state, prompt, choices, constraint)
            .map_err(|error| {
                if conversation {
                    error.about("messages")
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
        constraint: Option<&Constraint>,
    ) -> Result<Vec<Accepted>, ApiError> {
        let tokens = encode(prompt, state)?;
        check_length(tokens.len(), &state.config.limits)?;
        let prompt: Arc<[u32]> = tokens.as_slice().into();
        let room = state
            .engine
            .spec()
            .context_length
            .saturating_sub(tokens.len());
        let first = self.params.seed.unwrap_or_else(random_seed);
        let request = |choice| Request {
            constraint: constraint.cloned(),
            ..self.request(tokens.clone(), first.wrapping_add(choice))
        };
        let requests = (0..choices as u64).map(request).collect();
        let generations = state.engine.submit_together(requests)?;
        Ok(generations
            .into_iter()
            .map(|generation| self.accepted(generation, Arc::clone(&prompt), room))
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
            constraint: None,
            top_logprobs: self.logprobs.map_or(0, |wanted| wanted.top),
            logprobs_mode: self
                .logprobs
                .map_or(LogprobsMode::Raw, |wanted| wanted.mode),
            prompt_logprobs: self.logprobs.is_some_and(|wanted| wanted.prompt),
            first_logits: false,
            time_limits: self.time_limits,
        }
    }

    /// What the client is told of a request for whose output the context has `room`.
    fn accepted(&self, generation: Generation, prompt: Arc<[u32]>, room: usize) -> Accepted {
        let compiled = generation.params();
        let mut sampling = compiled.effective().clone();
        if !self.dry_breakers.is_empty() {
            sampling.dry_sequence_breakers = None;
        }
        let total_time = self.time_limits.total;
        let params = EffectiveParams {
            max_tokens: self.max_tokens.unwrap_or(room).min(room),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            logprobs: self.logprobs.is_some(),
            max_time_ms: total_time.map(|limit| limit.as_millis() as u64),
            structured_outputs: self.output_format.as_ref().map(OutputFormat::told),
            dry_sequence_breakers: self.dry_breakers.clone(),
            sampling,
        };
        let warnings = compiled.warnings().iter().map(ParamWarning::from).collect();
        Accepted {
            generation: generation.into(),
            prompt,
            params,
            warnings,
        }
    }
}

/// Refuses more tokens than the operator allows in a prompt.
pub(crate) fn check_length(tokens: usize, limits: &Limits) -> Result<(), ApiError> {
    match limits.prompt_tokens {
        Some(limit) if tokens > limit => Err(ApiError::PromptTokens { tokens, limit }),
        _ => Ok(()),
    }
}

/// The prompt's tokens. Control tokens that are written out in it are those tokens: it is the whole text that the model sees.
pub(crate) fn encode(prompt: Prompt, state: &AppState) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Tokens(tokens) => Ok(tokens),
        Prompt::Text(text) => encode_bounded(&[Piece::Text(text)], Added::Before, state),
        Prompt::Mixed(pieces) => encode_bounded(&pieces, Added::Before, state),
        Prompt::Chat(messages) => {
            let text = render(&messages, true, state)?;
            // The template has written the beginning of the text too.
            encode_bounded(&[Piece::Text(text)], Added::Nothing, state)
        }
    }
}

/// The conversation as the model's template writes it out, with the beginning of an answer if one is to follow.
pub(crate) fn render(
    messages: &[Message],
    add_generation_prompt: bool,
    state: &AppState,
) -> Result<String, ApiError> {
    let template = state.chat_template.as_ref();
    let template = template.ok_or_else(|| ApiError::no_chat_template(&state.engine))?;
    let options = RenderOptions {
        add_generation_prompt,
    };
    let prompt = template.render_with(messages, options);
    prompt.map_err(|error| match error {
        ChatTemplateError::Thread(_) => ApiError::Internal,
        error => ApiError::Messages(error.to_string()),
    })
}

/// The tokens that are put around a text, as far as the model wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    /// None: something else has written them.
    Nothing,
    /// Beginning of text: what follows continues the text.
    Before,
    /// Beginning and end: the text is whole.
    Around,
}

/// [`encode_pieces`], for texts that could fit the context.
fn encode_bounded(pieces: &[Piece], added: Added, state: &AppState) -> Result<Vec<u32>, ApiError> {
    let bytes = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => text.len(),
        Piece::Token(_) => 0,
    });
    let (bytes, limit) = (bytes.sum(), state.prompt_bytes);
    if bytes > limit {
        let context_length = state.engine.spec().context_length;
        return Err(ApiError::PromptBytes {
            bytes,
            limit,
            context_length,
        });
    }
    encode_pieces(state.engine.tokenizer(), pieces, added, true)
}

/// The tokens of texts and tokens, one behind the other. The first, if it is a text, begins with what is added, and the last,
/// if it is one, ends with it.
pub(crate) fn encode_pieces(
    tokenizer: &Tokenizer,
    pieces: &[Piece],
    added: Added,
    parse_special: bool,
) -> Result<Vec<u32>, ApiError> {
    let mut tokens = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Token(id) => tokens.push(*id),
            Piece::Text(text) => {
                let options = EncodeOptions {
                    add_bos: added != Added::Nothing && index == 0 && tokenizer.add_bos(),
                    add_eos: added == Added::Around
                        && index + 1 == pieces.len()
                        && tokenizer.add_eos(),
                    parse_special,
                };
                let more = tokenizer.encode(text, options);
                tokens.extend(more.map_err(|error| ApiError::Prompt(error.to_string()))?);
            }
        }
    }
    Ok(tokens)
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

impl fmt::Display for ParamWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.param, self.message)
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use nucleus_engine::gguf::{Metadata, Value};

    use super::*;

    /// A vocabulary whose texts stand between `[CLS]` and `[SEP]`.
    fn bert() -> Tokenizer {
        let keys = [
            ("tokenizer.ggml.model", Value::String("bert".into())),
            (
                "tokenizer.ggml.tokens",
                Value::Strings(["[UNK]", "[CLS]", "[SEP]", "▁a"].iter().collect()),
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Numbers(vec![3, 3, 3, 1].into()),
            ),
        ];
        let keys: HashMap<String, Value> = keys.map(|(key, value)| (key.to_owned(), value)).into();
        Tokenizer::from_gguf(&Metadata::new(keys)).unwrap()
    }

    #[test]
    fn a_prompt_is_begun_and_only_a_whole_text_is_ended() {
        let tokenizer = bert();
        let text = || Piece::Text("a".to_owned());
        let encode =
            |pieces: &[Piece], added| encode_pieces(&tokenizer, pieces, added, true).unwrap();
        assert_eq!(encode(&[text()], Added::Nothing), [3]);
        assert_eq!(encode(&[text()], Added::Before), [1, 3]);
        assert_eq!(encode(&[text()], Added::Around), [1, 3, 2]);
        let mixed = [text(), Piece::Token(0), text()];
        assert_eq!(encode(&mixed, Added::Around), [1, 3, 0, 3, 2]);
        let tokens_around = [Piece::Token(0), text(), Piece::Token(0)];
        assert_eq!(encode(&tokens_around, Added::Around), [0, 3, 0]);
    }
}
