//! `POST /completion`: its fields, and handing the request to the engine.

use axum::extract::State;
use axum::response::Response;
use nucleus_sampling::{LogprobsMode, Policy, Preset, SamplingParams};
use serde_json::{Map, Value, json};

use super::answer::{self, Answers, Data};
use super::{bias, prompt};
use crate::app::AppState;
use crate::body::JsonObject;
use crate::compatible::{self, Asked};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::show;
use crate::openai;
use crate::openapi::{
    Bounds, Endpoint, Group, Object, default, flag, integer, list, refusal, text,
};
use crate::policy::LLAMA_CPP;
use crate::request::{LogprobsWanted, Prompt, Settings, choices, submit};

/// Most of the likeliest tokens that are reported for each token.
const MAX_PROBS: u64 = 100;

/// Most tokens that a request may ask for: the largest `int` of llama.cpp.
const MAX_PREDICT: u64 = i32::MAX as u64;

/// The seed by which llama.cpp says that it draws one.
pub(super) const RANDOM_SEED: u32 = u32::MAX;

/// The texts that break a repeated passage where the request does not say (`common_params_sampling`).
pub(super) const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// What an answer is to have in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wanted {
    pub(super) stream: bool,
    /// The tokens beside the text. Parts of a stream have them anyway.
    pub(super) return_tokens: bool,
    /// Timings in every part, not in the last one only.
    pub(super) timings_per_token: bool,
    /// How many of the likeliest tokens beside each; 0 is nothing at all.
    pub(super) n_probs: u32,
    /// Probabilities of the distribution that was drawn from, in place of log-probabilities of the model's own.
    pub(super) post_sampling_probs: bool,
    /// The fields that are answered; all if there is none.
    pub(super) response_fields: Vec<String>,
}

/// A request.
#[derive(Debug)]
struct CompletionRequest {
    prompts: Vec<Prompt>,
    /// Answers to each prompt.
    n: usize,
    settings: Settings,
    wanted: Wanted,
    /// The sampling parameters that the request gives itself: defaults are not warned of.
    given: SamplingParams,
    warnings: Vec<String>,
}

pub(super) fn endpoints() -> [Endpoint; 2] {
    ["/completion", "/completions"].map(|path| {
        Endpoint::post(path, completion)
            .group(Group::LlamaCpp)
            .says(
                "Continues texts",
                "llama.cpp's interface, with its defaults and its order of stages. Fields that would change the answer and are not \
                 implemented are refused; unknown ones are named in the header `x-nucleus-warnings`.",
            )
            .takes(schema)
            .answers::<Answers>(200, "The text, or one for each prompt and choice")
            .streams::<Data>("its parts; the last one has `\"stop\":true` and is as an answer, without text")
            .refuses(&[404])
            .refuses(refusal::GENERATION)
    })
}

/// What [`CompletionRequest::parse`] reads.
fn schema(bounds: &Bounds<'_>) -> Object {
    let predict = || default(integer(-1, MAX_PREDICT), -1);
    let choices = || default(integer(1, bounds.limits.choices as u64), 1);
    let probs = || default(integer(0, MAX_PROBS), 0);
    let object = Object::lenient()
        .required(
            "prompt",
            prompt::schema(bounds),
            "What to continue: a text, token ids, both mixed, or several of those.",
        )
        .field("model", text(0, usize::MAX), "The model's name; another than the one that runs is refused with 404.")
        .field("n_predict", predict(), "Most tokens to generate; -1: as many as the context holds, 0: the prompt is computed, no more.")
        .field("max_tokens", predict(), "The same as `n_predict`.")
        .field("max_completion_tokens", predict(), "The same as `n_predict`.")
        .field("n_cmpl", choices(), "Answers to each prompt.")
        .field("n", choices(), "The same as `n_cmpl`.")
        .field("stream", flag(false), "Whether the answer comes in parts.")
        .field("return_tokens", flag(false), "Whether the answer has the token ids, in `tokens`.")
        .field("timings_per_token", flag(false), "Whether every part has `timings`.")
        .field("n_probs", probs(), "Reports the log-probability of each token, and of this many of the likeliest.")
        .field("logprobs", probs(), "The same as `n_probs`.")
        .field(
            "post_sampling_probs",
            flag(false),
            "Whether `n_probs` reports probabilities of the distribution that the token was drawn from.",
        )
        .field(
            "response_fields",
            list(text(1, usize::MAX), 0, usize::MAX),
            "The fields that the answer is to have; `a/b` is the field `b` of the object `a`.",
        )
        .field(
            "logit_bias",
            bias::schema(bounds),
            "Added to the logits of tokens, which are given by id or by text; false bans.",
        );
    compatible::fields(object, Policy::LlamaCpp, bounds).example(
        json!({"prompt": "Once upon a time", "n_predict": 8, "temperature": 0.8, "seed": 42}),
    )
}

