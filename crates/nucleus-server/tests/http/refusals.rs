//! Requests that are refused: with JSON, naming the field, its value and its range, and without a trace in the worker.

use axum::body::{Body, Bytes};
use axum::http::Method;
use futures_util::stream;
use nucleus_engine::generate::EngineOptions;
use nucleus_server::{ApiKey, Limits, ServerConfig};
use serde_json::{Value, json};

use crate::support::{ErrorFields, PROMPT, Rig, RigOptions, forever, request, text};

fn rig() -> Rig {
    Rig::new(text(" a fox"))
}

/// Sends a request that is to be refused with a 400 about `param`, and checks that the worker does not mind.
async fn refused(rig: &Rig, body: &Value, param: &str) -> ErrorFields {
    let (status, error) = rig.post("/execute", body).await.error().await;
    assert_eq!(
        (status, error.param.as_deref()),
        (400, Some(param)),
        "{body}: {error:?}"
    );
    assert_eq!(error.kind, "invalid_request_error");
    assert!(error.message.contains(param), "{body}: {error:?}");
    error
}

/// R1.7: every parameter is validated; the message names the field, the value and the range.
#[tokio::test]
async fn r1_7_values_out_of_range_are_refused_with_their_range() {
    let rig = rig();
    let vocab = rig.engine.vocab().size;
    let above_vocab = format!("[0, {vocab}]");
    for (param, value, range) in [
        ("temperature", json!(-0.1), "[0, 2]"),
        ("temperature", json!(2.1), "[0, 2]"),
        ("temperature", json!(1e39), "[0, 2]"),
        ("temperature", json!(-1e-300), "[0, 2]"),
        ("top_p", json!(-0.01), "[0, 1]"),
        ("top_p", json!(1.01), "[0, 1]"),
        ("top_k", json!(-1), above_vocab.as_str()),
        ("top_k", json!(-2), &above_vocab),
        ("top_k", json!(vocab + 1), &above_vocab),
        ("top_k", json!(1_i64 << 30), &above_vocab),
        ("repetition_penalty", json!(0), "(0, 2]"),
        ("repetition_penalty", json!(-1), "(0, 2]"),
        ("repetition_penalty", json!(2.5), "(0, 2]"),
        ("min_p", json!(-1e-9), "[0, 1]"),
        ("min_p", json!(1.5), "[0, 1]"),
        ("frequency_penalty", json!(2.5), "[-2, 2]"),
        ("presence_penalty", json!(-2.5), "[-2, 2]"),
        ("seed", json!(-1), "[0, 2^64-1]"),
        ("seed", json!(1e20), "[0, 2^64-1]"),
        ("max_tokens", json!(0), "[1, 1024]"),
        ("max_tokens", json!(-1), "[1, 1024]"),
        ("max_tokens", json!(1025), "[1, 1024]"),
        ("max_tokens", json!(1_u64 << 63), "[1, 1024]"),
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[param] = value.clone();
        let error = refused(&rig, &body, param).await;
        assert!(error.message.contains(range), "{error:?}");
        let plain = value
            .as_f64()
            .is_some_and(|value| (1e-6..1e15).contains(&value.abs()));
        assert!(
            !plain || error.message.contains(&value.to_string()),
            "{error:?}"
        );
        assert_eq!(error.code, "invalid_value");
    }
    rig.assert_alive().await;
}

