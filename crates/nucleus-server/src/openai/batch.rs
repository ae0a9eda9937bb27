//! A request to either endpoint: prompts, and how each is to be continued how many times.

use axum::response::Response;
use nucleus_engine::tokenizer::Tokenizer;
use nucleus_sampling::Policy;
use serde_json::{Value, json};

use super::shape::Shape;
use super::{answer, models};
use crate::app::AppState;
use crate::compatible::{self, Asked};
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::{quote, show};
use crate::openapi::{Bounds, Object, default, flag, integer, text};
use crate::policy::OPENAI;
use crate::request::{Accepted, LogprobsWanted, Prompt, Settings, check_choices, choices, submit};

/// Most of the likeliest tokens that are reported for each token.
pub(super) const MAX_TOP_LOGPROBS: u64 = 20;

/// What both endpoints say about their answers.
pub(super) const ANSWERS: &str = "OpenAI's interface with every sampling parameter beside its own fields. Fields that would change the answer \
     and are not implemented are refused; unknown ones are named in the header `x-nucleus-warnings`.";

/// What `max_tokens` is.
pub(super) const MAX_TOKENS_HELP: &str =
    "Most tokens to generate. The end of the context ends the text too.";

/// The fields that both endpoints have, as [`Batch::parse`] reads them.
pub(super) fn fields(object: Object, bounds: &Bounds<'_>) -> Object {
    let limits = bounds.limits;
    let stream_options = json!({
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}},
    });
    let object = object
        .field(
            "model",
            text(0, usize::MAX),
            "The model's name, as `GET /v1/models` gives it; another is refused with 404.",
        )
        .field(
            "max_completion_tokens",
            integer(1, u64::from(u32::MAX)),
            "The same as `max_tokens`.",
        )
        .field(
            "n",
            default(integer(1, limits.choices as u64), 1),
            "Choices for each prompt.",
        )
        .field("stream", flag(false), "Whether the answer comes in parts.")
        .field(
            "stream_options",
            stream_options,
            "`include_usage`: a last part counts tokens. Needs `stream`.",
        )
        .field(
            "return_token_ids",
            flag(false),
            "Whether choices have the ids of their tokens, and of their prompt's.",
        );
    compatible::fields(
        compatible::with_logprobs_mode(object),
        Policy::OpenAi,
        bounds,
    )
}

/// What only one endpoint has.
pub(super) struct Own {
    pub(super) prompts: Vec<Prompt>,
    /// Whether a text begins with its prompt.
    pub(super) echo: bool,
    /// Whether log-probabilities are wanted, and of how many others.
    pub(super) logprobs: Option<u32>,
    /// `best_of` as it is given.
    pub(super) best_of: Option<Value>,
    /// Length where the request does not say.
    pub(super) max_tokens: Option<usize>,
    pub(super) warnings: Vec<String>,
}

/// A request.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) prompts: Vec<Prompt>,
    /// What each choice begins with, by prompt; empty without `echo`.
    pub(super) echoes: Vec<String>,
    /// Choices for each prompt.
    pub(super) n: usize,
    /// Candidates for each prompt, of which the best become choices; as many as those where they are not ranked.
    pub(super) candidates: usize,
    /// Whether choices have the ids of their tokens.
    pub(super) return_token_ids: bool,
    pub(super) settings: Settings,
    /// Absent: one answer at the end.
    pub(super) stream: Option<StreamOptions>,
    pub(super) warnings: Vec<String>,
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct StreamOptions {
    /// Whether the last part says how many tokens there were.
    pub(super) include_usage: bool,
}

impl Batch {
    pub(super) fn parse(mut fields: Fields, own: Own, state: &AppState) -> Result<Self, ApiError> {
        let limits = &state.config.limits;
        let Own {
            prompts,
            echo,
            logprobs,
            best_of,
            max_tokens,
            mut warnings,
        } = own;
        if let Some(id) = fields.string("model")? {
            models::check(&id, state)?;
        }
        let n = choices(&mut fields, "n", prompts.len(), limits)?;
        let stream = stream(&mut fields, &mut warnings)?;
        let candidates = candidates(best_of, n, prompts.len(), stream.is_some(), limits)?;
        let mode = compatible::logprobs_mode(&mut fields)?;
        let return_token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
        let asked = Asked {
            policy: Policy::OpenAi,
            max_tokens: length(&mut fields, echo)?.or(max_tokens),
            logprobs: logprobs.map(|top| LogprobsWanted {
                top,
                mode,
                prompt: echo,
            }),
        };
        compatible::normalise(&mut fields, state)?;
        let settings = compatible::settings(&mut fields, state, asked)?;
        warnings.extend(OPENAI.check(&fields.rest())?);
        let echoes = prompts.iter().filter(|_| echo);
        Ok(Self {
            echoes: echoes
                .map(|prompt| written_out(prompt, state.engine.tokenizer()))
                .collect(),
            prompts,
            n,
            candidates,
            return_token_ids,
            settings,
            stream,
            warnings,
        })
    }

