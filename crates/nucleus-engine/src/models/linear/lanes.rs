//! Sixteen outputs side by side: the sums of products of small integers that quantised matrices are made of, in the
//! instructions of this processor. All versions give the same sums.
//!
//! The only `unsafe` is the use of instructions beyond the target's baseline, through `Vnni`, which exists only where they do, and
//! the view of its vectors as arrays.
#![cfg_attr(target_arch = "x86_64", allow(unsafe_code))]

#[cfg(target_arch = "x86_64")]
pub(in crate::models) use self::x86::Vnni;
use super::PANEL;
use crate::models::simd::{Portable, Simd};

/// Four weights of each output.
pub(super) const QUADS: usize = 4 * PANEL;

/// What the kernels are written in.
pub(super) trait Lanes: Simd {
    /// A weight of four bits, six or eight for each of four inputs of each output.
    type Bytes: Copy;
    /// A weight of eight bits, widened to sixteen, for each of two inputs of each output.
    type Words: Copy;
    /// A whole number for each output.
    type Sums: Copy;

    /// The same number for all outputs.
    fn splat(self, number: i32) -> Self::Sums;

    /// The numbers of the outputs.
    fn numbers(self, sums: Self::Sums) -> [i32; PANEL];

    /// Loads weights.
    fn load(self, bytes: &[u8; QUADS]) -> Self::Bytes;

    /// The lower four bits of each byte.
    fn low(self, bytes: Self::Bytes) -> Self::Bytes;

    /// The upper four bits of each byte, as numbers from 0 to 15.
    fn high(self, bytes: Self::Bytes) -> Self::Bytes;

    /// The bits `2·PLACE` and `2·PLACE + 1` of each byte of `bits`, as the bits 4 and 5 over `low`.
    fn join<const PLACE: usize>(self, low: Self::Bytes, bits: Self::Bytes) -> Self::Bytes;

    /// `sums[output] += Σ weights[output][i]·quad[i]`, of weights from 0 to 63 and four signed bytes.
    fn add(self, sums: Self::Sums, weights: Self::Bytes, quad: i32) -> Self::Sums;

    /// Widens weights.
    fn widen(self, weights: &[i8; 2 * PANEL]) -> Self::Words;

    /// `sums[output] += weights[output][0]·low + weights[output][1]·high`, for a pair of 16-bit numbers `[high, low]`.
    fn add_pair(self, sums: Self::Sums, weights: Self::Words, pair: i32) -> Self::Sums;

    /// Whether there are 32 vector registers of 16 numbers.
    const WIDE: bool = false;
}

/// Code that runs with any lanes. `run` must be `#[inline(always)]`, and so must what it calls in its inner loops.
pub(super) trait LanesKernel {
    /// Runs the code.
    fn run<L: Lanes>(self, lanes: L);
}

/// Runs code with the widest lanes of this processor.
pub(super) fn run(kernel: impl LanesKernel) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(vnni) = Vnni::detect() {
            return vnni.vectorize(x86::With(kernel, vnni));
        }
        if let Some(v3) = pulp::x86::V3::try_new() {
            return v3.vectorize(x86::With(kernel, v3));
        }
    }
    kernel.run(Portable);
}

#[cfg(target_arch = "x86_64")]
pub(in crate::models) use self::x86::prefetch;

/// Asks for a value to be brought into the first-level cache.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(in crate::models) fn prefetch<T>(_: &T) {}

impl Lanes for Portable {
    type Bytes = [u8; QUADS];
    type Words = [i8; 2 * PANEL];
    type Sums = [i32; PANEL];

    #[inline(always)]
    fn splat(self, number: i32) -> Self::Sums {
        [number; PANEL]
    }

    #[inline(always)]
    fn numbers(self, sums: Self::Sums) -> [i32; PANEL] {
        sums
    }

    #[inline(always)]
    fn load(self, bytes: &[u8; QUADS]) -> Self::Bytes {
        *bytes
    }

