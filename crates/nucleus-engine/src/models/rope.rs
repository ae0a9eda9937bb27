//! Rotary position embedding.

use std::f64::consts::TAU;

use super::architecture::Pairs;

/// What a model says about its rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeConfig {
    /// Values of a head that are rotated, from its start; even.
    pub(super) dimensions: usize,
    /// Which of them turn together.
    pub(super) pairs: Pairs,
    /// θ, the base of the frequencies.
    pub(super) base: f32,
    /// Positions are divided by it (linear scaling); 1 for none.
    pub(super) scale: f32,
    /// Rotated values are multiplied by it; 1 for none.
    pub(super) magnitude: f32,
    /// Positions of the contexts that the model was first trained on.
    pub(super) original_context: usize,
    /// What the frequencies are divided by.
    pub(super) factors: Factors,
}

/// What the frequencies are divided by, one value a pair.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Factors {
    /// Nothing.
    #[default]
    None,
    /// These.
    Fixed(Vec<f32>),
    /// By the context that is to be had (LongRoPE, Ding et al. 2024).
    ByContext {
        /// For contexts up to the original one.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
    },
}

impl RopeConfig {
    /// The angle by which pair `i` of `d/2` turns from one position to the next, in radians: `θ^(-2i/d)` (Su et al. 2021,
    /// "RoFormer").
    fn frequency(&self, pair: usize) -> f64 {
        f64::from(self.base).powf(-2.0 * pair as f64 / self.dimensions as f64)
    }

    /// The pair, as a real number, that turns so often within the original context.
    fn pair_of_turns(&self, turns: f64) -> f64 {
        let original = self.original_context as f64;
        self.dimensions as f64 * (original / (turns * TAU)).ln() / (2.0 * f64::from(self.base).ln())
    }

    /// The factors for a context of that length; `None` for none.
    fn factors(&self, context: usize) -> Option<&[f32]> {
        match &self.factors {
            Factors::None => None,
            Factors::Fixed(factors) => Some(factors),
            Factors::ByContext { long, .. } if context > self.original_context => Some(long),
            Factors::ByContext { short, .. } => Some(short),
        }
    }
}

/// How Llama 3.1 stretches its waves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Llama3Scaling {
    /// What long waves are stretched by.
    pub(super) factor: f32,
    /// Waves that turn less often than this within the original context are long.
    pub(super) low_turns: f32,
    /// Waves that turn more often are left alone; in between, it is interpolated.
    pub(super) high_turns: f32,
}

impl Llama3Scaling {
    /// The factors, as rope_freqs.weight in GGUF files has them.
    pub(super) fn factors(self, rope: &RopeConfig) -> Factors {
        let [factor, low, high] = [self.factor, self.low_turns, self.high_turns].map(f64::from);
        let stretch = |pair| {
            let turns = rope.original_context as f64 * rope.frequency(pair) / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Factors::Fixed((0..rope.dimensions / 2).map(stretch).collect())
    }
}

/// YaRN (Peng et al. 2023, arXiv:2309.00071).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Yarn {
    /// What long waves are stretched by.
    pub(super) factor: f32,
    /// Waves that turn more often than this within the original context are left alone.
    pub(super) beta_fast: f32,
    /// Waves that turn less often are stretched; in between, it is interpolated.
    pub(super) beta_slow: f32,
}

impl Yarn {
    /// The factors. The borders are those of whole pairs.
    pub(super) fn factors(self, rope: &RopeConfig) -> Factors {
        let last = rope.dimensions as f64 - 1.0;
        let first_stretched = rope
            .pair_of_turns(f64::from(self.beta_fast))
            .floor()
            .max(0.0);
        let last_kept = rope
            .pair_of_turns(f64::from(self.beta_slow))
            .ceil()
            .min(last);
        let width = (last_kept - first_stretched).max(1e-3);
        let stretch = |pair: usize| {
            let stretched = ((pair as f64 - first_stretched) / width).clamp(0.0, 1.0);
            (1.0 / (stretched / f64::from(self.factor) + 1.0 - stretched)) as f32
        };
        Factors::Fixed((0..rope.dimensions / 2).map(stretch).collect())
    }

    /// What the paper multiplies rotated values by: `0.1·ln factor + 1`.
    pub(super) fn magnitude(self) -> f32 {
        if self.factor <= 1.0 {
            1.0
        } else {
            0.1 * self.factor.ln() + 1.0
        }
    }
}

