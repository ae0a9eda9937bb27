//! Streams: how they end, and what cancelling and leaving do.

use std::time::Duration;

use nucleus_engine::generate::EngineOptions;
use nucleus_server::{ServerConfig, Timeouts};
use serde_json::{Value, json};

use crate::support::{
    ErrorFields, Gate, PROMPT, Reply, Rig, RigOptions, SseEvent, Transcript, forever, text, tokens,
};

fn job(name: &str) -> Value {
    json!({"job_id": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 500})
}

async fn cancel(rig: &Rig, name: &str) -> Value {
    let answer = rig.post("/cancel", &json!({"job_id": name})).await;
    assert_eq!(answer.status, 202);
    answer.json().await
}

/// Cancelling ends the stream with what there is, and frees the slot before another step.
#[tokio::test]
async fn c5_cancel_ends_a_job_within_one_step() {
    let rig = Rig::gated(forever());
    rig.gate.allow(3);
    let mut stream = rig.post("/execute", &job("a")).await.stream();
    let mut events = stream.take(4).await;
    // The fourth step has begun, and waits.
    while rig.gate.begun() < 4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        cancel(&rig, "a").await,
        json!({"job_id": "a", "was_running": true})
    );
    cancel(&rig, "a").await;
    rig.gate.allow(1);
    events.extend(stream.rest().await);
    let transcript = Transcript::of(events);
    assert_eq!(transcript.stop_reason(), "cancelled");
    assert_eq!(
        transcript.tokens.len(),
        4,
        "a step that has begun is finished"
    );
    assert_eq!(transcript.text(), " and".repeat(4));
    rig.idle().await;
    assert_eq!(rig.gate.begun(), 4, "no step after it");
    // Cancelling what has ended, or never was, is no error.
    assert_eq!(
        cancel(&rig, "a").await,
        json!({"job_id": "a", "was_running": false})
    );
    assert_eq!(cancel(&rig, "never").await["was_running"], false);
}

/// A job that waits can be cancelled; it never runs.
#[tokio::test]
async fn c4_a_waiting_job_is_cancelled_without_running() {
    let engine = EngineOptions {
        max_running: 1,
        ..EngineOptions::default()
    };
    let rig = Rig::with(
        RigOptions {
            engine,
            gated: true,
            ..RigOptions::default()
        },
        forever(),
    );
    let mut first = rig.execute_while_stepping(&job("first")).await.stream();
    let second = rig.execute_while_stepping(&job("second")).await;
    assert_eq!(cancel(&rig, "second").await["was_running"], true);
    rig.gate.allow(2);
    let second = second.transcript().await;
    assert_eq!(
        (second.stop_reason(), second.tokens.len()),
        ("cancelled", 0)
    );
    assert_eq!(second.end()["timings"]["decode_ms"], 0.0);
    cancel(&rig, "first").await;
    rig.gate.open();
    assert_eq!(
        Transcript::of(first.rest().await).stop_reason(),
        "cancelled"
    );
    rig.idle().await;
}

/// A client that goes away frees its slot, wherever the stream is.
#[tokio::test]
async fn c4_leaving_frees_the_slot() {
    for events_before in [0, 1, 2, 10] {
        let rig = Rig::gated(forever());
        let mut stream = rig.post("/execute", &job("a")).await.stream();
        rig.gate.allow(events_before);
        stream.take(events_before).await;
        drop(stream);
        rig.gate.allow(2);
        rig.idle().await;
        assert!(
            rig.gate.begun() <= events_before + 2,
            "{} steps",
            rig.gate.begun()
        );
        rig.gate.open();
        // The name is free.
        cancel(&rig, "a").await;
        assert_eq!(rig.post("/execute", &job("a")).await.status, 200);
    }
}

/// C4: a client that goes away in the middle of its prompt, or out of the queue, costs no step more.
#[tokio::test]
async fn c4_leaving_the_prompt_or_the_queue_frees_the_slot() {
    let engine = EngineOptions {
        max_running: 1,
        step_tokens: 8,
        ..EngineOptions::default()
    };
    let options = RigOptions {
        engine,
        gated: true,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, forever());
    let long = "once upon a time ".repeat(40);
    let first = rig
        .post("/execute", &json!({"prompt": long, "temperature": 0}))
        .await;
    rig.gate.allow(2);
    while rig.gate.begun() < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let queued = rig.execute_while_stepping(&job("queued")).await;
    rig.load_until(|load| load.waiting == 1).await;
    let begun = rig.gate.begun();
    drop(queued);
    drop(first);
    rig.gate.allow(2);
    rig.idle().await;
    assert!(rig.gate.begun() <= begun + 1, "{} steps", rig.gate.begun());
    rig.gate.open();
    rig.assert_alive().await;
}

