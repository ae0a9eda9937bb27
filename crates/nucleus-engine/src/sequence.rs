//! One request on its way: its tokens, its sampler's state, its text so far and why it ended.

use std::time::{Duration, Instant};

use nucleus_sampling::{CompiledParams, Logprobs, SampledToken, SamplerState, TokenLogprob};

use crate::constraint::{Constraint, ConstraintError, Progress};
use crate::detokenizer::Detokenizer;
use crate::generate::TimeLimits;
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;

/// Why a sequence ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn with an end-of-generation token, or the text has the form that was asked for and nothing can follow.
    EndOfText,
    /// One of the request's stop strings appeared; it is not part of the text.
    StopSequence(String),
    /// One of the request's stop tokens was drawn.
    StopToken(u32),
    /// `max_tokens` or the model's context was reached.
    Length,
    /// The time that the request may take was over.
    TimeLimit,
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
            Self::TimeLimit => "time_limit",
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
    /// Natural logarithm of the token's probability, in the distribution that the request asks for.
    pub logprob: f32,
    /// The likeliest tokens, as many as the request wants, then the token itself if it is not among them.
    pub top_logprobs: Vec<TokenLogprob>,
    /// Where the time went so far.
    pub timings: Timings,
    /// The logits that the token was drawn from, if the request wants the first token's.
    pub logits: Option<Vec<f32>>,
}

/// A token of the prompt, and how likely the model takes it to be after those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability in the model's own distribution; nothing comes before the first token.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, as many as the request wants, then the token itself if it is not among them.
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

/// What the sampler had to choose from, over a whole output.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingStats {
    /// Tokens drawn.
    pub tokens: usize,
    /// Sum of their log-probabilities, in the distribution that the request asks for.
    pub logprob: f64,
    /// Sum, over the tokens drawn, of how many could have been.
    pub kept: u64,
    /// The smallest such number.
    pub min_kept: u32,
    /// The largest such number.
    pub max_kept: u32,
}

impl SamplingStats {
    /// Mean log-probability of a token; nothing without one.
    pub fn mean_logprob(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.logprob / self.tokens as f64)
    }

    /// Mean number of tokens that could have been drawn; nothing without one.
    pub fn mean_kept(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.kept as f64 / self.tokens as f64)
    }

    fn count(&mut self, sampled: &SampledToken) {
        let kept = sampled.kept_count;
        let first = self.tokens == 0;
        self.min_kept = if first { kept } else { self.min_kept.min(kept) };
        self.max_kept = self.max_kept.max(kept);
        self.kept += u64::from(kept);
        self.logprob += f64::from(sampled.logprob);
        self.tokens += 1;
    }
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
    /// What the sampler had to choose from.
    pub sampling: SamplingStats,
}

