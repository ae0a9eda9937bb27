//! How samplers draw. Every token's interval of uniform numbers is exactly what its weight says: that is the proof. Draws over positions and
//! seeds follow the weights: that guards the whole path, randomness included.

#[path = "draws/mod.rs"]
mod draws;
#[path = "peers/rows.rs"]
#[expect(
    dead_code,
    reason = "histories and hashes are for comparisons with peers"
)]
mod rows;

use std::time::Instant;

use draws::{Frequencies, Known};
use nucleus_sampling::{
    CompiledParams, CpuOptions, CpuSampler, LogitsRow, ReferenceSampler, Row, Sampler,
    SamplerState, SamplingParams, VocabInfo,
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

type Maker = fn() -> Box<dyn Sampler>;

const REFERENCE: (&str, Maker) = ("reference", || Box::new(ReferenceSampler::new()));
const CPU: (&str, Maker) = ("cpu", || Box::new(CpuSampler::new()));

/// Every sampler, and every way of the fast one.
const SAMPLERS: [(&str, Maker); 4] = [
    REFERENCE,
    CPU,
    ("cpu, searching", || way(true, false)),
    ("cpu, portable", || way(false, true)),
];

fn way(simd: bool, shortcuts: bool) -> Box<dyn Sampler> {
    Box::new(CpuSampler::with_options(CpuOptions { simd, shortcuts }))
}

fn compile(params: SamplingParams, vocab: usize) -> CompiledParams {
    let seed = Some(params.seed.unwrap_or(12_345));
    let params = SamplingParams { seed, ..params };
    params.validate(&VocabInfo::new(vocab as u32)).unwrap()
}

/// Checks the intervals of some kept tokens on every sampler.
fn check_intervals(
    logits: &[f32],
    params: SamplingParams,
    kept: Option<&[u32]>,
    places: impl Iterator<Item = usize> + Clone,
) {
    check_intervals_of(&SAMPLERS, logits, params, kept, places);
}

fn check_intervals_of(
    samplers: &[(&str, Maker)],
    logits: &[f32],
    params: SamplingParams,
    kept: Option<&[u32]>,
    places: impl Iterator<Item = usize> + Clone,
) {
    let temperature = params.temperature.unwrap_or(1.0);
    let params = compile(params, logits.len());
    let known = Known {
        logits,
        params: &params,
        kept: kept.map_or_else(|| (0..logits.len() as u32).collect(), <[u32]>::to_vec),
        temperature,
    };
    for (name, make) in samplers {
        let result = known.check_intervals(&mut *make(), places.clone());
        assert_eq!(result, Ok(()), "{name}");
    }
}

#[test]
fn weights_are_those_of_the_documented_row() {
    let params = compile(SamplingParams::default(), 6);
    let known = Known {
        logits: &[2.0, 1.0, 0.5, 2.4, -1.25, 2.0],
        params: &params,
        kept: vec![0, 3, 5],
        temperature: 0.8,
    };
    let (q_0, q_3) = (13_394_793_988_096, 22_084_283_531_264);
    assert_eq!(known.weights(), [q_0, q_3, q_0]);
}

#[test]
fn every_interval_of_an_unfiltered_row_is_that_of_its_weight() {
    let logits = [0.3, -2.0, 7.5, 7.25, 1.0, -30.0, 7.5];
    for temperature in [0.3, 1.0, 1.7] {
        let params = SamplingParams {
            temperature: Some(temperature),
            ..Default::default()
        };
        check_intervals(&logits, params, None, 0..7);
    }
}

#[test]
fn every_interval_of_a_filtered_row_is_that_of_its_weight() {
    // At T = 0.7 the five best weigh 1, 1, 0.70, 0.12 and 0.03 of 2.85: the fourth crosses 0.95.
    let logits = [0.3, -2.0, 7.5, 7.25, 1.0, 5.0, 7.5, 6.0];
    let params = SamplingParams {
        temperature: Some(0.7),
        top_k: Some(5),
        top_p: Some(0.95),
        min_p: Some(0.01),
        ..Default::default()
    };
    check_intervals(&logits, params, Some(&[2, 3, 6, 7]), 0..4);
}

#[test]
fn intervals_hold_where_weights_are_as_small_as_they_get() {
    let logits: Vec<f32> = (0..40).map(|i| -(i as f32)).collect();
    check_intervals(&logits, SamplingParams::default(), None, 0..40);
}

#[test]
fn intervals_hold_on_a_row_of_a_thousand_tokens() {
    let logits = rows::logits("bell", 3, 1000);
    check_intervals(&logits, SamplingParams::default(), None, 0..1000);
}

fn check_full_size(samplers: &[(&str, Maker)], step: usize) {
    for shape in ["bell", "peaked", "heavy", "steps"] {
        let logits = rows::logits(shape, 11, 151_936);
        // Where a block begins, a target can equal the sum of all blocks before it.
        let blocks = (0..151_936).step_by(256 * 16);
        let places = (0..151_936).step_by(step).chain(blocks);
        check_intervals_of(samplers, &logits, SamplingParams::default(), None, places);
    }
}

#[test]
fn intervals_hold_on_rows_of_full_size() {
    check_full_size(&[CPU], 1501);
}

#[test]
#[ignore = "minutes"]
fn intervals_hold_on_rows_of_full_size_whatever_the_way() {
    check_full_size(&SAMPLERS, 1501);
    check_full_size(&[CPU], 23);
}

/// Weights 128 : 64 : … : 1 at T = log2 e.
const LOGITS: [f32; 8] = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0];

