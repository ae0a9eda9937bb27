//! The fast sampler against the reference, bit for bit: tokens, log-probabilities, counts, statuses, feedback, traces.

#[path = "parity/mod.rs"]
mod parity;

use half::{bf16, f16};
use nucleus_sampling::{
    CompiledParams, CpuOptions, CpuSampler, LogitsRow, ReferenceSampler, Row, SampledToken,
    Sampler, SamplerState, SamplingParams, Status,
};
use parity::{Request, RowSpec, Shape, WAYS, bits, check, check_all, request, row_spec};
use proptest::collection::vec;
use proptest::prelude::*;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

/// Requests and rows for vocabularies of one size, with traces or without.
macro_rules! parity {
    ($($(#[$attribute:meta])? $name:ident: $vocab:expr, $cases:expr, $trace:expr;)*) => {$(
        proptest! {
            #![proptest_config(config($cases))]

            #[test]
            $(#[$attribute])?
            fn $name(spec in row_spec(), request in request($vocab)) {
                check_all(&spec.make($vocab as usize), $vocab, &request, $trace)?;
            }
        }
    )*};
}

parity! {
    vocabulary_of_1: 1, 200, true;
    vocabulary_of_2: 2, 200, true;
    vocabulary_of_111: 111, 600, true;
    vocabulary_of_1000: 1000, 400, true;
    vocabulary_of_5000: 5000, 60, true;
    vocabulary_of_32000: 32_000, 12, false;
    vocabulary_of_151936: 151_936, 4, false;
    vocabulary_of_262144: 262_144, 2, false;
}

/// The same with many more cases, for `just nightly`.
mod nightly {
    use super::*;

    parity! {
        #[ignore = "minutes"] vocabulary_of_1: 1, 20_000, true;
        #[ignore = "minutes"] vocabulary_of_2: 2, 20_000, true;
        #[ignore = "minutes"] vocabulary_of_111: 111, 40_000, true;
        #[ignore = "minutes"] vocabulary_of_1000: 1000, 20_000, true;
        #[ignore = "minutes"] vocabulary_of_5000: 5000, 5000, true;
        #[ignore = "minutes"] vocabulary_of_32000: 32_000, 500, true;
        #[ignore = "minutes"] vocabulary_of_151936: 151_936, 100, false;
        #[ignore = "minutes"] vocabulary_of_262144: 262_144, 60, false;
    }
}

/// Chains of every class, on vocabularies as large as they come.
fn chains() -> Vec<SamplingParams> {
    let default = || SamplingParams {
        seed: Some(5),
        ..Default::default()
    };
    vec![
        default(),
        SamplingParams {
            temperature: Some(0.0),
            ..default()
        },
        SamplingParams {
            temperature: Some(0.8),
            top_k: Some(40),
            top_p: Some(0.95),
            min_p: Some(0.05),
            ..default()
        },
        SamplingParams {
            temperature: Some(1.7),
            top_p: Some(0.9),
            ..default()
        },
        SamplingParams {
            top_n_sigma: Some(3.0),
            xtc_probability: Some(1.0),
            xtc_threshold: Some(0.001),
            ..default()
        },
        SamplingParams {
            top_k: Some(20_000),
            typical_p: Some(0.7),
            ..default()
        },
        SamplingParams {
            dynatemp_range: Some(0.5),
            eta_cutoff: Some(0.0002),
            mirostat: Some(2),
            ..default()
        },
    ]
}

fn check_large(vocab: usize, spec: &RowSpec, params: SamplingParams) {
    let request = Request {
        prompt: (0..400).map(|i| i * 331 % 997).collect(),
        output: (0..100).map(|i| i * 17 % 50).collect(),
        ..Request::of(SamplingParams {
            repetition_penalty: Some(1.2),
            ..params
        })
    };
    let (params, state) = request.compile(vocab as u32).expect("valid parameters");
    let logits = spec.make(vocab);
    let row = request.row(LogitsRow::F32(&logits), &params, &state);
    check(&[CpuOptions::default()], &row, false).expect("the samplers agree");
}

#[test]
fn chains_on_a_vocabulary_of_151936() {
    for params in chains() {
        check_large(151_936, &RowSpec::plain(Shape::Peaked, 3), params);
    }
}

#[test]
fn chains_on_a_vocabulary_of_262144() {
    for params in chains().into_iter().skip(2).step_by(2) {
        check_large(262_144, &RowSpec::plain(Shape::Bell(2.0), 4), params);
    }
}

/// Logits of one row in one of the types.
enum Logits {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Logits {
    fn new(logits: Vec<f32>, kind: usize) -> Self {
        match kind % 3 {
            0 => Self::F32(logits),
            1 => Self::F16(logits.into_iter().map(f16::from_f32).collect()),
            _ => Self::Bf16(logits.into_iter().map(bf16::from_f32).collect()),
        }
    }

    fn row(&self) -> LogitsRow<'_> {
        match self {
            Self::F32(row) => LogitsRow::F32(row),
            Self::F16(row) => LogitsRow::F16(row),
            Self::Bf16(row) => LogitsRow::Bf16(row),
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    /// Neither the neighbours, nor the place in the batch, nor what the memory was used for before, can be seen in a result.
    #[test]
    fn a_batch_is_its_rows_in_any_order(
        work in vec((row_spec(), request(700), 1usize..1500), 1..12), way in 0..WAYS.len(), turn in any::<prop::sample::Index>(),
    ) {
        let compiled: Vec<(CompiledParams, SamplerState, &Request, Logits)> = work.iter().enumerate()
            .filter_map(|(place, (spec, request, len))| {
                let (params, state) = request.compile(700)?;
                Some((params, state, request, Logits::new(spec.make(*len), place)))
            })
            .collect();
        let mut rows: Vec<Row<'_>> = compiled.iter()
            .map(|(params, state, request, logits)| request.row(logits.row(), params, state))
            .collect();
        let alone = |row: &Row<'_>| bits(&CpuSampler::with_options(WAYS[way]).sample(row));
        let mut sampler = CpuSampler::with_options(WAYS[way]);
        let mut batch = vec![SampledToken::failed(Status::Nan); 3];
        for _ in 0..2 {
            sampler.sample_batch(&rows, &mut batch);
            let expected: Vec<_> = rows.iter().map(alone).collect();
            prop_assert_eq!(batch.iter().map(bits).collect::<Vec<_>>(), expected);
            if !rows.is_empty() {
                rows.rotate_left(turn.index(compiled.len()));
            }
        }
    }
}

#[test]
fn an_empty_batch_has_no_tokens() {
    let mut batch = vec![SampledToken::failed(Status::Nan)];
    CpuSampler::with_options(CpuOptions::default()).sample_batch(&[], &mut batch);
    assert!(batch.is_empty());
}

/// How many threads share the rows cannot be seen in a result.
#[test]
fn a_batch_is_the_same_on_any_number_of_threads() {
    let requests: Vec<Request> = chains()
        .into_iter()
        .cycle()
        .take(23)
        .map(Request::of)
        .collect();
    let compiled: Vec<_> = requests
        .iter()
        .map(|request| request.compile(3000).expect("valid parameters"))
        .collect();
    let logits: Vec<_> = (0..23)
        .map(|seed| RowSpec::plain(Shape::Peaked, seed).make(3000))
        .collect();
    let rows: Vec<Row<'_>> = requests
        .iter()
        .zip(&compiled)
        .zip(&logits)
        .map(|((request, (params, state)), logits)| {
            request.row(LogitsRow::F32(logits), params, state)
        })
        .collect();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("threads start");
        let mut batch = Vec::new();
        pool.install(|| CpuSampler::new().sample_batch(&rows, &mut batch));
        batch.iter().map(bits).collect::<Vec<_>>()
    };
    let expected: Vec<_> = rows
        .iter()
        .map(|row| bits(&ReferenceSampler::new().sample(row)))
        .collect();
    for threads in [1, 2, 3, 8] {
        assert_eq!(on(threads), expected, "{threads} threads");
    }
}
