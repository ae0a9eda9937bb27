//! Metadata values: their types, and the Rust types they are read as.

use std::fmt;
use std::io::Read;

use super::error::{Malformed, Problem};
use super::reader::HeaderReader;

/// The type of a metadata value, or of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the names are the documentation")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    /// An array of strings.
    Strings(StringList),
    /// An array of numbers or truth values.
    Numbers(NumberList),
}

/// An array of strings, in one piece of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StringList {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
}

/// An array of numbers or truth values, as the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberList {
    element: ValueType,
    /// Bytes of one element.
    width: usize,
    bytes: Vec<u8>,
}

/// The shortest string in an array: its length.
const MIN_STRING_BYTES: u64 = 8;

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type of a number in the file, 0 to 12.
    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Bytes of a value; `None` for strings and arrays, whose length varies.
    fn width(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    /// The type's name in the format's documentation, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::F32 => "float32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F64 => "float64",
        }
    }
}

impl Value {
    /// The value's type, such as `uint32` or `array of string`.
    pub fn type_name(&self) -> String {
        match self {
            Self::Strings(_) => "array of string".to_owned(),
            Self::Numbers(list) => format!("array of {}", list.element.name()),
            scalar => scalar.scalar_type().name().to_owned(),
        }
    }

    fn scalar_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
            Self::Strings(_) | Self::Numbers(_) => ValueType::Array,
        }
    }

    /// The value of any integer type.
    fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::I8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::U64(value) => Some(value.into()),
            Self::I64(value) => Some(value.into()),
            _ => None,
        }
    }

    /// A value of fixed width from its little-endian bytes; `None` for a truth value other than 0 and 1.
    fn fixed(kind: ValueType, bytes: &[u8]) -> Option<Self> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        Some(match kind {
            ValueType::U8 => Self::U8(bits as u8),
            ValueType::I8 => Self::I8(bits as i8),
            ValueType::U16 => Self::U16(bits as u16),
            ValueType::I16 => Self::I16(bits as i16),
            ValueType::U32 => Self::U32(bits as u32),
            ValueType::I32 => Self::I32(bits as i32),
            ValueType::F32 => Self::F32(f32::from_bits(bits as u32)),
            ValueType::U64 => Self::U64(bits),
            ValueType::I64 => Self::I64(bits as i64),
            ValueType::F64 => Self::F64(f64::from_bits(bits)),
            ValueType::Bool if bits <= 1 => Self::Bool(bits == 1),
            ValueType::Bool | ValueType::String | ValueType::Array => return None,
        })
    }
}

/// The value for people: strings quoted and escaped, long arrays by their first elements and their length.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U8(value) => write!(f, "{value}"),
            Self::I8(value) => write!(f, "{value}"),
            Self::U16(value) => write!(f, "{value}"),
            Self::I16(value) => write!(f, "{value}"),
            Self::U32(value) => write!(f, "{value}"),
            Self::I32(value) => write!(f, "{value}"),
            Self::F32(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::String(value) => write!(f, "{value:?}"),
            Self::U64(value) => write!(f, "{value}"),
            Self::I64(value) => write!(f, "{value}"),
            Self::F64(value) => write!(f, "{value}"),
            Self::Strings(list) => write_list(
                f,
                list.len(),
                list.iter().map(|string| format!("{string:?}")),
            ),
            Self::Numbers(list) => {
                write_list(f, list.len(), list.iter().map(|value| value.to_string()))
            }
        }
    }
}

fn write_list(
    f: &mut fmt::Formatter<'_>,
    len: usize,
    items: impl Iterator<Item = String>,
) -> fmt::Result {
    const SHOWN: usize = 6;
    let shown: Vec<String> = items.take(SHOWN).collect();
    let more = if len > SHOWN {
        format!(", … {len} in all")
    } else {
        String::new()
    };
    write!(f, "[{}{more}]", shown.join(", "))
}

impl StringList {
    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at an index.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringList {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut list = Self::default();
        for string in strings {
            list.text.push_str(string.as_ref());
            list.ends.push(list.text.len());
        }
        list
    }
}

impl From<Vec<i32>> for NumberList {
    fn from(numbers: Vec<i32>) -> Self {
        let bytes = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        Self {
            element: ValueType::I32,
            width: size_of::<i32>(),
            bytes,
        }
    }
}

impl From<Vec<f32>> for NumberList {
    fn from(numbers: Vec<f32>) -> Self {
        let bytes = numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        Self {
            element: ValueType::F32,
            width: size_of::<i32>(),
            bytes,
        }
    }
}

impl NumberList {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements' type.
    pub fn element(&self) -> ValueType {
        self.element
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        self.bytes
            .chunks_exact(self.width)
            .filter_map(|bytes| Value::fixed(self.element, bytes))
    }
}

/// Why a value is not of a Rust type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// It is of another kind.
    Type,
    /// It is an integer that does not fit.
    Range,
}

/// Rust types that metadata can be read as. Integers of every width are read as any integer type that holds the value.
pub trait FromValue<'a>: Sized {
    /// The type's name in errors.
    const EXPECTED: &'static str;

    /// The value as this type.
    fn from_value(value: &'a Value) -> Result<Self, Mismatch>;
}

