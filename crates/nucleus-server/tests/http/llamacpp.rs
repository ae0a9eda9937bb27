//! The routes of llama.cpp's server, as its clients know them (R5.1).

use axum::http::StatusCode;
use nucleus_engine::generate::EngineOptions;
use serde_json::{Value, json};

use crate::support::{
    Answer, PROMPT, Reply, Rig, RigOptions, chat_template, encode_prompt, forever, text, tokenizer,
    tokens,
};

const COMPLETION: &str = "/completion";

/// A request with these fields besides the prompt.
async fn complete(rig: &Rig, fields: Value) -> Answer {
    let mut body = json!({"prompt": PROMPT});
    let Value::Object(fields) = fields else {
        panic!("{fields} is not an object");
    };
    body.as_object_mut().expect("an object").extend(fields);
    rig.post(COMPLETION, &body).await
}

async fn ok(answer: Answer) -> Value {
    let (status, body) = (answer.status, answer.json().await);
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

/// The data of a stream's events, which have nothing else.
async fn parts(answer: Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let stream = String::from_utf8(answer.bytes().await).expect("a stream is UTF-8");
    let blocks = stream.strip_suffix("\n\n").expect("whole events");
    let data = blocks.split("\n\n").map(|block| {
        let data = block
            .strip_prefix("data: ")
            .expect("data, and nothing else");
        serde_json::from_str(data).expect("data is JSON")
    });
    data.collect()
}

/// Two tokens of probability 3/4 and 1/4 at every position.
fn two_tokens() -> ([u32; 2], impl FnMut(usize) -> Reply + Send) {
    let ids = [" fox", " bear"].map(|word| tokens(word)[0]);
    let logits = vec![(ids[0], 3_f32.ln()), (ids[1], 0.0)];
    (ids, move |_| Reply::Logits(logits.clone()))
}

fn near(value: &Value, expected: f64) -> bool {
    (value.as_f64().expect("a number") - expected).abs() < 1e-5
}

/// R5.1: an answer with everything that clients read.
#[tokio::test]
async fn r5_1_a_completion_has_its_shape() {
    let rig = Rig::new(text(" a fox\n"));
    for path in [COMPLETION, "/completions"] {
        let body = ok(rig
            .post(
                path,
                &json!({"prompt": PROMPT, "seed": 7, "return_tokens": true}),
            )
            .await)
        .await;
        let prompt = encode_prompt(PROMPT).len();
        let drawn = tokens(" a fox\n").len() + 1;
        assert_eq!(body["index"], 0);
        assert_eq!(body["content"], " a fox\n");
        assert_eq!(body["tokens"].as_array().unwrap().len(), drawn);
        assert_eq!(body["id_slot"], -1);
        assert_eq!(body["stop"], true);
        assert_eq!(body["model"], "scripted");
        assert_eq!(body["tokens_predicted"], drawn);
        assert_eq!(body["tokens_evaluated"], prompt);
        assert_eq!(body["tokens_cached"], prompt + drawn - 1);
        assert_eq!(body["prompt"], PROMPT);
        assert_eq!(body["has_new_line"], true);
        assert_eq!(body["truncated"], false);
        assert_eq!(body["stop_type"], "eos");
        assert_eq!(body["stopping_word"], "");
        assert_eq!(body["timings"]["prompt_n"], prompt);
        assert_eq!(body["timings"]["predicted_n"], drawn);
        assert!(body["timings"]["predicted_per_second"].is_number());
        assert!(body.get("completion_probabilities").is_none());
        let settings = &body["generation_settings"];
        assert_eq!(settings["seed"], 7);
        assert_eq!(settings["temperature"], 0.8);
        assert_eq!(
            (&settings["top_k"], &settings["n_predict"]),
            (&json!(40), &json!(-1))
        );
        assert_eq!(settings["preset"], "llama.cpp");
        assert_eq!(
            settings["dry_sequence_breakers"],
            json!(["\n", ":", "\"", "*"])
        );
        assert_eq!(settings["samplers"][0], "penalties");
    }
    let tokens = ok(complete(&rig, json!({})).await).await;
    assert_eq!(tokens["tokens"], json!([]), "they are not asked for");
}

/// R5.1: each token is a part; the last one is an answer without text; nothing follows it.
#[tokio::test]
async fn r5_1_a_completion_streams() {
    let rig = Rig::new(text(" a fox"));
    let whole = ok(complete(&rig, json!({"seed": 3, "return_tokens": true})).await).await;
    let parts = parts(complete(&rig, json!({"seed": 3, "stream": true})).await).await;
    let (last, before) = parts.split_last().unwrap();
    let content: String = before
        .iter()
        .map(|part| part["content"].as_str().unwrap())
        .collect();
    assert_eq!(content, whole["content"]);
    let ids: Vec<&Value> = before.iter().map(|part| &part["tokens"][0]).collect();
    assert_eq!(json!(ids), whole["tokens"]);
    for (index, part) in before.iter().enumerate() {
        assert_eq!((&part["stop"], &part["index"]), (&json!(false), &json!(0)));
        assert_eq!(part["tokens_predicted"], index + 1);
        assert!(part.get("timings").is_none());
    }
    assert_eq!(
        (&last["stop"], &last["content"]),
        (&json!(true), &json!(""))
    );
    assert_eq!(last["tokens"], json!([]));
    assert_eq!(last["stop_type"], "eos");
    assert_eq!(last["generation_settings"]["stream"], true);
    assert!(last["timings"]["prompt_ms"].is_number());
}

/// R5.1: `timings_per_token` puts timings into every part.
#[tokio::test]
async fn r5_1_parts_have_timings_when_asked() {
    let rig = Rig::new(text(" a fox"));
    let ask = json!({"stream": true, "timings_per_token": true});
    let parts = parts(complete(&rig, ask).await).await;
    for (index, part) in parts[..parts.len() - 1].iter().enumerate() {
        assert_eq!(part["timings"]["predicted_n"], index + 1, "{part}");
        assert!(part["timings"]["prompt_ms"].as_f64().unwrap() >= 0.0);
    }
}

/// R1.4, R5.1: text is held back only while it may still become a stop string: the parts joined are the whole text.
#[tokio::test]
async fn r1_4_r5_1_stops_end_a_completion() {
    let rig = Rig::new(text(" a fox and a bear"));
    // What the first two parts say: " a" may become " and", but no part of "x a".
    for (stop, first, content, word) in [
        (
            json!([" and a cat"]),
            ["", " a fox"],
            " a fox and a bear",
            "",
        ),
        (
            json!([" and a bear", " and a cat"]),
            ["", " a fox"],
            " a fox",
            " and a bear",
        ),
        (json!("x a"), [" a", " fo"], " a fo", "x a"),
    ] {
        let ask = json!({"stop": stop, "seed": 1});
        let whole = ok(complete(&rig, ask).await).await;
        assert_eq!(whole["content"], content);
        assert_eq!(whole["stopping_word"], word);
        let kind = if word.is_empty() { "eos" } else { "word" };
        assert_eq!(whole["stop_type"], kind);
        let ask = json!({"stop": stop, "seed": 1, "stream": true});
        let parts = parts(complete(&rig, ask).await).await;
        let texts: Vec<&str> = parts
            .iter()
            .map(|part| part["content"].as_str().unwrap())
            .collect();
        assert_eq!(texts[..2], first);
        assert_eq!(texts.concat(), content);
        assert_eq!(parts.last().unwrap()["stopping_word"], word);
    }
    let and = tokens(" and")[0];
    let ask = json!({"stop_token_ids": [and], "include_stop_str_in_output": true});
    let body = ok(complete(&rig, ask).await).await;
    assert_eq!(
        (&body["content"], &body["stop_type"], &body["stopping_word"]),
        (&json!(" a fox and"), &json!("word"), &json!(" and"))
    );
}

/// R5.1: lengths: the request's own, none, and that of the context.
#[tokio::test]
async fn r5_1_a_length_may_be_none_or_nothing() {
    let rig = Rig::new(forever());
    let body = ok(complete(&rig, json!({"n_predict": 3})).await).await;
    assert_eq!(
        (&body["stop_type"], &body["tokens_predicted"]),
        (&json!("limit"), &json!(3))
    );
    assert_eq!(body["truncated"], false);
    assert_eq!(body["generation_settings"]["n_predict"], 3);
    let body = ok(complete(&rig, json!({"n_predict": 0})).await).await;
    assert_eq!(
        (&body["content"], &body["tokens_predicted"]),
        (&json!(""), &json!(0))
    );
    assert_eq!(body["tokens_evaluated"], encode_prompt(PROMPT).len());
    assert_eq!(body["stop_type"], "limit");
    let body = ok(complete(&rig, json!({})).await).await;
    assert_eq!(
        (&body["stop_type"], &body["truncated"]),
        (&json!("limit"), &json!(true))
    );
    assert_eq!(body["tokens_predicted"], 1024 - encode_prompt(PROMPT).len());
    rig.idle().await;
}

/// R5.1: probabilities of either distribution, whole and streamed.
#[tokio::test]
async fn r5_1_probabilities_are_reported() {
    let ([fox, bear], script) = two_tokens();
    let rig = Rig::new(script);
    let ask = json!({"n_predict": 2, "top_k": 1, "n_probs": 2});
    let body = ok(complete(&rig, ask.clone()).await).await;
    let probabilities = body["completion_probabilities"].as_array().unwrap();
    assert_eq!(probabilities.len(), 2);
    let first = &probabilities[0];
    assert_eq!(
        (&first["id"], &first["token"]),
        (&json!(fox), &json!(" fox"))
    );
    assert_eq!(first["bytes"], json!(b" fox"));
    assert!(near(&first["logprob"], 0.75_f64.ln()));
    let top = first["top_logprobs"].as_array().unwrap();
    assert_eq!(top.len(), 2);
    assert!(top[1]["id"] == bear && near(&top[1]["logprob"], 0.25_f64.ln()));

    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    let parts = parts(complete(&rig, streamed).await).await;
    assert_eq!(
        parts[1]["completion_probabilities"],
        json!([probabilities[1]])
    );
    assert!(parts[2].get("completion_probabilities").is_none());

    // Of what was drawn from, nothing else is left.
    let mut post = ask;
    post["post_sampling_probs"] = true.into();
    let body = ok(complete(&rig, post).await).await;
    let first = &body["completion_probabilities"][0];
    assert!(near(&first["prob"], 1.0), "{first}");
    assert_eq!(first["top_probs"].as_array().unwrap().len(), 1);
    assert!(first.get("logprob").is_none());
}

/// R5.1: several prompts, several choices: one answer each, in order; streams carry the index.
#[tokio::test]
async fn r5_1_prompts_and_choices_have_an_answer_each() {
    let (_, script) = two_tokens();
    let rig = Rig::new(script);
    let ids = encode_prompt(PROMPT);
    let ask = |prompt: Value, n: usize| json!({"prompt": prompt, "n_cmpl": n, "n_predict": 24, "seed": 5});
    let one = ok(rig.post(COMPLETION, &ask(json!(PROMPT), 2)).await).await;
    assert_eq!(one.as_array().unwrap().len(), 2);
    assert_ne!(one[0]["content"], one[1]["content"]);
    let mixed = json!([ids[0], tokenizer().decode(&ids[1..], false)]);
    let several = json!([PROMPT, ids, mixed]);
    let all = ok(rig.post(COMPLETION, &ask(several.clone(), 2)).await).await;
    for index in 0..6 {
        assert_eq!(all[index]["index"], index);
        assert_eq!(all[index]["content"], one[index % 2]["content"], "{index}");
    }
    let mut streamed = ask(several, 2);
    streamed["stream"] = true.into();
    let parts = parts(rig.post(COMPLETION, &streamed).await).await;
    for index in 0..6 {
        let of: Vec<&Value> = parts.iter().filter(|part| part["index"] == index).collect();
        let content: String = of
            .iter()
            .map(|part| part["content"].as_str().unwrap())
            .collect();
        assert_eq!(content, one[index % 2]["content"].as_str().unwrap());
        assert_eq!(of.iter().filter(|part| part["stop"] == true).count(), 1);
    }
    rig.idle().await;
}

/// R5.1: the order of stages is by name or by letter, and it acts: llama.cpp's temperature last keeps what temperature first cuts.
#[tokio::test]
async fn r5_1_the_order_of_stages_acts() {
    // 3, 2, 1: top_p 0.8 keeps two tokens, but one once temperature 0.5 has sharpened them.
    let ids = [" fox", " bear", " king"].map(|word| tokens(word)[0]);
    let logits = vec![(ids[0], 3.0), (ids[1], 2.0), (ids[2], 1.0)];
    let rig = Rig::new(move |_| Reply::Logits(logits.clone()));
    for (samplers, kept) in [
        (Value::Null, 2),
        (json!(["top_p", "temperature"]), 2),
        (json!("pt"), 2),
        (json!(["temperature", "top_p"]), 1),
        (json!("tp"), 1),
        (json!(["top_p", "adaptive_p", "temperature"]), 2),
        (json!([]), 3),
    ] {
        let ask = json!({"n_predict": 1, "temperature": 0.5, "top_p": 0.8, "min_p": 0, "samplers": samplers,
            "n_probs": 5, "post_sampling_probs": true});
        let body = ok(complete(&rig, ask).await).await;
        let top = &body["completion_probabilities"][0]["top_probs"];
        assert_eq!(top.as_array().unwrap().len(), kept, "{samplers}");
    }
}

/// R5.1: `logit_bias` in all its forms.
#[tokio::test]
async fn r5_1_biases_have_many_forms() {
    let ([fox, bear], script) = two_tokens();
    let rig = Rig::new(script);
    for bias in [
        json!([[bear, 100]]),
        json!([[" bear", 60], [bear, 40]]),
        json!([[fox, false]]),
        json!([[" fox", false]]),
        json!({fox.to_string(): false}),
        json!({" bear": 100.5}),
    ] {
        let body = ok(complete(&rig, json!({"n_predict": 2, "logit_bias": bias})).await).await;
        assert_eq!(body["content"], " bear bear", "{bias}");
    }
    let both = json!({"n_predict": 1, "logit_bias": [[fox, false]], "bad_words": [" bear"]});
    let answer = complete(&rig, both).await;
    assert_eq!(answer.status, 422, "nothing is left to draw");
}

/// R5.1: only the fields that are asked for are answered.
#[tokio::test]
async fn r5_1_response_fields_are_picked() {
    let rig = Rig::new(text(" a fox"));
    let ask = json!({"response_fields": ["content", "generation_settings/n_predict", "nothing"]});
    let body = ok(complete(&rig, ask).await).await;
    assert_eq!(body, json!({"content": " a fox", "n_predict": -1}));
}

/// R5.1: what would change the answer is refused by name, what is unknown is named in a header, what does nothing is accepted.
#[tokio::test]
async fn r5_1_fields_are_not_passed_over_in_silence() {
    let rig = Rig::new(text(" a fox"));
    for (field, value) in [
        ("grammar_lazy", json!(true)),
        ("lora", json!([{"id": 0, "scale": 1}])),
        ("n_indent", json!(2)),
        ("return_progress", json!(true)),
        ("reasoning_budget_tokens", json!(5)),
        ("t_max_prompt_ms", json!(5)),
    ] {
        let (status, error) = complete(&rig, json!({field: value})).await.error().await;
        assert_eq!((status, error.param.as_deref()), (400, Some(field)));
        assert_eq!(error.code, "unsupported_value");
    }
    let ask = json!({"cache_prompt": true, "id_slot": 3, "n_keep": -1, "grammar": "", "temprature": 1, "top_k": 5, "mirostat": 2});
    let answer = complete(&rig, ask).await;
    let warnings: Vec<&str> = answer
        .headers
        .get_all("x-nucleus-warnings")
        .iter()
        .map(|line| line.to_str().unwrap())
        .collect();
    assert_eq!(warnings[0], "\"temprature\": no such field; it is ignored");
    assert!(
        warnings[1].starts_with("top_k: does not act"),
        "{warnings:?}"
    );
    assert_eq!(
        warnings.len(),
        2,
        "defaults are not warned of: {warnings:?}"
    );
    assert_eq!(answer.status, StatusCode::OK);
}

/// P8, P9, P10, P11, P12, P13, P15: bad values are refused in their field's name.
#[tokio::test]
async fn p8_p9_p10_p11_p12_bad_values_are_refused() {
    let rig = Rig::new(text(" a fox"));
    for (field, values) in [
        (
            "prompt",
            json!([
                "",
                [],
                [[]],
                [""],
                [-1],
                [1.5],
                [[5], [-5]],
                {},
                true,
                [8192],
                ["x", [1_000_000]]
            ]),
        ),
        ("n_predict", json!([-2, 1_u64 << 31, 1_u64 << 63, 1.5, "5"])),
        (
            "n_cmpl",
            json!([0, -1, 129, 1_u64 << 31, 1_u64 << 63, 1e20]),
        ),
        ("n_probs", json!([-1, 101, 1_u64 << 31, 1.5])),
        ("temperature", json!([-1, "1", 1e39])),
        ("top_k", json!([-2, 1.5, 1_u64 << 40])),
        ("top_p", json!([-0.1, 1.1])),
        ("min_p", json!([1.1])),
        ("repetition_penalty", json!([0, -1])),
        ("stop", json!(["", [""], 5])),
        (
            "samplers",
            json!(["kq", ["nothing"], ["top_k", "top_k"], 5]),
        ),
        (
            "logit_bias",
            json!([{"8192": 1}, [[8192, 1]], [[1]], [[1, true]], [[1, 10001]], [["", 1]], 5]),
        ),
        (
            "dry_sequence_breakers",
            json!([[""], [["x"]], [5], "x", [[8192]]]),
        ),
        ("t_max_predict_ms", json!([-2, 1.5])),
        ("max_time_ms", json!([0, -1, 1_u64 << 40])),
        ("stream", json!([1])),
        ("response_fields", json!([5, [5]])),
        ("seed", json!([1.5, "1"])),
        ("model", json!([5])),
    ] {
        for value in values.as_array().unwrap() {
            let (status, error) = complete(&rig, json!({field: value})).await.error().await;
            assert_eq!(
                (status, error.param.as_deref()),
                (400, Some(field)),
                "{field} {value}: {error:?}"
            );
        }
    }
    assert_eq!(complete(&rig, json!({"model": "other"})).await.status, 404);
    let many = vec![PROMPT; 129];
    let (_, error) = complete(&rig, json!({"prompt": many})).await.error().await;
    assert_eq!(error.param.as_deref(), Some("prompt"));
    rig.assert_alive().await;
}

/// R5.1: a seed repeats an answer; the numbers that stand for a random one do not fix it.
#[tokio::test]
async fn r5_1_a_seed_may_be_random() {
    let (_, script) = two_tokens();
    let rig = Rig::new(script);
    for random in [json!(-1), json!(4_294_967_295_u32), Value::Null] {
        let ask = json!({"n_predict": 1, "seed": random});
        let body = ok(complete(&rig, ask).await).await;
        let seed = body["generation_settings"]["seed"].as_u64().unwrap();
        assert_ne!(seed, 4_294_967_295);
    }
    let ask = json!({"n_predict": 24, "seed": 11});
    let first = ok(complete(&rig, ask.clone()).await).await;
    assert_eq!(
        first["content"],
        ok(complete(&rig, ask).await).await["content"]
    );
}

/// R5.1: a text becomes tokens and tokens a text, with the pieces of both.
#[tokio::test]
async fn r5_1_texts_become_tokens_and_back() {
    let rig = Rig::new(forever());
    let end = tokenizer().end_of_generation()[0];
    let name = tokenizer().token_text(end).to_owned();
    let content = format!("Once upon a time{name}");
    let body = ok(rig.post("/tokenize", &json!({"content": content})).await).await;
    let mut expected = tokens("Once upon a time");
    expected.push(end);
    assert_eq!(body, json!({"tokens": expected}));
    let back = ok(rig.post("/detokenize", &body).await).await;
    assert_eq!(back, json!({"content": content}));
    let plain = json!({"content": content, "parse_special": false});
    let plain = ok(rig.post("/tokenize", &plain).await).await;
    assert!(plain["tokens"].as_array().unwrap().len() > expected.len());
    let begun = json!({"content": PROMPT, "add_special": true});
    let begun = ok(rig.post("/tokenize", &begun).await).await;
    assert_eq!(begun["tokens"], json!(encode_prompt(PROMPT)));

    let pieces = json!({"content": [end, "\u{1f98a}"], "with_pieces": true});
    let pieces = ok(rig.post("/tokenize", &pieces).await).await;
    let pieces = pieces["tokens"].as_array().unwrap();
    assert_eq!(pieces[0], json!({"id": end, "piece": name}));
    let bytes: Vec<u8> = pieces[1..]
        .iter()
        .flat_map(|token| match &token["piece"] {
            Value::String(text) => text.as_bytes().to_vec(),
            bytes => serde_json::from_value(bytes.clone()).unwrap(),
        })
        .collect();
    assert_eq!(bytes, "\u{1f98a}".as_bytes());
    assert!(pieces[1..].iter().any(|token| token["piece"].is_array()));

    for (path, body, param) in [
        ("/tokenize", json!({}), "content"),
        ("/tokenize", json!({"content": 5}), "content"),
        ("/tokenize", json!({"content": ["x", -1]}), "content"),
        (
            "/tokenize",
            json!({"content": "x", "with_pieces": 1}),
            "with_pieces",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [8192]}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
    ] {
        let (status, error) = rig.post(path, &body).await.error().await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some(param)),
            "{path} {body}"
        );
    }
    let answer = rig
        .post("/tokenize", &json!({"content": "x", "contents": 1}))
        .await;
    assert_eq!(
        answer.headers["x-nucleus-warnings"],
        "\"contents\": no such field; it is ignored"
    );
}

