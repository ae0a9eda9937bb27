//! Draws over positions and seeds follow the weights: a guard over the whole path, randomness included. The exact tests prove the rest.

use nucleus_sampling::{
    CompiledParams, LogitsRow, ReferenceSampler, Row, Sampler, SamplerState, SamplingParams,
    VocabInfo,
};

/// Weights 128 : 64 : … : 1 at s = 1.
const LOGITS: [f32; 8] = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0];

fn params(seed: u64) -> CompiledParams {
    let temperature = Some(std::f64::consts::LOG2_E);
    let params = SamplingParams {
        temperature,
        seed: Some(seed),
        ..Default::default()
    };
    params.validate(&VocabInfo::new(8)).unwrap()
}

fn draw(params: &CompiledParams, position: u32) -> usize {
    let state = SamplerState::new(params, &[]).at_position(position);
    let row = Row::new(LogitsRow::F32(&LOGITS), params, &state);
    ReferenceSampler.sample(&row).token_id as usize
}

/// G = 2 Σ n ln(n / expected).
fn g_statistic(counts: &[u64], probs: &[f64]) -> f64 {
    let total = counts.iter().sum::<u64>() as f64;
    let terms = counts.iter().zip(probs).filter(|(count, _)| **count > 0);
    2.0 * terms
        .map(|(n, p)| *n as f64 * (*n as f64 / (total * p)).ln())
        .sum::<f64>()
}

fn probs() -> Vec<f64> {
    LOGITS.iter().map(|x| f64::from(x.exp2()) / 255.0).collect()
}

/// Chi-square with 7 degrees of freedom exceeds this once in a million.
const LIMIT: f64 = 40.5;

/// The same with 63.
const LIMIT_OF_PAIRS: f64 = 128.0;

fn check(draws: impl Iterator<Item = usize>) {
    let (mut counts, mut pairs, mut previous) = ([0u64; 8], [0u64; 64], None);
    for token in draws {
        counts[token] += 1;
        if let Some(previous) = previous.replace(token) {
            pairs[8 * previous + token] += 1;
        }
    }
    let g = g_statistic(&counts, &probs());
    assert!(g < LIMIT, "G = {g}: {counts:?}");
    let of_pairs: Vec<f64> = probs()
        .iter()
        .flat_map(|a| probs().into_iter().map(move |b| a * b))
        .collect();
    let g = g_statistic(&pairs, &of_pairs);
    assert!(g < LIMIT_OF_PAIRS, "G = {g} over neighbouring pairs");
}

#[test]
fn draws_over_positions_follow_the_weights() {
    let params = params(12_345);
    check((0..200_000).map(|position| draw(&params, position)));
}

#[test]
fn draws_over_adjacent_seeds_follow_the_weights() {
    check((0..100_000).map(|seed| draw(&params(seed), 0)));
}

#[test]
#[ignore = "minutes"]
fn a_hundred_million_draws_follow_the_weights() {
    let params = params(1);
    check((0..100_000_000).map(|position| draw(&params, position)));
}
