//! The endpoints of OpenAI: what their fields do, in one answer and in a stream (R5.1).

use axum::http::StatusCode;
use nucleus_engine::chat_template::Message;
use nucleus_engine::generate::EngineOptions;
use nucleus_engine::tokenizer::EncodeOptions;
use nucleus_server::{AppState, ServerConfig, app};
use serde_json::{Value, json};

use crate::support::{
    Answer, GateGuard, PROMPT, Reply, Rig, RigOptions, chat_template, encode_prompt, forever, text,
    tokenizer, tokens,
};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The conversation of every chat here.
fn messages() -> Value {
    json!([{"role": "user", "content": PROMPT}])
}

/// The tokens that the model sees of it.
fn chat_prompt() -> Vec<u32> {
    let prompt = chat_template()
        .render(&[Message::new("user", PROMPT)])
        .expect("a conversation");
    let options = EncodeOptions {
        parse_special: true,
        ..EncodeOptions::default()
    };
    tokenizer().encode(&prompt, options).expect("a short text")
}

/// A worker whose script continues the conversation.
fn chat_rig(script: impl FnMut(usize) -> Reply + Send + 'static) -> Rig {
    let options = RigOptions {
        prompt_len: chat_prompt().len(),
        ..RigOptions::default()
    };
    Rig::with(options, script)
}

/// Two tokens of probability 3/4 and 1/4 at every position.
fn two_tokens() -> ([u32; 2], impl FnMut(usize) -> Reply + Send) {
    let ids = [" fox", " bear"].map(|word| tokens(word)[0]);
    let logits = vec![(ids[0], 3_f32.ln()), (ids[1], 0.0)];
    (ids, move |_| Reply::Logits(logits.clone()))
}

/// A request for a text with these fields besides the prompt.
async fn complete(rig: &Rig, fields: Value) -> Answer {
    let mut body = json!({"model": "scripted", "prompt": PROMPT});
    extend(&mut body, fields);
    rig.post(COMPLETIONS, &body).await
}

async fn chat(rig: &Rig, fields: Value) -> Answer {
    let mut body = json!({"model": "scripted", "messages": messages()});
    extend(&mut body, fields);
    rig.post(CHAT, &body).await
}

fn extend(body: &mut Value, fields: Value) {
    let Value::Object(fields) = fields else {
        panic!("{fields} is not an object");
    };
    body.as_object_mut().expect("an object").extend(fields);
}

async fn ok(answer: Answer) -> Value {
    let (status, body) = (answer.status, answer.json().await);
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

/// The data of a stream's events. It has no other fields, and ends with `[DONE]` unless an error is last.
async fn parts(answer: Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let bytes = answer.bytes().await;
    let stream = String::from_utf8(bytes).expect("a stream is UTF-8");
    let blocks = stream
        .strip_suffix("\n\n")
        .expect("whole events")
        .split("\n\n");
    let mut data: Vec<&str> = blocks
        .map(|block| {
            block
                .strip_prefix("data: ")
                .expect("data, and nothing else")
        })
        .collect();
    let done = data.pop_if(|last| *last == "[DONE]").is_some();
    let parts: Vec<Value> = data
        .iter()
        .map(|data| serde_json::from_str(data).expect("data is JSON"))
        .collect();
    let failed = parts.last().is_some_and(|last| last.get("error").is_some());
    assert_ne!(done, failed, "{stream}");
    parts
}

/// What the parts of a stream add up to for one choice: its text and why it ended.
fn joined(parts: &[Value], index: usize) -> (String, Value) {
    let mut text = String::new();
    let mut finish = Value::Null;
    let choices = parts
        .iter()
        .filter_map(|part| part["choices"].as_array())
        .flatten();
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "nothing follows the end of a choice");
        let more = choice.get("text").unwrap_or(&choice["delta"]["content"]);
        text.push_str(more.as_str().unwrap_or_default());
        finish = choice["finish_reason"].clone();
    }
    (text, finish)
}

fn warnings(answer: &Answer) -> Vec<String> {
    let lines = answer.headers.get_all("x-nucleus-warnings").iter();
    lines
        .map(|line| line.to_str().expect("ASCII").to_owned())
        .collect()
}

