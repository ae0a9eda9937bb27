//! The choice: inverse CDF over integers, mirostat, adaptive-p.

use std::ops::Range;

use crate::fixed::{self, ONE_Q16, ONE_Q32};
use crate::reference::candidates::{Candidates, Weights};
use crate::row::Status;

/// Place, in the candidates' order, of the token that a uniform number draws: the smallest id whose inclusive prefix of q, by ascending id,
/// exceeds floor(U Z / 2^64). `None` without weight.
pub(crate) fn draw(candidates: &Candidates, weights: &Weights, uniform: u64) -> Option<usize> {
    let target = fixed::mulhi64(uniform, weights.total());
    let mut by_id: Vec<usize> = (0..candidates.len()).collect();
    by_id.sort_by_key(|index| candidates.as_slice()[*index].id);
    let mut prefix = 0;
    by_id.into_iter().find(|index| {
        prefix += weights.q[*index];
        prefix > target
    })
}

/// Mirostat 1 looks at this many tokens to estimate how fast probabilities fall.
const MIROSTAT_TOKENS: usize = 100;

/// Mirostat 1 (Basu et al., 2021, algorithm 1): the first k, with k from an estimate of Zipf's exponent.
///
/// `mu` is in Q16.
pub(crate) fn mirostat_1(weights: &Weights, mu: i32, vocab_size: u32) -> Range<usize> {
    let k = match zipf_exponent_q16(weights) {
        Some(exponent) => mirostat_k(exponent, i64::from(mu), vocab_size),
        None => u64::MAX,
    };
    0..usize::try_from(k)
        .unwrap_or(usize::MAX)
        .clamp(1, weights.q.len())
}

/// s = sum(t b) / sum(t t) in Q16 with t = log2((i + 2) / (i + 1)), b = log2(q[i] / q[i + 1]) over the first 100 tokens that have weight;
/// `None` if it is not positive.
fn zipf_exponent_q16(weights: &Weights) -> Option<i64> {
    let weighty = weights
        .q
        .iter()
        .take(MIROSTAT_TOKENS)
        .take_while(|q| **q > 0)
        .count();
    let (mut products, mut squares) = (0i128, 0i128);
    for (index, pair) in weights.y[..weighty].windows(2).enumerate() {
        let rank = index as u64 + 1;
        let t = i128::from(fixed::log2_q16(rank + 1) - fixed::log2_q16(rank));
        products += t * i128::from(pair[0] - pair[1]);
        squares += t * t;
    }
    let exponent = (products << 16) / squares.max(1);
    (exponent > 0).then_some(exponent as i64)
}

/// k = (e 2^mu / (1 - N^-e))^(1/s) with e = s - 1, in base-2 logarithms; s and mu in Q16.
fn mirostat_k(s: i64, mu: i64, vocab_size: u32) -> u64 {
    let e = s - ONE_Q16;
    let log2_n = fixed::log2_q16(u64::from(vocab_size));
    let shrink = fixed::exp2_q32(-(e * log2_n));
    let rest = ONE_Q32.abs_diff(shrink);
    let log2_ratio = if e == 0 || rest == 0 {
        // The limit for e -> 0 is 1 / ln N.
        let ln_n = (log2_n as u64 * LN_2_Q16) >> 16;
        (16 << 16) - fixed::log2_q16(ln_n.max(1))
    } else {
        (fixed::log2_q16(e.unsigned_abs()) - (16 << 16)) - (fixed::log2_q16(rest) - (32 << 16))
    };
    let log2_k = ((log2_ratio + mu) << 16) / s;
    fixed::exp2_q32(log2_k.clamp(-(1 << 20), 24 << 16) << 16) >> 32
}

/// ln 2 in Q16.
const LN_2_Q16: u64 = 45_426;

/// Mirostat 2 (Basu et al., 2021): the tokens whose surprise is at most mu bits, at least one.
pub(crate) fn mirostat_2(weights: &Weights, mu: i32) -> Range<usize> {
    let offset = weights.surprise().offset_q16();
    let cut = weights
        .y
        .iter()
        .take_while(|y| offset - **y <= i64::from(mu))
        .count();
    0..cut.max(1)
}

/// The surprise of a token in bits, in Q16, as mirostat's feedback.
pub(crate) fn surprise_q16(weights: &Weights, index: usize) -> i32 {
    let surprise = weights.surprise().offset_q16() - weights.y[index];
    surprise.clamp(0, i64::from(i32::MAX)) as i32
}

