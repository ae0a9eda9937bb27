//! `POST /v1/chat/completions`: a conversation, continued.

use axum::extract::State;
use axum::response::Response;
use nucleus_engine::chat_template::Message;
use serde_json::{Map, Value, json};

use super::answer::{Body, Data};
use super::batch::{self, Batch, MAX_TOP_LOGPROBS, Own};
use super::shape::{Chat, ChatChoice, ChatPart};
use crate::app::AppState;
use crate::body::JsonObject;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::{quote, show};
use crate::openapi::{
    Bounds, Endpoint, Group, Object, default, either, flag, integer, list, refusal, text,
};
use crate::request::Prompt;

pub(super) fn endpoint() -> Endpoint {
    Endpoint::post("/v1/chat/completions", chat_completions)
        .group(Group::OpenAi)
        .says("Answers a conversation", batch::ANSWERS)
        .takes(schema)
        .answers::<Body<ChatChoice>>(200, "The answers")
        .streams_until_done::<Data<ChatPart>>("their parts, then `[DONE]`")
        .refuses(&[404])
        .refuses(refusal::GENERATION)
}

/// How `messages` is described.
pub(crate) fn messages_schema() -> Value {
    let part = json!({
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    });
    let message = json!({
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": either([text(0, usize::MAX), list(part, 1, usize::MAX)]),
        },
        "required": ["role", "content"],
    });
    list(message, 1, usize::MAX)
}

/// What [`parse`] reads.
fn schema(bounds: &Bounds<'_>) -> Object {
    let object = Object::lenient()
        .required(
            "messages",
            messages_schema(),
            "The conversation so far, which the model's chat template writes out.",
        )
        .field(
            "logprobs",
            flag(false),
            "Whether to report the log-probability of each token.",
        )
        .field(
            "top_logprobs",
            default(integer(0, MAX_TOP_LOGPROBS), 0),
            "Of how many of the likeliest tokens, too. Needs `logprobs`.",
        )
        .field(
            "max_tokens",
            integer(1, u64::from(u32::MAX)),
            batch::MAX_TOKENS_HELP,
        );
    batch::fields(object, bounds).example(json!({
        "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12, "seed": 1,
    }))
}

async fn chat_completions(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    if state.chat_template.is_none() {
        return Err(ApiError::no_chat_template(&state.engine));
    }
    parse(body, &state)?.answer::<Chat>(state).await
}

fn parse(body: Map<String, Value>, state: &AppState) -> Result<Batch, ApiError> {
    let mut fields = Fields::lenient(body);
    let mut warnings = Vec::new();
    let messages = messages(fields.value("messages"), &mut warnings)?;
    let own = Own {
        prompts: vec![Prompt::Chat(messages)],
        echo: false,
        logprobs: logprobs(&mut fields)?,
        best_of: None,
        max_tokens: None,
        warnings,
    };
    Batch::parse(fields, own, state)
}

/// `logprobs` says whether, `top_logprobs` of how many others.
fn logprobs(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (wanted, top.unwrap_or(0)) {
        (true, top) => Ok(Some(top as u32)),
        (false, 0) => Ok(None),
        (false, top) => Err(ApiError::field(
            "top_logprobs",
            top.to_string(),
            "possible without \"logprobs\": true",
        )),
    }
}

/// The messages of a conversation; `warnings` gets what the template does not see of them.
pub(crate) fn messages(
    value: Option<Value>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Message>, ApiError> {
    const EXPECTED: &str = "an array of messages that is not empty";
    match value {
        None => Err(ApiError::MissingField {
            param: "messages",
            expected: EXPECTED.into(),
        }),
        Some(Value::Array(items)) if !items.is_empty() => items
            .into_iter()
            .enumerate()
            .map(|(index, item)| message(&format!("messages[{index}]"), item, warnings))
            .collect(),
        Some(other) => Err(ApiError::field("messages", show(&other), EXPECTED)),
    }
}

/// One message; `at` is its place.
fn message(at: &str, value: Value, warnings: &mut Vec<String>) -> Result<Message, ApiError> {
    let Value::Object(object) = value else {
        return Err(ApiError::field(at, show(&value), "an object"));
    };
    let mut fields = Fields::lenient(object);
    let role = role(at, fields.value("role"))?;
    let content = content(at, fields.value("content"))?;
    for (name, value) in fields.rest() {
        match name.as_str() {
            "tool_calls" | "function_call" | "tool_call_id" | "audio" => {
                let at = format!("{at}.{name}");
                return Err(ApiError::field(
                    at,
                    show(&value),
                    "supported here; leave it out",
                ));
            }
            // Whether a response carries it or not, it goes back with the next request.
            "refusal" | "annotations" => {}
            _ => warnings.push(format!(
                "{at}: {}: the chat template does not see it",
                quote(&name)
            )),
        }
    }
    Ok(Message { role, content })
}

/// Who speaks. What OpenAI's newer models call developer, templates call system.
fn role(at: &str, value: Option<Value>) -> Result<String, ApiError> {
    const EXPECTED: &str = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let value = value.unwrap_or(Value::Null);
    match value.as_str() {
        Some(role @ ("system" | "user" | "assistant")) => Ok(role.to_owned()),
        Some("developer") => Ok("system".to_owned()),
        _ => Err(ApiError::field(
            format!("{at}.role"),
            show(&value),
            EXPECTED,
        )),
    }
}

/// What is said: a string, or parts of text, which are lines.
fn content(at: &str, value: Option<Value>) -> Result<String, ApiError> {
    let at = format!("{at}.content");
    match value.unwrap_or(Value::Null) {
        Value::String(text) => Ok(text),
        Value::Array(parts) if !parts.is_empty() => {
            let lines: Result<Vec<String>, ApiError> = parts
                .iter()
                .enumerate()
                .map(|(index, value)| part(&format!("{at}[{index}]"), value))
                .collect();
            Ok(lines?.join("\n"))
        }
        other => {
            let expected = "a string or an array of parts of type \"text\"";
            Err(ApiError::field(at, show(&other), expected))
        }
    }
}

fn part(at: &str, value: &Value) -> Result<String, ApiError> {
    match (value["type"].as_str(), value["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some(kind), _) if kind != "text" => {
            let kind = quote(kind);
            Err(ApiError::field(format!("{at}.type"), kind, "\"text\""))
        }
        _ => {
            let expected = "a part of type \"text\" with a text";
            Err(ApiError::field(at, show(value), expected))
        }
    }
}
