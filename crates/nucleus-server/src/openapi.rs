//! The description of the interface: OpenAPI 3.1 at `/openapi.json`, a page for people at `/docs`.
//!
//! A route exists as an [`Endpoint`]: path, handler and description in one value, so that none can be served without being
//! described. `app::endpoints` lists them all; a module with routes of its own gives them by a function `endpoints()` that
//! is named there, and the rest follows: routing, the document, the page.
//!
//! ```text
//! pub(crate) fn endpoints() -> [Endpoint; 1] {
//!     [Endpoint::post("/tokenize", tokenize)
//!         .group(Group::LlamaCpp)
//!         .says("Turns text into tokens", "With `with_pieces` each token comes with its text.")
//!         .takes(TokenizeRequest::schema)        // fn(&Bounds) -> Object
//!         .answers::<Tokens>(200, "The tokens")  // Tokens: Serialize + JsonSchema
//!         .refuses(refusal::GENERATION)]         // statuses beside those that a JSON body can have
//! }
//! ```
//!
//! Answers are described by their Rust types (`#[derive(JsonSchema)]`: field names, optional fields and doc comments are
//! those of the code). Requests are read by hand, strictly, so their schemas are built by hand beside the code that reads
//! them, from the same limits; sampling parameters come from `PARAMS`. Tests hold the two together: every described field
//! is read, every field that is read is described, and what lies beyond a described bound is refused.
//!
//! | module | what it is |
//! |---|---|
//! | `endpoint` | a route and its description |
//! | `schema` | schemas of requests |
//! | `document` | all of it as OpenAPI |
//! | `page` | all of it as HTML |

mod document;
mod endpoint;
mod page;
mod schema;

use std::borrow::Cow;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use nucleus_sampling::{PARAMS, Policy};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

pub(crate) use endpoint::{Endpoint, Group, refusal};
pub(crate) use schema::{Bounds, Object, default, either, flag, integer, list, text, token_ids};

use crate::app::{self, AppState};

/// The description as it is sent.
pub(crate) struct Description {
    json: Bytes,
    html: String,
}

impl Description {
    /// Describes the worker of that state: its limits, its model's vocabulary and context are part of the ranges.
    pub(crate) fn new(state: &AppState) -> Self {
        let document = document::document(&app::endpoints(), state);
        Self {
            html: page::render(&document),
            json: document.to_string().into(),
        }
    }
}

pub(crate) fn endpoints() -> [Endpoint; 2] {
    [
        Endpoint::get("/openapi.json", openapi)
            .group(Group::Worker)
            .says(
                "Describes the interface",
                "This document: OpenAPI 3.1, with the limits of this worker and the ranges of its model.",
            )
            .answers::<Map<String, Value>>(200, "The document"),
        Endpoint::get("/docs", docs)
            .group(Group::Worker)
            .says(
                "Shows the interface",
                "The same for people: one page that needs nothing else.",
            )
            .sends("text/html", "The page"),
    ]
}

async fn openapi(State(state): State<AppState>) -> impl IntoResponse {
    let json = HeaderValue::from_static("application/json");
    (
        [(header::CONTENT_TYPE, json)],
        state.description().json.clone(),
    )
}

async fn docs(State(state): State<AppState>, headers: HeaderMap) -> impl IntoResponse {
    const HEADERS: [(HeaderName, HeaderValue); 2] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'"),
        ),
    ];
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let page = page::for_host(&state.description().html, host.unwrap_or_default());
    (HEADERS, page)
}

/// How effective sampling parameters are described in answers.
pub(crate) struct EffectiveSampling;

impl JsonSchema for EffectiveSampling {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "EffectiveSampling".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let vocab = nucleus_sampling::MAX_VOCAB;
        let mut properties: Map<String, Value> = PARAMS
            .iter()
            .map(|spec| {
                let property = schema::sampling_property(spec, Policy::Library, vocab);
                (spec.name.to_owned(), property)
            })
            .collect();
        // What a request gives as text is told back as text.
        let breakers = &mut properties["dry_sequence_breakers"];
        let texts = list(text(1, usize::MAX), 0, usize::MAX);
        *breakers = either([texts, breakers.take()]);
        let schema = json!({"type": "object", "properties": properties});
        schema.try_into().expect("an object is a schema")
    }
}
