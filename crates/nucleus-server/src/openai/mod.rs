//! The endpoints of OpenAI, as its clients know them, with our further sampling parameters beside theirs.
//!
//! A body's fields become one [`Batch`](batch::Batch), whatever the endpoint: prompts, and how to continue them. What differs in
//! the answers is a [`Shape`](shape::Shape).
//!
//! | module | what it is |
//! |---|---|
//! | `chat`, `completions` | the fields that only one endpoint has |
//! | `batch` | the fields that both have; handing the request to the engine |
//! | `policy` | fields that are accepted, refused or warned of |
//! | `choice` | one continuation on its way |
//! | `logprobs` | what is said of its tokens |
//! | `shape` | how the endpoints write choices |
//! | `answer` | the whole answer, or the stream of its parts |
//! | `models` | which model there is |

mod answer;
mod batch;
mod chat;
mod choice;
mod completions;
mod logprobs;
mod models;
mod policy;
mod shape;

pub(crate) use models::system_fingerprint;

use crate::openapi::Endpoint;

pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut endpoints = vec![completions::endpoint(), chat::endpoint()];
    endpoints.extend(models::endpoints());
    endpoints
}