macro_rules! integer_from_value {
    ($($integer:ty => $name:literal),*) => {
        $(impl FromValue<'_> for $integer {
            const EXPECTED: &'static str = $name;

            fn from_value(value: &Value) -> Result<Self, Mismatch> {
                let integer = value.integer().ok_or(Mismatch::Type)?;
                integer.try_into().map_err(|_| Mismatch::Range)
            }
        })*
    };
}

integer_from_value!(u32 => "uint32", u64 => "uint64", i32 => "int32");

impl FromValue<'_> for f32 {
    const EXPECTED: &'static str = "float32";

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        match *value {
            Value::F32(number) => Ok(number),
            Value::F64(number) => Ok(number as Self),
            _ => Err(Mismatch::Type),
        }
    }
}

impl FromValue<'_> for bool {
    const EXPECTED: &'static str = "bool";

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        match *value {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Mismatch::Type),
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const EXPECTED: &'static str = "string";

    fn from_value(value: &'a Value) -> Result<Self, Mismatch> {
        match value {
            Value::String(string) => Ok(string),
            _ => Err(Mismatch::Type),
        }
    }
}

impl<'a> FromValue<'a> for &'a StringList {
    const EXPECTED: &'static str = "array of string";

    fn from_value(value: &'a Value) -> Result<Self, Mismatch> {
        match value {
            Value::Strings(list) => Ok(list),
            _ => Err(Mismatch::Type),
        }
    }
}

fn elements<'a, T: for<'v> FromValue<'v>>(value: &'a Value) -> Result<Vec<T>, Mismatch> {
    match value {
        Value::Numbers(list) => list.iter().map(|element| T::from_value(&element)).collect(),
        _ => Err(Mismatch::Type),
    }
}

/// Bytes, which some writers mark as signed.
impl FromValue<'_> for Vec<u8> {
    const EXPECTED: &'static str = "array of uint8";

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        match value {
            Value::Numbers(list) if matches!(list.element, ValueType::U8 | ValueType::I8) => {
                Ok(list.bytes.clone())
            }
            _ => Err(Mismatch::Type),
        }
    }
}

impl FromValue<'_> for Vec<i32> {
    const EXPECTED: &'static str = "array of int32";

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        elements(value)
    }
}

impl FromValue<'_> for Vec<f32> {
    const EXPECTED: &'static str = "array of float32";

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        elements(value)
    }
}

/// Reads a value and its type.
pub(super) fn parse_value<R: Read>(reader: &mut HeaderReader<R>) -> Result<Value, Malformed> {
    match parse_type(reader, "the value's type")? {
        ValueType::String => reader.string("a string").map(Value::String),
        ValueType::Array => parse_array(reader),
        kind => {
            let offset = reader.position();
            let width = kind.width().unwrap_or_default();
            let bytes = reader.bytes("a value", width as u64)?;
            Value::fixed(kind, bytes).ok_or_else(|| invalid_bool(offset, bytes))
        }
    }
}

fn parse_type<R: Read>(
    reader: &mut HeaderReader<R>,
    what: &'static str,
) -> Result<ValueType, Malformed> {
    let offset = reader.position();
    let number = reader.u32(what)?;
    ValueType::from_number(number)
        .ok_or_else(|| Malformed::at(offset, Problem::UnknownValueType { number }))
}

fn parse_array<R: Read>(reader: &mut HeaderReader<R>) -> Result<Value, Malformed> {
    let offset = reader.position();
    let element = parse_type(reader, "the array's element type")?;
    let count = reader.u64("the array's length")?;
    match (element, element.width()) {
        (ValueType::String, _) => parse_strings(reader, count).map(Value::Strings),
        (_, Some(width)) => parse_numbers(reader, element, (width, count)).map(Value::Numbers),
        (_, None) => Err(Malformed::at(offset, Problem::NestedArray)),
    }
}

fn parse_strings<R: Read>(
    reader: &mut HeaderReader<R>,
    count: u64,
) -> Result<StringList, Malformed> {
    reader.expect("an array of strings", count, MIN_STRING_BYTES)?;
    let mut list = StringList::default();
    for _ in 0..count {
        reader.string_onto("a string of an array", &mut list.text)?;
        list.ends.push(list.text.len());
    }
    Ok(list)
}

fn parse_numbers<R: Read>(
    reader: &mut HeaderReader<R>,
    element: ValueType,
    (width, count): (usize, u64),
) -> Result<NumberList, Malformed> {
    reader.expect("an array", count, width as u64)?;
    let offset = reader.position();
    let bytes = reader.bytes("an array", count * width as u64)?;
    if let Some(bad) = bytes
        .iter()
        .position(|&byte| element == ValueType::Bool && byte > 1)
    {
        return Err(invalid_bool(offset + bad as u64, &bytes[bad..]));
    }
    Ok(NumberList {
        element,
        width,
        bytes: bytes.to_vec(),
    })
}

fn invalid_bool(offset: u64, bytes: &[u8]) -> Malformed {
    let value = bytes.first().copied().unwrap_or_default();
    Malformed::at(offset, Problem::InvalidBool { value })
}
