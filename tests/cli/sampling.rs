//! `nucleus sample` and `nucleus explain`: the sampler on rows of logits that can be checked by hand.

use crate::support::{Files, Run, npy_f16, npy_f32, run};
use serde_json::{Value, json};

/// Probabilities of the four-token row, by token id.
const ROW: [f64; 4] = [0.1, 0.2, 0.3, 0.4];

fn logits() -> Vec<f32> {
    ROW.iter()
        .map(|probability| probability.ln() as f32)
        .collect()
}

/// Runs `command` on one row with these parameters and flags.
fn on_row(command: &str, values: &[f32], params: &Value, flags: &[&str]) -> Run {
    let files = Files::new();
    let logits = files.write(
        "logits.npy",
        npy_f32(&format!("({},)", values.len()), values),
    );
    let params = files.write("params.json", params.to_string());
    run(&[
        &[command, "--logits", &logits, "--params", &params, "--json"],
        flags,
    ]
    .concat())
}

fn explain(params: &Value) -> Value {
    on_row("explain", &logits(), params, &[]).json()
}

fn close(actual: &Value, expected: f64) {
    let actual = actual.as_f64().expect("a number");
    assert!(
        (actual - expected).abs() < 1e-6,
        "{actual} is not {expected}"
    );
}

fn stage<'a>(explained: &'a Value, name: &str) -> &'a Value {
    let stages = explained["stages"].as_array().expect("stages");
    stages
        .iter()
        .find(|stage| stage["name"] == name)
        .unwrap_or_else(|| panic!("no stage {name} in {stages:?}"))
}

fn distribution(explained: &Value) -> Vec<(u64, f64)> {
    let entries = explained["distribution"]
        .as_array()
        .expect("a distribution");
    entries
        .iter()
        .map(|entry| (entry[0].as_u64().unwrap(), entry[1].as_f64().unwrap()))
        .collect()
}

