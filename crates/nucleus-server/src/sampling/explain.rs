//! `POST /v1/sampling/explain`: what each stage of the sampler does with logits, which are given or are those of a prompt.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use nucleus_engine::generate::{Engine, Event, Request};
use nucleus_sampling::{
    CompiledParams, CpuSampler, LogitsRow, MAX_VOCAB, Policy, Row, Sampler, SamplerState,
    SamplingParams, StageTrace, Status, Trace, VocabInfo,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::app::AppState;
use crate::body::JsonObject;
use crate::compatible;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::show;
use crate::openapi::{
    Bounds, EffectiveSampling, Endpoint, Group, Object, default, either, integer, list, refusal,
    text, token_ids,
};
use crate::param_json;
use crate::request::{ParamWarning, Prompt, check_length, encode, with_breakers};

/// The fields of a request.
const FIELDS: &str = "prompt, logits, output, top_n and the sampling parameters";

const PROMPT: &str = "a string or an array of token ids, not empty";

/// How many tokens of the distribution are listed where the request does not say.
const TOP_N: u64 = 20;

/// Most tokens of the distribution that are listed.
const MAX_TOP_N: u64 = 1000;

/// What to explain.
#[derive(Debug)]
struct ExplainRequest {
    /// What the sequence begins with.
    prompt: Option<Prompt>,
    /// What it has generated.
    output: Vec<u32>,
    /// The logits of its next token; without them the model is asked.
    logits: Option<Vec<f32>>,
    params: SamplingParams,
    dry_breakers: Vec<String>,
    top_n: usize,
}

/// What was done, and what came out of it.
#[derive(Debug, Serialize, JsonSchema)]
struct Explanation {
    seed: u64,
    /// The parameters as they act.
    #[schemars(with = "EffectiveSampling")]
    params: SamplingParams,
    warnings: Vec<ParamWarning>,
    /// The stages that ran, in order.
    stages: Vec<Stage>,
    /// How many tokens could have been drawn.
    distribution_size: usize,
    /// The likeliest of them with their probabilities: `top_n` at most.
    distribution: Vec<(u32, f64)>,
    /// The token that the seed draws; null if there is none to be drawn.
    sampled: Option<Sampled>,
    /// Why nothing is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The texts of all tokens that are named here, where the logits are as wide as the model's vocabulary.
    tokens: BTreeMap<u32, String>,
}

/// What a stage did. Where nothing is left there is no number to tell.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExplainedStage")]
struct Stage {
    name: &'static str,
    /// Tokens left after it.
    kept: usize,
    removed: usize,
    /// The likeliest token that it removed.
    first_removed: Option<u32>,
    /// Share of the probability it received that it kept.
    mass: Option<f64>,
    /// Entropy of what is left, in nats.
    entropy: Option<f64>,
    /// Largest logit left.
    max_logit: Option<f32>,
    /// Temperature in force after it.
    temperature: f32,
}

/// The choice.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExplainedChoice")]
struct Sampled {
    token_id: u32,
    /// Natural logarithm of its probability in the model's own distribution.
    logprob: Option<f32>,
    /// The index of the token in the output: the draw depends on it and on the seed.
    position: u32,
    seed: u64,
}

pub(super) fn endpoint() -> Endpoint {
    Endpoint::post("/v1/sampling/explain", explain)
        .group(Group::Nucleus)
        .says(
            "Explains a choice",
            "Runs the sampler once and tells what each stage kept, removed and left, the distribution that it came to, and the token \
             that the seed draws of it. The logits are those of the request, or of the model after the prompt and the output.",
        )
        .takes(schema)
        .answers::<Explanation>(200, "What each stage did")
        .refuses(refusal::GENERATION)
}

/// What [`ExplainRequest::parse`] reads.
fn schema(bounds: &Bounds<'_>) -> Object {
    let logit = json!({"type": ["number", "null"]});
    let object = Object::strict()
        .field(
            "prompt",
            either([text(1, usize::MAX), token_ids(1, bounds)]),
            "What the sequence begins with. Needed without `logits`; beside them it is what penalties look at.",
        )
        .field(
            "logits",
            list(logit, 1, MAX_VOCAB as usize),
            "The logits to sample from, one for each token; null is -infinity. Without them the model is asked.",
        )
        .field(
            "output",
            token_ids(0, bounds),
            "Tokens that the sequence has generated already.",
        )
        .field(
            "top_n",
            default(integer(0, MAX_TOP_N), TOP_N),
            "How many tokens of the distribution are listed.",
        );
    compatible::with_breakers(object, bounds)
        .sampling(Policy::Library, bounds)
        .example(json!({"logits": [3.0, 2.0, 1.0], "temperature": 0.5, "top_p": 0.8, "seed": 1}))
}

async fn explain(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Json<Explanation>, ApiError> {
    let request = ExplainRequest::parse(body, &state)?;
    // The model may be busy, and a trace sorts the vocabulary once for each stage.
    tokio::task::spawn_blocking(move || request.explain(&state))
        .await
        .map_err(|_| ApiError::Internal)?
        .map(Json)
}

impl ExplainRequest {
    fn parse(body: Map<String, Value>, state: &AppState) -> Result<Self, ApiError> {
        let mut fields = Fields::new(body);
        let prompt = prompt(fields.value("prompt"))?;
        let logits = logits(fields.value("logits"))?;
        if prompt.is_none() && logits.is_none() {
            return Err(ApiError::MissingField {
                param: "prompt",
                expected: format!("{PROMPT}, where there are no logits"),
            });
        }
        let output = fields.ids("output")?;
        let top_n = fields.integer("top_n", 0..=MAX_TOP_N)?.unwrap_or(TOP_N);
        let vocab = vocab_of(logits.as_deref(), &state.engine);
        let dry_breakers = compatible::breakers(&mut fields)?;
        let params = fields.sampling_params(Policy::Library, &vocab)?;
        fields.finish(FIELDS)?;
        Ok(Self {
            prompt,
            output,
            logits,
            params,
            dry_breakers,
            top_n: top_n as usize,
        })
    }

    /// Blocks until it is done.
    fn explain(self, state: &AppState) -> Result<Explanation, ApiError> {
        let engine = &state.engine;
        let vocab = vocab_of(self.logits.as_deref(), engine);
        let params = with_breakers(self.params, &self.dry_breakers, engine.tokenizer())?;
        let params = params
            .validate(&vocab)
            .map_err(nucleus_engine::generate::SubmitError::from)?;
        let prompt = match self.prompt {
            Some(prompt) => encode(prompt, state)?,
            None => Vec::new(),
        };
        check_length(prompt.len(), &state.config.limits)?;
        check_ids("prompt", &prompt, &vocab)?;
        check_ids("output", &self.output, &vocab)?;
        let logits = match self.logits {
            Some(logits) => logits,
            None => next_logits(engine, [prompt.as_slice(), &self.output].concat())?,
        };
        let mut history = SamplerState::new(&params, &prompt);
        self.output.iter().for_each(|id| history.commit_forced(*id));
        let row = Row::new(LogitsRow::F32(&logits), &params, &history);
        let trace = CpuSampler::new().trace(&row);
        let spelled = vocab.size == engine.vocab().size;
        let explanation = Explanation::new(trace, &params, history.position(), self.top_n);
        Ok(if spelled {
            explanation.with_texts(engine)
        } else {
            explanation
        })
    }
}

/// The model's vocabulary if the logits are as many as it has, or none are given; else one of as many tokens as there are logits.
fn vocab_of(logits: Option<&[f32]>, engine: &Engine) -> VocabInfo {
    match logits {
        Some(logits) if logits.len() != engine.spec().vocab_size => {
            VocabInfo::new(logits.len() as u32)
        }
        _ => engine.vocab().clone(),
    }
}

fn prompt(value: Option<Value>) -> Result<Option<Prompt>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let prompt = match &value {
        Value::String(text) if !text.is_empty() => Some(Prompt::Text(text.clone())),
        ids => param_json::ids(ids)
            .filter(|ids| !ids.is_empty())
            .map(Prompt::Tokens),
    };
    prompt
        .map(Some)
        .ok_or_else(|| ApiError::field("prompt", show(&value), PROMPT))
}

/// Numbers that `f32` holds; null is -infinity.
fn logits(value: Option<Value>) -> Result<Option<Vec<f32>>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let items = value.as_array().filter(|items| !items.is_empty());
    let Some(items) = items.filter(|items| items.len() <= MAX_VOCAB as usize) else {
        let expected = format!("an array of 1 to {MAX_VOCAB} numbers");
        return Err(ApiError::field("logits", show(&value), &expected));
    };
    let logit = |(index, item): (usize, &Value)| {
        let logit = match item {
            Value::Null => Some(f32::NEG_INFINITY),
            number => number.as_f64().map(|x| x as f32).filter(|x| x.is_finite()),
        };
        logit.ok_or_else(|| {
            let expected = "a number that 32 bits can hold, or null";
            ApiError::field(format!("logits[{index}]"), show(item), expected)
        })
    };
    items
        .iter()
        .enumerate()
        .map(logit)
        .collect::<Result<_, _>>()
        .map(Some)
}

