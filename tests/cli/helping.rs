//! Help, completions and the version.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{nucleus, run};

#[test]
fn every_command_explains_itself_with_examples() {
    for command in [
        &["generate"][..],
        &["chat"],
        &["models", "inspect"],
        &["sample"],
        &["explain"],
        &["bench"],
        &["serve"],
        &["completions"],
    ] {
        let run = run(&[command, &["--help"]].concat());
        assert_eq!(run.code, 0, "{command:?}");
        assert!(
            run.stdout.contains("Examples:") && run.stdout.contains("Usage: nucleus"),
            "{}",
            run.stdout
        );
    }
}

#[test]
fn help_states_ranges_and_defaults() {
    let help = run(&["generate", "-h"])
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(
        help.contains("--top-p <NUMBER>") && help.contains("[0, 1], default 1"),
        "{help}"
    );
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = run(&["completions", shell]);
        assert_eq!(run.code, 0, "{shell}: {}", run.stderr);
        assert!(run.stdout.contains("repetition-penalty"), "{shell}");
    }
    run(&["completions", "cmd"]).refused(2, &["cmd"]);
}

#[test]
fn help_into_a_closed_pipe_is_quiet() {
    let mut child = nucleus(&["generate", "--help"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(
        !String::from_utf8(ended.stderr)
            .unwrap()
            .contains("panicked")
    );
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(
        run(&["--version"]).stdout,
        format!("nucleus {}\n", env!("CARGO_PKG_VERSION"))
    );
}
