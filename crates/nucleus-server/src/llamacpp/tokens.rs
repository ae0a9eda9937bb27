//! `POST /tokenize`, `POST /detokenize`, `POST /apply-template`: between texts, tokens and conversations.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nucleus_engine::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::probability::written;
use super::prompt;
use crate::app::AppState;
use crate::body::JsonObject;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::show;
use crate::openai;
use crate::openapi::{Bounds, Endpoint, Group, Object, either, flag, list, text, token_ids};
use crate::policy::TEMPLATE;
use crate::request::{Added, Piece, encode_pieces, render};
use crate::warnings;

const CONTENT: &str = "a string, or an array of strings and token ids";

/// The tokens of a text.
#[derive(Debug, Serialize, JsonSchema)]
struct Tokens {
    tokens: Vec<Token>,
}

/// A token: its id, or with `with_pieces` its text too.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LlamaCppToken")]
enum Token {
    Id(u32),
    Piece { id: u32, piece: TokenText },
}

/// A token's text; its bytes if they are no text by themselves.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Bytes(Vec<u8>),
}

/// The text of tokens.
#[derive(Debug, Serialize, JsonSchema)]
struct Content {
    content: String,
}

/// A conversation as the model's template writes it out.
#[derive(Debug, Serialize, JsonSchema)]
struct Templated {
    prompt: String,
}

pub(super) fn endpoints() -> [Endpoint; 3] {
    [
        Endpoint::post("/tokenize", tokenize)
            .group(Group::LlamaCpp)
            .says(
                "Turns text into tokens",
                "With `with_pieces` each token comes with its text, or its bytes where they are no text by themselves.",
            )
            .takes(tokenize_schema)
            .answers::<Tokens>(200, "The tokens")
            .refuses(&[500]),
        Endpoint::post("/detokenize", detokenize)
            .group(Group::LlamaCpp)
            .says(
                "Turns tokens into text",
                "Control tokens are written as their names.",
            )
            .takes(detokenize_schema)
            .answers::<Content>(200, "The text"),
        Endpoint::post("/apply-template", apply_template)
            .group(Group::LlamaCpp)
            .says(
                "Writes a conversation out",
                "The prompt that `POST /v1/chat/completions` would make of the messages, ready for `POST /completion`.",
            )
            .takes(template_schema)
            .answers::<Templated>(200, "The prompt")
            .refuses(&[500]),
    ]
}

fn tokenize_schema(_: &Bounds<'_>) -> Object {
    let mixed = list(json!({"type": ["string", "integer"]}), 0, usize::MAX);
    Object::lenient()
        .required(
            "content",
            either([text(0, usize::MAX), mixed]),
            "The text; in an array, strings are tokenised and token ids are taken as they are.",
        )
        .field(
            "add_special",
            flag(false),
            "Whether to begin and end as a whole text does, with the tokens that the model wants there.",
        )
        .field(
            "parse_special",
            flag(true),
            "Whether control tokens that are written out are those tokens.",
        )
        .field(
            "with_pieces",
            flag(false),
            "Whether each token comes with its text.",
        )
        .example(json!({"content": "Once upon a time", "with_pieces": true}))
}

async fn tokenize(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let mut fields = Fields::lenient(body);
    let pieces = content(fields.value("content"))?;
    let added = match fields.boolean("add_special")? {
        Some(true) => Added::Around,
        Some(false) | None => Added::Nothing,
    };
    let parse_special = fields.boolean("parse_special")?.unwrap_or(true);
    let with_pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    let headers = warnings::headers(&unknown(fields.rest()));
    let work = move || {
        let tokenizer = state.engine.tokenizer();
        let tokens = encode_pieces(tokenizer, &pieces, added, parse_special);
        let tokens = tokens.map_err(|error| error.about("content"))?;
        Ok(tokens
            .into_iter()
            .map(|id| token(tokenizer, id, with_pieces))
            .collect())
    };
    // A long text takes long.
    let tokens: Result<Vec<Token>, ApiError> = tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ApiError::Internal)?;
    Ok((headers, Json(Tokens { tokens: tokens? })).into_response())
}

fn content(value: Option<Value>) -> Result<Vec<Piece>, ApiError> {
    let pieces = match &value {
        None => {
            return Err(ApiError::MissingField {
                param: "content",
                expected: CONTENT.into(),
            });
        }
        Some(Value::String(text)) => Some(vec![Piece::Text(text.clone())]),
        Some(Value::Array(items)) => prompt::pieces(items),
        Some(_) => None,
    };
    pieces.ok_or_else(|| ApiError::field("content", show(&value.unwrap_or_default()), CONTENT))
}

fn token(tokenizer: &Tokenizer, id: u32, with_pieces: bool) -> Token {
    if !with_pieces {
        return Token::Id(id);
    }
    let bytes = written(tokenizer, id);
    let piece = match std::str::from_utf8(bytes) {
        Ok(text) => TokenText::Text(text.to_owned()),
        Err(_) => TokenText::Bytes(bytes.to_vec()),
    };
    Token::Piece { id, piece }
}

fn detokenize_schema(bounds: &Bounds<'_>) -> Object {
    Object::lenient()
        .required("tokens", token_ids(0, bounds), "The tokens.")
        .example(json!({"tokens": [451, 311, 261]}))
}

async fn detokenize(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let mut fields = Fields::lenient(body);
    if !fields.has("tokens") {
        return Err(ApiError::MissingField {
            param: "tokens",
            expected: "an array of token ids".into(),
        });
    }
    let tokens = fields.ids("tokens")?;
    let tokenizer = state.engine.tokenizer();
    let size = tokenizer.vocab_size();
    if let Some(index) = tokens.iter().position(|&id| id as usize >= size) {
        let expected = format!("a token id below {size}");
        let value = tokens[index].to_string();
        return Err(ApiError::field(
            format!("tokens[{index}]"),
            value,
            &expected,
        ));
    }
    let headers = warnings::headers(&unknown(fields.rest()));
    let content = tokenizer.decode(&tokens, false);
    Ok((headers, Json(Content { content })).into_response())
}

fn template_schema(_: &Bounds<'_>) -> Object {
    Object::lenient()
        .required(
            "messages",
            openai::messages_schema(),
            "The conversation so far.",
        )
        .field(
            "add_generation_prompt",
            flag(true),
            "Whether to end with the beginning of an answer.",
        )
        .example(json!({"messages": [{"role": "user", "content": "Tell me a story."}]}))
}

async fn apply_template(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let mut fields = Fields::lenient(body);
    let mut warnings = Vec::new();
    let messages = openai::messages(fields.value("messages"), &mut warnings)?;
    let answers = fields.boolean("add_generation_prompt")?.unwrap_or(true);
    warnings.extend(TEMPLATE.check(&fields.rest())?);
    // A template has a thread of its own, which is waited for.
    let prompt = tokio::task::spawn_blocking(move || render(&messages, answers, &state))
        .await
        .map_err(|_| ApiError::Internal)??;
    Ok((warnings::headers(&warnings), Json(Templated { prompt })).into_response())
}

/// What is said of fields that nobody knows.
fn unknown(rest: Map<String, Value>) -> Vec<String> {
    const NOTHING: crate::policy::Inactive = crate::policy::Inactive {
        inert: &[],
        refused: &[],
    };
    NOTHING.check(&rest).unwrap_or_default()
}
