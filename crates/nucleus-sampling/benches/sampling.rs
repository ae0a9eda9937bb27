//! Times of the fast sampler, one row at a time on one thread, of batches on all, and of draws by scan and by binary search (R3.1).
//!
//! `cargo bench -p nucleus-sampling -- [--rounds N] [--exact] [FILTER]` prints a table of the cases whose name holds FILTER, or is it. Times are of `CpuSampler::sample` alone: the logits are
//! there, the history is in the state. A row is read again and again, so it comes from the cache, or (cold) another of 96 rows each time,
//! so that it comes from memory. `floor` is what reading costs: the largest logit of the row, and nothing else. The rows are those of
//! `peers/sampling/llama_cpp_speed.py`, which measures llama.cpp on them.
#![allow(clippy::print_stdout)]

#[path = "../tests/peers/rows.rs"]
#[allow(dead_code)]
mod rows;

use std::fs;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use half::{bf16, f16};
use nucleus_sampling::{
    Cdf, CompiledParams, CpuOptions, CpuSampler, LogitsRow, Logprobs, LogprobsMode, Row, Sampler,
    SamplerState, SamplingParams, VocabInfo,
};

const VOCAB: usize = 151_936;

fn main() {
    let arguments = Arguments::parse();
    println!(
        "{}, vocabulary {VOCAB}, {} rounds\n",
        machine(),
        arguments.rounds
    );
    println!("| µs | median | least | 90 % | × floor |\n|---|---:|---:|---:|---:|");
    let rounds = arguments.rounds;
    let floor = Times::of(rounds, floor(&rows::logits("peaked", 5, VOCAB))).quantile(0.5);
    let cases = cases().into_iter();
    for case in cases.filter(|case| arguments.wants(&case.name)) {
        report(&case.name, &case.run(rounds), floor);
    }
    for (name, times) in floors(&arguments).into_iter().chain(batches(&arguments)) {
        report(&name, &times, floor);
    }
    for (name, times) in draws(&arguments) {
        report(&name, &times, floor);
    }
}

