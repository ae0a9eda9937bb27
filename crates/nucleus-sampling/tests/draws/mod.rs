//! How a sampler draws: the exact interval of uniform numbers of every token, and how often it draws each.

use nucleus_sampling::{CompiledParams, LogitsRow, Row, Sampler, SamplerState};

/// P(f) ~ 2^f, constant term first (`docs/sampling.md`, "Weights").
const POLYNOMIAL: [f32; 7] = [
    1.0,
    0.693_147_24,
    0.240_226_54,
    0.055_503_014,
    0.009_617_693,
    0.001_340_664_3,
    0.000_155_946_78,
];

/// A row whose kept tokens and temperature at the draw are known.
pub(crate) struct Known<'a> {
    pub(crate) logits: &'a [f32],
    pub(crate) params: &'a CompiledParams,
    /// The kept ids, ascending.
    pub(crate) kept: Vec<u32>,
    pub(crate) temperature: f64,
}

impl Known<'_> {
    /// q = floor(2^44 2^(n - E) P(f)) of every kept token with n = rint(x s), f = fma(x, s, -n), s = f32(log2 e / T).
    pub(crate) fn weights(&self) -> Vec<u64> {
        let s = (std::f64::consts::LOG2_E / f64::from(self.temperature as f32)) as f32;
        let split = |id: &u32| {
            let x = self.logits[*id as usize];
            let n = (x * s).round_ties_even();
            (n, x.mul_add(s, -n))
        };
        let split: Vec<(f32, f32)> = self.kept.iter().map(split).collect();
        let largest = split.iter().map(|(n, _)| *n).fold(f32::MIN, f32::max);
        split
            .into_iter()
            .map(|(n, f)| {
                let p = POLYNOMIAL
                    .iter()
                    .rev()
                    .fold(0f32, |sum, c| sum.mul_add(f, *c));
                // Exact: 24 bits scaled by a power of two.
                (f64::from(p) * f64::from(n - largest + 44.0).exp2()) as u64
            })
            .collect()
    }

    /// The token drawn with a uniform number, `None` if the row fails.
    fn draw(&self, sampler: &mut dyn Sampler, uniform: u64) -> u32 {
        let state = SamplerState::new(self.params, &[]);
        let mut row = Row::new(LogitsRow::F32(self.logits), self.params, &state);
        row.uniform = Some(uniform);
        sampler.sample(&row).token_id
    }

    /// Whether the tokens at these places among the kept ones have exactly the uniform numbers that their weights give them: those U for
    /// which floor(U Z / 2^64) lies in [prefix - q, prefix), the prefixes in ascending order of id.
    ///
    /// # Errors
    /// The first end of an interval that belongs to another token.
    pub(crate) fn check_intervals(
        &self,
        sampler: &mut dyn Sampler,
        places: impl IntoIterator<Item = usize>,
    ) -> Result<(), String> {
        let weights = self.weights();
        let total: u128 = weights.iter().copied().map(u128::from).sum();
        let mut sum = 0;
        let prefixes: Vec<u128> = weights
            .iter()
            .map(|q| {
                sum += u128::from(*q);
                sum
            })
            .collect();
        for place in places.into_iter().filter(|place| weights[*place] > 0) {
            let (before, after) = (
                prefixes[place] - u128::from(weights[place]),
                prefixes[place],
            );
            let first = (before << 64).div_ceil(total) as u64;
            let last = ((after << 64).div_ceil(total) - 1) as u64;
            for uniform in [first, last] {
                let (drawn, id) = (self.draw(sampler, uniform), self.kept[place]);
                if drawn != id {
                    return Err(format!("{uniform:#018x} draws {drawn}, not {id}"));
                }
            }
        }
        Ok(())
    }
}

/// Counts of outcomes against their probabilities.
pub(crate) struct Frequencies {
    pub(crate) counts: Vec<u64>,
    pub(crate) probs: Vec<f64>,
}

impl Frequencies {
    /// G = 2 sum n ln(n / expected).
    pub(crate) fn g(&self) -> f64 {
        let total = self.counts.iter().sum::<u64>() as f64;
        let terms = self.counts.iter().zip(&self.probs);
        2.0 * terms
            .filter(|(count, _)| **count > 0)
            .map(|(n, p)| *n as f64 * (*n as f64 / (total * p)).ln())
            .sum::<f64>()
    }

    /// The values that G leaves once in a million to either side: chi-square with one degree of freedom less than there are outcomes, by
    /// the approximation of Wilson and Hilferty (1931).
    pub(crate) fn limits(&self) -> (f64, f64) {
        /// The standard normal distribution exceeds this once in a million.
        const Z: f64 = 4.753;
        let degrees = (self.counts.len() - 1) as f64;
        let variance = 2.0 / (9.0 * degrees);
        let at = |z: f64| degrees * (1.0 - variance + z * variance.sqrt()).max(0.0).powi(3);
        (at(-Z), at(Z))
    }

    /// How likely chance alone is to bring the counts at least as far from the probabilities.
    pub(crate) fn p_value(&self) -> f64 {
        upper_tail(self.g(), self.counts.len() - 1)
    }

    /// Whether the counts are neither farther from the probabilities nor nearer to them than chance explains.
    ///
    /// # Errors
    /// G and its limits.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (g, (low, high)) = (self.g(), self.limits());
        if low < g && g < high {
            return Ok(());
        }
        Err(format!("G = {g:.3} is not in ({low:.3}, {high:.3})"))
    }
}

/// What part of chi-square with that many degrees of freedom, at least 2, lies above `x`: sums of its density over small steps.
pub(crate) fn upper_tail(x: f64, degrees: usize) -> f64 {
    const STEPS: usize = 200_000;
    let degrees = degrees as f64;
    // Beyond 20 standard deviations nothing is left.
    let end = degrees + 20.0 * (2.0 * degrees).sqrt() + 40.0;
    let (power, mode) = (degrees / 2.0 - 1.0, (degrees - 2.0).max(1.0));
    let density = |x: f64| (power * (x / mode).ln() - (x - mode) / 2.0).exp();
    let integral = |from: f64| -> f64 {
        let step = (end - from).max(0.0) / STEPS as f64;
        let middle = |index: usize| from + (index as f64 + 0.5) * step;
        (0..STEPS).map(|index| step * density(middle(index))).sum()
    };
    integral(x) / integral(0.0)
}
