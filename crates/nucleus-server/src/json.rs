//! JSON objects, read strictly: no key twice at any depth, nothing after the closing brace.
//!
//! Depth is bounded by serde_json (128), numbers that no `f64` holds are refused by it.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses `bytes` as one JSON object; the error says what is wrong and where.
pub(crate) fn parse_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict
        .deserialize(&mut deserializer)
        .map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(format!("expected an object, not {}", kind(&other))),
    }
}

/// What kind of value this is, with its article.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Builds a [`Value`] as `Value`'s own `Deserialize` does, but refuses duplicate keys.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(Strict)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!(
                    "duplicate field {}",
                    quote(&key)
                )));
            }
            let value = access.next_value_seed(Strict)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        String::deserialize(deserializer)
    }
}

/// A client's text for an error message: at most 64 characters.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 64;
    match text.char_indices().nth(SHOWN) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A client's text for an error message: shortened, quoted, control characters escaped.
pub(crate) fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

/// A client's value for an error message, as JSON, shortened.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &[u8]) -> String {
        parse_object(body).unwrap_err()
    }

    #[test]
    fn an_object_comes_out_as_it_went_in() {
        let body = r#"{"a":[1,-2,0.5,18446744073709551615,true,null],"b":{"c":"\u0000é"}}"#;
        let object = parse_object(body.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), body);
    }

    #[test]
    fn other_bodies_are_named() {
        for (body, expected) in [
            (&b"[1,\"x\"]"[..], "not an array"),
            (b"\"x\"", "not a string"),
            (b"1", "not a number"),
            (b"true", "not a boolean"),
            (b"null", "not null"),
            (b"", "EOF"),
            (b"   ", "EOF"),
            (b"{} {}", "trailing characters"),
            (b"{}x", "trailing characters"),
            (b"{\"a\":1,}", "trailing comma"),
            (b"\xef\xbb\xbf{}", "expected value"),
            (b"{\"a\":NaN}", "expected value"),
            (b"{\"a\":1e309}", "number out of range"),
            (b"{\"a\":-1e309}", "number out of range"),
            (b"{\"a\":\"\xff\"}", "invalid unicode"),
            (b"{\"a\":\"\xc4\xe3\"}", "invalid unicode"),
            (b"{\"a\":\"\\ud83d\"}", "hex escape"),
        ] {
            let message = error(body);
            let shown = String::from_utf8_lossy(body);
            assert!(message.contains(expected), "{shown}: {message}");
        }
    }

    #[test]
    fn a_number_of_400_digits_is_out_of_range() {
        let body = format!("{{\"seed\":{}}}", "9".repeat(400));
        assert!(error(body.as_bytes()).contains("number out of range"));
    }

    #[test]
    fn a_key_may_come_once_at_every_depth() {
        assert!(error(br#"{"a":1,"a":1}"#).contains(r#"duplicate field "a""#));
        assert!(error(br#"{"b":{"a":1,"a":2}}"#).contains(r#"duplicate field "a""#));
        assert!(error(br#"{"b":[{"\u0061":1,"a":2}]}"#).contains(r#"duplicate field "a""#));
    }

    #[test]
    fn depth_is_bounded_everywhere() {
        for depth in [128, 3_000, 100_000] {
            let body = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
            assert!(
                error(body.as_bytes()).contains("recursion limit"),
                "{depth}"
            );
        }
        let body = format!("{{\"a\":{}{}}}", "[".repeat(100), "]".repeat(100));
        assert!(parse_object(body.as_bytes()).is_ok());
    }

    #[test]
    fn quoted_text_is_short_and_printable() {
        assert_eq!(quote("a\r\nb\0"), r#""a\r\nb\0""#);
        assert_eq!(quote(&"é".repeat(1000)), format!("\"{}…\"", "é".repeat(64)));
        assert_eq!(show(&Value::from("5")), r#""5""#);
        assert_eq!(show(&Value::from(vec![1, 2])), "an array of 2");
    }
}
