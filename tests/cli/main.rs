//! The command line from outside: the real binary, on the bundled model wherever one is needed.

mod sampling;
#[cfg_attr(
    not(feature = "bundled-model"),
    allow(dead_code, reason = "most tests need a model")
)]
mod support;

#[cfg(feature = "bundled-model")]
mod chatting;
#[cfg(feature = "bundled-model")]
mod examining;
#[cfg(feature = "bundled-model")]
mod generating;
#[cfg(feature = "bundled-model")]
mod helping;
#[cfg(feature = "bundled-model")]
mod inspecting;
#[cfg(feature = "bundled-model")]
mod measuring;
#[cfg(feature = "bundled-model")]
mod model_files;
#[cfg(feature = "bundled-model")]
mod refusing;
#[cfg(all(unix, feature = "bundled-model"))]
mod serving;
#[cfg(not(feature = "bundled-model"))]
mod without_model;
#[cfg(all(unix, feature = "bundled-model"))]
#[path = "../worker/mod.rs"]
mod worker;