/// A token as the sampler reports it.
pub(crate) struct Drawn {
    pub(crate) token: SampledToken,
    pub(crate) top_logprobs: Vec<TokenLogprob>,
    pub(crate) logits: Option<Vec<f32>>,
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
    constraint: Option<Constraint>,
    /// What the constraint says of the token that is committed next, if it has been asked already.
    foreseen: Option<Result<Progress, ConstraintError>>,
    logprobs: Logprobs,
    first_logits: bool,
    time_limits: TimeLimits,
    /// The prompt's tokens as far as they are scored; `None` if they are not wanted, or have been taken.
    prompt_tokens: Option<Vec<PromptToken>>,
    text: String,
    sampling: SamplingStats,
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
    pub(crate) constraint: Option<Constraint>,
    pub(crate) logprobs: Logprobs,
    pub(crate) prompt_logprobs: bool,
    pub(crate) first_logits: bool,
    pub(crate) time_limits: TimeLimits,
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
        // The first token has nothing before it that could make it likely.
        let first = |id: &u32| PromptToken {
            id: *id,
            logprob: None,
            top_logprobs: Vec::new(),
        };
        let prompt_tokens = parts
            .prompt_logprobs
            .then(|| parts.prompt.first().map(first).into_iter().collect());
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
            constraint: parts.constraint,
            foreseen: None,
            logprobs: parts.logprobs,
            first_logits: parts.first_logits,
            time_limits: parts.time_limits,
            prompt_tokens,
            text: String::new(),
            sampling: SamplingStats::default(),
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
        self.logprobs
    }

    /// The most tokens that there can be, prompt and output; one is drawn, and seen by nobody, if no output is wanted.
    pub(crate) fn capacity(&self) -> usize {
        self.prompt_len + self.max_tokens.max(1)
    }

    /// The request's own tokens that end it.
    pub(crate) fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// The tokens that may be drawn next, if not all may.
    pub(crate) fn mask(&self) -> Option<&[u32]> {
        self.constraint.as_ref().map(Constraint::mask)
    }

    /// Whether the logits that the next token is drawn from are wanted.
    pub(crate) fn wants_logits(&self) -> bool {
        self.first_logits && self.tokens.len() == self.prompt_len
    }

    /// Whether anything is to be drawn at all.
    pub(crate) fn wants_output(&self) -> bool {
        self.max_tokens > 0
    }

    /// Whether the prompt's tokens are to be scored, each from logits of its own.
    pub(crate) fn scores_prompt(&self) -> bool {
        self.prompt_tokens.is_some()
    }

    /// Whether the logits after this position are wanted for the prompt token that follows: once, even if the sequence is
    /// evicted on its way and computed again.
    pub(crate) fn scores(&self, position: usize) -> bool {
        let scored = self.prompt_tokens.as_ref().map_or(usize::MAX, Vec::len);
        (scored..self.prompt_len).contains(&(position + 1))
    }

    /// Takes the next prompt token's score.
    pub(crate) fn score(&mut self, token: PromptToken) {
        if let Some(tokens) = &mut self.prompt_tokens {
            tokens.push(token);
        }
    }

    /// The prompt's tokens, once.
    pub(crate) fn take_prompt_tokens(&mut self) -> Option<Vec<PromptToken>> {
        self.prompt_tokens.take()
    }

    /// Whether there is no token yet and the time for one is over.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        let total = self.time_limits.total;
        let waited = now.saturating_duration_since(self.clock.submitted);
        self.clock.first_token.is_none() && total.is_some_and(|total| waited >= total)
    }

    /// Notes that the sequence's first step begins.
    pub(crate) fn start(&mut self) {
        self.clock.started.get_or_insert_with(Instant::now);
    }

    /// Adds a drawn token; says what it added to the text and whether the sequence ends with it.
    ///
    /// # Errors
    /// When it is not known what may follow: the output cannot be held to its format.
    pub(crate) fn commit(
        &mut self,
        Drawn {
            token: sampled,
            top_logprobs,
            logits,
        }: Drawn,
        tokenizer: &Tokenizer,
    ) -> Result<(TokenEvent, Option<FinishReason>), ConstraintError> {
        let now = Instant::now();
        self.clock.first_token.get_or_insert(now);
        self.clock.last_token = Some(now);
        let id = sampled.token_id;
        let index = self.tokens.len() - self.prompt_len;
        self.tokens.push(id);
        self.state.commit(&sampled);
        self.sampling.count(&sampled);

        let (mut text, mut finish) = self.push_bytes(self.bytes_of(id, tokenizer));
        if finish.is_none() {
            finish = self.end_at(id, index + 1, tokenizer)?;
            let late = || self.is_over(now, &text).then_some(FinishReason::TimeLimit);
            finish = finish.or_else(late);
            if finish.is_some() {
                text.push_str(&self.release());
            }
        }
        self.text.push_str(&text);
        Ok((
            TokenEvent {
                index,
                id,
                text,
                logprob: sampled.logprob,
                top_logprobs,
                timings: self.clock.timings(),
                logits,
            },
            finish,
        ))
    }

    /// Ends the sequence.
    pub(crate) fn complete(self, finish_reason: FinishReason) -> Completion {
        Completion {
            token_ids: self.tokens[self.prompt_len..].to_vec(),
            text: self.text,
            finish_reason,
            prompt_tokens: self.prompt_len,
            timings: self.clock.timings(),
            sampling: self.sampling,
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

    fn end_at(
        &mut self,
        id: u32,
        output_len: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Option<FinishReason>, ConstraintError> {
        Ok(if tokenizer.is_end_of_generation(id) {
            Some(FinishReason::EndOfText)
        } else if self.stop_token_ids.contains(&id) {
            Some(FinishReason::StopToken(id))
        } else if self.advance(id)? == Progress::Ended {
            Some(FinishReason::EndOfText)
        } else if output_len >= self.max_tokens {
            Some(FinishReason::Length)
        } else {
            None
        })
    }

    /// Asks the constraint, if there is one, what may follow this token, which is committed next. It takes as long as the rest of a commit many
    /// times over, and needs no other sequence.
    pub(crate) fn foresee(&mut self, id: u32, tokenizer: &Tokenizer) {
        let ends = tokenizer.is_end_of_generation(id) || self.stop_token_ids.contains(&id);
        if !ends {
            self.foreseen = Some(self.advance(id));
        }
    }

    fn advance(&mut self, id: u32) -> Result<Progress, ConstraintError> {
        if let Some(foreseen) = self.foreseen.take() {
            return foreseen;
        }
        match &mut self.constraint {
            Some(constraint) => constraint.advance(id),
            None => Ok(Progress::GoesOn),
        }
    }

    /// Whether the time is over; `text` is what the newest token adds to the text.
    fn is_over(&self, now: Instant, text: &str) -> bool {
        let TimeLimits {
            total,
            after_newline,
        } = self.time_limits;
        let since = |begin: Instant| now.saturating_duration_since(begin);
        let first_token = self.clock.first_token.unwrap_or(now);
        total.is_some_and(|limit| since(self.clock.submitted) >= limit)
            || after_newline.is_some_and(|limit| since(first_token) >= limit)
                && (text.contains('\n') || self.text.contains('\n'))
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
