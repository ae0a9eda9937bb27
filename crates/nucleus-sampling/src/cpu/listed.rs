//! Truncations of a listed set: each names the run it keeps.

use std::ops::Range;

use super::list::List;
use super::prefix::{reaching, target};
use super::wide::{Floor, Mass};
use crate::fixed::{self, ONE_Q32};

impl List {
    /// x >= threshold.
    pub(super) fn cut_at(&self, threshold: f32, min_keep: u64) -> Range<usize> {
        0..self.at_least(self.reaching(threshold), min_keep)
    }

    /// The first k; with `ties` all that equal the k-th too.
    pub(super) fn first(&self, k: u64, ties: bool) -> Range<usize> {
        let k = self.at_least(0, k);
        0..if ties { self.with_ties(k) } else { k }
    }

    /// The shortest beginning whose mass reaches a threshold in Q32.
    pub(super) fn holding(&self, mass: Mass, threshold: u64, min_keep: u64) -> Range<usize> {
        let last = reaching(self.weights(), target(threshold, mass.total));
        0..self.at_least(last.map_or(self.len(), |last| last + 1), min_keep)
    }

    /// Number of leading candidates whose probability reaches a threshold in Q32.
    pub(super) fn probable(&self, mass: Mass, threshold: u64) -> usize {
        let weights = self.weights();
        self.leading(|place| fixed::reaches(weights[place], mass.total, threshold))
    }

    /// q / Z >= threshold.
    pub(super) fn at_probability(&self, mass: Mass, threshold: u64, floor: Floor) -> Range<usize> {
        let least = self.first(floor.min_keep, floor.ties).end;
        0..self.probable(mass, threshold).max(least)
    }

    /// What excluding the top choices leaves: of those that reach the threshold only the last.
    pub(super) fn without_top(&self, mass: Mass, threshold: u64, min_keep: u64) -> Range<usize> {
        let start = self.probable(mass, threshold).saturating_sub(1);
        let enough = (self.len() - start) as u64 >= min_keep;
        if enough {
            start..self.len()
        } else {
            0..self.len()
        }
    }

    /// Cuts where the summed second differences of the weights exceed z of their total.
    pub(super) fn tail_free(&self, z: u64, min_keep: u64) -> Range<usize> {
        let weights = self.weights();
        let bend = |place: usize| {
            let [a, b, c] = [0, 1, 2].map(|offset| i128::from(weights[place + offset]));
            ((a - b) - (b - c)).unsigned_abs()
        };
        let Some(bends) = self.len().checked_sub(2).filter(|bends| *bends > 0) else {
            return 0..self.len();
        };
        let total: u128 = (0..bends).map(bend).sum();
        let flat = total == 0;
        let total = if flat { bends as u128 } else { total };
        let mut sum = 0;
        let cut = (0..bends).find(|place| {
            sum += if flat { 1 } else { bend(*place) };
            sum * u128::from(ONE_Q32) > u128::from(z) * total && *place as u64 >= min_keep
        });
        0..cut.unwrap_or(self.len())
    }
}

/// Where a run of typical tokens stops growing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typical {
    /// The mass in Q32.
    pub(super) threshold: u64,
    /// Fewest tokens.
    pub(super) min_keep: u64,
    /// The mass has to be exceeded, not reached.
    pub(super) strict: bool,
    /// Tokens that equal an end of the run belong to it.
    pub(super) ties: bool,
}

