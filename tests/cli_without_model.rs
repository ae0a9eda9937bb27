//! A program that was built without a model: `cargo test --no-default-features`.
#![cfg(not(feature = "bundled-model"))]

mod support;

use support::run;

#[test]
fn a_model_must_be_named() {
    run(&["generate", "Once upon a time"]).refused(2, &["no model", "--model"]);
    run(&["chat"]).refused(2, &["no model", "--model"]);
    run(&["generate", "a", "--model", "bundled"]).refused(2, &["bundled-model", "--model"]);
}

#[test]
fn commands_without_a_model_work() {
    assert_eq!(run(&["completions", "bash"]).code, 0);
}
