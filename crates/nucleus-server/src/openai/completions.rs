//! `POST /v1/completions`: texts or tokens, continued.

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::answer::{Body, Data};
use super::batch::{self, Batch, MAX_TOP_LOGPROBS, Own};
use super::shape::{Text, TextChoice};
use crate::app::AppState;
use crate::body::JsonObject;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::show;
use crate::openapi::{
    Bounds, Endpoint, Group, Object, default, either, flag, integer, list, refusal, text, token_ids,
};
use crate::param_json;
use crate::request::Prompt;

/// How long a text gets when the request does not say, as OpenAI and vLLM have it.
const DEFAULT_MAX_TOKENS: usize = 16;

const PROMPT: &str = "a string, an array of strings, an array of token ids or an array of such arrays, none of them empty";

pub(super) fn endpoint() -> Endpoint {
    Endpoint::post("/v1/completions", completions)
        .group(Group::OpenAi)
        .says("Continues texts", batch::ANSWERS)
        .takes(schema)
        .answers::<Body<TextChoice>>(200, "The texts")
        .streams_until_done::<Data<TextChoice>>("their parts, then `[DONE]`")
        .refuses(&[404])
        .refuses(refusal::GENERATION)
}

/// What [`parse`] reads.
fn schema(bounds: &Bounds<'_>) -> Object {
    let tokens = || token_ids(1, bounds);
    let string = || text(1, usize::MAX);
    let most = bounds.limits.choices;
    let shapes = [
        string(),
        list(string(), 1, most),
        tokens(),
        list(tokens(), 1, most),
    ];
    let object = Object::lenient()
        .required(
            "prompt",
            either(shapes),
            "What to continue: a text, token ids, or several of them.",
        )
        .field(
            "echo",
            flag(false),
            "Whether each text begins with its prompt.",
        )
        .field(
            "logprobs",
            integer(0, MAX_TOP_LOGPROBS),
            "Reports the log-probability of each token, and of this many of the likeliest; with `echo` of the prompt's, too.",
        )
        .field(
            "best_of",
            integer(1, most as u64),
            "Candidates for each prompt, of which the `n` of the highest mean log-probability are answered. At least `n`; not in a stream.",
        )
        .field(
            "max_tokens",
            default(integer(1, u64::from(u32::MAX)), DEFAULT_MAX_TOKENS),
            batch::MAX_TOKENS_HELP,
        );
    batch::fields(object, bounds).example(
        json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.8, "seed": 7}),
    )
}

async fn completions(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    parse(body, &state)?.answer::<Text>(state).await
}

fn parse(body: Map<String, Value>, state: &AppState) -> Result<Batch, ApiError> {
    let mut fields = Fields::lenient(body);
    let prompts = prompts(fields.value("prompt"))?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
    let best_of = fields.value("best_of");
    let own = Own {
        prompts,
        echo,
        logprobs: logprobs.map(|top| top as u32),
        best_of,
        max_tokens: Some(DEFAULT_MAX_TOKENS),
        warnings: Vec::new(),
    };
    Batch::parse(fields, own, state)
}

fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let Some(value) = value else {
        return Err(ApiError::MissingField {
            param: "prompt",
            expected: PROMPT.into(),
        });
    };
    let refused = ApiError::field("prompt", show(&value), PROMPT);
    let several = |items: Vec<Value>| items.into_iter().map(one).collect();
    let prompts: Option<Vec<Prompt>> = match value {
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            one(Value::Array(items)).map(|prompt| vec![prompt])
        }
        Value::Array(items) => several(items),
        value => one(value).map(|prompt| vec![prompt]),
    };
    prompts.filter(|prompts| !prompts.is_empty()).ok_or(refused)
}

/// A text or tokens, if there are any.
fn one(value: Value) -> Option<Prompt> {
    match value {
        Value::String(text) if !text.is_empty() => Some(Prompt::Text(text)),
        ids => param_json::ids(&ids)
            .filter(|ids| !ids.is_empty())
            .map(Prompt::Tokens),
    }
}
