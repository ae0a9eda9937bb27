//! The socket: listening, accepting within bounds, and ending in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nucleus_engine::chat_template::ChatTemplate;
use nucleus_engine::generate::{Engine, EngineThread};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::app::{AppState, app};
use crate::config::{Limits, ServerConfig, Timeouts};
use crate::own_errors::OwnErrors;
use crate::shutdown::{Lifecycle, Shutdown};
use crate::stall::WriteTimeout;

/// How long the last events of aborted requests may take to reach their clients.
const FLUSH: Duration = Duration::from_secs(1);

/// How long to wait when the system cannot accept, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a server could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Anyone who can reach the address could use the server.
    #[error(
        "{address} can be reached from other machines: give an API key, or listen on 127.0.0.1"
    )]
    NeedsKey {
        /// The address that was asked for.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// The system's reason.
        error: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
    /// The engine ended though nobody had asked it to: the device was lost, or a fault of ours.
    #[error("the engine has failed, and every request with it: {reason}")]
    EngineFailed {
        /// What went wrong.
        reason: String,
    },
}

/// A server that listens and does not yet accept.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: AppState,
}

/// Serves until SIGTERM or ctrl-c: [`Server::bind`], then [`Server::run`].
///
/// # Errors
/// See [`ServeError`].
pub async fn serve(
    config: ServerConfig,
    engine: Engine,
    thread: EngineThread,
) -> Result<(), ServeError> {
    let server = Server::bind(config, engine).await?;
    server
        .shutdown()
        .listen_for_signals()
        .map_err(ServeError::Signals)?;
    server.run(thread).await
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// [`ServeError::NeedsKey`] for an address that is not loopback when there is no key, [`ServeError::Bind`] if the
    /// system refuses.
    pub async fn bind(config: ServerConfig, engine: Engine) -> Result<Self, ServeError> {
        let address = config.address;
        if !address.ip().is_loopback() && config.api_key.is_none() {
            return Err(ServeError::NeedsKey { address });
        }
        let refused = |error| ServeError::Bind { address, error };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self {
            listener,
            address,
            state: AppState::new(engine, config),
        })
    }

    /// The same server with a chat template: what writes conversations down.
    #[must_use]
    pub fn with_chat_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.state = self.state.with_chat_template(template);
        self
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that ends the server.
    pub fn shutdown(&self) -> Shutdown {
        self.state.shutdown.clone()
    }

    /// Serves until it is shut down: no more connections and requests then, those that run end by themselves within
    /// [`Timeouts::drain`], or are aborted.
    ///
    /// # Errors
    /// [`ServeError::EngineFailed`] if the engine's thread ended unasked.
    pub async fn run(self, thread: EngineThread) -> Result<(), ServeError> {
        let Self {
            listener, state, ..
        } = self;
        let mut engine_ended = pin!(end_of(thread));
        let mut connections = Connections::new(&state);
        let unexpected = tokio::select! {
            () = connections.accept(&listener) => false,
            _ = &mut engine_ended => state.shutdown.is_serving(),
        };
        if unexpected {
            tracing::error!("the engine stopped unexpectedly");
            // Whoever asks while the streams are told, hears why.
            let _ = timeout(FLUSH, connections.accept(&listener)).await;
        }
        drop(listener);
        state.shutdown.drain();
        state.engine.shutdown(false);
        if unexpected {
            connections.end_within(FLUSH).await;
            let reason = state.engine.failure().unwrap_or("it stopped").to_owned();
            return Err(ServeError::EngineFailed { reason });
        }
        connections.end_within(state.config.timeouts.drain).await;
        state.engine.shutdown(true);
        connections.end_within(FLUSH).await;
        connections.close().await;
        Ok(())
    }
}

/// Ends when the engine's thread has; its result is whether that was without a panic.
fn end_of(thread: EngineThread) -> impl Future<Output = bool> {
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: a blocking task would keep the runtime from ending before the engine does.
    std::thread::spawn(move || sender.send(thread.join()));
    async { receiver.await.unwrap_or(false) }
}

/// The open connections.
struct Connections {
    open: JoinSet<()>,
    slots: Arc<Semaphore>,
    router: Router,
    limits: Limits,
    timeouts: Timeouts,
    shutdown: Shutdown,
}

impl Connections {
    fn new(state: &AppState) -> Self {
        Self {
            open: JoinSet::new(),
            slots: Arc::new(Semaphore::new(state.config.limits.connections)),
            router: app(state.clone()),
            limits: state.config.limits,
            timeouts: state.config.timeouts,
            shutdown: state.shutdown.clone(),
        }
    }

    /// Accepts connections, as many at once as there are slots, until the server drains.
    async fn accept(&mut self, listener: &TcpListener) {
        let shutdown = self.shutdown.clone();
        let mut draining = pin!(shutdown.reached(Lifecycle::Draining));
        loop {
            tokio::select! {
                biased;
                () = &mut draining => return,
                Some(_) = self.open.join_next() => {}
                (stream, slot) = next_connection(listener, &self.slots) => {
                    self.open.spawn(self.connection(stream, slot));
                }
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<> {
        let service = TowerToHyperService::new(self.router.clone());
        let (limits, timeouts) = (self.limits, self.timeouts);
        let shutdown = self.shutdown.clone();
        async move {
            let stream = WriteTimeout::new(stream, timeouts.write);
            let io = TokioIo::new(OwnErrors::new(stream, limits));
            let connection = http1::Builder::new()
                .max_headers(limits.headers)
                .max_buf_size(limits.head_bytes)
                .timer(TokioTimer::new())
                .header_read_timeout(timeouts.header)
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = shutdown.reached(Lifecycle::Draining) => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "connection closed");
            }
            drop(slot);
        }
    }

    /// Waits until every connection has ended, or for `limit`, or until the server is told to stop at once.
    async fn end_within(&mut self, limit: Duration) {
        let shutdown = self.shutdown.clone();
        let all_ended = async { while self.open.join_next().await.is_some() {} };
        tokio::select! {
            () = all_ended => {}
            () = sleep(limit) => {}
            () = shutdown.reached(Lifecycle::Stopping) => {}
        }
    }

    /// Closes what is still open.
    async fn close(&mut self) {
        self.open.shutdown().await;
    }
}

/// Waits for a free slot, then for a connection. What the system cannot accept now, it may later.
async fn next_connection(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Each token is to go out when it is there. Without it a stream is slower, not wrong.
                let _ = stream.set_nodelay(true);
                return (stream, slot);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
