//! The answer to a request: whole, or as a stream of parts.

use std::collections::VecDeque;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt};
use nucleus_sampling::random_seed;
use schemars::JsonSchema;
use serde::Serialize;

use super::batch::{Batch, StreamOptions};
use super::choice::{Choice, ChoiceEvent, Piece};
use super::models::system_fingerprint;
use super::shape::Shape;
use crate::app::{AppState, unix_time};
use crate::error::{ApiError, ErrorBody};
use crate::request::{Accepted, EffectiveParams};
use crate::sse::{self, Usage};

const WARNINGS: HeaderName = HeaderName::from_static("x-nucleus-warnings");

/// What every part of an answer says about the whole.
#[derive(Debug, Clone, Serialize, JsonSchema)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
}

/// An answer, or a part of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnswerOf{C}")]
pub(super) struct Body<C> {
    #[serde(flatten)]
    head: Head,
    choices: Vec<C>,
    /// In a stream it is absent unless asked for, and null but in the last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    /// In a stream, in the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    nucleus: Option<Effective>,
}

/// What OpenAI has no place for: what the first choice was sampled with.
#[derive(Debug, Serialize, JsonSchema)]
struct Effective {
    seed: u64,
    params: EffectiveParams,
}

/// Answers a request that the engine has accepted, with what the client should be told in a header.
pub(super) async fn respond<S: Shape>(
    batch: Batch,
    mut accepted: Vec<Accepted>,
    state: &AppState,
) -> Result<Response, ApiError> {
    let effective = accepted.first().map(|first| Effective {
        seed: first.generation.seed(),
        params: first.params.clone(),
    });
    let tokenizer = state.engine.tokenizer();
    let choices: Vec<Choice> = accepted
        .drain(..)
        .map(|choice| Choice::new(choice.generation, &batch.settings, tokenizer))
        .collect();
    let headers = warning_headers(&batch.warnings);
    let head = Head {
        id: format!("{}{:014x}{:014x}", S::ID, random_seed(), random_seed()),
        object: S::WHOLE,
        created: unix_time(),
        model: state.engine.spec().name.clone(),
        system_fingerprint: system_fingerprint(state),
    };
    match batch.stream {
        None => {
            let body = whole::<S>(&batch, choices, head, effective).await?;
            Ok((headers, Json(body)).into_response())
        }
        Some(options) => {
            let parts = parts::<S>(&batch, choices, options, head, effective);
            let keep_alive = state.config.timeouts.keep_alive;
            Ok((headers, sse::respond(parts, keep_alive)).into_response())
        }
    }
}

/// One header for each warning, in ASCII.
fn warning_headers(warnings: &[String]) -> HeaderMap {
    let lines = warnings.iter().filter_map(|warning| {
        let ascii: String = warning
            .chars()
            .map(|c| if (' '..='~').contains(&c) { c } else { '?' })
            .collect();
        HeaderValue::try_from(ascii).ok()
    });
    lines.map(|line| (WARNINGS, line)).collect()
}

/// Waits for every choice. The first that fails ends the others.
async fn whole<S: Shape>(
    batch: &Batch,
    choices: Vec<Choice>,
    head: Head,
    effective: Option<Effective>,
) -> Result<Body<S::Choice>, ApiError> {
    let mut written = Vec::with_capacity(choices.len());
    let mut tokens = Tokens::new(batch.n);
    for (index, mut choice) in choices.into_iter().enumerate() {
        let mut reports = batch.settings.logprobs.map(|_| Vec::new());
        while let Some(event) = choice.next().await {
            match event {
                ChoiceEvent::Piece(piece) => {
                    if let (Some(all), Some(more)) = (&mut reports, piece.tokens) {
                        all.extend(more);
                    }
                }
                ChoiceEvent::End(end) => {
                    tokens.count(index, end.prompt_tokens, end.completion_tokens);
                    let echo = batch.echoes.get(index / batch.n);
                    let piece = Piece {
                        text: echo.cloned().unwrap_or_default() + &end.text,
                        tokens: reports.take(),
                    };
                    written.push(S::whole(index, piece, end.finish));
                }
                ChoiceEvent::Failed(error) => return Err(error),
            }
        }
    }
    Ok(Body {
        head,
        choices: written,
        usage: Some(Some(tokens.usage())),
        nucleus: effective,
    })
}

/// Tokens of all choices. A prompt counts once, however often it is continued.
struct Tokens {
    n: usize,
    prompt: usize,
    completion: usize,
}

