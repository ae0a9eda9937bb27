//! What is done to blocks of logits, as plain loops that the compiler turns into vector code.
//!
//! Every function takes one block or one run of blocks. [`simd`](super::simd) compiles these bodies for each set of instructions, and has
//! its own body where intrinsics are faster; all give the same bits.

use half::{bf16, f16};

use super::classes::Classes;
use super::key::Key;
use crate::fixed::{EXP2, Exponent, ONE_Q16, SCALED_LIMIT, Spread, Surprise, Y_NONE};

/// Logits per block. The last block of a row is filled up with -inf.
pub(super) const BLOCK: usize = 256;

/// A block of logits.
pub(super) type Block = [f32; BLOCK];

/// Adding this rounds |x| < 2^22 to an integer, ties to even, and leaves it in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0; // 1.5 * 2^23

/// A block whose largest exponent is at least this far below the row's has weights below 2^27: 32 of them fit 32 bits.
pub(super) const SMALL: i32 = 18;

/// At this distance from the largest exponent weights are 0.
pub(super) const WEIGHTLESS: i32 = 45;

/// What weights are measured by: q = floor(2^44 2^(rint(x s) - max) P(f)).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// log2 e / T.
    pub(super) s: f32,
    /// The largest exponent of the set.
    pub(super) max: i32,
}

impl Scale {
    /// The weight of one logit.
    pub(super) fn weight(self, logit: f32) -> u64 {
        Exponent::of(logit, self.s).map_or(0, |exponent| exponent.weight(self.max))
    }

    /// The base-2 logarithm of the weight of one logit, in Q16, in units of the largest.
    pub(super) fn log2_q16(self, logit: f32) -> i64 {
        Exponent::of(logit, self.s).map_or(Y_NONE, |exponent| exponent.log2_q16(self.max))
    }

    /// How far the exponent of a logit lies below the largest.
    pub(super) fn depth(self, logit: f32) -> i32 {
        let product = logit * self.s;
        if product <= -SCALED_LIMIT {
            return i32::MAX;
        }
        let n = (product + ROUNDER)
            .to_bits()
            .wrapping_sub(ROUNDER.to_bits());
        self.max.saturating_sub(n as i32)
    }

    /// Whether x s <= -2^22, which has no weight, could come out of the kernels with one.
    pub(super) fn borders_on_the_weightless(self) -> bool {
        self.max < WEIGHTLESS + 64 - SCALED_LIMIT as i32
    }
}

/// Extremes of a run of blocks. NaNs are passed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Extent {
    pub(super) max: f32,
    pub(super) min: f32,
    /// Whether there is a NaN.
    pub(super) nan: bool,
}

impl Extent {
    /// The extent of nothing.
    pub(super) const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        min: f32::INFINITY,
        nan: false,
    };

    /// The extent of both.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            max: larger(self.max, other.max),
            min: smaller(self.min, other.min),
            nan: self.nan | other.nan,
        }
    }
}

/// The compiler's `max` instruction: the second operand if either is a NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Lanes that run side by side: enough to hide the latency of a maximum.
const LANES: usize = 32;

/// The extent of one block.
#[inline(always)]
pub(super) fn extent(block: &Block) -> Extent {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut min = [f32::INFINITY; LANES];
    let mut nan = [0u32; LANES / 2];
    for chunk in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            max[lane] = larger(chunk[lane], max[lane]);
            min[lane] = smaller(chunk[lane], min[lane]);
        }
        for lane in 0..LANES / 2 {
            let ordered = chunk[lane].partial_cmp(&chunk[lane + LANES / 2]).is_some();
            nan[lane] |= if ordered { 0 } else { u32::MAX };
        }
    }
    for half in [16, 8, 4, 2, 1] {
        for lane in 0..half {
            max[lane] = larger(max[lane + half], max[lane]);
            min[lane] = smaller(min[lane + half], min[lane]);
        }
    }
    Extent {
        max: max[0],
        min: min[0],
        nan: nan.into_iter().fold(0, |any, lane| any | lane) != 0,
    }
}

/// The extent of every block together, and the maximum of each.
#[inline(always)]
pub(super) fn scan_f32(blocks: &[Block], maxima: &mut [f32]) -> Extent {
    let mut all = Extent::EMPTY;
    for (block, max) in blocks.iter().zip(maxima) {
        let extent = extent(block);
        *max = extent.max;
        all = all.and(extent);
    }
    all
}

/// [`scan_f32`] of binary16.
#[inline(always)]
pub(super) fn scan_f16(blocks: &[[f16; BLOCK]], maxima: &mut [f32]) -> Extent {
    let mut all = Extent::EMPTY;
    let mut wide = [0.0; BLOCK];
    for (block, max) in blocks.iter().zip(maxima) {
        widen_f16(block, &mut wide);
        let extent = extent(&wide);
        *max = extent.max;
        all = all.and(extent);
    }
    all
}

