//! `nucleus generate` on the bundled model.

use std::io::Read;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{
    BUNDLED, Files, PROMPT, generate, generate_json, nucleus, run, run_with_input,
};

#[test]
fn r0_1_text_follows_the_prompt_and_statistics_go_to_stderr() {
    let run = generate(&["--seed", "7"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.starts_with(PROMPT) && run.stdout.ends_with('\n'),
        "{:?}",
        run.stdout
    );
    assert!(
        run.stdout.trim_end().len() > PROMPT.len(),
        "{:?}",
        run.stdout
    );
    assert!(
        !run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'),
        "no colour into a pipe"
    );
    let statistics = run.stderr.lines().last().unwrap();
    for word in ["tokens/s", "finish reason", "seed 7"] {
        assert!(
            statistics.contains(word),
            "{word:?} is not in {statistics:?}"
        );
    }
}

#[test]
fn r0_1_text_streams_before_the_end() {
    let mut child = nucleus(&["generate", PROMPT, "--max-tokens", "60", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut reads = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(bytes @ 1..) = out.read(&mut buffer) {
        reads.push(bytes);
    }
    assert!(child.wait().unwrap().success());
    assert!(reads.len() > 10, "60 tokens came in {} pieces", reads.len());
}

#[test]
fn r0_2_the_same_seed_gives_the_same_text() {
    let text = |seed| generate_json(&["--seed", seed, "--temperature", "1"])["text"].clone();
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn r0_2_greedy_is_deterministic_without_a_seed() {
    let tokens = || generate_json(&["--temperature", "0"])["token_ids"].clone();
    assert_eq!(tokens(), tokens());
}

#[test]
fn r0_2_a_seed_that_was_drawn_can_be_used_again() {
    let first = generate_json(&["--temperature", "1"]);
    let again = generate_json(&["--temperature", "1", "--seed", &first["seed"].to_string()]);
    assert_eq!(first["token_ids"], again["token_ids"]);
}

#[test]
fn json_has_the_documented_fields() {
    let object = generate_json(&["--seed", "7", "--top-k", "5"]);
    let keys: Vec<_> = object.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys,
        [
            "text",
            "token_ids",
            "finish_reason",
            "seed",
            "params",
            "timings"
        ]
    );
    assert!(
        !object["text"].as_str().unwrap().contains(PROMPT),
        "the completion alone"
    );
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 12);
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(object["seed"], 7);
    assert_eq!(object["params"]["seed"], 7);
    assert_eq!(object["params"]["top_k"], 5);
    assert_eq!(object["timings"]["output_tokens"], 12);
    for time in [
        "load_ms",
        "queued_ms",
        "prefill_ms",
        "decode_ms",
        "tokens_per_second",
    ] {
        assert!(object["timings"][time].as_f64().unwrap() >= 0.0, "{time}");
    }
}

#[test]
fn the_models_recommended_sampling_is_printed_and_flags_override_it() {
    let recommended = generate(&["--json", "--seed", "1"]);
    let params = &recommended.json()["params"];
    assert_eq!(
        (&params["temperature"], &params["top_k"], &params["top_p"]),
        (&0.7.into(), &40.into(), &0.95.into())
    );
    assert!(
        recommended
            .stderr
            .contains("temperature 0.7, top_k 40, top_p 0.95"),
        "{}",
        recommended.stderr
    );
    let params = &generate_json(&["--temperature", "0.3"])["params"];
    assert_eq!(
        (&params["temperature"], &params["top_k"]),
        (&0.3.into(), &40.into())
    );
}

#[test]
fn a_generation_config_beside_the_file_is_read() {
    let files = Files::new();
    let model = files.write("model.gguf", BUNDLED);
    files.write(
        "generation_config.json",
        r#"{"temperature": 0.25, "eos_token_id": 2}"#,
    );
    let params = generate_json(&["--model", &model])["params"].clone();
    assert_eq!(params["temperature"], 0.25);
    assert_eq!(
        params.get("top_k").and_then(Value::as_i64).unwrap_or(0),
        0,
        "nothing of the bundled model's"
    );
}

#[test]
fn the_end_tokens_of_a_generation_config_end_the_text() {
    let files = Files::new();
    let model = files.write("model.gguf", BUNDLED);
    let first = generate_json(&["--temperature", "0"])["token_ids"][0].clone();
    files.write(
        "generation_config.json",
        format!(r#"{{"eos_token_id": [2, {first}, 99999]}}"#),
    );
    let ended = generate_json(&["--model", &model, "--temperature", "0"]);
    assert_eq!(
        (&ended["token_ids"], &ended["finish_reason"]),
        (&serde_json::json!([first]), &"stop".into())
    );
}

#[test]
fn a_generation_config_that_is_not_one_is_named() {
    let files = Files::new();
    let model = files.write("model.gguf", BUNDLED);
    files.write("generation_config.json", r#"{"top_k": "many"}"#);
    generate(&["--model", &model]).refused(1, &["generation_config.json", "top_k", "many"]);
}

#[test]
fn r0_1_the_bundled_model_is_the_default_and_the_same_as_its_file() {
    let files = Files::new();
    let model = files.write("model.gguf", BUNDLED);
    let tokens = |flags: &[&str]| {
        generate_json(&[flags, &["--temperature", "0"]].concat())["token_ids"].clone()
    };
    assert_eq!(tokens(&[]), tokens(&["--model", "bundled"]));
    assert_eq!(tokens(&[]), tokens(&["--model", &model]));
}

#[test]
fn r1_4_a_stop_string_ends_the_text_before_it() {
    let free = generate_json(&["--temperature", "0"])["text"]
        .as_str()
        .unwrap()
        .to_owned();
    let word = free
        .split_whitespace()
        .nth(2)
        .expect("the text has three words");
    let stopped = generate_json(&[
        "--temperature",
        "0",
        "--stop",
        "never in this text",
        "--stop",
        word,
    ]);
    assert_eq!(stopped["finish_reason"], "stop_sequence");
    assert_eq!(stopped["text"], free[..free.find(word).unwrap()]);
}

#[test]
fn every_sampling_flag_reaches_the_sampler() {
    let flags = [
        "--logit-bias",
        "5:-3.5",
        "--frequency-penalty",
        "-0.5",
        "--repetition-penalty",
        "1.1",
        "--min-p=0.02",
    ];
    let params = generate_json(&flags)["params"].clone();
    assert_eq!(params["logit_bias"]["5"], -3.5);
    assert_eq!(params["frequency_penalty"], -0.5);
    assert_eq!(params["repetition_penalty"], 1.1);
    assert_eq!(params["min_p"], 0.02);
}

#[test]
fn the_number_of_threads_does_not_change_the_text() {
    let tokens =
        |threads| generate_json(&["--seed", "3", "--threads", threads])["token_ids"].clone();
    assert_eq!(tokens("1"), tokens("2"));
}

#[test]
fn quiet_silences_standard_error() {
    assert_eq!(generate(&["--quiet"]).stderr, "");
}

#[test]
fn the_prompt_comes_from_standard_input_or_a_file() {
    let flags = ["--json", "--temperature", "0", "--max-tokens", "5"];
    let argument = run(&[&["generate", PROMPT], &flags[..]].concat()).json()["token_ids"].clone();
    let piped = run_with_input(
        &[&["generate", "-"], &flags[..]].concat(),
        &format!("{PROMPT}\n"),
    );
    assert_eq!(piped.json()["token_ids"], argument);
    let files = Files::new();
    let file = files.write("prompt.txt", PROMPT);
    let read = run(&[&["generate", "--prompt-file", &file], &flags[..]].concat());
    assert_eq!(read.json()["token_ids"], argument);
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let mut child = nucleus(&["generate", PROMPT, "--max-tokens", "900", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 4];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ended = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{stderr}");
    assert!(
        !stderr.contains("error") && !stderr.contains("panicked"),
        "{stderr}"
    );
}

/// R5.2: a text is JSON of a schema, or a match of an expression.
#[test]
fn r5_2_a_text_has_the_form_that_is_asked_for() {
    let files = Files::new();
    let schema = r#"{"type": "object", "properties": {"legs": {"type": "integer", "maximum": 8, "minimum": 0}}, "required": ["legs"], "additionalProperties": false}"#;
    let schema = files.write("schema.json", schema);
    let flags = ["--json", "--json-schema", &schema, "--max-tokens", "40"];
    let answer = run(&[&["generate", PROMPT], &flags[..]].concat()).json();
    assert_eq!(answer["finish_reason"], "stop");
    let text = answer["text"].as_str().unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    assert!(
        value["legs"].as_u64().is_some_and(|legs| legs <= 8),
        "{text}"
    );
    let answer = generate_json(&["--regex", "(yes|no)!"]);
    assert!(["yes!", "no!"].iter().any(|text| answer["text"] == *text));
    let gbnf = files.write(
        "answer.gbnf",
        "root ::= (\"yes\" | \"no\") mark{2}\nmark ::= [!?]\n",
    );
    let lark = files.write(
        "answer.lark",
        "start: (\"yes\" | \"no\") MARK MARK\nMARK: /[!?]/\n",
    );
    for grammar in [&gbnf, &lark] {
        let answer = generate_json(&["--grammar", grammar]);
        let text = answer["text"].as_str().unwrap();
        let word = text.trim_end_matches(['!', '?']);
        assert!(
            ["yes", "no"].contains(&word) && text.len() == word.len() + 2,
            "{text}"
        );
    }
}

#[test]
fn unsound_forms_are_refused() {
    let files = Files::new();
    generate(&["--regex", "(a"]).refused(2, &["--regex", "(a"]);
    let schema = files.write("schema.json", r#"{"type": "strin"}"#);
    generate(&["--json-schema", &schema]).refused(2, &["--json-schema", "strin"]);
    let broken = files.write("broken.json", "{");
    generate(&["--json-schema", &broken]).refused(1, &["broken.json"]);
    generate(&["--json-schema", "/nowhere.json"]).refused(1, &["/nowhere.json"]);
    let grammar = files.write("grammar.gbnf", "root ::= \"a\"\nx ::= (");
    generate(&["--grammar", &grammar]).refused(2, &["--grammar", "line 2"]);
    generate(&["--grammar", "/nowhere.gbnf"]).refused(1, &["/nowhere.gbnf"]);
    for other in [["--regex", "a"], ["--grammar", &grammar]] {
        let both = generate(&[&["--json-schema", &schema], &other[..]].concat());
        assert_eq!(both.code, 2, "{}", both.stderr);
    }
}
