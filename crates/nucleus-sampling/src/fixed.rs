//! The arithmetic of decisions: weights, logarithms and powers in integers, with basic IEEE operations only.
//!
//! Every function here is part of the contract (`docs/sampling.md`): the fast CPU path and the CUDA kernels give the same bits.
//! `Qn` means an integer that counts units of 2^-n.

use std::f64::consts::{LN_2, LOG2_E};

/// Exponent of the unit of a weight: the best token weighs about 2^44.
pub(crate) const WEIGHT_BITS: i32 = 44;

/// Scaled logits must stay below this: from here on `x * s` has no fraction left worth the name.
pub(crate) const SCALED_LIMIT: f32 = 4_194_304.0; // 2^22

/// 1 in Q16.
pub(crate) const ONE_Q16: i64 = 1 << 16;

/// 1 in Q32.
pub(crate) const ONE_Q32: u64 = 1 << 32;

/// The surprise of a token too unlikely to have one: below every other `y`.
pub(crate) const Y_NONE: i64 = -(1 << 40);

/// Coefficients of P(f) ~ 2^f on [-1/2, 1/2], constant term first. Evaluated in f32, the relative error is below 2^-23.8.
/// Found by `peers/exp2_polynomial.py`: minimax under P(0) = 1, then the best f32 neighbours.
pub(crate) const EXP2: [f32; 7] = [
    1.0,
    0.693_147_24,
    0.240_226_54,
    0.055_503_014,
    0.009_617_693,
    0.001_340_664_3,
    0.000_155_946_78,
];

/// s = f32(log2 e / T): logits times this are exponents of 2.
pub(crate) fn scale(temperature: f32) -> f32 {
    (LOG2_E / f64::from(temperature)) as f32
}

/// A scaled logit as n + f with n an integer and |f| about 1/2 at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exponent {
    /// Integer part, `rint(x * s)`.
    pub(crate) n: i32,
    /// The rest, `fma(x, s, -n)`.
    pub(crate) f: f32,
}

impl Exponent {
    /// Splits x * s; `None` at or below -2^22, where the weight is 0. The caller has checked that x * s < 2^22.
    pub(crate) fn of(x: f32, s: f32) -> Option<Self> {
        let product = x * s;
        if product <= -SCALED_LIMIT {
            return None;
        }
        let n = product.round_ties_even();
        Some(Self {
            n: n as i32,
            f: x.mul_add(s, -n),
        })
    }

    /// q = floor(2^44 * 2^(n - max) * P(f)).
    pub(crate) fn weight(self, max: i32) -> u64 {
        let bits = exp2_fraction(self.f).to_bits();
        let significand = u64::from(bits & 0x007F_FFFF | 0x0080_0000);
        let shift = (bits >> 23) as i32 - 127 - 23 + WEIGHT_BITS + self.n - max;
        if shift >= 0 {
            significand << shift
        } else {
            significand.checked_shr(-shift as u32).unwrap_or(0)
        }
    }

    /// y = (n - max) + f in Q16: the base-2 logarithm of the weight, in units of the largest.
    pub(crate) fn log2_q16(self, max: i32) -> i64 {
        i64::from(self.n - max) * ONE_Q16 + (self.f * 65536.0).round_ties_even() as i64
    }
}

/// P(f) by Horner's rule, each step one fused multiply-add.
pub(crate) fn exp2_fraction(f: f32) -> f32 {
    let (last, rest) = EXP2.split_last().unwrap_or((&1.0, &[]));
    rest.iter()
        .rev()
        .fold(*last, |sum, coefficient| sum.mul_add(f, *coefficient))
}

/// log2(v) in Q48, rounded down, for v >= 1; by repeated squaring of the significand in Q63.
pub(crate) fn log2_q48(v: u64) -> i64 {
    let zeros = v.max(1).leading_zeros();
    let mut significand = v.max(1) << zeros;
    let mut result = i64::from(63 - zeros) << 48;
    for bit in (0..48).rev() {
        let square = (u128::from(significand) * u128::from(significand)) >> 63;
        let carry = (square >> 64) as u32;
        significand = (square >> carry) as u64;
        result |= i64::from(carry) << bit;
    }
    result
}

/// log2(v) in Q16, rounded to nearest.
pub(crate) fn log2_q16(v: u64) -> i64 {
    (log2_q48(v) + (1 << 31)) >> 32
}

/// 2^(2^-k) in Q63 for k = 1 to 32, each the integer square root of the one before.
const ROOTS: [u64; 32] = {
    let mut roots = [0; 32];
    let mut previous: u128 = 1 << 64;
    let mut k = 0;
    while k < 32 {
        previous = (previous << 63).isqrt();
        roots[k] = previous as u64;
        k += 1;
    }
    roots
};

