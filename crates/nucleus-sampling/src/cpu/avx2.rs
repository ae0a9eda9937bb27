//! The kernels on AVX2, FMA and F16C.
//!
//! Functions that only wrap a portable body are compiled from it with more instructions. The others use intrinsics: eight logits at a
//! time, four such groups interleaved so that the latency of one polynomial hides behind the others.

use std::arch::x86_64::*;
use std::array;
use std::mem::transmute;

use half::{bf16, f16};

use crate::cpu::kernels::{self, BLOCK, Band, Block, Extent, Fused, ROUNDER, SMALL, Scale};
use crate::cpu::key::Key;
use crate::fixed::{EXP2, Spread, Surprise};

/// Vectors that are worked on together.
const GROUP: usize = 4;

/// Wraps portable bodies.
macro_rules! compiled {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $body:expr;)*) => {$(
        #[target_feature(enable = "avx2,fma,f16c,bmi1")]
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            $body($($arg),*)
        }
    )*};
}

compiled! {
    extent(block: &Block) -> Extent = kernels::extent;
    scan_f32(blocks: &[Block], maxima: &mut [f32]) -> Extent = kernels::scan_f32;
    widen_bf16(from: &[bf16], to: &mut [f32]) = kernels::widen_bf16;
    clip(block: &mut Block, threshold: f32) = kernels::clip;
    count(block: &Block, threshold: f32) -> u32 = kernels::count;
    weigh_each(logits: &[f32], scale: Scale, weights: &mut [u64]) = kernels::weigh_each::<Fused>;
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn load(from: &[f32; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = *from;
    _mm256_setr_ps(a, b, c, d, e, f, g, h)
}

fn store(vector: __m256) -> [f32; 8] {
    // SAFETY: both types are eight f32 in 32 bytes, and every bit pattern is valid in both.
    unsafe { transmute(vector) }
}

/// One group of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn group(from: &[[f32; 8]; GROUP]) -> [__m256; GROUP] {
    array::from_fn(|vector| load(&from[vector]))
}

fn groups(block: &Block) -> &[[[f32; 8]; GROUP]] {
    block.as_chunks::<8>().0.as_chunks::<GROUP>().0
}

/// Logits taken apart: P(f) as an integer, the distance of the exponent from the largest, and f.
struct Parts {
    significand: [__m256i; GROUP],
    distance: [__m256i; GROUP],
    f: [__m256; GROUP],
}

/// Takes logits apart, P in units of 2^-BITS; `nearest` is subtracted from every distance.
///
/// -inf, and every logit whose weight is 0 because x s <= -2^22, gets a distance of at least 64 as an unsigned number.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn split<const BITS: u32>(x: [__m256; GROUP], scale: Scale, nearest: i32) -> Parts {
    let s = _mm256_set1_ps(scale.s);
    let rounder = _mm256_set1_ps(ROUNDER);
    let largest = _mm256_set1_epi32(scale.max - nearest + ROUNDER.to_bits() as i32);
    let rounded = x.map(|x| _mm256_add_ps(_mm256_mul_ps(x, s), rounder));
    let f = array::from_fn(|i| _mm256_fmsub_ps(x[i], s, _mm256_sub_ps(rounded[i], rounder)));
    let units = (1u32 << BITS) as f32;
    let mut p = [_mm256_set1_ps(EXP2[6] * units); GROUP];
    for coefficient in EXP2[..6].iter().rev() {
        let coefficient = _mm256_set1_ps(coefficient * units);
        p = array::from_fn(|i| _mm256_fmadd_ps(p[i], f[i], coefficient));
    }
    Parts {
        significand: p.map(|p| _mm256_cvttps_epi32(p)),
        distance: rounded.map(|n| _mm256_sub_epi32(largest, _mm256_castps_si256(n))),
        f,
    }
}

/// The sum of four 64-bit integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn sum_64(v: __m256i) -> u64 {
    let halves = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    (_mm_cvtsi128_si64(halves) as u64).wrapping_add(_mm_extract_epi64::<1>(halves) as u64)
}

/// The sum of eight unsigned 32-bit integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn sum_32(v: __m256i) -> u64 {
    let low = _mm256_and_si256(v, _mm256_set1_epi64x(0xFFFF_FFFF));
    sum_64(_mm256_add_epi64(low, _mm256_srli_epi64::<32>(v)))
}

/// The 64-bit weights of eight logits: those of lanes 0, 1, 4, 5 and of lanes 2, 3, 6, 7. Distances are 12 too large.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn weights(significand: __m256i, distance: __m256i) -> [__m256i; 2] {
    let zero = _mm256_setzero_si256();
    let low = _mm256_unpacklo_epi32(zero, significand);
    let high = _mm256_unpackhi_epi32(zero, significand);
    [
        _mm256_srlv_epi64(low, _mm256_unpacklo_epi32(distance, zero)),
        _mm256_srlv_epi64(high, _mm256_unpackhi_epi32(distance, zero)),
    ]
}

/// [`weights`] gets P in units of 2^-24 shifted up by 32 bits, 12 more than a weight's 44.
const SURPLUS: i32 = 12;

/// See [`kernels::weigh`].
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
pub(super) fn weigh(block: &Block, scale: Scale, depth: i32) -> u64 {
    if scale.borders_on_the_weightless() {
        kernels::weigh::<Fused>(block, scale)
    } else if depth >= SMALL {
        weigh_small(block, scale)
    } else {
        weigh_large(block, scale)
    }
}

