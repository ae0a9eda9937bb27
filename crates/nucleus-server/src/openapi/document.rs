//! The OpenAPI document.

use axum::http::StatusCode;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::endpoint::{Answer, Content, Endpoint, Group};
use super::schema::{Bounds, either};
use crate::app::AppState;
use crate::error::ErrorBody;
use crate::guard;

/// Describes these endpoints on that worker.
pub(super) fn document(endpoints: &[Endpoint], state: &AppState) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .into_generator();
    let has_key = state.config.api_key.is_some();
    let bounds = Bounds {
        limits: &state.config.limits,
        vocab_size: state.engine.vocab().size,
        context_length: state.engine.spec().context_length,
    };
    let mut paths = Map::new();
    for endpoint in endpoints {
        let operation = operation(endpoint, &bounds, has_key, &mut generator);
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nucleus",
            "summary": "An LLM inference worker with exact, reproducible sampling",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": Group::ALL.map(|group| json!({"name": group.name(), "description": group.description()})),
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    });
    if has_key {
        document["security"] = json!([{"bearer": []}, {"header": []}]);
    }
    document
}

fn operation(
    endpoint: &Endpoint,
    bounds: &Bounds<'_>,
    has_key: bool,
    generator: &mut SchemaGenerator,
) -> Value {
    let mut operation = json!({
        "operationId": operation_id(endpoint),
        "tags": [endpoint.group.name()],
        "summary": endpoint.summary,
        "description": endpoint.description,
    });
    let parameters = path_parameters(endpoint.path);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(request) = endpoint.request {
        let schema = request(bounds).into_schema();
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": schema}},
        });
    }
    let mut responses = Map::new();
    for answer in &endpoint.answers {
        add_answer(&mut responses, answer, generator);
    }
    let open = guard::is_open(endpoint.path);
    let unauthorized = (has_key && !open).then_some(401);
    let mut refusals: Vec<u16> = endpoint.refusals.clone();
    refusals.extend(unauthorized);
    refusals.sort_unstable();
    for status in refusals {
        let schema = ErrorBody::schema_name();
        generator.subschema_for::<ErrorBody>();
        responses.entry(status.to_string()).or_insert_with(|| {
            json!({
                "description": reason(status),
                "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}},
            })
        });
    }
    operation["responses"] = responses.into();
    if has_key && open {
        operation["security"] = json!([]);
    }
    operation
}

fn add_answer(
    responses: &mut Map<String, Value>,
    answer: &Answer,
    generator: &mut SchemaGenerator,
) {
    let (media_type, content) = match answer.content {
        Content::Json(schema) => ("application/json", json!({"schema": schema(generator)})),
        Content::Events(schema) => (
            "text/event-stream",
            json!({"schema": event(json_text(schema(generator)))}),
        ),
        Content::EventsUntilDone(schema) => {
            let data = either([json_text(schema(generator)), json!({"const": "[DONE]"})]);
            ("text/event-stream", json!({"schema": event(data)}))
        }
        Content::Text(media_type) => (media_type, json!({"schema": {"type": "string"}})),
    };
    let response = responses
        .entry(answer.status.to_string())
        .or_insert_with(|| json!({"description": "", "content": {}}));
    let before = response["description"].as_str().unwrap_or_default();
    let separator = if before.is_empty() { "" } else { "; " };
    response["description"] = format!("{before}{separator}{}", answer.description).into();
    response["content"][media_type] = content;
}

/// One server-sent event, as programs that read streams have it.
fn event(data: Value) -> Value {
    json!({
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": data,
        },
        "required": ["data"],
    })
}

/// Text that is JSON of a schema.
fn json_text(schema: Schema) -> Value {
    json!({"type": "string", "contentMediaType": "application/json", "contentSchema": schema})
}

/// `post_v1_completions` for `POST /v1/completions`.
fn operation_id(endpoint: &Endpoint) -> String {
    let path: String = endpoint
        .path
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    format!("{}{}", endpoint.method, path.trim_end_matches('_'))
}

/// The parameters in a path, which are written `{name}`.
fn path_parameters(path: &str) -> Vec<Value> {
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    names
        .map(|name| {
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
        })
        .collect()
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("An error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_their_parameters() {
        assert!(path_parameters("/v1/models").is_empty());
        let parameters = path_parameters("/v1/models/{id}");
        assert_eq!(parameters.len(), 1);
        assert_eq!(parameters[0]["name"], "id");
    }
}
