//! The kernels compiled for the machine's vector instructions, chosen at run time.
//!
//! The only `unsafe` here is the call of a function that needs instructions beyond the target's baseline.
#![allow(unsafe_code)]

use half::{bf16, f16};

use super::classes::Classes;
use super::kernels::{self, BLOCK, Band, Beginning, Block, Extent, Room, Scale};
use super::key::Key;
use crate::fixed::{Spread, Surprise};

/// A set of instructions that this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Simd(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    /// Made only by [`Simd::avx2`], after detection.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Simd {
    /// The compiler's baseline for the target.
    pub(super) const PORTABLE: Self = Self(Kind::Portable);

    /// The fastest set.
    pub(super) fn best() -> Self {
        Self::avx2().unwrap_or(Self::PORTABLE)
    }

    /// The set's name.
    pub(super) const fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "the baseline's",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn avx2() -> Option<Self> {
        let there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("popcnt");
        there.then_some(Self(Kind::Avx2))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn avx2() -> Option<Self> {
        None
    }
}

/// The baseline's fused multiply-add: the instruction where the target is known to have it.
#[cfg(any(target_arch = "aarch64", target_feature = "fma"))]
type Baseline = kernels::Fused;
#[cfg(not(any(target_arch = "aarch64", target_feature = "fma")))]
type Baseline = kernels::Emulated;

/// Makes a method of each kernel that calls its version for the set of instructions.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $portable:expr;)*) => {
        impl Simd {
            $(
                $(#[$doc])*
                pub(super) fn $name(self, $($arg: $type),*) $(-> $result)? {
                    match self.0 {
                        Kind::Portable => $portable($($arg),*),
                        #[cfg(target_arch = "x86_64")]
                        // SAFETY: `Kind::Avx2` is made after AVX2, FMA, F16C, BMI1 and POPCNT were detected.
                        Kind::Avx2 => unsafe { avx2::$name($($arg),*) },
                    }
                }
            )*
        }
    };
}

kernels! {
    /// See [`kernels::extent`].
    extent(block: &Block) -> Extent = kernels::extent;
    /// See [`kernels::scan_f32`].
    scan_f32(blocks: &[Block], maxima: &mut [f32]) -> Extent = kernels::scan_f32;
    /// See [`kernels::scan_f16`].
    scan_f16(blocks: &[[f16; BLOCK]], maxima: &mut [f32]) -> Extent = kernels::scan_f16;
    /// See [`kernels::scan_bf16`].
    scan_bf16(blocks: &[[bf16; BLOCK]], maxima: &mut [f32]) -> Extent = kernels::scan_bf16;
    /// See [`kernels::widen_f16`].
    widen_f16(from: &[f16], to: &mut [f32]) = kernels::widen_f16;
    /// See [`kernels::widen_bf16`].
    widen_bf16(from: &[bf16], to: &mut [f32]) = kernels::widen_bf16;
    /// See [`kernels::clip`].
    clip(block: &mut Block, threshold: f32) = kernels::clip;
    /// See [`kernels::count`].
    count(block: &Block, threshold: f32) -> u32 = kernels::count;
    /// See [`kernels::gather`].
    gather(block: &Block, band: Band, first: u32, keys: &mut Vec<Key>) = kernels::gather;
    /// See [`kernels::classify`].
    classify(block: &Block, classes: Classes, to: &mut [u32; BLOCK]) = kernels::classify;
    /// See [`kernels::weigh`].
    weigh(block: &Block, scale: Scale, depth: i32) -> u64 = kernels::weigh::<Baseline>;
    /// See [`kernels::weigh_f16`].
    weigh_f16(block: &[f16; BLOCK], scale: Scale, depth: i32) -> u64 = kernels::weigh_f16::<Baseline>;
    /// See [`kernels::weigh_bf16`].
    weigh_bf16(block: &[bf16; BLOCK], scale: Scale, depth: i32) -> u64 = kernels::weigh_bf16::<Baseline>;
    /// See [`kernels::pack`].
    pack(block: &Block, band: Band, to: &mut Room) -> u32 = kernels::pack;
    /// See [`kernels::weigh_from`].
    weigh_from(block: &Block, scale: Scale, band: Band, within: &mut Room) -> Beginning = kernels::weigh_from::<Baseline>;
    /// See [`kernels::weigh_from_f16`].
    weigh_from_f16(block: &[f16; BLOCK], scale: Scale, band: Band, within: &mut Room) -> Beginning = kernels::weigh_from_f16::<Baseline>;
    /// See [`kernels::weigh_from_bf16`].
    weigh_from_bf16(block: &[bf16; BLOCK], scale: Scale, band: Band, within: &mut Room) -> Beginning = kernels::weigh_from_bf16::<Baseline>;
    /// See [`kernels::weigh_each`].
    weigh_each(logits: &[f32], scale: Scale, weights: &mut [u64]) = kernels::weigh_each::<Baseline>;
    /// See [`kernels::log2_each`].
    log2_each(logits: &[f32], scale: Scale, logarithms: &mut [i64]) = kernels::log2_each::<Baseline>;
    /// See [`kernels::surprise`].
    surprise(block: &Block, scale: Scale) -> Surprise = kernels::surprise::<Baseline>;
    /// See [`kernels::spread`].
    spread(block: &Block, max: f32) -> Spread = kernels::spread;
}

#[cfg(target_arch = "x86_64")]
#[path = "avx2.rs"]
mod avx2;
