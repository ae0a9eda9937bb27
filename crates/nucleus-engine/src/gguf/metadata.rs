//! Metadata: typed values by name.

use std::io::Read;
use std::ops::RangeInclusive;

use super::error::{GgufError, Malformed, Problem};
use super::header::NameIndex;
use super::reader::HeaderReader;
use super::value::{FromValue, Mismatch, StringList, Value, parse_value};

/// A file's metadata, in the order of the file.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<Entry>,
    index: NameIndex,
}

#[derive(Debug, Clone)]
struct Entry {
    key: String,
    value: Value,
    /// Where in the file the key begins.
    offset: u64,
}

/// The greatest length of a key, as the format has it.
const MAX_KEY_BYTES: u64 = 65_535;
/// The shortest entry: a key's length, one character, a type and one byte.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

impl Metadata {
    /// Metadata of the given keys and values, as a file would have it; of a key given twice, one of the values.
    pub fn new(entries: impl IntoIterator<Item = (String, Value)>) -> Self {
        let entries: Vec<Entry> = entries
            .into_iter()
            .map(|(key, value)| Entry {
                key,
                value,
                offset: 0,
            })
            .collect();
        let index = NameIndex::new(entries.len(), |at| &entries[at].key);
        Self { entries, index }
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|entry| (entry.key.as_str(), &entry.value))
    }

    /// The value of a key, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The value of a key, if the file has it.
    ///
    /// # Errors
    ///
    /// [`GgufError::WrongType`] or [`GgufError::OutOfRange`] when it has it as something else.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        self.get(key).map(|value| convert(key, value)).transpose()
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find), and [`GgufError::MissingKey`].
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.find(key)?.ok_or_else(|| GgufError::MissingKey {
            key: key.to_owned(),
        })
    }

    /// The value of a key as an unsigned integer of 32 bits. Errors: see [`require`](Self::require).
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.require(key)
    }

    /// The value of a key as a size within `range`.
    ///
    /// # Errors
    ///
    /// As [`require`](Self::require), and [`GgufError::OutOfRange`] for a value outside of `range`.
    pub fn size_in(&self, key: &str, range: RangeInclusive<u32>) -> Result<usize, GgufError> {
        let size = self.u32(key)?;
        if range.contains(&size) {
            return Ok(size as usize);
        }
        let expected = format!("from {} to {}", range.start(), range.end());
        Err(GgufError::OutOfRange {
            key: key.to_owned(),
            value: size.to_string(),
            expected,
        })
    }

    /// The value of a key as an unsigned integer of 64 bits. Errors: see [`require`](Self::require).
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.require(key)
    }

    /// The value of a key as a float of 32 bits, which may be infinite or NaN. Errors: see [`require`](Self::require).
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.require(key)
    }

    /// The value of a key as a truth value. Errors: see [`require`](Self::require).
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.require(key)
    }

    /// The value of a key as a string. Errors: see [`require`](Self::require).
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.require(key)
    }

    /// The value of a key as an array of strings. Errors: see [`require`](Self::require).
    pub fn strings(&self, key: &str) -> Result<&StringList, GgufError> {
        self.require(key)
    }

    /// Where in the file a key begins; 0 when it is not there.
    pub(super) fn offset(&self, key: &str) -> u64 {
        self.entry(key).map_or(0, |entry| entry.offset)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        let at = self.index.find(key, |at| &self.entries[at].key)?;
        Some(&self.entries[at])
    }

    pub(super) fn parse<R: Read>(
        reader: &mut HeaderReader<R>,
        count: u64,
    ) -> Result<Self, Malformed> {
        reader.expect("the metadata", count, MIN_ENTRY_BYTES)?;
        let mut entries = Vec::new();
        for number in 0..count {
            let offset = reader.position();
            let key = reader
                .name("a metadata key", MAX_KEY_BYTES)
                .map_err(|error| error.in_place(|| format!("metadata key {number}")))?;
            let value = parse_value(reader).map_err(|error| error.in_place(|| place(&key)))?;
            entries.push(Entry { key, value, offset });
        }
        let index = NameIndex::new(entries.len(), |at| &entries[at].key);
        if let Some(twice) = index.duplicate(|at| &entries[at].key) {
            let Entry { key, offset, .. } = &entries[twice];
            return Err(Malformed::at(*offset, Problem::Duplicate).in_place(|| place(key)));
        }
        Ok(Self { entries, index })
    }
}

/// How errors name a key.
fn place(key: &str) -> String {
    format!("metadata key {key:?}")
}

fn convert<'a, T: FromValue<'a>>(key: &str, value: &'a Value) -> Result<T, GgufError> {
    T::from_value(value).map_err(|mismatch| match mismatch {
        Mismatch::Type => GgufError::WrongType {
            key: key.to_owned(),
            found: value.type_name(),
            expected: T::EXPECTED,
        },
        Mismatch::Range => {
            let expected = format!("of type {}", T::EXPECTED);
            GgufError::OutOfRange {
                key: key.to_owned(),
                value: value.to_string(),
                expected,
            }
        }
    })
}
