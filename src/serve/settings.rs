//! The settings of `nucleus serve`. Each is one row of [`SETTINGS`]: its flag, its environment variable, its key in a file, its
//! line of help and its line in `--print-config` are all made from it. A flag counts more than the environment, that more than
//! the file, and the file more than the default, which is that of the worker's own types.

mod setting;
mod table;

use std::fmt;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches};
use nucleus_engine::generate::EngineOptions;
use nucleus_engine::model::KvType;
use nucleus_server::ServerConfig;
use toml::Table;

use crate::device::Choice;
use crate::failure::usage;
use setting::{Kind, Setting};
use table::SETTINGS;

/// Variables of the environment that begin like those of the settings and are others'.
const OTHER_VARIABLES: &[&str] = &["NUCLEUS_NVCC", "NUCLEUS_CUDA_ARCHS", "NUCLEUS_CUDA_CORPUS"];

/// Everything that an operator decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) server: ServerConfig,
    pub(super) engine: EngineOptions,
    /// A GGUF file, a directory of safetensors files, or `bundled`; absent: the model inside the program.
    pub(super) model: Option<String>,
    pub(super) device: Choice,
    /// Threads to compute with; absent: one per core.
    pub(super) threads: Option<usize>,
    /// Tokens that the KV cache holds; absent: some full contexts.
    pub(super) kv_tokens: Option<usize>,
    /// What keys and values are held in.
    pub(super) kv_type: KvType,
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

/// The settings as they act.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) settings: Settings,
    /// For each row of [`SETTINGS`].
    origins: Vec<Origin>,
    /// What the operator should know.
    pub(super) notes: Vec<String>,
}

/// The flags of all settings, and `--config` and `--print-config`.
pub(super) fn flags() -> Vec<Arg> {
    let config = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .help("Read settings from this TOML file, with the flags' names (max_waiting = 64) [env: NUCLEUS_CONFIG]");
    let print = Arg::new("print_config")
        .long("print-config")
        .action(ArgAction::SetTrue)
        .help("Print every setting as it acts and where it comes from, as such a file, and end");
    let mut flags: Vec<Arg> = SETTINGS.iter().map(Setting::arg).collect();
    flags.extend([config, print]);
    flags
}

/// The settings of a command line, an environment and the file that either names.
pub(super) fn resolve(
    matches: &ArgMatches,
    environment: &[(String, String)],
) -> anyhow::Result<Resolved> {
    let variable = |name: &str| {
        let found = environment.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    };
    let mut resolved = Resolved {
        settings: Settings::default(),
        origins: vec![Origin::Default; SETTINGS.len()],
        notes: unknown_variables(environment),
    };
    let file = matches.get_one::<String>("config").map(String::as_str);
    if let Some(file) = file.or(variable("NUCLEUS_CONFIG")) {
        resolved.read_file(Path::new(file))?;
    }
    for (index, setting) in SETTINGS.iter().enumerate() {
        let name = setting.variable();
        if let Some(text) = variable(&name) {
            let values = match setting.kind {
                Kind::List { .. } => text.split(',').map(str::trim).collect(),
                _ => vec![text],
            };
            resolved.set(index, &values, Origin::Environment, &name)?;
        }
        if let Some(values) = setting.given(matches) {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            resolved.set(index, &values, Origin::Flag, &setting.flag())?;
        }
    }
    resolved.raise_step_tokens();
    Ok(resolved)
}

fn unknown_variables(environment: &[(String, String)]) -> Vec<String> {
    let known = |name: &str| {
        name == "NUCLEUS_CONFIG"
            || OTHER_VARIABLES.contains(&name)
            || SETTINGS.iter().any(|setting| setting.variable() == name)
    };
    let names = environment.iter().map(|(name, _)| name.as_str());
    names
        .filter(|name| name.starts_with("NUCLEUS_") && !known(name))
        .map(|name| format!("note: {name}: no such setting; it is ignored"))
        .collect()
}