/// R5.1: a text, with everything that clients read.
#[tokio::test]
async fn r5_1_a_text_is_completed() {
    let rig = Rig::new(text(" a fox"));
    let answer = complete(&rig, json!({"temperature": 0, "seed": 7})).await;
    assert_eq!(warnings(&answer), Vec::<String>::new());
    let body = ok(answer).await;
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["model"], "scripted");
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(
        body["system_fingerprint"]
            .as_str()
            .unwrap()
            .starts_with("fp_")
    );
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "text": " a fox", "logprobs": null, "finish_reason": "stop", "stop_reason": null}])
    );
    let prompt = encode_prompt(PROMPT).len();
    let completion = tokens(" a fox").len() + 1;
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
    );
    assert_eq!(body["nucleus"]["seed"], 7);
    assert_eq!(body["nucleus"]["params"]["temperature"], 0.0);
    assert_eq!(body["nucleus"]["params"]["max_tokens"], 16);
}

/// R5.1: a conversation goes through the chat template; the whole answer and the streamed one say the same.
#[tokio::test]
async fn r5_1_a_conversation_is_answered() {
    let rig = chat_rig(text("A fox came."));
    let body = ok(chat(&rig, json!({"temperature": 0})).await).await;
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(
        body["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "A fox came.", "refusal": null},
            "logprobs": null, "finish_reason": "stop", "stop_reason": null}])
    );
    assert_eq!(body["usage"]["prompt_tokens"], chat_prompt().len());

    let parts = parts(chat(&rig, json!({"temperature": 0, "stream": true})).await).await;
    assert_eq!(joined(&parts, 0), ("A fox came.".into(), "stop".into()));
    assert_eq!(
        parts[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert!(parts[0]["nucleus"]["seed"].is_u64());
    for part in &parts {
        assert_eq!(part["object"], "chat.completion.chunk");
        assert_eq!(part["id"], parts[0]["id"]);
        assert!(part.get("usage").is_none());
    }
    let last = parts.last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
}

/// R5.1: `include_usage` adds a last part with the usage, and a null to the others.
#[tokio::test]
async fn r5_1_a_stream_says_its_usage_when_asked() {
    let rig = Rig::new(text(" a fox"));
    let options = json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2});
    let parts = parts(complete(&rig, options).await).await;
    let (last, before) = parts.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let completion = 2 * (tokens(" a fox").len() + 1);
    assert_eq!(last["usage"]["prompt_tokens"], encode_prompt(PROMPT).len());
    assert_eq!(last["usage"]["completion_tokens"], completion);
    assert!(before.iter().all(|part| part["usage"] == Value::Null));
    assert!(before.iter().all(|part| part.get("usage").is_some()));
    for index in 0..2 {
        assert_eq!(joined(before, index), (" a fox".into(), "stop".into()));
    }
}

/// R5.1: the choices of a request differ, and each is what its own seed gives alone.
#[tokio::test]
async fn r5_1_choices_have_seeds_that_follow_each_other() {
    let (_, script) = two_tokens();
    let rig = Rig::new(script);
    let body = ok(complete(&rig, json!({"n": 3, "seed": 41, "max_tokens": 32})).await).await;
    let texts: Vec<&str> = (0..3)
        .map(|index| body["choices"][index]["text"].as_str().unwrap())
        .collect();
    assert_ne!(texts[0], texts[1]);
    assert_ne!(texts[1], texts[2]);
    for (index, expected) in texts.into_iter().enumerate() {
        let alone = json!({"seed": 41 + index, "max_tokens": 32});
        let alone = ok(complete(&rig, alone).await).await;
        assert_eq!(alone["choices"][0]["text"], expected);
    }
}

