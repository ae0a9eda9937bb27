//! The HTTP worker, driven from outside: as a service, and behind a socket.

mod bundled;
mod connections;
mod execute;
mod refusals;
mod streams;
mod support;
