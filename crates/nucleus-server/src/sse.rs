//! Server-sent events: `started`, then `token` for each token, then exactly one of `end` and `error`.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::IntoResponse;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use nucleus_engine::generate::Event;
use nucleus_engine::sequence::{Completion, FinishReason, SamplingStats, Timings, TokenEvent};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{ApiError, ErrorBody};
use crate::jobs::{JobGuard, JobId};
use crate::metrics::Observed;
use crate::request::{Accepted, EffectiveParams, ParamWarning};

/// One event of a job's stream.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum JobEvent {
    Started(Box<Started>),
    Token(Token),
    End(End),
    Error(ErrorBody),
}

/// The engine has accepted the job.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Started {
    job_id: JobId,
    model: String,
    seed: u64,
    /// The prompt's tokens, if they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    params: EffectiveParams,
    warnings: Vec<ParamWarning>,
}

/// A token was drawn.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Token {
    index: usize,
    id: u32,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprob: Option<f32>,
}

/// The job ended.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct End {
    text: String,
    stop_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_sequence: Option<String>,
    /// The stop token that was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_token: Option<u32>,
    /// The tokens of the text, if they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    usage: Usage,
    timings: TimingsMs,
    sampling: SamplingSummary,
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct TimingsMs {
    queued_ms: f64,
    prefill_ms: f64,
    decode_ms: f64,
    /// Of decoding: the first token belongs to the prompt's time. Null without a second one.
    tokens_per_second: Option<f64>,
}

/// What the sampler had to choose from. Null without a token.
#[derive(Debug, Serialize, JsonSchema)]
struct SamplingSummary {
    /// Mean log-probability of the tokens, in the distribution of `logprobs_mode`.
    mean_logprob: Option<f64>,
    /// Mean, smallest and largest number of tokens that could have been drawn.
    mean_kept: Option<f64>,
    min_kept: Option<u32>,
    max_kept: Option<u32>,
}

/// What of a job's events depends on the request.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    logprobs: bool,
    token_ids: bool,
}

/// The events of a job that the engine has accepted. Dropping the stream cancels the job and frees its name.
pub(crate) fn job_events(
    job: JobGuard,
    model: &str,
    accepted: Accepted,
    token_ids: bool,
) -> impl Stream<Item = JobEvent> + Send + use<> {
    let Accepted {
        generation,
        prompt,
        params,
        warnings,
    } = accepted;
    let wanted = Wanted {
        logprobs: params.logprobs,
        token_ids,
    };
    let started = JobEvent::Started(Box::new(Started {
        job_id: job.id().clone(),
        model: model.to_owned(),
        seed: generation.seed(),
        prompt_token_ids: token_ids.then(|| prompt.to_vec()),
        params,
        warnings,
    }));
    let rest = stream::unfold(Some((job, generation)), move |live| {
        next_event(live, wanted)
    });
    last_on_panic(stream::iter([started]).chain(rest), |error| {
        JobEvent::Error(error.body())
    })
}

/// A panic while events are made would cut the stream without a word; here it is the last event.
pub(crate) fn last_on_panic<E>(
    events: impl Stream<Item = E> + Send,
    last: impl Fn(ApiError) -> E + Send,
) -> impl Stream<Item = E> + Send {
    AssertUnwindSafe(events)
        .catch_unwind()
        .map(move |event| event.unwrap_or_else(|_| last(ApiError::Internal)))
}

/// The event that follows, and what is still live after it. The job's name is free before its last event is out.
async fn next_event(
    live: Option<(JobGuard, Observed)>,
    wanted: Wanted,
) -> Option<(JobEvent, Option<(JobGuard, Observed)>)> {
    let (job, mut generation) = live?;
    loop {
        let said = match generation.next().await? {
            // Jobs do not ask for it.
            Event::Prompt(_) => continue,
            Event::Token(token) => (
                JobEvent::Token(Token::new(token, wanted.logprobs)),
                Some((job, generation)),
            ),
            Event::End(completion) => (JobEvent::End(End::new(completion, wanted.token_ids)), None),
            Event::Failed(error) => {
                tracing::error!(job_id = %job.id(), %error, "generation failed");
                (JobEvent::Error(ApiError::from(error).body()), None)
            }
        };
        return Some(said);
    }
}

/// A response that streams events, with comments while there are none.
pub(crate) fn respond(
    events: impl Stream<Item = SseEvent> + Send + 'static,
    keep_alive: Duration,
) -> impl IntoResponse {
    let events = events.map(Ok::<_, Infallible>);
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

    /// The event as it is sent.
    pub(crate) fn encode(&self) -> SseEvent {
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
            ..
        } = token;
        Self {
            index,
            id,
            text,
            logprob: logprobs.then_some(logprob),
        }
    }
}

impl End {
    fn new(completion: Completion, token_ids: bool) -> Self {
        let tokens = completion.token_ids.len();
        let stop_reason = completion.finish_reason.as_str();
        let (stop_sequence, stop_token) = match completion.finish_reason {
            FinishReason::StopSequence(stop) => (Some(stop), None),
            FinishReason::StopToken(id) => (None, Some(id)),
            _ => (None, None),
        };
        Self {
            text: completion.text,
            stop_reason,
            stop_sequence,
            stop_token,
            token_ids: token_ids.then_some(completion.token_ids),
            usage: Usage::new(completion.prompt_tokens, tokens),
            timings: TimingsMs::new(completion.timings, tokens),
            sampling: completion.sampling.into(),
        }
    }
}

impl From<SamplingStats> for SamplingSummary {
    fn from(stats: SamplingStats) -> Self {
        let drawn = stats.tokens > 0;
        Self {
            mean_logprob: stats.mean_logprob(),
            mean_kept: stats.mean_kept(),
            min_kept: drawn.then_some(stats.min_kept),
            max_kept: drawn.then_some(stats.max_kept),
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn token(index: usize) -> Token {
        Token::new(
            TokenEvent {
                index,
                id: 7,
                text: " a".into(),
                logprob: -0.5,
                top_logprobs: Vec::new(),
                timings: Timings::default(),
                logits: None,
            },
            true,
        )
    }

    #[test]
    fn c9_a_panic_in_a_stream_is_its_last_event() {
        let events = stream::iter(0..3).map(|index| {
            assert_ne!(index, 2, "two is too many");
            JobEvent::Token(token(index))
        });
        let events: Vec<_> = last_on_panic(events, |error| JobEvent::Error(error.body()))
            .collect()
            .now_or_never()
            .expect("nothing is waited for");
        let names: Vec<&str> = events.iter().map(JobEvent::name).collect();
        assert_eq!(names, ["token", "token", "error"]);
    }

    #[test]
    fn speed_counts_the_tokens_after_the_first() {
        let timings = Timings {
            decode: Duration::from_millis(500),
            ..Timings::default()
        };
        assert_eq!(TimingsMs::new(timings, 11).tokens_per_second, Some(20.0));
        assert_eq!(TimingsMs::new(timings, 1).tokens_per_second, None);
        assert_eq!(
            TimingsMs::new(Timings::default(), 11).tokens_per_second,
            None
        );
        let timings = Timings {
            queued: Duration::from_nanos(1_234_567),
            ..timings
        };
        assert_eq!(TimingsMs::new(timings, 11).queued_ms, 1.235);
    }

    #[test]
    fn a_logprob_that_json_cannot_hold_is_null() {
        let token = Token {
            logprob: Some(f32::NEG_INFINITY),
            ..token(0)
        };
        let json = serde_json::to_string(&token).expect("JSON");
        assert_eq!(json, r#"{"index":0,"id":7,"text":" a","logprob":null}"#);
    }
}