/// R5.1: a prompt is a text, texts, tokens or several of those; each has its choices, in order, whatever the others are.
#[tokio::test]
async fn r5_1_prompts_are_texts_or_tokens() {
    let (_, script) = two_tokens();
    let rig = Rig::new(script);
    let ids = encode_prompt(PROMPT);
    let ask = |prompt: Value| json!({"prompt": prompt, "n": 2, "seed": 5, "max_tokens": 24, "echo": true});
    let one = ok(complete(&rig, ask(json!(PROMPT))).await).await;
    assert_eq!(one["choices"].as_array().unwrap().len(), 2);
    let text =
        |body: &Value, index: usize| body["choices"][index]["text"].as_str().unwrap().to_owned();
    assert!(text(&one, 0).starts_with(PROMPT));
    let same = ok(complete(&rig, ask(json!(ids))).await).await;
    for prompt in [json!([PROMPT, PROMPT]), json!([ids, ids])] {
        let two = ok(complete(&rig, ask(prompt)).await).await;
        assert_eq!(two["usage"]["prompt_tokens"], 2 * ids.len());
        for index in 0..4 {
            assert_eq!(two["choices"][index]["index"], index);
            assert_eq!(text(&two, index), text(&one, index % 2));
        }
    }
    assert_eq!(text(&same, 1), text(&one, 1));
    let mut streamed = ask(json!([PROMPT, PROMPT]));
    streamed["stream"] = true.into();
    let parts = parts(complete(&rig, streamed).await).await;
    for index in 0..4 {
        assert_eq!(joined(&parts, index).0, text(&one, index % 2));
    }
}

/// R1.4, R5.1: stop strings and stop tokens end a text, and say that they did.
#[tokio::test]
async fn r1_4_r5_1_stops_end_a_text() {
    let rig = Rig::new(text(" a fox and a bear"));
    let (and, end) = (tokens(" and")[0], tokenizer().end_of_generation()[0]);
    let choice = |fields: Value| {
        let rig = &rig;
        async move {
            let body = ok(complete(rig, fields).await).await;
            let choice = &body["choices"][0];
            let text = choice["text"].as_str().unwrap().to_owned();
            (
                text,
                choice["finish_reason"].clone(),
                choice["stop_reason"].clone(),
            )
        }
    };
    let whole = " a fox and a bear";
    assert_eq!(
        choice(json!({})).await,
        (whole.into(), "stop".into(), Value::Null)
    );
    assert_eq!(
        choice(json!({"max_tokens": 2})).await,
        (" a fox".into(), "length".into(), Value::Null)
    );
    let stopped = (" a fox".to_owned(), json!("stop"), json!(" and"));
    assert_eq!(choice(json!({"stop": [" bear", " and"]})).await, stopped);
    let included = (" a fox and".to_owned(), json!("stop"), json!(" and"));
    let include = json!({"stop": " and", "include_stop_str_in_output": true});
    assert_eq!(choice(include).await, included);
    let stopped = (" a fox".to_owned(), json!("stop"), json!(and));
    assert_eq!(choice(json!({"stop_token_ids": [and]})).await, stopped);
    let included = (" a fox and".to_owned(), json!("stop"), json!(and));
    let include = json!({"stop_token_ids": [and], "include_stop_str_in_output": true});
    assert_eq!(choice(include).await, included);
    // A stop token that is the model's own end is its end.
    let own = choice(json!({"stop_token_ids": [end]})).await;
    assert_eq!(own, (whole.into(), "stop".into(), Value::Null));
}

/// R5.1: `min_tokens` bans the request's stop tokens as long as it bans the model's own end.
#[tokio::test]
async fn r5_1_min_tokens_bans_stop_tokens() {
    let ([fox, bear], _) = two_tokens();
    let end = tokenizer().end_of_generation()[0];
    let rig = Rig::new(move |_| Reply::Logits(vec![(end, 2.0), (fox, 1.0), (bear, 0.0)]));
    let length = |fields: Value| {
        let rig = &rig;
        async move {
            let mut all = json!({"temperature": 0, "max_tokens": 8});
            extend(&mut all, fields);
            let body = ok(complete(rig, all).await).await;
            body["usage"]["completion_tokens"].as_u64().unwrap()
        }
    };
    assert_eq!(length(json!({})).await, 1);
    assert_eq!(length(json!({"min_tokens": 3})).await, 4);
    assert_eq!(
        length(json!({"ignore_eos": true, "stop_token_ids": [fox]})).await,
        1
    );
    // Two ends are banned at first, then the likelier one comes.
    assert_eq!(
        length(json!({"min_tokens": 3, "stop_token_ids": [fox]})).await,
        4
    );
    let both = json!({"min_tokens": 3, "stop_token_ids": [fox], "ignore_eos": true});
    let (status, error) = complete(&rig, both).await.error().await;
    assert_eq!(
        (status, error.param.as_deref()),
        (400, Some("stop_token_ids"))
    );
}

