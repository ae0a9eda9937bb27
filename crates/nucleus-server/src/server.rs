//! The socket: listening, accepting within bounds, and ending in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nucleus_engine::chat_template::ChatTemplate;
use nucleus_engine::generate::{Engine, EngineThread};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
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

/// Connections that may wait to be accepted, as far as the system allows (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// How long a connection waits for a slot before those that idle are asked again to leave.
const CROWDED_PAUSE: Duration = Duration::from_millis(100);

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
        let listener = listen(address).map_err(refused)?;
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
    /// Somebody waits for a slot: connections between two requests end.
    crowded: Arc<Notify>,
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
            crowded: Arc::new(Notify::new()),
        }
    }

    /// Accepts connections until the server drains. As many are served at once as there are slots; one more waits for the next that is free, which
    /// is soon if a connection idles.
    async fn accept(&mut self, listener: &TcpListener) {
        let shutdown = self.shutdown.clone();
        let mut draining = pin!(shutdown.reached(Lifecycle::Draining));
        let mut waiting: Option<TcpStream> = None;
        loop {
            let slot = Arc::clone(&self.slots);
            tokio::select! {
                biased;
                () = &mut draining => return,
                Some(_) = self.open.join_next() => {}
                stream = next_connection(listener), if waiting.is_none() => waiting = Some(stream),
                slot = slot.acquire_owned(), if waiting.is_some() => {
                    let slot = slot.expect("the semaphore is never closed");
                    if let Some(stream) = waiting.take() {
                        self.open.spawn(self.connection(stream, slot));
                    }
                }
                () = make_room(&self.crowded), if waiting.is_some() => {}
            }
        }
    }

    fn connection(
        &self,
        stream: TcpStream,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + use<> {
        let router = TowerToHyperService::new(self.router.clone());
        let (limits, timeouts) = (self.limits, self.timeouts);
        let (shutdown, crowded) = (self.shutdown.clone(), Arc::clone(&self.crowded));
        async move {
            // One that was never used has a request on its way, or is cut by the time for a head.
            let is_used = AtomicBool::new(false);
            let service = service_fn(|request| {
                is_used.store(true, Ordering::Relaxed);
                router.call(request)
            });
            let stream = WriteTimeout::new(stream, timeouts.write);
            let io = TokioIo::new(OwnErrors::new(stream, limits));
            let connection = http1::Builder::new()
                .max_headers(limits.headers)
                .max_buf_size(limits.head_bytes)
                .timer(TokioTimer::new())
                .header_read_timeout(timeouts.header)
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            let mut draining = pin!(shutdown.reached(Lifecycle::Draining));
            let ended = loop {
                tokio::select! {
                    ended = connection.as_mut() => break ended,
                    () = &mut draining => {}
                    () = crowded.notified() => if !is_used.load(Ordering::Relaxed) {
                        continue;
                    },
                }
                connection.as_mut().graceful_shutdown();
                break connection.await;
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

/// Listens as [`TcpListener::bind`] does, with a longer queue: a connection that finds it full is asked for again by its client's system a second later.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A worker that is started again finds its port free. Elsewhere it would let two workers share a port.
    if cfg!(unix) {
        socket.set_reuseaddr(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Asks connections that idle to leave, for as long as somebody waits.
async fn make_room(crowded: &Notify) {
    loop {
        crowded.notify_waiters();
        sleep(CROWDED_PAUSE).await;
    }
}

/// Waits for a connection. What the system cannot accept now, it may later.
async fn next_connection(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Each token is to go out when it is there. Without it a stream is slower, not wrong.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