async fn completion(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    CompletionRequest::parse(body, &state)?.answer(state).await
}

impl CompletionRequest {
    fn parse(body: Map<String, Value>, state: &AppState) -> Result<Self, ApiError> {
        let limits = &state.config.limits;
        let mut fields = Fields::lenient(body);
        let prompts = prompt::prompts(fields.value("prompt"))?;
        if let Some(id) = fields.string("model")? {
            openai::check_model(&id, state)?;
        }
        fields.rename("n", "n_cmpl")?;
        let n = choices(&mut fields, "n_cmpl", prompts.len(), limits)?;
        let max_tokens = length(&mut fields)?;
        let wanted = wanted(&mut fields)?;
        random_seed(&mut fields);
        compatible::normalise(&mut fields, state)?;
        bias::normalise(&mut fields, state.engine.tokenizer())?;
        let asked = Asked {
            policy: Policy::LlamaCpp,
            max_tokens,
            logprobs: logprobs(&wanted),
        };
        let settings = compatible::settings(&mut fields, state, asked)?;
        let warnings = LLAMA_CPP.check(&fields.rest())?;
        Ok(Self {
            prompts,
            n,
            given: settings.params.clone(),
            settings: with_defaults(settings),
            wanted,
            warnings,
        })
    }

    /// Hands the request to the engine and answers it.
    async fn answer(mut self, state: AppState) -> Result<Response, ApiError> {
        let (settings, prompts) = (self.settings.clone(), self.prompts);
        let accepted = submit(settings, prompts, self.n, &state).await?;
        if let Some(first) = accepted.first() {
            let given = |param| matches!(self.given.get(param), Ok(Some(_)));
            let about_given = first.warnings.iter().filter(|warning| given(warning.param));
            self.warnings.extend(about_given.map(ToString::to_string));
        }
        answer::respond(accepted, self.wanted, self.settings, &self.warnings, &state).await
    }
}

/// `n_predict`, or another name for it; nothing for -1. Settings that are told back have it under two names.
fn length(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let mut given: Option<Value> = None;
    for name in ["n_predict", "max_tokens", "max_completion_tokens"] {
        let Some(value) = fields.value(name) else {
            continue;
        };
        if given.as_ref().is_some_and(|other| *other != value) {
            let expected = "the same as n_predict, which it means";
            return Err(ApiError::field(name, show(&value), expected));
        }
        given = Some(value);
    }
    let Some(value) = given else {
        return Ok(None);
    };
    match value.as_i64() {
        Some(-1) => Ok(None),
        Some(tokens @ 0..) if tokens.unsigned_abs() <= MAX_PREDICT => {
            Ok(usize::try_from(tokens).ok())
        }
        _ => {
            let expected = format!("an integer in [-1, {MAX_PREDICT}]");
            Err(ApiError::field("n_predict", show(&value), &expected))
        }
    }
}

