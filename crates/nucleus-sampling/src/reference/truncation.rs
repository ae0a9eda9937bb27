//! Truncations: each looks at the candidates in order and names the contiguous run that it keeps.

use std::ops::Range;

use crate::fixed::{self, ONE_Q32, Surprise};
use crate::reference::candidates::{Candidates, Weights};

/// Number of leading candidates for which `passes` holds.
fn leading(candidates: &Candidates, passes: impl Fn(usize) -> bool) -> usize {
    (0..candidates.len())
        .take_while(|index| passes(*index))
        .count()
}

/// A cut raised to at least `min_keep` candidates, where there are as many.
fn at_least(cut: usize, min_keep: usize, candidates: &Candidates) -> usize {
    cut.max(min_keep).min(candidates.len())
}

/// A cut moved behind every candidate that equals the last one kept.
fn with_ties(cut: usize, candidates: &Candidates) -> usize {
    let list = candidates.as_slice();
    let Some(last) = cut.checked_sub(1).and_then(|last| list.get(last)) else {
        return cut;
    };
    cut + list[cut..]
        .iter()
        .take_while(|token| token.logit == last.logit)
        .count()
}

/// x >= max - n sigma.
pub(crate) fn top_n_sigma(candidates: &Candidates, n: f32, min_keep: usize) -> Range<usize> {
    let max = candidates.max().unwrap_or(0.0);
    let sigma = fixed::from_q16(candidates.spread().deviation_q16());
    let threshold = max - n * sigma;
    let cut = leading(candidates, |index| {
        candidates.as_slice()[index].logit >= threshold
    });
    0..at_least(cut, min_keep, candidates)
}

/// The first k; with `ties` all that equal the k-th too.
pub(crate) fn top_k(candidates: &Candidates, k: u64, ties: bool) -> Range<usize> {
    let cut = usize::try_from(k)
        .unwrap_or(usize::MAX)
        .min(candidates.len());
    0..if ties {
        with_ties(cut, candidates)
    } else {
        cut
    }
}

/// The shortest beginning whose mass reaches p Z.
pub(crate) fn top_p(
    candidates: &Candidates,
    weights: &Weights,
    p: u64,
    min_keep: usize,
) -> Range<usize> {
    let total = weights.total();
    let mut mass = 0;
    let cut = weights.q.iter().position(|q| {
        mass += q;
        fixed::reaches(mass, total, p)
    });
    0..at_least(
        cut.map_or(candidates.len(), |last| last + 1),
        min_keep,
        candidates,
    )
}

/// x >= fma(T, ln m, max).
pub(crate) fn min_p(candidates: &Candidates, ln_min_p: f32, min_keep: usize) -> Range<usize> {
    let threshold = candidates
        .temperature
        .mul_add(ln_min_p, candidates.max().unwrap_or(0.0));
    let cut = leading(candidates, |index| {
        candidates.as_slice()[index].logit >= threshold
    });
    0..at_least(cut, min_keep, candidates)
}

/// The beginning whose every q / Z reaches the probability.
fn probable(candidates: &Candidates, weights: &Weights, probability: u64) -> usize {
    let total = weights.total();
    leading(candidates, |index| {
        fixed::reaches(weights.q[index], total, probability)
    })
}

/// q / Z >= probability.
pub(crate) fn epsilon(
    candidates: &Candidates,
    weights: &Weights,
    probability: u64,
    floor: Floor,
) -> Range<usize> {
    0..floor.raise(probable(candidates, weights, probability), candidates)
}

/// How many tokens epsilon and eta leave at least.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    /// That many.
    pub(crate) min_keep: usize,
    /// And all that equal the last of them.
    pub(crate) ties: bool,
}

impl Floor {
    fn raise(self, cut: usize, candidates: &Candidates) -> usize {
        let floor = at_least(0, self.min_keep, candidates);
        cut.max(if self.ties {
            with_ties(floor, candidates)
        } else {
            floor
        })
    }
}

/// min(eta, sqrt(eta) 2^-H) in Q32, H the entropy in bits.
pub(crate) fn eta_threshold(eta: u64, surprise: Surprise) -> u64 {
    let root = (eta << 32).isqrt();
    let decay = fixed::exp2_q32(-(surprise.entropy_q16() << 16));
    eta.min(((u128::from(root) * u128::from(decay)) >> 32) as u64)
}

