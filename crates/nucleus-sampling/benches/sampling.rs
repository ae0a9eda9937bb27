//! Times of the fast sampler, one row at a time on one thread, and of draws by scan and by binary search (R3.1).
//!
//! `cargo bench -p nucleus-sampling -- [--json FILE] [--rounds N] [FILTER]` prints a table; the file gets the same figures.
//! Times are of `CpuSampler::sample` alone: the logits are there, the history is in the state. A row is read again and again, so it comes
//! from the cache (warm), or one of many rows is read each time, so that it comes from memory (cold).
#![allow(clippy::print_stdout)]

use std::fs;
use std::hint::black_box;
use std::time::Instant;

use half::{bf16, f16};
use nucleus_sampling::{
    Cdf, CompiledParams, CpuOptions, CpuSampler, LogitsRow, Logprobs, LogprobsMode, Row, Sampler,
    SamplerState, SamplingParams, VocabInfo,
};
use serde_json::{Value, json};

const VOCAB: usize = 151_936;

fn main() {
    let arguments = Arguments::parse();
    let mut results = Vec::new();
    println!("{}, {} rounds\n", machine(), arguments.rounds);
    println!(
        "{:<58} {:>9} {:>9} {:>9}",
        "case", "median", "min", "p90 µs"
    );
    for case in cases()
        .into_iter()
        .filter(|case| arguments.wants(&case.name))
    {
        results.push(report(&case.name, case.run(arguments.rounds)));
    }
    for (name, times) in draws(&arguments) {
        results.push(report(&name, times));
    }
    if let Some(path) = &arguments.json {
        let document = json!({ "machine": machine(), "rounds": arguments.rounds, "vocab": VOCAB, "cases": results });
        fs::write(path, format!("{document:#}\n")).expect("the results file can be written");
    }
}

struct Arguments {
    json: Option<String>,
    rounds: usize,
    filter: Option<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self {
            json: None,
            rounds: 300,
            filter: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--json" => parsed.json = arguments.next(),
                "--rounds" => {
                    let rounds = arguments.next().and_then(|text| text.parse().ok());
                    parsed.rounds = rounds.expect("--rounds takes a number");
                }
                _ => parsed.filter = Some(argument),
            }
        }
        parsed
    }

    fn wants(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter.as_str()))
    }
}

/// The processor's name.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    let name = line
        .and_then(|line| line.split_once(": "))
        .map_or(std::env::consts::ARCH, |(_, name)| name);
    name.to_owned()
}

/// Sorted times in µs.
struct Times(Vec<f64>);

impl Times {
    fn of(rounds: usize, mut work: impl FnMut(usize)) -> Self {
        (0..rounds / 10 + 3).for_each(&mut work);
        let mut times: Vec<f64> = (0..rounds)
            .map(|round| {
                let start = Instant::now();
                work(round);
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    fn quantile(&self, share: f64) -> f64 {
        let place = (share * self.0.len() as f64) as usize;
        self.0
            .get(place)
            .or(self.0.last())
            .copied()
            .unwrap_or(f64::NAN)
    }
}

fn report(name: &str, times: Times) -> Value {
    let [median, min, p90] = [0.5, 0.0, 0.9].map(|share| times.quantile(share));
    println!("{name:<58} {median:>9.1} {min:>9.1} {p90:>9.1}");
    json!({ "case": name, "median_us": median, "min_us": min, "p90_us": p90 })
}

/// A generator of numbers in [0, 1) (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ z >> 31) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.next()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next()).cos()
    }
}

/// N(0, 2^2) with 20 tokens raised by 6 to 14: much like a language model's.
fn peaked(seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let mut row: Vec<f32> = (0..VOCAB)
        .map(|_| (2.0 * numbers.normal()) as f32)
        .collect();
    for _ in 0..20 {
        row[(numbers.next() * VOCAB as f64) as usize] += (6.0 + 8.0 * numbers.next()) as f32;
    }
    row
}

/// N(0, sigma^2).
fn bell(sigma: f64) -> Vec<f32> {
    let mut numbers = Numbers(7);
    (0..VOCAB)
        .map(|_| (sigma * numbers.normal()) as f32)
        .collect()
}

enum Logits {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Logits {
    fn row(&self) -> LogitsRow<'_> {
        match self {
            Self::F32(row) => LogitsRow::F32(row),
            Self::F16(row) => LogitsRow::F16(row),
            Self::Bf16(row) => LogitsRow::Bf16(row),
        }
    }
}

struct Case {
    name: String,
    rows: Vec<Logits>,
    params: SamplingParams,
    /// Tokens of prompt and output.
    history: usize,
    mode: LogprobsMode,
    options: CpuOptions,
}

impl Case {
    fn new(name: &str, logits: Vec<f32>, params: SamplingParams) -> Self {
        Self {
            name: name.to_owned(),
            rows: vec![Logits::F32(logits)],
            params: SamplingParams {
                seed: Some(1),
                ..params
            },
            history: 0,
            mode: LogprobsMode::Processed,
            options: CpuOptions::default(),
        }
    }

