//! What each stage did, told by the sampler that did it.

use super::choose::Chosen;
use super::key::Key;
use super::run::Run;
use super::simd::Simd;
use super::wide::{Mass, scale_of};
use crate::fixed;
use crate::row::{SampledToken, Status};
use crate::sampler::{StageTrace, Trace};

/// A set at one moment, in order.
struct Snapshot {
    keys: Vec<Key>,
    weights: Vec<u64>,
    /// `None` without candidates or with weights out of range.
    mass: Option<Mass>,
    temperature: f32,
}

impl Snapshot {
    fn new(simd: Simd, keys: Vec<Key>, temperature: f32) -> Self {
        let scale = scale_of(keys.first().map(|key| key.logit()), temperature).ok();
        let logits: Vec<_> = keys.iter().map(|key| key.logit()).collect();
        let mut weights = vec![0; keys.len()];
        if let Some(scale) = scale {
            simd.weigh_each(&logits, scale, &mut weights);
        }
        let mass = scale.map(|scale| Mass {
            scale,
            total: weights.iter().sum(),
        });
        Self {
            keys,
            weights,
            mass,
            temperature,
        }
    }

    /// Entropy in nats: sum of -p ln p, in order.
    fn entropy(&self) -> f64 {
        let Some(mass) = self.mass else {
            return f64::NAN;
        };
        let log2_total = fixed::log2_q48(mass.total);
        let weighty = self.weights.iter().filter(|weight| **weight > 0);
        let terms = weighty.map(|weight| {
            *weight as f64 * fixed::ln_of_log2_q48(log2_total - fixed::log2_q48(*weight))
        });
        terms.sum::<f64>() / mass.total as f64
    }

    /// What a stage that left `after` of this set did.
    fn to(&self, name: &'static str, after: &Self) -> StageTrace {
        let mut left: Vec<u32> = after.keys.iter().map(|key| key.id()).collect();
        left.sort_unstable();
        let is_left = |key: &Key| left.binary_search(&key.id()).is_ok();
        let kept: u64 = self
            .keys
            .iter()
            .zip(&self.weights)
            .filter(|(key, _)| is_left(key))
            .map(|(_, weight)| weight)
            .sum();
        StageTrace {
            name,
            kept: after.keys.len(),
            removed: self.keys.len().saturating_sub(after.keys.len()),
            first_removed: self
                .keys
                .iter()
                .find(|key| !is_left(key))
                .map(|key| key.id()),
            mass: self
                .mass
                .map_or(f64::NAN, |mass| kept as f64 / mass.total as f64),
            entropy: after.entropy(),
            max_logit: after
                .keys
                .first()
                .map_or(f32::NEG_INFINITY, |key| key.logit()),
            temperature: after.temperature,
        }
    }
}

impl Run<'_> {
    /// The set as it is.
    fn snapshot(&mut self) -> Snapshot {
        let mut keys = self.list.keys().to_vec();
        if !self.listed {
            self.wide.settle();
            self.wide.list(&mut keys);
        }
        Snapshot::new(self.wide.simd, keys, self.temperature)
    }

    /// Every finite logit as it came.
    fn raw_snapshot(&mut self) -> Snapshot {
        let mut keys = Vec::new();
        self.wide.list_raw(&mut keys);
        Snapshot::new(self.wide.simd, keys, 1.0)
    }

    /// Runs the program and tells what each stage did.
    pub(super) fn trace(&mut self) -> Trace {
        let mut stages = Vec::new();
        match self.observe(&mut stages) {
            Ok(chosen) => {
                let last = self.snapshot();
                Trace {
                    stages,
                    distribution: distribution(&last, chosen),
                    sampled: self.sampled(chosen),
                }
            }
            Err(status) => Trace {
                stages,
                distribution: Vec::new(),
                sampled: SampledToken::failed(status),
            },
        }
    }

    fn observe(&mut self, stages: &mut Vec<StageTrace>) -> Result<Chosen, Status> {
        let mut before = self.raw_snapshot();
        self.begin()?;
        let (choice, ops) = self.program();
        let mut note = |name, after: Snapshot| {
            stages.push(before.to(name, &after));
            before = after;
        };
        note("bias", self.snapshot());
        for op in ops {
            self.apply(*op)?;
            note(op.code.name(), self.snapshot());
        }
        let chosen = self.choose(choice)?;
        note(choice.code.name(), self.snapshot());
        Ok(chosen)
    }
}

/// The probabilities of what could have been drawn, in order.
fn distribution(last: &Snapshot, chosen: Chosen) -> Vec<(u32, f64)> {
    if let [only] = last.keys[..] {
        return vec![(only.id(), 1.0)];
    }
    let pairs = last.keys.iter().zip(&last.weights);
    pairs
        .map(|(key, weight)| (key.id(), *weight as f64 / chosen.total as f64))
        .collect()
}
