//! The worker as a process that is told to end while it streams.
#![cfg(all(unix, feature = "bundled-model"))]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod worker;

/// A worker that listens; killed when it is dropped.
struct Worker {
    child: Child,
    address: String,
}

impl Worker {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nucleus"))
            .args(["serve", "--port", "0"])
            .args(flags)
            .env_remove("NUCLEUS_API_KEY")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = worker::address(&mut lines);
        // Its log must go somewhere, or it would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// A stream that does not end before the context does, read as far as its first token.
    fn stream(&self) -> BufReader<TcpStream> {
        let body = r#"{"prompt": "Once upon a time", "ignore_eos": true}"#;
        let mut reader = worker::send(&self.address, "POST /execute", body);
        let mut line = String::new();
        while line != "event: token\n" {
            line.clear();
            reader.read_line(&mut line).expect("the stream goes on");
        }
        reader
    }

    fn terminate(&self) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// The exit code, and how long it took to come.
    fn ended(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        let code = self.child.wait().expect("the worker ends").code();
        (code, begun.elapsed())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// C8: a signal lets the stream end, or aborts it at the deadline with an end event; the exit code is 0 either way.
#[test]
fn c8_sigterm_ends_an_open_stream_in_order() {
    let mut worker = Worker::start(&["--drain-seconds", "1"]);
    let mut stream = worker.stream();
    worker.terminate();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the stream ends");
    let (code, took) = worker.ended();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");

    assert_eq!(rest.matches("event: end").count(), 1, "{rest}");
    let end = rest
        .split("event: end\ndata: ")
        .nth(1)
        .expect("an end event");
    let end: Value = serde_json::from_str(end.lines().next().expect("data")).expect("JSON");
    // A fast machine fills the context within the deadline.
    let reason = end["stop_reason"].as_str().expect("a reason");
    assert!(["aborted", "length"].contains(&reason), "{reason}");
}

/// C8: a second signal is not waited on, whatever the deadline is.
#[test]
fn c8_a_second_sigterm_ends_the_worker_at_once() {
    let mut worker = Worker::start(&["--drain-seconds", "3600"]);
    let streams: Vec<_> = (0..4).map(|_| worker.stream()).collect();
    worker.terminate();
    // Two signals that come together count as one.
    std::thread::sleep(Duration::from_millis(200));
    worker.terminate();
    let (code, took) = worker.ended();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(streams);
}
