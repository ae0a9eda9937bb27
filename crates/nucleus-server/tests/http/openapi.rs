//! The description of the interface: it is there, and it is the interface.

use std::collections::BTreeSet;
use std::path::Path;

use nucleus_server::{ApiKey, ServerConfig};
use serde_json::{Map, Value, json};

use crate::support::schema::conforms;
use crate::support::{Answer, PROMPT, Reply, Rig, RigOptions, forever, text};

/// The names by which an error may call a field: those that mean the same; too many prompts are too many choices.
const ALIASES: &[(&str, &str)] = &[
    ("prompt", "n"),
    ("max_completion_tokens", "max_tokens"),
    ("max_completion_tokens", "n_predict"),
    ("max_tokens", "n_predict"),
    ("n", "n_cmpl"),
    ("logprobs", "n_probs"),
    ("repeat_penalty", "repetition_penalty"),
    ("typ_p", "typical_p"),
];

/// Fields of objects within a request.
const NESTED: &[&str] = &["role", "content", "include_usage", "include_obfuscation"];

async fn document(rig: &Rig) -> Value {
    let answer = rig.get("/openapi.json").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    answer.json().await
}

/// Path and request schema of every endpoint that takes an object.
fn requests(document: &Value) -> Vec<(String, Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let schema = |operation: &Value| {
        operation["requestBody"]["content"]["application/json"]["schema"].clone()
    };
    paths
        .iter()
        .map(|(path, methods)| (path.clone(), schema(&methods["post"])))
        .filter(|(_, schema)| schema.is_object())
        .collect()
}

fn properties(schema: &Value) -> &Map<String, Value> {
    schema["properties"].as_object().expect("properties")
}

/// The endpoint's example with one more field.
fn with(schema: &Value, name: &str, value: Value) -> Value {
    let mut body = schema["examples"][0].clone();
    assert!(body.is_object(), "every request has an example");
    body[name] = value;
    body
}

/// The request is refused, and the refusal names the field.
async fn refused(rig: &Rig, path: &str, name: &str, body: &Value) {
    let (status, error) = rig.post(path, body).await.error().await;
    assert_eq!(status, 400, "{path} {name}: {error:?}");
    let param = error.param.as_deref();
    let is_alias = |(alias, of): &(&str, &str)| *alias == name && param == Some(*of);
    assert!(
        param == Some(name) || ALIASES.iter().any(is_alias),
        "{path} {name}: {error:?}"
    );
}

#[tokio::test]
async fn the_document_describes_every_endpoint() {
    let rig = Rig::new(forever());
    let document = document(&rig).await;
    assert_eq!(document["openapi"], "3.1.0");
    let page = rig.get("/docs").await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let page = String::from_utf8(page.bytes().await).expect("a page is text");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        assert!(page.contains(&format!("<code>{path}</code>")), "{path}");
        for (method, operation) in methods.as_object().expect("methods") {
            for key in ["operationId", "summary", "description"] {
                let text = operation[key].as_str().expect("text");
                assert!(!text.is_empty(), "{method} {path}: {key}");
            }
            let responses = operation["responses"].as_object().expect("responses");
            assert!(
                responses.keys().any(|status| status.starts_with('2')),
                "{path}"
            );
            assert!(responses.contains_key("403"), "{path}");
        }
    }
    for external in ["http://", "https://", "<script", "src="] {
        assert!(!page.contains(external), "{external}");
    }
}