fn powers_of_two(seed: u64) -> CompiledParams {
    let temperature = Some(std::f64::consts::LOG2_E);
    let params = SamplingParams {
        temperature,
        seed: Some(seed),
        ..Default::default()
    };
    compile(params, LOGITS.len())
}

fn draw(sampler: &mut dyn Sampler, logits: &[f32], params: &CompiledParams, position: u32) -> u32 {
    let state = SamplerState::new(params, &[]).at_position(position);
    let row = Row::new(LogitsRow::F32(logits), params, &state);
    sampler.sample(&row).token_id
}

/// The frequencies of tokens, and of pairs of neighbouring ones, of draws among eight tokens.
fn check_draws(tokens: impl Iterator<Item = u32>) {
    let (mut counts, mut pairs, mut previous) = (vec![0; 8], vec![0; 64], None);
    for token in tokens {
        counts[token as usize] += 1;
        if let Some(previous) = previous.replace(token) {
            pairs[(8 * previous + token) as usize] += 1;
        }
    }
    let probs: Vec<f64> = LOGITS.iter().map(|x| f64::from(x.exp2()) / 255.0).collect();
    let of_pairs = probs.iter().flat_map(|a| probs.iter().map(move |b| a * b));
    let of_pairs = Frequencies {
        counts: pairs,
        probs: of_pairs.collect(),
    };
    assert_eq!(of_pairs.check(), Ok(()), "pairs {:?}", of_pairs.counts);
    let single = Frequencies { counts, probs };
    assert_eq!(single.check(), Ok(()), "{:?}", single.counts);
}

#[test]
fn g_is_zero_where_counts_are_as_expected_and_its_limits_are_those_of_the_tables() {
    let fair = Frequencies {
        counts: vec![10, 30],
        probs: vec![0.25, 0.75],
    };
    assert_eq!(fair.g(), 0.0);
    assert!(fair.check().is_err(), "nearer than chance explains");
    let eight = Frequencies {
        counts: vec![1; 8],
        probs: vec![0.125; 8],
    };
    // Chi-square leaves (0.0785, 40.52) with 7 degrees of freedom and (23.16, 131.37) with 63.
    assert!((eight.limits().1 - 40.52).abs() < 1.5);
    let pairs = Frequencies {
        counts: vec![1; 64],
        probs: vec![1.0 / 64.0; 64],
    };
    let (low, high) = pairs.limits();
    assert!((low - 23.16).abs() < 0.5 && (high - 131.37).abs() < 0.5);
    // 5 % of chi-square lie above 14.067 with 7 degrees of freedom, above 82.529 with 63.
    assert!((draws::upper_tail(14.067, 7) - 0.05).abs() < 1e-4);
    assert!((draws::upper_tail(82.529, 63) - 0.05).abs() < 1e-4);
    assert!((draws::upper_tail(0.0, 7) - 1.0).abs() < 1e-9);
}

#[test]
fn draws_over_positions_follow_the_weights() {
    let params = powers_of_two(12_345);
    for (_, make) in SAMPLERS {
        let mut sampler = make();
        check_draws((0..200_000).map(|position| draw(&mut *sampler, &LOGITS, &params, position)));
    }
}

