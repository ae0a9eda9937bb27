//! The HTTP worker: requests in, streams of tokens out, thin over the engine.
//!
//! [`app`] is the whole interface as a service and needs no socket; [`serve`] gives it one. A request passes the
//! guards (log, panic, host, key), its body is read within bounds and parsed strictly, its fields become one internal
//! request, the engine takes or refuses it, and its events go out as they come. Every refusal is an [`ApiError`].
//!
//! | module | what it is |
//! |---|---|
//! | `app`, `guard` | the routes, and what every request passes first |
//! | `server`, `stall`, `own_errors`, `shutdown` | the socket: bounds, timeouts, errors below the endpoints, ending in order |
//! | `body`, `json`, `fields`, `param_json` | from bytes to typed, checked fields |
//! | `request` | what every endpoint's request becomes |
//! | `execute`, `cancel` | the endpoints of Nucleus |
//! | `health`, `metrics` | how the worker is |
//! | `openai` | the endpoints of OpenAI |
//! | `llamacpp` | the routes of llama.cpp's server |
//! | `compatible`, `policy`, `warnings` | what those two have in common: names and forms, fields that do not act, what the client is told of them |
//! | `output_format` | what the text of an answer must be |
//! | `sampling` | what sampling does and can do |
//! | `openapi` | how every endpoint is described |
//! | `jobs`, `sse` | which jobs run; their events |
//! | `error` | what goes wrong, and how it is answered |
//! | `config` | what an operator decides |

mod app;
mod body;
mod cancel;
mod compatible;
mod config;
mod error;
mod execute;
mod fields;
mod guard;
mod health;
mod jobs;
mod json;
mod llamacpp;
mod metrics;
mod openai;
mod openapi;
mod output_format;
mod own_errors;
mod param_json;
mod policy;
mod request;
mod sampling;
mod server;
mod shutdown;
mod sse;
mod stall;
mod warnings;

pub use app::{AppState, app};
pub use config::{ApiKey, Limits, ServerConfig, Timeouts};
pub use error::{ApiError, ErrorBody, ErrorDetail};
pub use server::{ServeError, Server, serve};
pub use shutdown::Shutdown;
