//! JSON schemas of requests.

use nucleus_sampling::{
    Bound, Domain, Literal, PARAMS, ParamKind, ParamSpec, Policy, Preset, Stage,
};
use serde_json::{Map, Value, json};

use crate::config::Limits;

/// What the ranges of a request depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) limits: &'a Limits,
    /// Tokens that can be drawn.
    pub(crate) vocab_size: u32,
    /// The model's context in tokens.
    pub(crate) context_length: usize,
}

impl Bounds<'_> {
    /// Most tokens that a request may ask for.
    pub(crate) fn output_tokens(&self) -> u64 {
        self.limits.most_output(self.context_length)
    }
}

/// The object that an endpoint takes.
#[derive(Debug)]
pub(crate) struct Object {
    properties: Map<String, Value>,
    required: Vec<&'static str>,
    lenient: bool,
    example: Option<Value>,
}

impl Object {
    /// An object of known fields only.
    pub(crate) fn strict() -> Self {
        Self {
            properties: Map::new(),
            required: Vec::new(),
            lenient: false,
            example: None,
        }
    }

    /// An object in which `null` is as good as absent and an unknown field is warned of, as OpenAI's clients need it.
    pub(crate) fn lenient() -> Self {
        Self {
            lenient: true,
            ..Self::strict()
        }
    }

    /// A field that may be left out.
    pub(crate) fn field(mut self, name: &str, schema: Value, help: &str) -> Self {
        let mut schema = if self.lenient {
            or_null(schema)
        } else {
            schema
        };
        schema["description"] = help.into();
        self.properties.insert(name.to_owned(), schema);
        self
    }

    /// A field that must be there.
    pub(crate) fn required(mut self, name: &'static str, mut schema: Value, help: &str) -> Self {
        schema["description"] = help.into();
        self.properties.insert(name.to_owned(), schema);
        self.required.push(name);
        self
    }

    /// Every sampling parameter within the ranges of a policy; those that are there already keep their description.
    pub(crate) fn sampling(mut self, policy: Policy, bounds: &Bounds<'_>) -> Self {
        for spec in PARAMS {
            if !self.properties.contains_key(spec.name) {
                let schema = sampling_property(spec, policy, bounds.vocab_size);
                self = self.field(spec.name, schema, spec.help);
            }
        }
        self
    }

    /// A request that works.
    pub(crate) fn example(mut self, example: Value) -> Self {
        self.example = Some(example);
        self
    }

    /// The schema.
    pub(crate) fn into_schema(self) -> Value {
        let mut schema = json!({
            "type": "object",
            "properties": self.properties,
            "additionalProperties": self.lenient,
        });
        if !self.required.is_empty() {
            schema["required"] = json!(self.required);
        }
        if let Some(example) = self.example {
            schema["examples"] = json!([example]);
        }
        schema
    }
}

/// A string of `low` to `high` characters.
pub(crate) fn text(low: usize, high: usize) -> Value {
    let mut schema = json!({"type": "string", "minLength": low});
    if high < usize::MAX {
        schema["maxLength"] = high.into();
    }
    schema
}

/// True or false.
pub(crate) fn flag(value: bool) -> Value {
    json!({"type": "boolean", "default": value})
}

/// An integer in a range.
pub(crate) fn integer(low: i64, high: u64) -> Value {
    json!({"type": "integer", "minimum": low, "maximum": high})
}

/// The same schema with the value that acts where the field is left out.
pub(crate) fn default(mut schema: Value, value: impl Into<Value>) -> Value {
    schema["default"] = value.into();
    schema
}

/// An array of `low` to `high` items.
pub(crate) fn list(item: Value, low: usize, high: usize) -> Value {
    let mut schema = json!({"type": "array", "items": item, "minItems": low});
    if high < usize::MAX {
        schema["maxItems"] = high.into();
    }
    schema
}

/// One of several shapes.
pub(crate) fn either(shapes: impl IntoIterator<Item = Value>) -> Value {
    json!({"anyOf": Vec::from_iter(shapes)})
}

/// An array of token ids.
pub(crate) fn token_ids(low: usize, bounds: &Bounds<'_>) -> Value {
    list(token_id(bounds.vocab_size), low, usize::MAX)
}

fn token_id(vocab_size: u32) -> Value {
    integer(0, u64::from(vocab_size).saturating_sub(1))
}

