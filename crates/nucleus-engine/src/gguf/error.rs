//! Why a model file was refused.

use std::io;

use super::tensor_type::TensorType;

/// Why a model file, or something in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// There is no such file, or it may not be read.
    #[error("cannot open {file}: {source}")]
    Open {
        /// The path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The path names a directory.
    #[error("{file} is a directory, not a file")]
    Directory {
        /// The path.
        file: String,
    },
    /// The path names a pipe, a device or the like.
    #[error(
        "{file} is not a regular file; a model is one .gguf file, or a directory with safetensors files"
    )]
    NotAFile {
        /// The path.
        file: String,
    },
    /// The file has no bytes.
    #[error("{file} is empty")]
    Empty {
        /// The file.
        file: String,
    },
    /// The header is not sound.
    #[error("{file}: at byte {offset}, {place}: {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// Which part of the header.
        place: String,
        /// What is wrong.
        problem: Problem,
    },
    /// The metadata has no such key.
    #[error("the model file has no metadata key {key:?}")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value has another type than is needed.
    #[error("metadata key {key:?} is {found}, not {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The type in the file.
        found: String,
        /// The type that is needed.
        expected: &'static str,
    },
    /// A metadata value is out of range.
    #[error("metadata key {key:?} is {value}, which is out of range; it must be {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// The value in the file.
        value: String,
        /// The range.
        expected: String,
    },
    /// The file has no such tensor.
    #[error("the model file has no tensor {tensor:?}")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's type cannot be used.
    #[error(
        "tensor {tensor:?} has type {kind}, which is not supported; F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are: quantise the model anew"
    )]
    UnsupportedType {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        kind: TensorType,
    },
    /// There is not enough memory for a tensor.
    #[error("no memory for tensor {tensor:?} of {bytes} bytes")]
    OutOfMemory {
        /// The tensor's name.
        tensor: String,
        /// What it needs.
        bytes: u64,
    },
    /// A tensor's bytes can no longer be read, because the file was changed or the disk failed.
    #[error("{file}: cannot read tensor {tensor:?} at byte {offset}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The tensor's name.
        tensor: String,
        /// Where it begins.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The tensor library refused a tensor.
    #[error("tensor {tensor:?} cannot be loaded: {source}")]
    Load {
        /// The tensor's name.
        tensor: String,
        /// What the library said.
        source: candle_core::Error,
    },
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file does not begin with `GGUF`.
    #[error("this is not a GGUF file: it begins with \"{}\", not \"GGUF\"", found.escape_ascii())]
    NotGguf {
        /// Its first bytes, at most four.
        found: Vec<u8>,
    },
    /// The file was written for machines of the other byte order.
    #[error("the file is big endian, which is not supported")]
    BigEndian,
    /// A version other than 2 and 3.
    #[error("GGUF version {version} is not supported; it must be 2 or 3")]
    UnsupportedVersion {
        /// The version in the file.
        version: u32,
    },
    /// Something does not fit in what is left of the file.
    #[error("{what} needs {needed} bytes, but {left} are left; the file is truncated or not sound")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that it needs at least.
        needed: u128,
        /// Bytes left in the file.
        left: u64,
    },
    /// The header is longer than any real one.
    #[error("the header is longer than {limit} bytes")]
    HeaderTooLong {
        /// Most bytes that are read.
        limit: u64,
    },
    /// The file could not be read.
    #[error("the file cannot be read: {0}")]
    Io(io::Error),
    /// A string is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    NotUtf8 {
        /// Which string.
        what: &'static str,
    },
    /// A key or a tensor has no name, or one that is too long.
    #[error("a name has {len} bytes; it must have from 1 to {limit}")]
    NameLength {
        /// Its length.
        len: u64,
        /// The greatest length.
        limit: u64,
    },
    /// Two keys, or two tensors, of one name.
    #[error("the name appears twice")]
    Duplicate,
    /// A number that stands for no type of metadata.
    #[error("{number} is not a metadata type; types are 0 to 12")]
    UnknownValueType {
        /// The number.
        number: u32,
    },
    /// An array of arrays.
    #[error("arrays of arrays are not supported")]
    NestedArray,
    /// A truth value that is neither 0 nor 1.
    #[error("a bool is {value}; it must be 0 or 1")]
    InvalidBool {
        /// The byte.
        value: u8,
    },
    /// `general.alignment` cannot be used.
    #[error("the alignment is {value}; it must be a power of two from 8 to {limit}", limit = super::header::MAX_ALIGNMENT)]
    Alignment {
        /// What the file says.
        value: String,
    },
    /// A tensor with no dimensions, or too many.
    #[error("the tensor has {count} dimensions; it must have from 1 to 4")]
    DimensionCount {
        /// How many.
        count: u32,
    },
    /// A dimension of zero.
    #[error("dimension {index} is 0")]
    ZeroDimension {
        /// Which, innermost first from 0.
        index: usize,
    },
    /// The tensor's size cannot be computed.
    #[error("the dimensions {dims:?} are too large")]
    TooLarge {
        /// The dimensions, innermost first.
        dims: Vec<u64>,
    },
    /// Rows that are not a whole number of blocks.
    #[error("rows of {row} elements are not a whole number of {kind} blocks of {block}")]
    PartialBlock {
        /// The innermost dimension.
        row: u64,
        /// The tensor's type.
        kind: TensorType,
        /// Elements in a block.
        block: u64,
    },
    /// A tensor that does not begin where the alignment says.
    #[error("the tensor's offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The offset in the data section.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// A tensor that ends after the file.
    #[error(
        "the tensor needs bytes up to {end}, but the file has {size}; it is truncated or not sound"
    )]
    PastEnd {
        /// Where the tensor ends, in bytes from the beginning of the file.
        end: u128,
        /// The file's size.
        size: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensor overlaps tensor {other:?}")]
    Overlap {
        /// The other tensor.
        other: String,
    },
}

/// A problem and where it is, before the file's name is known.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) offset: u64,
    pub(super) place: String,
    pub(super) problem: Problem,
}

impl Malformed {
    pub(super) fn at(offset: u64, problem: Problem) -> Self {
        Self {
            offset,
            place: "header".to_owned(),
            problem,
        }
    }

    /// The same problem, said to be in a part of the header.
    pub(super) fn in_place(self, place: impl FnOnce() -> String) -> Self {
        Self {
            place: place(),
            ..self
        }
    }

    pub(super) fn in_file(self, file: &str) -> GgufError {
        let Self {
            offset,
            place,
            problem,
        } = self;
        GgufError::Malformed {
            file: file.to_owned(),
            offset,
            place,
            problem,
        }
    }
}
