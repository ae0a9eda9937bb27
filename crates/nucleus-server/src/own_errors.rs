//! Errors that the HTTP layer answers by itself, before any endpoint: it sends a head without a body. This puts the body there
//! that every error has.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::Limits;
use crate::error::ApiError;

/// Wraps a stream that the HTTP layer writes to.
pub(crate) struct OwnErrors<S> {
    inner: S,
    limits: Limits,
    sending: Option<Replacement>,
}

/// What is sent instead of a head without a body.
struct Replacement {
    bytes: Vec<u8>,
    sent: usize,
    /// The length of what it stands for.
    replaces: usize,
}

impl<S> OwnErrors<S> {
    pub(crate) fn new(inner: S, limits: Limits) -> Self {
        Self {
            inner,
            limits,
            sending: None,
        }
    }
}

impl<S: AsyncWrite + Unpin> OwnErrors<S> {
    /// Writes `bytes`, or what stands for them. A writer that is told to wait comes back with the same bytes.
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.sending.is_none() {
            self.sending = bare_error(bytes).map(|status| Replacement {
                bytes: with_body(status, &self.limits),
                sent: 0,
                replaces: bytes.len(),
            });
        }
        let Some(replacement) = &mut self.sending else {
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        };
        while replacement.sent < replacement.bytes.len() {
            let rest = &replacement.bytes[replacement.sent..];
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => replacement.sent += count,
            }
        }
        let replaces = replacement.replaces;
        self.sending = None;
        Poll::Ready(Ok(replaces))
    }
}

/// The status of a head of an error that has no body. Errors of endpoints always have one.
fn bare_error(bytes: &[u8]) -> Option<StatusCode> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?.get(1..)?;
    let code = rest.strip_prefix(b" ")?.get(..3)?;
    let status = StatusCode::from_bytes(code).ok()?;
    let head = std::str::from_utf8(bytes).ok()?;
    let head = head.strip_suffix("\r\n\r\n")?;
    let empty = head.lines().any(|line| line == "content-length: 0");
    (status.is_client_error() && empty && !head.contains("\r\n\r\n")).then_some(status)
}

fn with_body(status: StatusCode, limits: &Limits) -> Vec<u8> {
    let error = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::HeadTooLarge {
            bytes: limits.head_bytes,
            headers: limits.headers,
        },
        StatusCode::URI_TOO_LONG => ApiError::UriTooLong,
        _ => ApiError::NotHttp,
    };
    let body = serde_json::to_string(&error.body()).expect("an error is strings");
    let (status, length) = (error.status(), body.len());
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
        .into_bytes()
}

impl<S: AsyncRead + Unpin> AsyncRead for OwnErrors<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OwnErrors<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        match (filled.next(), filled.next()) {
            (Some(only), None) => self.write(cx, only),
            _ => Pin::new(&mut self.inner).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

    /// What arrives when this is written through a pipe of four bytes.
    async fn arrives(written: &'static str) -> String {
        let (mut client, server) = duplex(4);
        let writer = tokio::spawn(async move {
            let mut server = OwnErrors::new(server, Limits::default());
            server.write_all(written.as_bytes()).await.unwrap();
        });
        let mut arrived = String::new();
        client.read_to_string(&mut arrived).await.unwrap();
        writer.await.unwrap();
        arrived
    }

    #[tokio::test]
    async fn an_error_without_a_body_gets_one() {
        let arrived = arrives(BARE).await;
        let (head, body) = arrived.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "head_too_large");
    }

    #[tokio::test]
    async fn everything_else_goes_through() {
        for text in [
            "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n",
            "data: HTTP/1.1 431\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 4",
            "",
        ] {
            assert_eq!(arrives(text).await, text);
        }
    }
}