/// Weights below 2^27, which fit 32 bits even when the 32 of a lane are added up.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn weigh_small(block: &Block, scale: Scale) -> u64 {
    let mut sum = _mm256_setzero_si256();
    for x in groups(block) {
        let parts = split::<26>(group(x), scale, SMALL);
        for i in 0..GROUP {
            let q = _mm256_srlv_epi32(parts.significand[i], parts.distance[i]);
            sum = _mm256_add_epi32(sum, q);
        }
    }
    sum_32(sum)
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
fn weigh_large(block: &Block, scale: Scale) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 2];
    for x in groups(block) {
        let parts = split::<24>(group(x), scale, -SURPLUS);
        for i in 0..GROUP {
            let q = weights(parts.significand[i], parts.distance[i]);
            sums = [_mm256_add_epi64(sums[0], q[0]), _mm256_add_epi64(sums[1], q[1])];
        }
    }
    sum_64(_mm256_add_epi64(sums[0], sums[1]))
}

/// See [`kernels::surprise`].
///
/// (q y) >> 16 is (q >> 16) y + (((q mod 2^16) y) >> 16), two products of 32 bits. The second is made positive before its shift.
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
pub(super) fn surprise(block: &Block, scale: Scale) -> Surprise {
    if scale.borders_on_the_weightless() {
        return kernels::surprise::<Fused>(block, scale);
    }
    const LIFT: i64 = 1 << 40;
    let lift = _mm256_set1_epi64x(LIFT);
    let low_bits = _mm256_set1_epi64x(0xFFFF);
    let zero = _mm256_setzero_si256();
    let (mut total, mut moment) = (zero, zero);
    for x in groups(block) {
        let parts = split::<24>(group(x), scale, -SURPLUS);
        for i in 0..GROUP {
            let fraction = _mm256_cvtps_epi32(_mm256_mul_ps(parts.f[i], _mm256_set1_ps(65536.0)));
            let distance = _mm256_sub_epi32(parts.distance[i], _mm256_set1_epi32(SURPLUS));
            let y = _mm256_sub_epi32(fraction, _mm256_slli_epi32::<16>(distance));
            let y = [_mm256_unpacklo_epi32(y, y), _mm256_unpackhi_epi32(y, y)];
            let q = weights(parts.significand[i], parts.distance[i]);
            for (q, y) in q.into_iter().zip(y) {
                let high = _mm256_mul_epi32(_mm256_srli_epi64::<16>(q), y);
                let low = _mm256_mul_epi32(_mm256_and_si256(q, low_bits), y);
                let low = _mm256_srli_epi64::<16>(_mm256_add_epi64(low, lift));
                total = _mm256_add_epi64(total, q);
                moment = _mm256_add_epi64(moment, _mm256_add_epi64(high, low));
            }
        }
    }
    let lifted = BLOCK as i64 * (LIFT >> 16);
    Surprise { total: sum_64(total), moment: sum_64(moment) as i64 - lifted }
}

/// See [`kernels::spread`].
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
pub(super) fn spread(block: &Block, max: f32) -> Spread {
    let max = _mm256_set1_ps(max);
    let none = _mm256_set1_ps(f32::NEG_INFINITY);
    let half = _mm256_set1_epi64x(0xFFFF_FFFF);
    let zero = _mm256_setzero_si256();
    let (mut count, mut sum, mut low, mut high) = (zero, zero, zero, zero);
    for x in block.as_chunks::<8>().0 {
        let x = load(x);
        let there = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GT_OQ>(x, none));
        let distance = _mm256_min_ps(_mm256_sub_ps(max, x), _mm256_set1_ps(32768.0));
        // 2^31 comes out as the integer indefinite, which has the same bits.
        let units = _mm256_cvtps_epi32(_mm256_mul_ps(distance, _mm256_set1_ps(65536.0)));
        let units = _mm256_and_si256(units, there);
        count = _mm256_sub_epi32(count, there);
        for units in [_mm256_and_si256(units, half), _mm256_srli_epi64::<32>(units)] {
            let square = _mm256_mul_epu32(units, units);
            sum = _mm256_add_epi64(sum, units);
            low = _mm256_add_epi64(low, _mm256_and_si256(square, half));
            high = _mm256_add_epi64(high, _mm256_srli_epi64::<32>(square));
        }
    }
    Spread {
        count: sum_32(count),
        sum: sum_64(sum),
        squares: (u128::from(sum_64(high)) << 32) + u128::from(sum_64(low)),
    }
}

/// See [`kernels::gather`].
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
pub(super) fn gather(block: &Block, band: Band, first: u32, keys: &mut Vec<Key>) {
    let (low, high) = (_mm256_set1_ps(band.low), _mm256_set1_ps(band.high));
    for (id, x) in (first..).step_by(8).zip(block.as_chunks::<8>().0) {
        let v = load(x);
        let inside = _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(v, low), _mm256_cmp_ps::<_CMP_LT_OQ>(v, high));
        let mut lanes = _mm256_movemask_ps(inside) as u32;
        while lanes != 0 {
            let lane = lanes.trailing_zeros();
            keys.push(Key::new(x[lane as usize & 7], id + lane));
            lanes &= lanes - 1;
        }
    }
}

/// See [`kernels::widen_f16`].
#[target_feature(enable = "avx2,fma,f16c,bmi1")]
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        let [a, b, c, d, e, f, g, h] = from.map(|x| x.to_bits() as i16);
        *to = store(_mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h)));
    }
    kernels::widen_f16(from_rest, to_rest);
}