/// What LongRoPE multiplies rotated values by: `√(1 + ln(context / original) / ln(original))`.
pub(super) fn long_magnitude(context: usize, original: usize) -> f32 {
    if context <= original {
        return 1.0;
    }
    let original = original as f64;
    (1.0 + (context as f64 / original).ln() / original.ln()).sqrt() as f32
}

/// The angle by which each pair turns from one position to the next: its frequency, divided by the position scale and by
/// its factor.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    magnitude: f64,
    pairs: Pairs,
}

impl Rope {
    /// The frequencies for sequences that may grow to `context` positions.
    pub(super) fn new(config: &RopeConfig, context: usize) -> Self {
        let factors = config.factors(context);
        let frequency = |pair: usize| {
            let factor = factors.map_or(1.0, |factors| f64::from(factors[pair]));
            config.frequency(pair) / f64::from(config.scale) / factor
        };
        Self {
            frequencies: (0..config.dimensions / 2).map(frequency).collect(),
            magnitude: f64::from(config.magnitude),
            pairs: config.pairs,
        }
    }

    /// The angle of each pair from one position to the next, in radians.
    #[cfg(feature = "cuda")]
    pub(super) fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// What rotated values are multiplied by.
    #[cfg(feature = "cuda")]
    pub(super) fn magnitude(&self) -> f64 {
        self.magnitude
    }

    /// Which values turn together.
    #[cfg(feature = "cuda")]
    pub(super) fn pairs(&self) -> Pairs {
        self.pairs
    }

    /// Rotates every head of each row, `[rows, heads, head_dim]`, by the row's rotations; what follows the rotated values
    /// of a head stays as it is.
    pub(super) fn rotate(&self, states: &mut [f32], head_dim: usize, rotations: &[(f32, f32)]) {
        let pairs = self.frequencies.len();
        let rows = rotations.len() / pairs;
        let width = states.len() / rows;
        let rotate = match self.pairs {
            Pairs::Neighbours => rotate_neighbours,
            Pairs::Halves => rotate_halves,
        };
        for (row, rotations) in states
            .chunks_exact_mut(width)
            .zip(rotations.chunks_exact(pairs))
        {
            row.chunks_exact_mut(head_dim)
                .for_each(|head| rotate(head, rotations));
        }
    }

    /// The rotation of every pair at each position: `[positions, pairs]` of (cos, sin), times the magnitude.
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
                ((self.magnitude * cos) as f32, (self.magnitude * sin) as f32)
            }));
        }
    }
}

