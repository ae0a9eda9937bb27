//! Command lines that are refused.

use crate::support::{PROMPT, generate, run, run_with_input};

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
    run(&["generate", "--prompt-file", "absent.txt"]).refused(1, &["absent.txt", "No such file"]);
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