/// R5.1: log-probabilities are of the model's own distribution, in each endpoint's shape.
#[tokio::test]
async fn r5_1_logprobs_are_reported() {
    let ([fox, bear], script) = two_tokens();
    let rig = Rig::new(script);
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-5;
    // Biased beyond doubt, which the reported distribution does not know.
    let always = json!({bear.to_string(): 100});
    let ask = json!({"max_tokens": 2, "logit_bias": always, "logprobs": 1});
    let body = ok(complete(&rig, ask.clone()).await).await;
    let logprobs = &body["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!([" bear", " bear"]));
    assert_eq!(logprobs["text_offset"], json!([0, 5]));
    assert!(near(&logprobs["token_logprobs"][1], 0.25_f64.ln()));
    let top = logprobs["top_logprobs"][1].as_object().unwrap();
    assert_eq!(top.keys().collect::<Vec<_>>(), [" fox", " bear"]);
    assert!(near(&top[" fox"], 0.75_f64.ln()));

    let ask = json!({"max_tokens": 2, "logit_bias": always, "logprobs": true, "top_logprobs": 1});
    let body = ok(chat(&rig, ask.clone()).await).await;
    let content = &body["choices"][0]["logprobs"]["content"];
    assert_eq!(content.as_array().unwrap().len(), 2);
    assert_eq!(content[0]["token"], " bear");
    assert_eq!(content[0]["bytes"], json!(b" bear"));
    assert!(near(&content[0]["logprob"], 0.25_f64.ln()));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 1);
    assert_eq!(content[0]["top_logprobs"][0]["token"], " fox");

    let mut streamed = ask;
    streamed["stream"] = true.into();
    let parts = parts(chat(&rig, streamed).await).await;
    let tokens: Vec<&Value> = parts
        .iter()
        .filter_map(|part| part["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .collect();
    assert_eq!(
        tokens,
        content.as_array().unwrap().iter().collect::<Vec<_>>()
    );
    assert_ne!(fox, bear);
}

/// R5.1: a token whose text is held back still has its log-probability in the stream; the model's end has none.
#[tokio::test]
async fn r5_1_every_token_of_the_text_has_its_logprob() {
    let rig = Rig::new(text(" a fox"));
    let ask = json!({"stream": true, "logprobs": 0, "stop": " fox!"});
    let parts = parts(complete(&rig, ask).await).await;
    assert_eq!(joined(&parts, 0), (" a fox".into(), "stop".into()));
    let spelled: Vec<&str> = parts
        .iter()
        .filter_map(|part| part["choices"][0]["logprobs"]["tokens"].as_array())
        .flatten()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(spelled, [" a", " fox"]);
    let top: Vec<&Value> = parts
        .iter()
        .map(|part| &part["choices"][0]["logprobs"]["top_logprobs"])
        .collect();
    assert!(top.iter().all(|top| top.is_null()));
}

/// R5.1: further sampling parameters go by the names of vLLM and llama.cpp; null is as good as nothing.
#[tokio::test]
async fn r5_1_sampling_parameters_act() {
    let ([fox, bear], script) = two_tokens();
    let rig = Rig::new(script);
    let only = |fields: Value, word: &'static str| {
        let rig = &rig;
        async move {
            let mut all = json!({"max_tokens": 40, "seed": 3});
            extend(&mut all, fields.clone());
            let body = ok(complete(rig, all).await).await;
            assert_eq!(body["choices"][0]["text"], word.repeat(40), "{fields}");
        }
    };
    only(json!({"temperature": 0}), " fox").await;
    only(json!({"top_k": 1}), " fox").await;
    only(json!({"top_p": 0.5}), " fox").await;
    only(json!({"min_p": 0.5}), " fox").await;
    only(json!({"allowed_token_ids": [bear]}), " bear").await;
    only(json!({"bad_words": [[fox]]}), " bear").await;
    only(json!({"bad_words": ["fox"]}), " bear").await;
    only(json!({"logit_bias": {fox.to_string(): -100}}), " bear").await;
    let neutral = json!({"max_tokens": 40, "seed": 3});
    let neutral = ok(complete(&rig, neutral).await).await;
    for same in [
        json!({"top_k": -1}),
        json!({"top_k": 1_000_000}),
        json!({"top_p": null, "stop": null, "n": null, "logit_bias": null, "suffix": null}),
    ] {
        let mut all = json!({"max_tokens": 40, "seed": 3});
        extend(&mut all, same.clone());
        let body = ok(complete(&rig, all).await).await;
        assert_eq!(
            body["choices"][0]["text"], neutral["choices"][0]["text"],
            "{same}"
        );
    }
    let penalised = json!({"temperature": 0, "max_tokens": 2, "repeat_penalty": 4});
    let body = ok(complete(&rig, penalised).await).await;
    assert_eq!(body["nucleus"]["params"]["repetition_penalty"], 4.0);
}

/// R5.1: a negative seed is a seed; -1 is a random one.
#[tokio::test]
async fn r5_1_a_seed_may_be_negative() {
    let rig = Rig::new(text(" a fox"));
    let seed = |seed: Value| {
        let rig = &rig;
        async move { ok(complete(rig, json!({"seed": seed})).await).await["nucleus"]["seed"].clone() }
    };
    assert_eq!(seed(json!(-2)).await, json!(u64::MAX - 1));
    assert_ne!(seed(json!(-1)).await, json!(u64::MAX));
    assert_eq!(seed(json!(u64::MAX)).await, json!(u64::MAX));
}

/// Nothing is ignored in silence: what nobody knows is named in a header, what acts otherwise too.
#[tokio::test]
async fn what_does_not_act_is_warned_of() {
    let rig = Rig::new(text(" a fox"));
    let answer = complete(
        &rig,
        json!({"temprature": 1, "user": "me", "max_tokens": 5000}),
    )
    .await;
    let room = 1024 - encode_prompt(PROMPT).len();
    assert_eq!(
        warnings(&answer),
        [
            "\"temprature\": no such field; it is ignored".to_owned(),
            format!("max_tokens: there is room for {room} of 5000"),
        ]
    );
    let answer = complete(&rig, json!({"temperature": 0.001})).await;
    assert_eq!(warnings(&answer), ["temperature: 0.001 acts as 0.01"]);
    let named = json!([{"role": "user", "content": PROMPT, "name": "me"}]);
    let answer = chat(&chat_rig(text("Hm.")), json!({"messages": named})).await;
    assert_eq!(
        warnings(&answer),
        ["messages[0]: \"name\": the chat template does not see it"]
    );
}

/// R5.1: messages may have parts, and roles by their newer names.
#[tokio::test]
async fn r5_1_messages_take_the_shapes_that_clients_send() {
    let rig = Rig::new(text(" a fox"));
    let tokens = |messages: Value| {
        let rig = &rig;
        async move {
            let body = ok(chat(rig, json!({"messages": messages, "max_tokens": 1})).await).await;
            body["usage"]["prompt_tokens"].clone()
        }
    };
    let plain = json!([{"role": "system", "content": "Be kind.\nBe brief."}, {"role": "user", "content": PROMPT}]);
    let parts = json!([
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}], "name": null},
    ]);
    assert_eq!(tokens(plain).await, tokens(parts).await);
}

