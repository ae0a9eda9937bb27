//! The answer to `/completion`: whole, or as a stream of parts.

use std::sync::Arc;

use axum::Json;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt};
use nucleus_engine::generate::{Event, SubmitError};
use nucleus_engine::sequence::{Completion, FinishReason, TokenEvent};
use nucleus_engine::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::completion::Wanted;
use super::generation_settings::Source;
use super::probability::{Scale, TokenProbability, written};
use super::timings::TimingsMs;
use crate::app::AppState;
use crate::error::{ApiError, ErrorBody};
use crate::metrics::Observed;
use crate::request::{Accepted, EffectiveParams, Settings};
use crate::sse;
use crate::warnings;

/// Sequences have no slot of their own here.
const NO_SLOT: i32 = -1;

/// What a request is answered with.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LlamaCppAnswer")]
pub(super) enum Answers {
    /// One prompt, one choice.
    One(Answer),
    /// In the order of prompts, then of choices.
    Several(Vec<Answer>),
}

/// The answer to one prompt, one choice of it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LlamaCppChoice")]
pub(super) enum Answer {
    Whole(Box<Whole>),
    /// The fields that `response_fields` names, those that are there, each under its last name.
    Fields(Map<String, Value>),
}

/// The data of a stream's event.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LlamaCppData")]
pub(super) enum Data {
    Part(Box<Part>),
    /// The end of a choice.
    Last(Answer),
    /// The stream has failed.
    Error(ErrorBody),
}

/// A whole answer, or the last part of a stream, which has no text of its own.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LlamaCppCompletion")]
pub(super) struct Whole {
    index: usize,
    content: String,
    /// Empty unless `return_tokens` asks for them.
    tokens: Vec<u32>,
    /// Always -1: a sequence has no slot of its own.
    id_slot: i32,
    stop: bool,
    model: String,
    tokens_predicted: usize,
    tokens_evaluated: usize,
    generation_settings: Map<String, Value>,
    /// The prompt as the model saw it, control tokens written out.
    prompt: String,
    has_new_line: bool,
    /// Whether the context was full before the text had ended.
    truncated: bool,
    /// `eos`, `word` or `limit`.
    stop_type: &'static str,
    /// The stop string or stop token that was met; else empty.
    stopping_word: String,
    /// Tokens of the prompt and the text whose keys and values were in the cache at the end.
    tokens_cached: usize,
    timings: TimingsMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_probabilities: Option<Vec<TokenProbability>>,
}

/// A part of a stream: a token.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LlamaCppPart")]
pub(super) struct Part {
    index: usize,
    /// Text that became certain with the token.
    content: String,
    tokens: [u32; 1],
    stop: bool,
    id_slot: i32,
    tokens_predicted: usize,
    tokens_evaluated: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_probabilities: Option<[TokenProbability; 1]>,
}

/// Answers a request that the engine has accepted, with what the client should be told in a header.
pub(super) async fn respond(
    accepted: Vec<Accepted>,
    wanted: Wanted,
    settings: Settings,
    warnings: &[String],
    state: &AppState,
) -> Result<Response, ApiError> {
    let headers = warnings::headers(warnings);
    let common = Arc::new(Common {
        wanted,
        settings,
        model: state.engine.spec().name.clone(),
        context_length: state.engine.spec().context_length,
        tokenizer: Arc::clone(state.engine.tokenizer()),
    });
    let choices = accepted
        .into_iter()
        .enumerate()
        .map(|(index, accepted)| Choice::new(index, accepted, Arc::clone(&common)));
    if common.wanted.stream {
        let keep_alive = state.config.timeouts.keep_alive;
        let parts = parts(choices.collect(), common);
        return Ok((headers, sse::respond(parts, keep_alive)).into_response());
    }
    let mut answers = Vec::new();
    for choice in choices.collect::<Vec<_>>() {
        answers.push(common.select(choice.whole().await?));
    }
    let answers = match <[Answer; 1]>::try_from(answers) {
        Ok([only]) => Answers::One(only),
        Err(several) => Answers::Several(several),
    };
    Ok((headers, Json(answers)).into_response())
}

