//! Loops compiled for the widest vector instructions of the processor they run on.
//!
//! A default build targets the oldest processors of its architecture. [`run`] compiles a loop twice more, for AVX2 and FMA and
//! for AVX-512, and picks at run time; on 64-bit Arm the baseline has vectors and fused multiply-add already.

#[cfg(target_arch = "x86_64")]
use pulp::{NullaryFnOnce, x86::V3};

#[cfg(target_arch = "x86_64")]
use super::linear::Vnni;

/// A loop over slices. `run` must be `#[inline(always)]`, and so must what it calls in its inner loops.
pub(super) trait Kernel {
    /// What the loop returns.
    type Output;

    /// Runs the loop; `FMA` says whether the processor multiplies and adds in one instruction.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// Runs a kernel in the best version for this processor.
#[cfg(target_arch = "x86_64")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    struct Fused<K>(K);
    impl<K: Kernel> NullaryFnOnce for Fused<K> {
        type Output = K::Output;

        #[inline(always)]
        fn call(self) -> Self::Output {
            self.0.run::<true>()
        }
    }
    if let Some(simd) = Vnni::detect() {
        return simd.vectorize(Fused(kernel));
    }
    match V3::try_new() {
        Some(simd) => simd.vectorize(Fused(kernel)),
        None => kernel.run::<false>(),
    }
}

/// Runs a kernel in the best version for this processor.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    if cfg!(target_arch = "aarch64") {
        kernel.run::<true>()
    } else {
        kernel.run::<false>()
    }
}

/// `a * b + c`, rounded once where the processor can do that in one instruction, else twice.
#[inline(always)]
pub(super) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Values that are summed side by side in [`dot`] and [`sum`].
const LANES: usize = 8;

/// `Σ a[i]·b[i]`, in an order that depends on the length alone.
///
/// # Panics
/// In debug builds, if the lengths differ.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            lanes[lane] = multiply_add::<FMA>(a[lane], b[lane], lanes[lane]);
        }
    }
    let rest = a_rest
        .iter()
        .zip(b_rest)
        .fold(0.0, |sum, (&a, &b)| multiply_add::<FMA>(a, b, sum));
    add_lanes(lanes) + rest
}

/// The sum of eight values, in pairs.
#[inline(always)]
fn add_lanes([a, b, c, d, e, f, g, h]: [f32; LANES]) -> f32 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// `Σ x[i]`, in an order that depends on the length alone.
#[inline(always)]
pub(super) fn sum(x: &[f32]) -> f32 {
    let (x_lanes, x_rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for x in x_lanes {
        for lane in 0..LANES {
            lanes[lane] += x[lane];
        }
    }
    add_lanes(lanes) + x_rest.iter().sum::<f32>()
}

/// `y[i] += a·x[i]`.
#[inline(always)]
pub(super) fn add_scaled<const FMA: bool, const N: usize>(y: &mut [f32; N], a: f32, x: &[f32; N]) {
    for lane in 0..N {
        y[lane] = multiply_add::<FMA>(a, x[lane], y[lane]);
    }
}

/// Largest argument of [`exp`] below which nothing overflows.
const EXP_MAX: f32 = 88.0;
/// Smallest argument of [`exp`] whose result is a normal number.
const EXP_MIN: f32 = -87.0;

/// `e^x` to within 2 units in the last place for `-87 ≤ x ≤ 88`; outside, the value at the nearer end. NaN stays NaN.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, so `e^x = 2^n·e^r`; `e^r` is its Taylor polynomial of degree 7. It has no
/// branch and no table, so that a loop over it runs in vectors.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then lies in the low bits: 1.5·2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that `n` times it is exact.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let x = if x < EXP_MIN { EXP_MIN } else { x };
    let shifted = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FMA>(-n, LN_2.0, x);
    let r = multiply_add::<FMA>(-n, LN_2.1, r);
    let coefficients = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let power = coefficients
        .iter()
        .fold(1.0 / 5040.0, |sum, &c| multiply_add::<FMA>(sum, r, c));
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    power * f32::from_bits(exponent << 23)
}

