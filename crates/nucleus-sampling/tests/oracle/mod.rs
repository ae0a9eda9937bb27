//! The truncations in binary64, written from their definitions and without a line of the crate's arithmetic.
//!
//! Each filter also tells how close it came to deciding otherwise, so that rows on a border can be told apart.

/// Tokens in order with their logits, and the temperature in force.
#[derive(Clone)]
pub(crate) struct Row {
    pub(crate) tokens: Vec<(u32, f64)>,
    pub(crate) temperature: f64,
    /// A decision was within the margin that rounding may move.
    pub(crate) on_border: bool,
}

/// A difference of probabilities that decides nothing.
const MASS_BAND: f64 = 1.3e-7;

/// Whether a difference is small, but not none: exact equality is decided alike everywhere.
fn is_close(difference: f64, band: f64) -> bool {
    difference != 0.0 && difference.abs() <= band
}

impl Row {
    pub(crate) fn new(logits: &[f32]) -> Self {
        let mut tokens: Vec<(u32, f64)> = (0..)
            .zip(logits)
            .map(|(id, logit)| (id, f64::from(*logit) + 0.0))
            .collect();
        tokens.retain(|(_, logit)| *logit != f64::NEG_INFINITY);
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Self {
            tokens,
            temperature: 1.0,
            on_border: false,
        }
    }

    pub(crate) fn probs(&self) -> Vec<f64> {
        let max = self.tokens[0].1;
        let weights: Vec<f64> = self
            .tokens
            .iter()
            .map(|(_, x)| ((x - max) / self.temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }

    /// Entropy in nats.
    pub(crate) fn entropy(&self) -> f64 {
        self.probs()
            .iter()
            .filter(|p| **p > 0.0)
            .map(|p| -p * p.ln())
            .sum()
    }

    fn cut(&mut self, count: usize) {
        self.tokens.truncate(count.max(1));
    }

    /// Keeps the beginning whose margin is not negative; a margin within the band is a border.
    fn keep_beginning(&mut self, margins: &[f64], band: f64) {
        self.on_border |= margins.iter().any(|margin| is_close(*margin, band));
        self.cut(margins.iter().take_while(|margin| **margin >= 0.0).count());
    }

    pub(crate) fn top_k(&mut self, k: usize) {
        self.cut(k);
    }

    pub(crate) fn top_p(&mut self, p: f64) {
        let mut mass = 0.0;
        let before: Vec<f64> = self
            .probs()
            .iter()
            .map(|prob| {
                mass += prob;
                mass - prob
            })
            .collect();
        // A token stays while the mass before it is below p.
        self.on_border |= before
            .iter()
            .chain([&mass])
            .any(|mass| is_close(mass - p, MASS_BAND));
        self.cut(before.iter().take_while(|mass| **mass < p).count());
    }

    pub(crate) fn min_p(&mut self, m: f64) {
        let threshold = self.tokens[0].1 + self.temperature * m.ln();
        let margins: Vec<f64> = self.tokens.iter().map(|(_, x)| x - threshold).collect();
        self.keep_beginning(&margins, 4e-6 * (1.0 + self.temperature));
    }

    pub(crate) fn top_n_sigma(&mut self, n: f64) {
        let count = self.tokens.len() as f64;
        let mean = self.tokens.iter().map(|(_, x)| x).sum::<f64>() / count;
        let variance = self
            .tokens
            .iter()
            .map(|(_, x)| (x - mean).powi(2))
            .sum::<f64>()
            / count;
        let threshold = self.tokens[0].1 - n * variance.sqrt();
        let margins: Vec<f64> = self.tokens.iter().map(|(_, x)| x - threshold).collect();
        self.keep_beginning(&margins, 2e-5 * (1.0 + n));
    }

    pub(crate) fn at_least(&mut self, threshold: f64, relative_band: f64) {
        let margins: Vec<f64> = self.probs().iter().map(|p| p - threshold).collect();
        self.keep_beginning(&margins, MASS_BAND * 1e-3 + threshold * relative_band);
    }

    pub(crate) fn epsilon(&mut self, epsilon: f64) {
        self.at_least(epsilon, 1e-6);
    }

    pub(crate) fn eta(&mut self, eta: f64) {
        self.at_least(eta.min(eta.sqrt() * (-self.entropy()).exp()), 1e-4);
    }

    pub(crate) fn top_a(&mut self, a: f64) {
        self.at_least(a * self.probs()[0].powi(2), 1e-6);
    }

    pub(crate) fn tail_free(&mut self, z: f64) {
        if self.tokens.len() <= 2 {
            return;
        }
        let slopes: Vec<f64> = self
            .probs()
            .windows(2)
            .map(|pair| pair[0] - pair[1])
            .collect();
        let bends: Vec<f64> = slopes
            .windows(2)
            .map(|pair| (pair[0] - pair[1]).abs())
            .collect();
        let total: f64 = bends.iter().sum();
        // Where all bends are rounding errors of equal weights, they decide nothing.
        self.on_border |= total < 1e-6;
        let mut sum = 0.0;
        let sums: Vec<f64> = bends
            .iter()
            .map(|bend| {
                sum += bend / total;
                sum
            })
            .collect();
        self.on_border |= sums
            .iter()
            .any(|sum| (sum - z).abs() <= 1e-6 / total.min(1.0));
        let place = sums
            .iter()
            .enumerate()
            .position(|(index, sum)| *sum > z && index >= 1);
        self.cut(place.unwrap_or(self.tokens.len()));
    }

    pub(crate) fn exclude_top_choices(&mut self, threshold: f64) {
        let probs = self.probs();
        self.on_border |= probs.iter().any(|p| is_close(p - threshold, MASS_BAND));
        let tops = probs.iter().take_while(|p| **p >= threshold).count();
        self.tokens.drain(..tops.saturating_sub(1));
    }
}
