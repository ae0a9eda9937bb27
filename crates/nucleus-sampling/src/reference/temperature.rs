//! Dynamic temperature and quadratic smoothing.

use crate::config::SamplingConfig;
use crate::fixed::{self, ONE_Q16, ONE_Q32};
use crate::reference::candidates::{Candidates, Weights};
use crate::row::Status;

/// No temperature is below this, so that weights stay exact.
const MIN_TEMPERATURE: f32 = 0.01;

/// T = low + (high - low) (H / log2 n)^exponent with low = max(0, T0 - range), high = T0 + range.
///
/// H is the entropy of the n candidates at the temperature in force. One candidate leaves T0. The result is at least 0.01.
pub(crate) fn dynamic(weights: &Weights, config: &SamplingConfig) -> f32 {
    let count = weights.q.len() as u64;
    if count < 2 {
        return config.temperature.max(MIN_TEMPERATURE);
    }
    let low = fixed::q16((config.temperature - config.dynatemp_range).max(0.0));
    let high = fixed::q16(config.temperature + config.dynatemp_range);
    let entropy = weights.surprise().entropy_q16();
    let power = u128::from(power_q32(
        entropy,
        fixed::log2_q16(count),
        config.dynatemp_exponent,
    ));
    let rise = ((high - low) as u128 * power + (1 << 31)) >> 32;
    fixed::from_q16(low + rise as i64).max(MIN_TEMPERATURE)
}

/// (part / whole)^exponent in Q32 for part and whole in Q16; a part above the whole counts as the whole.
fn power_q32(part: i64, whole: i64, exponent: f32) -> u64 {
    let exponent = fixed::q16(exponent);
    if exponent == 0 || part >= whole {
        return ONE_Q32;
    }
    let ratio = ((part as u64) << 32) / whole as u64;
    if ratio == 0 {
        return 0;
    }
    let log2 = (fixed::log2_q48(ratio) - (32 << 48)) >> 16;
    let scaled = (i128::from(log2) * i128::from(exponent)) / i128::from(ONE_Q16);
    fixed::exp2_q32(scaled as i64)
}

/// x' = h - (k d^2 + c d^3) with d = h - x, k = f (3 - curve) / 2, c = f (curve - 1) / 2, on the scaled logits.
///
/// # Errors
/// As [`Candidates::edit`].
pub(crate) fn smooth(candidates: &mut Candidates, config: &SamplingConfig) -> Result<(), Status> {
    candidates.edit(|token| token.logit)?;
    let Some(best) = candidates.max() else {
        return Ok(());
    };
    let quadratic = config.smoothing_factor * ((3.0 - config.smoothing_curve) / 2.0);
    let cubic = config.smoothing_factor * ((config.smoothing_curve - 1.0) / 2.0);
    candidates.edit(|token| {
        let distance = best - token.logit;
        let square = distance * distance;
        best - (term(quadratic, square) + term(cubic, square * distance))
    })
}

/// A product in which 0 times infinity is 0.
fn term(coefficient: f32, power: f32) -> f32 {
    if coefficient == 0.0 {
        0.0
    } else {
        coefficient * power
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_of_a_ratio() {
        assert_eq!(power_q32(1 << 15, 1 << 16, 1.0), ONE_Q32 / 2);
        assert_eq!(power_q32(1 << 15, 1 << 16, 2.0), ONE_Q32 / 4);
        assert_eq!(power_q32(5, 3, 2.0), ONE_Q32);
        assert_eq!(power_q32(0, 3, 2.0), 0);
        assert_eq!(power_q32(0, 3, 0.0), ONE_Q32);
        assert_eq!(power_q32(1, 1 << 20, 100.0), 0);
    }
}