fn check_ids(param: &str, ids: &[u32], vocab: &VocabInfo) -> Result<(), ApiError> {
    match ids.iter().position(|id| *id >= vocab.size) {
        None => Ok(()),
        Some(index) => {
            let expected = format!("a token id below {}", vocab.size);
            let at = format!("{param}[{index}]");
            Err(ApiError::field(at, ids[index].to_string(), &expected))
        }
    }
}

/// The model's logits after these tokens.
fn next_logits(engine: &Engine, tokens: Vec<u32>) -> Result<Vec<f32>, ApiError> {
    let mut generation = engine.submit(Request {
        prompt: tokens,
        params: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        max_tokens: Some(1),
        first_logits: true,
        ..Request::default()
    })?;
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Token(token) => return token.logits.ok_or(ApiError::Internal),
            Event::Failed(error) => return Err(error.into()),
            Event::Prompt(_) => {}
            Event::End(_) => break,
        }
    }
    // It was aborted.
    Err(nucleus_engine::generate::SubmitError::ShuttingDown.into())
}

impl Explanation {
    fn new(trace: Trace, params: &CompiledParams, position: u32, top_n: usize) -> Self {
        let seed = params.config().seed;
        let Trace {
            stages,
            mut distribution,
            sampled,
        } = trace;
        let drawn = sampled.status == Status::Ok;
        let distribution_size = distribution.len();
        distribution.truncate(top_n);
        Self {
            seed,
            params: params.effective().clone(),
            warnings: params.warnings().iter().map(ParamWarning::from).collect(),
            stages: stages.into_iter().map(Stage::from).collect(),
            distribution_size,
            distribution,
            sampled: drawn.then_some(Sampled {
                token_id: sampled.token_id,
                logprob: Some(sampled.logprob).filter(|logprob| logprob.is_finite()),
                position,
                seed,
            }),
            error: (!drawn).then(|| sampled.status.to_string()),
            tokens: BTreeMap::new(),
        }
    }

    /// The same with the texts of its tokens.
    fn with_texts(mut self, engine: &Engine) -> Self {
        let listed = self.distribution.iter().map(|(id, _)| *id);
        let removed = self.stages.iter().filter_map(|stage| stage.first_removed);
        let sampled = self.sampled.iter().map(|sampled| sampled.token_id);
        let ids: Vec<u32> = listed.chain(removed).chain(sampled).collect();
        let text = |id| (id, engine.tokenizer().decode(&[id], false));
        self.tokens = ids.into_iter().map(text).collect();
        self
    }
}

impl From<StageTrace> for Stage {
    fn from(trace: StageTrace) -> Self {
        let StageTrace {
            name,
            kept,
            removed,
            first_removed,
            mass,
            entropy,
            max_logit,
            temperature,
        } = trace;
        Self {
            name,
            kept,
            removed,
            first_removed,
            mass: Some(mass).filter(|mass| mass.is_finite()),
            entropy: Some(entropy).filter(|entropy| entropy.is_finite()),
            max_logit: Some(max_logit).filter(|logit| logit.is_finite()),
            temperature,
        }
    }
}
