//! The socket: slow clients, clients that leave, too many clients, and the end of the server.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nucleus_engine::generate::Load;
use nucleus_server::{ApiKey, Limits, ServeError, Server, ServerConfig, Timeouts};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::net::{Worker, post};
use crate::support::{
    ErrorFields, PATIENCE, PROMPT, Reply, RigOptions, Transcript, forever, scripted_engine, text,
    tokens,
};

fn with_timeouts(timeouts: Timeouts) -> RigOptions {
    RigOptions::configured(ServerConfig {
        timeouts,
        ..ServerConfig::default()
    })
}

fn endless() -> Value {
    json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 1000})
}

/// The body of a response that has been read to its end, as an error.
fn error_of(response: &str) -> (u16, ErrorFields) {
    let status = response
        .split(' ')
        .nth(1)
        .expect("a status")
        .parse()
        .expect("a number");
    let body = response.split_once("\r\n\r\n").expect("a body").1;
    (
        status,
        ErrorFields::of(&serde_json::from_str(body).expect("JSON")),
    )
}

async fn load_until(worker: &Worker, wanted: impl Fn(Load) -> bool) {
    let begun = Instant::now();
    while !wanted(worker.engine.load()) {
        assert!(begun.elapsed() < PATIENCE, "{:?}", worker.engine.load());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Lets the model step every 20 ms until nothing runs; returns how many steps that took.
async fn step_until_idle(worker: &Worker) -> usize {
    for steps in 0.. {
        let load = worker.engine.load();
        if load.running == 0 && load.waiting == 0 && load.used_blocks == 0 {
            return steps;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        worker.gate.allow(1);
    }
    unreachable!("the loop has no end")
}

/// R0.1, R0.3: a request over a real connection.
#[tokio::test]
async fn r0_1_r0_3_a_story_over_a_socket() {
    let worker = Worker::start(RigOptions::default(), text(" there was a fox.")).await;
    let body = json!({"prompt": PROMPT, "temperature": 0});
    let mut stream = worker.execute(&body).await;
    let transcript = Transcript::of(stream.rest().await);
    assert_eq!(
        (transcript.text(), transcript.stop_reason()),
        (" there was a fox.", "stop")
    );
    // The connection can be used again.
    stream
        .client
        .send(&post("/cancel", &json!({"job_id": "x"})))
        .await;
    assert!(stream.client.head().await.starts_with("HTTP/1.1 202"));
}

/// C1: a head that never ends is not waited for.
#[tokio::test]
async fn c1_a_slow_head_is_cut() {
    let header = Duration::from_millis(300);
    let worker = Worker::start(
        with_timeouts(Timeouts {
            header,
            ..Timeouts::default()
        }),
        text(""),
    )
    .await;
    let mut slow = worker.connect().await;
    slow.send("POST /execute HTTP/1.1\r\nhost: localh").await;
    let mut silent = worker.connect().await;
    let begun = Instant::now();
    assert!(slow.until_closed(PATIENCE).await.is_some());
    assert!(silent.until_closed(PATIENCE).await.is_some());
    assert!(
        begun.elapsed() >= Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
}

/// C2: a body that never ends is 408.
#[tokio::test]
async fn c2_a_slow_body_is_408() {
    let body = Duration::from_millis(200);
    let worker = Worker::start(
        with_timeouts(Timeouts {
            body,
            ..Timeouts::default()
        }),
        text(""),
    )
    .await;
    let mut client = worker.connect().await;
    client
        .send("POST /execute HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"prompt\":")
        .await;
    let response = client
        .until_closed(PATIENCE)
        .await
        .expect("the connection is closed");
    let (status, error) = error_of(&response);
    assert_eq!((status, error.code.as_str()), (408, "body_timeout"));
    assert!(error.message.contains("0.2 s"), "{error:?}");
}

/// C3: a client that reads nothing loses its stream, and its slot is free.
#[tokio::test]
async fn c3_a_client_that_reads_nothing_is_given_up() {
    let write = Duration::from_millis(300);
    let options = RigOptions {
        gated: true,
        ..with_timeouts(Timeouts {
            write,
            ..Timeouts::default()
        })
    };
    let worker = Worker::start(options, forever()).await;
    // `started` repeats the parameters: 7 MB of them, more than the system buffers on the way.
    let mut body = endless();
    body["allowed_token_ids"] = json!(vec![tokens(" and")[0]; 500_000]);
    body["bad_words"] = json!(vec![vec![4000; 1000]; 900]);
    let mut client = worker.connect().await;
    client.send(&post("/execute", &body)).await;
    load_until(&worker, |_| worker.gate.begun() == 1).await;
    let steps = step_until_idle(&worker).await;
    assert!(
        steps < 200,
        "{steps} steps in which the client might have read"
    );
    let received = client
        .until_closed(PATIENCE)
        .await
        .expect("the connection is closed");
    assert!(received.len() < 7_000_000, "{} bytes", received.len());
}

/// C4: a client that closes its connection frees its slot within a step.
#[tokio::test]
async fn c4_closing_the_connection_frees_the_slot() {
    for events_before in [0, 1, 5] {
        let worker = Worker::start(
            RigOptions {
                gated: true,
                ..RigOptions::default()
            },
            forever(),
        )
        .await;
        let mut stream = worker.execute(&endless()).await;
        worker.gate.allow(events_before);
        for _ in 0..=events_before {
            stream.next().await.expect("an event");
        }
        drop(stream);
        let steps = step_until_idle(&worker).await;
        // One had begun; another may begin before the system says that the client is gone.
        assert!(steps <= 2, "{steps} steps after it had closed");
    }
}

/// C6: connections that idle between two requests make room for one that waits; one that has sent nothing yet is left alone.
#[tokio::test]
async fn c6_idle_connections_make_room() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let worker = Worker::start(RigOptions::limited(limits), text("")).await;
    let health = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut idle = worker.connect().await;
    idle.send(health).await;
    assert!(idle.head().await.starts_with("HTTP/1.1 200"));
    let mut new = worker.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    let mut waiting = worker.connect().await;
    waiting.send(health).await;
    assert!(waiting.head().await.starts_with("HTTP/1.1 200"));
    let patience = Timeouts::default().header / 4;
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
    assert!(
        idle.until_closed(patience).await.is_some(),
        "it has made room"
    );
    new.send(health).await;
    assert!(new.head().await.starts_with("HTTP/1.1 200"));
}

/// C6: connections beyond the bound wait; they are served when others leave.
#[tokio::test]
async fn c6_connections_are_bounded() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let options = RigOptions {
        gated: true,
        ..RigOptions::limited(limits)
    };
    let worker = Worker::start(options, forever()).await;
    // One that is used does not make room.
    let used = worker.execute(&endless()).await;
    let mut next = worker.connect().await;
    next.send("GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await;
    assert!(
        next.until_closed(Duration::from_millis(200))
            .await
            .is_none(),
        "it was served"
    );
    drop(used);
    let response = next.until_closed(PATIENCE).await.expect("it is served");
    assert!(response.contains("200 OK"), "{response}");
}

/// C15: what is not HTTP is turned away, and does not disturb.
#[tokio::test]
async fn c10_c15_garbage_is_turned_away() {
    let worker = Worker::start(RigOptions::default(), text(" a fox")).await;
    for garbage in [
        "\u{16}\u{3}\u{1}\u{2}\0hello\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "HELO example\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /execute HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        "POST /execute HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "POST /execute HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
    ] {
        let mut client = worker.connect().await;
        client.send(garbage).await;
        let response = client.until_closed(PATIENCE).await.expect("it is closed");
        assert_eq!(error_of(&response).0, 400, "{garbage:?}: {response}");
    }
    let mut stream = worker
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    assert_eq!(Transcript::of(stream.rest().await).text(), " a fox");
}

/// P21: a head that is too large is 431, a target that is too long 414; both say so in JSON.
#[tokio::test]
async fn p21_a_large_head_is_refused_in_json() {
    let worker = Worker::start(RigOptions::default(), text(" a fox")).await;
    let many: String = (0..200).map(|i| format!("x-{i}: {i}\r\n")).collect();
    let value = "v".repeat(8 << 10);
    let large: String = (0..64).map(|i| format!("x-{i}: {value}\r\n")).collect();
    for headers in [many, large] {
        let mut client = worker.connect().await;
        let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        // It may be refused before all of it is sent.
        let _ = client.stream.write_all(head.as_bytes()).await;
        let response = client.until_closed(PATIENCE).await.expect("it is closed");
        let (status, error) = error_of(&response);
        assert_eq!((status, error.code.as_str()), (431, "head_too_large"));
        assert!(
            error.message.contains("65536 bytes or 100 header"),
            "{error:?}"
        );
    }
    let roomy = RigOptions::limited(Limits {
        head_bytes: 1 << 20,
        ..Limits::default()
    });
    let worker = Worker::start(roomy, text(" a fox")).await;
    let mut client = worker.connect().await;
    let path = "a".repeat(70_000);
    let head = format!("GET /{path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    client.send(&head).await;
    let response = client.until_closed(PATIENCE).await.expect("it is closed");
    let (status, error) = error_of(&response);
    assert_eq!((status, error.code.as_str()), (414, "uri_too_long"));
}

/// P20: a body that is too large is answered before it has been sent.
#[tokio::test]
async fn p20_a_large_body_is_413_over_a_socket() {
    let worker = Worker::start(RigOptions::default(), text(" a fox")).await;
    for bytes in [(8 << 20) + 1, 33 << 20] {
        let mut client = worker.connect().await;
        client
            .send(&post("/execute", &json!({"prompt": "a".repeat(bytes)})))
            .await;
        let response = client.until_closed(PATIENCE).await.expect("it is closed");
        assert_eq!(error_of(&response).0, 413);
    }
    let mut client = worker.connect().await;
    client.send("POST /execute HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n").await;
    let response = client.until_closed(PATIENCE).await.expect("it is closed");
    assert_eq!(error_of(&response).0, 413);
}

/// C8: a shutdown lets running requests end; nobody new gets in.
#[tokio::test]
async fn c8_a_shutdown_drains() {
    let worker = Worker::start(
        RigOptions {
            gated: true,
            ..RigOptions::default()
        },
        text(" there was a fox."),
    )
    .await;
    let mut stream = worker
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    let mut idle = worker.connect().await;
    idle.send("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await;
    idle.head().await;
    worker.shutdown.drain();
    assert!(
        idle.until_closed(PATIENCE).await.is_some(),
        "idle connections are closed"
    );
    let refused = async {
        while TcpStream::connect(worker.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("nobody listens");
    worker.gate.open();
    let transcript = Transcript::of(stream.rest().await);
    assert_eq!(
        (transcript.text(), transcript.stop_reason()),
        (" there was a fox.", "stop")
    );
    worker.ended().await.expect("it ends in order");
}

/// C8: `POST /shutdown` does what a signal does, where it may; what runs goes on to its end.
#[tokio::test]
async fn c8_a_shutdown_over_http_drains() {
    let config = ServerConfig {
        allow_shutdown: true,
        ..ServerConfig::default()
    };
    let options = RigOptions {
        config,
        gated: true,
        ..RigOptions::default()
    };
    let worker = Worker::start(options, text(" there was a fox.")).await;
    let mut stream = worker
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    load_until(&worker, |load| load.running + load.waiting == 1).await;
    for body in [json!({"now": true}), json!([])] {
        let mut client = worker.connect().await;
        client.send(&post("/shutdown", &body)).await;
        assert!(client.head().await.starts_with("HTTP/1.1 400"), "{body}");
    }
    let mut client = worker.connect().await;
    client.send(&post("/shutdown", &json!({}))).await;
    let response = client.until_closed(PATIENCE).await.expect("it is closed");
    assert!(response.starts_with("HTTP/1.1 202"), "{response}");
    assert!(
        response.contains(r#""status":"draining","unfinished":1"#),
        "{response}"
    );
    worker.gate.open();
    let transcript = Transcript::of(stream.rest().await);
    assert_eq!(transcript.text(), " there was a fox.");
    worker.ended().await.expect("it ends in order");
}

/// C8: what does not end by the deadline is aborted, with an end event.
#[tokio::test]
async fn c8_the_deadline_aborts() {
    let drain = Duration::from_millis(200);
    let id = tokens(" and")[0];
    let slowly = move |_| {
        std::thread::sleep(Duration::from_millis(20));
        Reply::Token(id)
    };
    let worker = Worker::start(
        with_timeouts(Timeouts {
            drain,
            ..Timeouts::default()
        }),
        slowly,
    )
    .await;
    let mut stream = worker.execute(&endless()).await;
    stream.next().await.expect("started");
    let begun = Instant::now();
    worker.shutdown.drain();
    let rest = stream.rest().await;
    let end = rest.last().expect("an end");
    assert_eq!(
        (end.name.as_str(), &end.data["stop_reason"]),
        ("end", &json!("aborted"))
    );
    worker.ended().await.expect("it ends in order");
    let took = begun.elapsed();
    assert!(
        (drain..drain + Duration::from_secs(1)).contains(&took),
        "{took:?}"
    );
}

/// C8: told twice, the server waits for nothing, not even for a model that hangs.
#[tokio::test]
async fn c8_a_second_signal_stops_at_once() {
    let worker = Worker::start(
        RigOptions {
            gated: true,
            ..RigOptions::default()
        },
        forever(),
    )
    .await;
    let mut stream = worker.execute(&endless()).await;
    stream.next().await.expect("started");
    let begun = Instant::now();
    worker.shutdown.drain();
    worker.shutdown.stop();
    let Worker { running, gate, .. } = worker;
    tokio::time::timeout(Duration::from_secs(1), running)
        .await
        .expect("at once")
        .unwrap()
        .unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    gate.open();
}

/// An engine that dies takes the server with it, after an error event.
#[tokio::test]
async fn a_dead_engine_ends_the_server() {
    let worker = Worker::start(RigOptions::default(), |_| Reply::Panic).await;
    let mut stream = worker.execute(&endless()).await;
    let rest = stream.rest().await;
    assert_eq!(rest.last().expect("an error").name, "error");
    assert!(matches!(
        worker.ended().await,
        Err(ServeError::EngineFailed { .. })
    ));
}

/// A device that is lost ends the server with the reason, after every stream has been told and while whoever asks hears it.
#[tokio::test]
async fn a_lost_device_ends_the_server() {
    let lost = Arc::new(AtomicBool::new(false));
    let is_lost = Arc::clone(&lost);
    let script = move |_| {
        if is_lost.load(Ordering::Relaxed) {
            Reply::Lost
        } else {
            Reply::Token(5)
        }
    };
    let gated = RigOptions {
        gated: true,
        ..RigOptions::default()
    };
    let worker = Worker::start(gated, script).await;
    worker.gate.allow(1);
    let first = worker.execute(&endless()).await;
    // A step may be the first one's alone: the second begins with the next that finds it.
    let second = {
        let request = endless();
        let mut beginning = pin!(worker.execute(&request));
        loop {
            worker.gate.allow(1);
            let patience = Duration::from_millis(10);
            if let Ok(stream) = tokio::time::timeout(patience, &mut beginning).await {
                break stream;
            }
        }
    };
    let mut streams = [first, second];
    lost.store(true, Ordering::Relaxed);
    worker.gate.open();
    for stream in &mut streams {
        let rest = stream.rest().await;
        let last = rest.last().expect("an error");
        assert_eq!(last.name, "error");
        assert_eq!(last.data["error"]["code"], "device_lost");
        let message = last.data["error"]["message"].as_str().expect("a text");
        assert!(message.contains("scripted loss"), "{message}");
    }
    let mut health = worker.connect().await;
    health
        .send("GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await;
    let answer = health.until_closed(PATIENCE).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("\"status\":\"failed\"") && answer.contains("scripted loss"));
    match worker.ended().await {
        Err(ServeError::EngineFailed { reason }) => assert!(reason.contains("scripted loss")),
        other => panic!("{other:?}"),
    }
}

/// Without a key the server is for this machine alone.
#[tokio::test]
async fn an_open_address_needs_a_key() {
    let (engine, _thread, _gate) = scripted_engine(&RigOptions::default(), text(""));
    let address = "0.0.0.0:0".parse().unwrap();
    let open = ServerConfig {
        address,
        ..ServerConfig::default()
    };
    let error = Server::bind(open.clone(), engine.clone())
        .await
        .err()
        .expect("it is refused");
    assert!(matches!(error, ServeError::NeedsKey { .. }), "{error}");
    assert!(error.to_string().contains("0.0.0.0:0"), "{error}");
    let keyed = ServerConfig {
        api_key: ApiKey::new("k"),
        ..open
    };
    let server = Server::bind(keyed, engine.clone())
        .await
        .expect("it listens");
    let taken = ServerConfig {
        address: server.address(),
        api_key: ApiKey::new("k"),
        ..ServerConfig::default()
    };
    let error = Server::bind(taken, engine)
        .await
        .err()
        .expect("the port is taken");
    assert!(matches!(error, ServeError::Bind { .. }), "{error}");
}
