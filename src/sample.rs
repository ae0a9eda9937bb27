//! `nucleus sample`: draws tokens from rows of logits and counts them.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use clap::{Arg, ArgMatches, Command, value_parser};
use nucleus_engine::models::Device;
#[cfg(feature = "cuda")]
use nucleus_sampling::cuda::{CudaOptions, CudaSampler};
use nucleus_sampling::{CpuSampler, LogitsRow, Row, SampledToken, Sampler, SamplerState, Status};
use serde_json::{Value, json};

use crate::cli::args;
use crate::device;
use crate::rows::{self, Inputs};
use crate::table::{Align, Table};

/// Draws that are handed to the sampler at once.
const BATCH: u32 = 256;
/// Tokens that the text form lists for a row.
const LISTED: usize = 20;

const ABOUT: &str = "Draw tokens from rows of logits and count them";

const DETAILS: &str = "\
Draws N tokens from every row, at the positions 0 to N - 1, each from the same state: the history does not grow. The same \
seed gives the same tokens. Without a seed in the parameters one is drawn and printed on standard error.

With --json: {\"rows\": [{\"counts\": [[token_id, count], ...]}, ...]}, the commonest token first. A row from which nothing \
can be drawn has no counts and says why in \"error\"; the exit code is then 1.";

const EXAMPLES: &str = "\
Examples:
  nucleus sample --logits examples/sampling/logits.npy --params examples/sampling/params.json --draws 1000
  nucleus sample --logits rows.npy --params params.json --history history.json --json";

/// The command's flags.
pub(crate) fn command() -> Command {
    let draws = Arg::new("draws")
        .long("draws")
        .value_name("N")
        .value_parser(value_parser!(u32).range(1..))
        .default_value("1")
        .help("Tokens to draw from each row");
    Command::new("sample")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(rows::flags())
        .args([
            draws,
            device::flag(),
            args::json_flag("Print one JSON object"),
            args::quiet_flag(),
        ])
}

/// Prints the counts of every row.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let notes = args::notes(matches);
    let inputs = Inputs::read(matches, notes)?;
    notes.say(&format!("seed {}", inputs.seed()));
    let draws = *matches
        .get_one::<u32>("draws")
        .expect("the flag has a default");
    let mut sampler = Drawer::new(device::choice(matches).for_rows()?)?;
    let rows = inputs
        .rows()
        .map(|logits| draw(&mut sampler, logits, &inputs, draws))
        .collect::<anyhow::Result<Vec<Drawn>>>()?;

    let mut out = BufWriter::new(io::stdout().lock());
    if matches.get_flag("json") {
        writeln!(
            out,
            "{}",
            json!({ "rows": rows.iter().map(Drawn::to_json).collect::<Vec<_>>() })
        )?;
    } else {
        for (index, row) in rows.iter().enumerate() {
            write!(out, "row {index}\n{}", row.to_text())?;
        }
    }
    out.flush()?;
    let failed = rows.iter().filter(|row| row.error.is_some()).count();
    anyhow::ensure!(
        failed == 0,
        "nothing can be drawn from {failed} of the rows"
    );
    Ok(())
}

/// What came out of one row.
#[derive(Debug, Default, PartialEq)]
struct Drawn {
    /// Token ids with the number of times each was drawn: the commonest first, equal counts by id.
    counts: Vec<(u32, u32)>,
    error: Option<String>,
}

/// The sampler of the device that was chosen.
enum Drawer {
    Cpu(Box<CpuSampler>),
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaSampler>),
}

impl Drawer {
    #[cfg(feature = "cuda")]
    fn new(device: Device) -> anyhow::Result<Self> {
        let Device::Cuda(device) = device else {
            return Ok(Self::Cpu(Box::new(CpuSampler::new())));
        };
        let options = CudaOptions {
            device,
            ..CudaOptions::default()
        };
        Ok(Self::Cuda(Box::new(CudaSampler::new(options)?)))
    }

    /// Without GPU code there is one device.
    #[cfg(not(feature = "cuda"))]
    fn new(_: Device) -> anyhow::Result<Self> {
        Ok(Self::Cpu(Box::new(CpuSampler::new())))
    }

    fn sample_batch(
        &mut self,
        rows: &[Row<'_>],
        out: &mut Vec<SampledToken>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Cpu(sampler) => sampler.sample_batch(rows, out),
            #[cfg(feature = "cuda")]
            Self::Cuda(sampler) => sampler.sample_batch(rows, out)?,
        }
        Ok(())
    }
}

fn draw(
    sampler: &mut Drawer,
    logits: LogitsRow<'_>,
    inputs: &Inputs,
    draws: u32,
) -> anyhow::Result<Drawn> {
    let mut counts = BTreeMap::new();
    let mut tokens = Vec::new();
    for first in (0..draws).step_by(BATCH as usize) {
        let states: Vec<SamplerState> = (first..draws.min(first.saturating_add(BATCH)))
            .map(|position| inputs.state.at_position(position))
            .collect();
        let rows: Vec<Row<'_>> = states
            .iter()
            .map(|state| Row::new(logits, &inputs.params, state))
            .collect();
        sampler.sample_batch(&rows, &mut tokens)?;
        if let Some(error) = count(&tokens, &mut counts) {
            return Ok(Drawn {
                counts: Vec::new(),
                error: Some(error),
            });
        }
    }
    let mut counts: Vec<(u32, u32)> = counts.into_iter().collect();
    counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    Ok(Drawn {
        counts,
        error: None,
    })
}

/// Adds the tokens to the counts; says why when there is none.
fn count(tokens: &[SampledToken], counts: &mut BTreeMap<u32, u32>) -> Option<String> {
    for token in tokens {
        if token.status != Status::Ok {
            return Some(token.status.to_string());
        }
        *counts.entry(token.token_id).or_default() += 1;
    }
    None
}

impl Drawn {
    fn to_json(&self) -> Value {
        match &self.error {
            None => json!({ "counts": self.counts }),
            Some(error) => json!({ "counts": [], "error": error }),
        }
    }

    fn to_text(&self) -> String {
        if let Some(error) = &self.error {
            return format!("  {error}\n");
        }
        let draws: u64 = self.counts.iter().map(|&(_, count)| u64::from(count)).sum();
        let mut table = Table::new([
            ("token", Align::Right),
            ("count", Align::Right),
            ("share", Align::Right),
        ]);
        for &(id, count) in self.counts.iter().take(LISTED) {
            table.push([
                id.to_string(),
                count.to_string(),
                format!("{:.4}", f64::from(count) / draws as f64),
            ]);
        }
        let more = self.counts.len().saturating_sub(LISTED);
        let rest = if more > 0 {
            format!("  and {more} more tokens\n")
        } else {
            String::new()
        };
        table.render(2) + &rest
    }
}