    #[inline(always)]
    fn low(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|byte| byte & 0xf)
    }

    #[inline(always)]
    fn high(self, bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|byte| byte >> 4)
    }

    #[inline(always)]
    fn join<const PLACE: usize>(self, low: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| low[i] | (bits[i] >> (2 * PLACE) & 3) << 4)
    }

    #[inline(always)]
    fn add(self, sums: Self::Sums, weights: Self::Bytes, quad: i32) -> Self::Sums {
        let quad = quad.to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        std::array::from_fn(|lane| {
            let products = (0..4).map(|i| i32::from(weights[4 * lane + i]) * quad[i]);
            sums[lane] + products.sum::<i32>()
        })
    }

    #[inline(always)]
    fn widen(self, weights: &[i8; 2 * PANEL]) -> Self::Words {
        *weights
    }

    #[inline(always)]
    fn add_pair(self, sums: Self::Sums, weights: Self::Words, pair: i32) -> Self::Sums {
        let (low, high) = (i32::from(pair as i16), pair >> 16);
        std::array::from_fn(|lane| {
            let [first, second] = [2 * lane, 2 * lane + 1].map(|i| i32::from(weights[i]));
            sums[lane] + first * low + second * high
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use pulp::NullaryFnOnce;
    use pulp::x86::V3;

    use super::{Lanes, LanesKernel, PANEL, QUADS};
    use crate::models::simd::{Simd, saturate};

    /// A kernel and its lanes. A closure would do, but need not be inlined, and what is not inlined has no instructions.
    pub(super) struct With<K, L>(pub(super) K, pub(super) L);

    impl<K: LanesKernel, L: Lanes> NullaryFnOnce for With<K, L> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            self.0.run(self.1);
        }
    }

    impl Lanes for V3 {
        type Bytes = [__m256i; 2];
        type Words = [__m256i; 2];
        type Sums = [__m256i; 2];

        #[inline(always)]
        fn splat(self, number: i32) -> Self::Sums {
            [self.avx._mm256_set1_epi32(number); 2]
        }

        #[inline(always)]
        fn numbers(self, sums: Self::Sums) -> [i32; PANEL] {
            pulp::cast(sums)
        }

        #[inline(always)]
        fn load(self, bytes: &[u8; QUADS]) -> Self::Bytes {
            pulp::cast(*bytes)
        }

        #[inline(always)]
        fn low(self, bytes: Self::Bytes) -> Self::Bytes {
            let mask = self.avx._mm256_set1_epi8(0xf);
            bytes.map(|bytes| self.avx2._mm256_and_si256(bytes, mask))
        }

        #[inline(always)]
        fn high(self, bytes: Self::Bytes) -> Self::Bytes {
            self.low(bytes.map(|bytes| self.avx2._mm256_srli_epi16::<4>(bytes)))
        }

        #[inline(always)]
        fn join<const PLACE: usize>(self, low: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
            let mask = self.avx._mm256_set1_epi8(0x30);
            let moved = bits.map(|bits| match PLACE {
                0 => self.avx2._mm256_slli_epi16::<4>(bits),
                1 => self.avx2._mm256_slli_epi16::<2>(bits),
                2 => bits,
                _ => self.avx2._mm256_srli_epi16::<2>(bits),
            });
            std::array::from_fn(|half| {
                let bits = self.avx2._mm256_and_si256(moved[half], mask);
                self.avx2._mm256_or_si256(low[half], bits)
            })
        }

        /// Two products of a weight up to 63 and a signed byte fit into 16 bits.
        #[inline(always)]
        fn add(self, sums: Self::Sums, weights: Self::Bytes, quad: i32) -> Self::Sums {
            let quad = self.avx._mm256_set1_epi32(quad);
            let ones = self.avx._mm256_set1_epi16(1);
            std::array::from_fn(|half| {
                let pairs = self.avx2._mm256_maddubs_epi16(weights[half], quad);
                let quads = self.avx2._mm256_madd_epi16(pairs, ones);
                self.avx2._mm256_add_epi32(sums[half], quads)
            })
        }

        #[inline(always)]
        fn widen(self, weights: &[i8; 2 * PANEL]) -> Self::Words {
            let halves: [__m128i; 2] = pulp::cast(*weights);
            halves.map(|weights| self.avx2._mm256_cvtepi8_epi16(weights))
        }

        #[inline(always)]
        fn add_pair(self, sums: Self::Sums, weights: Self::Words, pair: i32) -> Self::Sums {
            let pair = self.avx._mm256_set1_epi32(pair);
            std::array::from_fn(|half| {
                let products = self.avx2._mm256_madd_epi16(weights[half], pair);
                self.avx2._mm256_add_epi32(sums[half], products)
            })
        }
    }

    /// The instructions of AVX-512 with VNNI, which this processor has.
    #[derive(Clone, Copy)]
    pub(in crate::models) struct Vnni(());

    impl Vnni {
        /// Whether this processor has them.
        #[inline]
        pub(in crate::models) fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("fma");
            there.then_some(Self(()))
        }

        /// Calls code that is compiled for these instructions as far as it is inlined.
        #[inline]
        pub(in crate::models) fn vectorize<F: NullaryFnOnce>(self, function: F) -> F::Output {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
            fn with_features<F: NullaryFnOnce>(function: F) -> F::Output {
                function.call()
            }
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { with_features(function) }
        }
    }

    /// Asks for a value to be brought into the first-level cache.
    #[inline(always)]
    pub(in crate::models) fn prefetch<T>(value: &T) {
        // SAFETY: a hint, of a place that can be read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }

    #[inline(always)]
    fn vector(numbers: [i32; PANEL]) -> __m512i {
        // SAFETY: plain bytes of the same size.
        unsafe { std::mem::transmute(numbers) }
    }

    #[inline(always)]
    fn numbers(vector: __m512i) -> [i32; PANEL] {
        // SAFETY: plain bytes of the same size.
        unsafe { std::mem::transmute(vector) }
    }

    impl Simd for Vnni {
        #[inline(always)]
        fn multiply_add(self, a: f32, b: f32, c: f32) -> f32 {
            a.mul_add(b, c)
        }

        #[inline(always)]
        fn halves(self, bits: &[u16; PANEL]) -> [f32; PANEL] {
            // SAFETY: plain bytes of the same size.
            let bits: __m256i = unsafe { std::mem::transmute::<[u16; PANEL], _>(*bits) };
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            let values = unsafe { _mm512_cvtph_ps(bits) };
            // SAFETY: plain bytes of the same size.
            unsafe { std::mem::transmute(values) }
        }

        #[inline(always)]
        fn to_halves(self, values: &[f32; PANEL]) -> [u16; PANEL] {
            // SAFETY: plain bytes of the same size.
            let values: __m512 = unsafe { std::mem::transmute(values.map(saturate)) };
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            let bits = unsafe { _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values) };
            // SAFETY: plain bytes of the same size.
            unsafe { std::mem::transmute(bits) }
        }
    }

    impl Lanes for Vnni {
        const WIDE: bool = true;

        type Bytes = __m512i;
        type Words = __m512i;
        type Sums = __m512i;

        #[inline(always)]
        fn splat(self, number: i32) -> Self::Sums {
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { _mm512_set1_epi32(number) }
        }

        #[inline(always)]
        fn numbers(self, sums: Self::Sums) -> [i32; PANEL] {
            numbers(sums)
        }

        #[inline(always)]
        fn load(self, bytes: &[u8; QUADS]) -> Self::Bytes {
            // SAFETY: plain bytes of the same size.
            unsafe { std::mem::transmute(*bytes) }
        }

        #[inline(always)]
        fn low(self, bytes: Self::Bytes) -> Self::Bytes {
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { _mm512_and_si512(bytes, vector([0x0f0f_0f0f; PANEL])) }
        }

        #[inline(always)]
        fn high(self, bytes: Self::Bytes) -> Self::Bytes {
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            self.low(unsafe { _mm512_srli_epi16::<4>(bytes) })
        }

        #[inline(always)]
        fn join<const PLACE: usize>(self, low: Self::Bytes, bits: Self::Bytes) -> Self::Bytes {
            let moved = match PLACE {
                // SAFETY: a `Vnni` is made only where these instructions were detected.
                0 => unsafe { _mm512_slli_epi16::<4>(bits) },
                // SAFETY: as above.
                1 => unsafe { _mm512_slli_epi16::<2>(bits) },
                2 => bits,
                // SAFETY: as above.
                _ => unsafe { _mm512_srli_epi16::<2>(bits) },
            };
            // SAFETY: as above.
            let bits = unsafe { _mm512_and_si512(moved, vector([0x3030_3030; PANEL])) };
            // SAFETY: as above.
            unsafe { _mm512_or_si512(low, bits) }
        }

        #[inline(always)]
        fn add(self, sums: Self::Sums, weights: Self::Bytes, quad: i32) -> Self::Sums {
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { _mm512_dpbusd_epi32(sums, weights, self.splat(quad)) }
        }

        #[inline(always)]
        fn widen(self, weights: &[i8; 2 * PANEL]) -> Self::Words {
            // SAFETY: plain bytes of the same size.
            let weights: __m256i = unsafe { std::mem::transmute::<[i8; 2 * PANEL], _>(*weights) };
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { _mm512_cvtepi8_epi16(weights) }
        }

        #[inline(always)]
        fn add_pair(self, sums: Self::Sums, weights: Self::Words, pair: i32) -> Self::Sums {
            // SAFETY: a `Vnni` is made only where these instructions were detected.
            unsafe { _mm512_dpwssd_epi32(sums, weights, self.splat(pair)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that lanes do, as plain numbers.
    fn everything<L: Lanes>(
        lanes: L,
        bytes: &[u8; QUADS],
        bits: &[u8; QUADS],
        quad: i32,
    ) -> Vec<[i32; PANEL]> {
        let all = bytes;
        let (bytes, bits) = (lanes.load(bytes), lanes.load(bits));
        let low = lanes.low(bytes);
        let weights = [
            low,
            lanes.high(bytes),
            lanes.join::<0>(low, bits),
            lanes.join::<1>(low, bits),
            lanes.join::<2>(low, bits),
            lanes.join::<3>(low, bits),
        ];
        let sums = lanes.splat(-7);
        let quads = weights.map(|weights| lanes.numbers(lanes.add(sums, weights, quad)));
        let words: &[i8; 2 * PANEL] = &std::array::from_fn(|i| all[i].cast_signed());
        let pairs = lanes.add_pair(sums, lanes.widen(words), quad);
        [quads.as_slice(), &[lanes.numbers(pairs)]].concat()
    }

    #[test]
    fn sums_by_hand() {
        let mut bytes = [0; QUADS];
        (bytes[0], bytes[1], bytes[63]) = (0x21, 0x0f, 0xf0);
        let mut bits = [0; QUADS];
        bits[1] = 0b01_00_11_10;
        let quad = i32::from_le_bytes([1, 0xff, 0, 127]);
        let sums = everything(Portable, &bytes, &bits, quad);
        // 1·1 - 15, and 2·1 - 0; then with 2, 3, 0 and 1 as upper bits of the second weight; last the pair 0xff01 and 0x7f00
        let words = 0x21 * -255 + 0x0f * 0x7f00;
        let first: Vec<i32> = sums.iter().map(|sums| sums[0] + 7).collect();
        assert_eq!(first, [-14, 2, -14 - 32, -14 - 48, -14, -14 - 16, words]);
        assert_eq!((sums[0][15] + 7, sums[1][15] + 7), (0, 15 * 127));
    }

    #[cfg(target_arch = "x86_64")]
    proptest! {
        #[test]
        fn all_lanes_agree(
            bytes in prop::collection::vec(any::<u8>(), QUADS),
            bits in prop::collection::vec(any::<u8>(), QUADS),
            quad in any::<i32>(),
        ) {
            let (bytes, bits) = (bytes.try_into().unwrap(), bits.try_into().unwrap());
            let expected = everything(Portable, &bytes, &bits, quad);
            if let Some(v3) = pulp::x86::V3::try_new() {
                prop_assert_eq!(&everything(v3, &bytes, &bits, quad), &expected);
            }
            if let Some(vnni) = Vnni::detect() {
                prop_assert_eq!(&everything(vnni, &bytes, &bits, quad), &expected);
            }
        }
    }
}
