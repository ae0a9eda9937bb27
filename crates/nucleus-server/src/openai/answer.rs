//! The answer to a request: whole, or as a stream of parts.

use std::collections::VecDeque;

use axum::Json;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt};
use nucleus_sampling::random_seed;
use schemars::JsonSchema;
use serde::Serialize;

use super::batch::{Batch, StreamOptions};
use super::candidate::{Candidate, Ended, best};
use super::choice::{ChoiceEvent, Piece};
use super::models::system_fingerprint;
use super::shape::Shape;
use crate::app::{AppState, unix_time};
use crate::error::{ApiError, ErrorBody};
use crate::request::{Accepted, EffectiveParams};
use crate::sse::{self, Usage};
use crate::warnings;

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

/// The data of a stream's event.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "PartOf{C}")]
pub(super) enum Data<C> {
    Part(Box<Body<C>>),
    /// The stream has failed.
    Error(ErrorBody),
}

/// What OpenAI has no place for: what the first choice was sampled with.
#[derive(Debug, Serialize, JsonSchema)]
struct Effective {
    seed: u64,
    /// The seeds of the choices, where they are the best of more candidates.
    #[serde(skip_serializing_if = "Option::is_none")]
    seeds: Option<Vec<u64>>,
    params: EffectiveParams,
}

/// Answers a request that the engine has accepted, with what the client should be told in a header.
pub(super) async fn respond<S: Shape>(
    batch: Batch,
    accepted: Vec<Accepted>,
    state: &AppState,
) -> Result<Response, ApiError> {
    let effective = accepted.first().map(|first| Effective {
        seed: first.generation.seed(),
        seeds: None,
        params: first.params.clone(),
    });
    let candidates: Vec<Candidate> = accepted
        .into_iter()
        .enumerate()
        .map(|(index, accepted)| Candidate::new(&batch, index, accepted, state))
        .collect();
    let headers = warnings::headers(&batch.warnings);
    let head = Head {
        id: format!("{}{:014x}{:014x}", S::ID, random_seed(), random_seed()),
        object: S::WHOLE,
        created: unix_time(),
        model: state.engine.spec().name.clone(),
        system_fingerprint: system_fingerprint(state),
    };
    match batch.stream {
        None => {
            let body = whole::<S>(&batch, candidates, head, effective).await?;
            Ok((headers, Json(body)).into_response())
        }
        Some(options) => {
            let parts = parts::<S>(&batch, candidates, options, head, effective);
            let keep_alive = state.config.timeouts.keep_alive;
            Ok((headers, sse::respond(parts, keep_alive)).into_response())
        }
    }
}

/// Waits for every candidate; the first that fails ends the others. Of each prompt's, the best become choices.
async fn whole<S: Shape>(
    batch: &Batch,
    candidates: Vec<Candidate>,
    head: Head,
    effective: Option<Effective>,
) -> Result<Body<S::Choice>, ApiError> {
    let logprobs = batch.settings.logprobs.is_some();
    let mut tokens = Tokens::new(batch.candidates);
    let mut ended = Vec::with_capacity(candidates.len());
    for (index, candidate) in candidates.into_iter().enumerate() {
        let candidate = candidate.whole(logprobs).await?;
        let end = &candidate.end;
        tokens.count(index, end.prompt_tokens, end.token_ids.len());
        ended.push(candidate);
    }
    let ranked = batch.candidates > batch.n;
    let best = best(ended, batch.candidates, batch.n);
    let seeds: Vec<u64> = best.iter().map(|candidate| candidate.seed).collect();
    let choices = best.into_iter().enumerate().map(|(index, candidate)| {
        let Ended { piece, end, .. } = candidate;
        S::whole(index, piece, end.finish)
    });
    Ok(Body {
        head,
        choices: choices.collect(),
        usage: Some(Some(tokens.usage())),
        nucleus: effective.map(|effective| Effective {
            seeds: ranked.then_some(seeds),
            ..effective
        }),
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
    /// What texts begin with whose prompts are reported.
    echoes: Vec<String>,
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
    candidates: Vec<Candidate>,
    options: StreamOptions,
    head: Head,
    effective: Option<Effective>,
) -> impl Stream<Item = SseEvent> + Send + use<S> {
    // The prompt's tokens come once the engine has scored them, and its text with them.
    let scored = batch.settings.logprobs.is_some();
    let mut openings = VecDeque::new();
    let mut echoes = Vec::new();
    let mut choices = Vec::new();
    for (index, candidate) in candidates.into_iter().enumerate() {
        let echo = if scored {
            String::new()
        } else {
            candidate.echo.clone()
        };
        let prompt_token_ids = candidate.prompt_token_ids;
        let says = !echo.is_empty() || prompt_token_ids.is_some();
        let first = Piece {
            text: echo,
            prompt_token_ids,
            ..Piece::default()
        };
        openings.extend(S::opening(index));
        openings.extend(says.then(|| S::piece(index, first)));
        echoes.push(candidate.echo);
        choices.push(candidate.choice.events(index));
    }
    let parts = Parts::<S, _> {
        openings,
        echoes,
        choices: stream::select_all(choices),
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
    sse::last_on_panic(events, failed::<S>)
}

impl<S: Shape, C: Stream<Item = (usize, ChoiceEvent)> + Unpin> Parts<S, C> {
    /// The next event, and where the stream stands then.
    async fn next(mut self) -> (SseEvent, Stage<Self>) {
        if let Some(opening) = self.openings.pop_front() {
            return self.part(opening);
        }
        match self.choices.next().await {
            Some((index, ChoiceEvent::Prompt(tokens))) => {
                let piece = Piece {
                    text: std::mem::take(&mut self.echoes[index]),
                    tokens: Some(tokens),
                    ..Piece::default()
                };
                self.part(S::piece(index, piece))
            }
            Some((index, ChoiceEvent::Piece(piece))) => self.part(S::piece(index, piece)),
            Some((index, ChoiceEvent::End(end))) => {
                self.tokens
                    .count(index, end.prompt_tokens, end.token_ids.len());
                self.part(S::closing(index, end.finish))
            }
            // No `[DONE]` comes after it: what ends with one is whole.
            Some((_, ChoiceEvent::Failed(error))) => (failed::<S>(error), Stage::Over),
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
        encode(&Data::Part(Box::new(Body {
            head: self.head.clone(),
            choices,
            usage: self.options.include_usage.then_some(usage),
            nucleus: self.effective.take(),
        })))
    }
}

fn failed<S: Shape>(error: ApiError) -> SseEvent {
    encode(&Data::<S::Part>::Error(error.body()))
}

fn done() -> SseEvent {
    SseEvent::default().data("[DONE]")
}

fn encode<C: Serialize>(data: &Data<C>) -> SseEvent {
    SseEvent::default()
        .json_data(data)
        .expect("parts are strings and numbers, which JSON can hold")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once() {
        let mut tokens = Tokens::new(2);
        for (index, prompt) in [(1, 4), (0, 4), (2, 7), (3, 7)] {
            tokens.count(index, prompt, 10);
        }
        assert_eq!(tokens.usage(), Usage::new(11, 40));
    }
}
