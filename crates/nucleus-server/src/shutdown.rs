//! How a server ends: it drains, then it stops.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use crate::app::AppState;
use crate::body::JsonObject;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::openapi::{Bounds, Endpoint, Group, Object};

/// What the caller is told of a server that ends.
#[derive(Debug, Serialize, JsonSchema)]
struct Draining {
    /// `draining`.
    status: &'static str,
    /// Requests that run and wait now.
    unfinished: usize,
    /// How long they have to end by themselves; then they are aborted.
    drain_seconds: f64,
}

pub(crate) fn endpoints() -> [Endpoint; 1] {
    [Endpoint::post("/shutdown", shutdown)
        .group(Group::Worker)
        .says(
            "Ends the worker",
            "It takes no more requests, lets those that run come to their end, aborts them at the deadline, and exits with 0. \
             Needs an API key or `--allow-shutdown`.",
        )
        .takes(schema)
        .answers::<Draining>(202, "The worker shuts down")]
}

fn schema(_: &Bounds<'_>) -> Object {
    Object::strict().example(json!({}))
}

/// The body must be JSON, though there is nothing in it: a web page cannot send that from elsewhere.
async fn shutdown(
    State(state): State<AppState>,
    JsonObject(body): JsonObject,
) -> Result<(StatusCode, Json<Draining>), ApiError> {
    Fields::new(body).finish("no fields")?;
    if state.config.api_key.is_none() && !state.config.allow_shutdown {
        return Err(ApiError::ShutdownForbidden);
    }
    tracing::info!("shutting down: asked to over HTTP");
    let load = state.engine.load();
    state.shutdown.drain();
    let draining = Draining {
        status: "draining",
        unfinished: load.running + load.waiting,
        drain_seconds: state.config.timeouts.drain.as_secs_f64(),
    };
    Ok((StatusCode::ACCEPTED, Json(draining)))
}

/// How far a server is on its way out. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lifecycle {
    /// It takes requests.
    Serving,
    /// It takes no more, and lets those that run come to their end.
    Draining,
    /// It waits for nothing.
    Stopping,
}

/// Ends a server, from anywhere, any number of times.
#[derive(Debug, Clone)]
pub struct Shutdown {
    lifecycle: Arc<watch::Sender<Lifecycle>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            lifecycle: Arc::new(watch::Sender::new(Lifecycle::Serving)),
        }
    }
}

impl Shutdown {
    /// Takes no more requests; those that run get [`Timeouts::drain`](crate::Timeouts::drain) to end.
    pub fn drain(&self) {
        self.advance(Lifecycle::Draining);
    }

    /// Closes every connection at once.
    pub fn stop(&self) {
        self.advance(Lifecycle::Stopping);
    }

    /// Whether the server still takes requests.
    pub fn is_serving(&self) -> bool {
        *self.lifecycle.borrow() == Lifecycle::Serving
    }

    /// Waits until the server is at least that far.
    pub(crate) async fn reached(&self, wanted: Lifecycle) {
        let mut lifecycle = self.lifecycle.subscribe();
        // It cannot fail: `self` holds the sender.
        let _ = lifecycle.wait_for(|&now| now >= wanted).await;
    }

    fn advance(&self, next: Lifecycle) {
        self.lifecycle.send_if_modified(|now| {
            let moves = *now < next;
            *now = next.max(*now);
            moves
        });
    }

    /// Drains at the first SIGTERM or ctrl-c, stops at the second. Needs a tokio runtime.
    ///
    /// # Errors
    /// The system's reason not to hand over signals.
    pub fn listen_for_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new()?;
        let shutdown = self.clone();
        tokio::spawn(async move {
            signals.next().await;
            tracing::info!(
                "shutting down: running requests may end; a second signal stops at once"
            );
            shutdown.drain();
            signals.next().await;
            shutdown.stop();
        });
        Ok(())
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(windows)]
struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(windows)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: tokio::signal::windows::ctrl_c()?,
        })
    }

    async fn next(&mut self) {
        self.interrupt.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_only_goes_forward() {
        let shutdown = Shutdown::default();
        assert!(shutdown.is_serving());
        shutdown.reached(Lifecycle::Serving).await;
        shutdown.stop();
        shutdown.drain();
        assert!(!shutdown.is_serving());
        shutdown.reached(Lifecycle::Draining).await;
        shutdown.reached(Lifecycle::Stopping).await;
    }
}
