//! The parameters as they act, under the names that llama.cpp gives them.

use nucleus_sampling::{Preset, SamplingParams, Stage};
use serde_json::{Map, Value, json};

use super::completion::{RANDOM_SEED, Wanted};

/// What the settings of a request or of the server are made from.
pub(super) struct Source<'a> {
    /// The parameters as they act, or the defaults.
    pub(super) params: &'a SamplingParams,
    /// Texts that break a repeated passage.
    pub(super) breakers: &'a [String],
    pub(super) stop: &'a [String],
    /// Most tokens; -1 without a bound of the request's own.
    pub(super) n_predict: i64,
    pub(super) wanted: &'a Wanted,
    /// What the text must be, as `structured_outputs` has it.
    pub(super) structured_outputs: Option<&'a Value>,
}

impl Source<'_> {
    /// Every parameter of ours that has a value, with llama.cpp's names and forms where it has them, and its further fields.
    pub(super) fn settings(&self) -> Map<String, Value> {
        let Source { params, wanted, .. } = self;
        let mut settings = match serde_json::to_value(params) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        };
        settings.shift_remove("repetition_penalty");
        let ours = [
            (
                "seed",
                json!(params.seed.unwrap_or_else(|| RANDOM_SEED.into())),
            ),
            ("repeat_penalty", json!(params.repetition_penalty)),
            ("samplers", json!(samplers(params))),
            ("logit_bias", logit_bias(params)),
        ];
        let theirs = [
            ("stop", json!(self.stop)),
            ("max_tokens", json!(self.n_predict)),
            ("n_predict", json!(self.n_predict)),
            ("n_keep", json!(0)),
            ("n_discard", json!(0)),
            ("stream", json!(wanted.stream)),
            ("n_probs", json!(wanted.n_probs)),
            ("grammar", self.grammar()),
            ("lora", json!([])),
            ("timings_per_token", json!(wanted.timings_per_token)),
            ("post_sampling_probs", json!(wanted.post_sampling_probs)),
        ];
        for (name, value) in ours.into_iter().chain(theirs) {
            settings.insert(name.to_owned(), value);
        }
        if params.dry_sequence_breakers.is_none() {
            settings.insert("dry_sequence_breakers".into(), json!(self.breakers));
        }
        if let Some(format) = self.structured_outputs {
            settings.insert("structured_outputs".into(), format.clone());
        }
        settings
    }

    /// The grammar that the text must be a sentence of; an empty text where it need not.
    fn grammar(&self) -> Value {
        let grammar = self
            .structured_outputs
            .and_then(|format| format.get("grammar"));
        grammar.cloned().unwrap_or_else(|| json!(""))
    }
}

/// The stages in their order, by llama.cpp's names.
fn samplers(params: &SamplingParams) -> Vec<String> {
    let theirs = |stage: &Stage| match stage {
        Stage::TypicalP => "typ_p",
        stage => stage.name(),
    };
    match &params.samplers {
        Some(names) => names
            .iter()
            .map(|name| {
                Stage::from_name(name)
                    .as_ref()
                    .map_or(name.as_str(), theirs)
            })
            .map(str::to_owned)
            .collect(),
        None => {
            let preset = params.preset.as_deref().unwrap_or_default();
            let preset = Preset::from_name(preset).unwrap_or_default();
            preset
                .order()
                .iter()
                .map(theirs)
                .map(str::to_owned)
                .collect()
        }
    }
}

fn logit_bias(params: &SamplingParams) -> Value {
    let biases = params.logit_bias.iter().flatten();
    biases
        .map(|(token, bias)| json!({"bias": bias, "token": token}))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::completion::{BREAKERS, defaults};
    use super::*;

    fn settings(params: &SamplingParams) -> Map<String, Value> {
        let source = Source {
            params,
            breakers: &BREAKERS.map(str::to_owned),
            stop: &["x".to_owned()],
            n_predict: -1,
            wanted: &Wanted::default(),
            structured_outputs: None,
        };
        source.settings()
    }

    /// The names and values of llama.cpp's own defaults, as its `/props` has them (tools/server/README.md).
    #[test]
    fn the_names_are_those_of_llama_cpp() {
        let settings = settings(&defaults(SamplingParams::default()));
        for (name, expected) in [
            ("n_predict", json!(-1)),
            ("max_tokens", json!(-1)),
            ("seed", json!(4_294_967_295_u32)),
            ("temperature", json!(0.8)),
            ("dynatemp_range", json!(0.0)),
            ("dynatemp_exponent", json!(1.0)),
            ("top_k", json!(40)),
            ("top_p", json!(0.95)),
            ("min_p", json!(0.05)),
            ("top_n_sigma", json!(-1.0)),
            ("xtc_probability", json!(0.0)),
            ("xtc_threshold", json!(0.1)),
            ("typical_p", json!(1.0)),
            ("repeat_last_n", json!(64)),
            ("repeat_penalty", json!(1.0)),
            ("presence_penalty", json!(0.0)),
            ("frequency_penalty", json!(0.0)),
            ("dry_multiplier", json!(0.0)),
            ("dry_base", json!(1.75)),
            ("dry_allowed_length", json!(2)),
            ("dry_penalty_last_n", json!(64)),
            ("dry_sequence_breakers", json!(["\n", ":", "\"", "*"])),
            ("mirostat", json!(0)),
            ("mirostat_tau", json!(5.0)),
            ("mirostat_eta", json!(0.1)),
            ("stop", json!(["x"])),
            ("ignore_eos", json!(false)),
            ("stream", json!(false)),
            ("n_probs", json!(0)),
            ("min_keep", json!(0)),
            ("grammar", json!("")),
            ("logit_bias", json!([])),
            ("lora", json!([])),
        ] {
            assert_eq!(settings.get(name), Some(&expected), "{name}");
        }
        assert!(!settings.contains_key("repetition_penalty"));
        let samplers = settings["samplers"].as_array().unwrap();
        let order = [
            "penalties",
            "dry",
            "top_n_sigma",
            "top_k",
            "typ_p",
            "top_p",
            "min_p",
            "xtc",
            "temperature",
        ];
        let theirs = |name: &&Value| order.contains(&name.as_str().unwrap());
        let in_order: Vec<&Value> = samplers.iter().filter(theirs).collect();
        assert_eq!(json!(in_order), json!(order));
    }

    #[test]
    fn what_a_request_says_is_told_back() {
        let params = SamplingParams {
            samplers: Some(vec!["top_k".into(), "typical".into()]),
            logit_bias: Some([(7, -1.5)].into()),
            seed: Some(5),
            ..SamplingParams::default()
        };
        let settings = settings(&defaults(params));
        assert_eq!(settings["samplers"], json!(["top_k", "typ_p"]));
        assert_eq!(settings["logit_bias"], json!([{"bias": -1.5, "token": 7}]));
        assert_eq!(settings["seed"], 5);
    }
}
