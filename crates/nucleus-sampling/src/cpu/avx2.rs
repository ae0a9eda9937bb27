//! The kernels on AVX2, FMA and F16C.
//!
//! Functions that only wrap a portable body are compiled from it with more instructions. The others use intrinsics: eight logits at a
//! time, four such groups interleaved so that the latency of one polynomial hides behind the others.

use std::arch::x86_64::*;
use std::array;
use std::mem::transmute;

use half::{bf16, f16};

use crate::cpu::classes::Classes;
use crate::cpu::kernels::{
    self, BLOCK, Band, Beginning, Block, Extent, Fused, ROUNDER, Room, SMALL, Scale,
};
use crate::cpu::key::Key;
use crate::fixed::{EXP2, Spread, Surprise};

/// Vectors that are worked on together.
const GROUP: usize = 4;

/// Wraps portable bodies.
macro_rules! compiled {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $body:expr;)*) => {$(
        #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            $body($($arg),*)
        }
    )*};
}

compiled! {
    extent(block: &Block) -> Extent = kernels::extent;
    widen_bf16(from: &[bf16], to: &mut [f32]) = kernels::widen_bf16;
    clip(block: &mut Block, threshold: f32) = kernels::clip;
    count(block: &Block, threshold: f32) -> u32 = kernels::count;
    classify(block: &Block, classes: Classes, to: &mut [u32; BLOCK]) = kernels::classify;
    log2_each(logits: &[f32], scale: Scale, logarithms: &mut [i64]) = kernels::log2_each::<Fused>;
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn load(from: &[f32; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = *from;
    _mm256_setr_ps(a, b, c, d, e, f, g, h)
}

fn store(vector: __m256) -> [f32; 8] {
    // SAFETY: both types are eight f32 in 32 bytes, and every bit pattern is valid in both.
    unsafe { transmute(vector) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn load_f16(from: &[f16; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = from.map(|x| x.to_bits() as i16);
    _mm256_cvtph_ps(_mm_setr_epi16(a, b, c, d, e, f, g, h))
}

/// See [`kernels::scan_f32`]. A maximum or minimum with a NaN is its second operand.
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) fn scan_f32(blocks: &[Block], maxima: &mut [f32]) -> Extent {
    let mut all = Extent::EMPTY;
    let mut min = [_mm256_set1_ps(f32::INFINITY); 2];
    let mut nan = _mm256_setzero_ps();
    for (block, block_max) in blocks.iter().zip(maxima) {
        let mut max = [_mm256_set1_ps(f32::NEG_INFINITY); 2];
        for [a, b] in block.as_chunks::<8>().0.as_chunks().0 {
            let (a, b) = (load(a), load(b));
            max = [_mm256_max_ps(a, max[0]), _mm256_max_ps(b, max[1])];
            min = [_mm256_min_ps(a, min[0]), _mm256_min_ps(b, min[1])];
            nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, b));
        }
        *block_max = largest(_mm256_max_ps(max[0], max[1]));
        all.max = all.max.max(*block_max);
    }
    all.min = store(_mm256_min_ps(min[0], min[1]))
        .into_iter()
        .fold(all.min, f32::min);
    all.nan = _mm256_movemask_ps(nan) != 0;
    all
}

/// The largest of eight numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn largest(v: __m256) -> f32 {
    let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// 16-bit floating point as integers in the same order, -0 just below +0. Its own inverse.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn ordered(bits: __m256i) -> __m256i {
    let magnitude = _mm256_set1_epi16(0x7FFF);
    let negative = _mm256_srai_epi16::<15>(bits);
    _mm256_xor_si256(bits, _mm256_and_si256(negative, magnitude))
}

/// The largest of sixteen integers, by the instruction for the smallest of eight unsigned ones.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn largest_16(v: __m256i) -> i16 {
    let eight = _mm_max_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let falling = _mm_xor_si128(eight, _mm_set1_epi16(0x7FFF));
    _mm_extract_epi16::<0>(_mm_minpos_epu16(falling)) as i16 ^ 0x7FFF
}

