//! What every request passes before its endpoint: a log line, a net for panics, the host and the key.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;

use crate::app::AppState;
use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::json::quote;

/// The endpoints that need no key: what watches a server need not be trusted with using it, and how it is used is no secret.
const OPEN_PATHS: &[&str] = &["/health", "/openapi.json", "/docs"];

/// Whether the endpoint of that path can be used without the key.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN_PATHS.contains(&path)
}

/// Logs and counts a request once its response begins.
pub(crate) async fn log(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let (status, elapsed) = (response.status().as_u16(), begun.elapsed());
    let route = route.as_ref().map_or("", MatchedPath::as_str);
    state.metrics.answered(route, status);
    // Debug, so that nothing in the path can begin a line of its own.
    tracing::info!(%method, ?path, status, ?elapsed, "request");
    response
}

/// Answers 500 where an endpoint panics. Others do not notice.
pub(crate) async fn catch_panic(request: Request, next: Next) -> Response {
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|_| ApiError::Internal.into_response())
}

/// Refuses requests for another host, and without the key where there is one.
pub(crate) async fn admit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let uri_host = request.uri().host();
    let checked = check_host(&state.config, uri_host, request.headers())
        .and_then(|()| check_key(&state.config, request.uri().path(), request.headers()));
    match checked {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Against DNS rebinding: a page whose own name is made to resolve to 127.0.0.1 sends that name. With a key it is of
/// no use, since the page does not have it.
fn check_host(
    config: &ServerConfig,
    uri_host: Option<&str>,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    if config.api_key.is_some() {
        return Ok(());
    }
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or(uri_host);
    let host = host.unwrap_or_default();
    let name = without_port(host);
    let known = ["localhost", "127.0.0.1", "[::1]"].into_iter();
    let mut allowed = known.chain(config.allowed_hosts.iter().map(String::as_str));
    if allowed.any(|allowed| allowed.eq_ignore_ascii_case(name)) {
        Ok(())
    } else {
        Err(ApiError::ForbiddenHost { host: quote(host) })
    }
}

/// `localhost` of `localhost:8080`, `[::1]` of `[::1]:8080`.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn check_key(config: &ServerConfig, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    match &config.api_key {
        Some(key) if !is_open(path) => match given_key(headers) {
            Some(given) if key.matches(given) => Ok(()),
            _ => Err(ApiError::Unauthorized),
        },
        _ => Ok(()),
    }
}

/// The key in `Authorization: Bearer KEY` or `X-Api-Key: KEY`.
fn given_key(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get("x-api-key") {
        return Some(value.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::HeaderValue;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;
    use crate::config::ApiKey;

    #[tokio::test]
    async fn c9_a_panic_in_an_endpoint_is_500() {
        async fn endpoint() {
            panic!("out of order");
        }
        let router = Router::new()
            .route("/", get(endpoint))
            .layer(from_fn(catch_panic));
        let response = router
            .oneshot(Request::new(Body::empty()))
            .await
            .expect("an answer");
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let config = ServerConfig {
            allowed_hosts: vec!["box.lan".into()],
            ..ServerConfig::default()
        };
        let check = |host| check_host(&config, None, &headers("host", host));
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST:1",
            "127.0.0.1:80",
            "[::1]:80",
            "[::1]",
            "box.lan:80",
        ] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
        ] {
            assert!(check(host).is_err(), "{host}");
        }
        assert!(check_host(&config, None, &HeaderMap::new()).is_err());
    }

    #[test]
    fn a_server_with_a_key_answers_to_any_name() {
        let config = ServerConfig {
            api_key: ApiKey::new("k"),
            ..ServerConfig::default()
        };
        assert_eq!(
            check_host(&config, None, &headers("host", "box.example")),
            Ok(())
        );
    }

    #[test]
    fn everything_but_a_few_pages_needs_the_key() {
        let config = ServerConfig {
            api_key: ApiKey::new("k"),
            ..ServerConfig::default()
        };
        let check = |path, headers: &HeaderMap| check_key(&config, path, headers);
        assert_eq!(
            check("/execute", &headers("authorization", "Bearer k")),
            Ok(())
        );
        assert_eq!(
            check("/execute", &headers("authorization", "bearer k")),
            Ok(())
        );
        assert_eq!(check("/execute", &headers("x-api-key", "k")), Ok(()));
        for path in OPEN_PATHS {
            assert_eq!(check(path, &HeaderMap::new()), Ok(()), "{path}");
        }
        for path in ["/execute", "/cancel", "/nowhere", "/health/", "/HEALTH"] {
            assert_eq!(
                check(path, &HeaderMap::new()),
                Err(ApiError::Unauthorized),
                "{path}"
            );
        }
        for value in ["Bearer K", "Bearer", "k", "Basic k", "Bearer k k"] {
            let refused = check("/execute", &headers("authorization", value));
            assert_eq!(refused, Err(ApiError::Unauthorized), "{value}");
        }
    }
}
