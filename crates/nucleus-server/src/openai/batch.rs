//! A request to either endpoint: prompts, and how each is to be continued how many times.

use axum::response::Response;
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::Policy;
use serde_json::{Value, json};

use super::shape::Shape;
use super::{answer, models, policy};
use crate::app::AppState;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::{quote, show};
use crate::openapi::{Bounds, Object, default, either, flag, integer, list, text, token_ids};
use crate::request::{Accepted, Prompt, Settings};

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
    let stop = || text(1, limits.stop_bytes);
    let words = list(text(1, limits.stop_bytes), 0, limits.bad_words);
    let sequences = list(token_ids(1, bounds), 0, usize::MAX);
    let stream_options = json!({
        "type": "object",
        "properties": {"include_usage": {"type": "boolean"}, "include_obfuscation": {"type": "boolean"}},
    });
    object
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
        .field(
            "best_of",
            integer(1, limits.choices as u64),
            "Only the value of `n`: choices are not ranked.",
        )
        .field("stream", flag(false), "Whether the answer comes in parts.")
        .field(
            "stream_options",
            stream_options,
            "`include_usage`: a last part counts tokens. Needs `stream`.",
        )
        .field(
            "stop",
            either([stop(), list(stop(), 0, limits.compatible_stops)]),
            "Strings that end the text.",
        )
        .field(
            "stop_token_ids",
            token_ids(0, bounds),
            "Tokens that end the text.",
        )
        .field(
            "include_stop_str_in_output",
            flag(false),
            "Whether what ended the text is part of it.",
        )
        .field(
            "seed",
            seed_schema(),
            "Same seed, same tokens. -1 is a random one; choice `i` of a prompt uses `seed + i`.",
        )
        .field(
            "repeat_penalty",
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 100}),
            "The same as `repetition_penalty`.",
        )
        .field(
            "typ_p",
            json!({"type": "number", "minimum": 0, "maximum": 1}),
            "The same as `typical_p`.",
        )
        .field(
            "bad_words",
            either([words, sequences]),
            "Words, or sequences of token ids, that may not appear.",
        )
        .sampling(Policy::OpenAi, bounds)
}

/// Any integer of 64 bits, with sign or without.
fn seed_schema() -> Value {
    json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX})
}

/// What only one endpoint has.
pub(super) struct Own {
    pub(super) prompts: Vec<Prompt>,
    /// Whether a text begins with its prompt.
    pub(super) echo: bool,
    /// Whether log-probabilities are wanted, and of how many others.
    pub(super) logprobs: Option<u32>,
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
            max_tokens,
            mut warnings,
        } = own;
        if let Some(id) = fields.string("model")? {
            models::check(&id, state)?;
        }
        let n = choices(&mut fields, prompts.len(), limits)?;
        let stream = stream(&mut fields, &mut warnings)?;
        let max_tokens = length(&mut fields)?.or(max_tokens);
        let settings = settings(&mut fields, state, max_tokens, logprobs)?;
        warnings.extend(policy::check_rest(&fields.rest())?);
        let echoes = prompts.iter().filter(|_| echo);
        Ok(Self {
            echoes: echoes
                .map(|prompt| written_out(prompt, state.engine.tokenizer()))
                .collect(),
            prompts,
            n,
            settings,
            stream,
            warnings,
        })
    }

    /// Hands the request to the engine and answers it.
    pub(super) async fn answer<S: Shape>(mut self, state: AppState) -> Result<Response, ApiError> {
        let (submitting, settings, n) = (state.clone(), self.settings.clone(), self.n);
        let prompts = std::mem::take(&mut self.prompts);
        let submit = move || submit(&settings, prompts, n, &submitting);
        // Tokenising a long prompt takes long, and the engine answers between two steps.
        let accepted = tokio::task::spawn_blocking(submit)
            .await
            .map_err(|_| ApiError::Internal)??;
        self.warn_of_parameters(&accepted);
        answer::respond::<S>(self, accepted, &state).await
    }

    fn warn_of_parameters(&mut self, accepted: &[Accepted]) {
        let Some(first) = accepted.first() else {
            return;
        };
        for warning in &first.warnings {
            self.warnings
                .push(format!("{}: {}", warning.param, warning.message));
        }
        let room = accepted.iter().map(|choice| choice.params.max_tokens).min();
        if let (Some(asked), Some(room)) = (self.settings.max_tokens, room)
            && asked > room
        {
            self.warnings
                .push(format!("max_tokens: there is room for {room} of {asked}"));
        }
    }
}