/// Scans blocks of 16-bit numbers as integers; with a NaN among them, as numbers.
macro_rules! scan_16 {
    ($($(#[$doc:meta])* $name:ident: $type:ident, $infinity:expr, $widen:expr, $numbers:expr;)*) => {$(
        $(#[$doc])*
        #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
        pub(super) fn $name(blocks: &[[$type; BLOCK]], maxima: &mut [f32]) -> Extent {
            let lowest = _mm256_set1_epi16(i16::MIN);
            let mut min = [_mm256_set1_epi16(i16::MAX); 2];
            let mut row_max = i16::MIN;
            for (block, block_max) in blocks.iter().zip(&mut *maxima) {
                let mut max = [lowest; 2];
                for [a, b] in block.as_chunks::<16>().0.as_chunks().0 {
                    let a = ordered(load_16(a.map(|x| x.to_bits() as i16)));
                    let b = ordered(load_16(b.map(|x| x.to_bits() as i16)));
                    max = [_mm256_max_epi16(a, max[0]), _mm256_max_epi16(b, max[1])];
                    min = [_mm256_min_epi16(a, min[0]), _mm256_min_epi16(b, min[1])];
                }
                let max = largest_16(_mm256_max_epi16(max[0], max[1]));
                row_max = row_max.max(max);
                *block_max = $widen(max ^ (max >> 15 & 0x7FFF));
            }
            let complement = _mm256_xor_si256(_mm256_min_epi16(min[0], min[1]), _mm256_set1_epi16(-1));
            let row_min = !largest_16(complement);
            let infinity: i16 = $infinity;
            if row_max > infinity || row_min < !infinity {
                return $numbers(blocks, maxima);
            }
            if blocks.is_empty() {
                return Extent::EMPTY;
            }
            let [max, min] = [row_max, row_min].map(|x| $widen(x ^ (x >> 15 & 0x7FFF)));
            Extent { max, min, nan: false }
        }
    )*};
}

scan_16! {
    /// See [`kernels::scan_f16`].
    scan_f16: f16, 0x7C00, |bits: i16| _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))), kernels::scan_f16;
    /// See [`kernels::scan_bf16`].
    scan_bf16: bf16, 0x7F80, |bits: i16| f32::from_bits(u32::from(bits as u16) << 16), kernels::scan_bf16;
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn load_bf16(from: &[bf16; 8]) -> __m256 {
    let [a, b, c, d, e, f, g, h] = from.map(|x| x.to_bits() as i16);
    let wide = _mm256_cvtepu16_epi32(_mm_setr_epi16(a, b, c, d, e, f, g, h));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn load_16(from: [i16; 16]) -> __m256i {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = from;
    _mm256_setr_epi16(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p)
}

/// One group of a block.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn group(from: &[[f32; 8]; GROUP]) -> [__m256; GROUP] {
    array::from_fn(|vector| load(&from[vector]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn group_f16(from: &[[f16; 8]; GROUP]) -> [__m256; GROUP] {
    array::from_fn(|vector| load_f16(&from[vector]))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn group_bf16(from: &[[bf16; 8]; GROUP]) -> [__m256; GROUP] {
    array::from_fn(|vector| load_bf16(&from[vector]))
}

/// The groups of a block.
#[inline(always)]
fn groups<T>(block: &[T; BLOCK]) -> &[[[T; 8]; GROUP]] {
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
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
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
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn sum_64(v: __m256i) -> u64 {
    let halves = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    (_mm_cvtsi128_si64(halves) as u64).wrapping_add(_mm_extract_epi64::<1>(halves) as u64)
}

/// The sum of eight unsigned 32-bit integers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn sum_32(v: __m256i) -> u64 {
    let low = _mm256_and_si256(v, _mm256_set1_epi64x(0xFFFF_FFFF));
    sum_64(_mm256_add_epi64(low, _mm256_srli_epi64::<32>(v)))
}

/// The 64-bit weights of eight logits: those of lanes 0, 1, 4, 5 and of lanes 2, 3, 6, 7. Distances are 12 too large.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
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

/// Sums the weights of blocks of one type.
macro_rules! weigh {
    ($($(#[$doc:meta])* $name:ident: $type:ident, $group:ident, $exactly:expr;)*) => {$(
        $(#[$doc])*
        #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
        pub(super) fn $name(block: &[$type; BLOCK], scale: Scale, depth: i32) -> u64 {
            if scale.borders_on_the_weightless() {
                return $exactly(block, scale, depth);
            }
            let zero = _mm256_setzero_si256();
            if depth >= SMALL {
                // Weights below 2^27 fit 32 bits even when the 32 of a lane are added up.
                let mut sum = zero;
                for x in groups(block) {
                    let parts = split::<26>($group(x), scale, SMALL);
                    for i in 0..GROUP {
                        let q = _mm256_srlv_epi32(parts.significand[i], parts.distance[i]);
                        sum = _mm256_add_epi32(sum, q);
                    }
                }
                return sum_32(sum);
            }
            let mut sums = [zero; 2];
            for x in groups(block) {
                let parts = split::<24>($group(x), scale, -SURPLUS);
                for i in 0..GROUP {
                    let q = weights(parts.significand[i], parts.distance[i]);
                    sums = [
                        _mm256_add_epi64(sums[0], q[0]),
                        _mm256_add_epi64(sums[1], q[1]),
                    ];
                }
            }
            sum_64(_mm256_add_epi64(sums[0], sums[1]))
        }
    )*};
}

weigh! {
    /// See [`kernels::weigh`].
    weigh: f32, group, kernels::weigh::<Fused>;
    /// See [`kernels::weigh_f16`].
    weigh_f16: f16, group_f16, kernels::weigh_f16::<Fused>;
    /// See [`kernels::weigh_bf16`].
    weigh_bf16: bf16, group_bf16, kernels::weigh_bf16::<Fused>;
}

/// See [`kernels::surprise`].
///
/// (q y) >> 16 is (q >> 16) y + (((q mod 2^16) y) >> 16), two products of 32 bits. The second is made positive before its shift.
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
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
    Surprise {
        total: sum_64(total),
        moment: sum_64(moment) as i64 - lifted,
    }
}

/// See [`kernels::spread`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
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
        for units in [
            _mm256_and_si256(units, half),
            _mm256_srli_epi64::<32>(units),
        ] {
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

/// Which logits of a block are in a band, one bit each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn inside(block: &Block, band: Band) -> [u64; BLOCK / 64] {
    let (low, high) = (_mm256_set1_ps(band.low), _mm256_set1_ps(band.high));
    let mut bits = [0; BLOCK / 64];
    for (bits, vectors) in bits
        .iter_mut()
        .zip(block.as_chunks::<8>().0.as_chunks::<8>().0)
    {
        for (i, x) in vectors.iter().enumerate() {
            let x = load(x);
            let reaches = _mm256_cmp_ps::<_CMP_GE_OQ>(x, low);
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(x, high);
            *bits |= (_mm256_movemask_ps(_mm256_and_ps(reaches, below)) as u64) << (8 * i);
        }
    }
    bits
}

/// From so many logits of a block on, all of its vectors are packed; below it is faster to look at them one by one.
const DENSE: u32 = 10;

/// See [`kernels::gather`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) fn gather(block: &Block, band: Band, first: u32, keys: &mut Vec<Key>) {
    let words = inside(block, band);
    if words.map(u64::count_ones).into_iter().sum::<u32>() >= DENSE {
        return gather_many(block, words, first, keys);
    }
    for (word, mut bits) in words.into_iter().enumerate() {
        while bits != 0 {
            let place = 64 * word + bits.trailing_zeros() as usize;
            keys.push(Key::new(block[place % BLOCK], first + place as u32));
            bits &= bits - 1;
        }
    }
}

/// For each set of eight lanes, its lanes from the lowest on, one byte each.
static LANES: [u64; 256] = {
    let mut lanes = [0; 256];
    let mut set = 0;
    while set < 256 {
        let (mut lane, mut shift) = (0, 0);
        while lane < 8 {
            if set >> lane & 1 == 1 {
                lanes[set] |= lane << shift;
                shift += 8;
            }
            lane += 1;
        }
        set += 1;
    }
    lanes
};

/// Appends the keys of the logits whose bits are set, eight at a time: those of a vector move to its front and are written over what
/// the vector before left behind its own.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn gather_many(block: &Block, words: [u64; BLOCK / 64], first: u32, keys: &mut Vec<Key>) {
    let mut found = [0; BLOCK + 8];
    let mut len = 0;
    let mut ids = _mm256_add_epi32(
        _mm256_set1_epi32(first as i32),
        _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
    );
    let sets = words.into_iter().flat_map(u64::to_le_bytes);
    for (x, set) in block.as_chunks::<8>().0.iter().zip(sets) {
        // As `Key::new`: -0 becomes +0; positive numbers are inverted but for their sign.
        let bits = _mm256_castps_si256(_mm256_add_ps(load(x), _mm256_setzero_ps()));
        let negative = _mm256_srai_epi32::<31>(bits);
        let magnitude = _mm256_set1_epi32(0x7FFF_FFFF);
        let codes = _mm256_xor_si256(bits, _mm256_andnot_si256(negative, magnitude));
        let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES[set as usize] as i64));
        let codes = _mm256_permutevar8x32_epi32(codes, lanes);
        let packed = _mm256_permutevar8x32_epi32(ids, lanes);
        let outer = _mm256_unpacklo_epi32(packed, codes);
        let inner = _mm256_unpackhi_epi32(packed, codes);
        found[len..len + 8].copy_from_slice(&in_order(outer, inner));
        len += set.count_ones() as usize;
        ids = _mm256_add_epi32(ids, _mm256_set1_epi32(8));
    }
    keys.extend(found[..len].iter().map(|bits| Key::from_bits(*bits)));
}

/// Eight 64-bit integers, of which `outer` holds numbers 0, 1, 4, 5 and `inner` the others.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn in_order(outer: __m256i, inner: __m256i) -> [u64; 8] {
    let halves = [
        _mm256_permute2x128_si256::<0x20>(outer, inner),
        _mm256_permute2x128_si256::<0x31>(outer, inner),
    ];
    // SAFETY: both types are eight u64 in 64 bytes, and every bit pattern is valid in both.
    unsafe { transmute::<[__m256i; 2], [u64; 8]>(halves) }
}

