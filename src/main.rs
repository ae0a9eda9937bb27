//! The `nucleus` command.
//!
//! `main` → [`cli::run`] → one command's `run`. Commands read flags and files, call the engine or the sampler and print;
//! what they call lives in the `nucleus-*` crates.

mod bench;
mod chat;
mod cli;
mod completions;
mod device;
mod doctor;
mod explain;
mod failure;
mod generate;
mod inspect;
mod model;
mod npy;
mod recommended;
mod rows;
mod sample;
mod serve;
mod stream;
mod table;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    failure::report(cli::run())
}
