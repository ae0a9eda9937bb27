//! How the two endpoints write a choice, whole and in parts.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::choice::{Finish, Piece, StopReason};
use super::logprobs::{Scored, TokenReport};

/// An endpoint's way of writing choices.
pub(super) trait Shape: 'static {
    /// What an answer's id begins with.
    const ID: &'static str;
    /// The `object` of a whole answer.
    const WHOLE: &'static str;
    /// The `object` of a part.
    const PART: &'static str;
    /// A choice of a whole answer.
    type Choice: Serialize + JsonSchema + Send + 'static;
    /// A choice of a part.
    type Part: Serialize + JsonSchema + Send + 'static;

    /// What comes before a choice's text.
    fn opening(index: usize) -> Option<Self::Part>;
    /// More of a choice.
    fn piece(index: usize, piece: Piece) -> Self::Part;
    /// The end of a choice.
    fn closing(index: usize, finish: Finish) -> Self::Part;
    /// A whole choice.
    fn whole(index: usize, piece: Piece, finish: Finish) -> Self::Choice;
}

/// `/v1/completions`.
pub(super) struct Text;

/// `/v1/chat/completions`.
pub(super) struct Chat;

/// A choice of a text, whole or in part.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<StopReason>,
    /// If they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// If they are asked for; of a stream's choice in its first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

/// Tokens side by side, as the older endpoint has them.
#[derive(Debug, Serialize, JsonSchema)]
struct TextLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// Null unless some are wanted.
    #[schemars(with = "Option<Vec<Option<BTreeMap<String, f32>>>>")]
    top_logprobs: Option<Vec<Option<ByToken>>>,
    text_offset: Vec<usize>,
}

/// An object of log-probabilities by token, the likeliest first.
#[derive(Debug)]
struct ByToken(Vec<(String, f32)>);

/// A choice of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
    /// If they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// If they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChatMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

/// A part of a choice of a conversation.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ChatPart {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
    /// If they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// If they are asked for, in a choice's first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<Vec<ChatToken>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ChatToken {
    #[serde(flatten)]
    chosen: Scored,
    top_logprobs: Vec<Scored>,
}

impl Shape for Text {
    const ID: &'static str = "cmpl-";
    const WHOLE: &'static str = "text_completion";
    const PART: &'static str = "text_completion";
    type Choice = TextChoice;
    type Part = TextChoice;

    fn opening(_: usize) -> Option<TextChoice> {
        None
    }

    fn piece(index: usize, piece: Piece) -> TextChoice {
        TextChoice {
            index,
            text: piece.text,
            logprobs: piece.tokens.map(TextLogprobs::new),
            finish_reason: None,
            stop_reason: None,
            token_ids: piece.token_ids,
            prompt_token_ids: piece.prompt_token_ids,
        }
    }

    fn closing(index: usize, finish: Finish) -> TextChoice {
        TextChoice {
            index,
            text: String::new(),
            logprobs: None,
            finish_reason: Some(finish.reason),
            stop_reason: finish.met,
            token_ids: None,
            prompt_token_ids: None,
        }
    }

    fn whole(index: usize, piece: Piece, finish: Finish) -> TextChoice {
        TextChoice {
            finish_reason: Some(finish.reason),
            stop_reason: finish.met,
            ..Self::piece(index, piece)
        }
    }
}

impl Shape for Chat {
    const ID: &'static str = "chatcmpl-";
    const WHOLE: &'static str = "chat.completion";
    const PART: &'static str = "chat.completion.chunk";
    type Choice = ChatChoice;
    type Part = ChatPart;

    fn opening(index: usize) -> Option<ChatPart> {
        let delta = Delta {
            role: Some("assistant"),
            content: Some(String::new()),
        };
        Some(ChatPart {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
            prompt_token_ids: None,
        })
    }

    fn piece(index: usize, piece: Piece) -> ChatPart {
        let delta = Delta {
            role: None,
            content: Some(piece.text),
        };
        ChatPart {
            index,
            delta,
            logprobs: piece.tokens.map(ChatLogprobs::new),
            finish_reason: None,
            stop_reason: None,
            token_ids: piece.token_ids,
            prompt_token_ids: piece.prompt_token_ids,
        }
    }

    fn closing(index: usize, finish: Finish) -> ChatPart {
        ChatPart {
            index,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(finish.reason),
            stop_reason: finish.met,
            token_ids: None,
            prompt_token_ids: None,
        }
    }

    fn whole(index: usize, piece: Piece, finish: Finish) -> ChatChoice {
        ChatChoice {
            index,
            message: ChatMessage {
                role: "assistant",
                content: piece.text,
                refusal: None,
            },
            logprobs: piece.tokens.map(ChatLogprobs::new),
            finish_reason: finish.reason,
            stop_reason: finish.met,
            token_ids: piece.token_ids,
            prompt_token_ids: piece.prompt_token_ids,
        }
    }
}

impl TextLogprobs {
    fn new(reports: Vec<TokenReport>) -> Self {
        let wanted = reports.iter().any(|report| !report.top.is_empty());
        Self {
            top_logprobs: wanted.then(|| reports.iter().map(ByToken::of).collect()),
            token_logprobs: reports.iter().map(|report| report.chosen.logprob).collect(),
            text_offset: reports.iter().map(|report| report.text_offset).collect(),
            tokens: reports
                .into_iter()
                .map(|report| report.chosen.token)
                .collect(),
        }
    }
}

impl ByToken {
    /// Nothing for a prompt's first token.
    fn of(report: &TokenReport) -> Option<Self> {
        report.chosen.logprob.map(|_| Self::new(report))
    }

    /// Tokens of the same spelling share a place: the likeliest has it.
    fn new(report: &TokenReport) -> Self {
        let mut entries: Vec<(String, f32)> = Vec::with_capacity(report.top.len());
        for Scored { token, logprob, .. } in &report.top {
            let Some(logprob) = logprob else { continue };
            if entries.iter().all(|(other, _)| other != token) {
                entries.push((token.clone(), *logprob));
            }
        }
        Self(entries)
    }
}

impl Serialize for ByToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

impl ChatLogprobs {
    fn new(reports: Vec<TokenReport>) -> Self {
        let token = |mut report: TokenReport| {
            report.top.truncate(report.likeliest);
            ChatToken {
                chosen: report.chosen,
                top_logprobs: report.top,
            }
        };
        Self {
            content: reports.into_iter().map(token).collect(),
            refusal: None,
        }
    }
}
