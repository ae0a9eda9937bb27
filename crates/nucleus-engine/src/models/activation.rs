//! The gated activation of the feed-forward block.

use rayon::prelude::*;

use super::architecture::Activation;
use super::simd::{self, Kernel, Simd, exp, tanh};

/// Values a thread takes at a time: few enough to share out a long prompt, enough to be worth a hand-over.
const VALUES_PER_TASK: usize = 16 * 1024;

/// `gate[i] = activation(gate[i])·up[i]` (Shazeer 2020, "GLU Variants Improve Transformer").
pub(super) fn gated(activation: Activation, gate: &mut [f32], up: &[f32]) {
    debug_assert_eq!(gate.len(), up.len());
    gate.par_chunks_mut(VALUES_PER_TASK)
        .zip(up.par_chunks(VALUES_PER_TASK))
        .for_each(|(gate, up)| match activation {
            Activation::Silu => simd::run(GatedSilu { gate, up }),
            Activation::GeluTanh => simd::run(GatedGelu { gate, up }),
        });
}

/// `silu(x) = x / (1 + e^-x)`.
struct GatedSilu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for GatedSilu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp(simd, -*gate)) * up;
        }
    }
}

/// `gelu(x) = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel 2016, "Gaussian Error Linear Units").
struct GatedGelu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for GatedGelu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// √(2/π).
        const ROOT: f32 = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            let x = *gate;
            let inner = ROOT * (x + 0.044_715 * x * x * x);
            *gate = 0.5 * x * (1.0 + tanh(simd, inner)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_times_up() {
        let mut gate = [0.0, 1.0, -1.0, 100.0, -100.0];
        gated(Activation::Silu, &mut gate, &[5.0, 2.0, 1.0, 1.0, 1.0]);
        let sigmoid = 1.0 / (1.0 + (-1.0_f32).exp());
        let expected = [0.0, 2.0 * sigmoid, sigmoid - 1.0, 100.0, 0.0];
        for (y, expected) in gate.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-6, "{y} is not {expected}");
        }
    }

    #[test]
    fn gelu_times_up() {
        let mut gate = [0.0, 1.0, -1.0, 100.0, -100.0];
        gated(Activation::GeluTanh, &mut gate, &[5.0, 2.0, 1.0, 1.0, 1.0]);
        // x·Φ(x) is 0.841345 at 1; the approximation is 1.5e-4 off.
        let expected = [0.0, 2.0 * 0.841_192, 0.841_192 - 1.0, 100.0, 0.0];
        for (y, expected) in gate.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-6, "{y} is not {expected}");
        }
    }

    #[test]
    fn a_value_that_is_not_a_number_stays_visible() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut gate = [f32::NAN];
            gated(activation, &mut gate, &[1.0]);
            assert!(gate[0].is_nan());
        }
    }
}
