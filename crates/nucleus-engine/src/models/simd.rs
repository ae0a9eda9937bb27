//! Loops compiled for the widest vector instructions of the processor they run on.
//!
//! A default build targets the oldest processors of its architecture. [`run`] compiles a loop twice more, for AVX2 and FMA and
//! for AVX-512, and picks at run time; on 64-bit Arm the baseline has vectors and fused multiply-add already.

#[cfg(target_arch = "x86_64")]
use pulp::{NullaryFnOnce, x86::V3};

#[cfg(target_arch = "x86_64")]
use super::linear::Vnni;

/// The vector instructions that models compute with on this processor.
pub fn vector_instructions() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if Vnni::detect().is_some() {
        return "AVX-512 with VNNI";
    } else if V3::try_new().is_some() {
        return "AVX2";
    }
    "the baseline's"
}

/// The instructions that a loop is compiled for.
pub(super) trait Simd: Copy {
    /// `a * b + c`, rounded once where the processor can do that in one instruction, else twice.
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32;

    /// The values of halves.
    #[inline(always)]
    fn halves(self, bits: &[u16; 16]) -> [f32; 16] {
        bits.map(half)
    }

    /// The nearest halves, as [`to_half`].
    #[inline(always)]
    fn to_halves(self, values: &[f32; 16]) -> [u16; 16] {
        values.map(to_half)
    }
}

/// The largest finite half.
const MAX_HALF: f32 = 65_504.0;

/// A finite value no larger than the largest half; others stay.
#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    let bounded = value.clamp(-MAX_HALF, MAX_HALF);
    if value.is_infinite() { value } else { bounded }
}

/// The nearest half, of two the one whose last bit is 0; beyond the largest, the largest. Infinity and NaN stay.
#[inline(always)]
pub(super) fn to_half(value: f32) -> u16 {
    /// Has the last bit of a subnormal half as its own.
    const SUBNORMAL: f32 = 0.5;
    /// 2^-14, the smallest normal half.
    const NORMAL: u32 = (127 - 14) << 23;
    /// What the exponent is less by.
    const BIAS: u32 = (127 - 15) << 23;
    let value = saturate(value);
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(BIAS).wrapping_add(0xfff + odd) >> 13;
    let subnormal = (f32::from_bits(magnitude) + SUBNORMAL).to_bits() - SUBNORMAL.to_bits();
    let finite = if magnitude < NORMAL {
        subnormal
    } else {
        normal
    };
    let bits = match magnitude {
        0x7f80_0000 => 0x7c00,
        0x7f80_0001.. => 0x7e00,
        _ => finite,
    };
    (bits | value.to_bits() >> 16 & 0x8000) as u16
}

/// The value of a half.
///
/// Moves exponent and mantissa to where f32 has them and corrects the exponent's bias by a product with 2^(127 - 15), which
/// is right for subnormal numbers too, and needs no instruction for halves.
#[inline(always)]
pub(super) fn half(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    const INFINITY: u32 = 0x7c00 << 13;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let exponent = if magnitude >= INFINITY {
        0x7f80_0000
    } else {
        0
    };
    let value = (f32::from_bits(magnitude) * BIAS).to_bits() | exponent;
    f32::from_bits(value | u32::from(bits & 0x8000) << 16)
}

/// What every processor of the target's architecture has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Simd for Portable {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        if cfg!(target_arch = "aarch64") {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Simd for V3 {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

/// A loop over slices. `run` must be `#[inline(always)]`, and so must what it calls in its inner loops.
pub(super) trait Kernel {
    /// Runs the loop.
    fn run<S: Simd>(self, simd: S);
}

/// Runs a kernel in the best version for this processor.
pub(super) fn run(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    {
        /// A kernel and its instructions. A closure would do, but need not be inlined, and what is not inlined has no instructions.
        struct With<K, S>(K, S);
        impl<K: Kernel, S: Simd> NullaryFnOnce for With<K, S> {
            type Output = ();

            #[inline(always)]
            fn call(self) {
                self.0.run(self.1);
            }
        }
        if let Some(vnni) = Vnni::detect() {
            return vnni.vectorize(With(kernel, vnni));
        }
        if let Some(v3) = V3::try_new() {
            return v3.vectorize(With(kernel, v3));
        }
    }
    kernel.run(Portable);
}