/// However much of a request is unknown, the answer has no more headers than clients take: Python's take 100.
#[tokio::test]
async fn warnings_are_as_many_as_clients_can_take() {
    let unknown = |begin: usize| {
        let names = (begin..begin + 200).map(|i| (format!("\u{1}{}{i}", "é".repeat(80)), json!(1)));
        Value::Object(names.collect())
    };
    let mut message = unknown(0);
    message["role"] = "user".into();
    message["content"] = PROMPT.into();
    let mut templated = unknown(200);
    templated["messages"] = json!([message]);
    let mut streamed = json!({"prompt": PROMPT, "stream": true});
    streamed["stream_options"] = unknown(0);
    for (path, body) in [
        ("/apply-template", &templated),
        ("/v1/chat/completions", &templated),
        ("/v1/completions", &streamed),
    ] {
        let rig = Rig::new(text(" a fox"));
        let answer = rig.post(path, body).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        let bytes: usize = answer.headers.values().map(|value| value.len()).sum();
        assert!(
            (20..40).contains(&answer.headers.len()),
            "{path}: {}",
            answer.headers.len()
        );
        assert!(bytes < 8000, "{path}: {bytes}");
        let mut warnings = answer.headers.get_all("x-nucleus-warnings").iter();
        let last = warnings.next_back().expect("warnings").to_str().unwrap();
        assert!(last.ends_with("more warnings"), "{path}: {last}");
    }
}

