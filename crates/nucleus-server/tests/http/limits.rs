//! What every endpoint that generates can be asked beside its own fields: stops, times, token ids, breakers, distributions.

use std::time::Duration;

use nucleus_engine::breakers::breaker_sequences;
use serde_json::{Value, json};

use crate::support::{
    Answer, PROMPT, Reply, Rig, RigOptions, encode_prompt, forever, text, tokenizer, tokens,
};

/// The endpoints, each with its name of a length, and where in the answer the text is.
const ENDPOINTS: [(&str, &str, &str); 3] = [
    ("/v1/completions", "max_tokens", "/choices/0/text"),
    (
        "/v1/chat/completions",
        "max_tokens",
        "/choices/0/message/content",
    ),
    ("/completion", "n_predict", "/content"),
];

async fn ok(answer: Answer) -> Value {
    let (status, body) = (answer.status, answer.json().await);
    assert_eq!(status, 200, "{body}");
    body
}

/// A request to an endpoint with these fields.
fn request(path: &str, fields: &Value) -> Value {
    let mut body = if path == "/v1/chat/completions" {
        json!({"messages": [{"role": "user", "content": PROMPT}]})
    } else {
        json!({"prompt": PROMPT})
    };
    let fields = fields.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

/// Two tokens of probability 3/4 and 1/4 at every position.
fn two_tokens() -> ([u32; 2], impl FnMut(usize) -> Reply + Send) {
    let ids = [" fox", " bear"].map(|word| tokens(word)[0]);
    let logits = vec![(ids[0], 3_f32.ln()), (ids[1], 0.0)];
    (ids, move |_| Reply::Logits(logits.clone()))
}

/// A request ends when its time is over, with what there is; if it is over before anything, with nothing.
#[tokio::test]
async fn a_time_is_kept_on_every_endpoint() {
    let slow = || {
        let id = tokens(" and")[0];
        move |_| {
            std::thread::sleep(Duration::from_millis(5));
            Reply::Token(id)
        }
    };
    let rig = Rig::new(slow());
    let end = rig
        .execute(&json!({"prompt": PROMPT, "max_time_ms": 60}))
        .await;
    assert_eq!(end.stop_reason(), "time_limit");
    assert!((1..1000).contains(&end.tokens.len()));
    assert_eq!(end.started["params"]["max_time_ms"], 60);
    for (path, _, text) in ENDPOINTS {
        let body = ok(rig
            .post(
                path,
                &request(path, &json!({"max_time_ms": 40, "max_tokens": 1000})),
            )
            .await)
        .await;
        let text = body.pointer(text).and_then(Value::as_str).unwrap();
        assert!(text.starts_with(" and and"), "{path}: {text}");
        let usage = &body["usage"]["completion_tokens"];
        let tokens = usage.as_u64().or(body["tokens_predicted"].as_u64());
        assert!((1..1000).contains(&tokens.unwrap()), "{path}: {tokens:?}");
        let ended = body
            .pointer("/choices/0/finish_reason")
            .unwrap_or(&body["stop_type"]);
        assert!([json!("length"), json!("limit")].contains(ended), "{path}");
    }
    rig.idle().await;
}

/// A request that waits longer than its time ends without a token.
#[tokio::test]
async fn a_time_is_kept_while_waiting() {
    let options = RigOptions {
        engine: nucleus_engine::generate::EngineOptions {
            max_running: 1,
            ..Default::default()
        },
        gated: true,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, forever());
    let first = rig
        .execute_while_stepping(&json!({"prompt": PROMPT, "job_id": "first"}))
        .await;
    let second = json!({"prompt": PROMPT, "max_time_ms": 1});
    let second = rig.execute_while_stepping(&second).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    rig.gate.allow(3);
    let second = second.transcript().await;
    assert_eq!(
        (second.stop_reason(), second.tokens.len()),
        ("time_limit", 0)
    );
    assert_eq!(second.end()["sampling"]["mean_logprob"], Value::Null);
    drop(first);
    rig.gate.open();
    rig.idle().await;
}

/// llama.cpp's time ends a text only once it has a line.
#[tokio::test]
async fn a_line_is_finished_before_its_time_is_over() {
    let lines = || {
        let ids = [tokens(" and")[0], tokens("\n")[0]];
        move |at| {
            std::thread::sleep(Duration::from_millis(4));
            Reply::Token(ids[usize::from(at == 6)])
        }
    };
    let rig = Rig::new(lines());
    for (path, length, text) in ENDPOINTS {
        let fields = json!({"t_max_predict_ms": 1, length: 12});
        let body = ok(rig.post(path, &request(path, &fields)).await).await;
        let text = body.pointer(text).and_then(Value::as_str).unwrap();
        // The conversation is longer than the prompt that the script begins behind.
        assert!(
            text.ends_with('\n') || path.contains("chat"),
            "{path}: {text:?}"
        );
    }
}

/// R1.4: `/execute` takes stop tokens, keeps the stop if asked, and tells ids, and what there was to choose from.
#[tokio::test]
async fn r1_4_execute_takes_what_the_others_take() {
    let rig = Rig::new(text(" a fox and a bear"));
    let and = tokens(" and")[0];
    for (include, expected) in [(false, " a fox"), (true, " a fox and")] {
        let ask = json!({"prompt": PROMPT, "stop_token_ids": [and], "include_stop_str_in_output": include, "return_token_ids": true});
        let end = rig.execute(&ask).await;
        assert_eq!((end.text(), end.stop_reason()), (expected, "stop_token"));
        assert_eq!(end.end()["stop_token"], and);
        assert_eq!(
            end.started["prompt_token_ids"],
            json!(encode_prompt(PROMPT))
        );
        assert_eq!(end.end()["token_ids"], json!(end.ids()));
        assert_eq!(end.started["params"]["stop_token_ids"], json!([and]));
    }
    let ask = json!({"prompt": PROMPT, "stop": " and", "include_stop_str_in_output": true});
    let end = rig.execute(&ask).await;
    assert_eq!(end.text(), " a fox and");
    assert!(end.end().get("token_ids").is_none() && end.started.get("prompt_token_ids").is_none());
    let ask = json!({"prompt": PROMPT, "stop_token_ids": [8192]});
    let (status, error) = rig.post("/execute", &ask).await.error().await;
    assert_eq!(
        (status, error.param.as_deref()),
        (400, Some("stop_token_ids"))
    );
}

/// The end tells how many tokens could have been drawn and how likely those were that were; logprobs are of either distribution.
#[tokio::test]
async fn an_end_tells_what_there_was_to_choose_from() {
    let ([fox, _], script) = two_tokens();
    let rig = Rig::new(script);
    let ask = |mode: &str| json!({"prompt": PROMPT, "max_tokens": 4, "top_k": 1, "logprobs": true, "logprobs_mode": mode});
    let raw = rig.execute(&ask("raw")).await;
    assert_eq!(raw.ids(), [fox; 4]);
    let sampling = &raw.end()["sampling"];
    assert_eq!(
        (
            &sampling["min_kept"],
            &sampling["max_kept"],
            &sampling["mean_kept"]
        ),
        (&json!(1), &json!(1), &json!(1.0))
    );
    let mean = sampling["mean_logprob"].as_f64().unwrap();
    assert!((mean - 0.75_f64.ln()).abs() < 1e-6);
    let processed = rig.execute(&ask("processed")).await;
    assert_eq!(processed.tokens[0]["logprob"], 0.0);
    let (_, error) = rig.post("/execute", &ask("both")).await.error().await;
    assert_eq!(error.param.as_deref(), Some("logprobs_mode"));

    let ask = json!({"max_tokens": 1, "top_k": 1, "logprobs": 2, "logprobs_mode": "processed"});
    let body = ok(rig
        .post("/v1/completions", &request("/v1/completions", &ask))
        .await)
    .await;
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([0.0]));
}

