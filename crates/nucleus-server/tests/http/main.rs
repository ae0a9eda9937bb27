//! The HTTP worker, driven from outside: as a service, and behind a socket.

mod bundled;
mod connections;
mod execute;
mod metrics;
mod openai;
mod openapi;
mod refusals;
mod streams;
mod support;
