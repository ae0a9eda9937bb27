//! What the text of an answer must be: OpenAI's `response_format`, vLLM's `structured_outputs`, llama.cpp's `json_schema`.

use nucleus_engine::constraint::{Constraint, Format};
use nucleus_engine::generate::Engine;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::{quote, show};
use crate::openapi::Object;

const RESPONSE_FORMAT: &str = "response_format";
const STRUCTURED_OUTPUTS: &str = "structured_outputs";
const JSON_SCHEMA: &str = "json_schema";

/// A format, and the field that asks for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OutputFormat {
    param: &'static str,
    format: Format,
}

impl OutputFormat {
    /// What follows an output of that format for this engine's vocabulary. Takes milliseconds.
    pub(crate) fn compile(&self, engine: &Engine) -> Result<Constraint, ApiError> {
        let compiled = engine.constraint(self.format.clone());
        compiled.map_err(|error| ApiError::OutputFormat {
            param: self.param,
            error,
        })
    }

    /// The format as `structured_outputs` has it.
    pub(crate) fn told(&self) -> Value {
        match &self.format {
            Format::JsonSchema(schema) => json!({"json": schema}),
            Format::Regex(regex) => json!({"regex": regex}),
            Format::Choice(choices) => json!({"choice": choices}),
            Format::Lark(grammar) => json!({"grammar": grammar}),
        }
    }
}

/// `response_format` and `structured_outputs`, of which one may be given.
pub(crate) fn read(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    let response_format = fields.value("response_format").map(response_format);
    let structured = fields.value("structured_outputs").map(structured_outputs);
    let formats = [
        (RESPONSE_FORMAT, response_format.transpose()?.flatten()),
        (STRUCTURED_OUTPUTS, structured.transpose()?),
    ];
    only_one(formats)
}

/// The same, and `json_schema`.
pub(crate) fn read_with_schema(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    let schema = fields
        .value("json_schema")
        .map(|value| schema(JSON_SCHEMA, value).map(Format::JsonSchema));
    let other = read(fields)?;
    let other = other.map_or((STRUCTURED_OUTPUTS, None), |other| {
        (other.param, Some(other.format))
    });
    only_one([(JSON_SCHEMA, schema.transpose()?), other])
}

