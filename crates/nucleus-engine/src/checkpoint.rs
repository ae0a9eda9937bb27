//! Directories of safetensors files, as Hugging Face's transformers writes and reads them.
//!
//! `config.json` says what the model is; the weights are in `model.safetensors`, or in several files that
//! `model.safetensors.index.json` lists; `tokenizer.json`, `tokenizer_config.json` and others say how text is read.
//! A safetensors file is a length, a header in JSON and the tensors' bytes. Every length in it is checked against the bytes
//! there are before anything is allocated for it, and tensors are read by copy: nothing stays mapped.

mod error;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value};

use crate::gguf::Source;

pub use error::CheckpointError;

/// The largest header of a safetensors file, in bytes, as the format has it.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The largest file of text beside the weights, in bytes; the largest tokenizers have 35 million.
pub const MAX_TEXT_FILE_BYTES: u64 = 1 << 28;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened directory: configuration and headers, checked, and the tensors' bytes on request.
///
/// ```no_run
/// use nucleus_engine::checkpoint::Checkpoint;
///
/// let checkpoint = Checkpoint::open("Qwen3-0.6B")?;
/// for tensor in checkpoint.tensors() {
///     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.kind);
/// }
/// # Ok::<(), nucleus_engine::checkpoint::CheckpointError>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    config: Map<String, Value>,
    files: Vec<WeightsFile>,
    tensors: Vec<CheckpointTensor>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct WeightsFile {
    path: String,
    source: Source,
}

/// A tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointTensor {
    /// Its name.
    pub name: String,
    /// Outermost dimension first; empty for a single value.
    pub shape: Vec<usize>,
    /// The type's name, such as `BF16`.
    pub kind: String,
    /// The tensor library's type; `None` when it cannot compute with this one.
    pub dtype: Option<GgmlDType>,
    /// Bytes.
    pub bytes: u64,
    /// Which of the files has it.
    file: usize,
    /// Where in that file it begins.
    offset: u64,
}

impl Checkpoint {
    /// Opens a directory and reads configuration and headers.
    ///
    /// # Errors
    /// When there is no such directory, it lacks `config.json` or the weights, or one of them is not sound; each says which.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let directory = directory.as_ref().to_owned();
        let has = |name: &str| directory.join(name).is_file();
        if !has(WEIGHTS) && !has(INDEX) {
            let directory = directory.display().to_string();
            return Err(CheckpointError::NoWeights { directory });
        }
        let config = read_json(&directory.join(CONFIG))?;
        let mut checkpoint = Self {
            directory,
            config,
            files: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
        };
        if checkpoint.has(WEIGHTS) {
            checkpoint.add_file(WEIGHTS)?;
        } else {
            checkpoint.add_listed_files()?;
        }
        Ok(checkpoint)
    }

    /// The path as it was given.
    pub fn name(&self) -> String {
        self.directory.display().to_string()
    }

    /// The last part of the path: what people call the model.
    pub fn stem(&self) -> String {
        let path = self.directory.canonicalize();
        let path = path.as_deref().unwrap_or(&self.directory);
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// `config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Bytes of all files of weights.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.source.size()).sum()
    }

    /// Number of files of weights.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The tensors, file by file in the order of their bytes.
    pub fn tensors(&self) -> &[CheckpointTensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn find_tensor(&self, name: &str) -> Option<&CheckpointTensor> {
        Some(&self.tensors[*self.by_name.get(name)?])
    }

    /// A copy of a tensor's bytes, little endian.
    ///
    /// # Errors
    /// When there is no such tensor, there is no memory for it, or the file can no longer be read.
    pub fn read_tensor_bytes(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let mut bytes = zeros(tensor.bytes).ok_or_else(|| CheckpointError::OutOfMemory {
            tensor: name.to_owned(),
            bytes: tensor.bytes,
        })?;
        self.read_tensor_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies some of a tensor's bytes, from the one at `offset` on.
    ///
    /// # Errors
    /// When there is no such tensor, or the file can no longer be read.
    ///
    /// # Panics
    /// If the tensor ends before them.
    pub fn read_tensor_at(
        &self,
        name: &str,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<(), CheckpointError> {
        let tensor = self.tensor(name)?;
        let end = offset.saturating_add(bytes.len() as u64);
        assert!(end <= tensor.bytes, "{name} ends before byte {end}");
        let file = &self.files[tensor.file];
        file.source
            .read_at(tensor.offset + offset, bytes)
            .map_err(|source| CheckpointError::Read {
                file: file.path.clone(),
                source,
            })
    }

    fn tensor(&self, name: &str) -> Result<&CheckpointTensor, CheckpointError> {
        self.find_tensor(name)
            .ok_or_else(|| CheckpointError::MissingTensor {
                tensor: name.to_owned(),
            })
    }

    /// The text of a file of the directory, such as `tokenizer.json`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, is no text, or is larger than [`MAX_TEXT_FILE_BYTES`].
    pub fn read_text(&self, name: &str) -> Result<Option<String>, CheckpointError> {
        if self.has(name) {
            read_text(&self.directory.join(name)).map(Some)
        } else {
            Ok(None)
        }
    }

    /// An object in a JSON file of the directory; `None` when there is none.
    ///
    /// # Errors
    /// As [`read_text`](Self::read_text), and when it is no JSON object.
    pub fn read_json(&self, name: &str) -> Result<Option<Map<String, Value>>, CheckpointError> {
        if self.has(name) {
            read_json(&self.directory.join(name)).map(Some)
        } else {
            Ok(None)
        }
    }

    fn has(&self, name: &str) -> bool {
        self.directory.join(name).is_file()
    }

    fn add_listed_files(&mut self) -> Result<(), CheckpointError> {
        let path = self.directory.join(INDEX);
        let index = read_json(&path)?;
        let bad = |problem: String| CheckpointError::Index {
            file: path.display().to_string(),
            problem,
        };
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| bad("it has no object \"weight_map\"".to_owned()))?;
        let mut names = BTreeSet::new();
        for file in map.values() {
            let name = file.as_str().filter(|name| is_plain(name));
            names.insert(
                name.ok_or_else(|| bad(format!("{file} is not the name of a file beside it")))?,
            );
        }
        for name in names {
            self.add_file(name)?;
        }
        match map.keys().find(|name| !self.by_name.contains_key(*name)) {
            Some(name) => Err(bad(format!("none of the files has the tensor {name:?}"))),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, name: &str) -> Result<(), CheckpointError> {
        let path = self.directory.join(name);
        let source = Source::open(&path)?;
        let path = path.display().to_string();
        let tensors = read_header(&source).map_err(|problem| CheckpointError::Malformed {
            file: path.clone(),
            problem,
        })?;
        for mut tensor in tensors {
            tensor.file = self.files.len();
            if self
                .by_name
                .insert(tensor.name.clone(), self.tensors.len())
                .is_some()
            {
                return Err(CheckpointError::Malformed {
                    file: path,
                    problem: format!("another file has the tensor {:?} too", tensor.name),
                });
            }
            self.tensors.push(tensor);
        }
        self.files.push(WeightsFile { path, source });
        Ok(())
    }
}

/// Whether a name is that of a file, and not a path to one.
fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(std::path::Component::Normal(_)))
        && components.next().is_none()
}

