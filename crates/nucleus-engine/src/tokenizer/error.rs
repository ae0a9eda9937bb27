//! Why a tokenizer could not be built or used.

use crate::checkpoint::CheckpointError;
use crate::gguf::GgufError;

/// Why a tokenizer could not be built, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A metadata key is missing or of a wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A file of the directory cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The directory has no tokenizer.
    #[error(
        "the directory has no tokenizer.json; transformers writes it with save_pretrained of a fast tokenizer"
    )]
    NoJson,
    /// The directory's tokenizer is not sound.
    #[error("tokenizer.json: {problem}")]
    Json {
        /// What is wrong.
        problem: String,
    },
    /// The bytes of tokens do not follow from the way the file decodes them.
    #[error(
        "tokenizer.json has a decoder of the kinds {found}, which is not supported; ByteLevel, Metaspace, Replace of \"▁\" and WordPiece with \"##\" are"
    )]
    Decoder {
        /// The kinds.
        found: String,
    },
    /// A token's score cannot be compared.
    #[error("token {id} has the score {score} (tokenizer.ggml.scores); scores must be finite")]
    Score {
        /// The token.
        id: u32,
        /// The score.
        score: f32,
    },
    /// The tokenizer is of another kind.
    #[error(
        "tokenizer model {name:?} is not supported; \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece), \"gemma4\", \"bert\" (WordPiece) and \"t5\" (Unigram) are"
    )]
    UnsupportedModel {
        /// `tokenizer.ggml.model`.
        name: String,
    },
    /// The file does not say how text is cut into pieces.
    #[error(
        "the model file has no key \"tokenizer.ggml.pre\", so its text cannot be cut into pieces as in training; convert it anew"
    )]
    MissingPre,
    /// The way text is cut into pieces is not known.
    #[error("pre-tokenizer {name:?} (tokenizer.ggml.pre) is not supported; known are {known}")]
    UnsupportedPre {
        /// `tokenizer.ggml.pre`.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// The vocabulary has no tokens, or more than ids can number.
    #[error("the vocabulary has {count} tokens; it must have from 1 to {limit}")]
    VocabularySize {
        /// How many.
        count: usize,
        /// The most.
        limit: usize,
    },
    /// Two lists that must be of one length are not.
    #[error("{key:?} has {count} elements, but the vocabulary has {tokens} tokens")]
    LengthMismatch {
        /// The key of the other list.
        key: &'static str,
        /// Its length.
        count: usize,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// The model has fewer outputs than there are tokens.
    #[error("{key:?} is {size}, but the vocabulary has {tokens} tokens")]
    ModelSize {
        /// The key of the model's size.
        key: String,
        /// The size.
        size: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// Two tokens are spelled alike.
    #[error("tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// The spelling.
        text: String,
    },
    /// A number that stands for no kind of token.
    #[error("token {id} is of kind {kind} (tokenizer.ggml.token_type); kinds are 1 to 6")]
    UnknownKind {
        /// The token.
        id: u32,
        /// The number.
        kind: i32,
    },
    /// A byte has no token: one that occurs in most texts when the vocabulary is loaded, or one of the text to encode.
    #[error("no token stands for the byte {byte:#04x}, so text with it cannot be encoded")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// A merge is not two symbols.
    #[error("merge {index} is {merge:?}; it must be two symbols with a space between")]
    MalformedMerge {
        /// Its index.
        index: usize,
        /// The merge.
        merge: String,
    },
    /// A merge names or makes a symbol that is no token.
    #[error("merge {index} is {merge:?}, but {symbol:?} is not in the vocabulary")]
    MergeOutOfVocabulary {
        /// Its index.
        index: usize,
        /// The merge.
        merge: String,
        /// The symbol.
        symbol: String,
    },
    /// A special token's id is not in the vocabulary.
    #[error("{key:?} is {id}, but the vocabulary has {tokens} tokens")]
    SpecialOutOfVocabulary {
        /// The key.
        key: &'static str,
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// Texts shall begin with a token that is not named.
    #[error("{key:?} is true, but the model file has no \"tokenizer.ggml.bos_token_id\"")]
    NoBos {
        /// The key.
        key: &'static str,
    },
    /// No token stands for what the vocabulary does not have.
    #[error(
        "the model file has neither {key:?} nor a token {name:?}, so what the vocabulary does not have cannot be encoded"
    )]
    NoUnknown {
        /// The key.
        key: &'static str,
        /// The token's usual name.
        name: &'static str,
    },
    /// The normalisation of texts is not sound.
    #[error("\"tokenizer.ggml.precompiled_charsmap\": {problem}")]
    CharacterMap {
        /// What is wrong.
        problem: &'static str,
    },
    /// A text is too long.
    #[error("the text has {bytes} bytes; it may have {limit}")]
    TextTooLong {
        /// Its bytes.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// A text has more white space in a row than the regular expressions can cut.
    #[error("the text has more than {limit} characters of white space in a row, up to byte {at}")]
    WhiteSpace {
        /// Where the run is too long, in bytes from the last special token or from the beginning.
        at: usize,
        /// The longest run.
        limit: usize,
    },
    /// The tokenizer library refused something that was checked before: a fault of this program.
    #[error("the tokenizer library failed: {0}")]
    Library(tokenizers::Error),
}
