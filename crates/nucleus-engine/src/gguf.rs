//! Model files: a header reader that trusts nothing it reads.
//!
//! GGUF (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>) is a header of typed metadata and tensor
//! descriptions, then the tensors' bytes. Versions 2 and 3 are read, little endian. Every count and length in the header
//! is checked against the bytes that are left before anything is allocated for it, every sum and product is checked, and
//! every tensor is known to lie inside the file, apart from the others, before the first one is read. Tensors are read by
//! copy: nothing of the file stays mapped, so a file that is truncated or replaced later gives an error, not a signal.

mod error;
mod header;
mod layout;
mod metadata;
mod reader;
mod source;
mod tensor_type;
mod value;

use std::path::Path;

use candle_core::Device;
use candle_core::quantized::{QTensor, ggml_file::qtensor_from_ggml};

pub use error::{GgufError, Problem};
pub use header::MAX_HEADER_BYTES;
pub use layout::TensorInfo;
pub use metadata::Metadata;
pub use tensor_type::{BlockLayout, TensorType};
pub use value::{FromValue, Mismatch, NumberList, StringList, Value, ValueType};

use header::Header;
pub(crate) use source::Source;

/// An opened model file: its header, checked, and the tensors' bytes on request.
///
/// ```no_run
/// use nucleus_engine::gguf::ModelFile;
///
/// let file = ModelFile::open("model.gguf")?;
/// println!("{} layers", file.metadata().u32("llama.block_count")?);
/// for tensor in file.tensors() {
///     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.kind);
/// }
/// # Ok::<(), nucleus_engine::gguf::GgufError>(())
/// ```
#[derive(Debug)]
pub struct ModelFile {
    name: String,
    source: Source,
    header: Header,
}

impl ModelFile {
    /// Opens a file on disk and reads its header.
    ///
    /// # Errors
    ///
    /// When there is no such file, it is a directory or another thing that is no file, it is empty, it is not GGUF, or its
    /// header is not sound; each says which, and where.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        Self::read(Source::open(path)?, path.display().to_string())
    }

    /// Reads the header of a file that is embedded in the program; `name` stands for it in errors.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_static(bytes: &'static [u8], name: impl Into<String>) -> Result<Self, GgufError> {
        Self::read(Source::Static(bytes), name.into())
    }

    /// Reads the header of a file that is nowhere: `fill(offset, bytes)` computes its bytes from an offset on. Speed can be measured with
    /// it on models that nobody has to store.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn computed(
        size: u64,
        fill: impl Fn(u64, &mut [u8]) + Send + Sync + 'static,
        name: impl Into<String>,
    ) -> Result<Self, GgufError> {
        let fill = Box::new(fill);
        Self::read(Source::Computed { size, fill }, name.into())
    }

    fn read(source: Source, name: String) -> Result<Self, GgufError> {
        if source.size() == 0 {
            return Err(GgufError::Empty { file: name });
        }
        match Header::parse(source.header_reader(), source.size()) {
            Ok(header) => Ok(Self {
                name,
                source,
                header,
            }),
            Err(error) => Err(error.in_file(&name)),
        }
    }

    /// The path as it was given, or the name of an embedded file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.source.size()
    }

    /// The GGUF version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    /// The tensors in the order of the file's list.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.header.tensors.as_slice()
    }

    /// The tensor of that name, if the file has it.
    pub fn find_tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.header.tensors.get(name)
    }

    /// The tensor of that name.
    ///
    /// # Errors
    ///
    /// [`GgufError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        self.find_tensor(name)
            .ok_or_else(|| GgufError::MissingTensor {
                tensor: name.to_owned(),
            })
    }

    /// A copy of a tensor's bytes, as they are in the file.
    ///
    /// # Errors
    ///
    /// When there is no such tensor, its type's size is not known, there is no memory for it, or the file can no longer be
    /// read.
    pub fn read_tensor_bytes(&self, name: &str) -> Result<Vec<u8>, GgufError> {
        let info = self.tensor(name)?;
        let mut bytes = buffer(info, info.known_bytes()?)?;
        self.read_into(info, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies some of a tensor's bytes, from the one at `offset` on.
    ///
    /// # Errors
    ///
    /// As [`read_tensor_bytes`](Self::read_tensor_bytes).
    ///
    /// # Panics
    ///
    /// If the tensor ends before them.
    pub fn read_tensor_at(
        &self,
        name: &str,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), GgufError> {
        let info = self.tensor(name)?;
        let end = offset.saturating_add(bytes.len() as u64);
        assert!(end <= info.known_bytes()?, "{name} ends before byte {end}");
        self.read_into(info, offset, bytes)
    }

    /// Copies bytes of the file from an offset on.
    ///
    /// # Errors
    ///
    /// When the file ends before them, or can no longer be read.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.source.read_at(offset, bytes)
    }

    /// A tensor, still quantised, on a device.
    ///
    /// # Errors
    ///
    /// As [`read_tensor_bytes`](Self::read_tensor_bytes), and [`GgufError::UnsupportedType`] for a type that the tensor
    /// library cannot compute with.
    pub fn read_qtensor(&self, name: &str, device: &Device) -> Result<QTensor, GgufError> {
        let info = self.tensor(name)?;
        let dtype = info.kind.candle_type().ok_or_else(|| info.unsupported())?;
        let len = info.known_bytes()?;
        // The library reads blocks in place, so the bytes must begin where a block of floats may.
        let mut padded = buffer(info, len.saturating_add(BLOCK_ALIGNMENT as u64 - 1))?;
        let start = padded.as_ptr().align_offset(BLOCK_ALIGNMENT);
        let bytes = &mut padded[start..][..len as usize];
        self.read_into(info, 0, bytes)?;
        qtensor_from_ggml(dtype, bytes, info.shape.clone(), device).map_err(|source| {
            GgufError::Load {
                tensor: info.name.clone(),
                source,
            }
        })
    }

    /// Reads from the tensor's byte `from` on.
    fn read_into(&self, info: &TensorInfo, from: u64, bytes: &mut [u8]) -> Result<(), GgufError> {
        let offset = info.offset + from;
        self.source
            .read_at(offset, bytes)
            .map_err(|source| GgufError::Read {
                file: self.name.clone(),
                tensor: info.name.clone(),
                offset,
                source,
            })
    }
}

/// More than any block's own alignment; a cache line.
const BLOCK_ALIGNMENT: usize = 64;

/// Zeros for a tensor, or an error where the allocator would end the process.
fn buffer(info: &TensorInfo, len: u64) -> Result<Vec<u8>, GgufError> {
    let no_memory = || GgufError::OutOfMemory {
        tensor: info.name.clone(),
        bytes: len,
    };
    let len = usize::try_from(len).map_err(|_| no_memory())?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| no_memory())?;
    bytes.resize(len, 0);
    Ok(bytes)
}
