//! A worker behind a socket, and a client that sends what it likes.

use std::net::SocketAddr;
use std::time::Duration;

use nucleus_server::{ServeError, Server, ServerConfig, Shutdown};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{GateGuard, PATIENCE, Reply, RigOptions, SseEvent, SseParser, scripted_engine};
use nucleus_engine::generate::Engine;

/// A worker that listens on a port of its own.
pub(crate) struct Worker {
    pub(crate) address: SocketAddr,
    pub(crate) engine: Engine,
    pub(crate) gate: GateGuard,
    pub(crate) shutdown: Shutdown,
    pub(crate) running: JoinHandle<Result<(), ServeError>>,
}

impl Worker {
    pub(crate) async fn start(
        options: RigOptions,
        script: impl FnMut(usize) -> Reply + Send + 'static,
    ) -> Self {
        let (engine, thread, gate) = scripted_engine(&options, script);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ServerConfig {
            address,
            ..options.config
        };
        let server = Server::bind(config, engine.clone())
            .await
            .expect("a free port");
        let (address, shutdown) = (server.address(), server.shutdown());
        let running = tokio::spawn(server.run(thread));
        Self {
            address,
            engine,
            gate,
            shutdown,
            running,
        }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client {
            stream: TcpStream::connect(self.address)
                .await
                .expect("the server listens"),
        }
    }

    /// A stream of `/execute` whose head has been read.
    pub(crate) async fn execute(&self, body: &Value) -> NetStream {
        let mut client = self.connect().await;
        client.send(&post("/execute", body)).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        NetStream {
            client,
            chunks: Vec::new(),
            parser: SseParser::default(),
            ready: Vec::new(),
        }
    }

    /// How the server ended.
    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        let Self { running, gate, .. } = self;
        gate.open();
        timeout(PATIENCE, running)
            .await
            .expect("the server ends")
            .expect("it does not panic")
    }
}

/// A request with a JSON body.
pub(crate) fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// One connection.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) async fn send(&mut self, text: &str) {
        self.stream
            .write_all(text.as_bytes())
            .await
            .expect("the connection is open");
    }

    /// The response's head, up to and with its empty line.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = timeout(PATIENCE, self.stream.read_u8())
                .await
                .expect("a response comes");
            head.push(byte.unwrap_or_else(|_| panic!("cut: {}", String::from_utf8_lossy(&head))));
        }
        String::from_utf8(head).expect("a head is text")
    }

    /// Everything until the server closes the connection. A reset is a close.
    pub(crate) async fn until_closed(&mut self, within: Duration) -> Option<String> {
        let mut bytes = Vec::new();
        let read = async {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = self.stream.read(&mut buffer).await {
                bytes.extend_from_slice(&buffer[..count]);
            }
        };
        timeout(within, read).await.ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A stream of events over a socket.
pub(crate) struct NetStream {
    pub(crate) client: Client,
    /// Bytes of the chunked body that are not decoded.
    chunks: Vec<u8>,
    parser: SseParser,
    ready: Vec<SseEvent>,
}

impl NetStream {
    /// The next event; `None` at the body's proper end.
    ///
    /// # Panics
    /// If the body is cut.
    pub(crate) async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if !self.ready.is_empty() {
                return Some(self.ready.remove(0));
            }
            if let Some(data) = take_chunk(&mut self.chunks) {
                if data.is_empty() {
                    return None;
                }
                self.ready = self.parser.push(&data);
                continue;
            }
            let read = self.client.stream.read_buf(&mut self.chunks);
            let count = timeout(PATIENCE, read).await.expect("the stream goes on");
            assert_ne!(
                count.expect("the stream can be read"),
                0,
                "the stream is cut"
            );
        }
    }

    pub(crate) async fn rest(&mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// The first whole chunk of a chunked body, taken out; empty for the last one.
fn take_chunk(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let size = std::str::from_utf8(&bytes[..line]).expect("a chunk's size is text");
    let size = usize::from_str_radix(size, 16).expect("a chunk's size is hexadecimal");
    let (begin, end) = (line + 2, line + 2 + size);
    if bytes.len() < end + 2 {
        return None;
    }
    let data = bytes[begin..end].to_vec();
    bytes.drain(..end + 2);
    Some(data)
}
