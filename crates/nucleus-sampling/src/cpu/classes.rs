//! Tokens sorted into classes of equal width by logit, best first, to find where a sum reaches its target without sorting all of them.

use super::kernels::{Band, CLASSES, class_of};
use super::key::Key;
use super::prefix::reaching;

/// How logits are sorted into classes. A higher logit never has a higher class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Classes {
    /// The logit in the middle of class 0.
    pub(super) top: f32,
    /// Classes for each unit of logit.
    pub(super) density: f32,
}

impl Classes {
    /// Classes from `low` to `top`; logits below `low` are in the last one.
    pub(super) fn between(low: f32, top: f32) -> Self {
        let density = (CLASSES - 1) as f32 / (top - low);
        Self { top, density }
    }

    /// The class of a logit.
    #[inline(always)]
    pub(super) fn of(self, logit: f32) -> usize {
        class_of(logit, self.top, self.density) as usize
    }

    /// Logits among which all of a class are. The arithmetic behind a class errs by far less than one class.
    pub(super) fn band(self, class: usize) -> Band {
        if self.density == 0.0 {
            // The range was too wide for an f32.
            return Band::from(f32::MIN);
        }
        let edge = |class: f64| (f64::from(self.top) - class / f64::from(self.density)) as f32;
        let low = edge(class as f64 + 2.0).next_down().next_down();
        let high = edge(class as f64 - 2.0).next_up().next_up();
        Band {
            low: if class + 1 == CLASSES {
                f32::MIN
            } else {
                low.max(f32::MIN)
            },
            high: if class < 2 { f32::INFINITY } else { high },
        }
    }

    /// The logit with which the sum of the amounts, in order, reaches `target`, and its place; of equals the first comes first. `near` is
    /// working space.
    pub(super) fn crossing(
        self,
        logits: &[f32],
        amounts: &[u64],
        target: u64,
        near: &mut Vec<(Key, u64)>,
    ) -> Option<Key> {
        let pairs = || logits.iter().copied().zip(amounts.iter().copied());
        let mut sums = [0; CLASSES];
        pairs().for_each(|(logit, amount)| sums[self.of(logit)] += amount);
        let class = reaching(&sums, target)?;
        let mut sum: u64 = sums[..class].iter().sum();
        near.clear();
        let places = (0..).zip(pairs());
        let within = places.filter(|(_, (logit, _))| self.of(*logit) == class);
        near.extend(within.map(|(place, (logit, amount))| (Key::new(logit, place), amount)));
        near.sort_unstable_by_key(|(key, _)| *key);
        let mut near = near.iter();
        let last = near.find(|(_, amount)| {
            sum += amount;
            sum >= target
        });
        last.map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_within_its_band() {
        let ranges = [
            (-20.0, 14.0),
            (1.0, 1.0),
            (3.0, 3.000_001),
            (f32::MIN, f32::MAX),
            (-3.0e6, -2.9e6),
        ];
        for (low, top) in ranges {
            let classes = Classes::between(low, top);
            let step = |place: u32| low + (top / 512.0 - low / 512.0) * place as f32;
            for logit in (0..=512).map(step).map(|logit: f32| logit.min(top)) {
                let class = classes.of(logit);
                let band = classes.band(class);
                assert!(
                    band.low <= logit && logit < band.high,
                    "{low} {top} {logit}"
                );
            }
        }
    }

    #[test]
    fn higher_logits_have_lower_classes() {
        let classes = Classes::between(-8.0, 9.5);
        let logits = (0..4000).map(|place| 9.5 - place as f32 / 200.0);
        assert!(logits.map(|logit| classes.of(logit)).is_sorted());
        assert_eq!(
            (classes.of(9.5), classes.of(-8.0), classes.of(-1e30)),
            (0, CLASSES - 1, CLASSES - 1)
        );
    }

    #[test]
    fn the_crossing_is_that_of_the_sorted_list() {
        let logit = |id: u32| ((id.wrapping_mul(2_654_435_761) >> 20) as f32 / 64.0).floor();
        let logits: Vec<_> = (0..3000).map(logit).collect();
        let keys: Vec<_> = (0..3000).map(|id| Key::new(logit(id), id)).collect();
        let amounts: Vec<_> = keys.iter().map(|key| 1 + u64::from(key.id() % 5)).collect();
        let mut sorted: Vec<_> = keys.iter().zip(&amounts).collect();
        sorted.sort();
        let total: u64 = amounts.iter().sum();
        let classes = Classes::between(0.0, 64.0);
        for target in [1, 2, total / 3, total - 1, total] {
            let place = reaching(
                &sorted.iter().map(|pair| *pair.1).collect::<Vec<_>>(),
                target,
            );
            let expected = place.map(|place| *sorted[place].0);
            assert_eq!(
                classes.crossing(&logits, &amounts, target, &mut Vec::new()),
                expected
            );
        }
        assert_eq!(
            classes.crossing(&logits, &amounts, total + 1, &mut Vec::new()),
            None
        );
    }
}
