//! One request on its way to the reader: text as it comes, then how it ended.

use std::io;

use nucleus_engine::generate::{Event, Generation};
use nucleus_engine::sequence::{Completion, FinishReason, Timings};
use serde_json::{Value, json};

/// Hands each piece of text to `show` and returns how the generation ended.
///
/// Dropping the generation cancels it: a reader that leaves ends the work.
pub(crate) fn follow(
    mut generation: Generation,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Completion> {
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Prompt(_) => {}
            Event::Token(token) if token.text.is_empty() => {}
            Event::Token(token) => show(&token.text)?,
            Event::End(completion) => return Ok(completion),
            Event::Failed(error) => return Err(error.into()),
        }
    }
    unreachable!("a generation ends with an event that says so")
}

/// One line about a finished generation: `48 tokens, 310.2 tokens/s, finish reason length, seed 7`.
pub(crate) fn statistics(completion: &Completion, seed: u64) -> String {
    let tokens = completion.token_ids.len();
    let speed = tokens_per_second(tokens, completion.timings)
        .map_or_else(String::new, |v| format!(", {v:.1} tokens/s"));
    let reason = match &completion.finish_reason {
        FinishReason::StopSequence(text) => format!("stop sequence {text:?}"),
        reason => reason.as_str().to_owned(),
    };
    let tokens = if tokens == 1 {
        "1 token".to_owned()
    } else {
        format!("{tokens} tokens")
    };
    format!("{tokens}{speed}, finish reason {reason}, seed {seed}")
}

/// Speed of decoding: the first token belongs to the prompt's pass. `None` below two tokens.
fn tokens_per_second(tokens: usize, timings: Timings) -> Option<f64> {
    let seconds = timings.decode.as_secs_f64();
    (tokens > 1 && seconds > 0.0).then(|| (tokens - 1) as f64 / seconds)
}

/// Where the time went, in milliseconds.
pub(crate) fn timings(completion: &Completion, load: std::time::Duration) -> Value {
    let Timings {
        queued,
        prefill,
        decode,
    } = completion.timings;
    let milliseconds = |duration: std::time::Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "load_ms": milliseconds(load),
        "queued_ms": milliseconds(queued),
        "prefill_ms": milliseconds(prefill),
        "decode_ms": milliseconds(decode),
        "prompt_tokens": completion.prompt_tokens,
        "output_tokens": completion.token_ids.len(),
        "tokens_per_second": tokens_per_second(completion.token_ids.len(), completion.timings),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nucleus_engine::sequence::SamplingStats;

    use super::*;

    fn completion(tokens: usize, finish_reason: FinishReason) -> Completion {
        let timings = Timings {
            decode: Duration::from_millis(500),
            ..Timings::default()
        };
        Completion {
            text: String::new(),
            token_ids: vec![5; tokens],
            finish_reason,
            prompt_tokens: 3,
            timings,
            sampling: SamplingStats::default(),
        }
    }

    #[test]
    fn the_speed_counts_the_tokens_after_the_first() {
        let line = statistics(&completion(11, FinishReason::Length), 7);
        assert_eq!(
            line,
            "11 tokens, 20.0 tokens/s, finish reason length, seed 7"
        );
        let line = statistics(&completion(1, FinishReason::StopSequence("\n".into())), 7);
        assert_eq!(line, "1 token, finish reason stop sequence \"\\n\", seed 7");
    }

    #[test]
    fn timings_are_milliseconds() {
        let value = timings(
            &completion(11, FinishReason::Length),
            Duration::from_micros(1500),
        );
        assert_eq!(value["load_ms"], 1.5);
        assert_eq!(value["decode_ms"], 500.0);
        assert_eq!(value["output_tokens"], 11);
        assert_eq!(
            timings(&completion(1, FinishReason::Length), Duration::ZERO)["tokens_per_second"],
            Value::Null
        );
    }
}
