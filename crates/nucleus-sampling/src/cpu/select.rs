//! Truncations of a set that is spread over a row.

use super::kernels::{Band, Scale};
use super::key::{self, Key};
use super::masks::LISTED;
use super::prefix::{Goal, Measure};
use super::view::Cut;
use super::wide::{Floor, Form, Mass, Wide};
use crate::fixed::{SCALED_LIMIT, WEIGHT_BITS};

impl Wide<'_> {
    /// Keeps the first `k` candidates; with `ties` all that equal the last of them too.
    pub(super) fn keep_first(&mut self, k: u64, ties: bool, keys: &mut Vec<Key>) -> Form {
        let k = usize::try_from(k).unwrap_or(usize::MAX);
        if self.shortcuts && k <= LISTED && self.first_by_maxima(k, ties, keys) {
            return Form::Listed;
        }
        let count = self.count();
        if k >= count {
            return if count <= LISTED {
                self.keep(Cut::at(f32::MIN), keys)
            } else {
                Form::Wide
            };
        }
        let goal = Goal {
            measure: Measure::Count,
            target: k as u64,
            total: count as u64,
        };
        if !ties && let Some(form) = self.keep_beginning(goal, keys) {
            return form;
        }
        if !ties {
            return self.keep_searched(goal, keys);
        }
        let cut = self.search(goal, keys);
        self.keep(Cut::at(cut.logit), keys)
    }

    /// Lists the first `k` candidates, if the k-th largest maximum of a block bounds them from below and they are few.
    fn first_by_maxima(&mut self, k: usize, ties: bool, keys: &mut Vec<Key>) -> bool {
        let Some(bound) = self.kth_maximum(k) else {
            return false;
        };
        keys.clear();
        if !self.gather(Band::from(bound), usize::MAX, keys) {
            return false;
        }
        let last = *keys.select_nth_unstable(k - 1).1;
        if ties {
            keys.retain(|key| key.high() <= last.high());
        } else {
            keys.truncate(k);
        }
        keys.sort_unstable();
        keys.len() <= LISTED
    }

    /// The k-th largest maximum of a block, which at least k candidates reach. `None` if there are fewer blocks with candidates.
    pub(super) fn kth_maximum(&mut self, k: usize) -> Option<f32> {
        let mut codes = std::mem::take(&mut self.buffers().codes);
        codes.clear();
        codes.extend(self.maxima().iter().map(|max| key::descending(*max)));
        let place = k.checked_sub(1).filter(|place| *place < codes.len());
        let bound = place.map(|place| key::ascending(*codes.select_nth_unstable(place).1));
        self.buffers().codes = codes;
        // With a cut, a maximum at the cut may belong to a token beyond it.
        let lowest = self.cut().map_or(f32::NEG_INFINITY, |cut| cut.logit);
        bound.filter(|bound| *bound > lowest)
    }

    /// Lists every candidate, in order.
    pub(super) fn list(&mut self, keys: &mut Vec<Key>) {
        keys.clear();
        self.gather(Band::from(f32::MIN), usize::MAX, keys);
        key::sort(keys, &mut self.buffers().spare);
    }

    /// Keeps the candidates before a cut, but at least as many as the floor says.
    pub(super) fn keep_at_least(&mut self, cut: Cut, floor: Floor, keys: &mut Vec<Key>) -> Form {
        let before = self.cut();
        let form = self.keep(cut, keys);
        let kept = match form {
            Form::Listed => keys.len(),
            Form::Wide => self.count(),
        };
        if kept as u64 >= floor.min_keep {
            return form;
        }
        self.restore(before);
        self.keep_first(floor.min_keep, floor.ties, keys)
    }

    /// The cut behind the candidates for whose logits `passes` holds, up to the first for which it does not. It is known to hold from
    /// `band.high` on and not to hold below `band.low`.
    pub(super) fn cut_where(
        &self,
        band: Band,
        passes: impl Fn(f32) -> bool,
        keys: &mut Vec<Key>,
    ) -> Cut {
        keys.clear();
        self.gather(band, usize::MAX, keys);
        let failing = keys
            .iter()
            .map(|key| key.logit())
            .filter(|logit| !passes(*logit));
        let largest = failing.fold(f32::NEG_INFINITY, f32::max);
        Cut::at(if largest > f32::NEG_INFINITY {
            largest.next_up()
        } else {
            band.low
        })
    }

    /// The cut behind the candidates whose probability reaches a threshold in Q32.
    pub(super) fn probable(&self, mass: Mass, threshold: u64, keys: &mut Vec<Key>) -> Cut {
        let least = (u128::from(threshold) * u128::from(mass.total)).div_ceil(1 << 32) as u64;
        if least == 0 {
            return Cut::at(f32::MIN);
        }
        // q is the floor of the weight, whose relative error is far below 2^-18.
        let log2 = |q: u64| (q as f64).log2() - f64::from(WEIGHT_BITS);
        let near = Nearby {
            low: log2(least),
            high: log2(least + 1),
            doubt: 1.0 / 262_144.0,
        };
        let band = near.band(mass.scale);
        self.cut_where(band, |logit| mass.scale.weight(logit) >= least, keys)
    }

    /// Lists the candidates before a cut, in order.
    pub(super) fn list_above(&mut self, cut: Cut, keys: &mut Vec<Key>) {
        keys.clear();
        self.gather(Band::from(cut.logit), usize::MAX, keys);
        key::sort(keys, &mut self.buffers().spare);
    }

    /// The cut of mirostat 2: behind the candidates whose surprise, `offset - y`, is at most `mu`; all in Q16.
    pub(super) fn unsurprising(&self, mass: Mass, least: i64, keys: &mut Vec<Key>) -> Cut {
        let log2 = least as f64 / 65536.0;
        // y is rounded twice, by less than 1 in all.
        let near = Nearby {
            low: log2,
            high: log2,
            doubt: 1.0 / 32768.0,
        };
        self.cut_where(
            near.band(mass.scale),
            |logit| mass.scale.log2_q16(logit) >= least,
            keys,
        )
    }
}

/// Base-2 logarithms of weights, in units of 2^44, between which a threshold lies.
struct Nearby {
    low: f64,
    high: f64,
    doubt: f64,
}

impl Nearby {
    /// The logits between these, rounded outwards.
    fn band(&self, scale: Scale) -> Band {
        let logit = |log2: f64| ((f64::from(scale.max) + log2) / f64::from(scale.s)) as f32;
        // Below this logit there is no weight, and no logarithm.
        let weighty = (-SCALED_LIMIT / scale.s).next_up().next_up();
        let low = logit(self.low - self.doubt).next_down().next_down();
        let high = logit(self.high + self.doubt).next_up().next_up();
        Band {
            low: low.max(f32::MIN),
            high: high.max(weighty),
        }
    }
}