#[test]
fn draws_over_adjacent_seeds_follow_the_weights() {
    for (_, make) in SAMPLERS {
        let mut sampler = make();
        check_draws((0..100_000).map(|seed| draw(&mut *sampler, &LOGITS, &powers_of_two(seed), 0)));
    }
}

/// A row with a request, and how many draws of it are counted.
struct Long {
    name: &'static str,
    logits: Vec<f32>,
    params: SamplingParams,
    draws: u32,
    /// Ids are counted in that many equal ranges.
    bins: usize,
}

impl Long {
    fn run(&self, make: Maker) -> Frequencies {
        const CHUNK: u32 = 100_000;
        let params = compile(self.params.clone(), self.logits.len());
        let state = SamplerState::new(&params, &[]);
        let row = Row::new(LogitsRow::F32(&self.logits), &params, &state);
        let mut probs = vec![0.0; self.bins];
        for (id, prob) in ReferenceSampler::new().trace(&row).distribution {
            probs[self.bin(id)] += prob;
        }
        let count = |chunk: u32| {
            let (mut sampler, mut counts) = (make(), vec![0; self.bins]);
            for position in chunk * CHUNK..(chunk + 1) * CHUNK {
                counts[self.bin(draw(&mut *sampler, &self.logits, &params, position))] += 1;
            }
            counts
        };
        let add = |a: Vec<u64>, b: Vec<u64>| a.iter().zip(b).map(|(a, b)| a + b).collect();
        let chunks = (0..self.draws / CHUNK).into_par_iter();
        let counts = chunks.map(count).reduce(|| vec![0; self.bins], add);
        let (counts, probs) = counts
            .into_iter()
            .zip(probs)
            .filter(|(_, p)| *p > 0.0)
            .unzip();
        Frequencies { counts, probs }
    }

    fn bin(&self, id: u32) -> usize {
        id as usize * self.bins / self.logits.len()
    }
}

impl Long {
    #[allow(
        clippy::print_stdout,
        reason = "p-values and times are part of what a long run shows"
    )]
    fn check(&self, (sampler, make): (&str, Maker)) {
        let start = Instant::now();
        let frequencies = self.run(make);
        let seconds = start.elapsed().as_secs_f64();
        let (g, p) = (frequencies.g(), frequencies.p_value());
        let (name, draws, cells) = (self.name, self.draws, frequencies.counts.len());
        println!(
            "{sampler}, {name}: {draws} draws, {cells} cells, G = {g:.2}, p = {p:.3}, {seconds:.0} s"
        );
        assert_eq!(frequencies.check(), Ok(()), "{sampler}, {name}");
    }
}

fn long(
    name: &'static str,
    logits: Vec<f32>,
    params: SamplingParams,
    draws: u32,
    bins: usize,
) -> Long {
    Long {
        name,
        logits,
        params,
        draws,
        bins,
    }
}

/// Eight tokens, or 64 of which top_k, top_p and min_p leave some.
fn short_rows() -> [Long; 2] {
    let filtered = SamplingParams {
        temperature: Some(0.8),
        top_k: Some(40),
        top_p: Some(0.95),
        min_p: Some(0.01),
        ..Default::default()
    };
    let powers = powers_of_two(1).effective().clone();
    [
        long("8 tokens", LOGITS.to_vec(), powers, 100_000_000, 8),
        long(
            "64 tokens, filtered",
            rows::logits("bell", 9, 64),
            filtered,
            10_000_000,
            64,
        ),
    ]
}

/// Rows whose ids are counted in ranges.
fn long_rows() -> [Long; 3] {
    let nucleus = SamplingParams {
        top_p: Some(0.9),
        ..Default::default()
    };
    let plain = SamplingParams::default;
    let row = |vocab| rows::logits("bell", 9, vocab);
    [
        long("4,000 tokens", row(4000), plain(), 1_000_000, 500),
        long("151,936 tokens", row(151_936), plain(), 200_000, 500),
        long("151,936 tokens, top_p", row(151_936), nucleus, 200_000, 500),
    ]
}

#[test]
#[ignore = "minutes"]
fn a_hundred_million_draws_follow_the_weights() {
    short_rows().iter().for_each(|case| case.check(CPU));
    long_rows().iter().for_each(|case| case.check(CPU));
}

#[test]
#[ignore = "minutes"]
fn a_hundred_million_draws_of_the_reference_follow_the_weights() {
    short_rows().iter().for_each(|case| case.check(REFERENCE));
}
