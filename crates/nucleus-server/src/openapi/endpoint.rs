//! A route and its description.

use axum::handler::Handler;
use axum::routing::{MethodRouter, get, post};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::schema::{Bounds, Object};
use crate::app::AppState;

/// The statuses of refusals, by what brings them about.
pub(crate) mod refusal {
    /// Every request: its host, the size of its head. (401 comes with a key, 404 and 405 with other paths and methods.)
    pub(crate) const ANY: &[u16] = &[403, 431];
    /// A body that must be JSON of a certain shape.
    pub(crate) const JSON_BODY: &[u16] = &[400, 408, 413, 415];
    /// The engine is asked to generate.
    pub(crate) const GENERATION: &[u16] = &[422, 429, 500, 503];
}

/// Whose interface an endpoint belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Nucleus,
    OpenAi,
    LlamaCpp,
    Worker,
}

impl Group {
    /// Every group, in the order of the document.
    pub(crate) const ALL: [Self; 4] = [Self::Nucleus, Self::OpenAi, Self::LlamaCpp, Self::Worker];

    /// Its name.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nucleus => "nucleus",
            Self::OpenAi => "openai",
            Self::LlamaCpp => "llama.cpp",
            Self::Worker => "worker",
        }
    }

    /// What its endpoints have in common.
    pub(crate) const fn description(self) -> &'static str {
        match self {
            Self::Nucleus => {
                "Nucleus's own endpoints: every sampling parameter, and nothing is ignored"
            }
            Self::OpenAi => "What OpenAI's clients call",
            Self::LlamaCpp => "What clients of llama.cpp's server call",
            Self::Worker => "How the worker is, and what it can do",
        }
    }
}

/// A type's schema.
type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What a body is.
pub(super) enum Content {
    /// JSON of a type.
    Json(SchemaOf),
    /// Server-sent events whose data is JSON of a type.
    Events(SchemaOf),
    /// The same, the last of which may be `[DONE]`.
    EventsUntilDone(SchemaOf),
    /// Text of a media type.
    Text(&'static str),
}

/// An answer that an endpoint gives.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content: Content,
    pub(super) description: &'static str,
}

/// A route: where it is, what it does, and how that is described.
pub(crate) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) handler: MethodRouter<AppState>,
    pub(super) group: Group,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) request: Option<fn(&Bounds<'_>) -> Object>,
    pub(super) answers: Vec<Answer>,
    pub(super) refusals: Vec<u16>,
}

impl Endpoint {
    /// `GET path`; a path's parameters are written `{name}`.
    pub(crate) fn get<H: Handler<T, AppState>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self::new("get", path, get(handler))
    }

    /// `POST path`.
    pub(crate) fn post<H: Handler<T, AppState>, T: 'static>(
        path: &'static str,
        handler: H,
    ) -> Self {
        Self::new("post", path, post(handler))
    }

    fn new(method: &'static str, path: &'static str, handler: MethodRouter<AppState>) -> Self {
        Self {
            method,
            path,
            handler,
            group: Group::Nucleus,
            summary: "",
            description: "",
            request: None,
            answers: Vec::new(),
            refusals: refusal::ANY.to_vec(),
        }
    }

    /// Whose interface it belongs to.
    pub(crate) fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    /// What it does: in a line, and in full.
    pub(crate) fn says(mut self, summary: &'static str, description: &'static str) -> Self {
        (self.summary, self.description) = (summary, description);
        self
    }

    /// It takes a JSON object.
    pub(crate) fn takes(mut self, request: fn(&Bounds<'_>) -> Object) -> Self {
        self.request = Some(request);
        self.refuses(refusal::JSON_BODY)
    }

    /// It answers with JSON.
    pub(crate) fn answers<T: JsonSchema>(self, status: u16, description: &'static str) -> Self {
        let content = Content::Json(SchemaGenerator::subschema_for::<T>);
        self.answer(status, content, description)
    }

    /// It answers with events whose data is JSON.
    pub(crate) fn streams<T: JsonSchema>(self, description: &'static str) -> Self {
        let content = Content::Events(SchemaGenerator::subschema_for::<T>);
        self.answer(200, content, description)
    }

    /// It answers with events whose data is JSON, but for the `[DONE]` that ends them.
    pub(crate) fn streams_until_done<T: JsonSchema>(self, description: &'static str) -> Self {
        let content = Content::EventsUntilDone(SchemaGenerator::subschema_for::<T>);
        self.answer(200, content, description)
    }

    /// It answers with text of a media type.
    pub(crate) fn sends(self, media_type: &'static str, description: &'static str) -> Self {
        self.answer(200, Content::Text(media_type), description)
    }

    /// It refuses with these statuses, too.
    pub(crate) fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend_from_slice(statuses);
        self
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &'static str {
        self.path
    }

    /// What it does.
    pub(crate) fn into_handler(self) -> MethodRouter<AppState> {
        self.handler
    }

    fn answer(mut self, status: u16, content: Content, description: &'static str) -> Self {
        self.answers.push(Answer {
            status,
            content,
            description,
        });
        self
    }
}