/// Token ids come with every choice that asks, whole and streamed, the model's end among them.
#[tokio::test]
async fn token_ids_are_told() {
    let rig = Rig::new(text(" a fox"));
    let mut expected = tokens(" a fox");
    expected.push(tokenizer().end_of_generation()[0]);
    let ask = json!({"return_token_ids": true, "stop": ["x!"]});
    let path = "/v1/completions";
    let body = ok(rig.post(path, &request(path, &ask)).await).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["token_ids"], json!(expected));
    assert_eq!(choice["prompt_token_ids"], json!(encode_prompt(PROMPT)));
    let mut streamed = request(path, &ask);
    streamed["stream"] = true.into();
    let bytes = rig.post(path, &streamed).await.bytes().await;
    let stream = String::from_utf8(bytes).unwrap();
    let choices: Vec<Value> = stream
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .map(|part| part["choices"][0].clone())
        .collect();
    assert_eq!(choices[0]["prompt_token_ids"], json!(encode_prompt(PROMPT)));
    let ids: Vec<Value> = choices
        .iter()
        .filter_map(|choice| choice["token_ids"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(json!(ids), json!(expected));
    let plain = ok(rig.post(path, &request(path, &json!({}))).await).await;
    assert!(plain["choices"][0].get("token_ids").is_none());
}

/// Breakers given as text act as the token sequences that write them, and are told back as text.
#[tokio::test]
async fn breakers_may_be_text() {
    // " and" would repeat " a fox" a third time, which DRY forbids, unless something breaks the repetition.
    let [a, fox, comma] = [" a", " fox", ","].map(|word| tokens(word)[0]);
    let history = [a, fox, comma, a, fox, comma, a, fox];
    let bear = tokens(" bear")[0];
    let rig = Rig::with(
        RigOptions {
            prompt_len: history.len(),
            ..RigOptions::default()
        },
        move |_| Reply::Logits(vec![(comma, 1.0), (bear, 0.0)]),
    );
    let ask = |breakers: Value| {
        json!({"prompt": history, "max_tokens": 1, "temperature": 0, "dry_multiplier": 5.0,
            "dry_allowed_length": 2, "dry_sequence_breakers": breakers})
    };
    let draw = async |breakers: Value| {
        let body = ok(rig.post("/v1/completions", &ask(breakers)).await).await;
        (
            body["choices"][0]["text"].as_str().unwrap().to_owned(),
            body,
        )
    };
    let (unbroken, _) = draw(json!([[bear]])).await;
    assert_eq!(unbroken, " bear", "the repetition is punished");
    let (broken, body) = draw(json!(["fox"])).await;
    assert_eq!(broken, ",", "it is broken at the fox");
    let params = &body["nucleus"]["params"];
    assert_eq!(params["dry_sequence_breakers"], json!(["fox"]));
    let sequences = breaker_sequences(&tokenizer(), "fox").unwrap();
    assert!(sequences.contains(&vec![fox]));
    assert_eq!(draw(json!(sequences)).await.0, ",", "as the token ids do");

    let idle = json!({"prompt": PROMPT, "max_tokens": 1, "dry_sequence_breakers": ["\n"]});
    let started = rig.execute(&idle).await.started;
    assert_eq!(started["warnings"][0]["param"], "dry_sequence_breakers");
}