/// [`scan_f32`] of bfloat16.
#[inline(always)]
pub(super) fn scan_bf16(blocks: &[[bf16; BLOCK]], maxima: &mut [f32]) -> Extent {
    let mut all = Extent::EMPTY;
    let mut wide = [0.0; BLOCK];
    for (block, max) in blocks.iter().zip(maxima) {
        widen_bf16(block, &mut wide);
        let extent = extent(&wide);
        *max = extent.max;
        all = all.and(extent);
    }
    all
}

/// binary16 to binary32 in integers and one exact product.
#[inline(always)]
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    for (from, to) in from.iter().zip(to) {
        let bits = u32::from(from.to_bits());
        // Exponent 31 must become 255: the product below adds 112, so another 112 are due.
        let special = if bits & 0x7C00 == 0x7C00 {
            112 << 23
        } else {
            0
        };
        let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
        *to = f32::from_bits((magnitude.to_bits() + special) | ((bits & 0x8000) << 16));
    }
}

/// bfloat16 to binary32.
#[inline(always)]
pub(super) fn widen_bf16(from: &[bf16], to: &mut [f32]) {
    for (from, to) in from.iter().zip(to) {
        *to = f32::from_bits(u32::from(from.to_bits()) << 16);
    }
}

/// Removes the logits below a threshold.
#[inline(always)]
pub(super) fn clip(block: &mut Block, threshold: f32) {
    for logit in block {
        *logit = if *logit >= threshold {
            *logit
        } else {
            f32::NEG_INFINITY
        };
    }
}

/// Number of logits that reach a threshold.
#[inline(always)]
pub(super) fn count(block: &Block, threshold: f32) -> u32 {
    block
        .iter()
        .map(|logit| u32::from(*logit >= threshold))
        .sum()
}

/// Logits in `[low, high)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Band {
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Band {
    /// Every finite logit that reaches a threshold.
    pub(super) const fn from(low: f32) -> Self {
        Self {
            low,
            high: f32::INFINITY,
        }
    }
}

/// Appends the keys of the logits in a band; the first logit of the block has id `first`.
#[inline(always)]
pub(super) fn gather(block: &Block, band: Band, first: u32, keys: &mut Vec<Key>) {
    for (id, logit) in (first..).zip(block) {
        if *logit >= band.low && *logit < band.high {
            keys.push(Key::new(*logit, id));
        }
    }
}

/// Number of classes.
pub(super) const CLASSES: usize = 2048;

/// The class of a logit: rint((top - logit) density), at most the last one. It never falls as the logit falls.
#[inline(always)]
pub(super) fn class_of(logit: f32, top: f32, density: f32) -> u32 {
    const LAST: f32 = (CLASSES - 1) as f32;
    let class = smaller((top - logit) * density, LAST) + ROUNDER;
    class.to_bits() & (CLASSES as u32 - 1)
}

/// The classes of a block.
#[inline(always)]
pub(super) fn classify(block: &Block, classes: Classes, to: &mut [u32; BLOCK]) {
    for (logit, class) in block.iter().zip(to) {
        *class = class_of(*logit, classes.top, classes.density);
    }
}

/// Fused multiply-add: `a * b + c` with one rounding.
pub(super) trait MulAdd {
    /// The result; `doubt` is set where it may be wrong.
    fn mul_add(a: f32, b: f32, c: f32, doubt: &mut bool) -> f32;
}

/// By the machine's instruction. Without one it is a call into a library: use it where the instruction is known to be there.
pub(super) struct Fused;

impl MulAdd for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32, _: &mut bool) -> f32 {
        a.mul_add(b, c)
    }
}

/// In f64: the product is exact, the sum is rounded to 53 bits and then to 24. That differs from one rounding only if the sum's last 29
/// bits are those of a tie, which is rare and in doubt.
pub(super) struct Emulated;

impl MulAdd for Emulated {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32, doubt: &mut bool) -> f32 {
        let sum = f64::from(a) * f64::from(b) + f64::from(c);
        *doubt |= sum.to_bits() & 0x1FFF_FFFF == 0x1000_0000;
        sum as f32
    }
}

/// P(f) in units of 2^-24 as an integer, and the distance of the exponent from the largest.
#[inline(always)]
fn significand<F: MulAdd>(logit: f32, scale: Scale, doubt: &mut bool) -> (u32, u32) {
    const UNITS: f32 = (1 << 24) as f32;
    let rounded = logit * scale.s + ROUNDER;
    let f = F::mul_add(logit, scale.s, ROUNDER - rounded, doubt);
    let mut p = EXP2[6] * UNITS;
    for coefficient in EXP2[..6].iter().rev() {
        p = F::mul_add(p, f, coefficient * UNITS, doubt);
    }
    let largest = (scale.max as u32).wrapping_add(ROUNDER.to_bits());
    (p as u32, largest.wrapping_sub(rounded.to_bits()))
}

