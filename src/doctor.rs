//! `nucleus doctor`: what this build, this machine and its GPU can do.

mod gpu;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command};
use nucleus_engine::generate::Request;
use nucleus_engine::models::{Device, vector_instructions};
use nucleus_sampling::{CpuSampler, SamplingParams};
use serde_json::{Value, json};

use crate::cli::args;
use crate::device::{self, Choice};
use crate::model::{self, ModelOptions};
use crate::stream;
use crate::terminal::Notes;
use gpu::Gpu;

const ABOUT: &str = "Say what this build, this machine and its GPU can do";

const DETAILS: &str = "\
Lists how this program was built, the processor, the driver and every GPU; draws a token on each GPU and compares it with the CPU's; and lets the model \
generate on the device that --device names. Ends with exit code 1 if that does not work: `nucleus doctor --device cuda:0` is an error without a GPU.";

const EXAMPLES: &str = "\
Examples:
  nucleus doctor
  nucleus doctor --device cuda:0 --json | jq .devices";

/// Tokens that the model generates.
const TOKENS: usize = 4;

/// The command's flags.
pub(crate) fn command() -> Command {
    let flags: Vec<Arg> = args::model_flags().into();
    Command::new("doctor")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(flags)
        .arg(args::json_flag("Print one JSON object"))
}

/// Prints what there is, then fails if what was asked for does not work.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let report = Report::of(matches);
    let text = if matches.get_flag("json") {
        format!("{}\n", report.to_json())
    } else {
        report.to_text()
    };
    io::stdout().write_all(text.as_bytes())?;
    match report.model {
        Ok(_) => Ok(()),
        Err(error) => bail!("--device {}: {error}", report.asked),
    }
}

/// Everything that was found.
struct Report {
    asked: Choice,
    gpu: Gpu,
    /// What the model did, or why it did nothing.
    model: Result<Worked, String>,
}

/// A model that has generated.
struct Worked {
    name: String,
    device: Device,
    tokens: usize,
}

impl Report {
    fn of(matches: &ArgMatches) -> Self {
        let model = generate(matches).map_err(|error| format!("{error:#}"));
        Self {
            asked: device::choice(matches),
            gpu: Gpu::find(),
            model,
        }
    }

    fn to_json(&self) -> Value {
        let Self { asked, gpu, model } = self;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "platform": platform(),
            "features": features(),
            "cuda": gpu.build_json(),
            "processor": {
                "threads": threads(),
                "models": vector_instructions(),
                "sampler": CpuSampler::vector_instructions(),
            },
            "driver": gpu.driver_json(),
            "devices": gpu.devices_json(),
            "asked": asked.to_string(),
            "model": model.as_ref().ok().map(|model| json!({
                "name": model.name,
                "device": model.device.to_string(),
                "tokens": model.tokens,
            })),
            "error": model.as_ref().err(),
        })
    }

    fn to_text(&self) -> String {
        let Self { gpu, model, .. } = self;
        let mut lines = vec![
            (
                "build",
                format!(
                    "{}, {}, {}",
                    env!("CARGO_PKG_VERSION"),
                    platform(),
                    list(&features(), "no features")
                ),
            ),
            ("GPU code", gpu.build_text()),
            (
                "processor",
                format!(
                    "{} threads; models compute with {} instructions, the sampler with {}",
                    threads(),
                    vector_instructions(),
                    CpuSampler::vector_instructions()
                ),
            ),
            ("driver", gpu.driver_text()),
        ];
        let devices = gpu.devices_text();
        lines.extend(
            devices
                .iter()
                .map(|(name, text)| (name.as_str(), text.clone())),
        );
        lines.push((
            "model",
            match model {
                Ok(model) => format!("{} generates on {}", model.name, model.device),
                Err(error) => format!("does not run: {error}"),
            },
        ));
        lines
            .into_iter()
            .map(|(name, text)| format!("{name:<10} {text}\n"))
            .collect()
    }
}

fn list(names: &[&str], none: &str) -> String {
    if names.is_empty() {
        none.to_owned()
    } else {
        format!("features {}", names.join(", "))
    }
}

fn features() -> Vec<&'static str> {
    [
        ("bundled-model", cfg!(feature = "bundled-model")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .into_iter()
    .filter_map(|(name, is_on)| is_on.then_some(name))
    .collect()
}

fn platform() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

fn threads() -> usize {
    available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Lets the model generate where it would: a few tokens, the likeliest.
fn generate(matches: &ArgMatches) -> anyhow::Result<Worked> {
    let options: ModelOptions = args::model_options(matches)?;
    let loaded = model::load(&options, Notes::new(true))?;
    let generation = loaded.submit(Request {
        prompt: loaded.encode_prompt("Once upon a time")?,
        params: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        max_tokens: Some(TOKENS),
        ..Request::default()
    })?;
    let completion =
        stream::follow(generation, |_| Ok(())).context("the model does not generate")?;
    Ok(Worked {
        name: loaded.engine.spec().name.clone(),
        device: loaded.engine.device(),
        tokens: completion.token_ids.len(),
    })
}