/// a p_max^2 in Q32.
pub(crate) fn top_a_threshold(a: u64, weights: &Weights) -> u64 {
    let largest = u128::from(weights.q.first().copied().unwrap_or(0));
    let p = (largest << 32) / u128::from(weights.total().max(1));
    ((u128::from(a) * p * p) >> 64) as u64
}

/// Where a run of typical tokens stops growing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Typical {
    /// The mass in Q32.
    pub(crate) mass: u64,
    /// Fewest tokens.
    pub(crate) min_keep: usize,
    /// The mass has to be exceeded, not reached.
    pub(crate) strict: bool,
    /// Tokens that equal an end of the run that reaches the mass belong to it.
    pub(crate) ties: bool,
}

/// Grows a run from the mean of y outwards, nearest token first, until its mass suffices and `min_keep` tokens are in it.
///
/// The distance of a token is |y - mean|, in Q16; at equal distances the more likely side comes first.
pub(crate) fn typical(candidates: &Candidates, weights: &Weights, rule: Typical) -> Range<usize> {
    let surprise = weights.surprise();
    let mean = surprise.mean_q16();
    let middle = leading(candidates, |index| weights.y[index] > mean);
    let suffices = if rule.strict {
        fixed::exceeds
    } else {
        fixed::reaches
    };
    let (mut run, mut mass) = (middle..middle, 0);
    while run.len() < candidates.len()
        && (run.is_empty() || !suffices(mass, surprise.total, rule.mass))
    {
        let added = grow(&mut run, weights, mean);
        mass += weights.q[added];
    }
    if rule.ties {
        run = with_equals(run, candidates);
    }
    while run.len() < rule.min_keep.min(candidates.len()) {
        grow(&mut run, weights, mean);
    }
    run
}

/// Adds the neighbour of the run that is nearest to the mean, and names it. There must be one.
fn grow(run: &mut Range<usize>, weights: &Weights, mean: i64) -> usize {
    let above = run
        .start
        .checked_sub(1)
        .map(|index| weights.y[index] - mean);
    let below = weights.y.get(run.end).map(|y| mean - y);
    if above.is_some_and(|above| below.is_none_or(|below| above <= below)) {
        run.start -= 1;
        run.start
    } else {
        run.end += 1;
        run.end - 1
    }
}

/// A run widened by every candidate that equals one of its ends.
fn with_equals(run: Range<usize>, candidates: &Candidates) -> Range<usize> {
    let list = candidates.as_slice();
    let Some(first) = list.get(run.start) else {
        return run;
    };
    let before = list[..run.start]
        .iter()
        .rev()
        .take_while(|t| t.logit == first.logit)
        .count();
    run.start - before..with_ties(run.end, candidates)
}

/// Cuts where the summed second differences of the sorted weights exceed z of their total.
pub(crate) fn tail_free(
    candidates: &Candidates,
    weights: &Weights,
    z: u64,
    min_keep: usize,
) -> Range<usize> {
    if candidates.len() <= 2 {
        return 0..candidates.len();
    }
    let slopes: Vec<i128> = weights
        .q
        .windows(2)
        .map(|pair| i128::from(pair[0]) - i128::from(pair[1]))
        .collect();
    let mut bends: Vec<u128> = slopes
        .windows(2)
        .map(|pair| (pair[0] - pair[1]).unsigned_abs())
        .collect();
    if bends.iter().all(|bend| *bend == 0) {
        bends.fill(1);
    }
    let total: u128 = bends.iter().sum();
    let mut sum = 0;
    let cut = bends.iter().enumerate().position(|(index, bend)| {
        sum += bend;
        sum * u128::from(ONE_Q32) > u128::from(z) * total && index >= min_keep
    });
    0..cut.unwrap_or(candidates.len())
}

/// Drops all tokens that reach the probability except the last of them, if at least `min_keep` remain.
pub(crate) fn exclude_top_choices(
    candidates: &Candidates,
    weights: &Weights,
    probability: u64,
    min_keep: usize,
) -> Range<usize> {
    let start = probable(candidates, weights, probability).saturating_sub(1);
    let kept = candidates.len() - start;
    if kept >= min_keep {
        start..candidates.len()
    } else {
        0..candidates.len()
    }
}
