//! Models, paged KV cache, scheduler and generation loop of the Nucleus worker.
//!
//! The life of a token: [`scheduler`] picks the rows of a step, a [`model`] turns them into logits, the sampler of
//! `nucleus-sampling` turns each row of logits into one token, and [`generate`] commits it: text, stops, events.
//!
//! | module | what it is |
//! |---|---|
//! | [`gguf`] | model files: a header reader that trusts nothing it reads |
//! | [`checkpoint`] | directories of safetensors files, read as carefully |
//! | [`model_source`] | a model by its path: one or the other |
//! | [`tokenizer`] | text to token ids and back, from the model file's own vocabulary |
//! | [`chat_template`] | messages to a prompt |
//! | [`detokenizer`] | token ids to text, one token at a time, never half a character |
//! | [`stop`] | stop strings, matched on text across token borders |
//! | [`constraint`] | constrained decoding: the tokens with which a text can still become JSON of a schema, a match, a sentence of a grammar |
//! | [`breakers`] | DRY's sequence breakers: a text to the token sequences that write it |
//! | [`model`], [`models`] | what a model is to the engine; the decoders |
//! | `cuda` | a CUDA device: memory, a stream, graphs, kernels (feature `cuda`) |
//! | [`kv_cache`] | which blocks of the cache belong to which sequence (no tensors) |
//! | [`scheduler`], [`sequence`] | which sequences run in a step (no tensors) |
//! | [`generate`] | the loop, and the [`generate::Engine`] handle that requests go through |
//! | `testing` | a model that is a script (feature `testing`) |
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod breakers;
pub mod chat_template;
pub mod checkpoint;
pub mod constraint;
#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
pub mod cuda;
pub mod detokenizer;
pub mod error;
pub mod generate;
pub mod gguf;
pub mod kv_cache;
pub mod model;
pub mod model_source;
pub mod models;
pub mod scheduler;
pub mod sequence;
pub mod stop;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokenizer;
