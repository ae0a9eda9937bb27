//! A histogram that any thread may add to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts values by size; bounds are upper ends, included.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above them all.
    counts: Vec<AtomicU64>,
    /// Of all values, in units of `1 / scale`.
    sum: AtomicU64,
    scale: f64,
}

/// What a histogram holds at one moment.
#[derive(Debug, PartialEq)]
pub(super) struct Snapshot {
    /// Each bound, and how many values are not above it.
    pub(super) below: Vec<(f64, u64)>,
    pub(super) sum: f64,
    pub(super) count: u64,
}

impl Histogram {
    /// Of times in seconds, summed in nanoseconds.
    pub(super) fn of_seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e9)
    }

    /// Of whole numbers.
    pub(super) fn of_counts(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    fn new(bounds: &'static [f64], scale: f64) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::default()).collect(),
            sum: AtomicU64::default(),
            scale,
        }
    }

    pub(super) fn observe_time(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.observe(time.as_secs_f64(), nanoseconds);
    }

    pub(super) fn observe_count(&self, count: u64) {
        self.observe(count as f64, count);
    }

    fn observe(&self, value: f64, units: u64) {
        let index = self.bounds.partition_point(|&bound| bound < value);
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(units, Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut count = 0;
        let mut below = Vec::with_capacity(self.bounds.len());
        for (index, cell) in self.counts.iter().enumerate() {
            count += cell.load(Ordering::Relaxed);
            if let Some(&bound) = self.bounds.get(index) {
                below.push((bound, count));
            }
        }
        Snapshot {
            below,
            sum: self.sum.load(Ordering::Relaxed) as f64 / self.scale,
            count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_their_bound() {
        let histogram = Histogram::of_seconds(&[0.5, 1.0]);
        for ms in [250, 500, 501, 1000, 3000] {
            histogram.observe_time(Duration::from_millis(ms));
        }
        let expected = Snapshot {
            below: vec![(0.5, 2), (1.0, 4)],
            sum: 5.251,
            count: 5,
        };
        assert_eq!(histogram.snapshot(), expected);
    }

    #[test]
    fn counts_are_whole() {
        let histogram = Histogram::of_counts(&[1.0]);
        histogram.observe_count(1);
        histogram.observe_count(2);
        let Snapshot { below, sum, count } = histogram.snapshot();
        assert_eq!((below, sum, count), (vec![(1.0, 1)], 3.0, 2));
    }
}
