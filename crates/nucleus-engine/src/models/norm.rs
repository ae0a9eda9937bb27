//! Root-mean-square normalisation.

use super::simd::{self, Kernel, Simd, dot};

/// Normalises each row of `input` to root-mean-square 1 and scales it: `y = x / √(mean(x²) + eps) · weight`
/// (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization").
///
/// `input` and `output` are `[rows, weight.len()]`.
pub(super) fn rms_norm(input: &[f32], weight: &[f32], eps: f32, output: &mut [f32]) {
    debug_assert_eq!(input.len(), output.len());
    simd::run(RmsNorm {
        input,
        weight,
        eps,
        output,
    });
}

/// As [`rms_norm`], of rows that are overwritten.
pub(super) fn rms_norm_in_place(rows: &mut [f32], weight: &[f32], eps: f32) {
    simd::run(RmsNormInPlace { rows, weight, eps });
}

struct RmsNorm<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    output: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        for (x, y) in self
            .input
            .chunks_exact(width)
            .zip(self.output.chunks_exact_mut(width))
        {
            let scale = scale(simd, x, self.eps);
            for ((y, &x), &weight) in y.iter_mut().zip(x).zip(self.weight) {
                *y = x * scale * weight;
            }
        }
    }
}

struct RmsNormInPlace<'a> {
    rows: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormInPlace<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.rows.chunks_exact_mut(self.weight.len()) {
            let scale = scale(simd, row, self.eps);
            for (x, &weight) in row.iter_mut().zip(self.weight) {
                *x = *x * scale * weight;
            }
        }
    }
}

/// What makes the root-mean-square of a row 1.
#[inline(always)]
fn scale<S: Simd>(simd: S, row: &[f32], eps: f32) -> f32 {
    let mean = dot(simd, row, row) / row.len() as f32;
    1.0 / (mean + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_place_it_is_the_same() {
        let rows: Vec<f32> = (0..30).map(|i| (i as f32).sin()).collect();
        let weight: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let mut output = vec![0.0; 30];
        rms_norm(&rows, &weight, 1e-5, &mut output);
        let mut in_place = rows;
        rms_norm_in_place(&mut in_place, &weight, 1e-5);
        assert_eq!(in_place, output);
    }

    #[test]
    fn each_row_is_normalised_alone() {
        // mean(3², 4²) = 12.5 and mean(0, 2²) = 2
        let mut output = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 2.0], &[1.0, 10.0], 0.0, &mut output);
        let expected = [
            3.0 / 12.5_f32.sqrt(),
            40.0 / 12.5_f32.sqrt(),
            0.0,
            20.0 / 2.0_f32.sqrt(),
        ];
        for (y, expected) in output.iter().zip(expected) {
            assert!((y - expected).abs() < 1e-6, "{y} is not {expected}");
        }
    }

    #[test]
    fn eps_keeps_a_row_of_zeros_finite() {
        let mut output = [1.0; 2];
        rms_norm(&[0.0, 0.0], &[1.0, 1.0], 1e-5, &mut output);
        assert_eq!(output, [0.0, 0.0]);
    }

    #[test]
    fn eps_is_added_to_the_mean_of_squares() {
        let mut output = [0.0];
        rms_norm(&[2.0], &[1.0], 12.0, &mut output);
        assert_eq!(output, [0.5]);
    }
}