fn only_one(
    formats: [(&'static str, Option<Format>); 2],
) -> Result<Option<OutputFormat>, ApiError> {
    match formats {
        [(first, Some(_)), (second, Some(_))] => Err(ApiError::field(
            second,
            "a second output format".into(),
            &format!("possible beside {first}"),
        )),
        formats => {
            let mut given = formats.into_iter();
            Ok(given
                .find_map(|(param, format)| format.map(|format| OutputFormat { param, format })))
        }
    }
}

/// How [`read`] is described.
pub(crate) fn with_formats(object: Object) -> Object {
    let form = json!({
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object", "properties": {"schema": {"type": "object"}}, "required": ["schema"]},
        },
        "required": ["type"],
    });
    let structured = json!({
        "type": "object",
        "properties": {
            "json": {"type": ["object", "boolean", "string"]},
            "json_object": {"type": "boolean"},
            "regex": {"type": "string"},
            "choice": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "grammar": {"type": "string"},
        },
    });
    object
        .field(
            RESPONSE_FORMAT,
            form,
            "What the text must be, as OpenAI says it: any JSON object, or JSON of a schema.",
        )
        .field(
            STRUCTURED_OUTPUTS,
            structured,
            "What the text must be, as vLLM says it: JSON of a schema, any JSON object, a match of a regular expression, one of several \
             texts, or a sentence of a Lark grammar.",
        )
}

/// How [`read_with_schema`] is described.
pub(crate) fn with_schema(object: Object) -> Object {
    with_formats(object).field(
        JSON_SCHEMA,
        json!({"type": ["object", "boolean"]}),
        "The JSON Schema that the text must be of.",
    )
}

fn response_format(value: Value) -> Result<Option<Format>, ApiError> {
    const EXPECTED: &str = "\"text\", \"json_object\" or \"json_schema\"";
    let Value::Object(mut object) = value else {
        let expected = "an object with a \"type\"";
        return Err(ApiError::field(RESPONSE_FORMAT, show(&value), expected));
    };
    let kind = object.shift_remove("type").unwrap_or_default();
    let format = match kind.as_str() {
        Some("text") => None,
        // llama.cpp has the schema beside the type.
        Some("json_object") => match object.shift_remove("schema") {
            None => Some(Format::json_object()),
            Some(value) => Some(Format::JsonSchema(schema("response_format.schema", value)?)),
        },
        Some("json_schema") => Some(Format::JsonSchema(named_schema(&mut object)?)),
        _ => {
            let at = format!("{RESPONSE_FORMAT}.type");
            return Err(ApiError::field(at, show(&kind), EXPECTED));
        }
    };
    nothing_else(RESPONSE_FORMAT, &object)?;
    Ok(format)
}

/// `json_schema` of a `response_format`: a schema with a name, which does nothing; or, as llama.cpp has it, the schema alone in its place.
fn named_schema(object: &mut Map<String, Value>) -> Result<Value, ApiError> {
    const AT: &str = "response_format.json_schema";
    if let Some(value) = object.shift_remove("schema") {
        return schema("response_format.schema", value);
    }
    let Some(Value::Object(mut named)) = object.shift_remove(JSON_SCHEMA) else {
        let expected = "an object with a \"schema\"";
        return Err(ApiError::field(AT, "what is there".into(), expected));
    };
    let value = named.shift_remove("schema");
    for inert in ["name", "description", "strict"] {
        named.shift_remove(inert);
    }
    nothing_else(AT, &named)?;
    schema(
        "response_format.json_schema.schema",
        value.unwrap_or_default(),
    )
}

/// Exactly one of the forms; vLLM's clients send null for the others, and false for its options.
fn structured_outputs(value: Value) -> Result<Format, ApiError> {
    const EXPECTED: &str =
        "an object with one of \"json\", \"json_object\", \"regex\", \"choice\" and \"grammar\"";
    let Value::Object(mut object) = value else {
        return Err(ApiError::field(STRUCTURED_OUTPUTS, show(&value), EXPECTED));
    };
    object.retain(|name, value| !value.is_null() && (*value != false || name == "json"));
    let mut given = object.into_iter();
    let (Some((name, value)), None) = (given.next(), given.next()) else {
        let value = "an object with none or several of them".into();
        return Err(ApiError::field(STRUCTURED_OUTPUTS, value, EXPECTED));
    };
    let at = format!("{STRUCTURED_OUTPUTS}.{name}");
    match (name.as_str(), value) {
        ("json", Value::String(text)) => match serde_json::from_str(&text) {
            Ok(value) => schema(&at, value).map(Format::JsonSchema),
            Err(_) => Err(ApiError::field(at, quote(&text), "a JSON Schema")),
        },
        ("json", value) => schema(&at, value).map(Format::JsonSchema),
        ("json_object", Value::Bool(_)) => Ok(Format::json_object()),
        ("regex", Value::String(regex)) => Ok(Format::Regex(regex)),
        ("grammar", Value::String(grammar)) => Ok(Format::Lark(grammar)),
        ("choice", Value::Array(items)) => choices(&at, items),
        ("json_object" | "regex" | "grammar" | "choice", value) => {
            let expected = match name.as_str() {
                "json_object" => "true or false",
                "choice" => "an array of strings",
                _ => "a string",
            };
            Err(ApiError::field(at, show(&value), expected))
        }
        (_, value) => Err(ApiError::field(at, show(&value), EXPECTED)),
    }
}

fn choices(at: &str, items: Vec<Value>) -> Result<Format, ApiError> {
    let mut choices = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        match item {
            Value::String(text) if !text.is_empty() => choices.push(text),
            other => {
                let at = format!("{at}[{index}]");
                let expected = "a string that is not empty";
                return Err(ApiError::field(at, show(&other), expected));
            }
        }
    }
    Ok(Format::Choice(choices))
}