/// C4: a client that goes away between the last token and the end leaves nothing behind.
#[tokio::test]
async fn c4_leaving_before_the_end_event_leaves_nothing() {
    let rig = Rig::new(forever());
    let mut stream = rig
        .post(
            "/execute",
            &json!({"job_id": "a", "prompt": PROMPT, "temperature": 0, "max_tokens": 2}),
        )
        .await
        .stream();
    stream.take(3).await;
    rig.idle().await;
    drop(stream);
    assert_eq!(cancel(&rig, "a").await["was_running"], false);
    rig.assert_alive().await;
}

/// Cancelling one of many jobs is no one else's business.
#[tokio::test]
async fn other_jobs_do_not_notice_a_cancelled_one() {
    let rig = Rig::gated(forever());
    let mut streams = Vec::new();
    for name in ["a", "b", "c"] {
        streams.push(rig.execute_while_stepping(&job(name)).await.stream());
    }
    cancel(&rig, "b").await;
    rig.gate.open();
    let mut ends = Vec::new();
    for stream in &mut streams {
        let transcript = Transcript::of(stream.rest().await);
        ends.push((
            transcript.stop_reason().to_owned(),
            transcript.tokens.len() == 500,
        ));
    }
    let length = ("length".to_owned(), true);
    assert_eq!(
        ends,
        [length.clone(), ("cancelled".to_owned(), false), length]
    );
}

/// A running job's name is taken; it is free again as soon as the end is out.
#[tokio::test]
async fn a_running_duplicate_is_409() {
    let rig = Rig::gated(forever());
    let mut stream = rig.post("/execute", &job("a")).await.stream();
    rig.gate.allow(2);
    stream.take(2).await;
    let (status, error) = rig.post("/execute", &job("a")).await.error().await;
    assert_eq!(
        (status, error.code.as_str(), error.param.as_deref()),
        (409, "job_running", Some("job_id"))
    );
    assert!(error.message.contains("\"a\""), "{error:?}");
    cancel(&rig, "a").await;
    rig.gate.open();
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event);
        if last.as_ref().is_some_and(|event| event.name == "end") {
            break;
        }
    }
    assert_eq!(last.unwrap().data["stop_reason"], "cancelled");
    assert_eq!(rig.execute(&job("a")).await.tokens.len(), 500);
}

/// Jobs without a name get one that can be cancelled.
#[tokio::test]
async fn a_job_without_a_name_gets_one() {
    let rig = Rig::gated(forever());
    let body = json!({"prompt": PROMPT, "temperature": 0});
    let mut streams = Vec::new();
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut stream = rig.execute_while_stepping(&body).await.stream();
        let started = stream.next().await.expect("started");
        names.push(started.data["job_id"].as_str().expect("a name").to_owned());
        streams.push(stream);
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(cancel(&rig, &names[0]).await["was_running"], true);
    rig.gate.open();
    let reason = |events: Vec<SseEvent>| events.last().expect("an end").data["stop_reason"].clone();
    assert_eq!(reason(streams[0].rest().await), "cancelled");
    assert_eq!(reason(streams[1].rest().await), "length");
}

/// N1, P5: a row that is not a number fails its own request with an error event; a greedy neighbour does not notice.
#[tokio::test]
async fn n1_p5_a_bad_row_fails_one_request() {
    let fox = tokens(" fox")[0];
    // The prompt of the second request is one token longer, so that its third token is at the first one's fourth.
    let rig = Rig::gated(move |at| {
        if at == 3 {
            Reply::Nan
        } else {
            Reply::Token(fox)
        }
    });
    rig.gate.open();
    let transcript = rig.execute(&job("a")).await;
    assert_eq!(transcript.tokens.len(), 3);
    assert_eq!(transcript.ending.name, "error");
    let error = ErrorFields::of(&transcript.ending.data);
    assert_eq!(
        (error.kind.as_str(), error.code.as_str()),
        ("server_error", "nothing_to_draw")
    );
    assert!(error.message.contains("position 3"), "{error:?}");
    let short = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 3});
    assert_eq!(rig.execute(&short).await.text(), " fox fox fox");
    rig.idle().await;
    rig.assert_alive().await;
}