/// What all choices of a request have in common.
struct Common {
    wanted: Wanted,
    settings: Settings,
    model: String,
    context_length: usize,
    tokenizer: Arc<Tokenizer>,
}

/// A continuation on its way. Dropping it cancels it.
struct Choice {
    index: usize,
    generation: Observed,
    prompt: Arc<[u32]>,
    params: EffectiveParams,
    common: Arc<Common>,
}

/// What a choice says.
enum Said {
    Token(TokenEvent),
    End(Completion),
}

impl Choice {
    fn new(index: usize, accepted: Accepted, common: Arc<Common>) -> Self {
        Self {
            index,
            generation: accepted.generation,
            prompt: accepted.prompt,
            params: accepted.params,
            common,
        }
    }

    /// The next thing it says; nothing after its end.
    async fn next(&mut self) -> Option<Result<Said, ApiError>> {
        loop {
            return match self.generation.next().await? {
                // It is not asked for.
                Event::Prompt(_) => continue,
                Event::Token(token) => Some(Ok(Said::Token(token))),
                Event::End(completion) => match completion.finish_reason {
                    // Half an answer is not passed for a whole one.
                    FinishReason::Cancelled | FinishReason::Aborted => {
                        Some(Err(SubmitError::ShuttingDown.into()))
                    }
                    _ => Some(Ok(Said::End(completion))),
                },
                Event::Failed(error) => {
                    tracing::error!(%error, "generation failed");
                    Some(Err(error.into()))
                }
            };
        }
    }

    /// Waits for the whole of it.
    async fn whole(mut self) -> Result<Whole, ApiError> {
        let mut probabilities = Vec::new();
        while let Some(said) = self.next().await {
            match said? {
                Said::Token(token) => probabilities.extend(self.probability(&token)),
                Said::End(completion) => {
                    let mut whole = self.last(&completion);
                    whole.content = completion.text;
                    if self.common.wanted.return_tokens {
                        whole.tokens = completion.token_ids;
                    }
                    let wanted = self.common.wanted.n_probs > 0;
                    whole.completion_probabilities = wanted.then_some(probabilities);
                    return Ok(whole);
                }
            }
        }
        Err(ApiError::Internal)
    }

    /// What the choice says, with what is left of it to say, as data of a stream.
    async fn data(mut self) -> Option<(Result<Data, ApiError>, Option<Self>)> {
        let common = Arc::clone(&self.common);
        Some(match self.next().await? {
            Ok(Said::Token(token)) => {
                let part = self.part(token);
                (Ok(Data::Part(Box::new(part))), Some(self))
            }
            Ok(Said::End(completion)) => {
                let last = common.select(self.last(&completion));
                (Ok(Data::Last(last)), None)
            }
            Err(error) => (Err(error), None),
        })
    }

    fn part(&self, token: TokenEvent) -> Part {
        let evaluated = self.prompt.len();
        let predicted = token.index + 1;
        let timings = TimingsMs::new(evaluated, predicted, token.timings);
        Part {
            index: self.index,
            completion_probabilities: self.probability(&token).map(|one| [one]),
            content: token.text,
            tokens: [token.id],
            stop: false,
            id_slot: NO_SLOT,
            tokens_predicted: predicted,
            tokens_evaluated: evaluated,
            timings: self.common.wanted.timings_per_token.then_some(timings),
        }
    }

    fn probability(&self, token: &TokenEvent) -> Option<TokenProbability> {
        let wanted = &self.common.wanted;
        let scale = Scale {
            tokenizer: &self.common.tokenizer,
            n_probs: wanted.n_probs,
            post_sampling: wanted.post_sampling_probs,
        };
        (wanted.n_probs > 0).then(|| scale.report(token))
    }

