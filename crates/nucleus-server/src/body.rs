//! A request's body: declared as JSON, read within a size and a time, parsed strictly.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use crate::app::AppState;
use crate::error::ApiError;
use crate::json::{self, quote};

/// The JSON object in a request's body.
pub(crate) struct JsonObject(pub(crate) Map<String, Value>);

impl FromRequest<AppState> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        check_media_type(&head.headers)?;
        let limit = state.config.limits.body_bytes;
        check_declared_length(&head.headers, limit)?;
        let within = state.config.timeouts.body;
        let bytes = tokio::time::timeout(within, read(body, limit))
            .await
            .map_err(|_| ApiError::BodyTimeout {
                seconds: within.as_secs_f64(),
            })??;
        json::parse_object(&bytes).map(Self).map_err(ApiError::Json)
    }
}

/// Only `application/json`, not compressed. A web page of another origin cannot send that without
/// asking first, and a compressed body could be far larger than it looks.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = |name| {
        headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or("?"))
    };
    let media_type = given(header::CONTENT_TYPE);
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(unsupported(
            "content-type",
            media_type,
            "application/json (curl: --json)",
        ));
    }
    let encoding = given(header::CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(unsupported(
            "content-encoding",
            encoding,
            "identity (no compression)",
        ));
    }
    Ok(())
}

fn unsupported(header: &'static str, value: &str, expected: &'static str) -> ApiError {
    ApiError::UnsupportedMediaType {
        header,
        value: quote(value),
        expected,
    }
}

/// Refuses a body by its declared length when it is too large even to be read and thrown away.
fn check_declared_length(headers: &HeaderMap, limit: usize) -> Result<(), ApiError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match declared {
        Some(bytes) if discarded_at_most(limit) < bytes => Err(ApiError::BodyTooLarge { limit }),
        _ => Ok(()),
    }
}

/// How much of a body is read when only `limit` is accepted. Many clients look at the answer only once
/// they have sent everything: what is a little too large is read to its end and dropped, so that they get one.
fn discarded_at_most(limit: usize) -> usize {
    limit.saturating_mul(8).max(64 << 20)
}

/// Collects the body's bytes, at most `limit` of them.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut seen = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk: Bytes = chunk.map_err(|error| ApiError::BodyInterrupted(error.to_string()))?;
        seen = seen.saturating_add(chunk.len());
        if seen <= limit {
            bytes.extend_from_slice(&chunk);
        } else if seen > discarded_at_most(limit) {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if seen > limit {
        Err(ApiError::BodyTooLarge { limit })
    } else {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(content_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
    }

    #[test]
    fn only_json_is_accepted() {
        for accepted in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
        ] {
            assert_eq!(check_media_type(&headers(accepted)), Ok(()), "{accepted}");
        }
        for refused in [
            "",
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonx",
        ] {
            assert!(check_media_type(&headers(refused)).is_err(), "{refused}");
        }
        let mut compressed = headers("application/json");
        compressed.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert!(check_media_type(&compressed).is_err());
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit() {
        assert_eq!(read(Body::from("1234"), 4).await, Ok(b"1234".to_vec()));
        assert_eq!(
            read(Body::from("12345"), 4).await,
            Err(ApiError::BodyTooLarge { limit: 4 })
        );
    }
}
