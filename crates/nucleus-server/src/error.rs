//! What can go wrong with a request, and the one place that says how it is answered.
//!
//! Every error, in a response or in a stream, is `{"error":{"message","type","param","code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nucleus_engine::constraint::ConstraintError;
use nucleus_engine::generate::{Engine, GenerationError, SubmitError};
use nucleus_engine::scheduler::AdmissionError;
use nucleus_sampling::{ParamError, Status};
use schemars::JsonSchema;
use serde::Serialize;

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The body is not one strict JSON object.
    #[error("body: {0}")]
    Json(String),
    /// A field that the endpoint does not have.
    #[error("{param:?}: no such field; this endpoint has {known}")]
    UnknownField {
        /// The name as given, shortened.
        param: String,
        /// The endpoint's fields.
        known: String,
    },
    /// A field that must be there is not.
    #[error("{param}: missing; it must be {expected}")]
    MissingField {
        /// The field.
        param: &'static str,
        /// What it must be.
        expected: String,
    },
    /// A field's value is of the wrong type or out of range.
    #[error("{param}: {value} is not {expected}")]
    Field {
        /// The field, with an index or key where one applies.
        param: String,
        /// The value as given, shortened.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// A field of the interface that this server is compatible with, which it does not have, with a value that matters.
    #[error("{param}: {value} is not supported here; {remedy}")]
    Unsupported {
        /// The field.
        param: &'static str,
        /// The value as given, shortened.
        value: String,
        /// What to do instead.
        remedy: String,
    },
    /// The model that is asked for is not the one that runs.
    #[error("model: {model} is not served here; this worker has {served}")]
    UnknownModel {
        /// The name as given, quoted.
        model: String,
        /// The model that runs, quoted.
        served: String,
    },
    /// Every slot is busy, and the request said that it would rather know.
    #[error("all {slots} slots are busy")]
    NoSlot {
        /// Sequences that can run at once.
        slots: usize,
    },
    /// The model does not say how a conversation is written.
    #[error("{model} has no chat template; POST /v1/completions continues a text with it")]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// The conversation cannot be written out, or is too long.
    #[error("messages: {0}")]
    Messages(String),
    /// The request is refused for its prompt's sake, which it calls by another name.
    #[error("{error}")]
    Prompting {
        /// The field that the prompt comes from.
        param: &'static str,
        /// What is wrong with it.
        error: Box<ApiError>,
    },
    /// The prompt is longer than any text that the context holds.
    #[error(
        "prompt: {bytes} bytes are more than {limit}, the most that {context_length} tokens of context can hold"
    )]
    PromptBytes {
        /// The prompt's length.
        bytes: usize,
        /// The longest token's length times the context's.
        limit: usize,
        /// The model's context in tokens.
        context_length: usize,
    },
    /// The prompt has more tokens than the operator allows.
    #[error("prompt: {tokens} tokens are more than {limit}, the most that this worker takes")]
    PromptTokens {
        /// Tokens in the prompt.
        tokens: usize,
        /// The bound.
        limit: usize,
    },
    /// The prompt cannot be tokenised.
    #[error("prompt: {0}")]
    Prompt(String),
    /// The output cannot be held to what it must be.
    #[error("{param}: {error}")]
    OutputFormat {
        /// The field that says so.
        param: &'static str,
        /// Why not.
        error: ConstraintError,
    },
    /// The engine refused the request.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The engine accepted the request, then failed.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The API key is missing or wrong.
    #[error("the API key is missing or wrong; send it as `Authorization: Bearer KEY`")]
    Unauthorized,
    /// The `Host` header names a host that this server does not answer for.
    #[error("host: {host} is not a name of this server; see --allowed-host")]
    ForbiddenHost {
        /// The host as given, quoted.
        host: String,
    },
    /// Anyone on this machine could end the server.
    #[error("only a worker with an API key, or with --allow-shutdown, can be ended over HTTP")]
    ShutdownForbidden,
    /// What came is not HTTP/1.1.
    #[error("the request is not HTTP/1.1")]
    NotHttp,
    /// The request's head is too large.
    #[error("the request's head has more than {bytes} bytes or {headers} header fields")]
    HeadTooLarge {
        /// The bound of its bytes.
        bytes: usize,
        /// The bound of its fields.
        headers: usize,
    },
    /// The request's target is too long.
    #[error("the request's target is too long")]
    UriTooLong,
    /// Nothing is at this path.
    #[error("{path}: no such endpoint; GET /docs shows those there are")]
    NotFound {
        /// The path as given, quoted.
        path: String,
    },
    /// The endpoint exists, the method does not.
    #[error(
        "{method}: this endpoint does not take this method; the header allow says which it takes"
    )]
    MethodNotAllowed {
        /// The method as given.
        method: String,
    },
    /// The body did not arrive in time.
    #[error("the body did not arrive within {seconds} s")]
    BodyTimeout {
        /// The bound, in seconds.
        seconds: f64,
    },
    /// The body ended early.
    #[error("the body could not be read: {0}")]
    BodyInterrupted(String),
    /// A job of that name runs.
    #[error("job_id: {job_id:?} is running; wait for its end, cancel it, or choose another")]
    JobRunning {
        /// The job.
        job_id: String,
    },
    /// The body is too large.
    #[error("the body has more than {limit} bytes")]
    BodyTooLarge {
        /// The bound.
        limit: usize,
    },
    /// The body is not declared as plain JSON.
    #[error("{header}: {value} is not {expected}")]
    UnsupportedMediaType {
        /// The header.
        header: &'static str,
        /// Its value, quoted.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A fault of ours.
    #[error("internal error")]
    Internal,
}

