//! The command line from outside: the real binary on the bundled model.
#![cfg(feature = "bundled-model")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use serde_json::Value;
use support::{Files, Run, nucleus, run, run_with_input};

const PROMPT: &str = "Once upon a time";

fn generate(flags: &[&str]) -> Run {
    run(&[&["generate", PROMPT, "--max-tokens", "12"], flags].concat())
}

fn generate_json(flags: &[&str]) -> Value {
    generate(&[&["--json"], flags].concat()).json()
}

mod generating {
    use super::*;

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
        let argument =
            run(&[&["generate", PROMPT], &flags[..]].concat()).json()["token_ids"].clone();
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
}

mod refusing {
    use super::*;

    #[test]
    fn parameters_out_of_range_name_the_range() {
        generate(&["--temperature", "-1"]).refused(2, &["temperature", "-1", "0", "1000"]);
        generate(&["--top-p", "1.5"]).refused(2, &["top_p", "1.5", "[0, 1]"]);
        generate(&["--min-p=NaN"]).refused(2, &["min_p", "NaN", "[0, 1]"]);
        generate(&["--repetition-penalty", "0"]).refused(2, &["repetition_penalty", "0"]);
        generate(&["--logit-bias", "8192:1"]).refused(2, &["logit_bias", "8192"]);
        generate(&["--top-k", "many"]).refused(2, &["many", "--top-k"]);
        generate(&["--seed", "-1"]).refused(2, &["-1", "--seed"]);
        run(&["generate", PROMPT, "--max-tokens", "0"]).refused(2, &["0", "--max-tokens"]);
        generate(&["--threads", "0"]).refused(2, &["0", "--threads"]);
        generate(&["--device", "cuda:0"]).refused(2, &["cuda:0", "--device"]);
    }

    #[test]
    fn prompts_that_are_not_there() {
        run(&["generate", ""]).refused(2, &["prompt is empty"]);
        run_with_input(&["generate", "-"], "\n").refused(2, &["prompt is empty"]);
        run(&["generate"]).refused(2, &["required arguments"]);
        run(&["generate", "a", "--prompt-file", "b"]).refused(2, &["cannot be used with"]);
        run(&["generate", "--prompt-file", "absent.txt"])
            .refused(1, &["absent.txt", "No such file"]);
    }

    #[test]
    fn prompts_that_are_too_long_for_the_context() {
        let prompt = "the ".repeat(1100);
        run_with_input(&["generate", "-"], &prompt).refused(2, &["prompt", "tokens", "1024"]);
    }

    #[test]
    fn an_empty_stop_string() {
        generate(&["--stop", ""]).refused(2, &["stop"]);
    }

    #[test]
    fn unknown_flags_and_commands() {
        generate(&["--warmth", "1"]).refused(2, &["--warmth"]);
        run(&["invent"]).refused(2, &["invent"]);
        assert_eq!(run(&[]).code, 2);
    }
}

/// The bundled model's file, for tests that damage it.
const BUNDLED: &[u8] =
    include_bytes!("../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");

