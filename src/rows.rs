//! What `sample` and `explain` read: rows of logits, parameters and a history.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, ArgMatches, value_parser};
use nucleus_sampling::{
    CompiledParams, CpuSampler, LogitsRow, Sampler, SamplerState, SamplingParams, VocabInfo,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::failure::usage;
use crate::npy::{self, Array, Values};
use crate::terminal::Notes;

/// The files of one call, read and checked against each other.
#[derive(Debug)]
pub(crate) struct Inputs {
    logits: Array,
    /// The parameters, compiled for the rows' width.
    pub(crate) params: CompiledParams,
    /// The state after the history.
    pub(crate) state: SamplerState,
}

/// The tokens that precede the row: `{"prompt": [ids], "output": [ids]}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct History {
    prompt: Vec<u32>,
    output: Vec<u32>,
}

/// The flags that name the files.
pub(crate) fn flags() -> [Arg; 3] {
    let file = |name: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
    };
    [
        file("logits")
            .required(true)
            .help("Logits: a .npy array of float32 or float16, [rows, vocab] or [vocab]"),
        file("params")
            .required(true)
            .help("Parameters by name, as JSON: {\"temperature\": 0.7, \"top_p\": 0.9}"),
        file("history").help("Tokens so far, as JSON: {\"prompt\": [ids], \"output\": [ids]}"),
    ]
}

impl Inputs {
    /// Reads the files that the flags name. Everything about the parameters that deserves saying is noted.
    pub(crate) fn read(matches: &ArgMatches, notes: Notes) -> anyhow::Result<Self> {
        let path = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
        let logits = read_logits(path("logits").expect("the flag is required"))?;
        let params: SamplingParams = read_json(path("params").expect("the flag is required"))?;
        let history = path("history")
            .map(read_json::<History>)
            .transpose()?
            .unwrap_or_default();

        let vocab_size = u32::try_from(logits.columns).context("a row of logits is too wide")?;
        let params = params
            .validate(&VocabInfo::new(vocab_size))
            .map_err(usage)?;
        for warning in params.warnings() {
            notes.say(&format!("note: {warning}"));
        }
        let state = history.state(&params, vocab_size)?;
        Ok(Self {
            logits,
            params,
            state,
        })
    }

    /// The rows of logits, from the first.
    pub(crate) fn rows(&self) -> impl Iterator<Item = LogitsRow<'_>> {
        let width = self.logits.columns;
        (0..self.logits.rows).map(move |row| match &self.logits.values {
            Values::F32(values) => LogitsRow::F32(&values[row * width..][..width]),
            Values::F16(values) => LogitsRow::F16(&values[row * width..][..width]),
        })
    }

    /// The seed in use: the parameters', or the one drawn for this call.
    pub(crate) fn seed(&self) -> u64 {
        self.params.config().seed
    }
}

impl History {
    fn state(&self, params: &CompiledParams, vocab_size: u32) -> anyhow::Result<SamplerState> {
        if let Some(id) = self
            .prompt
            .iter()
            .chain(&self.output)
            .find(|&&id| id >= vocab_size)
        {
            return Err(usage(format!(
                "history: token id {id} is outside [0, {vocab_size})"
            )));
        }
        let mut state = SamplerState::new(params, &self.prompt);
        self.output.iter().for_each(|&id| state.commit_forced(id));
        Ok(state)
    }
}

fn read_logits(path: &Path) -> anyhow::Result<Array> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    npy::read(file).with_context(|| path.display().to_string())
}

/// A JSON file. JSON that says something impossible is an error of usage; a file that is not JSON is not.
fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => usage(format!("{}: {error}", path.display())),
        _ => anyhow::Error::from(error).context(format!("{} is not JSON", path.display())),
    })
}

/// The sampler that generation uses.
pub(crate) fn sampler() -> impl Sampler {
    CpuSampler::new()
}
