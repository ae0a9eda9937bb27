//! Server-sent events: `started`, then `token` for each token, then exactly one of `end` and `error`.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::IntoResponse;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use nucleus_engine::generate::{Event, Generation};
use nucleus_engine::sequence::{Completion, FinishReason, Timings, TokenEvent};
use serde::Serialize;

use crate::error::{ApiError, ErrorBody};
use crate::jobs::{JobGuard, JobId};
use crate::request::{Accepted, EffectiveParams, ParamWarning};

/// One event of a job's stream.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum JobEvent {
    Started(Box<Started>),
    Token(Token),
    End(End),
    Error(ErrorBody),
}

/// The engine has accepted the job.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    job_id: JobId,
    model: String,
    seed: u64,
    params: EffectiveParams,
    warnings: Vec<ParamWarning>,
}

/// A token was drawn.
#[derive(Debug, Serialize)]
pub(crate) struct Token {
    index: usize,
    id: u32,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprob: Option<f32>,
}

/// The job ended.
#[derive(Debug, Serialize)]
pub(crate) struct End {
    text: String,
    stop_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_sequence: Option<String>,
    usage: Usage,
    timings: TimingsMs,
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

#[derive(Debug, Serialize)]
struct TimingsMs {
    queued_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// Of decoding: the first token belongs to the prompt's time. Null without a second one.
    tokens_per_second: Option<f64>,
}

/// The events of a job that the engine has accepted. Dropping the stream cancels the job and frees its name.
pub(crate) fn job_events(
    job: JobGuard,
    model: &str,
    accepted: Accepted,
) -> impl Stream<Item = JobEvent> + Send + use<> {
    let Accepted {
        generation,
        params,
        warnings,
    } = accepted;
    let logprobs = params.logprobs;
    let started = JobEvent::Started(Box::new(Started {
        job_id: job.id().clone(),
        model: model.to_owned(),
        seed: generation.seed(),
        params,
        warnings,
    }));
    let rest = stream::unfold(Some((job, generation)), move |live| {
        next_event(live, logprobs)
    });
    let events = stream::iter([started]).chain(rest);
    // A panic in here would cut the stream without a word.
    AssertUnwindSafe(events)
        .catch_unwind()
        .map(|event| event.unwrap_or_else(|_| JobEvent::Error(ApiError::Internal.body())))
}

/// The event that follows, and what is still live after it. The job's name is free before its last event is out.
async fn next_event(
    live: Option<(JobGuard, Generation)>,
    logprobs: bool,
) -> Option<(JobEvent, Option<(JobGuard, Generation)>)> {
    let (job, mut generation) = live?;
    match generation.next().await? {
        Event::Token(token) => Some((
            JobEvent::Token(Token::new(token, logprobs)),
            Some((job, generation)),
        )),
        Event::End(completion) => Some((JobEvent::End(completion.into()), None)),
        Event::Failed(error) => {
            tracing::error!(job_id = %job.id(), %error, "generation failed");
            Some((JobEvent::Error(ApiError::from(error).body()), None))
        }
    }
}

/// A response that streams events, with comments while there are none.
pub(crate) fn respond(
    events: impl Stream<Item = JobEvent> + Send + 'static,
    keep_alive: Duration,
) -> impl IntoResponse {
    let events = events.map(|event| Ok::<_, Infallible>(event.encode()));
    // nginx collects a response before it passes it on, unless told not to.
    let unbuffered = (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    (
        [unbuffered],
        Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive)),
    )
}

impl JobEvent {
    fn name(&self) -> &'static str {
        match self {
            Self::Started(_) => "started",
            Self::Token(_) => "token",
            Self::End(_) => "end",
            Self::Error(_) => "error",
        }
    }

    fn encode(&self) -> SseEvent {
        SseEvent::default()
            .event(self.name())
            .json_data(self)
            .expect("events are strings and numbers, which JSON can hold")
    }
}

impl Token {
    fn new(token: TokenEvent, logprobs: bool) -> Self {
        let TokenEvent {
            index,
            id,
            text,
            logprob,
        } = token;
        Self {
            index,
            id,
            text,
            logprob: logprobs.then_some(logprob),
        }
    }
}

impl From<Completion> for End {
    fn from(completion: Completion) -> Self {
        let stop_reason = completion.finish_reason.as_str();
        let tokens = completion.token_ids.len();
        Self {
            text: completion.text,
            stop_reason,
            stop_sequence: match completion.finish_reason {
                FinishReason::StopSequence(stop) => Some(stop),
                _ => None,
            },
            usage: Usage {
                prompt_tokens: completion.prompt_tokens,
                completion_tokens: tokens,
                total_tokens: completion.prompt_tokens + tokens,
            },
            timings: TimingsMs::new(completion.timings, tokens),
        }
    }
}

impl TimingsMs {
    fn new(timings: Timings, tokens: usize) -> Self {
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let seconds = timings.decode.as_secs_f64();
        Self {
            queued_ms: ms(timings.queued),
            prefill_ms: ms(timings.prefill),
            decode_ms: ms(timings.decode),
            tokens_per_second: (tokens > 1 && seconds > 0.0)
                .then(|| ((tokens - 1) as f64 / seconds * 10.0).round() / 10.0),
        }
    }
}
