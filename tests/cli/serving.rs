//! `nucleus serve`: the worker as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use crate::support::{nucleus, run};
use crate::worker;
use serde_json::Value;

/// A worker that listens; killed when it is dropped.
struct Worker {
    child: Child,
    address: String,
    stderr: BufReader<ChildStderr>,
}

impl Worker {
    fn start(flags: &[&str]) -> Self {
        Self::run(nucleus(&[&["serve", "--port", "0"], flags].concat()))
    }

    /// A worker that may have so many files and sockets open at a time.
    #[cfg(unix)]
    fn start_with_descriptors(most: u32) -> Self {
        let worker = nucleus(&[]);
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("ulimit -n {most}; exec \"$0\" serve --port 0"))
            .arg(worker.get_program())
            .stdin(Stdio::null());
        Self::run(shell)
    }

    fn run(mut command: Command) -> Self {
        let mut child = command
            .env_remove("NUCLEUS_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let address = worker::address(&mut stderr.by_ref().lines());
        Self {
            child,
            address,
            stderr,
        }
    }

    /// Status line, headers and body of the answer.
    fn request(&self, head: &str, body: &str) -> (String, String) {
        let mut answer = String::new();
        worker::send(&self.address, head, body)
            .read_to_string(&mut answer)
            .expect("the worker answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    }

    /// Sends SIGTERM; returns the exit code and what was left on standard error.
    fn terminate(mut self) -> (Option<i32>, String) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .expect("kill runs")
                .success()
        );
        let code = self.child.wait().expect("the worker ends").code();
        let mut rest = String::new();
        self.stderr
            .read_to_string(&mut rest)
            .expect("messages are UTF-8");
        (code, rest)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn r0_3_a_request_is_answered_and_sigterm_ends_the_worker() {
    let worker = Worker::start(&[]);
    let (head, body) = worker.request("GET /health", "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        serde_json::from_str::<Value>(
            body.lines()
                .find(|line| line.starts_with('{'))
                .expect("JSON")
        )
        .is_ok()
    );

    let (head, body) = worker.request(
        "POST /execute",
        r#"{"prompt": "Once upon a time", "max_tokens": 4}"#,
    );
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"),
        "{head}"
    );
    for event in ["event: started", "event: token", "event: end"] {
        assert!(body.contains(event), "{event} is not in {body}");
    }
    let (code, rest) = worker.terminate();
    assert_eq!(code, Some(0), "{rest}");
    assert!(!rest.contains("panicked"), "{rest}");
}

#[test]
fn r0_2_the_worker_and_generate_draw_the_same_tokens() {
    let worker = Worker::start(&[]);
    let parameters = r#""temperature": 0.7, "top_k": 40, "top_p": 0.95, "seed": 7"#;
    let request = format!(r#"{{"prompt": "Once upon a time", "max_tokens": 12, {parameters}}}"#);
    let (_, body) = worker.request("POST /execute", &request);
    let generated = run(&[
        "generate",
        "Once upon a time",
        "--seed",
        "7",
        "--max-tokens",
        "12",
        "--json",
    ])
    .json();
    let end = body
        .lines()
        .skip_while(|line| *line != "event: end")
        .find_map(|line| line.strip_prefix("data: "));
    let end: Value = serde_json::from_str(end.expect("an end event with data")).expect("JSON");
    assert_eq!(end["text"], generated["text"]);
}

#[test]
fn without_a_key_only_loopback_is_listened_on() {
    run(&["serve", "--host", "0.0.0.0", "--port", "0"]).refused(2, &["0.0.0.0", "API key"]);
}

#[test]
fn with_a_key_requests_need_it() {
    let worker = Worker::start(&["--api-key", "secret"]);
    let (head, _) = worker.request("POST /execute", r#"{"prompt": "a"}"#);
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}

#[test]
fn an_address_in_use_is_named() {
    let worker = Worker::start(&[]);
    let port = worker
        .address
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    run(&["serve", "--port", &port]).refused(1, &["cannot listen on", &port]);
}

#[test]
fn unusable_flags() {
    run(&["serve", "--host", "nowhere"]).refused(2, &["nowhere", "--host"]);
    run(&["serve", "--port", "70000"]).refused(2, &["70000", "--port"]);
    run(&["serve", "--api-key", "two words"]).refused(2, &["API key", "ASCII"]);
    run(&["serve", "--max-running", "0"]).refused(2, &["0", "--max-running"]);
    run(&["serve", "--model", "absent.gguf"]).refused(1, &["absent.gguf"]);
}

/// Settings come from a file, the environment and flags, in this order, and are printed with where they come from.
#[test]
fn settings_have_one_order_of_precedence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("worker.toml");
    std::fs::write(&file, "max_waiting = 3\nmax_running = 4\nmax_choices = 5\n").expect("a file");
    let file = file.to_str().expect("a name");
    let printed = nucleus(&[
        "serve",
        "--config",
        file,
        "--max-choices",
        "7",
        "--print-config",
    ])
    .env("NUCLEUS_MAX_RUNNING", "6")
    .env("NUCLEUS_MAX_CHOICES", "6")
    .env("NUCLEUS_API_KEY", "secret")
    .output()
    .expect("the binary runs");
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).expect("settings are text");
    for line in [
        "max_waiting = 3  # file",
        "max_running = 6  # environment",
        "max_choices = 7  # flag",
        "step_tokens = 512  # default",
        "# api_key is set and not shown  # environment",
    ] {
        assert!(printed.contains(line), "{line} is not in {printed}");
    }
    assert!(!printed.contains("secret"), "{printed}");
    std::fs::write(file, "max_wating = 3\n").expect("a file");
    run(&["serve", "--config", file]).refused(2, &["worker.toml", "max_wating", "no such setting"]);
}

/// C8: `POST /shutdown` ends the worker with exit code 0.
#[test]
fn c8_the_worker_ends_when_asked_over_http() {
    let mut worker = Worker::start(&["--allow-shutdown"]);
    let (head, body) = worker.request("POST /shutdown", "{}");
    assert!(head.starts_with("HTTP/1.1 202"), "{head}");
    assert!(body.contains("draining"), "{body}");
    assert_eq!(
        worker.child.wait().expect("the worker ends").code(),
        Some(0)
    );
}

/// C6: without a free descriptor no connection is accepted, but what runs goes on; with one, the next is.
#[cfg(unix)]
#[test]
fn c6_a_worker_without_descriptors_waits_for_one() {
    const MOST: u32 = 64;
    let worker = Worker::start_with_descriptors(MOST);
    let connect = || TcpStream::connect(&worker.address).expect("the system takes connections");
    let send = |mut stream: &TcpStream, head: &str, body: &str| {
        let (host, length) = (&worker.address, body.len());
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("the worker reads, or the system for it");
    };
    let read = |mut stream: &TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };

    let running = connect();
    send(
        &running,
        "POST /execute",
        r#"{"prompt": "Once upon a time", "max_tokens": 40, "seed": 1}"#,
    );
    let idle: Vec<TcpStream> = (0..2 * MOST).map(|_| connect()).collect();
    let waiting = connect();
    send(&waiting, "GET /health", "");
    waiting
        .set_read_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    read(&waiting).expect_err("no descriptor is free");
    let story = read(&running).expect("the stream goes on");
    assert!(story.contains("event: end"), "{story}");

    drop(idle);
    waiting.set_read_timeout(None).expect("no timeout");
    let answer = read(&waiting).expect("it is accepted at last");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (code, rest) = worker.terminate();
    assert_eq!(code, Some(0), "{rest}");
}
