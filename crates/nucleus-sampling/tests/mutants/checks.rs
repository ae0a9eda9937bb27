//! What the suite checks, as functions that tell whether a sampler passes.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::LazyLock;

use nucleus_sampling::{
    CompiledParams, LogitsRow, ReferenceSampler, Row, SampledToken, Sampler, SamplerState,
    SamplingParams, VocabInfo, philox4x32_10,
};
use serde_json::{Map, Value};

use crate::corpus;
use crate::draws::{Frequencies, Known};

/// One kind of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The cases of `testdata/sampling`.
    Corpus,
    /// The intervals of uniform numbers.
    Intervals,
    /// A batch gives what its rows give alone, wherever they stand.
    Batch,
    /// Every bit of the result equals the reference's.
    Parity,
    /// Frequencies of draws.
    Frequencies,
}

impl Check {
    pub(crate) const ALL: [Self; 5] = [
        Self::Corpus,
        Self::Intervals,
        Self::Batch,
        Self::Parity,
        Self::Frequencies,
    ];

    /// Whether the sampler passes.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub(crate) fn run(self, sampler: &mut dyn Sampler) -> Result<(), String> {
        match self {
            Self::Corpus => CASES.iter().try_for_each(|(_, case)| {
                case.run(sampler)
                    .map_err(|problem| format!("{}: {problem}", case.name))
            }),
            Self::Intervals => intervals(sampler),
            Self::Batch => Work::many(ROWS).check(sampler, batch),
            Self::Parity => Work::many(ROWS).check(sampler, parity),
            Self::Frequencies => frequencies(draws(sampler, 0..40_000)).check(),
        }
    }
}

static CASES: LazyLock<Vec<(PathBuf, corpus::Case)>> = LazyLock::new(corpus::cases);

/// Number of random rows, in batches of four.
const ROWS: u32 = 1200;

fn compile(params: SamplingParams, vocab: usize) -> CompiledParams {
    let seed = Some(params.seed.unwrap_or(77));
    let params = SamplingParams { seed, ..params };
    params
        .validate(&VocabInfo::new(vocab as u32))
        .expect("a valid request")
}

fn intervals(sampler: &mut dyn Sampler) -> Result<(), String> {
    let logits = [0.3, -2.0, 7.5, 7.25, 1.0, -30.0, 7.5, 3.0];
    let top_k = SamplingParams {
        top_k: Some(4),
        temperature: Some(0.7),
        ..Default::default()
    };
    let cases = [
        (SamplingParams::default(), (0..8).collect()),
        (top_k, vec![2, 3, 6, 7]),
    ];
    cases.into_iter().try_for_each(|(params, kept)| {
        let temperature = params.temperature.unwrap_or(1.0);
        let params = &compile(params, logits.len());
        let places = 0..kept.len();
        let known = Known {
            logits: &logits,
            params,
            kept,
            temperature,
        };
        known.check_intervals(sampler, places)
    })
}

/// Eight tokens that weigh 128 : 64 : … : 1.
const LOGITS: [f32; 8] = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0];

/// The request at which they do.
fn powers_of_two() -> CompiledParams {
    let temperature = Some(std::f64::consts::LOG2_E);
    compile(
        SamplingParams {
            temperature,
            ..Default::default()
        },
        LOGITS.len(),
    )
}

/// How often each of the eight tokens is drawn at these positions.
pub(crate) fn draws(sampler: &mut dyn Sampler, positions: Range<u32>) -> [u64; 8] {
    let params = powers_of_two();
    let mut counts = [0; LOGITS.len()];
    for position in positions {
        let state = SamplerState::new(&params, &[]).at_position(position);
        let row = Row::new(LogitsRow::F32(&LOGITS), &params, &state);
        counts[sampler.sample(&row).token_id as usize] += 1;
    }
    counts
}

/// The counts beside the probabilities.
pub(crate) fn frequencies(counts: [u64; 8]) -> Frequencies {
    Frequencies {
        counts: counts.to_vec(),
        probs: LOGITS.iter().map(|x| f64::from(x.exp2()) / 255.0).collect(),
    }
}

/// Settings that random requests are put together from.
const SETTINGS: [&str; 30] = [
    r#"{"temperature": 0.6}"#,
    r#"{"temperature": 1.4}"#,
    r#"{"temperature": 0}"#,
    r#"{"temperature": 0.8, "dynatemp_range": 0.5}"#,
    r#"{"smoothing_factor": 0.3}"#,
    r#"{"top_k": 3}"#,
    r#"{"top_k": 7}"#,
    r#"{"top_p": 0.5}"#,
    r#"{"top_p": 0.9}"#,
    r#"{"min_p": 0.25}"#,
    r#"{"min_p": 1.0}"#,
    r#"{"typical_p": 0.6}"#,
    r#"{"top_n_sigma": 1.0}"#,
    r#"{"epsilon_cutoff": 0.05}"#,
    r#"{"eta_cutoff": 0.1}"#,
    r#"{"top_a": 0.5}"#,
    r#"{"top_k": 6, "tfs_z": 0.8}"#,
    r#"{"xtc_probability": 0.5, "xtc_threshold": 0.1}"#,
    r#"{"min_keep": 2, "top_p": 0.1}"#,
    r#"{"repetition_penalty": 1.3}"#,
    r#"{"frequency_penalty": 0.5}"#,
    r#"{"presence_penalty": 0.75}"#,
    r#"{"dry_multiplier": 1.0, "dry_allowed_length": 1}"#,
    r#"{"no_repeat_ngram_size": 2}"#,
    r#"{"bad_words": [[1], [2, 3]]}"#,
    r#"{"logit_bias": {"0": 1.5, "4": -2}}"#,
    r#"{"preset": "llama.cpp"}"#,
    r#"{"preset": "hf"}"#,
    r#"{"mirostat": 2, "mirostat_tau": 1.0}"#,
    r#"{"samplers": ["top_p", "min_p", "top_k", "temperature", "penalties"]}"#,
];

