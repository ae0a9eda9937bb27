//! What sampling does and can do: the trace of a choice, and the table of parameters.

use nucleus_sampling::{MAX_VOCAB, PARAMS};
use serde_json::{Value, json};

use crate::support::{Answer, PROMPT, Reply, Rig, encode_prompt, forever, tokens};

const EXPLAIN: &str = "/v1/sampling/explain";

async fn ok(answer: Answer) -> Value {
    let (status, body) = (answer.status, answer.json().await);
    assert_eq!(status, 200, "{body}");
    body
}

fn stage<'a>(body: &'a Value, name: &str) -> &'a Value {
    let stages = body["stages"].as_array().expect("stages");
    let found = stages.iter().find(|stage| stage["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not among {stages:?}"))
}

fn near(value: &Value, expected: f64) -> bool {
    (value.as_f64().expect("a number") - expected).abs() < 1e-6
}

/// R1.6: logits 3, 2, 1: top_p 0.8 keeps two tokens, or one once temperature 0.5 has sharpened them. Numbers by hand.
#[tokio::test]
async fn r1_6_given_logits_are_explained() {
    let rig = Rig::new(forever());
    let ask = json!({"logits": [3.0, 2.0, 1.0], "temperature": 0.5, "top_p": 0.8, "seed": 9});
    let body = ok(rig.post(EXPLAIN, &ask).await).await;
    let z: f64 = (0..3).map(|x| f64::from(-2 * x).exp()).sum();
    let cut = stage(&body, "top_p");
    assert_eq!(
        (&cut["kept"], &cut["removed"], &cut["first_removed"]),
        (&json!(1), &json!(2), &json!(1))
    );
    assert!(near(&cut["mass"], 1.0 / z), "{cut}");
    assert!(near(&cut["temperature"], 0.5));
    assert_eq!(body["distribution"], json!([[0, 1.0]]));
    assert_eq!(body["sampled"]["token_id"], 0);
    assert_eq!(
        (&body["sampled"]["seed"], &body["sampled"]["position"]),
        (&json!(9), &json!(0))
    );
    let raw: f64 = (0..3).map(|x| f64::from(-x).exp()).sum();
    assert!(near(&body["sampled"]["logprob"], -raw.ln()));
    assert_eq!(
        body["tokens"],
        json!({}),
        "three tokens are no vocabulary of ours"
    );

    let mut last = ask;
    last["preset"] = "llama.cpp".into();
    let body = ok(rig.post(EXPLAIN, &last).await).await;
    assert_eq!(stage(&body, "top_p")["kept"], 2);
    assert_eq!(body["distribution_size"], 2);
    assert!(near(
        &body["distribution"][0][1],
        1.0 / (1.0 + (-2_f64).exp())
    ));
}

/// The history is what penalties look at, and where the draw stands.
#[tokio::test]
async fn r1_3_a_history_is_taken_into_account() {
    let rig = Rig::new(forever());
    let ask = json!({"logits": [2.0, null, 1.0], "prompt": [2], "output": [0, 0], "repetition_penalty": 2.0,
        "frequency_penalty": 0.25, "temperature": 0});
    let body = ok(rig.post(EXPLAIN, &ask).await).await;
    // 2 / 2 - 2 * 0.25 = 0.5 and 1 / 2 = 0.5: the lower id of equals.
    assert_eq!(body["sampled"]["token_id"], 0);
    assert_eq!(body["sampled"]["position"], 2);
    assert!(near(&stage(&body, "penalties")["max_logit"], 0.5));
    assert_eq!(stage(&body, "bias")["kept"], 2, "-infinity is not kept");
}

/// The next token of a prompt is explained by the sampler that draws it: the same token as a generation's.
#[tokio::test]
async fn a_prompt_is_explained_as_it_is_continued() {
    let ids = [" fox", " bear", " king"].map(|word| tokens(word)[0]);
    let logits = vec![(ids[0], 1.0), (ids[1], 0.9), (ids[2], 0.8)];
    let rig = Rig::new(move |_| Reply::Logits(logits.clone()));
    for seed in 0..8 {
        let fields = json!({"prompt": PROMPT, "seed": seed, "top_k": 2, "temperature": 1.5});
        let body = ok(rig.post(EXPLAIN, &fields).await).await;
        let mut generation = fields.clone();
        generation["max_tokens"] = 1.into();
        let drawn = rig.execute(&generation).await;
        assert_eq!(body["sampled"]["token_id"], drawn.ids()[0], "seed {seed}");
        assert_eq!(stage(&body, "top_k")["first_removed"], ids[2]);
        let texts = &body["tokens"];
        assert_eq!(texts[ids[2].to_string()], " king");
        assert_eq!(texts[ids[0].to_string()], " fox");
        let by_tokens =
            json!({"prompt": encode_prompt(PROMPT), "seed": seed, "top_k": 2, "temperature": 1.5});
        let same = ok(rig.post(EXPLAIN, &by_tokens).await).await;
        assert_eq!(same["distribution"], body["distribution"]);
    }
    rig.idle().await;
}

