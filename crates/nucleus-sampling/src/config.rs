//! A checked request as plain data: what every sampler, on the host and on a device, reads.

use std::mem::{offset_of, size_of};

use crate::error::ParamError;
use crate::params::SamplingParams;

/// The largest vocabulary: up to here every sum of weights fits 64 bits.
pub const MAX_VOCAB: u32 = 1 << 19;

/// A window or a count without a limit.
pub const UNLIMITED: u32 = u32::MAX;

/// The most operations a program can have.
pub const MAX_OPS: usize = 16;

/// What `validate` has to know of the tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VocabInfo {
    /// Number of token ids. Ids from here on are never read and never drawn, however long the row of logits is.
    pub size: u32,
    /// The ids that end a text (for `min_tokens` and `ignore_eos`).
    pub eos: Vec<u32>,
}

impl VocabInfo {
    /// A vocabulary without an end of text.
    pub fn new(size: u32) -> Self {
        Self {
            size,
            eos: Vec::new(),
        }
    }

    /// The same vocabulary with these ids ending a text.
    #[must_use]
    pub fn with_eos(mut self, eos: &[u32]) -> Self {
        self.eos = eos.to_vec();
        self
    }
}

/// The scalar parameters of one request, every one present.
///
/// Plain data: `repr(C)`, no padding, no pointers; `cuda/include/sampling_config.h` declares the same fields in the same order.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct SamplingConfig {
    /// Key of the random numbers.
    pub seed: u64,
    /// 0: greedy, or the lower end of a dynamic temperature; otherwise in [0.01, 1000].
    pub temperature: f32,
    /// Half-width of the dynamic temperature; 0: off.
    pub dynatemp_range: f32,
    /// Exponent of the dynamic temperature.
    pub dynatemp_exponent: f32,
    /// Quadratic smoothing; 0: off.
    pub smoothing_factor: f32,
    /// Share of the cubic term; 1: none.
    pub smoothing_curve: f32,
    /// Nucleus; 1: off.
    pub top_p: f32,
    /// Fraction of the largest probability; 0: off.
    pub min_p: f32,
    /// Locally typical mass; 1: off.
    pub typical_p: f32,
    /// Standard deviations below the largest logit; 0 or below: off.
    pub top_n_sigma: f32,
    /// Smallest probability; 0: off.
    pub epsilon_cutoff: f32,
    /// Entropy-dependent smallest probability; 0: off.
    pub eta_cutoff: f32,
    /// Multiple of the squared largest probability; 0: off.
    pub top_a: f32,
    /// Tail-free mass; 1: off.
    pub tfs_z: f32,
    /// Chance of excluding top choices; 0: off.
    pub xtc_probability: f32,
    /// Smallest probability of a top choice.
    pub xtc_threshold: f32,
    /// Divides or multiplies the logits of tokens seen; 1: off.
    pub repetition_penalty: f32,
    /// Per occurrence; 0: off.
    pub frequency_penalty: f32,
    /// Once; 0: off.
    pub presence_penalty: f32,
    /// DRY strength; 0: off.
    pub dry_multiplier: f32,
    /// DRY growth.
    pub dry_base: f32,
    /// Mirostat's target surprise in bits.
    pub mirostat_tau: f32,
    /// Mirostat's rate.
    pub mirostat_eta: f32,
    /// adaptive-p's target; below 0: off.
    pub adaptive_target: f32,
    /// adaptive-p's memory.
    pub adaptive_decay: f32,
    /// Number of tokens to keep; 0: off.
    pub top_k: u32,
    /// Fewest tokens that a truncation may leave; 0 counts as 1.
    pub min_keep: u32,
    /// Window of the penalties in tokens; [`UNLIMITED`]: all.
    pub repeat_last_n: u32,
    /// DRY's allowed length.
    pub dry_allowed_length: u32,
    /// Window of DRY in tokens; [`UNLIMITED`]: all.
    pub dry_penalty_last_n: u32,
    /// Size of n-grams that may not repeat; 0: off.
    pub no_repeat_ngram_size: u32,
    /// Number of tokens before which the text may not end.
    pub min_tokens: u32,
    /// 0: off, 1 or 2: the algorithm.
    pub mirostat: u32,
    /// Number of token ids that may be drawn.
    pub vocab_size: u32,
    /// Sum of [`Flags`] bits.
    pub flags: u32,
}