/// The weight of a significand at a distance.
#[inline(always)]
fn weight((significand, distance): (u32, u32)) -> u64 {
    (u64::from(significand) << 20) >> distance.min(63)
}

/// The sum of the weights of a block. The largest exponent of the block is `_depth` below the scale's, which some versions use.
#[inline(always)]
pub(super) fn weigh<F: MulAdd>(block: &Block, scale: Scale, _depth: i32) -> u64 {
    let mut doubt = scale.borders_on_the_weightless();
    let mut sum = 0;
    for logit in block {
        sum += weight(significand::<F>(*logit, scale, &mut doubt));
    }
    if doubt {
        block.iter().map(|logit| scale.weight(*logit)).sum()
    } else {
        sum
    }
}

/// [`weigh`] of binary16.
#[inline(always)]
pub(super) fn weigh_f16<F: MulAdd>(block: &[f16; BLOCK], scale: Scale, depth: i32) -> u64 {
    let mut wide = [0.0; BLOCK];
    widen_f16(block, &mut wide);
    weigh::<F>(&wide, scale, depth)
}

/// [`weigh`] of bfloat16.
#[inline(always)]
pub(super) fn weigh_bf16<F: MulAdd>(block: &[bf16; BLOCK], scale: Scale, depth: i32) -> u64 {
    let mut wide = [0.0; BLOCK];
    widen_bf16(block, &mut wide);
    weigh::<F>(&wide, scale, depth)
}

/// What a block holds from the upper end of a band on, and within the band.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Beginning {
    /// The sum of the weights of the logits from the upper end on.
    pub(super) mass: u64,
    /// Their number.
    pub(super) count: u32,
    /// Number of the logits within.
    pub(super) within: u32,
}

/// Room for logits of a block, and for what vector code writes behind them.
pub(super) const ROOM: usize = BLOCK + 32;

/// See [`ROOM`].
pub(super) type Room = [f32; ROOM];

/// Moves the logits of a block in a band, in order, to the front of `to`; their number.
#[inline(always)]
pub(super) fn pack(block: &Block, band: Band, to: &mut Room) -> u32 {
    let mut len = 0;
    for logit in block {
        to[len] = *logit;
        len += usize::from(*logit >= band.low && *logit < band.high);
    }
    len as u32
}

/// What a block holds from the upper end of a band on; the logits within move to the front of `within`.
#[inline(always)]
pub(super) fn weigh_from<F: MulAdd>(
    block: &Block,
    scale: Scale,
    band: Band,
    within: &mut Room,
) -> Beginning {
    let mut above = *block;
    clip(&mut above, band.high);
    Beginning {
        mass: weigh::<F>(&above, scale, 0),
        count: count(block, band.high),
        within: pack(block, band, within),
    }
}

/// [`weigh_from`] of binary16.
#[inline(always)]
pub(super) fn weigh_from_f16<F: MulAdd>(
    block: &[f16; BLOCK],
    scale: Scale,
    band: Band,
    within: &mut Room,
) -> Beginning {
    let mut wide = [0.0; BLOCK];
    widen_f16(block, &mut wide);
    weigh_from::<F>(&wide, scale, band, within)
}

/// [`weigh_from`] of bfloat16.
#[inline(always)]
pub(super) fn weigh_from_bf16<F: MulAdd>(
    block: &[bf16; BLOCK],
    scale: Scale,
    band: Band,
    within: &mut Room,
) -> Beginning {
    let mut wide = [0.0; BLOCK];
    widen_bf16(block, &mut wide);
    weigh_from::<F>(&wide, scale, band, within)
}

/// The weights of a slice.
#[inline(always)]
pub(super) fn weigh_each<F: MulAdd>(logits: &[f32], scale: Scale, weights: &mut [u64]) {
    let mut doubt = scale.borders_on_the_weightless();
    for (logit, q) in logits.iter().zip(&mut *weights) {
        *q = weight(significand::<F>(*logit, scale, &mut doubt));
    }
    if doubt {
        logits
            .iter()
            .zip(weights)
            .for_each(|(logit, q)| *q = scale.weight(*logit));
    }
}