/// 2^y in Q32, rounded down, for y in Q32; saturates above y = 31.
pub(crate) fn exp2_q32(y: i64) -> u64 {
    let (whole, fraction) = (y >> 32, y as u32);
    let significand = ROOTS
        .iter()
        .enumerate()
        .filter(|(k, _)| fraction >> (31 - k) & 1 == 1)
        .fold(1u64 << 63, |product, (_, root)| {
            ((u128::from(product) * u128::from(*root)) >> 63) as u64
        });
    match 31 - whole {
        shift if shift < 0 => u64::MAX,
        shift if shift > 63 => 0,
        shift => significand >> shift,
    }
}

/// ln(v) for a positive, finite v.
pub(crate) fn ln(v: f32) -> f32 {
    let bits = v.to_bits();
    let (field, fraction) = (bits >> 23 & 0xFF, u64::from(bits & 0x007F_FFFF));
    let (significand, exponent) = match field {
        0 => (fraction, -149),
        _ => (fraction | 0x0080_0000, field as i64 - 150),
    };
    (ln_of_log2_q48(log2_q48(significand) + (exponent << 48))) as f32
}

/// A base-2 logarithm in Q48 as a natural logarithm.
pub(crate) fn ln_of_log2_q48(log2: i64) -> f64 {
    log2 as f64 * (LN_2 / (1u64 << 48) as f64)
}

/// A mass or probability threshold in Q32: floor(p (1 - 2^-24) 2^32).
///
/// The slack of one part in 2^24 absorbs the rounding of p to f32, so that p = 0.6 is reached by 3 of 5 equal tokens.
pub(crate) fn threshold_q32(p: f32) -> u64 {
    const SLACK: f64 = 1.0 - 1.0 / 16_777_216.0;
    (f64::from(p) * SLACK * ONE_Q32 as f64) as u64
}

/// A chance in Q32: floor(p 2^32), so that 1 is certain and 0 impossible.
pub(crate) fn chance_q32(p: f32) -> u64 {
    (f64::from(p) * ONE_Q32 as f64) as u64
}

/// A number in Q16, rounded to nearest, ties to even.
pub(crate) fn q16(v: f32) -> i64 {
    (f64::from(v) * 65536.0).round_ties_even() as i64
}

/// A Q16 number as f32 (exact below 2^24 units).
pub(crate) fn from_q16(v: i64) -> f32 {
    v as f32 * (1.0 / 65536.0)
}

/// Whether `part / total >= threshold`, the threshold in Q32, in 128-bit integers.
pub(crate) fn reaches(part: u64, total: u64, threshold: u64) -> bool {
    u128::from(part) << 32 >= u128::from(threshold) * u128::from(total)
}

/// Whether `part / total > threshold`, the threshold in Q32.
pub(crate) fn exceeds(part: u64, total: u64, threshold: u64) -> bool {
    u128::from(part) << 32 > u128::from(threshold) * u128::from(total)
}

/// floor(a b / 2^64).
pub(crate) fn mulhi64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

/// Sums over a set of weights; their entropy follows from these alone, in any order of summation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surprise {
    /// Z, the sum of q.
    pub(crate) total: u64,
    /// The sum of (q y) >> 16, y in Q16.
    pub(crate) moment: i64,
}

impl Surprise {
    /// Adds one token.
    pub(crate) fn add(&mut self, q: u64, y: i64) {
        self.total += q;
        if q > 0 {
            self.moment += (q as i64 * y) >> 16;
        }
    }

    /// Mean of y under the probabilities q / Z, in Q16, rounded down.
    pub(crate) fn mean_q16(self) -> i64 {
        let mean = (i128::from(self.moment) << 16).div_euclid(i128::from(self.total.max(1)));
        mean as i64
    }

    /// -log2 of the probability of a token with y = 0, in Q16: subtract a token's y to get its surprise in bits.
    pub(crate) fn offset_q16(self) -> i64 {
        log2_q16(self.total) - (i64::from(WEIGHT_BITS) << 16)
    }

    /// Entropy in bits, in Q16, never negative.
    pub(crate) fn entropy_q16(self) -> i64 {
        (self.offset_q16() - self.mean_q16()).max(0)
    }
}

/// Sums over the distances d = max - x of a set of logits, d in Q16 and at most 2^31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Number of logits.
    pub(crate) count: u64,
    /// Sum of d.
    pub(crate) sum: u64,
    /// Sum of d^2.
    pub(crate) squares: u128,
}

impl Spread {
    /// Adds the logit x of a set whose largest is max.
    pub(crate) fn add(&mut self, x: f32, max: f32) {
        let distance = ((max - x).min(32768.0) * 65536.0).round_ties_even() as u64;
        self.count += 1;
        self.sum += distance;
        self.squares += u128::from(distance * distance);
    }

    /// Population standard deviation in Q16, rounded to nearest: sqrt(n S2 - S1^2) / n.
    pub(crate) fn deviation_q16(self) -> i64 {
        let count = u128::from(self.count.max(1));
        let variance = count * self.squares - u128::from(self.sum) * u128::from(self.sum);
        ((((variance << 2).isqrt() / count) + 1) >> 1) as i64
    }
}

#[cfg(test)]
mod tests;
