//! `POST /execute`: a prompt in, a stream of tokens out.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nucleus_engine::generate::Engine;
use nucleus_sampling::Policy;
use serde_json::{Map, Value};

use crate::app::AppState;
use crate::body::JsonObject;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::jobs::JobId;
use crate::request::TextRequest;
use crate::sse;

/// The fields of a request beside the sampling parameters.
const OWN_FIELDS: &str = "job_id, prompt, max_tokens, stop, logprobs";

pub(crate) async fn execute(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let ExecuteRequest { job_id, request } =
        ExecuteRequest::parse(body, &state.engine, &state.config.limits)?;
    let job = state.jobs.reserve(job_id)?;
    let submitting = state.clone();
    // Tokenising a long prompt takes long, and the engine answers between two steps.
    let accepted = tokio::task::spawn_blocking(move || request.submit(&submitting))
        .await
        .map_err(|_| ApiError::Internal)??;
    job.started(accepted.generation.cancel_handle());
    let model = &state.engine.spec().name;
    let keep_alive = state.config.timeouts.keep_alive;
    Ok(sse::respond(sse::job_events(job, model, accepted), keep_alive).into_response())
}

/// The body of a request.
#[derive(Debug)]
struct ExecuteRequest {
    job_id: Option<JobId>,
    request: TextRequest,
}

impl ExecuteRequest {
    fn parse(body: Map<String, Value>, engine: &Engine, limits: &Limits) -> Result<Self, ApiError> {
        let spec = engine.spec();
        let mut fields = Fields::new(body);
        let job_id = fields.string("job_id")?.map(JobId::new).transpose()?;
        let prompt = prompt(&mut fields)?;
        let max_tokens = fields.integer("max_tokens", 1..=spec.context_length as u64)?;
        let stop = stops(&mut fields, limits)?;
        let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
        let params = fields.sampling_params(Policy::Execute, engine.vocab(), OWN_FIELDS)?;
        let max_tokens = max_tokens.map(|tokens| tokens as usize);
        Ok(Self {
            job_id,
            request: TextRequest {
                prompt,
                params,
                max_tokens,
                stop,
                logprobs,
            },
        })
    }
}

fn prompt(fields: &mut Fields) -> Result<String, ApiError> {
    const EXPECTED: &str = "a string that is not empty";
    match fields.string("prompt")? {
        None => Err(ApiError::MissingField {
            param: "prompt",
            expected: EXPECTED.into(),
        }),
        Some(prompt) if prompt.is_empty() => {
            Err(ApiError::field("prompt", "\"\"".into(), EXPECTED))
        }
        Some(prompt) => Ok(prompt),
    }
}

fn stops(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let stops = fields.strings("stop")?;
    if stops.len() > limits.stops {
        let expected = format!("at most {} strings", limits.stops);
        return Err(ApiError::field(
            "stop",
            format!("an array of {}", stops.len()),
            &expected,
        ));
    }
    match stops
        .iter()
        .position(|stop| !(1..=limits.stop_bytes).contains(&stop.len()))
    {
        None => Ok(stops),
        Some(index) => {
            let expected = format!("a string of 1 to {} bytes", limits.stop_bytes);
            let value = format!("a string of {} bytes", stops[index].len());
            Err(ApiError::field(format!("stop[{index}]"), value, &expected))
        }
    }
}
