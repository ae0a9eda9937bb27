//! `POST /execute`: what its parameters do in the generation loop (R1.7, R0.3).

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{PROMPT, Reply, Rig, SseEvent, Transcript, encode_prompt, text, tokens};

/// Four tokens whose probabilities are 0.4, 0.3, 0.2 and 0.1, at every position.
fn four_tokens() -> ([u32; 4], impl FnMut(usize) -> Reply + Send) {
    let ids = [" a", " the", " his", " her"].map(|word| tokens(word)[0]);
    let logits: Vec<(u32, f32)> = ids
        .into_iter()
        .zip([0.4_f32, 0.3, 0.2, 0.1].map(f32::ln))
        .collect();
    (ids, move |_| Reply::Logits(logits.clone()))
}

/// The tokens that 400 draws with these parameters give.
async fn drawn(rig: &Rig, mut params: Value) -> HashSet<u32> {
    params["prompt"] = PROMPT.into();
    params["max_tokens"] = 400.into();
    params["seed"] = 11.into();
    let transcript = rig.execute(&params).await;
    assert_eq!(transcript.tokens.len(), 400);
    transcript.ids().into_iter().collect()
}

/// R1.7: temperature, top_k and top_p work together in the loop. A token that may be drawn has a probability of at least
/// 0.2 here, so that in 400 draws it is missing with a probability below 1e-38.
#[tokio::test]
async fn r1_7_temperature_top_k_and_top_p_are_one_pipeline() {
    let ([a, b, c, d], script) = four_tokens();
    let rig = Rig::new(script);
    let set = |ids: &[u32]| ids.iter().copied().collect::<HashSet<u32>>();
    assert_eq!(drawn(&rig, json!({})).await, set(&[a, b, c, d]));
    assert_eq!(drawn(&rig, json!({"top_k": 3})).await, set(&[a, b, c]));
    // Over the three that top_k leaves, the probabilities are 4/9, 3/9 and 2/9: two of them reach 0.7, one does not.
    assert_eq!(
        drawn(&rig, json!({"top_k": 3, "top_p": 0.7})).await,
        set(&[a, b])
    );
    assert_eq!(
        drawn(&rig, json!({"top_k": 3, "top_p": 0.5})).await,
        set(&[a, b])
    );
    // At temperature 0.5 they are 16/29, 9/29 and 4/29: the first reaches 0.5 alone.
    let sharp = json!({"temperature": 0.5, "top_k": 3, "top_p": 0.5});
    assert_eq!(drawn(&rig, sharp).await, set(&[a]));
}

/// R1.7: min_p and greedy in the loop.
#[tokio::test]
async fn r1_7_min_p_and_temperature_0_are_applied_in_the_loop() {
    let ([a, b, c, _], script) = four_tokens();
    let rig = Rig::new(script);
    // 0.2 is half of the largest probability, 0.1 a quarter.
    assert_eq!(
        drawn(&rig, json!({"min_p": 0.45})).await,
        HashSet::from([a, b, c])
    );
    assert_eq!(drawn(&rig, json!({"min_p": 1})).await, HashSet::from([a]));
    assert_eq!(
        drawn(&rig, json!({"temperature": 0})).await,
        HashSet::from([a])
    );
}