    fn named(self, suffix: &str) -> Self {
        Self {
            name: format!("{}, {suffix}", self.name),
            ..self
        }
    }

    fn raw(self) -> Self {
        Self {
            mode: LogprobsMode::Raw,
            ..self
        }
        .named("raw logprob")
    }

    fn with_history(self, history: usize) -> Self {
        Self { history, ..self }
    }

    fn cold(self) -> Self {
        let rows = (0..96).map(|seed| Logits::F32(peaked(seed))).collect();
        Self { rows, ..self }.named("cold")
    }

    fn in_f16(self) -> Self {
        self.converted("f16", |x| {
            Logits::F16(x.iter().map(|x| f16::from_f32(*x)).collect())
        })
    }

    fn in_bf16(self) -> Self {
        self.converted("bf16", |x| {
            Logits::Bf16(x.iter().map(|x| bf16::from_f32(*x)).collect())
        })
    }

    fn converted(mut self, suffix: &str, convert: impl Fn(&[f32]) -> Logits) -> Self {
        for row in &mut self.rows {
            if let Logits::F32(values) = row {
                *row = convert(values);
            }
        }
        self.named(suffix)
    }

    fn searched(mut self) -> Self {
        self.options.shortcuts = false;
        self.named("without shortcuts")
    }

    fn portable(mut self) -> Self {
        self.options.simd = false;
        self.named("portable code")
    }

