//! What the text of an answer must be: OpenAI's `response_format`, vLLM's `structured_outputs` and `guided_json`, `guided_regex`, …, llama.cpp's
//! `json_schema` and `grammar`.

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
const GRAMMAR: &str = "grammar";

/// vLLM's earlier names: fields of a request, and what they are in `structured_outputs`.
const GUIDED: [(&str, &str); 5] = [
    ("guided_json", "json"),
    ("guided_json_object", "json_object"),
    ("guided_regex", "regex"),
    ("guided_choice", "choice"),
    ("guided_grammar", "grammar"),
];

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
            Format::Lark(grammar) | Format::Gbnf(grammar) => json!({"grammar": grammar}),
        }
    }
}

/// `response_format` and `structured_outputs`, of which one may be given.
pub(crate) fn read(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    only_one(structured(fields)?)
}

/// The same, llama.cpp's fields, and vLLM's earlier ones.
pub(crate) fn read_with_others(fields: &mut Fields) -> Result<Option<OutputFormat>, ApiError> {
    let mut formats = structured(fields)?;
    let mut add = |param, format| formats.extend(given(param, format));
    let json_schema = fields.value("json_schema");
    let json_schema = json_schema.map(|value| schema(JSON_SCHEMA, value));
    add(
        JSON_SCHEMA,
        json_schema.transpose()?.map(Format::JsonSchema),
    );
    let grammar = fields.string("grammar")?.filter(|text| !text.is_empty());
    add(GRAMMAR, grammar.map(Format::grammar));
    for (param, form) in GUIDED {
        let value = fields
            .value(param)
            .filter(|value| says_something(form, value));
        let format = value.map(|value| one_of_them(param, form, value));
        add(param, format.transpose()?);
    }
    only_one(formats)
}

/// `response_format` and `structured_outputs`.
fn structured(fields: &mut Fields) -> Result<Vec<OutputFormat>, ApiError> {
    let response_format = fields.value("response_format").map(response_format);
    let structured = fields.value("structured_outputs").map(structured_outputs);
    let response_format = given(RESPONSE_FORMAT, response_format.transpose()?.flatten());
    let structured = given(STRUCTURED_OUTPUTS, structured.transpose()?);
    Ok(response_format.into_iter().chain(structured).collect())
}

fn given(param: &'static str, format: Option<Format>) -> Option<OutputFormat> {
    format.map(|format| OutputFormat { param, format })
}

fn only_one(mut formats: Vec<OutputFormat>) -> Result<Option<OutputFormat>, ApiError> {
    match &formats[..] {
        [first, second, ..] => Err(ApiError::field(
            second.param,
            "a second output format".into(),
            &format!("possible beside {}", first.param),
        )),
        _ => Ok(formats.pop()),
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
    let forms: Map<String, Value> = (GUIDED.into_iter())
        .map(|(_, form)| (form.to_owned(), form_schema(form)))
        .collect();
    let structured = json!({"type": "object", "properties": forms});
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
             texts, or a sentence of a grammar in GBNF or Lark's language.",
        )
}

/// How [`read_with_others`] is described.
pub(crate) fn with_other_formats(object: Object) -> Object {
    let object = with_formats(object)
        .field(
            JSON_SCHEMA,
            json!({"type": ["object", "boolean"]}),
            "The JSON Schema that the text must be of, as llama.cpp says it.",
        )
        .field(
            GRAMMAR,
            json!({"type": "string"}),
            "A grammar that the text must be a sentence of, in GBNF, as llama.cpp says it, or in Lark's language.",
        );
    GUIDED.into_iter().fold(object, |object, (param, form)| {
        let description =
            format!("`structured_outputs.{form}`, as earlier versions of vLLM say it.");
        object.field(param, form_schema(form), &description)
    })
}

/// How a form of `structured_outputs` is described.
fn form_schema(form: &str) -> Value {
    match form {
        "json" => json!({"type": ["object", "boolean", "string"]}),
        "json_object" => json!({"type": "boolean"}),
        "choice" => json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
        _ => json!({"type": "string"}),
    }
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
    let mut named = match object.shift_remove(JSON_SCHEMA).unwrap_or_default() {
        Value::Object(named) => named,
        other => {
            return Err(ApiError::field(
                AT,
                show(&other),
                "an object with a \"schema\"",
            ));
        }
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
    object.retain(|form, value| says_something(form, value));
    let mut given = object.into_iter();
    let (Some((form, value)), None) = (given.next(), given.next()) else {
        let value = "an object with none or several of them".into();
        return Err(ApiError::field(STRUCTURED_OUTPUTS, value, EXPECTED));
    };
    let at = format!("{STRUCTURED_OUTPUTS}.{form}");
    match GUIDED.iter().any(|(_, known)| *known == form) {
        true => one_of_them(&at, &form, value),
        false => Err(ApiError::field(at, show(&value), EXPECTED)),
    }
}

/// Whether a form is asked for: null and false are as good as leaving it out, except that `false` is a schema, of nothing.
fn says_something(form: &str, value: &Value) -> bool {
    !value.is_null() && (*value != false || form == "json")
}

/// One of the forms of `structured_outputs`.
fn one_of_them(at: &str, form: &str, value: Value) -> Result<Format, ApiError> {
    let (value, expected) = match (form, value) {
        ("json", Value::String(text)) => {
            return match serde_json::from_str(&text) {
                Ok(value) => schema(at, value).map(Format::JsonSchema),
                Err(_) => Err(ApiError::field(at, quote(&text), "a JSON Schema")),
            };
        }
        ("json", value) => return schema(at, value).map(Format::JsonSchema),
        ("json_object", Value::Bool(_)) => return Ok(Format::json_object()),
        ("regex", Value::String(regex)) => return Ok(Format::Regex(regex)),
        ("grammar", Value::String(grammar)) => return Ok(Format::grammar(grammar)),
        ("choice", Value::Array(items)) => return choices(at, items),
        ("json_object", value) => (value, "true or false"),
        ("choice", value) => (value, "an array of strings"),
        (_, value) => (value, "a string"),
    };
    Err(ApiError::field(at, show(&value), expected))
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
        let format = read_with_others(&mut Fields::of(value)).expect("a format");
        format.as_ref().map(OutputFormat::told)
    }

    fn refusal(value: Value) -> String {
        let format = read_with_others(&mut Fields::of(value));
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
            json!({"grammar": "root ::= \"a\""}),
        ] {
            let (name, value) = form
                .as_object()
                .and_then(|form| form.iter().next())
                .expect("one");
            assert_eq!(
                told(json!({format!("guided_{name}"): value})),
                Some(form.clone())
            );
            let asked = json!({"structured_outputs": form});
            assert_eq!(told(asked), Some(form));
        }
        let grammar = json!({"grammar": "root ::= \"a\""});
        assert_eq!(told(grammar.clone()), Some(grammar));
        assert_eq!(told(json!({"grammar": ""})), None);
        assert_eq!(told(json!({"guided_json": schema.to_string()})), as_json);
        assert_eq!(told(json!({"guided_json_object": true})), object);
        assert_eq!(
            told(json!({"guided_json_object": false, "guided_regex": null})),
            None
        );
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
                "response_format.json_schema: null is not an object with a \"schema\"",
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
            (
                json!({"grammar": ["a"]}),
                "grammar: an array of 1 is not a string",
            ),
            (
                json!({"guided_choice": "a"}),
                "guided_choice: \"a\" is not an array of strings",
            ),
            (
                json!({"guided_regex": "a", "grammar": "root ::= \"a\""}),
                "guided_regex: a second output format is not possible beside grammar",
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