/// R5.1: the template's prompt is what a conversation is answered with.
#[tokio::test]
async fn r5_1_a_template_is_applied() {
    let rig = Rig::new(forever());
    let ask = json!({"messages": [{"role": "user", "content": PROMPT}]});
    let body = ok(rig.post("/apply-template", &ask).await).await;
    let expected = chat_template()
        .render(&[nucleus_engine::chat_template::Message::new("user", PROMPT)])
        .unwrap();
    assert_eq!(body, json!({"prompt": expected}));
    let mut bare = ask.clone();
    bare["add_generation_prompt"] = false.into();
    let bare = ok(rig.post("/apply-template", &bare).await).await;
    assert!(expected.starts_with(bare["prompt"].as_str().unwrap()));
    assert_ne!(bare["prompt"], expected);
    let mut tools = ask;
    tools["tools"] = json!([{"type": "function"}]);
    let (status, error) = rig.post("/apply-template", &tools).await.error().await;
    assert_eq!((status, error.param.as_deref()), (400, Some("tools")));
}

/// R5.1: what the server is, and how busy.
#[tokio::test]
async fn r5_1_props_and_slots_tell_of_the_server() {
    let options = RigOptions {
        engine: EngineOptions {
            max_running: 2,
            ..EngineOptions::default()
        },
        gated: true,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, forever());
    let props = ok(rig.get("/props").await).await;
    assert_eq!(props["total_slots"], 2);
    assert_eq!(props["model_alias"], "scripted");
    assert_eq!(props["chat_template"], chat_template().source());
    assert_eq!(props["default_generation_settings"]["n_ctx"], 1024);
    let defaults = &props["default_generation_settings"]["params"];
    assert_eq!(
        (&defaults["top_k"], &defaults["temperature"]),
        (&json!(40), &json!(0.8))
    );
    // A client may send them back as they are.
    let mut body = defaults.clone();
    body["prompt"] = PROMPT.into();
    body["n_predict"] = 1.into();
    body["max_tokens"] = 1.into();

    let idle = ok(rig.get("/slots").await).await;
    assert_eq!(idle.as_array().unwrap().len(), 2);
    assert!(
        idle.as_array()
            .unwrap()
            .iter()
            .all(|slot| slot["is_processing"] == false)
    );
    let endless = json!({"prompt": PROMPT, "stream": true});
    let first = rig.post(COMPLETION, &endless).await;
    rig.load_until(|load| load.running + load.waiting == 1)
        .await;
    rig.gate.allow(1);
    rig.load_until(|load| load.running == 1).await;
    let busy = ok(rig.get("/slots").await).await;
    assert_eq!(busy[0]["is_processing"], true);
    assert_eq!(busy[1]["is_processing"], false);
    assert_eq!(rig.get("/slots?fail_on_no_slot=1").await.status, 200);
    drop(first);
    rig.gate.open();
    rig.idle().await;
    let sent_back = rig.post(COMPLETION, &body).await;
    let status = sent_back.status;
    assert_eq!(status, StatusCode::OK, "{:?}", sent_back.json().await);
}