/// The probability of a token, in Q16, as adaptive-p's feedback.
pub(crate) fn probability_q16(weights: &Weights, index: usize) -> i32 {
    let q = u128::from(weights.q[index]) << 16;
    (q / u128::from(weights.total().max(1))) as i32
}

/// 1 / 0.3, adaptive-p's width.
const INVERSE_WIDTH: f32 = 1.0 / 0.3;

/// adaptive-p: x' = 5 - 10 d d / (1 + d) with d = |p - target| / 0.3, the target in Q16.
///
/// # Errors
/// As [`Candidates::edit`].
pub(crate) fn adapt(
    candidates: &mut Candidates,
    weights: &Weights,
    target: i32,
) -> Result<(), Status> {
    let target = fixed::from_q16(i64::from(target));
    let total = u128::from(weights.total().max(1));
    let mut logits: Vec<(u32, f32)> = candidates
        .as_slice()
        .iter()
        .zip(&weights.q)
        .map(|(token, q)| {
            let p = ((u128::from(*q) << 32) / total) as f32 * (1.0 / ONE_Q32 as f32);
            let distance = (p - target).abs() * INVERSE_WIDTH;
            (
                token.id,
                5.0 - (10.0 * distance) * distance / (1.0 + distance),
            )
        })
        .collect();
    logits.sort_by_key(|(id, _)| *id);
    candidates.edit(|token| {
        let entry = logits.binary_search_by_key(&token.id, |(id, _)| *id);
        entry.map_or(f32::NEG_INFINITY, |index| logits[index].1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::candidates::Candidate;

    /// Weights of logits in base 2, in order.
    fn weights(logits: &[f32]) -> Weights {
        let tokens = (0..)
            .zip(logits)
            .map(|(id, logit)| Candidate { id, logit: *logit });
        let mut candidates = Candidates::new(tokens).unwrap();
        candidates.temperature = std::f32::consts::LOG2_E;
        candidates.weights().unwrap()
    }

    /// The first `count` ranks of Zipf's law with that exponent.
    fn zipf(exponent: f64, count: u32) -> Vec<f32> {
        (1..=count)
            .map(|rank| (-exponent * f64::from(rank).log2()) as f32)
            .collect()
    }

    #[test]
    fn zipfs_exponent_is_found() {
        for exponent in [0.5, 1.0, 1.5, 3.0] {
            let found = zipf_exponent_q16(&weights(&zipf(exponent, 500))).unwrap();
            let error = found as f64 / 65536.0 - exponent;
            assert!(error.abs() < 1e-3, "{exponent}: off by {error}");
        }
        assert_eq!(zipf_exponent_q16(&weights(&[1.0; 5])), None);
        assert_eq!(zipf_exponent_q16(&weights(&[1.0])), None);
    }

    #[test]
    fn mirostats_k_is_that_of_the_paper() {
        for (s, mu, vocab) in [
            (0.6, 5.0, 32_000u32),
            (1.001, 6.0, 151_936),
            (1.2, 3.0, 1000),
            (2.5, 10.0, 50_000),
        ] {
            let e = s - 1.0;
            let quotient = e * f64::exp2(mu) / (1.0 - f64::from(vocab).powf(-e));
            let expected = quotient.powf(1.0 / s);
            let s = (s * 65536.0) as i64;
            let k = mirostat_k(s, (mu * 65536.0) as i64, vocab) as f64;
            assert!(
                (k - expected).abs() <= 1.0 + expected * 2e-3,
                "{k}, expected {expected}"
            );
        }
    }

    #[test]
    fn mirostats_k_has_a_limit_at_an_exponent_of_1() {
        let expected = 64.0 / f64::from(1000).ln();
        assert_eq!(mirostat_k(ONE_Q16, 6 << 16, 1000), expected as u64);
    }

    #[test]
    fn mirostats_k_stays_in_range_for_extreme_exponents() {
        for s in [1, 2, ONE_Q16 - 1, ONE_Q16 + 1, 1 << 20, 1 << 40] {
            for mu in [-(1 << 30), 0, 1 << 30] {
                let k = mirostat_k(s, mu, 1 << 19);
                assert!(k <= 1 << 24, "{k}");
            }
        }
    }
}
