//! Why a set of parameters is refused.

/// A parameter that cannot be accepted: its name, its value, and what would be accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamError {
    /// No parameter has this name.
    #[error("{name}: no such sampling parameter")]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// The value is of another type.
    #[error("{param}: {value} is not of type {expected}")]
    WrongType {
        /// The parameter.
        param: &'static str,
        /// The value as given.
        value: String,
        /// The type it must have.
        expected: &'static str,
    },
    /// The value is outside the range.
    #[error("{param}: {value} is outside {range}")]
    OutOfRange {
        /// The parameter.
        param: &'static str,
        /// The value as given.
        value: String,
        /// The accepted range, in words or interval notation.
        range: String,
    },
    /// The name is not one of the accepted names.
    #[error("{param}: {value:?} is not one of {choices}")]
    NotAChoice {
        /// The parameter.
        param: &'static str,
        /// The value as given.
        value: String,
        /// The accepted names.
        choices: String,
    },
    /// A stage is listed twice.
    #[error("{param}: {value:?} is listed twice, each stage may appear once")]
    Repeated {
        /// The parameter.
        param: &'static str,
        /// The name that is repeated.
        value: String,
    },
    /// A token id that the vocabulary does not have.
    #[error("{param}: token id {id} is outside [0, {vocab_size})")]
    UnknownToken {
        /// The parameter.
        param: &'static str,
        /// The id.
        id: u32,
        /// The size of the vocabulary.
        vocab_size: u32,
    },
    /// A list that is too long, or empty where it may not be.
    #[error("{param}: a length of {length} is outside {range}")]
    Length {
        /// The parameter.
        param: &'static str,
        /// The length as given.
        length: usize,
        /// The accepted lengths.
        range: String,
    },
    /// Two parameters that cannot be used together.
    #[error("{param}: {value} needs {requirement}")]
    Needs {
        /// The parameter.
        param: &'static str,
        /// The value as given.
        value: String,
        /// What it needs.
        requirement: &'static str,
    },
    /// The vocabulary itself is unusable.
    #[error("vocab_size: {size} is outside [1, {max}]")]
    VocabSize {
        /// The size as given.
        size: u32,
        /// The largest size.
        max: u32,
    },
}

impl ParamError {
    /// The parameter at fault, by its `PARAMS` name (or the unknown name as it was given).
    pub fn param(&self) -> &str {
        match self {
            Self::Unknown { name } => name,
            Self::WrongType { param, .. }
            | Self::OutOfRange { param, .. }
            | Self::NotAChoice { param, .. }
            | Self::Repeated { param, .. }
            | Self::UnknownToken { param, .. }
            | Self::Length { param, .. }
            | Self::Needs { param, .. } => param,
            Self::VocabSize { .. } => "vocab_size",
        }
    }
}
