//! `nucleus serve`: the HTTP worker.

mod settings;

use std::io::{self, Write};
use std::num::NonZeroUsize;

use clap::{ArgMatches, Command};
use nucleus_engine::chat_template::ChatTemplate;
use nucleus_engine::generate::{Engine, EngineThread};
use nucleus_server::{ServeError, Server, ServerConfig};
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
    let engine = (loaded.engine, loaded.thread);
    serve_engine(settings.server, engine, loaded.chat_template, notes)
}

fn serve_engine(
    config: ServerConfig,
    (engine, thread): (Engine, EngineThread),
    chat_template: Option<ChatTemplate>,
    notes: Notes,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let server = Server::bind(config, engine)
            .await
            .map_err(classify)?
            .with_chat_template(chat_template);
        serve(server, thread, notes).await
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
#[path = "../tests/worker/mod.rs"]
mod worker;

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::process::{self, Stdio};
    use std::sync::Arc;

    use nucleus_engine::error::EngineError;
    use nucleus_engine::generate::EngineOptions;
    use nucleus_engine::gguf::ModelFile;
    use nucleus_engine::kv_cache::BlockId;
    use nucleus_engine::model::{Chunk, KvLayout, Model, ModelSpec, Tail};
    use nucleus_engine::tokenizer::Tokenizer;

    use super::*;

    /// A model whose device is lost in its first step.
    struct Lost(ModelSpec);

    impl Model for Lost {
        fn spec(&self) -> &ModelSpec {
            &self.0
        }

        fn kv_layout(&self) -> KvLayout {
            KvLayout {
                block_size: 16,
                blocks: 64,
                value_bytes: 4,
            }
        }

        fn forward(&mut self, _: &[Chunk<'_>], _: &mut dyn Tail) -> Result<(), EngineError> {
            Err(EngineError::DeviceLost("it fell off the bus".to_owned()))
        }

        fn copy_block(&mut self, _: BlockId, _: BlockId) {}
    }

    impl Lost {
        fn engine() -> (Engine, EngineThread) {
            let file = ModelFile::open(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
            ))
            .expect("the model is in the repository");
            let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("it has a vocabulary");
            let spec = ModelSpec {
                architecture: "lost".to_owned(),
                name: "lost".to_owned(),
                vocab_size: tokenizer.vocab_size(),
                context_length: 256,
                layers: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: 1,
                parameters: 0,
                weight_bytes: 0,
                quantization: "F32".to_owned(),
            };
            let options = EngineOptions::default();
            Engine::start(Box::new(Self(spec)), Arc::new(tokenizer), options)
                .expect("the host has memory")
        }
    }

    /// What the worker answers to one request.
    fn ask(address: &str, head: &str, body: &str) -> String {
        let mut answer = String::new();
        let stream = worker::send(address, head, body).read_to_string(&mut answer);
        stream.expect("an answer");
        answer
    }

    /// The process ends with exit code 1 and a line that says why, after the stream was told and while `GET /health` says so.
    #[test]
    fn a_worker_whose_device_is_lost_ends_with_an_error() {
        const IS_WORKER: &str = "NUCLEUS_TEST_IS_WORKER";
        if std::env::var_os(IS_WORKER).is_some() {
            let config = ServerConfig {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                ..ServerConfig::default()
            };
            let result = serve_engine(config, Lost::engine(), None, Notes::new(false));
            process::exit(crate::failure::told(result).into());
        }
        let program = std::env::current_exe().expect("this program has a path");
        let mut worker = process::Command::new(program)
            .args(["--exact", "--nocapture"])
            .arg("serve::tests::a_worker_whose_device_is_lost_ends_with_an_error")
            .env(IS_WORKER, "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let mut lines = BufReader::new(worker.stderr.take().expect("piped")).lines();
        let address = worker::address(&mut lines);
        let stream = ask(
            &address,
            "POST /execute",
            r#"{"prompt": "Once upon a time"}"#,
        );
        assert!(
            stream.contains("event: error") && stream.contains("\"device_lost\""),
            "{stream}"
        );
        let health = ask(&address, "GET /health", "");
        assert!(health.starts_with("HTTP/1.1 503"), "{health}");
        assert!(health.contains("it fell off the bus"), "{health}");
        let said: Vec<String> = lines.map_while(Result::ok).collect();
        assert_eq!(worker.wait().expect("the worker ends").code(), Some(1));
        let last = said.last().expect("an error");
        assert!(
            last.contains("error: ") && last.contains("it fell off the bus"),
            "{last}"
        );
    }

    #[test]
    fn a_core_is_left_to_the_server_where_there_are_three() {
        assert_eq!(
            [0, 1, 2, 3, 8].map(|cores| engine_threads(cores).get()),
            [1, 1, 2, 2, 7]
        );
    }
}