impl Tokens {
    fn new(n: usize) -> Self {
        Self {
            n,
            prompt: 0,
            completion: 0,
        }
    }

    fn count(&mut self, index: usize, prompt_tokens: usize, completion_tokens: usize) {
        if index.is_multiple_of(self.n) {
            self.prompt += prompt_tokens;
        }
        self.completion += completion_tokens;
    }

    fn usage(&self) -> Usage {
        Usage::new(self.prompt, self.completion)
    }
}

/// A stream on its way.
struct Parts<S: Shape, C> {
    /// What comes before any text.
    openings: VecDeque<S::Part>,
    choices: SelectAll<C>,
    tokens: Tokens,
    options: StreamOptions,
    head: Head,
    effective: Option<Effective>,
}

/// Where a stream stands.
enum Stage<P> {
    Going(P),
    Counted,
    Over,
}

/// The parts of an answer as events: choices as they come, then the usage if it is asked for, then `[DONE]`; or an error.
fn parts<S: Shape>(
    batch: &Batch,
    choices: Vec<Choice>,
    options: StreamOptions,
    head: Head,
    effective: Option<Effective>,
) -> impl Stream<Item = SseEvent> + Send + use<S> {
    let openings = (0..choices.len()).flat_map(|index| {
        let echo = batch.echoes.get(index / batch.n).cloned();
        let echo = echo.map(|text| S::piece(index, Piece { text, tokens: None }));
        S::opening(index).into_iter().chain(echo)
    });
    let parts = Parts::<S, _> {
        openings: openings.collect(),
        choices: stream::select_all(
            choices
                .into_iter()
                .enumerate()
                .map(|(index, choice)| choice.events(index)),
        ),
        tokens: Tokens::new(batch.n),
        options,
        head: Head {
            object: S::PART,
            ..head
        },
        effective,
    };
    let events = stream::unfold(Stage::Going(parts), |stage| async move {
        match stage {
            Stage::Going(parts) => Some(parts.next().await),
            Stage::Counted => Some((done(), Stage::Over)),
            Stage::Over => None,
        }
    });
    sse::last_on_panic(events, |error| failed(&error.body()))
}

impl<S: Shape, C: Stream<Item = (usize, ChoiceEvent)> + Unpin> Parts<S, C> {
    /// The next event, and where the stream stands then.
    async fn next(mut self) -> (SseEvent, Stage<Self>) {
        if let Some(opening) = self.openings.pop_front() {
            return self.part(opening);
        }
        match self.choices.next().await {
            Some((index, ChoiceEvent::Piece(piece))) => self.part(S::piece(index, piece)),
            Some((index, ChoiceEvent::End(end))) => {
                self.tokens
                    .count(index, end.prompt_tokens, end.completion_tokens);
                self.part(S::closing(index, end.finish))
            }
            // No `[DONE]` comes after it: what ends with one is whole.
            Some((_, ChoiceEvent::Failed(error))) => (failed(&error.body()), Stage::Over),
            None if self.options.include_usage => {
                let usage = self.tokens.usage();
                (self.event(Vec::new(), Some(usage)), Stage::Counted)
            }
            None => (done(), Stage::Over),
        }
    }

    fn part(mut self, choice: S::Part) -> (SseEvent, Stage<Self>) {
        (self.event(vec![choice], None), Stage::Going(self))
    }

    fn event(&mut self, choices: Vec<S::Part>, usage: Option<Usage>) -> SseEvent {
        encode(&Body {
            head: self.head.clone(),
            choices,
            usage: self.options.include_usage.then_some(usage),
            nucleus: self.effective.take(),
        })
    }
}

fn failed(error: &ErrorBody) -> SseEvent {
    encode(error)
}

fn done() -> SseEvent {
    SseEvent::default().data("[DONE]")
}

fn encode(data: &impl Serialize) -> SseEvent {
    SseEvent::default()
        .json_data(data)
        .expect("parts are strings and numbers, which JSON can hold")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_ascii_lines_of_their_own() {
        let headers = warning_headers(&["a: b".into(), "ü\r\nset-cookie: x".into()]);
        let lines: Vec<&[u8]> = headers
            .get_all(WARNINGS)
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(lines, [&b"a: b"[..], b"???set-cookie: x"]);
    }

    #[test]
    fn a_prompt_counts_once() {
        let mut tokens = Tokens::new(2);
        for (index, prompt) in [(1, 4), (0, 4), (2, 7), (3, 7)] {
            tokens.count(index, prompt, 10);
        }
        assert_eq!(tokens.usage(), Usage::new(11, 40));
    }
}
