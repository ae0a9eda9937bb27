//! What HTTP costs: tokens a second of the engine alone and through `POST /execute`, and how much later than the engine a
//! client has its first token.
//!
//! `cargo bench -p nucleus-server -- [--rounds N]`. Both ways run the bundled model in this process, in turn: as many requests
//! at once, of the same prompts, seeds and lengths, all computed from their beginning. By HTTP they go over connections to
//! 127.0.0.1 that are open already, to clients who look for the ends of streams and read nothing more of them; the clients
//! take their part of the same cores. Throughput is all tokens by the time from the first request to the last end.
//!
//! The first token's delay is the client's time from sending the request to reading that token's event, less the time that the
//! engine itself says it took (`queued_ms` and `prefill_ms` of the `end` event). So it holds what comes before the engine, too:
//! reading and checking the request, and making tokens of the prompt.
#![allow(clippy::print_stdout)]

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nucleus_engine::generate::{Engine, EngineOptions, Event, Request};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::models::{LoadOptions, load};
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::SamplingParams;
use nucleus_server::{Server, ServerConfig};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const MODEL_FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

/// Requests at once, and the tokens of each.
const CASES: [(usize, usize); 3] = [(1, 512), (16, 128), (64, 64)];

/// Positions of the KV cache: enough for all of a case at once.
const KV_TOKENS: usize = 16 * 1024;

/// What one request of a case took.
struct Streamed {
    tokens: usize,
    /// How much later than the engine the client had the first token.
    delay: Duration,
}

fn main() {
    let rounds = rounds();
    let clients = runtime(1);
    let server = runtime(0);
    let (engine, address) = start(&server);
    println!(
        "| streams | tokens of each | engine, tokens/s | HTTP, tokens/s | HTTP / engine | first token later by, ms | the latest, ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (streams, tokens) in CASES {
        let mut connections = clients.block_on(connect(address, streams));
        let (mut alone, mut over_http) = (Vec::new(), Vec::new());
        let (mut ratios, mut delays) = (Vec::new(), Vec::new());
        for round in 0..=rounds {
            let engine_rate = clients.block_on(by_engine(&engine, streams, tokens));
            let (http_rate, streamed) = clients.block_on(by_http(&mut connections, tokens));
            // The first round warms up.
            if round > 0 {
                alone.push(engine_rate);
                over_http.push(http_rate);
                ratios.push(http_rate / engine_rate);
                delays.extend(streamed.iter().map(|one| one.delay.as_secs_f64() * 1e3));
            }
        }
        let later = median(&mut delays);
        let latest = delays.last().copied().unwrap_or_default();
        println!(
            "| {streams} | {tokens} | {} | {} | {} | {later:.2} | {latest:.2} |",
            spread(&mut alone, 0),
            spread(&mut over_http, 0),
            spread(&mut ratios, 3),
        );
    }
}

fn rounds() -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--rounds");
    let rounds = arguments.nth(1).and_then(|rounds| rounds.parse().ok());
    rounds.unwrap_or(7)
}

/// A runtime of so many threads; 0 is as many as `nucleus serve` has, one for each core.
fn runtime(threads: usize) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a runtime")
}

/// The bundled model behind a server, as `nucleus serve` starts it, but without reuse of prompts.
fn start(runtime: &Runtime) -> (Engine, SocketAddr) {
    let file = ModelFile::open(MODEL_FILE).expect("the bundled model can be read");
    let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("its tokenizer is sound");
    let options = LoadOptions {
        kv_tokens: NonZeroUsize::new(KV_TOKENS),
        ..LoadOptions::default()
    };
    let model = load(&file, options).expect("the bundled model loads");
    let options = EngineOptions {
        prefix_reuse: false,
        ..EngineOptions::default()
    };
    let (engine, thread) = Engine::start(model, Arc::new(tokenizer), options).unwrap();
    let config = ServerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..ServerConfig::default()
    };
    let server = runtime.block_on(Server::bind(config, engine.clone()));
    let server = server.expect("a free port");
    let address = server.address();
    runtime.spawn(server.run(thread));
    (engine, address)
}

async fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let connection = |_| async move {
        let stream = TcpStream::connect(address).await.expect("it listens");
        stream.set_nodelay(true).expect("an option of sockets");
        stream
    };
    join_all((0..count).map(connection)).await
}

