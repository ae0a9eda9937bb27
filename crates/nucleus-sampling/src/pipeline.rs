//! The stages, their names, and the order in which a request runs them.

use std::fmt;

use crate::config::Flags;
use crate::error::ParamError;

/// Where in the pipeline a parameter acts.
///
/// The names (see [`Stage::name`]) are the ones of `samplers`, of a trace, and of the documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Bias and masks; always first.
    Bias,
    /// DRY: a penalty that grows with the length of a repeated passage.
    Dry,
    /// Ban of every token that would complete an n-gram that is already there.
    NoRepeatNgram,
    /// Repetition, then frequency, then presence penalty.
    Penalties,
    /// Temperature, fixed or dynamic.
    Temperature,
    /// Quadratic smoothing.
    Smoothing,
    /// Standard deviations below the largest logit.
    TopNSigma,
    /// The k largest logits.
    TopK,
    /// Locally typical sampling.
    TypicalP,
    /// Nucleus sampling.
    TopP,
    /// A fraction of the largest probability.
    MinP,
    /// A fixed smallest probability.
    Epsilon,
    /// A smallest probability that falls with the entropy.
    Eta,
    /// A multiple of the square of the largest probability.
    TopA,
    /// Tail-free sampling.
    Tfs,
    /// Exclude top choices.
    Xtc,
    /// The draw itself (also mirostat and adaptive-p); always last.
    Draw,
    /// Not a stage: the choice of stages (`samplers`, `preset`) or a setting of several (`min_keep`).
    Pipeline,
}

impl Stage {
    /// The stages that `samplers` may name, in the default order.
    pub const ORDERED: [Self; 15] = [
        Self::Dry,
        Self::NoRepeatNgram,
        Self::Penalties,
        Self::Temperature,
        Self::Smoothing,
        Self::TopNSigma,
        Self::TopK,
        Self::TypicalP,
        Self::TopP,
        Self::MinP,
        Self::Epsilon,
        Self::Eta,
        Self::TopA,
        Self::Tfs,
        Self::Xtc,
    ];

    /// The stage's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bias => "bias",
            Self::Dry => "dry",
            Self::NoRepeatNgram => "no_repeat_ngram",
            Self::Penalties => "penalties",
            Self::Temperature => "temperature",
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
            Self::Draw => "draw",
            Self::Pipeline => "pipeline",
        }
    }

    /// The stage of that name; llama.cpp's spellings (`typ_p`, `top-k`, `temp`) are understood too.
    pub fn from_name(name: &str) -> Option<Self> {
        let canonical = match name {
            "typ_p" | "typ-p" | "typical" | "typical-p" => "typical_p",
            "top-k" => "top_k",
            "top-p" => "top_p",
            "min-p" => "min_p",
            "top-n-sigma" => "top_n_sigma",
            "temp" => "temperature",
            other => other,
        };
        Self::ORDERED
            .into_iter()
            .find(|stage| stage.name() == canonical)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whose order, penalty scope, edge and tie rules a request follows. Default values never come from a preset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Preset {
    /// Nucleus's own.
    #[default]
    Default,
    /// llama.cpp's chain: temperature last.
    LlamaCpp,
    /// vLLM's sampler: min_p before top_k and top_p.
    Vllm,
    /// The logits processors of Hugging Face transformers.
    Hf,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 4] = [Self::Default, Self::LlamaCpp, Self::Vllm, Self::Hf];

    /// The stages in the order of that engine. Stages that the engine does not have stand where their kind stands.
    pub const fn order(self) -> &'static [Stage; 15] {
        use Stage::*;
        match self {
            Self::Default => &Stage::ORDERED,
            // common/common.h, common_params_sampling::samplers; tfs stood between top_k and typical while llama.cpp had it.
            Self::LlamaCpp => &[
                Penalties,
                Dry,
                NoRepeatNgram,
                TopNSigma,
                TopK,
                Tfs,
                TypicalP,
                TopP,
                MinP,
                Epsilon,
                Eta,
                TopA,
                Xtc,
                Temperature,
                Smoothing,
            ],
            // vllm/v1/sample/sampler.py: penalties, temperature, min_p, then top_k and top_p.
            Self::Vllm => &[
                Penalties,
                Dry,
                NoRepeatNgram,
                Temperature,
                Smoothing,
                MinP,
                TopNSigma,
                TopK,
                TypicalP,
                TopP,
                Epsilon,
                Eta,
                TopA,
                Tfs,
                Xtc,
            ],
            // transformers, generation/utils.py, _get_logits_processor.
            Self::Hf => &[
                Penalties,
                Dry,
                NoRepeatNgram,
                Temperature,
                Smoothing,
                TopNSigma,
                TopK,
                TopP,
                MinP,
                TypicalP,
                Epsilon,
                Eta,
                TopA,
                Tfs,
                Xtc,
            ],
        }
    }

    /// The engine's edge rules as bits of [`SamplingConfig::flags`](crate::SamplingConfig::flags).
    pub(crate) const fn flags(self) -> u32 {
        match self {
            Self::Default => 0,
            // src/llama-sampler.cpp: one window over prompt and output counts for all three penalties; typical stops at cum_sum > p.
            Self::LlamaCpp => Flags::COUNT_PROMPT | Flags::TYPICAL_STRICT,
            // FlashInfer and apply_top_k_top_p_pytorch keep what equals the k-th (the Triton kernel does not); bad_words.py looks at output tokens.
            Self::Vllm => Flags::KEEP_TIES | Flags::BAD_WORDS_OUTPUT_ONLY,
            // generation/logits_process.py: scores < topk(...)[-1] in TopK, Epsilon and Eta; Typical drops scores beyond the last kept.
            Self::Hf => Flags::KEEP_TIES,
        }
    }

    /// The preset's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::LlamaCpp => "llama.cpp",
            Self::Vllm => "vllm",
            Self::Hf => "hf",
        }
    }

    /// The preset of that name.
    ///
    /// # Errors
    /// [`ParamError::NotAChoice`] if there is none.
    pub fn from_name(name: &str) -> Result<Self, ParamError> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| ParamError::NotAChoice {
                param: "preset",
                value: name.to_owned(),
                choices: Self::ALL.map(Self::name).join(", "),
            })
    }
}