/// P8, P9, P10, P12, P13, P14, P15, P23: what cannot be served is refused with the field's name, before anything is allocated.
#[tokio::test]
async fn p8_p9_p10_p12_p23_bad_values_are_refused() {
    let rig = Rig::new(text(" a fox"));
    let many_stops = vec!["x"; 17];
    let many_words = vec!["x"; 129];
    let many_prompts = vec![PROMPT; 129];
    for (field, values) in [
        (
            "prompt",
            json!([
                "",
                [],
                [[]],
                [""],
                [PROMPT, 5],
                [5, PROMPT],
                [-1],
                [1.5],
                [[5], PROMPT, [-5]],
                {},
                true
            ]),
        ),
        ("prompt", json!([[8192], [[1], [1_000_000]]])),
        (
            "n",
            json!([0, -1, 129, 1_u64 << 31, 1_u64 << 63, 1e20, "2", true]),
        ),
        ("best_of", json!([0, "1", 129, 1_u64 << 63, 1.5])),
        ("logprobs", json!([-2, 21, 1_u64 << 31, true, "1"])),
        ("max_tokens", json!([0, -1, 1_u64 << 63, 1.5, "5"])),
        ("stop", json!(["", [""], many_stops, 5, ["x".repeat(1025)]])),
        ("stop_token_ids", json!([[8192], [-1], ["a"], 5])),
        (
            "bad_words",
            json!([many_words, [""], [" "], ["a", [1]], [["a"]], "a"]),
        ),
        ("temperature", json!([-1, 2.5, "1", [1]])),
        ("frequency_penalty", json!([-2.1, 2.1])),
        (
            "logit_bias",
            json!([{"8192": 1}, {"abc": 1}, {"1": 101}, [[1, 2]]]),
        ),
        ("stream", json!([1, "true"])),
        ("stream_options", json!([{"include_usage": true}, 5])),
        ("echo", json!([1])),
        ("seed", json!([1.5, "1", 1e20])),
        ("suffix", json!(["x"])),
        ("model", json!([5])),
    ] {
        for value in values.as_array().unwrap() {
            let (status, error) = complete(&rig, json!({field: value})).await.error().await;
            assert_eq!(
                (status, error.param.as_deref()),
                (400, Some(field)),
                "{value}: {error:?}"
            );
        }
    }
    let (_, error) = complete(&rig, json!({"prompt": many_prompts}))
        .await
        .error()
        .await;
    assert!(error.message.contains("at most 128 choices"), "{error:?}");
    let both = json!({"max_tokens": 5, "max_completion_tokens": 5});
    assert_eq!(complete(&rig, both).await.status, StatusCode::BAD_REQUEST);
    for best_of in [
        json!({"best_of": 1, "n": 2}),
        json!({"best_of": 2, "stream": true}),
    ] {
        let (_, error) = complete(&rig, best_of).await.error().await;
        assert_eq!(error.param.as_deref(), Some("best_of"));
    }
    rig.assert_alive().await;
}

