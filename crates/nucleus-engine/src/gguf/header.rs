//! The header as a whole.

use std::io::Read;

use super::error::{Malformed, Problem};
use super::layout::{self, DataSection, Tensors};
use super::metadata::Metadata;
use super::reader::HeaderReader;

/// Most bytes that are read of a header. Vocabularies of 256,000 tokens make headers of about 15 MB.
pub const MAX_HEADER_BYTES: u64 = 1 << 28;
/// The greatest alignment of tensors that is believed.
pub(super) const MAX_ALIGNMENT: u64 = 1 << 16;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: Tensors,
}

impl Header {
    /// Reads the header of a file of `size` bytes.
    pub(super) fn parse<R: Read>(inner: R, size: u64) -> Result<Self, Malformed> {
        let mut reader = HeaderReader::new(inner, size, MAX_HEADER_BYTES);
        check_magic(&mut reader, size)?;
        let version = parse_version(&mut reader)?;
        let tensor_count = reader.u64("the number of tensors")?;
        let key_count = reader.u64("the number of metadata keys")?;
        let metadata = Metadata::parse(&mut reader, key_count)?;
        let described = layout::parse(&mut reader, tensor_count)?;
        let alignment = alignment(&metadata)?;
        let start = reader.position().next_multiple_of(alignment);
        let tensors = Tensors::place(
            described,
            DataSection {
                start,
                alignment,
                file_size: size,
            },
        )?;
        Ok(Self {
            version,
            metadata,
            tensors,
        })
    }
}

fn check_magic<R: Read>(reader: &mut HeaderReader<R>, size: u64) -> Result<(), Malformed> {
    let found = reader.bytes("the magic", size.min(MAGIC.len() as u64))?;
    if MAGIC.starts_with(found) {
        return Ok(());
    }
    Err(Malformed::at(
        0,
        Problem::NotGguf {
            found: found.to_vec(),
        },
    ))
}

fn parse_version<R: Read>(reader: &mut HeaderReader<R>) -> Result<u32, Malformed> {
    let offset = reader.position();
    match reader.u32("the version")? {
        version @ 2..=3 => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => {
            Err(Malformed::at(offset, Problem::BigEndian))
        }
        version => Err(Malformed::at(
            offset,
            Problem::UnsupportedVersion { version },
        )),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Malformed> {
    let value = match metadata.find::<u64>(ALIGNMENT_KEY) {
        Ok(None) => return Ok(DEFAULT_ALIGNMENT),
        Ok(Some(value)) if value.is_power_of_two() && (8..=MAX_ALIGNMENT).contains(&value) => {
            return Ok(value);
        }
        Ok(Some(value)) => value.to_string(),
        Err(error) => error.to_string(),
    };
    let place = || format!("metadata key {ALIGNMENT_KEY:?}");
    Err(Malformed::at(metadata.offset(ALIGNMENT_KEY), Problem::Alignment { value }).in_place(place))
}

/// The order of things by name, to find one without a second copy of the names.
#[derive(Debug, Clone, Default)]
pub(super) struct NameIndex(Vec<usize>);

impl NameIndex {
    pub(super) fn new<'a>(len: usize, name: impl Fn(usize) -> &'a str) -> Self {
        let mut order: Vec<usize> = (0..len).collect();
        order.sort_by_key(|&at| name(at));
        Self(order)
    }

    pub(super) fn find<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str) -> Option<usize> {
        let found = self.0.binary_search_by(|&at| name(at).cmp(wanted)).ok()?;
        Some(self.0[found])
    }

    /// The second of two things of one name, if there are two.
    pub(super) fn duplicate<'a>(&self, name: impl Fn(usize) -> &'a str) -> Option<usize> {
        // The sort is stable: of equal names the later one is second.
        self.0
            .windows(2)
            .find(|pair| name(pair[0]) == name(pair[1]))
            .map(|pair| pair[1])
    }
}