    fn run(&self, rounds: usize) -> Times {
        let params: CompiledParams = self
            .params
            .validate(&VocabInfo::new(VOCAB as u32))
            .expect("valid parameters");
        let state = state(&params, self.history);
        let mut sampler = CpuSampler::with_options(self.options);
        Times::of(rounds, |round| {
            let row = Row {
                // Another number each time, so that no draw is learnt by the branch predictor.
                uniform: Some((round as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                logprobs: Logprobs {
                    top: 0,
                    mode: self.mode,
                },
                ..Row::new(self.rows[round % self.rows.len()].row(), &params, &state)
            };
            black_box(sampler.sample(black_box(&row)));
        })
    }
}

/// A history of that many tokens, half of it output, in which tokens and passages come again.
fn state(params: &CompiledParams, len: usize) -> SamplerState {
    let mut numbers = Numbers(5);
    let mut token = || (numbers.next().powi(3) * VOCAB as f64) as u32;
    let mut tokens: Vec<u32> = (0..len).map(|_| token()).collect();
    if let Some(start) = len.checked_sub(8) {
        tokens.copy_within(len / 3..len / 3 + 8, start);
    }
    let (prompt, output) = tokens.split_at(len / 2);
    let mut state = SamplerState::new(params, prompt);
    output.iter().for_each(|id| state.commit_forced(*id));
    state
}

fn chain() -> SamplingParams {
    SamplingParams {
        top_k: Some(40),
        top_p: Some(0.95),
        min_p: Some(0.05),
        temperature: Some(0.8),
        ..Default::default()
    }
}

fn all_on() -> SamplingParams {
    SamplingParams {
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.1),
        presence_penalty: Some(0.1),
        repeat_last_n: Some(1000),
        temperature: Some(0.7),
        top_k: Some(50),
        top_p: Some(0.9),
        min_p: Some(0.05),
        logit_bias: Some((0..16).map(|i| (i * 9001, 1.5)).collect()),
        dry_multiplier: Some(0.8),
        dry_penalty_last_n: Some(1024),
        dry_sequence_breakers: Some((0..4).map(|i| vec![i * 31]).collect()),
        ..Default::default()
    }
}

fn cases() -> Vec<Case> {
    let default = SamplingParams::default;
    let temperature = |t| SamplingParams {
        temperature: Some(t),
        ..default()
    };
    let top_p = |p, t| SamplingParams {
        top_p: Some(p),
        ..temperature(t)
    };
    let usual = || Case::new("top_k 40, top_p .95, min_p .05, T .8", peaked(1), chain());
    let nucleus = || Case::new("top_p .9", peaked(1), top_p(0.9, 1.0));
    let plain = || Case::new("T .8", peaked(1), temperature(0.8));
    let everything = || Case::new("all on", peaked(1), all_on()).with_history(1024);
    let flat = || Case::new("top_p .999, T 2, N(0, 1)", bell(1.0), top_p(0.999, 2.0));
    vec![
        Case::new("greedy", peaked(1), temperature(0.0)),
        usual(),
        usual().raw(),
        usual().cold(),
        usual().in_f16(),
        usual().in_bf16(),
        usual().portable(),
        usual().searched(),
        nucleus(),
        nucleus().raw(),
        nucleus().in_f16(),
        nucleus().in_bf16(),
        nucleus().searched(),
        Case::new("top_p .9, N(0, 2.5)", bell(2.5), top_p(0.9, 1.0)),
        Case::new("top_p .95, T .7, N(0, 2)", bell(2.0), top_p(0.95, 0.7)),
        plain(),
        plain().raw(),
        plain().cold(),
        plain().in_f16(),
        plain().in_bf16(),
        plain().portable(),
        everything(),
        everything().raw(),
        everything().in_f16(),
        flat(),
        flat().in_f16(),
        flat().searched(),
        Case::new("top_p .999, T 1, N(0, 1)", bell(1.0), top_p(0.999, 1.0)),
        Case::new("top_p .5, T 2, N(0, 1)", bell(1.0), top_p(0.5, 2.0)),
        Case::new(
            "min_p .05",
            peaked(1),
            SamplingParams {
                min_p: Some(0.05),
                ..default()
            },
        ),
        Case::new(
            "top_n_sigma 1",
            peaked(1),
            SamplingParams {
                top_n_sigma: Some(1.0),
                ..default()
            },
        ),
        Case::new(
            "top_k 5000",
            peaked(1),
            SamplingParams {
                top_k: Some(5000),
                ..default()
            },
        ),
        Case::new(
            "typical_p .9",
            peaked(1),
            SamplingParams {
                typical_p: Some(0.9),
                ..default()
            },
        ),
        Case::new(
            "typical_p .9, N(0, 2.5)",
            bell(2.5),
            SamplingParams {
                typical_p: Some(0.9),
                ..default()
            },
        ),
        Case::new(
            "eta_cutoff .001",
            peaked(1),
            SamplingParams {
                eta_cutoff: Some(0.001),
                ..default()
            },
        ),
        Case::new(
            "xtc",
            peaked(1),
            SamplingParams {
                xtc_probability: Some(1.0),
                xtc_threshold: Some(0.05),
                ..default()
            },
        ),
        Case::new(
            "dynamic temperature",
            peaked(1),
            SamplingParams {
                dynatemp_range: Some(0.5),
                ..default()
            },
        ),
        Case::new(
            "smoothing",
            peaked(1),
            SamplingParams {
                smoothing_factor: Some(0.3),
                ..default()
            },
        ),
        Case::new(
            "mirostat 2",
            peaked(1),
            SamplingParams {
                mirostat: Some(2),
                ..default()
            },
        ),
        Case::new(
            "adaptive_target .3",
            peaked(1),
            SamplingParams {
                adaptive_target: Some(0.3),
                ..default()
            },
        ),
    ]
}

/// Draws from the same weights: one weight after another, and by prefix sum and binary search.
fn draws(arguments: &Arguments) -> Vec<(String, Times)> {
    let mut times = Vec::new();
    for len in [50_000, VOCAB, 262_144] {
        let mut numbers = Numbers(3);
        let weights: Vec<u64> = (0..len)
            .map(|_| (numbers.normal().exp() * 1e12) as u64)
            .collect();
        let total: u64 = weights.iter().sum();
        let uniform = |round: usize| (round as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let cdf = Cdf::new(&weights);
        let mut time = |name: &str, work: &mut dyn FnMut(usize)| {
            let name = format!("R3.1 draw from {len} weights, {name}");
            if arguments.wants(&name) {
                times.push((name, Times::of(arguments.rounds, work)));
            }
        };
        time("linear scan", &mut |round| {
            let target = (u128::from(uniform(round)) * u128::from(total)) >> 64;
            let mut sum = 0;
            black_box(weights.iter().position(|weight| {
                sum += weight;
                u128::from(sum) > target
            }));
        });
        time("binary search", &mut |round| {
            black_box(cdf.draw(uniform(round)));
        });
        time("prefix sum and binary search", &mut |round| {
            black_box(Cdf::new(black_box(&weights)).draw(uniform(round)));
        });
    }
    times
}