/// How an error is answered.
struct Answer<'a> {
    status: StatusCode,
    code: &'static str,
    param: Option<&'a str>,
}

impl ApiError {
    /// A field's value is not what it must be.
    pub(crate) fn field(param: impl Into<String>, value: String, expected: &str) -> Self {
        Self::Field {
            param: param.into(),
            value,
            expected: expected.into(),
        }
    }

    /// The same error of a request whose prompt comes from that field: where it blames the prompt, it means the field.
    pub(crate) fn about(self, param: &'static str) -> Self {
        if self.answer().param == Some("prompt") {
            Self::Prompting {
                param,
                error: Box::new(self),
            }
        } else {
            self
        }
    }

    /// The model cannot chat.
    pub(crate) fn no_chat_template(engine: &Engine) -> Self {
        Self::NoChatTemplate {
            model: engine.spec().name.clone(),
        }
    }

    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        self.answer().status
    }

    /// The error as it is written in a response or an event.
    pub fn body(&self) -> ErrorBody {
        let answer = self.answer();
        ErrorBody {
            error: ErrorDetail {
                message: self.to_string(),
                kind: kind(answer.status),
                param: answer.param.map(str::to_owned),
                code: answer.code,
            },
        }
    }

    fn answer(&self) -> Answer<'_> {
        use StatusCode as S;
        let about = |status, code, param| Answer {
            status,
            code,
            param,
        };
        match self {
            Self::Json(_) => about(S::BAD_REQUEST, "invalid_json", None),
            Self::UnknownField { param, .. } => about(S::BAD_REQUEST, "unknown_field", Some(param)),
            Self::MissingField { param, .. } => about(S::BAD_REQUEST, "missing_field", Some(param)),
            Self::Field { param, .. } => about(S::BAD_REQUEST, "invalid_value", Some(root(param))),
            Self::Unsupported { param, .. } => {
                about(S::BAD_REQUEST, "unsupported_value", Some(param))
            }
            Self::UnknownModel { .. } => about(S::NOT_FOUND, "model_not_found", Some("model")),
            Self::NoSlot { .. } => about(S::SERVICE_UNAVAILABLE, "no_slot", None),
            Self::NoChatTemplate { .. } => about(S::BAD_REQUEST, "no_chat_template", None),
            Self::Messages(_) => about(S::BAD_REQUEST, "invalid_value", Some("messages")),
            Self::Prompting { param, error } => Answer {
                param: Some(param),
                ..error.answer()
            },
            Self::PromptBytes { .. } => {
                about(S::BAD_REQUEST, "context_length_exceeded", Some("prompt"))
            }
            Self::PromptTokens { .. } => {
                about(S::BAD_REQUEST, "context_length_exceeded", Some("prompt"))
            }
            Self::Prompt(_) => about(S::BAD_REQUEST, "invalid_value", Some("prompt")),
            Self::OutputFormat {
                error: ConstraintError::Thread(_),
                ..
            } => about(S::INTERNAL_SERVER_ERROR, "internal_error", None),
            Self::OutputFormat { param, .. } => about(S::BAD_REQUEST, "invalid_value", Some(param)),
            Self::Submit(error) => submit_answer(error),
            Self::Generation(error) => {
                about(generation_status(error), generation_code(error), None)
            }
            Self::Unauthorized => about(S::UNAUTHORIZED, "invalid_api_key", None),
            Self::ForbiddenHost { .. } => about(S::FORBIDDEN, "forbidden_host", None),
            Self::ShutdownForbidden => about(S::FORBIDDEN, "shutdown_forbidden", None),
            Self::NotHttp => about(S::BAD_REQUEST, "invalid_http", None),
            Self::HeadTooLarge { .. } => {
                about(S::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", None)
            }
            Self::UriTooLong => about(S::URI_TOO_LONG, "uri_too_long", None),
            Self::NotFound { .. } => about(S::NOT_FOUND, "not_found", None),
            Self::MethodNotAllowed { .. } => {
                about(S::METHOD_NOT_ALLOWED, "method_not_allowed", None)
            }
            Self::BodyTimeout { .. } => about(S::REQUEST_TIMEOUT, "body_timeout", None),
            Self::BodyInterrupted(_) => about(S::BAD_REQUEST, "body_interrupted", None),
            Self::JobRunning { .. } => about(S::CONFLICT, "job_running", Some("job_id")),
            Self::BodyTooLarge { .. } => about(S::PAYLOAD_TOO_LARGE, "body_too_large", None),
            Self::UnsupportedMediaType { .. } => {
                about(S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", None)
            }
            Self::Internal => about(S::INTERNAL_SERVER_ERROR, "internal_error", None),
        }
    }
}

