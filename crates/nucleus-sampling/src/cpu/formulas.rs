//! The formulas of single stages, in integers or single f32 operations.

use crate::fixed::{self, ONE_Q16, ONE_Q32, Surprise};

use super::wide::Mass;

/// No temperature is below this, so that weights stay exact.
pub(super) const MIN_TEMPERATURE: f32 = 0.01;

/// (part / whole)^exponent in Q32 for part and whole in Q16; a part above the whole counts as the whole.
pub(super) fn power_q32(part: i64, whole: i64, exponent: f32) -> u64 {
    let exponent = fixed::q16(exponent);
    if exponent == 0 || part >= whole {
        return ONE_Q32;
    }
    let ratio = ((part as u64) << 32) / whole as u64;
    if ratio == 0 {
        return 0;
    }
    let log2 = (fixed::log2_q48(ratio) - (32 << 48)) >> 16;
    fixed::exp2_q32((i128::from(log2) * i128::from(exponent) / i128::from(ONE_Q16)) as i64)
}

/// Quadratic smoothing: x' = best - (quadratic d^2 + cubic d^3) with d = best - x.
#[derive(Clone, Copy, Debug)]
pub(super) struct Curve {
    pub(super) best: f32,
    pub(super) quadratic: f32,
    pub(super) cubic: f32,
}

impl Curve {
    /// The smoothed logit.
    pub(super) fn at(self, logit: f32) -> f32 {
        let distance = self.best - logit;
        let square = distance * distance;
        let quadratic = if self.quadratic == 0.0 {
            0.0
        } else {
            self.quadratic * square
        };
        let cubic = if self.cubic == 0.0 {
            0.0
        } else {
            self.cubic * (square * distance)
        };
        self.best - (quadratic + cubic)
    }
}

/// eta's threshold: min(eta, sqrt(eta) 2^-H) in Q32, H the entropy in bits.
pub(super) fn eta_threshold(eta: u64, surprise: Surprise) -> u64 {
    let decay = fixed::exp2_q32(-(surprise.entropy_q16() << 16));
    let scaled = u128::from((eta << 32).isqrt()) * u128::from(decay);
    eta.min((scaled >> 32) as u64)
}

/// top_a's threshold: a p^2 in Q32, p the largest probability.
pub(super) fn top_a_threshold(a: u64, largest: f32, mass: Mass) -> u64 {
    let weight = u128::from(mass.scale.weight(largest));
    let p = (weight << 32) / u128::from(mass.total.max(1));
    ((u128::from(a) * p * p) >> 64) as u64
}

/// A probability in Q32.
pub(super) fn probability_q32(weight: u64, total: u64) -> u64 {
    match weight
        .checked_shl(32)
        .filter(|shifted| shifted >> 32 == weight)
    {
        Some(shifted) => shifted / total.max(1),
        None => ((u128::from(weight) << 32) / u128::from(total.max(1))) as u64,
    }
}

/// adaptive-p's logit: 5 - 10 d d / (1 + d) with d = |p - target| / 0.3.
pub(super) fn adapted(probability_q32: u64, target: f32) -> f32 {
    const INVERSE_WIDTH: f32 = 1.0 / 0.3;
    let p = probability_q32 as f32 * (1.0 / ONE_Q32 as f32);
    let distance = (p - target).abs() * INVERSE_WIDTH;
    5.0 - (10.0 * distance) * distance / (1.0 + distance)
}

/// How many of the best tokens mirostat 1 looks at.
pub(super) const MIROSTAT_TOKENS: usize = 100;

/// Mirostat 1's exponent of Zipf's law in Q16, from the y of the best tokens that have weight:
/// sum(t b) / sum(t t) with t = log2((i + 2) / (i + 1)), b = y[i] - y[i + 1]. `None` if it is not positive.
pub(super) fn zipf_exponent_q16(y: &[i64]) -> Option<i64> {
    let (mut products, mut squares) = (0i128, 0i128);
    let mut log2_rank = 0;
    for (rank, pair) in (2..).zip(y.windows(2)) {
        let log2_next = fixed::log2_q16(rank);
        let t = i128::from(log2_next - std::mem::replace(&mut log2_rank, log2_next));
        products += t * i128::from(pair[0] - pair[1]);
        squares += t * t;
    }
    let exponent = (products << 16) / squares.max(1);
    (exponent > 0).then_some(exponent as i64)
}

/// Mirostat 1's k = (e 2^mu / (1 - N^-e))^(1/s) with e = s - 1, in base-2 logarithms; s and mu in Q16.
pub(super) fn mirostat_k(s: i64, mu: i64, vocab_size: u32) -> u64 {
    const LN_2_Q16: u64 = 45_426;
    let e = s - ONE_Q16;
    let log2_n = fixed::log2_q16(u64::from(vocab_size));
    let rest = ONE_Q32.abs_diff(fixed::exp2_q32(-(e * log2_n)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_to_a_power() {
        assert_eq!(power_q32(1 << 15, 1 << 16, 2.0), ONE_Q32 / 4);
        assert_eq!(
            (
                power_q32(0, 3, 2.0),
                power_q32(0, 3, 0.0),
                power_q32(4, 3, 9.0)
            ),
            (0, ONE_Q32, ONE_Q32)
        );
    }

    #[test]
    fn smoothing_leaves_the_best_and_lowers_the_rest() {
        let curve = Curve {
            best: 4.0,
            quadratic: 0.5,
            cubic: 0.25,
        };
        assert_eq!((curve.at(4.0), curve.at(2.0)), (4.0, 0.0));
        let flat = Curve {
            cubic: 0.0,
            ..curve
        };
        assert_eq!(flat.at(f32::MIN), f32::NEG_INFINITY);
    }

    #[test]
    fn probabilities_of_large_and_small_weights() {
        assert_eq!(probability_q32(1, 4), 1 << 30);
        assert_eq!(probability_q32(1 << 44, 1 << 45), 1 << 31);
        assert_eq!(probability_q32(7, 7), ONE_Q32);
    }

    #[test]
    fn adaptive_p_prefers_the_target() {
        assert_eq!(adapted(1 << 31, 0.5), 5.0);
        assert!(adapted(1 << 30, 0.5) < 5.0);
    }
}