impl Resolved {
    /// Every sequence that runs decodes in every step.
    fn raise_step_tokens(&mut self) {
        let engine = &mut self.settings.engine;
        let (tokens, least) = (engine.step_tokens, engine.max_running);
        if tokens < least {
            engine.step_tokens = least;
            let note = format!("note: step_tokens: {tokens} acts as {least}, which is max_running");
            self.notes.push(note);
        }
    }

    fn set(
        &mut self,
        index: usize,
        values: &[&str],
        origin: Origin,
        name: &str,
    ) -> anyhow::Result<()> {
        let setting = &SETTINGS[index];
        setting
            .set_texts(&mut self.settings, values)
            .map_err(|error| usage(format!("{name}: {error}")))?;
        self.origins[index] = origin;
        Ok(())
    }

    fn read_file(&mut self, path: &Path) -> anyhow::Result<()> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let table: Table = text
            .parse()
            .map_err(|error| usage(format!("{shown}: {error}")))?;
        for (key, value) in table {
            let index = SETTINGS.iter().position(|setting| setting.key == key);
            let index = index.ok_or_else(|| {
                usage(format!(
                    "{shown}: {key:?}: no such setting; nucleus serve --print-config lists them"
                ))
            })?;
            SETTINGS[index]
                .set_value(&mut self.settings, &value)
                .map_err(|error| usage(format!("{shown}: {key}: {error}")))?;
            self.origins[index] = Origin::File;
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A file that `--config` reads: every setting as it acts, with its help and where it comes from.
impl fmt::Display for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# A flag counts more than the environment, that more than the file, the file more than the default."
        )?;
        for (setting, origin) in SETTINGS.iter().zip(&self.origins) {
            let key = setting.key;
            writeln!(f, "\n# {}", setting.help)?;
            match (&setting.kind, setting.shown(&self.settings)) {
                (_, Some(value)) => writeln!(f, "{key} = {value}  # {origin}")?,
                (Kind::Secret { is_set, .. }, None) if is_set(&self.settings) => {
                    writeln!(f, "# {key} is set and not shown  # {origin}")?;
                }
                (_, None) => writeln!(f, "# {key} is not set  # {origin}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::time::Duration;

    use clap::Command;

    use super::*;

    fn resolved(flags: &[&str], environment: &[(&str, &str)]) -> Result<Resolved, String> {
        let command = Command::new("serve").args(super::flags());
        let line = [&["serve"], flags].concat();
        let matches = command
            .try_get_matches_from(line)
            .map_err(|error| error.to_string())?;
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        resolve(&matches, &environment).map_err(|error| error.to_string())
    }

    /// A file with that text, and its name.
    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("worker.toml");
        std::fs::write(&path, text).expect("a file");
        let path = path.to_str().expect("a name").to_owned();
        (folder, path)
    }

    #[test]
    fn a_flag_counts_more_than_the_environment_and_that_more_than_the_file() {
        let (_folder, path) = file("max_waiting = 3\nmax_running = 4\nport = 1\n");
        let environment = [
            ("NUCLEUS_CONFIG", path.as_str()),
            ("NUCLEUS_MAX_RUNNING", "5"),
            ("NUCLEUS_PORT", "2"),
        ];
        let resolved = resolved(&["--port", "3"], &environment).expect("settings");
        let Settings { engine, server, .. } = &resolved.settings;
        assert_eq!(
            (
                engine.max_waiting,
                engine.max_running,
                server.address.port()
            ),
            (3, 5, 3)
        );
        assert_eq!(engine.step_tokens, EngineOptions::default().step_tokens);
        let shown = resolved.to_string();
        for line in [
            "max_waiting = 3  # file",
            "max_running = 5  # environment",
            "port = 3  # flag",
            "step_tokens = 512  # default",
        ] {
            assert!(shown.contains(line), "{shown}");
        }
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let flags = [
            "--host",
            "::1",
            "--allowed-host",
            "a",
            "--allowed-host",
            "b",
            "--allow-shutdown",
            "--drain-seconds",
            "0.5",
            "--model",
            "x \"y\".gguf",
            "--api-key",
            "secret",
            "--max-prompt-tokens",
            "9",
        ];
        let first = resolved(&flags, &[]).expect("settings");
        assert!(!first.to_string().contains("secret"));
        let (_folder, path) = file(&first.to_string());
        let second = resolved(&["--config", &path], &[]).expect("settings");
        for setting in SETTINGS {
            assert_eq!(
                setting.shown(&second.settings),
                setting.shown(&first.settings),
                "{}",
                setting.key
            );
        }
        assert_eq!(
            second.settings.server.timeouts.drain,
            Duration::from_millis(500)
        );
        assert_eq!(second.settings.server.allowed_hosts, ["a", "b"]);
    }

    #[test]
    fn every_value_out_of_range_is_named_with_its_place_and_its_range() {
        for (flags, environment, expected) in [
            (
                &["--max-running", "0"][..],
                &[][..],
                "--max-running: 0 is not an integer in [1, 4294967295]",
            ),
            (
                &["--port", "70000"],
                &[],
                "--port: 70000 is not an integer in [0, 65535]",
            ),
            (
                &["--host", "nowhere"],
                &[],
                "--host: \"nowhere\" is not an IP address",
            ),
            (
                &["--device", "tpu"],
                &[],
                "--device: \"tpu\" is not auto, cpu, or cuda: with a number, such as cuda:0",
            ),
            (
                &["--body-seconds", "0"],
                &[],
                "--body-seconds: 0.0 is not a number of seconds in (0, 31536000]",
            ),
            (
                &["--body-seconds", "NaN"],
                &[],
                "--body-seconds: nan is not a number of seconds in (0, 31536000]",
            ),
            (
                &[],
                &[("NUCLEUS_MAX_WAITING", "many")],
                "NUCLEUS_MAX_WAITING: \"many\" is not an integer in [1, 4294967295]",
            ),
            (
                &[],
                &[("NUCLEUS_ALLOW_SHUTDOWN", "yes")],
                "NUCLEUS_ALLOW_SHUTDOWN: \"yes\" is not true or false",
            ),
            (
                &["--api-key", "two words"],
                &[],
                "--api-key: the value is not an API key: visible ASCII characters, at least one",
            ),
        ] {
            assert_eq!(
                resolved(flags, environment).map(|_| ()),
                Err(expected.to_owned())
            );
        }
        for (text, expected) in [
            ("max_waitng = 3", "\"max_waitng\": no such setting"),
            (
                "max_waiting = \"3\"",
                "max_waiting: \"3\" is not an integer in [1, 4294967295]",
            ),
            ("max_waiting = 3\nmax_waiting = 4", "duplicate key"),
            ("[limits]\nstops = 3", "\"limits\": no such setting"),
            (
                "allowed_host = \"a\"",
                "allowed_host: \"a\" is not a list of strings",
            ),
        ] {
            let (_folder, path) = file(text);
            let error = resolved(&["--config", &path], &[]).expect_err(text);
            assert!(
                error.starts_with(&path) && error.contains(expected),
                "{error}"
            );
        }
        assert!(
            resolved(&["--config", "absent.toml"], &[])
                .expect_err("no file")
                .contains("absent.toml")
        );
    }

    /// R4.2: the table in `docs/http-api.md`.
    #[test]
    fn the_documentation_has_every_setting() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http-api.md"));
        let mut table = "| flag | default | |\n|---|---|---|\n".to_owned();
        for setting in SETTINGS {
            let default = setting
                .shown(&Settings::default())
                .map(|value| format!("`{value}`"));
            let (flag, default, help) = (setting.flag(), default.unwrap_or_default(), setting.help);
            let _ = writeln!(table, "| `{flag}` | {default} | {help} |");
        }
        assert!(
            page.expect("the page is there").contains(&table),
            "the table should be:\n{table}"
        );
    }

    #[test]
    fn an_unknown_variable_is_noted() {
        let environment = [
            ("NUCLEUS_MAX_WAITNG", "3"),
            ("NUCLEUS_NVCC", "nvcc"),
            ("HOME", "/"),
        ];
        let resolved = resolved(&[], &environment).expect("settings");
        assert_eq!(
            resolved.notes,
            ["note: NUCLEUS_MAX_WAITNG: no such setting; it is ignored"]
        );
    }
}