/// Rotates the pairs of neighbours at the start of `head` in place.
fn rotate_neighbours(head: &mut [f32], rotations: &[(f32, f32)]) {
    for ([x, y], &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(rotations) {
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    }
}

/// Rotates the pairs at the start of `head`, each of a value of the first half and one of the second, in place.
fn rotate_halves(head: &mut [f32], rotations: &[(f32, f32)]) {
    let (first, second) = head.split_at_mut(rotations.len());
    for ((x, y), &(cos, sin)) in first.iter_mut().zip(second).zip(rotations) {
        (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dimensions: usize, base: f32) -> RopeConfig {
        RopeConfig {
            dimensions,
            pairs: Pairs::Neighbours,
            base,
            scale: 1.0,
            magnitude: 1.0,
            original_context: 64,
            factors: Factors::None,
        }
    }

    fn rope(config: &RopeConfig) -> Rope {
        Rope::new(config, config.original_context)
    }

    fn rotations_at(rope: &Rope, position: usize) -> Vec<(f32, f32)> {
        let mut rotations = Vec::new();
        rope.rotations(std::iter::once(position), &mut rotations);
        rotations
    }

    /// The angles, below π, by which the pairs are turned at a position.
    fn angles_at(rope: &Rope, position: usize) -> Vec<f32> {
        rotations_at(rope, position)
            .iter()
            .map(|(cos, _)| cos.acos())
            .collect()
    }

    fn assert_close(actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() < 1e-6, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn position_zero_does_not_rotate() {
        let rope = rope(&config(4, 10_000.0));
        assert_eq!(rotations_at(&rope, 0), [(1.0, 0.0), (1.0, 0.0)]);
    }

    #[test]
    fn pairs_turn_by_position_times_frequency() {
        // d = 4, θ = 100: frequencies 1 and 0.1
        let [a, b] = [2.0_f32, 0.2];
        for (pairs, head, expected) in [
            (
                Pairs::Neighbours,
                [1.0, 0.0, 0.0, 1.0, 7.0],
                [a.cos(), a.sin(), -b.sin(), b.cos(), 7.0],
            ),
            (
                Pairs::Halves,
                [1.0, 0.0, 0.0, 1.0, 7.0],
                [a.cos(), -b.sin(), a.sin(), b.cos(), 7.0],
            ),
        ] {
            let rope = rope(&RopeConfig {
                pairs,
                ..config(4, 100.0)
            });
            let mut head = head;
            rope.rotate(&mut head, 5, &rotations_at(&rope, 2));
            assert_close(&head, &expected);
        }
    }

    #[test]
    fn rows_and_heads_turn_by_their_rows_position() {
        let rope = rope(&config(2, 100.0));
        let mut rotations = vec![(9.0, 9.0)];
        rope.rotations([0, 3].into_iter(), &mut rotations);
        let (sin, cos) = 3.0_f64.sin_cos();
        assert_eq!(rotations, [(1.0, 0.0), (cos as f32, sin as f32)]);
        let mut states = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        rope.rotate(&mut states, 2, &rotations);
        let [cos, sin] = [cos as f32, sin as f32];
        assert_close(&states, &[1.0, 0.0, 0.0, 1.0, cos, sin, -sin, cos]);
    }

    #[test]
    fn scale_and_factors_slow_the_rotation_and_magnitude_lengthens() {
        let rope = rope(&RopeConfig {
            scale: 4.0,
            factors: Factors::Fixed(vec![1.0, 2.0]),
            ..config(4, 100.0)
        });
        assert_close(&angles_at(&rope, 8), &[2.0, 0.1]);
        let longer = Rope::new(
            &RopeConfig {
                magnitude: 1.5,
                ..config(2, 100.0)
            },
            64,
        );
        assert_eq!(rotations_at(&longer, 0), [(1.5, 0.0)]);
    }

    #[test]
    fn far_positions_keep_their_angle() {
        let rope = rope(&config(2, 10_000.0));
        let turns = 100_000.0 % TAU;
        let (cos, sin) = rotations_at(&rope, 100_000)[0];
        assert_close(&[cos, sin], &[turns.cos() as f32, turns.sin() as f32]);
    }

    #[test]
    fn long_factors_are_for_contexts_beyond_the_original_one() {
        let config = RopeConfig {
            factors: Factors::ByContext {
                short: vec![2.0],
                long: vec![4.0],
            },
            ..config(2, 100.0)
        };
        assert_close(&angles_at(&Rope::new(&config, 64), 1), &[0.5]);
        assert_close(&angles_at(&Rope::new(&config, 65), 1), &[0.25]);
        assert_eq!(long_magnitude(64, 64), 1.0);
        // √(1 + ln 32 / ln 4096) of Phi-3's 131,072 over 4,096
        assert!((long_magnitude(131_072, 4096) - 1.190_238).abs() < 1e-6);
    }

    fn fixed(factors: Factors) -> Vec<f32> {
        match factors {
            Factors::Fixed(factors) => factors,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn llama_3_stretches_long_waves_only() {
        // θ = 10^6 over three pairs: 1, 1/100 and 1/10,000, which turn 1000 / 2π·(1, 1/100, 1/10,000) times in 1,000.
        let rope = RopeConfig {
            original_context: 1000,
            ..config(6, 1e6)
        };
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_turns: 1.0,
            high_turns: 4.0,
        };
        let kept = (10.0_f32 / std::f32::consts::TAU - 1.0) / 3.0;
        let between = 1.0 / ((1.0 - kept) / 8.0 + kept);
        assert_close(&fixed(scaling.factors(&rope)), &[1.0, between, 8.0]);
    }

    #[test]
    fn yarn_stretches_from_pair_to_pair() {
        // d = 8, θ = 10^4, pairs 10^0, 10^-1, 10^-2, 10^-3; of 2π·100 positions the waves turn 100, 10, 1 and 0.1 times.
        let rope = RopeConfig {
            original_context: 628,
            ..config(8, 1e4)
        };
        let yarn = Yarn {
            factor: 4.0,
            beta_fast: 50.0,
            beta_slow: 0.5,
        };
        // From pair 0 (0.3 rounded down) to pair 3 (2.3 rounded up).
        let at = |part: f32| 1.0 / (part / 4.0 + 1.0 - part);
        assert_close(
            &fixed(yarn.factors(&rope)),
            &[1.0, at(1.0 / 3.0), at(2.0 / 3.0), 4.0],
        );
        assert!((yarn.magnitude() - (1.0 + 0.1 * 4.0_f32.ln())).abs() < 1e-6);
    }
}