struct Arguments {
    rounds: usize,
    exact: bool,
    filter: Option<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self {
            rounds: 300,
            exact: false,
            filter: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--exact" => parsed.exact = true,
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
        self.filter.as_ref().is_none_or(|filter| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        })
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

fn report(name: &str, times: &Times, floor: f64) {
    let [median, least, late] = [0.5, 0.0, 0.9].map(|share| times.quantile(share));
    let ratio = median / floor;
    println!("| {name} | {median:.1} | {least:.1} | {late:.1} | {ratio:.1} |");
}

/// Reads a row for its largest logit, with the machine's vector instructions.
fn floor(row: &[f32]) -> impl FnMut(usize) {
    let machine = pulp::Arch::new();
    move |_| {
        black_box(machine.dispatch(|| largest(black_box(row))));
    }
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            let (logit, most) = (chunk[lane], lanes[lane]);
            lanes[lane] = if logit > most { logit } else { most };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
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

/// Top-p .9 keeps 7, 7,394 and 21,779 tokens of these (at temperature 1).
const PEAKED: (&str, u64) = ("peaked", 5);
const WIDE: (&str, u64) = ("peaked", 1);
const BELL: (&str, u64) = ("bell", 1);

fn row((shape, seed): (&str, u64)) -> Vec<f32> {
    rows::logits(shape, seed, VOCAB)
}

/// N(0, 1), on which the best tokens hold little.
fn flat() -> Vec<f32> {
    let mut numbers = Numbers(7);
    (0..VOCAB).map(|_| numbers.normal() as f32).collect()
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
    rows: Rc<Vec<Logits>>,
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
            rows: Rc::new(vec![Logits::F32(logits)]),
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

    /// Reads another row each time.
    fn cold(self, rows: &Rc<Vec<Logits>>) -> Self {
        let rows = Rc::clone(rows);
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

    fn converted(self, suffix: &str, convert: impl Fn(&[f32]) -> Logits) -> Self {
        let rows = self.rows.iter().map(|row| match row {
            Logits::F32(row) => convert(row),
            _ => panic!("{} is converted already", self.name),
        });
        let rows = Rc::new(rows.collect());
        Self { rows, ..self }.named(suffix)
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
        let params = compiled(&self.params);
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

fn compiled(params: &SamplingParams) -> CompiledParams {
    let vocab = VocabInfo::new(VOCAB as u32);
    params.validate(&vocab).expect("valid parameters")
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

fn temperature(t: f64) -> SamplingParams {
    SamplingParams {
        temperature: Some(t),
        ..Default::default()
    }
}

fn top_p(p: f64, t: f64) -> SamplingParams {
    SamplingParams {
        top_p: Some(p),
        ..temperature(t)
    }
}

/// The chains that have a goal, in every type and on every path, and one case for each other stage.
fn cases() -> Vec<Case> {
    let usual = || Case::new("top_k 40, top_p .95, min_p .05, T .8", row(PEAKED), chain());
    let nucleus = |name: &str, kind| Case::new(name, row(kind), top_p(0.9, 1.0));
    let peaked = || nucleus("top_p .9, peaked", PEAKED);
    let wide = || nucleus("top_p .9, wide", WIDE);
    let bell = || nucleus("top_p .9, bell", BELL);
    let plain = || Case::new("T .8", row(PEAKED), temperature(0.8));
    let everything = || Case::new("all on", row(PEAKED), all_on()).with_history(1024);
    let greedy = || Case::new("greedy", row(PEAKED), temperature(0.0));
    let hard = || Case::new("top_p .999, T 2, N(0, 1)", flat(), top_p(0.999, 2.0));
    let goals: [&dyn Fn() -> Case; 7] =
        [&greedy, &usual, &peaked, &wide, &bell, &plain, &everything];
    let cold = (0..96).map(|seed| Logits::F32(row(("peaked", seed))));
    let cold = Rc::new(cold.collect());
    let mut cases = Vec::new();
    for case in goals {
        cases.extend([case(), case().in_f16(), case().in_bf16(), case().raw()]);
        cases.extend([case().cold(&cold), case().searched(), case().portable()]);
    }
    cases.extend([hard(), hard().in_f16(), hard().searched()]);
    cases.extend(stages().map(|(name, params)| Case::new(name, row(PEAKED), params)));
    cases
}

/// Stages alone.
fn stages() -> [(&'static str, SamplingParams); 11] {
    macro_rules! only {
        ($($name:ident: $value:expr),*) => { SamplingParams { $($name: Some($value),)* ..Default::default() } };
    }
    [
        ("min_p .05", only!(min_p: 0.05)),
        ("top_n_sigma 1", only!(top_n_sigma: 1.0)),
        ("top_k 5000", only!(top_k: 5000)),
        ("typical_p .9", only!(typical_p: 0.9)),
        ("epsilon .001", only!(epsilon_cutoff: 0.001)),
        ("eta .001", only!(eta_cutoff: 0.001)),
        ("xtc", only!(xtc_probability: 1.0, xtc_threshold: 0.05)),
        ("dynamic temperature", only!(dynatemp_range: 0.5)),
        ("smoothing", only!(smoothing_factor: 0.3)),
        ("mirostat 2", only!(mirostat: 2)),
        ("adaptive-p", only!(adaptive_target: 0.3)),
    ]
}

/// What reading costs.
fn floors(arguments: &Arguments) -> Vec<(String, Times)> {
    let mut times = Vec::new();
    let rows: Vec<_> = (0..96).map(|seed| row(("peaked", seed))).collect();
    if arguments.wants("floor") {
        times.push((
            "floor".to_owned(),
            Times::of(arguments.rounds, floor(&rows[5])),
        ));
        let cold = |round: usize| floor(&rows[round % rows.len()])(round);
        times.push(("floor, cold".to_owned(), Times::of(arguments.rounds, cold)));
    }
    times
}

/// A batch in one call, a row at a time and on every thread.
fn batches(arguments: &Arguments) -> Vec<(String, Times)> {
    const ROWS: usize = 32;
    let mut times = Vec::new();
    let logits: Vec<_> = (0..ROWS as u64).map(|seed| row(("peaked", seed))).collect();
    for (name, params) in [("usual chain", chain()), ("T .8", temperature(0.8))] {
        let name = format!("batch of {ROWS}, {name}");
        if !arguments.wants(&name) {
            continue;
        }
        let params = compiled(&SamplingParams {
            seed: Some(1),
            ..params
        });
        let state = SamplerState::new(&params, &[]);
        let mode = LogprobsMode::Processed;
        let rows: Vec<_> = logits
            .iter()
            .map(|row| Row {
                logprobs: Logprobs { top: 0, mode },
                ..Row::new(LogitsRow::F32(row), &params, &state)
            })
            .collect();
        let (mut sampler, mut out) = (CpuSampler::new(), Vec::new());
        let rounds = arguments.rounds / 8 + 1;
        let one_by_one = Times::of(rounds, |_| {
            rows.iter().for_each(|row| {
                black_box(sampler.sample(row));
            });
        });
        times.push((format!("{name}, row by row"), one_by_one));
        let together = Times::of(rounds, |_| sampler.sample_batch(black_box(&rows), &mut out));
        times.push((format!("{name}, together"), together));
    }
    times
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
