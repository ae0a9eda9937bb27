//! Typed fields out of a JSON object; what is left over is unknown to the endpoint.
//!
//! Absent is `None`; `null` is a value of the wrong type.

use std::ops::RangeInclusive;

use nucleus_engine::generate::SubmitError;
use nucleus_sampling::{ParamSpec, Policy, SamplingParams, VocabInfo};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::json::{shorten, show};
use crate::param_json;

/// The fields of a request that nobody has asked for yet.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// The fields of an endpoint whose clients write `null` for what they do not say.
    pub(crate) fn lenient(mut object: Map<String, Value>) -> Self {
        object.retain(|_, value| !value.is_null());
        Self(object)
    }

    /// Those of an object, as [`Fields::lenient`] has them.
    #[cfg(test)]
    pub(crate) fn of(value: Value) -> Self {
        match value {
            Value::Object(object) => Self::lenient(object),
            other => panic!("{other} is not an object"),
        }
    }

    /// A field under another name; both at once are an error.
    pub(crate) fn rename(&mut self, alias: &str, name: &str) -> Result<(), ApiError> {
        let Some(value) = self.0.shift_remove(alias) else {
            return Ok(());
        };
        if self.0.contains_key(name) {
            let expected = format!("to be given together with {name}, which means the same");
            return Err(ApiError::field(alias, show(&value), &expected));
        }
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Any value.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// Puts a value in the place of another.
    pub(crate) fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Token ids; absent is none.
    pub(crate) fn ids(&mut self, name: &str) -> Result<Vec<u32>, ApiError> {
        let ids = self.take(name, |value| {
            param_json::ids(&value)
                .ok_or_else(|| ApiError::field(name, show(&value), "an array of token ids"))
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// A string.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.take(name, |value| match value {
            Value::String(text) => Ok(text),
            other => Err(ApiError::field(name, show(&other), "a string")),
        })
    }

    /// True or false.
    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, |value| {
            value
                .as_bool()
                .ok_or_else(|| ApiError::field(name, show(&value), "true or false"))
        })
    }

    /// An integer of a range.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        self.take(name, |value| {
            value
                .as_u64()
                .filter(|integer| range.contains(integer))
                .ok_or_else(|| {
                    let expected = format!("an integer in [{}, {}]", range.start(), range.end());
                    ApiError::field(name, show(&value), &expected)
                })
        })
    }

    /// A string, or an array of strings; absent is none.
    pub(crate) fn strings(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let strings = self.take(name, |value| match value {
            Value::String(text) => Ok(vec![text]),
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| element(name, index, item))
                .collect(),
            other => Err(ApiError::field(
                name,
                show(&other),
                "a string or an array of strings",
            )),
        })?;
        Ok(strings.unwrap_or_default())
    }

    /// `stop`: at most `limit` strings of 1 to `bytes` bytes.
    pub(crate) fn stops(&mut self, limit: usize, bytes: usize) -> Result<Vec<String>, ApiError> {
        let stops = self.strings("stop")?;
        if stops.len() > limit {
            let (given, expected) = (stops.len(), format!("at most {limit} strings"));
            let given = format!("an array of {given}");
            return Err(ApiError::field("stop", given, &expected));
        }
        let unusable = |stop: &String| !(1..=bytes).contains(&stop.len());
        let Some(index) = stops.iter().position(unusable) else {
            return Ok(stops);
        };
        let expected = format!("a string of 1 to {bytes} bytes");
        let value = format!("a string of {} bytes", stops[index].len());
        Err(ApiError::field(format!("stop[{index}]"), value, &expected))
    }

    /// Every sampling parameter, within the ranges of `policy`.
    pub(crate) fn sampling_params(
        &mut self,
        policy: Policy,
        vocab: &VocabInfo,
    ) -> Result<SamplingParams, ApiError> {
        let mut params = SamplingParams::default();
        for (name, value) in std::mem::take(&mut self.0) {
            let Some(spec) = ParamSpec::find(&name) else {
                self.0.insert(name, value);
                continue;
            };
            let value = param_json::read(spec, &value).ok_or_else(|| {
                let expected = param_json::expected(spec, policy, vocab);
                ApiError::field(spec.name, show(&value), &expected)
            })?;
            params.set(spec.name, value).map_err(SubmitError::from)?;
        }
        params
            .check_policy(policy, vocab)
            .map_err(SubmitError::from)?;
        Ok(params)
    }

    /// Refuses whatever is left; `own` names the fields that the endpoint has.
    pub(crate) fn finish(self, own: &str) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::UnknownField {
                param: shorten(name),
                known: own.to_owned(),
            }),
        }
    }

    /// Whatever is left.
    pub(crate) fn rest(self) -> Map<String, Value> {
        self.0
    }

    fn take<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.0.shift_remove(name).map(read).transpose()
    }
}

fn element(name: &str, index: usize, value: Value) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(ApiError::field(
            format!("{name}[{index}]"),
            show(&other),
            "a string",
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        match value {
            Value::Object(object) => Fields::new(object),
            other => panic!("{other} is not an object"),
        }
    }

    fn message<T: std::fmt::Debug>(result: Result<T, ApiError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn fields_come_out_typed() {
        let mut fields =
            fields(json!({"s": "x", "b": true, "i": 7, "one": "a", "two": ["a", "b"]}));
        assert_eq!(fields.string("s"), Ok(Some("x".into())));
        assert_eq!(fields.boolean("b"), Ok(Some(true)));
        assert_eq!(fields.integer("i", 1..=7), Ok(Some(7)));
        assert_eq!(fields.strings("one"), Ok(vec!["a".into()]));
        assert_eq!(fields.strings("two"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(fields.string("s"), Ok(None));
        assert_eq!(fields.strings("absent"), Ok(vec![]));
    }

    #[test]
    fn a_wrong_value_is_named_with_what_it_must_be() {
        let mut fields =
            fields(json!({"s": null, "b": 1, "i": 8, "j": 1.0, "k": -1, "t": ["a", 2], "u": 3}));
        assert_eq!(message(fields.string("s")), "s: null is not a string");
        assert_eq!(message(fields.boolean("b")), "b: 1 is not true or false");
        assert_eq!(
            message(fields.integer("i", 1..=7)),
            "i: 8 is not an integer in [1, 7]"
        );
        assert_eq!(
            message(fields.integer("j", 1..=7)),
            "j: 1.0 is not an integer in [1, 7]"
        );
        assert_eq!(
            message(fields.integer("k", 0..=7)),
            "k: -1 is not an integer in [0, 7]"
        );
        assert_eq!(message(fields.strings("t")), "t[1]: 2 is not a string");
        assert_eq!(
            message(fields.strings("u")),
            "u: 3 is not a string or an array of strings"
        );
    }
}