/// P1, P15: values of the wrong type, `null` among them, are refused for every field; nothing is read as another type.
#[tokio::test]
async fn p1_p15_wrong_types_are_refused() {
    let rig = rig();
    for (param, values) in [
        ("temperature", json!(["0.5", "NaN", true, null, [1], {}])),
        ("top_p", json!(["1", null, false, []])),
        ("top_k", json!(["5", 1.0, 1.5, null, true])),
        ("repetition_penalty", json!(["1", null])),
        ("min_p", json!(["0", null])),
        ("seed", json!(["7", 7.0, 1.5, null, true])),
        ("max_tokens", json!(["5", 1.0, 2.5, null, true, [5]])),
        (
            "prompt",
            json!([null, 5, true, ["a"], [1, 2], [], [[]], {}]),
        ),
        (
            "stop",
            json!([null, 5, true, {}, [5], ["a", null], [["a"]]]),
        ),
        ("job_id", json!([null, 5, true, ["a"]])),
        ("logprobs", json!([null, 1, "true"])),
        ("ignore_eos", json!([null, 1, "true"])),
        (
            "logit_bias",
            json!([null, 5, [1], {"abc": 1}, {"-1": 1}, {"5": "1"}, {"5": null}]),
        ),
        ("allowed_token_ids", json!([null, 5, ["a"], [-1], [1.5]])),
        ("samplers", json!([null, "top_k", [5]])),
        ("preset", json!([null, 5])),
    ] {
        for value in values.as_array().unwrap() {
            let mut body = json!({"prompt": PROMPT});
            body[param] = value.clone();
            refused(&rig, &body, param).await;
        }
    }
    rig.assert_alive().await;
}

/// P6, P7, P8: ids that the vocabulary does not have never get near a sampler.
#[tokio::test]
async fn p7_p8_unknown_token_ids_are_refused() {
    let rig = rig();
    let vocab = rig.engine.vocab().size;
    for (param, value) in [
        ("logit_bias", json!({vocab.to_string(): 1})),
        ("logit_bias", json!({"4294967295": 1})),
        ("logit_bias", json!({"5": 1e9})),
        ("allowed_token_ids", json!([vocab])),
        ("bad_words", json!([[vocab]])),
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[param] = value;
        refused(&rig, &body, param).await;
    }
    rig.assert_alive().await;
}

/// P9, P20: prompts that are absent, empty or too long.
#[tokio::test]
async fn p9_prompts_without_text_or_room_are_refused() {
    let rig = rig();
    assert_eq!(
        refused(&rig, &json!({}), "prompt").await.code,
        "missing_field"
    );
    assert_eq!(
        refused(&rig, &json!({"prompt": ""}), "prompt").await.code,
        "invalid_value"
    );
    let long = "and so on ".repeat(2000);
    let error = refused(&rig, &json!({"prompt": long}), "prompt").await;
    assert_eq!(error.code, "context_length_exceeded");
    assert!(error.message.contains("1024"), "{error:?}");
    // So long that it is not even tokenised.
    let error = refused(&rig, &json!({"prompt": "a".repeat(4 << 20)}), "prompt").await;
    assert_eq!(error.code, "context_length_exceeded");
    rig.assert_alive().await;
}

/// P9, P17: white space and U+0000 are text like any other.
#[tokio::test]
async fn p17_unusual_text_is_text() {
    let rig = rig();
    for prompt in ["   ", "\n", "a\u{0}b", "\u{feff}", "\u{202e}abc", "🐉"] {
        let answer = rig
            .post("/execute", &json!({"prompt": prompt, "max_tokens": 1}))
            .await;
        assert_eq!(answer.status, 200, "{prompt:?}");
    }
    let body = json!({"prompt": PROMPT, "temperature": 0, "stop": ["\u{0}"]});
    assert_eq!(rig.execute(&body).await.text(), " a fox");
}