    /// Hands the request to the engine and answers it.
    pub(super) async fn answer<S: Shape>(mut self, state: AppState) -> Result<Response, ApiError> {
        let prompts = std::mem::take(&mut self.prompts);
        let accepted = submit(self.settings.clone(), prompts, self.candidates, &state).await?;
        self.warn_of_parameters(&accepted);
        answer::respond::<S>(self, accepted, &state).await
    }

    fn warn_of_parameters(&mut self, accepted: &[Accepted]) {
        let Some(first) = accepted.first() else {
            return;
        };
        let of_parameters = first.warnings.iter().map(ToString::to_string);
        self.warnings.extend(of_parameters);
        let room = accepted.iter().map(|choice| choice.params.max_tokens).min();
        if let (Some(asked), Some(room)) = (self.settings.max_tokens, room)
            && asked > room
        {
            self.warnings
                .push(format!("max_tokens: there is room for {room} of {asked}"));
        }
    }
}

/// `best_of`: how many candidates there are for the `n` choices of each prompt.
fn candidates(
    best_of: Option<Value>,
    n: usize,
    prompts: usize,
    streams: bool,
    limits: &Limits,
) -> Result<usize, ApiError> {
    let Some(value) = best_of else { return Ok(n) };
    let most = limits.choices;
    let refused = |expected: &str| Err(ApiError::field("best_of", show(&value), expected));
    let given = value
        .as_u64()
        .and_then(|best_of| usize::try_from(best_of).ok());
    match given.filter(|best_of| (n..=most).contains(best_of)) {
        None => refused(&format!("an integer in [{n}, {most}], where n is {n}")),
        // A choice is known to be the best only once all have ended.
        Some(best_of) if best_of > n && streams => {
            refused("possible in a stream, where it must be n")
        }
        Some(best_of) => check_choices("best_of", best_of, prompts, most).map(|()| best_of),
    }
}

/// With `echo` there may be no more than the prompt.
fn length(fields: &mut Fields, echo: bool) -> Result<Option<usize>, ApiError> {
    fields.rename("max_completion_tokens", "max_tokens")?;
    let least = u64::from(!echo);
    let tokens = fields.integer("max_tokens", least..=u64::from(u32::MAX))?;
    Ok(tokens.map(|tokens| tokens as usize))
}

fn stream(
    fields: &mut Fields,
    warnings: &mut Vec<String>,
) -> Result<Option<StreamOptions>, ApiError> {
    let wanted = fields.boolean("stream")?.unwrap_or(false);
    let options = match fields.value("stream_options") {
        None => StreamOptions::default(),
        Some(Value::Object(_)) if !wanted => {
            let expected = "possible without \"stream\": true";
            return Err(ApiError::field(
                "stream_options",
                "an object".into(),
                expected,
            ));
        }
        Some(Value::Object(options)) => {
            let mut options = Fields::lenient(options);
            let include_usage = options.boolean("include_usage")?.unwrap_or(false);
            // Padding against onlookers who measure parts; there is none here, as on a private network.
            options.value("include_obfuscation");
            let rest = options.rest();
            warnings.extend(rest.keys().map(|name| {
                format!(
                    "stream_options: {}: no such field; it is ignored",
                    quote(name)
                )
            }));
            StreamOptions { include_usage }
        }
        Some(other) => return Err(ApiError::field("stream_options", show(&other), "an object")),
    };
    Ok(wanted.then_some(options))
}

fn written_out(prompt: &Prompt, tokenizer: &Tokenizer) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => tokenizer.decode(tokens, false),
        // These have no echo.
        Prompt::Mixed(_) | Prompt::Chat(_) => String::new(),
    }
}