/// Values that are summed side by side in [`dot`] and [`sum`].
const LANES: usize = 8;

/// `Σ a[i]·b[i]`, in an order that depends on the length alone.
///
/// # Panics
/// In debug builds, if the lengths differ.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            lanes[lane] = simd.multiply_add(a[lane], b[lane], lanes[lane]);
        }
    }
    let rest = a_rest
        .iter()
        .zip(b_rest)
        .fold(0.0, |sum, (&a, &b)| simd.multiply_add(a, b, sum));
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
pub(super) fn add_scaled<S: Simd, const N: usize>(simd: S, y: &mut [f32; N], a: f32, x: &[f32; N]) {
    for lane in 0..N {
        y[lane] = simd.multiply_add(a, x[lane], y[lane]);
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
pub(super) fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    /// Adding it rounds to an integer, which then lies in the low bits: 1.5·2^23.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that `n` times it is exact.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    let x = if x > EXP_MAX { EXP_MAX } else { x };
    let x = if x < EXP_MIN { EXP_MIN } else { x };
    let shifted = simd.multiply_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = simd.multiply_add(-n, LN_2.0, x);
    let r = simd.multiply_add(-n, LN_2.1, r);
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
        .fold(1.0 / 5040.0, |sum, &c| simd.multiply_add(sum, r, c));
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
pub(super) fn tanh<S: Simd>(simd: S, x: f32) -> f32 {
    const SMALL: f32 = 0.25;
    let square = x * x;
    let coefficients = [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0];
    let series = coefficients.iter().fold(-1382.0 / 155_925.0, |sum, &c| {
        simd.multiply_add(sum, square, c)
    });
    let small = simd.multiply_add(x * square, series, x);
    let power = exp(simd, -2.0 * x.abs());
    let large = ((1.0 - power) / (1.0 + power)).copysign(x);
    if x.abs() < SMALL { small } else { large }
}

/// `x[i] = cap·tanh(x[i] / cap)`: values far below the cap stay as they are, none is beyond it.
#[inline(always)]
pub(super) fn soft_cap<S: Simd>(simd: S, x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * tanh(simd, *x / cap);
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
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        soft_cap(simd, self.values, self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rounds once, whatever the processor has.
    #[derive(Clone, Copy)]
    struct Fused;

    impl Simd for Fused {
        fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }
    }

    struct Dot<'a>(&'a [f32], &'a [f32], &'a mut f32);

    impl Kernel for Dot<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            *self.2 = dot(simd, self.0, self.1);
        }
    }

    fn exps(x: f32) -> [f32; 2] {
        [exp(Fused, x), exp(Portable, x)]
    }

    fn tanhs(x: f32) -> [f32; 2] {
        [tanh(Fused, x), tanh(Portable, x)]
    }

    #[test]
    fn a_kernel_runs_in_the_version_of_this_processor() {
        let mut result = 0.0;
        run(Dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0], &mut result));
        assert_eq!(result, 32.0);
    }

    struct Halves<'a>(&'a [u16; 16], &'a mut [f32; 16]);

    impl Kernel for Halves<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            *self.1 = simd.halves(self.0);
        }
    }

    #[test]
    fn every_half_has_its_value() {
        for bits in (0..=u16::MAX).collect::<Vec<_>>().as_chunks::<16>().0 {
            let mut values = [0.0; 16];
            run(Halves(bits, &mut values));
            for values in [values, Portable.halves(bits)] {
                for (value, &bits) in values.into_iter().zip(bits) {
                    let expected = ::half::f16::from_bits(bits).to_f32();
                    let same = value.to_bits() == expected.to_bits();
                    assert!(
                        same || value.is_nan() && expected.is_nan(),
                        "{bits:#x}: {value}"
                    );
                }
            }
        }
    }

    struct ToHalves<'a>(&'a [f32; 16], &'a mut [u16; 16]);

    impl Kernel for ToHalves<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            *self.1 = simd.to_halves(self.0);
        }
    }

    /// The half of a value in the version of this processor, which must be that of any other.
    fn halved(value: f32) -> u16 {
        let mut halves = [0; 16];
        run(ToHalves(&[value; 16], &mut halves));
        let nan = |bits: u16| ::half::f16::from_bits(bits).is_nan();
        assert!(halves[3] == to_half(value) || nan(halves[3]) && nan(to_half(value)));
        halves[3]
    }

    #[test]
    fn halves_of_known_values() {
        assert_eq!([halved(1.0), halved(-2.0)], [0x3c00, 0xc000]);
        // Halfway between two halves, and a little more.
        assert_eq!([halved(2049.0), halved(2051.0)], [0x6800, 0x6802]);
        assert_eq!(halved(2049.001), 0x6801);
        // The largest finite half, and what would be rounded to infinity.
        assert_eq!([halved(65_504.0), halved(65_520.0)], [0x7bff; 2]);
        assert_eq!([halved(-f32::MAX), halved(f32::MAX)], [0xfbff, 0x7bff]);
        let infinities = [f32::INFINITY, f32::NEG_INFINITY].map(halved);
        assert_eq!(infinities, [0x7c00, 0xfc00]);
        assert!(half(halved(f32::NAN)).is_nan());
        // The smallest half, half of it, and a little more.
        let smallest = 2.0_f32.powi(-24);
        assert_eq!(
            [smallest, smallest / 2.0, smallest * 0.51].map(halved),
            [1, 0, 1]
        );
    }

    #[test]
    fn dot_of_lanes_and_rest() {
        let ones = [1.0; 11];
        let numbers: [f32; 11] = std::array::from_fn(|i| i as f32);
        assert_eq!(dot(Fused, &ones, &numbers), 55.0);
        assert_eq!(dot(Portable, &ones, &numbers), 55.0);
        assert_eq!(dot(Fused, &[], &[]), 0.0);
        assert_eq!(sum(&numbers), 55.0);
    }

    #[test]
    fn add_scaled_adds() {
        let mut y = [1.0, 2.0];
        add_scaled(Fused, &mut y, 2.0, &[10.0, 20.0]);
        assert_eq!(y, [21.0, 42.0]);
    }

    #[test]
    fn exp_of_known_values() {
        assert_eq!(exps(0.0), [1.0; 2]);
        assert_eq!(exps(f32::INFINITY), exps(88.0));
        assert_eq!(exps(f32::NEG_INFINITY), exps(-87.0));
        assert!(exps(f32::NEG_INFINITY).iter().all(|&x| x < 1.7e-38));
        assert!(exps(f32::NAN).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn tanh_of_known_values() {
        assert_eq!(tanhs(0.0), [0.0; 2]);
        for x in [40.0, f32::INFINITY] {
            assert_eq!([tanhs(x), tanhs(-x)], [[1.0; 2], [-1.0; 2]]);
        }
        assert!(tanhs(f32::NAN).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_soft_cap_keeps_small_values_and_bounds_large_ones() {
        let mut x = [0.0, 0.01, -1e9, 1e9];
        soft_cap(Fused, &mut x, 50.0);
        assert_eq!([x[0], x[2], x[3]], [0.0, -50.0, 50.0]);
        assert!((x[1] - 0.01).abs() < 1e-8);
    }

    proptest! {
        #[test]
        fn a_half_is_the_nearest(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            let expected = ::half::f16::from_f32(saturate(value));
            let bits = halved(value);
            prop_assert!(bits == expected.to_bits() || value.is_nan() && half(bits).is_nan(), "{value}");
        }

        #[test]
        fn tanh_is_within_four_units_in_the_last_place(x in prop_oneof![-12.0_f32..12.0, -0.5_f32..0.5]) {
            let exact = f64::from(x).tanh();
            for result in tanhs(x) {
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
