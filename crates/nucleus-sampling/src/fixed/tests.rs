use super::*;

/// Numbers from lo to hi, both included.
fn grid(lo: f64, hi: f64, steps: u32) -> impl Iterator<Item = f64> {
    (0..=steps).map(move |i| lo + (hi - lo) * f64::from(i) / f64::from(steps))
}

#[test]
fn exp2_fraction_errs_by_less_than_2_to_the_minus_23_8() {
    let bound = (-23.8f64).exp2();
    for f in grid(-0.5, 0.5, 1 << 20).map(|f| f as f32) {
        let exact = f64::from(f).exp2();
        let error = (f64::from(exp2_fraction(f)) / exact - 1.0).abs();
        assert!(error < bound, "2^{f}: relative error {error:e}");
    }
}

#[test]
fn exp2_fraction_is_exact_at_zero() {
    assert_eq!(exp2_fraction(0.0), 1.0);
}

#[test]
fn exp2_fraction_stays_usable_where_scaled_logits_are_coarse() {
    // Beyond |x s| = 2^21 the product is rounded to quarters, and f reaches 5/8.
    for f in grid(-0.625, 0.625, 1 << 12).map(|f| f as f32) {
        let error = (f64::from(exp2_fraction(f)) / f64::from(f).exp2() - 1.0).abs();
        assert!(error < 1e-6, "2^{f}: relative error {error:e}");
    }
}

fn exponent(n: i32, f: f32) -> Exponent {
    Exponent { n, f }
}

#[test]
fn a_weight_is_a_power_of_two_at_whole_exponents() {
    assert_eq!(exponent(5, 0.0).weight(5), 1 << 44);
    assert_eq!(exponent(4, 0.0).weight(5), 1 << 43);
    assert_eq!(exponent(-39, 0.0).weight(5), 1);
    assert_eq!(exponent(-40, 0.0).weight(5), 0);
    assert_eq!(exponent(i32::MIN / 2, 0.0).weight(5), 0);
}

#[test]
fn a_weight_is_rounded_down() {
    let q = exponent(-40, 0.25).weight(0);
    assert_eq!(q, 19, "floor(2^4.25) with 2^4.25 = 19.03");
}

#[test]
fn weights_are_within_the_bound_of_the_exact_exponential() {
    for x in grid(-20.0, 20.0, 10_000).map(|x| x as f32) {
        let e = Exponent::of(x, scale(1.0)).unwrap();
        let exact = (f64::from(x) * f64::from(scale(1.0)) - f64::from(e.n)).exp2();
        let error = e.weight(e.n) as f64 / (1u64 << 44) as f64 / exact - 1.0;
        assert!(error.abs() < 2e-7, "{x}: {error:e}");
    }
}

#[test]
fn an_exponent_splits_the_scaled_logit() {
    assert_eq!(Exponent::of(3.25, 1.0), Some(exponent(3, 0.25)));
    assert_eq!(
        Exponent::of(2.5, 1.0),
        Some(exponent(2, 0.5)),
        "ties to even"
    );
    assert_eq!(
        Exponent::of(3.5, 1.0),
        Some(exponent(4, -0.5)),
        "ties to even"
    );
    assert_eq!(Exponent::of(-4_194_304.0, 1.0), None);
    assert_eq!(
        Exponent::of(f32::MIN, 144.0),
        None,
        "the product overflows to -inf"
    );
}

#[test]
fn the_logarithm_of_a_weight_never_rises_along_the_order() {
    for temperature in [0.01f32, 0.3, 0.7, 1.0, 1.3, 5.0, 1000.0] {
        let s = scale(temperature);
        let mut previous = i64::MAX;
        for step in 0..2_000_000u32 {
            let x = 20.0 - step as f32 * 2e-5;
            let y = Exponent::of(x, s).map_or(Y_NONE, |e| e.log2_q16(0));
            assert!(y <= previous, "T {temperature}, x {x}");
            previous = y;
        }
    }
}

#[test]
fn log2_is_exact_at_powers_of_two_and_close_between() {
    for bit in 0..64 {
        assert_eq!(log2_q48(1 << bit), i64::from(bit) << 48);
    }
    let mut v = 3u64;
    while v < u64::MAX / 3 {
        let error = log2_q48(v) as f64 / 2f64.powi(48) - (v as f64).log2();
        assert!(error.abs() < 1e-13, "log2({v}): {error:e}");
        v = v.wrapping_mul(3).wrapping_add(v >> 7);
    }
    assert_eq!(log2_q48(0), 0, "no panic, though no caller asks");
}

