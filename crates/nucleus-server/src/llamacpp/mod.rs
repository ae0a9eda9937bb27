//! The routes of llama.cpp's server, as its clients know them.
//!
//! | module | what it is |
//! |---|---|
//! | `completion` | `/completion`: its fields, and handing the request to the engine |
//! | `prompt` | the forms of a prompt |
//! | `bias` | the forms of `logit_bias` |
//! | `answer` | what is answered, whole or in parts |
//! | `probability` | what is said of tokens |
//! | `timings` | how long it took |
//! | `generation_settings` | the parameters as they act, under llama.cpp's names |
//! | `tokens` | `/tokenize`, `/detokenize`, `/apply-template` |
//! | `props` | `/props`, `/slots` |

mod answer;
mod bias;
mod completion;
mod generation_settings;
mod probability;
mod prompt;
mod props;
mod timings;
mod tokens;

use crate::openapi::Endpoint;

pub(crate) fn endpoints() -> Vec<Endpoint> {
    let mut endpoints = Vec::from(completion::endpoints());
    endpoints.extend(tokens::endpoints());
    endpoints.extend(props::endpoints());
    endpoints
}