fn prompt(index: usize) -> String {
    format!("Once upon a time there were {} foxes and", index + 2)
}

fn params(index: usize) -> SamplingParams {
    SamplingParams {
        temperature: Some(0.8),
        top_p: Some(0.95),
        seed: Some(index as u64),
        ignore_eos: Some(true),
        ..SamplingParams::default()
    }
}

/// Tokens a second of the engine, whose events are counted and nothing else.
async fn by_engine(engine: &Engine, streams: usize, tokens: usize) -> f64 {
    let begun = Instant::now();
    let run = |index| {
        let engine = engine.clone();
        tokio::spawn(async move {
            let options = EncodeOptions::default();
            let prompt = engine.tokenizer().encode(&prompt(index), options);
            let request = Request {
                prompt: prompt.expect("a prompt"),
                params: params(index),
                max_tokens: Some(tokens),
                ..Request::default()
            };
            let submit = tokio::task::spawn_blocking(move || engine.submit(request));
            let submitted = submit.await.expect("no panic");
            let mut generation = submitted.expect("it is accepted");
            let mut count = 0;
            while let Some(event) = generation.next().await {
                count += usize::from(matches!(event, Event::Token(_)));
            }
            count
        })
    };
    let counts = join_all((0..streams).map(run)).await;
    let count: usize = counts
        .into_iter()
        .map(|count| count.expect("no panic"))
        .sum();
    assert_eq!(count, streams * tokens, "every request runs to its length");
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Tokens a second through `POST /execute`.
async fn by_http(connections: &mut Vec<TcpStream>, tokens: usize) -> (f64, Vec<Streamed>) {
    let begun = Instant::now();
    let run = |(index, mut connection): (usize, TcpStream)| {
        tokio::spawn(async move {
            let streamed = stream(&mut connection, index, tokens).await;
            (connection, streamed)
        })
    };
    let running: Vec<_> = connections.drain(..).enumerate().map(run).collect();
    let ended = join_all(running).await;
    let elapsed = begun.elapsed().as_secs_f64();
    let mut all = Vec::new();
    for one in ended {
        let (connection, streamed) = one.expect("no panic");
        assert_eq!(streamed.tokens, tokens, "every request runs to its length");
        connections.push(connection);
        all.push(streamed);
    }
    let count: usize = all.iter().map(|one| one.tokens).sum();
    (count as f64 / elapsed, all)
}

async fn stream(connection: &mut TcpStream, index: usize, tokens: usize) -> Streamed {
    let mut body = serde_json::to_value(params(index)).expect("parameters are JSON");
    body["prompt"] = prompt(index).into();
    body["max_tokens"] = tokens.into();
    let body = body.to_string();
    let length = body.len();
    let request = format!(
        "POST /execute HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let begun = Instant::now();
    let sent = connection.write_all(request.as_bytes()).await;
    sent.expect("the connection is open");
    let mut bytes = Vec::with_capacity(tokens * 100);
    let mut first = None;
    while !bytes.ends_with(b"\r\n0\r\n\r\n") {
        let count = connection.read_buf(&mut bytes).await.expect("a stream");
        assert_ne!(count, 0, "the stream is whole");
        if first.is_none() && after(&bytes, b"event: token\n").is_some() {
            first = Some(begun.elapsed());
        }
    }
    let end = after(&bytes, b"event: end\ndata: ").expect("an end");
    let line = end.split(|&byte| byte == b'\n').next().expect("a line");
    let end: Value = serde_json::from_slice(line).expect("JSON");
    let seconds = |name: &str| end["timings"][name].as_f64().expect("a time") / 1e3;
    let engine = Duration::from_secs_f64(seconds("queued_ms") + seconds("prefill_ms"));
    Streamed {
        tokens: end["usage"]["completion_tokens"].as_u64().expect("a count") as usize,
        delay: first.expect("a token").saturating_sub(engine),
    }
}

/// What comes after the first place of `wanted`.
fn after<'a>(bytes: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut windows = bytes.windows(wanted.len());
    let at = windows.position(|window| window == wanted)?;
    Some(&bytes[at + wanted.len()..])
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median, the least and the greatest.
fn spread(values: &mut [f64], digits: usize) -> String {
    let middle = median(values);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}