/// R1.7: the repetition penalty sees every token as soon as it is drawn. Logits are 2 and 1.5; once drawn they are
/// 2 / 1.5 = 1.33 and 1.5 / 1.5 = 1.
#[tokio::test]
async fn r1_7_the_repetition_penalty_acts_in_the_loop() {
    let [a, b] = [" fox", " bear"].map(|word| tokens(word)[0]);
    let rig = Rig::new(move |_| Reply::Logits(vec![(a, 2.0), (b, 1.5)]));
    let greedy = |penalty: f64| json!({"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "repetition_penalty": penalty});
    assert_eq!(rig.execute(&greedy(1.0)).await.ids(), [a, a, a, a]);
    assert_eq!(rig.execute(&greedy(1.5)).await.ids(), [a, b, a, a]);
    // Below 1 it rewards: what came once comes again.
    assert_eq!(rig.execute(&greedy(0.5)).await.ids(), [a, a, a, a]);
}

/// R1.7: the repetition penalty covers the prompt too.
#[tokio::test]
async fn r1_7_the_repetition_penalty_sees_the_prompt() {
    let in_prompt = *encode_prompt(PROMPT).last().unwrap();
    let other = tokens(" bear")[0];
    let rig = Rig::new(move |_| Reply::Logits(vec![(in_prompt, 2.0), (other, 1.5)]));
    let body =
        json!({"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "repetition_penalty": 1.5});
    assert_eq!(rig.execute(&body).await.ids(), [other]);
}

const TALE: &str = " there was a fox. THE END and nothing else";

async fn stopped_by(stop: Value) -> Transcript {
    let rig = Rig::new(text(TALE));
    let transcript = rig
        .execute(&json!({"prompt": PROMPT, "temperature": 0, "stop": stop}))
        .await;
    rig.idle().await;
    transcript
}

/// R1.7: stop sequences end the text in the loop, wherever the tokens' borders are; the text before them is complete.
#[tokio::test]
async fn r1_7_stop_sequences_end_the_loop() {
    let whole = tokens(TALE).len();
    for (stop, expected, matched) in [
        (json!("THE END"), " there was a fox. ", Some("THE END")),
        (json!(["THE END"]), " there was a fox. ", Some("THE END")),
        // Inside tokens and across their borders.
        (json!(["ox. TH"]), " there was a f", Some("ox. TH")),
        // Of several the one that is complete first.
        (
            json!(["nothing", "fox", "END", "zebra"]),
            " there was a ",
            Some("fox"),
        ),
        // One that begins and does not go on is text.
        (json!(["THE ENEMY", "fox!"]), TALE, None),
        (json!([]), TALE, None),
    ] {
        let transcript = stopped_by(stop.clone()).await;
        assert_eq!(transcript.text(), expected, "{stop}");
        assert_eq!(transcript.end()["stop_sequence"], json!(matched), "{stop}");
        let reason = if matched.is_some() {
            "stop_sequence"
        } else {
            "stop"
        };
        assert_eq!(transcript.stop_reason(), reason, "{stop}");
        assert_eq!(transcript.tokens.len() < whole, matched.is_some(), "{stop}");
        assert_eq!(transcript.started["params"]["stop"], stop_list(&stop));
    }
}

fn stop_list(stop: &Value) -> Value {
    if stop.is_string() {
        json!([stop])
    } else {
        stop.clone()
    }
}

/// Text that may still become a stop sequence is held back, and comes when it cannot: the texts joined are the text.
#[tokio::test]
async fn held_back_text_is_not_lost() {
    let transcript = stopped_by(json!(["fox. THE ENEMY"])).await;
    assert_eq!(transcript.text(), TALE);
    assert!(
        transcript.tokens.iter().any(|token| token["text"] == ""),
        "nothing was held back"
    );
}

/// R0.3, R1.7: requests as they were before there were sampling parameters.
#[tokio::test]
async fn r0_3_r1_7_old_requests_keep_working() {
    let rig = Rig::new(text(TALE));
    let transcript = rig.execute(&json!({"prompt": PROMPT})).await;
    assert_eq!(
        (transcript.text(), transcript.stop_reason()),
        (TALE, "stop")
    );
    let old = json!({"job_id": "tale-1", "prompt": PROMPT, "max_tokens": 3, "temperature": 0.7, "seed": 42});
    let transcript = rig.execute(&old).await;
    assert_eq!(transcript.started["job_id"], "tale-1");
    assert_eq!(transcript.started["seed"], 42);
    assert_eq!(
        (transcript.tokens.len(), transcript.stop_reason()),
        (3, "length")
    );
}

/// R0.2, R1.7: the same seed gives the same tokens; another gives others.
#[tokio::test]
async fn r0_2_r1_7_the_same_seed_gives_the_same_tokens() {
    let (_, script) = four_tokens();
    let rig = Rig::new(script);
    let with =
        |seed: u64| json!({"prompt": PROMPT, "max_tokens": 64, "temperature": 0.9, "seed": seed});
    let first = rig.execute(&with(7)).await.ids();
    assert_eq!(rig.execute(&with(7)).await.ids(), first);
    assert_ne!(rig.execute(&with(8)).await.ids(), first);
    assert_eq!(rig.execute(&with(u64::MAX)).await.started["seed"], u64::MAX);
    // A seed that the server drew replays the request.
    let drawn = rig
        .execute(&json!({"prompt": PROMPT, "max_tokens": 64}))
        .await;
    let seed = drawn.started["seed"].as_u64().unwrap();
    assert!(seed < 1 << 53, "JavaScript cannot hold {seed}");
    let again = json!({"prompt": PROMPT, "max_tokens": 64, "seed": seed});
    assert_eq!(rig.execute(&again).await.ids(), drawn.ids());
}

/// R1.7: both ends of every range are accepted, and `started` says what acts.
#[tokio::test]
async fn r1_7_the_ends_of_every_range_are_accepted() {
    let (_, script) = four_tokens();
    let rig = Rig::new(script);
    let vocab = rig.engine.vocab().size;
    for (name, value) in [
        ("temperature", json!(0)),
        ("temperature", json!(2)),
        ("top_p", json!(0)),
        ("top_p", json!(1)),
        ("top_k", json!(0)),
        ("top_k", json!(vocab)),
        ("repetition_penalty", json!(1e-3)),
        ("repetition_penalty", json!(2)),
        ("min_p", json!(0)),
        ("min_p", json!(1)),
        ("seed", json!(0)),
        ("seed", json!(u64::MAX)),
        ("frequency_penalty", json!(-2)),
        ("presence_penalty", json!(2)),
        ("max_tokens", json!(1)),
        ("max_tokens", json!(1024)),
        ("stop", json!(["a", "b", "c", "d"])),
        ("logit_bias", json!({"5": -100, "6": 100})),
    ] {
        let mut body = json!({"prompt": PROMPT, "max_tokens": 1});
        body[name] = value.clone();
        let transcript = rig.execute(&body).await;
        assert_eq!(transcript.ending.name, "end", "{name}: {value}");
        // What keeps every token acts as the neutral value.
        if value != json!(vocab) && name != "max_tokens" {
            let effective = &transcript.started["params"][name];
            assert_eq!(effective.as_f64(), value.as_f64(), "{name}: {value}");
        }
    }
}

/// Values that act as others are said in `started`: a temperature too small to divide by, in f32 a zero.
#[tokio::test]
async fn p3_p4_a_tiny_temperature_is_greedy_and_said() {
    let ([a, ..], script) = four_tokens();
    let rig = Rig::new(script);
    for temperature in [1e-3, 1e-5, 1e-39, 1e-60] {
        let body = json!({"prompt": PROMPT, "max_tokens": 8, "temperature": temperature});
        let transcript = rig.execute(&body).await;
        assert_eq!(transcript.ids(), [a; 8], "{temperature}");
        let warnings = transcript.started["warnings"].as_array().unwrap();
        assert_eq!(warnings[0]["param"], "temperature", "{warnings:?}");
        assert!(
            warnings[0]["message"].as_str().unwrap().contains("0.01"),
            "{warnings:?}"
        );
    }
    let plain = rig
        .execute(&json!({"prompt": PROMPT, "max_tokens": 1}))
        .await;
    assert_eq!(plain.started["warnings"], json!([]));
}

/// The log-probability of a token comes when it is asked for; it is the raw one, whatever the parameters are.
#[tokio::test]
async fn logprobs_are_optional_and_raw() {
    let (_, script) = four_tokens();
    let rig = Rig::new(script);
    let body = json!({"prompt": PROMPT, "max_tokens": 1, "temperature": 0, "logprobs": true});
    let logprob = rig.execute(&body).await.tokens[0]["logprob"]
        .as_f64()
        .unwrap();
    assert!((logprob - 0.4_f64.ln()).abs() < 1e-6, "{logprob}");
    let body = json!({"prompt": PROMPT, "max_tokens": 1, "logprobs": false});
    assert!(rig.execute(&body).await.tokens[0].get("logprob").is_none());
}

/// P22: what JSON cannot hold is null, not invalid JSON. The only token that may be drawn has probability 0.
#[tokio::test]
async fn p22_a_logprob_without_a_value_is_null() {
    let [likely, other] = [" fox", " bear"].map(|word| tokens(word)[0]);
    let rig = Rig::new(move |_| Reply::Logits(vec![(likely, 0.0), (other, -3e4)]));
    let body =
        json!({"prompt": PROMPT, "max_tokens": 1, "logprobs": true, "allowed_token_ids": [other]});
    let transcript = rig.execute(&body).await;
    assert_eq!(transcript.ids(), [other]);
    let logprob = &transcript.tokens[0]["logprob"];
    assert!(
        logprob.is_null() || logprob.as_f64().is_some_and(f64::is_finite),
        "{logprob}"
    );
}

/// P18: a character whose bytes come in several tokens appears whole; half of one at the end becomes U+FFFD.
#[tokio::test]
async fn p18_characters_are_never_split() {
    let dragon = tokens(" 🐉.");
    assert!(
        dragon.len() > 3,
        "the vocabulary spells the character in bytes"
    );
    let rig = Rig::new(text(" 🐉."));
    let whole = rig
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    assert_eq!(whole.text(), " 🐉.");
    let cut = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": dragon.len() - 2});
    let cut = rig.execute(&cut).await;
    assert!(cut.text().ends_with('\u{fffd}'), "{:?}", cut.text());
}

/// What a stream looks like from its first byte to its last.
#[tokio::test]
async fn the_events_have_their_documented_shape() {
    let rig = Rig::new(text(" a fox"));
    let body = json!({"job_id": "j", "prompt": PROMPT, "temperature": 0, "stop": "x"});
    let answer = rig.post("/execute", &body).await;
    assert_eq!(answer.headers["cache-control"], "no-cache");
    let events = answer.stream().rest().await;
    let keys = |event: &SseEvent| -> Vec<String> {
        event.data.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(
        keys(&events[0]),
        ["job_id", "model", "seed", "params", "warnings"]
    );
    assert_eq!(events[0].data["model"], "scripted");
    assert_eq!(keys(&events[1]), ["index", "id", "text"]);
    let end = events.last().unwrap();
    assert_eq!(
        keys(end),
        [
            "text",
            "stop_reason",
            "stop_sequence",
            "usage",
            "timings",
            "sampling"
        ]
    );
    let prompt_tokens = encode_prompt(PROMPT).len();
    let completion_tokens = events.len() - 2;
    assert_eq!(
        end.data["usage"],
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        })
    );
    let timings: Vec<&String> = end.data["timings"].as_object().unwrap().keys().collect();
    assert_eq!(
        timings,
        ["queued_ms", "prefill_ms", "decode_ms", "tokens_per_second"]
    );
}

/// Without `max_tokens` the context is filled; its end is `length`.
#[tokio::test]
async fn the_end_of_the_context_is_length() {
    let rig = Rig::new(crate::support::forever());
    let transcript = rig
        .execute(&json!({"prompt": PROMPT, "temperature": 0}))
        .await;
    let room = rig.engine.spec().context_length - encode_prompt(PROMPT).len();
    assert_eq!(
        (transcript.tokens.len(), transcript.stop_reason()),
        (room, "length")
    );
    assert_eq!(transcript.started["params"]["max_tokens"], room);
}