fn wanted(fields: &mut Fields) -> Result<Wanted, ApiError> {
    fields.rename("logprobs", "n_probs")?;
    let n_probs = fields.integer("n_probs", 0..=MAX_PROBS)?.unwrap_or(0);
    Ok(Wanted {
        stream: fields.boolean("stream")?.unwrap_or(false),
        return_tokens: fields.boolean("return_tokens")?.unwrap_or(false),
        timings_per_token: fields.boolean("timings_per_token")?.unwrap_or(false),
        n_probs: n_probs as u32,
        post_sampling_probs: fields.boolean("post_sampling_probs")?.unwrap_or(false),
        response_fields: fields.strings("response_fields")?,
    })
}

fn logprobs(wanted: &Wanted) -> Option<LogprobsWanted> {
    (wanted.n_probs > 0).then_some(LogprobsWanted {
        top: wanted.n_probs,
        mode: if wanted.post_sampling_probs {
            LogprobsMode::Processed
        } else {
            LogprobsMode::Raw
        },
        prompt: false,
    })
}

/// A client that sends back the settings of `/props` asks for a random seed by its number.
fn random_seed(fields: &mut Fields) {
    if let Some(seed) = fields.value("seed")
        && seed.as_u64() != Some(RANDOM_SEED.into())
    {
        fields.put("seed", seed);
    }
}

/// What llama.cpp's server does where a request does not say.
fn with_defaults(settings: Settings) -> Settings {
    let Settings {
        params,
        mut dry_breakers,
        ..
    } = settings;
    if params.dry_sequence_breakers.is_none() && dry_breakers.is_empty() {
        dry_breakers = BREAKERS.map(str::to_owned).to_vec();
    }
    Settings {
        params: defaults(params),
        dry_breakers,
        ..settings
    }
}

/// The parameters with llama.cpp's preset and default values.
pub(super) fn defaults(mut params: SamplingParams) -> SamplingParams {
    params
        .preset
        .get_or_insert_with(|| Preset::LlamaCpp.name().to_owned());
    params.with_defaults(Policy::LlamaCpp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_llama_cpp() {
        let params = defaults(SamplingParams::default());
        assert_eq!(params.temperature, Some(0.8));
        assert_eq!((params.top_k, params.top_p), (Some(40), Some(0.95)));
        assert_eq!((params.min_p, params.repeat_last_n), (Some(0.05), Some(64)));
        assert_eq!(params.repetition_penalty, Some(1.0));
        assert_eq!(params.dry_penalty_last_n, Some(64));
        assert_eq!(params.preset.as_deref(), Some("llama.cpp"));
        assert_eq!(params.seed, None);
        let own = SamplingParams {
            preset: Some("vllm".into()),
            top_k: Some(3),
            ..SamplingParams::default()
        };
        let own = defaults(own);
        assert_eq!((own.top_k, own.preset.as_deref()), (Some(3), Some("vllm")));
    }

    #[test]
    fn a_length_has_three_names() {
        let of = |value: Value| length(&mut Fields::of(value));
        assert_eq!(of(json!({})), Ok(None));
        assert_eq!(of(json!({"n_predict": -1})), Ok(None));
        assert_eq!(of(json!({"n_predict": 0})), Ok(Some(0)));
        assert_eq!(of(json!({"max_tokens": 7})), Ok(Some(7)));
        for wrong in [
            json!(-2),
            json!(1_u64 << 31),
            json!(1_u64 << 63),
            json!(1.5),
            json!("1"),
        ] {
            assert!(of(json!({"n_predict": wrong})).is_err());
        }
        assert_eq!(of(json!({"n_predict": 1, "max_tokens": 1})), Ok(Some(1)));
        assert!(of(json!({"n_predict": 1, "max_tokens": 2})).is_err());
    }

    #[test]
    fn the_number_of_a_random_seed_is_no_seed() {
        let mut given = Fields::of(json!({"seed": u32::MAX}));
        random_seed(&mut given);
        assert_eq!(given.value("seed"), None);
        let mut given = Fields::of(json!({"seed": 7}));
        random_seed(&mut given);
        assert_eq!(given.value("seed"), Some(json!(7)));
    }
}