/// A forward pass that fails is an error event, and the worker goes on.
#[tokio::test]
async fn c9_a_failing_model_is_an_error_event() {
    let fox = tokens(" fox")[0];
    let rig = Rig::new(move |at| {
        if at == 2 {
            Reply::Error
        } else {
            Reply::Token(fox)
        }
    });
    let transcript = rig.execute(&job("a")).await;
    assert_eq!(transcript.tokens.len(), 2);
    let error = ErrorFields::of(&transcript.ending.data);
    assert_eq!(
        (error.kind.as_str(), error.code.as_str()),
        ("server_error", "model_failed")
    );
    rig.idle().await;
    rig.assert_alive().await;
}

/// The engine's death is an error event in every stream, and a 503 for whoever comes later.
#[tokio::test]
async fn c9_a_dead_engine_is_an_error_event() {
    let fox = tokens(" fox")[0];
    let rig = Rig::new(move |at| {
        if at == 2 {
            Reply::Panic
        } else {
            Reply::Token(fox)
        }
    });
    let transcript = rig.execute(&job("a")).await;
    let error = ErrorFields::of(&transcript.ending.data);
    assert_eq!(error.code, "engine_stopped");
    assert_eq!(rig.post("/execute", &job("a")).await.error().await.0, 503);
}

/// A silent stream carries comments, which clients skip.
#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let timeouts = Timeouts {
        keep_alive: Duration::from_millis(20),
        ..Timeouts::default()
    };
    let config = ServerConfig {
        timeouts,
        ..ServerConfig::default()
    };
    let rig = Rig::with(
        RigOptions {
            config,
            gated: true,
            ..RigOptions::default()
        },
        text(" a fox"),
    );
    let body = json!({"prompt": PROMPT, "temperature": 0});
    let mut stream = rig.post("/execute", &body).await.stream();
    let mut events = stream.take(1).await;
    let gate = Gate::clone(&rig.gate);
    let later = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        gate.open();
    });
    events.extend(stream.rest().await);
    later.await.unwrap();
    assert_eq!(Transcript::of(events).text(), " a fox");
    assert!(stream.comments() >= 2, "{}", stream.comments());
}

/// Many streams at once: each ends once, each has its own text.
#[tokio::test]
async fn many_streams_run_side_by_side() {
    let rig = Rig::new(text(" there was a fox who lived in a wood."));
    let body = json!({"prompt": PROMPT, "temperature": 0});
    let runs: Vec<_> = (0..32).map(|_| rig.execute(&body)).collect();
    for transcript in futures_util::future::join_all(runs).await {
        assert_eq!(transcript.text(), " there was a fox who lived in a wood.");
    }
    rig.idle().await;
}

#[tokio::test]
async fn health_says_what_runs() {
    let rig = Rig::gated(forever());
    let mut stream = rig.post("/execute", &job("a")).await.stream();
    rig.gate.allow(1);
    stream.take(2).await;
    rig.load_until(|load| load.running == 1).await;
    let health = rig.get("/health").await;
    assert_eq!(health.status, 200);
    let health = health.json().await;
    assert_eq!(health["status"], "ok");
    assert_eq!(health["device"], "cpu");
    assert_eq!(health["model"]["name"], "scripted");
    assert_eq!(health["model"]["context_length"], 1024);
    assert_eq!(health["load"]["running"], 1);
    assert!(health["load"]["used_kv_blocks"].as_u64().unwrap() > 0);
    assert!(health["memory"]["kv_cache_bytes"].as_u64().unwrap() > 0);
    assert!(health["memory"]["used_kv_cache_bytes"].as_u64().unwrap() > 0);
    assert_eq!(health["versions"]["sampling_contract"], 1);
    let fingerprint = health["system_fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("fp_"), "{fingerprint}");
    if cfg!(target_os = "linux") {
        assert!(health["memory"]["rss_bytes"].as_u64().unwrap() > 1 << 20);
    }
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    rig.state.shutdown().drain();
    let health = rig.get("/health").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.json().await["status"], "draining");
}
