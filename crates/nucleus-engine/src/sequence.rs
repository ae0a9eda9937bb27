//! One request on its way: its tokens, its sampler's state, its text so far and why it ended.

use std::time::{Duration, Instant};

use nucleus_sampling::{
    CompiledParams, Logprobs, LogprobsMode, SampledToken, SamplerState, TokenLogprob,
};

use crate::detokenizer::Detokenizer;
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn with an end-of-generation token.
    EndOfText,
    /// One of the request's stop strings appeared; it is not part of the text.
    StopSequence(String),
    /// One of the request's stop tokens was drawn.
    StopToken(u32),
    /// `max_tokens` or the model's context was reached.
    Length,
    /// The client cancelled, or went away.
    Cancelled,
    /// The engine was shut down before the sequence ended.
    Aborted,
}

impl FinishReason {
    /// The reason's name in responses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EndOfText => "stop",
            Self::StopSequence(_) => "stop_sequence",
            Self::StopToken(_) => "stop_token",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
        }
    }
}

/// What one token added.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// 0-based index in the output.
    pub index: usize,
    /// The token.
    pub id: u32,
    /// Text that became certain with this token: empty while it is held back for an unfinished character or a
    /// possible stop string.
    pub text: String,
    /// Natural logarithm of the token's raw probability.
    pub logprob: f32,
    /// The likeliest tokens, as many as the request wants, then the token itself if it is not among them.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// Where a sequence's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// From submission to the first step.
    pub queued: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// How a sequence ended, and all it produced.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The text, without the stop sequence.
    pub text: String,
    /// The tokens drawn, an end-of-generation or stop token included.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
}

/// A token as the sampler reports it.
pub(crate) struct Drawn {
    pub(crate) token: SampledToken,
    pub(crate) top_logprobs: Vec<TokenLogprob>,
}

/// A request being generated.
pub(crate) struct Sequence {
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    pub(crate) params: CompiledParams,
    pub(crate) state: SamplerState,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    stop_token_ids: Vec<u32>,
    include_stop_token: bool,
    top_logprobs: u32,
    text: String,
    clock: Clock,
}

/// What a sequence is made from.
pub(crate) struct SequenceParts {
    pub(crate) prompt: Vec<u32>,
    pub(crate) max_tokens: usize,
    pub(crate) params: CompiledParams,
    pub(crate) stop: StopMatcher,
    pub(crate) stop_token_ids: Vec<u32>,
    pub(crate) include_stop_token: bool,
    pub(crate) top_logprobs: u32,
}

#[derive(Debug)]
struct Clock {
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    pub(crate) fn new(parts: SequenceParts) -> Self {
        let state = SamplerState::new(&parts.params, &parts.prompt);
        Self {
            prompt_len: parts.prompt.len(),
            tokens: parts.prompt,
            max_tokens: parts.max_tokens,
            params: parts.params,
            state,
            detokenizer: Detokenizer::default(),
            stop: parts.stop,
            stop_token_ids: parts.stop_token_ids,
            include_stop_token: parts.include_stop_token,
            top_logprobs: parts.top_logprobs,
            text: String::new(),
            clock: Clock {
                submitted: Instant::now(),
                started: None,
                first_token: None,
                last_token: None,
            },
        }
    }

    /// Prompt and output so far.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Which log-probabilities the sampler is to report.
    pub(crate) fn logprobs(&self) -> Logprobs {
        Logprobs {
            top: self.top_logprobs,
            mode: LogprobsMode::Raw,
        }
    }

    /// Notes that the sequence's first step begins.
    pub(crate) fn start(&mut self) {
        self.clock.started.get_or_insert_with(Instant::now);
    }

    /// Adds a drawn token; says what it added to the text and whether the sequence ends with it.
    pub(crate) fn commit(
        &mut self,
        Drawn {
            token: sampled,
            top_logprobs,
        }: Drawn,
        tokenizer: &Tokenizer,
    ) -> (TokenEvent, Option<FinishReason>) {
        let now = Instant::now();
        self.clock.first_token.get_or_insert(now);
        self.clock.last_token = Some(now);
        let id = sampled.token_id;
        let index = self.tokens.len() - self.prompt_len;
        self.tokens.push(id);
        self.state.commit(&sampled);

        let (mut text, mut finish) = self.push_bytes(self.bytes_of(id, tokenizer));
        if finish.is_none() {
            finish = self.end_at(id, index + 1, tokenizer);
            if finish.is_some() {
                text.push_str(&self.release());
            }
        }
        self.text.push_str(&text);
        (
            TokenEvent {
                index,
                id,
                text,
                logprob: sampled.logprob,
                top_logprobs,
            },
            finish,
        )
    }

    /// Ends the sequence.
    pub(crate) fn complete(self, finish_reason: FinishReason) -> Completion {
        Completion {
            token_ids: self.tokens[self.prompt_len..].to_vec(),
            text: self.text,
            finish_reason,
            prompt_tokens: self.prompt_len,
            timings: self.clock.timings(),
        }
    }

    /// What a token adds to the text: a stop token is not part of it, unless that was asked for.
    fn bytes_of<'a>(&self, id: u32, tokenizer: &'a Tokenizer) -> &'a [u8] {
        if self.stop_token_ids.contains(&id) && !self.include_stop_token {
            &[]
        } else {
            tokenizer.token_bytes(id)
        }
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> (String, Option<FinishReason>) {
        let decoded = self.detokenizer.push(bytes);
        let pushed = self.stop.push(&decoded);
        (pushed.text, pushed.matched.map(FinishReason::StopSequence))
    }

    fn end_at(&self, id: u32, output_len: usize, tokenizer: &Tokenizer) -> Option<FinishReason> {
        if tokenizer.is_end_of_generation(id) {
            Some(FinishReason::EndOfText)
        } else if self.stop_token_ids.contains(&id) {
            Some(FinishReason::StopToken(id))
        } else if output_len >= self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Text still held back when no more can come: half a character becomes U+FFFD.
    fn release(&mut self) -> String {
        let tail = self.detokenizer.finish();
        let mut text = self.stop.push(&tail).text;
        text.push_str(&self.stop.finish());
        text
    }
}

impl Clock {
    fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        Timings {
            queued: between(Some(self.submitted), self.started),
            prefill: between(self.started, self.first_token),
            decode: between(self.first_token, self.last_token),
        }
    }
}
