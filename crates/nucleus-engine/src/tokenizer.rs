//! Text to token ids and back.

/// Why a tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The tokenizer model is not known.
    #[error("tokenizer model {name:?} is not supported")]
    UnsupportedModel {
        /// The name in the file.
        name: String,
    },
}