fn submit(
    settings: &Settings,
    prompts: Vec<Prompt>,
    n: usize,
    state: &AppState,
) -> Result<Vec<Accepted>, ApiError> {
    let mut accepted = Vec::with_capacity(prompts.len() * n);
    for prompt in prompts {
        accepted.extend(settings.submit(state, prompt, n)?);
    }
    Ok(accepted)
}

/// `n`, and `best_of` where it asks for nothing else.
fn choices(fields: &mut Fields, prompts: usize, limits: &Limits) -> Result<usize, ApiError> {
    let most = limits.choices as u64;
    let n = fields.integer("n", 1..=most)?.unwrap_or(1);
    let best_of = fields.value("best_of");
    if best_of.as_ref().is_some_and(|best| *best != json!(n)) {
        return Err(ApiError::Unsupported {
            param: "best_of",
            value: show(&best_of.unwrap_or_default()),
            remedy: format!("choices are not ranked: leave it out, or say n, which is {n}"),
        });
    }
    if n * prompts as u64 > most {
        let given = format!("{n}, with {prompts} prompts,");
        let expected = format!("at most {most} choices together");
        return Err(ApiError::field("n", given, &expected));
    }
    Ok(n as usize)
}

fn length(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    fields.rename("max_completion_tokens", "max_tokens")?;
    let tokens = fields.integer("max_tokens", 1..=u64::from(u32::MAX))?;
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

fn settings(
    fields: &mut Fields,
    state: &AppState,
    max_tokens: Option<usize>,
    logprobs: Option<u32>,
) -> Result<Settings, ApiError> {
    let limits = &state.config.limits;
    fields.rename("repeat_penalty", "repetition_penalty")?;
    fields.rename("typ_p", "typical_p")?;
    seed(fields);
    bad_words(fields, state.engine.tokenizer(), limits)?;
    Ok(Settings {
        max_tokens,
        logprobs,
        stop: fields.stops(limits.compatible_stops, limits.stop_bytes)?,
        stop_token_ids: fields.ids("stop_token_ids")?,
        include_stop: fields
            .boolean("include_stop_str_in_output")?
            .unwrap_or(false),
        params: fields.sampling_params(Policy::OpenAi, state.engine.vocab())?,
    })
}

/// A negative seed is one of 64 bits too, as OpenAI has it; but -1 is a random one, as vLLM and llama.cpp have it.
fn seed(fields: &mut Fields) {
    match fields.value("seed") {
        None => {}
        Some(value) if value.as_i64() == Some(-1) => {}
        Some(value) => {
            let seed = value
                .as_i64()
                .map_or(value, |signed| signed.cast_unsigned().into());
            fields.put("seed", seed);
        }
    }
}

/// Words that are given as text, as vLLM takes them, become token ids: as they begin a line, and as they follow a space.
fn bad_words(fields: &mut Fields, tokenizer: &Tokenizer, limits: &Limits) -> Result<(), ApiError> {
    let Some(value) = fields.value("bad_words") else {
        return Ok(());
    };
    let is_text = |items: &Vec<Value>| !items.is_empty() && items.iter().all(Value::is_string);
    let Some(words) = value.as_array().filter(|items| is_text(items)) else {
        fields.put("bad_words", value);
        return Ok(());
    };
    if words.len() > limits.bad_words {
        let expected = format!("at most {} words", limits.bad_words);
        return Err(ApiError::field("bad_words", show(&value), &expected));
    }
    let mut sequences = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let at = format!("bad_words[{index}]");
        for sequence in spellings(&at, word.as_str().unwrap_or_default(), tokenizer, limits)? {
            if !sequences.contains(&sequence) {
                sequences.push(sequence);
            }
        }
    }
    fields.put("bad_words", json!(sequences));
    Ok(())
}

fn spellings(
    at: &str,
    word: &str,
    tokenizer: &Tokenizer,
    limits: &Limits,
) -> Result<[Vec<u32>; 2], ApiError> {
    let bare = word.trim_start_matches(' ');
    if !(1..=limits.stop_bytes).contains(&bare.len()) {
        let expected = format!("a word of 1 to {} bytes", limits.stop_bytes);
        return Err(ApiError::field(at, quote(word), &expected));
    }
    let encode = |text: &str| {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        tokens.map_err(|error| ApiError::field(at, quote(word), &format!("text: {error}")))
    };
    Ok([encode(bare)?, encode(&format!(" {bare}"))?])
}

fn written_out(prompt: &Prompt, tokenizer: &Tokenizer) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => tokenizer.decode(tokens, false),
        Prompt::Chat(_) => String::new(),
    }
}
