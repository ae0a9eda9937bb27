//! The forms of llama.cpp's `logit_bias`: an object or an array of pairs, of token ids or texts, with a number or `false`.

use std::collections::BTreeMap;

use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::show;
use crate::openapi::{Bounds, either, integer, list};

const BIAS: &str = "a number, or false, which bans the token";

/// What a request does to single tokens.
#[derive(Debug, Default, PartialEq)]
struct Biases {
    /// Added to the logits; several for one token add up.
    added: BTreeMap<u32, f64>,
    /// Tokens that may not be drawn.
    banned: Vec<u32>,
}

/// Brings `logit_bias` into the form of our own parameters: numbers by token id, and bans among `bad_words`.
///
/// A text stands for each of its tokens. What llama.cpp passes over in silence is refused.
pub(super) fn normalise(fields: &mut Fields, tokenizer: &Tokenizer) -> Result<(), ApiError> {
    let Some(value) = fields.value("logit_bias") else {
        return Ok(());
    };
    let biases = Biases::read(&value, tokenizer)?;
    let added: serde_json::Map<String, Value> = biases
        .added
        .iter()
        .map(|(id, bias)| (id.to_string(), json!(bias)))
        .collect();
    fields.put("logit_bias", added.into());
    if !biases.banned.is_empty() {
        ban(fields, &biases.banned)?;
    }
    Ok(())
}

/// How `logit_bias` is described.
pub(super) fn schema(bounds: &Bounds<'_>) -> Value {
    let bias = || json!({"anyOf": [{"type": "number", "minimum": -10000, "maximum": 10000}, {"const": false}]});
    let id = integer(0, u64::from(bounds.vocab_size).saturating_sub(1));
    let token = json!({"anyOf": [id, {"type": "string"}]});
    let pair =
        json!({"type": "array", "prefixItems": [token, bias()], "minItems": 2, "maxItems": 2});
    either([
        json!({"type": "object", "additionalProperties": bias()}),
        list(pair, 0, usize::MAX),
    ])
}

/// Adds single tokens to the banned sequences.
fn ban(fields: &mut Fields, banned: &[u32]) -> Result<(), ApiError> {
    let mut words = match fields.value("bad_words") {
        None => Vec::new(),
        Some(Value::Array(words)) => words,
        Some(other) => {
            let expected = "an array of words or of sequences of token ids";
            return Err(ApiError::field("bad_words", show(&other), expected));
        }
    };
    words.extend(banned.iter().map(|id| json!([id])));
    fields.put("bad_words", words.into());
    Ok(())
}

impl Biases {
    fn read(value: &Value, tokenizer: &Tokenizer) -> Result<Self, ApiError> {
        let mut biases = Self::default();
        match value {
            Value::Object(object) => {
                for (key, bias) in object {
                    // A key that is a number is a token's id, as in OpenAI's form.
                    match key.parse() {
                        Ok(id) => biases.add(key, id, bias)?,
                        Err(_) => biases.add_text(key, key, bias, tokenizer)?,
                    }
                }
            }
            Value::Array(pairs) => {
                for (index, pair) in pairs.iter().enumerate() {
                    biases.add_pair(&index.to_string(), pair, tokenizer)?;
                }
            }
            other => {
                let expected = "an object or an array of pairs of a token and a bias";
                return Err(ApiError::field("logit_bias", show(other), expected));
            }
        }
        Ok(biases)
    }

    fn add_pair(&mut self, at: &str, pair: &Value, tokenizer: &Tokenizer) -> Result<(), ApiError> {
        let wrong = || {
            let expected = "a pair of a token (its id, or a text) and a bias";
            ApiError::field(place(at), show(pair), expected)
        };
        let [token, bias] = pair.as_array().map_or(&[][..], Vec::as_slice) else {
            return Err(wrong());
        };
        match token {
            Value::String(text) => self.add_text(at, text, bias, tokenizer),
            id => {
                let id = id.as_u64().and_then(|id| id.try_into().ok());
                self.add(at, id.ok_or_else(wrong)?, bias)
            }
        }
    }

    fn add_text(
        &mut self,
        at: &str,
        text: &str,
        bias: &Value,
        tokenizer: &Tokenizer,
    ) -> Result<(), ApiError> {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        let tokens = tokens
            .map_err(|error| ApiError::field(place(at), show(&text.into()), &error.to_string()))?;
        if tokens.is_empty() {
            return Err(ApiError::field(
                place(at),
                "\"\"".into(),
                "a text with a token",
            ));
        }
        tokens.into_iter().try_for_each(|id| self.add(at, id, bias))
    }

    fn add(&mut self, at: &str, id: u32, bias: &Value) -> Result<(), ApiError> {
        match (bias, bias.as_f64()) {
            (Value::Bool(false), _) => self.banned.push(id),
            (_, Some(bias)) => *self.added.entry(id).or_insert(0.0) += bias,
            _ => return Err(ApiError::field(place(at), show(bias), BIAS)),
        }
        Ok(())
    }
}

fn place(at: &str) -> String {
    format!("logit_bias[{at}]")
}