/// The sum of the weights of a block, and of (q y) >> 16 with y the base-2 logarithm of a weight in Q16.
#[inline(always)]
pub(super) fn surprise<F: MulAdd>(block: &Block, scale: Scale) -> Surprise {
    let mut doubt = scale.borders_on_the_weightless();
    let mut surprise = Surprise::default();
    for logit in block {
        let (significand, distance) = significand::<F>(*logit, scale, &mut doubt);
        let q = weight((significand, distance));
        let rounded = logit * scale.s + ROUNDER;
        let f = F::mul_add(*logit, scale.s, ROUNDER - rounded, &mut doubt);
        let fraction = (f * 65536.0 + ROUNDER)
            .to_bits()
            .wrapping_sub(ROUNDER.to_bits());
        // Meaningless where q is 0.
        let y = i64::from(fraction as i32) - (i64::from(distance) << 16);
        surprise.total += q;
        surprise.moment += (q as i64).wrapping_mul(y) >> 16;
    }
    if doubt {
        surprise_exactly(block, scale)
    } else {
        surprise
    }
}

fn surprise_exactly(block: &Block, scale: Scale) -> Surprise {
    let mut surprise = Surprise::default();
    for logit in block {
        surprise.add(scale.weight(*logit), scale.log2_q16(*logit));
    }
    surprise
}

/// The base-2 logarithms of the weights of a slice, in Q16.
#[inline(always)]
pub(super) fn log2_each<F: MulAdd>(logits: &[f32], scale: Scale, logarithms: &mut [i64]) {
    let mut doubt = false;
    for (logit, y) in logits.iter().zip(&mut *logarithms) {
        let product = logit * scale.s;
        let rounded = product + ROUNDER;
        let f = F::mul_add(*logit, scale.s, ROUNDER - rounded, &mut doubt);
        let units = |x: f32| x.to_bits().wrapping_sub(ROUNDER.to_bits()) as i32;
        let whole = i64::from(units(rounded)) - i64::from(scale.max);
        let sum = whole * ONE_Q16 + i64::from(units(f * 65536.0 + ROUNDER));
        *y = if product <= -SCALED_LIMIT {
            Y_NONE
        } else {
            sum
        };
    }
    if doubt {
        let pairs = logits.iter().zip(logarithms);
        pairs.for_each(|(logit, y)| *y = scale.log2_q16(*logit));
    }
}

/// Sums over the distances d of a block's logits from `max`, in Q16: their number, sum d and sum d^2, -inf left out.
#[inline(always)]
pub(super) fn spread(block: &Block, max: f32) -> Spread {
    let (mut count, mut sum, mut low, mut high) = (0, 0, 0, 0);
    for logit in block {
        let there = *logit > f32::NEG_INFINITY;
        let distance = if there { distance_q16(max - logit) } else { 0 };
        let square = u64::from(distance) * u64::from(distance);
        count += u64::from(there);
        sum += u64::from(distance);
        low += square & 0xFFFF_FFFF;
        high += square >> 32;
    }
    Spread {
        count,
        sum,
        squares: (u128::from(high) << 32) + u128::from(low),
    }
}

/// A distance of logits in Q16, rounded to nearest, ties to even; at most 2^31.
#[inline(always)]
fn distance_q16(distance: f32) -> u32 {
    const WHOLE: f32 = 8_388_608.0; // From 2^23 on every f32 is an integer.
    let units = smaller(distance, 32768.0) * 65536.0;
    let rounded = if units < WHOLE {
        (units + WHOLE) - WHOLE
    } else {
        units
    };
    rounded as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2^-12 (1 + 2^-15) times 2^-12 (1 - 2^-15) is 2^-24 - 2^-54: just below half a unit above the odd 1 + 2^-23. In f64 the sum is half a
    /// unit above it, and the tie goes up.
    #[test]
    fn an_emulated_sum_that_may_be_wrong_is_in_doubt() {
        let (a, b) = (32_769.0 / 2f32.powi(27), 32_767.0 / 2f32.powi(27));
        let odd = 1.0 + f32::EPSILON;
        let mut doubt = false;
        let sum = Emulated::mul_add(a, b, odd, &mut doubt);
        assert_ne!(sum, a.mul_add(b, odd));
        assert!(doubt);
    }

    #[test]
    fn an_emulated_sum_without_doubt_is_right() {
        let mut doubts = 0;
        for seed in 0..100_000u32 {
            let number = |stream: u32| {
                let bits = seed
                    .wrapping_mul(0x9E37_79B1)
                    .wrapping_add(stream.wrapping_mul(0x85EB_CA6B));
                (bits ^ bits >> 15) as f32 / 2f32.powi(31) - 1.0
            };
            let (a, b, c) = (number(1), number(2), number(3));
            let mut doubt = false;
            let sum = Emulated::mul_add(a, b, c, &mut doubt);
            assert!(
                doubt || sum.to_bits() == a.mul_add(b, c).to_bits(),
                "{a} {b} {c}"
            );
            doubts += u32::from(doubt);
        }
        assert!(doubts < 10, "{doubts} of 100,000 in doubt");
    }
}
