//! `POST /execute`: a prompt in, a stream of tokens out.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use nucleus_engine::generate::{Engine, TimeLimits};
use nucleus_sampling::Policy;
use serde_json::{Map, Value, json};

use crate::app::AppState;
use crate::body::JsonObject;
use crate::compatible;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::jobs::JobId;
use crate::openapi::{
    Bounds, Endpoint, Group, Object, either, flag, integer, list, refusal, text, token_ids,
};
use crate::output_format;
use crate::request::{LogprobsWanted, Prompt, Settings, submit};
use crate::sse::{self, JobEvent};

/// The fields of a request.
const FIELDS: &str = "job_id, prompt, max_tokens, stop, max_time_ms, stop_token_ids, include_stop_str_in_output, logprobs, logprobs_mode, \
     return_token_ids, response_format, structured_outputs and the sampling parameters";

pub(crate) fn endpoints() -> [Endpoint; 1] {
    [Endpoint::post("/execute", execute)
        .group(Group::Nucleus)
        .says(
            "Generates text and streams it",
            "Events: `started`, a `token` for each token, then exactly one of `end` and `error`. A field that is not listed is refused.",
        )
        .takes(schema)
        .streams::<JobEvent>("The events of the job")
        .refuses(&[409])
        .refuses(refusal::GENERATION)]
}

/// What [`ExecuteRequest::parse`] reads.
fn schema(bounds: &Bounds<'_>) -> Object {
    let limits = bounds.limits;
    let stop = || text(1, limits.stop_bytes);
    let object = Object::strict()
        .required("prompt", text(1, usize::MAX), "The text to continue. Control tokens that are written out in it are those tokens.")
        .field("job_id", JobId::schema(), "A name for the job. A name that a running job has is refused with 409; without one, one is made up.")
        .field("max_tokens", integer(1, bounds.output_tokens()), "Most tokens to generate. The end of the context ends the text too.")
        .field("stop", either([stop(), list(stop(), 0, limits.stops)]), "Strings that end the text, which stops before them.")
        .field("stop_token_ids", token_ids(0, bounds), "Tokens that end the text. `min_tokens` bans them as it bans the model's own end.")
        .field("include_stop_str_in_output", flag(false), "Whether the stop string or stop token that ends the text is part of it.")
        .field("logprobs", flag(false), "Whether each `token` event has its log-probability.")
        .field("return_token_ids", flag(false), "Whether `started` has the prompt's token ids, and `end` all those of the text.");
    let object = compatible::with_time(compatible::with_logprobs_mode(object));
    compatible::with_breakers(output_format::with_formats(object), bounds)
        .sampling(Policy::Execute, bounds)
        .example(json!({"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.8, "top_p": 0.95, "seed": 42}))
}

async fn execute(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<Response, ApiError> {
    let ExecuteRequest {
        job_id,
        prompt,
        settings,
        return_token_ids,
    } = ExecuteRequest::parse(body, &state.engine, &state.config.limits)?;
    let job = state.jobs.reserve(job_id)?;
    let accepted = submit(settings, vec![prompt], 1, &state).await?.remove(0);
    job.started(accepted.generation.cancel_handle());
    let model = &state.engine.spec().name;
    let keep_alive = state.config.timeouts.keep_alive;
    let events =
        sse::job_events(job, model, accepted, return_token_ids).map(|event| event.encode());
    Ok(sse::respond(events, keep_alive).into_response())
}

/// The body of a request.
#[derive(Debug)]
struct ExecuteRequest {
    job_id: Option<JobId>,
    prompt: Prompt,
    settings: Settings,
    return_token_ids: bool,
}

impl ExecuteRequest {
    fn parse(body: Map<String, Value>, engine: &Engine, limits: &Limits) -> Result<Self, ApiError> {
        let spec = engine.spec();
        let mut fields = Fields::new(body);
        let job_id = fields.string("job_id")?.map(JobId::new).transpose()?;
        let prompt = prompt(&mut fields)?;
        let max_tokens =
            fields.integer("max_tokens", 1..=limits.most_output(spec.context_length))?;
        let stop = fields.stops(limits.stops, limits.stop_bytes)?;
        let stop_token_ids = fields.ids("stop_token_ids")?;
        let include_stop = fields.boolean("include_stop_str_in_output")?;
        let wanted = fields.boolean("logprobs")?.unwrap_or(false);
        let mode = compatible::logprobs_mode(&mut fields)?;
        let return_token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
        let total = compatible::total_time(&mut fields)?;
        let output_format = output_format::read(&mut fields)?;
        let dry_breakers = compatible::breakers(&mut fields)?;
        let params = fields.sampling_params(Policy::Execute, engine.vocab())?;
        fields.finish(FIELDS)?;
        let max_tokens = max_tokens.map(|tokens| tokens as usize);
        Ok(Self {
            job_id,
            prompt: Prompt::Text(prompt),
            settings: Settings {
                params,
                max_tokens,
                stop,
                stop_token_ids,
                include_stop: include_stop.unwrap_or(false),
                logprobs: wanted.then_some(LogprobsWanted {
                    top: 0,
                    mode,
                    prompt: false,
                }),
                time_limits: TimeLimits {
                    total,
                    after_newline: None,
                },
                output_format,
                dry_breakers,
            },
            return_token_ids,
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
