//! The command line: which commands there are. Each command's module holds its flags and what it does.

pub(crate) mod args;
pub(crate) mod sampling;

use clap::{ArgMatches, Command};

use crate::{bench, chat, completions, doctor, explain, generate, inspect, sample, serve};

/// A command: its flags, and what it does with them.
struct Entry {
    command: fn() -> Command,
    run: fn(&ArgMatches) -> anyhow::Result<()>,
}

/// Every command, in the order of the help page.
const ENTRIES: &[Entry] = &[
    Entry {
        command: generate::command,
        run: generate::run,
    },
    Entry {
        command: chat::command,
        run: chat::run,
    },
    Entry {
        command: serve::command,
        run: serve::run,
    },
    Entry {
        command: inspect::command,
        run: inspect::run,
    },
    Entry {
        command: sample::command,
        run: sample::run,
    },
    Entry {
        command: explain::command,
        run: explain::run,
    },
    Entry {
        command: bench::command,
        run: bench::run,
    },
    Entry {
        command: doctor::command,
        run: doctor::run,
    },
    Entry {
        command: completions::command,
        run: completions::run,
    },
];

const EXAMPLES: &str = "\
Examples:
  nucleus generate \"Once upon a time\"
  nucleus chat --model model.gguf
  nucleus explain --logits row.npy --params params.json

Exit codes: 0 done, 1 a file or the model failed, 2 the command line is wrong.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("nucleus")
        .version(clap::crate_version!())
        .about("An LLM inference worker with exact, reproducible sampling")
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(ENTRIES.iter().map(|entry| (entry.command)()))
}

/// Runs the command that was typed. A command line that cannot be read ends the program here, with exit code 2.
pub(crate) fn run() -> anyhow::Result<()> {
    let matches = command().get_matches();
    let (name, matches) = matches.subcommand().expect("a subcommand is required");
    let entry = ENTRIES
        .iter()
        .find(|entry| (entry.command)().get_name() == name);
    (entry
        .expect("clap knows only the commands of the table")
        .run)(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_has_a_line_of_help_and_an_example() {
        let mut all: Vec<Command> = command().get_subcommands().cloned().collect();
        while let Some(command) = all.pop() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            if command.has_subcommands() {
                all.extend(command.get_subcommands().cloned());
            } else {
                let examples = command.get_after_help().expect("examples").to_string();
                assert!(
                    examples.contains(&format!("{} ", command.get_name())),
                    "{}",
                    command.get_name()
                );
            }
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    arg.get_id()
                );
            }
        }
    }
}