/// Every reference in the document leads somewhere.
#[tokio::test]
async fn every_reference_is_defined() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    found.insert(reference.clone());
                }
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let document = document(&Rig::new(forever())).await;
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 5, "{found:?}");
    for reference in found {
        let pointer = reference
            .strip_prefix('#')
            .expect("a reference of this document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

/// What is described is read: a value that nothing could be is refused in the field's name.
#[tokio::test]
async fn every_described_field_is_read() {
    let rig = Rig::new(forever());
    for (path, schema) in requests(&document(&rig).await) {
        for name in properties(&schema).keys() {
            let nothing = match name.as_str() {
                // A schema may say what nobody knows.
                "json_schema" | "guided_json" => json!(5),
                _ => json!({"no": {"such": "value"}}),
            };
            let body = with(&schema, name, nothing);
            refused(&rig, &path, name, &body).await;
        }
    }
}

/// What is read is described: the names that the sources ask a request for.
#[tokio::test]
async fn every_field_that_is_read_is_described() {
    let document = document(&Rig::new(forever())).await;
    let requests = requests(&document);
    let described: BTreeSet<&str> = requests
        .iter()
        .flat_map(|(_, schema)| properties(schema).keys().map(String::as_str))
        .chain(NESTED.iter().copied())
        .collect();
    let mut read = BTreeSet::new();
    names_in(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut read,
    );
    assert!(read.len() > 10, "{read:?}");
    for name in read {
        assert!(
            described.contains(name.as_str()),
            "{name} is read and not described"
        );
    }
}

/// The first string in every call of a getter of `Fields`.
fn names_in(path: &Path, names: &mut BTreeSet<String>) {
    if path.is_dir() {
        for entry in path.read_dir().expect("a folder") {
            names_in(&entry.expect("an entry").path(), names);
        }
        return;
    }
    let source = std::fs::read_to_string(path).expect("a source");
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    for getter in [
        "string", "boolean", "integer", "value", "ids", "strings", "rename", "number",
    ] {
        for call in ["fields", "options"] {
            for rest in code.split(&format!("{call}.{getter}(\"")).skip(1) {
                names.extend(rest.split('"').next().map(str::to_owned));
            }
        }
    }
}

/// What lies beyond a described bound is refused.
#[tokio::test]
async fn described_bounds_are_those_that_are_kept() {
    let rig = Rig::new(forever());
    let mut checked = 0;
    for (path, schema) in requests(&document(&rig).await) {
        for (name, property) in properties(&schema) {
            for value in beyond(property) {
                let body = with(&schema, name, value);
                refused(&rig, &path, name, &body).await;
                checked += 1;
            }
        }
    }
    assert!(checked > 150, "{checked} bounds were checked");
}

/// Values just outside of what a property says.
fn beyond(property: &Value) -> Vec<Value> {
    let mut values = Vec::new();
    let shapes = property["anyOf"].as_array().cloned();
    for shape in shapes.unwrap_or_else(|| vec![property.clone()]) {
        let step = if shape["type"] == "integer" || shape["type"][0] == "integer" {
            1.0
        } else {
            0.001
        };
        values.extend(
            shape["minimum"]
                .as_f64()
                .map(|low| outside(low - step, step)),
        );
        values.extend(
            shape["maximum"]
                .as_f64()
                .map(|high| outside(high + step, step)),
        );
        values.extend(shape.get("exclusiveMinimum").cloned());
        if shape["minLength"].as_u64() == Some(1) {
            values.push("".into());
        }
        if let Some(most) = shape["maxLength"].as_u64() {
            values.push("x".repeat(most as usize + 1).into());
        }
        if let (Some(most), Some("string")) =
            (shape["maxItems"].as_u64(), shape["items"]["type"].as_str())
        {
            let items: Vec<String> = (0..=most).map(|index| format!("s{index}")).collect();
            values.push(items.into());
        }
    }
    values
}

/// Numbers beyond 2^53 lose the step; they are beyond 64 bits here, where no field reaches.
fn outside(value: f64, step: f64) -> Value {
    if step < 1.0 || value.abs() > 9e15 {
        (value * if value.abs() > 9e15 { 2.0 } else { 1.0 }).into()
    } else {
        (value as i64).into()
    }
}

/// The schema of what `POST path` answers with 200 in that media type.
fn described(document: &Value, path: &str, media_type: &str) -> Value {
    let answer = &document["paths"][path]["post"]["responses"]["200"];
    let schema = &answer["content"][media_type]["schema"];
    assert!(schema.is_object(), "{path}: {media_type}");
    schema.clone()
}

/// Asserts that a whole answer, or every event of a stream, is as it is described; gives the answer's text, or
/// the events' data.
async fn as_described(document: &Value, path: &str, answer: Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{path}");
    if answer.headers["content-type"] == "application/json" {
        let body = answer.json().await;
        let schema = described(document, path, "application/json");
        assert!(conforms(document, &schema, &body), "{path}: {body}");
        return vec![body.to_string()];
    }
    let schema = described(document, path, "text/event-stream");
    let stream = String::from_utf8(answer.bytes().await).expect("a stream is UTF-8");
    let data: Vec<String> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").map(str::to_owned))
        .collect();
    assert!(!data.is_empty(), "{path}: {stream}");
    for data in &data {
        let event = json!({"data": data});
        assert!(conforms(document, &schema, &event), "{path}: {data}");
    }
    data
}

/// Real answers are as they are described: whole, streamed, in parts, with parameters that are told back as they were given.
#[tokio::test]
async fn answers_are_as_they_are_described() {
    let asks = [
        json!({}),
        json!({"dry_sequence_breakers": ["\n", "fox"], "seed": 7}),
        json!({"dry_sequence_breakers": [[5], [7, 8]], "dry_multiplier": 1.0, "stop": ["x"], "stop_token_ids": [9]}),
        json!({"temperature": 0.5, "top_k": 5, "logit_bias": {"5": -1.5}, "adaptive_target": 0.5, "max_time_ms": 60000}),
    ];
    for path in ["/execute", "/v1/completions", "/completion"] {
        for ask in &asks {
            for stream in [false, true] {
                let rig = Rig::new(text(" a fox"));
                let document = document(&rig).await;
                let mut ask = ask.clone();
                ask["prompt"] = PROMPT.into();
                ask["max_tokens"] = 4.into();
                if path != "/execute" {
                    ask["stream"] = stream.into();
                }
                let answer = rig.post(path, &ask).await;
                let data = as_described(&document, path, answer).await;
                let (last, parts) = data.split_last().expect("an answer");
                let done = last == "[DONE]";
                assert_eq!(done, stream && path == "/v1/completions", "{data:?}");
                if path == "/completion" {
                    // Without `response_fields` they are all there.
                    let is = |data: &String, name: &str| {
                        let schema = &document["components"]["schemas"][name];
                        let data: Value = serde_json::from_str(data).expect("JSON");
                        conforms(&document, schema, &data)
                    };
                    assert!(is(last, "LlamaCppCompletion"), "{last}");
                    assert!(
                        parts.iter().all(|part| is(part, "LlamaCppPart")),
                        "{parts:?}"
                    );
                    assert_eq!(parts.is_empty(), !stream);
                }
            }
        }
    }
}

/// A stream that fails ends as it is described.
#[tokio::test]
async fn failures_of_streams_are_as_they_are_described() {
    for path in ["/execute", "/v1/completions", "/completion"] {
        let rig = Rig::new(|_| Reply::Error);
        let document = document(&rig).await;
        let mut ask = json!({"prompt": PROMPT});
        if path != "/execute" {
            ask["stream"] = true.into();
        }
        let answer = rig.post(path, &ask).await;
        let data = as_described(&document, path, answer).await;
        let last: Value = serde_json::from_str(data.last().expect("an event")).expect("JSON");
        assert!(last["error"].is_object(), "{path}: {last}");
    }
}

/// Fields that are picked may be none, and of any kind.
#[tokio::test]
async fn picked_fields_are_as_they_are_described() {
    let paths = [
        json!(["nothing"]),
        json!(["generation_settings/stop", "content"]),
    ];
    for fields in paths {
        for (stream, n) in [(false, 1), (false, 2), (true, 1)] {
            let rig = Rig::new(forever());
            let document = document(&rig).await;
            let ask = json!({"prompt": PROMPT, "n_predict": 2, "n": n, "stream": stream, "response_fields": fields});
            let answer = rig.post("/completion", &ask).await;
            as_described(&document, "/completion", answer).await;
        }
    }
    let document = document(&Rig::new(forever())).await;
    let schemas = &document["components"]["schemas"];
    let whole = &schemas["LlamaCppCompletion"];
    assert!(
        !conforms(&document, whole, &json!({})),
        "a whole answer is bounded"
    );
    let answer = described(&document, "/completion", "application/json");
    assert!(conforms(&document, &answer, &json!({})));
    assert!(!conforms(&document, &answer, &json!("text")));
}

/// `[DONE]` is described where it comes, and nowhere else; other text that is no JSON is not.
#[tokio::test]
async fn the_end_of_a_stream_is_described() {
    let document = document(&Rig::new(forever())).await;
    let endings = [
        ("/execute", false),
        ("/completion", false),
        ("/v1/completions", true),
        ("/v1/chat/completions", true),
    ];
    for (path, done) in endings {
        let schema = described(&document, path, "text/event-stream");
        let allows = |data: &str| conforms(&document, &schema, &json!({"data": data}));
        assert_eq!(allows("[DONE]"), done, "{path}");
        assert!(
            !allows("DONE") && !allows("{}") || path == "/completion",
            "{path}"
        );
    }
}

#[tokio::test]
async fn with_a_key_the_description_is_open_and_says_so() {
    let options = RigOptions::configured(ServerConfig {
        api_key: ApiKey::new("secret"),
        ..ServerConfig::default()
    });
    let rig = Rig::with(options, forever());
    let document = document(&rig).await;
    assert_eq!(document["security"][0], json!({"bearer": []}));
    assert_eq!(document["paths"]["/health"]["get"]["security"], json!([]));
    let execute = &document["paths"]["/execute"]["post"];
    assert!(execute["responses"]["401"].is_object());
    assert!(execute.get("security").is_none());
    assert_eq!(rig.get("/docs").await.status, 200);
    let body = json!({"prompt": PROMPT});
    assert_eq!(rig.post("/execute", &body).await.status, 401);
}

/// A path whose percent-encoding is no text is refused in JSON.
#[tokio::test]
async fn a_path_that_is_no_text_is_refused() {
    let rig = Rig::new(forever());
    let (status, error) = rig.get("/v1/models/%FF").await.error().await;
    assert_eq!((status, error.param.as_deref()), (400, Some("id")));
}

/// R5.1: the parity table in the README has every sampling parameter and names no field that is not there; what it says is not there
/// is not.
#[tokio::test]
async fn r5_1_the_parity_table_is_true() {
    let document = document(&Rig::new(forever())).await;
    let requests = requests(&document);
    let fields = |path: &str| {
        let request = requests.iter().find(|(other, _)| other == path);
        properties(&request.expect("an endpoint").1).clone()
    };
    let (texts, talk, own) = (
        fields("/v1/completions"),
        fields("/v1/chat/completions"),
        fields("/execute"),
    );
    let known = |name: &str| {
        [&texts, &talk, &own]
            .iter()
            .any(|fields| fields.contains_key(name))
    };
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README is there");
    let begin = readme.find("| parameter | OpenAI |").expect("a table");
    let (table, rest) = readme[begin..].split_once("\n\n").expect("its end");
    let names = |text: &str| -> Vec<String> {
        text.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    };
    let listed: Vec<String> = table
        .lines()
        .flat_map(|row| names(row.split('|').nth(1).unwrap_or_default()))
        .collect();
    for name in &listed {
        assert!(known(name), "{name} is listed and not there");
    }
    for spec in nucleus_sampling::PARAMS {
        assert!(
            listed.iter().any(|name| name == spec.name),
            "{} is not listed",
            spec.name
        );
        for fields in [&texts, &talk, &own] {
            assert!(fields.contains_key(spec.name), "{}", spec.name);
        }
    }
    let missing = rest.split('.').next().expect("a sentence");
    assert!(missing.starts_with("Not there:"), "{missing}");
    for name in names(missing) {
        assert!(!known(&name), "{name} is there");
    }
}