/// P13, R1.7: stop strings are bounded in number and length, and none is empty.
#[tokio::test]
async fn p13_r1_7_stop_strings_are_bounded() {
    let rig = rig();
    let with = |stop: Value| json!({"prompt": PROMPT, "temperature": 0, "stop": stop});
    let five = refused(&rig, &with(json!(["a", "b", "c", "d", "e"])), "stop").await;
    assert!(
        five.message.contains("an array of 5 is not at most 4"),
        "{five:?}"
    );
    refused(&rig, &with(json!(vec!["a"; 10_000])), "stop").await;
    let empty = refused(&rig, &with(json!(["a", ""])), "stop").await;
    assert!(
        empty.message.contains("stop[1]") && empty.message.contains("1 to 1024"),
        "{empty:?}"
    );
    refused(&rig, &with(json!("")), "stop").await;
    refused(&rig, &with(json!("a".repeat(1 << 20))), "stop").await;
    refused(&rig, &with(json!("é".repeat(513))), "stop").await;
    assert_eq!(
        rig.execute(&with(json!("é".repeat(512)))).await.text(),
        " a fox"
    );
    assert_eq!(rig.execute(&with(json!(["x", "x"]))).await.text(), " a fo");
    rig.assert_alive().await;
}

/// P15: fields that are not known, however they came about.
#[tokio::test]
async fn p15_unknown_fields_are_refused() {
    let rig = rig();
    for name in [
        "tempature",
        "n",
        "stream",
        "repeat_penalty",
        "PROMPT",
        "top_p ",
        "__proto__",
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[name] = json!(1);
        let error = refused(&rig, &body, name).await;
        assert_eq!(error.code, "unknown_field");
        assert!(
            error.message.contains("job_id, prompt, max_tokens, stop"),
            "{error:?}"
        );
    }
    let (status, error) = rig
        .post("/cancel", &json!({"job_id": "a", "x": 1}))
        .await
        .error()
        .await;
    assert_eq!((status, error.code.as_str()), (400, "unknown_field"));
}

/// P24, P25: what a client wrote comes back escaped and shortened; the error is JSON whatever it was.
#[tokio::test]
async fn p24_p25_error_messages_hold_any_text() {
    let rig = rig();
    for text in [
        "a\r\nx-injected: 1",
        "\u{0}\u{1b}[31m",
        "\u{202e}\u{feff}",
        "\"}}",
        &"x".repeat(1 << 20),
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[text] = json!(1);
        let answer = rig.post("/execute", &body).await;
        assert!(answer.headers.get("x-injected").is_none());
        let (status, error) = answer.error().await;
        assert_eq!((status, error.code.as_str()), (400, "unknown_field"));
        assert!(
            error.message.len() < 400 && !error.message.contains(['\r', '\n', '\u{1b}']),
            "{error:?}"
        );
    }
    for text in [
        "a\r\nx-injected: 1",
        "\u{0}\u{1b}[31m",
        "\u{202e}",
        &"x".repeat(1 << 20),
    ] {
        let answer = rig.post("/cancel", &json!({"job_id": text})).await;
        let (status, error) = answer.error().await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some("job_id")),
            "{text:?}"
        );
        assert!(
            error.message.len() < 400 && !error.message.contains(['\r', '\n']),
            "{error:?}"
        );
    }
}

/// P2, P16, P17, P19: bodies that are not one JSON object.
#[tokio::test]
async fn p16_p17_p19_bodies_that_are_not_objects_are_refused() {
    let rig = rig();
    let deep = |depth: usize| format!("{{\"prompt\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let bodies: Vec<Bytes> = vec![
        "".into(),
        "   ".into(),
        "[\"Once\", 1]".into(),
        "\"Once\"".into(),
        "5".into(),
        "null".into(),
        "true".into(),
        "{\"prompt\":\"a\"} x".into(),
        "{\"prompt\":\"a\"}{}".into(),
        "{\"prompt\":\"a\"".into(),
        "{prompt:\"a\"}".into(),
        "{'prompt':'a'}".into(),
        "{\"prompt\":\"a\",}".into(),
        "\u{feff}{\"prompt\":\"a\"}".into(),
        "{\"prompt\":\"a\",\"temperature\":NaN}".into(),
        "{\"prompt\":\"a\",\"temperature\":Infinity}".into(),
        "{\"prompt\":\"a\",\"temperature\":1e309}".into(),
        "{\"prompt\":\"a\",\"temperature\":-1e309}".into(),
        format!("{{\"prompt\":\"a\",\"seed\":{}}}", "9".repeat(400)).into(),
        "{\"prompt\":\"a\",\"prompt\":\"b\"}".into(),
        "{\"prompt\":\"a\",\"logit_bias\":{\"5\":1,\"5\":2}}".into(),
        "{\"prompt\":\"\\ud83d\"}".into(),
        Bytes::from_static(b"{\"prompt\":\"\xff\"}"),
        Bytes::from_static(b"{\"prompt\":\"\xc4\xe3\xba\xc3\"}"),
        Bytes::from_static(b"\xff\xfe{\x00}\x00"),
        deep(128).into(),
        deep(3_000).into(),
        deep(100_000).into(),
    ];
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let (status, error) = rig.post_raw("/execute", body).await.error().await;
        assert_eq!(
            (status, error.code.as_str()),
            (400, "invalid_json"),
            "{shown}: {error:?}"
        );
    }
    rig.assert_alive().await;
}

