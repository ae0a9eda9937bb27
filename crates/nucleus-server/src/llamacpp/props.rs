//! `GET /props` and `GET /slots`: what the server is and how busy it is, in llama.cpp's words.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use nucleus_sampling::SamplingParams;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::completion::{BREAKERS, Wanted, defaults};
use super::generation_settings::Source;
use crate::app::AppState;
use crate::error::ApiError;
use crate::openapi::{Endpoint, Group};

/// What the server is.
#[derive(Debug, Serialize, JsonSchema)]
struct Props {
    default_generation_settings: DefaultSettings,
    /// Sequences that can run at once.
    total_slots: usize,
    /// The model's name: where its file lies is nobody's business.
    model_path: String,
    model_alias: String,
    /// The template that writes conversations down; empty without one.
    chat_template: String,
    modalities: Modalities,
    bos_token: String,
    eos_token: String,
    build_info: String,
}

/// What a request gets that says nothing.
#[derive(Debug, Serialize, JsonSchema)]
struct DefaultSettings {
    #[serde(flatten)]
    slot: Slot,
    params: Map<String, Value>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Modalities {
    vision: bool,
    audio: bool,
}

/// A place for a sequence that runs.
#[derive(Debug, Serialize, JsonSchema)]
struct Slot {
    id: usize,
    id_task: i64,
    /// Most tokens of prompt and text.
    n_ctx: usize,
    speculative: bool,
    is_processing: bool,
}

pub(super) fn endpoints() -> [Endpoint; 2] {
    [
        Endpoint::get("/props", props)
            .group(Group::LlamaCpp)
            .says(
                "Says what the server is",
                "The model, its context and its chat template, and what `POST /completion` does where a request does not say.",
            )
            .answers::<Props>(200, "The properties"),
        Endpoint::get("/slots", slots)
            .group(Group::LlamaCpp)
            .says(
                "Says which slots are busy",
                "One slot for each sequence that can run at once; as many are busy as run. With `?fail_on_no_slot=1` it is 503 if all are.",
            )
            .answers::<Vec<Slot>>(200, "The slots")
            .refuses(&[503]),
    ]
}

async fn props(State(state): State<AppState>) -> Json<Props> {
    let (engine, spec) = (&state.engine, state.engine.spec());
    let name = |id: Option<u32>| {
        let text = id.map(|id| engine.tokenizer().token_text(id));
        text.unwrap_or_default().to_owned()
    };
    let source = Source {
        params: &defaults(SamplingParams::default()),
        breakers: &BREAKERS.map(str::to_owned),
        stop: &[],
        n_predict: -1,
        wanted: &Wanted::default(),
        structured_outputs: None,
    };
    Json(Props {
        default_generation_settings: DefaultSettings {
            slot: slot(0, false, &state),
            params: source.settings(),
        },
        total_slots: engine.options().max_running,
        model_path: spec.name.clone(),
        model_alias: spec.name.clone(),
        chat_template: state
            .chat_template
            .as_ref()
            .map_or_else(String::new, |template| template.source()),
        modalities: Modalities {
            vision: false,
            audio: false,
        },
        bos_token: name(engine.tokenizer().bos()),
        eos_token: name(engine.tokenizer().eos()),
        build_info: format!("nucleus-{}", env!("CARGO_PKG_VERSION")),
    })
}

async fn slots(State(state): State<AppState>, uri: Uri) -> Result<Json<Vec<Slot>>, ApiError> {
    let total = state.engine.options().max_running;
    let running = state.engine.load().running;
    if running >= total && fails_on_no_slot(uri.query().unwrap_or_default()) {
        return Err(ApiError::NoSlot { slots: total });
    }
    let slots = (0..total).map(|id| slot(id, id < running, &state));
    Ok(Json(slots.collect()))
}

/// Whether a query has `fail_on_no_slot` with a value.
fn fails_on_no_slot(query: &str) -> bool {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.any(|(name, value)| name == "fail_on_no_slot" && !value.is_empty())
}

fn slot(id: usize, is_processing: bool, state: &AppState) -> Slot {
    Slot {
        id,
        id_task: -1,
        n_ctx: state.engine.spec().context_length,
        speculative: false,
        is_processing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_may_ask_to_fail() {
        for asks in ["fail_on_no_slot=1", "a=b&fail_on_no_slot=1"] {
            assert!(fails_on_no_slot(asks), "{asks}");
        }
        for does_not in [
            "",
            "fail_on_no_slot",
            "fail_on_no_slot=",
            "x=fail_on_no_slot",
        ] {
            assert!(!fails_on_no_slot(does_not), "{does_not}");
        }
    }
}