/// What leaves nothing to draw is told as such, not as a failure of the server.
#[tokio::test]
async fn nothing_to_draw_is_explained() {
    let rig = Rig::new(forever());
    let ask = json!({"logits": [null, 1.0], "allowed_token_ids": [0]});
    let body = ok(rig.post(EXPLAIN, &ask).await).await;
    assert_eq!(body["sampled"], Value::Null);
    assert_eq!(body["error"], "no token is left to draw from");
    assert_eq!(body["distribution_size"], 0);
}

/// Parameters that do not act are warned of; those that cannot are refused, as is what is no logit.
#[tokio::test]
async fn bad_values_are_refused() {
    let rig = Rig::new(forever());
    let ask = json!({"logits": [1.0, 0.0], "temperature": 0, "top_p": 0.5});
    let body = ok(rig.post(EXPLAIN, &ask).await).await;
    assert_eq!(body["warnings"][0]["param"], "top_p");
    for (body, param) in [
        (json!({}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [8192]}), "prompt"),
        (json!({"logits": []}), "logits"),
        (json!({"logits": ["1"]}), "logits"),
        (json!({"logits": [1e39]}), "logits"),
        (json!({"logits": vec![0; MAX_VOCAB as usize + 1]}), "logits"),
        (json!({"logits": [1, 2], "output": [2]}), "output"),
        (json!({"logits": [1, 2], "prompt": [5]}), "prompt"),
        (
            json!({"logits": [1, 2], "logit_bias": {"2": 1}}),
            "logit_bias",
        ),
        (json!({"logits": [1, 2], "top_p": 2}), "top_p"),
        (json!({"logits": [1, 2], "top_n": 1001}), "top_n"),
        (json!({"logits": [1, 2], "max_tokens": 5}), "max_tokens"),
    ] {
        let answer = rig.post(EXPLAIN, &body).await;
        assert_eq!(answer.status, 400, "{param}");
        let (status, error) = answer.error().await;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some(param)),
            "{error:?}"
        );
    }
    rig.assert_alive().await;
}

/// R1.7: the table has every parameter with each endpoint's range and default.
#[tokio::test]
async fn r1_7_the_parameters_are_listed() {
    let rig = Rig::new(forever());
    let body = ok(rig.get("/v1/sampling/params").await).await;
    let params = body["params"].as_array().unwrap();
    let names: Vec<&str> = params
        .iter()
        .map(|param| param["name"].as_str().unwrap())
        .collect();
    assert!(
        names
            .iter()
            .copied()
            .eq(PARAMS.iter().map(|spec| spec.name))
    );
    let of = |name: &str| params.iter().find(|param| param["name"] == name).unwrap();
    let temperature = &of("temperature")["endpoints"];
    assert_eq!(
        temperature["execute"],
        json!({"default": 1.0, "range": "[0, 2]", "min": 0.0, "max": 2.0, "exclusive_min": false})
    );
    assert_eq!(temperature["library"]["max"], 1000.0);
    assert_eq!(temperature["llama.cpp"]["default"], 0.8);
    let penalty = of("repetition_penalty");
    assert_eq!(penalty["aliases"], json!(["repeat_penalty"]));
    assert_eq!(penalty["endpoints"]["execute"]["exclusive_min"], true);
    assert_eq!(of("top_k")["endpoints"]["execute"]["range"], "[0, 8192]");
    assert_eq!(of("top_k")["stage"], "top_k");
    assert_eq!(
        of("preset")["endpoints"]["llama.cpp"]["default"],
        "llama.cpp"
    );
    assert_eq!(of("seed")["neutral"], Value::Null);
    assert_eq!(body["vocab_size"], 8192);
    let order = body["presets"]["llama.cpp"].as_array().unwrap();
    let place = |name: &str| order.iter().position(|stage| stage == name).unwrap();
    assert!(place("min_p") < place("temperature"));
    assert_eq!(order.len(), body["stages"].as_array().unwrap().len());
    // A range that is listed is one that is kept.
    for param in params {
        let execute = &param["endpoints"]["execute"];
        if let (Some(max), true) = (execute["max"].as_f64(), param["kind"] == "number") {
            let ask = json!({"prompt": PROMPT, param["name"].as_str().unwrap(): max * 1.01 + 0.01});
            let (status, error) = rig.post("/execute", &ask).await.error().await;
            assert_eq!(
                (status, error.param.as_deref()),
                (400, param["name"].as_str())
            );
        }
    }
}
