//! Every sampling parameter: what a request can say, and one table that describes it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::ParamError;
use crate::pipeline::Stage;
use crate::value::{Field, ParamKind, ParamValue};

/// An end of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The value itself belongs to the range.
    Inclusive(f64),
    /// The value itself does not belong to the range.
    Exclusive(f64),
    /// The size of the vocabulary, included.
    Vocab,
}

/// The values a parameter may have. For a map it is the range of the map's values; for lists and names there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Domain {
    /// The lower end.
    pub low: Bound,
    /// The upper end.
    pub high: Bound,
}

const fn range(low: f64, high: f64) -> Option<Domain> {
    Some(Domain {
        low: Bound::Inclusive(low),
        high: Bound::Inclusive(high),
    })
}

const fn above(low: f64, high: f64) -> Option<Domain> {
    Some(Domain {
        low: Bound::Exclusive(low),
        high: Bound::Inclusive(high),
    })
}

const fn to_vocab(low: f64) -> Option<Domain> {
    Some(Domain {
        low: Bound::Inclusive(low),
        high: Bound::Vocab,
    })
}

/// The largest value of a count (a window, a length, k).
const COUNT_MAX: f64 = u32::MAX as f64;

/// A value that can stand in a table of constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Literal {
    /// Nothing: the parameter is absent.
    Absent,
    /// A real number.
    Float(f64),
    /// An integer.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A name.
    Text(&'static str),
}

/// Whose ranges and default values apply: each endpoint may be narrower than the mathematics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// The library and the command line: the mathematical domain.
    Library,
    /// `POST /execute`.
    Execute,
    /// The OpenAI-compatible routes.
    OpenAi,
    /// The routes of llama.cpp's server.
    LlamaCpp,
}

/// What there is to know about one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamSpec {
    /// The parameter's name in JSON, and (with dashes) on the command line.
    pub name: &'static str,
    /// Its type.
    pub kind: ParamKind,
    /// The mathematical domain, which is also the library's policy.
    pub domain: Option<Domain>,
    /// The narrower range of `POST /execute`; `None`: the domain.
    pub execute: Option<Domain>,
    /// The narrower range of the OpenAI-compatible routes; `None`: the domain.
    pub openai: Option<Domain>,
    /// The narrower range of llama.cpp's routes; `None`: the domain.
    pub llama_cpp: Option<Domain>,
    /// The value that changes nothing, and the default everywhere but on llama.cpp's routes.
    pub neutral: Literal,
    /// The default on llama.cpp's routes, where it is not the neutral value.
    pub llama_cpp_default: Literal,
    /// The stage it acts in.
    pub stage: Stage,
    /// One line of help.
    pub help: &'static str,
}

impl ParamSpec {
    /// The range that a policy allows; `None` for lists and names.
    pub fn range(&self, policy: Policy) -> Option<Domain> {
        let narrower = match policy {
            Policy::Library => None,
            Policy::Execute => self.execute,
            Policy::OpenAi => self.openai,
            Policy::LlamaCpp => self.llama_cpp,
        };
        narrower.or(self.domain)
    }

    /// The value that a policy gives to an absent parameter.
    pub fn default(&self, policy: Policy) -> Literal {
        match (policy, self.llama_cpp_default) {
            (Policy::LlamaCpp, literal) if literal != Literal::Absent => literal,
            _ => self.neutral,
        }
    }
}

const SPEC: ParamSpec = ParamSpec {
    name: "",
    kind: ParamKind::Float,
    domain: None,
    execute: None,
    openai: None,
    llama_cpp: None,
    neutral: Literal::Absent,
    llama_cpp_default: Literal::Absent,
    stage: Stage::Pipeline,
    help: "",
};

