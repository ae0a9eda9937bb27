//! The HTTP worker, driven from outside: as a service, and behind a socket.

mod bundled;
mod connections;
mod execute;
mod limits;
mod llamacpp;
mod metrics;
mod openai;
mod openapi;
mod refusals;
mod sampling;
mod streams;
mod support;