/// Writes the lanes of a set, in order, to `to` from `len` on, and rubbish behind them; the new length.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn append(x: __m256, set: i32, to: &mut Room, len: usize) -> usize {
    let set = set as usize & 255;
    let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES[set] as i64));
    to[len..len + 8].copy_from_slice(&store(_mm256_permutevar8x32_ps(x, lanes)));
    len + set.count_ones() as usize
}

/// See [`kernels::pack`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) fn pack(block: &Block, band: Band, to: &mut Room) -> u32 {
    let (low, high) = (_mm256_set1_ps(band.low), _mm256_set1_ps(band.high));
    let mut len = 0;
    for x in block.as_chunks::<8>().0 {
        let x = load(x);
        let reaches = _mm256_cmp_ps::<_CMP_GE_OQ>(x, low);
        let below = _mm256_cmp_ps::<_CMP_LT_OQ>(x, high);
        len = append(
            x,
            _mm256_movemask_ps(_mm256_and_ps(reaches, below)),
            to,
            len,
        );
    }
    len as u32
}

/// Takes blocks of one type apart at a band: what reaches it is packed, and weighed as whole groups.
macro_rules! weigh_from {
    ($($(#[$doc:meta])* $name:ident: $type:ident, $load:ident, $exactly:expr;)*) => {$(
        $(#[$doc])*
        #[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
        pub(super) fn $name(block: &[$type; BLOCK], scale: Scale, band: Band, within: &mut Room) -> Beginning {
            if scale.borders_on_the_weightless() {
                return $exactly(block, scale, band, within);
            }
            let low = _mm256_set1_ps(band.low);
            let mut len = 0;
            for x in block.as_chunks::<8>().0 {
                let x = $load(x);
                let reaches = _mm256_cmp_ps::<_CMP_GE_OQ>(x, low);
                len = append(x, _mm256_movemask_ps(reaches), within, len);
            }
            within[len..len + 8 * GROUP].fill(f32::NEG_INFINITY);
            weigh_packed(len.div_ceil(8 * GROUP), scale, band, within)
        }
    )*};
}

weigh_from! {
    /// See [`kernels::weigh_from`].
    weigh_from: f32, load, kernels::weigh_from::<Fused>;
    /// See [`kernels::weigh_from_f16`].
    weigh_from_f16: f16, load_f16, kernels::weigh_from_f16::<Fused>;
    /// See [`kernels::weigh_from_bf16`].
    weigh_from_bf16: bf16, load_bf16, kernels::weigh_from_bf16::<Fused>;
}

/// [`kernels::weigh_from`] of so many groups, which are read before what is within the band moves to their places.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn weigh_packed(filled: usize, scale: Scale, band: Band, within: &mut Room) -> Beginning {
    let (low, high) = (_mm256_set1_ps(band.low), _mm256_set1_ps(band.high));
    let none = _mm256_set1_ps(f32::NEG_INFINITY);
    let mut sums = [_mm256_setzero_si256(); 2];
    let (mut count, mut len) = (0, 0);
    for place in 0..filled {
        let x = group(&within.as_chunks::<8>().0.as_chunks::<GROUP>().0[place]);
        let above: [_; GROUP] = array::from_fn(|i| _mm256_cmp_ps::<_CMP_GE_OQ>(x[i], high));
        for i in 0..GROUP {
            let reaches = _mm256_cmp_ps::<_CMP_GE_OQ>(x[i], low);
            let inside = _mm256_movemask_ps(_mm256_andnot_ps(above[i], reaches));
            len = append(x[i], inside, within, len);
            count += _mm256_movemask_ps(above[i]).count_ones();
        }
        let kept = array::from_fn(|i| _mm256_blendv_ps(none, x[i], above[i]));
        let parts = split::<24>(kept, scale, -SURPLUS);
        for i in 0..GROUP {
            let q = weights(parts.significand[i], parts.distance[i]);
            sums = [
                _mm256_add_epi64(sums[0], q[0]),
                _mm256_add_epi64(sums[1], q[1]),
            ];
        }
    }
    Beginning {
        mass: sum_64(_mm256_add_epi64(sums[0], sums[1])),
        count,
        within: len as u32,
    }
}

/// See [`kernels::weigh_each`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) fn weigh_each(logits: &[f32], scale: Scale, weights: &mut [u64]) {
    const WIDTH: usize = 8 * GROUP;
    if scale.borders_on_the_weightless() {
        return kernels::weigh_each::<Fused>(logits, scale, weights);
    }
    let (chunks, rest) = logits.as_chunks::<WIDTH>();
    let (places, places_left) = weights.as_chunks_mut::<WIDTH>();
    for (logits, weights) in chunks.iter().zip(places) {
        *weights = weigh_group(logits, scale);
    }
    let mut padded = [f32::NEG_INFINITY; WIDTH];
    padded[..rest.len()].copy_from_slice(rest);
    let last = weigh_group(&padded, scale);
    places_left.copy_from_slice(&last[..places_left.len()]);
}

/// The weights of one group, in order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
fn weigh_group(logits: &[f32; 8 * GROUP], scale: Scale) -> [u64; 8 * GROUP] {
    let [vectors] = logits.as_chunks::<8>().0.as_chunks::<GROUP>().0 else {
        return [0; 8 * GROUP];
    };
    let parts = split::<24>(group(vectors), scale, -SURPLUS);
    let mut all = [0; 8 * GROUP];
    for (i, eight) in all.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let [outer, inner] = weights(parts.significand[i], parts.distance[i]);
        *eight = in_order(outer, inner);
    }
    all
}

/// See [`kernels::widen_f16`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,popcnt")]
pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<8>();
    let (to, to_rest) = to.as_chunks_mut::<8>();
    for (from, to) in from.iter().zip(to) {
        *to = store(load_f16(from));
    }
    kernels::widen_f16(from_rest, to_rest);
}
