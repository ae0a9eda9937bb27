//! The bundled model behind `/execute`: the same interface with real weights (R0.1, R0.2, R0.3).

use std::sync::Arc;

use nucleus_engine::generate::{Engine, EngineOptions};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::models::{LoadOptions, load};
use nucleus_engine::tokenizer::Tokenizer;
use nucleus_server::{AppState, ServerConfig, app};
use serde_json::json;

use crate::support::{Gate, GateGuard, MODEL_FILE, PROMPT, Rig};

fn rig() -> Rig {
    let file = ModelFile::open(MODEL_FILE).expect("the bundled model can be read");
    let tokenizer =
        Arc::new(Tokenizer::from_gguf(file.metadata()).expect("its tokenizer is sound"));
    let model = load(&file, LoadOptions::default()).expect("the bundled model loads");
    let (engine, _) = Engine::start(model, tokenizer, EngineOptions::default()).unwrap();
    let state = AppState::new(engine.clone(), ServerConfig::default());
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