/// A schema is an object; `true` is any JSON.
fn schema(at: &str, value: Value) -> Result<Value, ApiError> {
    match value {
        Value::Object(_) | Value::Bool(_) => Ok(value),
        other => Err(ApiError::field(
            at,
            show(&other),
            "a JSON Schema, which is an object",
        )),
    }
}

fn nothing_else(at: &str, rest: &Map<String, Value>) -> Result<(), ApiError> {
    match rest.iter().find(|(_, value)| !value.is_null()) {
        None => Ok(()),
        Some((name, value)) => Err(ApiError::field(
            format!("{at}.{name}"),
            show(value),
            "known here; leave it out",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(value: Value) -> Option<Value> {
        let format = read_with_schema(&mut Fields::of(value)).expect("a format");
        format.as_ref().map(OutputFormat::told)
    }

    fn refusal(value: Value) -> String {
        let format = read_with_schema(&mut Fields::of(value));
        format.expect_err("it is refused").to_string()
    }

    /// R5.2: the forms in which OpenAI, vLLM and llama.cpp ask for a format.
    #[test]
    fn r5_2_a_format_is_asked_for_in_three_languages() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let as_json = Some(json!({"json": schema}));
        let named = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        assert_eq!(told(json!({"response_format": named})), as_json);
        let bare = json!({"type": "json_schema", "schema": schema});
        assert_eq!(told(json!({"response_format": bare})), as_json);
        assert_eq!(told(json!({"json_schema": schema})), as_json);
        for json in [schema.clone(), schema.to_string().into()] {
            let asked = json!({"structured_outputs": {"json": json, "regex": null, "disable_fallback": false}});
            assert_eq!(told(asked), as_json);
        }
        let object = Some(json!({"json": {"type": "object"}}));
        assert_eq!(
            told(json!({"response_format": {"type": "json_object"}})),
            object
        );
        assert_eq!(
            told(json!({"structured_outputs": {"json_object": true}})),
            object
        );
        for form in [
            json!({"regex": "[a-z]+"}),
            json!({"choice": ["yes", "no"]}),
            json!({"grammar": "start: \"a\""}),
        ] {
            let asked = json!({"structured_outputs": form});
            assert_eq!(told(asked), Some(form));
        }
        assert_eq!(told(json!({"response_format": {"type": "text"}})), None);
        assert_eq!(told(json!({})), None);
    }

    /// R5.2: what is not a format is refused by name.
    #[test]
    fn r5_2_what_is_no_format_is_refused_by_name() {
        for (asked, message) in [
            (
                json!({"response_format": "json"}),
                "response_format: \"json\" is not an object with a \"type\"",
            ),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type: \"xml\" is not \"text\", \"json_object\" or \"json_schema\"",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format.json_schema.schema: null is not a JSON Schema, which is an object",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema: what is there is not an object with a \"schema\"",
            ),
            (
                json!({"response_format": {"type": "text", "schema": {}}}),
                "response_format.schema: an object is not known here; leave it out",
            ),
            (
                json!({"structured_outputs": {"choice": ["a", ""]}}),
                "structured_outputs.choice[1]: \"\" is not a string that is not empty",
            ),
            (
                json!({"structured_outputs": {"regex": 5}}),
                "structured_outputs.regex: 5 is not a string",
            ),
            (
                json!({"json_schema": 5}),
                "json_schema: 5 is not a JSON Schema, which is an object",
            ),
        ] {
            assert_eq!(refusal(asked), message);
        }
        for several in [
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            json!({"structured_outputs": {"structural_tag": "x"}}),
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
            json!({"json_schema": {}, "response_format": {"type": "json_object"}}),
        ] {
            refusal(several);
        }
    }
}
