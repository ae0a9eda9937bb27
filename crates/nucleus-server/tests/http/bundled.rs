//! The bundled model behind `/execute`: the same interface with real weights (R0.1, R0.2, R0.3).

use std::sync::Arc;

use nucleus_engine::generate::{Engine, EngineOptions};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::models::{LoadOptions, load};
use nucleus_engine::tokenizer::Tokenizer;
use nucleus_server::{AppState, ServerConfig, app};
use serde_json::{Value, json};

use crate::support::{Gate, GateGuard, MODEL_FILE, PROMPT, Rig, chat_template};

fn rig() -> Rig {
    let file = ModelFile::open(MODEL_FILE).expect("the bundled model can be read");
    let tokenizer =
        Arc::new(Tokenizer::from_gguf(file.metadata()).expect("its tokenizer is sound"));
    let model = load(&file, LoadOptions::default()).expect("the bundled model loads");
    let (engine, _) = Engine::start(model, tokenizer, EngineOptions::default()).unwrap();
    let state = AppState::new(engine.clone(), ServerConfig::default())
        .with_chat_template(Some(chat_template()));
    Rig {
        engine,
        gate: GateGuard(Gate::default()),
        app: app(state.clone()),
        state,
    }
}

/// R0.1, R0.2, R0.3, R1.7: old and new requests on real weights.
#[tokio::test]
async fn r0_1_r0_2_r0_3_r1_7_the_bundled_model_tells_a_story() {
    let rig = rig();
    // It would fill the context; a few words are enough.
    let mut prompt_only = rig
        .post("/execute", &json!({"prompt": PROMPT}))
        .await
        .stream();
    let events = prompt_only.take(16).await;
    assert_eq!(events[0].name, "started");
    let words: String = events[1..]
        .iter()
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    assert!(words.split_whitespace().count() > 5, "{words:?}");
    drop(prompt_only);

    let old = json!({"prompt": PROMPT, "temperature": 0.8, "seed": 42, "max_tokens": 12});
    let first = rig.execute(&old).await;
    assert_eq!(first.ids(), rig.execute(&old).await.ids());

    let greedy = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 12});
    let greedy = rig.execute(&greedy).await;
    for neutral in [
        json!({"top_k": 1}),
        json!({"top_p": 0}),
        json!({"min_p": 1}),
    ] {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 12, "seed": 3});
        body.as_object_mut()
            .unwrap()
            .extend(neutral.as_object().unwrap().clone());
        assert_eq!(rig.execute(&body).await.ids(), greedy.ids(), "{neutral}");
    }

    let all = json!({
        "prompt": PROMPT, "max_tokens": 12, "seed": 5, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.02,
        "repetition_penalty": 1.1, "frequency_penalty": 0.1, "presence_penalty": 0.1, "stop": ["\n\n\n"],
    });
    assert!(!rig.execute(&all).await.text().is_empty());
    rig.idle().await;
}

/// R1.4, R1.7: a stop sequence on real text ends it there, and costs no more tokens than it needs.
#[tokio::test]
async fn r1_4_r1_7_a_stop_sequence_ends_the_bundled_models_text() {
    let rig = rig();
    let greedy = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 16});
    let whole = rig.execute(&greedy).await;
    let word = whole
        .text()
        .split_whitespace()
        .nth(5)
        .expect("some words")
        .to_owned();
    let mut body = greedy.clone();
    body["stop"] = json!(word);
    let stopped = rig.execute(&body).await;
    let before = whole.text().split(&word).next().unwrap();
    assert_eq!(
        (stopped.text(), stopped.stop_reason()),
        (before, "stop_sequence")
    );
    assert_eq!(stopped.end()["stop_sequence"], json!(word));
    assert!(stopped.tokens.len() < whole.tokens.len());
}

fn animal() -> Value {
    json!({
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "bear"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
        "required": ["animal", "legs"],
        "additionalProperties": false,
    })
}

fn assert_animal(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(
        ["fox", "bear"]
            .iter()
            .any(|animal| value["animal"] == *animal),
        "{text}"
    );
    assert!(
        value["legs"].as_u64().is_some_and(|legs| legs <= 8),
        "{text}"
    );
}

