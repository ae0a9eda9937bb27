//! `GET /metrics`: what it counts is what happened.

use nucleus_server::{ApiKey, ServerConfig};
use serde_json::json;

use crate::support::{PROMPT, Rig, RigOptions, encode_prompt, forever, text, tokens};

/// The samples by name and labels.
async fn samples(rig: &Rig) -> Vec<(String, f64)> {
    let answer = rig.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = String::from_utf8(answer.bytes().await).expect("metrics are text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

/// The sample whose name and labels begin and go on so.
fn sample(samples: &[(String, f64)], name: &str, label: &str) -> f64 {
    let mut found = samples
        .iter()
        .filter(|(other, _)| other.split('{').next() == Some(name) && other.contains(label));
    let (_, value) = found.next().unwrap_or_else(|| panic!("{name} {label}"));
    assert!(found.next().is_none(), "{name} {label} is not one sample");
    *value
}

/// Requests of every endpoint are counted once, with their tokens and their reason, under every name.
#[tokio::test]
async fn requests_are_counted_once() {
    let tale = " there was a fox.";
    let rig = Rig::new(text(tale));
    let before = samples(&rig).await;
    assert_eq!(sample(&before, "nucleus_generation_tokens_total", ""), 0.0);
    let whole = rig
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    let short = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 2});
    rig.execute(&short).await;
    assert_eq!(rig.post("/v1/completions", &short).await.status, 200);
    let stopped = json!({"prompt": PROMPT, "temperature": 0, "stop": "fox"});
    let stopped = rig.execute(&stopped).await;
    assert_eq!(
        rig.post("/execute", &json!({"prompt": 1})).await.status,
        400
    );
    rig.idle().await;

    let after = samples(&rig).await;
    let of = |name: &str, label: &str| sample(&after, name, label);
    let generated = (whole.tokens.len() + 2 + 2 + stopped.tokens.len()) as f64;
    let prompts = (4 * encode_prompt(PROMPT).len()) as f64;
    for name in [
        "nucleus_generation_tokens_total",
        "vllm:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
    ] {
        assert_eq!(of(name, ""), generated, "{name}");
    }
    for name in [
        "nucleus_prompt_tokens_total",
        "vllm:prompt_tokens_total",
        "llamacpp:prompt_tokens_total",
    ] {
        assert_eq!(of(name, ""), prompts, "{name}");
    }
    let finished = "nucleus_requests_finished_total";
    for (reason, count) in [
        ("\"stop\"", 1.0),
        ("\"length\"", 2.0),
        ("\"stop_sequence\"", 1.0),
        ("\"cancelled\"", 0.0),
        ("\"error\"", 0.0),
    ] {
        assert_eq!(of(finished, reason), count, "{reason}");
    }
    assert_eq!(of("vllm:request_success_total", "\"stop\""), 2.0);
    for (name, count) in [
        ("vllm:time_to_first_token_seconds_count", 4.0),
        ("vllm:inter_token_latency_seconds_count", generated - 4.0),
        ("vllm:e2e_request_latency_seconds_count", 4.0),
        ("vllm:request_queue_time_seconds_count", 4.0),
        ("nucleus_request_generation_tokens_sum", generated),
    ] {
        assert_eq!(of(name, ""), count, "{name}");
    }
    let answers = "nucleus_http_answers_total";
    assert_eq!(of(answers, r#"route="/execute",status="200""#), 3.0);
    assert_eq!(of(answers, r#"route="/execute",status="400""#), 1.0);
    for name in [
        "vllm:num_requests_running",
        "llamacpp:requests_deferred",
        "vllm:kv_cache_usage_perc",
    ] {
        assert_eq!(of(name, ""), 0.0, "{name}");
    }
}

/// C4: a client that goes away is counted once, as one that cancelled, with the tokens that reached it.
#[tokio::test]
async fn c4_a_client_that_leaves_is_counted_once() {
    let rig = Rig::gated(forever());
    let body = json!({"prompt": PROMPT, "temperature": 0});
    let mut stream = rig.execute_while_stepping(&body).await.stream();
    rig.gate.allow(3);
    stream.take(3).await;
    let running = samples(&rig).await;
    assert_eq!(sample(&running, "vllm:num_requests_running", ""), 1.0);
    assert!(sample(&running, "vllm:kv_cache_usage_perc", "") > 0.0);
    drop(stream);
    rig.gate.open();
    rig.idle().await;
    let after = samples(&rig).await;
    let finished = "nucleus_requests_finished_total";
    let total: f64 = after
        .iter()
        .filter(|(name, _)| name.starts_with(finished))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(
        (sample(&after, finished, "\"cancelled\""), total),
        (1.0, 1.0)
    );
    assert_eq!(
        sample(&after, "vllm:request_success_total", "\"abort\""),
        1.0
    );
    assert_eq!(sample(&after, "nucleus_generation_tokens_total", ""), 2.0);
}

/// A failure of the model is counted as one.
#[tokio::test]
async fn a_failure_is_counted() {
    let fox = tokens(" fox")[0];
    let rig = Rig::new(move |index| match index {
        0 => crate::support::Reply::Token(fox),
        _ => crate::support::Reply::Nan,
    });
    rig.execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    let after = samples(&rig).await;
    assert_eq!(
        sample(&after, "nucleus_requests_finished_total", "\"error\""),
        1.0
    );
}

#[tokio::test]
async fn c13_metrics_need_the_key() {
    let options = RigOptions::configured(ServerConfig {
        api_key: ApiKey::new("secret"),
        ..ServerConfig::default()
    });
    let rig = Rig::with(options, forever());
    assert_eq!(rig.get("/metrics").await.status, 401);
}