/// What a conversation cannot hold is refused at its place.
#[tokio::test]
async fn bad_conversations_are_refused() {
    let rig = Rig::new(text(" a fox"));
    let user = |content: Value| json!([{"role": "user", "content": content}]);
    for (messages, place) in [
        (json!([]), "messages: "),
        (json!("hello"), "messages: "),
        (json!(["hello"]), "messages[0]: "),
        (json!([{"content": "x"}]), "messages[0].role: null"),
        (
            json!([{"role": "tool", "content": "x"}]),
            "messages[0].role: \"tool\"",
        ),
        (json!([{"role": "user"}]), "messages[0].content: null"),
        (user(json!(5)), "messages[0].content: 5"),
        (user(json!([])), "messages[0].content: "),
        (
            user(json!([{"type": "image_url", "image_url": {"url": "x"}}])),
            "messages[0].content[0].type: \"image_url\"",
        ),
        (user(json!([{"type": "text"}])), "messages[0].content[0]: "),
        (
            json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
            "messages[0].tool_calls: ",
        ),
        (user(json!("word ".repeat(2000))), "prompt has "),
        (user(json!("x".repeat(200_000))), "prompt: "),
    ] {
        let (status, error) = chat(&rig, json!({"messages": messages}))
            .await
            .error()
            .await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some("messages")),
            "{error:?}"
        );
        assert!(error.message.starts_with(place), "{error:?}");
    }
    let (_, error) = chat(&rig, json!({"top_logprobs": 2})).await.error().await;
    assert_eq!(error.param.as_deref(), Some("top_logprobs"));
    let (_, error) = chat(&rig, json!({"tools": [{"type": "function"}]}))
        .await
        .error()
        .await;
    assert_eq!(error.code, "unsupported_value");
    rig.assert_alive().await;
}

