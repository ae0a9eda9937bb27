//! Rotary position embedding.

/// What a model file says about its rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RopeConfig {
    /// Values of a head that are rotated, from its start; even.
    pub(super) dimensions: usize,
    /// θ, the base of the frequencies.
    pub(super) base: f32,
    /// Positions are divided by it (linear scaling); 1 for none.
    pub(super) scale: f32,
}

/// The angle by which each pair turns from one position to the next.
///
/// Pair `i` of `d/2` turns by `θ^(-2i/d)` radians (Su et al. 2021, "RoFormer"), divided by the position scale and by the
/// file's factor for the pair, if it has factors (Llama 3.1 stretches the low frequencies so).
#[derive(Debug, Clone)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
}

impl Rope {
    /// The frequencies; `factors` has one value a pair.
    pub(super) fn new(config: RopeConfig, factors: Option<&[f32]>) -> Self {
        let frequency = |pair: usize| {
            let exponent = -2.0 * pair as f64 / config.dimensions as f64;
            let factor = factors.map_or(1.0, |factors| f64::from(factors[pair]));
            f64::from(config.base).powf(exponent) / f64::from(config.scale) / factor
        };
        Self {
            frequencies: (0..config.dimensions / 2).map(frequency).collect(),
        }
    }

    /// The rotation of every pair at each position: `[positions, pairs]` of (cos, sin).
    ///
    /// The angles are computed in f64: at position 100,000 an angle in f32 would be off by up to 0.004.
    pub(super) fn rotations(
        &self,
        positions: impl Iterator<Item = usize>,
        rotations: &mut Vec<(f32, f32)>,
    ) {
        rotations.clear();
        for position in positions {
            rotations.extend(self.frequencies.iter().map(|frequency| {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }

    /// Pairs that are rotated in a head.
    pub(super) fn pairs(&self) -> usize {
        self.frequencies.len()
    }
}

/// Rotates the pairs of neighbours at the start of `head` in place; what follows them stays as it is.
pub(super) fn rotate(head: &mut [f32], rotations: &[(f32, f32)]) {
    for ([x, y], &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(rotations) {
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dimensions: usize, base: f32, scale: f32) -> RopeConfig {
        RopeConfig {
            dimensions,
            base,
            scale,
        }
    }

    fn rotations_at(rope: &Rope, position: usize) -> Vec<(f32, f32)> {
        let mut rotations = Vec::new();
        rope.rotations(std::iter::once(position), &mut rotations);
        rotations
    }

    fn assert_close(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-6, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn position_zero_does_not_rotate() {
        let rope = Rope::new(config(4, 10_000.0, 1.0), None);
        assert_eq!(rotations_at(&rope, 0), [(1.0, 0.0), (1.0, 0.0)]);
    }

    #[test]
    fn neighbours_turn_by_position_times_frequency() {
        // d = 4, θ = 100: frequencies 1 and 0.1
        let rope = Rope::new(config(4, 100.0, 1.0), None);
        let mut head = [1.0, 0.0, 0.0, 1.0, 7.0];
        rotate(&mut head, &rotations_at(&rope, 2));
        assert_close(
            &head,
            &[
                2.0_f32.cos(),
                2.0_f32.sin(),
                -(0.2_f32.sin()),
                0.2_f32.cos(),
                7.0,
            ],
        );
    }

    #[test]
    fn scale_and_factors_slow_the_rotation() {
        let rope = Rope::new(config(4, 100.0, 4.0), Some(&[1.0, 2.0]));
        let angles: Vec<f32> = rotations_at(&rope, 8)
            .iter()
            .map(|(cos, _)| cos.acos())
            .collect();
        assert_close(&angles, &[2.0, 0.1]);
    }

    #[test]
    fn rotations_are_one_row_a_position() {
        let rope = Rope::new(config(2, 100.0, 1.0), None);
        let mut rotations = vec![(9.0, 9.0)];
        rope.rotations([0, 3].into_iter(), &mut rotations);
        assert_eq!(
            rotations,
            [(1.0, 0.0), (3.0_f64.cos() as f32, 3.0_f64.sin() as f32)]
        );
        assert_eq!(rope.pairs(), 1);
    }

    #[test]
    fn far_positions_keep_their_angle() {
        let rope = Rope::new(config(2, 10_000.0, 1.0), None);
        let turns = 100_000.0 % std::f64::consts::TAU;
        let (cos, sin) = rotations_at(&rope, 100_000)[0];
        assert_close(&[cos, sin], &[turns.cos() as f32, turns.sin() as f32]);
    }
}
