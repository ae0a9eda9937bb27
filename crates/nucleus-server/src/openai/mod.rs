//! The endpoints of OpenAI, as its clients know them, with our further sampling parameters beside theirs.
//!
//! A body's fields become one [`Batch`](batch::Batch), whatever the endpoint: prompts, and how to continue them. What differs in
//! the answers is a [`Shape`](shape::Shape).
//!
//! | module | what it is |
//! |---|---|
//! | `chat`, `completions` | the fields that only one endpoint has |
//! | `batch` | the fields that both have; handing the request to the engine |
//! | `choice` | one continuation on its way |
//! | `candidate` | continuations that may become choices, and the best of them |
//! | `logprobs` | what is said of its tokens |
//! | `shape` | how the endpoints write choices |
//! | `answer` | the whole answer, or the stream of its parts |
//! | `models` | which model there is |

mod answer;
mod batch;
mod candidate;
mod chat;
mod choice;
mod completions;
mod logprobs;
mod models;
mod shape;

pub(crate) use models::system_fingerprint;

use crate::openapi::Endpoint;

pub(crate) use chat::{messages, messages_schema};
pub(crate) use models::check as check_model;

pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut endpoints = vec![completions::endpoint(), chat::endpoint()];
    endpoints.extend(models::endpoints());
    endpoints
}
