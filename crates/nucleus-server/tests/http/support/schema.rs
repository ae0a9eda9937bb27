//! Whether answers are as the OpenAPI document describes them.

use serde_json::Value;

/// What annotates and does not bound.
const ANNOTATIONS: [&str; 8] = [
    "description",
    "default",
    "examples",
    "format",
    "title",
    "x-stage",
    // Read where `contentSchema` is.
    "contentMediaType",
    // Their patterns are those of numbers, which are not looked into.
    "propertyNames",
];

/// Whether the value is one of the schema's. A keyword that is not known here fails the test: nothing goes unchecked.
pub(crate) fn conforms(document: &Value, schema: &Value, value: &Value) -> bool {
    let keywords = match schema {
        Value::Bool(any) => return *any,
        schema => schema.as_object().expect("a schema"),
    };
    keywords.iter().all(|(keyword, bound)| {
        let is = |schema: &Value, value: &Value| conforms(document, schema, value);
        match keyword.as_str() {
            "$ref" => is(definition(document, bound), value),
            "anyOf" => items(bound).iter().any(|schema| is(schema, value)),
            "type" => match bound {
                Value::Array(kinds) => kinds.iter().any(|kind| is_kind(value, kind)),
                kind => is_kind(value, kind),
            },
            "const" => value == bound,
            "enum" => items(bound).contains(value),
            "minimum" => value
                .as_f64()
                .is_none_or(|value| Some(value) >= bound.as_f64()),
            "maximum" => value
                .as_f64()
                .is_none_or(|value| Some(value) <= bound.as_f64()),
            "exclusiveMinimum" => value
                .as_f64()
                .is_none_or(|value| Some(value) > bound.as_f64()),
            "exclusiveMaximum" => value
                .as_f64()
                .is_none_or(|value| Some(value) < bound.as_f64()),
            "minLength" => value
                .as_str()
                .is_none_or(|text| text.chars().count() as u64 >= bound.as_u64().unwrap()),
            "minItems" => {
                let length = value.as_array().map(|items| items.len() as u64);
                length.is_none_or(|length| Some(length) >= bound.as_u64())
            }
            "maxItems" => {
                let length = value.as_array().map(|items| items.len() as u64);
                length.is_none_or(|length| Some(length) <= bound.as_u64())
            }
            "items" => {
                let first = schema["prefixItems"].as_array().map_or(0, Vec::len);
                let rest = value.as_array().into_iter().flatten().skip(first);
                rest.into_iter().all(|item| is(bound, item))
            }
            "prefixItems" => {
                let pairs = items(bound)
                    .iter()
                    .zip(value.as_array().into_iter().flatten());
                pairs.into_iter().all(|(schema, item)| is(schema, item))
            }
            "required" => value.as_object().is_none_or(|object| {
                let mut names = items(bound).iter().map(|name| name.as_str().unwrap());
                names.all(|name| object.contains_key(name))
            }),
            "properties" => {
                let mut members = value.as_object().into_iter().flatten();
                members
                    .all(|(name, member)| bound.get(name).is_none_or(|schema| is(schema, member)))
            }
            "additionalProperties" => {
                let mut members = value.as_object().into_iter().flatten();
                members.all(|(name, member)| {
                    schema["properties"].get(name).is_some() || is(bound, member)
                })
            }
            "contentSchema" => value.as_str().is_none_or(|text| {
                serde_json::from_str(text).is_ok_and(|content| is(bound, &content))
            }),
            annotation => {
                assert!(ANNOTATIONS.contains(&annotation), "{annotation}: {bound}");
                true
            }
        }
    })
}

fn definition<'a>(document: &'a Value, reference: &Value) -> &'a Value {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#'));
    document
        .pointer(pointer.expect("a reference of this document"))
        .expect("a definition")
}

fn items(list: &Value) -> &[Value] {
    list.as_array().expect("a list")
}

fn is_kind(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a kind") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        kind => panic!("{kind} is no kind of value"),
    }
}