#[test]
fn exp2_is_exact_at_integers_and_close_between() {
    for n in -32..=31i64 {
        assert_eq!(
            exp2_q32(n << 32),
            if n < 31 {
                ONE_Q32 << n.max(0) >> (-n).max(0)
            } else {
                1 << 63
            }
        );
    }
    for y in grid(-20.0, 10.0, 100_000) {
        let fixed = (y * 2f64.powi(32)) as i64;
        let exact = (fixed as f64 / 2f64.powi(32)).exp2() * 2f64.powi(32);
        let error = exp2_q32(fixed) as f64 - exact;
        assert!(
            error <= 0.01 && error > -1.01 - exact * 1e-17,
            "2^{y}: {error} units"
        );
    }
    assert_eq!(exp2_q32(32 << 32), u64::MAX);
    assert_eq!(exp2_q32(-33 << 32), 0);
    assert_eq!(exp2_q32(i64::MIN), 0);
    assert_eq!(exp2_q32(i64::MAX), u64::MAX);
}

#[test]
fn ln_is_correct_to_f32() {
    for v in [
        1.0f32,
        0.5,
        0.05,
        0.999_999_9,
        1e-3,
        1e-10,
        f32::MIN_POSITIVE,
        1e-45,
    ] {
        let exact = f64::from(v).ln();
        let error = (f64::from(ln(v)) - exact).abs();
        assert!(error <= exact.abs() * 2f64.powi(-23), "ln({v}) = {}", ln(v));
    }
    assert_eq!(ln(1.0), 0.0);
    assert_eq!(ln(0.5), -std::f32::consts::LN_2);
}

#[test]
fn a_threshold_is_reached_by_the_fraction_it_names() {
    for n in 2..=100u64 {
        for k in 1..n {
            let p = threshold_q32((k as f64 / n as f64) as f32);
            let equal_weight = 1u64 << 44;
            assert!(reaches(k * equal_weight, n * equal_weight, p), "{k} of {n}");
            assert!(
                !reaches((k - 1) * equal_weight, n * equal_weight, p),
                "{} of {n}",
                k - 1
            );
        }
    }
}

#[test]
fn thresholds_at_the_ends() {
    assert_eq!(threshold_q32(0.0), 0);
    assert_eq!(threshold_q32(1.0), ONE_Q32 - 256);
    assert_eq!(
        (chance_q32(0.0), chance_q32(0.5), chance_q32(1.0)),
        (0, 1 << 31, ONE_Q32)
    );
}

#[test]
fn sums_of_the_largest_rows_do_not_overflow() {
    let (q, y) = (exponent(0, 0.625).weight(0), exponent(0, 0.625).log2_q16(0));
    let mut surprise = Surprise::default();
    for _ in 0..crate::MAX_VOCAB {
        surprise.add(q, y);
    }
    assert_eq!(surprise.total, q * u64::from(crate::MAX_VOCAB));
    assert_eq!(surprise.entropy_q16(), 19 << 16);
}

#[test]
fn entropy_of_equal_tokens_is_the_logarithm_of_their_number() {
    for bits in 0..10 {
        let mut surprise = Surprise::default();
        (0..1 << bits).for_each(|_| surprise.add(1 << 44, 0));
        assert_eq!(surprise.entropy_q16(), bits << 16);
    }
}

#[test]
fn entropy_of_a_half_and_two_quarters_is_one_and_a_half_bits() {
    let mut surprise = Surprise::default();
    surprise.add(1 << 44, 0);
    surprise.add(1 << 43, -ONE_Q16);
    surprise.add(1 << 43, -ONE_Q16);
    assert_eq!(surprise.mean_q16(), -ONE_Q16 / 2);
    assert_eq!(surprise.entropy_q16(), 3 << 15);
}

#[test]
fn deviation_of_two_logits_is_half_their_distance() {
    let mut spread = Spread::default();
    [3.0, 1.0].iter().for_each(|x| spread.add(*x, 3.0));
    assert_eq!(spread.deviation_q16(), 1 << 16);
}

#[test]
fn deviation_of_equal_or_single_logits_is_zero() {
    let mut spread = Spread::default();
    assert_eq!(spread.deviation_q16(), 0);
    spread.add(7.0, 7.0);
    assert_eq!(spread.deviation_q16(), 0);
    spread.add(7.0, 7.0);
    assert_eq!(spread.deviation_q16(), 0);
}

#[test]
fn deviation_of_hopeless_logits_saturates() {
    let mut spread = Spread::default();
    [0.0, f32::MIN].iter().for_each(|x| spread.add(*x, 0.0));
    assert_eq!(spread.deviation_q16(), 16384 << 16);
}

#[test]
fn mulhi_never_reaches_its_second_factor() {
    assert_eq!(mulhi64(u64::MAX, 1000), 999);
    assert_eq!(mulhi64(0, 1000), 0);
    assert_eq!(mulhi64(1 << 63, 1000), 500);
}