/// The field that an indexed or keyed name belongs to: `stop` for `stop[2]`.
fn root(param: &str) -> &str {
    param.split(['[', '.']).next().unwrap_or(param)
}

/// The `type` of an error, by its status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

fn submit_answer(error: &SubmitError) -> Answer<'_> {
    let refused = |code, param| Answer {
        status: StatusCode::BAD_REQUEST,
        code,
        param: Some(param),
    };
    let unavailable = |code| Answer {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code,
        param: None,
    };
    match error {
        SubmitError::Params(error) => refused(param_code(error), error.param()),
        SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. } => {
            refused("invalid_value", "prompt")
        }
        SubmitError::PromptTooLong { .. } => refused("context_length_exceeded", "prompt"),
        SubmitError::Stop(_) => refused("invalid_value", "stop"),
        SubmitError::UnknownStopToken { .. } | SubmitError::StopTokensWithoutEnd => {
            refused("invalid_value", "stop_token_ids")
        }
        SubmitError::Admission(AdmissionError::TooLong { .. }) => {
            refused("cache_size_exceeded", "max_tokens")
        }
        SubmitError::Admission(AdmissionError::QueueFull { .. }) => Answer {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "queue_full",
            param: None,
        },
        SubmitError::ShuttingDown => unavailable("shutting_down"),
        SubmitError::Failed(_) => unavailable("device_lost"),
    }
}

fn param_code(error: &ParamError) -> &'static str {
    match error {
        ParamError::Unknown { .. } => "unknown_field",
        _ => "invalid_value",
    }
}

/// Not a number is what a model gives that is broken. Otherwise the request's own parameters have left nothing to draw from, or
/// made a logit too large: whether they would depended on the model's logits, so that they could not be refused before.
fn generation_status(error: &GenerationError) -> StatusCode {
    match error {
        GenerationError::Row { status, .. } if *status != Status::Nan => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        GenerationError::Constraint(_) => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn generation_code(error: &GenerationError) -> &'static str {
    match error {
        GenerationError::Row { .. } => "nothing_to_draw",
        GenerationError::Constraint(_) => "output_format_failed",
        GenerationError::Model(_) => "model_failed",
        GenerationError::DeviceLost(_) => "device_lost",
        GenerationError::EngineStopped => "engine_stopped",
    }
}

/// An error as it is written: `{"error":{…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ErrorDetail {
    /// One sentence that names the field, its value and what it must be.
    pub message: String,
    /// The kind of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field at fault.
    pub param: Option<String>,
    /// The error's name for programs, such as `queue_full`.
    pub code: &'static str,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            // The rest of the body is not read, so the connection cannot be used again.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_four_fields_and_names_the_field_without_its_index() {
        let error = ApiError::field("stop[2]", "\"\"".into(), "a string of 1 to 1024 bytes");
        assert_eq!(
            serde_json::to_string(&error.body()).unwrap(),
            r#"{"error":{"message":"stop[2]: \"\" is not a string of 1 to 1024 bytes","type":"invalid_request_error","param":"stop","code":"invalid_value"}}"#
        );
    }

    #[test]
    fn the_kind_follows_the_status() {
        let of = |error: ApiError| (error.status().as_u16(), error.body().error.kind);
        assert_eq!(of(ApiError::Unauthorized), (401, "authentication_error"));
        assert_eq!(of(SubmitError::ShuttingDown.into()), (503, "server_error"));
        let full = AdmissionError::QueueFull {
            waiting: 2,
            limit: 2,
        };
        assert_eq!(
            of(SubmitError::from(full).into()),
            (429, "rate_limit_error")
        );
        assert_eq!(
            of(ApiError::JobRunning { job_id: "a".into() }),
            (409, "invalid_request_error")
        );
        assert_eq!(
            of(GenerationError::EngineStopped.into()),
            (500, "server_error")
        );
    }

    #[test]
    fn an_overloaded_server_says_when_to_come_back() {
        let response = ApiError::from(SubmitError::ShuttingDown).into_response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
