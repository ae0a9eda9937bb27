//! `nucleus explain`: what each stage of the sampler did with rows of logits.

use std::io::{self, BufWriter, Write};

use clap::{ArgMatches, Command};
use nucleus_engine::models::Device;
use nucleus_sampling::{Row, Sampler, Status, Trace};
use serde_json::{Value, json};

use crate::cli::args;
use crate::device::{self, Choice};
use crate::failure::usage;
use crate::rows::{self, Inputs};
use crate::table::{Align, Table};

/// Tokens of the final distribution that the text form lists.
const LISTED: usize = 10;

const ABOUT: &str =
    "Show what each sampling stage keeps of rows of logits, and which token is drawn";

const DETAILS: &str = "\
Runs the sampler once on every row and prints each stage that acted: how many tokens it kept, their share of the \
probability that it received (mass), the entropy of what is left in nats, and the largest logit left. The final \
distribution and the token that the seed draws follow. The position is the length of the history's output.

With --json, one line per row:
  {\"stages\": [{\"name\", \"kept\", \"mass\", \"entropy\", \"max_logit\"}, ...],
   \"distribution\": [[token_id, probability], ...], \"sampled\": {\"token_id\", \"position\", \"seed\"}}
A row from which nothing can be drawn has \"sampled\": null and says why in \"error\"; the exit code is then 1.";

const EXAMPLES: &str = "\
Examples:
  nucleus explain --logits examples/sampling/logits.npy --params examples/sampling/params.json
  nucleus explain --logits rows.npy --params params.json --history history.json --json";

/// The command's flags.
pub(crate) fn command() -> Command {
    Command::new("explain")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(rows::flags())
        .arg(device::flag())
        .args([
            args::json_flag("Print one JSON object per row"),
            args::quiet_flag(),
        ])
}

/// Prints every row's trace.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    if let Choice::Only(device @ Device::Cuda(_)) = device::choice(matches) {
        return Err(usage(format!(
            "--device {device}: what each stage did is told by the CPU; every device draws the same tokens"
        )));
    }
    let inputs = Inputs::read(matches, args::notes(matches))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut sampler = rows::sampler();
    let mut failed = 0_usize;
    for (index, logits) in inputs.rows().enumerate() {
        let trace = sampler.trace(&Row::new(logits, &inputs.params, &inputs.state));
        failed += usize::from(trace.sampled.status != Status::Ok);
        let explained = Explained {
            trace,
            position: inputs.state.position(),
            seed: inputs.seed(),
        };
        if matches.get_flag("json") {
            writeln!(out, "{}", explained.to_json())?;
        } else {
            write!(out, "row {index}\n{}", explained.to_text())?;
        }
    }
    out.flush()?;
    anyhow::ensure!(
        failed == 0,
        "nothing can be drawn from {failed} of the rows"
    );
    Ok(())
}

/// A row's trace, and what its draw depended on.
struct Explained {
    trace: Trace,
    position: u32,
    seed: u64,
}

impl Explained {
    fn error(&self) -> Option<String> {
        let status = self.trace.sampled.status;
        (status != Status::Ok).then(|| status.to_string())
    }

    fn to_json(&self) -> Value {
        let stages: Vec<Value> = (self.trace.stages.iter())
            .map(|stage| {
                json!({
                    "name": stage.name,
                    "kept": stage.kept,
                    "mass": stage.mass,
                    "entropy": stage.entropy,
                    "max_logit": stage.max_logit,
                })
            })
            .collect();
        let mut object =
            json!({ "stages": stages, "distribution": self.trace.distribution, "sampled": null });
        match self.error() {
            Some(error) => object["error"] = error.into(),
            None => {
                let token_id = self.trace.sampled.token_id;
                object["sampled"] =
                    json!({ "token_id": token_id, "position": self.position, "seed": self.seed });
            }
        }
        object
    }

    fn to_text(&self) -> String {
        let outcome = match self.error() {
            Some(error) => error,
            None => format!(
                "token {} is drawn at position {} with seed {}",
                self.trace.sampled.token_id, self.position, self.seed
            ),
        };
        format!(
            "{}{}  {outcome}\n",
            self.stage_table(),
            self.distribution_table()
        )
    }

    fn stage_table(&self) -> String {
        let mut table = Table::new([
            ("stage", Align::Left),
            ("kept", Align::Right),
            ("removed", Align::Right),
            ("mass", Align::Right),
            ("entropy", Align::Right),
            ("max logit", Align::Right),
            ("best removed", Align::Right),
        ]);
        for stage in &self.trace.stages {
            table.push([
                stage.name.to_owned(),
                stage.kept.to_string(),
                stage.removed.to_string(),
                format!("{:.6}", stage.mass),
                format!("{:.4}", stage.entropy),
                format!("{:.4}", stage.max_logit),
                stage
                    .first_removed
                    .map_or_else(String::new, |id| id.to_string()),
            ]);
        }
        table.render(2)
    }

    fn distribution_table(&self) -> String {
        let mut table = Table::new([("token", Align::Right), ("probability", Align::Right)]);
        for (id, probability) in self.trace.distribution.iter().take(LISTED) {
            table.push([id.to_string(), format!("{probability:.6}")]);
        }
        let more = self.trace.distribution.len().saturating_sub(LISTED);
        let rest = if more > 0 {
            format!("  and {more} more tokens\n")
        } else {
            String::new()
        };
        table.render(2) + &rest
    }
}
