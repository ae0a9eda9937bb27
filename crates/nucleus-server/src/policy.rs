//! Fields that an endpoint of another server's interface does not act on: accepted where they change nothing, refused where they
//! would, warned of where nobody knows.

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{quote, show};

/// The fields of an interface that are known and not acted on.
pub(crate) struct Inactive {
    /// Fields that change nothing about the answer: bookkeeping, caches, hints about speed.
    pub(crate) inert: &'static [&'static str],
    /// Fields that change the answer and are not implemented, with the values, in JSON, that ask for nothing.
    pub(crate) refused: &'static [(&'static str, &'static [&'static str])],
}

/// What the endpoints of OpenAI know: its own fields, and those of vLLM and llama.cpp beside them.
pub(crate) const OPENAI: Inactive = Inactive {
    inert: &[
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
    ],
    refused: &[
        // OpenAI
        ("audio", &[]),
        ("function_call", &["\"none\"", "\"auto\""]),
        ("functions", &["[]"]),
        ("modalities", &["[\"text\"]"]),
        ("moderation", &[]),
        ("reasoning_effort", &["\"none\""]),
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
        ("length_penalty", &["1"]),
        ("logits_processors", &["[]"]),
        ("prompt_logprobs", &[]),
        ("return_tokens_as_token_ids", &["false"]),
        ("skip_special_tokens", &["true"]),
        ("thinking_token_budget", &[]),
        ("truncate_prompt_tokens", &[]),
        ("use_beam_search", &["false"]),
        // llama.cpp
        ("lora", &["[]"]),
        ("n_indent", &["0"]),
        ("n_predict", &[]),
        ("n_probs", &["0"]),
        ("post_sampling_probs", &["false"]),
        // The other endpoint's
        ("best_of", &[]),
        ("echo", &["false"]),
        ("messages", &[]),
        ("prompt", &[]),
        ("top_logprobs", &["0"]),
    ],
};

/// What llama.cpp's `/completion` knows.
pub(crate) const LLAMA_CPP: Inactive = Inactive {
    inert: &[
        "backend_sampling",
        "cache_prompt",
        "chat_format",
        "generation_prompt",
        "id_slot",
        "n_cache_reuse",
        "n_discard",
        "n_keep",
        "parse_tool_calls",
        "reasoning_format",
        "sse_ping_interval",
        "stream_options",
        "verbose",
    ],
    refused: &[
        ("chat_parser", &["\"\""]),
        ("continue_final_message", &["false"]),
        ("echo", &["false"]),
        ("grammar_lazy", &["false"]),
        ("grammar_triggers", &["[]"]),
        ("image_data", &["[]"]),
        ("input_extra", &["[]"]),
        ("input_prefix", &["\"\""]),
        ("input_suffix", &["\"\""]),
        ("lora", &["[]"]),
        ("messages", &[]),
        ("multimodal_data", &["[]"]),
        ("n_indent", &["0"]),
        ("preserved_tokens", &["[]"]),
        ("reasoning_budget_end_tag", &["\"\""]),
        ("reasoning_budget_message", &["\"\""]),
        ("reasoning_budget_start_tag", &["\"\""]),
        ("reasoning_budget_tokens", &["-1"]),
        ("reasoning_control", &["false"]),
        ("return_progress", &["false"]),
        ("system_prompt", &["\"\""]),
        ("t_max_prompt_ms", &["0", "-1"]),
        ("tools", &["[]"]),
    ],
};

/// What llama.cpp's `/apply-template` knows of a request to chat: the rest of it does not change the prompt.
pub(crate) const TEMPLATE: Inactive = Inactive {
    inert: &["model", "stream"],
    refused: &[
        ("chat_template", &[]),
        ("chat_template_kwargs", &["{}"]),
        ("continue_final_message", &["false"]),
        ("documents", &["[]"]),
        ("functions", &["[]"]),
        ("reasoning_effort", &["\"none\""]),
        ("response_format", &["{\"type\":\"text\"}"]),
        ("tool_choice", &["\"none\"", "\"auto\""]),
        ("tools", &["[]"]),
    ],
};

/// How many fields a response warns of by name.
const MAX_WARNINGS: usize = 16;

impl Inactive {
    /// Goes through the fields that the endpoint has not taken: an error for one that matters, warnings for those that no one
    /// has heard of.
    pub(crate) fn check(&self, rest: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
        let mut warnings = Vec::new();
        let mut more = 0_usize;
        for (name, value) in rest {
            if self.inert.contains(&name.as_str()) {
                continue;
            }
            let refused = self.refused.iter().find(|(refused, _)| refused == name);
            if let Some((param, neutral)) = refused {
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
        OPENAI.check(rest).map_err(|error| error.to_string())
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let inert = json!({"user": "me", "metadata": {"a": "b"}, "store": true});
        assert_eq!(check(inert), Ok(vec![]));
        let neutral = json!({"tools": [], "reasoning_effort": "none", "length_penalty": 1.0,
            "use_beam_search": false});
        assert_eq!(check(neutral), Ok(vec![]));
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        assert_eq!(
            check(json!({"tools": [{"type": "function"}]})),
            Err("tools: an array of 1 is not supported here; leave it out or say []".into())
        );
        assert_eq!(
            check(json!({"chat_template": "x"})),
            Err("chat_template: \"x\" is not supported here; leave it out".into())
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
        let warnings = OPENAI.check(&many).expect("warnings");
        assert_eq!(warnings.len(), MAX_WARNINGS + 1);
        assert_eq!(
            warnings[MAX_WARNINGS],
            "4 more fields that do not exist are ignored"
        );
    }

    #[test]
    fn no_field_is_in_two_tables() {
        for Inactive { inert, refused } in [OPENAI, LLAMA_CPP, TEMPLATE] {
            let mut names: Vec<&str> = refused.iter().map(|(name, _)| *name).collect();
            names.extend(inert);
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
            assert!(names.iter().all(|name| ParamSpec::find(name).is_none()));
            for (_, neutral) in refused {
                assert!(
                    neutral
                        .iter()
                        .all(|text| serde_json::from_str::<Value>(text).is_ok())
                );
            }
        }
    }

    /// R4.2: the page names every field of every table.
    #[test]
    fn the_documentation_has_every_field() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http-api.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let code = |names: Vec<&str>| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        };
        for Inactive { inert, refused } in [OPENAI, LLAMA_CPP, TEMPLATE] {
            for names in [
                code(inert.to_vec()),
                code(refused.iter().map(|(name, _)| *name).collect()),
            ] {
                assert!(page.contains(&names), "the page should have:\n{names}");
            }
        }
    }
}
