//! Where a model file's bytes come from.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::error::GgufError;

/// A file on disk, or bytes in the program, or bytes that are computed.
pub(crate) enum Source {
    Disk { file: Mutex<File>, size: u64 },
    Static(&'static [u8]),
    Computed { size: u64, fill: Fill },
}

/// Fills a slice with the bytes from an offset on.
pub(super) type Fill = Box<dyn Fn(u64, &mut [u8]) + Send + Sync>;

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, size) = match self {
            Self::Disk { size, .. } => ("Disk", *size),
            Self::Static(bytes) => ("Static", bytes.len() as u64),
            Self::Computed { size, .. } => ("Computed", *size),
        };
        f.debug_struct(name)
            .field("size", &size)
            .finish_non_exhaustive()
    }
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, GgufError> {
        let name = || path.display().to_string();
        let failed = |source| GgufError::Open {
            file: name(),
            source,
        };
        // Looked at before it is opened: opening a pipe would wait for a writer.
        let found = std::fs::metadata(path).map_err(failed)?;
        if found.is_dir() {
            return Err(GgufError::Directory { file: name() });
        }
        if !found.is_file() {
            return Err(GgufError::NotAFile { file: name() });
        }
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(Self::Disk {
            file: Mutex::new(file),
            size,
        })
    }

    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Disk { size, .. } => *size,
            Self::Static(bytes) => bytes.len() as u64,
            Self::Computed { size, .. } => *size,
        }
    }

    /// Reads from the beginning, in small pieces.
    pub(super) fn header_reader(&self) -> impl Read {
        BufReader::with_capacity(
            1 << 16,
            SourceReader {
                source: self,
                position: 0,
            },
        )
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        SourceReader {
            source: self,
            position: offset,
        }
        .read_exact(bytes)
    }

    fn read_some_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Disk { file, .. } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(offset))?;
                file.read(bytes)
            }
            Self::Static(all) => {
                let rest = usize::try_from(offset)
                    .ok()
                    .and_then(|start| all.get(start..));
                rest.unwrap_or_default().read(bytes)
            }
            Self::Computed { size, fill } => {
                let len = size.saturating_sub(offset).min(bytes.len() as u64) as usize;
                fill(offset, &mut bytes[..len]);
                Ok(len)
            }
        }
    }
}

struct SourceReader<'a> {
    source: &'a Source,
    position: u64,
}

impl Read for SourceReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_some_at(self.position, bytes)?;
        self.position += read as u64;
        Ok(read)
    }
}
