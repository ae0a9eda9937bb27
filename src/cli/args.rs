//! Flags that several commands share.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use nucleus_engine::generate::EngineOptions;
use nucleus_engine::model::KvType;

use crate::device;
use crate::model::{KvRoom, ModelChoice, ModelOptions};
use crate::terminal::Notes;

/// The value of `--model` that names the model inside the binary.
pub(crate) const BUNDLED: &str = "bundled";

/// Which model, and on what.
pub(crate) fn model_flags() -> [Arg; 3] {
    let model = Arg::new("model")
        .short('m')
        .long("model")
        .value_name("PATH")
        .help(if cfg!(feature = "bundled-model") {
            "A GGUF file, a directory of safetensors files, or \"bundled\" for the model inside this program [default: bundled]"
        } else {
            "A GGUF file, or a directory of safetensors files"
        });
    let threads = Arg::new("threads")
        .long("threads")
        .value_name("N")
        .value_parser(value_parser!(u16).range(1..=1024))
        .help("Threads to compute with [default: one per core]");
    [model, threads, device::flag()]
}

/// What [`model_flags`] said.
pub(crate) fn model_options(matches: &ArgMatches) -> anyhow::Result<ModelOptions> {
    let choice = model_choice(matches.get_one::<String>("model").map(String::as_str))?;
    Ok(ModelOptions {
        kv_tokens: None,
        kv_type: KvType::default(),
        kv_room: KvRoom::One,
        engine: EngineOptions::default(),
        choice,
        device: device::choice(matches),
        threads: matches
            .get_one::<u16>("threads")
            .and_then(|&threads| NonZeroUsize::new(threads.into())),
    })
}

/// The model of that name: a file, [`BUNDLED`], or none given.
pub(crate) fn model_choice(name: Option<&str>) -> anyhow::Result<ModelChoice> {
    match name {
        None => ModelChoice::without_flag(),
        Some(BUNDLED) => ModelChoice::bundled(),
        Some(path) => Ok(ModelChoice::Path(PathBuf::from(path))),
    }
}

/// Most tokens to generate.
pub(crate) fn max_tokens_flag(default: &'static str) -> Arg {
    Arg::new("max_tokens")
        .short('n')
        .long("max-tokens")
        .value_name("N")
        .value_parser(value_parser!(u32).range(1..))
        .default_value(default)
        .help("Most tokens to generate; the end of the model's context ends the text too")
}

/// What [`max_tokens_flag`] said.
pub(crate) fn max_tokens(matches: &ArgMatches) -> usize {
    *matches
        .get_one::<u32>("max_tokens")
        .expect("the flag has a default") as usize
}

/// Strings that end the text.
pub(crate) fn stop_flag() -> Arg {
    Arg::new("stop")
        .long("stop")
        .value_name("TEXT")
        .action(ArgAction::Append)
        .allow_hyphen_values(true)
        .help("End the text before this string; may be repeated")
}

/// What [`stop_flag`] said.
pub(crate) fn stop(matches: &ArgMatches) -> Vec<String> {
    matches
        .get_many::<String>("stop")
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

/// Machine-readable output.
pub(crate) fn json_flag(help: &'static str) -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help(help)
}

/// Silence on standard error.
pub(crate) fn quiet_flag() -> Arg {
    Arg::new("quiet")
        .short('q')
        .long("quiet")
        .action(ArgAction::SetTrue)
        .help("Write nothing but errors to standard error")
}

/// What [`quiet_flag`] said.
pub(crate) fn notes(matches: &ArgMatches) -> Notes {
    Notes::new(matches.get_flag("quiet"))
}
