//! Sampling parameters as JSON values.

use std::collections::BTreeMap;

use nucleus_sampling::{ParamKind, ParamSpec, ParamValue, Policy, VocabInfo};
use serde_json::Value;

/// Reads a value of the parameter's type; `None` if it is of another. Ranges are not looked at.
pub(crate) fn read(spec: &ParamSpec, value: &Value) -> Option<ParamValue> {
    Some(match spec.kind {
        ParamKind::Float => ParamValue::Float(value.as_f64()?),
        ParamKind::Int => ParamValue::Int(value.as_i64()?),
        ParamKind::Uint => ParamValue::Uint(value.as_u64()?),
        ParamKind::Bool => ParamValue::Bool(value.as_bool()?),
        ParamKind::Text => ParamValue::Text(value.as_str()?.to_owned()),
        ParamKind::TextList => ParamValue::TextList(list(value, text)?),
        ParamKind::Ids => ParamValue::Ids(ids(value)?),
        ParamKind::Sequences => ParamValue::Sequences(list(value, ids)?),
        ParamKind::Bias => ParamValue::Bias(bias(value)?),
    })
}

fn list<T>(value: &Value, item: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(item).collect()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// An array of token ids.
pub(crate) fn ids(value: &Value) -> Option<Vec<u32>> {
    list(value, id)
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

/// `{"15": -2.5}`: JSON's keys are strings, these hold token ids. One id written in two ways (`15`, `015`) is refused.
fn bias(value: &Value) -> Option<BTreeMap<u32, f64>> {
    let mut bias = BTreeMap::new();
    for (key, value) in value.as_object()? {
        let token_id: u32 = key.parse().ok()?;
        if bias.insert(token_id, value.as_f64()?).is_some() {
            return None;
        }
    }
    Some(bias)
}

/// What a parameter must be on an endpoint: `a number in [0, 2]`.
pub(crate) fn expected(spec: &ParamSpec, policy: Policy, vocab: &VocabInfo) -> String {
    let kind = spec.kind.name();
    let article = if kind.starts_with('i') { "an" } else { "a" };
    match spec.range(policy) {
        Some(range) => format!("{article} {kind} in {}", range.at(vocab.size)),
        None => format!("{article} {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use nucleus_sampling::{Literal, PARAMS};
    use serde_json::json;

    use super::*;

    fn spec(name: &str) -> &'static ParamSpec {
        ParamSpec::find(name).unwrap()
    }

    #[test]
    fn values_are_read_by_the_type_of_their_parameter() {
        assert_eq!(
            read(spec("temperature"), &json!(1)),
            Some(ParamValue::Float(1.0))
        );
        assert_eq!(read(spec("top_k"), &json!(-1)), Some(ParamValue::Int(-1)));
        assert_eq!(
            read(spec("seed"), &json!(u64::MAX)),
            Some(ParamValue::Uint(u64::MAX))
        );
        assert_eq!(
            read(spec("ignore_eos"), &json!(true)),
            Some(ParamValue::Bool(true))
        );
        let bias = BTreeMap::from([(7, -2.5), (15, 1.0)]);
        let value = json!({"15": 1, "7": -2.5});
        assert_eq!(
            read(spec("logit_bias"), &value),
            Some(ParamValue::Bias(bias))
        );
        let words = ParamValue::Sequences(vec![vec![1, 2], vec![3]]);
        assert_eq!(read(spec("bad_words"), &json!([[1, 2], [3]])), Some(words));
    }

    #[test]
    fn no_value_is_read_as_another_type() {
        for (name, value) in [
            ("temperature", json!("0.5")),
            ("temperature", json!(true)),
            ("top_k", json!(1.0)),
            ("top_k", json!(u64::MAX)),
            ("seed", json!(-1)),
            ("seed", json!(1.5)),
            ("ignore_eos", json!(1)),
            ("logit_bias", json!({"abc": 1})),
            ("logit_bias", json!({"-1": 1})),
            ("logit_bias", json!({"7": 1, "07": 2})),
            ("logit_bias", json!([[7, 1]])),
            ("allowed_token_ids", json!([4_294_967_296_u64])),
            ("bad_words", json!([1])),
        ] {
            assert_eq!(read(spec(name), &value), None, "{name}: {value}");
        }
        for spec in PARAMS {
            assert_eq!(read(spec, &Value::Null), None, "{}", spec.name);
        }
    }

    #[test]
    fn the_expected_type_and_range_are_said() {
        let vocab = VocabInfo::new(4096);
        let of = |name| expected(spec(name), Policy::Execute, &vocab);
        assert_eq!(of("temperature"), "a number in [0, 2]");
        assert_eq!(of("repetition_penalty"), "a number in (0, 2]");
        assert_eq!(of("top_k"), "an integer in [0, 4096]");
        assert_eq!(of("seed"), "an integer in [0, 2^64-1]");
        assert_eq!(of("preset"), "a name");
    }
    /// A row of the table in `docs/http-api.md`.
    fn documented(spec: &ParamSpec) -> String {
        let range = spec
            .range(Policy::Execute)
            .map_or(String::new(), |range| format!(" in {range}"));
        let default = match spec.default(Policy::Execute) {
            Literal::Absent => String::new(),
            Literal::Float(value) => value.to_string(),
            Literal::Int(value) => value.to_string(),
            Literal::Bool(value) => format!("`{value}`"),
            Literal::Text(value) => format!("`{value:?}`"),
        };
        let ParamSpec {
            name, kind, help, ..
        } = spec;
        format!("| `{name}` | {}{range} | {default} | {help} |", kind.name())
    }

    /// R4.2: what is documented is what there is.
    #[test]
    fn the_documentation_has_every_parameter() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http-api.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let rows: Vec<String> = PARAMS.iter().map(documented).collect();
        assert!(
            page.contains(&rows.join("\n")),
            "the table should be:\n{}",
            rows.join("\n")
        );
    }
}