fn or_null(mut schema: Value) -> Value {
    match schema["type"].take() {
        Value::String(kind) => schema["type"] = json!([kind, "null"]),
        Value::Array(mut kinds) => {
            kinds.push("null".into());
            schema["type"] = kinds.into();
        }
        _ => {
            if let Some(object) = schema.as_object_mut() {
                object.shift_remove("type");
            }
            if let Some(Value::Array(shapes)) = schema.get_mut("anyOf") {
                shapes.push(json!({"type": "null"}));
            }
        }
    }
    schema
}

/// A sampling parameter within the range of a policy.
pub(super) fn sampling_property(spec: &ParamSpec, policy: Policy, vocab_size: u32) -> Value {
    let range = spec.range(policy).map(|range| range.at(vocab_size));
    let ids = |low| list(token_id(vocab_size), low, usize::MAX);
    let mut schema = match spec.kind {
        ParamKind::Float => numeric("number", range),
        ParamKind::Int | ParamKind::Uint => numeric("integer", range),
        ParamKind::Bool => json!({"type": "boolean"}),
        ParamKind::Text => names(Preset::ALL.map(Preset::name)),
        ParamKind::TextList => list(names(Stage::ORDERED.map(Stage::name)), 0, usize::MAX),
        ParamKind::Ids => ids(0),
        ParamKind::Sequences => list(ids(1), 0, usize::MAX),
        ParamKind::Bias => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,6}$"},
            "additionalProperties": numeric("number", range),
        }),
    };
    schema["description"] = spec.help.into();
    schema["x-stage"] = spec.stage.name().into();
    if let Some(value) = literal(spec.default(policy)) {
        schema["default"] = value;
    }
    schema
}

fn names<const N: usize>(names: [&str; N]) -> Value {
    json!({"type": "string", "enum": names.as_slice()})
}

fn numeric(kind: &str, range: Option<Domain>) -> Value {
    let mut schema = json!({"type": kind});
    let Some(range) = range else {
        return schema;
    };
    for (bound, inclusive, exclusive) in [
        (range.low, "minimum", "exclusiveMinimum"),
        (range.high, "maximum", "exclusiveMaximum"),
    ] {
        match bound {
            Bound::Inclusive(value) => schema[inclusive] = number(kind, value),
            Bound::Exclusive(value) => schema[exclusive] = number(kind, value),
            Bound::Vocab => {}
        }
    }
    schema
}

/// A bound as JSON: of an integer without a fraction, and the largest of 64 bits, which no `f64` is, as itself.
fn number(kind: &str, value: f64) -> Value {
    match kind {
        "integer" if value >= u64::MAX as f64 => u64::MAX.into(),
        "integer" => (value as i64).into(),
        _ => value.into(),
    }
}

fn literal(literal: Literal) -> Option<Value> {
    Some(match literal {
        Literal::Absent => return None,
        Literal::Float(value) => value.into(),
        Literal::Int(value) => value.into(),
        Literal::Bool(value) => value.into(),
        Literal::Text(value) => value.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_the_ranges_of_their_table() {
        let of = |name, policy| sampling_property(ParamSpec::find(name).unwrap(), policy, 4096);
        let top_k = of("top_k", Policy::Execute);
        assert_eq!(
            (&top_k["type"], &top_k["minimum"], &top_k["maximum"]),
            (&json!("integer"), &json!(0), &json!(4096))
        );
        assert_eq!(top_k["x-stage"], "top_k");
        let penalty = of("repetition_penalty", Policy::Execute);
        assert_eq!(penalty["exclusiveMinimum"], 0.0);
        assert_eq!(penalty["maximum"], 2.0);
        assert_eq!(of("seed", Policy::OpenAi)["maximum"], u64::MAX);
        assert_eq!(of("temperature", Policy::LlamaCpp)["default"], 0.8);
        assert_eq!(
            of("bad_words", Policy::Execute)["items"]["items"]["maximum"],
            4095
        );
    }

    #[test]
    fn a_lenient_object_takes_null() {
        let schema = Object::lenient()
            .field("a", flag(false), "A.")
            .field("b", either([text(1, 2), integer(0, 1)]), "B.")
            .required("c", text(0, usize::MAX), "C.")
            .field("d", json!({"type": ["object", "boolean"]}), "D.")
            .into_schema();
        assert_eq!(
            schema["properties"]["d"],
            json!({"type": ["object", "boolean", "null"], "description": "D."})
        );
        assert_eq!(
            schema["properties"]["a"]["type"],
            json!(["boolean", "null"])
        );
        assert_eq!(
            schema["properties"]["b"]["anyOf"][2],
            json!({"type": "null"})
        );
        assert_eq!(schema["properties"]["c"]["type"], "string");
        assert_eq!(schema["additionalProperties"], true);
        assert_eq!(schema["required"], json!(["c"]));
    }
}
