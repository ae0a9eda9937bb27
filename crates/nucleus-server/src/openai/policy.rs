//! Fields that these endpoints do not act on: accepted where they change nothing, refused where they would, warned of where
//! nobody knows.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{quote, show};

/// Fields that change nothing about the answer: bookkeeping, caches, hints about speed.
const INERT: &[&str] = &[
    "cache_prompt",
    "id_slot",
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "spaces_between_special_tokens",
    "store",
    "user",
];

/// Fields that change the answer and are not implemented, with the values, in JSON, that ask for nothing.
const REFUSED: &[(&str, &[&str])] = &[
    // OpenAI
    ("audio", &[]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("moderation", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("suffix", &["\"\""]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("verbosity", &["\"medium\""]),
    ("web_search_options", &[]),
    // vLLM
    ("add_generation_prompt", &["true"]),
    ("add_special_tokens", &[]),
    ("chat_template", &[]),
    ("chat_template_kwargs", &["{}"]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("length_penalty", &["1"]),
    ("logits_processors", &["[]"]),
    ("prompt_logprobs", &[]),
    ("return_token_ids", &["false"]),
    ("return_tokens_as_token_ids", &["false"]),
    ("skip_special_tokens", &["true"]),
    ("structured_outputs", &[]),
    ("thinking_token_budget", &[]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
    // llama.cpp
    ("grammar", &["\"\""]),
    ("json_schema", &["{}"]),
    ("lora", &["[]"]),
    ("n_indent", &["0"]),
    ("n_predict", &[]),
    ("n_probs", &["0"]),
    ("post_sampling_probs", &["false"]),
    ("t_max_predict_ms", &["0", "-1"]),
    // The other endpoint's
    ("best_of", &[]),
    ("echo", &["false"]),
    ("messages", &[]),
    ("prompt", &[]),
    ("top_logprobs", &["0"]),
];

/// How many fields a response warns of by name.
const MAX_WARNINGS: usize = 16;

/// Goes through the fields that the endpoint has not taken: an error for one that matters, warnings for those that no one
/// has heard of.
pub(super) fn check_rest(rest: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let mut warnings = Vec::new();
    let mut more = 0_usize;
    for (name, value) in rest {
        if INERT.contains(&name.as_str()) {
            continue;
        }
        if let Some((param, neutral)) = REFUSED.iter().find(|(refused, _)| refused == name) {
            check_neutral(param, value, neutral)?;
        } else if warnings.len() < MAX_WARNINGS {
            warnings.push(format!("{}: no such field; it is ignored", quote(name)));
        } else {
            more += 1;
        }
    }
    if more > 0 {
        warnings.push(format!("{more} more fields that do not exist are ignored"));
    }
    Ok(warnings)
}

fn check_neutral(param: &'static str, value: &Value, neutral: &[&str]) -> Result<(), ApiError> {
    let asks_for_nothing = |neutral: &&str| {
        let neutral = serde_json::from_str(neutral).expect("the table holds JSON");
        same(value, &neutral)
    };
    if neutral.iter().any(asks_for_nothing) {
        return Ok(());
    }
    let mut remedy = String::from("leave it out");
    for neutral in neutral {
        remedy.push_str(&format!(" or say {neutral}"));
    }
    Err(ApiError::Unsupported {
        param,
        value: show(value),
        remedy,
    })
}

/// Whether two values are equal; 1 and 1.0 are.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use nucleus_sampling::ParamSpec;
    use serde_json::json;

    use super::*;

    fn check(rest: Value) -> Result<Vec<String>, String> {
        let rest = rest.as_object().expect("an object");
        check_rest(rest).map_err(|error| error.to_string())
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let inert = json!({"user": "me", "metadata": {"a": "b"}, "store": true});
        assert_eq!(check(inert), Ok(vec![]));
        let neutral = json!({"tools": [], "response_format": {"type": "text"}, "length_penalty": 1.0,
            "use_beam_search": false});
        assert_eq!(check(neutral), Ok(vec![]));
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        assert_eq!(
            check(json!({"response_format": {"type": "json_object"}})),
            Err("response_format: an object is not supported here; leave it out or say {\"type\":\"text\"}".into())
        );
        assert_eq!(
            check(json!({"guided_regex": "a+"})),
            Err("guided_regex: \"a+\" is not supported here; leave it out".into())
        );
        assert!(check(json!({"length_penalty": 2})).is_err());
    }

    #[test]
    fn the_rest_is_warned_of_up_to_a_number() {
        let one = check(json!({"temprature": 1, "user": "me"}));
        assert_eq!(
            one,
            Ok(vec!["\"temprature\": no such field; it is ignored".into()])
        );
        let many: Map<String, Value> = (0..20).map(|i| (format!("x{i}"), 1.into())).collect();
        let warnings = check_rest(&many).expect("warnings");
        assert_eq!(warnings.len(), MAX_WARNINGS + 1);
        assert_eq!(
            warnings[MAX_WARNINGS],
            "4 more fields that do not exist are ignored"
        );
    }

    #[test]
    fn no_field_is_in_two_tables() {
        let mut names: Vec<&str> = REFUSED.iter().map(|(name, _)| *name).collect();
        names.extend(INERT);
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| ParamSpec::find(name).is_none()));
        for (_, neutral) in REFUSED {
            assert!(
                neutral
                    .iter()
                    .all(|text| serde_json::from_str::<Value>(text).is_ok())
            );
        }
    }

    /// The page names every field of both tables.
    #[test]
    fn the_documentation_has_every_field() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http-api.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let code = |names: Vec<&str>| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        for names in [
            code(INERT.to_vec()),
            code(REFUSED.iter().map(|(name, _)| *name).collect()),
        ] {
            assert!(page.contains(&names), "the page should have:\n{names}");
        }
    }
}
