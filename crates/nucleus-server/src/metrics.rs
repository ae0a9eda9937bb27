//! `GET /metrics`: what has been counted and timed, as Prometheus reads it.
//!
//! Requests are observed where their events pass on the way to the client ([`Observed`]), whatever the endpoint. Every family
//! has a name of ours; where vLLM or llama.cpp's server measures the same thing, its name is there too, with the same samples,
//! so that dashboards, alerts and scalers made for them work. What is not measured has no name here.
//!
//! | module | what it is |
//! |---|---|
//! | `histogram` | counting by size without locks |
//! | `observed` | a generation whose events are counted as they pass |
//! | `exposition` | names, and the text format |

mod exposition;
mod histogram;
mod observed;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use nucleus_engine::sequence::Completion;

use crate::app::AppState;
use crate::openapi::{Endpoint, Group};
use exposition::Activity;
use histogram::Histogram;
pub(crate) use observed::Observed;

/// The media type of the text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Seconds to a first token, in a queue, of a prompt or a whole request.
const LONG: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];

/// Seconds between two tokens.
const SHORT: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
];

/// Tokens.
const LENGTHS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0,
];

/// Why requests ended, in our words, and in vLLM's.
const REASONS: [(&str, &str); 8] = [
    ("stop", "stop"),
    ("stop_sequence", "stop"),
    ("stop_token", "stop"),
    ("length", "length"),
    ("time_limit", "length"),
    ("cancelled", "abort"),
    ("aborted", "abort"),
    ("error", "error"),
];

/// Everything that is counted and timed, since the server began.
#[derive(Debug)]
pub(crate) struct Metrics {
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    /// For each of [`REASONS`].
    finished: [AtomicU64; REASONS.len()],
    first_token: Histogram,
    inter_token: Histogram,
    whole: Histogram,
    queue: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_length: Histogram,
    output_length: Histogram,
    /// Answers by route and status. A route is the pattern, so that there are only so many.
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let long = || Histogram::of_seconds(LONG);
        Self {
            prompt_tokens: AtomicU64::default(),
            generation_tokens: AtomicU64::default(),
            finished: Default::default(),
            first_token: long(),
            inter_token: Histogram::of_seconds(SHORT),
            whole: long(),
            queue: long(),
            prefill: long(),
            decode: long(),
            prompt_length: Histogram::of_counts(LENGTHS),
            output_length: Histogram::of_counts(LENGTHS),
            answers: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A request was answered. `route` is empty where there is none.
    pub(crate) fn answered(&self, route: &str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answers.get_mut(&(route.to_owned(), status)) {
            Some(count) => *count += 1,
            None => {
                answers.insert((route.to_owned(), status), 1);
            }
        }
    }

    /// A first token came, so long after the request was handed over.
    fn first_token(&self, after: Duration) {
        self.first_token.observe_time(after);
        self.generation_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// A further token came, so long after the one before.
    fn further_token(&self, after: Duration) {
        self.inter_token.observe_time(after);
        self.generation_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ended by itself.
    fn completed(&self, completion: &Completion, whole: Duration) {
        let timings = completion.timings;
        self.prompt_tokens
            .fetch_add(completion.prompt_tokens as u64, Ordering::Relaxed);
        self.prompt_length
            .observe_count(completion.prompt_tokens as u64);
        self.output_length
            .observe_count(completion.token_ids.len() as u64);
        self.queue.observe_time(timings.queued);
        self.prefill.observe_time(timings.prefill);
        self.decode.observe_time(timings.decode);
        self.finished(completion.finish_reason.as_str(), whole);
    }

    /// A request ended for that reason, so long after it was handed over.
    fn finished(&self, reason: &str, whole: Duration) {
        self.whole.observe_time(whole);
        let index = REASONS.iter().position(|(name, _)| *name == reason);
        // A reason that the table lacks would be a request that is not counted; a test goes through them.
        if let Some(index) = index {
            self.finished[index].fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(crate) fn endpoints() -> [Endpoint; 1] {
    [Endpoint::get("/metrics", metrics)
        .group(Group::Worker)
        .says(
            "Counts and times",
            "What has been measured since the worker began, in Prometheus's text format, under names of ours and those of vLLM and llama.cpp.",
        )
        .sends("text/plain", "The metrics")]
}

async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    const HEADERS: [(HeaderName, &str); 1] = [(header::CONTENT_TYPE, TEXT_FORMAT)];
    let engine = Activity {
        load: state.engine.load(),
        counters: state.engine.counters(),
        memory: state.engine.device_memory(),
    };
    let model = &state.engine.spec().name;
    let text = exposition::render(&state.metrics, engine, model, state.started.elapsed());
    (HEADERS, text)
}