    /// The end without the text.
    fn last(&self, completion: &Completion) -> Whole {
        let common = &self.common;
        let (evaluated, predicted) = (completion.prompt_tokens, completion.token_ids.len());
        let (stop_type, stopping_word) = ending(completion, &common.tokenizer);
        let source = Source {
            params: &self.params.sampling,
            breakers: &common.settings.dry_breakers,
            stop: &common.settings.stop,
            n_predict: common
                .settings
                .max_tokens
                .map_or(-1, |tokens| i64::try_from(tokens).unwrap_or(i64::MAX)),
            wanted: &common.wanted,
            structured_outputs: self.params.structured_outputs.as_ref(),
        };
        Whole {
            index: self.index,
            content: String::new(),
            tokens: Vec::new(),
            id_slot: NO_SLOT,
            stop: true,
            model: common.model.clone(),
            tokens_predicted: predicted,
            tokens_evaluated: evaluated,
            generation_settings: source.settings(),
            prompt: common.tokenizer.decode(&self.prompt, false),
            has_new_line: completion.text.contains('\n'),
            truncated: completion.finish_reason == FinishReason::Length
                && evaluated + predicted >= common.context_length,
            stop_type,
            stopping_word,
            // The last token is drawn, and goes nowhere.
            tokens_cached: evaluated + predicted.saturating_sub(1),
            timings: TimingsMs::new(evaluated, predicted, completion.timings),
            completion_probabilities: None,
        }
    }
}

/// Why a text ended, in llama.cpp's words, and what ended it.
fn ending(completion: &Completion, tokenizer: &Tokenizer) -> (&'static str, String) {
    match &completion.finish_reason {
        FinishReason::EndOfText => ("eos", String::new()),
        FinishReason::StopSequence(word) => ("word", word.clone()),
        FinishReason::StopToken(id) => {
            let word = String::from_utf8_lossy(written(tokenizer, *id));
            ("word", word.into_owned())
        }
        _ => ("limit", String::new()),
    }
}

/// The choices of a stream as events, as they come, until all have ended or one has failed.
fn parts(choices: Vec<Choice>, common: Arc<Common>) -> impl Stream<Item = SseEvent> + Send {
    // Each choice is a stream of its own; where one has failed, the others are dropped, which cancels them.
    let streams = choices.into_iter().map(|choice| {
        Box::pin(stream::unfold(Some(choice), |choice| async {
            choice?.data().await
        }))
    });
    let choices: SelectAll<_> = stream::select_all(streams);
    let data = stream::unfold(Some(choices), |choices| async {
        let mut choices = choices?;
        let said = choices.next().await?;
        let rest = said.is_ok().then_some(choices);
        Some((said, rest))
    });
    let events = data.map(move |said| {
        let _ = &common;
        encode(said)
    });
    sse::last_on_panic(events, |error| encode(Err(error)))
}

fn encode(said: Result<Data, ApiError>) -> SseEvent {
    let data = said.unwrap_or_else(|error| Data::Error(error.body()));
    SseEvent::default()
        .json_data(data)
        .expect("parts are strings and numbers, which JSON can hold")
}

impl Common {
    /// An answer with the fields that are wanted of it.
    fn select(&self, whole: Whole) -> Answer {
        let fields = &self.wanted.response_fields;
        if fields.is_empty() {
            return Answer::Whole(Box::new(whole));
        }
        let whole = serde_json::to_value(whole)
            .expect("answers are strings and numbers, which JSON can hold");
        Answer::Fields(selected(&whole, fields))
    }
}

/// The fields of an object under their last names: `a/b` is the field `b` of the object `a`. What is not there is left out.
fn selected(object: &Value, fields: &[String]) -> Map<String, Value> {
    let pick = |path: &String| {
        let mut names = path.split('/');
        let value = names.try_fold(object, |value, name| value.get(name))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        Some((name.to_owned(), value.clone()))
    };
    fields.iter().filter_map(pick).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_picked_by_their_paths() {
        let answer = json!({"content": "x", "settings": {"a": 1, "b": {"c": 2}}});
        let fields = ["content", "settings/a", "settings/b/c", "gone", "content/x"];
        assert_eq!(
            Value::Object(selected(&answer, &fields.map(str::to_owned))),
            json!({"content": "x", "a": 1, "c": 2})
        );
    }
}
