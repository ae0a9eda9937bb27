//! The reference against definitions in binary64: kept sets equal, probabilities close, rows on a border counted.

#[path = "oracle/mod.rs"]
mod oracle;

use nucleus_sampling::{
    CompiledParams, LogitsRow, Policy, ReferenceSampler, Row, Sampler, SamplerState,
    SamplingParams, Stage, Trace, VocabInfo, philox4x32_10,
};

/// Deterministic numbers for a test.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 += 1;
        let words = philox4x32_10([self.0, 0, 0, 77], [1, 2]);
        u64::from(words[0]) << 32 | u64::from(words[1])
    }

    /// Uniform in [0, 1).
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Approximately normal.
    fn bell(&mut self) -> f64 {
        (0..12).map(|_| self.fraction()).sum::<f64>() - 6.0
    }

    fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}

fn logits(numbers: &mut Numbers) -> Vec<f32> {
    let vocab = numbers.pick(&[1usize, 2, 5, 111, 500, 3000]);
    let width = numbers.pick(&[0.3, 1.0, 3.0, 8.0]);
    let shape = numbers.below(5);
    let mut row: Vec<f32> = (0..vocab)
        .map(|_| (numbers.bell() * width) as f32)
        .collect();
    match shape {
        0 => row.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 4.0),
        1 => row
            .iter_mut()
            .step_by(3)
            .for_each(|x| *x = f32::NEG_INFINITY),
        2 => row[0] += 12.0,
        _ => {}
    }
    row[vocab / 2] = row[vocab / 2].max(0.0);
    row
}

/// The numbers that stages take.
const STAGES: [(Stage, &[f64]); 10] = [
    (Stage::Temperature, &[0.3, 0.7, 1.3, 2.0]),
    (Stage::TopNSigma, &[0.5, 1.0, 2.5]),
    (Stage::TopK, &[1.0, 3.0, 20.0, 200.0]),
    (Stage::TopP, &[0.0, 0.1, 0.5, 0.9, 0.99]),
    (Stage::MinP, &[0.001, 0.05, 0.3, 1.0]),
    (Stage::Epsilon, &[1e-4, 3e-3, 0.1]),
    (Stage::Eta, &[1e-3, 0.02, 0.3]),
    (Stage::TopA, &[0.05, 0.5, 1.0]),
    (Stage::Xtc, &[0.02, 0.1, 0.3]),
    (Stage::Tfs, &[0.3, 0.9, 0.99]),
];

/// Some stages in a random order, each with a value; tfs only behind top_k.
fn chain(numbers: &mut Numbers) -> Vec<(Stage, f64)> {
    let mut left = STAGES.to_vec();
    let mut chain = Vec::new();
    for _ in 0..=numbers.below(6) {
        let (stage, values) = left.swap_remove(numbers.below(left.len()));
        let has_top_k = chain.iter().any(|(stage, _)| *stage == Stage::TopK);
        if stage != Stage::Tfs || has_top_k {
            chain.push((stage, numbers.pick(values)));
        }
    }
    chain
}

fn params(chain: &[(Stage, f64)], vocab: usize) -> CompiledParams {
    let mut params = SamplingParams {
        seed: Some(1),
        ..Default::default()
    };
    for (stage, value) in chain {
        let value = Some(*value);
        match stage {
            Stage::Temperature => params.temperature = value,
            Stage::TopNSigma => params.top_n_sigma = value,
            Stage::TopK => params.top_k = value.map(|k| k as i64),
            Stage::TopP => params.top_p = value,
            Stage::MinP => params.min_p = value,
            Stage::Epsilon => params.epsilon_cutoff = value,
            Stage::Eta => params.eta_cutoff = value,
            Stage::TopA => params.top_a = value,
            Stage::Tfs => params.tfs_z = value,
            _ => (params.xtc_probability, params.xtc_threshold) = (Some(1.0), value),
        }
    }
    params.samplers = Some(
        chain
            .iter()
            .map(|(stage, _)| stage.name().to_owned())
            .collect(),
    );
    params
        .validate(&VocabInfo::new(vocab as u32))
        .expect("a valid chain")
}

fn expected(chain: &[(Stage, f64)], logits: &[f32]) -> oracle::Row {
    let mut row = oracle::Row::new(logits);
    for (stage, value) in chain {
        // The crate holds parameters in f32.
        let value = f64::from(*value as f32);
        match stage {
            Stage::Temperature => row.temperature = value,
            Stage::TopNSigma => row.top_n_sigma(value),
            Stage::TopK => row.top_k(value as usize),
            Stage::TopP => row.top_p(value),
            Stage::MinP => row.min_p(value),
            Stage::Epsilon => row.epsilon(value),
            Stage::Eta => row.eta(value),
            Stage::TopA => row.top_a(value),
            Stage::Tfs => row.tail_free(value),
            _ => row.exclude_top_choices(value),
        }
    }
    row
}

fn trace(params: &CompiledParams, logits: &[f32]) -> Trace {
    let state = SamplerState::new(params, &[]);
    ReferenceSampler::new().trace(&Row::new(LogitsRow::F32(logits), params, &state))
}

fn ids<T: Copy>(tokens: &[(u32, T)]) -> Vec<u32> {
    tokens.iter().map(|(id, _)| *id).collect()
}