/// Numbers that are the same in every run.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 += 1;
        philox4x32_10([self.0, 0, 0, 5], [3, 4])[0] as usize % end
    }

    fn ids(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}

/// A row with all that it borrows.
struct Work {
    logits: Vec<f32>,
    params: CompiledParams,
    state: SamplerState,
    mask: Option<Vec<u32>>,
}

impl Work {
    /// Rows of up to 48 tokens whose logits are multiples of 1/8 (so that many are equal) or of 1/1000.
    fn new(numbers: &mut Numbers) -> Self {
        let vocab = [2, 5, 12, 48][numbers.below(4)];
        let longer = vocab + [0, 0, 0, 3][numbers.below(4)];
        let unit = [8.0, 1000.0][numbers.below(2)];
        let logits = (0..longer)
            .map(|_| numbers.below(8 * unit as usize) as f32 / unit)
            .collect();
        let params = loop {
            if let Ok(params) = Self::request(numbers).validate(&VocabInfo::new(vocab as u32)) {
                break params;
            }
        };
        let (prompt, output) = (numbers.below(6), numbers.below(6));
        let mut state = SamplerState::new(&params, &numbers.ids(prompt, vocab));
        numbers
            .ids(output, vocab)
            .iter()
            .for_each(|id| state.commit_forced(*id));
        if numbers.below(4) == 0 {
            state.commit_forced(0);
            state.rewind(1);
        }
        let state = state.fork([0, 0, 1][numbers.below(3)]);
        let mask = (numbers.below(5) == 0).then(|| vec![0xFFFF_FFF7]);
        Self {
            logits,
            params,
            state,
            mask,
        }
    }

    fn request(numbers: &mut Numbers) -> SamplingParams {
        let mut request = Map::new();
        request.insert("seed".to_owned(), numbers.below(1000).into());
        for _ in 0..numbers.below(5) {
            let setting = SETTINGS[numbers.below(SETTINGS.len())];
            request.extend(serde_json::from_str::<Map<String, Value>>(setting).expect("an object"));
        }
        serde_json::from_value(Value::Object(request)).expect("parameters")
    }

    fn many(count: u32) -> Batches {
        let mut numbers = Numbers(0);
        Batches((0..count).map(|_| Self::new(&mut numbers)).collect())
    }

    fn row(&self) -> Row<'_> {
        let row = Row::new(LogitsRow::F32(&self.logits), &self.params, &self.state);
        Row {
            mask: self.mask.as_deref(),
            ..row
        }
    }
}

struct Batches(Vec<Work>);

impl Batches {
    fn check(
        &self,
        sampler: &mut dyn Sampler,
        check: fn(&mut dyn Sampler, &[Row<'_>]) -> Result<(), String>,
    ) -> Result<(), String> {
        self.0.chunks(4).try_for_each(|batch| {
            let rows: Vec<Row<'_>> = batch.iter().map(Work::row).collect();
            check(sampler, &rows)
        })
    }
}

/// Tokens by their text, in which NaN equals NaN.
fn text(tokens: &[SampledToken]) -> String {
    format!("{tokens:?}")
}

fn sample_batch(sampler: &mut dyn Sampler, rows: &[Row<'_>]) -> Vec<SampledToken> {
    let mut tokens = Vec::new();
    sampler.sample_batch(rows, &mut tokens);
    tokens
}

fn batch(sampler: &mut dyn Sampler, rows: &[Row<'_>]) -> Result<(), String> {
    let together = sample_batch(sampler, rows);
    let alone: Vec<SampledToken> = rows.iter().map(|row| sampler.sample(row)).collect();
    let (together, alone) = (text(&together), text(&alone));
    (together == alone)
        .then_some(())
        .ok_or(format!("{together} together, {alone} alone"))
}

fn parity(sampler: &mut dyn Sampler, rows: &[Row<'_>]) -> Result<(), String> {
    let mut reference = ReferenceSampler::new();
    let (got, expected) = (
        sample_batch(sampler, rows),
        sample_batch(&mut reference, rows),
    );
    let (got, expected) = (text(&got), text(&expected));
    if got != expected {
        return Err(format!("{got}, expected {expected}"));
    }
    rows.iter().try_for_each(|row| {
        let (got, expected) = (sampler.trace(row), reference.trace(row));
        let same = got.distribution == expected.distribution;
        same.then_some(())
            .ok_or_else(|| format!("{got:?}, expected {expected:?}"))
    })
}
