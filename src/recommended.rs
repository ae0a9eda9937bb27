//! The sampling that a model's makers recommend: `generate` and `chat` begin with it, and flags override it.
//!
//! It comes from the model file (`general.sampling.*`) or else from a `generation_config.json` beside it, as Hugging
//! Face's transformers write it.

use anyhow::Context;
use nucleus_sampling::{PARAMS, ParamKind, ParamSpec, ParamValue, SamplingParams};
use serde_json::{Map, Value};

/// Keys below `general.sampling.` in a GGUF file, and the parameters that they set.
const GGUF_KEYS: &[(&str, &str)] = &[
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("xtc_probability", "xtc_probability"),
    ("xtc_threshold", "xtc_threshold"),
    ("penalty_last_n", "repeat_last_n"),
    ("penalty_repeat", "repetition_penalty"),
    ("mirostat", "mirostat"),
    ("mirostat_tau", "mirostat_tau"),
    ("mirostat_eta", "mirostat_eta"),
];

/// Keys of `generation_config.json` that sample, each named as the parameter is.
const CONFIG_KEYS: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
];

/// What a model's makers recommend.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Recommended {
    /// Sampling parameters.
    pub(crate) params: SamplingParams,
    /// Tokens that end a text, besides those that the vocabulary names.
    pub(crate) end_ids: Vec<u32>,
}

impl Recommended {
    /// Reads a `generation_config.json`.
    ///
    /// `"do_sample": false` recommends the likeliest token always; the other parameters cannot act then.
    pub(crate) fn from_generation_config(text: &str) -> anyhow::Result<Self> {
        let config: Map<String, Value> = serde_json::from_str(text)?;
        let end_ids = end_ids(config.get("eos_token_id"))
            .context("eos_token_id is not a token id or a list of them")?;
        if config.get("do_sample") == Some(&Value::Bool(false)) {
            return Ok(Self {
                params: SamplingParams {
                    temperature: Some(0.0),
                    ..Default::default()
                },
                end_ids,
            });
        }
        let given = CONFIG_KEYS
            .iter()
            .filter_map(|&name| Some((name, config.get(name)?)));
        Ok(Self {
            params: params(given.filter(|(_, value)| !value.is_null()))?,
            end_ids,
        })
    }

    /// Reads the keys `general.sampling.*` through `get`, which gives a key's value as JSON.
    pub(crate) fn from_gguf(get: impl Fn(&str) -> Option<Value>) -> anyhow::Result<Self> {
        let values: Vec<(&str, Value)> = (GGUF_KEYS.iter())
            .filter_map(|&(key, name)| Some((name, get(&format!("general.sampling.{key}"))?)))
            .collect();
        let params = params(values.iter().map(|(name, value)| (*name, value)))?;
        Ok(Self {
            params,
            end_ids: Vec::new(),
        })
    }
}

fn params<'a>(
    values: impl Iterator<Item = (&'static str, &'a Value)>,
) -> anyhow::Result<SamplingParams> {
    let mut params = SamplingParams::default();
    for (name, value) in values {
        let spec = ParamSpec::find(name).expect("the tables above name parameters");
        let value = typed(spec.kind, value)
            .with_context(|| format!("{name} is {value}; expected {}", spec.kind.name()))?;
        params.set(name, value)?;
    }
    Ok(params)
}

fn typed(kind: ParamKind, value: &Value) -> Option<ParamValue> {
    match kind {
        ParamKind::Float => value.as_f64().map(ParamValue::Float),
        ParamKind::Int => value.as_i64().map(ParamValue::Int),
        ParamKind::Uint => value.as_u64().map(ParamValue::Uint),
        _ => None,
    }
}

fn end_ids(value: Option<&Value>) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => id(single).map(|id| vec![id]),
    }
}

/// The parameters of `base`, with those that `over` has in their place.
pub(crate) fn overlay(mut base: SamplingParams, over: &SamplingParams) -> SamplingParams {
    for (spec, value) in present(over) {
        base.set(spec.name, value)
            .expect("a value that came out of a field fits into it");
    }
    base
}

/// The parameters that are there, such as `temperature 0.7, top_k 40`.
pub(crate) fn describe(params: &SamplingParams) -> String {
    let parts: Vec<String> = present(params)
        .map(|(spec, value)| format!("{} {value}", spec.name))
        .collect();
    if parts.is_empty() {
        "temperature 1, nothing cut off".to_owned()
    } else {
        parts.join(", ")
    }
}

fn present(params: &SamplingParams) -> impl Iterator<Item = (&'static ParamSpec, ParamValue)> {
    let value = |spec: &ParamSpec| params.get(spec.name).expect("the table names the fields");
    PARAMS
        .iter()
        .filter_map(move |spec| Some((spec, value(spec)?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_generation_config_as_transformers_write_it() {
        let text = r#"{"do_sample": true, "temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": null,
                       "eos_token_id": [2, 0], "transformers_version": "5.17.0"}"#;
        let recommended = Recommended::from_generation_config(text).unwrap();
        assert_eq!(
            describe(&recommended.params),
            "temperature 0.7, top_k 40, top_p 0.95"
        );
        assert_eq!(recommended.end_ids, [2, 0]);
    }

    #[test]
    fn without_sampling_the_likeliest_token_is_recommended() {
        let text = r#"{"do_sample": false, "top_p": 0.5, "eos_token_id": 7}"#;
        let recommended = Recommended::from_generation_config(text).unwrap();
        assert_eq!(describe(&recommended.params), "temperature 0");
        assert_eq!(recommended.end_ids, [7]);
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        let message = |text| {
            format!(
                "{:#}",
                Recommended::from_generation_config(text).unwrap_err()
            )
        };
        assert_eq!(
            message(r#"{"top_k": "many"}"#),
            r#"top_k is "many"; expected integer"#
        );
        assert!(message(r#"{"eos_token_id": -1}"#).contains("eos_token_id"));
    }

    #[test]
    fn gguf_keys_have_other_names() {
        let get = |key: &str| match key {
            "general.sampling.temp" => Some(json!(0.6)),
            "general.sampling.penalty_repeat" => Some(json!(1.1)),
            "general.sampling.penalty_last_n" => Some(json!(64)),
            _ => None,
        };
        let recommended = Recommended::from_gguf(get).unwrap();
        assert_eq!(
            describe(&recommended.params),
            "temperature 0.6, repetition_penalty 1.1, repeat_last_n 64"
        );
    }

    #[test]
    fn every_key_names_a_number() {
        let names = GGUF_KEYS
            .iter()
            .map(|&(_, name)| name)
            .chain(CONFIG_KEYS.iter().copied());
        for name in names {
            let kind = ParamSpec::find(name).unwrap().kind;
            assert!(
                matches!(kind, ParamKind::Float | ParamKind::Int | ParamKind::Uint),
                "{name}"
            );
        }
    }

    #[test]
    fn flags_override_what_is_recommended() {
        let base = SamplingParams {
            temperature: Some(0.7),
            top_k: Some(40),
            ..Default::default()
        };
        let flags = SamplingParams {
            temperature: Some(0.0),
            seed: Some(9),
            ..Default::default()
        };
        let merged = overlay(base, &flags);
        assert_eq!(
            (merged.temperature, merged.top_k, merged.seed),
            (Some(0.0), Some(40), Some(9))
        );
        assert_eq!(
            describe(&SamplingParams::default()),
            "temperature 1, nothing cut off"
        );
    }
}