const _: () = assert!(size_of::<SamplingConfig>() == 144);
const _: () = assert!(offset_of!(SamplingConfig, temperature) == 8);
const _: () = assert!(offset_of!(SamplingConfig, top_k) == 104);
const _: () = assert!(offset_of!(SamplingConfig, flags) == 140);

/// Bits of [`SamplingConfig::flags`]: edge rules that presets change.
pub struct Flags;

impl Flags {
    /// `ignore_eos`: the end of the text is banned.
    pub const IGNORE_EOS: u32 = 1;
    /// Where a number of tokens is kept (top_k, min_keep of epsilon and eta, the end of typical_p), all that equal the last of them stay
    /// (transformers, vLLM's PyTorch path).
    pub const KEEP_TIES: u32 = 1 << 1;
    /// Frequency and presence count the prompt too (llama.cpp).
    pub const COUNT_PROMPT: u32 = 1 << 2;
    /// typical_p stops only when the mass exceeds p; without it, when it reaches p.
    pub const TYPICAL_STRICT: u32 = 1 << 3;
    /// bad_words look at the output alone (vLLM).
    pub const BAD_WORDS_OUTPUT_ONLY: u32 = 1 << 4;
}

/// One operation of a row's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OpCode {
    /// No operation.
    None = 0,
    /// DRY.
    Dry = 1,
    /// Ban of repeated n-grams.
    NoRepeatNgram = 2,
    /// Repetition, frequency, presence.
    Penalties = 3,
    /// Temperature `arg`.
    Temperature = 4,
    /// Temperature by entropy.
    DynamicTemperature = 5,
    /// Quadratic smoothing.
    Smoothing = 6,
    /// `arg` standard deviations, at least `threshold` tokens.
    TopNSigma = 7,
    /// `threshold` tokens.
    TopK = 8,
    /// Mass `threshold`.
    TypicalP = 9,
    /// Mass `threshold`.
    TopP = 10,
    /// `arg` = ln(min_p).
    MinP = 11,
    /// Probability `threshold`.
    Epsilon = 12,
    /// Probability `threshold`.
    Eta = 13,
    /// Multiple `threshold`.
    TopA = 14,
    /// Mass `threshold`.
    Tfs = 15,
    /// Probability `threshold`.
    Xtc = 16,
    /// Takes the best token.
    Argmax = 17,
    /// Draws.
    Draw = 18,
    /// Mirostat 1, then draws.
    Mirostat1 = 19,
    /// Mirostat 2, then draws.
    Mirostat2 = 20,
    /// adaptive-p, then draws.
    AdaptiveP = 21,
}

impl OpCode {
    /// The name in a trace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Dry => "dry",
            Self::NoRepeatNgram => "no_repeat_ngram",
            Self::Penalties => "penalties",
            Self::Temperature => "temperature",
            Self::DynamicTemperature => "dynamic_temperature",
            Self::Smoothing => "smoothing",
            Self::TopNSigma => "top_n_sigma",
            Self::TopK => "top_k",
            Self::TypicalP => "typical_p",
            Self::TopP => "top_p",
            Self::MinP => "min_p",
            Self::Epsilon => "epsilon",
            Self::Eta => "eta",
            Self::TopA => "top_a",
            Self::Tfs => "tfs",
            Self::Xtc => "xtc",
            Self::Argmax => "greedy",
            Self::Draw => "draw",
            Self::Mirostat1 => "mirostat_1",
            Self::Mirostat2 => "mirostat_2",
            Self::AdaptiveP => "adaptive_p",
        }
    }

    /// Whether it removes tokens by rank or probability.
    pub(crate) fn truncates(self) -> bool {
        (Self::TopNSigma as u32..=Self::Xtc as u32).contains(&(self as u32))
    }

    /// Whether it needs the weights of what it receives.
    pub(crate) fn weighs(self) -> bool {
        self.truncates() && !matches!(self, Self::TopNSigma | Self::TopK | Self::MinP)
    }
}

