#![doc = include_str!("../README.md")]
//!
//! # How the types hang together
//!
//! A request is [`SamplingParams`]; [`SamplingParams::validate`] turns it into [`CompiledParams`]; a [`SamplerState`] holds what one
//! sequence remembers; a [`Sampler`] chooses a token from a [`Row`]. [`PARAMS`] describes every parameter.

mod bias_map;
mod compile;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod fixed;
mod params;
mod pipeline;
mod plan;
mod policy;
mod random;
mod reference;
mod row;
mod sampler;
mod state;
mod value;

/// Version of the sampling contract (`docs/sampling.md`): the same version, seed, parameters, history and logits give the same token, on
/// every device. It is raised whenever that could change.
pub const CONTRACT_VERSION: u32 = 1;

pub use config::{
    Bias, Class, CompiledParams, Flags, MAX_OPS, MAX_VOCAB, Op, OpCode, Program, SamplingConfig,
    SamplingTables, UNLIMITED, VocabInfo, Warning,
};
pub use cpu::{Cdf, CpuOptions, CpuSampler};
pub use error::ParamError;
pub use params::{Bound, Domain, Literal, PARAMS, ParamSpec, Policy, SamplingParams};
pub use pipeline::{Preset, Stage};
pub use random::{Counter, Purpose, philox4x32_10, random_seed, uniform};
pub use reference::ReferenceSampler;
pub use row::{
    LogitsRow, Logprobs, LogprobsMode, NO_TOKEN, Row, SampledToken, Status, TokenLogprob,
};
pub use sampler::{Sampler, StageTrace, Trace};
pub use state::SamplerState;
pub use value::{ParamKind, ParamValue};
