//! The forms in which llama.cpp takes a prompt: a text, token ids, both mixed, or several of those.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::show;
use crate::openapi::{Bounds, either, list, text, token_ids};
use crate::request::{Piece, Prompt};

const PROMPT: &str =
    "a string, an array of token ids and strings, or an array of such prompts, none of them empty";

/// The prompts of a request.
pub(super) fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let Some(value) = value else {
        return Err(ApiError::MissingField {
            param: "prompt",
            expected: PROMPT.into(),
        });
    };
    let refused = ApiError::field("prompt", show(&value), PROMPT);
    let prompts: Option<Vec<Prompt>> = match value {
        Value::Array(items) if is_several(&items) => items.into_iter().map(one).collect(),
        value => one(value).map(|prompt| vec![prompt]),
    };
    prompts.filter(|prompts| !prompts.is_empty()).ok_or(refused)
}

/// How `prompt` is described.
pub(super) fn schema(bounds: &Bounds<'_>) -> Value {
    let most = bounds.limits.choices;
    let mixed = || list(json!({"type": ["string", "integer"]}), 1, usize::MAX);
    either([
        text(1, usize::MAX),
        token_ids(1, bounds),
        list(text(1, usize::MAX), 1, most),
        mixed(),
        list(mixed(), 1, most),
    ])
}

/// Strings alone are a prompt each; strings among numbers are parts of one.
fn is_several(items: &[Value]) -> bool {
    let nested = |item: &Value| item.is_array() || item.is_object();
    items.iter().any(nested) || items.iter().all(Value::is_string)
}

/// One prompt, if it is one and not empty.
fn one(value: Value) -> Option<Prompt> {
    match value {
        Value::String(text) if !text.is_empty() => Some(Prompt::Text(text)),
        Value::Array(items) => mixed(&items),
        Value::Object(mut object) => {
            let no_media = match object.get("multimodal_data") {
                None => true,
                Some(media) => media.as_array().is_some_and(Vec::is_empty),
            };
            let text = object.shift_remove("prompt_string")?;
            no_media.then(|| one(text)).flatten()
        }
        _ => None,
    }
}

fn mixed(items: &[Value]) -> Option<Prompt> {
    let pieces = pieces(items)?;
    let ids: Option<Vec<u32>> = pieces
        .iter()
        .map(|piece| match piece {
            Piece::Token(id) => Some(*id),
            Piece::Text(_) => None,
        })
        .collect();
    match ids {
        _ if pieces.is_empty() => None,
        Some(ids) => Some(Prompt::Tokens(ids)),
        None => Some(Prompt::Mixed(pieces)),
    }
}

/// Strings and token ids, each as it is.
pub(super) fn pieces(items: &[Value]) -> Option<Vec<Piece>> {
    let piece = |item: &Value| match item {
        Value::String(text) => Some(Piece::Text(text.clone())),
        id => Some(Piece::Token(id.as_u64()?.try_into().ok()?)),
    };
    items.iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_comes_in_many_forms() {
        let text = |text: &str| Prompt::Text(text.into());
        let of = |value: Value| prompts(Some(value)).unwrap();
        assert_eq!(of(json!("a")), [text("a")]);
        assert_eq!(of(json!(["a", "b"])), [text("a"), text("b")]);
        assert_eq!(of(json!([1, 2])), [Prompt::Tokens(vec![1, 2])]);
        let pieces = vec![Piece::Token(1), Piece::Text("a".into()), Piece::Token(2)];
        let mixed = || Prompt::Mixed(pieces.clone());
        assert_eq!(of(json!([1, "a", 2])), [mixed()]);
        assert_eq!(
            of(json!(["b", [1, "a", 2], [3]])),
            [text("b"), mixed(), Prompt::Tokens(vec![3])]
        );
        assert_eq!(of(json!({"prompt_string": "a"})), [text("a")]);
        assert_eq!(of(json!([{"prompt_string": "a"}])), [text("a")]);
    }

    #[test]
    fn what_is_no_prompt_is_refused() {
        for wrong in [
            json!(""),
            json!([]),
            json!([""]),
            json!([[]]),
            json!([-1]),
            json!([1.5]),
            json!([1, null]),
            json!(["a", []]),
            json!(5),
            json!({}),
            json!({"prompt_string": "a", "multimodal_data": ["x"]}),
        ] {
            let error = prompts(Some(wrong.clone())).unwrap_err();
            assert_eq!(
                error.body().error.param.as_deref(),
                Some("prompt"),
                "{wrong}"
            );
        }
        assert!(prompts(None).is_err());
    }
}
