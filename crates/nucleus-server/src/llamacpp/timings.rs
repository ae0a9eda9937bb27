//! How long an answer took, as llama.cpp says it.

use std::time::Duration;

use nucleus_engine::sequence::Timings;
use schemars::JsonSchema;
use serde::Serialize;

/// How long it took. A rate without a time that could be measured is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "LlamaCppTimings")]
pub(super) struct TimingsMs {
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
}

impl TimingsMs {
    pub(super) fn new(prompt_n: usize, predicted_n: usize, timings: Timings) -> Self {
        let (prompt_ms, predicted_ms) = (ms(timings.prefill), ms(timings.decode));
        Self {
            prompt_n,
            prompt_ms,
            prompt_per_token_ms: ratio(prompt_ms, prompt_n as f64),
            prompt_per_second: ratio(prompt_n as f64 * 1e3, prompt_ms),
            predicted_n,
            predicted_ms,
            predicted_per_token_ms: ratio(predicted_ms, predicted_n as f64),
            predicted_per_second: ratio(predicted_n as f64 * 1e3, predicted_ms),
        }
    }
}

/// Milliseconds to the microsecond.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn ratio(over: f64, under: f64) -> f64 {
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_numbers_always() {
        let timings = Timings {
            prefill: Duration::from_millis(20),
            decode: Duration::from_millis(500),
            ..Timings::default()
        };
        let some = TimingsMs::new(4, 10, timings);
        assert_eq!(
            (some.prompt_per_second, some.prompt_per_token_ms),
            (200.0, 5.0)
        );
        assert_eq!(
            (some.predicted_per_second, some.predicted_per_token_ms),
            (20.0, 50.0)
        );
        let none = TimingsMs::new(4, 0, Timings::default());
        assert_eq!(
            (none.predicted_per_second, none.prompt_per_second),
            (0.0, 0.0)
        );
    }
}