/// P20: a body that is too large is refused, declared or not, without being kept.
#[tokio::test]
async fn p20_large_bodies_are_refused() {
    let limits = Limits {
        body_bytes: 1000,
        ..Limits::default()
    };
    let rig = Rig::with(RigOptions::limited(limits), text(" a fox"));
    let body = |bytes: usize| {
        let frame = json!({"prompt": "", "max_tokens": 1}).to_string().len();
        json!({"prompt": "a".repeat(bytes - frame), "max_tokens": 1}).to_string()
    };
    assert_eq!(rig.post_raw("/execute", body(1000)).await.status, 200);
    let blanks = (0..100).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1000])));
    let chunked = Body::from_stream(stream::iter(blanks));
    for too_large in [Body::from(body(1001)), Body::from(body(10_000)), chunked] {
        let (status, error) = rig.post_raw("/execute", too_large).await.error().await;
        assert_eq!((status, error.code.as_str()), (413, "body_too_large"));
        assert!(error.message.contains("1000"), "{error:?}");
    }
    // Not a byte of these is waited for.
    let mut declared = request(
        Method::POST,
        "/execute",
        Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()),
    );
    declared
        .headers_mut()
        .insert("content-length", "1000000000".parse().unwrap());
    assert_eq!(rig.send(declared).await.error().await.0, 413);
}

