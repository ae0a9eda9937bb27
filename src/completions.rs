//! `nucleus completions`: scripts that complete the command line in a shell.

use std::io::{self, Write};

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use crate::cli;

const EXAMPLES: &str = "\
Examples:
  nucleus completions bash > ~/.local/share/bash-completion/completions/nucleus
  nucleus completions zsh > ~/.zfunc/_nucleus
  nucleus completions fish > ~/.config/fish/completions/nucleus.fish";

/// The command's flags.
pub(crate) fn command() -> Command {
    let shell = Arg::new("shell")
        .value_name("SHELL")
        .value_parser(value_parser!(Shell))
        .required(true)
        .help("The shell");
    Command::new("completions")
        .about("Print a completion script for a shell")
        .after_help(EXAMPLES)
        .arg(shell)
}

/// Prints the script.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let shell = *matches
        .get_one::<Shell>("shell")
        .expect("the argument is required");
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "nucleus", &mut script);
    Ok(io::stdout().write_all(&script)?)
}