macro_rules! params {
    ($($(#[doc = $help:literal])+ $name:ident: $type:ty $(, read by $reader:literal)? = { $($spec:tt)* };)+) => {
        /// What a request says about sampling. Every field is optional; an absent field has its neutral value.
        ///
        /// Strings have already been turned into token ids (`dry_sequence_breakers`, `bad_words`).
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct SamplingParams {
            $(
                $(#[doc = $help])+
                #[serde(skip_serializing_if = "Option::is_none")]
                $(#[serde(deserialize_with = $reader)])?
                pub $name: Option<$type>,
            )+
        }

        /// Every parameter, in the order in which they are documented.
        pub static PARAMS: &[ParamSpec] = &[$(
            ParamSpec {
                name: stringify!($name),
                kind: <$type as Field>::KIND,
                help: concat!($($help),+).trim_ascii(),
                $($spec)*
                ..SPEC
            },
        )+];

        impl SamplingParams {
            /// The value of the parameter of that name; `None` if it is absent.
            ///
            /// # Errors
            /// [`ParamError::Unknown`] if there is no such parameter.
            pub fn get(&self, name: &str) -> Result<Option<ParamValue>, ParamError> {
                match name {
                    $(stringify!($name) => Ok(self.$name.clone().map(Field::into_value)),)+
                    _ => Err(ParamError::Unknown { name: name.to_owned() }),
                }
            }

            /// Sets the parameter of that name.
            ///
            /// # Errors
            /// [`ParamError::Unknown`] if there is no such parameter, [`ParamError::WrongType`] if the value has another type.
            /// Ranges are checked by [`SamplingParams::check_policy`] and [`SamplingParams::validate`].
            pub fn set(&mut self, name: &str, value: ParamValue) -> Result<(), ParamError> {
                match name {
                    $(stringify!($name) => {
                        self.$name = Some(Field::from_value(stringify!($name), value)?);
                    })+
                    _ => return Err(ParamError::Unknown { name: name.to_owned() }),
                }
                Ok(())
            }
        }
    };
}

params! {
    /// Divides the logits: below 1 sharpens, above 1 flattens, 0 always takes the likeliest token.
    temperature: f64 = {
        domain: range(0.0, 1000.0), execute: range(0.0, 2.0), openai: range(0.0, 2.0),
        neutral: Literal::Float(1.0), llama_cpp_default: Literal::Float(0.8), stage: Stage::Temperature,
    };
    /// Lets the temperature move by this much either way with the entropy.
    dynatemp_range: f64 = {
        domain: range(0.0, 1000.0), neutral: Literal::Float(0.0), stage: Stage::Temperature,
    };
    /// How the dynamic temperature follows the entropy: T grows with (H / H max) to this power.
    dynatemp_exponent: f64 = {
        domain: range(0.0, 100.0), neutral: Literal::Float(1.0), stage: Stage::Temperature,
    };
    /// Strength of quadratic smoothing: the distance to the best logit is squared.
    smoothing_factor: f64 = {
        domain: range(0.0, 100.0), neutral: Literal::Float(0.0), stage: Stage::Smoothing,
    };
    /// Share of the cubic term in smoothing: 1 is purely quadratic, 3 purely cubic.
    smoothing_curve: f64 = {
        domain: range(1.0, 3.0), neutral: Literal::Float(1.0), stage: Stage::Smoothing,
    };
    /// Keeps exactly the k best tokens; 0 or -1 is off.
    top_k: i64 = {
        domain: range(-1.0, COUNT_MAX), execute: to_vocab(0.0),
        neutral: Literal::Int(0), llama_cpp_default: Literal::Int(40), stage: Stage::TopK,
    };
    /// Keeps the smallest set of best tokens whose probabilities reach this sum; 1 is off, 0 keeps one token.
    top_p: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(1.0), llama_cpp_default: Literal::Float(0.95),
        stage: Stage::TopP,
    };
    /// Keeps tokens at least this fraction as likely as the best one; 0 is off, 1 keeps only the best.
    min_p: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.0), llama_cpp_default: Literal::Float(0.05),
        stage: Stage::MinP,
    };
    /// Keeps the tokens whose surprise is closest to the entropy, up to this sum of probabilities; 1 is off.
    typical_p: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(1.0), stage: Stage::TypicalP,
    };
    /// Keeps logits within this many standard deviations of the largest; 0 or below is off.
    top_n_sigma: f64 = {
        domain: range(-1.0, 1000.0), neutral: Literal::Float(0.0), llama_cpp_default: Literal::Float(-1.0),
        stage: Stage::TopNSigma,
    };
    /// Keeps tokens at least this likely; 0 is off.
    epsilon_cutoff: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.0), stage: Stage::Epsilon,
    };
    /// Keeps tokens at least as likely as min(eta, sqrt(eta) * exp(-entropy)); 0 is off.
    eta_cutoff: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.0), stage: Stage::Eta,
    };
    /// Keeps tokens at least this many times as likely as the square of the largest probability; 0 is off.
    top_a: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.0), stage: Stage::TopA,
    };
    /// Tail-free sampling: keeps the part before the curve of sorted probabilities flattens; 1 is off. Needs top_k.
    tfs_z: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(1.0), stage: Stage::Tfs,
    };
    /// Chance, at each token, of excluding the top choices; 0 is off.
    xtc_probability: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.0), stage: Stage::Xtc,
    };
    /// When top choices are excluded, all tokens at least this likely go, except the least likely of them.
    xtc_threshold: f64 = {
        domain: range(0.0, 1.0), neutral: Literal::Float(0.1), stage: Stage::Xtc,
    };
    /// Every truncation keeps at least this many tokens.
    min_keep: u64 = {
        domain: range(0.0, COUNT_MAX), neutral: Literal::Int(0), stage: Stage::Pipeline,
    };
    /// Divides the positive and multiplies the negative logits of tokens already seen; 1 is off.
    repetition_penalty: f64 = {
        domain: above(0.0, 100.0), execute: above(0.0, 2.0), neutral: Literal::Float(1.0), stage: Stage::Penalties,
    };
    /// How many of the last tokens the penalties look at; 0 is none, -1 all.
    repeat_last_n: i64 = {
        domain: range(-1.0, COUNT_MAX), neutral: Literal::Int(-1), llama_cpp_default: Literal::Int(64),
        stage: Stage::Penalties,
    };
    /// Subtracted from a token's logit for each time it has been generated.
    frequency_penalty: f64 = {
        domain: range(-100.0, 100.0), execute: range(-2.0, 2.0), openai: range(-2.0, 2.0),
        neutral: Literal::Float(0.0), stage: Stage::Penalties,
    };
    /// Subtracted once from the logit of every token that has been generated.
    presence_penalty: f64 = {
        domain: range(-100.0, 100.0), execute: range(-2.0, 2.0), openai: range(-2.0, 2.0),
        neutral: Literal::Float(0.0), stage: Stage::Penalties,
    };
    /// Strength of the DRY penalty against repeated passages; 0 is off.
    dry_multiplier: f64 = {
        domain: range(0.0, 100.0), neutral: Literal::Float(0.0), stage: Stage::Dry,
    };
    /// How fast the DRY penalty grows with the length of the repeated passage.
    dry_base: f64 = {
        domain: range(1.0, 100.0), neutral: Literal::Float(1.75), stage: Stage::Dry,
    };
    /// The length from which DRY punishes the token that would prolong a repeated passage.
    dry_allowed_length: u64 = {
        domain: range(1.0, COUNT_MAX), neutral: Literal::Int(2), stage: Stage::Dry,
    };
    /// How many of the last tokens DRY looks at; 0 is none, -1 all.
    dry_penalty_last_n: i64 = {
        domain: range(-1.0, COUNT_MAX), neutral: Literal::Int(-1), llama_cpp_default: Literal::Int(64),
        stage: Stage::Dry,
    };
    /// Token sequences that a repeated passage may not cross.
    dry_sequence_breakers: Vec<Vec<u32>> = { stage: Stage::Dry, };
    /// Bans every token that would complete a sequence of this many tokens that is already there; 0 is off.
    no_repeat_ngram_size: u64 = {
        domain: range(0.0, COUNT_MAX), neutral: Literal::Int(0), stage: Stage::NoRepeatNgram,
    };
    /// Added to the logits of single tokens.
    logit_bias: BTreeMap<u32, f64>, read by "crate::bias_map::deserialize" = {
        domain: range(-10000.0, 10000.0), execute: range(-100.0, 100.0), openai: range(-100.0, 100.0),
        stage: Stage::Bias,
    };
    /// Only these tokens may be drawn.
    allowed_token_ids: Vec<u32> = { stage: Stage::Bias, };
    /// Token sequences that may not appear: the last token of each is banned where the others precede it.
    bad_words: Vec<Vec<u32>> = { stage: Stage::Bias, };
    /// Bans the end of the text until this many tokens have been generated.
    min_tokens: u64 = {
        domain: range(0.0, COUNT_MAX), neutral: Literal::Int(0), stage: Stage::Bias,
    };
    /// Bans the end of the text altogether.
    ignore_eos: bool = { neutral: Literal::Bool(false), stage: Stage::Bias, };
    /// Mirostat 1 or 2 chooses among the tokens and keeps the surprise constant; 0 is off.
    mirostat: u64 = {
        domain: range(0.0, 2.0), neutral: Literal::Int(0), stage: Stage::Draw,
    };
    /// The surprise that mirostat aims at, in bits.
    mirostat_tau: f64 = {
        domain: range(0.0, 100.0), neutral: Literal::Float(5.0), stage: Stage::Draw,
    };
    /// How fast mirostat follows.
    mirostat_eta: f64 = {
        domain: range(0.0, 10.0), neutral: Literal::Float(0.1), stage: Stage::Draw,
    };
    /// The probability that adaptive-p wants chosen tokens to have on average; below 0 is off.
    adaptive_target: f64 = {
        domain: range(-1.0, 1.0), neutral: Literal::Float(-1.0), stage: Stage::Draw,
    };
    /// How slowly adaptive-p forgets.
    adaptive_decay: f64 = {
        domain: range(0.0, 0.99), neutral: Literal::Float(0.9), stage: Stage::Draw,
    };
    /// Same seed, same tokens; absent: a random one, which the response carries.
    seed: u64 = { domain: range(0.0, u64::MAX as f64), stage: Stage::Draw, };
    /// The stages to run, in order; absent: the preset's.
    samplers: Vec<String> = { stage: Stage::Pipeline, };
    /// Whose order, penalty scope, edge and tie rules to follow: default, llama.cpp, vllm or hf.
    preset: String = { neutral: Literal::Text("default"), stage: Stage::Pipeline, };
}

impl ParamSpec {
    /// The parameter of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        PARAMS.iter().find(|spec| spec.name == name)
    }
}