/// R5.1: with every slot busy a client that asks to know is told.
#[tokio::test]
async fn r5_1_no_slot_is_an_error_if_asked() {
    let options = RigOptions {
        engine: EngineOptions {
            max_running: 1,
            ..EngineOptions::default()
        },
        gated: true,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, forever());
    let stream = rig
        .post(COMPLETION, &json!({"prompt": PROMPT, "stream": true}))
        .await;
    rig.gate.allow(1);
    rig.load_until(|load| load.running == 1).await;
    let (status, error) = rig.get("/slots?fail_on_no_slot=1").await.error().await;
    assert_eq!((status, error.code.as_str()), (503, "no_slot"));
    assert_eq!(rig.get("/slots").await.status, 200);
    drop(stream);
    rig.gate.open();
    rig.idle().await;
}

/// C4: a client that leaves frees every sequence of its request.
#[tokio::test]
async fn c4_a_client_that_leaves_frees_every_choice() {
    let rig = Rig::new(forever());
    let ask = json!({"prompt": [PROMPT, PROMPT], "n_cmpl": 3, "stream": true});
    let mut answer = rig.post(COMPLETION, &ask).await;
    answer.next_chunk().await;
    drop(answer);
    rig.idle().await;
    rig.assert_alive().await;
}

/// A failure is an error, whole and streamed, never half a text.
#[tokio::test]
async fn a_failure_is_not_passed_for_an_end() {
    let script = || {
        let mut fox = text(" a fox");
        move |at| if at < 2 { fox(at) } else { Reply::Nan }
    };
    let rig = Rig::new(script());
    let (status, error) = complete(&rig, json!({})).await.error().await;
    assert_eq!((status, error.code.as_str()), (500, "nothing_to_draw"));
    let parts = parts(complete(&rig, json!({"stream": true})).await).await;
    assert_eq!(parts.last().unwrap()["error"]["code"], "nothing_to_draw");
    assert!(parts.iter().all(|part| part["stop"] != true));
}