/// R5.2: an answer is JSON of the request's schema at every endpoint, whole and in parts, however the model is sampled.
#[tokio::test]
async fn r5_2_answers_are_json_of_the_schema() {
    let rig = rig();
    let named = json!({"type": "json_schema", "json_schema": {"name": "animal", "strict": true, "schema": animal()}});
    for seed in 0..3 {
        let body = json!({"messages": [{"role": "user", "content": "Which animal?"}], "seed": seed, "response_format": named});
        let answer = rig.post("/v1/chat/completions", &body).await.json().await;
        let choice = &answer["choices"][0];
        assert_animal(choice["message"]["content"].as_str().expect("a text"));
        assert_eq!(choice["finish_reason"], "stop");
        let body =
            json!({"prompt": PROMPT, "seed": seed, "n_predict": 80, "json_schema": animal()});
        let answer = rig.post("/completion", &body).await.json().await;
        assert_animal(answer["content"].as_str().expect("a text"));
        assert_eq!(
            answer["generation_settings"]["structured_outputs"],
            json!({"json": animal()})
        );
    }
    let body = json!({"prompt": [PROMPT, "A bear"], "n": 2, "max_tokens": 80, "temperature": 1.5, "structured_outputs": {"json": animal()}});
    let answer = rig.post("/v1/completions", &body).await.json().await;
    let choices = answer["choices"].as_array().expect("choices");
    assert_eq!(choices.len(), 4);
    for choice in choices {
        assert_animal(choice["text"].as_str().expect("a text"));
    }
    let body =
        json!({"prompt": PROMPT, "seed": 5, "response_format": named, "stop": ["never written"]});
    let transcript = rig.execute(&body).await;
    assert_animal(transcript.text());
    assert_eq!(transcript.stop_reason(), "stop");
    // The parameters that are told replay the request.
    let mut told = transcript.started["params"].clone();
    told["prompt"] = PROMPT.into();
    told["logprobs"] = false.into();
    assert_eq!(rig.execute(&told).await.ids(), transcript.ids());
    rig.idle().await;
}

/// R5.2: llama.cpp's grammars and vLLM's names for formats, old and new, hold a text to the same.
#[tokio::test]
async fn r5_2_answers_are_sentences_of_the_grammar() {
    let rig = rig();
    let grammar =
        "root ::= animal (\", \" animal){1,3} \".\"\nanimal ::= \"a fox\" | \"a hen\" | \"foxes\"";
    let regex = "(a fox|a hen|foxes)(, (a fox|a hen|foxes)){1,3}[.]";
    let is_sentence = |text: &Value| {
        let text = text.as_str().expect("a text");
        let animals: Vec<&str> = text.strip_suffix('.').expect(text).split(", ").collect();
        let known = |animal: &&str| ["a fox", "a hen", "foxes"].contains(animal);
        assert!(
            (2..=4).contains(&animals.len()) && animals.iter().all(known),
            "{text}"
        );
    };
    let body = json!({"prompt": PROMPT, "seed": 4, "grammar": grammar});
    let answer = rig.post("/completion", &body).await.json().await;
    is_sentence(&answer["content"]);
    assert_eq!(answer["generation_settings"]["grammar"], grammar);
    for format in [
        json!({"grammar": grammar}),
        json!({"guided_grammar": grammar}),
        json!({"guided_regex": regex}),
        json!({"guided_choice": ["a fox, a hen."]}),
    ] {
        let mut body = json!({"prompt": PROMPT, "seed": 4, "max_tokens": 40});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(format.as_object().expect("an object").clone());
        let answer = rig.post("/v1/completions", &body).await.json().await;
        is_sentence(&answer["choices"][0]["text"]);
    }
    let body = json!({"prompt": PROMPT, "seed": 4, "structured_outputs": {"grammar": grammar}});
    let transcript = rig.execute(&body).await;
    is_sentence(&transcript.text().into());
    let told = &transcript.started["params"]["structured_outputs"];
    assert_eq!(told, &json!({"grammar": grammar}));
    rig.idle().await;
}

/// R5.2: what the text is to be is refused by name where it is not sound; a length cuts it, and says so.
#[tokio::test]
async fn r5_2_formats_that_are_not_sound_are_400() {
    let rig = rig();
    for (path, field, value) in [
        (
            "/v1/completions",
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}),
        ),
        (
            "/v1/completions",
            "structured_outputs",
            json!({"regex": "(a"}),
        ),
        (
            "/execute",
            "structured_outputs",
            json!({"grammar": "root ::= missing"}),
        ),
        ("/completion", "grammar", json!("root ::= \"a")),
        ("/v1/completions", "guided_regex", json!("(a")),
        ("/execute", "response_format", Value::Null),
        (
            "/completion",
            "json_schema",
            json!({"type": "string", "minLength": 3, "maxLength": 1}),
        ),
    ] {
        let (status, error) = rig
            .post(path, &json!({"prompt": PROMPT, field: value}))
            .await
            .error()
            .await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some(field)),
            "{error:?}"
        );
        assert_eq!(error.code, "invalid_value");
        assert!(error.message.starts_with(field), "{error:?}");
    }
    let body = json!({"prompt": PROMPT, "max_tokens": 3, "structured_outputs": {"json": animal()}});
    let answer = rig.post("/v1/completions", &body).await.json().await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let body = json!({"prompt": PROMPT, "structured_outputs": {"choice": ["yes"]}, "allowed_token_ids": [5]});
    let (status, error) = rig.post("/v1/completions", &body).await.error().await;
    assert_eq!((status, error.code.as_str()), (422, "nothing_to_draw"));
    rig.idle().await;
}