/// Bytes of the number before the header.
const LENGTH_BYTES: u64 = 8;

/// The tensors of a file, or what is wrong with its header.
fn read_header(source: &Source) -> Result<Vec<CheckpointTensor>, String> {
    let read = |error: std::io::Error| format!("it cannot be read: {error}");
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_at(0, &mut length).map_err(read)?;
    let header_bytes = u64::from_le_bytes(length);
    let rest = source.size() - LENGTH_BYTES;
    if header_bytes > rest.min(MAX_HEADER_BYTES) {
        return Err(format!(
            "the header has {header_bytes} bytes; it may have {MAX_HEADER_BYTES}, and the file has {rest} more"
        ));
    }
    let mut header = zeros(header_bytes).ok_or("there is no memory for the header")?;
    source.read_at(LENGTH_BYTES, &mut header).map_err(read)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| format!("the header is not sound: {error}"))?;
    let data_bytes = rest - header_bytes;
    let mut tensors: Vec<CheckpointTensor> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            CheckpointTensor {
                name,
                shape: info.shape.clone(),
                kind: format!("{:?}", info.dtype),
                dtype: computed(info.dtype),
                bytes: (end - start) as u64,
                file: 0,
                offset: LENGTH_BYTES + header_bytes + start as u64,
            }
        })
        .collect();
    // Empty tensors begin where the next one does.
    tensors.sort_by(|a, b| (a.offset, a.bytes, &a.name).cmp(&(b.offset, b.bytes, &b.name)));
    // The header's own check has found the tensors one after the other, without gaps.
    let held: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    if held == data_bytes {
        return Ok(tensors);
    }
    Err(format!(
        "the tensors have {held} bytes, but after the header there are {data_bytes}"
    ))
}

/// The tensor library's type.
fn computed(dtype: Dtype) -> Option<GgmlDType> {
    match dtype {
        Dtype::F32 => Some(GgmlDType::F32),
        Dtype::F16 => Some(GgmlDType::F16),
        Dtype::BF16 => Some(GgmlDType::BF16),
        _ => None,
    }
}

/// That many zeros, or `None` where the allocator would end the process.
fn zeros(len: u64) -> Option<Vec<u8>> {
    let len = usize::try_from(len).ok()?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).ok()?;
    bytes.resize(len, 0);
    Some(bytes)
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    let file = || path.display().to_string();
    let failed = |source| CheckpointError::Read {
        file: file(),
        source,
    };
    let mut text = String::new();
    let opened = fs::File::open(path).map_err(failed)?;
    let mut limited = opened.take(MAX_TEXT_FILE_BYTES + 1);
    limited.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_TEXT_FILE_BYTES {
        return Err(CheckpointError::TextTooLarge { file: file() });
    }
    Ok(text)
}

fn read_json(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    serde_json::from_str(&read_text(path)?).map_err(|source| CheckpointError::Json {
        file: path.display().to_string(),
        source,
    })
}

#[cfg(test)]
mod tests;
