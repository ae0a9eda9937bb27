//! What the history forbids and penalises, as one number per token.

use super::table::{Entry, IdTable};
use crate::config::{Flags, SamplingConfig, UNLIMITED};
use crate::row::Row;
use crate::state::SamplerState;

/// How the number of a token changes its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// It is removed.
    Forbid,
    /// The number is an f32's bits, to be subtracted.
    Subtract,
    /// The number is a count: repetition for every token, frequency and presence where it is not 0.
    Penalise {
        repetition: f32,
        frequency: f32,
        presence: f32,
    },
}

impl Rule {
    /// The changed logit, one rounding per operator.
    pub(super) fn apply(self, logit: f32, number: u32) -> f32 {
        match self {
            Self::Forbid => f32::NEG_INFINITY,
            Self::Subtract => logit - f32::from_bits(number),
            Self::Penalise {
                repetition,
                frequency,
                presence,
            } => {
                let repeated = if logit > 0.0 {
                    logit / repetition
                } else {
                    logit * repetition
                };
                if number == 0 {
                    repeated
                } else {
                    repeated - frequency * number as f32 - presence
                }
            }
        }
    }
}

/// Which tokens an operation changes, and how.
#[derive(Clone, Copy)]
pub(super) struct Changes<'a> {
    pub(super) table: &'a IdTable,
    pub(super) rule: Rule,
}

impl<'a> Changes<'a> {
    /// The changes of tokens below an id.
    pub(super) fn below(self, end: usize) -> impl Iterator<Item = &'a Entry> {
        self.table
            .entries()
            .iter()
            .filter(move |entry| (entry.id as usize) < end)
    }
}

/// Working space for reading histories.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    table: IdTable,
    /// Last tokens of DRY's sequence breakers: 1 if one breaker is that token alone.
    breakers: IdTable,
    /// Common suffixes of the history and its beginnings.
    suffixes: Vec<u32>,
}

/// The last `window` tokens.
fn tail(tokens: &[u32], window: u32) -> &[u32] {
    match window {
        UNLIMITED => tokens,
        window => &tokens[tokens.len().saturating_sub(window as usize)..],
    }
}