/// A GGUF file of version 3 with one string key and no tensors.
fn gguf_of_architecture(name: &str) -> Vec<u8> {
    const STRING: u32 = 8;
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    for (index, text) in ["general.architecture", name].into_iter().enumerate() {
        if index == 1 {
            bytes.extend(STRING.to_le_bytes());
        }
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

mod model_files {
    use super::*;

    /// Every command that reads a model refuses this file with these words.
    fn refused(path: &str, words: &[&str]) {
        generate(&["--model", path]).refused(1, words);
        run(&["chat", "--model", path]).refused(1, words);
    }

    #[test]
    fn r0_1_files_that_are_no_models() {
        let files = Files::new();
        refused("absent.gguf", &["absent.gguf", "No such file"]);
        refused(files.path().to_str().unwrap(), &["directory"]);
        refused(&files.write("empty.gguf", ""), &["empty.gguf", "empty"]);
        refused(
            &files.write("text.gguf", "Once upon a time there was a file."),
            &["text.gguf", "GGUF"],
        );
    }

    #[test]
    fn r0_1_a_truncated_model() {
        let files = Files::new();
        for length in [3, 24, 5_000, BUNDLED.len() / 2, BUNDLED.len() - 1] {
            let path = files.write("cut.gguf", &BUNDLED[..length]);
            refused(&path, &["cut.gguf"]);
        }
    }

    #[test]
    fn r0_1_an_unsupported_architecture_is_named() {
        let files = Files::new();
        let path = files.write("other.gguf", gguf_of_architecture("mamba"));
        refused(&path, &["mamba", "not supported"]);
    }
}

mod chatting {
    use super::*;

    fn chat(flags: &[&str], input: &str) -> Run {
        run_with_input(&[&["chat", "-n8"], flags].concat(), input)
    }

    #[test]
    fn r0_1_answers_come_through_a_pipe() {
        let run = chat(&["--seed", "1"], "Tell me a story about a fox.\n");
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(!run.stdout.trim().is_empty());
        assert!(
            !run.stdout.contains("> ") && !run.stdout.contains("<|"),
            "{:?}",
            run.stdout
        );
    }

    #[test]
    fn r0_2_the_same_seed_gives_the_same_answers() {
        let talk = |seed| chat(&["--seed", seed, "--temperature", "1"], "A fox.\nA hen.\n").stdout;
        assert_eq!(talk("4"), talk("4"));
        assert_ne!(talk("4"), talk("5"));
    }

    #[test]
    fn commands_are_not_messages() {
        let run = chat(&[], "/help\n\n/dance\n/exit\nTell me a story.\n");
        assert_eq!((run.code, run.stdout.as_str()), (0, ""), "{}", run.stderr);
        assert!(run.stderr.contains("no command /dance"), "{}", run.stderr);
    }

    #[test]
    fn a_reset_forgets_what_was_said() {
        let answer = |input: &str| {
            let run = chat(&["--temperature", "0"], input);
            run.stdout.lines().last().unwrap().to_owned()
        };
        let question = "Tell me a story about a hen.\n";
        assert_eq!(
            answer(&format!("Tell me of a king.\n/reset\n{question}")),
            answer(question)
        );
    }

    #[test]
    fn the_oldest_turns_are_dropped_with_a_note() {
        let long = format!("{}\n", "the ".repeat(520));
        let run = chat(&[], &long.repeat(2));
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(
            run.stderr.contains("the oldest turn no longer fit"),
            "{}",
            run.stderr
        );
    }

    #[test]
    fn a_message_that_cannot_fit_is_refused_and_the_conversation_goes_on() {
        let run = chat(
            &["--seed", "1"],
            &format!("{}\nA fox.\n", "the ".repeat(1100)),
        );
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(
            run.stderr.contains("the message is too long"),
            "{}",
            run.stderr
        );
        assert_eq!(
            run.stderr.matches("finish reason").count(),
            1,
            "{}",
            run.stderr
        );
    }

    #[test]
    fn parameters_out_of_range_are_refused_before_the_first_message() {
        chat(&["--top-p", "2"], "A fox.\n").refused(2, &["top_p", "[0, 1]"]);
    }
}

mod inspecting {
    use super::*;

    const MODEL: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
    );

    #[test]
    fn json_holds_metadata_tensors_and_memory() {
        let object = run(&["models", "inspect", MODEL, "--json"]).json();
        assert_eq!(object["metadata"]["general.architecture"], "llama");
        assert_eq!(object["metadata"]["llama.block_count"], 5);
        let tensors = object["tensors"].as_array().unwrap();
        // Nine tensors in each of five layers, the embedding and the last norm.
        assert_eq!(tensors.len(), 47);
        let embedding = tensors
            .iter()
            .find(|tensor| tensor["name"] == "token_embd.weight")
            .unwrap();
        assert_eq!(embedding["type"], "Q8_0");
        assert_eq!(embedding["shape"], serde_json::json!([8192, 512]));
        // Q8_0: 34 bytes for 32 weights.
        assert_eq!(embedding["bytes"], 8192 * 512 / 32 * 34);
        assert!(object["memory"]["weights_bytes"].as_u64().unwrap() > 16_000_000);
        assert!(object["memory"]["kv_cache_bytes"].as_u64().unwrap() > 0);
    }

    #[test]
    fn text_is_for_people() {
        let run = run(&["models", "inspect", MODEL]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        for word in ["llama", "token_embd.weight", "Q8_0", "context", "MB"] {
            assert!(
                run.stdout.contains(word),
                "{word:?} is not in\n{}",
                run.stdout
            );
        }
    }

    #[test]
    fn a_model_that_cannot_run_can_be_looked_at() {
        let files = Files::new();
        let path = files.write("other.gguf", gguf_of_architecture("mamba"));
        let object = run(&["models", "inspect", &path, "--json"]).json();
        assert_eq!(object["metadata"]["general.architecture"], "mamba");
        assert_eq!(object["supported"], false);
    }

    #[test]
    fn files_that_are_no_models() {
        let files = Files::new();
        run(&["models", "inspect", "absent.gguf"]).refused(1, &["absent.gguf", "No such file"]);
        run(&[
            "models",
            "inspect",
            &files.write("text.gguf", "not a model"),
        ])
        .refused(1, &["text.gguf", "GGUF"]);
        run(&[
            "models",
            "inspect",
            &files.write("cut.gguf", &BUNDLED[..5_000]),
        ])
        .refused(1, &["cut.gguf"]);
    }
}

mod measuring {
    use super::*;

    #[test]
    fn bench_reports_decoding_and_sampling() {
        let flags = [
            "--sequences",
            "1,2",
            "--tokens",
            "3",
            "--vocab",
            "1000",
            "--json",
        ];
        let report = run(&[&["bench"], &flags[..]].concat()).json();
        let decoding = report["decoding"].as_array().unwrap();
        assert_eq!(
            (&decoding[0]["sequences"], &decoding[1]["sequences"]),
            (&1.into(), &2.into())
        );
        assert!(decoding[1]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
        let sampling = report["sampling"].as_array().unwrap();
        assert!(
            sampling
                .iter()
                .all(|row| row["vocab_size"] == 1000 && row["median_us"].as_f64().unwrap() > 0.0)
        );
        run(&["bench", "--sequences", "0"]).refused(2, &["0", "--sequences"]);
    }
}

mod helping {
    use super::*;

    #[test]
    fn every_command_explains_itself_with_examples() {
        for command in [
            &["generate"][..],
            &["chat"],
            &["models", "inspect"],
            &["sample"],
            &["explain"],
            &["bench"],
            &["serve"],
            &["completions"],
        ] {
            let run = run(&[command, &["--help"]].concat());
            assert_eq!(run.code, 0, "{command:?}");
            assert!(
                run.stdout.contains("Examples:") && run.stdout.contains("Usage: nucleus"),
                "{}",
                run.stdout
            );
        }
    }

    #[test]
    fn help_states_ranges_and_defaults() {
        let help = run(&["generate", "-h"])
            .stdout
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        assert!(
            help.contains("--top-p <NUMBER>") && help.contains("[0, 1], default 1"),
            "{help}"
        );
    }

    #[test]
    fn completions_for_every_shell() {
        for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
            let run = run(&["completions", shell]);
            assert_eq!(run.code, 0, "{shell}: {}", run.stderr);
            assert!(run.stdout.contains("repetition-penalty"), "{shell}");
        }
        run(&["completions", "cmd"]).refused(2, &["cmd"]);
    }

    #[test]
    fn help_into_a_closed_pipe_is_quiet() {
        let mut child = nucleus(&["generate", "--help"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::with_capacity(16, child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ended = child.wait_with_output().unwrap();
        assert!(
            !String::from_utf8(ended.stderr)
                .unwrap()
                .contains("panicked")
        );
    }

    #[test]
    fn the_version_is_the_packages() {
        assert_eq!(
            run(&["--version"]).stdout,
            format!("nucleus {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
