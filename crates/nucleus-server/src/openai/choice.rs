//! One continuation on its way: pieces of text, then how it ended.

use std::sync::Arc;

use futures_util::{Stream, stream};
use nucleus_engine::generate::{Event, SubmitError};
use nucleus_engine::sequence::{Completion, FinishReason, TokenEvent};
use nucleus_engine::tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Serialize;

use super::logprobs::{Reporter, TokenReport};
use crate::error::ApiError;
use crate::metrics::Observed;
use crate::request::Settings;

/// What happens to a choice.
#[derive(Debug)]
pub(super) enum ChoiceEvent {
    /// The tokens of its prompt.
    Prompt(Vec<TokenReport>),
    /// More of it.
    Piece(Piece),
    /// It is complete.
    End(End),
    /// It failed.
    Failed(ApiError),
}

/// More text of a choice, and the tokens it came with if they are wanted.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) tokens: Option<Vec<TokenReport>>,
    /// Their ids, if those are wanted.
    pub(super) token_ids: Option<Vec<u32>>,
    /// The prompt's, with the first piece.
    pub(super) prompt_token_ids: Option<Vec<u32>>,
}

/// How a choice ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) text: String,
    pub(super) finish: Finish,
    pub(super) prompt_tokens: usize,
    pub(super) token_ids: Vec<u32>,
    /// Mean log-probability of its tokens.
    pub(super) mean_logprob: Option<f64>,
}

/// Why a choice ended, in OpenAI's words and in vLLM's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finish {
    /// `stop` or `length`.
    pub(super) reason: &'static str,
    /// The stop string or token that was met; none at the model's own end.
    pub(super) met: Option<StopReason>,
}

/// What ended a text.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum StopReason {
    Text(String),
    Token(u32),
}

/// A choice that the engine works on. Dropping it cancels it.
pub(super) struct Choice {
    generation: Observed,
    reporter: Option<Reporter>,
    /// Whether the prompt's first token is what the model wants before a text.
    added: bool,
    /// Whether pieces have the ids of their tokens.
    token_ids: bool,
}

impl Choice {
    pub(super) fn new(
        generation: Observed,
        settings: &Settings,
        added: bool,
        token_ids: bool,
        tokenizer: &Arc<Tokenizer>,
    ) -> Self {
        let hidden = if settings.include_stop {
            Vec::new()
        } else {
            settings.stop_token_ids.clone()
        };
        let reporter = settings
            .logprobs
            .map(|wanted| Reporter::new(Arc::clone(tokenizer), wanted.top, hidden));
        Self {
            generation,
            reporter,
            added,
            token_ids,
        }
    }

    /// What happens to it, with its place among the choices. Tokens that add nothing to say are left out.
    pub(super) fn events(
        self,
        index: usize,
    ) -> impl Stream<Item = (usize, ChoiceEvent)> + Send + Unpin + use<> {
        Box::pin(stream::unfold(self, move |mut choice| async move {
            let event = choice.next().await?;
            Some(((index, event), choice))
        }))
    }

    /// The next thing to say; nothing after the end.
    pub(super) async fn next(&mut self) -> Option<ChoiceEvent> {
        loop {
            match self.generation.next().await? {
                Event::Prompt(tokens) => {
                    if let Some(reporter) = &mut self.reporter {
                        let reports = reporter.report_prompt(&tokens, self.added);
                        return Some(ChoiceEvent::Prompt(reports));
                    }
                }
                Event::Token(token) => {
                    if let Some(piece) = self.piece(token) {
                        return Some(ChoiceEvent::Piece(piece));
                    }
                }
                Event::End(completion) => return Some(end(completion)),
                Event::Failed(error) => {
                    tracing::error!(%error, "generation failed");
                    return Some(ChoiceEvent::Failed(error.into()));
                }
            }
        }
    }

    fn piece(&mut self, token: TokenEvent) -> Option<Piece> {
        let report = self
            .reporter
            .as_mut()
            .map(|reporter| reporter.report(&token));
        let tokens = report.map(Vec::from_iter);
        let silent = token.text.is_empty() && tokens.as_ref().is_none_or(Vec::is_empty);
        (!silent || self.token_ids).then(|| Piece {
            text: token.text,
            tokens,
            token_ids: self.token_ids.then(|| vec![token.id]),
            prompt_token_ids: None,
        })
    }
}

fn end(completion: Completion) -> ChoiceEvent {
    let (reason, met) = match completion.finish_reason {
        FinishReason::EndOfText => ("stop", None),
        FinishReason::StopSequence(text) => ("stop", Some(StopReason::Text(text))),
        FinishReason::StopToken(id) => ("stop", Some(StopReason::Token(id))),
        FinishReason::Length | FinishReason::TimeLimit => ("length", None),
        // OpenAI has no word for it: half an answer is not passed for a whole one.
        FinishReason::Cancelled | FinishReason::Aborted => {
            return ChoiceEvent::Failed(SubmitError::ShuttingDown.into());
        }
    };
    ChoiceEvent::End(End {
        text: completion.text,
        finish: Finish { reason, met },
        prompt_tokens: completion.prompt_tokens,
        mean_logprob: completion.sampling.mean_logprob(),
        token_ids: completion.token_ids,
    })
}
