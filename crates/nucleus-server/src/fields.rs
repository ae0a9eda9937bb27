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

    /// Every sampling parameter, within the ranges of `policy`. Whatever else is left is an error; `own` names the
    /// fields that the endpoint has beside the parameters.
    pub(crate) fn sampling_params(
        self,
        policy: Policy,
        vocab: &VocabInfo,
        own: &str,
    ) -> Result<SamplingParams, ApiError> {
        let mut params = SamplingParams::default();
        for (name, value) in self.0 {
            let spec = ParamSpec::find(&name)
                .ok_or_else(|| unknown(&name, format!("{own} and the sampling parameters")))?;
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
            Some(name) => Err(unknown(name, own.to_owned())),
        }
    }

    fn take<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        self.0.shift_remove(name).map(read).transpose()
    }
}

fn unknown(name: &str, known: String) -> ApiError {
    ApiError::UnknownField {
        param: shorten(name),
        known,
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