/// P20: only plain JSON; a compressed body could grow without bound.
#[tokio::test]
async fn p20_other_media_types_are_refused() {
    let rig = rig();
    for (header, value) in [
        ("content-type", "text/plain"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-encoding", "gzip"),
    ] {
        let mut request = request(
            Method::POST,
            "/execute",
            json!({"prompt": PROMPT}).to_string(),
        );
        request.headers_mut().insert(header, value.parse().unwrap());
        let (status, error) = rig.send(request).await.error().await;
        assert_eq!(
            (status, error.code.as_str()),
            (415, "unsupported_media_type")
        );
        assert!(
            error.message.contains(header) && error.message.contains(value),
            "{error:?}"
        );
    }
    let mut bare = request(Method::POST, "/execute", "{}");
    bare.headers_mut().remove("content-type");
    assert_eq!(rig.send(bare).await.error().await.0, 415);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_answered_in_json() {
    let rig = rig();
    let (status, error) = rig.get("/nowhere/%0d%0a").await.error().await;
    assert_eq!((status, error.code.as_str()), (404, "not_found"));
    for (method, path, allowed) in [
        (Method::GET, "/execute", "POST"),
        (Method::DELETE, "/cancel", "POST"),
        (Method::POST, "/health", "GET,HEAD"),
    ] {
        let answer = rig.send(request(method, path, "{}")).await;
        assert_eq!(answer.headers["allow"], allowed, "{path}");
        let (status, error) = answer.error().await;
        assert_eq!(
            (status, error.code.as_str()),
            (405, "method_not_allowed"),
            "{path}"
        );
    }
}

/// C12: a page that rebinds its own name to this machine cannot use the server.
#[tokio::test]
async fn c12_other_hosts_are_refused() {
    let rig = rig();
    for path in ["/health", "/execute"] {
        let mut foreign = request(Method::GET, path, "");
        foreign
            .headers_mut()
            .insert("host", "evil.example".parse().unwrap());
        let (status, error) = rig.send(foreign).await.error().await;
        assert_eq!((status, error.code.as_str()), (403, "forbidden_host"));
    }
}

/// C13: with a key, everything but health needs it, what is not there included.
#[tokio::test]
async fn c13_a_key_is_needed_everywhere_but_for_health() {
    let config = ServerConfig {
        api_key: ApiKey::new("secret"),
        ..ServerConfig::default()
    };
    let rig = Rig::with(RigOptions::configured(config), text(" a fox"));
    assert_eq!(rig.get("/health").await.status, 200);
    for (method, path) in [
        (Method::POST, "/execute"),
        (Method::POST, "/cancel"),
        (Method::GET, "/nowhere"),
        (Method::PUT, "/execute"),
    ] {
        for key in [None, Some("Bearer wrong"), Some("secret")] {
            let mut request = request(method.clone(), path, json!({"prompt": PROMPT}).to_string());
            if let Some(key) = key {
                request
                    .headers_mut()
                    .insert("authorization", key.parse().unwrap());
            }
            let answer = rig.send(request).await;
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            let (status, error) = answer.error().await;
            assert_eq!(
                (status, error.code.as_str()),
                (401, "invalid_api_key"),
                "{path} {key:?}"
            );
        }
    }
    let mut request = request(
        Method::POST,
        "/execute",
        json!({"prompt": PROMPT}).to_string(),
    );
    request
        .headers_mut()
        .insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(rig.send(request).await.transcript().await.text(), " a fox");
}

/// P2: what no f64 holds is no number. P3: what no f32 holds is out of range.
#[tokio::test]
async fn p2_p3_numbers_that_no_float_holds_are_refused() {
    let rig = rig();
    for number in ["1e309", "-1e309", "NaN", "Infinity"] {
        let body = format!(r#"{{"prompt": "{PROMPT}", "temperature": {number}}}"#);
        let (status, error) = rig.post_raw("/execute", body).await.error().await;
        assert_eq!(
            (status, error.code.as_str()),
            (400, "invalid_json"),
            "{number}"
        );
    }
    let body = format!(r#"{{"prompt": "{PROMPT}", "temperature": 1e39}}"#);
    let (status, error) = rig.post_raw("/execute", body).await.error().await;
    assert_eq!((status, error.param.as_deref()), (400, Some("temperature")));
}

/// N2: parameters that leave nothing to draw from are the request's fault, a logit that is not a number the model's.
#[tokio::test]
async fn n2_nothing_left_to_draw_is_422_and_a_broken_row_500() {
    let fox = crate::support::tokens(" fox")[0];
    let rig = Rig::new(move |index| match index {
        0 => crate::support::Reply::Token(fox),
        _ => crate::support::Reply::Nan,
    });
    let body = json!({"prompt": PROMPT, "max_tokens": 1, "bad_words": [[fox]]});
    let (status, error) = rig.post("/v1/completions", &body).await.error().await;
    assert_eq!(
        (status, error.code.as_str(), error.kind.as_str()),
        (422, "nothing_to_draw", "invalid_request_error")
    );
    let body = json!({"prompt": PROMPT, "max_tokens": 2});
    let (status, error) = rig.post("/v1/completions", &body).await.error().await;
    assert_eq!((status, error.code.as_str()), (500, "nothing_to_draw"));
}

/// C13: without a key nobody ends the worker, unless the operator lets them.
#[tokio::test]
async fn c13_a_shutdown_needs_a_key_or_leave() {
    let rig = rig();
    let (status, error) = rig.post("/shutdown", &json!({})).await.error().await;
    assert_eq!((status, error.code.as_str()), (403, "shutdown_forbidden"));
    assert!(rig.state.shutdown().is_serving());
    // A web page of another origin could send what is not declared as JSON.
    let mut plain = request(Method::POST, "/shutdown", "{}");
    plain.headers_mut().remove("content-type");
    assert_eq!(rig.send(plain).await.error().await.0, 415);
}

/// P11, P13, P14: what an operator bounds is bounded, in the operator's numbers.
#[tokio::test]
async fn p11_p13_p14_limits_are_those_of_the_operator() {
    let limits = Limits {
        prompt_tokens: Some(5),
        output_tokens: Some(3),
        stops: 1,
        compatible_stops: 2,
        stop_bytes: 4,
        bad_words: 1,
        choices: 2,
        ..Limits::default()
    };
    let rig = Rig::with(RigOptions::limited(limits), forever());
    for (path, field, value, param) in [
        ("/execute", "prompt", json!("word ".repeat(20)), "prompt"),
        ("/execute", "max_tokens", json!(4), "max_tokens"),
        ("/execute", "stop", json!(["a", "b"]), "stop"),
        ("/execute", "stop", json!("abcde"), "stop"),
        ("/v1/completions", "stop", json!(["a", "b", "c"]), "stop"),
        (
            "/v1/completions",
            "bad_words",
            json!(["a", "b"]),
            "bad_words",
        ),
        (
            "/v1/completions",
            "bad_words",
            json!(["abcde"]),
            "bad_words",
        ),
        ("/v1/completions", "n", json!(3), "n"),
        (
            "/v1/completions",
            "prompt",
            json!(["a", "b", "c"]),
            "prompt",
        ),
        (
            "/v1/completions",
            "prompt",
            json!([1, 2, 3, 4, 5, 6]),
            "prompt",
        ),
    ] {
        let mut body = json!({"prompt": PROMPT});
        body[field] = value;
        let (status, error) = rig.post(path, &body).await.error().await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some(param)),
            "{error:?}"
        );
    }
    let body = json!({"prompt": PROMPT, "temperature": 0});
    assert_eq!(rig.execute(&body).await.started["params"]["max_tokens"], 3);
    let body = json!({"prompt": PROMPT, "max_tokens": 7});
    let answer = rig.post("/v1/completions", &body).await;
    let warning = answer.headers["x-nucleus-warnings"].clone();
    assert_eq!(warning, "max_tokens: there is room for 3 of 7");
    assert_eq!(answer.json().await["usage"]["completion_tokens"], 3);
}

/// C7: a full queue says so at once, with the time to come back; so does a server that shuts down.
#[tokio::test]
async fn c7_a_full_queue_is_429_and_a_shutdown_503() {
    let engine = EngineOptions {
        max_running: 1,
        max_waiting: 1,
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
    let body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 900});
    let first = rig.execute_while_stepping(&body).await;
    let second = rig.execute_while_stepping(&body).await;
    let answer = rig.execute_while_stepping(&body).await;
    assert_eq!(answer.headers["retry-after"], "1");
    let (status, error) = answer.error().await;
    assert_eq!(
        (status, error.code.as_str(), error.kind.as_str()),
        (429, "queue_full", "rate_limit_error")
    );
    rig.gate.open();
    assert_eq!(first.transcript().await.tokens.len(), 900);
    assert_eq!(second.transcript().await.tokens.len(), 900);
    rig.idle().await;
    rig.engine.shutdown(false);
    let answer = rig.post("/execute", &body).await;
    assert_eq!(answer.headers["retry-after"], "1");
    let (status, error) = answer.error().await;
    assert_eq!((status, error.code.as_str()), (503, "shutting_down"));
}
