//! How the program ends: one line on standard error and an exit code.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::terminal::{Style, without_controls};

const SUCCESS: u8 = 0;
const RUNTIME: u8 = 1;
const USAGE: u8 = 2;

/// What was asked for cannot be done, whatever the files hold. Ends the program with exit code 2; every other error
/// with 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(String);

/// An error of the command line.
pub(crate) fn usage(message: impl ToString) -> anyhow::Error {
    UsageError(message.to_string()).into()
}

/// Reports how the program ended. A reader that left (`nucleus … | head`) ends it quietly.
pub(crate) fn report(result: anyhow::Result<()>) -> ExitCode {
    ExitCode::from(told(result))
}

/// Tells how the program ended; its exit code.
pub(crate) fn told(result: anyhow::Result<()>) -> u8 {
    match result {
        Ok(()) => SUCCESS,
        Err(error) if is_broken_pipe(&error) => SUCCESS,
        Err(error) => {
            let line = chain(&error);
            // Nobody is left to tell when standard error is closed too.
            let _ = writeln!(
                io::stderr(),
                "{}: {}",
                Style::stderr().red("error"),
                without_controls(&line)
            );
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<UsageError>()) {
        USAGE
    } else {
        RUNTIME
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes, outermost first. A cause that its parent's message quotes already is not repeated.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = one_line(cause);
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line
}

fn one_line(error: &dyn Error) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn missing() -> io::Error {
        io::Error::new(io::ErrorKind::NotFound, "no such file")
    }

    #[test]
    fn the_chain_is_one_line_without_repetition() {
        let error = anyhow::Error::from(missing())
            .context("cannot read\nx.gguf")
            .context("cannot load the model");
        assert_eq!(
            chain(&error),
            "cannot load the model: cannot read x.gguf: no such file"
        );
        let quoted = anyhow::Error::from(missing()).context("cannot read x.gguf: no such file");
        assert_eq!(chain(&quoted), "cannot read x.gguf: no such file");
    }

    #[test]
    fn usage_errors_keep_their_code_under_context() {
        let error = Err::<(), _>(usage("prompt is empty"))
            .context("generate")
            .unwrap_err();
        assert_eq!(exit_code(&error), USAGE);
        assert_eq!(exit_code(&missing().into()), RUNTIME);
    }

    #[test]
    fn a_broken_pipe_is_found_under_context() {
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(
            &anyhow::Error::from(pipe).context("cannot write")
        ));
        assert!(!is_broken_pipe(&missing().into()));
    }
}
