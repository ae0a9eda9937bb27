//! One row of work: logits and everything that decides which token comes out of them.

use half::{bf16, f16};

use crate::config::CompiledParams;
use crate::state::SamplerState;

/// A row of logits, one per token id. 16-bit rows behave exactly as their widening to `f32`.
#[derive(Clone, Copy, Debug)]
pub enum LogitsRow<'a> {
    /// 32-bit floating point.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl LogitsRow<'_> {
    /// Number of logits.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(row) => row.len(),
            Self::F16(row) => row.len(),
            Self::Bf16(row) => row.len(),
        }
    }

    /// Whether there is no logit.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `limit` logits as `f32`.
    pub fn to_f32(&self, limit: usize) -> Vec<f32> {
        let limit = limit.min(self.len());
        match self {
            Self::F32(row) => row[..limit].to_vec(),
            Self::F16(row) => row[..limit].iter().map(|x| x.to_f32()).collect(),
            Self::Bf16(row) => row[..limit].iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Which distribution a log-probability is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum LogprobsMode {
    /// Softmax of the logits as they came, at temperature 1.
    #[default]
    Raw,
    /// The distribution from which the token was drawn.
    Processed,
}

/// A request for log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Logprobs {
    /// How many of the likeliest tokens to report; the chosen token is always reported.
    pub top: u32,
    /// Which distribution.
    pub mode: LogprobsMode,
}

/// A token with its log-probability (natural logarithm; -inf where the probability is 0).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// Everything one token is chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The logits.
    pub logits: LogitsRow<'a>,
    /// The request.
    pub params: &'a CompiledParams,
    /// What has been generated so far.
    pub state: &'a SamplerState,
    /// Allowed ids as bits, least significant first; missing words forbid. `None`: all allowed.
    pub mask: Option<&'a [u32]>,
    /// The uniform number to draw with, instead of the one that seed and position give.
    pub uniform: Option<u64>,
    /// Which log-probabilities to report.
    pub logprobs: Logprobs,
}

impl<'a> Row<'a> {
    /// A row without mask or override.
    pub fn new(logits: LogitsRow<'a>, params: &'a CompiledParams, state: &'a SamplerState) -> Self {
        Self {
            logits,
            params,
            state,
            mask: None,
            uniform: None,
            logprobs: Logprobs::default(),
        }
    }
}

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(u32)]
pub enum Status {
    /// A token was chosen.
    #[default]
    Ok = 0,
    /// A logit is not a number.
    Nan = 1,
    /// A logit is +inf, or too large for its weight to be exact.
    Overflow = 2,
    /// Nothing is left to draw from.
    Empty = 3,
    /// The sequence had ended, as a device's slot knows, and nothing was drawn.
    Ended = 8,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ok => "a token was chosen",
            Self::Nan => "a logit is not a number",
            Self::Overflow => "a logit is infinite or too large",
            Self::Empty => "no token is left to draw from",
            Self::Ended => "the sequence had ended",
        })
    }
}

/// The id of no token: what a row without a token carries.
pub const NO_TOKEN: u32 = u32::MAX;

/// What a sampler chose.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SampledToken {
    /// The token, or [`NO_TOKEN`] unless `status` is [`Status::Ok`].
    pub token_id: u32,
    /// Its log-probability, in the mode the row asked for; NaN without a token.
    pub logprob: f32,
    /// How many tokens could have been drawn.
    pub kept_count: u32,
    /// How the row ended.
    pub status: Status,
    /// What mirostat (the surprise in bits) or adaptive-p (the probability) learns from the choice, in Q16.16; else 0.
    pub feedback: i32,
}

const _: () = assert!(size_of::<SampledToken>() == 20);

impl SampledToken {
    /// A row without a token.
    pub const fn failed(status: Status) -> Self {
        Self {
            token_id: NO_TOKEN,
            logprob: f32::NAN,
            kept_count: 0,
            status,
            feedback: 0,
        }
    }
}