/// An operation with its compiled arguments.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Op {
    /// What to do.
    pub code: OpCode,
    /// A number on the scale of logits (see [`OpCode`]).
    pub arg: f32,
    /// A count, or a probability in Q32 (see [`OpCode`]).
    pub threshold: u64,
}

const _: () = assert!(size_of::<Op>() == 16);

impl Op {
    /// An operation without arguments.
    pub const fn new(code: OpCode) -> Self {
        Self {
            code,
            arg: 0.0,
            threshold: 0,
        }
    }
}

/// The operations of a row, in order. The last one chooses the token.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Program {
    ops: [Op; MAX_OPS],
    len: u32,
    reserved: u32,
}

impl Program {
    /// A program of these operations, of which there are at most [`MAX_OPS`].
    pub(crate) fn new(list: &[Op]) -> Self {
        let mut ops = [Op::new(OpCode::None); MAX_OPS];
        ops[..list.len()].copy_from_slice(list);
        Self {
            ops,
            len: list.len() as u32,
            reserved: 0,
        }
    }

    /// The operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops[..self.len as usize]
    }
}

/// A number added to one token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Bias {
    /// The token.
    pub token_id: u32,
    /// The number.
    pub value: f32,
}

/// The lists of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingTables {
    /// Biases by ascending token id.
    pub bias: Vec<Bias>,
    /// The only ids allowed, ascending; `None`: all.
    pub allowed: Option<Vec<u32>>,
    /// Banned sequences, none empty.
    pub bad_words: Vec<Vec<u32>>,
    /// DRY's sequence breakers, none empty.
    pub breakers: Vec<Vec<u32>>,
    /// Ids that end a text, ascending.
    pub eos: Vec<u32>,
    /// The operations.
    pub program: Program,
}

/// How much a request costs (times are published per class).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Class {
    /// Bounded candidates or one certified sum.
    A = 0,
    /// A statistic of the row before its weights.
    B = 1,
    /// An explicit set without bound.
    C = 2,
}

/// Something accepted, but worth saying: a value that acts as another, or a parameter that cannot act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The parameter.
    pub param: &'static str,
    /// What happens instead.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.param, self.message)
    }
}

/// A request, checked and compiled.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledParams {
    pub(crate) config: SamplingConfig,
    pub(crate) tables: SamplingTables,
    pub(crate) class: Class,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) effective: SamplingParams,
}

impl CompiledParams {
    /// The scalar parameters.
    pub fn config(&self) -> &SamplingConfig {
        &self.config
    }

    /// The lists and the program.
    pub fn tables(&self) -> &SamplingTables {
        &self.tables
    }

    /// The cost class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What the client should be told.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The parameters as they act: defaults filled in, raised values raised, the seed that was used.
    pub fn effective(&self) -> &SamplingParams {
        &self.effective
    }
}

impl SamplingParams {
    /// Checks every parameter against the mathematics and the vocabulary, and compiles the request.
    ///
    /// An absent seed is drawn with [`random_seed`](crate::random_seed) and found in [`CompiledParams::effective`].
    ///
    /// # Errors
    /// [`ParamError`] names the first parameter that cannot be accepted, its value and the range.
    pub fn validate(&self, vocab: &VocabInfo) -> Result<CompiledParams, ParamError> {
        crate::compile::compile(self, vocab)
    }
}
