//! Model files: a header reader that trusts nothing it reads.

/// Why a model file was refused.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file has no bytes.
    #[error("{name} is empty")]
    Empty {
        /// The file's name.
        name: String,
    },
}
