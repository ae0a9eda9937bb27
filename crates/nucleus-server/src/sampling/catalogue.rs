//! `GET /v1/sampling/params`: every sampling parameter, as each endpoint takes it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use nucleus_sampling::{
    Bound, CONTRACT_VERSION, Domain, Literal, PARAMS, ParamSpec, Policy, Preset, Stage,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::app::AppState;
use crate::compatible::ALIASES;
use crate::openapi::{Endpoint, Group};

/// The endpoints whose ranges or defaults differ, by the names that they have here.
const POLICIES: [(&str, Policy); 4] = [
    ("library", Policy::Library),
    ("execute", Policy::Execute),
    ("openai", Policy::OpenAi),
    ("llama.cpp", Policy::LlamaCpp),
];

/// All there is to know about sampling parameters.
#[derive(Debug, Serialize, JsonSchema)]
struct Catalogue {
    /// Version of the sampling contract: the same version, seed, parameters and logits give the same tokens.
    contract_version: u32,
    /// Tokens of the model's vocabulary, which some ranges end at.
    vocab_size: u32,
    params: Vec<Param>,
    /// What `samplers` may name, in the default order.
    stages: Vec<&'static str>,
    /// What `preset` may name, with its order of stages.
    presets: BTreeMap<&'static str, Vec<&'static str>>,
}

/// A parameter.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "SamplingParam")]
struct Param {
    name: &'static str,
    /// Further names on the endpoints that are compatible with another server's.
    aliases: Vec<&'static str>,
    /// Its type in words.
    kind: &'static str,
    /// The stage that it acts in.
    stage: &'static str,
    help: &'static str,
    /// The value that changes nothing; null where that is being absent.
    neutral: Value,
    /// What each endpoint takes: `library` is the mathematics, and `/v1/sampling/explain`.
    endpoints: BTreeMap<&'static str, Accepted>,
}

/// What an endpoint takes.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "AcceptedParam")]
struct Accepted {
    /// The value of an absent parameter; null where it stays absent.
    default: Value,
    /// The range, in the notation of intervals; null for lists, names and switches.
    range: Option<String>,
    min: Option<f64>,
    max: Option<f64>,
    /// Whether `min` itself is outside of the range.
    exclusive_min: bool,
}

pub(super) fn endpoint() -> Endpoint {
    Endpoint::get("/v1/sampling/params", params)
        .group(Group::Nucleus)
        .says(
            "Lists the sampling parameters",
            "Name, type, stage and help of each, and the range and the default value that each endpoint has for it.",
        )
        .answers::<Catalogue>(200, "The parameters")
}

async fn params(State(state): State<AppState>) -> Json<Catalogue> {
    let vocab_size = state.engine.vocab().size;
    let names = |stages: &[Stage]| stages.iter().map(|stage| stage.name()).collect();
    Json(Catalogue {
        contract_version: CONTRACT_VERSION,
        vocab_size,
        params: PARAMS
            .iter()
            .map(|spec| Param::new(spec, vocab_size))
            .collect(),
        stages: names(&Stage::ORDERED),
        presets: Preset::ALL
            .iter()
            .map(|preset| (preset.name(), names(preset.order())))
            .collect(),
    })
}

impl Param {
    fn new(spec: &ParamSpec, vocab_size: u32) -> Self {
        let aliases = ALIASES.iter().filter(|(_, name)| *name == spec.name);
        let accepted = |(name, policy)| (name, Accepted::new(spec, policy, vocab_size));
        Self {
            name: spec.name,
            aliases: aliases.map(|(alias, _)| *alias).collect(),
            kind: spec.kind.name(),
            stage: spec.stage.name(),
            help: spec.help,
            neutral: value(spec.neutral),
            endpoints: POLICIES.into_iter().map(accepted).collect(),
        }
    }
}

impl Accepted {
    fn new(spec: &ParamSpec, policy: Policy, vocab_size: u32) -> Self {
        let range = spec.range(policy).map(|range| range.at(vocab_size));
        let number = |bound| match bound {
            Bound::Inclusive(number) | Bound::Exclusive(number) => Some(number),
            Bound::Vocab => None,
        };
        Self {
            default: value(default(spec, policy)),
            range: range.as_ref().map(Domain::to_string),
            min: range.and_then(|range| number(range.low)),
            max: range.and_then(|range| number(range.high)),
            exclusive_min: range.is_some_and(|range| matches!(range.low, Bound::Exclusive(_))),
        }
    }
}

/// llama.cpp's endpoint follows its own preset unless a request says otherwise.
fn default(spec: &ParamSpec, policy: Policy) -> Literal {
    match (spec.name, policy) {
        ("preset", Policy::LlamaCpp) => Literal::Text(Preset::LlamaCpp.name()),
        _ => spec.default(policy),
    }
}

fn value(literal: Literal) -> Value {
    match literal {
        Literal::Absent => Value::Null,
        Literal::Float(number) => number.into(),
        Literal::Int(number) => number.into(),
        Literal::Bool(switch) => switch.into(),
        Literal::Text(name) => name.into(),
    }
}
