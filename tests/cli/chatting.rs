//! `nucleus chat` through a pipe.

use crate::support::{Run, run_with_input};

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