#[test]
fn kept_sets_equal_those_of_binary64_outside_the_border() {
    let mut numbers = Numbers(0);
    let (rows, mut borders) = (3000, 0);
    for _ in 0..rows {
        let logits = logits(&mut numbers);
        // top_k at or above the vocabulary is off, and tfs needs it.
        let mut chain = chain(&mut numbers);
        if let Some((_, k)) = chain.iter().find(|(stage, _)| *stage == Stage::TopK)
            && *k as usize >= logits.len()
        {
            chain.retain(|(stage, _)| !matches!(stage, Stage::Tfs));
        }
        let expected = expected(&chain, &logits);
        if expected.on_border {
            borders += 1;
            continue;
        }
        let got = trace(&params(&chain, logits.len()), &logits).distribution;
        assert_eq!(
            ids(&got),
            ids(&expected.tokens),
            "{chain:?} on {} tokens",
            logits.len()
        );
        for ((id, got), expected) in got.iter().zip(expected.probs()) {
            assert!(
                (got - expected).abs() < 2e-7,
                "{chain:?}: token {id}: {got} and {expected}"
            );
        }
    }
    assert!(
        borders * 10 < rows,
        "{borders} of {rows} rows are on a border"
    );
}

#[test]
fn typical_runs_are_nearest_to_the_entropy_and_no_longer_than_needed() {
    let mut numbers = Numbers(1 << 20);
    for _ in 0..1000 {
        let logits = logits(&mut numbers);
        let p = numbers.pick(&[0.1, 0.5, 0.9]);
        let params = SamplingParams {
            typical_p: Some(p),
            seed: Some(1),
            ..Default::default()
        };
        let params = params
            .validate(&VocabInfo::new(logits.len() as u32))
            .unwrap();
        let kept = ids(&trace(&params, &logits).distribution);
        let row = oracle::Row::new(&logits);
        let (entropy, probs) = (row.entropy(), row.probs());
        let tokens: Vec<(u32, f64, f64)> = (row.tokens.iter().zip(probs))
            .map(|((id, _), prob)| (*id, prob, (-prob.ln() - entropy).abs()))
            .collect();
        let (inside, outside): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|(id, ..)| kept.contains(id));
        let mass: f64 = inside.iter().map(|(_, prob, _)| prob).sum();
        let farthest = inside
            .iter()
            .copied()
            .max_by(|a, b| a.2.total_cmp(&b.2))
            .expect("one token");
        let nearest = outside
            .iter()
            .map(|(_, _, distance)| *distance)
            .fold(f64::MAX, f64::min);
        assert!(
            farthest.2 <= nearest + 5e-5,
            "{} kept, {nearest} dropped",
            farthest.2
        );
        assert!(mass >= p - 1e-6, "{mass} is below {p}");
        let spare = inside.iter().filter(|token| token.2 >= farthest.2 - 5e-5);
        let spare = spare.map(|(_, prob, _)| *prob).fold(0.0, f64::max);
        assert!(
            mass - spare < p + 1e-6,
            "{mass} without {spare} still reaches {p}"
        );
    }
}

#[test]
fn dynamic_temperatures_equal_those_of_binary64() {
    let mut numbers = Numbers(2 << 20);
    for _ in 0..500 {
        let logits = logits(&mut numbers);
        let range = numbers.pick(&[0.1, 0.5, 2.0]);
        let exponent = numbers.pick(&[0.5, 1.0, 3.0]);
        let params = SamplingParams {
            temperature: Some(0.9),
            dynatemp_range: Some(range),
            dynatemp_exponent: Some(exponent),
            seed: Some(1),
            ..Default::default()
        };
        let params = params
            .validate(&VocabInfo::new(logits.len() as u32))
            .unwrap();
        let stages = trace(&params, &logits).stages;
        let stage = stages
            .iter()
            .find(|stage| stage.name == "dynamic_temperature")
            .unwrap();
        let row = oracle::Row::new(&logits);
        let (low, high) = ((0.9 - range).max(0.0), 0.9 + range);
        let expected = match row.tokens.len() {
            1 => 0.9,
            n => {
                let share = (row.entropy() / (n as f64).ln()).clamp(0.0, 1.0);
                (low + (high - low) * share.powf(exponent)).max(0.01)
            }
        };
        let error = (f64::from(stage.temperature) - expected).abs();
        // With a root as exponent, a small share of a rounded entropy moves the most.
        assert!(
            error < if exponent < 1.0 { 1e-2 } else { 2e-4 },
            "{expected}: off by {error}"
        );
    }
}

#[test]
fn traces_tell_the_truth_about_each_stage() {
    let mut numbers = Numbers(3 << 20);
    for _ in 0..300 {
        let logits = logits(&mut numbers);
        let params = SamplingParams {
            temperature: Some(0.7),
            top_k: Some(30),
            top_p: Some(0.9),
            seed: Some(1),
            ..Default::default()
        };
        assert_eq!(
            params.check_policy(Policy::Execute, &VocabInfo::new(3000)),
            Ok(())
        );
        let params = params
            .validate(&VocabInfo::new(logits.len() as u32))
            .unwrap();
        let trace = trace(&params, &logits);
        let mut row = oracle::Row::new(&logits);
        for stage in &trace.stages {
            let before = row.clone();
            match stage.name {
                "temperature" => row.temperature = f64::from(0.7f32),
                "top_k" => row.top_k(30),
                "top_p" => row.tokens.truncate(stage.kept),
                _ => {}
            }
            let kept = row.tokens.len();
            assert_eq!(
                (stage.kept, stage.removed),
                (kept, before.tokens.len() - kept)
            );
            assert_eq!(
                stage.first_removed,
                before.tokens.get(kept).map(|(id, _)| *id)
            );
            let mass: f64 = before.probs()[..kept].iter().sum();
            assert!(
                (stage.mass - mass).abs() < 1e-6,
                "{}: {} and {mass}",
                stage.name,
                stage.mass
            );
            assert!((stage.entropy - row.entropy()).abs() < 1e-5);
            assert_eq!(f64::from(stage.max_logit), row.tokens[0].1);
        }
    }
}