/// `tanh x` to within 4 units in the last place; ±1 beyond ±10. NaN stays NaN.
///
/// Below 1/4 its Taylor polynomial of degree 11, above `(1 - e^(-2x)) / (1 + e^(-2x))`: near 0 that would lose digits.
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
    const SMALL: f32 = 0.25;
    let square = x * x;
    let coefficients = [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0];
    let series = coefficients.iter().fold(-1382.0 / 155_925.0, |sum, &c| {
        multiply_add::<FMA>(sum, square, c)
    });
    let small = multiply_add::<FMA>(x * square, series, x);
    let power = exp::<FMA>(-2.0 * x.abs());
    let large = ((1.0 - power) / (1.0 + power)).copysign(x);
    if x.abs() < SMALL { small } else { large }
}

/// `x[i] = cap·tanh(x[i] / cap)`: values far below the cap stay as they are, none is beyond it.
#[inline(always)]
pub(super) fn soft_cap<const FMA: bool>(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * tanh::<FMA>(*x / cap);
    }
}

/// [`soft_cap`] of all values.
pub(super) struct SoftCap<'a> {
    /// The values.
    pub(super) values: &'a mut [f32],
    /// Their bound.
    pub(super) cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        soft_cap::<FMA>(self.values, self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Dot<'a>(&'a [f32], &'a [f32]);

    impl Kernel for Dot<'_> {
        type Output = f32;

        #[inline(always)]
        fn run<const FMA: bool>(self) -> f32 {
            dot::<FMA>(self.0, self.1)
        }
    }

    fn exps(x: f32) -> [f32; 2] {
        [exp::<true>(x), exp::<false>(x)]
    }

    #[test]
    fn a_kernel_runs_in_the_version_of_this_processor() {
        assert_eq!(run(Dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0])), 32.0);
    }

    #[test]
    fn dot_of_lanes_and_rest() {
        let ones = [1.0; 11];
        let numbers: [f32; 11] = std::array::from_fn(|i| i as f32);
        assert_eq!(dot::<true>(&ones, &numbers), 55.0);
        assert_eq!(dot::<false>(&ones, &numbers), 55.0);
        assert_eq!(dot::<true>(&[], &[]), 0.0);
        assert_eq!(sum(&numbers), 55.0);
    }

    #[test]
    fn add_scaled_adds() {
        let mut y = [1.0, 2.0];
        add_scaled::<true, 2>(&mut y, 2.0, &[10.0, 20.0]);
        assert_eq!(y, [21.0, 42.0]);
    }

    #[test]
    fn exp_of_known_values() {
        for version in [exp::<true>, exp::<false>] {
            assert_eq!(version(0.0), 1.0);
            assert_eq!(version(f32::INFINITY), version(88.0));
            assert_eq!(version(f32::NEG_INFINITY), version(-87.0));
            assert!(version(f32::NEG_INFINITY) < 1.7e-38);
            assert!(version(f32::NAN).is_nan());
        }
    }

    #[test]
    fn tanh_of_known_values() {
        for version in [tanh::<true>, tanh::<false>] {
            assert_eq!(version(0.0), 0.0);
            assert_eq!([version(40.0), version(-40.0)], [1.0, -1.0]);
            assert_eq!(
                [version(f32::INFINITY), version(f32::NEG_INFINITY)],
                [1.0, -1.0]
            );
            assert!(version(f32::NAN).is_nan());
        }
    }

    #[test]
    fn a_soft_cap_keeps_small_values_and_bounds_large_ones() {
        let mut x = [0.0, 0.01, -1e9, 1e9];
        soft_cap::<true>(&mut x, 50.0);
        assert_eq!([x[0], x[2], x[3]], [0.0, -50.0, 50.0]);
        assert!((x[1] - 0.01).abs() < 1e-8);
    }

    proptest! {
        #[test]
        fn tanh_is_within_four_units_in_the_last_place(x in prop_oneof![-12.0_f32..12.0, -0.5_f32..0.5]) {
            let exact = f64::from(x).tanh();
            for result in [tanh::<true>(x), tanh::<false>(x)] {
                let unit = exact.abs() * f64::from(f32::EPSILON);
                prop_assert!((f64::from(result) - exact).abs() <= 4.0 * unit, "tanh({x}) = {result}, not {exact}");
            }
        }

        #[test]
        fn exp_is_within_two_units_in_the_last_place(x in -87.0_f32..88.0) {
            let exact = f64::from(x).exp();
            let unit = exact * f64::from(f32::EPSILON);
            for result in exps(x) {
                prop_assert!((f64::from(result) - exact).abs() <= 2.0 * unit, "exp({x}) = {result}, not {exact}");
            }
        }
    }
}
