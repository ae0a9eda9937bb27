//! The gated activation of the feed-forward block.

use rayon::prelude::*;

use super::simd::{self, Kernel, exp};

/// Values a thread takes at a time: few enough to share out a long prompt, enough to be worth a hand-over.
const VALUES_PER_TASK: usize = 16 * 1024;

/// `gate[i] = silu(gate[i])·up[i]` with `silu(x) = x / (1 + e^-x)` (Shazeer 2020, "GLU Variants Improve Transformer").
pub(super) fn gated_silu(gate: &mut [f32], up: &[f32]) {
    debug_assert_eq!(gate.len(), up.len());
    gate.par_chunks_mut(VALUES_PER_TASK)
        .zip(up.par_chunks(VALUES_PER_TASK))
        .for_each(|(gate, up)| simd::run(GatedSilu { gate, up }));
}

struct GatedSilu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for GatedSilu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (gate, &up) in self.gate.iter_mut().zip(self.up) {
            *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silu_times_up() {
        let mut gate = [0.0, 1.0, -1.0, 100.0, -100.0];
        gated_silu(&mut gate, &[5.0, 2.0, 1.0, 1.0, 1.0]);
        let sigmoid = 1.0 / (1.0 + (-1.0_f32).exp());
        let expected = [0.0, 2.0 * sigmoid, sigmoid - 1.0, 100.0, 0.0];
        for (y, expected) in gate.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-6, "{y} is not {expected}");
        }
    }

    #[test]
    fn a_value_that_is_not_a_number_stays_visible() {
        let mut gate = [f32::NAN];
        gated_silu(&mut gate, &[1.0]);
        assert!(gate[0].is_nan());
    }
}