/// R5.1: the one model there is.
#[tokio::test]
async fn r5_1_models_are_listed() {
    let rig = Rig::new(text(" a fox"));
    let list = ok(rig.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("scripted"), &json!("model"))
    );
    assert_eq!(model["max_model_len"], 1024);
    assert_eq!(&ok(rig.get("/v1/models/scripted").await).await, model);
    let (status, error) = rig.get("/v1/models/gpt-4").await.error().await;
    assert_eq!((status, error.code.as_str()), (404, "model_not_found"));
    let (status, error) = complete(&rig, json!({"model": "gpt-4"}))
        .await
        .error()
        .await;
    assert_eq!((status, error.param.as_deref()), (404, Some("model")));
    assert!(error.message.contains("\"scripted\""), "{error:?}");
}

/// A model without a chat template says where to go instead.
#[tokio::test]
async fn a_model_without_a_chat_template_does_not_chat() {
    let rig = Rig::new(text(" a fox"));
    let plain = Rig {
        app: app(AppState::new(rig.engine.clone(), ServerConfig::default())),
        engine: rig.engine.clone(),
        gate: GateGuard(rig.gate.clone()),
        state: rig.state.clone(),
    };
    let (status, error) = chat(&plain, json!({})).await.error().await;
    assert_eq!((status, error.code.as_str()), (400, "no_chat_template"));
    assert!(error.message.contains(COMPLETIONS), "{error:?}");
}

/// A failure is an error in either form: a status, or the stream's last event, with no `[DONE]` after it.
#[tokio::test]
async fn a_failure_is_not_passed_for_an_end() {
    let id = tokens(" and")[0];
    for broken in [Reply::Nan, Reply::Error] {
        let script = move |at| {
            if at < 2 {
                Reply::Token(id)
            } else {
                broken.clone()
            }
        };
        let rig = Rig::new(script);
        let (status, error) = complete(&rig, json!({"n": 2})).await.error().await;
        assert_eq!((status, error.kind.as_str()), (500, "server_error"));
        let parts = parts(complete(&rig, json!({"stream": true})).await).await;
        assert_eq!(parts.last().unwrap()["error"]["code"], error.code);
        rig.idle().await;
    }
}

/// C4: a client that goes away frees every slot, in a stream and before an answer.
#[tokio::test]
async fn c4_a_client_that_leaves_frees_every_choice() {
    let rig = Rig::new(forever());
    let mut stream = complete(&rig, json!({"stream": true, "n": 3, "max_tokens": 1000})).await;
    assert!(!stream.next_chunk().await.is_empty());
    drop(stream);
    rig.idle().await;

    let gated = Rig::gated(forever());
    let ask = json!({"n": 1, "max_tokens": 1000});
    let left = tokio::time::timeout(std::time::Duration::from_millis(50), complete(&gated, ask));
    assert!(left.await.is_err());
    gated.gate.open();
    gated.idle().await;
}

/// C7: where one of several choices finds no place, none runs on.
#[tokio::test]
async fn c7_a_request_that_does_not_fit_the_queue_leaves_nothing_behind() {
    let engine = EngineOptions {
        max_running: 1,
        max_waiting: 2,
        ..EngineOptions::default()
    };
    let options = RigOptions {
        engine,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, forever());
    let (status, error) = complete(&rig, json!({"n": 64, "max_tokens": 900}))
        .await
        .error()
        .await;
    assert_eq!((status, error.code.as_str()), (429, "queue_full"));
    rig.idle().await;
}

