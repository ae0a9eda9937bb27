//! A parameter's value without its type: what a command line, a form field or a table row holds.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::ParamError;

/// The type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A real number.
    Float,
    /// A signed integer.
    Int,
    /// An unsigned integer.
    Uint,
    /// True or false.
    Bool,
    /// One of a few names.
    Text,
    /// Names, in order.
    TextList,
    /// Token ids.
    Ids,
    /// Sequences of token ids.
    Sequences,
    /// A map from token id to a number added to its logit.
    Bias,
}

impl ParamKind {
    /// The name used in tables and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "number",
            Self::Int | Self::Uint => "integer",
            Self::Bool => "boolean",
            Self::Text => "name",
            Self::TextList => "list of names",
            Self::Ids => "list of token ids",
            Self::Sequences => "list of token id sequences",
            Self::Bias => "map of token id to number",
        }
    }

    /// Reads a value written on a command line.
    ///
    /// Lists are separated by commas (`1,2,3`), sequences by semicolons (`1,2;7`), bias entries are `id:value` (`15:-2.5,20:1`).
    /// `None` if the text is not of this type.
    pub fn parse(self, text: &str) -> Option<ParamValue> {
        let text = text.trim();
        Some(match self {
            Self::Float => ParamValue::Float(text.parse().ok()?),
            Self::Int => ParamValue::Int(text.parse().ok()?),
            Self::Uint => ParamValue::Uint(text.parse().ok()?),
            Self::Bool => ParamValue::Bool(text.parse().ok()?),
            Self::Text => ParamValue::Text(text.to_owned()),
            Self::TextList => {
                ParamValue::TextList(items(text, ',').map(|s| s.trim().to_owned()).collect())
            }
            Self::Ids => ParamValue::Ids(parse_ids(text)?),
            Self::Sequences => {
                ParamValue::Sequences(items(text, ';').map(parse_ids).collect::<Option<_>>()?)
            }
            Self::Bias => {
                ParamValue::Bias(items(text, ',').map(parse_bias).collect::<Option<_>>()?)
            }
        })
    }
}

fn items(text: &str, separator: char) -> impl Iterator<Item = &str> {
    text.split(separator).filter(|item| !item.trim().is_empty())
}

fn parse_ids(text: &str) -> Option<Vec<u32>> {
    items(text, ',')
        .map(|item| item.trim().parse().ok())
        .collect()
}

fn parse_bias(entry: &str) -> Option<(u32, f64)> {
    let (id, value) = entry.split_once(':')?;
    Some((id.trim().parse().ok()?, value.trim().parse().ok()?))
}

/// A parameter's value, of any type a parameter can have.
#[derive(Clone, Debug, PartialEq)]
pub enum ParamValue {
    /// A real number.
    Float(f64),
    /// A signed integer.
    Int(i64),
    /// An unsigned integer.
    Uint(u64),
    /// True or false.
    Bool(bool),
    /// A name.
    Text(String),
    /// Names, in order.
    TextList(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Sequences of token ids.
    Sequences(Vec<Vec<u32>>),
    /// Token id to value.
    Bias(BTreeMap<u32, f64>),
}

impl fmt::Display for ParamValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Uint(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::TextList(value) => write!(f, "{value:?}"),
            Self::Ids(value) => write!(f, "{value:?}"),
            Self::Sequences(value) => write!(f, "{value:?}"),
            Self::Bias(value) => write!(f, "{value:?}"),
        }
    }
}

/// A Rust type that a field of [`SamplingParams`](crate::SamplingParams) can have.
pub(crate) trait Field: Sized {
    const KIND: ParamKind;
    fn into_value(self) -> ParamValue;
    fn from_value(name: &'static str, value: ParamValue) -> Result<Self, ParamError>;
}

/// `$from => $converted` gives an `Option`: values of other types that are taken too.
macro_rules! field {
    ($type:ty, $kind:ident $(, $from:pat => $converted:expr)*) => {
        impl Field for $type {
            const KIND: ParamKind = ParamKind::$kind;

            fn into_value(self) -> ParamValue {
                ParamValue::$kind(self)
            }

            fn from_value(name: &'static str, value: ParamValue) -> Result<Self, ParamError> {
                let converted = match &value {
                    $($from => $converted,)*
                    _ => None,
                };
                match (value, converted) {
                    (ParamValue::$kind(value), _) | (_, Some(value)) => Ok(value),
                    (other, None) => Err(ParamError::WrongType {
                        param: name,
                        value: other.to_string(),
                        expected: Self::KIND.name(),
                    }),
                }
            }
        }
    };
}

field!(f64, Float, ParamValue::Int(v) => Some(*v as f64), ParamValue::Uint(v) => Some(*v as f64));
field!(i64, Int, ParamValue::Uint(v) => i64::try_from(*v).ok());
field!(u64, Uint, ParamValue::Int(v) => u64::try_from(*v).ok());
field!(bool, Bool);
field!(String, Text);
field!(Vec<String>, TextList);
field!(Vec<u32>, Ids);
field!(Vec<Vec<u32>>, Sequences);
field!(BTreeMap<u32, f64>, Bias);
