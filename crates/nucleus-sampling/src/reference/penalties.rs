//! Penalties for what has been said: repetition, frequency, presence, DRY, repeated n-grams.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Flags, SamplingConfig, UNLIMITED};
use crate::reference::candidates::Candidate;
use crate::row::Row;

/// The last `window` tokens.
fn tail(tokens: &[u32], window: u32) -> &[u32] {
    match window {
        UNLIMITED => tokens,
        window => &tokens[tokens.len().saturating_sub(window as usize)..],
    }
}

/// What the repetition, frequency and presence penalties know of the history.
pub(crate) struct Seen {
    /// Tokens of prompt and output in the window: the repetition penalty's.
    seen: BTreeSet<u32>,
    /// Occurrences in the window that frequency and presence count.
    counts: BTreeMap<u32, u32>,
}

impl Seen {
    pub(crate) fn of(row: &Row<'_>) -> Self {
        let config = row.params.config();
        let window = tail(row.state.tokens(), config.repeat_last_n);
        let counted = if config.flags & Flags::COUNT_PROMPT != 0 {
            window
        } else {
            tail(row.state.output(), config.repeat_last_n)
        };
        let mut counts = BTreeMap::new();
        counted
            .iter()
            .for_each(|id| *counts.entry(*id).or_insert(0) += 1);
        Self {
            seen: window.iter().copied().collect(),
            counts,
        }
    }

    /// Repetition, then frequency, then presence; every operator rounds once.
    pub(crate) fn penalise(&self, token: Candidate, config: &SamplingConfig) -> f32 {
        let mut logit = token.logit;
        if self.seen.contains(&token.id) {
            logit = repetition(logit, config.repetition_penalty);
        }
        if let Some(count) = self.counts.get(&token.id) {
            logit -= config.frequency_penalty * *count as f32;
            logit -= config.presence_penalty;
        }
        logit
    }
}

/// x / r above 0, x r below.
fn repetition(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 {
        logit / penalty
    } else {
        logit * penalty
    }
}

/// DRY's penalty per token: multiplier * base^(length - allowed) for the longest passage that the token would prolong.
pub(crate) fn dry(row: &Row<'_>) -> BTreeMap<u32, f32> {
    let config = row.params.config();
    let breakers = &row.params.tables().breakers;
    let history = tail(row.state.tokens(), config.dry_penalty_last_n);
    let limit = since_breaker(history, breakers);
    let mut longest = BTreeMap::new();
    for end in 1..history.len() {
        let length = common_suffix(&history[..end], history).min(limit) as u64;
        let next = history[end];
        if length >= u64::from(config.dry_allowed_length.max(1)) && !breakers.contains(&vec![next])
        {
            let entry = longest.entry(next).or_insert(0);
            *entry = length.max(*entry);
        }
    }
    let allowed = u64::from(config.dry_allowed_length);
    longest
        .into_iter()
        .map(|(id, length)| {
            (
                id,
                config.dry_multiplier * power(config.dry_base, length - allowed),
            )
        })
        .collect()
}

/// Number of tokens after the last sequence breaker.
fn since_breaker(history: &[u32], breakers: &[Vec<u32>]) -> usize {
    (0..=history.len())
        .rev()
        .find(|end| {
            breakers
                .iter()
                .any(|breaker| history[..*end].ends_with(breaker))
        })
        .map_or(history.len(), |end| history.len() - end)
}

/// Length of the longest common suffix.
fn common_suffix(a: &[u32], b: &[u32]) -> usize {
    a.iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(a, b)| a == b)
        .count()
}

/// base^exponent by repeated f32 products, the last finite one if it overflows.
fn power(base: f32, exponent: u64) -> f32 {
    let mut power = 1.0;
    for _ in 0..exponent {
        let next = power * base;
        if next == power || !next.is_finite() {
            break;
        }
        power = next;
    }
    power
}

/// The tokens that would complete an n-gram that is already there.
pub(crate) fn repeated_ngrams(history: &[u32], n: u32) -> BTreeSet<u32> {
    let n = n as usize;
    let Some(start) = history.len().checked_sub(n.saturating_sub(1)) else {
        return BTreeSet::new();
    };
    let prefix = &history[start..];
    history
        .windows(n.max(1))
        .filter_map(|ngram| ngram.split_last())
        .filter(|(_, others)| *others == prefix)
        .map(|(last, _)| *last)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_divides_above_zero_and_multiplies_below() {
        assert_eq!(repetition(3.0, 2.0), 1.5);
        assert_eq!(repetition(-3.0, 2.0), -6.0);
        assert_eq!(repetition(0.0, 2.0), 0.0);
    }

    #[test]
    fn windows_take_the_last_tokens() {
        assert_eq!(tail(&[1, 2, 3], 2), [2, 3]);
        assert_eq!(tail(&[1, 2, 3], 9), [1, 2, 3]);
        assert_eq!(tail(&[1, 2, 3], 0), [0u32; 0]);
        assert_eq!(tail(&[1, 2, 3], UNLIMITED), [1, 2, 3]);
    }

    #[test]
    fn a_power_is_a_product_and_stays_finite() {
        assert_eq!(power(1.75, 0), 1.0);
        assert_eq!(power(1.75, 3), 1.75 * 1.75 * 1.75);
        assert_eq!(power(1.0, u64::MAX), 1.0);
        assert_eq!(power(2.0, 1000), 2f32.powi(127));
    }

    #[test]
    fn a_breaker_limits_the_passage() {
        assert_eq!(since_breaker(&[1, 2, 3, 4], &[vec![2]]), 2);
        assert_eq!(since_breaker(&[1, 2, 3, 4], &[vec![2, 3]]), 1);
        assert_eq!(since_breaker(&[1, 2, 3, 4], &[vec![4]]), 0);
        assert_eq!(since_breaker(&[1, 2, 3, 4], &[vec![9]]), 4);
    }

    #[test]
    fn an_ngram_is_found_once_its_beginning_is_there_again() {
        assert_eq!(repeated_ngrams(&[1, 2, 3, 1, 2], 3), BTreeSet::from([3]));
        assert_eq!(repeated_ngrams(&[1, 2, 3, 1, 2], 4), BTreeSet::new());
        assert_eq!(repeated_ngrams(&[1, 2, 1], 1), BTreeSet::from([1, 2]));
        assert_eq!(repeated_ngrams(&[1], 3), BTreeSet::new());
        assert_eq!(repeated_ngrams(&[], 1), BTreeSet::new());
    }
}
