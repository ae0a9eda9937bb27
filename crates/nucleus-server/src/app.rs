//! The routes and what they share.

use std::num::NonZero;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use nucleus_engine::chat_template::ChatTemplate;
use nucleus_engine::generate::Engine;
use tokio::sync::Semaphore;

use crate::config::ServerConfig;
use crate::error::ApiError;
use crate::jobs::Jobs;
use crate::json::shorten;
use crate::metrics::Metrics;
use crate::openapi::{self, Description, Endpoint};
use crate::request::longest_prompt;
use crate::shutdown::Shutdown;
use crate::{cancel, execute, guard, health, llamacpp, metrics, openai, sampling, shutdown};

/// What every endpoint can reach. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    pub(crate) engine: Engine,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) shutdown: Shutdown,
    pub(crate) started: Instant,
    /// When the server began, in seconds of Unix time.
    pub(crate) created: u64,
    /// How the model writes a conversation down, if it does.
    pub(crate) chat_template: Option<ChatTemplate>,
    /// Bytes of the longest prompt that could fit the context.
    pub(crate) prompt_bytes: usize,
    /// What has been counted and timed.
    pub(crate) metrics: Arc<Metrics>,
    /// Leave to compile an output format: a flood of large ones takes no threads from other requests.
    pub(crate) compiling: Arc<Semaphore>,
    /// The interface as it is described, once somebody has asked.
    description: Arc<OnceLock<Description>>,
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

impl AppState {
    /// The state of a server that has just begun.
    pub fn new(engine: Engine, config: ServerConfig) -> Self {
        Self {
            prompt_bytes: longest_prompt(&engine),
            engine,
            config: Arc::new(config),
            jobs: Arc::default(),
            shutdown: Shutdown::default(),
            started: Instant::now(),
            created: unix_time(),
            chat_template: None,
            metrics: Arc::default(),
            compiling: Arc::new(Semaphore::new(processors())),
            description: Arc::default(),
        }
    }

    /// The same state with a chat template: what writes conversations down.
    #[must_use]
    pub fn with_chat_template(mut self, template: Option<ChatTemplate>) -> Self {
        self.chat_template = template;
        self
    }

    /// The interface as it is described.
    pub(crate) fn description(&self) -> &Description {
        self.description.get_or_init(|| Description::new(self))
    }

    /// The handle that ends the server.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }
}

/// Every endpoint there is, with its description.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    endpoints.extend(execute::endpoints());
    endpoints.extend(cancel::endpoints());
    endpoints.extend(openai::endpoints());
    endpoints.extend(llamacpp::endpoints());
    endpoints.extend(sampling::endpoints());
    endpoints.extend(health::endpoints());
    endpoints.extend(metrics::endpoints());
    endpoints.extend(shutdown::endpoints());
    endpoints.extend(openapi::endpoints());
    endpoints
}

/// The whole HTTP interface as a service; it needs no socket.
pub fn app(state: AppState) -> Router {
    let router = endpoints()
        .into_iter()
        .fold(Router::new(), |router, endpoint| {
            router.route(endpoint.path(), endpoint.into_handler())
        });
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(state.clone(), guard::admit))
        .layer(from_fn(guard::catch_panic))
        .layer(from_fn_with_state(state.clone(), guard::log))
        .with_state(state)
}

/// Seconds since 1970. A clock before that is at 0.
pub(crate) fn unix_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::NotFound {
        path: shorten(uri.path()),
    }
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::MethodNotAllowed {
        method: shorten(method.as_str()),
    }
}