impl History {
    /// Repetition, frequency and presence penalties.
    pub(super) fn penalties(&mut self, row: &Row<'_>) -> Changes<'_> {
        let config = row.params.config();
        self.table.clear();
        if config.repeat_last_n as usize >= row.state.tokens().len() {
            self.count_all(row.state, config);
        } else {
            self.count_window(row.state, config);
        }
        let rule = Rule::Penalise {
            repetition: config.repetition_penalty,
            frequency: config.frequency_penalty,
            presence: config.presence_penalty,
        };
        Changes {
            table: &self.table,
            rule,
        }
    }

    /// Counts from the state's own tables: as many steps as there are different tokens.
    fn count_all(&mut self, state: &SamplerState, config: &SamplingConfig) {
        let prompt_counts = u32::from(config.flags & Flags::COUNT_PROMPT != 0);
        for (id, count) in state.prompt_counts() {
            *self.table.get_or_insert(*id, 0) += prompt_counts * count;
        }
        for (id, count) in state.output_counts() {
            *self.table.get_or_insert(*id, 0) += count;
        }
    }

    fn count_window(&mut self, state: &SamplerState, config: &SamplingConfig) {
        let prompt_counts = u32::from(config.flags & Flags::COUNT_PROMPT != 0);
        let window = tail(state.tokens(), config.repeat_last_n);
        let (prompt, output) = window.split_at(window.len().saturating_sub(state.output().len()));
        for id in prompt {
            *self.table.get_or_insert(*id, 0) += prompt_counts;
        }
        for id in output {
            *self.table.get_or_insert(*id, 0) += 1;
        }
    }

    /// The tokens that would complete an n-gram that is already there.
    pub(super) fn repeated_ngrams(&mut self, row: &Row<'_>) -> Changes<'_> {
        let history = row.state.tokens();
        let n = row.params.config().no_repeat_ngram_size.max(1) as usize;
        self.table.clear();
        if let Some(start) = history.len().checked_sub(n - 1) {
            let prefix = &history[start..];
            for ngram in history.windows(n).filter(|ngram| ngram.starts_with(prefix)) {
                self.table.get_or_insert(ngram[n - 1], 0);
            }
        }
        Changes {
            table: &self.table,
            rule: Rule::Forbid,
        }
    }

    /// DRY: multiplier * base^(length - allowed) for the longest passage that a token would prolong.
    pub(super) fn dry(&mut self, row: &Row<'_>) -> Changes<'_> {
        let config = row.params.config();
        let history = tail(row.state.tokens(), config.dry_penalty_last_n);
        let allowed = config.dry_allowed_length;
        self.table.clear();
        self.mark_breakers(&row.params.tables().breakers);
        let limit = self.since_breaker(history, &row.params.tables().breakers);
        if limit >= allowed.max(1) as usize {
            self.lengths(history, limit as u32, allowed.max(1));
        }
        self.table.replace(|length| {
            let penalty = config.dry_multiplier * power(config.dry_base, length - allowed);
            penalty.to_bits()
        });
        Changes {
            table: &self.table,
            rule: Rule::Subtract,
        }
    }

    fn mark_breakers(&mut self, breakers: &[Vec<u32>]) {
        self.breakers.clear();
        for breaker in breakers {
            if let Some(last) = breaker.last() {
                *self.breakers.get_or_insert(*last, 0) |= u32::from(breaker.len() == 1);
            }
        }
    }

    /// Number of tokens after the last sequence breaker.
    fn since_breaker(&self, history: &[u32], breakers: &[Vec<u32>]) -> usize {
        let ends_here = |end: usize| match self.breakers.get(history[end - 1]) {
            None => false,
            Some(1) => true,
            Some(_) => breakers
                .iter()
                .any(|breaker| history[..end].ends_with(breaker)),
        };
        let end = (1..=history.len()).rev().find(|end| ends_here(*end));
        history.len() - end.unwrap_or(0)
    }

    /// Leaves, for every token that would prolong a passage of at least `shortest` tokens, the length of the longest, at most `limit`.
    fn lengths(&mut self, history: &[u32], limit: u32, shortest: u32) {
        common_suffixes(history, &mut self.suffixes);
        for (end, suffix) in self.suffixes.iter().enumerate().skip(1) {
            let length = (*suffix).min(limit);
            if length >= shortest && self.breakers.get(history[end]) != Some(1) {
                let longest = self.table.get_or_insert(history[end], 0);
                *longest = length.max(*longest);
            }
        }
    }
}

/// `suffixes[end]`: the length of the longest common suffix of `history[..end]` and `history`, for every end before the history's own.
///
/// The Z algorithm (Gusfield, "Algorithms on Strings, Trees and Sequences", 1.4) from the last token backwards: linear in the length.
fn common_suffixes(history: &[u32], suffixes: &mut Vec<u32>) {
    let len = history.len();
    suffixes.clear();
    suffixes.resize(len, 0);
    // Of the matches found so far, the one that reaches furthest back: history[low..end] matches the history's end.
    let (mut low, mut match_end) = (len, len);
    for end in (1..len).rev() {
        let mut length = 0;
        if end > low {
            // The mirror image of `end` within the match.
            length = (suffixes[len - (match_end - end)] as usize).min(end - low);
        }
        if end <= low || length == end - low {
            while length < end && history[end - 1 - length] == history[len - 1 - length] {
                length += 1;
            }
            (low, match_end) = (end - length, end);
        }
        suffixes[end] = length as u32;
    }
}

/// base^exponent by repeated f32 products, the last finite one if it overflows.
fn power(base: f32, exponent: u32) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(history: &[u32], end: usize) -> u32 {
        let backwards = history[..end].iter().rev().zip(history.iter().rev());
        backwards.take_while(|(a, b)| a == b).count() as u32
    }

    #[test]
    fn suffixes_of_a_short_history() {
        let mut suffixes = Vec::new();
        common_suffixes(&[1, 2, 1, 2, 1, 2], &mut suffixes);
        assert_eq!(suffixes, [0, 0, 2, 0, 4, 0]);
        common_suffixes(&[7, 7, 7], &mut suffixes);
        assert_eq!(suffixes, [0, 1, 2]);
        common_suffixes(&[], &mut suffixes);
        assert!(suffixes.is_empty());
    }

    #[test]
    fn suffixes_are_those_found_one_by_one() {
        let mut suffixes = Vec::new();
        for seed in 0..200u32 {
            let token =
                |i: u32| (seed.wrapping_add(i).wrapping_mul(0x9E37_79B1) >> 20) % (2 + seed % 3);
            let history: Vec<_> = (0..seed % 60).map(token).collect();
            common_suffixes(&history, &mut suffixes);
            let expected: Vec<_> = (0..history.len()).map(|end| naive(&history, end)).collect();
            assert_eq!(suffixes, expected, "{history:?}");
        }
    }

    #[test]
    fn powers_stay_finite() {
        assert_eq!(power(1.5, 2), 2.25);
        assert_eq!(power(2.0, 1000), 2f32.powi(127));
        assert_eq!(power(1.0, u32::MAX), 1.0);
    }

    #[test]
    fn rules_round_once_per_operator() {
        let rule = Rule::Penalise {
            repetition: 2.0,
            frequency: 0.5,
            presence: 0.25,
        };
        assert_eq!(
            (rule.apply(3.0, 0), rule.apply(-3.0, 0), rule.apply(3.0, 2)),
            (1.5, -6.0, 0.25)
        );
        assert_eq!(Rule::Subtract.apply(3.0, 1f32.to_bits()), 2.0);
        assert_eq!(Rule::Forbid.apply(3.0, 0), f32::NEG_INFINITY);
    }
}
