//! `nucleus serve`: the HTTP worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use nucleus_engine::generate::{EngineOptions, EngineThread};
use nucleus_server::{ApiKey, Limits, ServeError, Server, ServerConfig, Timeouts};
use tracing_subscriber::EnvFilter;

use crate::cli::args;
use crate::failure::usage;
use crate::model::{self, ModelOptions};
use crate::terminal::{Notes, Style};

const ABOUT: &str = "Serve a model over HTTP";

const DETAILS: &str = "\
POST /execute streams a generation as server-sent events, POST /cancel ends one, GET /health says how the worker is; \
/v1/completions, /v1/chat/completions and /v1/models are OpenAI's. Without an API key \
the server listens on loopback addresses only. At SIGTERM or ctrl-c it takes no more requests and lets those that run come to \
their end; a second signal stops it at once.

RUST_LOG sets how much is logged on standard error (default: info).";

const EXAMPLES: &str = "\
Examples:
  nucleus serve
  nucleus serve --model model.gguf --port 9000 --kv-tokens 65536
  NUCLEUS_API_KEY=secret nucleus serve --host 0.0.0.0
  curl -N --json '{\"prompt\": \"Once upon a time\", \"max_tokens\": 40}' localhost:8080/execute";

/// Requests without `max_tokens` may fill a context each; this many of them run side by side unless `--kv-tokens` is given.
const KV_CONTEXTS: usize = 8;

/// The command's flags.
pub(crate) fn command() -> Command {
    Command::new("serve")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(args::model_flags())
        .args(address_flags())
        .args(bound_flags())
        .arg(args::quiet_flag())
}

fn address_flags() -> [Arg; 4] {
    let host = Arg::new("host")
        .long("host")
        .value_name("ADDRESS")
        .value_parser(value_parser!(IpAddr))
        .default_value("127.0.0.1")
        .help("The address to listen on");
    let port = Arg::new("port")
        .long("port")
        .value_name("PORT")
        .value_parser(value_parser!(u16))
        .default_value("8080")
        .help("The port to listen on; 0 lets the system choose one");
    let api_key = Arg::new("api_key")
        .long("api-key")
        .value_name("KEY")
        .env("NUCLEUS_API_KEY")
        .hide_env_values(true)
        .help("The key that requests must carry as \"Authorization: Bearer KEY\"; better set in the environment, where others cannot see it");
    let allowed_host = Arg::new("allowed_host")
        .long("allowed-host")
        .value_name("NAME")
        .action(ArgAction::Append)
        .help("A host name that requests may name besides those of loopback; may be repeated");
    [host, port, api_key, allowed_host]
}

fn bound_flags() -> [Arg; 8] {
    let count = |id: &'static str, flag: &'static str, help: &'static str| {
        Arg::new(id)
            .long(flag)
            .value_name("N")
            .value_parser(value_parser!(u32).range(1..))
            .help(help)
    };
    let no_prefix_reuse = Arg::new("no_prefix_reuse")
        .long("no-prefix-reuse")
        .action(ArgAction::SetTrue)
        .help("Compute every prompt from its beginning, even if the cache holds it; how fast an answer comes then says nothing of earlier prompts");
    [
        count(
            "kv_tokens",
            "kv-tokens",
            "Tokens that the KV cache holds, of all requests together [default: eight full contexts, at most 32768]",
        ),
        count(
            "max_running",
            "max-running",
            "Most requests that run at once",
        )
        .default_value("64"),
        count(
            "max_waiting",
            "max-waiting",
            "Most requests that wait; more are refused",
        )
        .default_value("512"),
        count(
            "step_tokens",
            "step-tokens",
            "Most tokens in a step: a long prompt delays running streams by no more than two of these; at least --max-running",
        )
        .default_value("512"),
        no_prefix_reuse,
        count(
            "max_connections",
            "max-connections",
            "Most connections open at once; more wait",
        )
        .default_value("1024"),
        count(
            "max_body_bytes",
            "max-body-bytes",
            "Most bytes in a request",
        )
        .default_value("8388608"),
        count(
            "drain_seconds",
            "drain-seconds",
            "Time that running requests have to end once the server shuts down",
        )
        .default_value("30"),
    ]
}

/// Serves until it is told to end.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let notes = args::notes(matches);
    let config = config(matches)?;
    let loaded = model::load(&options(matches)?, notes)?;
    log_to_stderr();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let server = Server::bind(config, loaded.engine)
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

fn config(matches: &ArgMatches) -> anyhow::Result<ServerConfig> {
    let host = *matches
        .get_one::<IpAddr>("host")
        .expect("the flag has a default");
    let port = *matches
        .get_one::<u16>("port")
        .expect("the flag has a default");
    let unusable = || usage("the API key must be visible ASCII characters, at least one");
    let api_key = matches
        .get_one::<String>("api_key")
        .map(|key| ApiKey::new(key).ok_or_else(unusable))
        .transpose()?;
    let bound = |id| count(matches, id).expect("the flag has a default");
    Ok(ServerConfig {
        address: SocketAddr::new(host, port),
        api_key,
        allowed_hosts: matches
            .get_many::<String>("allowed_host")
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        limits: Limits {
            body_bytes: bound("max_body_bytes"),
            connections: bound("max_connections"),
            ..Limits::default()
        },
        timeouts: Timeouts {
            drain: Duration::from_secs(bound("drain_seconds") as u64),
            ..Timeouts::default()
        },
        ..ServerConfig::default()
    })
}

fn options(matches: &ArgMatches) -> anyhow::Result<ModelOptions> {
    let bound = |id| count(matches, id).expect("the flag has a default");
    let engine = EngineOptions {
        max_running: bound("max_running"),
        max_waiting: bound("max_waiting"),
        step_tokens: bound("step_tokens").max(bound("max_running")),
        prefix_reuse: !matches.get_flag("no_prefix_reuse"),
    };
    let kv_tokens = count(matches, "kv_tokens").and_then(NonZeroUsize::new);
    let model = args::model_options(matches)?;
    Ok(ModelOptions {
        kv_tokens,
        kv_contexts: KV_CONTEXTS,
        engine,
        threads: model.threads.or_else(|| Some(engine_threads(cores()))),
        ..model
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

fn count(matches: &ArgMatches, id: &str) -> Option<usize> {
    matches.get_one::<u32>(id).map(|&count| count as usize)
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
