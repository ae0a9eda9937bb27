//! `nucleus serve`: the HTTP worker.

mod settings;

use std::io::{self, Write};
use std::num::NonZeroUsize;

use clap::{ArgMatches, Command};
use nucleus_engine::generate::EngineThread;
use nucleus_server::{ServeError, Server};
use tracing_subscriber::EnvFilter;

use crate::cli::args;
use crate::failure::usage;
use crate::model::{self, KvRoom, ModelOptions};
use crate::terminal::{Notes, Style};
use settings::Settings;

const ABOUT: &str = "Serve a model over HTTP";

const DETAILS: &str = "\
POST /execute streams a generation as server-sent events, POST /cancel ends one; /v1/completions, /v1/chat/completions and \
/v1/models are OpenAI's, /completion, /tokenize and their like llama.cpp's; GET /health says how the worker is, GET /metrics what it has measured, GET /docs shows every endpoint. \
Without an API key the server listens on loopback addresses only. At SIGTERM or ctrl-c it takes no more requests and lets those \
that run come to their end; a second signal stops it at once.

Every setting is a flag, a variable of the environment (NUCLEUS_MAX_WAITING) and a key of a TOML file (max_waiting); a flag counts more than \
the environment, and that more than the file.

RUST_LOG sets how much is logged on standard error (default: info).";

const EXAMPLES: &str = "\
Examples:
  nucleus serve
  nucleus serve --model model.gguf --port 9000 --kv-tokens 65536
  NUCLEUS_API_KEY=secret nucleus serve --host 0.0.0.0
  nucleus serve --print-config > worker.toml && nucleus serve --config worker.toml
  curl -N --json '{\"prompt\": \"Once upon a time\", \"max_tokens\": 40}' localhost:8080/execute";

/// Requests without `max_tokens` may fill a context each; this many of them run side by side unless `--kv-tokens` is given.
const KV_CONTEXTS: usize = 8;

/// The command's flags.
pub(crate) fn command() -> Command {
    Command::new("serve")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(settings::flags())
        .arg(args::quiet_flag())
}

/// Serves until it is told to end, or only says with what settings it would.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let notes = args::notes(matches);
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect::<Vec<_>>();
    let resolved = settings::resolve(matches, &environment)?;
    resolved.notes.iter().for_each(|note| notes.say(note));
    if matches.get_flag("print_config") {
        return Ok(write!(io::stdout(), "{resolved}")?);
    }
    run_with(resolved.settings, notes)
}

fn run_with(settings: Settings, notes: Notes) -> anyhow::Result<()> {
    let loaded = model::load(&options(&settings)?, notes)?;
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let server = Server::bind(settings.server, loaded.engine)
            .await
            .map_err(classify)?
            .with_chat_template(loaded.chat_template);
        serve(server, loaded.thread, notes).await
    });
    // A request that waits for an engine in the middle of a step must not keep the program from ending.
    runtime.shutdown_background();
    ended
}

async fn serve(server: Server, thread: EngineThread, notes: Notes) -> anyhow::Result<()> {
    server
        .shutdown()
        .listen_for_signals()
        .map_err(ServeError::Signals)?;
    notes.say(&format!("listening on http://{}", server.address()));
    Ok(server.run(thread).await?)
}

fn classify(error: ServeError) -> anyhow::Error {
    match error {
        ServeError::NeedsKey { .. } => usage(error),
        other => other.into(),
    }
}

fn options(settings: &Settings) -> anyhow::Result<ModelOptions> {
    let threads = settings.threads.and_then(NonZeroUsize::new);
    let threads = threads.unwrap_or_else(|| engine_threads(cores()));
    Ok(ModelOptions {
        choice: args::model_choice(settings.model.as_deref())?,
        threads: Some(threads),
        kv_tokens: settings.kv_tokens.and_then(NonZeroUsize::new),
        kv_type: settings.kv_type,
        kv_room: KvRoom::Many(KV_CONTEXTS),
        device: settings.device,
        engine: settings.engine,
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Threads that compute beside the server: one core is left to it, but not half of two.
fn engine_threads(cores: usize) -> NonZeroUsize {
    let threads = if cores > 2 { cores - 1 } else { cores };
    NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN)
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(Style::stderr().is_coloured())
        .with_writer(io::stderr)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_left_to_the_server_where_there_are_three() {
        assert_eq!(
            [0, 1, 2, 3, 8].map(|cores| engine_threads(cores).get()),
            [1, 1, 2, 2, 7]
        );
    }
}