impl List {
    /// The run that grows from the mean of y outwards, nearest token first, until its mass suffices; then by ties, then to its smallest
    /// length; after [`List::take_logarithms`]. `mass` and `mean` are those of the whole set, of which this list is a beginning. `None` if
    /// the run reaches the end of the list and that is not `complete`.
    pub(super) fn typical(
        &self,
        mass: Mass,
        mean: i64,
        rule: Typical,
        complete: bool,
    ) -> Option<Range<usize>> {
        let weights = self.weights();
        let middle = self.leading(|place| self.logarithms()[place] > mean);
        let suffices = if rule.strict {
            fixed::exceeds
        } else {
            fixed::reaches
        };
        let (mut run, mut sum) = (middle..middle, 0);
        while run.len() < self.len()
            && (run.is_empty() || !suffices(sum, mass.total, rule.threshold))
        {
            sum += weights[self.grow(&mut run, mean)];
        }
        if rule.ties {
            run = self.with_equals(run);
        }
        while run.len() < self.at_least(0, rule.min_keep) {
            self.grow(&mut run, mean);
        }
        (complete || run.end < self.len()).then_some(run)
    }

    /// Takes the nearer of the two neighbours into a run, the more likely one at equal distances, and tells its place.
    fn grow(&self, run: &mut Range<usize>, mean: i64) -> usize {
        let y = self.logarithms();
        let above = run.start.checked_sub(1).map(|place| y[place] - mean);
        let below = y.get(run.end).map(|y| mean - y);
        if above.is_some_and(|above| below.is_none_or(|below| above <= below)) {
            run.start -= 1;
            run.start
        } else {
            run.end += 1;
            run.end - 1
        }
    }

    /// A run widened by every candidate that equals one of its ends.
    fn with_equals(&self, run: Range<usize>) -> Range<usize> {
        let Some(first) = self.keys().get(run.start) else {
            return run;
        };
        let start = self.keys().partition_point(|key| key.high() < first.high());
        start..self.with_ties(run.end)
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Key;
    use super::super::simd::Simd;
    use super::*;

    /// Candidates with weights 8 : 4 : 2 : 2 : 1.
    fn list() -> (List, Mass) {
        let mut list = List::new(Simd::PORTABLE);
        let ln_2 = std::f32::consts::LN_2;
        let logits = [3.0 * ln_2, 2.0 * ln_2, ln_2, ln_2, 0.0];
        *list.refill() = (0..)
            .zip(logits)
            .map(|(id, logit)| Key::new(logit, id))
            .collect();
        let mass = list.weigh(1.0).expect("finite logits");
        (list, mass)
    }

    const HALF: u64 = ONE_Q32 / 2;

    #[test]
    fn weights_are_in_proportion() {
        let (list, mass) = list();
        let shares: Vec<_> = list
            .weights()
            .iter()
            .map(|q| (q * 17 + mass.total / 2) / mass.total)
            .collect();
        assert_eq!(shares, [8, 4, 2, 2, 1]);
    }

    #[test]
    fn a_beginning_holds_the_mass() {
        let (list, mass) = list();
        assert_eq!(list.holding(mass, 0, 1), 0..1);
        assert_eq!(list.holding(mass, HALF, 1), 0..2);
        assert_eq!(list.holding(mass, HALF, 4), 0..4);
        assert_eq!(list.holding(mass, ONE_Q32 - 1, 1), 0..5);
    }

    #[test]
    fn ties_stay_with_the_last_one_kept() {
        let (list, _) = list();
        assert_eq!((list.first(3, false), list.first(3, true)), (0..3, 0..4));
        assert_eq!((list.first(9, true), list.with_ties(0)), (0..5, 0));
    }

    #[test]
    fn excluding_top_choices_leaves_the_last_of_them() {
        let (list, mass) = list();
        let tenth = ONE_Q32 / 10;
        assert_eq!(list.without_top(mass, tenth, 1), 3..5);
        assert_eq!(list.without_top(mass, tenth, 3), 0..5);
        assert_eq!(list.without_top(mass, HALF, 1), 0..5);
    }

    #[test]
    fn typical_runs_may_leave_the_list() {
        let (mut list, mass) = list();
        let rule = Typical {
            threshold: ONE_Q32 - 1,
            min_keep: 1,
            strict: false,
            ties: false,
        };
        let mean = list.surprise(mass.scale).mean_q16();
        assert_eq!(list.typical(mass, mean, rule, true), Some(0..5));
        assert_eq!(list.typical(mass, mean, rule, false), None);
    }
}