fn assert_distribution(explained: &Value, expected: &[(u64, f64)]) {
    let actual = distribution(explained);
    assert_eq!(
        actual.iter().map(|&(id, _)| id).collect::<Vec<_>>(),
        expected.iter().map(|&(id, _)| id).collect::<Vec<_>>()
    );
    for ((_, actual), (_, expected)) in actual.iter().zip(expected) {
        assert!(
            (actual - expected).abs() < 1e-6,
            "{actual} is not {expected}"
        );
    }
    assert!((actual.iter().map(|&(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn explain_without_parameters_is_the_softmax() {
    let explained = explain(&json!({ "seed": 1 }));
    assert_distribution(&explained, &[(3, 0.4), (2, 0.3), (1, 0.2), (0, 0.1)]);
    assert_eq!(explained["sampled"]["position"], 0);
    assert_eq!(explained["sampled"]["seed"], 1);
    assert!(explained["sampled"]["token_id"].as_u64().unwrap() < 4);
}

#[test]
fn r1_1_explain_top_p_includes_the_crossing_token() {
    // 0.4 + 0.3 is the first sum to reach 0.6, so that two tokens stay, with 4/7 and 3/7.
    let explained = explain(&json!({ "top_p": 0.6 }));
    assert_distribution(&explained, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
    let top_p = stage(&explained, "top_p");
    assert_eq!(top_p["kept"], 2);
    close(&top_p["mass"], 0.7);
    let (a, b) = (4.0_f64 / 7.0, 3.0_f64 / 7.0);
    close(&top_p["entropy"], -(a * a.ln() + b * b.ln()));
    close(&top_p["max_logit"], f64::from(0.4_f64.ln() as f32));
    assert_eq!(
        top_p.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["name", "kept", "mass", "entropy", "max_logit"]
    );
}

#[test]
fn r1_2_explain_top_k_keeps_exactly_k() {
    let explained = explain(&json!({ "top_k": 3 }));
    assert_distribution(
        &explained,
        &[(3, 4.0 / 9.0), (2, 3.0 / 9.0), (1, 2.0 / 9.0)],
    );
    assert_eq!(stage(&explained, "top_k")["kept"], 3);
}

#[test]
fn r1_5_explain_min_p_is_relative_to_the_best() {
    // 0.6 × 0.4 = 0.24: the tokens with 0.4 and 0.3 stay.
    assert_distribution(
        &explain(&json!({ "min_p": 0.6 })),
        &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)],
    );
}

#[test]
fn r1_6_explain_top_k_then_top_p_renormalises_between() {
    // Of 4/9, 3/9, 2/9 the first two reach 0.75; without top_k it would take three of the four.
    let explained = explain(&json!({ "top_k": 3, "top_p": 0.75 }));
    assert_distribution(&explained, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
}

#[test]
fn explain_temperature_sharpens() {
    // T = 0.5 squares the probabilities: 1, 4, 9 and 16 of 30.
    let explained = explain(&json!({ "temperature": 0.5 }));
    assert_distribution(
        &explained,
        &[
            (3, 16.0 / 30.0),
            (2, 9.0 / 30.0),
            (1, 4.0 / 30.0),
            (0, 1.0 / 30.0),
        ],
    );
}

#[test]
fn r1_3_the_repetition_penalty_reads_prompt_and_output() {
    let files = Files::new();
    let logits = files.write("logits.npy", npy_f32("(1, 4)", &[2.0, 2.0, -1.0, 0.0]));
    let params = files.write("params.json", r#"{"repetition_penalty": 2.0}"#);
    let history = files.write("history.json", r#"{"prompt": [0], "output": [2, 2]}"#);
    let arguments = [
        "explain",
        "--logits",
        &logits,
        "--params",
        &params,
        "--history",
        &history,
        "--json",
    ];
    let explained = run(&arguments).json();
    // 2 / 2 = 1 and -1 × 2 = -2: exp gives e, e², e⁻² and 1.
    let weights = [1.0_f64, 2.0, -2.0, 0.0].map(f64::exp);
    let sum: f64 = weights.iter().sum();
    let expected = [1, 0, 3, 2].map(|id| (id as u64, weights[id] / sum));
    assert_distribution(&explained, &expected);
    assert_eq!(
        explained["sampled"]["position"], 2,
        "two tokens were generated before this one"
    );
}

#[test]
fn one_object_per_row_and_rows_do_not_see_each_other() {
    let files = Files::new();
    let mut values = logits();
    values.extend([f32::NAN, 0.0, 0.0, 0.0]);
    values.extend(logits());
    let logits = files.write("logits.npy", npy_f32("(3, 4)", &values));
    let params = files.write("params.json", r#"{"seed": 3}"#);
    let run = run(&[
        "explain", "--logits", &logits, "--params", &params, "--json",
    ]);
    let rows: Vec<Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0], rows[2], "the row's index does not enter the draw");
    assert_eq!(rows[1]["sampled"], Value::Null);
    assert!(rows[1]["error"].as_str().unwrap().contains("not a number"));
    assert_eq!(run.code, 1, "a row without a token is a failure");
    assert!(
        run.stderr
            .contains("error: nothing can be drawn from 1 of the rows"),
        "{}",
        run.stderr
    );
}

#[test]
fn r2_1_float16_rows_behave_as_their_widening() {
    let files = Files::new();
    // 1.0, 2.0, 0.5 and -1.0 are exact in both types.
    let half = files.write(
        "half.npy",
        npy_f16("(4,)", &[0x3c00, 0x4000, 0x3800, 0xbc00]),
    );
    let single = files.write("single.npy", npy_f32("(4,)", &[1.0, 2.0, 0.5, -1.0]));
    let params = files.write(
        "params.json",
        r#"{"seed": 3, "top_p": 0.9, "temperature": 0.8}"#,
    );
    let explained =
        |logits: &str| run(&["explain", "--logits", logits, "--params", &params, "--json"]).json();
    assert_eq!(explained(&half), explained(&single));
}

#[test]
fn r0_2_sample_draws_from_the_distribution() {
    let draws = 4000;
    let drawn = on_row(
        "sample",
        &logits(),
        &json!({ "seed": 11 }),
        &["--draws", "4000"],
    )
    .json();
    let counts = drawn["rows"][0]["counts"].as_array().unwrap().clone();
    let mut total = 0;
    let mut chi_square = 0.0;
    for entry in &counts {
        let (id, count) = (
            entry[0].as_u64().unwrap() as usize,
            entry[1].as_u64().unwrap(),
        );
        let expected = ROW[id] * f64::from(draws);
        chi_square += (count as f64 - expected).powi(2) / expected;
        total += count;
    }
    assert_eq!(total, 4000);
    assert_eq!(counts.len(), 4);
    // 16.27 is the 0.999 quantile with 3 degrees of freedom; the seed is fixed, so that the test always goes the same way.
    assert!(chi_square < 16.27, "chi-square {chi_square} of {counts:?}");
}

#[test]
fn r0_2_the_same_seed_draws_the_same_tokens_and_another_seed_others() {
    let counts = |seed: u64| {
        on_row(
            "sample",
            &logits(),
            &json!({ "seed": seed }),
            &["--draws", "200"],
        )
        .json()
    };
    assert_eq!(counts(5), counts(5));
    assert_ne!(counts(5), counts(6));
}

#[test]
fn sample_at_position_0_is_what_explain_shows() {
    for seed in 0..8 {
        let params = json!({ "seed": seed });
        let explained = on_row("explain", &logits(), &params, &[]).json();
        let drawn = on_row("sample", &logits(), &params, &[]).json();
        assert_eq!(
            drawn["rows"][0]["counts"],
            json!([[explained["sampled"]["token_id"], 1]])
        );
    }
}

#[test]
fn xtc_decides_anew_at_every_position() {
    // With a chance of one half the tokens above 0.25 but the least likely of them are excluded: token 3 goes in about
    // half of the draws, so that it is drawn in 0.5 × 0.4 of them.
    let params = json!({ "seed": 2, "xtc_probability": 0.5, "xtc_threshold": 0.25 });
    let drawn = on_row("sample", &logits(), &params, &["--draws", "2000"]).json();
    let counts = drawn["rows"][0]["counts"].as_array().unwrap().clone();
    let best = counts
        .iter()
        .find(|entry| entry[0] == 3)
        .expect("token 3 is drawn")[1]
        .as_u64()
        .unwrap();
    assert!(
        (320..480).contains(&best),
        "token 3 was drawn {best} times of 2000"
    );
}

#[test]
fn r0_2_temperature_0_always_takes_the_best_and_the_lowest_id_on_a_tie() {
    let drawn = on_row(
        "sample",
        &[1.0, 3.0, 3.0, 2.0],
        &json!({ "temperature": 0 }),
        &["--draws", "50"],
    )
    .json();
    assert_eq!(drawn["rows"][0]["counts"], json!([[1, 50]]));
}

#[test]
fn the_text_forms_show_tables() {
    let files = Files::new();
    let logits = files.write("logits.npy", npy_f32("(4,)", &logits()));
    let params = files.write("params.json", r#"{"top_k": 2, "seed": 1}"#);
    let explained = run(&["explain", "--logits", &logits, "--params", &params]);
    assert_eq!(explained.code, 0, "{}", explained.stderr);
    for word in [
        "row 0",
        "stage",
        "top_k",
        "0.700000",
        "probability",
        "0.571429",
        "with seed 1",
    ] {
        assert!(
            explained.stdout.contains(word),
            "{word} is not in\n{}",
            explained.stdout
        );
    }
    let drawn = run(&[
        "sample", "--logits", &logits, "--params", &params, "--draws", "10",
    ]);
    assert!(
        drawn.stdout.starts_with("row 0\n  token  count   share\n"),
        "{}",
        drawn.stdout
    );
    assert!(
        !explained.stdout.contains('\x1b') && !drawn.stdout.contains('\x1b'),
        "no colour into a pipe"
    );
}

#[test]
fn the_files_in_examples_work() {
    let logits = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sampling/logits.npy");
    let params = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sampling/params.json");
    let history = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/sampling/history.json"
    );
    let files = [
        "--logits",
        logits,
        "--params",
        params,
        "--history",
        history,
        "--json",
    ];
    let explained = run(&[&["explain"], &files[..]].concat());
    assert_eq!(
        (explained.code, explained.stdout.lines().count()),
        (0, 2),
        "{}",
        explained.stderr
    );
    let drawn = run(&[&["sample", "--draws", "10"], &files[..]].concat()).json();
    assert_eq!(drawn["rows"].as_array().unwrap().len(), 2);
}

#[test]
fn parameters_out_of_range_or_unknown_are_errors_of_usage() {
    let refused = |params: Value| on_row("sample", &logits(), &params, &[]);
    refused(json!({ "top_p": 1.5 })).refused(2, &["top_p", "1.5", "[0, 1]"]);
    refused(json!({ "temperature": -1 })).refused(2, &["temperature", "-1"]);
    refused(json!({ "warmth": 1 })).refused(2, &["params.json", "warmth"]);
    refused(json!({ "top_k": "many" })).refused(2, &["params.json", "many"]);
    refused(json!({ "allowed_token_ids": [4] })).refused(2, &["allowed_token_ids", "4"]);
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let files = Files::new();
    let good = files.write("logits.npy", npy_f32("(4,)", &logits()));
    let params = files.write("params.json", "{}");
    let text = files.write("text.npy", "not an array");
    let short = files.write("short.npy", npy_f32("(5,)", &logits()));
    let broken = files.write("broken.json", "{");
    let history = files.write("history.json", r#"{"output": [4]}"#);
    let call =
        |logits: &str, params: &str| run(&["explain", "--logits", logits, "--params", params]);
    call("absent.npy", &params).refused(1, &["absent.npy", "No such file"]);
    call(files.path().to_str().unwrap(), &params).refused(1, &["directory"]);
    call(&text, &params).refused(1, &["text.npy", "not a .npy file"]);
    call(&short, &params).refused(1, &["short.npy", "16 bytes", "needs 20"]);
    call(&good, &broken).refused(1, &["broken.json", "not JSON"]);
    run(&[
        "explain",
        "--logits",
        &good,
        "--params",
        &params,
        "--history",
        &history,
    ])
    .refused(2, &["history", "4", "[0, 4)"]);
    run(&["explain", "--logits", &good]).refused(2, &["required"]);
    run(&[
        "sample", "--logits", &good, "--params", &params, "--draws", "0",
    ])
    .refused(2, &["--draws"]);
}