/// C8: a worker that is shut down does not pass half an answer for a whole one.
#[tokio::test]
async fn c8_an_aborted_answer_is_an_error() {
    let rig = Rig::gated(forever());
    let stream = complete(&rig, json!({"stream": true, "max_tokens": 1000})).await;
    rig.engine.shutdown(true);
    rig.gate.open();
    let parts = parts(stream).await;
    assert_eq!(parts.last().unwrap()["error"]["code"], "shutting_down");
}

/// R5.1: of more candidates the likeliest on average are answered, the best first, with the seeds that give them alone.
#[tokio::test]
async fn r5_1_the_best_of_many_are_answered() {
    let (_, script) = two_tokens();
    let rig = Rig::new(script);
    let ask =
        |best_of: usize, n: usize| json!({"best_of": best_of, "n": n, "seed": 3, "max_tokens": 6});
    let all = ok(complete(&rig, ask(6, 6)).await).await;
    let foxes = |choice: &Value| {
        let text = choice["text"].as_str().unwrap();
        text.matches(" fox").count()
    };
    let mut expected: Vec<&Value> = all["choices"].as_array().unwrap().iter().collect();
    // More foxes are likelier; of equals the first comes first.
    expected.sort_by_key(|choice| std::cmp::Reverse(foxes(choice)));
    let best = ok(complete(&rig, ask(6, 2)).await).await;
    let choices = best["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["text"], expected[index]["text"]);
        assert_eq!(choice["index"], index);
        let seed = best["nucleus"]["seeds"][index].as_u64().unwrap();
        let alone = ok(complete(&rig, json!({"seed": seed, "max_tokens": 6})).await).await;
        assert_eq!(alone["choices"][0]["text"], choice["text"]);
    }
    assert_ne!(
        foxes(&choices[0]),
        foxes(expected[5]),
        "there is something to choose"
    );
    assert_eq!(
        best["usage"]["completion_tokens"], 36,
        "all candidates are counted"
    );
    assert!(all["nucleus"].get("seeds").is_none());
    let many = json!({"prompt": [PROMPT, PROMPT], "best_of": 65});
    let (status, error) = complete(&rig, many).await.error().await;
    assert_eq!((status, error.param.as_deref()), (400, Some("best_of")));
}

/// R5.1: `echo` with `logprobs` scores the prompt's tokens too, in one answer and in a stream, even without any output.
#[tokio::test]
async fn r5_1_an_echo_has_its_logprobs() {
    let ([fox, bear], script) = two_tokens();
    let options = RigOptions {
        prompt_len: 3,
        ..RigOptions::default()
    };
    let rig = Rig::with(options, script);
    let near = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-5;
    let prompt = json!([fox, bear, fox]);
    for max_tokens in [0, 2] {
        let ask = json!({"prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0});
        let body = ok(complete(&rig, ask.clone()).await).await;
        let choice = &body["choices"][0];
        let text = " fox bear fox".to_owned() + &" fox".repeat(max_tokens);
        assert_eq!(choice["text"], text);
        assert_eq!(choice["finish_reason"], "length");
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3 + max_tokens);
        assert_eq!(logprobs["tokens"][1], " bear");
        assert_eq!(logprobs["text_offset"][2], 9);
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        assert!(near(&logprobs["token_logprobs"][1], 0.25_f64.ln()));
        assert!(near(&logprobs["token_logprobs"][2], 0.75_f64.ln()));
        let top = logprobs["top_logprobs"][1].as_object().unwrap();
        assert_eq!(top.keys().collect::<Vec<_>>(), [" fox", " bear"]);

        let mut streamed = ask;
        streamed["stream"] = true.into();
        let parts = parts(complete(&rig, streamed).await).await;
        assert_eq!(joined(&parts, 0), (text, "length".into()));
        let of_prompt = &parts[0]["choices"][0]["logprobs"];
        for field in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
            let whole = logprobs[field].as_array().unwrap();
            assert_eq!(of_prompt[field], json!(whole[..3]), "{field}");
        }
    }
    let none = complete(&rig, json!({"prompt": prompt, "max_tokens": 0})).await;
    assert_eq!(none.error().await.1.param.as_deref(), Some("max_tokens"));
    rig.idle().await;
}
